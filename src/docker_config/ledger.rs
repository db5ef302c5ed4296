//! The agent's own key in the document: which entries the agent wrote, and when their tokens expire.
//!
//! Readers of docker configs ignore keys that they do not know (kubelet, docker, containers/image). So the document
//! itself can store what a restarted agent would otherwise have to ask ECR for.

use super::json;
use crate::time::schedule;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// The name of the top-level key.
pub const KEY: &str = "ecr-node-agent";

/// The format version that this program writes. A ledger with a later version is not changed.
const VERSION: u32 = 1;

/// What the document stores for the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ledger {
    version: u32,
    /// What the agent created besides entries, so that `remove` can delete it again. `None` if everything existed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Created>,
    /// The entries that the agent wrote, by their key under `auths`.
    #[serde(default)]
    pub entries: BTreeMap<String, Record>,
    /// Entries that were copied from a file that this file hides from the kubelet: key and digest of each. `remove` takes
    /// them out again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub taken_along: BTreeMap<String, String>,
}

/// What the agent created besides entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Created {
    /// The file: it was missing or empty.
    File,
    /// `auths`: the document had none.
    Auths,
    /// The object under `auths`: the document had `"auths": null`.
    AuthsFromNull,
}

/// What is known of one entry that the agent wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// When ECR stops accepting the token.
    pub expires_at: Timestamp,
    /// When ECR issued the token.
    pub fetched_at: Timestamp,
    /// The token source: region, kind of endpoint, role. A token counts as fresh only for the source it came from.
    pub source: String,
    /// Whether ECR's answer named this registry because none was configured. An agent without `--registry` uses no other
    /// entry as its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub default_registry: bool,
    /// The digest of the `auth` that was written. It tells whether the entry is still the agent's.
    pub digest: String,
}

/// The rank of a token: of two tokens for one registry, the one with the higher rank stays.
///
/// This is a total order, so any number of agents that write the same file or Secret settle on one token without talking
/// to each other: a token whose record is believable wins, then the later expiry, then the later fetch, then the larger digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank<'a> {
    // The order of the fields is the order of the comparison.
    is_believable: bool,
    expires_at: Timestamp,
    fetched_at: Timestamp,
    digest: &'a str,
}

impl Record {
    /// Whether a token can expire at the recorded time. `now` is the wall clock.
    #[must_use]
    pub fn is_believable(&self, now: Timestamp) -> bool {
        self.expires_at <= schedule::latest_expiry(now)
    }

    /// The token's rank among other tokens for the same registry. `now` is the wall clock.
    #[must_use]
    pub fn rank(&self, now: Timestamp) -> Rank<'_> {
        Rank {
            is_believable: self.is_believable(now),
            expires_at: self.expires_at,
            fetched_at: self.fetched_at,
            digest: &self.digest,
        }
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

    /// The JSON text on one line.
    #[must_use]
    pub fn to_line(&self) -> String {
        // Serialising maps with string keys cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The JSON text, indented for a document's top level.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut text = Vec::new();
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        let written = self.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter));
        // Serialising maps with string keys cannot fail.
        let text =
            written.ok().and_then(|()| String::from_utf8(text).ok()).unwrap_or_else(|| "null".to_owned());
        // A newline inside a string is escaped, so each of these ends a line.
        text.replace('\n', "\n\t")
    }

    /// Reads a ledger from its JSON text. `None` if it is not one that this version wrote.
    #[must_use]
    pub fn from_json(text: &str) -> Option<Self> {
        if !is_object_of_objects(text) {
            return None;
        }
        serde_json::from_str::<Self>(text).ok().filter(|ledger| ledger.version == VERSION)
    }
}

/// Whether the ledger and each of its records are JSON objects. serde also accepts arrays for structures: `[1]` would be a
/// ledger of version 1.
fn is_object_of_objects(text: &str) -> bool {
    let is_object = |text: &str| text.starts_with('{');
    let Ok(members) = json::members(text) else { return false };
    let mut entries = members.iter().filter(|member| member.name == "\"entries\"");
    entries.all(|member| {
        let records = json::members(member.value);
        records.is_ok_and(|records| records.iter().all(|record| is_object(record.value)))
    })
}

/// Whether a later version of this program wrote the ledger, which this version must not change.
#[must_use]
pub fn is_of_a_later_version(text: &str) -> bool {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    text.starts_with('{') && serde_json::from_str::<Version>(text).is_ok_and(|it| it.version > VERSION)
}

/// The SHA-256 of a text, in base64. The digest of a token reveals nothing, because a token cannot be guessed.
#[must_use]
pub fn digest(text: &str) -> String {
    STANDARD.encode(Sha256::digest(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;
    use proptest::prelude::*;

    fn now() -> Timestamp {
        "2026-11-23T10:00:00Z".parse().unwrap()
    }

    #[test]
    fn arrays_are_no_ledger_and_no_record() {
        let record = "{\"expiresAt\":\"2026-11-23T22:00:00Z\",\"fetchedAt\":\"2026-11-23T10:00:00Z\",\"source\":\"s\",\"digest\":\"d\"}";
        let entries = |record: &str| format!("{{\"version\":1,\"entries\":{{\"host\":{record}}}}}");
        assert_eq!(Ledger::from_json(&entries(record)).map(|ledger| ledger.entries.len()), Some(1));
        assert_eq!(Ledger::from_json("{\"version\":1}"), Some(Ledger::default()));
        let array = "[\"2026-11-23T22:00:00Z\",\"2026-11-23T10:00:00Z\",\"s\",\"d\"]";
        for text in ["[1]", "[1,null,{},{}]", "{\"version\":1,\"entries\":[]}", &entries(array)] {
            assert_eq!(Ledger::from_json(text), None, "{text}");
        }
        assert!(is_of_a_later_version("{\"version\":2}"));
        assert!(!is_of_a_later_version("[2]"));
    }

    fn record(expires_at: Timestamp, fetched_at: Timestamp, digest: &str) -> Record {
        let (source, digest) = ("s".to_owned(), digest.to_owned());
        Record { expires_at, fetched_at, source, default_registry: false, digest }
    }

    #[test]
    fn an_expiry_beyond_a_tokens_life_is_not_believed() {
        let cases = [
            (SignedDuration::from_hours(-1), true),
            (SignedDuration::from_hours(12), true),
            (SignedDuration::from_mins(12 * 60 + 15), true),
            (SignedDuration::from_mins(12 * 60 + 16), false),
            (SignedDuration::from_hours(24 * 365 * 100), false),
        ];
        for (life, expected) in cases {
            assert_eq!(record(now() + life, now(), "d").is_believable(now()), expected, "{life:#}");
        }
        assert!(!record(Timestamp::MAX, now(), "d").is_believable(now()));
    }

    #[test]
    fn a_later_expiry_outranks_a_later_fetch_and_that_a_larger_digest() {
        let token = |expires_h: i64, fetched_s: i64, digest: &str| {
            let fetched_at = now() + SignedDuration::from_secs(fetched_s);
            record(now() + SignedDuration::from_hours(expires_h), fetched_at, digest)
        };
        let ascending = [
            token(1000, 9, "z"), // not believable
            token(1001, 0, "a"),
            token(1, 9, "z"),
            token(2, 0, "z"),
            token(2, 1, "a"),
            token(2, 1, "b"),
        ];
        assert!(ascending.is_sorted_by(|a, b| a.rank(now()) < b.rank(now())), "{ascending:?}");
    }

    proptest! {
        /// However two or more agents meet, each pair agrees on which token stays.
        #[test]
        fn any_agents_settle_on_one_token(tokens in prop::collection::vec((-2..15_i64, -2..3_i64, "[a-c]"), 2..6)) {
            let at = |hours: &i64| now() + SignedDuration::from_hours(*hours);
            let tokens: Vec<Record> =
                tokens.iter().map(|(expires, fetched, digest)| record(at(expires), at(fetched), digest)).collect();
            let settled = |order: Vec<usize>| {
                let mut in_file = order[0];
                for other in order {
                    if tokens[other].rank(now()) > tokens[in_file].rank(now()) {
                        in_file = other;
                    }
                }
                tokens[in_file].rank(now())
            };
            let forward: Vec<usize> = (0..tokens.len()).collect();
            let backward = forward.iter().rev().copied().collect();
            prop_assert_eq!(settled(forward), settled(backward));
        }
    }
}
