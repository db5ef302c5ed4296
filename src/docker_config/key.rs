//! Which keys under `auths` are one and the same registry for the kubelet.
//!
//! The kubelet indexes an entry by host, port and path of its key: `https://host`, `host/` and `host/v2/` are all
//! `host`, and all their credentials stay, tried in random order (`keyring.go`, `BasicDockerKeyring.Add`).

/// The key under which the kubelet files an entry, or `None` where it skips the entry because the key is no URL.
#[must_use]
pub fn index_key(key: &str) -> Option<String> {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    // Go is given `https://` and the rest; from here on it is `net/url`'s parser.
    if rest.bytes().any(|byte| byte < 0x20 || byte == 0x7F) {
        return None;
    }
    let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
    let rest = rest.split_once('?').map_or(rest, |(before, _)| before);
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let host = match authority.rsplit_once('@') {
        Some((user, host)) => is_user_info(user).then_some(host)?,
        None => authority,
    };
    let host = parse_host(host)?;
    let path = unescape(path, |_| true)?;
    let mut key_path = path.as_str();
    // Once, and only with the slash behind it.
    if key_path.starts_with("/v2/") || key_path.starts_with("/v1/") {
        key_path = &key_path[3..];
    }
    Some(if key_path == "/" { host } else { host + key_path })
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

/// Whether Go takes `text` for the part before an `@`.
fn is_user_info(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&byte);
    text.bytes().all(allowed) && unescape(text, |_| true).is_some()
}

/// Host and port as Go reads them from an authority.
fn parse_host(host: &str) -> Option<String> {
    if let Some(end) = host.rfind(']').filter(|_| host.starts_with('[')) {
        is_port(&host[end + 1..]).then_some(())?;
        return Some(host.to_owned());
    }
    if let Some(at) = host.find(':') {
        // Go 1.26 refuses a second colon outside brackets; before, only the last part had to be a port.
        is_port(&host[at..]).then_some(())?;
    }
    // Go refuses `%xx` in a host unless the byte is no ASCII (RFC 6874).
    unescape(host, |byte| byte >= 0x80).filter(|_| host.bytes().all(is_host_byte))
}

fn is_port(text: &str) -> bool {
    text.is_empty()
        || text.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// What `net/url` leaves unescaped in a host (`shouldEscape`, mode `encodeHost`), and what it lets pass besides.
fn is_host_byte(byte: u8) -> bool {
    byte >= 0x80 || byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:[]<>\"%".contains(&byte)
}

/// Resolves `%xx`, or `None` where one is malformed or its byte is not allowed here.
fn unescape(text: &str, allowed: impl Fn(u8) -> bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        let value =
            digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then(|| u8::from_str_radix(digits, 16));
        let value = value?.ok()?;
        allowed(value).then_some(())?;
        bytes.push(value);
        rest = &rest[2..];
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
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
