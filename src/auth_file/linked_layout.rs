//! The linked layout: `config.json` in the kubelet's root is a relative symlink into a directory of ours beside it, so
//! that a long-lived agent need be shown that directory only, and not every pod's secrets.
//!
//! The file itself never moves: it gets a second name, and loses the first. So its content, owner, mode, label and access
//! list are what they were, whoever has it open, and whoever follows the name at any moment finds it.

use super::replace::{Found, LockedDirectory, ReplaceError, StepError, read_bounded};
use super::{
    AuthFile, AuthFileError, DIRECTORY, Effect, Link, MAX_SIZE, Note, Outcome, PublishOptions, keep_copy,
};
use crate::docker_config::merge::adds_nothing;
use crate::docker_config::parse::{self, Parsed};
use jiff::Timestamp;
use nix::errno::Errno;
use nix::sys::stat::{FileStat, Mode};
use secrecy::zeroize::Zeroizing;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

/// Longer than anybody needs from reading a symlink to opening what it names.
const GRACE: Duration = Duration::from_millis(250);

/// Why somebody looks at a place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Aim {
    /// To say what a link would change.
    SayLink,
    /// To make a link.
    Link,
    /// To undo one, if there is one.
    Undo,
}

/// What stands in the kubelet's root.
enum Standing {
    /// Our link.
    Linked,
    /// A file of its own.
    Plain(File, FileStat),
    /// Nothing.
    Missing,
    /// A symlink to somewhere else.
    Foreign(OsString),
}

/// The kubelet's root, locked, and what we have in it.
struct Place {
    root: LockedDirectory,
    name: OsString,
    /// Our directory, locked too.
    inside: Option<LockedDirectory>,
    standing: Standing,
}

impl AuthFile {
    /// Moves the file into our directory and leaves a link, or with `dry_run` only says whether that would change
    /// anything. What a file made later would hide comes along now, while it can be seen.
    ///
    /// # Errors
    /// Where that is not safe, or fails. Then the kubelet reads what it read before.
    pub fn link(&self, now: Timestamp, dry_run: bool) -> Result<Outcome, AuthFileError> {
        self.refuse_openshift()?;
        let manner = PublishOptions { now, dry_run, explicit: false, mode: None };
        let aim = if dry_run { Aim::SayLink } else { Aim::Link };
        let place = self.place(aim)?;
        let linked = match &place.standing {
            Standing::Foreign(target) => return Err(self.is_foreign(target)),
            Standing::Linked => true,
            Standing::Plain(..) | Standing::Missing => false,
        };
        let inside = place.inside()?;
        // A file that waits in our directory, and that no link leads to, hides nothing yet.
        let waiting = matches!((&place.standing, &inside), (Standing::Missing, Some(_)));
        let no_directory = matches!((&place.standing, &place.inside), (Standing::Linked, None));
        drop((inside, place));

        let mut outcome = match (waiting, no_directory) {
            (true, _) => self.inside().bring_along(false, manner)?,
            (false, false) => self.bring_along(true, manner)?,
            // Only in a dry run: else there is a directory by now.
            (false, true) => Outcome {
                mode: None,
                effect: Effect::Unchanged,
                link: None,
                records: BTreeMap::new(),
                notes: Vec::new(),
            },
        };
        outcome.link = (!linked).then_some(Link::Made);
        if !dry_run {
            let place = self.place(aim)?;
            outcome.notes.extend(self.make(&place, now)?);
        }
        Ok(outcome)
    }

    /// Puts the file back in its place, where our link stands, or with `dry_run` only says whether that would change
    /// anything.
    ///
    /// # Errors
    /// Where that is not safe, or fails. The kubelet reads what it read before.
    pub fn unlink(&self, dry_run: bool) -> Result<Outcome, AuthFileError> {
        let link = self.undo(dry_run)?;
        Ok(Outcome {
            mode: None,
            effect: Effect::Unchanged,
            link,
            records: BTreeMap::new(),
            notes: Vec::new(),
        })
    }

    /// Takes out what is ours and puts the file back in its place, or with `dry_run` only says what that would change.
    ///
    /// # Errors
    /// When something of ours is still there afterwards.
    pub fn uninstall(&self, now: Timestamp, dry_run: bool) -> Result<Outcome, AuthFileError> {
        let mut outcome = self.remove(now, dry_run)?;
        if self.is_inside() {
            // Who sees only our directory cannot see the link.
            return Ok(outcome);
        }
        let stray = self.stray()?;
        if let Some(stray) = &stray {
            let other = stray.remove(now, dry_run)?;
            outcome.notes.extend(other.notes);
            if outcome.effect == Effect::Unchanged {
                outcome.effect = other.effect;
            }
        }
        outcome.link = self.undo(dry_run)?;
        if let Some(Link::Undone { left }) = &mut outcome.link
            && dry_run
            && stray.is_some()
            && matches!(outcome.effect, Effect::Deleted(_))
        {
            left.retain(|name| Some(name.as_os_str()) != self.path.file_name());
        }
        Ok(outcome)
    }

    /// Undoes the link. `None` where there is nothing to undo.
    fn undo(&self, dry_run: bool) -> Result<Option<Link>, AuthFileError> {
        let place = self.place(Aim::Undo)?;
        let Place { root, name, inside, standing } = &place;
        let is_linked = matches!(standing, Standing::Linked);
        if matches!(standing, Standing::Foreign(_)) || inside.is_none() && !is_linked {
            return Ok(None);
        }
        let file = place.inside()?;
        // What lies there and is not in use adds nothing, or stays.
        let superseded = match (&file, standing) {
            (Some(file), Standing::Plain(plain, stat)) => is_superseded(file, plain, stat),
            _ => false,
        };
        if dry_run {
            let goes = |other: &OsString| other == name && (is_linked || superseded);
            let mut left = self.names(inside.as_ref())?;
            left.retain(|name| !goes(name));
            return Ok(Some(Link::Undone { left }));
        }
        if let Some(inside) = inside {
            root.clean(name).and_then(|()| inside.clean(name)).map_err(|source| self.step(source))?;
            if is_linked && file.is_some() {
                root.adopt(name, inside).map_err(|source| self.replace_failed(source))?;
                // Somebody may have read the link, and be about to open what it says.
                sleep(GRACE);
            }
            if superseded || is_linked && file.is_some() {
                inside.delete(name).map_err(|source| self.replace_failed(source))?;
            }
        }
        if is_linked && file.is_none() {
            root.delete(name).map_err(|source| self.replace_failed(source))?;
        }
        let gone = root.delete_directory(OsStr::new(DIRECTORY)).map_err(|source| self.step(source))?;
        let left = if gone { Vec::new() } else { self.names(inside.as_ref())? };
        Ok(Some(Link::Undone { left }))
    }

    /// The same file, by its name in our directory.
    fn inside(&self) -> Self {
        let name = self.path.file_name().unwrap_or_default();
        Self { path: self.path.with_file_name(DIRECTORY).join(name), ..self.clone() }
    }

    fn is_inside(&self) -> bool {
        self.path.parent().is_some_and(|parent| parent.file_name() == Some(OsStr::new(DIRECTORY)))
    }

    /// The file in our directory, where it is there and no link leads to it: what an agent has made that sees only the
    /// directory.
    fn stray(&self) -> Result<Option<Self>, AuthFileError> {
        let place = self.place(Aim::Undo)?;
        let is_stray = !matches!(place.standing, Standing::Linked | Standing::Foreign(_));
        Ok((is_stray && place.inside()?.is_some()).then(|| self.inside()))
    }

    /// Locks the kubelet's root and our directory, which is made for a link, and looks what stands there. An agent locks
    /// one of the two, never both, so the order is free.
    fn place(&self, aim: Aim) -> Result<Place, AuthFileError> {
        let (Some(path), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return Err(AuthFileError::NotAFile { path: self.path.clone(), kind: "a directory" });
        };
        if self.is_inside() {
            return Err(self.refused("it is in a directory of ours: name the file in the kubelet's root"));
        }
        let root = LockedDirectory::lock(path).map_err(|source| match source.errno {
            Errno::ENOENT => AuthFileError::NoDirectory(path.to_owned()),
            _ => self.step(source),
        })?;
        let standing = match root.link_target(name).map_err(|source| self.step(source))? {
            Some(target) if Path::new(&target) == Path::new(DIRECTORY).join(name) => Standing::Linked,
            Some(target) => Standing::Foreign(target),
            None => match root.open(name).map_err(|source| self.step(source))? {
                Found::Nothing => Standing::Missing,
                Found::File(file, stat) => Standing::Plain(file, stat),
                Found::Other(kind) => {
                    return Err(AuthFileError::NotAFile { path: self.path.clone(), kind });
                }
            },
        };
        if aim != Aim::Undo && root.stat().map_err(|source| self.step(source))?.st_mode & 0o002 != 0 {
            return Err(self.refused("everybody may write to its directory"));
        }
        if aim == Aim::Link && !matches!(standing, Standing::Foreign(_)) {
            root.create_directory(OsStr::new(DIRECTORY)).map_err(|source| self.step(source))?;
        }
        let inside = match self.our_directory(&root, aim == Aim::Link) {
            // Without a link to it, what has our name is nothing to undo.
            Err(AuthFileError::NotLinked { .. })
                if aim == Aim::Undo && !matches!(standing, Standing::Linked) =>
            {
                None
            }
            inside => inside?,
        };
        Ok(Place { root, name: name.to_owned(), inside, standing })
    }

    /// Our directory, if it is there: a directory, nobody else's, and nothing mounted.
    fn our_directory(
        &self,
        root: &LockedDirectory,
        make: bool,
    ) -> Result<Option<LockedDirectory>, AuthFileError> {
        let path = root.path().join(DIRECTORY);
        let refused = |why| self.refused(format!("{} {why}", path.display()));
        let inside = match root.lock_inside(OsStr::new(DIRECTORY)) {
            Ok(inside) => inside,
            Err(error) if error.errno == Errno::ENOENT => return Ok(None),
            Err(error) if matches!(error.errno, Errno::ENOTDIR | Errno::ELOOP) => {
                return Err(refused("is no directory"));
            }
            Err(error) => return Err(self.step(error)),
        };
        let (outer, inner) = match (root.stat(), inside.stat()) {
            (Ok(outer), Ok(inner)) => (outer, inner),
            (Err(error), _) | (_, Err(error)) => return Err(self.step(error)),
        };
        if inner.st_uid != 0 && inner.st_uid != nix::unistd::geteuid().as_raw() {
            return Err(refused("belongs to another user"));
        }
        if inner.st_mode & 0o022 != 0 {
            return Err(refused("may be written by others than its owner"));
        }
        if outer.st_dev != inner.st_dev || inside.is_mounted() {
            return Err(refused(
                "is a mount of its own: run this where the kubelet's root is mounted as a whole",
            ));
        }
        if make && inner.st_mode & 0o077 != 0 {
            // As a hostPath of type `DirectoryOrCreate` makes it.
            inside.set_own_mode(Mode::S_IRWXU).map_err(|source| self.step(source))?;
        }
        Ok(Some(inside))
    }

    /// Moves what stands in the root into our directory, and leaves the link. Each step leaves the kubelet the same file.
    fn make(&self, place: &Place, now: Timestamp) -> Result<Option<Note>, AuthFileError> {
        let Place { root, name, inside: Some(inside), standing } = place else {
            return Err(self.refused("its new directory is gone again"));
        };
        root.clean(name).and_then(|()| inside.clean(name)).map_err(|source| self.step(source))?;
        let target = Path::new(DIRECTORY).join(name);
        match standing {
            Standing::Linked => Ok(None),
            Standing::Foreign(target) => Err(self.is_foreign(target)),
            Standing::Missing => {
                place.inside()?;
                root.create_link(name, &target).map_err(|source| self.step(source))?;
                Ok(None)
            }
            Standing::Plain(plain, stat) => {
                let mut note = None;
                let waiting = place.inside()?;
                if let Some(file) = &waiting
                    && !is_superseded(file, plain, stat)
                {
                    let path = inside.path().join(name);
                    let kept = keep_copy(inside, name, "replaced", &file.bytes, now);
                    note = Some(Note::MadeWay { path, copy: kept.map_err(|source| self.step(source))? });
                }
                if waiting.is_none_or(|file| !is_same(&file.stat, stat)) {
                    inside.adopt(name, root).map_err(|source| self.replace_failed(source))?;
                }
                root.replace_by_link(name, &target).map_err(|source| self.replace_failed(source))?;
                Ok(note)
            }
        }
    }

    fn names(&self, directory: Option<&LockedDirectory>) -> Result<Vec<OsString>, AuthFileError> {
        let Some(directory) = directory else { return Ok(Vec::new()) };
        let mut names = directory.names_with("").map_err(|source| self.step(source))?;
        names.retain(|name| name != "." && name != "..");
        Ok(names)
    }

    fn step(&self, source: StepError) -> AuthFileError {
        AuthFileError::Step { path: self.path.clone(), source }
    }

    fn refused(&self, why: impl Into<String>) -> AuthFileError {
        AuthFileError::NotLinked { path: self.path.clone(), why: why.into() }
    }

    fn is_foreign(&self, target: &OsStr) -> AuthFileError {
        self.refused(format!("it is a symlink already, to {}, and not ours", Path::new(target).display()))
    }

    fn replace_failed(&self, source: ReplaceError) -> AuthFileError {
        match source {
            ReplaceError::Untouched(step) if matches!(step.errno, Errno::EXDEV | Errno::EBUSY) => {
                AuthFileError::Mounted(self.path.clone())
            }
            source => AuthFileError::Replace { path: self.path.clone(), source },
        }
    }
}

/// A file in our directory.
struct Inside {
    stat: FileStat,
    bytes: Zeroizing<Vec<u8>>,
}

impl Place {
    /// The file in our directory, if there is one.
    fn inside(&self) -> Result<Option<Inside>, AuthFileError> {
        let Some(inside) = &self.inside else { return Ok(None) };
        let path = || -> PathBuf { inside.path().join(&self.name) };
        match inside.open(&self.name) {
            Ok(Found::Nothing) => Ok(None),
            Ok(Found::File(file, stat)) => match read_bounded(&file, &stat, MAX_SIZE) {
                Ok(Some(bytes)) => Ok(Some(Inside { stat, bytes })),
                Ok(None) => Err(AuthFileError::TooLarge(path())),
                Err(source) => Err(AuthFileError::Read { path: path(), source }),
            },
            Ok(Found::Other(kind)) => Err(AuthFileError::NotAFile { path: path(), kind }),
            Err(source) => Err(AuthFileError::Step { path: path(), source }),
        }
    }
}

fn is_same(one: &FileStat, other: &FileStat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// Whether `file` can make way for `plain` and nothing is lost: it is the same file, as a killed run leaves it, or holds
/// nothing of somebody else's that is not in both.
fn is_superseded(file: &Inside, plain: &File, stat: &FileStat) -> bool {
    if is_same(&file.stat, stat) {
        return true;
    }
    let Ok(Some(bytes)) = read_bounded(plain, stat, MAX_SIZE) else { return false };
    let whole = |parsed: &Parsed<'_>| parsed.defects.is_empty();
    match (parse::parse(&file.bytes), parse::parse(&bytes)) {
        (Ok(old), Ok(new)) if whole(&old) && whole(&new) => adds_nothing(&old.document, &new.document),
        _ => false,
    }
}
