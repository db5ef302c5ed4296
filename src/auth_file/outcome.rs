//! How an update of an auth file ends.

use crate::docker_config::ledger::Record;
use crate::docker_config::merge::Changes;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How many copies of one kind are kept beside an auth file. A program that damages the file again and again must not fill
/// the disk.
pub(super) const MAX_COPIES: usize = 16;

/// How many keys a note lists.
const MAX_LISTED: usize = 10;

/// How to update.
#[derive(Debug, Clone, Copy)]
pub struct PublishOptions {
    /// The wall clock.
    pub now: Timestamp,
    /// Change nothing, only report what would change.
    pub dry_run: bool,
    /// Whether the tokens are written even if the file holds a token of a higher rank: an explicit refresh (`--once`,
    /// SIGHUP) writes what it fetched.
    pub explicit: bool,
}

/// What a publish or a removal did.
#[derive(Debug)]
pub struct Outcome {
    /// What happened to the file, or would happen in a dry run.
    pub effect: Effect,
    /// What happened to the link in the kubelet's root, or would happen in a dry run; `None` if nothing.
    pub link: Option<Link>,
    /// The agent's entries that are in the file now, by key; empty after a dry run.
    pub records: BTreeMap<String, Record>,
    /// What the operator should know.
    pub notes: Vec<Note>,
}

impl Outcome {
    /// An outcome without a change.
    pub(super) fn unchanged(notes: Vec<Note>) -> Self {
        Self::of(Effect::Unchanged, notes)
    }

    pub(super) fn of(effect: Effect, notes: Vec<Note>) -> Self {
        Self { effect, link: None, records: BTreeMap::new(), notes }
    }
}

/// What happened to the link.
#[derive(Debug, PartialEq, Eq)]
pub enum Link {
    /// The file is in the agent's directory now, and a link has its place.
    Made,
    /// The link is gone, and the file is in its place again.
    Undone {
        /// What is still in the agent's directory, which therefore stays.
        left: Vec<OsString>,
    },
}

/// What happened to the file.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: it is as wanted.
    Unchanged,
    /// Nothing: another program is changing it. The caller should try again.
    NotAtRest {
        /// How long to wait before that.
        retry_in: Duration,
    },
    /// Only its permission bits were set back.
    ModeRestored,
    /// It was replaced, or created.
    Replaced(Changes),
    /// It was deleted: the agent had created it, and nothing was left in it.
    Deleted(Changes),
}

/// Something that an operator should know.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Note {
    /// The kubelet ignored this file. A copy was made before it was replaced.
    #[error("the kubelet ignored this file ({}); the original is kept as {}", reasons.join("; "), copy.display())]
    SetAside {
        /// Why the kubelet ignored it.
        reasons: Vec<String>,
        /// The copy.
        copy: PathBuf,
    },
    /// A dry run would have made a copy.
    #[error("the kubelet ignores this file ({}); the original would be kept beside it, and its good rest written anew", reasons.join("; "))]
    WouldSetAside {
        /// Why the kubelet ignores it.
        reasons: Vec<String>,
    },
    /// As `SetAside`, but there are too many copies already.
    #[error("the kubelet ignored this file ({}); it was not kept, since there are {MAX_COPIES} copies \
             `{}.invalid-*` already: find what damages it, and delete them", reasons.join("; "), path.display())]
    NotSetAside {
        /// Why the kubelet ignored it.
        reasons: Vec<String>,
        /// The file.
        path: PathBuf,
    },
    /// The file had become empty or unreadable, and holds again what it held before.
    #[error(
        "this file had lost its content; what the agent had read there before was restored: {}",
        listed(keys)
    )]
    Restored {
        /// The keys of the foreign entries.
        keys: Vec<String>,
    },
    /// The file was empty, and what it had held is not known.
    #[error(
        "this file was emptied a short while ago; the agent has only started since, and does not know what was in it"
    )]
    Emptied,
    /// The file was deleted, and is made anew without foreign entries.
    #[error(
        "this file was deleted, and was made anew without the entries of other programs that were in it: {}",
        listed(keys)
    )]
    MadeAnew {
        /// The keys of the entries that are gone.
        keys: Vec<String>,
    },
    /// What a killed run or an earlier attempt had left held something that the file does not hold, so it was kept.
    #[error(
        "a killed run, or two changes in the same moment, had left a version of this file with other content, which is kept as {}",
        copy.display()
    )]
    LeftoverKept {
        /// The copy.
        copy: PathBuf,
    },
    /// The new file hides another file from the kubelet; its entries were copied.
    #[error("{} is hidden by this file from now on; its entries came along: {}", from.display(), listed(keys))]
    TakenAlong {
        /// The hidden file.
        from: PathBuf,
        /// The keys that were copied.
        keys: Vec<String>,
    },
    /// The new file hides another file from the kubelet; its entries were not copied.
    #[error("{} is hidden by this file from now on, and its entries did not come along: {why}", from.display())]
    NotTakenAlong {
        /// The hidden file.
        from: PathBuf,
        /// The reason.
        why: String,
    },
    /// The linked layout found two files; the one that the kubelet reads stays.
    #[error("{} was not what the kubelet reads, and has made way for that{}", path.display(), kept_as(copy.as_deref()))]
    MadeWay {
        /// The file in the agent's directory.
        path: PathBuf,
        /// The copy of its content, if anything would have been lost and there was room.
        copy: Option<PathBuf>,
    },
    /// Other users can read the credentials, or choose them.
    #[error("others than root can get at this file, which holds credentials: {}. Mode 0600, owned by root, in a directory \
             that only root may write is enough for the kubelet", who.join("; "))]
    Exposed {
        /// Who can do what.
        who: Vec<String>,
    },
    /// Entries look like the agent's but have no record.
    #[error(
        "these entries look like ours (user AWS) but carry no record, so they stay: {}. `docker login`, for example, \
             drops the record; `remove --registry HOST` takes an entry out",
        listed(keys)
    )]
    Unrecorded {
        /// Their keys.
        keys: Vec<String>,
    },
    /// The directory could not be locked.
    #[error("{} could not be locked ({why}), so the file is written without a lock: `lslocks` tells which program holds it",
            path.display())]
    NotLocked {
        /// The directory.
        path: PathBuf,
        /// What the system answered.
        why: String,
    },
    /// A program has had the file open for writing for too long, or keeps changing it.
    #[error("another program has been changing this file for {} s; the agent does not wait any longer", waited.as_secs())]
    NotAwaited {
        /// How long the agent has waited.
        waited: Duration,
    },
}

/// The first of the keys, and how many more there are.
fn listed(keys: &[String]) -> String {
    let (first, others) = keys.split_at(keys.len().min(MAX_LISTED));
    match (first, others.len()) {
        ([], _) => "none".to_owned(),
        (first, 0) => first.join(", "),
        (first, others) => format!("{} and {others} more", first.join(", ")),
    }
}

fn kept_as(copy: Option<&Path>) -> String {
    copy.map_or_else(String::new, |copy| format!("; what it held is kept as {}", copy.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_lists_the_first_keys_and_names_the_copy() {
        let keys = |count: usize| -> Vec<String> { (0..count).map(|number| format!("{number}.b")).collect() };
        let listed = |count| listed(&keys(count));
        assert_eq!(listed(0), "none");
        assert_eq!(listed(2), "0.b, 1.b");
        assert_eq!(listed(MAX_LISTED), keys(MAX_LISTED).join(", "));
        assert_eq!(listed(MAX_LISTED + 2), format!("{} and 2 more", keys(MAX_LISTED).join(", ")));
        let note = |copy: Option<&str>| {
            Note::MadeWay { path: PathBuf::from("/a"), copy: copy.map(PathBuf::from) }.to_string()
        };
        assert_eq!(note(None), "/a was not what the kubelet reads, and has made way for that");
        assert_eq!(note(Some("/b")), note(None) + "; what it held is kept as /b");
    }
}
