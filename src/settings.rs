//! What is meant: checked once, by `cli` for a user or written down by a test, and never questioned again.

use crate::ecr::client::Identity;
use crate::ecr::registry::{Registry, RoleArn};
use crate::schedule::Interval;
use crate::target::auth_file::AuthFile;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The kubelet's own default (`--root-dir`), and the file that it looks for there.
pub const DEFAULT_AUTH_FILE: &str = "/var/lib/kubelet/config.json";

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
    /// How long to keep trying.
    pub timeout: Duration,
    /// Change nothing, only say what would change.
    pub dry_run: bool,
}

/// What the agent needs to run on.
#[derive(Debug, Clone)]
pub struct Daemon {
    /// When to refresh.
    pub interval: Interval,
    /// Where to serve metrics and probes, if anywhere.
    pub listen: Option<SocketAddr>,
    /// Files besides a mounted Secret that credentials come from.
    pub credential_files: Vec<PathBuf>,
}
