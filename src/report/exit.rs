//! Exit codes, and the one function that prints an error with its causes.

use std::error::Error;
use std::process::ExitCode;

/// The exit codes, which are part of the command line's contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// Done.
    Done = 0,
    /// Unexpected; for `status`, an entry is missing or expired; for `explain`, an image has no usable credential.
    Unexpected = 1,
    /// The command line or a file that it names is invalid.
    Usage = 2,
    /// No usable AWS credentials, or no region.
    NoCredentials = 3,
    /// ECR refused, or could not be reached.
    Ecr = 4,
    /// An auth file could not be read or written.
    AuthFile = 5,
    /// A pull secret could not be written; the auth files were.
    PullSecret = 6,
}

impl From<ExitStatus> for ExitCode {
    fn from(ending: ExitStatus) -> Self {
        Self::from(ending as u8)
    }
}

/// Switches core dumps off, and debuggers of other users: the memory holds tokens and keys. The first thing that the program
/// does.
pub fn forbid_core_dumps() {
    // Logging has not started yet, and there is nothing else to do about a refusal.
    nix::sys::prctl::set_dumpable(false).ok();
}

/// Logs why the program ends. Returns the exit code.
pub fn failed(error: &dyn Error, ending: ExitStatus) -> ExitStatus {
    tracing::error!("{}", chain(error));
    ending
}

/// An error and its causes on one line: `outer: inner: innermost`.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        next = cause.source();
    }
    line
}
