//! Work on several auth files, each off the runtime's only thread, and the log lines that tell what became of each.

use super::{AuthFile, AuthFileError, Effect, Link, Outcome};
use crate::docker_config::key::shown;
use crate::report::exit::chain;
use std::path::PathBuf;
use tracing::{debug, error, info, info_span, warn};

/// What became of a target.
#[derive(Debug)]
pub struct Published {
    /// The auth file.
    pub path: PathBuf,
    /// What was done, or why nothing.
    pub result: Result<Outcome, AuthFileError>,
}

/// Does something with each auth file, one after the other, off the runtime's only thread.
pub async fn on_each(
    auth_files: &[AuthFile],
    act: impl Fn(&AuthFile) -> Result<Outcome, AuthFileError> + Clone + Send + 'static,
) -> Vec<Published> {
    let mut published = Vec::new();
    for file in auth_files {
        let span = info_span!("target", path = %file.path.display());
        let (mine, act) = (file.clone(), act.clone());
        let result = match tokio::task::spawn_blocking(move || span.in_scope(|| tell(act(&mine)))).await {
            Ok(result) => result,
            // In a release a panic has ended the program already.
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => continue,
            },
        };
        published.push(Published { path: file.path.clone(), result });
    }
    published
}

fn tell(result: Result<Outcome, AuthFileError>) -> Result<Outcome, AuthFileError> {
    match &result {
        Ok(outcome) => {
            for note in &outcome.notes {
                warn!("{note}");
            }
            match &outcome.effect {
                Effect::Unchanged => debug!("already as it should be"),
                Effect::ModeRestored => {
                    warn!("its permission bits had been changed, and are as they were again");
                }
                Effect::Replaced(changes) => {
                    for key in &changes.taken_over {
                        let key = shown(key);
                        warn!(
                            key,
                            "an entry that was not marked as ours stood for our registry; it is ours from now on"
                        );
                    }
                    for (key, expires_at) in &changes.written {
                        info!(key, %expires_at, "published");
                    }
                    for key in &changes.removed {
                        info!(key = shown(key), "removed");
                    }
                }
                Effect::Deleted(_) => info!("deleted: it was ours, and nothing was left in it"),
            }
            match &outcome.link {
                None => {}
                Some(Link::Made) => info!("linked: it is in our directory now"),
                Some(Link::Undone { left }) if left.is_empty() => info!("the link is undone"),
                Some(Link::Undone { left }) => {
                    warn!(?left, "the link is undone; our directory stays, since something is left in it");
                }
            }
        }
        Err(failure) => error!(error = chain(failure), "not published"),
    }
    result
}
