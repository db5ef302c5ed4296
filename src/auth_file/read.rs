//! Reads files of bounded size.

use super::directory::{LockedDirectory, Named};
use super::error::AuthFileError;
use super::file::AuthFile;
use super::writers::OpenWatch;
use crate::docker_config::search::Content;
use nix::sys::stat::{FileStat, SFlag};
use secrecy::zeroize::Zeroizing;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// A docker config has a few kilobytes. A larger file is something else.
pub(super) const MAX_SIZE: u64 = 1024 * 1024;
/// The kubelet reads files of any size, so `explain` reads larger ones.
const MAX_TO_EXPLAIN: u64 = 16 * MAX_SIZE;

/// A file that was opened and read.
#[derive(Debug)]
pub(super) struct Opened {
    /// The open file.
    pub(super) file: File,
    /// Notices that a program opens it, from before it was read.
    pub(super) watch: OpenWatch,
    /// Its attributes before it was read.
    pub(super) stat: FileStat,
    /// Its content.
    pub(super) bytes: Zeroizing<Vec<u8>>,
}

/// What a path leads to.
pub(super) enum Regular {
    /// A regular file with this content.
    Bytes(Zeroizing<Vec<u8>>),
    /// A regular file that is too large.
    TooLarge,
    /// Something else.
    Not,
}

impl AuthFile {
    /// Reads the file without a lock, for people. `None` if it is missing.
    ///
    /// # Errors
    /// If it cannot be read, or is no file that the agent would work on.
    pub fn read(&self) -> Result<Option<Zeroizing<Vec<u8>>>, AuthFileError> {
        let (directory, name) = self.resolve()?;
        read_path(directory.join(name))
    }
}

/// Reads the file at the end of all symlinks. `None` if it is missing.
pub(super) fn read_path(path: PathBuf) -> Result<Option<Zeroizing<Vec<u8>>>, AuthFileError> {
    match read_regular(&path, MAX_SIZE) {
        Ok(Regular::Bytes(bytes)) => Ok(Some(bytes)),
        Ok(Regular::TooLarge) => Err(AuthFileError::TooLarge(path)),
        Ok(Regular::Not) => Err(AuthFileError::NotAFile { path, kind: "no regular file" }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(AuthFileError::Read { path, source }),
    }
}

/// Opens and reads `name` in a directory. `None` if it is missing.
pub(super) fn read_in(directory: &LockedDirectory, name: &OsStr) -> Result<Option<Opened>, AuthFileError> {
    let path = || directory.path().join(name);
    let (file, stat) = match directory.open(name) {
        Ok(Named::Nothing) => return Ok(None),
        Ok(Named::File(file, stat)) => (file, stat),
        Ok(Named::Other(kind)) => return Err(AuthFileError::NotAFile { path: path(), kind }),
        Err(source) => return Err(AuthFileError::Step { path: path(), source }),
    };
    let watch = OpenWatch::new(&file);
    let bytes = read_bounded(&file, &stat, MAX_SIZE)
        .map_err(|source| AuthFileError::Read { path: path(), source })?
        .ok_or_else(|| AuthFileError::TooLarge(path()))?;
    Ok(Some(Opened { file, watch, stat, bytes }))
}

/// Reads what is in a place of the kubelet's search path, following symlinks as the kubelet does.
#[must_use]
pub fn read_place(path: &Path) -> Content {
    match read_regular(path, MAX_TO_EXPLAIN) {
        Ok(Regular::Bytes(bytes)) => Content::Bytes(bytes),
        Ok(Regular::Not) => Content::Unreadable("it is no regular file".to_owned()),
        // The kubelet has no limit.
        Ok(Regular::TooLarge) => Content::Unknown("it is larger than 16 MiB".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Content::Missing,
        // The kubelet runs as root, and this program does not.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Content::Unknown(error.to_string()),
        Err(error) => Content::Unreadable(error.to_string()),
    }
}

/// Reads a regular file of bounded size, following symlinks. Never blocks on something that is no regular file.
pub(super) fn read_regular(path: &Path, max_size: u64) -> io::Result<Regular> {
    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::{Mode, fstat};

    let file = open(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty())?;
    let stat = fstat(&file)?;
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Ok(Regular::Not);
    }
    let bytes = read_bounded(&File::from(file), &stat, max_size)?;
    Ok(bytes.map_or(Regular::TooLarge, Regular::Bytes))
}

/// Reads a file from its beginning. `None` if it holds more than `limit` bytes. The bytes are zeroed when dropped.
pub(super) fn read_bounded(
    file: &File,
    stat: &FileStat,
    limit: u64,
) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    if size > limit {
        return Ok(None);
    }
    // One more byte than the size, to see that nothing follows.
    let room = usize::try_from(size).unwrap_or(0) + 1;
    let mut bytes = Zeroizing::new(vec![0; room]);
    let mut length = 0;
    loop {
        match file.read_at(&mut bytes[length..], length as u64)? {
            0 => break,
            count => length += count,
        }
        if length as u64 > limit {
            return Ok(None);
        }
        if length == bytes.len() {
            // The file has grown since.
            let mut larger = Zeroizing::new(vec![0; 2 * length]);
            larger[..length].copy_from_slice(&bytes);
            bytes = larger;
        }
    }
    bytes.truncate(length);
    Ok(Some(bytes))
}
