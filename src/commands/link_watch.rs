//! `link --watch`: makes the link again when another program replaces it.
//!
//! The agent cannot see the link in the linked layout. This process sees the kubelet's root directory, but uses no network and no
//! credentials.

use super::files::link;
use crate::agent::file_watch::WatchedPath;
use crate::agent::signals::Signals;
use crate::agent::watches::{Subject, Watches};
use crate::auth_file::AuthFile;
use crate::report::exit::{ExitStatus, failed};
use crate::time::clock;
use crate::time::timer::{Deadline, Timer};
use std::io;
use std::time::Duration;
use tracing::info;

/// The program that replaced the link may not be done yet.
const SETTLE: Duration = Duration::from_secs(1);
/// Least time between two repairs, so that two programs do not replace the file without end.
const PAUSE: Duration = Duration::from_mins(1);
/// The loop comes round at least this often.
const LONGEST_SLEEP: Duration = Duration::from_hours(24);

/// Makes the links, and watches them until stopped. Ends at once if the first attempt fails.
pub(super) async fn run(auth_files: &[AuthFile]) -> ExitStatus {
    match watch(auth_files).await {
        Ok(status) => status,
        Err(error) => failed(&error, ExitStatus::Unexpected),
    }
}

async fn watch(auth_files: &[AuthFile]) -> io::Result<ExitStatus> {
    // First of all: process 1 of a container gets only the signals that it has a handler for.
    let mut signals = Signals::listen()?;
    let timer = Timer::new()?;
    let status = link(auth_files, false, false).await;
    if status != ExitStatus::Done {
        return Ok(status);
    }
    let subject = |(number, file): (usize, &AuthFile)| {
        (Subject::AuthFile(number), vec![WatchedPath::File(file.path.clone())])
    };
    let mut watches = Watches::new(auth_files.iter().enumerate().map(subject).collect(), clock::both());
    let mut repaired = None;
    let mut due = None;
    info!("watching the links");
    loop {
        let now = clock::both();
        if due.is_some_and(|due| now.is_past(due)) {
            due = None;
            if auth_files.iter().any(|file| !file.path.is_symlink()) {
                info!("another program has replaced a link");
                repaired = Some(now.after(PAUSE));
                // What fails now is logged; the next change is another attempt.
                link(auth_files, false, false).await;
            }
        }
        watches.start_due(now);
        let deadlines = [watches.next(), due];
        let next = deadlines.into_iter().flatten().fold(now.after(LONGEST_SLEEP), Deadline::earlier);
        tokio::select! {
            biased;
            () = signals.stop() => return Ok(ExitStatus::Done),
            event = watches.event() => {
                let now = clock::both();
                if !watches.record(event, now).is_empty() {
                    let soon = now.after(SETTLE);
                    due = Some(repaired.map_or(soon, |pause| soon.later(pause)));
                }
            }
            ended = timer.wait(next) => ended?,
        }
    }
}
