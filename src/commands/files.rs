//! `remove` and `link`: what is done to the auth files without a token.

use crate::agent::signals::Signals;
use crate::auth_file::publish::on_each;
use crate::auth_file::{AuthFile, AuthFileError, Effect, LinkRecord, Memory, Outcome, PublishOptions};
use crate::ecr::registry::Registry;
use crate::pull_secret;
use crate::pull_secret::names::PullSecrets;
use crate::report::exit::{ExitStatus, failed};
use crate::round::Round;
use crate::time::clock;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::info;

/// A file that takes longer is given up. An update waits a minute for a program that keeps the file open.
const LIMIT: Duration = Duration::from_secs(90);

/// Takes everything of ours out of the auth files, undoes their links, and deletes the pull secrets that are named.
/// Entries without a record go too, if they are ECR's and for one of `registries`.
pub(super) async fn remove(
    auth_files: &[AuthFile],
    registries: &[Registry],
    secrets: &PullSecrets,
    dry_run: bool,
) -> ExitStatus {
    let options = PublishOptions { now: clock::now(), dry_run, explicit: true };
    let keys: Arc<[String]> = registries.iter().map(|registry| registry.key().to_owned()).collect();
    let uninstall = move |file: &AuthFile, memory: &mut Memory| file.uninstall(&keys, options, memory);
    let mut round = act_on_each(auth_files, options, uninstall).await;
    if !secrets.is_empty() {
        round.secrets = pull_secret::remove(secrets, dry_run).await;
    }
    super::finished(&round, dry_run)
}

/// Moves the auth files into directories of ours and leaves links, or undoes that.
pub(super) async fn link(auth_files: &[AuthFile], undo: bool, dry_run: bool) -> ExitStatus {
    let options = PublishOptions { now: clock::now(), dry_run, explicit: true };
    let change = move |file: &AuthFile, memory: &mut Memory| {
        if undo {
            return file.unlink(options);
        }
        let outcome = file.link(options, memory)?;
        if !dry_run && !matches!(outcome.effect, Effect::NotAtRest { .. }) {
            // A watcher that runs writes it again; one that has ended is not expected any more.
            LinkRecord::delete(file)?;
        }
        Ok(outcome)
    };
    super::finished(&act_on_each(auth_files, options, change).await, dry_run)
}

/// Makes the links for a watcher, and logs what became of them.
pub(super) async fn make_links(auth_files: &[AuthFile]) -> Round {
    let options = PublishOptions { now: clock::now(), dry_run: false, explicit: true };
    act_on_each(auth_files, options, move |file, memory| file.link(options, memory)).await
}

/// Runs `act` on each auth file, and logs the results.
async fn act_on_each(
    auth_files: &[AuthFile],
    options: PublishOptions,
    act: impl Fn(&AuthFile, &mut Memory) -> Result<Outcome, AuthFileError> + Clone + Send + 'static,
) -> Round {
    let published = on_each(auth_files, Instant::now() + LIMIT, act).await;
    let round = Round { published, ..Round::default() };
    super::log_files(&round, options.dry_run);
    round
}

/// Does something, and if that went well stays until it is asked to stop.
pub(super) async fn then_stay(work: impl Future<Output = ExitStatus>) -> ExitStatus {
    // Before the work: process 1 of a container gets only the signals that it has a handler for.
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return failed(&error, ExitStatus::Unexpected),
    };
    let status = work.await;
    if status == ExitStatus::Done {
        info!("done; staying until stopped");
        signals.stop().await;
    }
    status
}
