//! The one rule for trying again: classify a failure, back off, give up at the deadline.
//!
//! [`Backoff`] is the rule as a value, for loops that wait for several things at once. [`until`] runs attempts by it.

use super::schedule::{exponential_delay, throttled_delay};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// No server's `Retry-After` is obeyed for longer than this.
const LONGEST_ASKED_FOR: Duration = Duration::from_mins(5);
/// Less time than this before the deadline is not worth another attempt.
const LAST_ATTEMPT: Duration = Duration::from_secs(1);

/// What a failure says about the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The next attempt fails too, until someone changes a setting, a right or a file.
    Useless,
    /// The next attempt may succeed.
    Later,
    /// The server asked for this pause.
    After(Duration),
    /// Too many callers ask at once.
    Throttled,
}

/// The delays of one series of failed attempts.
#[derive(Debug, Clone, PartialEq)]
pub struct Backoff {
    /// What the first delay is drawn from.
    first: Duration,
    /// What no delay is drawn beyond.
    longest: Duration,
    /// Failures in a row.
    failures: u32,
    /// When the series was first throttled, on the caller's clock; `None` if the last failure was another one.
    throttled_since: Option<Duration>,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::between(Duration::from_secs(1), Duration::from_mins(5))
    }
}

impl Backoff {
    /// Delays that are drawn from zero to `first`, doubling with each failure up to `longest`.
    #[must_use]
    pub fn between(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0, throttled_since: None }
    }

    /// Failures in a row; zero after a success.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// An attempt succeeded: the next failure begins a new series.
    pub fn reset(&mut self) {
        self.failures = 0;
        self.throttled_since = None;
    }

    /// An attempt failed: how long to wait before the next one.
    ///
    /// `now` is the time on any clock that does not step. `left` is how long the caller can live on what it has, zero where
    /// it has nothing: a caller that is throttled lets others go first while it can. `random` is uniform in `0.0..1.0`.
    pub fn failed(&mut self, retry: Retry, now: Duration, left: Duration, random: f64) -> Duration {
        self.failures = self.failures.saturating_add(1);
        if retry == Retry::Throttled {
            // While there is a token to live on, the time until its end counts, and not how long others have waited.
            let first = if left.is_zero() { *self.throttled_since.get_or_insert(now) } else { now };
            return throttled_delay(now.saturating_sub(first), left, random);
        }
        self.throttled_since = None;
        let delay = exponential_delay(self.first, self.longest, self.failures, random);
        match retry {
            Retry::After(pause) => pause.min(LONGEST_ASKED_FOR) + delay,
            Retry::Useless | Retry::Later | Retry::Throttled => delay,
        }
    }
}

/// A delay that ends before the deadline: one that is too long is drawn anew from the time that remains. `None` where
/// less than a second remains.
#[must_use]
pub fn before_deadline(delay: Duration, remaining: Duration, random: f64) -> Option<Duration> {
    if delay < remaining {
        return Some(delay);
    }
    (remaining >= LAST_ATTEMPT).then(|| remaining.mul_f64(random.clamp(0.0, 1.0)))
}

/// A failed attempt that is followed by another one.
#[derive(Debug)]
pub struct Failed<'a, E> {
    /// Why it failed.
    pub error: &'a E,
    /// Failures in a row, this one included.
    pub failures: u32,
    /// How long it is until the next attempt.
    pub delay: Duration,
}

/// Makes attempts until one succeeds, one fails for good, or the deadline has come. An attempt that the deadline
/// interrupts is dropped; then the error is that of the attempt before, or `unanswered` if there was none.
///
/// # Errors
/// The last attempt's error.
pub async fn until<T, E, F>(
    deadline: Instant,
    unanswered: E,
    classify: impl Fn(&E) -> Retry,
    before_retry: impl Fn(Failed<'_, E>),
    mut attempt: impl FnMut() -> F,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let start = Instant::now();
    let mut backoff = Backoff::default();
    let mut last = unanswered;
    loop {
        match timeout_at(deadline, attempt()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => last = error,
            // What an attempt before said tells more than that this one had no time left.
            Err(_) => return Err(last),
        }
        let retry = classify(&last);
        if retry == Retry::Useless {
            return Err(last);
        }
        let delay = backoff.failed(retry, start.elapsed(), Duration::ZERO, fastrand::f64());
        let remaining = deadline.saturating_duration_since(Instant::now());
        let Some(delay) = before_deadline(delay, remaining, fastrand::f64()) else { return Err(last) };
        before_retry(Failed { error: &last, failures: backoff.failures(), delay });
        sleep(delay).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::RefCell;

    const ZERO: Duration = Duration::ZERO;

    #[test]
    fn the_ceiling_doubles_and_a_success_starts_anew() {
        let mut backoff = Backoff::default();
        for seconds in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            assert_eq!(backoff.failed(Retry::Later, ZERO, ZERO, 1.0), Duration::from_secs(seconds));
        }
        backoff.reset();
        assert_eq!(backoff.failed(Retry::Useless, ZERO, ZERO, 0.5), Duration::from_millis(500));
    }

    #[test]
    fn a_server_is_left_alone_as_long_as_it_asks_but_not_for_ever() {
        let mut backoff = Backoff::default();
        let asked = Retry::After(Duration::from_secs(7));
        assert_eq!(backoff.failed(asked, ZERO, ZERO, 1.0), Duration::from_secs(8));
        let for_ever = Retry::After(Duration::MAX);
        assert_eq!(backoff.failed(for_ever, ZERO, ZERO, 0.0), Duration::from_mins(5));
    }

    #[test]
    fn throttled_callers_wait_in_proportion_to_what_they_have_waited() {
        let mut backoff = Backoff::default();
        let at = Duration::from_secs;
        assert_eq!(backoff.failed(Retry::Throttled, at(100), ZERO, 0.0), at(3));
        assert_eq!(backoff.failed(Retry::Throttled, at(144), ZERO, 0.0), at(10), "44 s after the first");
        // Another failure in between ends the series of throttled ones.
        backoff.failed(Retry::Later, at(160), ZERO, 0.0);
        assert_eq!(backoff.failed(Retry::Throttled, at(200), ZERO, 0.0), at(3));
        assert_eq!(
            backoff.failed(Retry::Throttled, at(210), at(3600), 0.0),
            at(900),
            "with a token to live on"
        );
    }

    #[test]
    fn a_delay_beyond_the_deadline_is_drawn_from_what_remains() {
        let s = Duration::from_secs_f64;
        assert_eq!(before_deadline(s(5.0), s(10.0), 0.9), Some(s(5.0)));
        assert_eq!(before_deadline(s(30.0), s(10.0), 0.9), Some(s(9.0)));
        assert_eq!(before_deadline(s(10.0), s(10.0), 0.5), Some(s(5.0)), "at the deadline it is too late");
        assert_eq!(before_deadline(s(30.0), s(0.9), 0.5), None);
    }

    /// Attempts of one second each until a deadline, on a clock that nothing but waiting moves.
    async fn attempts(deadline_s: u64, retry: Retry) -> Vec<Duration> {
        let start = Instant::now();
        let begun = RefCell::new(Vec::new());
        let attempt = || async {
            begun.borrow_mut().push(start.elapsed());
            sleep(Duration::from_secs(1)).await;
            Err::<(), &str>("no")
        };
        let deadline = start + Duration::from_secs(deadline_s);
        let ended = until(deadline, "nothing", |_| retry, |_| {}, attempt).await;
        assert_eq!(ended, Err("no"));
        begun.into_inner()
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_go_on_until_the_deadline_is_near() {
        for retry in [Retry::Later, Retry::After(Duration::from_mins(2)), Retry::Throttled] {
            for _ in 0..100 {
                let begun = attempts(20, retry).await;
                let last = begun.last().unwrap().as_secs_f64();
                assert!(last > 17.0, "{retry:?}: the last of {} attempts begins after {last} s", begun.len());
            }
        }
        assert_eq!(attempts(20, Retry::Useless).await.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_never_ends_is_dropped_at_the_deadline() {
        let deadline = Instant::now() + Duration::from_secs(5);
        let hangs = || std::future::pending::<Result<(), &str>>();
        let ended = until(deadline, "nothing came", |_| Retry::Later, |_| {}, hangs).await;
        assert_eq!((ended, Instant::now()), (Err("nothing came"), deadline));
    }

    proptest! {
        #[test]
        fn jitter_is_full(failures in 0_u32..20, random in 0.0_f64..1.0) {
            let [mut one, mut other] = [Backoff::default(), Backoff::default()];
            for _ in 0..failures {
                one.failed(Retry::Later, ZERO, ZERO, 0.5);
                other.failed(Retry::Later, ZERO, ZERO, 0.5);
            }
            let ceiling = one.failed(Retry::Later, ZERO, ZERO, 1.0);
            let delay = other.failed(Retry::Later, ZERO, ZERO, random);
            prop_assert!((delay.as_secs_f64() - ceiling.as_secs_f64() * random).abs() < 1e-6);
        }
    }
}
