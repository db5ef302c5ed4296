//! The record of a round: the result for each token source, auth file and pull secret.
//!
//! Log lines, metrics, the exit code and the output of `--dry-run` are derived from it, in the daemon and in `--once`.

mod log;
mod plan;

use crate::auth_file::Effect;
use crate::auth_file::publish::Published;
use crate::ecr::refusal::{Class, Refusal};
use crate::ecr::registry::TokenSource;
use crate::pull_secret::SecretDone;
use crate::report::exit::ExitStatus;
use crate::report::metrics::{Metrics, Reason};
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

/// The result of one attempt to fetch a token.
#[derive(Debug)]
pub struct Fetched {
    /// The source; `None` if the attempt failed before it was known.
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
    /// When the next refresh is due; `None` after a failure, or in `--once`.
    pub next_refresh: Option<Timestamp>,
    /// When the previous token expires; `None` if there is no valid one.
    pub old_token_expires_at: Option<Timestamp>,
}

impl Fetched {
    /// The record of an attempt, with nothing about the next one.
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
            let result = self.result.as_ref().map_or_else(|refusal| refusal.class().as_str(), |_| "success");
            metrics.attempt(self.reason, result, self.took);
        }
    }
}

/// Counts a write of an auth file.
pub fn count_published(published: &Published, metrics: &Metrics) {
    match &published.result {
        Err(_) => metrics.written(false),
        Ok(outcome) if matches!(outcome.effect, Effect::Unchanged | Effect::NotAtRest { .. }) => {}
        Ok(_) => metrics.written(true),
    }
    if matches!(published.drift, DriftEvent::Repaired | DriftEvent::Fight) {
        metrics.repaired();
    }
}

impl Round {
    /// The exit code of `--once`, `remove` and `link`. Of several failures, an auth file comes first, since no token helps a node
    /// whose file cannot be written; then credentials, then ECR, then pull secrets.
    #[must_use]
    pub fn exit_status(&self) -> ExitStatus {
        let refusals = || self.fetched.iter().filter_map(|fetched| fetched.result.as_ref().err());
        if self.published.iter().any(|published| published.result.is_err()) {
            ExitStatus::AuthFile
        } else if refusals().any(Refusal::is_about_the_caller) {
            ExitStatus::NoCredentials
        } else if refusals().any(|refusal| refusal.class() == Class::Internal) {
            ExitStatus::Unexpected
        } else if refusals().next().is_some() {
            ExitStatus::Ecr
        } else if self.secrets.iter().any(|secret| secret.result.is_err()) {
            ExitStatus::PullSecret
        } else {
            ExitStatus::Done
        }
    }
}
