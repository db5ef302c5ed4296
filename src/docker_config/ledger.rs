//! Our own top-level key in the document: which entries are ours, and until when they are good.
//!
//! Readers of docker configs ignore keys that they do not know (kubelet, docker, containers/image), so the document
//! itself can remember what a restart would otherwise have to ask ECR for.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// The name of the top-level key.
pub const KEY: &str = "ecr-node-agent";

/// The shape that this program writes. A later one is read as if there were no ledger.
const VERSION: u32 = 1;

/// What the document remembers for us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ledger {
    version: u32,
    /// What was not there before us, so that `remove` can leave the node as we found it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Created>,
    /// The entries that are ours, by their key under `auths`.
    #[serde(default)]
    pub entries: BTreeMap<String, Record>,
    /// Entries that came along when this file began to hide another, by key, with a digest of each: `remove` leaves them
    /// to that other file again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub taken_along: BTreeMap<String, String>,
}

/// What we brought into being besides entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Created {
    /// There was no auth file, or none with anything in it.
    File,
    /// The document had no `auths`.
    Auths,
    /// The document said `"auths": null`.
    AuthsFromNull,
}

/// What we know of one entry of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// When ECR stops accepting the token.
    pub expires_at: Timestamp,
    /// When ECR handed it out.
    pub fetched_at: Timestamp,
    /// Whom it was fetched from and as whom (region, kind of endpoint, role): a token in place counts as fresh only
    /// for the same source.
    pub source: String,
    /// Whether ECR's answer named this registry, since none was asked for. An agent without `--registry` takes no other entry
    /// for its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub default_registry: bool,
    /// A digest of the `auth` that we wrote, which tells whether the entry is still ours.
    pub digest: String,
}

/// The total order on tokens, by which agents that know nothing of each other agree on one: the token that expires later is
/// better, then the one that was fetched later, then the one whose digest is larger.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    expires_at: Timestamp,
    fetched_at: Timestamp,
    /// The SHA-256 of the `auth`, as bytes.
    digest: Vec<u8>,
}

impl Record {
    /// The place of this record's token in the order on tokens.
    #[must_use]
    pub fn rank(&self) -> Rank {
        // A digest that is no base64 is the smallest.
        let digest = STANDARD.decode(&self.digest).unwrap_or_default();
        Rank { expires_at: self.expires_at, fetched_at: self.fetched_at, digest }
    }
}

impl Default for Ledger {
    fn default() -> Self {
        Self { version: VERSION, created: None, entries: BTreeMap::new(), taken_along: BTreeMap::new() }
    }
}

impl Ledger {
    /// A ledger of these entries.
    #[must_use]
    pub fn of(entries: BTreeMap<String, Record>) -> Self {
        Self { entries, ..Self::default() }
    }

    /// Its JSON text on one line.
    #[must_use]
    pub fn to_line(&self) -> String {
        // Maps with text as keys, and text, can always be written.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Its JSON text, indented to stand at a document's top level.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut text = Vec::new();
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        let written = self.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter));
        // Maps with text as keys, and text, can always be written.
        let text =
            written.ok().and_then(|()| String::from_utf8(text).ok()).unwrap_or_else(|| "null".to_owned());
        // A newline inside a string is escaped, so each of these ends a line.
        text.replace('\n', "\n\t")
    }

    /// Reads a ledger from its JSON text, or `None` where it is none that this version wrote.
    #[must_use]
    pub fn from_json(text: &str) -> Option<Self> {
        serde_json::from_str::<Self>(text).ok().filter(|ledger| ledger.version == VERSION)
    }
}

/// Whether a ledger was written by a later version of this program, which we must not undo.
#[must_use]
pub fn is_of_a_later_version(text: &str) -> bool {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    serde_json::from_str::<Version>(text).is_ok_and(|ledger| ledger.version > VERSION)
}

/// The SHA-256 of a text, in base64. Of a token it tells nothing, since nobody can guess a token.
#[must_use]
pub fn digest(text: &str) -> String {
    STANDARD.encode(Sha256::digest(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(expires_at: i64, fetched_at: i64, auth: &str) -> Record {
        let at = |second| Timestamp::from_second(second).unwrap();
        let (expires_at, fetched_at) = (at(expires_at), at(fetched_at));
        Record {
            expires_at,
            fetched_at,
            source: "eu-west-1".to_owned(),
            default_registry: false,
            digest: digest(auth),
        }
    }

    #[test]
    fn a_later_expiry_wins_then_a_later_fetch_then_a_larger_digest() {
        // The SHA-256 of `a` begins with ca, that of `b` with 3e, and that of `c` with 2e.
        let ranks =
            [record(5, 9, "a"), record(6, 1, "b"), record(6, 2, "c"), record(6, 2, "b"), record(6, 2, "a")]
                .map(|record| record.rank());
        assert!(ranks.is_sorted_by(|a, b| a < b), "{ranks:?}");
        let same = record(6, 2, "a");
        assert_eq!(same.rank(), Record { source: "us-east-1".to_owned(), ..same.clone() }.rank());
        assert!(Record { digest: "no base64".to_owned(), ..same.clone() }.rank() < same.rank());
    }
}
