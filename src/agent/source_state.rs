//! One token source: its token, its failures, and when it is asked next.
//!
//! Pure: `now` and random numbers are arguments.

use crate::ecr::refusal::{Class, Refusal};
use crate::ecr::registry::Endpoint;
use crate::ecr::token::Token;
use crate::report::agent_state::Failure;
use crate::report::metrics::Reason;
use crate::settings::RefreshPolicy;
use crate::time::retry::Backoff;
use crate::time::schedule::Life;
use crate::time::timer::{Deadline, Now};
use crate::token::{LAPSE, TokenRequest};
use jiff::Timestamp;
use std::time::Duration;

/// No source is asked again sooner than this, whatever the reason.
const ASK_PAUSE: Duration = Duration::from_secs(1);

/// A token source, as the daemon keeps it.
#[derive(Debug)]
pub struct SourceState {
    /// What is asked of it.
    pub request: TokenRequest,
    /// The newest token; `None` if there never was one, or if its entry was taken out before it expired.
    token: Option<Token>,
    /// Why the last attempt failed; `None` if it succeeded.
    failing: Option<Failing>,
    backoff: Backoff,
    /// When it is asked next.
    next: Deadline,
    /// Why it is asked next.
    reason: Reason,
    /// When the last attempt started, in time since boot; `None` if there was none.
    asked_at: Option<Duration>,
    attempt: Attempt,
}

/// A series of failed attempts.
#[derive(Debug, Clone)]
pub struct Failing {
    /// Why the last one failed.
    pub refusal: Refusal,
    /// When the first one failed.
    pub since: Timestamp,
}

impl Failing {
    /// The series with one more failure.
    #[must_use]
    pub fn again(before: Option<Self>, refusal: Refusal, now: Timestamp) -> Self {
        Self { refusal, since: before.map_or(now, |before| before.since) }
    }

    /// The series as an operator sees it. `next` is when the next attempt is due; `None` while one is under way.
    #[must_use]
    pub fn report(&self, subject: &str, next: Option<Deadline>) -> Failure {
        Failure {
            subject: subject.to_owned(),
            class: self.refusal.class().as_str().to_owned(),
            error: self.refusal.to_string(),
            since: self.since,
            next_attempt: next.map(|next| next.wall),
        }
    }
}

/// Whether an attempt is under way, and what happened since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    None,
    Running,
    /// A refresh was asked for: there is another attempt afterwards.
    RunningThenAgain,
    /// Credentials changed: there is another attempt afterwards if this one fails for its credentials.
    RunningOnOldCredentials,
}

/// What an attempt changed.
#[derive(Debug)]
pub struct Recorded {
    /// When the next attempt is due.
    pub next: Deadline,
    /// Failures in a row; zero after a success.
    pub failures: u32,
    /// How long it is until the next attempt, after a failure.
    pub retry_in: Option<Duration>,
    /// Whether the targets have to be written.
    pub publish: bool,
}

impl SourceState {
    /// A source whose token is `token`, if an auth file remembered one. `due` is when that is to be replaced.
    #[must_use]
    pub fn new(
        request: TokenRequest,
        token: Option<Token>,
        policy: &RefreshPolicy,
        now: Now,
        random: f64,
    ) -> Self {
        let reason = if token.is_some() { Reason::Deadline } else { Reason::Start };
        let next = match &token {
            Some(token) => now.until(due(policy, token, random)),
            None => now.after(Duration::ZERO),
        };
        Self {
            request,
            token,
            failing: None,
            backoff: Backoff::default(),
            next,
            reason,
            asked_at: None,
            attempt: Attempt::None,
        }
    }

    /// When it is asked next, or its entry has to go; `None` while an attempt is under way.
    #[must_use]
    pub fn next(&self, now: Now) -> Option<Deadline> {
        let next = (self.attempt == Attempt::None).then_some(self.next);
        let lapse = self.lapses_at().filter(|lapse| *lapse > now.wall).map(|lapse| now.until(lapse));
        next.into_iter().chain(lapse).reduce(Deadline::earlier)
    }

    /// Starts an attempt if one is due: the reason for it.
    pub fn start(&mut self, now: Now) -> Option<Reason> {
        if self.attempt != Attempt::None || !now.is_past(self.next) {
            return None;
        }
        self.attempt = Attempt::Running;
        self.asked_at = Some(now.boot);
        Some(self.reason)
    }

    /// Asks for an attempt as soon as allowed. Returns whether that changes anything.
    pub fn ask_now(&mut self, reason: Reason, now: Now) -> bool {
        if self.attempt != Attempt::None {
            let before = std::mem::replace(&mut self.attempt, Attempt::RunningThenAgain);
            return before != Attempt::RunningThenAgain;
        }
        let soonest = now.after(self.pause(now));
        // By one clock alone: what was read from two differs by a moment each time.
        let is_due = self.next.boot <= soonest.boot;
        if !is_due {
            (self.next, self.reason) = (soonest, reason);
        }
        !is_due
    }

    /// Credentials may have changed. Returns whether the source waits for that.
    pub fn credentials_changed(&mut self, not_before: Deadline) -> bool {
        match self.attempt {
            Attempt::None if self.refusal().is_some_and(Refusal::is_about_the_caller) => {
                self.reason = Reason::Credentials;
                self.next = self.next.earlier(not_before);
                true
            }
            Attempt::Running => {
                self.attempt = Attempt::RunningOnOldCredentials;
                false
            }
            Attempt::None | Attempt::RunningThenAgain | Attempt::RunningOnOldCredentials => false,
        }
    }

    /// The wall clock was set: what was refused because it was wrong is asked again.
    pub fn clock_was_set(&mut self, now: Now) {
        if self.attempt == Attempt::None && self.refusal().is_some_and(Refusal::may_be_the_clock) {
            self.next = self.next.earlier(now.after(self.pause(now)));
        }
    }

    /// Takes the result of an attempt. `random` is uniform in `0.0..1.0`.
    pub fn record(
        &mut self,
        result: Result<Token, Refusal>,
        policy: &RefreshPolicy,
        now: Now,
        random: f64,
    ) -> Recorded {
        let attempt = std::mem::replace(&mut self.attempt, Attempt::None);
        let soonest = now.after(self.pause(now));
        let (publish, retry_in) = match result {
            Ok(token) => {
                let was_throttled = self.refusal().map(Refusal::class) == Some(Class::Throttled);
                let policy = if was_throttled { &policy.after_a_crowd() } else { policy };
                self.next = now.until(due(policy, &token, random)).later(soonest);
                self.reason = Reason::Deadline;
                self.backoff.reset();
                self.failing = None;
                self.token = Some(token);
                (true, None)
            }
            Err(refusal) => {
                let left = self.usable(now.wall).map(|token| token.expires_at.duration_since(now.wall));
                let left = left.and_then(|left| Duration::try_from(left).ok()).unwrap_or_default();
                let delay = self.backoff.failed(refusal.retry(), now.boot, left, random).max(self.pause(now));
                self.next = now.after(delay);
                self.reason = Reason::Retry;
                if attempt == Attempt::RunningOnOldCredentials && refusal.is_about_the_caller() {
                    (self.next, self.reason) = (soonest, Reason::Credentials);
                }
                self.failing = Some(Failing::again(self.failing.take(), refusal, now.wall));
                // An entry that an earlier run left may have to go, though this run never had a token.
                let publish =
                    self.backoff.failures() == 1 && self.request.source.endpoint == Endpoint::Public;
                (publish, Some(delay))
            }
        };
        if attempt == Attempt::RunningThenAgain {
            (self.next, self.reason) = (soonest, Reason::Hangup);
        }
        Recorded { next: self.next, failures: self.backoff.failures(), retry_in, publish }
    }

    /// Drops the token if its entry has to go now. Returns whether it did.
    pub fn lapse(&mut self, now: Timestamp) -> bool {
        self.lapses_at().is_some_and(|lapse| lapse <= now) && self.token.take().is_some()
    }

    /// The token, while it has not expired. One that has is not put back where another program replaced it.
    #[must_use]
    pub fn usable(&self, now: Timestamp) -> Option<&Token> {
        self.token.as_ref().filter(|token| now < token.expires_at)
    }

    /// The keys that it serves, as far as they are known.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.request.keys(self.token.as_ref())
    }

    /// Why the last attempt failed; `None` if it succeeded.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        self.failing.as_ref().map(|failing| &failing.refusal)
    }

    /// The failures in a row, as an operator sees them; `None` if the last attempt succeeded.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        let next = (self.attempt == Attempt::None).then_some(self.next);
        Some(self.failing.as_ref()?.report(&self.request.source.to_string(), next))
    }

    /// How long it must still be left alone.
    fn pause(&self, now: Now) -> Duration {
        self.asked_at.map_or(Duration::ZERO, |last| (last + ASK_PAUSE).saturating_sub(now.boot))
    }

    /// When an entry for a registry that also serves anonymously has to go, if its renewal keeps failing.
    fn lapses_at(&self) -> Option<Timestamp> {
        let token = self.token.as_ref().filter(|_| self.request.source.endpoint == Endpoint::Public)?;
        self.failing.as_ref().and_then(|_| token.expires_at.checked_sub(LAPSE).ok())
    }
}

fn due(policy: &RefreshPolicy, token: &Token, random: f64) -> Timestamp {
    policy.due(Life { fetched_at: token.fetched_at, expires_at: token.expires_at }, random)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ecr::token::AuthorizationToken;
    use crate::time::schedule::Interval;
    use jiff::SignedDuration;

    fn at(seconds: u64) -> Now {
        let wall = Timestamp::from_second(1_800_000_000 + i64::try_from(seconds).unwrap()).unwrap();
        Now { wall, boot: Duration::from_secs(1000 + seconds) }
    }

    fn token(fetched_s: u64) -> Token {
        let fetched_at = at(fetched_s).wall;
        Token {
            authorization: AuthorizationToken::new("QVdTOmE=".into()).unwrap(),
            expires_at: fetched_at + SignedDuration::from_hours(12),
            fetched_at,
            registry: Some("registry.example".to_owned()),
        }
    }

    fn policy() -> RefreshPolicy {
        RefreshPolicy::Interval(Interval {
            length: SignedDuration::from_hours(11),
            spread: SignedDuration::from_mins(30),
        })
    }

    fn source(region: &str, token: Option<Token>) -> SourceState {
        let registries = [region.parse().unwrap()];
        let request = TokenRequest::for_registries(&registries, None).remove(0);
        SourceState::new(request, token, &policy(), at(0), 0.0)
    }

    fn private(token: Option<Token>) -> SourceState {
        source("123456789012.dkr.ecr.eu-west-1.amazonaws.com", token)
    }

    fn seconds_until(state: &SourceState) -> u64 {
        state.next(at(0)).unwrap().boot.as_secs() - 1000
    }

    fn denied() -> Refusal {
        Refusal::NoCredentials { reason: String::new(), passing: false }
    }

    #[test]
    fn a_source_without_a_token_is_asked_at_once_and_then_after_the_interval() {
        let mut state = private(None);
        assert_eq!(state.start(at(0)), Some(Reason::Start));
        assert_eq!(state.start(at(0)), None, "one attempt at a time");
        let recorded = state.record(Ok(token(0)), &policy(), at(0), 0.0);
        assert!(recorded.publish && recorded.failures == 0);
        assert_eq!(seconds_until(&state), 11 * 3600);
        assert_eq!(state.start(at(11 * 3600)), Some(Reason::Deadline));
    }

    #[test]
    fn a_remembered_token_is_replaced_after_the_interval() {
        assert_eq!(seconds_until(&private(Some(token(0)))), 11 * 3600);
    }

    #[test]
    fn a_failure_backs_off_and_is_never_followed_within_a_second() {
        let mut state = private(None);
        for (round, random, delay) in [(0, 0.0, 1), (10, 1.0, 2), (20, 1.0, 4)] {
            state.start(at(round)).unwrap();
            let recorded = state.record(Err(denied()), &policy(), at(round), random);
            assert!(!recorded.publish);
            assert_eq!(recorded.retry_in, Some(Duration::from_secs(delay)));
            assert_eq!(seconds_until(&state), round + delay);
            assert_eq!(state.start(at(round)), None);
        }
    }

    #[test]
    fn a_refresh_that_is_asked_for_during_an_attempt_follows_it() {
        for result in [Ok(token(0)), Err(denied())] {
            let mut state = private(None);
            state.start(at(0)).unwrap();
            assert!(state.ask_now(Reason::Hangup, at(0)));
            assert!(!state.ask_now(Reason::Hangup, at(0)), "once is enough");
            state.record(result, &policy(), at(0), 1.0);
            assert_eq!(seconds_until(&state), 1);
            assert!(!state.ask_now(Reason::Hangup, at(0)), "it is due already");
            assert_eq!(state.start(at(1)), Some(Reason::Hangup));
        }
    }

    #[test]
    fn new_credentials_are_tried_where_the_old_ones_failed() {
        let mut state = private(None);
        state.start(at(0)).unwrap();
        state.record(Err(denied()), &policy(), at(0), 1.0);
        state.start(at(1)).unwrap();
        state.record(Err(denied()), &policy(), at(1), 1.0);
        assert!(state.credentials_changed(at(2).after(Duration::ZERO)));
        assert_eq!(state.start(at(2)), Some(Reason::Credentials));
        // Changed during an attempt: the attempt may have used the old ones.
        state.credentials_changed(at(2).after(Duration::ZERO));
        state.record(Err(denied()), &policy(), at(3), 1.0);
        assert_eq!(state.start(at(3)), Some(Reason::Credentials));
        // After a success there is nothing to try.
        state.record(Ok(token(0)), &policy(), at(4), 0.0);
        assert!(!state.credentials_changed(at(4).after(Duration::ZERO)));
    }

    #[test]
    fn a_public_entry_lapses_ten_minutes_before_its_end_if_no_new_token_comes() {
        let mut state = source("public.ecr.aws", Some(token(0)));
        let end = 12 * 3600;
        state.start(at(end - 1800)).unwrap();
        assert!(!state.lapse(at(end - 60).wall), "it has not failed yet");
        state.record(Err(denied()), &policy(), at(end - 1800), 1.0);
        assert!(!state.lapse(at(end - 601).wall));
        assert!(state.lapse(at(end - 600).wall));
        assert!(!state.lapse(at(end - 600).wall), "once");
        assert!(state.usable(at(end - 600).wall).is_none());
    }

    #[test]
    fn a_set_clock_hurries_only_what_the_clock_may_have_caused() {
        for (refusal, hurried) in
            [(denied(), false), (Refusal::Clock { reason: String::new(), ahead: None }, true)]
        {
            let mut state = private(None);
            for round in 0..5 {
                state.start(at(round * 100)).unwrap();
                state.record(Err(refusal.clone()), &policy(), at(round * 100), 1.0);
            }
            state.clock_was_set(at(405));
            assert_eq!(state.start(at(405)).is_some(), hurried, "{refusal}");
        }
    }
}
