//! Copies of files whose content would be lost otherwise.

use super::directory::{LockedDirectory, Named, StepError};
use super::outcome::{MAX_COPIES, Note};
use super::read::{MAX_SIZE, read_bounded};
use crate::docker_config::merge;
use crate::docker_config::parse::parse;
use jiff::Timestamp;
use nix::errno::Errno;
use secrecy::zeroize::Zeroizing;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// Copies `bytes`, the content of `name`, to `<name>.<kind>-<time>`, unless there is such a copy already. `None` if there are
/// too many copies.
pub(super) fn keep_copy(
    directory: &LockedDirectory,
    name: &OsStr,
    kind: &str,
    bytes: &[u8],
    now: Timestamp,
) -> Result<Option<PathBuf>, StepError> {
    let prefix = format!("{}.{kind}-", name.to_string_lossy());
    let time = now.strftime("%Y%m%dT%H%M%SZ");
    let copies = directory.names_with(&prefix)?;
    for copy in &copies {
        if let Ok(Named::File(file, stat)) = directory.open(copy)
            && read_bounded(&file, &stat, MAX_SIZE).ok().flatten().is_some_and(|kept| *kept == bytes)
        {
            return Ok(Some(directory.path().join(copy)));
        }
    }
    if copies.len() >= MAX_COPIES {
        return Ok(None);
    }
    let mut number = 1;
    let mut copy = OsString::from(format!("{prefix}{time}"));
    loop {
        match directory.create(&copy, name, bytes) {
            Ok(()) => return Ok(Some(directory.path().join(copy))),
            Err(error) if error.errno == Errno::EEXIST && number < MAX_COPIES => {
                number += 1;
                copy = OsString::from(format!("{prefix}{time}-{number}"));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Deletes the temporary files that earlier attempts have left beside `name`. One of them may be another program's version of
/// the file: a version with content that `current` does not have is copied, or gets another name if that is not possible.
/// `also_unlocked` looks for the files of runs without the lock, too.
pub(super) fn clear_leftovers(
    directory: &LockedDirectory,
    name: &OsStr,
    current: Option<&[u8]>,
    also_unlocked: bool,
    now: Timestamp,
) -> Result<Vec<Note>, StepError> {
    let mut notes = Vec::new();
    for leftover in directory.leftovers(name, also_unlocked)? {
        // `None` if it is too large or cannot be read: the agent writes no such file.
        let bytes = match directory.open(&leftover) {
            Ok(Named::File(file, stat)) => read_bounded(&file, &stat, MAX_SIZE).ok().flatten(),
            Ok(Named::Nothing | Named::Other(_)) => Some(Zeroizing::default()),
            Err(_) => None,
        };
        let copy = match &bytes {
            // A link, half a file of the agent's, or a version without other content.
            Some(bytes) if !has_more_than(bytes, current) => {
                directory.delete_leftover(&leftover)?;
                continue;
            }
            Some(bytes) => keep_copy(directory, name, "replaced", bytes, now)?,
            None => None,
        };
        let copy = if let Some(copy) = copy {
            directory.delete_leftover(&leftover)?;
            copy
        } else {
            let time = now.strftime("%Y%m%dT%H%M%SZ");
            let other = format!("{}.replaced-{time}-{:016x}", name.to_string_lossy(), fastrand::u64(..));
            directory.rename_leftover(&leftover, OsStr::new(&other))?;
            directory.path().join(other)
        };
        notes.push(Note::LeftoverKept { copy });
    }
    Ok(notes)
}

/// Whether a document has foreign content that `current` does not have.
fn has_more_than(leftover: &[u8], current: Option<&[u8]>) -> bool {
    let Ok(leftover) = parse(leftover) else { return false };
    let current = current.and_then(|bytes| parse(bytes).ok()).map(|parsed| parsed.document);
    !merge::adds_nothing(&leftover.document, &current.unwrap_or_default(), false)
}
