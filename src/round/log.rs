//! Log lines of a round: one for each attempt, one for each auth file that was written.

use super::Fetched;
use crate::auth_file::publish::Published;
use crate::auth_file::{Effect, Link, Outcome};
use crate::docker_config::key::shown;
use crate::docker_config::merge::Changes;
use crate::report::exit::chain;
use crate::time::write_scheduler::DriftEvent;
use std::path::Path;
use tracing::{debug, error, info, warn};

/// Logs the result of an attempt to fetch a token.
pub fn log_fetched(fetched: &Fetched) {
    let source = fetched.source.as_ref().map(ToString::to_string);
    let source = source.as_deref();
    let failures = (fetched.failures > 0).then_some(fetched.failures);
    let retry_in = fetched.retry_in.map(tracing::field::debug);
    match &fetched.result {
        Ok(expires_at) => {
            let next_refresh = fetched.next_refresh.map(tracing::field::display);
            info!(source, %expires_at, next_refresh, "fetched an authorization token");
        }
        Err(refusal) if fetched.source.is_none() => {
            error!(error = %refusal, failures, retry_in, "cannot determine which registry to ask; what the targets hold stays");
        }
        Err(refusal) => match fetched.old_token_expires_at {
            Some(expires_at) => {
                warn!(source, error = %refusal, failures, retry_in, %expires_at, "cannot fetch a new token; the old one is still valid");
            }
            None if fetched.retry_in.is_some() => {
                error!(source, error = %refusal, failures, retry_in, "no valid token: image pulls from ECR fail");
            }
            None => error!(source, error = %refusal, "no token was fetched; what the targets hold stays"),
        },
    }
}

/// Logs the result of a write of an auth file.
pub fn log_published(published: &Published) {
    let path = published.path.as_path();
    let outcome = match &published.result {
        Ok(outcome) => outcome,
        Err(error) => return error!(path = %path.display(), error = chain(error), "not published"),
    };
    for note in &outcome.notes {
        warn!(path = %path.display(), "{note}");
    }
    match (&outcome.effect, published.drift) {
        (Effect::Unchanged, DriftEvent::Peace) => {
            info!(path = %path.display(), "the other program has stopped changing this file");
        }
        (Effect::NotAtRest { .. }, DriftEvent::LongWait) => {
            warn!(path = %path.display(), "another program is still changing this file; the agent waits a minute at most");
        }
        (Effect::NotAtRest { retry_in }, _) => {
            debug!(path = %path.display(), ?retry_in, "another program may still be changing this file");
        }
        (Effect::Unchanged, _) => debug!(path = %path.display(), "the auth file is up to date"),
        (Effect::ModeRestored, _) => {
            warn!(path = %path.display(), "another program had changed this file; its permissions were restored");
        }
        (Effect::Replaced(changes), drift) => log_changes(path, changes, drift),
        (Effect::Deleted(_), _) => {
            info!(path = %path.display(), "deleted: the agent had created it, and nothing was left in it");
        }
    }
    log_link(path, outcome);
}

fn log_changes(path: &Path, changes: &Changes, drift: DriftEvent) {
    let list = |keys: &[String]| {
        let keys: Vec<String> = keys.iter().map(|key| shown(key)).collect();
        (!keys.is_empty()).then(|| keys.join(","))
    };
    let written: Vec<String> = changes.written.iter().map(|(key, _)| key.clone()).collect();
    let (written, removed, taken_over) = (list(&written), list(&changes.removed), list(&changes.taken_over));
    let (registries, removed) = (written.as_deref(), removed.as_deref());
    let expires_at =
        changes.written.iter().map(|(_, expires_at)| *expires_at).min().map(tracing::field::display);
    let path = path.display();
    if let Some(taken_over) = taken_over {
        warn!(%path, registries = taken_over, "took over entries that carried no record of this agent");
    }
    match drift {
        DriftEvent::Repaired => {
            warn!(%path, registries, removed, expires_at, "another program had changed this file; its entries were restored");
        }
        DriftEvent::Fight => {
            warn!(%path, registries, removed, expires_at, "another program keeps changing this file; the agent now restores it once a minute");
        }
        DriftEvent::Nothing | DriftEvent::Peace | DriftEvent::LongWait => {
            let message = if written.is_none() && removed.is_some() { "removed" } else { "published" };
            info!(%path, registries, removed, expires_at, "{message}");
        }
    }
}

fn log_link(path: &Path, outcome: &Outcome) {
    let path = path.display();
    match &outcome.link {
        None => {}
        Some(Link::Made) => info!(%path, "linked: the file is in the agent's own directory now"),
        Some(Link::Undone { left }) if left.is_empty() => info!(%path, "the link was undone"),
        Some(Link::Undone { left }) => {
            warn!(%path, ?left, "the link was undone; the agent's directory stays, since files are left in it");
        }
    }
}
