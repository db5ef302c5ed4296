//! `link --watch`: makes the link again when another program replaces it.
//!
//! The agent cannot see the link in the linked layout. This process sees the kubelet's root directory, but uses no network and no
//! credentials. It records for the agent what becomes of the links.

use super::files::make_links;
use crate::agent::file_watch::WatchedPath;
use crate::agent::signals::Signals;
use crate::agent::watches::{Subject, Watches};
use crate::auth_file::Link::Made;
use crate::auth_file::{AuthFile, LinkRecord};
use crate::report::exit::{ExitStatus, chain, failed};
use crate::round::Round;
use crate::time::clock;
use crate::time::timer::{Deadline, Timer};
use jiff::Timestamp;
use std::fs::File;
use std::io;
use std::time::Duration;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

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
    let mut links: Vec<Link> = auth_files.iter().map(Link::new).collect();
    let Some(first) = make_links_unless_stopped(auth_files, &mut signals).await else {
        return Ok(ExitStatus::Done);
    };
    let status = first.exit_status();
    record(&mut links, first, None, true).await;
    if status != ExitStatus::Done {
        return Ok(status);
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
            if !auth_files.iter().all(AuthFile::is_linked) {
                info!("another program has replaced a link");
                let Some(repair) = make_links_unless_stopped(auth_files, &mut signals).await else {
                    return Ok(ExitStatus::Done);
                };
                let pause = clock::both().after(PAUSE);
                not_before = Some(pause);
                // What failed is logged, and tried again.
                due = (repair.exit_status() != ExitStatus::Done).then_some(pause);
                record(&mut links, repair, Some(pause.wall), false).await;
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

/// A link that is watched.
struct Link {
    file: AuthFile,
    record: LinkRecord,
    /// The record's file. While it is open, it is locked, and so shows that the watcher runs.
    lock: Option<File>,
}

impl Link {
    fn new(file: &AuthFile) -> Self {
        Self { file: file.clone(), record: LinkRecord::default(), lock: None }
    }
}

/// Makes the links. `None` if a signal to stop came first; a repair may be left at any step.
async fn make_links_unless_stopped(auth_files: &[AuthFile], signals: &mut Signals) -> Option<Round> {
    tokio::select! {
        biased;
        () = signals.stop() => None,
        round = make_links(auth_files) => Some(round),
    }
}

/// Records what became of the links. The `first` attempt makes the layout, and is no repair.
async fn record(links: &mut Vec<Link>, round: Round, next_attempt: Option<Timestamp>, first: bool) {
    let now = clock::now();
    let mut recorded = std::mem::take(links);
    for (link, published) in recorded.iter_mut().zip(round.published) {
        let result = published.result.map(|outcome| !first && outcome.link == Some(Made));
        link.record.attempted(result.map_err(|error| chain(&error)), now, next_attempt);
    }
    let write = spawn_blocking(move || {
        for link in &mut recorded {
            match link.record.write(&link.file) {
                Ok(lock) => link.lock = Some(lock),
                Err(error) => {
                    let path = link.file.link_record();
                    warn!(path = %path.display(), error = chain(&error), "cannot record what became of the link");
                }
            }
        }
        recorded
    });
    // A panic is logged, and ends the records.
    *links = write.await.unwrap_or_default();
}
