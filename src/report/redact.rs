//! Words of somebody else's, as far as they may be shown.
//!
//! Pure. What a server answers may repeat what it was sent, whole or in part, and may be of any length.

/// Longer runs of letters, digits and what else a token is made of are left out.
const LONGEST_RUN: usize = 40;

/// The words without anything that could be a token, on one line, so many characters at most.
#[must_use]
pub fn redact(text: &str, most: usize) -> String {
    let mut shown = String::new();
    let mut run = String::new();
    let flush = |run: &mut String, shown: &mut String| {
        shown.push_str(if run.len() < LONGEST_RUN { run } else { "…" });
        run.clear();
    };
    for c in text.trim().chars() {
        if c.is_ascii_alphanumeric() || "+/=_-".contains(c) {
            run.push(c);
        } else {
            flush(&mut run, &mut shown);
            shown.extend(c.escape_debug());
        }
    }
    flush(&mut run, &mut shown);
    if let Some((end, _)) = shown.char_indices().nth(most) {
        shown.truncate(end);
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_could_be_a_token_is_shown_and_not_too_much_of_the_rest() {
        let token = "QVdTOmV5SndZWGxzYjJGa0lqb2lVMFZEVWtWVVVFRlRVMWRQVWtRaQ==";
        let cases = [
            (" a b\n", "a b".to_owned()),
            ("two\nlines\u{1b}[31m", "two\\nlines\\u{1b}[31m".to_owned()),
            (&format!("bad token {token}, sorry"), "bad token …, sorry".to_owned()),
            (&format!("bad token {}", &token[..40]), "bad token …".to_owned()),
            (&"a b ".repeat(50), format!("{}…", "a b ".repeat(20))),
        ];
        for (text, expected) in cases {
            assert_eq!(redact(text, 80), expected, "{text}");
        }
    }
}
