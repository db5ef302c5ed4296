//! IAM Roles Anywhere: a certificate and its key, such as the kubelet's own, are exchanged for credentials of a role.
//!
//! | file | what is in it |
//! | --- | --- |
//! | [`option`] | the value of `--roles-anywhere` (pure) |
//! | [`certificate`] | what has to be known of a certificate (pure) |
//! | [`identity`] | certificate and key, checked before AWS is asked (pure) |
//! | [`request`] | the request and its signature (pure) |
//! | [`answer`] | what an answer means (pure) |

pub mod answer;
pub mod certificate;
pub mod identity;
pub mod option;
pub mod request;

use self::answer::ErrorAnswer;
use self::identity::ClientIdentity;
use self::option::RolesAnywhere;
use self::request::PATH;
use super::config::{Endpoint, Service};
use super::credentials::{Context, Obtained};
use super::files::{Content, ReadError};
use super::http::request::Request;
use super::refusal::{Refusal, ahead};
use super::sdk_error::send_refusal;
use crate::report::redact::shown_path;
use crate::time::clock;
use hyper::Uri;
use std::path::Path;
use std::time::Duration;

/// How long AWS may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A certificate with its chain and its key has a few kilobytes.
const MAX_FILE: u64 = 256 * 1024;

/// Exchanges the certificate for credentials.
///
/// # Errors
/// When the files are no identity, AWS refuses it, or cannot be reached.
pub async fn obtain(context: Context<'_>, option: &RolesAnywhere) -> Result<Obtained, Refusal> {
    let certificates = read(context, &option.certificate).await?;
    let key = if option.key == option.certificate { None } else { Some(read(context, &option.key).await?) };
    let now = clock::now();
    let identity = ClientIdentity::new(&certificates, key.as_ref().unwrap_or(&certificates), now);
    let identity = identity.map_err(|error| {
        let files = if key.is_some() {
            format!("{} and {}", shown_path(&option.certificate), shown_path(&option.key))
        } else {
            shown_path(&option.certificate)
        };
        Refusal::NoCredentials { reason: format!("{files}: {error}"), passing: error.is_passing() }
    })?;
    let base = match context.config.endpoint(Service::RolesAnywhere)? {
        Endpoint::Own(url) => url,
        Endpoint::Aws { fips, dual_stack } => {
            option.endpoint(fips, dual_stack).map_err(|error| Refusal::settings(&error))?
        }
    };
    let url = format!("{base}{PATH}");
    let unusable = || Refusal::settings(&format!("{url} is no URL"));
    let parsed: Uri = url.parse().map_err(|_| unusable())?;
    let host = host(&parsed).ok_or_else(unusable)?;
    let signed = request::create_session(option, &identity, &host, parsed.path(), now)
        .ok_or_else(|| Refusal::no_credentials("the private key cannot sign"))?;
    let request =
        Request { method: "POST", url: &url, headers: signed.headers, body: signed.body, within: TIMEOUT };
    let service = format!("IAM Roles Anywhere in {}", option.region);
    let answer = context.http.send(request).await.map_err(|error| send_refusal(&error, &service))?;
    if !(200..300).contains(&answer.status()) {
        let ahead = ahead(answer.header("date"), clock::now());
        let answer =
            ErrorAnswer::new(answer.status(), answer.header("x-amzn-errortype"), &answer.body, ahead);
        return Err(answer.refusal(option, &identity.leaf));
    }
    let (credentials, role) = answer::credentials(&answer.body)?;
    let source = format!("--roles-anywhere with the certificate {}", shown_path(&option.certificate));
    Ok(Obtained { credentials, source, role: Some(role) })
}

async fn read(context: Context<'_>, path: &Path) -> Result<Content, Refusal> {
    context.reader.read(path, MAX_FILE).await.map_err(|error| {
        let hint = match &error {
            ReadError::Missing if RolesAnywhere::is_kubelets(path) => "; the kubelet writes it when it has joined the cluster",
            ReadError::Denied { .. } => {
                "; the kubelet's certificate belongs to root: in a pod, mount its directory into the agent's container; as a systemd \
                 unit, install the drop-in roles-anywhere.conf"
            }
            _ => "",
        };
        let passing = error.is_passing() || matches!(error, ReadError::Missing);
        Refusal::NoCredentials { reason: format!("{} {error}{hint}", shown_path(path)), passing }
    })
}

/// The `Host` header of a URL: with the port, unless it is the scheme's usual one.
fn host(url: &Uri) -> Option<String> {
    let usual = if url.scheme_str()? == "https" { 443 } else { 80 };
    let host = url.host()?;
    Some(match url.port_u16() {
        Some(port) if port != usual => format!("{host}:{port}"),
        _ => host.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_its_port_unless_it_is_the_usual_one() {
        let cases = [
            ("https://a.example/sessions", "a.example"),
            ("https://a.example:443/sessions", "a.example"),
            ("http://127.0.0.1:8080/sessions", "127.0.0.1:8080"),
            ("http://[::1]:80/sessions", "[::1]"),
        ];
        for (url, expected) in cases {
            assert_eq!(host(&url.parse().unwrap()).as_deref(), Some(expected), "{url}");
        }
    }
}
