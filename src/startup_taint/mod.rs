//! When the kubelet uses the credentials, and the taint that keeps pods off the node until then.
//!
//! Nodes may register with a taint (`ecr-node-agent/not-ready:NoSchedule`). The agent removes it when every registry has a
//! valid entry, and the kubelet cannot be using an older look at the file. The agent never adds it, so neither a restart of the
//! agent nor a later failure keeps pods away.

pub mod kubelet_view;
pub mod node;

use crate::pull_secret::names::Name;
use crate::report::agent_state::Failure;
use crate::report::exit::chain;
use crate::report::redact::redact;
use crate::time::clock;
use crate::time::retry::Backoff;
use jiff::{SignedDuration, Timestamp};
use kubelet_view::Evidence;
use node::{NodeError, OwnNode, Removal, TAINT};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

/// The class of a failure to remove the taint.
const CLASS: &str = "startup_taint";
/// The socket that the kubelet makes at each start, below its root directory.
const KUBELET_SOCKET: &str = "device-plugins/kubelet.sock";
/// How long the node's file system may take to show two times.
const LOOK: Duration = Duration::from_secs(10);
/// The longest pause between two attempts to remove the taint.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// A taint that is there for longer is reported, with the reason.
const LONGEST_WAIT: Duration = Duration::from_mins(10);
/// The reasons.
const MISSING: &str = "an auth file has no valid entry for a registry, or another program is changing it";
const CHANGING: &str =
    "an auth file changed less than five minutes ago, and the kubelet may use what it read before";
/// The pauses after which the agent looks for the taint again when it was gone. Karpenter adds its `startupTaints` when it
/// registers a node, which may be later, and gives up a node that is not registered within 15 minutes.
const LOOK_AGAIN: [Duration; 4] =
    [Duration::from_secs(10), Duration::from_secs(50), Duration::from_mins(4), Duration::from_mins(10)];
/// The longest error that is shown, in characters.
const MAX_ERROR: usize = 500;

/// Whether the auth files hold what the kubelet needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credentials {
    /// A registry has no valid entry, or another program is changing a file.
    Missing,
    /// Every registry has a valid entry.
    Valid {
        /// How often another program has changed a file, since the kubelet may have read what was there meanwhile. A new token of the
        /// agent's is no such change: the one before it is still valid.
        foreign_changes: u64,
    },
}

/// What the task finds out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StartupState {
    /// From when on the kubelet uses the credentials at the latest; `None` while there are none.
    pub used_from: Option<Timestamp>,
    /// Why the taint could not be removed; `None` if nothing failed.
    pub failure: Option<Failure>,
}

/// Follows the credentials, and removes the taint from `node` when the kubelet uses them. Never ends by itself.
///
/// # Errors
/// None at present; the result is that of every task of the agent.
pub async fn run(
    auth_files: Vec<PathBuf>,
    node: Option<Name>,
    mut credentials: watch::Receiver<Credentials>,
    state: watch::Sender<StartupState>,
) -> io::Result<()> {
    let mut node = node.map(OwnNode::new);
    let overdue = Overdue { at: Instant::now() + LONGEST_WAIT, since: clock::now() };
    let mut was_removed = false;
    let mut pauses = &LOOK_AGAIN[..];
    loop {
        let current = *credentials.borrow_and_update();
        let follow = async {
            if Instant::now() < overdue.at {
                // An error of a removal, which is over.
                state.send_if_modified(|state| state.failure.take().is_some());
            }
            if current == Credentials::Missing {
                set_used_from(&state, None);
                match &node {
                    Some(own) if !was_removed => {
                        overdue.report(own.name(), MISSING, &state, || own.has_taint()).await;
                    }
                    _ => return,
                }
            }
            // Once for these credentials: what the agent itself writes meanwhile is valid, too.
            let wait = remaining(&auth_files).await;
            set_used_from(&state, Some(from_now(wait)));
            let Some(own) = &node else { return };
            if !wait.is_zero() {
                if !was_removed {
                    info!(node = %own.name(), taint = TAINT, in_s = wait.as_secs(), "will remove the startup taint");
                }
                tokio::select! {
                    () = sleep(wait) => {}
                    () = overdue.report(own.name(), CHANGING, &state, || own.has_taint()), if !was_removed => {}
                }
            }
            loop {
                let Some(own) = &node else { return };
                until_removed(own, &state).await;
                was_removed = true;
                let Some((pause, others)) = pauses.split_first() else {
                    node = None;
                    return;
                };
                sleep(*pause).await;
                pauses = others;
            }
        };
        let changed = tokio::select! {
            biased;
            changed = credentials.changed() => changed,
            () = follow => credentials.changed().await,
        };
        if changed.is_err() {
            // The agent is about to end.
            return std::future::pending().await;
        }
    }
}

/// When it is reported that the taint still waits.
struct Overdue {
    /// When that is.
    at: Instant,
    /// When the wait began.
    since: Timestamp,
}

impl Overdue {
    /// Reports that the node has the taint from that time on, with the reason. Never ends by itself.
    ///
    /// The agent has to look: a node whose taint went long ago may have lost its token since.
    async fn report<F: Future<Output = Result<bool, NodeError>>>(
        &self,
        node: &Name,
        why: &str,
        state: &watch::Sender<StartupState>,
        has_taint: impl Fn() -> F,
    ) {
        sleep_until(self.at).await;
        loop {
            match has_taint().await {
                Ok(has_taint) => {
                    let failure = has_taint.then(|| Failure {
                        subject: format!("node {node}"),
                        class: CLASS.to_owned(),
                        error: format!("the taint {TAINT} is still there: {why}"),
                        since: self.since,
                        next_attempt: None,
                    });
                    state.send_if_modified(|state| {
                        state.failure != failure && {
                            state.failure = failure;
                            true
                        }
                    });
                }
                Err(error) => {
                    let error = redact(&chain(&error), MAX_ERROR);
                    debug!(%node, taint = TAINT, error, "cannot look for the startup taint");
                }
            }
            sleep(LONGEST_PAUSE).await;
        }
    }
}

/// Tries until the taint is gone.
async fn until_removed(own: &OwnNode, state: &watch::Sender<StartupState>) {
    let node = own.name();
    let mut backoff = Backoff::between(Duration::from_secs(1), LONGEST_PAUSE);
    let mut since = None;
    while let Err(error) = attempt(own.clone()).await {
        let retry = error.retry();
        let error = redact(&chain(&error), MAX_ERROR);
        let delay = backoff.failed(retry, Duration::ZERO, Duration::ZERO, fastrand::f64());
        if backoff.failures() == 1 {
            warn!(%node, taint = TAINT, error, "cannot remove the startup taint; while it is there, no pod is scheduled on this node");
        } else {
            debug!(%node, taint = TAINT, error, "cannot remove the startup taint");
        }
        let failure = Failure {
            subject: format!("node {node}"),
            class: CLASS.to_owned(),
            error: format!("cannot remove the taint {TAINT}: {error}"),
            since: *since.get_or_insert_with(clock::now),
            next_attempt: Some(from_now(delay)),
        };
        state.send_modify(|state| state.failure = Some(failure));
        sleep(delay).await;
    }
    state.send_if_modified(|state| state.failure.take().is_some());
}

/// Tries once, and logs what was done. In a task of its own: when the credentials change, an attempt that has begun goes on, so
/// that no removal is missing in the log.
#[expect(clippy::disallowed_methods, reason = "the task is awaited, and ends within a limit")]
async fn attempt(own: OwnNode) -> Result<(), NodeError> {
    let attempt = async move {
        let node = own.name();
        match own.remove_taint().await? {
            Removal::Removed => info!(%node, taint = TAINT, "removed the startup taint"),
            Removal::NotThere => info!(%node, taint = TAINT, "the node has no startup taint"),
        }
        Ok(())
    };
    tokio::spawn(attempt).await.map_err(NodeError::Panicked)?
}

/// How long it is until the kubelet cannot be using an older look at any of the files.
async fn remaining(auth_files: &[PathBuf]) -> Duration {
    let files = auth_files.to_vec();
    let look = tokio::task::spawn_blocking(move || {
        let now = clock::both().wall;
        let waits = files.iter().map(|file| {
            let evidence = evidence(file)?;
            Ok::<_, io::Error>(kubelet_view::remaining(evidence, now))
        });
        waits.map(|wait| wait.unwrap_or(kubelet_view::LONGEST)).max()
    });
    // Without an answer the longest time applies.
    let waits = timeout(LOOK, look).await.ok().and_then(Result::ok).flatten();
    waits.unwrap_or(kubelet_view::LONGEST)
}

/// The times that the node shows. Where a time can be moved, a mistake makes the wait longer, never shorter.
fn evidence(auth_file: &Path) -> io::Result<Evidence> {
    // A symlink that changed shows another file from then on.
    let changed = changed(&fs::symlink_metadata(auth_file)?)?.max(changed(&fs::metadata(auth_file)?)?);
    let socket = auth_file.parent().map(|directory| directory.join(KUBELET_SOCKET));
    let socket = socket.and_then(|socket| fs::symlink_metadata(socket).ok());
    Ok(Evidence { changed, kubelet_started: socket.and_then(|socket| made(&socket).ok()) })
}

/// When a file's inode last changed, which no program can set back.
fn changed(metadata: &fs::Metadata) -> io::Result<Timestamp> {
    let nanoseconds = i32::try_from(metadata.ctime_nsec()).map_err(io::Error::other)?;
    Timestamp::new(metadata.ctime(), nanoseconds).map_err(io::Error::other)
}

/// When a socket was made. A new owner, mode or label changes its inode later, but not its contents; not every file system has
/// the time of its creation.
fn made(socket: &fs::Metadata) -> io::Result<Timestamp> {
    let contents = Timestamp::try_from(socket.modified()?).map_err(io::Error::other)?;
    let created = socket.created().ok().and_then(|created| Timestamp::try_from(created).ok());
    Ok(changed(socket)?.min(contents).min(created.unwrap_or(Timestamp::MAX)))
}

fn from_now(wait: Duration) -> Timestamp {
    let wait = SignedDuration::try_from(wait).unwrap_or_default();
    clock::now().checked_add(wait).unwrap_or(Timestamp::MAX)
}

fn set_used_from(state: &watch::Sender<StartupState>, used_from: Option<Timestamp>) {
    state.send_if_modified(|state| std::mem::replace(&mut state.used_from, used_from) != used_from);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_taint_that_stays_is_reported_after_ten_minutes_and_no_other() {
        let node: Name = "node-1".parse().unwrap();
        for (has_taint, minutes, expected) in [(true, 9, false), (true, 11, true), (false, 11, false)] {
            let overdue = Overdue { at: Instant::now() + LONGEST_WAIT, since: clock::now() };
            let (state, _) = watch::channel(StartupState::default());
            let report = overdue.report(&node, MISSING, &state, async || Ok(has_taint));
            assert!(timeout(Duration::from_mins(minutes), report).await.is_err());
            let failure = state.borrow().failure.clone();
            assert_eq!(failure.is_some(), expected, "{has_taint} {minutes} {failure:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn new_tokens_of_the_agents_do_not_make_the_taint_wait_anew() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (_send, credentials) = watch::channel(Credentials::Valid { foreign_changes: 0 });
        let (state, mut seen) = watch::channel(StartupState::default());
        let run = run(vec![file.path().to_owned()], Some("node-1".parse().unwrap()), credentials, state);
        // Only the clock of the waits goes on. By the wall clock the file is always new, as if the agent had just renewed it.
        let tries = async { seen.wait_for(|state| state.failure.is_some()).await.unwrap().clone() };
        let state = tokio::select! {
            _ = run => unreachable!(),
            // There is no API server here.
            state = timeout(kubelet_view::LONGEST * 2, tries) => state.expect("it waits anew"),
        };
        assert!(state.failure.unwrap().error.starts_with("cannot remove the taint"));
    }
}
