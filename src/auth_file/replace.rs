//! Puts new bytes in the place of a file: the system calls, in order, and nothing else.
//!
//! A reader sees the old file or the new one, whole, whatever kills us and whenever. All names are looked up in a
//! directory that is open already, so nobody can swap it under us; no call follows a symlink.

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fsync, linkat, symlinkat, unlinkat};
use rustix::fs::{StatxAttributes, StatxFlags};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

/// How long to wait for another writer. One that takes longer hangs or means harm.
const LOCK_TRIES: u32 = 200;
const LOCK_PAUSE: Duration = Duration::from_millis(50);
/// Attributes of the old file that the new one gets, besides owner and mode: its SELinux label, and its access list
/// (without which the group bits, then a mask, would grant more than before).
const KEPT_ATTRIBUTES: [&str; 2] = [SELINUX, ACCESS_LIST];
const ACCESS_LIST: &str = "system.posix_acl_access";
const SELINUX: &str = "security.selinux";

/// A directory, open and locked against other writers of ours until dropped.
#[derive(Debug)]
pub struct LockedDirectory {
    path: PathBuf,
    lock: Flock<OwnedFd>,
}

/// What stands under a name.
#[derive(Debug)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A regular file.
    File(File, FileStat),
    /// Something else, in words.
    Other(&'static str),
}

/// A system call that failed: which, and what it said.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub struct StepError {
    /// What was being done, as a verb phrase.
    pub step: &'static str,
    /// What the system said.
    #[source]
    pub errno: Errno,
}

/// Why a file could not be replaced, and what is there now.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// A step before the rename failed, or the rename itself.
    #[error("the previous file is untouched")]
    Untouched(#[source] StepError),
    /// The change is made, but its directory could not be synced.
    #[error("the change is made, but after a power cut the previous file may be back")]
    NotDurable(#[source] StepError),
}

fn step(step: &'static str) -> impl FnOnce(Errno) -> StepError {
    move |errno| StepError { step, errno }
}

fn io_step(name: &'static str) -> impl FnOnce(std::io::Error) -> StepError {
    move |error| step(name)(Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32)))
}

impl LockedDirectory {
    /// Opens and locks a directory, waiting for another writer for ten seconds at most.
    ///
    /// # Errors
    /// When it is not there, is no directory, or stays locked (`EWOULDBLOCK`).
    pub fn lock(path: &Path) -> Result<Self, StepError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = nix::fcntl::open(path, flags, Mode::empty()).map_err(step("open the directory"))?;
        Self::wait_for(directory, path)
    }

    /// Opens and locks the directory `name` in this one. A symlink is none.
    ///
    /// # Errors
    /// As for [`Self::lock`].
    pub fn lock_inside(&self, name: &OsStr) -> Result<Self, StepError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let directory =
            openat(&*self.lock, name, flags, Mode::empty()).map_err(step("open the directory"))?;
        Self::wait_for(directory, &self.path.join(name))
    }

    fn wait_for(mut directory: OwnedFd, path: &Path) -> Result<Self, StepError> {
        for _ in 1..LOCK_TRIES {
            directory = match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Self { path: path.to_owned(), lock }),
                Err((directory, Errno::EWOULDBLOCK | Errno::EINTR)) => directory,
                Err((_, errno)) => return Err(step("lock the directory")(errno)),
            };
            sleep(LOCK_PAUSE);
        }
        Err(step("lock the directory, which another program has held for ten seconds")(Errno::EWOULDBLOCK))
    }

    /// The directory's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory's owner and mode.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn stat(&self) -> Result<FileStat, StepError> {
        fstat(&*self.lock).map_err(step("look at the directory"))
    }

    /// Gives the directory these permission bits.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn set_own_mode(&self, mode: Mode) -> Result<(), StepError> {
        fchmod(&*self.lock, mode).map_err(step("give the directory its mode"))
    }

    /// Whether something is mounted on the directory, as far as the kernel tells (from Linux 5.8 on).
    #[must_use]
    pub fn is_mounted(&self) -> bool {
        let statx = rustix::fs::statx(&*self.lock, "", rustix::fs::AtFlags::EMPTY_PATH, StatxFlags::empty());
        statx.is_ok_and(|found| {
            (found.stx_attributes & found.stx_attributes_mask).contains(StatxAttributes::MOUNT_ROOT)
        })
    }

    /// What the symlink `name` says, or `None` where there is no symlink.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn link_target(&self, name: &OsStr) -> Result<Option<OsString>, StepError> {
        match readlinkat(&*self.lock, name) {
            Ok(target) => Ok(Some(target)),
            Err(Errno::ENOENT | Errno::EINVAL) => Ok(None),
            Err(errno) => Err(step("read the symlink")(errno)),
        }
    }

    /// Opens what stands under `name`, if it is a regular file. Never follows a symlink, never blocks.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn open(&self, name: &OsStr) -> Result<Found, StepError> {
        let found = match fstatat(&*self.lock, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            Err(Errno::ENOENT) => return Ok(Found::Nothing),
            Err(errno) => return Err(step("look at the file")(errno)),
        };
        if let Some(other) = kind_of_other(&found) {
            // Not even opened: a device or a pipe may do something when it is.
            return Ok(Found::Other(other));
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = openat(&*self.lock, name, flags, Mode::empty()).map_err(step("open the file"))?;
        let opened = fstat(&file).map_err(step("look at the file"))?;
        Ok(match kind_of_other(&opened) {
            Some(other) => Found::Other(other),
            None => Found::File(File::from(file), opened),
        })
    }

    /// Removes what an earlier run, killed on its way, may have left. Nobody else writes here while we hold the lock.
    ///
    /// # Errors
    /// When it is there and stays.
    pub fn clean(&self, name: &OsStr) -> Result<(), StepError> {
        let temporary = temporary_name(name);
        // Looked for first: on a read-only file system even the removal of nothing fails.
        if fstatat(&*self.lock, &*temporary, AtFlags::AT_SYMLINK_NOFOLLOW) == Err(Errno::ENOENT) {
            return Ok(());
        }
        match unlinkat(&*self.lock, &*temporary, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(step("remove the temporary file that an earlier run left")(errno)),
        }
    }

    /// Puts `bytes` in the place of `name`, whole and durable, with owner, mode, label and access list of `like`, or
    /// mode 0600.
    ///
    /// # Errors
    /// Each says whether the old file or the new one is there.
    pub fn replace(
        &self,
        name: &OsStr,
        bytes: &[u8],
        like: Option<(&File, &FileStat)>,
    ) -> Result<(), ReplaceError> {
        let temporary = temporary_name(name);
        let written = self.write(&temporary, bytes, like).and_then(|()| {
            renameat(&*self.lock, &*temporary, &*self.lock, name)
                .map_err(step("rename the temporary file over the old one"))
        });
        self.settle(&temporary, written)
    }

    /// Gives the file `name` of `other` the same name here, in place of what has it: one file under both names, with all
    /// that makes it what it is. They must not be one file already: then a rename does nothing.
    ///
    /// # Errors
    /// Each says whether the old file is still there. `EXDEV` where one of the two is mounted.
    pub fn adopt(&self, name: &OsStr, other: &Self) -> Result<(), ReplaceError> {
        let temporary = temporary_name(name);
        let linked = linkat(&*other.lock, name, &*self.lock, &*temporary, AtFlags::empty())
            .map_err(step("give the file a second name"))
            .and_then(|()| {
                renameat(&*self.lock, &*temporary, &*self.lock, name)
                    .map_err(step("rename the second name into its place"))
            });
        self.settle(&temporary, linked)
    }

    /// Puts a symlink to `target` in the place of `name`.
    ///
    /// # Errors
    /// Each says whether the old file is still there.
    pub fn replace_by_link(&self, name: &OsStr, target: &Path) -> Result<(), ReplaceError> {
        let temporary = temporary_name(name);
        let linked =
            symlinkat(target, &*self.lock, &*temporary).map_err(step("make the symlink")).and_then(|()| {
                renameat(&*self.lock, &*temporary, &*self.lock, name)
                    .map_err(step("rename the symlink into its place"))
            });
        self.settle(&temporary, linked)
    }

    /// Makes the symlink `name` to `target`, where nothing has that name.
    ///
    /// # Errors
    /// `EEXIST` where something has.
    pub fn create_link(&self, name: &OsStr, target: &Path) -> Result<(), StepError> {
        symlinkat(target, &*self.lock, name).map_err(step("make the symlink"))?;
        self.sync()
    }

    /// Makes the directory `name`, for its owner alone, unless something has that name.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn create_directory(&self, name: &OsStr) -> Result<(), StepError> {
        match mkdirat(&*self.lock, name, Mode::S_IRWXU) {
            Ok(()) => self.sync(),
            Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(step("make the directory")(errno)),
        }
    }

    /// Removes the directory `name`, if nothing is in it. Returns whether it is gone.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn delete_directory(&self, name: &OsStr) -> Result<bool, StepError> {
        match unlinkat(&*self.lock, name, UnlinkatFlags::RemoveDir) {
            Ok(()) => self.sync().map(|()| true),
            Err(Errno::ENOENT) => Ok(true),
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => Ok(false),
            Err(errno) => Err(step("remove the directory")(errno)),
        }
    }

    /// Makes a rename durable, or takes back what was there for it.
    fn settle(&self, temporary: &OsStr, renamed: Result<(), StepError>) -> Result<(), ReplaceError> {
        if let Err(error) = renamed {
            // What is left of the temporary file is not worth an error beside this one: the next run removes it.
            unlinkat(&*self.lock, temporary, UnlinkatFlags::NoRemoveDir).ok();
            return Err(ReplaceError::Untouched(error));
        }
        self.sync().map_err(ReplaceError::NotDurable)
    }

    /// Puts `bytes` under `copy`, which must not exist yet, whole and durable, with mode 0600. `name` is the file that it
    /// is a copy of.
    ///
    /// # Errors
    /// `EEXIST` when it exists; then nothing has changed.
    pub fn create(&self, copy: &OsStr, name: &OsStr, bytes: &[u8]) -> Result<(), StepError> {
        let temporary = temporary_name(name);
        let linked = self.write(&temporary, bytes, None).and_then(|()| {
            linkat(&*self.lock, &*temporary, &*self.lock, copy, AtFlags::empty())
                .map_err(step("give the copy its name"))
        });
        let removed = self.clean(name);
        linked.and(removed).and_then(|()| self.sync())
    }

    /// Deletes `name`.
    ///
    /// # Errors
    /// Each says whether the file is still there.
    pub fn delete(&self, name: &OsStr) -> Result<(), ReplaceError> {
        unlinkat(&*self.lock, name, UnlinkatFlags::NoRemoveDir)
            .map_err(step("delete the file"))
            .map_err(ReplaceError::Untouched)?;
        self.sync().map_err(ReplaceError::NotDurable)
    }

    /// The names in the directory that begin with `prefix`.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn names_with(&self, prefix: &str) -> Result<Vec<OsString>, StepError> {
        use std::os::unix::ffi::OsStrExt as _;

        let failed = "list the directory";
        let mut directory = Dir::openat(&*self.lock, ".", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
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

    fn write(&self, name: &OsStr, bytes: &[u8], like: Option<(&File, &FileStat)>) -> Result<(), StepError> {
        // In the same directory: `rename` does not cross file systems, and SELinux labels come from the directory.
        // Exclusive, so what others may have put there is never written into; 0600 from the first instant.
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&*self.lock, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(step("create the temporary file"))?;
        let mut file = File::from(file);
        file.write_all(bytes).map_err(io_step("write the temporary file"))?;
        if let Some((old, stat)) = like {
            keep_attributes(&file, old, stat)?;
        }
        // Before the rename: otherwise a power cut may leave the new name on an empty file.
        fsync(&file).map_err(step("sync the temporary file"))
    }

    fn sync(&self) -> Result<(), StepError> {
        // The new name itself lives in the directory.
        fsync(self.lock.as_fd()).map_err(step("sync the directory"))
    }
}

/// Reads a file, or `None` where it holds more than `limit` bytes. The bytes are zeroed when dropped.
///
/// # Errors
/// What the system says.
pub fn read_bounded(
    file: &File,
    stat: &FileStat,
    limit: u64,
) -> std::io::Result<Option<secrecy::zeroize::Zeroizing<Vec<u8>>>> {
    let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    if size > limit {
        return Ok(None);
    }
    // One more than it should be, so that a file that is as it says is read without growing the vector.
    let room = usize::try_from(size).unwrap_or(0) + 1;
    let mut bytes = secrecy::zeroize::Zeroizing::new(Vec::with_capacity(room));
    file.take(limit + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

/// Gives a file its permission bits back.
///
/// # Errors
/// When the system refuses.
pub fn set_mode(file: &File, mode: u32) -> Result<(), ReplaceError> {
    fchmod(file, Mode::from_bits_truncate(mode))
        .map_err(step("give the file its mode back"))
        .map_err(ReplaceError::Untouched)
}

/// The name of the temporary file for `name`. Fixed, since only the holder of the lock makes one: so what a killed run
/// left is known by name.
fn temporary_name(name: &OsStr) -> OsString {
    let mut temporary = OsString::from(".ecr-node-agent-");
    temporary.push(name);
    temporary.push(".tmp");
    temporary
}

fn keep_attributes(new: &File, old: &File, stat: &FileStat) -> Result<(), StepError> {
    let created = fstat(new).map_err(step("look at the temporary file"))?;
    // Only where it differs: without CAP_CHOWN even a change to the same owner may be refused.
    if (created.st_uid, created.st_gid) != (stat.st_uid, stat.st_gid) {
        fchown(new, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
            .map_err(step("give the new file its owner"))?;
    }
    // What the directory's default list grants to others would come to life with the group bits.
    if matches!(attribute(old, ACCESS_LIST), Ok(None)) && matches!(attribute(new, ACCESS_LIST), Ok(Some(_))) {
        rustix::fs::fremovexattr(new, ACCESS_LIST)
            .map_err(|errno| step("take the inherited access list from the new file")(from_rustix(errno)))?;
    }
    let mode = Mode::from_bits_truncate(stat.st_mode & 0o777);
    if mode != Mode::S_IRUSR | Mode::S_IWUSR {
        fchmod(new, mode).map_err(step("give the new file its mode"))?;
    }
    for name in KEPT_ATTRIBUTES {
        let value = match attribute(old, name) {
            Ok(Some(value)) => value,
            // Nothing to keep, or a file system or system without such attributes.
            Ok(None) | Err(Errno::ENOTSUP) => continue,
            Err(errno) => return Err(step("read the old file's security attributes")(errno)),
        };
        let inherited = attribute(new, name).ok().flatten();
        if inherited.as_ref() == Some(&value) {
            continue;
        }
        match rustix::fs::fsetxattr(new, name, &value, rustix::fs::XattrFlags::empty()) {
            Ok(()) => {}
            Err(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS)
                if name == SELINUX && is_as_good(inherited.as_deref(), &value) => {}
            Err(errno) => return Err(step("give the new file its security attributes")(from_rustix(errno))),
        }
    }
    Ok(())
}

/// Whether a file may do with the label that it inherited from its directory, where it may not be given the old one.
///
/// Without SELinux a new file has no label, and what a label on the disk says has no effect. With it, access goes by the
/// type, the third part of `user:role:type:level`.
fn is_as_good(inherited: Option<&[u8]>, wanted: &[u8]) -> bool {
    let kind = |label: &[u8]| label.split(|byte| *byte == b':').nth(2).map(<[u8]>::to_vec);
    inherited.is_none_or(|inherited| kind(inherited) == kind(wanted))
}

fn attribute(file: &File, name: &str) -> Result<Option<Vec<u8>>, Errno> {
    // The kernel's own limit for one attribute.
    let mut value = vec![0; 64 * 1024];
    match rustix::fs::fgetxattr(file, name, value.as_mut_slice()) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(rustix::io::Errno::NODATA) => Ok(None),
        Err(errno) => Err(from_rustix(errno)),
    }
}

fn from_rustix(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
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
