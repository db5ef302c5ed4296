//! The watches: one for each auth file, and one for the files that credentials come from.
//!
//! Each watch is set up and checked in a thread of its own, so that a file system that hangs delays no other watch.

use super::file_watch::{Board, FileEvent, Places, Watch, WatchedPath};
use super::mounts::Mounts;
use crate::time::timer::{Deadline, Now};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tracing::{info, warn};

/// How often a file that cannot be watched is looked at.
const POLL: Duration = Duration::from_mins(1);
/// A watch is not checked more often than this, and neither are the mounts: on a busy node, each pod mounts something.
const PAUSE: Duration = Duration::from_secs(1);

/// What a watch is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// The auth file of this number.
    AuthFile(usize),
    /// The files that credentials come from.
    Credentials,
}

/// All watches of this agent.
pub struct Watches {
    states: Vec<WatchState>,
    board: Arc<Board>,
    checks: JoinSet<CheckEnded>,
    /// Changes of this process's mounts; `None` if they cannot be noticed.
    mounts: Option<Mounts>,
    /// When the watches are checked because something was mounted; `None` if nothing was.
    mounts_due: Option<Deadline>,
    /// When that was done last, in time since boot; `None` if never.
    mounts_checked: Option<Duration>,
}

/// One watch.
struct WatchState {
    subject: Subject,
    paths: Vec<WatchedPath>,
    /// `None` until it is set up, and after it could not be.
    watch: Option<Watch>,
    /// Whether the watch may be gone, although its places are the same.
    lost: bool,
    /// When it is checked next; `None` if nothing suggests a change.
    check_at: Option<Deadline>,
    /// When the last check started, in time since boot; `None` if there was none.
    checked_at: Option<Duration>,
    checking: bool,
    /// Whether it could not be set up, so that its files are looked at once a minute.
    polled: bool,
}

/// Something that the agent may have to react to.
pub enum WatchEvent {
    /// Watched files changed, by the number of the watch.
    Files(BTreeMap<usize, FileEvent>),
    /// Something was mounted or unmounted somewhere.
    Mounts(io::Result<()>),
    /// A check has ended.
    Checked(CheckEnded),
}

/// What a check came to.
pub struct CheckEnded {
    watch: usize,
    result: Checked,
}

enum Checked {
    /// The watch is as it should be.
    Unchanged,
    /// A new watch was set up.
    New(Box<Watch>),
    /// No watch could be set up.
    Failed(String),
}

impl Watches {
    /// Watches on these paths, none of which is set up yet.
    #[must_use]
    pub fn new(subjects: Vec<(Subject, Vec<WatchedPath>)>, now: Now) -> Self {
        let mounts = Mounts::listen()
            .inspect_err(|error| warn!(%error, "cannot watch for mounts over the watched directories"))
            .ok();
        let subjects = subjects.into_iter().filter(|(_, paths)| !paths.is_empty());
        let state = |(subject, paths)| WatchState {
            subject,
            paths,
            watch: None,
            lost: false,
            check_at: Some(now.after(Duration::ZERO)),
            checked_at: None,
            checking: false,
            polled: false,
        };
        Self {
            states: subjects.map(state).collect(),
            board: Arc::default(),
            checks: JoinSet::new(),
            mounts,
            mounts_due: None,
            mounts_checked: None,
        }
    }

    /// When the next check is due.
    #[must_use]
    pub fn next(&self) -> Option<Deadline> {
        let checks = self.states.iter().filter(|state| !state.checking).filter_map(|state| state.check_at);
        checks.chain(self.mounts_due).reduce(Deadline::earlier)
    }

    /// Starts the checks that are due.
    pub fn start_due(&mut self, now: Now) {
        if self.mounts_due.is_some_and(|due| now.is_past(due)) {
            self.mounts_due = None;
            self.mounts_checked = Some(now.boot);
            self.states.iter_mut().for_each(|state| state.check_soon(now));
        }
        for (number, state) in self.states.iter_mut().enumerate() {
            if state.checking || state.check_at.is_none_or(|check_at| !now.is_past(check_at)) {
                continue;
            }
            state.checking = true;
            state.check_at = None;
            state.checked_at = Some(now.boot);
            let known = state.watch.as_ref().filter(|_| !state.lost).map(|watch| watch.places().clone());
            state.lost = false;
            let (paths, board) = (state.paths.clone(), Arc::clone(&self.board));
            self.checks.spawn(async move {
                let check = tokio::task::spawn_blocking(move || check(&paths, known.as_ref(), number, board));
                let result = check.await.unwrap_or_else(|error| Checked::Failed(error.to_string()));
                CheckEnded { watch: number, result }
            });
        }
    }

    /// Waits for the next event. May be dropped while it waits.
    pub async fn event(&mut self) -> WatchEvent {
        let mounts = async {
            match &self.mounts {
                // Not while a check is due anyway: a burst of pods is one event.
                Some(mounts) if self.mounts_due.is_none() => mounts.changed().await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            events = self.board.next() => WatchEvent::Files(events),
            Some(Ok(ended)) = self.checks.join_next() => WatchEvent::Checked(ended),
            changed = mounts => WatchEvent::Mounts(changed),
        }
    }

    /// Takes an event: the subjects whose files have to be looked at.
    pub fn record(&mut self, event: WatchEvent, now: Now) -> Vec<Subject> {
        match event {
            WatchEvent::Files(events) => {
                let mut changed = Vec::new();
                for (number, event) in events {
                    let Some(state) = self.states.get_mut(number) else { continue };
                    state.lost |= event == FileEvent::Lost;
                    // The change may have made another file of the path.
                    state.check_soon(now);
                    changed.push(state.subject);
                }
                changed
            }
            WatchEvent::Mounts(changed) => {
                if let Err(error) = changed {
                    warn!(%error, "cannot watch for mounts any longer");
                    self.mounts = None;
                }
                let last = self.mounts_checked.map_or(Duration::ZERO, |last| last + PAUSE);
                self.mounts_due.get_or_insert(now.after(last.saturating_sub(now.boot)));
                Vec::new()
            }
            WatchEvent::Checked(CheckEnded { watch, result }) => {
                let Some(state) = self.states.get_mut(watch) else { return Vec::new() };
                state.checking = false;
                let look = state.record(result, now);
                if look { vec![state.subject] } else { Vec::new() }
            }
        }
    }
}

impl WatchState {
    fn check_soon(&mut self, now: Now) {
        let pause = self.checked_at.map_or(Duration::ZERO, |last| (last + PAUSE).saturating_sub(now.boot));
        let soon = now.after(pause);
        self.check_at = Some(self.check_at.map_or(soon, |check_at| check_at.earlier(soon)));
    }

    /// Takes the result of a check. Returns whether the files have to be looked at: what happened before the watch was set up
    /// went unnoticed.
    fn record(&mut self, result: Checked, now: Now) -> bool {
        let subject = self.subject.name(&self.paths);
        match result {
            Checked::Unchanged => false,
            Checked::New(watch) => {
                if std::mem::take(&mut self.polled) {
                    info!(%subject, "watched again");
                } else if self.watch.is_some() {
                    info!(%subject, "the path leads to another directory now; watching that one");
                }
                self.watch = Some(*watch);
                // The paths may have led elsewhere while it was set up.
                self.check_soon(now);
                true
            }
            Checked::Failed(error) => {
                if !std::mem::replace(&mut self.polled, true) {
                    warn!(%subject, error, "cannot be watched; looking at it once a minute");
                }
                self.watch = None;
                self.check_at = Some(now.after(POLL));
                true
            }
        }
    }
}

impl Subject {
    fn name(self, paths: &[WatchedPath]) -> String {
        match (self, paths) {
            (Self::AuthFile(_), [WatchedPath::File(path), ..]) => path.display().to_string(),
            (Self::AuthFile(_), _) => "auth file".to_owned(),
            (Self::Credentials, _) => "credential files".to_owned(),
        }
    }
}

/// Sets up a new watch where the paths lead elsewhere than to the places that are known. May block.
fn check(paths: &[WatchedPath], known: Option<&Places>, number: usize, board: Arc<Board>) -> Checked {
    let places = Places::of(paths);
    if known == Some(&places) {
        return Checked::Unchanged;
    }
    match Watch::start(places, number, board) {
        Ok(watch) => Checked::New(Box::new(watch)),
        Err(error) => Checked::Failed(error.to_string()),
    }
}
