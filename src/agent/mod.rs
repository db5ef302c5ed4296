//! The loop: waits for a reason, asks ECR, publishes, and asks `schedule` what is next.
//!
//! Nothing in it waits for anything else: each source is asked in a task of its own, files are written in another, and
//! the loop only takes what comes and decides what is next. It sleeps until a deadline, a file event or a signal.

pub mod file_watch;
pub mod mounts;
pub mod signals;

use crate::agent::file_watch::{Interests, Seen, Watch};
use crate::agent::mounts::Mounts;
use crate::agent::signals::{Asked, Signals};
use crate::auth_file::publish::{Published, on_each};
use crate::auth_file::{AuthFile, Effect, PublishOptions};
use crate::docker_config::document;
use crate::docker_config::merge::Wanted;
use crate::ecr::client::{Ecr, Identity};
use crate::ecr::refusal::Refusal;
use crate::ecr::registry::Endpoint;
use crate::ecr::token::{AuthorizationToken, Token};
use crate::inspect::status;
use crate::pull_secret::controller::{self, NotReadyReason};
use crate::pull_secret::shared;
use crate::report::exit::{ExitStatus, failed};
use crate::report::metrics::{Metrics, Outcome, Reason};
use crate::report::server::{Query, serve};
use crate::report::systemd;
use crate::settings::{Daemon, RefreshPolicy, Settings};
use crate::time::clock;
use crate::time::retry::Backoff;
use crate::time::schedule::Life;
use crate::time::timer::{Deadline, Now, Timer};
use crate::time::write_scheduler::{DriftEvent, WriteResult, WriteScheduler};
use crate::token::{LAPSE, TokenRequest, ask, questions, tell_fetched, wanted};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{Instrument as _, debug, error, info, info_span, warn};

/// What one attempt may take in all: to find credentials, to assume a role, to fetch.
const ATTEMPT: Duration = Duration::from_secs(30);
/// How long a stop waits for a replacement that is under way.
const GRACE: Duration = Duration::from_secs(4);
/// Without a watch, this often the files are looked at and a watch is tried.
const BLIND: Duration = Duration::from_mins(1);
/// Credentials that change are tried no more often than this.
const CREDENTIALS_PAUSE: Duration = Duration::from_secs(10);
/// No source is asked more often than this, whoever sends signals, and however short the interval.
const ASK_PAUSE: Duration = Duration::from_secs(1);
/// Clocks are slewed by less, and set by more.
const CLOCK_STEP: SignedDuration = SignedDuration::from_secs(1);
/// A watch that breaks again and again is not set up more often than this.
const WATCH_PAUSE: Duration = Duration::from_secs(1);

/// Runs until it is asked to stop.
pub async fn run(settings: Settings, daemon: Daemon) -> ExitStatus {
    // First of all: as process 1 of a container, a signal that nobody listens to is lost.
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return failed(&error, ExitStatus::Unexpected),
    };
    // Made anew for every attempt, so that renewed certificates count and nothing is kept meanwhile.
    if let Err(error) = Ecr::new(settings.identity.clone()) {
        return failed(&error, ExitStatus::Usage);
    }
    let timer = match Timer::new() {
        Ok(timer) => timer,
        Err(error) => return failed(&error, ExitStatus::Unexpected),
    };
    let (queries, mut asked) = mpsc::channel(8);
    let mut helpers = JoinSet::new();
    let mut keepers = JoinSet::new();
    let metrics = match Metrics::new() {
        Ok(metrics) => metrics,
        Err(error) => return failed(&error, ExitStatus::Unexpected),
    };
    let (tokens, new_tokens) = watch::channel(Arc::default());
    let secrets = keep_secrets(&mut keepers, &settings, new_tokens, &metrics);
    if let Some(address) = daemon.listen {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                let address = listener.local_addr().unwrap_or(address);
                info!(%address, "serving metrics and probes");
                let files = settings.auth_files.clone();
                let missing = move |keys: &[String]| status::missing(&files, keys, clock::now());
                let pull_secrets = move || secrets.as_ref().and_then(|secrets| secrets.borrow().in_words());
                helpers.spawn(serve(listener, queries, missing, pull_secrets));
            }
            Err(error) => {
                error!(%address, %error, "cannot listen for metrics and probes");
                return ExitStatus::Unexpected;
            }
        }
    }
    let mounts =
        Mounts::listen().inspect_err(|error| warn!(%error, "mounts that come later are not noticed")).ok();
    let mut agent = Agent::new(settings, daemon, metrics, tokens);
    info!("started");
    let watchdog = systemd::ready();
    agent.look_around(clock::both());
    loop {
        let now = clock::both();
        agent.mind_the_clock(now);
        agent.start_what_is_due(now);
        systemd::tell(&agent.in_words(now));
        let mut next = agent.next(now);
        if let Some(watchdog) = watchdog {
            systemd::alive();
            next = next.earlier(now.after(watchdog));
        }
        let seen = async {
            match &agent.watch {
                Some(watch) => watch.next().await,
                None => std::future::pending().await,
            }
        };
        let mounted = async {
            match &mounts {
                Some(mounts) => mounts.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased; // a stop wins over work that is also ready
            asked = signals.next() => match asked {
                Asked::Stop => break,
                Asked::Refresh => agent.refresh_now(Reason::Hangup),
            },
            Some(query) = asked.recv() => agent.answer(query),
            // Helpers never end by themselves; were one to, the agent would lie about its health.
            Some(_) = helpers.join_next() => {
                error!("the server for metrics and probes has ended");
                return ExitStatus::Unexpected;
            },
            Some(ended) = keepers.join_next() => {
                return match ended {
                    Ok(Err(error)) => failed(&error, ExitStatus::Unexpected),
                    Err(error) => failed(&error, ExitStatus::Unexpected),
                    Ok(Ok(())) => ExitStatus::Unexpected,
                };
            },
            seen = seen => agent.seen(seen, clock::both()),
            // Not while a look is due anyway: a burst of pods is one.
            mounted = mounted, if agent.mounts_next.is_none() => match mounted {
                Ok(()) => agent.mounted(clock::both()),
                Err(error) => return failed(&error, ExitStatus::Unexpected),
            },
            Some(answer) = agent.attempts.join_next() => match answer {
                Ok(answer) => agent.take(answer, clock::both()),
                Err(error) => return failed(&error, ExitStatus::Unexpected),
            },
            Some(published) = agent.publishing.join_next() => match published {
                Ok(published) => agent.published(published, clock::both()),
                Err(error) => return failed(&error, ExitStatus::Unexpected),
            },
            waited = timer.wait(next) => if let Err(error) = waited {
                return failed(&error, ExitStatus::Unexpected);
            },
        }
    }
    info!("asked to stop");
    systemd::stopping();
    if !agent.publishing.is_empty() {
        tokio::select! {
            // What is killed here leaves the old file or the new one, and the next start cleans up.
            () = signals.stop() => warn!("asked again: a replacement under way was given up"),
            ended = tokio::time::timeout(GRACE, agent.publishing.join_next()) => if ended.is_err() {
                warn!("a replacement under way took too long, and was given up");
            },
        }
    }
    ExitStatus::Done
}

/// Starts the loop of the pull secrets, where there are any. Where there is nothing else to keep, it says what it lacks to
/// be ready; on a node, whose file comes first, that is nobody's concern.
fn keep_secrets(
    keepers: &mut JoinSet<io::Result<()>>,
    settings: &Settings,
    tokens: watch::Receiver<Arc<Wanted>>,
    metrics: &Metrics,
) -> Option<watch::Receiver<NotReadyReason>> {
    let (secrets, metrics) = (settings.pull_secrets.clone(), metrics.clone());
    if secrets.is_empty() {
        return None;
    }
    if !settings.auth_files.is_empty() {
        keepers.spawn(shared::run(secrets.named, tokens, metrics));
        return None;
    }
    let (sender, lacking) = watch::channel(NotReadyReason::Tokens);
    keepers.spawn(controller::run(secrets, tokens, sender, metrics));
    Some(lacking)
}

/// A source, the token that we have of it, and when it is asked next.
struct Post {
    question: TokenRequest,
    token: Option<Token>,
    next: Deadline,
    backoff: Backoff,
    asking: bool,
    /// Why it is asked next.
    reason: Reason,
    /// When it was asked last, by the time since boot.
    asked_at: Option<Duration>,
    /// Somebody wanted a refresh while one was under way.
    again: bool,
    refusal: Option<Refusal>,
}

/// What an attempt came to.
enum Answer {
    Questions(Result<Vec<TokenRequest>, Refusal>),
    Token(usize, Reason, Result<Token, Refusal>, Duration),
}

/// An auth file, and what is known of it.
struct Kept {
    file: AuthFile,
    upkeep: WriteScheduler,
    /// The permission bits that it had when we last saw it.
    mode: Option<u32>,
    /// What it holds of ours: for each key, start and end of the token.
    holds: BTreeMap<String, (Timestamp, Timestamp)>,
}

struct Agent {
    /// When the loop came round last.
    clock: Now,
    metrics: Metrics,
    /// For the pull secrets, whose loop waits for nothing of ours, and we for nothing of it.
    tokens: watch::Sender<Arc<Wanted>>,
    settings: Settings,
    daemon: Daemon,
    /// `None` until it is known whom to ask.
    posts: Option<Vec<Post>>,
    next_questions: Deadline,
    questions_backoff: Backoff,
    asking_questions: bool,
    attempts: JoinSet<Answer>,
    files: Vec<Kept>,
    /// One at the most.
    publishing: JoinSet<Vec<Published>>,
    blind: bool,
    credentials_tried: Option<Duration>,
    /// What the publish that is under way carries.
    carried: BTreeMap<String, (Timestamp, Timestamp)>,
    watched: Vec<(PathBuf, OsString)>,
    watch: Option<Watch>,
    watch_again: Option<Deadline>,
    /// When the mounts are looked at, since they have changed.
    mounts_next: Option<Deadline>,
    /// When, by the time since boot, that was done last.
    mounts_seen: Option<Duration>,
}

impl Agent {
    fn new(settings: Settings, daemon: Daemon, metrics: Metrics, tokens: watch::Sender<Arc<Wanted>>) -> Self {
        let now = clock::both();
        let kept = |file: &AuthFile| Kept {
            file: file.clone(),
            upkeep: WriteScheduler::default(),
            mode: None,
            holds: BTreeMap::new(),
        };
        let files = settings.auth_files.iter().map(kept).collect();
        Self {
            clock: now,
            metrics,
            tokens,
            settings,
            daemon,
            posts: None,
            next_questions: now.after(Duration::ZERO),
            questions_backoff: Backoff::default(),
            asking_questions: false,
            attempts: JoinSet::new(),
            files,
            publishing: JoinSet::new(),
            blind: false,
            credentials_tried: None,
            carried: BTreeMap::new(),
            watched: Vec::new(),
            watch: None,
            watch_again: None,
            mounts_next: None,
            mounts_seen: None,
        }
    }

    /// Answers a question of the server's.
    fn answer(&self, query: Query) {
        // Who asked may be gone by now.
        match query {
            Query::Alive(answer) => drop(answer.send(())),
            Query::Keys(answer) => drop(answer.send(self.keys())),
            Query::Metrics(answer) => {
                let posts = || self.posts.iter().flatten();
                let now = clock::both();
                let tokens = self.in_place(now.wall);
                self.metrics.tokens(
                    tokens.iter().map(|(key, fetched_at, expires_at)| (*key, *fetched_at, *expires_at)),
                );
                self.metrics.fight(self.files.iter().any(|kept| kept.upkeep.is_fighting()));
                let waiting = posts().filter(|post| post.refusal.is_some()).count();
                let questions = usize::from(self.posts.is_none() && self.questions_backoff.failures() > 0);
                let files = self.files.iter().filter(|kept| kept.upkeep.has_failed()).count();
                self.metrics.retries(waiting + questions + files);
                drop(answer.send(self.metrics.text()));
            }
        }
    }

    /// The keys that must be in the files, or `None` while one of them is not known.
    fn keys(&self) -> Option<Vec<String>> {
        let keys: Vec<Vec<String>> = self.posts.as_ref()?.iter().map(Post::keys).collect();
        keys.iter().all(|keys| !keys.is_empty()).then(|| keys.concat())
    }

    /// How things stand, in one line, for systemd's status.
    fn in_words(&self, now: Now) -> String {
        let Some(posts) = &self.posts else { return "not known yet whom to ask".to_owned() };
        let good = posts.iter().filter_map(|post| post.usable(now.wall));
        let first = good.clone().map(|token| token.expires_at).min();
        let ends = first.map(|end| format!(", the first until {end}")).unwrap_or_default();
        format!("{} of {} tokens are good{ends}", good.count(), posts.len())
    }

    /// The earliest moment at which there is something to do.
    fn next(&self, now: Now) -> Deadline {
        let mut next = now.after(Duration::from_hours(24));
        let mut at = |deadline: Deadline| next = next.earlier(deadline);
        if self.posts.is_none() && !self.asking_questions {
            at(self.next_questions);
        }
        for post in self.posts.iter().flatten() {
            if !post.asking {
                at(post.next);
            }
            if let Some(lapse) = post.lapse().filter(|lapse| *lapse > now.wall) {
                at(now.until(lapse));
            }
        }
        if self.publishing.is_empty() {
            self.files.iter().filter_map(|kept| kept.upkeep.next(now)).for_each(&mut at);
        }
        if let Some(again) = self.watch_again {
            at(again);
        }
        if let Some(next) = self.mounts_next {
            at(next);
        }
        next
    }

    /// What was refused for the sake of a clock that was wrong need not wait once it is set. Set forward, it has woken all
    /// that waits anyway; set back, nothing.
    fn mind_the_clock(&mut self, now: Now) {
        let step = now.step_since(std::mem::replace(&mut self.clock, now));
        if step.abs() < CLOCK_STEP {
            return;
        }
        info!(by_s = step.as_secs(), "somebody has set the clock");
        for post in self.posts.iter_mut().flatten() {
            if !post.asking && post.refusal.as_ref().is_some_and(Refusal::may_be_the_clock) {
                post.next = post.next.earlier(now.after(post.pause(now)));
            }
        }
    }

    fn start_what_is_due(&mut self, now: Now) {
        if self.mounts_next.is_some_and(|next| now.is_past(next)) {
            self.look_at_mounts(now);
        }
        if self.watch_again.is_some_and(|again| now.is_past(again)) {
            self.look_around(now);
            self.files.iter_mut().for_each(|kept| kept.upkeep.look(now));
            // Nobody saw what changed meanwhile.
            self.credentials_changed(now);
        }
        if self.posts.is_none() && !self.asking_questions && now.is_past(self.next_questions) {
            self.asking_questions = true;
            let settings = self.settings.clone();
            self.attempts.spawn(async move {
                let asked = tokio::time::timeout(ATTEMPT, Box::pin(attempt_questions(&settings))).await;
                Answer::Questions(asked.unwrap_or_else(|_| Err(given_up())))
            });
        }
        let mut lapsed = false;
        for (number, post) in self.posts.iter_mut().flatten().enumerate() {
            lapsed |= post.lapse().is_some_and(|lapse| lapse <= now.wall) && post.token.take().is_some();
            if !post.asking && now.is_past(post.next) {
                post.asking = true;
                post.asked_at = Some(now.boot);
                let reason = post.reason;
                let (identity, question) = (self.settings.identity.clone(), post.question.clone());
                let span = info_span!("fetch", source = %question.source);
                let attempt = async move {
                    let start = Instant::now();
                    let asked = tokio::time::timeout(ATTEMPT, Box::pin(attempt(identity, &question))).await;
                    let token = asked.unwrap_or_else(|_| Err(given_up()));
                    Answer::Token(number, reason, token, start.elapsed())
                };
                self.attempts.spawn(attempt.instrument(span));
            }
        }
        if lapsed {
            self.renew();
            self.offer_tokens(now);
        }
        self.publish(now);
    }

    /// Everything is asked at the next chance.
    fn refresh_now(&mut self, reason: Reason) {
        info!(reason = reason.label(), "refreshing now");
        let now = clock::both();
        self.next_questions = now.after(Duration::ZERO);
        for post in self.posts.iter_mut().flatten() {
            post.again = post.asking;
            post.reason = reason;
            post.next = now.after(post.pause(now));
        }
    }

    fn seen(&mut self, seen: Seen, now: Now) {
        for (number, kept) in self.files.iter_mut().enumerate() {
            if seen.has(Seen::auth_file(number)) {
                kept.upkeep.look(now);
            }
        }
        if seen.has(Seen::BROKEN) {
            info!("the watch is broken, and is set up again");
            self.watch = None;
            self.watch_again = Some(now.after(WATCH_PAUSE));
        }
        if seen.has(Seen::CREDENTIALS) {
            self.credentials_changed(now);
        }
    }

    /// Something was mounted or unmounted somewhere: on a busy node that is every pod.
    fn mounted(&mut self, now: Now) {
        let last = self.mounts_seen.map_or(Duration::ZERO, |last| last + WATCH_PAUSE);
        self.mounts_next.get_or_insert(now.after(last.saturating_sub(now.boot)));
    }

    /// Sets the watch up again if it was something over what is watched.
    fn look_at_mounts(&mut self, now: Now) {
        self.mounts_next = None;
        self.mounts_seen = Some(now.boot);
        if self.watch.as_ref().is_some_and(Watch::is_elsewhere) {
            info!("a watched directory is another one now, and is watched instead");
            self.watch_again = Some(now.after(Duration::ZERO));
        } else if self.blind {
            // What is missing may be there now.
            self.watch_again = Some(now.after(Duration::ZERO));
        }
    }

    /// New credentials may be there. They are read anew for every attempt, so there is nothing to forget, and nothing to do
    /// unless somebody waits for them. Not more often than every ten seconds: what finds the credentials may touch the very
    /// files that are watched.
    fn credentials_changed(&mut self, now: Now) {
        let last = self.credentials_tried.map_or(Duration::ZERO, |last| last + CREDENTIALS_PAUSE);
        let next = now.after(last.saturating_sub(now.boot));
        let mut waited_for = false;
        if self.posts.is_none() && self.questions_backoff.failures() > 0 {
            self.next_questions = self.next_questions.earlier(next);
            waited_for = true;
        }
        for post in self.posts.iter_mut().flatten() {
            if !post.asking && post.refusal.as_ref().is_some_and(Refusal::is_about_the_caller) {
                post.reason = Reason::Credentials;
                post.next = post.next.earlier(next);
                waited_for = true;
            }
        }
        if waited_for {
            info!(reason = Reason::Credentials.label(), "refreshing now");
            self.credentials_tried = Some(next.boot);
        }
    }

    fn take(&mut self, answer: Answer, now: Now) {
        match answer {
            Answer::Questions(Ok(questions)) => {
                self.asking_questions = false;
                self.adopt(questions, now);
            }
            Answer::Questions(Err(refusal)) => {
                self.asking_questions = false;
                let delay =
                    self.questions_backoff.failed(refusal.retry(), now.boot, Duration::ZERO, fastrand::f64());
                error!(error = %refusal, retry_in = ?delay, "nobody can be asked yet");
                self.next_questions = now.after(delay);
            }
            Answer::Token(number, reason, token, took) => {
                if let Some(post) = self.posts.as_mut().and_then(|posts| posts.get_mut(number)) {
                    let span = info_span!("fetch", source = %post.question.source);
                    let _entered = span.enter();
                    self.metrics.attempt(reason, outcome(&token), took);
                    if post.take(token, &self.daemon, now) {
                        self.renew();
                        self.offer_tokens(now);
                    }
                }
            }
        }
    }

    /// Begins with what the files remember: a token of ours that is good is not asked for again.
    fn adopt(&mut self, questions: Vec<TokenRequest>, now: Now) {
        let posts = questions.into_iter().map(|question| {
            let files = self.settings.auth_files.iter();
            let tokens = files.filter_map(|file| remembered(file, &question, now.wall));
            let token = tokens.max_by_key(|token| token.expires_at);
            let next = match &token {
                Some(token) => {
                    let due = due(&self.daemon.rule, token);
                    let (source, expires_at) = (&question.source, token.expires_at);
                    info!(%source, %expires_at, next_refresh = %due, "a good token of ours is in place");
                    now.until(due)
                }
                None => now.after(Duration::ZERO),
            };
            let reason = if token.is_some() { Reason::Deadline } else { Reason::Start };
            Post {
                question,
                token,
                next,
                backoff: Backoff::default(),
                asked_at: None,
                asking: false,
                reason,
                again: false,
                refusal: None,
            }
        });
        let posts: Vec<Post> = posts.collect();
        if posts.iter().any(|post| post.token.is_some()) {
            self.renew();
        }
        self.posts = Some(posts);
        self.offer_tokens(now);
    }

    /// Hands what is wanted now to the pull secrets, whatever becomes of the files.
    fn offer_tokens(&self, now: Now) {
        if self.tokens.receiver_count() > 0 {
            self.tokens.send_replace(Arc::new(self.wanted(now)));
        }
    }

    /// What every target should hold now.
    fn wanted(&self, now: Now) -> Wanted {
        let posts = self.posts.iter().flatten();
        wanted(posts.map(|post| (&post.question, post.usable(now.wall))), now.wall)
    }

    /// There is something new to write, to every file.
    fn renew(&mut self) {
        self.files.iter_mut().for_each(|kept| kept.upkeep.renew());
    }

    /// Writes the files whose time has come.
    fn publish(&mut self, now: Now) {
        if !self.publishing.is_empty() {
            return;
        }
        let due = |kept: &mut Kept| kept.upkeep.start(now).then(|| (kept.file.clone(), kept.mode));
        let (files, modes): (Vec<AuthFile>, Vec<Option<u32>>) = self.files.iter_mut().filter_map(due).unzip();
        if files.is_empty() {
            return;
        }
        let wanted = self.wanted(now);
        if wanted.entries.is_empty() && wanted.lapse.is_empty() {
            return;
        }
        let tokens = wanted.entries.iter();
        self.carried =
            tokens.map(|(key, entry)| (key.clone(), (entry.fetched_at, entry.expires_at))).collect();
        let modes: BTreeMap<PathBuf, Option<u32>> =
            files.iter().map(|file| file.path.clone()).zip(modes).collect();
        let now = now.wall;
        let publish = move |file: &AuthFile| {
            let manner =
                PublishOptions { now, dry_run: false, mode: modes.get(&file.path).copied().flatten() };
            file.publish(&wanted, manner)
        };
        self.publishing.spawn(async move { on_each(&files, publish).await });
    }

    fn published(&mut self, published: Vec<Published>, now: Now) {
        let carried = std::mem::take(&mut self.carried);
        for Published { path, result } in published {
            let Some(kept) = self.files.iter_mut().find(|kept| kept.file.path == path) else { continue };
            let came = match &result {
                Err(_) => WriteResult::Failed,
                Ok(outcome) if outcome.effect == Effect::Unchanged => WriteResult::Unchanged,
                Ok(_) => WriteResult::Changed,
            };
            match came {
                WriteResult::Failed => self.metrics.written(Outcome::Failure),
                WriteResult::Changed => self.metrics.written(Outcome::Success),
                WriteResult::Unchanged => {}
            }
            if let Ok(outcome) = result {
                kept.mode = outcome.mode.or(kept.mode);
                // An entry that was kept, since its renewal failed, is in place still.
                kept.holds.extend(carried.clone());
            }
            let path = path.display();
            match kept.upkeep.end(came, now, fastrand::f64()) {
                DriftEvent::Nothing => {}
                DriftEvent::Repaired => {
                    self.metrics.repaired();
                    warn!(%path, "another program had changed this file; it was repaired");
                }
                DriftEvent::Fight => {
                    self.metrics.repaired();
                    warn!(%path, "another program keeps changing this file; from now on it is repaired once a minute");
                }
                DriftEvent::Peace => info!(%path, "the other program has stopped"),
            }
        }
        // A link that leads elsewhere now, or a file that has become one.
        if self.watch.is_some() && self.places() != self.watched {
            self.look_around(now);
        }
    }

    /// What is asked for and stands in every file: key, start and end of the token. Where the files differ, since one
    /// could not be written, the token that ends first counts.
    fn in_place(&self, now: Timestamp) -> Vec<(&str, Timestamp, Timestamp)> {
        let lasting = |post: &&Post| post.lapse().is_none_or(|lapse| lapse > now);
        let asked: Vec<String> = self.posts.iter().flatten().filter(lasting).flat_map(Post::keys).collect();
        let Some(first) = self.files.first() else { return Vec::new() };
        let keys = first.holds.keys().filter(|key| asked.contains(key));
        keys.filter_map(|key| {
            let all: Option<Vec<_>> = self.files.iter().map(|kept| kept.holds.get(key)).collect();
            let (fetched_at, expires_at) = *all?.into_iter().min_by_key(|(_, expires_at)| *expires_at)?;
            Some((key.as_str(), fetched_at, expires_at))
        })
        .collect()
    }

    /// The names on the way to every auth file.
    fn places(&self) -> Vec<(PathBuf, OsString)> {
        self.files.iter().flat_map(|kept| kept.file.places()).collect()
    }

    /// Sets up the watch; where that fails, it is tried again in a minute, and the files are looked at then.
    fn look_around(&mut self, now: Now) {
        let mut interests = Interests::default();
        // One that is missing must not cost the others their watch.
        let mut missing = false;
        let mut watched = Vec::new();
        for (number, kept) in self.files.iter().enumerate() {
            for (directory, name) in kept.file.places() {
                if directory.is_dir() {
                    interests.add(&directory, Some(name.clone()), Seen::auth_file(number));
                } else {
                    missing = true;
                }
                watched.push((directory, name));
            }
        }
        self.watched = watched;
        if let Some(directory) = &self.settings.identity.credentials_dir {
            if directory.is_dir() {
                interests.add(directory, None, Seen::CREDENTIALS);
            } else {
                missing = true;
            }
        }
        for path in &self.daemon.credential_files {
            if let (Some(directory), Some(name)) = (path.parent().filter(|it| it.is_dir()), path.file_name())
            {
                interests.add(directory, Some(name.to_owned()), Seen::CREDENTIALS);
                // A mounted Secret changes by a swap of this link.
                interests.add(directory, Some("..data".into()), Seen::CREDENTIALS);
            }
        }
        let was_blind = self.blind;
        match Watch::start(interests) {
            Ok(watch) => {
                self.watch = Some(watch);
                self.blind = missing;
            }
            Err(error) => {
                if !was_blind {
                    warn!(%error, "the files cannot be watched, and are looked at once a minute");
                }
                self.watch = None;
                self.blind = true;
            }
        }
        if self.blind && !was_blind && self.watch.is_some() {
            warn!("a directory is missing, and is looked for once a minute; the others are watched");
        }
        if was_blind && !self.blind {
            info!("the files are watched again");
            // What was in the way may be gone.
            self.files.iter_mut().for_each(|kept| kept.upkeep.look(now));
        }
        self.watch_again = self.blind.then(|| now.after(BLIND));
    }
}

impl Post {
    /// Takes the answer of an attempt. Says whether there is something new to publish.
    fn take(&mut self, token: Result<Token, Refusal>, daemon: &Daemon, now: Now) -> bool {
        self.asking = false;
        let again = std::mem::take(&mut self.again);
        match token {
            Ok(token) => {
                tell_fetched(&token);
                self.backoff.reset();
                let crowded = matches!(self.refusal, Some(Refusal::Throttled { .. }));
                self.refusal = None;
                if !again {
                    self.reason = Reason::Deadline;
                }
                let rule = if crowded { &daemon.rule.after_a_crowd() } else { &daemon.rule };
                let due = due(rule, &token);
                let soonest = now.after(self.pause(now));
                self.next = if again { soonest } else { now.until(due).later(soonest) };
                debug!(next_refresh = %due, "scheduled");
                self.token = Some(token);
                true
            }
            Err(refusal) => {
                if !again {
                    self.reason = Reason::Retry;
                }
                let delay = self.delay(&refusal, now);
                let failures = self.backoff.failures();
                match self.usable(now.wall) {
                    Some(token) => {
                        warn!(error = %refusal, failures, retry_in = ?delay, expires_at = %token.expires_at, "no new token; the old one is good until its end");
                    }
                    None => {
                        error!(error = %refusal, failures, retry_in = ?delay, "there is no valid token: image pulls from ECR fail");
                    }
                }
                self.refusal = Some(refusal);
                self.next = now.after(if again { self.pause(now) } else { delay });
                // What an earlier run left may have to go, though this one never had a token.
                failures == 1 && self.question.source.endpoint == Endpoint::Public
            }
        }
    }

    /// How long to wait after a failure.
    fn delay(&mut self, refusal: &Refusal, now: Now) -> Duration {
        let left = self.usable(now.wall).map(|token| token.expires_at.duration_since(now.wall));
        let left = left.and_then(|left| Duration::try_from(left).ok()).unwrap_or_default();
        self.backoff.failed(refusal.retry(), now.boot, left, fastrand::f64())
    }

    /// How long it must still be left alone.
    fn pause(&self, now: Now) -> Duration {
        self.asked_at.map_or(Duration::ZERO, |last| (last + ASK_PAUSE).saturating_sub(now.boot))
    }

    /// The keys that it serves, as far as they are known.
    fn keys(&self) -> Vec<String> {
        let named = self.token.as_ref().and_then(|token| token.registry.clone());
        if self.question.keys.is_empty() { named.into_iter().collect() } else { self.question.keys.clone() }
    }

    /// The token, while it is good. One that is past its end is not put back where somebody replaced it.
    fn usable(&self, now: Timestamp) -> Option<&Token> {
        self.token.as_ref().filter(|token| now < token.expires_at)
    }

    /// When an entry for a registry that also serves anonymously has to go, if its renewal keeps failing.
    fn lapse(&self) -> Option<Timestamp> {
        let token = self.token.as_ref().filter(|_| self.question.source.endpoint == Endpoint::Public)?;
        self.refusal.as_ref().and_then(|_| token.expires_at.checked_sub(LAPSE).ok())
    }
}

fn outcome(token: &Result<Token, Refusal>) -> Outcome {
    match token {
        Ok(_) => Outcome::Success,
        Err(Refusal::Throttled { .. }) => Outcome::Throttled,
        Err(refusal) if refusal.is_about_the_caller() => Outcome::Credentials,
        Err(_) => Outcome::Failure,
    }
}

/// One attempt: credentials, then the token.
async fn attempt(identity: Identity, question: &TokenRequest) -> Result<Token, Refusal> {
    let ecr = connect(identity)?;
    let caller = ecr.caller(Some(&question.source.region)).await?;
    ask(&ecr, &question.source, question.keys.is_empty(), &caller).await
}

async fn attempt_questions(settings: &Settings) -> Result<Vec<TokenRequest>, Refusal> {
    questions(settings, &connect(settings.identity.clone())?).await
}

fn connect(identity: Identity) -> Result<Ecr, Refusal> {
    Ecr::new(identity).map_err(|error| Refusal::Settings { said: error.to_string() })
}

fn given_up() -> Refusal {
    Refusal::Unavailable { said: format!("nothing came within {} s", ATTEMPT.as_secs()) }
}

fn due(rule: &RefreshPolicy, token: &Token) -> Timestamp {
    let life = Life { fetched_at: token.fetched_at, expires_at: token.expires_at };
    rule.due(life, fastrand::f64())
}

/// The token that a file holds for a question, where it is marked as ours, from this source, and good.
fn remembered(file: &AuthFile, question: &TokenRequest, now: Timestamp) -> Option<Token> {
    let bytes = file.read().ok().flatten()?;
    let parsed = document::parse(&bytes).ok()?;
    let ledger = parsed.document.ledger()?;
    let source = question.source.to_string();
    let good = |key: &String| {
        let record = ledger.entries.get(key).filter(|record| record.source == source)?;
        let life = Life { fetched_at: record.fetched_at, expires_at: record.expires_at };
        parsed.document.digest(key).filter(|digest| *digest == record.digest)?;
        let authorization = AuthorizationToken::new(parsed.document.plain_auth(key)?).ok()?;
        life.is_good(now).then(|| Token {
            authorization,
            expires_at: record.expires_at,
            fetched_at: record.fetched_at,
            registry: Some(key.clone()),
        })
    };
    if question.keys.is_empty() {
        return ledger.entries.keys().find_map(good);
    }
    // All of them, and all the same token: else it is fetched anew for all.
    let mut tokens = question.keys.iter().map(good);
    let first = tokens.next()??;
    let same =
        |token: Option<Token>| token.is_some_and(|token| token.authorization.is_same(&first.authorization));
    tokens.all(same).then_some(first)
}
