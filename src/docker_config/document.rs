//! A whole docker config: parsed and judged by the kubelet's rules, serialised again without a change to what is not
//! ours.
//!
//! Values that are not ours are kept as the text they were, so numbers, escapes, doubles and fields that nobody here
//! knows survive. What the kubelet would not accept is reported; what it accepts and we could not carry over
//! faithfully is [`Unusable::CannotCarry`].

use super::entry::{self, Credentials, EntryProblem};
use super::json::{self, Member};
use super::key;
use super::ledger::{self, Ledger, Record};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret as _, SecretString};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// A docker config that the kubelet accepts.
#[derive(Debug, Clone, Default)]
pub struct Document<'a> {
    pub(super) members: Vec<(Name<'a>, Part<'a>)>,
}

/// An object's name: as JSON text, and as Go decodes it.
#[derive(Debug, Clone)]
pub(super) struct Name<'a> {
    json: Cow<'a, str>,
    pub(super) text: String,
}

/// The value of one top-level member.
#[derive(Debug, Clone)]
pub(super) enum Part<'a> {
    /// Not ours to look at: the value's text.
    Foreign(&'a str),
    /// `auths`.
    Auths(Vec<(Name<'a>, Entry<'a>)>),
    /// `"auths": null`.
    NullAuths,
    /// Our own key, where it could be read.
    Ledger(Option<Ledger>),
}

/// One entry under `auths`.
#[derive(Debug, Clone)]
pub(super) enum Entry<'a> {
    /// As it was: the value's text, which the kubelet can decode.
    AsItWas(&'a str),
    /// Ours: the base64 of `user:password`.
    Ours(SecretString),
}

/// A document, and what had to be left out so that the kubelet accepts it.
#[derive(Debug)]
pub struct Parsed<'a> {
    /// The good rest.
    pub document: Document<'a>,
    /// What spoils the file for the kubelet; empty for a file that it accepts.
    pub spoilt: Vec<Spoilt>,
    /// What the kubelet accepts here, and we could not write again as it is.
    not_to_carry: Option<&'static str>,
}

/// Which of its two kinds of files the kubelet reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `config.json`, whose entries stand under `auths`.
    DockerConfig,
    /// `.dockercfg`, whose entries stand at the top level.
    Legacy,
}

/// Something that makes the kubelet ignore a whole file.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Spoilt {
    /// An entry that it cannot decode.
    #[error("the entry `{}` cannot be decoded: {problem}", key::shown(key))]
    Entry {
        /// Its key under `auths`.
        key: String,
        /// What is wrong with it.
        problem: EntryProblem,
    },
    /// `auths` holds neither an object nor null.
    #[error("`auths` is no JSON object")]
    Auths,
    /// `HttpHeaders` must hold strings.
    #[error("`HttpHeaders` is no JSON object of strings")]
    HttpHeaders,
}

/// Why there is no document to work with.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unusable {
    /// The kubelet ignores this file: it can be set aside, and nothing that worked is lost.
    #[error("it is no docker config: {0}")]
    Invalid(String),
    /// The kubelet reads this file, but we could not write it again as it is: nobody touches it.
    #[error("{0}")]
    CannotCarry(&'static str),
}

/// Parses what stands in an auth file.
///
/// # Errors
/// Where there is nothing to merge into. An empty file is [`Unusable::Invalid`], as it is for the kubelet.
pub fn parse(bytes: &[u8]) -> Result<Parsed<'_>, Unusable> {
    let text = match text_of(bytes) {
        Ok(text) => text,
        Err(replaced) => return Err(not_utf8(parse_text(&replaced))),
    };
    let parsed = parse_text(text)?;
    match parsed.not_to_carry {
        Some(why) => Err(parsed.unusable(why)),
        None => Ok(parsed),
    }
}

/// Parses for reading alone: what could not be written again as it is does not count. `text` is the file's, as Go reads
/// it ([`json::replaced`]).
///
/// # Errors
/// [`Unusable::Invalid`], where the kubelet would not read it.
pub(super) fn parse_to_read(text: &str, shape: Shape) -> Result<Parsed<'_>, Unusable> {
    match shape {
        Shape::DockerConfig => parse_text(text),
        Shape::Legacy => parse_legacy_text(text),
    }
}

fn parse_text(text: &str) -> Result<Parsed<'_>, Unusable> {
    if json::too_deep(text) {
        return Err(Unusable::Invalid("nested deeper than 10,000 levels".to_owned()));
    }
    let mut parsed = Parsed { document: Document::default(), spoilt: Vec::new(), not_to_carry: None };
    if json::trim(text) == "null" {
        return Ok(parsed);
    }
    let mut later_version = false;
    for member in members(text)? {
        let name = Name::read(member.name);
        let part = if json::is_field(&name.text, "auths") {
            parse_auths(member.value, &mut parsed.spoilt)
        } else if name.text == ledger::KEY {
            later_version |= ledger::is_of_a_later_version(member.value);
            Some(Part::Ledger(Ledger::from_json(member.value)))
        } else if json::is_field(&name.text, "httpheaders") && !is_object_of_strings(member.value) {
            parsed.spoilt.push(Spoilt::HttpHeaders);
            None
        } else {
            Some(Part::Foreign(member.value))
        };
        parsed.document.members.extend(part.map(|part| (name, part)));
    }
    if parsed.document.members.iter().filter(|(_, part)| part.is_auths()).count() > 1 {
        parsed.not_to_carry = Some("`auths` stands in it more than once, which the kubelet merges");
    } else if later_version {
        parsed.not_to_carry = Some("its `ecr-node-agent` was written by a later version of this program");
    }
    Ok(parsed)
}

/// Parses a legacy `.dockercfg`, whose entries stand at the top level, without `auths`.
///
/// # Errors
/// Where the kubelet would not read it: it must be a JSON object.
pub fn parse_legacy(bytes: &[u8]) -> Result<Parsed<'_>, Unusable> {
    let text = match text_of(bytes) {
        Ok(text) => text,
        Err(replaced) => return Err(not_utf8(parse_legacy_text(&replaced))),
    };
    parse_legacy_text(text)
}

fn parse_legacy_text(text: &str) -> Result<Parsed<'_>, Unusable> {
    if json::too_deep(text) {
        return Err(Unusable::Invalid("nested deeper than 10,000 levels".to_owned()));
    }
    let mut spoilt = Vec::new();
    let part = parse_auths(json::trim(text), &mut spoilt)
        .ok_or_else(|| Unusable::Invalid("it is no object of entries".to_owned()))?;
    let document = Document { members: vec![(Name::new("auths"), part)] };
    Ok(Parsed { document, spoilt, not_to_carry: None })
}

fn members(text: &str) -> Result<Vec<Member<'_>>, Unusable> {
    // The parser's own message would show a value of the wrong type, which may be a token.
    if !text.trim_start().starts_with('{') {
        return Err(Unusable::Invalid("it does not begin with `{`".to_owned()));
    }
    json::members(text).map_err(|error| {
        let what = if error.is_eof() { "it ends too early, at" } else { "there is an error in" };
        Unusable::Invalid(format!("{what} line {} column {}", error.line(), error.column()))
    })
}

/// The text of a file, or, where it is not UTF-8, the text as Go would read it.
fn text_of(bytes: &[u8]) -> Result<&str, Zeroizing<String>> {
    // Go reads invalid UTF-8 inside a string as U+FFFD. Outside a string it is a syntax error, replaced or not.
    std::str::from_utf8(bytes).map_err(|_| json::replaced(bytes))
}

/// What becomes of a file that is not UTF-8: if the kubelet accepts it, nobody touches it.
fn not_utf8(parsed: Result<Parsed<'_>, Unusable>) -> Unusable {
    match parsed {
        Ok(parsed) => parsed.unusable("it holds invalid UTF-8, which the kubelet accepts and we cannot keep"),
        Err(unusable) => unusable,
    }
}

impl Parsed<'_> {
    /// Why there is no document to work with, where `why` is in the way of writing it again: a file that the kubelet
    /// ignores anyway can be set aside as a whole.
    fn unusable(&self, why: &'static str) -> Unusable {
        match self.spoilt.first() {
            Some(spoilt) => Unusable::Invalid(spoilt.to_string()),
            None => Unusable::CannotCarry(why),
        }
    }
}

fn parse_auths<'a>(text: &'a str, spoilt: &mut Vec<Spoilt>) -> Option<Part<'a>> {
    if text == "null" {
        return Some(Part::NullAuths);
    }
    let Ok(members) = json::members(text) else {
        spoilt.push(Spoilt::Auths);
        return None;
    };
    let mut entries = Vec::new();
    for member in members {
        let name = Name::read(member.name);
        match entry::decode(member.value) {
            Ok(_) => entries.push((name, Entry::AsItWas(member.value))),
            Err(problem) => spoilt.push(Spoilt::Entry { key: name.text, problem }),
        }
    }
    Some(Part::Auths(entries))
}

fn is_object_of_strings(text: &str) -> bool {
    let is_string = |member: &Member<'_>| member.value.starts_with('"') || member.value == "null";
    text == "null" || json::members(text).is_ok_and(|members| members.iter().all(is_string))
}

impl<'a> Name<'a> {
    fn read(json: &'a str) -> Self {
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
    /// Whether this entry says `{"auth": <auth>}` and nothing else.
    pub(super) fn says_just(&self, auth: &SecretString) -> bool {
        match self {
            Self::Ours(ours) => ours.expose_secret() == auth.expose_secret(),
            Self::AsItWas(text) => {
                plain_auth(text).is_some_and(|found| found.expose_secret() == auth.expose_secret())
            }
        }
    }

    /// What tells this entry from another: of one as we write it the digest of its `auth`, else of all its text.
    pub(super) fn digest(&self) -> String {
        match self {
            Self::Ours(auth) => ledger::digest(auth.expose_secret()),
            Self::AsItWas(text) => match plain_auth(text) {
                Some(auth) => ledger::digest(auth.expose_secret()),
                None => ledger::digest(text),
            },
        }
    }

    /// User and password in this entry, as the kubelet decodes them.
    pub(super) fn credentials(&self) -> Option<Credentials> {
        match self {
            Self::Ours(auth) => entry::decode_auth(auth).ok(),
            Self::AsItWas(text) => entry::decode(text).ok(),
        }
    }
}

/// The records of the entries that are ours in a document: those whose content is what we wrote. Empty where the document
/// cannot be read.
#[must_use]
pub fn own_records(bytes: &[u8]) -> BTreeMap<String, Record> {
    let Ok(parsed) = parse(bytes) else { return BTreeMap::new() };
    let Some(ledger) = parsed.document.ledger() else { return BTreeMap::new() };
    let is_ours = |key: &str, record: &Record| parsed.document.digest(key).as_ref() == Some(&record.digest);
    let own = ledger.entries.iter().filter(|(key, record)| is_ours(key, record));
    own.map(|(key, record)| (key.clone(), record.clone())).collect()
}

impl<'a> Document<'a> {
    /// What the document remembers for us, where it remembers anything.
    #[must_use]
    pub fn ledger(&self) -> Option<&Ledger> {
        self.members.iter().rev().find_map(|(_, part)| match part {
            Part::Ledger(ledger) => ledger.as_ref(),
            _ => None,
        })
    }

    /// What tells the entry under `key` from another, if there is one.
    #[must_use]
    pub fn digest(&self, key: &str) -> Option<String> {
        let (_, entry) = self.entries().iter().rev().find(|(name, _)| name.text == key)?;
        Some(entry.digest())
    }

    /// The keys under `auths`, in the document's order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries().iter().map(|(name, _)| name.text.as_str())
    }

    /// The credentials under `key`, which must be spelt as it stands there. Of doubles the last counts, as for Go.
    #[must_use]
    pub fn credentials(&self, key: &str) -> Option<Credentials> {
        let (_, entry) = self.entries().iter().rev().find(|(name, _)| name.text == key)?;
        entry.credentials()
    }

    /// The `auth` under `key`, where that is all that stands there: an entry as we write it.
    #[must_use]
    pub fn plain_auth(&self, key: &str) -> Option<SecretString> {
        let (_, entry) = self.entries().iter().rev().find(|(name, _)| name.text == key)?;
        match entry {
            Entry::Ours(auth) => Some(auth.clone()),
            Entry::AsItWas(text) => plain_auth(text),
        }
    }

    /// Whether nothing is in it that anybody put there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Takes over the entries of `other`, except those for registries that are here already. Returns their keys, with a
    /// digest of each entry.
    pub fn take_along(&mut self, other: &Document<'a>) -> BTreeMap<String, String> {
        let here: Vec<_> = self.keys().map(key::index_key).collect();
        let along: Vec<_> =
            other.entries().iter().filter(|(name, _)| !here.contains(&key::index_key(&name.text))).collect();
        let keys = along.iter().map(|(name, entry)| (name.text.clone(), entry.digest())).collect();
        if !along.is_empty() {
            self.auths_mut().0.extend(along.into_iter().cloned());
        }
        keys
    }

    /// Whether there is more in it than `auths`.
    #[must_use]
    pub fn has_other_fields(&self) -> bool {
        self.members.iter().any(|(_, part)| matches!(part, Part::Foreign(_)))
    }

    /// The entries that the kubelet ends up with: of doubles the last, and of several `auths` their union since the last
    /// one that is null.
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

    /// The entries to change, and what had to be made for there to be any.
    pub(super) fn auths_mut(&mut self) -> (&mut Vec<(Name<'a>, Entry<'a>)>, Option<ledger::Created>) {
        let found = self.members.iter().position(|(_, part)| part.is_auths());
        let (at, created) = match found {
            Some(at) if matches!(self.members[at].1, Part::NullAuths) => {
                self.members[at].1 = Part::Auths(Vec::new());
                (at, Some(ledger::Created::AuthsFromNull))
            }
            Some(at) => (at, None),
            None => {
                self.members.push((Name::new("auths"), Part::Auths(Vec::new())));
                (self.members.len() - 1, Some(ledger::Created::Auths))
            }
        };
        let Part::Auths(entries) = &mut self.members[at].1 else {
            unreachable!("the member at this place is `auths`, by the lines above")
        };
        (entries, created)
    }

    /// The document as text, indented as docker does it. The bytes hold credentials and are zeroed when dropped.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        // Sized up front: a vector that grows leaves copies of what it held behind, which nobody would zero.
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
                Entry::AsItWas(text) => out.put(text),
                Entry::Ours(auth) => {
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

/// The `auth` of an entry that holds nothing else.
fn plain_auth(text: &str) -> Option<SecretString> {
    match json::members(text).ok()?.as_slice() {
        [only] if only.name == "\"auth\"" => json::string(only.value).map(SecretString::from),
        _ => None,
    }
}

/// Where text goes: into bytes, or only counted.
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
