//! Puts a new file in the place of another one: the system calls, in order.
//!
//! A reader sees the old file or the new one, whole, whenever the agent is killed. Another program may change the old file
//! at any time. So the two files *exchange* their names, and the old one is compared with what was read before it is
//! deleted: if it has changed, the names are exchanged back, and the caller starts over.

use super::attributes;
use super::directory::{LockedDirectory, Named, StepError, from_rustix, io_step, is_same, step};
use super::memory::Stamp;
use super::writers::{OpenWatch, is_open_for_writing};
use crate::time::clock;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, fsync, linkat, symlinkat, unlinkat};
use rustix::fs::RenameFlags;
use secrecy::zeroize::Zeroizing;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

/// How the names of temporary files end: of new versions, and of copies.
const NEW: &str = "tmp";
const COPY: &str = "copy.tmp";
/// A temporary file of a run without the lock may still be in use while it is younger than this.
const ABANDONED: Duration = Duration::from_mins(1);

/// A file as it was read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Previous<'a> {
    /// The open file.
    pub(super) file: &'a File,
    /// Notices that a program opens it, from before it was read.
    pub(super) watch: &'a OpenWatch,
    /// Its attributes before it was read.
    pub(super) stat: &'a FileStat,
    /// Its content.
    pub(super) bytes: &'a [u8],
    /// Replace it even if a program has it open for writing: the agent has waited long enough.
    pub(super) despite_writers: bool,
}

/// Why a file could not be replaced, and what is there now.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// A step before the rename failed, or the rename itself.
    #[error("the previous file is untouched")]
    Untouched(#[source] StepError),
    /// Another program has changed the file since it was read. Its version is there.
    #[error("another program has changed the file meanwhile, and it is untouched")]
    Changed,
    /// Another program has changed the file since it was read, and its version could not be put back.
    #[error("another program has changed the file meanwhile; its version is beside it, as {}", name.display())]
    NotPutBack {
        /// The name of the other program's version.
        name: OsString,
        /// What failed.
        source: StepError,
    },
    /// The change is made, but the directory could not be synced.
    #[error("the change is made, but after a power cut the previous file may be back")]
    NotDurable(#[source] StepError),
}

impl LockedDirectory {
    /// The name for temporary files beside `name`. With the lock it is always the same, so that a later run finds what a
    /// killed run left. Without the lock another agent may be at work: the name is a random one.
    fn temporary_name(&self, name: &OsStr, kind: &str) -> OsString {
        let mut temporary = temporary_prefix(name);
        if self.not_locked().is_some() {
            temporary.push(format!("{:016x}.", fastrand::u64(..)));
        }
        temporary.push(kind);
        temporary
    }

    /// The temporary files that killed runs have left beside `name`. `also_unlocked` looks for those of runs without the
    /// lock, too.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub(super) fn leftovers(&self, name: &OsStr, also_unlocked: bool) -> Result<Vec<OsString>, StepError> {
        if self.not_locked().is_some() {
            return Ok(Vec::new());
        }
        let usual = [NEW, COPY].map(|kind| self.temporary_name(name, kind));
        let mut found = Vec::new();
        for leftover in &usual {
            if self.look(leftover)?.is_some() {
                found.push(leftover.clone());
            }
        }
        if also_unlocked {
            let now = clock::both().wall.as_second();
            for other in self.names_with(&temporary_prefix(name).to_string_lossy())? {
                let age = |stat: FileStat| now.saturating_sub(stat.st_ctime).unsigned_abs();
                let is_abandoned = |stat| age(stat) > ABANDONED.as_secs();
                if !usual.contains(&other) && self.look(&other)?.is_some_and(is_abandoned) {
                    found.push(other);
                }
            }
        }
        Ok(found)
    }

    /// Deletes a temporary file.
    ///
    /// # Errors
    /// If it is still there afterwards.
    pub(super) fn delete_leftover(&self, leftover: &OsStr) -> Result<(), StepError> {
        match unlinkat(self.handle(), leftover, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(step("remove the temporary file")(errno)),
        }
    }

    /// Gives a temporary file that must not be lost another name.
    ///
    /// # Errors
    /// If it still has the temporary name afterwards.
    pub(super) fn rename_leftover(&self, leftover: &OsStr, other: &OsStr) -> Result<(), StepError> {
        self.rename_to_new(leftover, other).map_err(step("keep what an earlier attempt left"))?;
        self.delete_leftover(leftover)?;
        self.sync()
    }

    /// Puts `bytes` in the place of `name`, whole and durable. The new file gets the attributes of the previous one and the
    /// permission bits `mode`; without a previous one it is for its owner alone. Returns what tells the new file from any later
    /// version.
    ///
    /// # Errors
    /// Each says whether the old file or the new one is there.
    pub(super) fn replace(
        &self,
        name: &OsStr,
        bytes: &[u8],
        previous: Option<Previous<'_>>,
        mode: u32,
    ) -> Result<Stamp, ReplaceError> {
        let temporary = self.temporary_name(name, NEW);
        let written = self.write(&temporary, bytes, previous, mode).map_err(ReplaceError::Untouched);
        self.put_in_place(&temporary, written, |made| match previous {
            None => self.place(&temporary, name),
            Some(previous) if !self.is_unchanged(name, previous.stat) => Err(ReplaceError::Changed),
            Some(previous) => {
                self.exchange(&temporary, name, made, |displaced| is_as_read(displaced, previous))
            }
        })
    }

    /// Deletes `name`, if it is still as it was read.
    ///
    /// # Errors
    /// Each says whether the file is still there.
    pub(super) fn delete(&self, name: &OsStr, previous: Previous<'_>) -> Result<(), ReplaceError> {
        if !self.is_unchanged(name, previous.stat) {
            return Err(ReplaceError::Changed);
        }
        self.take_away(name, |displaced| is_as_read(displaced, previous))
    }

    /// Deletes `name`, if it is still the same file or link.
    ///
    /// # Errors
    /// As for [`Self::delete`].
    pub(super) fn delete_same(&self, name: &OsStr, stat: &FileStat) -> Result<(), ReplaceError> {
        self.take_away(name, |displaced| is_same(displaced, stat))
    }

    fn take_away(&self, name: &OsStr, is_expected: impl Fn(&FileStat) -> bool) -> Result<(), ReplaceError> {
        let temporary = self.temporary_name(name, NEW);
        // Under another name it can be looked at while no program finds it any more.
        renameat(self.handle(), name, self.handle(), &*temporary).map_err(|errno| match errno {
            Errno::ENOENT => ReplaceError::Changed,
            errno => ReplaceError::Untouched(step("delete the file")(errno)),
        })?;
        if !self.look(&temporary).is_ok_and(|found| found.is_some_and(|found| is_expected(&found))) {
            return Err(match self.place(&temporary, name) {
                Err(ReplaceError::Untouched(source)) => ReplaceError::NotPutBack { name: temporary, source },
                // If another program has made a newer file meanwhile, that one stays, and this one keeps its temporary name:
                // the next attempt makes a copy of it.
                _ => ReplaceError::Changed,
            });
        }
        self.finish(&temporary)
    }

    /// Gives the file `name` of `other` the same name here, in place of `current`, if that has the name: one file under both
    /// names. They must not be the same file already: then a rename does nothing.
    ///
    /// # Errors
    /// Each says whether the old file is still there. `EXDEV` if one of the two is mounted.
    pub(super) fn adopt(
        &self,
        name: &OsStr,
        other: &Self,
        current: Option<&FileStat>,
    ) -> Result<(), ReplaceError> {
        let temporary = self.temporary_name(name, NEW);
        let linked = linkat(other.handle(), name, self.handle(), &*temporary, AtFlags::empty())
            .map_err(step("give the file a second name"))
            .map_err(ReplaceError::Untouched);
        self.put_in_place(&temporary, linked, |made| self.put_over(&temporary, name, made, current)).map(drop)
    }

    /// Puts a symlink to `target` in the place of `current`, if that has the name.
    ///
    /// # Errors
    /// Each says whether the old file is still there.
    pub(super) fn replace_by_link(
        &self,
        name: &OsStr,
        target: &Path,
        current: Option<&FileStat>,
    ) -> Result<(), ReplaceError> {
        let temporary = self.temporary_name(name, NEW);
        let linked = symlinkat(target, self.handle(), &*temporary)
            .map_err(step("make the symlink"))
            .map_err(ReplaceError::Untouched);
        self.put_in_place(&temporary, linked, |made| self.put_over(&temporary, name, made, current)).map(drop)
    }

    fn put_over(
        &self,
        temporary: &OsStr,
        name: &OsStr,
        made: &FileStat,
        current: Option<&FileStat>,
    ) -> Result<(), ReplaceError> {
        match current {
            None => self.place(temporary, name),
            Some(current) => self.exchange(temporary, name, made, |displaced| is_same(displaced, current)),
        }
    }

    /// Gives what was made under the temporary name its own name, by `put`. If that fails, it is deleted; but another
    /// program's version that has the temporary name then stays there, and the next attempt makes a copy of it. Returns the stamp
    /// of what was made, taken before another program could find it.
    fn put_in_place(
        &self,
        temporary: &OsStr,
        made: Result<(), ReplaceError>,
        put: impl FnOnce(&FileStat) -> Result<(), ReplaceError>,
    ) -> Result<Stamp, ReplaceError> {
        // Beside an error, a temporary file that stays is not worth another one: the next attempt removes it.
        let failed = |error| {
            self.delete_leftover(temporary).ok();
            error
        };
        made.map_err(failed)?;
        let made = self.look(temporary).map_err(ReplaceError::Untouched).map_err(failed)?;
        let made = made.ok_or(ReplaceError::Changed)?;
        put(&made).map_err(|error| if self.is_as_made(temporary, &made) { failed(error) } else { error })?;
        self.finish(temporary)?;
        Ok(Stamp::of(&made))
    }

    /// Makes the directory `name`, for its owner alone, unless something has that name.
    ///
    /// # Errors
    /// If the system call fails.
    pub(super) fn create_directory(&self, name: &OsStr) -> Result<(), StepError> {
        match mkdirat(self.handle(), name, Mode::S_IRWXU) {
            Ok(()) => self.sync(),
            Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(step("make the directory")(errno)),
        }
    }

    /// Removes the directory `name` if it is empty. Returns whether it is gone.
    ///
    /// # Errors
    /// If the system call fails.
    pub(super) fn delete_directory(&self, name: &OsStr) -> Result<bool, StepError> {
        match unlinkat(self.handle(), name, UnlinkatFlags::RemoveDir) {
            Ok(()) => self.sync().map(|()| true),
            Err(Errno::ENOENT) => Ok(true),
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => Ok(false),
            Err(errno) => Err(step("remove the directory")(errno)),
        }
    }

    /// Puts `bytes` under the new name `copy`, whole and durable, for its owner alone. `name` is the file that it is a copy
    /// of.
    ///
    /// # Errors
    /// `EEXIST` if something has that name already; then nothing has changed.
    pub(super) fn create(&self, copy: &OsStr, name: &OsStr, bytes: &[u8]) -> Result<(), StepError> {
        let temporary = self.temporary_name(name, COPY);
        let linked = self.write(&temporary, bytes, None, 0o600).and_then(|()| {
            linkat(self.handle(), &*temporary, self.handle(), copy, AtFlags::empty())
                .map_err(step("give the copy its name"))
        });
        let removed = self.delete_leftover(&temporary);
        linked.and(removed).and_then(|()| self.sync())
    }

    fn write(
        &self,
        name: &OsStr,
        bytes: &[u8],
        like: Option<Previous<'_>>,
        mode: u32,
    ) -> Result<(), StepError> {
        // In the same directory: `rename` does not cross file systems, and a file gets its SELinux label from the directory.
        // Exclusive, so that a file or link that is already there is never written to; 0600 from the first instant.
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(self.handle(), name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(step("create the temporary file"))?;
        let mut file = File::from(file);
        file.write_all(bytes).map_err(io_step("write the temporary file"))?;
        if let Some(like) = like {
            attributes::copy(&file, like.file, like.stat, mode)?;
        }
        // Before the rename: otherwise a power cut may leave the new name on an empty file.
        fsync(&file).map_err(step("sync the temporary file"))
    }

    /// Renames the temporary file to `name`, unless something has that name.
    fn place(&self, temporary: &OsStr, name: &OsStr) -> Result<(), ReplaceError> {
        self.rename_to_new(temporary, name).map_err(|errno| match errno {
            Errno::EEXIST => ReplaceError::Changed,
            errno => ReplaceError::Untouched(step("give the temporary file its name")(errno)),
        })
    }

    /// Renames a file, unless something has the new name. Where the file system has no such rename, it keeps the old name, too.
    fn rename_to_new(&self, from: &OsStr, to: &OsStr) -> Result<(), Errno> {
        match self.rename(from, to, RenameFlags::NOREPLACE) {
            // A link fails as well if the name is taken.
            Err(errno) if is_unsupported(errno) => {
                linkat(self.handle(), from, self.handle(), to, AtFlags::empty())
            }
            renamed => renamed,
        }
    }

    /// Exchanges the two names. If what had `name` is not as expected, exchanges them back. If another program changes or
    /// deletes the new file before that, what had `name` keeps the temporary name.
    fn exchange(
        &self,
        temporary: &OsStr,
        name: &OsStr,
        made: &FileStat,
        is_expected: impl Fn(&FileStat) -> bool,
    ) -> Result<(), ReplaceError> {
        let over = "rename the temporary file over the old one";
        let displaced = |name| self.look(name).ok().flatten();
        match self.rename(temporary, name, RenameFlags::EXCHANGE) {
            Ok(()) => {}
            // It was deleted.
            Err(Errno::ENOENT) => return Err(ReplaceError::Changed),
            Err(errno) if is_unsupported(errno) => {
                if !displaced(name).is_some_and(|found| is_expected(&found)) {
                    return Err(ReplaceError::Changed);
                }
                return renameat(self.handle(), temporary, self.handle(), name)
                    .map_err(|errno| ReplaceError::Untouched(step(over)(errno)));
            }
            Err(errno) => return Err(ReplaceError::Untouched(step(over)(errno))),
        }
        if displaced(temporary).is_some_and(|found| is_expected(&found)) {
            return Ok(());
        }
        let not_put_back =
            |errno| ReplaceError::NotPutBack { name: temporary.to_owned(), source: step(over)(errno) };
        match self.rename(temporary, name, RenameFlags::EXCHANGE) {
            Ok(()) => {}
            // The new file was deleted, or renamed away, within that moment.
            Err(Errno::ENOENT) => return Err(ReplaceError::Changed),
            Err(errno) => return Err(not_put_back(errno)),
        }
        if !self.is_as_made(temporary, made) || self.is_being_written(temporary) {
            // Within that moment another program has changed the new file, or replaced it. That version is the latest.
            self.rename(temporary, name, RenameFlags::EXCHANGE).map_err(not_put_back)?;
        }
        Err(ReplaceError::Changed)
    }

    fn rename(&self, from: &OsStr, to: &OsStr, flags: RenameFlags) -> Result<(), Errno> {
        rustix::fs::renameat_with(self.handle(), from, self.handle(), to, flags).map_err(from_rustix)
    }

    /// Whether `name` is the same file as `before`, without a change since.
    fn is_unchanged(&self, name: &OsStr, before: &FileStat) -> bool {
        let key = |stat: &FileStat| {
            (stat.st_size, stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec)
        };
        let now = self.look(name).ok().flatten();
        now.is_some_and(|now| is_same(&now, before) && key(&now) == key(before))
    }

    /// Whether the temporary name has what was made there, without a change since.
    fn is_as_made(&self, temporary: &OsStr, made: &FileStat) -> bool {
        let found = self.look(temporary).ok().flatten();
        found.is_some_and(|found| Stamp::of(&found) == Stamp::of(made))
    }

    /// Whether a program is known to have the file open for writing.
    fn is_being_written(&self, name: &OsStr) -> bool {
        matches!(self.open(name), Ok(Named::File(file, _)) if is_open_for_writing(&file) == Some(true))
    }

    /// Deletes the temporary name, and makes the change durable.
    fn finish(&self, temporary: &OsStr) -> Result<(), ReplaceError> {
        let removed = self.delete_leftover(temporary);
        removed.and_then(|()| self.sync()).map_err(ReplaceError::NotDurable)
    }

    fn sync(&self) -> Result<(), StepError> {
        // The directory holds the new name.
        fsync(self.handle()).map_err(step("sync the directory"))
    }
}

fn temporary_prefix(name: &OsStr) -> OsString {
    let mut prefix = OsString::from(".ecr-node-agent-");
    prefix.push(name);
    prefix.push(".");
    prefix
}

/// Whether the file system has no such rename: NFS, for example.
fn is_unsupported(errno: Errno) -> bool {
    matches!(errno, Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP)
}

/// Whether the displaced file is the previous one, with the same content, attributes and time of modification, and no program
/// has it open for writing. If that is not known, a program counts that has opened the file since it was read and still has it
/// open. The time counts, since a program may write the same bytes again before it comes to its change. The
/// change time does not count: the rename has set it.
fn is_as_read(displaced: &FileStat, previous: Previous<'_>) -> bool {
    let before = previous.stat;
    let attributes =
        |stat: &FileStat| (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime, stat.st_mtime_nsec);
    let is_unchanged = |stat: &FileStat| is_same(stat, before) && attributes(stat) == attributes(before);
    is_unchanged(displaced)
        && has_content(previous.file, previous.bytes)
        && (previous.despite_writers
            || !previous.watch.may_be_open()
            || is_open_for_writing(previous.file) == Some(false))
        && fstat(previous.file).is_ok_and(|stat| is_unchanged(&stat))
}

/// Whether a file holds just these bytes.
fn has_content(file: &File, bytes: &[u8]) -> bool {
    // One more, to see that nothing follows.
    let mut found = Zeroizing::new(vec![0; bytes.len() + 1]);
    let mut length = 0;
    loop {
        match file.read_at(&mut found[length..], length as u64) {
            Ok(0) => return found[..length] == *bytes,
            Ok(count) => length += count,
            Err(_) => return false,
        }
        if length > bytes.len() {
            return false;
        }
    }
}
