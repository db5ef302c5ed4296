//! The auth file: the docker config on the node that the kubelet reads.
//!
//! Read, merge and write happen under one lock. What cannot be worked with is refused and stays as it is; what the
//! kubelet would ignore anyway is set aside first and its good rest lives on.

pub mod linked_layout;
pub mod publish;
pub mod replace;

use self::replace::{Found as OnDisk, LockedDirectory, ReplaceError, StepError, read_bounded, set_mode};
use crate::docker_config::document::Document;
use crate::docker_config::key::shown;
use crate::docker_config::ledger::Record;
use crate::docker_config::merge::{self, Changes, Origin, Plan, Wanted};
use crate::docker_config::parse::{self, Defect, ParseError, Parsed, Shape};
use crate::docker_config::search::{Content, Kubelet, Place};
use jiff::Timestamp;
use nix::fcntl::{AtFlags, readlinkat};
use nix::sys::stat::{FileStat, SFlag, fstatat};
use secrecy::zeroize::Zeroizing;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A docker config is a few kilobytes. What is larger is something else.
pub(super) const MAX_SIZE: u64 = 1024 * 1024;
/// The kubelet reads files of any size, so for telling what it does with one we go further.
const MAX_TO_EXPLAIN: u64 = 16 * MAX_SIZE;
/// As many symlinks in a row as Linux follows.
const MAX_LINKS: usize = 40;
/// How many copies of files that could not be read are kept beside an auth file. A program that damages it again and
/// again must not fill the disk.
const MAX_SET_ASIDE: usize = 16;

/// The trace that OpenShift's machine config operator leaves on its nodes.
const OPENSHIFT: &str = "/etc/machine-config-daemon";

/// The directory of ours in the kubelet's root.
pub const DIRECTORY: &str = "ecr-node-agent";

/// An auth file to keep.
#[derive(Debug, Clone)]
pub struct AuthFile {
    /// Its absolute path, as the user gave it; symlinks in its last part are followed.
    pub path: PathBuf,
    /// Whether the user named it, rather than leaving it at the default.
    pub named: bool,
    /// The home of the kubelet's user, where the kubelet looks next if this file is missing.
    pub kubelet_home: PathBuf,
}

/// How to publish.
#[derive(Debug, Clone, Copy)]
pub struct PublishOptions {
    /// The time, for naming what is set aside.
    pub now: Timestamp,
    /// Change nothing, only say what would change.
    pub dry_run: bool,
    /// Whether the tokens are written even if the file holds one that outranks them, as after `--once` or SIGHUP: an
    /// explicit refresh writes what it fetched.
    pub explicit: bool,
    /// The permission bits that the file had when we last saw it; others are drift.
    pub mode: Option<u32>,
}

/// What a publish or a removal did.
#[derive(Debug)]
pub struct Outcome {
    /// The file's permission bits now; `None` where there is no file.
    pub mode: Option<u32>,
    /// Whether the file is another one now, or would be in a dry run.
    pub effect: Effect,
    /// What became of the link in the kubelet's root, or would in a dry run; `None` where it is as it was.
    pub link: Option<Link>,
    /// The entries of ours that are in the file now, by key; empty after a dry run.
    pub records: BTreeMap<String, Record>,
    /// Worth telling: what was found on the way.
    pub notes: Vec<Note>,
}

/// What became of the link.
#[derive(Debug, PartialEq, Eq)]
pub enum Link {
    /// The file is in our directory now, and the link is where it was.
    Made,
    /// The link is gone, and what it led to is in its place again.
    Undone {
        /// What is still in our directory, which therefore stays.
        left: Vec<OsString>,
    },
}

/// What became of the file.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// It said so already.
    Unchanged,
    /// Only its permission bits were set back.
    ModeRestored,
    /// It was replaced, or created.
    Replaced(Changes),
    /// It was deleted: it was ours, and nothing was left in it.
    Deleted(Changes),
}

/// Something that an operator should hear of.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Note {
    /// The kubelet ignored this file. The original was copied before it was replaced.
    #[error("the kubelet ignored this file ({}); the original is kept as {}", reasons.join("; "), copy.display())]
    SetAside {
        /// What was wrong with it.
        reasons: Vec<String>,
        /// Where the original is now.
        copy: PathBuf,
    },
    /// What a dry run would have set aside.
    #[error("the kubelet ignores this file ({}); the original would be kept beside it, and its good rest written anew", reasons.join("; "))]
    WouldSetAside {
        /// What is wrong with it.
        reasons: Vec<String>,
    },
    /// As above, but so many copies are kept already that no further one was made.
    #[error("the kubelet ignored this file ({}); it was not kept, since there are {MAX_SET_ASIDE} copies \
             `{}.invalid-*` already: find what damages it, and delete them", reasons.join("; "), path.display())]
    NotSetAside {
        /// What was wrong with it.
        reasons: Vec<String>,
        /// The file.
        path: PathBuf,
    },
    /// A file further along the kubelet's search path is hidden by ours; its entries came along.
    #[error("{} is hidden by this file from now on; its entries came along: {}", from.display(), keys.join(", "))]
    TakenAlong {
        /// The hidden file.
        from: PathBuf,
        /// The keys that were copied.
        keys: Vec<String>,
    },
    /// As above, but the hidden file could not be read, so that what it holds is lost to the kubelet.
    #[error("{} is hidden by this file from now on, and could not be read: {why}", from.display())]
    NotTakenAlong {
        /// The hidden file.
        from: PathBuf,
        /// What was wrong.
        why: String,
    },
    /// Linking found two files, and the one that the kubelet reads counts.
    #[error("{} was not what the kubelet reads, and has made way for that{}", path.display(), kept_as(copy.as_deref()))]
    MadeWay {
        /// The file in our directory.
        path: PathBuf,
        /// Where what it held is now, if anything would have been lost and there was room.
        copy: Option<PathBuf>,
    },
    /// Users besides the owner may read the file, and so the token in it.
    #[error(
        "others than its owner may read this file (mode {mode:04o}), which holds credentials: chmod 0600 is enough \
             for the kubelet"
    )]
    Readable {
        /// The permission bits.
        mode: u32,
    },
}

/// Why an auth file could not be kept. In every case but `NotDurable` it is as it was.
#[derive(Debug, thiserror::Error)]
pub enum AuthFileError {
    /// OpenShift's own.
    #[error("{} was left alone: {OPENSHIFT} says that this is an OpenShift node, whose machine config operator owns \
             the file and marks the node degraded on a foreign edit. If you mean it, name the file with --auth-file", .0.display())]
    OpenShift(PathBuf),
    /// The parent directory is missing.
    #[error("{} does not exist, so nothing was written: it is the kubelet's root directory, and where it is missing \
             the wrong path is given or the wrong directory mounted", .0.display())]
    NoDirectory(PathBuf),
    /// Something on the way to the file failed.
    #[error("cannot work on {}", path.display())]
    Step {
        /// The auth file.
        path: PathBuf,
        /// What was attempted, and what the system said.
        source: StepError,
    },
    /// The system did not answer.
    #[error("{} was not read or written in time: its file system hangs. Whether it was replaced is not known", .0.display())]
    Hangs(PathBuf),
    /// A fault of this program.
    #[error("the write of {} ended with a panic; the file is the old one or the new one, whole", .0.display())]
    Panicked(PathBuf),
    /// The file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The auth file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else has its name.
    #[error("{} is {kind}, and nothing but a regular file is replaced", path.display())]
    NotAFile {
        /// The auth file.
        path: PathBuf,
        /// What it is, with its article.
        kind: &'static str,
    },
    /// Too large to be a docker config.
    #[error("{} is larger than 1 MiB, which is no docker config: nothing was read or written", .0.display())]
    TooLarge(PathBuf),
    /// With our entries it would be.
    #[error("with our entries {} would be larger than 1 MiB, so nothing was written: it must become smaller first", .0.display())]
    TooLargeAfter(PathBuf),
    /// The kubelet reads it, and we could not write it again as it is.
    #[error("{} was left alone: {why}. Rewrite it by hand, or move it away", path.display())]
    CannotCarry {
        /// The auth file.
        path: PathBuf,
        /// What is in the way.
        why: &'static str,
    },
    /// The layout cannot be changed.
    #[error("{} was left as it is: {why}", path.display())]
    NotLinked {
        /// The auth file.
        path: PathBuf,
        /// What is in the way.
        why: String,
    },
    /// A symlink that somebody else may have planted, or too many of them.
    #[error("the symlink {} is not followed: {why}", path.display())]
    Symlink {
        /// The link.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Mounted as a single file, which no rename can cross.
    #[error("{} is a mount of its own, and a mounted file cannot be replaced as a whole (it is untouched): mount its \
             directory instead", .0.display())]
    Mounted(PathBuf),
    /// The replacement failed.
    #[error("cannot replace {}", path.display())]
    Replace {
        /// The auth file.
        path: PathBuf,
        /// At which step, and what is there now.
        source: ReplaceError,
    },
    /// The original of a file that the kubelet ignores could not be kept, so it was not replaced.
    #[error("cannot keep a copy of {}, which the kubelet ignores ({}); it is untouched", path.display(), reasons.join("; "))]
    SetAside {
        /// The auth file.
        path: PathBuf,
        /// What is wrong with it.
        reasons: Vec<String>,
        /// What failed.
        source: StepError,
    },
}

/// A file as it was read, under the lock.
pub(super) struct Opened {
    directory: LockedDirectory,
    name: OsString,
    on_disk: Option<(File, FileStat)>,
    bytes: Zeroizing<Vec<u8>>,
}

impl AuthFile {
    /// Merges `wanted` into the file, or with `dry_run` only says what that would change.
    ///
    /// # Errors
    /// When the file is not as wanted afterwards; it says what is there instead.
    pub fn publish(&self, wanted: &Wanted, manner: PublishOptions) -> Result<Outcome, AuthFileError> {
        self.refuse_openshift()?;
        let opened = self.open(manner.dry_run)?;
        let mut notes = Vec::new();
        let (mut document, found, reasons) = self.judge(&opened)?;
        let hidden;
        let mut along = BTreeMap::new();
        // A file that the kubelet did not accept hid nothing so far; ours will.
        if found != Origin::File && !wanted.entries.is_empty() {
            hidden = self.hidden();
            along = take_along(&mut document, hidden.as_ref(), &mut notes);
        }
        let plan = merge::plan(
            document,
            wanted,
            merge::MergeInput { origin: found, copied: along, explicit: manner.explicit, now: manner.now },
        );
        self.carry_out(opened, &plan, reasons, manner, notes)
    }

    /// Fails on an OpenShift node, unless the user named the file.
    pub(super) fn refuse_openshift(&self) -> Result<(), AuthFileError> {
        if !self.named && Path::new(OPENSHIFT).exists() {
            return Err(AuthFileError::OpenShift(self.path.clone()));
        }
        Ok(())
    }

    /// Takes along what the file hides from the kubelet, ahead of a writer who will not see it. With `is_read` the kubelet
    /// reads this file already, so that a whole one hides nothing new.
    pub(super) fn bring_along(
        &self,
        is_read: bool,
        manner: PublishOptions,
    ) -> Result<Outcome, AuthFileError> {
        let opened = self.open(manner.dry_run)?;
        let unchanged = |notes| Outcome {
            mode: None,
            effect: Effect::Unchanged,
            link: None,
            records: BTreeMap::new(),
            notes,
        };
        let (mut document, found, reasons) = match self.judge(&opened) {
            // The kubelet reads it, and nobody has to write it for this.
            Err(AuthFileError::CannotCarry { .. }) => return Ok(unchanged(Vec::new())),
            judged => judged?,
        };
        if is_read && found == Origin::File {
            return Ok(unchanged(Vec::new()));
        }
        let mut notes = Vec::new();
        let hidden = self.hidden();
        let along = take_along(&mut document, hidden.as_ref(), &mut notes);
        if along.is_empty() {
            return Ok(unchanged(notes));
        }
        let plan = merge::plan_copied(document, found, along);
        self.carry_out(opened, &plan, reasons, manner, notes)
    }

    /// Takes out what is ours, or with `dry_run` only says what that would change.
    ///
    /// # Errors
    /// When something of ours is still there afterwards.
    pub fn remove(&self, now: Timestamp, dry_run: bool) -> Result<Outcome, AuthFileError> {
        let opened = self.open(dry_run)?;
        let (document, found, reasons) = self.judge(&opened)?;
        // What the kubelet ignores serves nobody: without entries of ours in it, it is not ours to mend.
        if found == Origin::Nothing || document.ledger().is_none() {
            return Ok(Outcome {
                mode: None,
                effect: Effect::Unchanged,
                link: None,
                records: BTreeMap::new(),
                notes: Vec::new(),
            });
        }
        let hides_another = self.hidden().is_some_and(|hidden| hidden.document().is_ok());
        let plan = merge::remove(document, hides_another, &[]);
        self.carry_out(
            opened,
            &plan,
            reasons,
            PublishOptions { now, dry_run, explicit: false, mode: None },
            Vec::new(),
        )
    }

    /// Reads the file without a lock, for telling people what it holds. `None` where there is none.
    ///
    /// # Errors
    /// When it cannot be read, or is no file that we would work on.
    pub fn read(&self) -> Result<Option<Zeroizing<Vec<u8>>>, AuthFileError> {
        let (directory, name) = self.resolve()?;
        let path = directory.join(name);
        match read_regular(&path, MAX_SIZE) {
            Ok(Regular::Bytes(bytes)) => Ok(Some(bytes)),
            Ok(Regular::TooLarge) => Err(AuthFileError::TooLarge(path)),
            Ok(Regular::Not) => Err(AuthFileError::NotAFile { path, kind: "no regular file" }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(AuthFileError::Read { path, source }),
        }
    }

    /// The directories and names on the way to the file, symlinks first, the file itself last: a change of any of them
    /// may make it another file. What cannot be followed ends the list.
    #[must_use]
    pub fn places(&self) -> Vec<(PathBuf, OsString)> {
        let mut places = Vec::new();
        drop(self.follow(&mut places));
        places
    }

    /// The directory and the name of the file itself, after all symlinks.
    fn resolve(&self) -> Result<(PathBuf, OsString), AuthFileError> {
        self.follow(&mut Vec::new())
    }

    fn follow(&self, places: &mut Vec<(PathBuf, OsString)>) -> Result<(PathBuf, OsString), AuthFileError> {
        let mut path = self.path.clone();
        for _ in 0..MAX_LINKS {
            let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(AuthFileError::NotAFile { path, kind: "a directory" });
            };
            places.push((directory.to_owned(), name.to_owned()));
            let at = |source| AuthFileError::Step { path: self.path.clone(), source };
            let handle = match open_directory(directory) {
                Ok(handle) => handle,
                Err(error) if error.errno == nix::errno::Errno::ENOENT => {
                    return Err(AuthFileError::NoDirectory(directory.to_owned()));
                }
                Err(error) => return Err(at(error)),
            };
            let is_link =
                |stat: &FileStat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK;
            let link = match fstatat(&handle, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) if is_link(&stat) => stat,
                // Whatever else it is, or is not, is for the caller to see.
                _ => return Ok((directory.to_owned(), name.to_owned())),
            };
            let us = nix::unistd::geteuid().as_raw();
            if link.st_uid != 0 && link.st_uid != us {
                return Err(AuthFileError::Symlink { path, why: "it belongs to another user" });
            }
            let holder = nix::sys::stat::fstat(&handle)
                .map_err(|errno| at(StepError { step: "look at the directory", errno }))?;
            if holder.st_mode & 0o002 != 0 {
                return Err(AuthFileError::Symlink { path, why: "everybody may write to its directory" });
            }
            let target = readlinkat(&handle, name)
                .map_err(|errno| at(StepError { step: "read the symlink", errno }))?;
            path = directory.join(target);
        }
        Err(AuthFileError::Symlink { path: self.path.clone(), why: "it leads to more than 40 others" })
    }

    fn open(&self, dry_run: bool) -> Result<Opened, AuthFileError> {
        let (directory, name) = self.lock()?;
        let path = directory.path().join(&name);
        let failed = |source| AuthFileError::Step { path: path.clone(), source };
        if !dry_run {
            directory.clean(&name).map_err(failed)?;
        }
        let on_disk = match directory.open(&name).map_err(failed)? {
            OnDisk::Nothing => None,
            OnDisk::File(file, stat) => Some((file, stat)),
            OnDisk::Other(kind) => return Err(AuthFileError::NotAFile { path, kind }),
        };
        let bytes = match &on_disk {
            None => Zeroizing::new(Vec::new()),
            Some((file, stat)) => read_bounded(file, stat, MAX_SIZE)
                .map_err(|source| AuthFileError::Read { path: path.clone(), source })?
                .ok_or(AuthFileError::TooLarge(path))?,
        };
        Ok(Opened { directory, name, on_disk, bytes })
    }

    /// Locks the directory that the file is in. Whoever made or undid a link had it locked too, so what was resolved
    /// before the wait is looked at again after it.
    fn lock(&self) -> Result<(LockedDirectory, OsString), AuthFileError> {
        let mut place = self.resolve()?;
        for _ in 0..MAX_LINKS {
            let locked = LockedDirectory::lock(&place.0)
                .map_err(|source| AuthFileError::Step { path: place.0.join(&place.1), source })?;
            let again = self.resolve()?;
            if again == place {
                return Ok((locked, place.1));
            }
            place = again;
        }
        Err(AuthFileError::Symlink { path: self.path.clone(), why: "it keeps changing" })
    }

    /// The document in the file, how it came about, and why the kubelet ignores the file, if it does.
    fn judge<'a>(&self, opened: &'a Opened) -> Result<(Document<'a>, Origin, Vec<String>), AuthFileError> {
        if opened.on_disk.is_none() || opened.bytes.trim_ascii().is_empty() {
            return Ok((Document::default(), Origin::Nothing, Vec::new()));
        }
        match parse::parse(&opened.bytes) {
            Ok(Parsed { document, defects, .. }) if defects.is_empty() => {
                Ok((document, Origin::File, Vec::new()))
            }
            Ok(Parsed { document, defects, .. }) => {
                Ok((document, Origin::Repaired, defects.iter().map(Defect::to_string).collect()))
            }
            Err(ParseError::CannotPreserve(why)) => {
                Err(AuthFileError::CannotCarry { path: self.path.clone(), why })
            }
            Err(invalid @ ParseError::Invalid(_)) => {
                Ok((Document::default(), Origin::Repaired, vec![invalid.to_string()]))
            }
        }
    }

    fn carry_out(
        &self,
        opened: Opened,
        plan: &Plan,
        reasons: Vec<String>,
        manner: PublishOptions,
        mut notes: Vec<Note>,
    ) -> Result<Outcome, AuthFileError> {
        let Opened { directory, name, on_disk, bytes } = opened;
        let found = on_disk.as_ref().map(|(_, stat)| stat.st_mode & 0o777);
        // A file that is made anew is for root alone, whatever the one before was.
        let mode = found.map_or(0o600, |found| manner.mode.unwrap_or(found));
        if mode & 0o044 != 0 {
            notes.push(Note::Readable { mode });
        }
        let effect = match plan {
            Plan::Keep if found.is_some_and(|found| found != mode) => Effect::ModeRestored,
            Plan::Keep => Effect::Unchanged,
            Plan::Replace(_, changes) => Effect::Replaced(changes.clone()),
            Plan::Delete(changes) => Effect::Deleted(changes.clone()),
        };
        if let Plan::Replace(new, _) = plan
            && new.len() as u64 > MAX_SIZE
        {
            return Err(AuthFileError::TooLargeAfter(directory.path().join(&name)));
        }
        if manner.dry_run {
            if !reasons.is_empty() && effect != Effect::Unchanged {
                notes.push(Note::WouldSetAside { reasons });
            }
            return Ok(Outcome { mode: found, effect, link: None, records: BTreeMap::new(), notes });
        }
        if !reasons.is_empty() && !matches!(plan, Plan::Keep) {
            notes.push(self.set_aside(&directory, &name, &bytes, reasons, manner.now)?);
        }
        let replaced = match (plan, &on_disk) {
            (Plan::Keep, Some((file, _))) if effect == Effect::ModeRestored => set_mode(file, mode),
            (Plan::Keep, _) => Ok(()),
            (Plan::Replace(new, _), Some((file, stat))) => {
                let mut like = *stat;
                like.st_mode = (stat.st_mode & !0o777) | mode;
                directory.replace(&name, new, Some((file, &like)))
            }
            (Plan::Replace(new, _), None) => directory.replace(&name, new, None),
            (Plan::Delete(_), _) => directory.delete(&name),
        };
        replaced.map_err(|source| match source {
            ReplaceError::Untouched(step) if step.errno == nix::errno::Errno::EBUSY => {
                AuthFileError::Mounted(directory.path().join(&name))
            }
            source => AuthFileError::Replace { path: directory.path().join(&name), source },
        })?;
        let mode = (!matches!(effect, Effect::Deleted(_))
            && (found.is_some() || effect != Effect::Unchanged))
            .then_some(mode);
        let records = match plan {
            Plan::Keep => parse::own_records(&bytes),
            Plan::Replace(new, _) => parse::own_records(new),
            Plan::Delete(_) => BTreeMap::new(),
        };
        Ok(Outcome { mode, effect, link: None, records, notes })
    }

    /// Copies a file that the kubelet ignores to `<name>.invalid-<time>`, unless such a copy is there already.
    fn set_aside(
        &self,
        directory: &LockedDirectory,
        name: &OsStr,
        bytes: &[u8],
        reasons: Vec<String>,
        now: Timestamp,
    ) -> Result<Note, AuthFileError> {
        match keep_copy(directory, name, "invalid", bytes, now) {
            Ok(Some(copy)) => Ok(Note::SetAside { reasons, copy }),
            Ok(None) => Ok(Note::NotSetAside { reasons, path: directory.path().join(name) }),
            Err(source) => Err(AuthFileError::SetAside { path: self.path.clone(), reasons, source }),
        }
    }

    /// The kubelet that looks for this file first, as far as we know it: under systemd it works in `/`.
    #[must_use]
    pub fn kubelet(&self) -> Kubelet {
        let here = self.path.parent().unwrap_or(Path::new("/"));
        // In the linked layout an agent may know the file by its place in our directory; the kubelet's root is above it.
        let above = here.parent().filter(|_| here.file_name() == Some(OsStr::new(DIRECTORY)));
        let auth_file = match (above, self.path.file_name()) {
            (Some(root), Some(name)) => root.join(name),
            _ => self.path.clone(),
        };
        Kubelet { auth_file, working_dir: PathBuf::from("/"), home: Some(self.kubelet_home.clone()) }
    }

    /// The first file further along the kubelet's search path that it would accept.
    fn hidden(&self) -> Option<Hidden> {
        let kubelet = self.kubelet();
        let places = kubelet.places();
        // The auth file may be one of the later places itself.
        let here = places.iter().rposition(|place| place.path == self.path).unwrap_or_default();
        let mut later = places.into_iter().skip(here + 1).filter(|place| is_roots(&place.path));
        later.find_map(|Place { path, shape }| {
            match read_regular(&path, MAX_SIZE) {
                Ok(Regular::Bytes(bytes)) => {
                    let hidden = Hidden { path, shape, bytes: Ok(bytes) };
                    // What the kubelet does not accept either hides nothing.
                    let counts = !matches!(hidden.document(), Err(NotADocument::Ignored));
                    counts.then_some(hidden)
                }
                // The kubelet has no limit, so it would be read.
                Ok(Regular::TooLarge) => {
                    Some(Hidden { path, shape, bytes: Err("it is larger than 1 MiB".to_owned()) })
                }
                Ok(Regular::Not) => None,
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => Some(Hidden { path, shape, bytes: Err(error.to_string()) }),
            }
        })
    }
}

/// Copies what `name` holds to `<name>.<why>-<time>`, unless such a copy is there already. `None` where there are so many
/// that no further one was made.
pub(super) fn keep_copy(
    directory: &LockedDirectory,
    name: &OsStr,
    why: &str,
    bytes: &[u8],
    now: Timestamp,
) -> Result<Option<PathBuf>, StepError> {
    let prefix = format!("{}.{why}-", name.to_string_lossy());
    let time = now.strftime("%Y%m%dT%H%M%SZ");
    let copies = directory.names_with(&prefix)?;
    for copy in &copies {
        if let Ok(OnDisk::File(file, stat)) = directory.open(copy)
            && read_bounded(&file, &stat, MAX_SIZE).ok().flatten().is_some_and(|kept| *kept == bytes)
        {
            return Ok(Some(directory.path().join(copy)));
        }
    }
    if copies.len() >= MAX_SET_ASIDE {
        return Ok(None);
    }
    let mut number = 1;
    let mut copy = OsString::from(format!("{prefix}{time}"));
    loop {
        match directory.create(&copy, name, bytes) {
            Ok(()) => return Ok(Some(directory.path().join(copy))),
            Err(error) if error.errno == nix::errno::Errno::EEXIST && number < MAX_SET_ASIDE => {
                number += 1;
                copy = OsString::from(format!("{prefix}{time}-{number}"));
            }
            Err(error) => return Err(error),
        }
    }
}

fn kept_as(copy: Option<&Path>) -> String {
    copy.map_or_else(String::new, |copy| format!("; what it held is kept as {}", copy.display()))
}

/// Copies what `hidden` holds into `document`. Returns what came along, for the ledger.
fn take_along<'a>(
    document: &mut Document<'a>,
    hidden: Option<&'a Hidden>,
    notes: &mut Vec<Note>,
) -> BTreeMap<String, String> {
    let Some(hidden) = hidden else { return BTreeMap::new() };
    match hidden.document() {
        Ok(other) => {
            let along = document.copy_entries(&other);
            if !along.is_empty() {
                let keys = along.keys().map(|key| shown(key)).collect();
                notes.push(Note::TakenAlong { from: hidden.path.clone(), keys });
            }
            return along;
        }
        Err(NotADocument::Ignored) => {}
        Err(NotADocument::Unreadable(why)) => {
            notes.push(Note::NotTakenAlong { from: hidden.path.clone(), why });
        }
    }
    BTreeMap::new()
}

/// A file that the kubelet would read if the auth file were not there.
struct Hidden {
    path: PathBuf,
    shape: Shape,
    bytes: Result<Zeroizing<Vec<u8>>, String>,
}

enum NotADocument {
    /// The kubelet goes on to the next file.
    Ignored,
    Unreadable(String),
}

impl Hidden {
    fn document(&self) -> Result<Document<'_>, NotADocument> {
        let bytes = self.bytes.as_ref().map_err(|why| NotADocument::Unreadable(why.clone()))?;
        let parsed = match self.shape {
            Shape::DockerConfig => parse::parse(bytes),
            Shape::Legacy => parse::parse_legacy(bytes),
        };
        match parsed {
            Ok(Parsed { document, defects, .. }) if defects.is_empty() => Ok(document),
            Ok(_) | Err(ParseError::Invalid(_)) => Err(NotADocument::Ignored),
            Err(ParseError::CannotPreserve(why)) => Err(NotADocument::Unreadable(why.to_owned())),
        }
    }
}

/// Whether root, or whoever we are, owns a path's last three parts, links not followed, or they are not there. Entries
/// that come along are offered to every pod of the node, so nobody else may choose them, not even by a link.
fn is_roots(path: &Path) -> bool {
    let us = nix::unistd::geteuid().as_raw();
    let owner = |path: &Path| std::fs::symlink_metadata(path).map(|metadata| metadata.uid());
    path.ancestors().take(3).all(|part| owner(part).map_or(true, |owner| owner == 0 || owner == us))
}

enum Regular {
    Bytes(Zeroizing<Vec<u8>>),
    TooLarge,
    Not,
}

/// Reads what is in a place of the kubelet's search path, following symlinks as it does.
#[must_use]
pub fn read_place(path: &Path) -> Content {
    match read_regular(path, MAX_TO_EXPLAIN) {
        Ok(Regular::Bytes(bytes)) => Content::Bytes(bytes),
        Ok(Regular::Not) => Content::Unreadable("it is no regular file".to_owned()),
        // The kubelet has no limit.
        Ok(Regular::TooLarge) => Content::Unknown("it is larger than 16 MiB".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Content::Missing,
        // The kubelet is root, and we are not.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Content::Unknown(error.to_string()),
        Err(error) => Content::Unreadable(error.to_string()),
    }
}

/// Reads a regular file of bounded size, following symlinks, never blocking on what is none.
fn read_regular(path: &Path, max_size: u64) -> io::Result<Regular> {
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

fn open_directory(path: &Path) -> Result<std::os::fd::OwnedFd, StepError> {
    use nix::fcntl::{OFlag, open};

    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path, flags, nix::sys::stat::Mode::empty())
        .map_err(|errno| StepError { step: "open the directory", errno })
}
