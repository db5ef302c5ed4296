//! Publish and remove: read under the lock, judge, plan, replace; and again if another program was faster.

use super::attributes;
use super::directory::{LockedDirectory, StepError, step};
use super::error::AuthFileError;
use super::exposure::{Access, exposure};
use super::file::AuthFile;
use super::judge::{Content, judge};
use super::memory::{Memory, Stamp};
use super::outcome::{Effect, Note, Outcome, PublishOptions};
use super::plan::{Operation, Planned};
use super::read::{MAX_SIZE, Opened, read_in, read_path};
use super::replace::{Previous, ReplaceError};
use super::rest::{Completeness, Rest, Signs, rest};
use super::set_aside::{clear_leftovers, keep_copy};
use super::writers::is_open_for_writing;
use crate::docker_config::merge::{Plan, Wanted};
use crate::time::clock;
use crate::time::timer::Now;
use nix::errno::Errno;
use nix::sys::stat::{FileStat, stat};
use std::ffi::OsString;
use std::time::Duration;

/// How often an update starts over because another program has changed the file between reading and replacing.
const MAX_ATTEMPTS: usize = 4;
/// When to try again after that.
const AFTER_CHANGES: Duration = Duration::from_millis(100);

/// The file as it was read under the lock.
struct Snapshot {
    directory: LockedDirectory,
    /// The directory's attributes.
    directory_stat: FileStat,
    name: OsString,
    /// `None` if the file is missing.
    opened: Option<Opened>,
}

impl AuthFile {
    /// Merges `wanted` into the file, or with `dry_run` only reports what that would change. If another program is still
    /// changing the file, nothing is written, and the effect is [`Effect::NotAtRest`].
    ///
    /// # Errors
    /// If the file is not as wanted afterwards. The error says what is there instead.
    pub fn publish(
        &self,
        wanted: &Wanted,
        options: PublishOptions,
        memory: &mut Memory,
    ) -> Result<Outcome, AuthFileError> {
        self.refuse_openshift()?;
        let operation = Operation::Publish { wanted, explicit: options.explicit, now: options.now };
        self.update(operation, options, memory)
    }

    /// Takes the agent's entries out, and entries without a record that are ECR's and for one of `registries`.
    ///
    /// # Errors
    /// If an entry of the agent's is still there afterwards.
    pub fn remove(
        &self,
        registries: &[String],
        options: PublishOptions,
        memory: &mut Memory,
    ) -> Result<Outcome, AuthFileError> {
        self.update(Operation::Remove(registries), options, memory)
    }

    /// Only reads the file, without a lock, and remembers what it holds. The outcome lists the agent's entries in it.
    ///
    /// # Errors
    /// If it cannot be read, or is no file that the agent would work on.
    pub fn remember(&self, memory: &mut Memory) -> Result<Outcome, AuthFileError> {
        let (directory, name) = self.resolve()?;
        let stat =
            stat(&directory).map_err(step("look at the directory")).map_err(|source| self.failed(source))?;
        memory.set_place(&stat, &name);
        let bytes = read_path(directory.join(name))?;
        let bytes = bytes.as_ref().map(|bytes| bytes.as_slice());
        memory.read(bytes);
        let content = judge(bytes);
        if let (Some(bytes), Content::Whole(_)) = (bytes, &content) {
            memory.set_good(bytes);
        }
        Ok(Outcome { records: content.own_records(), ..Outcome::unchanged(Vec::new()) })
    }

    pub(super) fn update(
        &self,
        operation: Operation<'_>,
        options: PublishOptions,
        memory: &mut Memory,
    ) -> Result<Outcome, AuthFileError> {
        for _ in 0..MAX_ATTEMPTS {
            let done = self.attempt(operation, options, memory);
            if !is_changed(&done) {
                return done;
            }
        }
        Ok(Outcome::of(Effect::NotAtRest { retry_in: AFTER_CHANGES }, Vec::new()))
    }

    /// One attempt. [`ReplaceError::Changed`] says that another program was faster.
    fn attempt(
        &self,
        operation: Operation<'_>,
        options: PublishOptions,
        memory: &mut Memory,
    ) -> Result<Outcome, AuthFileError> {
        let mut notes = Vec::new();
        let snapshot = self.look(options, memory, &mut notes)?;
        let content = judge(snapshot.bytes());
        let now = clock::both();
        let signs = snapshot.signs(&content, memory, now);
        let is_whole = matches!(content, Content::Whole(_));
        let planned = self.plan(operation, content, &signs, memory.good());
        // Also a version that the agent does not touch counts: what another program has removed must not come back.
        if is_whole {
            memory.set_good(snapshot.bytes().unwrap_or_default());
        }
        // A file that stays as the agent has left it needs no look at other programs.
        let stays =
            signs.left_by_agent && planned.as_ref().is_ok_and(|planned| matches!(planned.plan, Plan::Keep));
        let rest = if options.dry_run || stays {
            Rest::Judge
        } else {
            rest(&signs, || snapshot.is_open_for_writing())
        };
        match rest {
            Rest::Judge => {}
            Rest::GivenUp => notes.push(Note::NotAwaited { waited: signs.quiet.waiting_for }),
            Rest::Wait(retry_in) => {
                let records = judge(snapshot.bytes()).own_records();
                return Ok(Outcome { records, ..Outcome::of(Effect::NotAtRest { retry_in }, notes) });
            }
        }
        let done = planned.and_then(|mut planned| {
            planned.notes.splice(0..0, notes);
            self.carry_out(&snapshot, planned, rest, options, memory)
        });
        // A program that was faster does not make the agent wait anew.
        if !is_changed(&done) {
            memory.end_wait();
        }
        done
    }

    /// Locks and reads.
    fn look(
        &self,
        options: PublishOptions,
        memory: &mut Memory,
        notes: &mut Vec<Note>,
    ) -> Result<Snapshot, AuthFileError> {
        let (directory, name) = self.lock(memory.lock_wait())?;
        memory.set_place(&directory.stat().map_err(|source| self.failed(source))?, &name);
        let is_news = memory.set_not_locked(directory.not_locked().is_some());
        notes.extend(not_locked(&directory).filter(|_| is_news));
        let opened = read_in(&directory, &name)?;
        if !options.dry_run {
            let current = opened.as_ref().map(|opened| opened.bytes.as_slice());
            let cleared = clear_leftovers(&directory, &name, current, memory.is_new(), options.now);
            notes.extend(cleared.map_err(|source| self.failed(source))?);
        }
        let directory_stat = directory.stat().map_err(|source| self.failed(source))?;
        Ok(Snapshot { directory, directory_stat, name, opened })
    }

    /// Does what was planned, and remembers it.
    fn carry_out(
        &self,
        snapshot: &Snapshot,
        planned: Planned,
        rest: Rest,
        options: PublishOptions,
        memory: &mut Memory,
    ) -> Result<Outcome, AuthFileError> {
        let Planned { plan, reasons, notes, is_publish } = planned;
        let path = || snapshot.directory.path().join(&snapshot.name);
        let found = snapshot.opened.as_ref().map(|opened| opened.stat.st_mode & 0o777);
        // A new file is for its owner alone, whatever an earlier one was.
        let mode = found.map_or(0o600, |found| memory.mode(found));
        let is_wider = found.is_some_and(|found| found != mode);
        if let Plan::Replace(new, _) = &plan
            && new.len() as u64 > MAX_SIZE
        {
            return Err(AuthFileError::TooLargeAfter(path()));
        }
        let mut outcome = Outcome::unchanged(notes);
        outcome.effect = match &plan {
            Plan::Keep if is_wider => Effect::ModeRestored,
            Plan::Keep => Effect::Unchanged,
            Plan::Replace(_, changes) => Effect::Replaced(changes.clone()),
            Plan::Delete(changes) => Effect::Deleted(changes.clone()),
        };
        // A removal, or a change of the layout, puts no token there.
        let holds_token = is_publish && (found.is_some() || matches!(plan, Plan::Replace(..)));
        let who = if holds_token { snapshot.exposure(mode) } else { Vec::new() };
        if memory.is_news(&who) {
            outcome.notes.push(Note::Exposed { who });
        }
        if options.dry_run {
            if !reasons.is_empty() && outcome.effect != Effect::Unchanged {
                outcome.notes.push(Note::WouldSetAside { reasons });
            }
            return Ok(outcome);
        }
        if !reasons.is_empty() && !matches!(plan, Plan::Keep) {
            outcome.notes.push(self.set_aside(snapshot, reasons, options)?);
        }
        let written = snapshot.apply(&plan, mode, is_wider, rest).map_err(|source| match source {
            ReplaceError::Untouched(step) if step.errno == Errno::EBUSY => AuthFileError::Mounted(path()),
            source => AuthFileError::Replace { path: path(), source },
        })?;
        let bytes = match &plan {
            Plan::Keep => snapshot.bytes(),
            Plan::Replace(new, _) => {
                memory.set_left(written);
                Some(new.as_slice())
            }
            Plan::Delete(_) => None,
        };
        let content = judge(bytes);
        if let Some(bytes) = bytes {
            memory.set_mode(mode);
            if matches!(plan, Plan::Replace(..)) && matches!(content, Content::Whole(_)) {
                memory.set_good(bytes);
            }
        } else {
            memory.forget();
        }
        outcome.records = content.own_records();
        Ok(outcome)
    }

    /// Copies a file that the kubelet ignores.
    fn set_aside(
        &self,
        snapshot: &Snapshot,
        reasons: Vec<String>,
        options: PublishOptions,
    ) -> Result<Note, AuthFileError> {
        let Snapshot { directory, name, .. } = snapshot;
        match keep_copy(directory, name, "invalid", snapshot.bytes().unwrap_or_default(), options.now) {
            Ok(Some(copy)) => Ok(Note::SetAside { reasons, copy }),
            Ok(None) => Ok(Note::NotSetAside { reasons, path: directory.path().join(name) }),
            Err(source) => Err(AuthFileError::SetAside { path: self.path.clone(), reasons, source }),
        }
    }

    pub(super) fn failed(&self, source: StepError) -> AuthFileError {
        AuthFileError::Step { path: self.path.clone(), source }
    }
}

impl Snapshot {
    fn bytes(&self) -> Option<&[u8]> {
        self.opened.as_ref().map(|opened| opened.bytes.as_slice())
    }

    fn previous(&self, rest: Rest) -> Option<Previous<'_>> {
        self.opened.as_ref().map(|opened| Previous {
            file: &opened.file,
            watch: &opened.watch,
            stat: &opened.stat,
            bytes: &opened.bytes,
            despite_writers: rest == Rest::GivenUp,
        })
    }

    /// What is known about writers of the file.
    fn signs(&self, content: &Content<'_>, memory: &mut Memory, now: Now) -> Signs {
        let stat = self.opened.as_ref().map_or(&self.directory_stat, |opened| &opened.stat);
        let is_missing = self.opened.is_none();
        Signs {
            completeness: Completeness::of(content),
            left_by_agent: !is_missing && memory.is_as_left(stat),
            quiet: memory.look(is_missing, stat, now),
        }
    }

    fn is_open_for_writing(&self) -> Option<bool> {
        is_open_for_writing(&self.opened.as_ref()?.file)
    }

    /// Who else can get at the file, if its permission bits are `mode`.
    fn exposure(&self, mode: u32) -> Vec<String> {
        let access = |stat: &FileStat, mode| Access { user: stat.st_uid, group: stat.st_gid, mode };
        let us = nix::unistd::geteuid().as_raw();
        let file = match &self.opened {
            Some(opened) => access(&opened.stat, mode),
            None => Access { user: us, group: 0, mode },
        };
        exposure(file, access(&self.directory_stat, self.directory_stat.st_mode & 0o7777), us)
    }

    /// Changes the file. Returns the stamp of the new one; `None` if there is none.
    fn apply(
        &self,
        plan: &Plan,
        mode: u32,
        is_wider: bool,
        rest: Rest,
    ) -> Result<Option<Stamp>, ReplaceError> {
        match (plan, self.previous(rest)) {
            (Plan::Keep, Some(previous)) if is_wider => {
                attributes::set_mode(previous.file, mode).map(|()| None).map_err(ReplaceError::Untouched)
            }
            (Plan::Keep, _) | (Plan::Delete(_), None) => Ok(None),
            (Plan::Replace(new, _), previous) => {
                self.directory.replace(&self.name, new, previous, mode).map(Some)
            }
            (Plan::Delete(_), Some(previous)) => self.directory.delete(&self.name, previous).map(|()| None),
        }
    }
}

/// Whether another program was faster.
fn is_changed(done: &Result<Outcome, AuthFileError>) -> bool {
    matches!(done, Err(AuthFileError::Replace { source: ReplaceError::Changed, .. }))
}

/// The note that a directory could not be locked, if so.
pub(super) fn not_locked(directory: &LockedDirectory) -> Option<Note> {
    let why = match directory.not_locked()? {
        Errno::EWOULDBLOCK => "another program holds the lock".to_owned(),
        errno => errno.desc().to_owned(),
    };
    Some(Note::NotLocked { path: directory.path().to_owned(), why })
}
