//! The state of a running agent: what fails, since when, and when it is tried again.
//!
//! The agent writes it to a small file under `/run`, and `status` reads it there. `/readyz` prints the same lines. It holds no
//! secret: each text in it is one that the log shows too.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The version of the file's format.
const VERSION: u32 = 1;
/// More than any state needs.
const MAX_SIZE: u64 = 256 * 1024;

/// The state of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentState {
    version: u32,
    process: Process,
    /// The auth files that the agent keeps.
    pub auth_files: Vec<PathBuf>,
    /// What fails at the moment; empty if nothing does.
    pub failures: Vec<Failure>,
}

/// A process, told apart from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Process {
    pid: u32,
    /// When it started, in clock ticks since boot.
    started: u64,
}

/// Something that fails at the moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What fails: a token source, an auth file, or the default region.
    pub subject: String,
    /// The kind of failure, as in the metrics: `denied`, `throttled`, `auth_file` and so on.
    pub class: String,
    /// The last error.
    pub error: String,
    /// When the first of the failures in a row happened.
    pub since: Timestamp,
    /// When the next attempt is due; `None` while one is under way.
    pub next_attempt: Option<Timestamp>,
}

impl Failure {
    /// The failure on one line.
    #[must_use]
    pub fn in_words(&self) -> String {
        let Self { subject, class, error, since, .. } = self;
        let next = match self.next_attempt {
            Some(at) => format!("next attempt at {at:.0}"),
            None => "an attempt is under way".to_owned(),
        };
        format!("{subject}: {error} ({class}; failing since {since:.0}, {next})")
    }
}

/// What `status` finds out about the agent.
#[derive(Debug)]
pub enum FoundAgent {
    /// It runs.
    Running(AgentState),
    /// It has ended without removing its state.
    Ended,
    /// There is no state: no agent runs, or it has no directory to write to.
    NotFound,
    /// The state cannot be read, for this reason.
    Unreadable(String),
}

impl AgentState {
    /// The state of this process.
    #[must_use]
    pub fn new(auth_files: Vec<PathBuf>, failures: Vec<Failure>) -> Self {
        let pid = std::process::id();
        let process = Process { pid, started: started(pid).unwrap_or_default() };
        Self { version: VERSION, process, auth_files, failures }
    }

    /// The number of the agent's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid
    }

    /// Replaces the file, so that a reader sees the old state or the new one. Only its owner may read it.
    ///
    /// # Errors
    /// When the file cannot be replaced. `NotFound` means that its directory is missing.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("new");
        // What a killed agent may have left.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        fs::rename(&new, path)
    }

    /// Reads the state of the agent that wrote this file.
    #[must_use]
    pub fn find(path: &Path) -> FoundAgent {
        let mut text = Vec::new();
        let read = File::open(path).and_then(|file| file.take(MAX_SIZE).read_to_end(&mut text));
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return FoundAgent::NotFound,
            Err(error) => return FoundAgent::Unreadable(error.to_string()),
            Ok(_) => {}
        }
        match serde_json::from_slice::<Self>(&text) {
            Err(error) => FoundAgent::Unreadable(error.to_string()),
            Ok(state) if state.version != VERSION => {
                FoundAgent::Unreadable(format!("it has the unknown version {}", state.version))
            }
            Ok(state) if started(state.process.pid) == Some(state.process.started) => {
                FoundAgent::Running(state)
            }
            Ok(_) => FoundAgent::Ended,
        }
    }
}

/// When a process started, in clock ticks since boot; `None` if there is no such process.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain anything. Field 22 is the 20th after it.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn state() -> AgentState {
        let failure = Failure {
            subject: "eu-west-1".to_owned(),
            class: "denied".to_owned(),
            error: "access denied: no".to_owned(),
            since: "2026-11-24T10:00:00.5Z".parse().unwrap(),
            next_attempt: Some("2026-11-24T10:05:00Z".parse().unwrap()),
        };
        AgentState::new(vec!["/var/lib/kubelet/config.json".into()], vec![failure])
    }

    #[test]
    fn a_state_is_found_while_its_process_runs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        assert!(matches!(AgentState::find(&path), FoundAgent::NotFound));
        assert_eq!(state().write(&path.join("x")).unwrap_err().kind(), io::ErrorKind::NotFound);
        state().write(&path).unwrap();
        state().write(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(AgentState::find(&path), FoundAgent::Running(found) if found == state()));
        // Another process has its number now.
        let mut ended = state();
        ended.process.started += 1;
        ended.write(&path).unwrap();
        assert!(matches!(AgentState::find(&path), FoundAgent::Ended));
        ended.version = 2;
        ended.write(&path).unwrap();
        assert!(matches!(AgentState::find(&path), FoundAgent::Unreadable(why) if why.contains("version 2")));
    }

    #[test]
    fn a_failure_says_since_when_and_what_comes_next() {
        let mut failure = state().failures.remove(0);
        assert_eq!(
            failure.in_words(),
            "eu-west-1: access denied: no (denied; failing since 2026-11-24T10:00:00Z, next attempt at \
             2026-11-24T10:05:00Z)"
        );
        failure.next_attempt = None;
        assert!(failure.in_words().ends_with("an attempt is under way)"));
    }
}
