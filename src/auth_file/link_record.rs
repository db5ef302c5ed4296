//! What `link --watch` records for the agent, which in the linked layout does not see the link.
//!
//! The record is a small file in the agent's directory. The watcher holds a lock on it while it runs, so a reader knows whether
//! it does. It has the file open for writing, so a change event tells of its end.

use super::directory::{LOCK_WAIT, LockedDirectory, from_rustix, io_step, step};
use super::error::AuthFileError;
use super::file::{AuthFile, DIRECTORY, link_record_name};
use jiff::Timestamp;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

/// More than any record needs.
const MAX_SIZE: u64 = 64 * 1024;

/// What a watcher knows of a link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkRecord {
    /// How often the watcher has made the link again since it started.
    pub repairs: u64,
    /// When it last did; `None` if never.
    pub last_repair: Option<Timestamp>,
    /// Why the link cannot be made; `None` if it is there.
    pub failure: Option<LinkFailure>,
}

/// Why a link cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkFailure {
    /// The last error.
    pub error: String,
    /// When the first of the failures in a row happened.
    pub since: Timestamp,
    /// When the next attempt is due; `None` if the watcher ended.
    pub next_attempt: Option<Timestamp>,
}

/// Who watches the link to an auth file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum LinkWatch {
    /// No watcher was started since the link was made.
    #[default]
    None,
    /// A watcher runs, with this record.
    Running(LinkRecord),
    /// The watcher has ended. This is its last record.
    Ended(LinkRecord),
}

impl LinkWatch {
    /// The watcher's record.
    #[must_use]
    pub fn record(&self) -> Option<&LinkRecord> {
        match self {
            Self::None => None,
            Self::Running(record) | Self::Ended(record) => Some(record),
        }
    }

    /// Finds out who watches the link to this file. Follows no symlink and waits for no lock.
    ///
    /// # Errors
    /// If there is a record that cannot be read.
    pub fn find(file: &AuthFile) -> io::Result<Self> {
        let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(file.link_record());
        let record = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::None),
            opened => opened?,
        };
        let mut text = Vec::new();
        (&record).take(MAX_SIZE).read_to_end(&mut text)?;
        let content = serde_json::from_slice(&text)?;
        match rustix::fs::flock(&record, FlockOperation::NonBlockingLockShared) {
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(Self::Running(content)),
            locked => locked.map(|()| Self::Ended(content)).map_err(io::Error::from),
        }
    }
}

impl LinkRecord {
    /// Takes the result of an attempt to make the link: whether it was made, or the error.
    pub fn attempted(
        &mut self,
        result: Result<bool, String>,
        now: Timestamp,
        next_attempt: Option<Timestamp>,
    ) {
        match result {
            Ok(made) => {
                self.failure = None;
                if made {
                    self.repairs += 1;
                    self.last_repair = Some(now);
                }
            }
            Err(error) => {
                let since = self.failure.as_ref().map_or(now, |failure| failure.since);
                self.failure = Some(LinkFailure { error, since, next_attempt });
            }
        }
    }

    /// Replaces the record beside `file`, so that a reader sees the old one or the new one. The result holds the lock.
    ///
    /// # Errors
    /// If the agent's directory is missing or not safe, or the record cannot be written.
    pub fn write(&self, file: &AuthFile) -> Result<File, AuthFileError> {
        let (directory, name) = record_directory(file)?;
        let failed = |source| file.failed(source);
        let mut temporary = name.clone();
        temporary.push(".new");
        // What a killed watcher has left.
        directory.delete_leftover(&temporary).map_err(failed)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let record = openat(directory.handle(), &*temporary, flags, mode)
            .map_err(step("create the record of the link"))
            .map_err(failed)?;
        let mut record = File::from(record);
        let locked = rustix::fs::flock(&record, FlockOperation::NonBlockingLockExclusive);
        locked.map_err(from_rustix).map_err(step("lock the record of the link")).map_err(failed)?;
        serde_json::to_vec(self)
            .map_err(io::Error::from)
            .and_then(|text| record.write_all(&text))
            .map_err(io_step("write the record of the link"))
            .map_err(failed)?;
        renameat(directory.handle(), &*temporary, directory.handle(), &*name)
            .map_err(step("replace the record of the link"))
            .map_err(failed)?;
        Ok(record)
    }

    /// Deletes the record beside `file`, if there is one.
    ///
    /// # Errors
    /// If it may still be there.
    pub fn delete(file: &AuthFile) -> Result<(), AuthFileError> {
        let (directory, name) = record_directory(file)?;
        directory.delete_leftover(&name).map_err(|source| file.failed(source))
    }
}

/// The agent's directory beside a file in the kubelet's root, and the name of the record in it.
fn record_directory(file: &AuthFile) -> Result<(LockedDirectory, std::ffi::OsString), AuthFileError> {
    let missing = || AuthFileError::NoDirectory(file.path.with_file_name(DIRECTORY));
    let root = file.path.parent().ok_or_else(missing)?;
    let root = LockedDirectory::lock(root, LOCK_WAIT).map_err(|source| file.failed(source))?;
    let directory = file.own_directory(&root, false)?.ok_or_else(missing)?;
    Ok((directory, link_record_name(file.path.file_name().unwrap_or(OsStr::new("")))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_repairs_and_keeps_the_time_of_the_first_failure() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut record = LinkRecord::default();
        record.attempted(Ok(false), at(1), None);
        assert_eq!(record, LinkRecord::default());
        record.attempted(Ok(true), at(2), None);
        record.attempted(Err("one".to_owned()), at(3), Some(at(63)));
        record.attempted(Err("two".to_owned()), at(63), Some(at(123)));
        let failure = LinkFailure { error: "two".to_owned(), since: at(3), next_attempt: Some(at(123)) };
        assert_eq!(record, LinkRecord { repairs: 1, last_repair: Some(at(2)), failure: Some(failure) });
        record.attempted(Ok(true), at(123), None);
        assert_eq!(record, LinkRecord { repairs: 2, last_repair: Some(at(123)), failure: None });
    }
}
