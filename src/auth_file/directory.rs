//! A directory that is open and locked: the lookups of names in it.
//!
//! All names are looked up in the open directory, so the directory cannot be exchanged in between. No call follows a
//! symlink.

use super::selinux;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat};
use rustix::fs::{FlockOperation, StatxAttributes, StatxFlags};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

/// How long to wait for the lock. The agent's own programs hold it for milliseconds, or as long as an `fsync` takes.
pub(super) const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// A directory that is open, and locked against other agents until it is dropped.
#[derive(Debug)]
pub struct LockedDirectory {
    path: PathBuf,
    // Closing it releases the lock. An explicit unlock may fail, and a failure there helps no caller.
    handle: OwnedFd,
    /// Why the lock is not held; `None` if it is.
    not_locked: Option<Errno>,
}

/// What has a name.
#[derive(Debug)]
pub enum Named {
    /// Nothing.
    Nothing,
    /// A regular file.
    File(File, FileStat),
    /// Something else: a noun with its article.
    Other(&'static str),
}

/// A symlink.
#[derive(Debug)]
pub struct Symlink {
    /// Where it leads.
    pub target: OsString,
    /// Its own attributes.
    pub stat: FileStat,
    // While it is open, no other file can get its inode number.
    _handle: OwnedFd,
}

/// A system call that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}{}", selinux::hint(*errno))]
pub struct StepError {
    /// What was attempted, as a verb phrase.
    pub step: &'static str,
    /// What the system answered.
    #[source]
    pub errno: Errno,
}

/// Makes the error of a step.
pub(super) fn step(step: &'static str) -> impl FnOnce(Errno) -> StepError {
    move |errno| StepError { step, errno }
}

pub(super) fn io_step(name: &'static str) -> impl FnOnce(std::io::Error) -> StepError {
    move |error| step(name)(Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32)))
}

pub(super) fn from_rustix(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}

impl LockedDirectory {
    /// Opens and locks a directory. After `wait`, or where locks do not work, it goes on without the lock: a rename needs
    /// none to be atomic, and a program that only may read the directory could otherwise stop the agent for ever.
    ///
    /// # Errors
    /// If the directory is missing or is no directory.
    pub fn lock(path: &Path, wait: Duration) -> Result<Self, StepError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let handle = nix::fcntl::open(path, flags, Mode::empty()).map_err(step("open the directory"))?;
        Ok(Self::wait_for(handle, path.to_owned(), wait))
    }

    /// Opens and locks the directory `name` in this one. A symlink counts as no directory.
    ///
    /// # Errors
    /// As for [`Self::lock`].
    pub fn lock_inside(&self, name: &OsStr) -> Result<Self, StepError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let handle = openat(&self.handle, name, flags, Mode::empty()).map_err(step("open the directory"))?;
        Ok(Self::wait_for(handle, self.path.join(name), LOCK_WAIT))
    }

    fn wait_for(handle: OwnedFd, path: PathBuf, wait: Duration) -> Self {
        let mut waited = Duration::ZERO;
        let not_locked = loop {
            match rustix::fs::flock(&handle, FlockOperation::NonBlockingLockExclusive).map_err(from_rustix) {
                Ok(()) => break None,
                Err(Errno::EWOULDBLOCK | Errno::EINTR) if waited < wait => {
                    sleep(LOCK_PAUSE);
                    waited += LOCK_PAUSE;
                }
                Err(errno) => break Some(errno),
            }
        };
        Self { path, handle, not_locked }
    }

    /// Why the directory is not locked; `None` if it is.
    #[must_use]
    pub fn not_locked(&self) -> Option<Errno> {
        self.not_locked
    }

    /// The directory's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn handle(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// The directory's owner, mode and times.
    ///
    /// # Errors
    /// If the system call fails.
    pub fn stat(&self) -> Result<FileStat, StepError> {
        fstat(&self.handle).map_err(step("look at the directory"))
    }

    /// Sets the directory's permission bits.
    ///
    /// # Errors
    /// If the system call fails.
    pub fn set_own_mode(&self, mode: Mode) -> Result<(), StepError> {
        fchmod(&self.handle, mode).map_err(step("give the directory its mode"))
    }

    /// Whether something is mounted on the directory. Kernels before Linux 5.8 do not tell.
    #[must_use]
    pub fn is_mounted(&self) -> bool {
        let statx = rustix::fs::statx(&self.handle, "", rustix::fs::AtFlags::EMPTY_PATH, StatxFlags::empty());
        statx.is_ok_and(|found| {
            (found.stx_attributes & found.stx_attributes_mask).contains(StatxAttributes::MOUNT_ROOT)
        })
    }

    /// The symlink `name`. `None` if `name` is no symlink.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn symlink(&self, name: &OsStr) -> Result<Option<Symlink>, StepError> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let handle = match openat(&self.handle, name, flags, Mode::empty()) {
            Ok(handle) => handle,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(step("look at the file")(errno)),
        };
        let stat = fstat(&handle).map_err(step("look at the file"))?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFLNK {
            return Ok(None);
        }
        let target = readlinkat(&handle, "").map_err(step("read the symlink"))?;
        Ok(Some(Symlink { target, stat, _handle: handle }))
    }

    /// What has the name, links not followed. `None` if nothing has.
    ///
    /// # Errors
    /// If the system call fails.
    pub fn look(&self, name: &OsStr) -> Result<Option<FileStat>, StepError> {
        match fstatat(&self.handle, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(step("look at the file")(errno)),
        }
    }

    /// Opens `name` if it is a regular file. Follows no symlink and never blocks.
    ///
    /// # Errors
    /// If it cannot be looked at or opened.
    pub fn open(&self, name: &OsStr) -> Result<Named, StepError> {
        let Some(found) = self.look(name)? else { return Ok(Named::Nothing) };
        if let Some(other) = kind_of_other(&found) {
            // It is not even opened: opening a device or a pipe may have an effect.
            return Ok(Named::Other(other));
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(&self.handle, name, flags, Mode::empty()) {
            Ok(file) => file,
            // It was deleted since.
            Err(Errno::ENOENT) => return Ok(Named::Nothing),
            Err(errno) => return Err(step("open the file")(errno)),
        };
        let opened = fstat(&file).map_err(step("look at the file"))?;
        Ok(match kind_of_other(&opened) {
            Some(other) => Named::Other(other),
            None => Named::File(File::from(file), opened),
        })
    }

    /// The names in the directory that begin with `prefix`, sorted.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn names_with(&self, prefix: &str) -> Result<Vec<OsString>, StepError> {
        use std::os::unix::ffi::OsStrExt as _;

        let failed = "list the directory";
        let mut directory = Dir::openat(&self.handle, ".", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(step(failed))?;
        let mut names = Vec::new();
        for entry in directory.iter() {
            let entry = entry.map_err(step(failed))?;
            if entry.file_name().to_bytes().starts_with(prefix.as_bytes()) {
                names.push(OsStr::from_bytes(entry.file_name().to_bytes()).to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

fn kind_of_other(stat: &FileStat) -> Option<&'static str> {
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFREG => None,
        SFlag::S_IFDIR => Some("a directory"),
        SFlag::S_IFLNK => Some("a symlink"),
        SFlag::S_IFIFO => Some("a pipe"),
        SFlag::S_IFSOCK => Some("a socket"),
        _ => Some("a device"),
    }
}

/// Whether both are the same file. One of them must be open: the inode number of a file that was deleted may be given to
/// another one.
pub(super) fn is_same(one: &FileStat, other: &FileStat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}
