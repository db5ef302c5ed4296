//! When a token is refreshed, and how long a throttled node waits.
//!
//! Pure: the caller passes `now` and a random number (uniform in `0.0..1.0`), and does the waiting, so every rule is a table in
//! a test. A token's life is `expires_at - fetched_at`; ECR's is 12 h.

use jiff::{SignedDuration, Timestamp};
use std::time::Duration;

/// How long an ECR token is valid: twelve hours, says the reference of `GetAuthorizationToken`. No token lives longer.
pub const TOKEN_LIFE: SignedDuration = SignedDuration::from_hours(12);
/// How far this node's clock may be behind ECR's. A node whose clock differs by more gets no token: ECR answers `Signature
/// expired: … (… - 15 min.)`, as the users of many clients have reported.
pub const CLOCK_DIFFERENCE: SignedDuration = SignedDuration::from_mins(15);
/// A refresh is planned at least this long before the token expires.
const MARGIN: SignedDuration = SignedDuration::from_mins(30);
/// When a throttled node calls again for the first time, in seconds: at random in this window. ECR documents 200 calls at once
/// and 20 a second, for each account and region: 45 s allow 900 calls more. During the first 3 s the bucket refills a little,
/// for calls that fall close together.
const FIRST_WINDOW_S: [f64; 2] = [3.0, 45.0];
/// When the second window starts, in seconds after the first throttled call. In the pause the bucket fills without running
/// over.
const SECOND_WINDOW_S: f64 = 54.0;
/// Added to the time since the first throttled call, to which all further delays are proportional, in seconds. It lets a large
/// fleet save one call per node; small fleets are served before it matters.
const HEAD_START_S: f64 = 50.0;
/// The factor by which that sum grows from call to call. `docs/fleet.md` explains the value.
const GROWTH: f64 = 1.43;
/// How much the factor varies at random, in each direction: enough to break up waves of calls.
const GROWTH_JITTER: f64 = 0.02;
/// A throttled node that still has a token waits about half of the token's remaining life, or, in the last quarter of an hour,
/// about the square of the remaining life divided by this many seconds: with 5 minutes left 50 s, with one minute left 2 s.
const UNHURRIED_S: f64 = 1800.0;
/// The shortest such wait, on average, in seconds.
const URGENT_S: f64 = 1.0;
/// The longest wait of a throttled node, in seconds. Other callers may cause the throttling, and may stop at any time.
const LONGEST_THROTTLED_S: f64 = 3600.0;

/// When ECR issued a token, and when it expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// When ECR issued it, by this node's clock.
    pub fetched_at: Timestamp,
    /// When it expires, by ECR's clock.
    pub expires_at: Timestamp,
}

/// How long a token is used before it is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    /// The time from one refresh to the next.
    pub length: SignedDuration,
    /// How much earlier a refresh may come, at random, so that the nodes of a fleet do not all call at the same time.
    pub spread: SignedDuration,
}

/// The latest time at which a token can expire, by this node's clock: a token's life from now, and more if the clock is behind.
///
/// A planted or mistaken expiry after that would keep every good token away.
#[must_use]
pub fn latest_expiry(now: Timestamp) -> Timestamp {
    now.saturating_add(TOKEN_LIFE)
        .and_then(|at| at.saturating_add(CLOCK_DIFFERENCE))
        .unwrap_or(Timestamp::MAX)
}

impl Interval {
    /// The same, for a node that was throttled before it got its token. Nodes that were throttled together would refresh
    /// together again, and an outage at that time would hit all of them just before their tokens expire. So such a node
    /// chooses its next refresh at random in the whole second half of the interval.
    #[must_use]
    pub fn after_a_crowd(self) -> Self {
        // No spread moves a refresh into the first half.
        Self { spread: self.spread.max(self.length), ..self }
    }
}

impl Life {
    /// When a token should be replaced: `interval` after it was issued, or 30 minutes before it expires if that is earlier, less
    /// a random part of the spread. A token that lives for less than two hours is replaced before the last quarter of its life.
    /// The spread never moves a refresh into the first half.
    #[must_use]
    pub fn due(&self, interval: Interval, random: f64) -> Timestamp {
        // The interval is the user's, and `+` on timestamps panics past year 9999.
        let wished = self.fetched_at.checked_add(interval.length).unwrap_or(Timestamp::MAX);
        self.spread(wished, interval.spread, random)
    }

    /// The same for a time that does not come from an interval.
    #[must_use]
    pub fn spread(&self, wished: Timestamp, spread: SignedDuration, random: f64) -> Timestamp {
        let latest = wished.min(self.latest());
        let half = latest.duration_since(self.fetched_at) / 2;
        let early = spread.clamp(SignedDuration::ZERO, half.max(SignedDuration::ZERO));
        latest.checked_sub(early.mul_f64(random.clamp(0.0, 1.0))).unwrap_or(latest)
    }

    /// The latest time for which a refresh is planned.
    fn latest(&self) -> Timestamp {
        let life = self.expires_at.duration_since(self.fetched_at);
        let margin = MARGIN.min(life / 4).max(SignedDuration::ZERO);
        self.expires_at.checked_sub(margin).unwrap_or(self.expires_at)
    }

    /// Whether the token is valid now, as far as this node's clock can tell. A token from the future is not: the clock was set
    /// back since, and does not tell how old the token is.
    #[must_use]
    pub fn is_good(&self, now: Timestamp) -> bool {
        self.fetched_at <= now && now < self.expires_at
    }
}

/// How long to wait before the next attempt, after `failures` (1 or more) in a row.
///
/// Exponential with full jitter: anything from zero to `first`, doubling with each failure up to `longest`, so that a fleet
/// that failed together does not come back together. `random` is uniform in `0.0..1.0`.
#[must_use]
pub fn exponential_delay(first: Duration, longest: Duration, failures: u32, random: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    first.saturating_mul(1 << doublings).min(longest).mul_f64(random.clamp(0.0, 1.0))
}

/// How long to wait after being throttled.
///
/// `since_first` is the time since the node was first throttled without a valid token, after its last success; zero at that
/// call itself. `left` is the remaining life of its token, zero if it has no valid one; while it has one, `since_first` does
/// not matter. `random` is uniform in `0.0..1.0`.
///
/// A throttled node knows that ECR can be reached and that its credentials are accepted, but not how many nodes call. It only
/// knows how long it has been waiting, so its next wait is proportional to that. Its place in the queue is chosen at random
/// once, in the first two windows. After that all nodes' waits grow by the same factor, each node calls once in each window,
/// and ECR's bucket does not run idle before nearly all nodes are served. Exponential delays with full jitter would call more
/// often and leave a long tail. `examples/fleet.rs` simulates it, and `docs/fleet.md` has the figures.
///
/// A node with a valid token is not in need yet. It lets others go first while it has time, and hurries only at the end.
#[must_use]
pub fn throttled_delay(since_first: Duration, left: Duration, random: f64) -> Duration {
    let random = random.clamp(0.0, 1.0);
    let [soonest, latest] = FIRST_WINDOW_S;
    let (waited, left) = (since_first.as_secs_f64(), left.as_secs_f64());
    let delay = if left > 0.0 {
        (left / 2.0).min(left * left / UNHURRIED_S).max(URGENT_S) * (0.5 + random)
    } else if since_first.is_zero() {
        soonest + (latest - soonest) * random
    } else if waited < latest {
        (SECOND_WINDOW_S + HEAD_START_S) * GROWTH.powf(random) - HEAD_START_S - waited
    } else {
        (GROWTH - 1.0 + GROWTH_JITTER * (2.0 * random - 1.0)) * (waited + HEAD_START_S)
    };
    Duration::from_secs_f64(delay.min(LONGEST_THROTTLED_S))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn life(hours: i64) -> Life {
        let fetched_at: Timestamp = "2026-11-23T00:00:00Z".parse().unwrap();
        Life { fetched_at, expires_at: fetched_at + SignedDuration::from_hours(hours) }
    }

    #[test]
    fn a_refresh_is_due_after_the_interval_less_the_spread_and_well_before_the_end() {
        let cases = [
            // life h, interval, spread, random, due after
            (12, "11h", "0s", 0.0, "11h"),
            (12, "11h", "30m", 0.0, "11h"),
            (12, "11h", "30m", 0.5, "10h45m"),
            (12, "11h", "30m", 1.0, "10h30m"),
            (12, "48h", "0s", 0.0, "11h30m"),
            (12, "48h", "30m", 1.0, "11h"),
            (1, "11h", "0s", 0.0, "45m"),
            (1, "11h", "30m", 1.0, "22m30s"),
            (12, "1s", "30m", 1.0, "500ms"),
        ];
        for (hours, length, spread, random, due) in cases {
            let interval = Interval { length: length.parse().unwrap(), spread: spread.parse().unwrap() };
            let after = life(hours).due(interval, random).duration_since(life(hours).fetched_at);
            let due: SignedDuration = due.parse().unwrap();
            assert_eq!(after, due, "life {hours} h, interval {length}, spread {spread}, random {random}");
        }
    }

    #[test]
    fn after_a_crowd_a_refresh_comes_anywhere_in_the_second_half_of_the_interval() {
        let cases = [
            // interval, spread, random, due after
            ("11h", "30m", 0.0, "11h"),
            ("11h", "30m", 0.5, "8h15m"),
            ("11h", "30m", 1.0, "5h30m"),
            ("11h", "0s", 1.0, "5h30m"),
            ("4h", "3h", 1.0, "2h"), // the spread never moves it into the first half
            ("48h", "30m", 1.0, "5h45m"),
        ];
        for (length, spread, random, due) in cases {
            let interval = Interval { length: length.parse().unwrap(), spread: spread.parse().unwrap() };
            let after = life(12).due(interval.after_a_crowd(), random).duration_since(life(12).fetched_at);
            let due: SignedDuration = due.parse().unwrap();
            assert_eq!(after, due, "interval {length}, spread {spread}, random {random}");
        }
    }

    #[test]
    fn a_token_is_good_between_its_start_and_its_end() {
        let cases = [
            ("2026-11-22T23:59:59Z", false),
            ("2026-11-23T00:00:00Z", true),
            ("2026-11-23T12:00:00Z", false),
        ];
        for (now, good) in cases {
            assert_eq!(life(12).is_good(now.parse().unwrap()), good, "{now}");
        }
    }

    #[test]
    fn a_throttled_node_waits_in_proportion_to_what_it_has_waited() {
        let cases = [
            // since the first, left of the token, random, delay, all in seconds
            (0.0, 0.0, 0.0, 3.0),
            (0.0, 0.0, 0.5, 24.0),
            (0.0, 0.0, 1.0, 45.0),
            (3.0, 0.0, 0.0, 51.0), // the second window opens at 54 s, whenever in the first a node called …
            (44.0, 0.0, 0.0, 10.0),
            (44.0, 0.0, 1.0, 54.72), // … and ends at 98.72 s
            (45.0, 0.0, 0.5, 40.85),
            (50.0, 0.0, 0.5, 43.0),
            (50.0, 0.0, 0.0, 41.0),
            (50.0, 0.0, 1.0, 45.0),
            (950.0, 0.0, 0.5, 430.0),
            (0.0, 3600.0, 0.0, 900.0), // with a token that lives long, it lets others go first …
            (0.0, 3600.0, 1.0, 2700.0),
            (950.0, 3600.0, 0.5, 1800.0),
            (0.0, 39_600.0, 0.5, 3600.0),
            (0.0, 300.0, 0.5, 50.0),
            (0.0, 60.0, 0.5, 2.0), // … and hurries before the token expires,
            (0.0, 1.0, 0.0, 0.5),  // but not without limit
            (86_400.0, 0.0, 0.5, 3600.0),
        ];
        for (since, left, random, delay) in cases {
            let got = throttled_delay(Duration::from_secs_f64(since), Duration::from_secs_f64(left), random);
            assert!(
                (got.as_secs_f64() - delay).abs() < 1e-6,
                "since {since}, left {left}, random {random}: {got:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_throttled_node_never_storms_and_never_despairs(
            since_s in 0.0_f64..1e9, left_s in 0.0_f64..1e6, random in 0.0_f64..=1.0,
        ) {
            let [since, left] = [since_s, left_s].map(Duration::from_secs_f64);
            let without = throttled_delay(since, Duration::ZERO, random);
            prop_assert!(Duration::from_secs(3) <= without && without <= Duration::from_hours(1));
            prop_assert!(without <= since.max(Duration::from_secs(100)), "no more than it has waited already");
            let with = throttled_delay(since, left + Duration::from_secs(3), random);
            prop_assert!(Duration::from_millis(500) <= with && with <= Duration::from_hours(1));
            prop_assert!(with < left + Duration::from_secs(3), "there is another try before its end");
        }

        #[test]
        fn a_refresh_is_due_within_the_life_of_the_token(
            life_s in 1_i64..1_000_000, length in 0_i64..10_000_000, spread in 0_i64..10_000_000, random in 0.0_f64..=1.0,
        ) {
            let fetched_at = life(1).fetched_at;
            let life = Life { fetched_at, expires_at: fetched_at + SignedDuration::from_secs(life_s) };
            let interval =
                Interval { length: SignedDuration::from_secs(length), spread: SignedDuration::from_secs(spread) };
            let due = life.due(interval, random);
            prop_assert!(fetched_at <= due && due < life.expires_at);
            prop_assert!(due <= life.due(interval, 0.0), "the spread never makes it later");
            let crowded = life.due(interval.after_a_crowd(), random);
            prop_assert!(fetched_at <= crowded && crowded <= due, "a crowd never makes it later");
        }
    }
}
