//! The token sources: which one is asked when, their tokens, and their failures.
//!
//! Each attempt runs in a task of its own, so that no source waits for another.

use super::source_state::{Failing, Recorded, SourceState};
use crate::docker_config::merge::Wanted;
use crate::ecr::client::contained;
use crate::ecr::refusal::Refusal;
use crate::ecr::registry::Endpoint;
use crate::ecr::token::Token;
use crate::report::agent_state::Failure;
use crate::report::metrics::Reason;
use crate::round::Fetched;
use crate::settings::RefreshPolicy;
use crate::time::clock;
use crate::time::retry::Backoff;
use crate::time::timer::{Deadline, Now};
use crate::token::{TokenRequest, TokenStore, wanted};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tracing::info;

/// Changed credentials are tried no more often than this: what finds credentials may touch the very files that are watched.
const CREDENTIALS_PAUSE: Duration = Duration::from_secs(10);

/// All token sources of this agent.
pub struct Sources {
    store: TokenStore,
    policy: RefreshPolicy,
    /// `None` until the requests are known: without `--registry`, the region has to be found out first.
    states: Option<Vec<SourceState>>,
    /// When the requests are looked for next, while they are not known.
    resume: Resume,
    attempts: JoinSet<AttemptResult>,
    /// When changed credentials were tried last, in time since boot; `None` if never.
    credentials_tried: Option<Duration>,
}

/// The search for the requests, with what the auth files remember for them.
struct Resume {
    next: Deadline,
    running: bool,
    backoff: Backoff,
    /// Why the last search failed; `None` if there was none.
    failing: Option<Failing>,
    /// Whether a refresh was asked for while the search was under way. Every source is then asked after it.
    then_refresh: bool,
}

/// What is asked of one token source.
#[derive(Debug, PartialEq, Eq)]
pub struct AskedFor {
    /// The registries; `None` for the default registry while its name is unknown.
    pub keys: Option<Vec<String>>,
    /// The token source; `None` while it is unknown.
    pub source: Option<String>,
    /// Whether the registry also serves without credentials and no token can be fetched, so that no entry is better than an
    /// expired one.
    pub may_be_absent: bool,
}

/// What an attempt came to.
pub enum AttemptResult {
    /// The search for the requests.
    Resumed(Result<Vec<(TokenRequest, Option<Token>)>, Refusal>),
    /// An attempt to fetch a token.
    Fetched {
        /// The source's number.
        source: usize,
        /// Why it was asked.
        reason: Reason,
        /// The token.
        result: Result<Token, Refusal>,
        /// How long the attempt took.
        took: Duration,
    },
}

/// What a finished attempt means for the rest of the agent.
#[derive(Default)]
pub struct Update {
    /// What to log and count, if a token was asked for.
    pub fetched: Option<Fetched>,
    /// Whether there is something new to write to every target.
    pub publish: bool,
}

impl Sources {
    /// Sources of which nothing is known yet.
    #[must_use]
    pub fn new(store: TokenStore, policy: RefreshPolicy, now: Now) -> Self {
        let next = now.after(Duration::ZERO);
        Self {
            store,
            policy,
            states: None,
            resume: Resume {
                next,
                running: false,
                backoff: Backoff::default(),
                failing: None,
                then_refresh: false,
            },
            attempts: JoinSet::new(),
            credentials_tried: None,
        }
    }

    /// The earliest moment at which a source is asked, or an entry has to go.
    #[must_use]
    pub fn next(&self, now: Now) -> Option<Deadline> {
        let resume = (self.states.is_none() && !self.resume.running).then_some(self.resume.next);
        let states = self.states.iter().flatten().filter_map(|state| state.next(now));
        resume.into_iter().chain(states).reduce(Deadline::earlier)
    }

    /// Starts the attempts that are due. Returns whether an entry has to go from every target.
    pub fn start_due(&mut self, now: Now) -> bool {
        if self.states.is_none() && !self.resume.running && now.is_past(self.resume.next) {
            self.resume.running = true;
            let store = self.store.clone();
            self.attempts.spawn(async move {
                let resumed = contained("resuming", Box::pin(store.resume(clock::now()))).await;
                AttemptResult::Resumed(resumed)
            });
        }
        let mut lapsed = false;
        for (source, state) in self.states.iter_mut().flatten().enumerate() {
            lapsed |= state.lapse(now.wall);
            let Some(reason) = state.start(now) else { continue };
            let (store, request) = (self.store.clone(), state.request.clone());
            self.attempts.spawn(async move {
                let start = Instant::now();
                let result = contained("the attempt", Box::pin(store.fetch(&request))).await;
                AttemptResult::Fetched { source, reason, result, took: start.elapsed() }
            });
        }
        lapsed
    }

    /// Waits for the next attempt to end. May be dropped while it waits.
    pub async fn finished(&mut self) -> AttemptResult {
        loop {
            match self.attempts.join_next().await {
                Some(Ok(result)) => return result,
                // An attempt catches its panics, and is never aborted.
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Takes the result of an attempt.
    pub fn record(&mut self, result: AttemptResult, now: Now) -> Update {
        match result {
            AttemptResult::Resumed(Ok(requests)) => {
                self.resume.running = false;
                self.begin(requests, now)
            }
            AttemptResult::Resumed(Err(refusal)) => {
                self.resume.running = false;
                let delay =
                    self.resume.backoff.failed(refusal.retry(), now.boot, Duration::ZERO, fastrand::f64());
                self.resume.next = now.after(delay.max(Duration::from_secs(1)));
                self.resume.failing =
                    Some(Failing::again(self.resume.failing.take(), refusal.clone(), now.wall));
                let fetched = Fetched {
                    failures: self.resume.backoff.failures(),
                    retry_in: Some(delay),
                    ..Fetched::new(None, Reason::Start, Err(refusal), Duration::ZERO)
                };
                Update { fetched: Some(fetched), publish: false }
            }
            AttemptResult::Fetched { source, reason, result, took } => {
                let Some(state) = self.states.as_mut().and_then(|states| states.get_mut(source)) else {
                    return Update::default();
                };
                let mut fetched = Fetched::new(
                    Some(state.request.source.clone()),
                    reason,
                    result.as_ref().map(|token| token.expires_at).map_err(Clone::clone),
                    took,
                );
                let Recorded { next, failures, retry_in, publish } =
                    state.record(result, &self.policy, now, fastrand::f64());
                (fetched.next_refresh, fetched.failures, fetched.retry_in) =
                    (Some(next.wall), failures, retry_in);
                fetched.old_token_expires_at = state.usable(now.wall).map(|token| token.expires_at);
                Update { fetched: Some(fetched), publish }
            }
        }
    }

    /// Begins with what the auth files remember: a good token of ours is not asked for again.
    fn begin(&mut self, requests: Vec<(TokenRequest, Option<Token>)>, now: Now) -> Update {
        let mut publish = false;
        let begin = |(request, token): (TokenRequest, Option<Token>)| {
            if let Some(token) = &token {
                publish = true;
                let source = &request.source;
                info!(%source, expires_at = %token.expires_at, "found a good token in the auth file");
            }
            SourceState::new(request, token, &self.policy, now, fastrand::f64())
        };
        self.states = Some(requests.into_iter().map(begin).collect());
        if std::mem::take(&mut self.resume.then_refresh) {
            self.refresh_now(now);
        }
        Update { fetched: None, publish }
    }

    /// Asks every source as soon as allowed. Returns whether that changes anything.
    pub fn refresh_now(&mut self, now: Now) -> bool {
        if self.states.is_none() {
            if self.resume.running {
                return !std::mem::replace(&mut self.resume.then_refresh, true);
            }
            let soonest = now.after(Duration::from_secs(1));
            let is_later = self.resume.next.boot > soonest.boot;
            if is_later {
                self.resume.next = soonest;
            }
            return is_later;
        }
        let ask = |state: &mut SourceState| state.ask_now(Reason::Hangup, now);
        // Not `any`: every source is asked.
        self.states.iter_mut().flatten().map(ask).fold(false, |changes, asked| changes | asked)
    }

    /// Credentials may have changed. They are read anew for every attempt, so only sources that wait for them have to know.
    /// Returns whether one does.
    pub fn credentials_changed(&mut self, now: Now) -> bool {
        let last = self.credentials_tried.map_or(Duration::ZERO, |last| last + CREDENTIALS_PAUSE);
        let next = now.after(last.saturating_sub(now.boot));
        let mut waited_for = false;
        if self.states.is_none() && self.resume.failing.is_some() {
            self.resume.next = self.resume.next.earlier(next);
            waited_for = true;
        }
        for state in self.states.iter_mut().flatten() {
            waited_for |= state.credentials_changed(next);
        }
        if waited_for {
            self.credentials_tried = Some(next.boot);
        }
        waited_for
    }

    /// The wall clock was set.
    pub fn clock_was_set(&mut self, now: Now) {
        self.states.iter_mut().flatten().for_each(|state| state.clock_was_set(now));
    }

    /// What every target should hold now.
    #[must_use]
    pub fn wanted(&self, now: Now) -> Wanted {
        let states = self.states.iter().flatten();
        wanted(states.map(|state| (&state.request, state.usable(now.wall))), now.wall)
    }

    /// The keys that must be in every target, or `None` while one of them is not known.
    #[must_use]
    pub fn keys(&self) -> Option<Vec<String>> {
        let keys: Option<Vec<Vec<String>>> = self.asked_for().into_iter().map(|asked| asked.keys).collect();
        keys.map(|keys| keys.concat())
    }

    /// What is asked for, one item for each token source.
    #[must_use]
    pub fn asked_for(&self) -> Vec<AskedFor> {
        let Some(states) = &self.states else {
            let named = self.store.named_requests().into_iter();
            let named = named.map(|request| (Some(request.keys), Some(request.source.to_string())));
            let all: Vec<_> = if named.len() == 0 { vec![(None, None)] } else { named.collect() };
            let asked_for = |(keys, source)| AskedFor { keys, source, may_be_absent: false };
            return all.into_iter().map(asked_for).collect();
        };
        let asked_for = |state: &SourceState| AskedFor {
            keys: Some(state.keys()).filter(|keys| !keys.is_empty()),
            source: Some(state.request.source.to_string()),
            may_be_absent: state.request.source.endpoint == Endpoint::Public && state.refusal().is_some(),
        };
        states.iter().map(asked_for).collect()
    }

    /// What fails at the moment.
    #[must_use]
    pub fn failures(&self) -> Vec<Failure> {
        let Some(states) = &self.states else {
            let next = (!self.resume.running).then_some(self.resume.next);
            let failing = self.resume.failing.iter();
            return failing.map(|failing| failing.report("default registry", next)).collect();
        };
        states.iter().filter_map(SourceState::failure).collect()
    }

    /// How many sources wait for another attempt after a failure.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let states = self.states.iter().flatten().filter(|state| state.refusal().is_some()).count();
        states + usize::from(self.states.is_none() && self.resume.failing.is_some())
    }

    /// The sources in one line, for systemd's status.
    #[must_use]
    pub fn summary(&self, now: Now) -> String {
        let Some(states) = &self.states else {
            return match &self.resume.failing {
                Some(Failing { refusal, .. }) => format!("no token yet: {refusal}"),
                None => "starting".to_owned(),
            };
        };
        let good: Vec<_> = states.iter().filter_map(|state| state.usable(now.wall)).collect();
        let first = good.iter().map(|token| token.expires_at).min();
        let ends = first.map(|end| format!(", the first expires at {end}")).unwrap_or_default();
        format!("{} of {} tokens are valid{ends}", good.len(), states.len())
    }
}
