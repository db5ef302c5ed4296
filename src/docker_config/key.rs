//! Which keys under `auths` are the same registry for the kubelet.
//!
//! The kubelet indexes an entry by host, port and path of its key: `https://host`, `host/` and `host/v2/` all become
//! `host`. It keeps all their credentials and tries them in random order (`keyring.go`, `BasicDockerKeyring.Add`).

/// The key under which the kubelet indexes an entry. `None` if it skips the entry because the key is no URL.
#[must_use]
pub fn index_key(key: &str) -> Option<String> {
    filed_under(key).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// As [`index_key`], in bytes: `%ff` in a path is one byte for Go, and not text.
pub(super) fn filed_under(key: &str) -> Option<Vec<u8>> {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let Location { host, mut path } = Location::parse(rest.as_bytes())?;
    // The kubelet cuts it once, and only with a slash after it.
    if path.starts_with(b"/v2/") || path.starts_with(b"/v1/") {
        path.drain(..3);
    }
    Some(if path == b"/" { host } else { [host, path].concat() })
}

/// A key as a terminal may show it: [`visible`], with control characters escaped.
#[must_use]
pub fn shown(key: &str) -> String {
    visible(key).escape_debug().to_string()
}

/// A key without any part that may be a password: what is before the last `@`, what follows `?` or `#`, and a port that is not
/// a number. Keys are often written by hand, so a password may also contain `/`, or follow a damaged scheme.
#[must_use]
pub fn visible(key: &str) -> String {
    let start = scheme_end(key);
    let (scheme, rest) = key.split_at(start);
    let (user, rest) = match rest.rfind('@') {
        Some(at) => ("…", &rest[at..]),
        None => ("", rest),
    };
    let (address, query) = match rest.find(['?', '#']) {
        Some(at) => (&rest[..=at], "…"),
        None => (rest, ""),
    };
    let end = address.find('/').unwrap_or(address.len());
    let (host, path) = address.split_at(end);
    // Not a colon of an IPv6 address in brackets.
    let colon = host.rfind(']').unwrap_or_default();
    let port = host[colon..].find(':').map(|at| colon + at + 1);
    match port.filter(|port| !host[*port..].bytes().all(|byte| byte.is_ascii_digit())) {
        Some(port) => format!("{scheme}{user}{}…{path}{query}", &host[..port]),
        None => format!("{scheme}{user}{address}{query}"),
    }
}

/// Where the scheme and its slashes end: `https://`, also damaged as `https:/` or `//`, or any other `name://` if no `@`
/// follows, since then that name may be a user.
fn scheme_end(key: &str) -> usize {
    let slashes = |at: usize| key[at..].bytes().take_while(|byte| *byte == b'/').count();
    for known in ["https:", "http:", ""] {
        let is_known = key.get(..known.len()).is_some_and(|start| start.eq_ignore_ascii_case(known));
        if is_known && (known.is_empty() || slashes(known.len()) > 0) {
            let end = known.len() + slashes(known.len());
            if end > 0 {
                return end;
            }
        }
    }
    match key.find("://") {
        Some(at) if is_scheme(&key[..at]) && !key.contains('@') => at + 3,
        _ => 0,
    }
}

/// Whether a text is a scheme by RFC 3986.
pub(super) fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

/// Host and path of the text after a URL's scheme, as Go's `net/url` reads them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Location {
    /// The host with its port.
    pub(super) host: Vec<u8>,
    pub(super) path: Vec<u8>,
}

impl Location {
    /// Parses the text after `https://`. `None` if Go refuses it.
    pub(super) fn parse(rest: &[u8]) -> Option<Self> {
        let (rest, fragment) = split_before(rest, b'#');
        unescape(fragment)?;
        if rest.iter().any(|byte| *byte < 0x20 || *byte == 0x7F) {
            return None;
        }
        let (rest, _query) = split_before(rest, b'?');
        let (authority, path) = split_before(rest, b'/');
        let host = match authority.iter().rposition(|byte| *byte == b'@') {
            Some(at) => is_user_info(&authority[..at]).then_some(&authority[at + 1..])?,
            None => authority,
        };
        Some(Self { host: parse_host(host)?, path: unescape(path)? })
    }

    /// Host and port, as Go's `net.SplitHostPort` splits them. If that fails, all of it is the host.
    pub(super) fn host_and_port(&self) -> (&[u8], &[u8]) {
        let whole = (self.host.as_slice(), &[][..]);
        let Some(colon) = self.host.iter().rposition(|byte| *byte == b':') else { return whole };
        let (before, port) = (&self.host[..colon], &self.host[colon + 1..]);
        // A second colon is only in brackets.
        let host = match before {
            [b'[', inside @ .., b']'] => inside,
            _ => before,
        };
        let is_bracket = |byte: &u8| *byte == b'[' || *byte == b']';
        if host.iter().chain(port).any(is_bracket) { whole } else { (host, port) }
    }
}

/// The text before the first `byte`, and from there on.
fn split_before(text: &[u8], byte: u8) -> (&[u8], &[u8]) {
    text.split_at(position(text, byte).unwrap_or(text.len()))
}

fn position(text: &[u8], byte: u8) -> Option<usize> {
    text.iter().position(|other| *other == byte)
}

/// Whether Go accepts `text` before an `@`.
fn is_user_info(text: &[u8]) -> bool {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(byte);
    text.iter().all(allowed) && unescape(text).is_some()
}

/// Host and port as Go reads them from an authority (`parseHost`).
fn parse_host(host: &[u8]) -> Option<Vec<u8>> {
    match host.iter().rposition(|byte| *byte == b'[') {
        // Only an IPv6 address may be in brackets.
        Some(0) => {
            let end = host.iter().rposition(|byte| *byte == b']')?;
            let port = &host[end + 1..];
            // Go also accepts a zone after `%25`, which no image's host has.
            let address = std::str::from_utf8(&host[1..end]).ok()?;
            let is_address = address.parse::<core::net::Ipv6Addr>().is_ok();
            return (is_address && is_port(port)).then(|| host.to_vec());
        }
        Some(_) => return None,
        None => {}
    }
    // Go 1.26 refuses a second colon outside brackets; earlier versions checked only the last part. The host of an image
    // has no two colons there, so such a key never matched one.
    if let Some(at) = position(host, b':')
        && !is_port(&host[at..])
    {
        return None;
    }
    unescape_host(host)
}

/// A host without its escapes. Go allows `%xx` in a host for `%` and for bytes that are not ASCII (RFC 6874).
fn unescape_host(host: &[u8]) -> Option<Vec<u8>> {
    let is_good = host.iter().all(|byte| *byte == b'%' || *byte >= 0x80 || is_host_byte(*byte))
        && escapes(host).all(|byte| byte == b'%' || byte >= 0x80);
    unescape(host).filter(|_| is_good)
}

fn is_port(text: &[u8]) -> bool {
    match text {
        [] => true,
        [b':', digits @ ..] => digits.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

/// Whether `net/url` accepts the byte unescaped in a host (`shouldEscape`, mode `encodeHost`).
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:[]<>\"".contains(&byte)
}

/// The bytes that the well-formed `%xx` of a text stand for.
fn escapes(text: &[u8]) -> impl Iterator<Item = u8> {
    text.windows(3).filter_map(|part| if part[0] == b'%' { hex(part[1], part[2]) } else { None })
}

/// Resolves `%xx`. `None` if one is malformed.
fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%' {
            bytes.push(hex(*rest.first()?, *rest.get(1)?)?);
            rest = &rest[2..];
        } else {
            bytes.push(byte);
        }
    }
    Some(bytes)
}

fn hex(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_shown_without_any_password() {
        let cases = [
            ("registry.example.com", "registry.example.com"),
            ("registry.example.com:5000/team", "registry.example.com:5000/team"),
            ("https://registry.example.com/v2/", "https://registry.example.com/v2/"),
            ("oci://registry.example.com", "oci://registry.example.com"),
            ("http://[::1]:5000/a", "http://[::1]:5000/a"),
            ("*.example.com", "*.example.com"),
            ("", ""),
            ("/", "/"),
            ("https:", "https:"),
            ("https://user:secret@registry.example.com/v2/", "https://…@registry.example.com/v2/"),
            ("user:sec@ret@registry.example.com", "…@registry.example.com"),
            ("https://user:pa/secret@example.com", "https://…@example.com"),
            ("https://AWS:secret/abc+def==@example.com", "https://…@example.com"),
            ("user:secret@example.com?x=://", "…@example.com?…"),
            ("//user:secret@example.com", "//…@example.com"),
            ("https:/user:secret@example.com", "https:/…@example.com"),
            ("HTTPS:///user:secret@example.com", "HTTPS:///…@example.com"),
            ("https:user:secret@example.com", "…@example.com"),
            ("oci://user:secret@example.com", "…@example.com"),
            ("secret://x@example.com", "…@example.com"),
            ("registry.example.com/secret@b", "…@b"),
            ("example.com?token=secret", "example.com?…"),
            ("example.com/a#secret", "example.com/a#…"),
            ("https://user:secret", "https://user:…"),
            ("oci://user:secret", "oci://user:…"),
            ("oci+x-1.2://user:secret", "oci+x-1.2://user:…"),
            ("user:secret/x", "user:…/x"),
            ("[::1]:secret", "[::1]:…"),
            ("a\nb", "a\\nb"),
        ];
        for (key, expected) in cases {
            assert_eq!(shown(key), expected);
            assert!(!shown(key).contains("secret"), "{key}");
        }
        // A program that reads JSON gets the key itself.
        assert_eq!(visible("a\nb"), "a\nb");
    }

    #[test]
    fn a_key_is_a_url_by_gos_rules() {
        let cases = [
            ("#a", true),
            ("a.b/ ", true),
            ("a.b/\u{1f}", false),
            ("a.b/\u{7f}", false),
            ("a.b?\u{1}", false),
            ("a.b#\u{1}", true),
            ("a.b#%zz", false),
            ("[::1]:5000", true),
            ("[::1]5000", false),
            ("[::1]:x", false),
            ("[::1/x", false),
            ("x[::1]/x", false),
            ("a[b]/x", false),
            ("[1.2.3.4]:5000", false),
            ("a%C3%A9b/x", true),
            ("a%41b/x", false),
            ("a%zzb/x", false),
            ("a^b/x", false),
            ("a:5000/x", true),
            ("a:/x", true),
            ("a:x/x", false),
            ("a:1:2/x", false),
            ("user@a/x", true),
            ("us%41@a/x", true),
            ("us%zz@a/x", false),
            ("us^er@a/x", false),
        ];
        for (key, expected) in cases {
            assert_eq!(Location::parse(key.as_bytes()).is_some(), expected, "{key:?}");
        }
    }

    #[test]
    fn a_port_stands_after_the_last_colon_outside_brackets() {
        let cases = [
            ("a.b", "a.b", ""),
            ("a.b:5000", "a.b", "5000"),
            ("a.b:", "a.b", ""),
            ("[::1]:5000", "::1", "5000"),
            ("[::1]", "[::1]", ""),
        ];
        for (key, host, port) in cases {
            let location = Location::parse(key.as_bytes()).unwrap();
            assert_eq!(location.host_and_port(), (host.as_bytes(), port.as_bytes()), "{key}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_before_an_at_sign_is_never_shown(
            before in "[a-z:/?#]{0,12}", after in "[a-z/:?#]{0,8}", start in "(https?:/{1,3}|//|)"
        ) {
            let shown = shown(&format!("{start}{before}QQ{after}@host/x"));
            proptest::prop_assert!(!shown.contains("QQ") && shown.ends_with("@host/x"), "{shown}");
        }
    }
}
