//! What the environment says about AWS and the network, checked as far as it can be without asking.

use crate::ecr::config::Service;
use crate::ecr::environment::Environment;
use crate::ecr::http::proxy::{Proxies, ProxyError};
use crate::ecr::http::trust::Trust;
use crate::ecr::url::is_endpoint;
use std::ffi::OsString;
use std::path::PathBuf;

/// A variable that cannot work.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VariableError {
    /// An endpoint. Its value is not shown: there may be a password in it.
    #[error("{0} is no URL: expected one such as `https://HOST`, without user and query")]
    Endpoint(&'static str),
    /// A proxy.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
}

/// Reads the variables.
pub(super) fn environment() -> Environment {
    let text = |text: OsString| text.to_string_lossy().into_owned();
    let environment = Environment::new(std::env::vars_os().map(|(name, value)| (text(name), text(value))));
    match environment.get("HOME") {
        Some(_) => environment,
        None => environment.with_home(home_of_user()),
    }
}

/// The home directory of this process's user. cron and some service managers set no `HOME`, and then the shared files are
/// there, as for the AWS CLI.
fn home_of_user() -> Option<PathBuf> {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.dir)
}

/// Checks the variables whose value does not depend on anything else.
pub(super) fn check(environment: &Environment) -> Result<(), VariableError> {
    let services = [Service::Ecr, Service::EcrPublic, Service::Sts, Service::RolesAnywhere];
    let variables = services
        .map(Service::endpoint_variable)
        .into_iter()
        .chain(["AWS_ENDPOINT_URL", "AWS_EC2_METADATA_SERVICE_ENDPOINT"]);
    for variable in variables {
        if environment.get(variable).is_some_and(|value| !is_endpoint(value.trim())) {
            return Err(VariableError::Endpoint(variable));
        }
    }
    Proxies::new(environment)?;
    Ok(())
}

/// Which certificate authorities are trusted. The AWS SDK for Rust knows none of these variables, other AWS programs know
/// them all.
pub(super) fn trust(environment: &Environment) -> Trust {
    let file = |variable: &'static str| environment.path(variable).map(|path| Trust::File { variable, path });
    file("AWS_CA_BUNDLE")
        .or_else(|| file("SSL_CERT_FILE"))
        .or_else(|| {
            let directories = environment.get("SSL_CERT_DIR")?;
            Some(Trust::Directories(std::env::split_paths(directories).collect()))
        })
        .unwrap_or(Trust::System)
}

/// A variable that is not empty.
#[expect(clippy::disallowed_methods, reason = "this is where settings are read")]
pub(super) fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// `ecr-node-agent@<node>`, as far as STS allows (`[\w+=,.@-]`, 64 characters).
pub(super) fn session_name() -> String {
    let node = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
    let allowed = |c: &char| c.is_ascii_alphanumeric() || "+=,.@-_".contains(*c);
    format!("ecr-node-agent@{node}").chars().filter(allowed).take(64).collect()
}
