//! The docker config: the JSON document with `auths`, from which the kubelet reads its registry credentials.
//!
//! No I/O: bytes in, a decision out. Nothing here opens a file, reads a clock or knows AWS.
//!
//! | file | what is in it |
//! | --- | --- |
//! | [`json`] | JSON objects as Go's `encoding/json` reads them, every value kept as text |
//! | [`entry`] | what the kubelet reads from one entry, and which entry makes it ignore the whole file |
//! | [`key`] | which keys are the same registry for the kubelet |
//! | [`image`] | an image's name, as the kubelet reads it |
//! | [`matching`] | whether a key matches an image's name, and if not, why |
//! | [`keyring`] | which entries the kubelet tries for an image, in which order |
//! | [`ledger`] | the agent's own top-level key: which entries the agent wrote, and when they expire |
//! | [`document`] | a document's content, and its text |
//! | [`parse`] | parses a document by the kubelet's rules |
//! | [`merge`] | what a publish or a removal changes in a document |
//! | [`other_program`] | whether a file plainly belongs to another program |
//! | [`search`] | where the kubelet looks for documents, and which one it uses |
//!
//! The kubelet's rules are in its `pkg/credentialprovider` (`config.go`, `keyring.go`), the same from 1.23 to 1.37.

pub mod document;
pub mod entry;
pub mod image;
pub mod json;
pub mod key;
pub mod keyring;
pub mod ledger;
pub mod matching;
pub mod merge;
pub mod other_program;
pub mod parse;
pub mod search;
