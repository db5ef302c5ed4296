//! A docker config: what the kubelet would read in it, and the same text again without a change to foreign content.
//!
//! Values that the agent did not write are kept as their JSON text. So numbers, escapes, repeated names and unknown fields
//! survive unchanged. [`parse`](super::parse) makes documents.

use super::entry::{self, Credentials};
use super::json;
use super::key;
use super::ledger::{self, Created, Ledger, Record};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret as _, SecretString};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::OnceLock;

/// A docker config that the kubelet accepts.
#[derive(Debug, Clone, Default)]
pub struct Document<'a> {
    members: Vec<(Name<'a>, Part<'a>)>,
    /// For each key, the place of its last entry. Built when it is first needed.
    last: OnceLock<HashMap<String, usize>>,
}

/// An object's name: its JSON text, and its value as Go decodes it.
#[derive(Debug, Clone)]
pub(super) struct Name<'a> {
    json: Cow<'a, str>,
    pub(super) text: String,
}

/// The value of one top-level member.
#[derive(Debug, Clone)]
pub(super) enum Part<'a> {
    /// Foreign content: the value's text.
    Foreign(&'a str),
    /// `auths`.
    Auths(Vec<(Name<'a>, Entry<'a>)>),
    /// `"auths": null`.
    NullAuths,
    /// The agent's own key; `None` if it could not be read.
    Ledger(Option<Ledger>),
}

/// One entry under `auths`.
#[derive(Debug, Clone)]
pub(super) enum Entry<'a> {
    /// An entry from the file: the value's text, which the kubelet can decode.
    FromFile(&'a str),
    /// An entry that the agent writes: the base64 of `user:password`.
    New(SecretString),
}

impl<'a> Name<'a> {
    pub(super) fn read(json: &'a str) -> Self {
        Self { json: Cow::Borrowed(json), text: json::string(json).unwrap_or_default() }
    }

    pub(super) fn new(text: &str) -> Self {
        Self { json: Cow::Owned(json::quoted(text)), text: text.to_owned() }
    }
}

impl Part<'_> {
    pub(super) fn is_auths(&self) -> bool {
        matches!(self, Self::Auths(_) | Self::NullAuths)
    }
}

impl Entry<'_> {
    /// Whether this entry is `{"auth": <auth>}` and nothing else.
    pub(super) fn is_just(&self, auth: &SecretString) -> bool {
        self.plain_auth().is_some_and(|found| found.expose_secret() == auth.expose_secret())
    }

    /// The digest of the entry: of its `auth` if it holds nothing else, as the agent writes entries, otherwise of its text.
    pub(super) fn digest(&self) -> String {
        match (self.plain_auth(), self) {
            (Some(auth), _) => ledger::digest(auth.expose_secret()),
            (None, Self::FromFile(text)) => ledger::digest(text),
            (None, Self::New(auth)) => ledger::digest(auth.expose_secret()),
        }
    }

    /// User and password of this entry, as the kubelet decodes them.
    pub(super) fn credentials(&self) -> Option<Credentials> {
        match self {
            Self::New(auth) => entry::decode_auth(auth).ok(),
            Self::FromFile(text) => entry::decode(text).ok(),
        }
    }

    /// The entry's `auth`, if the entry holds nothing else.
    fn plain_auth(&self) -> Option<SecretString> {
        let text = match self {
            Self::New(auth) => return Some(auth.clone()),
            Self::FromFile(text) => text,
        };
        match json::members(text).ok()?.as_slice() {
            [only] if only.name == "\"auth\"" => json::string(only.value).map(SecretString::from),
            _ => None,
        }
    }
}

impl<'a> Document<'a> {
    pub(super) fn of(members: Vec<(Name<'a>, Part<'a>)>) -> Self {
        Self { members, last: OnceLock::new() }
    }

    /// The agent's ledger, if the document has one that can be read.
    #[must_use]
    pub fn ledger(&self) -> Option<&Ledger> {
        self.members.iter().rev().find_map(|(_, part)| match part {
            Part::Ledger(ledger) => ledger.as_ref(),
            _ => None,
        })
    }

    /// The records of the entries whose content is what the agent wrote.
    #[must_use]
    pub fn own_records(&self) -> BTreeMap<String, Record> {
        let Some(ledger) = self.ledger() else { return BTreeMap::new() };
        let is_own = |key: &str, record: &Record| self.digest(key).as_ref() == Some(&record.digest);
        let own = ledger.entries.iter().filter(|(key, record)| is_own(key, record));
        own.map(|(key, record)| (key.clone(), record.clone())).collect()
    }

    /// The digest of the entry under `key`, if there is one.
    #[must_use]
    pub fn digest(&self, key: &str) -> Option<String> {
        self.entry(key).map(Entry::digest)
    }

    /// The keys under `auths`, in the document's order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries().iter().map(|(name, _)| name.text.as_str())
    }

    /// The credentials under `key`, which must be spelt exactly as in the document. If the key is repeated, its last entry
    /// counts, as for Go.
    #[must_use]
    pub fn credentials(&self, key: &str) -> Option<Credentials> {
        self.entry(key).and_then(Entry::credentials)
    }

    /// The `auth` under `key`, if the entry holds nothing else, as the agent writes entries.
    #[must_use]
    pub fn plain_auth(&self, key: &str) -> Option<SecretString> {
        self.entry(key).and_then(Entry::plain_auth)
    }

    fn entry(&self, key: &str) -> Option<&Entry<'a>> {
        let index = || -> HashMap<String, usize> {
            self.keys().enumerate().map(|(place, key)| (key.to_owned(), place)).collect()
        };
        let place = *self.last.get_or_init(index).get(key)?;
        self.entries().get(place).map(|(_, entry)| entry)
    }

    /// Copies the entries of `other`, except those for registries that this document has already. Returns the copied keys,
    /// with the digest of each entry.
    pub fn copy_entries(&mut self, other: &Document<'a>) -> BTreeMap<String, String> {
        let here: HashSet<_> = self.keys().map(key::index_key).collect();
        let copied: Vec<_> =
            other.entries().iter().filter(|(name, _)| !here.contains(&key::index_key(&name.text))).collect();
        let keys = copied.iter().map(|(name, entry)| (name.text.clone(), entry.digest())).collect();
        if !copied.is_empty() {
            self.auths_mut().0.extend(copied.into_iter().cloned());
        }
        keys
    }

    /// Whether the document has top-level fields besides `auths` and the ledger.
    #[must_use]
    pub fn has_other_fields(&self) -> bool {
        self.other_fields().next().is_some()
    }

    /// Name and text of the top-level fields besides `auths` and the ledger.
    pub(super) fn other_fields(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.members.iter().filter_map(|(name, part)| match part {
            Part::Foreign(text) => Some((name.text.as_str(), *text)),
            _ => None,
        })
    }

    pub(super) fn members_mut(&mut self) -> &mut Vec<(Name<'a>, Part<'a>)> {
        self.last.take();
        &mut self.members
    }

    /// How many of the top-level members are `auths`. Go merges them.
    pub(super) fn count_auths(&self) -> usize {
        self.members.iter().filter(|(_, part)| part.is_auths()).count()
    }

    /// The entries that the kubelet ends up with: the last of repeated keys, and the union of several `auths` since the
    /// last one that is null.
    pub(super) fn all_entries(&self) -> BTreeMap<&str, &Entry<'a>> {
        let mut all = BTreeMap::new();
        for (_, part) in &self.members {
            match part {
                Part::NullAuths => all.clear(),
                Part::Auths(entries) => {
                    all.extend(entries.iter().map(|(name, entry)| (name.text.as_str(), entry)));
                }
                Part::Foreign(_) | Part::Ledger(_) => {}
            }
        }
        all
    }

    pub(super) fn entries(&self) -> &[(Name<'a>, Entry<'a>)] {
        let auths = self.members.iter().find_map(|(_, part)| match part {
            Part::Auths(entries) => Some(entries.as_slice()),
            _ => None,
        });
        auths.unwrap_or_default()
    }

    /// The entries to change, and what had to be created for them.
    pub(super) fn auths_mut(&mut self) -> (&mut Vec<(Name<'a>, Entry<'a>)>, Option<Created>) {
        let members = self.members_mut();
        let found = members.iter().position(|(_, part)| part.is_auths());
        let (at, created) = match found {
            Some(at) if matches!(members[at].1, Part::NullAuths) => {
                members[at].1 = Part::Auths(Vec::new());
                (at, Some(Created::AuthsFromNull))
            }
            Some(at) => (at, None),
            None => {
                members.push((Name::new("auths"), Part::Auths(Vec::new())));
                (members.len() - 1, Some(Created::Auths))
            }
        };
        let Part::Auths(entries) = &mut members[at].1 else {
            unreachable!("the member at this place is `auths`, by the lines above")
        };
        (entries, created)
    }

    /// Writes the ledger in its place, or at the end. Repeated ledgers go.
    pub(super) fn set_ledger(&mut self, ledger: Ledger) {
        let mut ledger = Some(ledger);
        let members = self.members_mut();
        members.retain_mut(|(_, part)| {
            if matches!(part, Part::Ledger(_)) {
                let is_first = ledger.is_some();
                *part = Part::Ledger(ledger.take());
                return is_first;
            }
            true
        });
        if ledger.is_some() {
            members.push((Name::new(ledger::KEY), Part::Ledger(ledger)));
        }
    }

    /// The document as text, indented as docker does it. The bytes hold credentials and are zeroed when dropped.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        // The size is counted first: a vector that grows leaves copies of its content behind that are not zeroed.
        let mut size = Size(16);
        self.write(&mut size);
        let mut bytes = Zeroizing::new(Vec::with_capacity(size.0));
        self.write(&mut *bytes);
        bytes
    }

    fn write(&self, out: &mut impl Out) {
        object(out, "", &self.members, |out, part| match part {
            Part::Foreign(text) => out.put(text),
            Part::NullAuths => out.put("null"),
            Part::Auths(entries) => object(out, "\t", entries, |out, entry| match entry {
                Entry::FromFile(text) => out.put(text),
                Entry::New(auth) => {
                    // Base64 needs no escapes.
                    out.put("{\n\t\t\t\"auth\": \"");
                    out.put(auth.expose_secret());
                    out.put("\"\n\t\t}");
                }
            }),
            Part::Ledger(ledger) => {
                out.put(&ledger.as_ref().map_or_else(|| "null".to_owned(), Ledger::to_json));
            }
        });
        out.put("\n");
    }
}

/// Where text is written to: into bytes, or only counted.
trait Out {
    fn put(&mut self, text: &str);
}

impl Out for Vec<u8> {
    fn put(&mut self, text: &str) {
        self.extend_from_slice(text.as_bytes());
    }
}

struct Size(usize);

impl Out for Size {
    fn put(&mut self, text: &str) {
        self.0 += text.len();
    }
}

fn object<O: Out, T>(out: &mut O, indent: &str, members: &[(Name<'_>, T)], value: impl Fn(&mut O, &T)) {
    if members.is_empty() {
        return out.put("{}");
    }
    out.put("{");
    for (number, (name, part)) in members.iter().enumerate() {
        out.put(if number == 0 { "\n" } else { ",\n" });
        out.put(indent);
        out.put("\t");
        out.put(&name.json);
        out.put(": ");
        value(out, part);
    }
    out.put("\n");
    out.put(indent);
    out.put("}");
}
