//! Runs what the command line says, to its end.

pub mod once;
mod plan;

use self::once::{self as refresh, Round};
use crate::agent;
use crate::agent::signals::Signals;
use crate::ecr::client::Ecr;
use crate::ecr::http::{Registries, TrustError};
use crate::inspect::status;
use crate::report::exit::{ExitStatus, failed};
use crate::settings::Command;
use crate::settings::Settings;
use crate::time::clock;
use std::sync::Arc;

/// Runs a command to its end.
#[must_use]
pub fn run(command: Command) -> ExitStatus {
    keep_secrets_in_memory();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error, ExitStatus::Unexpected),
    };
    let ending = match command {
        Command::Run(settings, daemon) => runtime.block_on(Box::pin(agent::run(settings, daemon))),
        Command::Once(settings) => runtime.block_on(once(&settings)),
        Command::Remove { auth_files, pull_secrets, dry_run, stay } => {
            let removal = Box::pin(refresh::remove(&auth_files, &pull_secrets, dry_run));
            let removal = async { told(&removal.await, dry_run) };
            if stay { runtime.block_on(then_stay(removal)) } else { runtime.block_on(removal) }
        }
        Command::Link { auth_files, undo, dry_run } => {
            let round = runtime.block_on(refresh::link(&auth_files, undo, dry_run));
            told(&round, dry_run)
        }
        Command::Status { auth_files, registries, rule, output } => {
            status::run(&auth_files, &registries, &rule, output)
        }
        Command::Explain { kubelet, images, output, verify } => {
            let now = clock::now();
            let places = crate::inspect::explain::look(&kubelet);
            let mut explanation = crate::inspect::explain::explain(kubelet, places, images, now);
            let verified = verify.map_or(Ok(()), |verify| {
                let http = Registries::new(&verify.trust)?;
                runtime.block_on(crate::inspect::explain::verify(&mut explanation, &http, verify.plain_http));
                Ok::<_, TrustError>(())
            });
            match verified {
                Ok(()) => crate::inspect::explain_text::print(&explanation, output, now),
                Err(error) => failed(&error, ExitStatus::Usage),
            }
        }
    };
    // Whatever is under way still has had its time.
    runtime.shutdown_background();
    ending
}

async fn once(settings: &Settings) -> ExitStatus {
    let ecr = match Ecr::new(settings.identity.clone()) {
        Ok(ecr) => Arc::new(ecr),
        Err(error) => return failed(&error, ExitStatus::Usage),
    };
    told(&refresh::refresh(settings, ecr).await, settings.dry_run)
}

fn told(round: &Round, dry_run: bool) -> ExitStatus {
    if dry_run && let Err(error) = plan::print_plan(round) {
        return failed(&error, ExitStatus::Unexpected);
    }
    round.ending()
}

/// Does something, and where that went well stays until somebody asks to stop.
async fn then_stay(work: impl Future<Output = ExitStatus>) -> ExitStatus {
    // Before the work: a container's first process gets only the signals that it has a handler for.
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return failed(&error, ExitStatus::Unexpected),
    };
    let ending = work.await;
    if ending == ExitStatus::Done {
        tracing::info!("done; staying until stopped");
        signals.stop().await;
    }
    ending
}

/// No core dump, no debugger of another user's: the memory holds tokens.
fn keep_secrets_in_memory() {
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        tracing::debug!(%error, "core dumps could not be switched off");
    }
}
