//! Parses a docker config and judges it by the kubelet's rules.
//!
//! What the kubelet would not accept is reported as a [`Defect`]. What the kubelet accepts and this program could not
//! write again unchanged is [`ParseError::CannotPreserve`].

use super::document::{Document, Entry, Name, Part};
use super::entry::{self, EntryProblem};
use super::json::{self, Member};
use super::key;
use super::ledger::{self, Ledger, Record};
use secrecy::zeroize::Zeroizing;
use std::collections::BTreeMap;

/// A document, and what was left out so that the kubelet accepts it.
#[derive(Debug)]
pub struct Parsed<'a> {
    /// The document without its defects.
    pub document: Document<'a>,
    /// What makes the kubelet ignore the file; empty if the kubelet accepts the file.
    pub defects: Vec<Defect>,
    /// What the kubelet accepts in the file and this program could not write again unchanged.
    not_preserved: Option<&'static str>,
}

/// Which of the kubelet's two kinds of files it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `config.json`, whose entries are under `auths`.
    DockerConfig,
    /// `.dockercfg`, whose entries are at the top level.
    Legacy,
}

/// Something that makes the kubelet ignore the whole file.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Defect {
    /// An entry that the kubelet cannot decode.
    #[error("the entry `{}` cannot be decoded: {problem}", key::shown(key))]
    Entry {
        /// Its key under `auths`.
        key: String,
        /// What is wrong with it.
        problem: EntryProblem,
    },
    /// `auths` is neither an object nor null.
    #[error("`auths` is no JSON object")]
    Auths,
    /// `HttpHeaders` must hold strings.
    #[error("`HttpHeaders` is no JSON object of strings")]
    HttpHeaders,
}

/// Why there is no document to work with.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseError {
    /// The kubelet ignores this file, so replacing it breaks nothing that works.
    #[error("it is no docker config: {0}")]
    Invalid(String),
    /// The kubelet reads this file, but this program could not write it again unchanged. It must not be touched.
    #[error("{0}")]
    CannotPreserve(&'static str),
}

/// Parses the content of an auth file.
///
/// # Errors
/// If there is nothing to merge into. An empty file is [`ParseError::Invalid`], as it is for the kubelet.
pub fn parse(bytes: &[u8]) -> Result<Parsed<'_>, ParseError> {
    let text = match text_of(bytes) {
        Ok(text) => text,
        Err(replaced) => return Err(not_utf8(parse_text(&replaced))),
    };
    let parsed = parse_text(text)?;
    match parsed.not_preserved {
        Some(why) => Err(parsed.error(why)),
        None => Ok(parsed),
    }
}

/// The records of the agent's entries in a document: those whose content is what the agent wrote. Empty if the document cannot
/// be read.
#[must_use]
pub fn own_records(bytes: &[u8]) -> BTreeMap<String, Record> {
    parse(bytes).map(|parsed| parsed.document.own_records()).unwrap_or_default()
}

/// Parses for reading only: content that could not be written again unchanged is no error. `text` is the file's text as Go
/// reads it ([`json::replaced`]).
///
/// # Errors
/// [`ParseError::Invalid`], if the kubelet would not read it.
pub(super) fn parse_to_read(text: &str, shape: Shape) -> Result<Parsed<'_>, ParseError> {
    match shape {
        Shape::DockerConfig => parse_text(text),
        Shape::Legacy => parse_legacy_text(text),
    }
}

fn parse_text(text: &str) -> Result<Parsed<'_>, ParseError> {
    if json::too_deep(text) {
        return Err(ParseError::Invalid("nested deeper than 10,000 levels".to_owned()));
    }
    if json::trim(text) == "null" {
        return Ok(Parsed { document: Document::default(), defects: Vec::new(), not_preserved: None });
    }
    let (mut parts, mut defects, mut later_version) = (Vec::new(), Vec::new(), false);
    for member in members(text)? {
        let name = Name::read(member.name);
        let part = if json::is_field(&name.text, "auths") {
            parse_auths(member.value, &mut defects)
        } else if name.text == ledger::KEY {
            later_version |= ledger::is_of_a_later_version(member.value);
            Some(Part::Ledger(Ledger::from_json(member.value)))
        } else if json::is_field(&name.text, "httpheaders") && !is_object_of_strings(member.value) {
            defects.push(Defect::HttpHeaders);
            None
        } else {
            Some(Part::Foreign(member.value))
        };
        parts.extend(part.map(|part| (name, part)));
    }
    let document = Document::of(parts);
    let not_preserved = match () {
        () if document.count_auths() > 1 => {
            Some("`auths` stands in it more than once, which the kubelet merges")
        }
        () if later_version => Some("its `ecr-node-agent` was written by a later version of this program"),
        () => None,
    };
    Ok(Parsed { document, defects, not_preserved })
}

/// Parses a legacy `.dockercfg`, whose entries are at the top level, without `auths`.
///
/// # Errors
/// If the kubelet would not read it: it must be a JSON object.
pub fn parse_legacy(bytes: &[u8]) -> Result<Parsed<'_>, ParseError> {
    let text = match text_of(bytes) {
        Ok(text) => text,
        Err(replaced) => return Err(not_utf8(parse_legacy_text(&replaced))),
    };
    parse_legacy_text(text)
}

fn parse_legacy_text(text: &str) -> Result<Parsed<'_>, ParseError> {
    if json::too_deep(text) {
        return Err(ParseError::Invalid("nested deeper than 10,000 levels".to_owned()));
    }
    let mut defects = Vec::new();
    let part = parse_auths(json::trim(text), &mut defects)
        .ok_or_else(|| ParseError::Invalid("it is no object of entries".to_owned()))?;
    let document = Document::of(vec![(Name::new("auths"), part)]);
    Ok(Parsed { document, defects, not_preserved: None })
}

fn members(text: &str) -> Result<Vec<Member<'_>>, ParseError> {
    // The JSON parser's own message would show a value of the wrong type, which may be a token.
    if !text.trim_start().starts_with('{') {
        return Err(ParseError::Invalid("it does not begin with `{`".to_owned()));
    }
    json::members(text).map_err(|error| {
        let what = if error.is_eof() { "it ends too early, at" } else { "there is an error in" };
        ParseError::Invalid(format!("{what} line {} column {}", error.line(), error.column()))
    })
}

/// The text of a file. If it is not UTF-8, the error holds the text as Go would read it.
fn text_of(bytes: &[u8]) -> Result<&str, Zeroizing<String>> {
    // Go reads invalid UTF-8 inside a string as U+FFFD. Outside a string it is a syntax error, replaced or not.
    std::str::from_utf8(bytes).map_err(|_| json::replaced(bytes))
}

/// The error for a file that is not UTF-8. If the kubelet accepts the file, it must not be touched.
fn not_utf8(parsed: Result<Parsed<'_>, ParseError>) -> ParseError {
    match parsed {
        Ok(parsed) => parsed.error("it holds invalid UTF-8, which the kubelet accepts and we cannot keep"),
        Err(error) => error,
    }
}

impl Parsed<'_> {
    /// The error for a file that cannot be written again because of `why`. A file with a defect is ignored by the kubelet
    /// anyway, so it counts as invalid.
    fn error(&self, why: &'static str) -> ParseError {
        match self.defects.first() {
            Some(defect) => ParseError::Invalid(defect.to_string()),
            None => ParseError::CannotPreserve(why),
        }
    }
}

fn parse_auths<'a>(text: &'a str, defects: &mut Vec<Defect>) -> Option<Part<'a>> {
    if text == "null" {
        return Some(Part::NullAuths);
    }
    let Ok(members) = json::members(text) else {
        defects.push(Defect::Auths);
        return None;
    };
    let mut entries = Vec::new();
    for member in members {
        let name = Name::read(member.name);
        match entry::decode(member.value) {
            Ok(_) => entries.push((name, Entry::FromFile(member.value))),
            Err(problem) => defects.push(Defect::Entry { key: name.text, problem }),
        }
    }
    Some(Part::Auths(entries))
}

fn is_object_of_strings(text: &str) -> bool {
    let is_string = |member: &Member<'_>| member.value.starts_with('"') || member.value == "null";
    text == "null" || json::members(text).is_ok_and(|members| members.iter().all(is_string))
}
