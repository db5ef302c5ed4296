//! What clap reads: every option with its variable and its default. Each command lists only the options that it uses.
//!
//! The structs with the options of a command have no doc comments: clap would take one for the description of the command.

use super::value::{Listed, Maybe, duration, socket_address};
use crate::docker_config::image::Image;
use crate::ecr::registry::{Region, Registry, RoleArn};
use crate::ecr::roles_anywhere::option::RolesAnywhere;
use crate::events::PodRef;
use crate::pull_secret::names::{Label, Name, PullSecretArg};
use crate::report::logging::{self, LogFormat};
use crate::report::output::OutputFormat;
use crate::time::cron::Schedule;
use clap::builder::{BoolishValueParser, NonEmptyStringValueParser};
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tracing_subscriber::filter::Targets;

/// Keeps a Kubernetes node's Amazon ECR credentials fresh in the file that the kubelet reads.
///
/// Fetches an ECR authorization token and merges it, atomically, into the node's /var/lib/kubelet/config.json. The
/// kubelet then pulls from ECR with no imagePullSecrets. Runs until it is stopped, and refreshes the token before it
/// expires.
#[derive(Debug, Parser)]
#[command(name = "ecr-node-agent", version, max_term_width = 110, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    pub(super) command: Option<Subcommands>,
    #[command(flatten)]
    pub(super) run: RunArgs,
}

const AFTER_HELP: &str = "\
AWS credentials come from --aws-credentials-dir or --roles-anywhere, or else from the first of these that is \
configured: environment, shared profile, web identity (IRSA), container credentials (EKS Pod Identity, ECS), instance \
metadata. AWS_ENDPOINT_URL_ECR, AWS_USE_FIPS_ENDPOINT, AWS_USE_DUALSTACK_ENDPOINT, HTTPS_PROXY, NO_PROXY, \
AWS_CA_BUNDLE, SSL_CERT_FILE and SSL_CERT_DIR mean what they mean to other programs.

The API server for pull secrets is the one that KUBECONFIG names, that this pod belongs to, or that ~/.kube/config names.

Exit codes: 0 done, 1 unexpected, 2 usage, 3 no usable AWS credentials, region or AWS setting, \
4 ECR refused or could not be reached, 5 an auth file could not be read or written, \
6 a pull secret could not be written (auth files were).";

// What the daemon and `--once` use.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Refresh every target once, then exit. Always asks ECR.
    #[arg(long, env = "ECR_NODE_AGENT_ONCE", hide_env_values = true, value_parser = BoolishValueParser::new())]
    pub(super) once: bool,

    #[command(flatten)]
    pub(super) files: AuthFileArgs,

    #[command(flatten)]
    pub(super) secrets: PullSecretArgs,

    /// Service account whose `imagePullSecrets` get each namespace's pull secret; repeatable (in the variable: separated
    /// by spaces). Only with `--no-auth-file` or `--once`.
    #[arg(
        long = "patch-service-account",
        value_name = "NAME",
        env = "ECR_NODE_AGENT_PATCH_SERVICE_ACCOUNT",
        hide_env_values = true
    )]
    pub(super) service_accounts: Vec<Listed<Name>>,

    #[command(flatten)]
    pub(super) registries: RegistryArgs,

    #[command(flatten)]
    pub(super) aws: AwsArgs,

    #[command(flatten)]
    pub(super) schedule: ScheduleArgs,

    /// How long `--once` retries what may succeed later.
    #[arg(
        long,
        value_name = "DURATION",
        env = "ECR_NODE_AGENT_TIMEOUT",
        hide_env_values = true,
        default_value = "60s",
        value_parser = duration
    )]
    pub(super) timeout: Duration,

    /// Serve `/metrics`, `/healthz` and `/readyz` on this address, such as `127.0.0.1:9797`. [default: off]
    #[arg(
        long,
        value_name = "ADDR",
        env = "ECR_NODE_AGENT_LISTEN",
        hide_env_values = true,
        value_parser = socket_address
    )]
    pub(super) listen: Option<Maybe<SocketAddr>>,

    #[command(flatten)]
    pub(super) state: StateArgs,

    /// Publish Kubernetes Events about this pod, the agent's own. It needs the permission to create and patch Events in that
    /// namespace. [default: off]
    #[arg(long, value_name = "NAMESPACE/NAME/UID", env = "ECR_NODE_AGENT_EVENT_POD", hide_env_values = true)]
    pub(super) event_pod: Option<Maybe<PodRef>>,

    /// Remove the taint `ecr-node-agent/not-ready` from this node, the agent's own, once the kubelet uses the credentials. It
    /// needs the permission to patch that node. [default: off]
    #[arg(long, value_name = "NODE", env = "ECR_NODE_AGENT_STARTUP_TAINT_NODE", hide_env_values = true)]
    pub(super) startup_taint_node: Option<Maybe<Name>>,

    #[command(flatten)]
    pub(super) dry_run: DryRunArgs,

    #[command(flatten)]
    pub(super) log: LogArgs,
}

// Which auth files.
#[derive(Debug, Args)]
pub(super) struct AuthFileArgs {
    /// Auth file; repeatable (in the variable: separated by spaces). [default: /var/lib/kubelet/config.json]
    #[arg(long = "auth-file", value_name = "PATH", env = "ECR_NODE_AGENT_AUTH_FILE", hide_env_values = true)]
    pub(super) auth_files: Vec<Listed<PathBuf>>,
}

// Which pull secrets.
#[derive(Debug, Args)]
pub(super) struct PullSecretArgs {
    /// Keep no auth file, only pull secrets: for a Deployment with one replica, which watches them.
    #[arg(
        long,
        env = "ECR_NODE_AGENT_NO_AUTH_FILE",
        hide_env_values = true,
        value_parser = BoolishValueParser::new()
    )]
    pub(super) no_auth_file: bool,

    /// Pull secret; repeatable (in the variable: separated by spaces). With `--no-auth-file` or `--once` the namespace may
    /// be a pattern, such as `team-*/ecr-creds`. `remove` deletes these secrets.
    #[arg(
        long = "pull-secret",
        value_name = "NAMESPACE/NAME",
        env = "ECR_NODE_AGENT_PULL_SECRET",
        hide_env_values = true
    )]
    pub(super) pull_secrets: Vec<Listed<PullSecretArg>>,

    /// A pull secret in each namespace that has this label. Only with `--no-auth-file` or `--once`.
    #[arg(
        long = "pull-secret-selector",
        value_name = "KEY=VALUE",
        env = "ECR_NODE_AGENT_PULL_SECRET_SELECTOR",
        hide_env_values = true
    )]
    pub(super) selector: Option<Maybe<Label>>,

    /// Name of the pull secret in the namespaces that `--pull-secret-selector` selects.
    #[arg(
        long = "pull-secret-name",
        value_name = "NAME",
        env = "ECR_NODE_AGENT_PULL_SECRET_NAME",
        hide_env_values = true
    )]
    pub(super) name: Option<Maybe<Name>>,
}

// Which registries.
#[derive(Debug, Args)]
pub(super) struct RegistryArgs {
    /// Registry that has an entry; repeatable (in the variable: separated by spaces). An ECR host, a pattern such as
    /// `*.dkr.ecr.us-east-1.amazonaws.com`, or with `region=` a custom domain in front of ECR. `role=` is assumed for this
    /// registry. [default: the registry that the token names]
    #[arg(
        long = "registry",
        value_name = "HOST[,region=REGION][,role=ARN]",
        env = "ECR_NODE_AGENT_REGISTRY",
        hide_env_values = true
    )]
    pub(super) registries: Vec<Listed<Registry>>,
}

// Whom ECR is asked as.
#[derive(Debug, Args)]
pub(super) struct AwsArgs {
    /// Region of the default registry. [default: the configured region]
    #[arg(long, value_name = "REGION", env = "ECR_NODE_AGENT_REGION", hide_env_values = true)]
    pub(super) region: Option<Maybe<Region>>,

    /// Role to assume before asking ECR, for registries that name none.
    #[arg(long, value_name = "ARN", env = "ECR_NODE_AGENT_ROLE_ARN", hide_env_values = true)]
    pub(super) role_arn: Option<Maybe<RoleArn>>,

    /// Mounted Secret with the files `aws_access_key_id`, `aws_secret_access_key` and, if there is one,
    /// `aws_session_token`; read anew at every refresh. [default: the source that is configured]
    #[arg(long, value_name = "DIR", env = "ECR_NODE_AGENT_AWS_CREDENTIALS_DIR", hide_env_values = true)]
    pub(super) aws_credentials_dir: Option<Maybe<PathBuf>>,

    /// IAM Roles Anywhere: exchange a certificate for credentials of a role. The certificate defaults to the kubelet's own, the
    /// key to the certificate's file; both are read anew at every refresh.
    #[arg(
        long,
        value_name = "anchor=ARN,profile=ARN[,certificate=PATH][,key=PATH],role=ARN",
        env = "ECR_NODE_AGENT_ROLES_ANYWHERE",
        hide_env_values = true
    )]
    pub(super) roles_anywhere: Option<Maybe<RolesAnywhere>>,
}

// When the token is refreshed.
#[derive(Debug, Args)]
pub(super) struct ScheduleArgs {
    /// Time between refreshes. A token is always replaced at least 30 minutes before it expires.
    #[arg(
        long,
        value_name = "DURATION",
        env = "ECR_NODE_AGENT_INTERVAL",
        hide_env_values = true,
        default_value = "11h",
        value_parser = duration
    )]
    pub(super) interval: Duration,

    /// Cron expression instead of the interval, with five or six fields, such as `0 */6 * * *`. In UTC, or with a time
    /// zone as in `TZ=Europe/Berlin 0 6,14,22 * * *`. A token is always replaced at least 30 minutes before it expires.
    #[arg(long, value_name = "CRON", env = "ECR_NODE_AGENT_SCHEDULE", hide_env_values = true)]
    pub(super) schedule: Option<Maybe<Schedule>>,

    /// Each refresh comes up to this much early, at random, so that the nodes of a fleet do not call at the same time.
    #[arg(
        long,
        value_name = "DURATION",
        env = "ECR_NODE_AGENT_SPREAD",
        hide_env_values = true,
        default_value = "30m",
        value_parser = duration
    )]
    pub(super) spread: Duration,
}

// Where the daemon's state is.
#[derive(Debug, Args)]
pub(super) struct StateArgs {
    /// File in which the daemon writes its state for `status`, without secrets; empty for none. Its directory must exist.
    #[arg(
        long,
        value_name = "PATH",
        env = "ECR_NODE_AGENT_STATE_FILE",
        hide_env_values = true,
        default_value = "/run/ecr-node-agent/state.json"
    )]
    pub(super) state_file: Maybe<PathBuf>,
}

// Whether anything is changed.
#[derive(Debug, Args)]
pub(super) struct DryRunArgs {
    /// Print what would change, without secrets, and change nothing.
    #[arg(
        long,
        env = "ECR_NODE_AGENT_DRY_RUN",
        hide_env_values = true,
        value_parser = BoolishValueParser::new()
    )]
    pub(super) dry_run: bool,
}

// The log.
#[derive(Debug, Args)]
pub(super) struct LogArgs {
    /// Format of the log lines, which go to standard error. [default: text on a terminal, else json]
    #[arg(long, value_name = "FORMAT", env = "ECR_NODE_AGENT_LOG_FORMAT", hide_env_values = true)]
    pub(super) log_format: Option<LogFormat>,

    /// What to log: `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `warn,ecr_node_agent::agent=debug`.
    #[arg(
        long,
        value_name = "FILTER",
        env = "ECR_NODE_AGENT_LOG_LEVEL",
        hide_env_values = true,
        default_value = "info",
        value_parser = logging::filter
    )]
    pub(super) log_level: Targets,
}

/// The subcommands. The options of one are built only when it is used.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(super) enum Subcommands {
    /// Print what this node's auth files hold for ECR, when each token expires, and what the running agent says. Exits 1 if
    /// an entry is missing or expired.
    Status(StatusArgs),
    /// Take the agent's entries out of the auth files, undo `link`, and delete the named pull secrets: for uninstalling.
    Remove(RemoveArgs),
    /// Make the auth file a relative symlink into the agent's own directory beside it, for an agent that sees only that
    /// directory and not the kubelet's whole root. The file's content, and what the kubelet reads, stay the same.
    Link(LinkArgs),
    /// Print which credentials the kubelet would try for an image, and why not others. The first --auth-file is the one in
    /// the kubelet's root directory. Exits 1 unless there is a usable credential for every image.
    Explain(ExplainArgs),
    /// Answer one request of the kubelet, as its credential provider plugin: from a token that an auth file holds, or else from
    /// ECR. Reads standard input and writes standard output.
    CredentialProvider(CredentialProviderArgs),
    /// Print a completion script for a shell.
    Completion(CompletionArgs),
    /// Print the manual page, for `man -l -`.
    Man,
}

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    pub(super) files: AuthFileArgs,
    /// Only for a clear error where the variable is set, as in the Deployment.
    #[arg(
        long,
        env = "ECR_NODE_AGENT_NO_AUTH_FILE",
        hide = true,
        value_parser = BoolishValueParser::new()
    )]
    pub(super) no_auth_file: bool,
    #[command(flatten)]
    pub(super) registries: RegistryArgs,
    #[command(flatten)]
    pub(super) schedule: ScheduleArgs,
    #[command(flatten)]
    pub(super) state: StateArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
    #[command(flatten)]
    pub(super) log: LogArgs,
}

#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    #[command(flatten)]
    pub(super) files: AuthFileArgs,
    #[command(flatten)]
    pub(super) secrets: PullSecretArgs,
    /// Also take out an entry for this registry that has lost the agent's record, if it is ECR's. Repeatable.
    #[arg(long = "registry", value_name = "HOST")]
    pub(super) registries: Vec<Listed<Registry>>,
    /// When everything is removed, wait until stopped: for pods that must not end, as those of a DaemonSet.
    #[arg(long)]
    pub(super) stay: bool,
    #[command(flatten)]
    pub(super) dry_run: DryRunArgs,
    #[command(flatten)]
    pub(super) log: LogArgs,
}

#[derive(Debug, Args)]
pub(super) struct LinkArgs {
    #[command(flatten)]
    pub(super) files: AuthFileArgs,
    /// Put the file back in its place, with its content of now.
    #[arg(long)]
    pub(super) undo: bool,
    /// Then watch the link until stopped, and make it again when another program replaces it.
    #[arg(long, conflicts_with_all = ["undo", "dry_run"])]
    pub(super) watch: bool,
    #[command(flatten)]
    pub(super) dry_run: DryRunArgs,
    #[command(flatten)]
    pub(super) log: LogArgs,
}

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// The images, as pods name them.
    #[arg(required = true, value_name = "IMAGE")]
    pub(super) images: Vec<Image>,
    #[command(flatten)]
    pub(super) files: AuthFileArgs,
    /// HOME in the kubelet's environment; empty if it has none. [default: this program's, or else /root]
    #[arg(long, value_name = "DIR")]
    pub(super) kubelet_home: Option<Maybe<PathBuf>>,
    /// The kubelet's working directory.
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(super) kubelet_working_dir: PathBuf,
    /// The kubelet's `--image-credential-provider-config`, a file or a directory. [default: that of k3s, RKE2, kOps or EKS, if
    /// there is one]
    #[arg(long, value_name = "PATH")]
    pub(super) kubelet_plugin_config: Option<PathBuf>,
    /// Also ask the registry of each image, with each credential in the kubelet's order, and print its answers. Proxies and
    /// private CAs come from the same variables as for AWS.
    #[arg(long)]
    pub(super) verify: bool,
    /// Ask without TLS, so that everybody on the way can read the credentials. A registry on this node that does not speak
    /// TLS is asked without it anyway.
    #[arg(long, requires = "verify")]
    pub(super) plain_http: bool,
    #[command(flatten)]
    pub(super) output: OutputArgs,
    #[command(flatten)]
    pub(super) log: LogArgs,
}

#[derive(Debug, Args)]
pub(super) struct CredentialProviderArgs {
    /// Print the kubelet's configuration for this plugin, with these options and variables, and read no request. The plugin
    /// answers for the hosts of every `--registry`, or, if none is given, for all hosts of ECR.
    #[arg(long)]
    pub(super) print_config: bool,
    /// In the printed configuration, let the kubelet (1.34 or later) send each pod's service account token with this
    /// audience, such as `sts.amazonaws.com`. A pod's role is named by the annotation `eks.amazonaws.com/ecr-role-arn` of
    /// its service account, or else by `AWS_ECR_ROLE_ARN`.
    #[arg(long, value_name = "AUDIENCE", requires = "print_config", value_parser = NonEmptyStringValueParser::new())]
    pub(super) token_audience: Option<String>,
    /// Auth file that an agent on this node keeps; repeatable (in the variable: separated by spaces). [default:
    /// /run/ecr-node-agent/config.json and /var/lib/kubelet/config.json]
    #[arg(long = "auth-file", value_name = "PATH", env = "ECR_NODE_AGENT_AUTH_FILE", hide_env_values = true)]
    pub(super) auth_files: Vec<Listed<PathBuf>>,
    /// Registry that needs more than its host says; repeatable (in the variable: separated by spaces): a custom domain in
    /// front of ECR (`region=`), or a role to assume (`role=`). Other hosts of ECR are answered, too.
    #[arg(
        long = "registry",
        value_name = "HOST[,region=REGION][,role=ARN]",
        env = "ECR_NODE_AGENT_REGISTRY",
        hide_env_values = true
    )]
    pub(super) registries: Vec<Listed<Registry>>,
    #[command(flatten)]
    pub(super) aws: AwsArgs,
}

#[derive(Debug, Args)]
pub(super) struct CompletionArgs {
    /// The shell.
    #[arg(value_name = "SHELL")]
    pub(super) shell: Shell,
}

// The format of what a command prints.
#[derive(Debug, Args)]
pub(super) struct OutputArgs {
    /// Output format.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(super) output: OutputFormat,
}
