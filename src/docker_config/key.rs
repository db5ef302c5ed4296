//! Which keys under `auths` are one and the same registry for the kubelet.
//!
//! The kubelet indexes an entry by host, port and path of its key: `https://host`, `host/` and `host/v2/` are all
//! `host`, and all their credentials stay, tried in random order (`keyring.go`, `BasicDockerKeyring.Add`).

/// The key under which the kubelet files an entry, or `None` where it skips the entry because the key is no URL.
#[must_use]
pub fn index_key(key: &str) -> Option<String> {
    filed_under(key).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// What [`index_key`] shows, byte for byte: `%ff` in a path is one byte to Go, and no text.
pub(super) fn filed_under(key: &str) -> Option<Vec<u8>> {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let Location { host, mut path } = Location::parse(rest.as_bytes())?;
    // Once, and only with the slash behind it.
    if path.starts_with(b"/v2/") || path.starts_with(b"/v1/") {
        path.drain(..3);
    }
    Some(if path == b"/" { host } else { [host, path].concat() })
}

/// A key as people may see it: without user and password, which the kubelet accepts before an `@` and ignores.
#[must_use]
pub fn shown(key: &str) -> String {
    let start = key.find("://").map_or(0, |at| at + 3);
    let end = key[start..].find('/').map_or(key.len(), |at| start + at);
    match key[start..end].rfind('@') {
        Some(at) => format!("{}…{}", &key[..start], &key[start + at..]),
        None => key.to_owned(),
    }
    .escape_debug()
    .to_string()
}

/// Host and path of what follows a scheme, as Go's `net/url` reads them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Location {
    /// With its port.
    pub(super) host: Vec<u8>,
    pub(super) path: Vec<u8>,
}

impl Location {
    /// Parses what stands behind `https://`, or `None` where Go refuses it.
    pub(super) fn parse(rest: &[u8]) -> Option<Self> {
        let (rest, fragment) = cut(rest, b'#');
        unescape(fragment)?;
        if rest.iter().any(|byte| *byte < 0x20 || *byte == 0x7F) {
            return None;
        }
        let (rest, _query) = cut(rest, b'?');
        let (authority, path) = rest.split_at(position(rest, b'/').unwrap_or(rest.len()));
        let host = match authority.iter().rposition(|byte| *byte == b'@') {
            Some(at) => is_user_info(&authority[..at]).then_some(&authority[at + 1..])?,
            None => authority,
        };
        Some(Self { host: parse_host(host)?, path: unescape(path)? })
    }

    /// Host and port, as Go's `net.SplitHostPort` parts them. Where it finds fault, all of it is the host.
    pub(super) fn host_and_port(&self) -> (&[u8], &[u8]) {
        let whole = (self.host.as_slice(), &[][..]);
        let Some(colon) = self.host.iter().rposition(|byte| *byte == b':') else { return whole };
        let (before, port) = (&self.host[..colon], &self.host[colon + 1..]);
        let host = match before {
            [b'[', inside @ .., b']'] if !inside.contains(&b']') => inside,
            [b'[', ..] => return whole,
            _ if before.contains(&b':') => return whole,
            _ => before,
        };
        let is_bracket = |byte: &u8| *byte == b'[' || *byte == b']';
        if host.iter().chain(port).any(is_bracket) { whole } else { (host, port) }
    }
}

/// What stands before and after the first `byte`.
fn cut(text: &[u8], byte: u8) -> (&[u8], &[u8]) {
    position(text, byte).map_or((text, &[]), |at| (&text[..at], &text[at + 1..]))
}

fn position(text: &[u8], byte: u8) -> Option<usize> {
    text.iter().position(|other| *other == byte)
}

/// Whether Go takes `text` for the part before an `@`.
fn is_user_info(text: &[u8]) -> bool {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(byte);
    text.iter().all(allowed) && unescape(text).is_some()
}

/// Host and port as Go reads them from an authority (`parseHost`).
fn parse_host(host: &[u8]) -> Option<Vec<u8>> {
    match host.iter().rposition(|byte| *byte == b'[') {
        // Nothing but an IPv6 address stands in brackets.
        Some(0) => {
            let end = host.iter().rposition(|byte| *byte == b']')?;
            let port = &host[end + 1..];
            let address = unescape_address(&host[1..end])?;
            return is_port(port).then(|| [b"[", address.as_slice(), b"]", port].concat());
        }
        Some(_) => return None,
        None => {}
    }
    // Go 1.26 refuses a second colon outside brackets; before, only the last part had to be a port. No image's host has two
    // colons there, so such a key has never matched one.
    if let Some(at) = position(host, b':')
        && !is_port(&host[at..])
    {
        return None;
    }
    unescape_host(host)
}

/// The address in brackets: IPv6, its zone behind `%25`.
fn unescape_address(text: &[u8]) -> Option<Vec<u8>> {
    let zone = text.windows(3).position(|part| part == b"%25").unwrap_or(text.len());
    let (address, zone) = text.split_at(zone);
    let address = unescape_host(address)?;
    let digits = std::str::from_utf8(&address).ok()?;
    digits.parse::<core::net::Ipv6Addr>().ok()?;
    let zone_is_good = zone.iter().all(|byte| *byte == b'%' || *byte >= 0x80 || is_host_byte(*byte))
        && escapes(zone).all(|byte| byte == b'%' || byte == b' ' || is_host_byte(byte));
    let zone = unescape(zone).filter(|zone| zone_is_good && zone.len() != 1)?;
    Some([address, zone].concat())
}

/// A host without its escapes. Go allows `%xx` in one for `%` itself and for what is no ASCII (RFC 6874).
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

/// What `net/url` leaves unescaped in a host (`shouldEscape`, mode `encodeHost`).
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:[]<>\"".contains(&byte)
}

/// The bytes that `%xx` stands for in a text, as far as they are well-formed.
fn escapes(text: &[u8]) -> impl Iterator<Item = u8> {
    text.windows(3).filter_map(|part| if part[0] == b'%' { hex(part[1], part[2]) } else { None })
}

/// Resolves `%xx`, or `None` where one is malformed.
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
    fn a_key_is_shown_without_its_user() {
        let cases = [
            ("registry.example.com", "registry.example.com"),
            ("https://user:secret@registry.example.com/v2/", "https://…@registry.example.com/v2/"),
            ("user:sec@ret@registry.example.com", "…@registry.example.com"),
            ("registry.example.com/a@b", "registry.example.com/a@b"),
            ("a\nb", "a\\nb"),
        ];
        for (key, expected) in cases {
            assert_eq!(shown(key), expected);
        }
    }
}
