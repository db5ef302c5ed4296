//! Why an auth file could not be updated.

use super::directory::StepError;
use super::replace::ReplaceError;
use std::io;
use std::path::PathBuf;

/// The trace of OpenShift's machine config operator on its nodes.
pub(super) const OPENSHIFT: &str = "/etc/machine-config-daemon";

/// Why an auth file could not be updated. The file is untouched, except for `NotDurable` and `NotPutBack` in
/// [`ReplaceError`].
#[derive(Debug, thiserror::Error)]
pub enum AuthFileError {
    /// The node belongs to OpenShift.
    #[error("{} was left alone: {} says that this is an OpenShift node, whose machine config operator owns \
             the file and marks the node degraded on a foreign edit. If you mean it, name the file with --auth-file",
             .0.display(), OPENSHIFT)]
    OpenShift(PathBuf),
    /// The parent directory is missing.
    #[error("{} does not exist, so nothing was written: it is the kubelet's root directory, and where it is missing \
             the wrong path is given or the wrong directory mounted", .0.display())]
    NoDirectory(PathBuf),
    /// A step before the replacement failed.
    #[error("cannot work on {}", path.display())]
    Step {
        /// The auth file.
        path: PathBuf,
        /// What was attempted, and what the system answered.
        source: StepError,
    },
    /// The system did not answer.
    #[error("{} was not read or written in time: its file system hangs. Whether it was replaced is not known", .0.display())]
    Hangs(PathBuf),
    /// A fault of this program.
    #[error("the write of {} ended with a panic; the file is the old one or the new one, whole", .0.display())]
    Panicked(PathBuf),
    /// The file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The auth file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// Something that is no regular file has its name.
    #[error("{} is {kind}, and nothing but a regular file is replaced", path.display())]
    NotAFile {
        /// The auth file.
        path: PathBuf,
        /// What it is: a noun with its article.
        kind: &'static str,
    },
    /// The file belongs to another program.
    #[error("{} was left alone: it is {what}, and no docker config. Name the kubelet's `config.json` with --auth-file", path.display())]
    OtherProgram {
        /// The auth file.
        path: PathBuf,
        /// What it is: a noun with its article.
        what: String,
    },
    /// The file is too large for a docker config.
    #[error("{} is larger than 1 MiB, which is no docker config: nothing was read or written", .0.display())]
    TooLarge(PathBuf),
    /// The file would become too large.
    #[error("with our entries {} would be larger than 1 MiB, so nothing was written: it must become smaller first", .0.display())]
    TooLargeAfter(PathBuf),
    /// The kubelet reads the file, and the agent could not write it again unchanged.
    #[error("{} was left alone: {why}. Rewrite it by hand, or move it away", path.display())]
    CannotPreserve {
        /// The auth file.
        path: PathBuf,
        /// The reason.
        why: &'static str,
    },
    /// Other programs keep changing the file.
    #[error("{} was not written: another program was still changing it when the time was up", .0.display())]
    NotAtRest(PathBuf),
    /// The layout cannot be changed.
    #[error("{} was left as it is: {why}", path.display())]
    NotLinked {
        /// The auth file.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// A symlink that another user may have made, or too many symlinks.
    #[error("the symlink {} is not followed: {why}", path.display())]
    Symlink {
        /// The link.
        path: PathBuf,
        /// The reason.
        why: &'static str,
    },
    /// The file is mounted by itself, so no rename can replace it.
    #[error("{} is a mount of its own, and a mounted file cannot be replaced as a whole (it is untouched): mount its \
             directory instead", .0.display())]
    Mounted(PathBuf),
    /// The replacement failed.
    #[error("cannot replace {}", path.display())]
    Replace {
        /// The auth file.
        path: PathBuf,
        /// At which step, and what is there now.
        source: ReplaceError,
    },
    /// A file that the kubelet ignores could not be copied, so it was not replaced.
    #[error("cannot keep a copy of {}, which the kubelet ignores ({}); it is untouched", path.display(), reasons.join("; "))]
    SetAside {
        /// The auth file.
        path: PathBuf,
        /// Why the kubelet ignores it.
        reasons: Vec<String>,
        /// What failed.
        source: StepError,
    },
}
