//! What a publish, or a removal, has to do to a document.
//!
//! The decision is a value ([`Plan`]), so that "nothing to do" is a case of its own and not a write that happens to
//! change nothing.

use super::document::{Document, Entry, Name, Part};
use super::key::index_key;
use super::ledger::{self, Created, Ledger, Record};
use jiff::Timestamp;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret as _, SecretString};
use std::collections::BTreeMap;

/// What is wanted of a document.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Entries to write, by key.
    pub entries: BTreeMap<String, WantedEntry>,
    /// Registries that are asked for but have no new token: what is there stays.
    pub keep: Vec<String>,
    /// Registries without a new token whose entry must go where it is good no longer than until this time: the kubelet
    /// makes no anonymous attempt after a credential that fails, so for a registry that also serves anonymously an
    /// expired entry is worse than none.
    pub lapse: BTreeMap<String, Timestamp>,
    /// Whether every entry of ours that is in none of these lists goes. Not so where a refresh could not learn which
    /// registries it is for.
    pub drop_others: bool,
}

/// How the document to merge into came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It is the file's, whole.
    Whole,
    /// It is the good rest of a file that the kubelet ignores as it is.
    Spoilt,
    /// There was no file, or nothing in it.
    Nothing,
}

/// One entry to write, and what the ledger is to remember of it.
#[derive(Debug, Clone)]
pub struct WantedEntry {
    /// The base64 of `user:password`.
    pub auth: SecretString,
    /// When ECR stops accepting it.
    pub expires_at: Timestamp,
    /// When ECR handed it out.
    pub fetched_at: Timestamp,
    /// Whom it was fetched from, and as whom.
    pub source: String,
    /// Whether ECR's answer named the registry, since none was asked for.
    pub default_registry: bool,
}

impl WantedEntry {
    /// What is to be remembered of it.
    #[must_use]
    pub fn record(&self) -> Record {
        Record {
            expires_at: self.expires_at,
            fetched_at: self.fetched_at,
            source: self.source.clone(),
            default_registry: self.default_registry,
            digest: ledger::digest(self.auth.expose_secret()),
        }
    }
}

/// What has to happen to the file.
#[derive(Debug)]
pub enum Plan {
    /// The document already says so: no write, no fsync, no inode change.
    Keep,
    /// Replace the file by these bytes.
    Replace(Zeroizing<Vec<u8>>, Changes),
    /// Delete the file: it was ours, and nothing is left in it.
    Delete(Changes),
}

/// What a plan changes, for whoever tells it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Changes {
    /// Keys of ours that are new or have a new value, and until when they are good.
    pub written: Vec<(String, Timestamp)>,
    /// Keys as they stood, not marked as ours, of registries that we now keep.
    pub taken_over: Vec<String>,
    /// Keys of ours that went.
    pub removed: Vec<String>,
}

/// Plans the merge of `wanted` into `document`. Everything that is not ours keeps its place and value.
///
/// `found` says how the document came about: a new one is marked as ours, so that [`remove`] can undo that too, and a
/// mended one is written even if nothing else changes. `taken_along` is what [`Document::take_along`] said.
#[must_use]
pub fn plan(
    mut document: Document<'_>,
    wanted: &Wanted,
    found: Found,
    taken_along: BTreeMap<String, String>,
) -> Plan {
    let before = document.ledger().cloned();
    let mut ledger = before.clone().unwrap_or_default();
    // Somebody else's by now: what they put there is theirs, whatever its name.
    ledger.entries.retain(|key, record| document.digest(key).is_none_or(|digest| digest == record.digest));
    if is_made(&document, found, &taken_along) {
        ledger.created = ledger.created.or(Some(Created::File));
    }
    ledger.taken_along.extend(taken_along);
    let mut changes = Changes::default();

    let goes = |key: &String, record: &Record| match wanted.lapse.get(key) {
        Some(until) => record.expires_at <= *until,
        None => wanted.drop_others && !wanted.entries.contains_key(key) && !wanted.keep.contains(key),
    };
    changes.removed =
        ledger.entries.iter().filter(|(key, record)| goes(key, record)).map(|(key, _)| key.clone()).collect();
    if !changes.removed.is_empty() {
        ledger.entries.retain(|key, _| !changes.removed.contains(key));
        document.auths_mut().0.retain(|(name, _)| !changes.removed.contains(&name.text));
    }
    for (key, entry) in &wanted.entries {
        // Another run of ours was here later, and what it wrote is good for longer.
        let newer = |record: &Record| record.source == entry.source && record.expires_at > entry.expires_at;
        if ledger.entries.get(key).is_some_and(newer) && document.digest(key).is_some() {
            continue;
        }
        let (entries, made) = document.auths_mut();
        ledger.created = ledger.created.or(made);
        if put(entries, key, entry, ledger.entries.contains_key(key), &mut changes.taken_over) {
            changes.written.push((key.clone(), entry.expires_at));
        }
        ledger.entries.insert(key.clone(), entry.record());
    }
    // An entry that somebody took out is not ours any more, and says nothing of freshness.
    let keys: Vec<String> = document.keys().map(str::to_owned).collect();
    ledger.entries.retain(|key, _| keys.contains(key));

    // A file is not mended for its own sake: once whole, it hides what the kubelet reads instead of it.
    let unchanged = (found != Found::Spoilt || wanted.entries.is_empty())
        && changes == Changes::default()
        && (before.as_ref() == Some(&ledger) || before.is_none() && ledger.entries.is_empty());
    if unchanged {
        return Plan::Keep;
    }
    set_ledger(&mut document, ledger);
    Plan::Replace(document.to_bytes(), changes)
}

/// Whether there was no file, or none that anything lives on of.
fn is_made(document: &Document<'_>, found: Found, taken_along: &BTreeMap<String, String>) -> bool {
    let came_along = |key: &str| taken_along.contains_key(key);
    let nothing_lives_on = !document.has_other_fields() && document.keys().all(came_along);
    found == Found::Nothing || found == Found::Spoilt && nothing_lives_on
}

/// Plans the writing of what came along into `document` from a file that it hides. No entry of ours is in reach yet.
#[must_use]
pub fn bring_along(mut document: Document<'_>, found: Found, taken_along: BTreeMap<String, String>) -> Plan {
    let mut ledger = document.ledger().cloned().unwrap_or_default();
    if is_made(&document, found, &taken_along) {
        ledger.created = ledger.created.or(Some(Created::File));
    }
    ledger.taken_along.extend(taken_along);
    set_ledger(&mut document, ledger);
    Plan::Replace(document.to_bytes(), Changes::default())
}

/// Whether nothing of somebody else's is lost when `document` makes way for `other`.
#[must_use]
pub fn adds_nothing(document: &Document<'_>, other: &Document<'_>) -> bool {
    let is_ours = |key: &str, digest: &String| {
        let record = document.ledger().and_then(|ledger| ledger.entries.get(key));
        record.is_some_and(|record| record.digest == *digest)
    };
    let is_covered = |key: &str| {
        let digest = document.digest(key);
        other.digest(key) == digest || digest.is_some_and(|digest| is_ours(key, &digest))
    };
    !document.has_other_fields() && document.keys().all(is_covered)
}

/// Puts one entry in its place. Returns whether anything changed.
fn put(
    entries: &mut Vec<(Name<'_>, Entry<'_>)>,
    key: &str,
    wanted: &WantedEntry,
    ours: bool,
    taken_over: &mut Vec<String>,
) -> bool {
    let same: Vec<usize> =
        (0..entries.len()).filter(|&at| is_same_registry(&entries[at].0.text, key)).collect();
    if let [only] = same.as_slice()
        && entries[*only].0.text == key
        && entries[*only].1.says_just(&wanted.auth)
        && ours
    {
        return false;
    }
    // Other spellings of this registry would be tried beside ours, in random order, so they go as well.
    taken_over
        .extend(same.iter().map(|&at| &entries[at].0.text).filter(|text| !ours || *text != key).cloned());
    let entry = (Name::new(key), Entry::Ours(wanted.auth.clone()));
    match same.first() {
        Some(&first) => {
            entries[first] = entry;
            let mut at = 0;
            entries.retain(|_| {
                at += 1;
                at - 1 == first || !same.contains(&(at - 1))
            });
        }
        None => entries.push(entry),
    }
    true
}

/// Plans the removal of all that is ours from `document`. An entry that somebody else has changed since is theirs.
///
/// A file of our making with nothing else in it is deleted. `hides_another` says whether the kubelet would find another
/// file then: what came along from that is left to it. A file that stays goes on hiding it, and keeps what came along.
#[must_use]
pub fn remove(mut document: Document<'_>, hides_another: bool) -> Plan {
    let Some(ledger) = document.ledger().cloned() else { return Plan::Keep };
    let is_ours = |key: &str, with_along: bool| {
        let written = ledger.entries.get(key).map(|record| &record.digest);
        let along = ledger.taken_along.get(key).filter(|_| with_along);
        let digest = document.digest(key);
        digest.is_some() && (digest.as_ref() == written || digest.as_ref() == along)
    };
    let made_file = ledger.created == Some(Created::File) && !document.has_other_fields();
    let goes = hides_another && made_file && document.keys().all(|key| is_ours(key, true));
    let removed: Vec<String> = document.keys().filter(|key| is_ours(key, goes)).map(str::to_owned).collect();
    if !removed.is_empty() {
        document.auths_mut().0.retain(|(name, _)| !removed.contains(&name.text));
    }
    document.members.retain(|(_, part)| !matches!(part, Part::Ledger(_)));
    let nothing_left = document.entries().is_empty();
    let made_auths = matches!(ledger.created, Some(Created::Auths | Created::AuthsFromNull));
    if nothing_left && made_auths {
        if ledger.created == Some(Created::AuthsFromNull) {
            for (_, part) in document.members.iter_mut().filter(|(_, part)| part.is_auths()) {
                *part = Part::NullAuths;
            }
        } else {
            document.members.retain(|(_, part)| !part.is_auths());
        }
    }
    let changes = Changes { removed, ..Changes::default() };
    if made_file && nothing_left {
        return Plan::Delete(changes);
    }
    Plan::Replace(document.to_bytes(), changes)
}

fn is_same_registry(text: &str, key: &str) -> bool {
    text == key || index_key(text).is_some_and(|index| index == key)
}

/// Writes the ledger in its place, or at the end.
fn set_ledger(document: &mut Document<'_>, ledger: Ledger) {
    let mut ledger = Some(ledger);
    document.members.retain_mut(|(_, part)| {
        if matches!(part, Part::Ledger(_)) {
            let first = ledger.is_some();
            *part = Part::Ledger(ledger.take());
            return first;
        }
        true
    });
    if ledger.is_some() {
        document.members.push((Name::new(ledger::KEY), Part::Ledger(ledger)));
    }
}
