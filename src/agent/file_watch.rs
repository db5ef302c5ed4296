//! A watch on everything that decides which file a path names, and on the file itself.
//!
//! A file that is replaced is another file, and a file that is missing cannot be watched. So directories are watched, and names
//! in them: each directory on the way to the file, also behind symlinks. A renamed ancestor or a turned symlink is noticed
//! like a change of the file.

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{Config, Event, RecommendedWatcher, RecursiveMode, Watcher as _};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// As many symlinks as Linux follows in one path.
const MAX_LINKS: usize = 40;

/// A path to watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchedPath {
    /// A file.
    File(PathBuf),
    /// Every name in a directory.
    Directory(PathBuf),
}

/// What the watching thread saw since the last look. The worse one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileEvent {
    /// Something changed, or may have changed.
    Changed,
    /// The watch itself may be gone.
    Lost,
}

/// Where the watching threads leave what they saw, by the number of the watch.
#[derive(Debug, Default)]
pub struct Board {
    events: Mutex<BTreeMap<usize, FileEvent>>,
    posted: Notify,
}

impl Board {
    fn post(&self, watch: usize, event: FileEvent) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = events.entry(watch).or_insert(event);
        *seen = event.max(*seen);
        self.posted.notify_one();
    }

    /// What was seen since the last call. Waits for something. May be dropped while it waits.
    pub async fn next(&self) -> BTreeMap<usize, FileEvent> {
        loop {
            let events = std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner));
            if !events.is_empty() {
                return events;
            }
            self.posted.notified().await;
        }
    }
}

/// A directory that decides what a path names, and which directory it was: device and inode.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    identity: Option<(u64, u64)>,
    /// The names in it that matter, or `None` if every name does.
    names: Option<BTreeSet<OsString>>,
    /// Whether what is watched lies in it, and not only the way there.
    is_last: bool,
}

/// The directories that decide what some paths name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places(BTreeMap<PathBuf, Place>);

impl Places {
    /// Walks along the paths as the kernel does. May block where a file system hangs.
    #[must_use]
    pub fn of(paths: &[WatchedPath]) -> Self {
        let mut places = Self::default();
        for path in paths {
            match path {
                WatchedPath::File(path) => places.walk(path),
                WatchedPath::Directory(path) => {
                    // As if any file in it were meant.
                    places.walk(&path.join("*"));
                    if let Ok(path) = std::fs::canonicalize(path) {
                        places.place(&path).names = None;
                    }
                }
            }
        }
        places
    }

    fn walk(&mut self, path: &Path) {
        let mut at = PathBuf::from("/");
        let mut rest: VecDeque<OsString> = names(path).collect();
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                at.pop();
                continue;
            }
            let is_last = rest.is_empty();
            let place = self.place(&at);
            place.is_last |= is_last;
            if let Some(names) = &mut place.names {
                names.insert(name.clone());
            }
            let next = at.join(&name);
            let Ok(found) = std::fs::symlink_metadata(&next) else { return };
            if found.is_symlink() {
                links += 1;
                let Ok(target) = std::fs::read_link(&next) else { return };
                if links > MAX_LINKS {
                    return;
                }
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                for name in names(&target).collect::<Vec<_>>().into_iter().rev() {
                    rest.push_front(name);
                }
            } else {
                at = next;
            }
        }
    }

    fn place(&mut self, directory: &Path) -> &mut Place {
        self.0.entry(directory.to_owned()).or_insert_with(|| Place {
            identity: std::fs::metadata(directory).ok().map(|found| (found.dev(), found.ino())),
            names: Some(BTreeSet::new()),
            is_last: false,
        })
    }

    /// What an event means for the paths; `None` if nothing.
    fn meaning(&self, event: &Event) -> Option<FileEvent> {
        if event.need_rescan() {
            return Some(FileEvent::Changed);
        }
        let is_read = matches!(
            event.kind,
            EventKind::Access(AccessKind::Open(_) | AccessKind::Read | AccessKind::Close(AccessMode::Read))
        );
        if is_read {
            return None;
        }
        let is_gone = matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)));
        let meaning = |path: &PathBuf| {
            if is_gone && self.0.contains_key(path) {
                return Some(FileEvent::Lost);
            }
            let place = self.0.get(path.parent()?)?;
            let name = path.file_name()?;
            place.names.as_ref().is_none_or(|names| names.contains(name)).then_some(FileEvent::Changed)
        };
        event.paths.iter().filter_map(meaning).max()
    }
}

/// The names in a path; `.` and the root are left out.
fn names(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// A watch on some places.
#[derive(Debug)]
pub struct Watch {
    places: Places,
    // Its thread ends with it.
    _watcher: RecommendedWatcher,
}

impl Watch {
    /// Watches from now on, and posts what it sees under `number`. May block where a file system hangs.
    ///
    /// # Errors
    /// When a directory is missing or must not be read, or the system gives no watch (`fs.inotify.max_user_instances`,
    /// `fs.inotify.max_user_watches`).
    pub fn start(places: Places, number: usize, board: Arc<Board>) -> Result<Self, notify::Error> {
        let known = places.clone();
        let handler = move |event: Result<Event, notify::Error>| {
            let event = event.map_or(Some(FileEvent::Lost), |event| known.meaning(&event));
            if let Some(event) = event {
                board.post(number, event);
            }
        };
        let mut watcher = RecommendedWatcher::new(handler, Config::default().with_follow_symlinks(false))?;
        for (directory, place) in &places.0 {
            let watching = watcher.watch(directory, RecursiveMode::NonRecursive);
            // A directory on the way that only may be passed through is not watched; a rename of it goes unnoticed.
            watching
                .or_else(|error| if place.is_last || !is_denied(&error) { Err(error) } else { Ok(()) })?;
        }
        Ok(Self { places, _watcher: watcher })
    }

    /// The places that it watches.
    #[must_use]
    pub fn places(&self) -> &Places {
        &self.places
    }
}

fn is_denied(error: &notify::Error) -> bool {
    matches!(&error.kind, notify::ErrorKind::Io(error) if error.kind() == std::io::ErrorKind::PermissionDenied)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn watched(places: &Places, root: &Path) -> Vec<String> {
        let inside = places.0.iter().filter_map(|(directory, place)| {
            let inside = directory.strip_prefix(root).ok()?.display().to_string();
            let names = place.names.as_ref().map_or_else(
                || "every name".to_owned(),
                |names| names.iter().map(|name| name.display().to_string()).collect::<Vec<_>>().join(" "),
            );
            Some(format!("{inside}: {names}"))
        });
        inside.collect()
    }

    #[test]
    fn every_directory_on_the_way_is_a_place_also_behind_symlinks() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("real/sub")).unwrap();
        symlink("real", root.join("link")).unwrap();
        symlink("../other/config.json", root.join("real/config.json")).unwrap();
        let file = |path: &str| Places::of(&[WatchedPath::File(root.join(path))]);
        assert_eq!(watched(&file("real/sub/x"), &root), [": real", "real: sub", "real/sub: x"]);
        assert_eq!(watched(&file("link/sub/x"), &root), [": link real", "real: sub", "real/sub: x"]);
        assert_eq!(watched(&file("link/config.json"), &root), [": link other real", "real: config.json"]);
        assert_eq!(watched(&file("missing/sub/x"), &root), [": missing"], "what is missing is waited for");
        let directory = Places::of(&[WatchedPath::Directory(root.join("link"))]);
        assert_eq!(watched(&directory, &root), [": link real", "real: every name"]);
        // A circle of links ends.
        symlink("loop", root.join("loop")).unwrap();
        assert_eq!(watched(&file("loop/x"), &root), [": loop"]);
    }

    #[test]
    fn a_directory_that_is_replaced_is_another_place() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let path = [WatchedPath::File(root.join("a/b"))];
        std::fs::create_dir(root.join("a")).unwrap();
        let before = Places::of(&path);
        assert_eq!(before, Places::of(&path));
        std::fs::rename(root.join("a"), root.join("old")).unwrap();
        std::fs::create_dir(root.join("a")).unwrap();
        assert_ne!(before, Places::of(&path));
    }
}
