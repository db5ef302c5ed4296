//! Files further along the kubelet's search path, which the auth file hides.
//!
//! The kubelet reads the first file that it accepts. A new auth file therefore hides the file that the kubelet has read so
//! far, and takes its entries along. That hands them to every pod of the node, so it happens only if the kubelet really has
//! read that file ([`rest::reads_another`](super::rest::reads_another)), and if root owns it.

use super::file::AuthFile;
use super::outcome::Note;
use super::read::{MAX_SIZE, Regular, read_regular};
use crate::docker_config::document::Document;
use crate::docker_config::key::shown;
use crate::docker_config::parse::{self, ParseError, Parsed, Shape};
use crate::docker_config::search::Place;
use secrecy::zeroize::Zeroizing;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A file that the kubelet would read if the auth file were missing.
pub(super) struct Hidden {
    path: PathBuf,
    shape: Shape,
    /// Its content, or why it could not be read.
    bytes: Result<Zeroizing<Vec<u8>>, String>,
}

/// Why a hidden file has no document.
pub(super) enum NotADocument {
    /// The kubelet goes on to the next file.
    Ignored,
    /// The kubelet reads it, and the agent cannot: the reason.
    Unreadable(String),
}

impl AuthFile {
    /// The first file further along the kubelet's search path that the kubelet would accept.
    pub(super) fn hidden(&self) -> Option<Hidden> {
        let kubelet = self.kubelet();
        let places = kubelet.places();
        // The auth file may be one of the later places itself.
        let here = places.iter().rposition(|place| place.path == self.path).unwrap_or_default();
        let mut later = places.into_iter().skip(here + 1).filter(|place| belongs_to_root(&place.path));
        later.find_map(|Place { path, shape }| {
            match read_regular(&path, MAX_SIZE) {
                Ok(Regular::Bytes(bytes)) => {
                    let hidden = Hidden { path, shape, bytes: Ok(bytes) };
                    // A file that the kubelet does not accept either hides nothing.
                    let counts = !matches!(hidden.document(), Err(NotADocument::Ignored));
                    counts.then_some(hidden)
                }
                // The kubelet has no limit, so it would read the file.
                Ok(Regular::TooLarge) => {
                    Some(Hidden { path, shape, bytes: Err("it is larger than 1 MiB".to_owned()) })
                }
                Ok(Regular::Not) => None,
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => Some(Hidden { path, shape, bytes: Err(error.to_string()) }),
            }
        })
    }
}

impl Hidden {
    /// The document in the file.
    pub(super) fn document(&self) -> Result<Document<'_>, NotADocument> {
        let bytes = self.bytes.as_ref().map_err(|why| NotADocument::Unreadable(why.clone()))?;
        let parsed = match self.shape {
            Shape::DockerConfig => parse::parse(bytes),
            Shape::Legacy => parse::parse_legacy(bytes),
        };
        match parsed {
            Ok(Parsed { document, defects, .. }) if defects.is_empty() => Ok(document),
            Ok(_) | Err(ParseError::Invalid(_)) => Err(NotADocument::Ignored),
            Err(ParseError::CannotPreserve(why)) => Err(NotADocument::Unreadable(why.to_owned())),
        }
    }

    /// Copies the entries into `document`. Returns the copied keys and digests, for the ledger.
    pub(super) fn copy_into<'a>(
        &'a self,
        document: &mut Document<'a>,
        notes: &mut Vec<Note>,
    ) -> BTreeMap<String, String> {
        match self.document() {
            Ok(other) => {
                let copied = document.copy_entries(&other);
                if !copied.is_empty() {
                    let keys = copied.keys().map(|key| shown(key)).collect();
                    notes.push(Note::TakenAlong { from: self.path.clone(), keys });
                }
                copied
            }
            Err(NotADocument::Ignored) => BTreeMap::new(),
            Err(NotADocument::Unreadable(why)) => {
                notes.push(self.not_taken_along(format!("it could not be read: {why}")));
                BTreeMap::new()
            }
        }
    }

    /// The note that the file is hidden and its entries were not copied.
    pub(super) fn not_taken_along(&self, why: String) -> Note {
        Note::NotTakenAlong { from: self.path.clone(), why }
    }
}

/// Whether root or the agent's user owns the path's last three parts, links not followed, as far as they exist. Entries that
/// are copied are offered to every pod of the node, so no other user may choose them, not even by a link.
fn belongs_to_root(path: &Path) -> bool {
    let us = nix::unistd::geteuid().as_raw();
    let owner = |path: &Path| std::fs::symlink_metadata(path).map(|metadata| metadata.uid());
    path.ancestors().take(3).all(|part| owner(part).map_or(true, |owner| owner == 0 || owner == us))
}
