//! The docker config: the JSON document with `auths` that the kubelet reads its registry credentials from.
//!
//! Pure: bytes in, a decision out. Nothing here opens a file, reads a clock or knows AWS.
//!
//! | file | what it knows |
//! | --- | --- |
//! | [`json`] | JSON objects as Go's `encoding/json` reads them, every value kept as the text it was |
//! | [`entry`] | what the kubelet reads from one entry, and which entry spoils the whole file |
//! | [`key`] | which keys are one and the same registry for the kubelet |
//! | [`image`] | an image's name, and what credentials are looked up for |
//! | [`keyring`] | which entries the kubelet tries for an image, in which order, and why not the others |
//! | [`ledger`] | our own top-level key: which entries are ours, and until when they are good |
//! | [`document`] | a whole document: parse, judge, serialise |
//! | [`merge`] | what a publish or a removal has to do to it |
//! | [`search`] | where the kubelet looks for documents, and which one it uses |
//!
//! The kubelet's rules stand in its `pkg/credentialprovider` (`config.go`, `keyring.go`), the same from 1.23 to 1.37.

pub mod document;
pub mod entry;
pub mod image;
pub mod json;
pub mod key;
pub mod keyring;
pub mod ledger;
pub mod merge;
pub mod search;
