//! What a URL in a setting must look like (pure).

use super::registry::is_port;

/// Whether a text is an HTTP URL with a host, and without a user, a query and a fragment. The SDK panics on some that are
/// not, and shows the whole request for others.
#[must_use]
pub fn is_endpoint(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")).unwrap_or_default();
    let authority = rest.split('/').next().unwrap_or_default();
    let allowed = |byte: u8| byte.is_ascii_graphic() && !b"\"<>\\^`{|}?#".contains(&byte);
    !authority.is_empty()
        && !authority.starts_with(':')
        && !authority.contains('@')
        && has_usable_port(authority)
        && url.bytes().all(allowed)
        && url.parse::<hyper::Uri>().is_ok()
}

/// Whether the port of a host is a number up to 65535, if there is one. URL parsers ignore another one, and the scheme's usual
/// port would be asked.
#[must_use]
pub fn has_usable_port(authority: &str) -> bool {
    match authority.rsplit_once(':') {
        Some((_, port)) if !port.ends_with(']') => is_port(port),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_url_of_a_server_is_an_endpoint() {
        for url in
            ["https://host", "http://host:80/path/", "http://[::1]:8080", "http://[::1]", "https://h/a%20b"]
        {
            assert!(is_endpoint(url), "{url}");
        }
        let wrong = [
            "",
            "host",
            "host:80",
            "ftp://host",
            "https://",
            "https://:80",
            "https://user@host",
            "http://host:",
            "http://host:65536",
            "http://host:+80",
            "http://host:x",
            "https://host?a=b",
            "https://host/#a",
            "https://ho st",
            "https://host/{}",
            "https://host/\n",
        ];
        for url in wrong {
            assert!(!is_endpoint(url), "{url}");
        }
    }
}
