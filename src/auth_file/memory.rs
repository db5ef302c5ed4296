//! What the agent remembers of an auth file between two updates (no I/O).

use super::directory::LOCK_WAIT;
use crate::time::timer::Now;
use jiff::Timestamp;
use nix::sys::stat::FileStat;
use secrecy::zeroize::Zeroizing;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::time::Duration;

/// How long to wait for a lock that another program has kept for too long before.
const LOCK_WAIT_AGAIN: Duration = Duration::from_millis(200);

/// What the agent remembers of one auth file. The caller keeps it, and passes it to each update of that file; a program that
/// updates the file once starts with an empty one. It is in memory only, holds at most one version of the file (1 MiB), and
/// is zeroed when dropped.
#[derive(Default)]
pub struct Memory {
    /// Where the file is: its directory's device and inode number, and its name. `None` before the first look.
    place: Option<(u64, u64, OsString)>,
    /// The last version of the file that the kubelet accepts. `None` until the agent has seen one.
    good: Option<Zeroizing<Vec<u8>>>,
    /// How the file stood at the last look (`None`: missing), and when that was first seen, as time since boot.
    seen: Option<(Option<Stamp>, Duration)>,
    /// The wait for other programs to finish. `None` if the file is at rest.
    wait: Option<Wait>,
    /// How the file stood when the agent had written it. `None` if the agent has not written it.
    left: Option<Stamp>,
    /// The file's permission bits at the last update. `None` before the first one.
    mode: Option<u32>,
    /// Who can get at the file, as last reported.
    exposure: Vec<String>,
    /// Whether the directory could not be locked at the last update.
    not_locked: bool,
    /// How often another program has changed the file, as far as the agent has seen.
    foreign_changes: u64,
}

/// A wait for other programs to finish.
#[derive(Debug, Clone, Copy)]
struct Wait {
    /// When it began, as time since boot.
    since: Duration,
    /// When the file was changed last.
    changed: Timestamp,
    /// The longest pause between two changes so far.
    longest_pause: Duration,
}

/// How long a file has been as it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quiet {
    /// How long ago it was changed last; for a missing file, how long ago a name in its directory was changed.
    pub(super) unchanged_for: Duration,
    /// How long the agent has been waiting for rest; zero at the first look.
    pub(super) waiting_for: Duration,
    /// The longest pause between two changes since then.
    pub(super) longest_pause: Duration,
}

/// What tells one version of a file from another. The change time is not in it: a new name or mode makes no new version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: i64,
    modified: (i64, i64),
}

impl Stamp {
    pub(super) fn of(stat: &FileStat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
        }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the version of the file, which holds credentials.
        f.debug_struct("Memory").field("seen", &self.seen).field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl Memory {
    /// The last version of the file that the kubelet accepts, if the agent has seen one.
    pub(super) fn good(&self) -> Option<&[u8]> {
        self.good.as_ref().map(|bytes| bytes.as_slice())
    }

    /// The file holds a version that the kubelet accepts.
    pub(super) fn set_good(&mut self, bytes: &[u8]) {
        if self.good() != Some(bytes) {
            self.good = Some(Zeroizing::new(bytes.to_vec()));
        }
    }

    /// The path leads to `name` in this directory. If it led elsewhere before, what is remembered is another file's.
    pub(super) fn set_place(&mut self, directory: &FileStat, name: &OsStr) {
        let place = Some((directory.st_dev, directory.st_ino, name.to_owned()));
        if self.place != place {
            // The kubelet may have read what is there now.
            let foreign_changes = self.foreign_changes + u64::from(self.place.is_some());
            *self = Self { place, foreign_changes, ..Self::default() };
        }
    }

    /// There is no file any more, and that is meant.
    pub(super) fn forget(&mut self) {
        self.good = None;
        self.left = None;
        self.mode = None;
    }

    /// Whether the agent has looked at the file before.
    pub(super) fn is_new(&self) -> bool {
        self.seen.is_none()
    }

    /// How long the file has been as it is. `stat` is the file's, or its directory's if the file is `missing`.
    pub(super) fn look(&mut self, missing: bool, stat: &FileStat, now: Now) -> Quiet {
        let stamp = (!missing).then(|| Stamp::of(stat));
        let first_seen = match self.seen {
            Some((seen, since)) if seen == stamp => since,
            Some(_) => {
                self.foreign_changes += 1;
                now.boot
            }
            None => now.boot,
        };
        self.seen = Some((stamp, first_seen));
        // The change time, which no program can set. It means nothing if the clock was set back since.
        let nanoseconds = i32::try_from(stat.st_ctime_nsec).unwrap_or_default();
        let changed = Timestamp::new(stat.st_ctime, nanoseconds).unwrap_or(now.wall);
        let by_clock = Duration::try_from(now.wall.duration_since(changed)).unwrap_or_default();
        let wait = self.wait.map(|wait| {
            let pause = Duration::try_from(changed.duration_since(wait.changed)).unwrap_or_default();
            Wait { changed, longest_pause: wait.longest_pause.max(pause), ..wait }
        });
        let wait = wait.unwrap_or(Wait { since: now.boot, changed, longest_pause: Duration::ZERO });
        self.wait = Some(wait);
        Quiet {
            unchanged_for: by_clock.max(now.boot.saturating_sub(first_seen)),
            waiting_for: now.boot.saturating_sub(wait.since),
            longest_pause: wait.longest_pause,
        }
    }

    /// The file was at rest, or the agent does not wait for it any longer, and no other program was faster.
    pub(super) fn end_wait(&mut self) {
        self.wait = None;
    }

    /// How often another program has changed the file, as far as the agent has seen.
    #[must_use]
    pub fn foreign_changes(&self) -> u64 {
        self.foreign_changes
    }

    /// The file was read without an update. `None` if it is missing.
    pub(super) fn read(&mut self, bytes: Option<&[u8]>) {
        if self.good().is_some_and(|good| bytes != Some(good)) {
            self.foreign_changes += 1;
        }
    }

    /// Whether the file is just as the agent has left it.
    pub(super) fn is_as_left(&self, stat: &FileStat) -> bool {
        self.left == Some(Stamp::of(stat))
    }

    /// The agent has written the file, and has left it so.
    pub(super) fn set_left(&mut self, stamp: Option<Stamp>) {
        self.left = stamp;
        // A file that is missing again after this is newly missing.
        if let Some((seen, _)) = &mut self.seen {
            *seen = stamp;
        }
    }

    /// The permission bits that the file should have: those it has, but for group and others none that they did not have at
    /// the last update. So a mode that has become stricter is kept, and a wider one is not.
    pub(super) fn mode(&self, found: u32) -> u32 {
        self.mode.map_or(found, |last| found & (last | 0o700))
    }

    /// The file has these permission bits now.
    pub(super) fn set_mode(&mut self, mode: u32) {
        self.mode = Some(mode);
    }

    /// Whether this exposure is to be reported: not if it was reported before.
    pub(super) fn is_news(&mut self, exposure: &[String]) -> bool {
        if self.exposure == exposure {
            return false;
        }
        self.exposure = exposure.to_vec();
        !exposure.is_empty()
    }

    /// How long to wait for the lock.
    pub(super) fn lock_wait(&self) -> Duration {
        if self.not_locked { LOCK_WAIT_AGAIN } else { LOCK_WAIT }
    }

    /// Whether the directory could not be locked. Returns whether that is to be reported: not if it was reported before.
    pub(super) fn set_not_locked(&mut self, not_locked: bool) -> bool {
        let before = std::mem::replace(&mut self.not_locked, not_locked);
        not_locked && !before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::stat;

    #[test]
    fn a_file_that_goes_after_the_agent_has_written_it_is_newly_missing() {
        let directory = tempfile::tempdir().unwrap();
        let directory_stat = stat(directory.path()).unwrap();
        let file = tempfile::NamedTempFile::new_in(&directory).unwrap();
        let written = Stamp::of(&stat(file.path()).unwrap());
        // By this wall clock, the directory was not changed yet.
        let at = |second| Now { boot: Duration::from_secs(second), wall: Timestamp::UNIX_EPOCH };
        let mut memory = Memory::default();
        let missing =
            |memory: &mut Memory, second| memory.look(true, &directory_stat, at(second)).unchanged_for;
        assert_eq!(missing(&mut memory, 10), Duration::ZERO);
        assert_eq!(missing(&mut memory, 12), Duration::from_secs(2));
        memory.set_left(Some(written));
        assert_eq!(missing(&mut memory, 100), Duration::ZERO);
    }

    #[test]
    fn only_changes_of_other_programs_are_counted() {
        let now = Now { boot: Duration::from_secs(1), wall: Timestamp::UNIX_EPOCH };
        let mut memory = Memory::default();
        let look = |memory: &mut Memory, missing, modified| {
            memory.look(missing, &stat_of(modified, 0), now);
            memory.foreign_changes()
        };
        assert_eq!(look(&mut memory, false, 1), 0, "it is new");
        assert_eq!(look(&mut memory, false, 1), 0, "it is the same");
        assert_eq!(look(&mut memory, false, 2), 1, "another program has changed it");
        memory.set_left(Some(Stamp::of(&stat_of(3, 0))));
        assert_eq!(look(&mut memory, false, 3), 1, "the agent has changed it");
        assert_eq!(look(&mut memory, true, 3), 2, "another program has deleted it");
        // Where it is only read, its content tells.
        memory.read(Some(b"{}"));
        memory.set_good(b"{}");
        memory.read(Some(b"{}"));
        assert_eq!(memory.foreign_changes(), 2);
        memory.read(None);
        assert_eq!(memory.foreign_changes(), 3);
        // A symlink that was turned shows another file.
        memory.set_place(&stat_of(1, 0), OsStr::new("config.json"));
        assert_eq!(memory.foreign_changes(), 3, "the first place");
        memory.set_place(&stat_of(1, 0), OsStr::new("other.json"));
        assert_eq!(memory.foreign_changes(), 4);
    }

    /// What `stat` says of a directory, with these times of its last changes.
    fn stat_of(modified: i64, changed: i64) -> FileStat {
        let mut found = stat("/").unwrap();
        (found.st_mtime, found.st_ctime, found.st_ctime_nsec) = (modified, changed, 0);
        found
    }

    #[test]
    fn a_file_is_unchanged_since_its_last_change_by_either_clock() {
        let at =
            |wall, boot| Now { wall: Timestamp::from_second(wall).unwrap(), boot: Duration::from_secs(boot) };
        let mut memory = Memory::default();
        assert!(memory.is_new());
        let mut unchanged = |missing, stat, now| memory.look(missing, &stat, now).unchanged_for.as_secs();
        // By the wall clock, or by how long the agent has seen it so.
        assert_eq!(unchanged(false, stat_of(90, 90), at(100, 10)), 10);
        assert_eq!(unchanged(false, stat_of(90, 90), at(90, 13)), 3);
        // A new time of modification makes a new version, but not if the file is missing: then it is the directory's.
        assert_eq!(unchanged(false, stat_of(91, 200), at(91, 20)), 0);
        assert_eq!(unchanged(true, stat_of(91, 200), at(91, 30)), 0);
        assert_eq!(unchanged(true, stat_of(92, 200), at(92, 32)), 2);
        assert!(!memory.is_new());
    }

    #[test]
    fn the_longest_pause_of_a_program_that_writes_in_steps_is_remembered_until_the_file_is_at_rest() {
        let mut memory = Memory::default();
        let mut look = |changed, boot| {
            let now = Now { wall: Timestamp::from_second(changed).unwrap(), boot: Duration::from_secs(boot) };
            let quiet = memory.look(false, &stat_of(changed, changed), now);
            (quiet.waiting_for.as_secs(), quiet.longest_pause.as_secs())
        };
        assert_eq!(look(100, 10), (0, 0));
        assert_eq!(look(103, 13), (3, 3));
        assert_eq!(look(104, 14), (4, 3));
        assert_eq!(look(109, 19), (9, 5));
        memory.end_wait();
        let now = Now { wall: Timestamp::from_second(109).unwrap(), boot: Duration::from_secs(20) };
        let quiet = memory.look(false, &stat_of(109, 109), now);
        assert_eq!((quiet.waiting_for, quiet.longest_pause), (Duration::ZERO, Duration::ZERO));
    }

    #[test]
    fn what_is_remembered_belongs_to_one_place_and_ends_with_the_file() {
        let (root, mut memory) = (stat("/").unwrap(), Memory::default());
        let fill = |memory: &mut Memory| {
            memory.set_place(&root, OsStr::new("config.json"));
            memory.set_good(b"{}");
            memory.set_left(Some(Stamp::of(&root)));
            memory.set_mode(0o600);
        };
        let remembered = |memory: &Memory| {
            (memory.good() == Some(b"{}"), memory.is_as_left(&root), memory.mode(0o644) == 0o600)
        };
        fill(&mut memory);
        memory.set_place(&root, OsStr::new("config.json"));
        assert_eq!(remembered(&memory), (true, true, true));
        assert!(!memory.is_as_left(&stat_of(1, 1)));
        memory.set_good(b"{ }");
        assert_eq!(memory.good(), Some(&b"{ }"[..]));
        memory.forget();
        assert_eq!((memory.good(), remembered(&memory)), (None, (false, false, false)));
        fill(&mut memory);
        memory.set_place(&root, OsStr::new("other.json"));
        assert_eq!(remembered(&memory), (false, false, false));
        // The new place is remembered.
        memory.set_good(b"{}");
        memory.set_place(&root, OsStr::new("other.json"));
        assert!(memory.good().is_some());
    }

    #[test]
    fn a_mode_that_has_become_stricter_is_kept_and_a_wider_one_is_not() {
        let mut memory = Memory::default();
        assert_eq!(memory.mode(0o644), 0o644, "nothing is known of the mode before");
        for (last, found, expected) in [
            (0o600, 0o644, 0o600),
            (0o640, 0o644, 0o640),
            (0o640, 0o604, 0o600),
            (0o644, 0o600, 0o600),
            (0o640, 0o640, 0o640),
            (0o400, 0o600, 0o600),
        ] {
            memory.set_mode(last);
            assert_eq!(memory.mode(found), expected, "{found:o} after {last:o}");
        }
    }

    #[test]
    fn the_same_news_is_reported_once() {
        let mut memory = Memory::default();
        let [none, one, other] = [vec![], vec!["one".to_owned()], vec!["other".to_owned()]];
        for (exposure, is_news) in
            [(&none, false), (&one, true), (&one, false), (&other, true), (&none, false), (&other, true)]
        {
            assert_eq!(memory.is_news(exposure), is_news, "{exposure:?}");
        }
        // After a failure the agent waits for the lock only briefly.
        let waits =
            [(true, true, LOCK_WAIT_AGAIN), (true, false, LOCK_WAIT_AGAIN), (false, false, LOCK_WAIT)];
        for (not_locked, is_news, next_wait) in
            [(false, false, LOCK_WAIT)].into_iter().chain(waits).chain(waits)
        {
            assert_eq!(memory.set_not_locked(not_locked), is_news, "{not_locked}");
            assert_eq!(memory.lock_wait(), next_wait, "{not_locked}");
        }
    }
}
