//! Decides what an update does with a file that is at rest.

use super::error::AuthFileError;
use super::file::AuthFile;
use super::hidden::Hidden;
use super::judge::Content;
use super::outcome::Note;
use super::rest::{KUBELET_CACHE, Signs, reads_another};
use crate::docker_config::document::Document;
use crate::docker_config::key::shown;
use crate::docker_config::merge::{self, MergeInput, Origin, Plan, Wanted};
use crate::docker_config::parse::parse;
use jiff::Timestamp;
use std::collections::BTreeMap;

/// What an update does.
#[derive(Clone, Copy)]
pub(super) enum Operation<'a> {
    /// Merges these entries into the file.
    Publish {
        /// The entries.
        wanted: &'a Wanted,
        /// Whether they are written even if the file holds tokens of a higher rank.
        explicit: bool,
        /// The wall clock.
        now: Timestamp,
    },
    /// Takes the agent's entries out, and those without a record that are for one of these registries.
    Remove(&'a [String]),
    /// Copies what the file hides, for an agent that will not see it.
    CopyHidden {
        /// Whether the kubelet reads this file already, so that a whole one hides nothing new.
        is_read: bool,
    },
}

/// What an update is going to do.
pub(super) struct Planned {
    /// What to do with the file.
    pub(super) plan: Plan,
    /// Why the kubelet ignores the file. If there is a reason, a copy is made before the file is replaced.
    pub(super) reasons: Vec<String>,
    /// What the operator should know.
    pub(super) notes: Vec<Note>,
    /// Whether the agent's entries are in the file afterwards.
    pub(super) is_publish: bool,
}

/// A document to work on, and where it comes from.
struct Base<'a> {
    document: Document<'a>,
    origin: Origin,
    reasons: Vec<String>,
}

impl AuthFile {
    /// Decides what to do. `good` is the last version of the file that the kubelet accepted, if the agent has seen one.
    ///
    /// # Errors
    /// If the file must not be touched.
    pub(super) fn plan(
        &self,
        operation: Operation<'_>,
        content: Content<'_>,
        signs: &Signs,
        good: Option<&[u8]>,
    ) -> Result<Planned, AuthFileError> {
        let mut notes = Vec::new();
        let last_good = good.and_then(|bytes| parse(bytes).ok()).map(|parsed| parsed.document);
        let is_publish = matches!(operation, Operation::Publish { .. });
        let Base { mut document, origin, reasons } =
            self.base(content, signs, last_good.filter(|_| is_publish), is_publish, &mut notes)?;
        let hidden: Option<Hidden>;
        let plan = match operation {
            Operation::Publish { wanted, explicit, now } => {
                // A file that the kubelet did not accept hid nothing so far; the new one will.
                hidden =
                    if origin == Origin::File || wanted.entries.is_empty() { None } else { self.hidden() };
                let may_copy = reads_another(signs.completeness, signs.quiet.unchanged_for, good.is_some());
                let copied = copy(hidden.as_ref(), may_copy, good.is_some(), &mut document, &mut notes);
                merge::plan(document, wanted, MergeInput { origin, copied, explicit, now })
            }
            Operation::CopyHidden { is_read } => {
                hidden = if is_read && origin == Origin::File { None } else { self.hidden() };
                // A file that no kubelet reads yet hides nothing so far.
                let may_copy = if is_read {
                    reads_another(signs.completeness, signs.quiet.unchanged_for, good.is_some())
                } else {
                    Ok(())
                };
                let copied = copy(hidden.as_ref(), may_copy, good.is_some(), &mut document, &mut notes);
                if copied.is_empty() { Plan::Keep } else { merge::plan_copied(document, origin, copied) }
            }
            Operation::Remove(registries) => self.plan_removal(document, origin, registries, &mut notes),
        };
        Ok(Planned { plan, reasons, notes, is_publish })
    }

    /// The document to work on. `last_good` is the document in the last version that the kubelet accepted.
    fn base<'a>(
        &self,
        content: Content<'a>,
        signs: &Signs,
        last_good: Option<Document<'a>>,
        is_publish: bool,
        notes: &mut Vec<Note>,
    ) -> Result<Base<'a>, AuthFileError> {
        let base = |document, origin, reasons| Ok(Base { document, origin, reasons });
        let foreign = |document: &Document<'_>| -> Vec<String> {
            merge::foreign_keys(document).iter().map(|key| shown(key)).collect()
        };
        match (content, last_good) {
            (Content::CannotPreserve(why), _) => {
                Err(AuthFileError::CannotPreserve { path: self.path.clone(), why })
            }
            (Content::OtherProgram(what), _) => {
                Err(AuthFileError::OtherProgram { path: self.path.clone(), what })
            }
            (Content::Whole(document), _) => base(document, Origin::File, Vec::new()),
            (Content::Defective { rest, reasons }, _) => base(rest, Origin::Repaired, reasons),
            // Content that vanished, with no valid document in its place, vanished by mistake.
            (Content::Empty, Some(good)) => {
                notes.push(Note::Restored { keys: foreign(&good) });
                base(good, Origin::Repaired, Vec::new())
            }
            (Content::Broken { reason }, Some(good)) => {
                notes.push(Note::Restored { keys: foreign(&good) });
                base(good, Origin::Repaired, vec![reason])
            }
            (Content::Broken { reason }, None) => base(Document::default(), Origin::Repaired, vec![reason]),
            (Content::Empty, None) => {
                if is_publish && signs.quiet.unchanged_for < KUBELET_CACHE {
                    notes.push(Note::Emptied);
                }
                base(Document::default(), Origin::Nothing, Vec::new())
            }
            // A deletion is meant, so the entries of other programs do not come back. The log names them.
            (Content::Missing, good) => {
                let keys = good.as_ref().map(foreign).unwrap_or_default();
                if !keys.is_empty() {
                    notes.push(Note::MadeAnew { keys });
                }
                base(Document::default(), Origin::Nothing, Vec::new())
            }
        }
    }

    fn plan_removal(
        &self,
        document: Document<'_>,
        origin: Origin,
        registries: &[String],
        notes: &mut Vec<Note>,
    ) -> Plan {
        let mut unrecorded = merge::unrecorded(&document);
        // A file that the kubelet ignores is not repaired if it holds no entry of the agent's.
        let plan = if origin == Origin::File || document.ledger().is_some() {
            let hides_another = self.hidden().is_some_and(|hidden| hidden.document().is_ok());
            merge::remove(document, hides_another, registries)
        } else {
            Plan::Keep
        };
        if let Plan::Replace(_, changes) | Plan::Delete(changes) = &plan {
            unrecorded.retain(|key| !changes.removed.contains(key));
        }
        if !unrecorded.is_empty() {
            notes.push(Note::Unrecorded { keys: unrecorded.iter().map(|key| shown(key)).collect() });
        }
        plan
    }
}

/// Copies the hidden file's entries into `document`, if that is allowed. Returns what was copied. `was_hidden` says that the
/// auth file has hidden the other file before.
fn copy<'a>(
    hidden: Option<&'a Hidden>,
    may_copy: Result<(), &'static str>,
    was_hidden: bool,
    document: &mut Document<'a>,
    notes: &mut Vec<Note>,
) -> BTreeMap<String, String> {
    match (hidden, may_copy) {
        (None, _) => BTreeMap::new(),
        (Some(hidden), Ok(())) => hidden.copy_into(document, notes),
        (Some(hidden), Err(why)) => {
            if !was_hidden {
                notes.push(hidden.not_taken_along(why.to_owned()));
            }
            BTreeMap::new()
        }
    }
}
