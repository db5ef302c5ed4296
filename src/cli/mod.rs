//! The command line: every option, its variable and its default, and what they mean together.

use crate::auth_file::AuthFile;
use crate::docker_config::image::Image;
use crate::docker_config::search::Kubelet;
use crate::ecr::client::{Identity, is_endpoint};
use crate::ecr::http::Trust;
use crate::ecr::registry::{Region, Registry, RoleArn};
use crate::pull_secret::names::{Label, Name, NamespaceSelector, PullSecretArg, PullSecrets};
use crate::report::logging::{self, LogFormat};
use crate::report::output::OutputFormat;
use crate::settings::{Command, DEFAULT_AUTH_FILE, DaemonSettings, RefreshPolicy, Settings, Verify};
use crate::time::clock;
use crate::time::cron::{ParseScheduleError, Schedule};
use crate::time::schedule::Interval;
use clap::builder::BoolishValueParser;
use clap::{Parser, Subcommand};
use jiff::SignedDuration;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use tracing_subscriber::filter::Targets;

/// Keeps a Kubernetes node's Amazon ECR credentials fresh in the file that the kubelet reads.
///
/// Fetches an ECR authorization token and merges it, atomically, into the node's /var/lib/kubelet/config.json. The
/// kubelet then pulls from ECR with no imagePullSecrets. Runs until it is stopped, and refreshes the token before it
/// expires.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Subcommands>,

    /// Refresh every target once, then exit. ECR is always asked.
    #[arg(long, env = "ECR_NODE_AGENT_ONCE", hide_env_values = true, value_parser = BoolishValueParser::new())]
    once: bool,

    /// Auth file to keep current; repeatable (in the variable: separated by spaces). [default: /var/lib/kubelet/config.json]
    #[arg(
        long = "auth-file",
        value_name = "PATH",
        env = "ECR_NODE_AGENT_AUTH_FILE",
        hide_env_values = true,
        global = true
    )]
    auth_files: Vec<Listed<PathBuf>>,

    /// Keep no auth file: pull secrets only, as a Deployment of one replica does, which watches them.
    #[arg(
        long,
        env = "ECR_NODE_AGENT_NO_AUTH_FILE",
        hide_env_values = true,
        value_parser = BoolishValueParser::new(),
        global = true
    )]
    no_auth_file: bool,

    /// Pull secret to keep current; repeatable (in the variable: separated by spaces). With `--no-auth-file` or `--once`
    /// the namespace may be a pattern, such as `team-*/ecr-creds`. `remove` deletes what it names.
    #[arg(
        long = "pull-secret",
        value_name = "NAMESPACE/NAME",
        env = "ECR_NODE_AGENT_PULL_SECRET",
        hide_env_values = true,
        global = true
    )]
    pull_secrets: Vec<Listed<PullSecretArg>>,

    /// Keep a pull secret in each namespace that has this label. With `--no-auth-file` or `--once`.
    #[arg(
        long,
        value_name = "KEY=VALUE",
        env = "ECR_NODE_AGENT_PULL_SECRET_SELECTOR",
        hide_env_values = true,
        global = true
    )]
    pull_secret_selector: Option<Maybe<Label>>,

    /// Name of the pull secret in the namespaces that `--pull-secret-selector` selects.
    #[arg(
        long,
        value_name = "NAME",
        env = "ECR_NODE_AGENT_PULL_SECRET_NAME",
        hide_env_values = true,
        global = true
    )]
    pull_secret_name: Option<Maybe<Name>>,

    /// Service account to whose `imagePullSecrets` each namespace's pull secret is added; repeatable (in the variable:
    /// separated by spaces). With `--no-auth-file` or `--once`.
    #[arg(
        long = "patch-service-account",
        value_name = "NAME",
        env = "ECR_NODE_AGENT_PATCH_SERVICE_ACCOUNT",
        hide_env_values = true
    )]
    service_accounts: Vec<Listed<Name>>,

    /// Registry to write an entry for; repeatable (in the variable: separated by spaces). A host of ECR's, a pattern such
    /// as `*.dkr.ecr.us-east-1.amazonaws.com`, or with `region=` a custom domain in front of ECR; `role=` is assumed for
    /// this one. [default: the registry that the token names]
    #[arg(
        long = "registry",
        value_name = "HOST[,region=REGION][,role=ARN]",
        env = "ECR_NODE_AGENT_REGISTRY",
        hide_env_values = true,
        global = true
    )]
    registries: Vec<Listed<Registry>>,

    /// Region of the default registry. [default: the AWS SDK's chain]
    #[arg(long, value_name = "REGION", env = "ECR_NODE_AGENT_REGION", hide_env_values = true)]
    region: Option<Maybe<Region>>,

    /// Role to assume before asking ECR, where a registry names none.
    #[arg(long, value_name = "ARN", env = "ECR_NODE_AGENT_ROLE_ARN", hide_env_values = true)]
    role_arn: Option<Maybe<RoleArn>>,

    /// Mounted Secret with the files `aws_access_key_id`, `aws_secret_access_key` and, if there is one,
    /// `aws_session_token`; read anew at every refresh. [default: the AWS SDK's chain]
    #[arg(long, value_name = "DIR", env = "ECR_NODE_AGENT_AWS_CREDENTIALS_DIR", hide_env_values = true)]
    aws_credentials_dir: Option<Maybe<PathBuf>>,

    /// Time between refreshes. However long it is, a token is replaced 30 minutes before its end at the latest.
    #[arg(
        long,
        value_name = "DURATION",
        env = "ECR_NODE_AGENT_INTERVAL",
        hide_env_values = true,
        default_value = "11h",
        value_parser = duration
    )]
    interval: Duration,

    /// Cron expression instead of the interval, with five or six fields, such as `0 */6 * * *`; UTC, or as in
    /// `TZ=Europe/Berlin 0 6,14,22 * * *`. However seldom it comes, a token is replaced 30 minutes before its end at the
    /// latest.
    #[arg(long, value_name = "CRON", env = "ECR_NODE_AGENT_SCHEDULE", hide_env_values = true)]
    schedule: Option<Maybe<Schedule>>,

    /// Each refresh comes up to this much early, at random, so that a fleet does not call in step.
    #[arg(
        long,
        value_name = "DURATION",
        env = "ECR_NODE_AGENT_SPREAD",
        hide_env_values = true,
        default_value = "30m",
        value_parser = duration
    )]
    spread: Duration,

    /// How long `--once` keeps trying what may get better.
    #[arg(
        long,
        value_name = "DURATION",
        env = "ECR_NODE_AGENT_TIMEOUT",
        hide_env_values = true,
        default_value = "60s",
        value_parser = duration
    )]
    timeout: Duration,

    /// Serve `/metrics`, `/healthz` and `/readyz` on this address, such as `127.0.0.1:9797`. [default: off]
    #[arg(long, value_name = "ADDR", env = "ECR_NODE_AGENT_LISTEN", hide_env_values = true)]
    listen: Option<Maybe<SocketAddr>>,

    /// Say what would change, with every secret left out, and change nothing.
    #[arg(
        long,
        env = "ECR_NODE_AGENT_DRY_RUN",
        hide_env_values = true,
        value_parser = BoolishValueParser::new(),
        global = true
    )]
    dry_run: bool,

    /// How to write log lines, which go to standard error. [default: text on a terminal, else json]
    #[arg(
        long,
        value_name = "FORMAT",
        env = "ECR_NODE_AGENT_LOG_FORMAT",
        hide_env_values = true,
        global = true
    )]
    log_format: Option<LogFormat>,

    /// What to log: `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `warn,ecr_node_agent::agent=debug`.
    #[arg(
        long,
        value_name = "FILTER",
        env = "ECR_NODE_AGENT_LOG_LEVEL",
        hide_env_values = true,
        default_value = "info",
        value_parser = logging::filter,
        global = true
    )]
    log_level: Targets,
}

const AFTER_HELP: &str = "\
AWS credentials come from --aws-credentials-dir, or else from the AWS SDK's chain: environment, shared profile, web \
identity (IRSA), container credentials (EKS Pod Identity, ECS), instance metadata. AWS_ENDPOINT_URL_ECR, \
AWS_USE_FIPS_ENDPOINT, AWS_USE_DUALSTACK_ENDPOINT, HTTPS_PROXY, NO_PROXY, AWS_CA_BUNDLE, SSL_CERT_FILE and SSL_CERT_DIR \
mean what they mean to other programs.

The API server for pull secrets is the one that KUBECONFIG names, that this pod belongs to, or that ~/.kube/config names.

Exit codes: 0 done, 1 unexpected, 2 usage, 3 no usable AWS credentials or region, 4 ECR refused or could not be reached, \
5 an auth file could not be read or written, 6 a pull secret could not be written (auth files were).";

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Tell what this node's auth files hold for ECR, and until when. Exits 1 where an entry is missing or expired.
    Status {
        /// How to write it.
        #[arg(long, value_name = "FORMAT", default_value = "text")]
        output: OutputFormat,
    },
    /// Take our entries out of the auth files again, undo `link`, and delete the pull secrets that are named, as for
    /// uninstalling.
    Remove {
        /// When all is taken out, stay until stopped: for pods that must not end, as a DaemonSet's.
        #[arg(long)]
        stay: bool,
    },
    /// Make the auth file a relative symlink into a directory of ours beside it, for an agent that is shown only that
    /// directory and not the kubelet's whole root. What the file holds, and what the kubelet reads, stays as it is.
    Link {
        /// Put the file back in its place, with what it holds now.
        #[arg(long)]
        undo: bool,
    },
    /// Tell which credentials the kubelet would try for an image, and why not others. The first --auth-file is the one in
    /// the kubelet's root directory. Exits 1 unless there is a usable credential for every image.
    Explain {
        /// The images, as they stand in pods.
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<Image>,
        /// How to write it.
        #[arg(long, value_name = "FORMAT", default_value = "text")]
        output: OutputFormat,
        /// HOME in the kubelet's environment; empty if it has none there. [default: this program's, or else /root]
        #[arg(long, value_name = "DIR")]
        kubelet_home: Option<Maybe<PathBuf>>,
        /// The kubelet's working directory.
        #[arg(long, value_name = "DIR", default_value = "/")]
        kubelet_working_dir: PathBuf,
        /// Ask the registry of each image too, with each credential in the kubelet's order, and say what it answers. Proxies
        /// and private CAs come from the same variables as for AWS.
        #[arg(long)]
        verify: bool,
        /// Ask without TLS, so that everybody on the way can read the credentials. A registry on this node is asked so by
        /// itself, if it does not speak TLS.
        #[arg(long, requires = "verify")]
        plain_http: bool,
    },
}

/// Options that cannot be meant, alone or together.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum UsageError {
    #[error("--once and a subcommand cannot both be meant")]
    OnceAndSubcommand,
    #[error("{variable} is {is}: expected a URL such as `https://HOST`")]
    Endpoint { variable: &'static str, is: &'static str },
    #[error("--schedule: {0}")]
    Schedule(ParseScheduleError),
    #[error("--interval 0s would ask ECR without end")]
    NoInterval,
    #[error("{option} {} is relative, and the agent's working directory means nothing to the kubelet", path.display())]
    Relative { option: &'static str, path: PathBuf },
    #[error("--auth-file {} is given twice", path.display())]
    SameAuthFile { path: PathBuf },
    #[error("--registry {key} is given twice")]
    SameRegistry { key: String },
    #[error("--no-auth-file and --auth-file contradict each other")]
    AuthFileAndNone,
    #[error(
        "--no-auth-file without a pull secret leaves nothing to do: give --pull-secret, or --pull-secret-selector"
    )]
    NothingToKeep,
    #[error("--pull-secret {said} is given twice")]
    SamePullSecret { said: String },
    #[error("--pull-secret-selector and --pull-secret-name belong together")]
    SelectorAndName,
    #[error(
        "{option} finds its namespaces by listing and watching all of them, which a whole fleet of nodes must not do: use \
         it with --no-auth-file, in one Deployment, or with --once"
    )]
    NotOnNodes { option: &'static str },
    #[error("--patch-service-account needs a --pull-secret to add")]
    NoPullSecretToAdd,
    #[error(
        "status reads auth files, and --no-auth-file says that there are none; of pull secrets, \
         `kubectl get secret NAME -o yaml` shows until when they are good: ecr-node-agent/expires-at"
    )]
    StatusOfNothing,
}

/// Values with white space between them, as a variable gives several. An empty variable gives none.
#[derive(Debug, Clone)]
struct Listed<T>(Vec<T>);

impl<T: FromStr> FromStr for Listed<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split_whitespace().map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// A value, or none where the variable is empty, as templates leave it.
#[derive(Debug, Clone)]
struct Maybe<T>(Option<T>);

impl<T: FromStr> FromStr for Maybe<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Some(text).filter(|text| !text.is_empty()).map(str::parse).transpose().map(Self)
    }
}

impl Cli {
    /// What to log, and how.
    #[must_use]
    pub fn logging(&self) -> (&Targets, Option<LogFormat>) {
        (&self.log_level, self.log_format)
    }

    /// What the user said, checked as a whole.
    ///
    /// # Errors
    /// When two options contradict each other.
    pub fn into_command(self) -> Result<Command, UsageError> {
        let registries: Vec<Registry> = self.registries.into_iter().flat_map(|listed| listed.0).collect();
        let mut keys = BTreeSet::new();
        if let Some(twice) = registries.iter().find(|registry| !keys.insert(registry.key())) {
            return Err(UsageError::SameRegistry { key: twice.key().to_owned() });
        }
        let paths: Vec<PathBuf> = self.auth_files.into_iter().flat_map(|listed| listed.0).collect();
        if self.no_auth_file && !paths.is_empty() {
            return Err(UsageError::AuthFileAndNone);
        }
        let auth_files = if self.no_auth_file { Vec::new() } else { auth_files(paths)? };
        if self.once && self.command.is_some() {
            return Err(UsageError::OnceAndSubcommand);
        }
        let pull_secrets = pull_secrets(
            self.pull_secrets.into_iter().flat_map(|listed| listed.0),
            self.pull_secret_selector.and_then(|maybe| maybe.0),
            self.pull_secret_name.and_then(|maybe| maybe.0),
            self.service_accounts.into_iter().flat_map(|listed| listed.0).collect(),
        )?;
        if self.no_auth_file && pull_secrets.is_empty() {
            return Err(UsageError::NothingToKeep);
        }
        let span = |duration| SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
        let interval = Interval { length: span(self.interval), spread: span(self.spread) };
        let policy = match self.schedule.and_then(|maybe| maybe.0) {
            Some(schedule) => {
                schedule.check(clock::now()).map_err(UsageError::Schedule)?;
                RefreshPolicy::Schedule(schedule, interval.spread)
            }
            None => RefreshPolicy::Interval(interval),
        };
        match self.command {
            Some(Subcommands::Status { .. }) if self.no_auth_file => Err(UsageError::StatusOfNothing),
            Some(Subcommands::Status { output }) => {
                Ok(Command::Status { auth_files, registries, policy, output })
            }
            Some(Subcommands::Link { undo }) => Ok(Command::Link { auth_files, undo, dry_run: self.dry_run }),
            Some(Subcommands::Explain {
                images,
                output,
                kubelet_home,
                kubelet_working_dir,
                verify,
                plain_http,
            }) => {
                let kubelet = kubelet(auth_files, kubelet_home, kubelet_working_dir)?;
                let verify = verify.then(|| Verify { trust: trust(), plain_http });
                Ok(Command::Explain { kubelet, images, output, verify })
            }
            Some(Subcommands::Remove { stay }) => {
                Ok(Command::Remove { auth_files, pull_secrets, dry_run: self.dry_run, stay })
            }
            None => {
                check_endpoints()?;
                let credentials_dir = self.aws_credentials_dir.and_then(|maybe| maybe.0);
                if let Some(path) = credentials_dir.as_ref().filter(|path| !path.is_absolute()) {
                    let option = "--aws-credentials-dir";
                    return Err(UsageError::Relative { option, path: path.clone() });
                }
                let identity = Identity {
                    region: self.region.and_then(|maybe| maybe.0),
                    credentials_dir,
                    trust: trust(),
                    session_name: session_name(),
                };
                let settings = Settings {
                    auth_files,
                    registries,
                    role: self.role_arn.and_then(|maybe| maybe.0),
                    identity,
                    pull_secrets,
                    timeout: self.timeout,
                    dry_run: self.dry_run,
                };
                if self.once || self.dry_run {
                    return Ok(Command::Once(settings));
                }
                if self.interval.is_zero() {
                    return Err(UsageError::NoInterval);
                }
                if !self.no_auth_file {
                    only_what_nodes_may(&settings.pull_secrets)?;
                }
                Ok(Command::Run(
                    settings,
                    DaemonSettings {
                        policy,
                        listen: self.listen.and_then(|maybe| maybe.0),
                        credential_files: credential_files(),
                    },
                ))
            }
        }
    }
}

fn auth_files(paths: Vec<PathBuf>) -> Result<Vec<AuthFile>, UsageError> {
    if let Some(path) = paths.iter().find(|path| !path.is_absolute()) {
        return Err(UsageError::Relative { option: "--auth-file", path: path.clone() });
    }
    let mut seen = BTreeSet::new();
    if let Some(path) = paths.iter().find(|path| !seen.insert(*path)) {
        return Err(UsageError::SameAuthFile { path: path.clone() });
    }
    let named = !paths.is_empty();
    let paths = if named { paths } else { vec![PathBuf::from(DEFAULT_AUTH_FILE)] };
    let kubelet_home = variable("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    Ok(paths.into_iter().map(|path| AuthFile { path, named, kubelet_home: kubelet_home.clone() }).collect())
}

/// The kubelet whose first file is the first of ours.
fn kubelet(
    auth_files: Vec<AuthFile>,
    home: Option<Maybe<PathBuf>>,
    working_dir: PathBuf,
) -> Result<Kubelet, UsageError> {
    let file = auth_files.into_iter().next().unwrap_or_else(|| AuthFile {
        path: PathBuf::from(DEFAULT_AUTH_FILE),
        named: false,
        kubelet_home: PathBuf::from("/root"),
    });
    let Kubelet { auth_file, home: usual_home, .. } = file.kubelet();
    let home = home.map_or(usual_home, |home| home.0);
    if let Some(path) = home.iter().chain([&working_dir]).find(|path| !path.is_absolute()) {
        let option = if home.as_ref() == Some(path) { "--kubelet-home" } else { "--kubelet-working-dir" };
        return Err(UsageError::Relative { option, path: path.clone() });
    }
    Ok(Kubelet { auth_file, working_dir, home })
}

fn pull_secrets(
    said: impl Iterator<Item = PullSecretArg>,
    selector: Option<Label>,
    name: Option<Name>,
    service_accounts: BTreeSet<Name>,
) -> Result<PullSecrets, UsageError> {
    let mut secrets = PullSecrets { service_accounts, ..PullSecrets::default() };
    let mut seen = BTreeSet::new();
    for said in said {
        if !seen.insert(said.clone()) {
            return Err(UsageError::SamePullSecret { said: said.to_string() });
        }
        match said {
            PullSecretArg::Exactly(secret) => {
                secrets.named.insert(secret);
            }
            PullSecretArg::Glob(glob, name) => secrets.found.push((NamespaceSelector::Glob(glob), name)),
        }
    }
    match (selector, name) {
        (Some(label), Some(name)) => secrets.found.push((NamespaceSelector::Label(label), name)),
        (None, None) => {}
        _ => return Err(UsageError::SelectorAndName),
    }
    if secrets.is_empty() && !secrets.service_accounts.is_empty() {
        return Err(UsageError::NoPullSecretToAdd);
    }
    Ok(secrets)
}

/// An agent on every node may read and write the secrets that it is told of, and look for none.
fn only_what_nodes_may(secrets: &PullSecrets) -> Result<(), UsageError> {
    let option = match secrets.found.first() {
        Some((NamespaceSelector::Glob(_), _)) => "--pull-secret with a pattern",
        Some((NamespaceSelector::Label(_), _)) => "--pull-secret-selector",
        None if !secrets.service_accounts.is_empty() => "--patch-service-account",
        None => return Ok(()),
    };
    Err(UsageError::NotOnNodes { option })
}

/// Whose certificates to accept. The AWS SDK for Rust knows none of these variables, other AWS programs know them all.
fn trust() -> Trust {
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
fn check_endpoints() -> Result<(), UsageError> {
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
            // Not shown: there may be a password in it.
            let is = if value.is_empty() { "empty" } else { "no URL" };
            return Err(UsageError::Endpoint { variable, is });
        }
    }
    Ok(())
}

/// The files that the SDK reads credentials from, as far as the environment names them.
fn credential_files() -> Vec<PathBuf> {
    let names = ["AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE"];
    names.into_iter().filter_map(variable).map(PathBuf::from).filter(|path| path.is_absolute()).collect()
}

/// `ecr-node-agent@<node>`, as far as STS allows (`[\w+=,.@-]`, 64 characters).
fn session_name() -> String {
    let node = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
    let allowed = |c: &char| c.is_ascii_alphanumeric() || "+=,.@-_".contains(*c);
    format!("ecr-node-agent@{node}").chars().filter(allowed).take(64).collect()
}

#[expect(clippy::disallowed_methods, reason = "this is where settings are read")]
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Reads a duration such as `90s`, `1h30m` or `PT11H`.
fn duration(text: &str) -> Result<Duration, String> {
    let example = "expected a duration such as `90s` or `1h30m`";
    let duration: SignedDuration = text.parse().map_err(|_| example.to_owned())?;
    Duration::try_from(duration).map_err(|_| format!("a negative duration is none: {example}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_have_a_unit_and_no_sign() {
        let cases = [
            ("60s", Some(60)),
            ("1h30m", Some(5400)),
            ("PT11H", Some(39_600)),
            ("0s", Some(0)),
            ("5", None),
            ("-5s", None),
            ("", None),
            ("soon", None),
        ];
        for (text, seconds) in cases {
            assert_eq!(duration(text).ok(), seconds.map(Duration::from_secs), "{text}");
        }
    }
}
