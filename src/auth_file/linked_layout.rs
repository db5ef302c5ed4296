//! The linked layout: `config.json` in the kubelet's root is a relative symlink into the agent's directory beside it. A
//! long-lived agent then needs to see that directory only, and not every pod's secrets.
//!
//! The file itself is not copied: it gets a second name, and loses the first one. So its content, owner, mode, label and
//! access list stay, programs that have it open keep it, and a reader that follows the name finds it at any moment.

use super::directory::{LOCK_WAIT, LockedDirectory, Named, Symlink, is_same};
use super::error::AuthFileError;
use super::file::{AuthFile, DIRECTORY, link_record_name};
use super::memory::Memory;
use super::outcome::{Effect, Link, Note, Outcome, PublishOptions};
use super::plan::Operation;
use super::read::{MAX_SIZE, Opened, read_bounded, read_in};
use super::replace::ReplaceError;
use super::set_aside::{clear_leftovers, keep_copy};
use super::update::not_locked;
use crate::docker_config::merge::adds_nothing;
use crate::docker_config::parse::{Parsed, parse};
use nix::errno::Errno;
use nix::sys::stat::{FileStat, Mode};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

/// Longer than a reader needs from reading a symlink to opening its target.
const GRACE: Duration = Duration::from_millis(250);
/// How often a change of the layout starts over because another program has changed the file meanwhile.
const MAX_ATTEMPTS: usize = 4;

/// What a change of the layout is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To see what a link would change.
    ReportLink,
    /// To make a link.
    Link,
    /// To undo a link, if there is one.
    Undo,
}

/// What has the auth file's name in the kubelet's root.
enum InRoot {
    /// The agent's link.
    Linked(Symlink),
    /// A file.
    Plain(File, FileStat),
    /// Nothing.
    Missing,
    /// A symlink to somewhere else.
    ForeignLink(OsString),
}

/// The kubelet's root, locked, and what is in it.
struct Place {
    root: LockedDirectory,
    name: OsString,
    /// The agent's directory, locked too; `None` if it is missing.
    inside: Option<LockedDirectory>,
    in_root: InRoot,
}

impl AuthFile {
    /// Moves the file into the agent's directory and leaves a link, or with `dry_run` only reports what that would change.
    /// Entries of a file that a later auth file would hide are copied now, while the agent can see that file.
    ///
    /// # Errors
    /// If that is not safe, or fails. Then the kubelet reads what it read before.
    pub fn link(&self, options: PublishOptions, memory: &mut Memory) -> Result<Outcome, AuthFileError> {
        self.refuse_openshift()?;
        // The directory is made later: a change of the root would look like another program's.
        let mut place = self.place(Purpose::ReportLink)?;
        if !options.dry_run && matches!(place.in_root, InRoot::Linked(_)) && place.inside.is_none() {
            drop(place);
            place = self.place(Purpose::Link)?;
        }
        let is_linked = match &place.in_root {
            InRoot::ForeignLink(target) => return Err(self.is_foreign_link(target)),
            InRoot::Linked(_) => true,
            InRoot::Plain(..) | InRoot::Missing => false,
        };
        let inside = place.inside()?;
        // A file in the agent's directory that no link leads to is not read by the kubelet.
        let is_waiting = matches!((&place.in_root, &inside), (InRoot::Missing, Some(_)));
        let has_no_directory = is_linked && place.inside.is_none();
        drop((inside, place));

        let mut outcome = match (is_waiting, has_no_directory) {
            (true, _) => self.inside().update(Operation::CopyHidden { is_read: false }, options, memory)?,
            (false, false) => self.update(Operation::CopyHidden { is_read: true }, options, memory)?,
            // Only in a dry run; otherwise the directory exists by now.
            (false, true) => Outcome::unchanged(Vec::new()),
        };
        if matches!(outcome.effect, Effect::NotAtRest { .. }) {
            return Ok(outcome);
        }
        outcome.link = (!is_linked).then_some(Link::Made);
        if !options.dry_run {
            outcome.notes.extend(self.make_link(options)?);
        }
        Ok(outcome)
    }

    /// Puts the file back in its place if the agent's link is there, or with `dry_run` only reports whether that would change
    /// anything.
    ///
    /// # Errors
    /// If that is not safe, or fails. The kubelet reads what it read before.
    pub fn unlink(&self, options: PublishOptions) -> Result<Outcome, AuthFileError> {
        Ok(Outcome { link: self.undo(options)?, ..Outcome::unchanged(Vec::new()) })
    }

    /// Takes the agent's entries out and puts the file back in its place, or with `dry_run` only reports what that would
    /// change. Entries without a record are taken out if they are ECR's and for one of `registries`.
    ///
    /// # Errors
    /// If an entry of the agent's is still there afterwards.
    pub fn uninstall(
        &self,
        registries: &[String],
        options: PublishOptions,
        memory: &mut Memory,
    ) -> Result<Outcome, AuthFileError> {
        let mut outcome = self.remove(registries, options, memory)?;
        // An agent that sees only its directory cannot see the link.
        if matches!(outcome.effect, Effect::NotAtRest { .. }) || self.is_inside() {
            return Ok(outcome);
        }
        let stray = self.stray()?;
        if let Some(stray) = &stray {
            let other = stray.remove(registries, options, &mut Memory::default())?;
            outcome.notes.extend(other.notes);
            match other.effect {
                Effect::NotAtRest { .. } => return Ok(Outcome { effect: other.effect, ..outcome }),
                effect if outcome.effect == Effect::Unchanged => outcome.effect = effect,
                _ => {}
            }
        }
        outcome.link = self.undo(options)?;
        if let Some(Link::Undone { left }) = &mut outcome.link
            && options.dry_run
            && stray.is_some()
            && matches!(outcome.effect, Effect::Deleted(_))
        {
            left.retain(|name| Some(name.as_os_str()) != self.path.file_name());
        }
        Ok(outcome)
    }

    /// Undoes the link. `None` if there is nothing to undo.
    fn undo(&self, options: PublishOptions) -> Result<Option<Link>, AuthFileError> {
        until_unchanged(|| self.try_undo(options))
    }

    fn try_undo(&self, options: PublishOptions) -> Result<Option<Link>, AuthFileError> {
        let place = self.place(Purpose::Undo)?;
        let Place { root, name, inside, in_root } = &place;
        let link = if let InRoot::Linked(link) = in_root { Some(&link.stat) } else { None };
        if matches!(in_root, InRoot::ForeignLink(_)) || inside.is_none() && link.is_none() {
            return Ok(None);
        }
        let file = place.inside()?;
        // A file that is not in use, and that adds nothing to the one that is, goes.
        let is_superseded = match (&file, in_root) {
            (Some(file), InRoot::Plain(plain, stat)) => is_superseded(file, plain, stat),
            _ => false,
        };
        if options.dry_run {
            let record = link_record_name(name);
            let goes =
                |other: &OsString| *other == record || other == name && (link.is_some() || is_superseded);
            let mut left = self.names(inside.as_ref())?;
            left.retain(|name| !goes(name));
            return Ok(Some(Link::Undone { left }));
        }
        let replaced = |done: Result<(), ReplaceError>| done.map_err(|source| self.replace_failed(source));
        let plain = match in_root {
            InRoot::Plain(file, stat) => read_bounded(file, stat, MAX_SIZE).ok().flatten(),
            _ => None,
        };
        let current = plain.as_ref().or_else(|| file.as_ref().map(|file| &file.bytes));
        let current = current.map(|bytes| bytes.as_slice());
        for directory in inside.iter().flat_map(|inside| [root, inside]) {
            clear_leftovers(directory, name, current, true, options.now)
                .map_err(|source| self.failed(source))?;
        }
        match (inside, &file, link) {
            (Some(inside), Some(file), Some(link)) => {
                replaced(root.adopt(name, inside, Some(link)))?;
                // A reader may have read the link already, and be about to open its target.
                sleep(GRACE);
                replaced(inside.delete_same(name, &file.stat))?;
            }
            (Some(inside), Some(file), None) if is_superseded => {
                replaced(inside.delete_same(name, &file.stat))?;
            }
            (_, None, Some(link)) => replaced(root.delete_same(name, link))?,
            _ => {}
        }
        if let Some(inside) = inside {
            inside.delete_leftover(&link_record_name(name)).map_err(|source| self.failed(source))?;
        }
        let gone = root.delete_directory(OsStr::new(DIRECTORY)).map_err(|source| self.failed(source))?;
        let left = if gone { Vec::new() } else { self.names(inside.as_ref())? };
        Ok(Some(Link::Undone { left }))
    }

    /// The file in the agent's directory, if no link leads to it: made by an agent that sees only the directory.
    fn stray(&self) -> Result<Option<Self>, AuthFileError> {
        let place = self.place(Purpose::Undo)?;
        let is_stray = !matches!(place.in_root, InRoot::Linked(_) | InRoot::ForeignLink(_));
        Ok((is_stray && place.inside()?.is_some()).then(|| self.inside()))
    }

    /// Locks the kubelet's root and the agent's directory, which is made for a link, and looks at both. Every other update
    /// locks only one of the two, so the order does not matter.
    fn place(&self, purpose: Purpose) -> Result<Place, AuthFileError> {
        let (Some(path), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return Err(AuthFileError::NotAFile { path: self.path.clone(), kind: "a directory" });
        };
        if self.is_inside() {
            return Err(self.refused("it is in a directory of ours: name the file in the kubelet's root"));
        }
        let root = LockedDirectory::lock(path, LOCK_WAIT).map_err(|source| match source.errno {
            Errno::ENOENT => AuthFileError::NoDirectory(path.to_owned()),
            _ => self.failed(source),
        })?;
        let in_root = self.in_root(&root, name)?;
        if purpose != Purpose::Undo && root.stat().map_err(|source| self.failed(source))?.st_mode & 0o002 != 0
        {
            return Err(self.refused("everybody may write to its directory"));
        }
        if purpose == Purpose::Link && !matches!(in_root, InRoot::ForeignLink(_)) {
            root.create_directory(OsStr::new(DIRECTORY)).map_err(|source| self.failed(source))?;
        }
        let inside = match self.own_directory(&root, purpose == Purpose::Link) {
            // Without a link to it, something that has the directory's name is nothing to undo.
            Err(AuthFileError::NotLinked { .. })
                if purpose == Purpose::Undo && !matches!(in_root, InRoot::Linked(_)) =>
            {
                None
            }
            inside => inside?,
        };
        Ok(Place { root, name: name.to_owned(), inside, in_root })
    }

    fn in_root(&self, root: &LockedDirectory, name: &OsStr) -> Result<InRoot, AuthFileError> {
        if let Some(link) = root.symlink(name).map_err(|source| self.failed(source))? {
            let is_own = Path::new(&link.target) == Path::new(DIRECTORY).join(name);
            return Ok(if is_own { InRoot::Linked(link) } else { InRoot::ForeignLink(link.target) });
        }
        match root.open(name).map_err(|source| self.failed(source))? {
            Named::Nothing => Ok(InRoot::Missing),
            Named::File(file, stat) => Ok(InRoot::Plain(file, stat)),
            Named::Other(kind) => Err(AuthFileError::NotAFile { path: self.path.clone(), kind }),
        }
    }

    /// The agent's directory, if it exists and is safe: a directory of root's or the agent's user's, that no other user may
    /// write, and no mount.
    pub(super) fn own_directory(
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
            Err(error) => return Err(self.failed(error)),
        };
        let (outer, inner) = match (root.stat(), inside.stat()) {
            (Ok(outer), Ok(inner)) => (outer, inner),
            (Err(error), _) | (_, Err(error)) => return Err(self.failed(error)),
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
            // The kubelet makes it so for a hostPath of type `DirectoryOrCreate`.
            inside.set_own_mode(Mode::S_IRWXU).map_err(|source| self.failed(source))?;
        }
        Ok(Some(inside))
    }

    /// Moves the file in the root into the agent's directory and leaves the link. After each step the kubelet finds the
    /// same file.
    fn make_link(&self, options: PublishOptions) -> Result<Vec<Note>, AuthFileError> {
        until_unchanged(|| self.try_make_link(options))
    }

    fn try_make_link(&self, options: PublishOptions) -> Result<Vec<Note>, AuthFileError> {
        let Place { root, name, inside: Some(inside), in_root } = &self.place(Purpose::Link)? else {
            return Err(self.refused("its new directory is gone again"));
        };
        let mut notes: Vec<Note> = [root, inside].into_iter().filter_map(not_locked).collect();
        let waiting = read_in(inside, name)?;
        let current = match in_root {
            InRoot::Plain(file, stat) => read_bounded(file, stat, MAX_SIZE).ok().flatten(),
            _ => waiting.as_ref().map(|file| file.bytes.clone()),
        };
        for directory in [root, inside] {
            let current = current.as_ref().map(|bytes| bytes.as_slice());
            let cleared = clear_leftovers(directory, name, current, true, options.now);
            notes.extend(cleared.map_err(|source| self.failed(source))?);
        }
        let target = Path::new(DIRECTORY).join(name);
        let replaced = |done: Result<(), ReplaceError>| done.map_err(|source| self.replace_failed(source));
        match in_root {
            InRoot::Linked(_) => {}
            InRoot::ForeignLink(target) => return Err(self.is_foreign_link(target)),
            InRoot::Missing => replaced(root.replace_by_link(name, &target, None))?,
            InRoot::Plain(plain, stat) => {
                if let Some(file) = &waiting
                    && !is_superseded(file, plain, stat)
                {
                    let path = inside.path().join(name);
                    let copy = keep_copy(inside, name, "replaced", &file.bytes, options.now);
                    notes.push(Note::MadeWay { path, copy: copy.map_err(|source| self.failed(source))? });
                }
                if waiting.as_ref().is_none_or(|file| !is_same(&file.stat, stat)) {
                    replaced(inside.adopt(name, root, waiting.as_ref().map(|file| &file.stat)))?;
                }
                // If another program has replaced the file since, its file comes out, and this starts over.
                replaced(root.replace_by_link(name, &target, Some(stat)))?;
            }
        }
        Ok(notes)
    }

    fn names(&self, directory: Option<&LockedDirectory>) -> Result<Vec<OsString>, AuthFileError> {
        let Some(directory) = directory else { return Ok(Vec::new()) };
        let mut names = directory.names_with("").map_err(|source| self.failed(source))?;
        names.retain(|name| name != "." && name != "..");
        Ok(names)
    }

    fn refused(&self, why: impl Into<String>) -> AuthFileError {
        AuthFileError::NotLinked { path: self.path.clone(), why: why.into() }
    }

    fn is_foreign_link(&self, target: &OsStr) -> AuthFileError {
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

impl Place {
    /// The file in the agent's directory, if there is one.
    fn inside(&self) -> Result<Option<Opened>, AuthFileError> {
        self.inside.as_ref().map_or(Ok(None), |inside| read_in(inside, &self.name))
    }
}

/// Whether `file` can be deleted for `plain` and nothing is lost: it is the same file, as a killed run leaves it, or it holds
/// no foreign content that is not in both.
fn is_superseded(file: &Opened, plain: &File, stat: &FileStat) -> bool {
    if is_same(&file.stat, stat) {
        return true;
    }
    let Ok(Some(bytes)) = read_bounded(plain, stat, MAX_SIZE) else { return false };
    let whole = |parsed: &Parsed<'_>| parsed.defects.is_empty();
    match (parse(&file.bytes), parse(&bytes)) {
        (Ok(old), Ok(new)) if whole(&old) && whole(&new) => adds_nothing(&old.document, &new.document, true),
        _ => false,
    }
}

/// Runs a change of the layout again if another program was faster.
fn until_unchanged<T>(change: impl Fn() -> Result<T, AuthFileError>) -> Result<T, AuthFileError> {
    for _ in 1..MAX_ATTEMPTS {
        match change() {
            Err(AuthFileError::Replace { source: ReplaceError::Changed, .. }) => {}
            done => return done,
        }
    }
    change()
}
