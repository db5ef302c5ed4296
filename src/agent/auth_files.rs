//! The auth files: when each one is written, what is in it, and what other programs do to it.
//!
//! Each write runs in a thread of its own, so that a file whose file system hangs delays no other.

use crate::auth_file::publish::Published;
use crate::auth_file::{AuthFile, AuthFileError, Effect, Memory, Outcome, PublishOptions};
use crate::docker_config::ledger::Record;
use crate::docker_config::merge::Wanted;
use crate::report::agent_state::Failure;
use crate::report::exit::chain;
use crate::time::timer::{Deadline, Now};
use crate::time::write_scheduler::{DriftEvent, WriteResult, WriteScheduler};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// The class of a failure to read or write an auth file.
const AUTH_FILE: &str = "auth_file";
/// The class of a fight with another program, and of a wait for one.
const DRIFT: &str = "drift";
/// A write that takes longer is reported: its file system may hang.
const SLOW: Duration = Duration::from_secs(30);
/// A wait for other programs that takes longer is reported: most programs write a file within a moment.
const LONG_WAIT: Duration = Duration::from_secs(5);

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
    /// What is remembered of the file between two writes; empty while a write is under way.
    memory: Memory,
    /// How often another program has changed the file, as of the last write.
    foreign_changes: u64,
    /// The entries of ours that the file held after it was last read or written, by key.
    records: BTreeMap<String, Record>,
    /// The write that is under way; `None` if none is.
    writing: Option<Span>,
    /// The wait for other programs that are changing the file; `None` if the file is at rest.
    waiting: Option<Span>,
    /// Why the last write failed, and when the first of the failures in a row happened; `None` if it succeeded.
    failing: Option<(String, Timestamp)>,
    /// When the fight with another program began; `None` if there is none.
    fighting_since: Option<Timestamp>,
}

/// Something that takes time.
#[derive(Debug, Clone, Copy)]
struct Span {
    /// When it started.
    since: Now,
    /// Whether it was reported that it takes long.
    reported: bool,
}

/// A write that has ended.
pub struct WriteEnded {
    file: usize,
    /// Whether the file was only read, since there was nothing to write.
    only_read: bool,
    /// How the write ended, and what to remember of the file; `None` if the thread ended with a panic.
    result: Option<(Result<Outcome, AuthFileError>, Memory)>,
}

/// An entry that every file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryInPlace {
    /// When ECR gave the token.
    pub fetched_at: Timestamp,
    /// When it expires.
    pub expires_at: Timestamp,
}

impl AuthFiles {
    /// Files of which nothing is known yet. Each one is read at once, so that what it holds is known without a token, too.
    #[must_use]
    pub fn new(files: &[AuthFile], now: Now) -> Self {
        let state = |file: &AuthFile| {
            let mut scheduler = WriteScheduler::default();
            scheduler.look(now);
            AuthFileState {
                file: file.clone(),
                scheduler,
                memory: Memory::default(),
                foreign_changes: 0,
                records: BTreeMap::new(),
                writing: None,
                waiting: None,
                failing: None,
                fighting_since: None,
            }
        };
        Self { files: files.iter().map(state).collect(), writes: JoinSet::new() }
    }

    /// The files.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        self.files.iter().map(|state| state.file.path.clone()).collect()
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
        let next = |state: &AuthFileState| match state.writing {
            None => state.scheduler.next(now),
            Some(writing) => {
                let left = SLOW.saturating_sub(writing.length(now));
                (!left.is_zero()).then(|| now.after(left))
            }
        };
        self.files.iter().filter_map(next).reduce(Deadline::earlier)
    }

    /// Starts the writes that are due. While there is nothing to write, the files are only read.
    pub fn start_due(&mut self, wanted: impl Fn() -> Wanted, now: Now) {
        let is_due = |state: &mut AuthFileState| state.writing.is_none() && state.scheduler.start(now);
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
        let only_read = wanted.entries.is_empty() && wanted.lapse.is_empty();
        for number in due {
            let state = &mut self.files[number];
            state.writing = Some(Span::new(now));
            let (file, wanted) = (state.file.clone(), Arc::clone(&wanted));
            let options = PublishOptions { now: now.wall, dry_run: false, explicit: false };
            let mut memory = std::mem::take(&mut state.memory);
            self.writes.spawn(async move {
                let write = tokio::task::spawn_blocking(move || {
                    let result = if only_read {
                        file.remember(&mut memory)
                    } else {
                        file.publish(&wanted, options, &mut memory)
                    };
                    (result, memory)
                });
                WriteEnded { file: number, only_read, result: write.await.ok() }
            });
        }
    }

    /// The files whose write takes long, each once.
    pub fn newly_slow(&mut self, now: Now) -> Vec<PathBuf> {
        let is_slow = |state: &mut AuthFileState| {
            state.writing.as_mut().is_some_and(|writing| writing.is_newly_longer(SLOW, now))
        };
        let files = self.files.iter_mut().filter_map(|state| is_slow(state).then(|| state.file.path.clone()));
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
        state.writing = None;
        let path = state.file.path.clone();
        let panicked = || (Err(AuthFileError::Panicked(path.clone())), Memory::default());
        let (result, memory) = ended.result.unwrap_or_else(panicked);
        state.foreign_changes = memory.foreign_changes();
        state.memory = memory;
        let change = match &result {
            Err(_) => WriteResult::Failed,
            Ok(Outcome { effect: Effect::NotAtRest { retry_in }, .. }) => {
                WriteResult::NotAtRest { retry_in: *retry_in }
            }
            Ok(outcome) if outcome.effect == Effect::Unchanged => WriteResult::Unchanged,
            Ok(_) => WriteResult::Changed,
        };
        match &result {
            // What another program has written so far says nothing of what the file will hold.
            Ok(Outcome { effect: Effect::NotAtRest { .. }, .. }) => {
                state.waiting.get_or_insert(Span::new(now));
            }
            Ok(outcome) => {
                state.waiting = None;
                state.records.clone_from(&outcome.records);
                state.failing = None;
            }
            Err(error) => {
                state.waiting = None;
                // Otherwise the file is as it was.
                if matches!(error, AuthFileError::NoDirectory(_) | AuthFileError::NotAFile { .. }) {
                    state.records.clear();
                }
                let since = state.failing.take().map_or(now.wall, |(_, since)| since);
                state.failing = Some((chain(error), since));
            }
        }
        let mut drift = state.scheduler.end(change, now, fastrand::f64());
        if state.waiting.as_mut().is_some_and(|waiting| waiting.is_newly_longer(LONG_WAIT, now)) {
            drift = DriftEvent::LongWait;
        }
        state.fighting_since =
            state.scheduler.is_fighting().then(|| state.fighting_since.unwrap_or(now.wall));
        // That a file could be read is not worth a line.
        (!ended.only_read || result.is_err()).then_some(Published { path, result, drift })
    }

    /// Whether a write is under way.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        self.files.iter().any(|state| state.writing.is_some())
    }

    /// How often other programs have changed the files, as far as is known.
    #[must_use]
    pub fn foreign_changes(&self) -> u64 {
        self.files.iter().map(|state| state.foreign_changes).sum()
    }

    /// Whether there is no file to keep.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The entry under this key, if every file holds one. If the files differ, since one could not be written, the token that
    /// expires first counts.
    #[must_use]
    pub fn in_place(&self, key: &str) -> Option<EntryInPlace> {
        let records: Option<Vec<&Record>> = self.files.iter().map(|state| state.records.get(key)).collect();
        let record = records?.into_iter().min_by_key(|record| record.expires_at)?;
        Some(EntryInPlace { fetched_at: record.fetched_at, expires_at: record.expires_at })
    }

    /// The registries whose entry in a file has expired.
    #[must_use]
    pub fn expired(&self, now: Now) -> Vec<String> {
        let records = self.files.iter().flat_map(|state| &state.records);
        let expired = records.filter(|(_, record)| record.expires_at <= now.wall);
        expired.map(|(key, _)| key.clone()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Whether a file holds an entry under this key.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.files.iter().any(|state| state.records.contains_key(key))
    }

    /// The keys of default registries in the files, of this token source if it is known.
    #[must_use]
    pub fn default_keys(&self, source: Option<&str>) -> Vec<String> {
        let is_meant =
            |record: &Record| record.default_registry && source.is_none_or(|source| record.source == source);
        let records = self.files.iter().flat_map(|state| &state.records);
        let keys: BTreeSet<_> = records.filter(|(_, record)| is_meant(record)).map(|(key, _)| key).collect();
        keys.into_iter().cloned().collect()
    }

    /// Why the files are not ready, a line each: a key without a valid entry, a write that hangs or failed. Empty if every
    /// file holds a valid entry under each key.
    #[must_use]
    pub fn not_ready(&self, keys: &[String], now: Now) -> Vec<String> {
        let mut reasons = Vec::new();
        for state in &self.files {
            let path = state.file.path.display();
            // Another program's changes are no reason while the entries are there.
            let failures = state.failures(now).into_iter().filter(|failure| failure.class != DRIFT);
            reasons.extend(failures.map(|failure| failure.in_words()));
            for key in keys {
                match state.records.get(key) {
                    None => reasons.push(format!("{path}: {key}: missing")),
                    Some(record) if record.expires_at <= now.wall => {
                        reasons.push(format!("{path}: {key}: expired at {}", record.expires_at));
                    }
                    Some(_) => {}
                }
            }
        }
        reasons
    }

    /// What fails at the moment.
    #[must_use]
    pub fn failures(&self, now: Now) -> Vec<Failure> {
        self.files.iter().flat_map(|state| state.failures(now)).collect()
    }

    /// How many files wait for another write after a failure.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.files.iter().filter(|state| state.scheduler.has_failed()).count()
    }

    /// Whether another program is changing a file at the moment, as far as is known.
    #[must_use]
    pub fn is_changing(&self) -> bool {
        self.files.iter().any(|state| state.waiting.is_some())
    }

    /// Whether another program keeps changing a file: the agent waits for its end, or slows down its repairs.
    #[must_use]
    pub fn is_fighting(&self, now: Now) -> bool {
        self.files.iter().any(|state| state.fighting_since.is_some() || state.long_wait(now).is_some())
    }
}

impl Span {
    fn new(now: Now) -> Self {
        Self { since: now, reported: false }
    }

    fn length(&self, now: Now) -> Duration {
        now.boot.saturating_sub(self.since.boot)
    }

    /// Whether it takes longer than the limit, and that was not reported yet.
    fn is_newly_longer(&mut self, limit: Duration, now: Now) -> bool {
        self.length(now) >= limit && !std::mem::replace(&mut self.reported, true)
    }
}

impl AuthFileState {
    /// The wait for another program's end, if it has become long.
    fn long_wait(&self, now: Now) -> Option<Span> {
        self.waiting.filter(|waiting| waiting.length(now) >= LONG_WAIT)
    }

    /// What fails at the moment: a write that hangs, one that failed, a long wait for other programs, a fight.
    fn failures(&self, now: Now) -> Vec<Failure> {
        let failure = |class: &str, error: String, since, next_attempt| Failure {
            subject: self.file.path.display().to_string(),
            class: class.to_owned(),
            error,
            since,
            next_attempt,
        };
        let mut failures = Vec::new();
        if let Some(writing) = self.writing.filter(|writing| writing.length(now) >= SLOW) {
            let error = "a write has not ended; its file system may hang".to_owned();
            failures.push(failure(AUTH_FILE, error, writing.since.wall, None));
        }
        let next = self.scheduler.next(now).filter(|_| self.writing.is_none()).map(|next| next.wall);
        if let Some((error, since)) = &self.failing {
            failures.push(failure(AUTH_FILE, error.clone(), *since, next));
        }
        if let Some(waiting) = self.long_wait(now) {
            let error = "another program is still changing this file; the agent waits a minute at most";
            failures.push(failure(DRIFT, error.to_owned(), waiting.since.wall, next));
        }
        if let Some(since) = self.fighting_since {
            let error = "another program keeps changing this file; the agent restores it once a minute";
            failures.push(failure(DRIFT, error.to_owned(), since, None));
        }
        failures
    }
}
