//! The record of a round: what became of each token source, auth file and pull secret.
//!
//! Log lines, metrics, the exit code and what `--dry-run` prints are derived from it, in the daemon as well as in `--once`.

mod log;
mod plan;

use crate::auth_file::Effect;
use crate::auth_file::publish::Published;
use crate::ecr::refusal::Refusal;
use crate::ecr::registry::TokenSource;
use crate::pull_secret::SecretDone;
use crate::report::exit::ExitStatus;
use crate::report::metrics::{Metrics, Outcome, Reason};
use crate::time::write_scheduler::DriftEvent;
use jiff::Timestamp;
use std::time::Duration;

pub use log::{log_fetched, log_published};
pub use plan::print_plan;

/// What one round did.
#[derive(Debug, Default)]
pub struct Round {
    /// The token sources that were asked.
    pub fetched: Vec<Fetched>,
    /// The auth files.
    pub published: Vec<Published>,
    /// The pull secrets and service accounts.
    pub secrets: Vec<SecretDone>,
}

/// What became of one attempt to fetch a token.
#[derive(Debug)]
pub struct Fetched {
    /// The source; `None` if not even that could be found out.
    pub source: Option<TokenSource>,
    /// Why it was asked.
    pub reason: Reason,
    /// When the token expires, or why there is none.
    pub result: Result<Timestamp, Refusal>,
    /// How long the attempt took.
    pub took: Duration,
    /// Failures in a row, this one included.
    pub failures: u32,
    /// How long it is until the next attempt; `None` after a success, or if there is none.
    pub retry_in: Option<Duration>,
    /// When the token is replaced; `None` after a failure, or if nothing replaces it.
    pub next_refresh: Option<Timestamp>,
    /// When the token from before expires; `None` if there is none that is valid.
    pub old_token_expires_at: Option<Timestamp>,
}

impl Fetched {
    /// The record of an attempt, of which nothing more is known yet.
    #[must_use]
    pub fn new(
        source: Option<TokenSource>,
        reason: Reason,
        result: Result<Timestamp, Refusal>,
        took: Duration,
    ) -> Self {
        Self {
            source,
            reason,
            result,
            took,
            failures: 0,
            retry_in: None,
            next_refresh: None,
            old_token_expires_at: None,
        }
    }

    /// Counts the attempt.
    pub fn count(&self, metrics: &Metrics) {
        // Without a source, ECR was not asked.
        if self.source.is_some() {
            metrics.attempt(self.reason, outcome(self.result.as_ref().err()), self.took);
        }
    }
}

fn outcome(refusal: Option<&Refusal>) -> Outcome {
    match refusal {
        None => Outcome::Success,
        Some(Refusal::Throttled { .. }) => Outcome::Throttled,
        Some(refusal) if refusal.is_about_the_caller() => Outcome::Credentials,
        Some(_) => Outcome::Failure,
    }
}

/// Counts a write of an auth file.
pub fn count_published(published: &Published, metrics: &Metrics) {
    match &published.result {
        Err(_) => metrics.written(Outcome::Failure),
        Ok(outcome) if outcome.effect == Effect::Unchanged => {}
        Ok(_) => metrics.written(Outcome::Success),
    }
    if matches!(published.drift, DriftEvent::Repaired | DriftEvent::Fight) {
        metrics.repaired();
    }
}

impl Round {
    /// The exit code of `--once`, `remove` and `link`. Of several failures the one nearest to the node counts, since a node
    /// whose file cannot be written is helped by no token.
    #[must_use]
    pub fn exit_status(&self) -> ExitStatus {
        let refusals = || self.fetched.iter().filter_map(|fetched| fetched.result.as_ref().err());
        if self.published.iter().any(|published| published.result.is_err()) {
            ExitStatus::AuthFile
        } else if refusals().any(Refusal::is_about_the_caller) {
            ExitStatus::NoCredentials
        } else if refusals().next().is_some() {
            ExitStatus::Ecr
        } else if self.secrets.iter().any(|secret| secret.result.is_err()) {
            ExitStatus::PullSecret
        } else {
            ExitStatus::Done
        }
    }
}
