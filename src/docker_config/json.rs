//! JSON objects as Go's `encoding/json` reads them, with every name and value kept as the text it was.
//!
//! The kubelet is a Go program, and Go reads JSON differently from serde: object names match in any letter case, names may
//! be repeated, lone surrogates become U+FFFD, numbers may be out of range, nesting may be 10,000 levels deep. So foreign
//! values stay raw text: a value that is never decoded cannot be changed.

use secrecy::zeroize::Zeroizing;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

/// One `"name": value` of an object, both as their JSON text.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    /// The name with its quotes and escapes.
    pub name: &'a str,
    /// The value's text.
    pub value: &'a str,
}

/// The members of a JSON object in their order, repeated names included.
///
/// # Errors
/// If `text` is no JSON object. The caller must refuse texts that are nested deeper than Go allows ([`too_deep`]).
pub fn members(text: &str) -> Result<Vec<Member<'_>>, serde_json::Error> {
    struct Members;

    impl<'de> Visitor<'de> for Members {
        type Value = Vec<Member<'de>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut members = Vec::new();
            while let Some((name, value)) = map.next_entry::<&RawValue, &RawValue>()? {
                // `RawValue` accepts any value as a name; JSON allows strings only.
                if !name.get().starts_with('"') {
                    return Err(A::Error::custom("an object's name is no string"));
                }
                members.push(Member { name: name.get(), value: value.get() });
            }
            Ok(members)
        }
    }

    let mut deserializer = serde_json::Deserializer::from_str(text);
    let members = deserializer.deserialize_map(Members)?;
    deserializer.end()?;
    Ok(members)
}

/// The value of a JSON string as Go decodes it. `None` if `text` is no string.
#[must_use]
pub fn string(text: &str) -> Option<String> {
    struct Bytes;

    impl Visitor<'_> for Bytes {
        type Value = Vec<u8>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON string")
        }

        fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Self::Value, E> {
            Ok(bytes.to_vec())
        }
    }

    if !text.starts_with('"') {
        return None;
    }
    let mut bytes = serde_json::Deserializer::from_str(text).deserialize_bytes(Bytes).ok()?;
    // For bytes, serde_json encodes an escaped lone surrogate as three bytes (WTF-8). Go replaces it by U+FFFD.
    if text.contains("\\u") {
        let surrogates: Vec<usize> = (2..bytes.len())
            .filter(|&at| bytes[at - 2] == 0xED && bytes[at - 1] >= 0xA0)
            .map(|at| at - 2)
            .collect();
        for at in surrogates {
            bytes[at..at + 3].copy_from_slice("\u{FFFD}".as_bytes());
        }
    }
    String::from_utf8(bytes).ok()
}

/// Bytes as Go decodes them in a string: each byte that is not UTF-8 becomes U+FFFD.
///
/// `String::from_utf8_lossy` differs: it makes one U+FFFD of a whole cut-off character.
#[must_use]
pub fn replaced(bytes: &[u8]) -> Zeroizing<String> {
    // The capacity is reserved first: a string that grows leaves copies of its content behind. U+FFFD is three bytes long.
    let mut text = Zeroizing::new(String::with_capacity(3 * bytes.len()));
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(std::iter::repeat_n('\u{FFFD}', chunk.invalid().len()));
    }
    text
}

/// `text` as a JSON string, quotes included.
#[must_use]
pub fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// `text` without the white space that JSON knows, which is less than Unicode's.
#[must_use]
pub fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t', '\r', '\n'])
}

/// Whether Go reads `name` as its struct's field `field` (given in lower case).
///
/// Go compares with simple case folding, where `ſ` is an `s` and the Kelvin sign a `k` (`encoding/json`, `foldName`).
#[must_use]
pub fn is_field(name: &str, field: &str) -> bool {
    let folded = name.chars().map(|c| match c {
        '\u{17F}' => 's',
        '\u{212A}' => 'k',
        c => c.to_ascii_lowercase(),
    });
    folded.eq(field.chars())
}

/// Whether `text` is nested deeper than the 10,000 levels at which Go's decoder gives up.
#[must_use]
pub fn too_deep(text: &str) -> bool {
    const DEEPEST: usize = 10_000;

    // Each level takes a byte.
    if text.len() <= DEEPEST {
        return false;
    }
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                if depth > DEEPEST {
                    return true;
                }
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_read_as_go_reads_them() {
        let cases = [
            (r#""plain""#, Some("plain")),
            (r#""a\u00e9\n\"""#, Some("aé\n\"")),
            (r#""\ud83d\ude00""#, Some("😀")),
            (r#""a\ud800b""#, Some("a\u{FFFD}b")),
            (r#""\ud800\ud800""#, Some("\u{FFFD}\u{FFFD}")),
            ("12", None),
            ("null", None),
            ("[]", None),
        ];
        for (text, value) in cases {
            assert_eq!(string(text).as_deref(), value, "{text}");
        }
    }

    #[test]
    fn members_keep_their_text_and_order_and_repeated_names() {
        let text = "{ \"b\" : 1e999, \"a\":[ 1,2 ] , \"b\": \"\\ud800\" }";
        let read: Vec<_> = members(text).unwrap().iter().map(|member| (member.name, member.value)).collect();
        assert_eq!(read, [("\"b\"", "1e999"), ("\"a\"", "[ 1,2 ]"), ("\"b\"", "\"\\ud800\"")]);
        for bad in ["", "[]", "null", "{} {}", "{1:2}", "{null:2}", "{\"a\":1,}", "{\"a\":01}", "{'a':1}"] {
            assert!(members(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn depth_counts_brackets_outside_strings() {
        let nested = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(!too_deep(&nested(10_000)));
        assert!(too_deep(&nested(10_001)));
        let brackets = "[".repeat(10_001);
        assert!(!too_deep(&format!("[\"{brackets}\\\"{brackets}\\\\\"]")));
        assert!(too_deep(&format!("[\"\\\\\", {brackets}")), "the string ends before them");
        assert!(too_deep(&format!("{}\"]]\", [[", "[".repeat(9_999))), "brackets in a string close nothing");
        assert!(!too_deep(&format!("[{}{{}}]", "[],".repeat(10_001))), "side by side");
    }
}
