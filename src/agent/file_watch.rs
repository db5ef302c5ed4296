//! Files that others may change: the auth files, and the files that credentials come from.
//!
//! Directories are watched, and names in them: a file that is replaced is another file, and one that is missing cannot be
//! watched. A watch that breaks (directory replaced, queue overflow, limit reached) is told, and set up again by whoever
//! owns this; until then the owner looks by itself, once a minute.

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{Config, Event, RecommendedWatcher, RecursiveMode, Watcher as _};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::Notify;

/// What was seen since one last looked. Events add up, so that none is lost however many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen(u32);

impl Seen {
    /// Something happened to the files that credentials come from.
    pub const CREDENTIALS: Self = Self(1);
    /// The watch is broken, and must be set up again.
    pub const BROKEN: Self = Self(2);
    const NOTHING: Self = Self(0);

    /// Something happened to the auth file of this number. From the 31st on they share signs with the first ones: a file
    /// that is looked at for another's sake does no harm.
    #[must_use]
    pub fn auth_file(number: usize) -> Self {
        Self(4 << (number % 30))
    }

    /// Whether `kind` is in it.
    #[must_use]
    pub fn has(self, kind: Self) -> bool {
        self.0 & kind.0 != 0
    }
}

/// Names in a directory that matter, and what a change of each means.
#[derive(Debug, Clone, Default)]
pub struct Interests(BTreeMap<PathBuf, Vec<(Option<OsString>, Seen)>>);

impl Interests {
    /// A name in a directory, or with `None` every name.
    pub fn add(&mut self, directory: &Path, name: Option<OsString>, seen: Seen) {
        // Two spellings of one directory are one watch to the kernel, and events name only one of them.
        let directory = std::fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
        self.0.entry(directory).or_default().push((name, seen));
    }

    /// What an event means.
    fn meaning(&self, event: &Event) -> Seen {
        if event.need_rescan() {
            return Seen::BROKEN;
        }
        let is_read = matches!(
            event.kind,
            EventKind::Access(AccessKind::Open(_) | AccessKind::Read | AccessKind::Close(AccessMode::Read))
        );
        if is_read {
            return Seen::NOTHING;
        }
        let mut meaning = Seen::NOTHING;
        for path in &event.paths {
            if self.0.contains_key(path) {
                meaning.0 |= Seen::BROKEN.0;
            }
            for (name, seen) in
                path.parent().and_then(|directory| self.0.get(directory)).into_iter().flatten()
            {
                if name.as_deref().is_none_or(|name| path.file_name() == Some(name)) {
                    meaning.0 |= seen.0;
                }
            }
        }
        meaning
    }
}

/// A watch on directories.
#[derive(Debug)]
pub struct Watch {
    /// The directories, and which ones they were.
    directories: Vec<(PathBuf, Option<Identity>)>,
    // Its thread ends with it.
    _watcher: RecommendedWatcher,
    board: Arc<Board>,
}

/// What tells a directory from another one of the same name: device and inode.
type Identity = (u64, u64);

fn identity(directory: &Path) -> Option<Identity> {
    std::fs::metadata(directory).ok().map(|it| (it.dev(), it.ino()))
}

/// Where the watching thread leaves what it saw.
#[derive(Debug, Default)]
struct Board {
    seen: AtomicU32,
    changed: Notify,
}

impl Watch {
    /// Watches from now on.
    ///
    /// # Errors
    /// When a directory is missing, or the system gives no watch (`fs.inotify.max_user_instances`,
    /// `fs.inotify.max_user_watches`).
    pub fn start(interests: Interests) -> Result<Self, notify::Error> {
        let board = Arc::new(Board::default());
        // Before they are watched: what is mounted in between shows as a difference.
        let directories: Vec<(PathBuf, Option<Identity>)> =
            interests.0.keys().map(|directory| (directory.clone(), identity(directory))).collect();
        let shared = Arc::clone(&board);
        let handler = move |event: Result<Event, notify::Error>| {
            let seen = event.map_or(Seen::BROKEN, |event| interests.meaning(&event));
            if seen != Seen::NOTHING {
                shared.seen.fetch_or(seen.0, Ordering::AcqRel);
                shared.changed.notify_one();
            }
        };
        let mut watcher = RecommendedWatcher::new(handler, Config::default().with_follow_symlinks(false))?;
        for (directory, _) in &directories {
            watcher.watch(directory, RecursiveMode::NonRecursive)?;
        }
        Ok(Self { directories, _watcher: watcher, board })
    }

    /// Whether a directory is another one than the one that is watched, since something was mounted over it, or went.
    #[must_use]
    pub fn is_elsewhere(&self) -> bool {
        self.directories.iter().any(|(directory, then)| identity(directory) != *then)
    }

    /// What is seen next. May be dropped while it waits.
    pub async fn next(&self) -> Seen {
        loop {
            let seen = Seen(self.board.seen.swap(0, Ordering::AcqRel));
            if seen != Seen::NOTHING {
                return seen;
            }
            self.board.changed.notified().await;
        }
    }
}
