//! Updates several auth files, each in a thread of its own, so that no file waits for another.

use super::error::AuthFileError;
use super::file::AuthFile;
use super::memory::Memory;
use super::outcome::{Effect, Outcome};
use crate::time::write_scheduler::DriftEvent;
use futures_util::future::join_all;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::info;

/// How long to sleep at most between two looks at a file that is not at rest: the other program may finish any time.
const LONGEST_SLEEP: Duration = Duration::from_millis(500);

/// A wait for another program is logged after this time.
const LOGGED_AFTER: Duration = Duration::from_secs(1);

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

/// Updates each file, for a program that does so once. The files are updated side by side, off the runtime's thread, and the
/// results come in the files' order.
///
/// A file that another program is changing is looked at again until the deadline. A file whose update does not return by the
/// deadline is given up: its file system hangs, and so may its thread.
pub async fn on_each(
    auth_files: &[AuthFile],
    deadline: Instant,
    act: impl Fn(&AuthFile, &mut Memory) -> Result<Outcome, AuthFileError> + Clone + Send + 'static,
) -> Vec<Published> {
    let updates = auth_files.iter().map(async |file| Published {
        path: file.path.clone(),
        result: at_rest(file, deadline, act.clone()).await,
        drift: DriftEvent::Nothing,
    });
    join_all(updates).await
}

/// Updates one file as soon as no other program is changing it.
async fn at_rest(
    file: &AuthFile,
    deadline: Instant,
    act: impl Fn(&AuthFile, &mut Memory) -> Result<Outcome, AuthFileError> + Clone + Send + 'static,
) -> Result<Outcome, AuthFileError> {
    let mut memory = Memory::default();
    let mut notes = Vec::new();
    let mut logged_from = Some(Instant::now() + LOGGED_AFTER);
    loop {
        let (act, mine, mut known) = (act.clone(), file.clone(), memory);
        let update = tokio::task::spawn_blocking(move || (act(&mine, &mut known), known));
        let result = match timeout_at(deadline, update).await {
            Err(_) => return Err(AuthFileError::Hangs(file.path.clone())),
            Ok(Err(_)) => return Err(AuthFileError::Panicked(file.path.clone())),
            Ok(Ok((result, known))) => {
                memory = known;
                result
            }
        };
        let mut outcome = result?;
        notes.append(&mut outcome.notes);
        let Effect::NotAtRest { retry_in } = outcome.effect else {
            return Ok(Outcome { notes, ..outcome });
        };
        if logged_from.take_if(|from| *from <= Instant::now()).is_some() {
            let within = deadline.saturating_duration_since(Instant::now());
            info!(path = %file.path.display(), ?within, "another program may still be changing this file; waiting for its end");
        }
        if Instant::now() + retry_in > deadline {
            return Err(AuthFileError::NotAtRest(file.path.clone()));
        }
        sleep(retry_in.min(LONGEST_SLEEP)).await;
    }
}
