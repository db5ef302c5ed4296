//! The file that tells `status` what the running agent does. It is written when something changes, and removed at a stop.
//!
//! Each write runs in a thread, one at a time, and the newest state wins: a file system that hangs delays nothing.

use crate::report::agent_state::{AgentState, Failure};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::task::{JoinHandle, spawn_blocking};
use tracing::{debug, warn};

/// The state file of this agent.
#[derive(Debug, Default)]
pub struct StateFile {
    /// Where it is; `None` if none is wanted.
    path: Option<PathBuf>,
    /// The newest state; `None` before the first one.
    state: Option<Arc<AgentState>>,
    /// Whether the newest state has still to be written.
    is_pending: bool,
    /// The write that is under way.
    writing: Option<JoinHandle<io::Result<()>>>,
    /// Whether a failure was logged.
    has_warned: bool,
}

impl StateFile {
    /// A file at this path.
    #[must_use]
    pub fn new(path: Option<PathBuf>) -> Self {
        Self { path, ..Self::default() }
    }

    /// Sets what the agent keeps and what fails. Writes nothing if both are the same as before.
    pub fn set(&mut self, auth_files: Vec<PathBuf>, failures: Vec<Failure>) {
        let is_same = |state: &Arc<AgentState>| state.auth_files == auth_files && state.failures == failures;
        if self.path.is_some() && !self.state.as_ref().is_some_and(is_same) {
            self.state = Some(Arc::new(AgentState::new(auth_files, failures)));
            self.is_pending = true;
            self.start();
        }
    }

    /// Waits until the write under way has ended, and starts the next one if the state has changed meanwhile. May be dropped
    /// while it waits.
    pub async fn written(&mut self) {
        let Some(writing) = &mut self.writing else { return std::future::pending().await };
        let result = writing.await;
        self.writing = None;
        match result {
            Ok(Ok(())) => self.has_warned = false,
            Ok(Err(error)) => self.report(&error),
            Err(error) => self.report(&io::Error::other(error)),
        }
        self.start();
    }

    /// Removes the file.
    pub async fn remove(self) {
        if let Some(writing) = self.writing {
            drop(writing.await);
        }
        let Some(path) = self.path.filter(|_| self.state.is_some()) else { return };
        // A state that stays is recognised by its process.
        drop(spawn_blocking(move || std::fs::remove_file(path)).await);
    }

    fn start(&mut self) {
        if let (true, None, Some(path), Some(state)) =
            (self.is_pending, &self.writing, &self.path, &self.state)
        {
            let (path, state) = (path.clone(), Arc::clone(state));
            self.is_pending = false;
            self.writing = Some(spawn_blocking(move || state.write(&path)));
        }
    }

    fn report(&mut self, error: &io::Error) {
        let path = self.path.as_ref().map(|path| path.display().to_string());
        if error.kind() == io::ErrorKind::NotFound {
            debug!(path, "no directory for the state file; `status` knows nothing of this agent");
        } else if !std::mem::replace(&mut self.has_warned, true) {
            warn!(path, %error, "cannot write the state file; `status` knows nothing of this agent");
        }
    }
}
