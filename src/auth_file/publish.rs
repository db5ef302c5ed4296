//! Work on several auth files, each in a thread of its own, so that no file waits for another.

use super::{AuthFile, AuthFileError, Outcome};
use crate::time::write_scheduler::DriftEvent;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

/// What became of an auth file.
#[derive(Debug)]
pub struct Published {
    /// The auth file.
    pub path: PathBuf,
    /// What was done, or why nothing.
    pub result: Result<Outcome, AuthFileError>,
    /// What it says about other programs that write the file.
    pub drift: DriftEvent,
}

/// Does something with each auth file, side by side, off the runtime's thread. The results come in the files' order. A file
/// that is not done at the deadline is given up: its file system hangs, and so may its thread.
pub async fn on_each(
    auth_files: &[AuthFile],
    deadline: Instant,
    act: impl Fn(&AuthFile) -> Result<Outcome, AuthFileError> + Clone + Send + 'static,
) -> Vec<Published> {
    let mut tasks = JoinSet::new();
    for (number, file) in auth_files.iter().cloned().enumerate() {
        let act = act.clone();
        tasks.spawn_blocking(move || (number, act(&file)));
    }
    let mut results = BTreeMap::new();
    while let Ok(Some(task)) = timeout_at(deadline, tasks.join_next()).await {
        results.extend(task.ok());
    }
    let published = auth_files.iter().enumerate().map(|(number, file)| Published {
        path: file.path.clone(),
        result: results.remove(&number).unwrap_or_else(|| Err(AuthFileError::Hangs(file.path.clone()))),
        drift: DriftEvent::Nothing,
    });
    published.collect()
}
