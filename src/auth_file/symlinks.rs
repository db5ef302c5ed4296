//! Follows the symlinks that lead to an auth file.
//!
//! Each link must belong to root or to the agent's user, in a directory that not everybody may write: otherwise another
//! user could choose which file the agent replaces.

use super::directory::{LockedDirectory, StepError, step};
use super::error::AuthFileError;
use super::file::AuthFile;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// As many symlinks in a row as Linux follows.
const MAX_LINKS: usize = 40;

impl AuthFile {
    /// The directories and names on the way to the file, symlinks first, the file itself last. If one of them changes, the
    /// path may lead to another file. A link that is not followed ends the list.
    #[must_use]
    pub fn places(&self) -> Vec<(PathBuf, OsString)> {
        let mut places = Vec::new();
        drop(self.follow(&mut places));
        places
    }

    /// The directory and the name of the file itself, after all symlinks.
    pub(super) fn resolve(&self) -> Result<(PathBuf, OsString), AuthFileError> {
        self.follow(&mut Vec::new())
    }

    fn follow(&self, places: &mut Vec<(PathBuf, OsString)>) -> Result<(PathBuf, OsString), AuthFileError> {
        let mut path = self.path.clone();
        for _ in 0..MAX_LINKS {
            let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(AuthFileError::NotAFile { path, kind: "a directory" });
            };
            places.push((directory.to_owned(), name.to_owned()));
            let failed = |source| AuthFileError::Step { path: self.path.clone(), source };
            let handle = match open_directory(directory) {
                Ok(handle) => handle,
                Err(error) if error.errno == Errno::ENOENT => {
                    return Err(AuthFileError::NoDirectory(directory.to_owned()));
                }
                Err(error) => return Err(failed(error)),
            };
            let is_link =
                |stat: &FileStat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK;
            let link = match fstatat(&handle, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) if is_link(&stat) => stat,
                // The caller looks at what it is, or that it is missing.
                _ => return Ok((directory.to_owned(), name.to_owned())),
            };
            let us = nix::unistd::geteuid().as_raw();
            if link.st_uid != 0 && link.st_uid != us {
                return Err(AuthFileError::Symlink { path, why: "it belongs to another user" });
            }
            let holder = fstat(&handle).map_err(step("look at the directory")).map_err(failed)?;
            if holder.st_mode & 0o002 != 0 {
                return Err(AuthFileError::Symlink { path, why: "everybody may write to its directory" });
            }
            let target = readlinkat(&handle, name).map_err(step("read the symlink")).map_err(failed)?;
            path = directory.join(target);
        }
        Err(AuthFileError::Symlink { path: self.path.clone(), why: "it leads to more than 40 others" })
    }

    /// Locks the directory that the file is in, waiting for the lock for so long at most. Another agent may have changed the
    /// layout while this one waited, so the links are followed once more with the lock.
    pub(super) fn lock(&self, wait: Duration) -> Result<(LockedDirectory, OsString), AuthFileError> {
        let mut place = self.resolve()?;
        for _ in 0..MAX_LINKS {
            let locked = LockedDirectory::lock(&place.0, wait)
                .map_err(|source| AuthFileError::Step { path: place.0.join(&place.1), source })?;
            let again = self.resolve()?;
            if again == place {
                return Ok((locked, place.1));
            }
            place = again;
        }
        Err(AuthFileError::Symlink { path: self.path.clone(), why: "it keeps changing" })
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd, StepError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty()).map_err(step("open the directory"))
}
