//! Which proxy a request goes through, as `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` say.

use crate::ecr::environment::Environment;
use crate::ecr::url::has_usable_port;
use crate::report::redact;
use hyper::Uri;
use hyper::header::HeaderValue;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use percent_encoding::percent_decode_str;
use std::fmt;
use std::net::IpAddr;

/// The proxies.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    /// For `http` URLs.
    http: Option<Proxy>,
    /// For `https` URLs.
    https: Option<Proxy>,
    /// Hosts that are asked without a proxy.
    no_proxy: String,
}

/// A proxy.
#[derive(Clone)]
pub struct Proxy {
    /// The variable that names it.
    variable: &'static str,
    /// Its host and port, which may be shown.
    address: String,
    /// Its URL without the user, and the header with the user and the password where there are some.
    way: Intercept,
}

/// A variable that names no usable proxy. The value is not shown: there may be a password in it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable} {problem}: expected a URL such as `http://proxy.example.com:3128`")]
pub struct ProxyError {
    variable: &'static str,
    problem: &'static str,
}

impl Proxies {
    /// Reads the variables.
    ///
    /// # Errors
    /// When one of them is no URL of an HTTP proxy.
    pub fn new(environment: &Environment) -> Result<Self, ProxyError> {
        let read = |names: [&'static str; 2]| {
            environment.first(&names).map(|(variable, value)| Proxy::new(variable, value)).transpose()
        };
        let all = read(["ALL_PROXY", "all_proxy"])?;
        Ok(Self {
            http: read(["HTTP_PROXY", "http_proxy"])?.or_else(|| all.clone()),
            https: read(["HTTPS_PROXY", "https_proxy"])?.or(all),
            no_proxy: environment
                .first(&["NO_PROXY", "no_proxy"])
                .map_or_else(String::new, |(_, value)| value.to_owned()),
        })
    }

    /// The proxy for a request. The metadata service and a container's endpoint are on this node, and are asked without:
    /// a proxy could only reach those of another node, and would see the credentials.
    #[must_use]
    pub fn for_url(&self, url: &Uri) -> Option<&Proxy> {
        let proxy = match url.scheme_str() {
            Some("http") if is_on_this_node(url) => None,
            Some("http") => self.http.as_ref(),
            _ => self.https.as_ref(),
        }?;
        // Only the list of exceptions is the matcher's: which proxy it is has been decided.
        let matcher =
            Matcher::builder().all(format!("http://{}", proxy.address)).no(self.no_proxy.as_str()).build();
        matcher.intercept(url).map(|_| proxy)
    }
}

impl Proxy {
    /// Where it is: its URL, without a user.
    pub(super) fn url(&self) -> &Uri {
        self.way.uri()
    }

    /// The value of `Proxy-Authorization`; `None` if the variable names no user.
    pub(super) fn authorization(&self) -> Option<&HeaderValue> {
        self.way.basic_auth()
    }

    fn new(variable: &'static str, value: &str) -> Result<Self, ProxyError> {
        let failed = |problem| ProxyError { variable, problem };
        let value = value.trim();
        if value.contains(['"', '\'']) {
            return Err(failed("is in quotes, which are no part of a URL"));
        }
        let (scheme, rest) = value.split_once("://").unwrap_or(("http", value));
        if !matches!(scheme, "http" | "https") {
            return Err(failed("has a scheme other than `http` and `https`"));
        }
        let url: Uri = format!("{scheme}://{rest}").parse().map_err(|_| failed("is no URL"))?;
        let authority = url.authority().ok_or(failed("is no URL"))?.as_str();
        let (user, address) =
            authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
        if address.is_empty() || address.starts_with(':') || !address.bytes().all(is_host) {
            return Err(failed("is no URL"));
        }
        if !has_usable_port(address) {
            return Err(failed("has a port that is none"));
        }
        if let Some(user) = user {
            redact::remember(user);
            let password = user.split_once(':').map_or(user, |(_, password)| password);
            redact::remember(password);
            redact::remember(&percent_decode_str(password).decode_utf8_lossy());
        }
        let matcher = Matcher::builder().all(format!("{scheme}://{authority}")).build();
        let way = matcher.intercept(&url).ok_or(failed("is no URL"))?;
        Ok(Self { variable, address: address.to_owned(), way })
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the proxy {} ({})", self.address, self.variable)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether a URL is one of the metadata service's or of a container's endpoint: plain HTTP on a link-local address, or on
/// the one that EC2 has for IPv6.
fn is_on_this_node(url: &Uri) -> bool {
    let host = url.host().unwrap_or_default();
    match host.trim_start_matches('[').trim_end_matches(']').parse() {
        Ok(IpAddr::V4(address)) => address.is_link_local(),
        Ok(IpAddr::V6(address)) => address.segments()[..2] == [0xFD00, 0x0EC2],
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Result<Proxies, ProxyError> {
        let owned = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Proxies::new(&Environment::new(owned))
    }

    #[test]
    fn each_scheme_has_its_proxy_and_the_nodes_own_services_have_none() {
        let all = proxies(&[
            ("HTTPS_PROXY", "secure.example:3128"),
            ("https_proxy", "http://other.example"),
            ("ALL_PROXY", "http://user:a%2Fb@any.example:8080/"),
            ("NO_PROXY", "internal.example, 10.0.0.0/8"),
        ])
        .unwrap();
        let cases = [
            ("https://api.ecr.eu-west-1.amazonaws.com/", Some("the proxy secure.example:3128 (HTTPS_PROXY)")),
            ("http://127.0.0.1:8080/", Some("the proxy any.example:8080 (ALL_PROXY)")),
            ("https://host.internal.example/", None),
            ("http://10.1.2.3/", None),
            ("http://169.254.169.254/latest/api/token", None),
            ("http://169.254.170.23:80/v1/credentials", None),
            ("http://[fd00:ec2::254]/latest", None),
            ("https://169.254.169.254/", Some("the proxy secure.example:3128 (HTTPS_PROXY)")),
            ("http://169.254.169.254.example.com/", Some("the proxy any.example:8080 (ALL_PROXY)")),
            ("http://[::1]/", Some("the proxy any.example:8080 (ALL_PROXY)")),
        ];
        for (url, expected) in cases {
            let proxy = all.for_url(&url.parse().unwrap()).map(ToString::to_string);
            assert_eq!(proxy.as_deref(), expected, "{url}");
        }
        let any = all.http.unwrap();
        assert_eq!(any.url(), "http://any.example:8080/");
        // `user:a/b` in base64.
        assert_eq!(any.authorization().unwrap(), "Basic dXNlcjphL2I=");
        assert!(all.https.unwrap().authorization().is_none());
        assert!(proxies(&[]).unwrap().for_url(&"https://host/".parse().unwrap()).is_none());
    }

    #[test]
    fn a_proxy_that_is_none_is_named_by_its_variable_and_not_shown() {
        let cases = [
            ("HTTP_PROXY", "\"http://host:1\"", "HTTP_PROXY is in quotes"),
            ("https_proxy", "socks5://user:hunter2@host:1", "https_proxy has a scheme other than"),
            ("ALL_PROXY", "http://", "ALL_PROXY is no URL"),
            ("HTTP_PROXY", "http://user:hunter2@", "HTTP_PROXY is no URL"),
            ("HTTP_PROXY", "http://ho st", "HTTP_PROXY is no URL"),
            ("HTTP_PROXY", " ", "HTTP_PROXY is no URL"),
            ("HTTPS_PROXY", "http://host:312888", "HTTPS_PROXY has a port that is none"),
            ("HTTPS_PROXY", "http://user:hunter2@host:x", "HTTPS_PROXY has a port that is none"),
            ("HTTP_PROXY", "'http://host'", "HTTP_PROXY is in quotes"),
        ];
        for (variable, value, expected) in cases {
            let error = proxies(&[(variable, value)]).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{value}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
