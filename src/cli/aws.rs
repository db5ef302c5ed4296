//! What the environment says about AWS: endpoints, certificates, credential files, and the session's name.

use super::error::UsageError;
use crate::ecr::client::is_endpoint;
use crate::ecr::http::Trust;
use std::ffi::OsString;
use std::path::PathBuf;

/// Whose certificates to accept. The AWS SDK for Rust knows none of these variables, other AWS programs know them all.
pub(super) fn trust() -> Trust {
    let file =
        |name: &'static str| variable(name).map(|path| Trust::File { variable: name, path: path.into() });
    file("AWS_CA_BUNDLE")
        .or_else(|| file("SSL_CERT_FILE"))
        .or_else(|| {
            let directories = variable("SSL_CERT_DIR")?;
            Some(Trust::Directories(std::env::split_paths(&directories).collect()))
        })
        .unwrap_or(Trust::System)
}

/// The endpoints that the environment names must be URLs: the SDK panics on an empty one.
pub(super) fn check_endpoints() -> Result<(), UsageError> {
    let variables = [
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_ECR",
        "AWS_ENDPOINT_URL_ECR_PUBLIC",
        "AWS_ENDPOINT_URL_STS",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    ];
    for variable in variables {
        #[expect(
            clippy::disallowed_methods,
            reason = "this is where settings are read; an empty one counts here"
        )]
        let value = std::env::var_os(variable).map(|value| value.to_string_lossy().into_owned());
        if let Some(value) = value.filter(|value| !is_endpoint(value)) {
            // The value is not shown: it may hold a password.
            let problem = if value.is_empty() { "empty" } else { "no URL" };
            return Err(UsageError::Endpoint { variable, problem });
        }
    }
    Ok(())
}

/// The files that the environment names, from which the SDK reads credentials.
pub(super) fn credential_files() -> Vec<PathBuf> {
    let names = ["AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE"];
    names.into_iter().filter_map(variable).map(PathBuf::from).filter(|path| path.is_absolute()).collect()
}

/// `ecr-node-agent@<node>`, with the characters that STS allows (`[\w+=,.@-]`), 64 at most.
pub(super) fn session_name() -> String {
    let node = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
    let allowed = |c: &char| c.is_ascii_alphanumeric() || "+=,.@-_".contains(*c);
    format!("ecr-node-agent@{node}").chars().filter(allowed).take(64).collect()
}

#[expect(clippy::disallowed_methods, reason = "this is where settings are read")]
pub(super) fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}
