//! What an auth file is: its path, and the kubelet that reads it.

use super::error::{AuthFileError, OPENSHIFT};
use crate::docker_config::search::Kubelet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// The agent's directory in the kubelet's root, in the linked layout.
pub const DIRECTORY: &str = "ecr-node-agent";

/// An auth file that the agent keeps current.
#[derive(Debug, Clone)]
pub struct AuthFile {
    /// Its absolute path, as the user gave it. Symlinks in its last part are followed.
    pub path: PathBuf,
    /// Whether the user named it, as opposed to the default.
    pub named: bool,
    /// `HOME` in the kubelet's environment, where the kubelet looks if this file is missing. `None` if it has none there,
    /// or the agent does not know.
    pub kubelet_home: Option<PathBuf>,
}

impl AuthFile {
    /// Fails on an OpenShift node, unless the user named the file.
    pub(super) fn refuse_openshift(&self) -> Result<(), AuthFileError> {
        if !self.named && Path::new(OPENSHIFT).exists() {
            return Err(AuthFileError::OpenShift(self.path.clone()));
        }
        Ok(())
    }

    /// The kubelet that looks for this file first. Its working directory is assumed to be `/`, as under systemd.
    #[must_use]
    pub fn kubelet(&self) -> Kubelet {
        let here = self.path.parent().unwrap_or(Path::new("/"));
        // In the linked layout an agent may know the file by its place in the agent's directory; the kubelet's root is above.
        let above = here.parent().filter(|_| self.is_inside());
        let auth_file = match (above, self.path.file_name()) {
            (Some(root), Some(name)) => root.join(name),
            _ => self.path.clone(),
        };
        Kubelet { auth_file, working_dir: PathBuf::from("/"), home: self.kubelet_home.clone() }
    }

    /// The same file, by its name in the agent's directory.
    #[must_use]
    pub fn inside(&self) -> Self {
        let name = self.path.file_name().unwrap_or_default();
        Self { path: self.path.with_file_name(DIRECTORY).join(name), ..self.clone() }
    }

    /// Whether the path leads into the agent's directory.
    #[must_use]
    pub fn is_inside(&self) -> bool {
        self.path.parent().is_some_and(|parent| parent.file_name() == Some(OsStr::new(DIRECTORY)))
    }

    /// Whether the path is the agent's link.
    #[must_use]
    pub fn is_linked(&self) -> bool {
        let target = self.path.file_name().map(|name| Path::new(DIRECTORY).join(name));
        std::fs::read_link(&self.path).ok() == target
    }

    /// The file in the agent's directory in which `link --watch` records what became of the link.
    #[must_use]
    pub fn link_record(&self) -> PathBuf {
        let file = if self.is_inside() { self.path.clone() } else { self.inside().path };
        let name = file.file_name().unwrap_or_default();
        file.with_file_name(link_record_name(name))
    }
}

/// The name of the record of the link to `name`.
pub(super) fn link_record_name(name: &OsStr) -> OsString {
    let mut record = name.to_owned();
    record.push(".link");
    record
}
