//! Our own top-level key in the document: which entries are ours, and until when they are good.
//!
//! Readers of docker configs ignore keys that they do not know (kubelet, docker, containers/image), so the document
//! itself can remember what a restart would otherwise have to ask ECR for.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The name of the top-level key.
pub const KEY: &str = "ecr-node-agent";

/// The shape that this program writes. A later one is read as if there were no ledger.
const VERSION: u32 = 1;

/// What the document remembers for us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    version: u32,
    /// What was not there before us, so that `remove` can leave the node as we found it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Created>,
    /// The entries that are ours, by their key under `auths`.
    #[serde(default)]
    pub entries: BTreeMap<String, Record>,
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
}

impl Default for Ledger {
    fn default() -> Self {
        Self { version: VERSION, created: None, entries: BTreeMap::new() }
    }
}

impl Ledger {
    /// Reads a ledger from its JSON text, or `None` where it is none that this version wrote.
    #[must_use]
    pub fn from_json(text: &str) -> Option<Self> {
        serde_json::from_str::<Self>(text).ok().filter(|ledger| ledger.version == VERSION)
    }
}
