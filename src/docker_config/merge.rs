//! What a publish, or a removal, changes in a document.
//!
//! The decision is a value ([`Plan`]), so "nothing to do" is a case of its own and not a write that changes nothing.

use super::document::{Document, Entry, Name, Part};
use super::key::index_key;
use super::ledger::{self, Created, Ledger, Record};
use jiff::Timestamp;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret as _, SecretString};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The user name in every token of ECR's.
const ECR_USER: &str = "AWS";

/// What a document should hold.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Entries to write, by key.
    pub entries: BTreeMap<String, WantedEntry>,
    /// Keys of registries that are configured but have no new token: their entries stay.
    pub keep: Vec<String>,
    /// Keys of registries without a new token whose entry must be removed if it expires by this time: the kubelet makes
    /// no anonymous attempt after a credential that fails, so for a registry that also serves anonymous pulls an
    /// expired entry is worse than none.
    pub lapse: BTreeMap<String, Timestamp>,
    /// Whether the agent's entries that are in none of these lists are removed. `false` if a refresh could not find out
    /// for which registries it is.
    pub drop_others: bool,
}

/// What [`plan`] has to know besides the document and what is wanted of it.
#[derive(Debug)]
pub struct MergeInput {
    /// Where the document comes from.
    pub origin: Origin,
    /// The entries that were copied from a hidden file, as [`Document::copy_entries`] returned them.
    pub copied: BTreeMap<String, String>,
    /// Whether the wanted entries are written even if the document holds a token of a higher rank: an explicit refresh
    /// always writes what it fetched.
    pub explicit: bool,
    /// The wall clock.
    pub now: Timestamp,
}

/// Where the document to merge into comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// From a file that the kubelet accepts.
    File,
    /// From a file that the kubelet ignores: what is left of it, or what it held before it was damaged. It is written even
    /// if nothing else changes.
    Repaired,
    /// From nothing: there was no file, or an empty one.
    Nothing,
}

/// One entry to write, and what the ledger stores about it.
#[derive(Debug, Clone)]
pub struct WantedEntry {
    /// The base64 of `user:password`.
    pub auth: SecretString,
    /// When ECR stops accepting it.
    pub expires_at: Timestamp,
    /// When ECR issued it.
    pub fetched_at: Timestamp,
    /// The token source that it came from.
    pub source: String,
    /// Whether ECR's answer named the registry, since none was asked for.
    pub default_registry: bool,
}

impl WantedEntry {
    /// What the ledger stores about the entry.
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

/// What to do with the file.
#[derive(Debug)]
pub enum Plan {
    /// The document is as wanted: no write, no fsync, no inode change.
    Keep,
    /// Replace the file by these bytes.
    Replace(Zeroizing<Vec<u8>>, Changes),
    /// Delete the file: the agent created it, and nothing is left in it.
    Delete(Changes),
}

/// What a plan changes, for the log.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Changes {
    /// Keys of the agent's entries that are new or have a new value, with the time at which each expires.
    pub written: Vec<(String, Timestamp)>,
    /// Keys of entries without a record that are replaced because the agent keeps an entry for the same registry.
    pub taken_over: Vec<String>,
    /// Keys of the agent's entries that are removed.
    pub removed: Vec<String>,
}

/// Plans the merge of `wanted` into `document`. Foreign content keeps its place and value.
///
/// A document that comes from nothing is marked as created, so that [`remove`] can undo that too.
#[must_use]
pub fn plan(mut document: Document<'_>, wanted: &Wanted, input: MergeInput) -> Plan {
    let MergeInput { origin, copied, explicit, now } = input;
    let before = document.ledger().cloned();
    let mut ledger = before.clone().unwrap_or_default();
    // An entry whose content has changed belongs to whoever changed it.
    ledger.entries.retain(|key, record| document.digest(key).is_none_or(|digest| digest == record.digest));
    if origin == Origin::Nothing {
        ledger.created = ledger.created.or(Some(Created::File));
    }
    ledger.taken_along.extend(copied);
    let mut changes = Changes::default();

    let configured: BTreeSet<&String> = wanted.entries.keys().chain(&wanted.keep).collect();
    let is_removed = |key: &String, record: &Record| match wanted.lapse.get(key) {
        Some(until) => record.expires_at <= *until,
        None => wanted.drop_others && !configured.contains(key),
    };
    let removed: BTreeSet<String> = ledger
        .entries
        .iter()
        .filter(|(key, record)| is_removed(key, record))
        .map(|(key, _)| key.clone())
        .collect();
    if !removed.is_empty() {
        ledger.entries.retain(|key, _| !removed.contains(key));
        document.auths_mut().0.retain(|(name, _)| !removed.contains(&name.text));
    }
    changes.removed = removed.into_iter().collect();

    // Another agent's token stays if it outranks ours: all agents then settle on the same one.
    let is_outranked = |document: &Document<'_>, ledger: &Ledger, key: &String, entry: &WantedEntry| {
        let Some(record) = ledger.entries.get(key).filter(|record| record.source == entry.source) else {
            return false;
        };
        !explicit && record.rank(now) > entry.record().rank(now) && document.digest(key).is_some()
    };
    let (outranked, to_write): (Vec<_>, Vec<_>) =
        wanted.entries.iter().partition(|(key, entry)| is_outranked(&document, &ledger, key, entry));
    for (key, entry) in outranked {
        // The other token serves as the one for the default registry, too.
        if let Some(record) = ledger.entries.get_mut(key) {
            record.default_registry |= entry.default_registry;
        }
    }
    if !to_write.is_empty() {
        let (entries, created) = document.auths_mut();
        ledger.created = ledger.created.or(created);
        put(entries, &to_write, &mut ledger, &mut changes);
    }
    // An entry that another program has removed is no longer the agent's.
    let keys: BTreeSet<&str> = document.keys().collect();
    ledger.entries.retain(|key, _| keys.contains(key.as_str()));

    // A file that the kubelet ignores is not repaired for its own sake: once repaired, it hides the file that the kubelet
    // reads instead.
    let unchanged = (origin != Origin::Repaired || wanted.entries.is_empty())
        && changes == Changes::default()
        && (before.as_ref() == Some(&ledger) || before.is_none() && ledger.entries.is_empty());
    if unchanged {
        return Plan::Keep;
    }
    document.set_ledger(ledger);
    Plan::Replace(document.to_bytes(), changes)
}

/// Puts the entries in their places: over the first entry for the same registry, or at the end.
fn put(
    entries: &mut Vec<(Name<'_>, Entry<'_>)>,
    wanted: &[(&String, &WantedEntry)],
    ledger: &mut Ledger,
    changes: &mut Changes,
) {
    // The places of the entries for each registry, in any spelling.
    let mut places: HashMap<String, Vec<usize>> = HashMap::new();
    for (place, (name, _)) in entries.iter().enumerate() {
        let registry = index_key(&name.text).filter(|registry| *registry != name.text);
        for spelling in registry.into_iter().chain([name.text.clone()]) {
            places.entry(spelling).or_default().push(place);
        }
    }
    let mut superseded = BTreeSet::<usize>::new();
    for (key, entry) in wanted {
        let is_own = ledger.entries.contains_key(*key);
        let same = places.get(*key).map(Vec::as_slice).unwrap_or_default();
        let is_there =
            matches!(same, [only] if entries[*only].0.text == **key && entries[*only].1.is_just(&entry.auth));
        if !(is_there && is_own) {
            // The kubelet would try other spellings of this registry beside ours, in random order, so they go as well.
            let taken_over = same.iter().map(|&place| &entries[place].0.text);
            changes.taken_over.extend(taken_over.filter(|text| !is_own || text != key).cloned());
            let new = (Name::new(key), Entry::New(entry.auth.clone()));
            match same.split_first() {
                Some((&first, others)) => {
                    entries[first] = new;
                    superseded.extend(others);
                }
                None => entries.push(new),
            }
            changes.written.push(((*key).clone(), entry.expires_at));
        }
        ledger.entries.insert((*key).clone(), entry.record());
    }
    if !superseded.is_empty() {
        let mut place = 0;
        entries.retain(|_| {
            place += 1;
            !superseded.contains(&(place - 1))
        });
    }
}

/// Plans the writing of copied entries into `document`, before the agent has an entry to write.
#[must_use]
pub fn plan_copied(mut document: Document<'_>, origin: Origin, copied: BTreeMap<String, String>) -> Plan {
    let mut ledger = document.ledger().cloned().unwrap_or_default();
    if origin == Origin::Nothing {
        ledger.created = ledger.created.or(Some(Created::File));
    }
    ledger.taken_along.extend(copied);
    document.set_ledger(ledger);
    Plan::Replace(document.to_bytes(), Changes::default())
}

/// Whether no foreign content is lost when `document` is replaced by `other`. `copies_count` says whether entries that were
/// copied from a hidden file count as foreign content.
#[must_use]
pub fn adds_nothing(document: &Document<'_>, other: &Document<'_>, copies_count: bool) -> bool {
    let is_own = |key: &str, digest: &String| {
        let Some(ledger) = document.ledger() else { return false };
        let written = ledger.entries.get(key).map(|record| &record.digest);
        let copied = ledger.taken_along.get(key).filter(|_| !copies_count);
        written == Some(digest) || copied == Some(digest)
    };
    let is_covered = |key: &str| {
        let digest = document.digest(key);
        other.digest(key) == digest || digest.is_some_and(|digest| is_own(key, &digest))
    };
    let fields: BTreeSet<_> = other.other_fields().collect();
    document.other_fields().all(|field| fields.contains(&field)) && document.keys().all(is_covered)
}

/// The foreign keys of `document`: those of entries that are not the agent's.
#[must_use]
pub fn foreign_keys(document: &Document<'_>) -> Vec<String> {
    let own = document.own_records();
    document.keys().filter(|key| !own.contains_key(*key)).map(str::to_owned).collect()
}

/// The keys of entries that look like the agent's, with the user name of ECR's tokens, but have no record. Another
/// program may have dropped the ledger: `docker login` drops top-level keys that it does not know.
#[must_use]
pub fn unrecorded(document: &Document<'_>) -> Vec<String> {
    let mut keys = foreign_keys(document);
    keys.retain(|key| document.credentials(key).is_some_and(|found| found.username == ECR_USER));
    keys
}

/// Plans the removal of the agent's entries from `document`. An entry that another program has changed since is not the
/// agent's and stays.
///
/// Entries without a record are removed too if they are for one of `registries` and have the user name of ECR's tokens.
/// A file that the agent created and that holds nothing else is deleted. `hides_another` says whether the kubelet would then
/// find another file: the entries that were copied from it are removed with the file. A file that stays goes on hiding
/// the other one, and keeps the copied entries.
#[must_use]
pub fn remove(mut document: Document<'_>, hides_another: bool, registries: &[String]) -> Plan {
    let is_named = |key: &str| registries.iter().any(|registry| is_same_registry(key, registry));
    let unrecorded: BTreeSet<String> =
        unrecorded(&document).into_iter().filter(|key| is_named(key)).collect();
    let found = document.ledger().cloned();
    if found.is_none() && unrecorded.is_empty() {
        return Plan::Keep;
    }
    let ledger = found.unwrap_or_default();
    let is_own = |key: &str, with_copied: bool| {
        let written = ledger.entries.get(key).map(|record| &record.digest);
        let copied = ledger.taken_along.get(key).filter(|_| with_copied);
        let digest = document.digest(key);
        digest.is_some() && (digest.as_ref() == written || digest.as_ref() == copied)
            || unrecorded.contains(key)
    };
    let created_file = ledger.created == Some(Created::File) && !document.has_other_fields();
    let with_copied = hides_another && created_file && document.keys().all(|key| is_own(key, true));
    let removed: BTreeSet<String> =
        document.keys().filter(|key| is_own(key, with_copied)).map(str::to_owned).collect();
    if !removed.is_empty() {
        document.auths_mut().0.retain(|(name, _)| !removed.contains(&name.text));
    }
    document.members_mut().retain(|(_, part)| !matches!(part, Part::Ledger(_)));
    let nothing_left = document.entries().is_empty();
    match ledger.created.filter(|_| nothing_left) {
        Some(Created::Auths) => document.members_mut().retain(|(_, part)| !part.is_auths()),
        Some(Created::AuthsFromNull) => {
            for (_, part) in document.members_mut().iter_mut().filter(|(_, part)| part.is_auths()) {
                *part = Part::NullAuths;
            }
        }
        Some(Created::File) | None => {}
    }
    let changes = Changes { removed: removed.into_iter().collect(), ..Changes::default() };
    if created_file && nothing_left {
        return Plan::Delete(changes);
    }
    Plan::Replace(document.to_bytes(), changes)
}

fn is_same_registry(text: &str, key: &str) -> bool {
    text == key || index_key(text).is_some_and(|index| index == key)
}
