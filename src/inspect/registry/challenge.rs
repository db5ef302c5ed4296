//! Which kind of credential a registry wants, and where a credential may be sent.
//!
//! The rules are those of the distribution specification's token authentication and of RFC 9110, section 11.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// The longest URL of a token service that is asked, or shown.
const MAX_REALM: usize = 2048;

/// What `WWW-Authenticate` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token, which a token service gives for user and password.
    Bearer {
        /// The URL of the token service.
        realm: String,
        /// The service that the token is for; `None` if the registry names none.
        service: Option<String>,
    },
}

/// Why a credential is not sent to a token service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// The registry names no usable URL.
    #[error("the registry names a token service that is no plain URL")]
    NotAUrl,
    /// Everybody on the way could read the credential.
    #[error("the registry names a token service without TLS, `{0}`, which gets no credential")]
    PlainHttp(String),
}

/// The challenge in the headers of an answer that this program can answer. A bearer challenge comes first, as in container
/// runtimes.
pub fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for header in headers {
        for (scheme, parameters) in challenges(header) {
            if scheme.eq_ignore_ascii_case("bearer") {
                let parameter = |name: &str| {
                    let found = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.clone())
                };
                if let Some(realm) = parameter("realm") {
                    return Some(Challenge::Bearer { realm, service: parameter("service") });
                }
            } else if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

/// The challenges in one header: scheme, and parameters by name.
fn challenges(header: &str) -> Vec<(&str, Vec<(&str, String)>)> {
    let mut found: Vec<(&str, Vec<(&str, String)>)> = Vec::new();
    let mut rest = header.trim_start_matches([' ', ',', '\t']);
    while !rest.is_empty() {
        let word_end = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(word_end);
        if word.is_empty() {
            break;
        }
        match (after.trim_start().strip_prefix('='), found.last_mut()) {
            (Some(value), Some((_, parameters))) => {
                let Some((value, after)) = value_of(value.trim_start()) else { break };
                parameters.push((word, value));
                rest = after;
            }
            (Some(_), None) => break,
            (None, _) => {
                found.push((word, Vec::new()));
                rest = after;
            }
        }
        rest = rest.trim_start_matches([' ', ',', '\t']);
    }
    found
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// A parameter's value, quoted or not, and what follows it.
fn value_of(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', ',', '\t']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

/// The URL to ask a token service for a token to pull from `repository`, or why it is not asked.
///
/// A credential goes to the service that the registry names, as with every client, but only over TLS. Without TLS it goes there
/// only if the registry itself is asked without TLS, and the service is that registry, or both are on this node.
///
/// # Errors
/// When no credential may be sent there.
pub fn token_url(
    realm: &str,
    service: Option<&str>,
    repository: &str,
    registry: &Endpoint,
) -> Result<String, Untrusted> {
    let (tls, rest) = match (realm.strip_prefix("https://"), realm.strip_prefix("http://")) {
        (Some(rest), _) => (true, rest),
        (None, Some(rest)) => (false, rest),
        (None, None) => return Err(Untrusted::NotAUrl),
    };
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    let is_plain = |c: char| c.is_ascii_graphic() && !"\"<>\\^`{|}".contains(c);
    if realm.len() > MAX_REALM
        || host.is_empty()
        || realm.contains(['@', '#'])
        || !realm.chars().all(is_plain)
    {
        return Err(Untrusted::NotAUrl);
    }
    let is_as_open =
        !registry.tls && (host == registry.host || is_loopback(host) && is_loopback(&registry.host));
    if !tls && !is_as_open {
        return Err(Untrusted::PlainHttp(realm.to_owned()));
    }
    let joint = if rest.contains('?') { '&' } else { '?' };
    let service = service.map(|service| format!("service={}&", escaped(service))).unwrap_or_default();
    let scope = escaped(&format!("repository:{repository}:pull"));
    Ok(format!("{realm}{joint}{service}scope={scope}"))
}

/// Where a registry is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its host, with its port.
    pub host: String,
    /// Over TLS.
    pub tls: bool,
}

impl Endpoint {
    /// The URL of a path, which begins with `/`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{path}", self.host)
    }
}

/// Whether a host, perhaps with its port, is this node itself.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<core::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A query's value: what RFC 3986 allows there stays.
fn escaped(text: &str) -> String {
    const ESCAPED: AsciiSet =
        NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b':').remove(b'/');
    utf8_percent_encode(text, &ESCAPED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) }
    }

    #[test]
    fn a_challenge_is_found_among_others() {
        let cases = [
            (r#"Basic realm="x""#, Some(Challenge::Basic)),
            ("basic", Some(Challenge::Basic)),
            (
                r#"Bearer realm="https://auth.example.com/token",service="registry",scope="repository:a,b:pull""#,
                Some(bearer("https://auth.example.com/token", Some("registry"))),
            ),
            (r#"Basic realm="a, b", bearer REALM="https://a/\"t\"""#, Some(bearer("https://a/\"t\"", None))),
            ("Negotiate, Bearer realm=https://a/t , service = s", Some(bearer("https://a/t", Some("s")))),
            (r#"Bearer realm="https://a/"#, None),
            (r#"Bearer service="x""#, None),
            (r#"Digest realm="x""#, None),
            ("=", None),
            ("", None),
        ];
        for (header, challenge) in cases {
            assert_eq!(parse([header].into_iter()), challenge, "{header}");
        }
    }

    #[test]
    fn a_credential_goes_only_where_it_may() {
        let remote = Endpoint { host: "registry.example.com".to_owned(), tls: true };
        let open = Endpoint { host: "registry.example.com:5000".to_owned(), tls: false };
        let here = Endpoint { host: "127.0.0.1:5000".to_owned(), tls: false };
        let plain = |realm: &str| Err(Untrusted::PlainHttp(realm.to_owned()));
        let cases = [
            (
                &remote,
                "https://auth.example.com/token",
                Ok("https://auth.example.com/token?scope=repository:a/b:pull"),
            ),
            (
                &remote,
                "https://auth.example.com/?x=1",
                Ok("https://auth.example.com/?x=1&scope=repository:a/b:pull"),
            ),
            (&remote, "http://auth.example.com/token", plain("http://auth.example.com/token")),
            (&remote, "http://registry.example.com/token", plain("http://registry.example.com/token")),
            (&remote, "http://127.0.0.1:1/token", plain("http://127.0.0.1:1/token")),
            (
                &open,
                "http://registry.example.com:5000/t",
                Ok("http://registry.example.com:5000/t?scope=repository:a/b:pull"),
            ),
            (&open, "http://registry.example.com/t", plain("http://registry.example.com/t")),
            (&open, "http://127.0.0.1:1/t", plain("http://127.0.0.1:1/t")),
            (&here, "http://localhost:5001/t", Ok("http://localhost:5001/t?scope=repository:a/b:pull")),
            (&here, "http://[::1]:5001/t", Ok("http://[::1]:5001/t?scope=repository:a/b:pull")),
            (&here, "http://localhost.example.com/t", plain("http://localhost.example.com/t")),
            (&remote, "https://user@auth.example.com/", Err(Untrusted::NotAUrl)),
            (&remote, "https://auth.example.com/#x", Err(Untrusted::NotAUrl)),
            (&remote, "https://", Err(Untrusted::NotAUrl)),
            (&remote, "ftp://auth.example.com/", Err(Untrusted::NotAUrl)),
            (&remote, "https://auth.example.com/\r\nX: y", Err(Untrusted::NotAUrl)),
        ];
        for (registry, realm, url) in cases {
            let found = token_url(realm, None, "a/b", registry);
            assert_eq!(found, url.map(str::to_owned), "{realm}");
        }
        let url = token_url("https://a/t", Some("a b&c"), "r", &remote).unwrap();
        assert_eq!(url, "https://a/t?service=a%20b%26c&scope=repository:r:pull");
        for (length, is_url) in [(MAX_REALM, true), (MAX_REALM + 1, false), (MAX_REALM + 2, false)] {
            let realm = format!("{:a<length$}", "https://a/");
            assert_eq!(token_url(&realm, None, "r", &remote).is_ok(), is_url, "{length} bytes");
        }
        assert_eq!(remote.url("/v2/"), "https://registry.example.com/v2/");
        assert_eq!(open.url("/v2/"), "http://registry.example.com:5000/v2/");
    }
}
