//! `link --watch`: makes the link again when another program replaces it.
//!
//! The agent cannot see the link in the linked layout. This process sees the kubelet's root directory, but uses no network and no
//! credentials.

use super::files::link;
use crate::agent::file_watch::WatchedPath;
use crate::agent::signals::Signals;
use crate::agent::watches::{Subject, Watches};
use crate::auth_file::{AuthFile, DIRECTORY};
use crate::report::exit::{ExitStatus, failed};
use crate::time::clock;
use crate::time::timer::{Deadline, Timer};
use std::fs;
use std::io;
use std::path::Path;
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
    match link_unless_stopped(auth_files, &mut signals).await {
        Some(ExitStatus::Done) => {}
        status => return Ok(status.unwrap_or(ExitStatus::Done)),
    }
    let subject = |(number, file): (usize, &AuthFile)| {
        (Subject::AuthFile(number), vec![WatchedPath::File(file.path.clone())])
    };
    let mut watches = Watches::new(auth_files.iter().enumerate().map(subject).collect(), clock::both());
    // When the next repair may start at the earliest; `None` if there was none yet.
    let mut not_before = None;
    // When the links are checked; `None` if nothing has changed.
    let mut due: Option<Deadline> = None;
    info!("watching the links");
    loop {
        let now = clock::both();
        if due.is_some_and(|due| now.is_past(due)) {
            due = None;
            if !auth_files.iter().all(is_linked) {
                info!("another program has replaced a link");
                let Some(status) = link_unless_stopped(auth_files, &mut signals).await else {
                    return Ok(ExitStatus::Done);
                };
                let pause = clock::both().after(PAUSE);
                not_before = Some(pause);
                // What failed is logged, and tried again.
                due = (status != ExitStatus::Done).then_some(pause);
            }
        }
        let now = clock::both();
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
                    // A later change does not postpone it.
                    due.get_or_insert(not_before.map_or(soon, |not_before| soon.later(not_before)));
                }
            }
            ended = timer.wait(next) => ended?,
        }
    }
}

/// Makes the links. `None` if a signal to stop came first; a repair may be left at any step.
async fn link_unless_stopped(auth_files: &[AuthFile], signals: &mut Signals) -> Option<ExitStatus> {
    tokio::select! {
        biased;
        () = signals.stop() => None,
        status = link(auth_files, false, false) => Some(status),
    }
}

/// Whether the path is the agent's link.
fn is_linked(file: &AuthFile) -> bool {
    let target = file.path.file_name().map(|name| Path::new(DIRECTORY).join(name));
    fs::read_link(&file.path).ok() == target
}
