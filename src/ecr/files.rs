//! Reads small files without ever waiting for one: off the runtime's thread, with a limit on time and size.
//!
//! A FIFO, a device or a hung file system costs only the attempt that reads it.

use nix::fcntl::OFlag;
use secrecy::zeroize::Zeroizing;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// How long file work may take before its attempt goes on without it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many threads may be stuck in a hung file system at the same time.
const THREADS: usize = 16;
/// `/dev/null`, which stands for a file without content.
const NULL_DEVICE: u64 = nix::sys::stat::makedev(1, 3);

/// How often the files of a directory are read until they are of one version.
const ROUNDS: usize = 10;

static THREADS_LEFT: Semaphore = Semaphore::const_new(THREADS);

/// A file's content. Zeroed when dropped.
pub type Content = Zeroizing<Vec<u8>>;

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no such file.
    #[error("does not exist")]
    Missing,
    /// The path is not that of a regular file.
    #[error("is {0} and not a file")]
    NotAFile(&'static str),
    /// The file is larger than a file of its kind can be.
    #[error("is larger than {} KiB", .0 / 1024)]
    TooLarge(u64),
    /// The file system did not answer.
    #[error("could not be read within {} s: its file system hangs", PATIENCE.as_secs())]
    Hangs,
    /// Another program replaces the directory's files again and again.
    #[error("is replaced again and again while it is read")]
    Unsettled,
    /// This program may not read it.
    #[error(
        "cannot be read by this program, which runs as uid {uid}{}: let it read the file",
        owner.map(|(owner, mode)| format!(" (the file belongs to uid {owner} and has mode {mode:04o})")).unwrap_or_default()
    )]
    Denied {
        /// The user of this program.
        uid: u32,
        /// The file's owner and its permission bits; `None` if they cannot be found out.
        owner: Option<(u32, u32)>,
    },
    /// The system refused.
    #[error("cannot be read: {0}")]
    System(io::Error),
}

impl ReadError {
    /// Whether the same read may succeed a moment later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Hangs | Self::Unsettled)
    }
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::Missing,
            _ => Self::System(error),
        }
    }
}

/// Reads files, and remembers what was in them: credentials that change while they are used are worth another attempt.
#[derive(Debug, Default)]
pub struct Reader(Mutex<BTreeMap<PathBuf, Seen>>);

/// What a file held: a digest of its content, and the limit it was read with. `None` for a file that could not be read.
type Seen = (Option<[u8; 32]>, u64);

impl Reader {
    /// Reads a whole file of at most `limit` bytes.
    ///
    /// # Errors
    /// When it cannot be read at once.
    pub async fn read(&self, path: &Path, limit: u64) -> Result<Content, ReadError> {
        let content = read(path, limit).await;
        if matches!(content, Err(ReadError::Hangs)) {
            // To read it again would only wait again.
            return content;
        }
        self.remember(path, limit, content.as_deref().ok().map(Vec::as_slice));
        content
    }

    /// Reads several files, one after the other on one thread: for each what it holds, or why it cannot be read.
    ///
    /// # Errors
    /// When one of them hangs; with its number.
    pub async fn read_each(
        &self,
        paths: Vec<PathBuf>,
        limit: u64,
    ) -> Result<Vec<Result<Content, ReadError>>, (usize, ReadError)> {
        if paths.is_empty() {
            return Ok(Vec::new());
        }
        let current = Arc::new(AtomicUsize::new(0));
        let reading = {
            let (current, paths) = (Arc::clone(&current), paths.clone());
            move || {
                let read = |(number, path): (usize, &PathBuf)| {
                    current.store(number, Ordering::Relaxed);
                    read_now(path, limit)
                };
                paths.iter().enumerate().map(read).collect::<Vec<_>>()
            }
        };
        let read = off_thread(reading).await.map_err(|error| (current.load(Ordering::Relaxed), error))?;
        for (path, content) in paths.iter().zip(&read) {
            self.remember(path, limit, content.as_deref().ok().map(Vec::as_slice));
        }
        Ok(read)
    }

    /// Reads several files of one directory. Where the directory is a mounted Secret, all of them are of one version of it.
    ///
    /// # Errors
    /// When a file is there and cannot be read at once. A missing file is `None`.
    pub async fn read_all<const COUNT: usize>(
        &self,
        directory: &Path,
        names: [&'static str; COUNT],
        limit: u64,
    ) -> Result<[Option<Content>; COUNT], (PathBuf, ReadError)> {
        let path = directory.to_owned();
        let found = match off_thread(move || read_all_now(&path, names, limit)).await {
            Ok(found) => found,
            Err(error) => return Err((directory.to_owned(), error)),
        };
        for (number, name) in names.iter().enumerate() {
            let content = found.as_ref().ok().and_then(|found| found[number].as_ref());
            self.remember(&directory.join(name), limit, content.map(|content| content.as_slice()));
        }
        found
    }

    /// Whether a file that was read holds something else now.
    pub async fn has_changed(&self) -> bool {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let compare = move || {
            seen.iter().any(|(path, (before, limit))| {
                let now = read_now(path, *limit).ok();
                now.map(|content| digest(&content)) != *before
            })
        };
        off_thread(compare).await.unwrap_or(false)
    }

    fn remember(&self, path: &Path, limit: u64, content: Option<&[u8]>) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(path.to_owned(), (content.map(digest), limit));
    }
}

fn digest(content: &[u8]) -> [u8; 32] {
    Sha256::digest(content).into()
}

async fn read(path: &Path, limit: u64) -> Result<Content, ReadError> {
    let path = path.to_owned();
    off_thread(move || read_now(&path, limit)).await.unwrap_or_else(Err)
}

/// Reads a whole file, on this thread. Only a hung file system can make it wait.
///
/// # Errors
/// When it cannot be read at once.
pub fn read_now(path: &Path, limit: u64) -> Result<Content, ReadError> {
    // Without `O_NONBLOCK` the opening of a FIFO would wait for its other end.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    match OpenOptions::new().read(true).custom_flags(flags.bits()).open(path) {
        Ok(file) => read_open(file, limit),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let owner = std::fs::metadata(path).ok().map(|it| (it.uid(), it.mode() & 0o7777));
            Err(ReadError::Denied { uid: nix::unistd::geteuid().as_raw(), owner })
        }
        Err(error) => Err(error.into()),
    }
}

/// Reads what is open, if it is a regular file.
fn read_open(file: File, limit: u64) -> Result<Content, ReadError> {
    let metadata = file.metadata()?;
    let kind = metadata.file_type();
    if kind.is_char_device() && metadata.rdev() == NULL_DEVICE {
        return Ok(Zeroizing::new(Vec::new()));
    }
    if !kind.is_file() {
        return Err(ReadError::NotAFile(match () {
            () if kind.is_dir() => "a directory",
            () if kind.is_fifo() => "a FIFO",
            () if kind.is_socket() => "a socket",
            () => "a device",
        }));
    }
    if metadata.len() > limit {
        return Err(ReadError::TooLarge(limit));
    }
    // With room for all of it from the start: a vector that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(
        usize::try_from(limit.min(metadata.len() + 4096)).unwrap_or(0) + 1,
    ));
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(ReadError::TooLarge(limit)) } else { Ok(bytes) }
}

fn read_all_now<const COUNT: usize>(
    directory: &Path,
    names: [&'static str; COUNT],
    limit: u64,
) -> Result<[Option<Content>; COUNT], (PathBuf, ReadError)> {
    // The kubelet swaps the link `..data` to replace all files at once: it is followed one time, and the files are read
    // behind it. Where it is swapped meanwhile, the files of the old version are removed, and a missing one is no answer.
    let data = directory.join("..data");
    let version = || std::fs::read_link(&data).ok();
    read_settled(version, |version| {
        let place = version.map_or_else(|| directory.to_owned(), |version| directory.join(version));
        let mut found = [const { None }; COUNT];
        for (name, found) in names.iter().zip(&mut found) {
            let path = place.join(name);
            *found = match read_now(&path, limit) {
                Ok(bytes) => Some(bytes),
                Err(ReadError::Missing) => None,
                Err(error) => return Err((path, error)),
            };
        }
        Ok(found)
    })
    .unwrap_or_else(|| Err((directory.to_owned(), ReadError::Unsettled)))
}

/// Reads until the version is the same before and after; `None` if it never is. A reader that nobody waits for any longer must
/// end too.
fn read_settled<V: PartialEq, T, E>(
    version: impl Fn() -> Option<V>,
    read: impl Fn(Option<&V>) -> Result<T, E>,
) -> Option<Result<T, E>> {
    for _ in 0..ROUNDS {
        let before = version();
        let found = read(before.as_ref());
        if found.is_err() || version() == before {
            return Some(found);
        }
    }
    None
}

/// Does file work on a thread of its own, and waits for it for five seconds.
///
/// # Errors
/// When it does not end in time, or panics. A thread that hangs is left behind; there are never more than 16 of them.
pub async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ReadError> {
    let working = async {
        let permit = THREADS_LEFT.acquire().await.map_err(|_| ReadError::Hangs)?;
        let working = move || {
            let result = work();
            drop(permit);
            result
        };
        tokio::task::spawn_blocking(working).await.map_err(|error| ReadError::System(io::Error::other(error)))
    };
    timeout(PATIENCE, working).await.unwrap_or(Err(ReadError::Hangs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use std::os::unix::fs::symlink;

    #[expect(clippy::disallowed_methods, reason = "test code")]
    fn write(path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn only_regular_files_of_a_limited_size_are_read() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        write(&path("file"), "12345");
        nix::unistd::mkfifo(&path("fifo"), Mode::S_IRWXU).unwrap();
        let said = |path: &Path, limit| read_now(path, limit).map_err(|error| error.to_string());
        assert_eq!(said(&path("file"), 5).unwrap().as_slice(), b"12345");
        assert_eq!(said(Path::new("/dev/null"), 5).unwrap().as_slice(), b"");
        let cases = [
            (path("file"), "is larger than 0 KiB"),
            (path("fifo"), "is a FIFO and not a file"),
            (path(""), "is a directory and not a file"),
            (path("none"), "does not exist"),
            (path("file/none"), "does not exist"),
            ("/dev/zero".into(), "is a device and not a file"),
        ];
        for (path, expected) in cases {
            assert_eq!(said(&path, 4).unwrap_err(), expected, "{}", path.display());
        }
    }

    #[test]
    fn files_of_a_mounted_secret_are_of_one_version() {
        let root = tempfile::tempdir().unwrap();
        let secret = root.path().join("secret");
        for version in ["1", "2"] {
            for name in ["id", "key"] {
                write(&secret.join(format!("..{version}/{name}")), version);
            }
        }
        symlink("..1", secret.join("..data")).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut version = 1;
                while !stop.load(Ordering::Relaxed) {
                    version = 3 - version;
                    symlink(format!("..{version}"), secret.join("..next")).unwrap();
                    std::fs::rename(secret.join("..next"), secret.join("..data")).unwrap();
                }
            });
            for _ in 0..2000 {
                match read_all_now(&secret, ["id", "key"], 10) {
                    Ok([id, key]) => assert_eq!(id.unwrap(), key.unwrap()),
                    Err((_, error)) => assert!(matches!(error, ReadError::Unsettled), "{error}"),
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        let [id, key] = read_all_now(&secret, ["id", "key"], 10).unwrap();
        assert_eq!(id.unwrap(), key.unwrap());
    }

    #[test]
    fn files_that_never_settle_are_given_up() {
        let count = std::cell::Cell::new(0);
        let next = || {
            count.set(count.get() + 1);
            Some(count.get())
        };
        assert_eq!(read_settled(next, |version| Ok::<_, ()>(version.copied())), None);
        assert_eq!(count.get(), 2 * ROUNDS);
        assert_eq!(read_settled(|| None::<u8>, |_| Ok::<_, ()>(5)), Some(Ok(5)));
        assert_eq!(read_settled(next, |_| Err::<(), _>(6)), Some(Err(6)));
    }

    #[tokio::test]
    async fn a_file_that_changes_is_noticed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        let reader = Reader::default();
        assert!(matches!(reader.read(&path, 10).await, Err(ReadError::Missing)));
        assert!(!reader.has_changed().await);
        write(&path, "one");
        assert!(reader.has_changed().await, "it has appeared");
        reader.read(&path, 10).await.unwrap();
        assert!(!reader.has_changed().await);
        write(&path, "two");
        assert!(reader.has_changed().await, "it has another content");
    }

    #[tokio::test]
    async fn work_that_panics_fails_alone() {
        let ended = off_thread(|| panic!("on purpose")).await;
        assert!(matches!(ended, Err::<(), _>(ReadError::System(_))), "{ended:?}");
        assert_eq!(off_thread(|| 5).await.unwrap(), 5);
    }
}
