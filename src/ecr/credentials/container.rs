//! The HTTP endpoint that ECS and EKS Pod Identity give a container.

use super::source::{Authorization, Container};
use super::{Context, Obtained, answer};
use crate::ecr::http::request::Request;
use crate::ecr::refusal::Refusal;
use crate::ecr::sdk_error::send_refusal;
use crate::ecr::url::has_usable_port;
use crate::report::redact::{redact, redact_known, remember, shown_path};
use hyper::Uri;
use secrecy::SecretString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// ECS's endpoint for a path that is given alone.
const ECS: &str = "http://169.254.170.2";
/// How long the endpoint may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A token of EKS Pod Identity has about 1,200 characters.
const MAX_TOKEN: u64 = 64 * 1024;
/// The longest text of the endpoint's that is shown.
const LONGEST: usize = 200;

/// Why an address is not asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The variable for a path holds something else.
    #[error("is no path: expected one that starts with `/`")]
    NotAPath,
    /// The variable for a URL holds something else.
    #[error("is no URL: expected one such as `http://169.254.170.23/v1/credentials`")]
    NotAUrl,
    /// A plain HTTP URL of another machine, which others on the way can read.
    #[error(
        "is a plain HTTP URL of a host that is not on this node: expected HTTPS, or `localhost`, a loopback address, \
         169.254.170.2, 169.254.170.23 or [fd00:ec2::23]"
    )]
    NotOnThisNode,
}

/// Asks the endpoint.
///
/// # Errors
/// When it is not there, or has no credentials.
pub async fn ask(context: Context<'_>, container: &Container) -> Result<Obtained, Refusal> {
    let source = format!("the container endpoint of {}", container.variable);
    let failed =
        |problem: String, passing| Refusal::NoCredentials { reason: format!("{source} {problem}"), passing };
    let url = url(container)
        .map_err(|error| Refusal::no_credentials(&format!("{} {error}", container.variable)))?;
    let mut headers = vec![("accept", SecretString::from("application/json"))];
    if let Some(token) = authorization(context, &container.authorization).await? {
        headers.push(("authorization", token));
    }
    let request = Request { headers, ..Request::get(&url, TIMEOUT) };
    // Never through a proxy, which would see the credentials.
    let answer = context.http.send_on_this_node(request).await.map_err(|error| {
        let refusal = send_refusal(&error, &source);
        let passing = refusal.is_passing();
        Refusal::NoCredentials { reason: refusal.into_reason(), passing }
    })?;
    let status = answer.status();
    if status != 200 {
        let texts = [&["code"][..], &["message"][..]].map(|names| answer::text(&answer.body, names));
        let said: Vec<String> = texts.into_iter().flatten().map(|text| redact(&text, LONGEST)).collect();
        let said = if said.is_empty() { String::new() } else { format!(": {}", said.join(": ")) };
        let passing = status >= 500 || status == 429;
        return Err(failed(format!("answers with HTTP status {status}{said}"), passing));
    }
    let credentials =
        answer::parse(&answer.body).map_err(|error| failed(format!("gave an answer that {error}"), true))?;
    let role = answer::text(&answer.body, &["RoleArn"]).map(|role| redact_known(&role, LONGEST));
    Ok(Obtained { credentials, source, role })
}

/// The whole URL.
fn url(container: &Container) -> Result<String, AddressError> {
    let address = &container.address;
    if container.variable == "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI" {
        let url = format!("{ECS}{address}");
        let is_path = address.starts_with('/') && url.parse::<Uri>().is_ok();
        return if is_path { Ok(url) } else { Err(AddressError::NotAPath) };
    }
    let url: Uri = address.parse().map_err(|_| AddressError::NotAUrl)?;
    let authority = url.authority().ok_or(AddressError::NotAUrl)?.as_str();
    if authority.contains('@') || !has_usable_port(authority) {
        return Err(AddressError::NotAUrl);
    }
    match url.scheme_str() {
        Some("https") => Ok(address.clone()),
        Some("http") if is_on_this_node(url.host().unwrap_or_default()) => Ok(address.clone()),
        Some("http") => Err(AddressError::NotOnThisNode),
        _ => Err(AddressError::NotAUrl),
    }
}

fn is_on_this_node(host: &str) -> bool {
    match host.trim_start_matches('[').trim_end_matches(']').parse() {
        Ok(IpAddr::V4(address)) => {
            address.is_loopback()
                || [Ipv4Addr::new(169, 254, 170, 2), Ipv4Addr::new(169, 254, 170, 23)].contains(&address)
        }
        Ok(IpAddr::V6(address)) => {
            address.is_loopback() || address == Ipv6Addr::new(0xFD00, 0x0EC2, 0, 0, 0, 0, 0, 0x23)
        }
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

/// The value of the `Authorization` header.
async fn authorization(
    context: Context<'_>,
    authorization: &Authorization,
) -> Result<Option<SecretString>, Refusal> {
    let path = match authorization {
        Authorization::None => return Ok(None),
        Authorization::Token(token) => return Ok(Some(token.clone())),
        Authorization::File(path) => path,
    };
    let failed = |problem: &str, passing| Refusal::NoCredentials {
        reason: format!("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE names {}, which {problem}", shown_path(path)),
        passing,
    };
    let token = context.reader.read(path, MAX_TOKEN).await;
    let token = token.map_err(|error| failed(&error.to_string(), error.is_passing()))?;
    let token = std::str::from_utf8(&token).unwrap_or_default().trim();
    if token.is_empty() {
        return Err(failed("holds no token", false));
    }
    remember(token);
    Ok(Some(SecretString::from(token)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_node_is_asked_without_tls() {
        const FULL: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
        const RELATIVE: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
        let cases = [
            (RELATIVE, "/v2/credentials/x", Ok("http://169.254.170.2/v2/credentials/x")),
            (RELATIVE, "v2", Err(AddressError::NotAPath)),
            (RELATIVE, "/a b", Err(AddressError::NotAPath)),
            (FULL, "http://169.254.170.23/v1/credentials", Ok("http://169.254.170.23/v1/credentials")),
            (FULL, "http://[fd00:ec2::23]/v1", Ok("http://[fd00:ec2::23]/v1")),
            (FULL, "http://127.0.0.1:8080/", Ok("http://127.0.0.1:8080/")),
            (FULL, "http://[::1]:80/x", Ok("http://[::1]:80/x")),
            (FULL, "http://localhost/x", Ok("http://localhost/x")),
            (FULL, "https://example.com/x", Ok("https://example.com/x")),
            (FULL, "http://example.com/x", Err(AddressError::NotOnThisNode)),
            (FULL, "http://169.254.169.254/x", Err(AddressError::NotOnThisNode)),
            (FULL, "localhost:1", Err(AddressError::NotAUrl)),
            (FULL, "127.0.0.1:1", Err(AddressError::NotAUrl)),
            (FULL, "[::1]", Err(AddressError::NotAUrl)),
            (FULL, "http://user:pass@localhost/", Err(AddressError::NotAUrl)),
            (FULL, "ftp://localhost/", Err(AddressError::NotAUrl)),
            (FULL, "/v2", Err(AddressError::NotAUrl)),
            (FULL, "http://127.0.0.1:808080/", Err(AddressError::NotAUrl)),
            (FULL, " ", Err(AddressError::NotAUrl)),
        ];
        for (variable, address, expected) in cases {
            let container =
                Container { variable, address: address.to_owned(), authorization: Authorization::None };
            assert_eq!(url(&container), expected.map(str::to_owned), "{address}");
        }
    }
}
