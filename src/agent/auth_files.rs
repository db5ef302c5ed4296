//! The auth files: when each one is written, what is in it, and what other programs do to it.
//!
//! Each write runs in a thread of its own, so that a file whose file system hangs delays no other.

use crate::auth_file::publish::Published;
use crate::auth_file::{AuthFile, AuthFileError, Effect, Outcome, PublishOptions};
use crate::docker_config::ledger::Record;
use crate::docker_config::merge::Wanted;
use crate::report::exit::chain;
use crate::time::timer::{Deadline, Now};
use crate::time::write_scheduler::{WriteResult, WriteScheduler};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// A write that takes longer is reported: its file system may hang.
const SLOW: Duration = Duration::from_secs(30);

/// All auth files of this agent.
pub struct AuthFiles {
    files: Vec<AuthFileState>,
    /// One at most for each file.
    writes: JoinSet<WriteEnded>,
}

/// An auth file, as the daemon keeps it.
struct AuthFileState {
    file: AuthFile,
    scheduler: WriteScheduler,
    /// The permission bits that the file had when it was last read; `None` if there was none.
    mode: Option<u32>,
    /// The entries of ours that the file held after it was last read or written, by key.
    records: BTreeMap<String, Record>,
    /// When the write that is under way started, in time since boot.
    writing_since: Option<Duration>,
    /// Whether the write that is under way was reported as slow.
    slow: bool,
    /// Why the last write failed; `None` if it succeeded.
    error: Option<String>,
}

/// A write that has ended.
pub struct WriteEnded {
    file: usize,
    /// `None` if the thread ended with a panic.
    result: Option<Result<Outcome, AuthFileError>>,
}

/// An entry that must be in every file, as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryInPlace<'a> {
    /// The registry.
    pub key: &'a str,
    /// When ECR handed the token out.
    pub fetched_at: Timestamp,
    /// When it expires.
    pub expires_at: Timestamp,
}

impl AuthFiles {
    /// Files of which nothing is known yet.
    #[must_use]
    pub fn new(files: &[AuthFile]) -> Self {
        let state = |file: &AuthFile| AuthFileState {
            file: file.clone(),
            scheduler: WriteScheduler::default(),
            mode: None,
            records: BTreeMap::new(),
            writing_since: None,
            slow: false,
            error: None,
        };
        Self { files: files.iter().map(state).collect(), writes: JoinSet::new() }
    }

    /// There is something new to write to every file.
    pub fn renew(&mut self) {
        self.files.iter_mut().for_each(|state| state.scheduler.renew());
    }

    /// Another program may have changed a file.
    pub fn look(&mut self, file: usize, now: Now) {
        if let Some(state) = self.files.get_mut(file) {
            state.scheduler.look(now);
        }
    }

    /// When the next file is written, or a slow write is reported.
    #[must_use]
    pub fn next(&self, now: Now) -> Option<Deadline> {
        let next = |state: &AuthFileState| match state.writing_since {
            None => state.scheduler.next(now),
            Some(since) => {
                let left = (since + SLOW).saturating_sub(now.boot);
                (!left.is_zero()).then(|| now.after(left))
            }
        };
        self.files.iter().filter_map(next).reduce(Deadline::earlier)
    }

    /// Starts the writes that are due.
    pub fn start_due(&mut self, wanted: impl Fn() -> Wanted, now: Now) {
        let is_due = |state: &mut AuthFileState| state.writing_since.is_none() && state.scheduler.start(now);
        let due: Vec<usize> = self
            .files
            .iter_mut()
            .enumerate()
            .filter_map(|(number, state)| is_due(state).then_some(number))
            .collect();
        if due.is_empty() {
            return;
        }
        let wanted = Arc::new(wanted());
        if wanted.entries.is_empty() && wanted.lapse.is_empty() {
            return;
        }
        for number in due {
            let state = &mut self.files[number];
            state.writing_since = Some(now.boot);
            let (file, wanted) = (state.file.clone(), Arc::clone(&wanted));
            let options = PublishOptions { now: now.wall, dry_run: false, mode: state.mode };
            self.writes.spawn(async move {
                let write = tokio::task::spawn_blocking(move || file.publish(&wanted, options));
                WriteEnded { file: number, result: write.await.ok() }
            });
        }
    }

    /// The files whose write takes long, each once.
    pub fn newly_slow(&mut self, now: Now) -> Vec<PathBuf> {
        let slow = |state: &mut AuthFileState| {
            let is_slow = state.writing_since.is_some_and(|since| since + SLOW <= now.boot);
            is_slow && !std::mem::replace(&mut state.slow, true)
        };
        let files = self.files.iter_mut().filter_map(|state| slow(state).then(|| state.file.path.clone()));
        files.collect()
    }

    /// Waits for the next write to end. May be dropped while it waits.
    pub async fn finished(&mut self) -> WriteEnded {
        loop {
            match self.writes.join_next().await {
                Some(Ok(ended)) => return ended,
                // The task only waits, and is never aborted.
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Takes the result of a write: what to log and count, if there is anything.
    pub fn record(&mut self, ended: WriteEnded, now: Now) -> Option<Published> {
        let state = self.files.get_mut(ended.file)?;
        state.writing_since = None;
        state.slow = false;
        let path = state.file.path.clone();
        let result = ended.result.unwrap_or_else(|| Err(AuthFileError::Panicked(path.clone())));
        let change = match &result {
            Err(_) => WriteResult::Failed,
            Ok(outcome) if outcome.effect == Effect::Unchanged => WriteResult::Unchanged,
            Ok(_) => WriteResult::Changed,
        };
        match &result {
            Ok(outcome) => {
                state.mode = outcome.mode.or(state.mode);
                state.records.clone_from(&outcome.records);
                state.error = None;
            }
            Err(error) => state.error = Some(chain(error)),
        }
        let drift = state.scheduler.end(change, now, fastrand::f64());
        Some(Published { path, result, drift })
    }

    /// Whether a write is under way.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        self.files.iter().any(|state| state.writing_since.is_some())
    }

    /// The entries under these keys that every file holds. Where the files differ, since one could not be written, the token
    /// that expires first counts.
    #[must_use]
    pub fn in_place<'a>(&self, keys: &'a [String]) -> Vec<EntryInPlace<'a>> {
        let entry = |key: &'a String| {
            let records: Option<Vec<&Record>> =
                self.files.iter().map(|state| state.records.get(key)).collect();
            let record = records?.into_iter().min_by_key(|record| record.expires_at)?;
            Some(EntryInPlace { key, fetched_at: record.fetched_at, expires_at: record.expires_at })
        };
        keys.iter().filter_map(entry).collect()
    }

    /// Why the files are not ready, a line each: a key without a valid entry, a write that failed or hangs. Empty where every
    /// file holds a valid entry under each key.
    #[must_use]
    pub fn not_ready(&self, keys: &[String], now: Now) -> Vec<String> {
        let mut reasons = Vec::new();
        for state in &self.files {
            let path = state.file.path.display();
            if let Some(since) = state.writing_since.filter(|since| *since + SLOW <= now.boot) {
                let seconds = now.boot.saturating_sub(since).as_secs();
                reasons
                    .push(format!("{path}: a write has not ended for {seconds} s; its file system may hang"));
            }
            reasons.extend(state.error.iter().map(|error| format!("{path}: {error}")));
            for key in keys {
                match state.records.get(key) {
                    None => reasons.push(format!("{path}: {key}: missing")),
                    Some(record) if record.expires_at <= now.wall => {
                        reasons.push(format!("{path}: {key}: expired"));
                    }
                    Some(_) => {}
                }
            }
        }
        reasons
    }

    /// How many files wait for another write after a failure.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.files.iter().filter(|state| state.scheduler.has_failed()).count()
    }

    /// Whether another program keeps changing a file.
    #[must_use]
    pub fn is_fighting(&self) -> bool {
        self.files.iter().any(|state| state.scheduler.is_fighting())
    }
}
