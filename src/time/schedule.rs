//! When to refresh, and when to try again.
//!
//! Pure: no clock, no sleep, no I/O. The caller passes `now`, what chance drew (uniform in `0.0..1.0`), and does the
//! waiting, so every rule here is a table in a test. A token's life is `expires_at - fetched_at`; ECR's is 12 h.

use jiff::{SignedDuration, Timestamp};
use std::time::Duration;

/// No refresh is planned later than this before a token's end.
const MARGIN: SignedDuration = SignedDuration::from_mins(30);
/// ECR's throttle, as it documents it for each account and region: 200 at once, then 20 a second. A thousand nodes can
/// be served in 40 s, so every node comes back within 45: that many seconds hold 900 calls. It does not come back in
/// the first three, so that what chance crowds together finds a few permits.
const FIRST_WINDOW_S: [f64; 2] = [3.0, 45.0];
/// The second window opens only now: in the pause the bucket fills, and nothing of it runs over.
const SECOND_WINDOW_S: f64 = 54.0;
/// What a node waits grows with the time since it was throttled first, plus this: small fleets, of which seconds are
/// asked, are done before it matters, and the large ones save a call a node.
const HEAD_START_S: f64 = 50.0;
/// The growth of that sum from try to try. `docs/fleet.md` says why it is no more and no less.
const GROWTH: f64 = 1.43;
/// How far chance moves the growth, either way: enough to wash out waves, little enough to leave the end sharp.
const GROWTH_JITTER: f64 = 0.02;
/// A node that has a token comes back after about half of what is left of it, or, in the token's last quarter of an
/// hour, after about the square of what is left over this: at 5 minutes 50 s, at one minute 2 s.
const UNHURRIED_S: f64 = 1800.0;
/// No urgency calls more often than this, on average.
const URGENT_S: f64 = 1.0;
/// However long the throttling lasts: its cause may be somebody else, who stops at any time.
const LONGEST_THROTTLED_S: f64 = 3600.0;

/// When ECR handed a token out, and when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// The start, by this node's clock.
    pub fetched_at: Timestamp,
    /// The end, by ECR's.
    pub expires_at: Timestamp,
}

/// How long a token is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    /// From one refresh to the next.
    pub length: SignedDuration,
    /// How much earlier it may come, at random, so that a fleet does not call in step.
    pub spread: SignedDuration,
}

impl Interval {
    /// The same, for a node that was throttled before it got its token. Those who queued together would come back
    /// together, and an outage at that time would leave all of them behind with tokens that are about to end. So such a
    /// node draws its next refresh from the whole second half of the interval, and the crowd is gone after one round.
    #[must_use]
    pub fn after_a_crowd(self) -> Self {
        Self { spread: self.spread.max(self.length / 2), ..self }
    }
}

impl Life {
    /// The instant at which a token should be replaced: `interval` after it was handed out, or 30 minutes before its end
    /// where that is earlier, less a random part of the spread. A token that lives for less than two hours is
    /// replaced in the last quarter of its life at the latest, and never in its first half because of the spread.
    #[must_use]
    pub fn due(&self, interval: Interval, random: f64) -> Timestamp {
        // `+` on timestamps panics past year 9999, and the interval is the user's.
        let wished = self.fetched_at.checked_add(interval.length).unwrap_or(Timestamp::MAX);
        self.spread(wished, interval.spread, random)
    }

    /// As [`Self::due`], for a time that something else than an interval has named.
    #[must_use]
    pub fn spread(&self, wished: Timestamp, spread: SignedDuration, random: f64) -> Timestamp {
        let latest = wished.min(self.latest());
        let half = latest.duration_since(self.fetched_at) / 2;
        let early = spread.clamp(SignedDuration::ZERO, half.max(SignedDuration::ZERO));
        latest.checked_sub(early.mul_f64(random.clamp(0.0, 1.0))).unwrap_or(latest)
    }

    /// The last moment to plan a refresh for.
    fn latest(&self) -> Timestamp {
        let life = self.expires_at.duration_since(self.fetched_at);
        let margin = MARGIN.min(life / 4).max(SignedDuration::ZERO);
        self.expires_at.checked_sub(margin).unwrap_or(self.expires_at)
    }

    /// Whether the token is good now, as far as this node's clock can tell. A token from the future is not: the clock has
    /// been set back since, and says nothing of how old the token is.
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
/// `since_first` is how long ago the node was first throttled without a valid token, since its last success; zero at that
/// try itself. `left` is what its token has still to live, zero where it has none that is valid; while it has one,
/// `since_first` says nothing. `random` is uniform in `0.0..1.0`.
///
/// Being throttled says more than another failure: ECR is there, the credentials are good, and too many ask at once. How
/// many, a node cannot know; it knows only how long it has been waiting, so what it waits is in proportion to that.
/// Chance decides once, in the first two windows, where in the queue a node stands; after that all grow by the same
/// factor, each calls once in each window, and the bucket is not idle before nearly all are served. Full jitter would
/// call more often and leave a long tail. 10,000 nodes that start at once are served within 1.25 times what the bucket
/// allows, at four throttled calls a node, and 100,000 at ten: `docs/fleet.md`, from `examples/fleet.rs`.
///
/// A node with a valid token lacks nothing yet. It lets the others go first while there is time, and none when its time
/// is nearly up: a crowd that hurries all alike drowns those who must be heard now.
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
            ("4h", "3h", 1.0, "2h"), // never in the first half of what is left alone
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
            (44.0, 0.0, 1.0, 54.72), // … and ends at 98.72
            (50.0, 0.0, 0.5, 43.0),
            (50.0, 0.0, 0.0, 41.0),
            (50.0, 0.0, 1.0, 45.0),
            (950.0, 0.0, 0.5, 430.0),
            (0.0, 3600.0, 0.0, 900.0), // a token with time left lets the others go first …
            (0.0, 3600.0, 1.0, 2700.0),
            (950.0, 3600.0, 0.5, 1800.0),
            (0.0, 39_600.0, 0.5, 3600.0),
            (0.0, 300.0, 0.5, 50.0),
            (0.0, 60.0, 0.5, 2.0), // … but is urgent before its end,
            (0.0, 1.0, 0.0, 0.5),  // and even then no storm
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
