//! The links to the auth files, in the linked layout: what `link --watch` records about them.

use crate::auth_file::{AuthFile, LinkWatch};
use crate::report::agent_state::Failure;
use crate::report::exit::chain;
use crate::report::redact::redact_known;
use jiff::Timestamp;
use std::time::Duration;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep;

/// The class of a link that is not there, or not watched.
const LINK: &str = "link";
/// The longest error of a watcher that is shown, in characters.
const LONGEST_ERROR: usize = 300;
/// The kernel reports the end of a watcher shortly before it releases its lock.
const SETTLE: Duration = Duration::from_millis(200);

/// The links of an agent that knows its files by their names in its own directory.
#[derive(Default)]
pub struct Links {
    states: Vec<Link>,
    /// A look at the records that is under way; one at most.
    looks: JoinSet<Vec<Result<LinkWatch, String>>>,
    /// Whether a record may have changed since that look started.
    is_due: bool,
}

/// A link.
struct Link {
    file: AuthFile,
    watch: Result<LinkWatch, String>,
    /// Since when the watcher has ended, or its record cannot be read; `None` if neither is the case.
    unwatched_since: Option<Timestamp>,
}

impl Links {
    /// The links to those of the files that are in the agent's directory. The first look is due.
    #[must_use]
    pub fn new(files: &[AuthFile]) -> Self {
        let files = files.iter().filter(|file| file.is_inside()).cloned();
        let link = |file| Link { file, watch: Ok(LinkWatch::None), unwatched_since: None };
        let mut links = Self { states: files.map(link).collect(), ..Self::default() };
        links.look();
        links
    }

    /// A record may have changed.
    pub fn look(&mut self) {
        if self.states.is_empty() {
            return;
        }
        if !self.looks.is_empty() {
            self.is_due = true;
            return;
        }
        let files: Vec<_> = self.states.iter().map(|link| link.file.clone()).collect();
        self.looks.spawn(async move {
            sleep(SETTLE).await;
            let find = |file: &AuthFile| LinkWatch::find(file).map_err(|error| chain(&error));
            let look = spawn_blocking(move || files.iter().map(find).collect());
            look.await.unwrap_or_default()
        });
    }

    /// Waits for the end of a look, and takes what it found. May be dropped while it waits.
    pub async fn looked(&mut self, now: impl Fn() -> Timestamp) {
        let Some(found) = self.looks.join_next().await else { return std::future::pending().await };
        let found = found.unwrap_or_default();
        for (link, watch) in self.states.iter_mut().zip(found) {
            let is_unwatched = matches!(watch, Err(_) | Ok(LinkWatch::Ended(_)));
            link.unwatched_since = is_unwatched.then(|| link.unwatched_since.unwrap_or_else(&now));
            link.watch = watch;
        }
        if std::mem::take(&mut self.is_due) {
            self.look();
        }
    }

    /// How often the links were made again.
    #[must_use]
    pub fn repairs(&self) -> u64 {
        self.states.iter().filter_map(|link| Some(link.watch.as_ref().ok()?.record()?.repairs)).sum()
    }

    /// The links that are not there, or not watched any more.
    #[must_use]
    pub fn failures(&self) -> Vec<Failure> {
        self.states.iter().flat_map(Link::failures).collect()
    }
}

impl Link {
    fn failures(&self) -> Vec<Failure> {
        let failure = |error, since, next_attempt| Failure {
            subject: self.file.path.display().to_string(),
            class: LINK.to_owned(),
            error,
            since,
            next_attempt,
        };
        let record = self.watch.as_ref().ok().and_then(LinkWatch::record);
        let lost = record.and_then(|record| record.failure.as_ref()).map(|lost| {
            let error = redact_known(&lost.error, LONGEST_ERROR);
            let error = format!("the kubelet does not read this file: {error}");
            failure(error, lost.since, lost.next_attempt)
        });
        let unwatched = self.unwatched_since.map(|since| {
            let error = match &self.watch {
                Err(error) => format!("cannot read {}: {error}", self.file.link_record().display()),
                Ok(_) => "`link --watch` has ended, and does not make the link to this file again".to_owned(),
            };
            failure(error, since, None)
        });
        lost.into_iter().chain(unwatched).collect()
    }
}
