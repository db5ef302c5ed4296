//! Which API server the agent asks, and as whom, found in the way of kubectl.
//!
//! `kube` reads kubeconfigs. Added here is what kubectl does besides: it skips missing files in `KUBECONFIG`, removes
//! whitespace around a token in a file, and knows servers without a scheme. The errors name the file or the variable, and
//! show no part of a credential.

use super::exec::{ExecError, is_token};
use crate::report::redact::{redact, remember, remember_private_key};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use kube::config::{AuthInfo, Cluster, InClusterError, Kubeconfig, KubeconfigError, LoadDataError};
use kube::{Client, Config};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret as _, SecretString};
use std::ffi::OsString;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs, io};

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection in use may be silent. A watch lasts up to five minutes, and the API server ends it then.
const READ_TIMEOUT: Duration = Duration::from_mins(5);
/// How many characters of an error of `kube`'s are shown.
const LONGEST_MESSAGE: usize = 300;
/// Where a pod finds its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const HOST: &str = "KUBERNETES_SERVICE_HOST";
const PORT: &str = "KUBERNETES_SERVICE_PORT";

/// Why it is not known which API server to ask, or as whom.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ConfigError {
    #[error("neither KUBECONFIG nor {HOST} is set, and there is no file ~/.kube/config")]
    Unset,
    #[error("no file in KUBECONFIG exists: {0}")]
    Missing(String),
    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot use {origin}: {problem}")]
    Invalid { origin: String, problem: String },
    #[error("reading the configuration and the credentials for the API server takes more than {} s", .0.as_secs())]
    Slow(Duration),
    #[error("the kubeconfig's command `{command}` failed")]
    Exec { command: String, source: ExecError },
}

impl ConfigError {
    fn invalid(origin: impl Display, problem: impl Display) -> Self {
        Self::Invalid { origin: origin.to_string(), problem: problem.to_string() }
    }
}

/// Finds the API server: the one that `KUBECONFIG` names, else that of the pod's own cluster, else that of `~/.kube/config`.
/// Returns the configuration and where it comes from. Blocks on file I/O.
pub(super) fn load() -> Result<(Config, String), ConfigError> {
    match (variable("KUBECONFIG"), variable(HOST)) {
        (None, Some(_)) => load_in_cluster(),
        (list, _) => prepared(from_kubeconfig(list)?),
    }
}

/// The API server of this pod's own cluster, and where its configuration comes from. Blocks on file I/O.
pub(super) fn load_in_cluster() -> Result<(Config, String), ConfigError> {
    // A pod goes to its own API server directly: a proxy is for what is outside of the cluster.
    prepared((Config::incluster().map_err(in_cluster)?, SERVICE_ACCOUNT.to_owned()))
}

/// Sets time limits, and reads the token.
fn prepared((mut config, origin): (Config, String)) -> Result<(Config, String), ConfigError> {
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    config.reset_reader_on_write = true;
    // The callers decide when to retry.
    config.default_retry = false;
    let user = &mut config.auth_info;
    // Kubernetes has removed these long ago, and `kube` aborts the program on a malformed token of one.
    if user.auth_provider.is_some() {
        return Err(ConfigError::invalid(origin, "the user has an `auth-provider`; use `exec` instead"));
    }
    if let Some(path) = &user.token_file {
        let read = fs::read_to_string(path).map(SecretString::from);
        match read.map_err(|source| ConfigError::Read { path: path.into(), source }) {
            Ok(token) => user.token = Some(SecretString::from(token.expose_secret().trim())),
            Err(error) if user.token.is_none() => return Err(error),
            Err(_) => {}
        }
    }
    remember_secrets(user);
    // `kube` would abort the program.
    if user.token.as_ref().is_some_and(|token| !is_token(token)) {
        let origin = user.token_file.clone().unwrap_or(origin);
        return Err(ConfigError::invalid(origin, "the token is empty or contains invalid characters"));
    }
    Ok((config, origin))
}

/// From now on no output shows what the user authenticates with: the API server, or a proxy on the way, may repeat it.
fn remember_secrets(user: &AuthInfo) {
    for secret in [&user.token, &user.password].into_iter().flatten() {
        remember(secret.expose_secret());
    }
    if let Some(key) = &user.client_key_data {
        remember(key.expose_secret());
        let decoded = STANDARD.decode(key.expose_secret().trim()).map(Zeroizing::new).unwrap_or_default();
        remember_private_key(&String::from_utf8_lossy(&decoded));
    }
    if let Some(key) = user.client_key.as_ref().and_then(|path| fs::read(path).map(Zeroizing::new).ok()) {
        remember_private_key(&String::from_utf8_lossy(&key));
    }
}

/// Makes a client. Blocks on file I/O.
pub(super) fn client(config: Config, origin: &str) -> Result<Client, ConfigError> {
    Client::try_from(config).map_err(|error| match error {
        kube::Error::InferKubeconfig(error) => in_file(error, Path::new(origin)),
        // The URL of a proxy may hold a password.
        kube::Error::ProxyProtocolUnsupported { .. } | kube::Error::ProxyProtocolDisabled { .. } => {
            ConfigError::invalid(origin, "the proxy's URL must begin with `http://` or `https://`")
        }
        other => ConfigError::invalid(origin, redact(&other.to_string(), LONGEST_MESSAGE)),
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "these variables belong to kubectl, and are no settings of the agent"
)]
fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

fn in_cluster(error: InClusterError) -> ConfigError {
    let file = |name| Path::new(SERVICE_ACCOUNT).join(name);
    match error {
        InClusterError::ReadDefaultNamespace(source) => ConfigError::Read { path: file("namespace"), source },
        InClusterError::ReadCertificateBundle(source) => ConfigError::Read { path: file("ca.crt"), source },
        InClusterError::ParseCertificates(error) => ConfigError::invalid(file("ca.crt").display(), error),
        InClusterError::ParseClusterUrl(error) => ConfigError::invalid(HOST, error),
        InClusterError::ParseClusterPort(error) => ConfigError::invalid(PORT, error),
        InClusterError::ReadEnvironmentVariable(error) => {
            ConfigError::invalid(format_args!("{HOST} and {PORT}"), error)
        }
    }
}

fn from_kubeconfig(list: Option<OsString>) -> Result<(Config, String), ConfigError> {
    let paths: Vec<PathBuf> = match &list {
        Some(list) => env::split_paths(list).filter(|path| !path.as_os_str().is_empty()).collect(),
        None => env::home_dir().map(|home| home.join(".kube/config")).into_iter().collect(),
    };
    let mut kubeconfig = Kubeconfig::default();
    let mut read = Vec::new();
    for path in paths {
        let next = match Kubeconfig::read_from(&path) {
            Err(KubeconfigError::ReadConfig(error, _)) if error.kind() == io::ErrorKind::NotFound => continue,
            next => next.and_then(|next| kubeconfig.merge(next)),
        };
        kubeconfig = next.map_err(|error| in_file(error, &path))?;
        read.push(path.display().to_string());
    }
    if read.is_empty() {
        return Err(list.map_or(ConfigError::Unset, |list| ConfigError::Missing(list.display().to_string())));
    }
    let origin = read.join(":");
    let cluster = current_cluster(&mut kubeconfig);
    let has_own_proxy = cluster.as_ref().is_some_and(|cluster| cluster.proxy_url.is_some());
    if let Some(cluster) = cluster {
        add_scheme(cluster);
    }
    let mut config = Config::try_from(kubeconfig).map_err(|error| in_file(error, Path::new(&origin)))?;
    // `kube` aborts the program on a request to an address that is not complete.
    if config.cluster_url.scheme().is_none() || config.cluster_url.authority().is_none() {
        return Err(ConfigError::invalid(origin, "the cluster's `server` is not a valid URL"));
    }
    // `kube` compares `NO_PROXY` with the address of the proxy, so the choice is made here.
    if !has_own_proxy {
        config.proxy_url =
            Matcher::from_env().intercept(&config.cluster_url).map(|proxy| proxy.uri().clone());
    }
    Ok((config, origin))
}

/// The cluster of the current context.
fn current_cluster(kubeconfig: &mut Kubeconfig) -> Option<&mut Cluster> {
    let current = kubeconfig.current_context.as_ref()?;
    let context = kubeconfig.contexts.iter().find(|context| context.name == *current)?;
    let name = &context.context.as_ref()?.cluster;
    kubeconfig.clusters.iter_mut().find(|cluster| cluster.name == *name)?.cluster.as_mut()
}

/// Completes a server without a scheme, such as `10.0.0.1:6443`, by the rule of kubectl.
fn add_scheme(cluster: &mut Cluster) {
    let has_tls = cluster.certificate_authority.is_some()
        || cluster.certificate_authority_data.is_some()
        || cluster.insecure_skip_tls_verify == Some(true);
    let is_address = |server: &Uri| server.scheme().is_none() && server.authority().is_some();
    if let Some(server) =
        cluster.server.as_mut().filter(|server| server.parse().is_ok_and(|uri| is_address(&uri)))
    {
        server.insert_str(0, if has_tls { "https://" } else { "http://" });
    }
}

fn in_file(error: KubeconfigError, path: &Path) -> ConfigError {
    match error {
        KubeconfigError::ReadConfig(source, path)
        | KubeconfigError::LoadCertificateAuthority(LoadDataError::ReadFile(source, path))
        | KubeconfigError::LoadClientCertificate(LoadDataError::ReadFile(source, path))
        | KubeconfigError::LoadClientKey(LoadDataError::ReadFile(source, path)) => {
            ConfigError::Read { path, source }
        }
        // The parser's message shows the lines around the mistake, and a token in them.
        KubeconfigError::Parse(error) => {
            let line = error.location().map(|at| format!("line {} ", at.line())).unwrap_or_default();
            ConfigError::invalid(path.display(), format!("{line}cannot be parsed"))
        }
        other => ConfigError::invalid(path.display(), redact(&other.to_string(), LONGEST_MESSAGE)),
    }
}
