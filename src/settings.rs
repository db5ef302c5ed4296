//! Checked settings. `cli` builds them from arguments and environment; nothing checks them again.

use crate::auth_file::AuthFile;
use crate::docker_config::image::Image;
use crate::docker_config::search::Kubelet;
use crate::ecr::client::Identity;
use crate::ecr::environment::Environment;
use crate::ecr::http::trust::Trust;
use crate::ecr::registry::{Registry, RoleArn};
use crate::events::PodRef;
use crate::pull_secret::names::{Name, PullSecrets};
use crate::report::output::OutputFormat;
use crate::time::cron::Schedule;
use crate::time::schedule::{Interval, Life};
use jiff::{SignedDuration, Timestamp};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The file that the kubelet reads first, with its default `--root-dir`.
pub const DEFAULT_AUTH_FILE: &str = "/var/lib/kubelet/config.json";

/// An auth file of the agent that the kubelet does not read. With the plugin, tokens need not be on a disk.
pub const TMPFS_AUTH_FILE: &str = "/run/ecr-node-agent/config.json";

/// A checked command.
#[derive(Debug)]
pub enum Command {
    /// Keep every target current until stopped.
    Run(Settings, Box<DaemonSettings>),
    /// Refresh every target once.
    Once(Settings),
    /// Answer one request of the kubelet, as its plugin.
    CredentialProvider(Settings),
    /// Print a text.
    Print(String),
    /// Print what the auth files hold.
    Status {
        /// The files.
        auth_files: Vec<AuthFile>,
        /// The registries that must be there.
        registries: Vec<Registry>,
        /// When an agent with the same settings refreshes.
        policy: RefreshPolicy,
        /// Where the running agent writes its state; `None` for nowhere.
        state_file: Option<PathBuf>,
        /// How to print it.
        output: OutputFormat,
    },
    /// Make the linked layout.
    Link {
        /// The files.
        auth_files: Vec<AuthFile>,
        /// Undo it instead.
        undo: bool,
        /// Change nothing, only print what would change.
        dry_run: bool,
    },
    /// Make the linked layout, and make a link again when another program replaces it.
    WatchLink {
        /// The files.
        auth_files: Vec<AuthFile>,
    },
    /// Print which credentials the kubelet would try.
    Explain {
        /// Where the kubelet looks.
        kubelet: Kubelet,
        /// The path by which the agent knows the kubelet's first auth file: another one in the linked layout.
        auth_file: PathBuf,
        /// The file or directory that configures the kubelet's plugins; `None` to look at the usual paths.
        plugin_config: Option<PathBuf>,
        /// The images.
        images: Vec<Image>,
        /// How to print it.
        output: OutputFormat,
        /// How to ask the registries too; `None` if they are not asked.
        verify: Option<Verify>,
    },
    /// Remove our entries, links and pull secrets.
    Remove {
        /// The files.
        auth_files: Vec<AuthFile>,
        /// The registries whose entries are taken out even without a record, if they are ECR's.
        registries: Vec<Registry>,
        /// The secrets to delete.
        pull_secrets: PullSecrets,
        /// Change nothing, only print what would change.
        dry_run: bool,
        /// Stay until stopped after a success.
        stay: bool,
    },
}

/// What a refresh works on.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The auth files to publish to.
    pub auth_files: Vec<AuthFile>,
    /// The registries to write entries for. If there are none, the registry that ECR's answer names.
    pub registries: Vec<Registry>,
    /// The role to assume for registries that name no role.
    pub role: Option<RoleArn>,
    /// The AWS identity that asks ECR.
    pub identity: Identity,
    /// The pull secrets to publish to.
    pub pull_secrets: PullSecrets,
    /// How long `--once` retries.
    pub timeout: Duration,
    /// Change nothing, only print what would change.
    pub dry_run: bool,
}

/// What only the daemon needs.
#[derive(Debug, Clone)]
pub struct DaemonSettings {
    /// When to refresh.
    pub policy: RefreshPolicy,
    /// The address of metrics and probes; `None` if they are not served.
    pub listen: Option<SocketAddr>,
    /// Files that AWS credentials come from, besides a mounted Secret. A change of them is noticed.
    pub credential_files: Vec<PathBuf>,
    /// Where to write the agent's state for `status`; `None` for nowhere.
    pub state_file: Option<PathBuf>,
    /// The pod that Kubernetes Events are published about; `None` if none are.
    pub event_pod: Option<PodRef>,
    /// The agent's own node, from which it removes the startup taint; `None` if it removes none.
    pub startup_taint_node: Option<Name>,
}

/// How to ask registries.
#[derive(Debug, Clone)]
pub struct Verify {
    /// The certificate authorities to trust.
    pub trust: Trust,
    /// The variables that name proxies.
    pub environment: Environment,
    /// Whether to ask without TLS.
    pub plain_http: bool,
}

/// When to refresh.
#[derive(Debug, Clone)]
pub enum RefreshPolicy {
    /// So long after the last refresh.
    Interval(Interval),
    /// At these times, and up to this much earlier.
    Schedule(Schedule, SignedDuration),
}

impl RefreshPolicy {
    /// The policy for a node that was throttled before it got its token. Times that the user named stay.
    #[must_use]
    pub fn after_a_crowd(&self) -> Self {
        match self {
            Self::Interval(interval) => Self::Interval(interval.after_a_crowd()),
            Self::Schedule(..) => self.clone(),
        }
    }

    /// When a token of this life is replaced. `random` is uniform in `0.0..1.0`.
    #[must_use]
    pub fn due(&self, life: Life, random: f64) -> Timestamp {
        match self {
            Self::Interval(interval) => life.due(*interval, random),
            Self::Schedule(schedule, spread) => {
                // A refresh that came early is not repeated at its nominal time.
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
    fn a_refresh_that_came_early_is_not_repeated_at_its_nominal_time() {
        let policy = RefreshPolicy::Schedule("0 */6 * * *".parse().unwrap(), SignedDuration::from_mins(30));
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
            assert_eq!(policy.due(life, random), at(due), "fetched {fetched}, random {random}");
        }
    }
}
