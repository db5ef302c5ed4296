//! What is meant: checked once, by `cli` for a user or written down by a test, and never questioned again.

use crate::auth_file::AuthFile;
use crate::docker_config::image::Image;
use crate::docker_config::search::Kubelet;
use crate::ecr::client::Identity;
use crate::ecr::http::Trust;
use crate::ecr::registry::{Registry, RoleArn};
use crate::pull_secret::names::PullSecrets;
use crate::report::output::OutputFormat;
use crate::time::cron::Schedule;
use crate::time::schedule::{Interval, Life};
use jiff::{SignedDuration, Timestamp};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The kubelet's own default (`--root-dir`), and the file that it looks for there.
pub const DEFAULT_AUTH_FILE: &str = "/var/lib/kubelet/config.json";

/// What to do.
#[derive(Debug)]
pub enum Command {
    /// Keep every target current until stopped.
    Run(Settings, DaemonSettings),
    /// Refresh every target once.
    Once(Settings),
    /// Tell what the auth files hold.
    Status {
        /// The files.
        auth_files: Vec<AuthFile>,
        /// The registries that must be there.
        registries: Vec<Registry>,
        /// When the agent refreshes, as far as these settings are the agent's too.
        rule: RefreshPolicy,
        /// How to print it.
        output: OutputFormat,
    },
    /// Move the auth files into a directory of ours and leave links.
    Link {
        /// The files.
        auth_files: Vec<AuthFile>,
        /// Put them back.
        undo: bool,
        /// Change nothing, only say what would change.
        dry_run: bool,
    },
    /// Tell which credentials the kubelet would try.
    Explain {
        /// Where it looks for them.
        kubelet: Kubelet,
        /// The images.
        images: Vec<Image>,
        /// How to print it.
        output: OutputFormat,
        /// Ask the registries too.
        verify: Option<Verify>,
    },
    /// Take our entries out.
    Remove {
        /// The files.
        auth_files: Vec<AuthFile>,
        /// The secrets to delete.
        pull_secrets: PullSecrets,
        /// Change nothing, only say what would change.
        dry_run: bool,
        /// Stay until stopped when it is done.
        stay: bool,
    },
}

/// What a refresh is to do.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Files to publish to.
    pub auth_files: Vec<AuthFile>,
    /// Registries to write entries for; none means the one that the token names.
    pub registries: Vec<Registry>,
    /// The role for registries that name none.
    pub role: Option<RoleArn>,
    /// Who asks ECR.
    pub identity: Identity,
    /// Secrets to publish to, besides.
    pub pull_secrets: PullSecrets,
    /// How long to keep trying.
    pub timeout: Duration,
    /// Change nothing, only say what would change.
    pub dry_run: bool,
}

/// What the agent needs to run on.
#[derive(Debug, Clone)]
pub struct DaemonSettings {
    /// When to refresh.
    pub policy: RefreshPolicy,
    /// Where to serve metrics and probes, if anywhere.
    pub listen: Option<SocketAddr>,
    /// Files besides a mounted Secret that credentials come from.
    pub credential_files: Vec<PathBuf>,
}

/// How to ask registries.
#[derive(Debug, Clone)]
pub struct Verify {
    /// Whose certificates to accept.
    pub trust: Trust,
    /// Without TLS.
    pub plain_http: bool,
}

/// When to refresh.
#[derive(Debug, Clone)]
pub enum RefreshPolicy {
    /// So long after the last time.
    Interval(Interval),
    /// At these times, each up to so much earlier.
    Schedule(Schedule, SignedDuration),
}

impl RefreshPolicy {
    /// The rule for a node that was throttled before it got its token. Whoever has named the times keeps them.
    #[must_use]
    pub fn after_a_crowd(&self) -> Self {
        match self {
            Self::Interval(interval) => Self::Interval(interval.after_a_crowd()),
            Self::Schedule(..) => self.clone(),
        }
    }

    /// When a token of this life is to be replaced. `random` is uniform in `0.0..1.0`.
    #[must_use]
    pub fn due(&self, life: Life, random: f64) -> Timestamp {
        match self {
            Self::Interval(interval) => life.due(*interval, random),
            Self::Schedule(schedule, spread) => {
                // A refresh that came early must not come a second time.
                let served = life.fetched_at.checked_add(*spread).unwrap_or(Timestamp::MAX);
                life.spread(schedule.next(served).unwrap_or(Timestamp::MAX), *spread, random)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_names_the_next_time_and_never_one_that_was_served_early() {
        let rule = RefreshPolicy::Schedule("0 */6 * * *".parse().unwrap(), SignedDuration::from_mins(30));
        let at = |text: &str| -> Timestamp { text.parse().unwrap() };
        let cases = [
            // fetched, random, due
            ("2026-11-23T10:00:00Z", 0.0, "2026-11-23T12:00:00Z"),
            ("2026-11-23T10:00:00Z", 1.0, "2026-11-23T11:30:00Z"),
            ("2026-11-23T11:30:00Z", 0.0, "2026-11-23T18:00:00Z"),
            ("2026-11-23T11:59:00Z", 0.0, "2026-11-23T18:00:00Z"),
        ];
        for (fetched, random, due) in cases {
            let fetched_at = at(fetched);
            let life = Life { fetched_at, expires_at: fetched_at + SignedDuration::from_hours(12) };
            assert_eq!(rule.due(life, random), at(due), "fetched {fetched}, random {random}");
        }
    }
}
