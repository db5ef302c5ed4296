//! The second stage: what the options mean together, as checked settings.

use super::args::{
    AuthFileArgs, AwsArgs, Cli, CredentialProviderArgs, ExplainArgs, LogArgs, PullSecretArgs, RegistryArgs,
    RunArgs, ScheduleArgs, Subcommands,
};
use super::aws;
use super::error::UsageError;
use super::manual;
use super::value::Listed;
use crate::auth_file::AuthFile;
use crate::credential_provider::config::PluginConfig;
use crate::docker_config::search::Kubelet;
use crate::ecr::client::{CredentialSource, Identity, LastUsed};
use crate::ecr::registry::{Registry, RoleArn, every_host};
use crate::pull_secret::names::{Name, NamespaceSelector, PullSecretArg, PullSecrets};
use crate::settings::{
    Command, DEFAULT_AUTH_FILE, DaemonSettings, RefreshPolicy, Settings, TMPFS_AUTH_FILE, Verify,
};
use crate::time::clock;
use crate::time::schedule::Interval;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args as _};
use jiff::SignedDuration;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

/// The subcommand that the kubelet runs.
const CREDENTIAL_PROVIDER: &str = "credential-provider";

/// What clap found for one command.
#[derive(Clone, Copy)]
struct Found<'a>(&'a ArgMatches);

impl Found<'_> {
    /// The values of a repeatable option, whose field in `args` has the name `id`.
    fn all<T>(self, id: &str, option: &'static str, listed: Vec<Listed<T>>) -> Result<Vec<T>, UsageError> {
        let from_variable = self.0.value_source(id) == Some(ValueSource::EnvVariable);
        Listed::all(listed, from_variable).ok_or(UsageError::OneValue { option })
    }
}

/// The command, checked as a whole, and what to log. `matches` is what `cli` was read from.
pub(super) fn check(cli: Cli, matches: &ArgMatches) -> Result<(Command, Option<LogArgs>), UsageError> {
    let found = Found(matches.subcommand().map_or(matches, |(_, matches)| matches));
    let checked = match cli.command {
        None => {
            let (command, log) = run(found, cli.run)?;
            (command, Some(log))
        }
        Some(Subcommands::Status(args)) => {
            if args.no_auth_file {
                return Err(UsageError::StatusWithoutFiles);
            }
            let command = Command::Status {
                auth_files: auth_files(found, args.files)?,
                registries: registries(found, args.registries)?,
                policy: policy(args.schedule)?,
                state_file: args.state.state_file.0,
                output: args.output.output,
            };
            (command, Some(args.log))
        }
        Some(Subcommands::Remove(args)) => {
            let (auth_files, pull_secrets) = targets(found, args.files, args.secrets, Vec::new())?;
            let registries = registries(found, RegistryArgs { registries: args.registries })?;
            let (dry_run, stay) = (args.dry_run.dry_run, args.stay);
            (Command::Remove { auth_files, registries, pull_secrets, dry_run, stay }, Some(args.log))
        }
        Some(Subcommands::Link(args)) => {
            let auth_files = auth_files(found, args.files)?;
            let dry_run = args.dry_run.dry_run;
            let undo = args.undo;
            let command = if args.watch {
                Command::WatchLink { auth_files }
            } else {
                Command::Link { auth_files, undo, dry_run }
            };
            (command, Some(args.log))
        }
        Some(Subcommands::Explain(args)) => {
            let (command, log) = explain(found, args)?;
            (command, Some(log))
        }
        Some(Subcommands::CredentialProvider(args)) => (credential_provider(found, args)?, None),
        Some(Subcommands::Completion(args)) => (Command::Print(manual::completion(args.shell)), None),
        Some(Subcommands::Man) => (Command::Print(manual::page(None)), None),
    };
    Ok(checked)
}

fn run(found: Found<'_>, args: RunArgs) -> Result<(Command, LogArgs), UsageError> {
    let registries = registries(found, args.registries)?;
    let service_accounts = found.all("service_accounts", "--patch-service-account", args.service_accounts)?;
    let no_auth_file = args.secrets.no_auth_file;
    let (auth_files, pull_secrets) = targets(found, args.files, args.secrets, service_accounts)?;
    let is_endless = args.schedule.interval.is_zero();
    let policy = policy(args.schedule)?;
    let (identity, role) = identity(args.aws)?;
    let state_file = args.state.state_file.0;
    absolute("--state-file", state_file.as_ref())?;
    let credential_files = identity.files();
    let dry_run = args.dry_run.dry_run;
    let settings =
        Settings { auth_files, registries, role, identity, pull_secrets, timeout: args.timeout, dry_run };
    if args.once || dry_run {
        return Ok((Command::Once(settings), args.log));
    }
    if is_endless {
        return Err(UsageError::NoInterval);
    }
    let startup_taint_node = args.startup_taint_node.and_then(|maybe| maybe.0);
    if !no_auth_file {
        only_named_secrets(&settings.pull_secrets)?;
    } else if startup_taint_node.is_some() {
        return Err(UsageError::TaintWithoutFiles);
    }
    let daemon = DaemonSettings {
        policy,
        listen: args.listen.and_then(|maybe| maybe.0),
        credential_files,
        state_file,
        event_pod: args.event_pod.and_then(|maybe| maybe.0),
        startup_taint_node,
    };
    Ok((Command::Run(settings, Box::new(daemon)), args.log))
}

/// The AWS identity, and the role for registries that name none.
fn identity(args: AwsArgs) -> Result<(Identity, Option<RoleArn>), UsageError> {
    let environment = aws::environment();
    aws::check(&environment)?;
    let credentials_dir = args.aws_credentials_dir.and_then(|maybe| maybe.0);
    absolute("--aws-credentials-dir", credentials_dir.as_ref())?;
    let source = match (credentials_dir, args.roles_anywhere.and_then(|maybe| maybe.0)) {
        (None, None) => CredentialSource::Configured,
        (Some(directory), None) => CredentialSource::Directory(directory),
        (None, Some(option)) => CredentialSource::RolesAnywhere(Box::new(option)),
        (Some(_), Some(_)) => return Err(UsageError::TwoCredentialSources),
    };
    let identity = Identity {
        region: args.region.and_then(|maybe| maybe.0),
        source,
        trust: aws::trust(&environment),
        environment,
        session_name: aws::session_name(),
        last_used: LastUsed::default(),
    };
    Ok((identity, args.role_arn.and_then(|maybe| maybe.0)))
}

fn credential_provider(found: Found<'_>, args: CredentialProviderArgs) -> Result<Command, UsageError> {
    let mut auth_files = auth_files(found, AuthFileArgs { auth_files: args.auth_files })?;
    if let [AuthFile { named: false, kubelet_home, .. }] = auth_files.as_slice() {
        let kubelet_home = kubelet_home.clone();
        auth_files.push(AuthFile { path: PathBuf::from(TMPFS_AUTH_FILE), named: false, kubelet_home });
    }
    let registries = registries(found, RegistryArgs { registries: args.registries })?;
    let (identity, role) = identity(args.aws)?;
    if args.print_config {
        let (variables, secret_variables) = identity.environment.without_secrets();
        let (arguments, own_variables) = given_options(found);
        let match_images = match registries.as_slice() {
            [] => every_host(),
            registries => registries.iter().map(|registry| registry.key().to_owned()).collect(),
        };
        let config = PluginConfig {
            match_images,
            arguments,
            variables: own_variables.into_iter().chain(variables).collect(),
            secret_variables,
            token_audience: args.token_audience,
        };
        return Ok(Command::Print(config.to_yaml()));
    }
    let pull_secrets = PullSecrets::default();
    let timeout = Duration::ZERO;
    let settings = Settings { auth_files, registries, role, identity, pull_secrets, timeout, dry_run: false };
    Ok(Command::CredentialProvider(settings))
}

/// The arguments and the variables by which `credential-provider` was given its options, without those about the printed
/// configuration.
fn given_options(found: Found<'_>) -> (Vec<String>, Vec<(String, String)>) {
    let mut arguments = vec![CREDENTIAL_PROVIDER.to_owned()];
    let mut variables = Vec::new();
    let command = CredentialProviderArgs::augment_args(clap::Command::default());
    for option in command.get_arguments() {
        let (Some(long), Some(variable)) = (option.get_long(), option.get_env()) else { continue };
        let id = option.get_id().as_str();
        let values: Vec<String> = found.0.get_raw(id).unwrap_or_default().map(lossy).collect();
        if found.0.value_source(id) == Some(ValueSource::EnvVariable) {
            variables.push((lossy(variable), values.join(" ")));
        } else {
            arguments.extend(values.iter().map(|value| format!("--{long}={value}")));
        }
    }
    (arguments, variables)
}

fn lossy(text: &OsStr) -> String {
    text.to_string_lossy().into_owned()
}

fn explain(found: Found<'_>, args: ExplainArgs) -> Result<(Command, LogArgs), UsageError> {
    let file = auth_files(found, args.files)?.into_iter().next().unwrap_or_else(|| AuthFile {
        path: PathBuf::from(DEFAULT_AUTH_FILE),
        named: false,
        kubelet_home: None,
    });
    let Kubelet { auth_file, home: usual_home, .. } = file.kubelet();
    let usual_home = usual_home.or_else(|| Some(PathBuf::from("/root")));
    let home = args.kubelet_home.map_or(usual_home, |home| home.0);
    let working_dir = args.kubelet_working_dir;
    absolute("--kubelet-home", home.as_ref())?;
    absolute("--kubelet-working-dir", Some(&working_dir))?;
    let kubelet = Kubelet { auth_file, working_dir, home };
    let plugin_config = args.kubelet_plugin_config;
    absolute("--kubelet-plugin-config", plugin_config.as_ref())?;
    let environment = aws::environment();
    let verify = args.verify.then(|| Verify {
        trust: aws::trust(&environment),
        environment,
        plain_http: args.plain_http,
    });
    let (auth_file, images, output) = (file.path, args.images, args.output.output);
    Ok((Command::Explain { kubelet, auth_file, plugin_config, images, output, verify }, args.log))
}

fn absolute(option: &'static str, path: Option<&PathBuf>) -> Result<(), UsageError> {
    match path.filter(|path| !path.is_absolute()) {
        Some(path) => Err(UsageError::Relative { option, path: path.clone() }),
        None => Ok(()),
    }
}

fn registries(found: Found<'_>, args: RegistryArgs) -> Result<Vec<Registry>, UsageError> {
    let registries = found.all("registries", "--registry", args.registries)?;
    let mut keys = BTreeSet::new();
    match registries.iter().find(|registry| !keys.insert(registry.key())) {
        Some(twice) => Err(UsageError::SameRegistry { key: twice.key().to_owned() }),
        None => Ok(registries),
    }
}

fn policy(args: ScheduleArgs) -> Result<RefreshPolicy, UsageError> {
    let span = |duration| SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
    let interval = Interval { length: span(args.interval), spread: span(args.spread) };
    match args.schedule.and_then(|maybe| maybe.0) {
        Some(schedule) => {
            schedule.check(clock::now()).map_err(UsageError::Schedule)?;
            Ok(RefreshPolicy::Schedule(schedule, interval.spread))
        }
        None => Ok(RefreshPolicy::Interval(interval)),
    }
}

/// The auth files and the pull secrets. At least one of both.
fn targets(
    found: Found<'_>,
    files: AuthFileArgs,
    secrets: PullSecretArgs,
    service_accounts: Vec<Name>,
) -> Result<(Vec<AuthFile>, PullSecrets), UsageError> {
    let no_auth_file = secrets.no_auth_file;
    let auth_files = match no_auth_file {
        true if !files.auth_files.is_empty() => return Err(UsageError::AuthFileAndNone),
        true => Vec::new(),
        false => auth_files(found, files)?,
    };
    let pull_secrets = pull_secrets(found, secrets, service_accounts)?;
    if no_auth_file && pull_secrets.is_empty() {
        return Err(UsageError::NothingToKeep);
    }
    Ok((auth_files, pull_secrets))
}

fn auth_files(found: Found<'_>, args: AuthFileArgs) -> Result<Vec<AuthFile>, UsageError> {
    let paths = found.all("auth_files", "--auth-file", args.auth_files)?;
    paths.iter().try_for_each(|path| absolute("--auth-file", Some(path)))?;
    let mut seen = BTreeSet::new();
    if let Some(path) = paths.iter().find(|path| !seen.insert(*path)) {
        return Err(UsageError::SameAuthFile { path: path.clone() });
    }
    let named = !paths.is_empty();
    let paths = if named { paths } else { vec![PathBuf::from(DEFAULT_AUTH_FILE)] };
    let kubelet_home = aws::variable("HOME").map(PathBuf::from);
    Ok(paths.into_iter().map(|path| AuthFile { path, named, kubelet_home: kubelet_home.clone() }).collect())
}

fn pull_secrets(
    found: Found<'_>,
    args: PullSecretArgs,
    service_accounts: Vec<Name>,
) -> Result<PullSecrets, UsageError> {
    let service_accounts = service_accounts.into_iter().collect();
    let mut secrets = PullSecrets { service_accounts, ..PullSecrets::default() };
    let mut seen = BTreeSet::new();
    for secret in found.all("pull_secrets", "--pull-secret", args.pull_secrets)? {
        if !seen.insert(secret.clone()) {
            return Err(UsageError::SamePullSecret { secret: secret.to_string() });
        }
        match secret {
            PullSecretArg::Exactly(secret) => {
                secrets.named.insert(secret);
            }
            PullSecretArg::Glob(glob, name) => secrets.found.push((NamespaceSelector::Glob(glob), name)),
        }
    }
    match (args.selector.and_then(|maybe| maybe.0), args.name.and_then(|maybe| maybe.0)) {
        (Some(label), Some(name)) => secrets.found.push((NamespaceSelector::Label(label), name)),
        (None, None) => {}
        _ => return Err(UsageError::SelectorAndName),
    }
    if secrets.is_empty() && !secrets.service_accounts.is_empty() {
        return Err(UsageError::NoPullSecretToAdd);
    }
    Ok(secrets)
}

/// An agent on every node may read and write the secrets that are named, and must search for none.
fn only_named_secrets(secrets: &PullSecrets) -> Result<(), UsageError> {
    let option = match secrets.found.first() {
        Some((NamespaceSelector::Glob(_), _)) => "--pull-secret with a pattern",
        Some((NamespaceSelector::Label(_), _)) => "--pull-secret-selector",
        None if !secrets.service_accounts.is_empty() => "--patch-service-account",
        None => return Ok(()),
    };
    Err(UsageError::NotOnNodes { option })
}
