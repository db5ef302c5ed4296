//! The daemon: waits for something to happen, hands it to the part that it concerns, and starts what is due.
//!
//! The parts own their state and do not know each other: [`Sources`] (tokens), [`AuthFiles`] (writes), [`Links`] (who watches
//! the links), [`Watches`] (changed files). Their methods return values, and the loop connects these. The loop does no file I/O and waits for nothing but
//! a deadline, an event or a signal.

pub mod auth_files;
pub mod file_watch;
pub mod links;
pub mod mounts;
pub mod readiness;
pub mod signals;
pub mod source_state;
pub mod sources;
pub mod state_file;
pub mod watches;

use crate::docker_config::merge::Wanted;
use crate::ecr::client::Ecr;
use crate::events::{self, Observed};
use crate::pull_secret::controller::{self, NotReadyReason};
use crate::pull_secret::shared;
use crate::report::agent_state::Failure;
use crate::report::exit::{ExitStatus, failed};
use crate::report::metrics::Metrics;
use crate::report::server::{Query, Readiness, serve};
use crate::report::systemd::Systemd;
use crate::round::{count_published, log_fetched, log_published};
use crate::settings::{DaemonSettings, Settings};
use crate::startup_taint::{self, Credentials, StartupState};
use crate::time::clock;
use crate::time::timer::{Deadline, Now, Timer};
use crate::token::TokenStore;
use auth_files::{AuthFiles, WriteEnded};
use file_watch::WatchedPath;
use jiff::SignedDuration;
use links::Links;
use signals::{Signal, Signals};
use sources::{AttemptResult, Sources};
use state_file::StateFile;
use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};
use watches::{Subject, WatchEvent, Watches};

/// How long a stop waits for a write that is under way.
const GRACE: Duration = Duration::from_secs(4);
/// Smaller steps of the wall clock are corrections, not settings.
const CLOCK_STEP: SignedDuration = SignedDuration::from_secs(1);
/// The loop comes round at least this often.
const LONGEST_SLEEP: Duration = Duration::from_hours(24);

/// The parts of the daemon.
struct Agent {
    sources: Sources,
    files: AuthFiles,
    links: Links,
    watches: Watches,
    reports: Reports,
    /// What the pull secrets should hold. Their tasks take it from here.
    wanted: watch::Sender<Arc<Wanted>>,
    /// Why the pull secrets are not ready; `None` if readiness does not depend on them.
    pull_secrets: Option<watch::Receiver<NotReadyReason>>,
    startup: Startup,
    /// Both clocks at the start of the last turn.
    clock: Now,
}

/// The ends of the channels to the task that knows when the kubelet uses the credentials.
struct Startup {
    credentials: watch::Sender<Credentials>,
    state: watch::Receiver<StartupState>,
}

/// What the daemon reports to.
struct Reports {
    metrics: Metrics,
    systemd: Systemd,
    state_file: StateFile,
    /// What the Kubernetes Events are about. Their task takes it from here.
    observed: watch::Sender<Observed>,
}

/// Runs until it is asked to stop.
pub async fn run(settings: Settings, daemon: DaemonSettings) -> ExitStatus {
    match start(settings, daemon).await {
        Ok(status) => status,
        Err(error) => failed(&*error, ExitStatus::Unexpected),
    }
}

async fn start(settings: Settings, daemon: DaemonSettings) -> Result<ExitStatus, Box<dyn Error>> {
    // First of all: process 1 of a container gets only the signals that it has a handler for.
    let mut signals = Signals::listen()?;
    let ecr = match Ecr::new(settings.identity.clone()) {
        Ok(ecr) => ecr,
        Err(error) => return Ok(failed(&error, ExitStatus::Usage)),
    };
    if let Err(error) = ecr.check().await {
        return Ok(failed(&error, ExitStatus::Usage));
    }
    let timer = Timer::new()?;
    let metrics = Metrics::new()?;
    let (queries, mut asked) = mpsc::channel(8);
    let (wanted, new_wanted) = watch::channel(Arc::default());
    // Tasks that never end by themselves. If one does, the agent would report a health that it does not have.
    let mut tasks = JoinSet::new();
    let pull_secrets = start_pull_secrets(&mut tasks, &settings, new_wanted, &metrics);
    if let Some(address) = daemon.listen {
        tasks.spawn(async move {
            serve(address, queries).await;
            Ok(())
        });
    }
    let (observed, new_observed) = watch::channel(Observed::default());
    if let Some(pod) = daemon.event_pod.clone() {
        tasks.spawn(events::run(pod, new_observed));
    }
    let now = clock::both();
    let mut agent = Agent {
        sources: Sources::new(TokenStore::new(&settings), daemon.policy.clone(), now),
        files: AuthFiles::new(&settings.auth_files, now),
        links: Links::new(&settings.auth_files),
        watches: Watches::new(watched(&settings, &daemon), now),
        reports: Reports {
            metrics,
            systemd: Systemd::default(),
            state_file: StateFile::new(daemon.state_file.clone()),
            observed,
        },
        wanted,
        pull_secrets,
        startup: start_startup_taint(&mut tasks, &settings, &daemon),
        clock: now,
    };
    info!("started");
    let watchdog = agent.reports.systemd.ready();
    loop {
        let now = clock::both();
        agent.start_due(now);
        let mut next = agent.next(now);
        if let Some(watchdog) = watchdog {
            agent.reports.systemd.alive();
            next = next.earlier(now.after(watchdog));
        }
        tokio::select! {
            biased; // a stop wins over work that is also ready
            signal = signals.next() => match signal {
                Signal::Stop => break,
                Signal::Refresh => agent.refresh_now(),
            },
            Some(query) = asked.recv() => agent.answer(query),
            Some(ended) = tasks.join_next() => {
                ended??;
                error!("a part of the agent has ended");
                return Ok(ExitStatus::Unexpected);
            }
            event = agent.watches.event() => agent.record_watch(event),
            result = agent.sources.finished() => agent.record_attempt(result),
            ended = agent.files.finished() => agent.record_write(ended),
            () = agent.links.looked(clock::now) => {}
            // The next turn takes it from there.
            Ok(()) = agent.startup.state.changed() => {}
            () = agent.reports.systemd.sendable() => {}
            () = agent.reports.state_file.written() => {}
            ended = timer.wait(next) => ended?,
        }
    }
    agent.stop(&mut signals).await;
    Ok(ExitStatus::Done)
}

/// Starts the task of the pull secrets, if there are any. Returns why they are not ready, if the agent's readiness depends on
/// that: on a node, the auth file comes first.
fn start_pull_secrets(
    tasks: &mut JoinSet<io::Result<()>>,
    settings: &Settings,
    wanted: watch::Receiver<Arc<Wanted>>,
    metrics: &Metrics,
) -> Option<watch::Receiver<NotReadyReason>> {
    let (secrets, metrics) = (settings.pull_secrets.clone(), metrics.clone());
    if secrets.is_empty() {
        return None;
    }
    if !settings.auth_files.is_empty() {
        tasks.spawn(shared::run(secrets.named, wanted, metrics));
        return None;
    }
    let (sender, not_ready) = watch::channel(NotReadyReason::Tokens);
    tasks.spawn(controller::run(secrets, wanted, sender, metrics));
    Some(not_ready)
}

/// Starts the task of the startup taint, if there are auth files.
fn start_startup_taint(
    tasks: &mut JoinSet<io::Result<()>>,
    settings: &Settings,
    daemon: &DaemonSettings,
) -> Startup {
    let (credentials, new_credentials) = watch::channel(Credentials::Missing);
    let (new_state, state) = watch::channel(StartupState::default());
    let files: Vec<_> = settings.auth_files.iter().map(|file| file.path.clone()).collect();
    if !files.is_empty() {
        let node = daemon.startup_taint_node.clone();
        tasks.spawn(startup_taint::run(files, node, new_credentials, new_state));
    }
    Startup { credentials, state }
}

/// What is watched: each auth file, with the record of the link to it in the linked layout, and the files that credentials come from.
fn watched(settings: &Settings, daemon: &DaemonSettings) -> Vec<(Subject, Vec<WatchedPath>)> {
    let file = |(number, file): (usize, &crate::auth_file::AuthFile)| {
        let record = file.is_inside().then(|| file.link_record());
        let paths = [file.path.clone()].into_iter().chain(record).map(WatchedPath::File);
        (Subject::AuthFile(number), paths.collect())
    };
    let directory = settings.identity.directory().map(Path::to_owned).map(WatchedPath::Directory);
    let files = daemon.credential_files.iter().cloned().map(WatchedPath::File);
    let credentials = (Subject::Credentials, directory.into_iter().chain(files).collect());
    settings.auth_files.iter().enumerate().map(file).chain([credentials]).collect()
}

impl Agent {
    /// Starts everything that is due.
    fn start_due(&mut self, now: Now) {
        let step = now.step_since(std::mem::replace(&mut self.clock, now));
        if step.abs() >= CLOCK_STEP {
            info!(by_s = step.as_secs(), "the wall clock was set");
            self.sources.clock_was_set(now);
        }
        self.watches.start_due(now);
        if self.sources.start_due(now) {
            self.publish(now);
        }
        self.files.start_due(|| self.sources.wanted(now), now);
        for path in self.files.newly_slow(now) {
            warn!(path = %path.display(), "a write takes long; its file system may hang");
        }
        let is_valid = self.not_ready(now).is_empty() && !self.files.is_changing();
        let credentials = if is_valid {
            Credentials::Valid { foreign_changes: self.files.foreign_changes() }
        } else {
            Credentials::Missing
        };
        self.startup.credentials.send_if_modified(|before| {
            *before != credentials && {
                *before = credentials;
                true
            }
        });
        self.reports.systemd.status(self.sources.summary(now));
        let failures = self.failures(now);
        if self.reports.observed.receiver_count() > 0 {
            let expired = self.files.expired(now);
            let observed = Observed { failures: failures.clone(), expired };
            self.reports.observed.send_if_modified(|before| {
                *before != observed && {
                    *before = observed;
                    true
                }
            });
        }
        self.reports.state_file.set(self.files.paths(), failures);
    }

    /// What fails at the moment.
    fn failures(&self, now: Now) -> Vec<Failure> {
        let startup = self.startup.state.borrow().failure.clone();
        let startup = startup.into_iter().collect();
        [self.sources.failures(), self.files.failures(now), self.links.failures(), startup].concat()
    }

    /// The earliest moment at which something is due.
    fn next(&self, now: Now) -> Deadline {
        let parts = [self.sources.next(now), self.files.next(now), self.watches.next()];
        parts.into_iter().flatten().fold(now.after(LONGEST_SLEEP), Deadline::earlier)
    }

    /// Hands what is wanted now to every target.
    fn publish(&mut self, now: Now) {
        self.files.renew();
        if self.wanted.receiver_count() > 0 {
            self.wanted.send_replace(Arc::new(self.sources.wanted(now)));
        }
    }

    fn record_attempt(&mut self, result: AttemptResult) {
        let now = clock::both();
        let update = self.sources.record(result, now);
        if let Some(fetched) = update.fetched {
            log_fetched(&fetched);
            fetched.count(&self.reports.metrics);
        }
        if update.publish {
            self.publish(now);
        }
    }

    fn record_write(&mut self, ended: WriteEnded) {
        if let Some(published) = self.files.record(ended, clock::both()) {
            log_published(&published);
            count_published(&published, &self.reports.metrics);
        }
    }

    fn record_watch(&mut self, event: WatchEvent) {
        let now = clock::both();
        for subject in self.watches.record(event, now) {
            match subject {
                Subject::AuthFile(number) => {
                    self.files.look(number, now);
                    self.links.look();
                }
                Subject::Credentials => {
                    if self.sources.credentials_changed(now) {
                        info!(reason = "credentials", "refreshing now");
                    }
                }
            }
        }
    }

    fn refresh_now(&mut self) {
        if self.sources.refresh_now(clock::both()) {
            info!(reason = "hangup", "refreshing now");
        }
    }

    /// Answers the server. Its client may be gone by now.
    fn answer(&self, query: Query) {
        match query {
            Query::Alive(answer) => drop(answer.send(())),
            Query::Ready(answer) => drop(answer.send(self.readiness(clock::both()))),
            Query::Metrics(answer) => {
                let now = clock::both();
                self.reports.metrics.registries(&readiness::registries(
                    self.sources.asked_for(),
                    &self.files,
                    now.wall,
                ));
                self.reports.metrics.links(self.links.repairs());
                self.reports.metrics.fight(self.files.is_fighting(now));
                self.reports.metrics.retries(self.sources.waiting() + self.files.waiting());
                self.reports.metrics.failing(&self.failures(now));
                drop(answer.send(self.reports.metrics.text()));
            }
        }
    }

    fn readiness(&self, now: Now) -> Readiness {
        let reasons = self.not_ready(now);
        if reasons.is_empty() {
            let used_from = self.startup.state.borrow().used_from;
            Readiness::Ready(used_from.filter(|from| now.wall < *from))
        } else {
            Readiness::NotReady(reasons)
        }
    }

    /// Why the agent is not ready, a line each. It is ready if every registry that is asked for has a valid entry in every
    /// auth file. If it is not, the lines also say what fails.
    fn not_ready(&self, now: Now) -> Vec<String> {
        let pull_secrets = self.pull_secrets.as_ref().and_then(|reason| reason.borrow().in_words());
        let mut reasons: Vec<_> = pull_secrets.map(str::to_owned).into_iter().collect();
        match self.sources.keys() {
            Some(keys) => reasons.extend(self.files.not_ready(&keys, now)),
            None => reasons.push("default registry: no token yet, and so no entry".to_owned()),
        }
        if !reasons.is_empty() {
            reasons.extend(self.sources.failures().iter().map(Failure::in_words));
        }
        reasons
    }

    /// Lets a write that is under way end, but does not wait for one that hangs.
    async fn stop(mut self, signals: &mut Signals) {
        info!("stopping");
        self.reports.systemd.stopping().await;
        self.reports.state_file.remove().await;
        let writes_end = async {
            while self.files.is_writing() {
                let ended = self.files.finished().await;
                if let Some(published) = self.files.record(ended, clock::both()) {
                    log_published(&published);
                }
            }
        };
        tokio::select! {
            () = writes_end => {}
            // A write that is interrupted leaves the old file or the new one, and the next start removes what is left.
            () = signals.stop() => warn!("second stop signal: gave up a write that was under way"),
            () = tokio::time::sleep(GRACE) => warn!("gave up a write that took too long"),
        }
    }
}
