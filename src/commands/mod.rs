//! Runs a command to its end.

mod credential_provider;
mod files;
mod link_watch;
mod once;

use crate::agent;
use crate::ecr::http::registries::{Registries, SetupError};
use crate::inspect::visibility::Visibility;
use crate::inspect::{explain, explain_text, plugins, status_text};
use crate::report::exit::{ExitStatus, failed};
use crate::round::{Round, log_published, print_plan};
use crate::settings::Command;
use crate::time::clock;
use std::io::{self, Write as _};

/// Runs a command to its end.
#[must_use]
pub fn run(command: Command) -> ExitStatus {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error, ExitStatus::Unexpected),
    };
    let exit_status = match command {
        Command::Run(settings, daemon) => runtime.block_on(Box::pin(agent::run(settings, *daemon))),
        Command::Once(settings) => runtime.block_on(Box::pin(once::run(&settings))),
        Command::Remove { auth_files, registries, pull_secrets, dry_run, stay } => {
            let removal = Box::pin(files::remove(&auth_files, &registries, &pull_secrets, dry_run));
            if stay { runtime.block_on(files::then_stay(removal)) } else { runtime.block_on(removal) }
        }
        Command::Link { auth_files, undo, dry_run } => {
            runtime.block_on(files::link(&auth_files, undo, dry_run))
        }
        Command::WatchLink { auth_files } => runtime.block_on(Box::pin(link_watch::run(&auth_files))),
        Command::Status { auth_files, registries, policy, state_file, output } => {
            status_text::run(&auth_files, &registries, &policy, state_file.as_deref(), output)
        }
        Command::CredentialProvider(settings) => {
            runtime.block_on(Box::pin(credential_provider::run(&settings)))
        }
        Command::Print(text) => match io::stdout().lock().write_all(text.as_bytes()) {
            Ok(()) => ExitStatus::Done,
            Err(error) => failed(&error, ExitStatus::Unexpected),
        },
        Command::Explain { kubelet, auth_file, plugin_config, images, output, verify } => {
            let now = clock::now();
            let search = explain::look(&kubelet, &auth_file, &Visibility::of_this_process());
            let plugins = plugins::look(plugin_config.as_deref());
            let mut explanation = explain::explain(kubelet, search, plugins, images, now);
            let verified = verify.map_or(Ok(()), |verify| {
                let http = runtime.block_on(Registries::load(&verify.trust, &verify.environment))?;
                runtime.block_on(explain::verify(&mut explanation, &http, verify.plain_http));
                Ok::<_, SetupError>(())
            });
            match verified {
                Ok(()) => explain_text::print(&explanation, output, now),
                Err(error) => failed(&error, ExitStatus::Usage),
            }
        }
    };
    // A thread that hangs in a system call does not hold up the end.
    runtime.shutdown_background();
    exit_status
}

/// Logs what became of the auth files. A dry run prints it instead; then only failures are logged.
fn log_files(round: &Round, dry_run: bool) {
    round.published.iter().filter(|published| !dry_run || published.result.is_err()).for_each(log_published);
}

/// Prints what a dry run would have changed, and says how the round ended.
fn finished(round: &Round, dry_run: bool) -> ExitStatus {
    if dry_run && let Err(error) = print_plan(round) {
        return failed(&error, ExitStatus::Unexpected);
    }
    round.exit_status()
}
