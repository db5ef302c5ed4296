//! When one of many agents reads a pull secret, and when it writes it. Pure.
//!
//! The agents of a cluster's nodes keep the same secrets, do not know each other, and have no leader. Each reads a secret at random
//! times, and replaces a token only if its own is good for so much longer that few such replacements fit into the life of a
//! token. The first agent that reads the secret then writes it, with the secret's version as a precondition, and the others
//! find a good secret. So the number of writes does not depend on the number of agents: see `examples/crowd.rs`.
//!
//! Arguments named `random` are uniform in `0.0..1.0`.

use crate::time::schedule::Life;
use jiff::{SignedDuration, Timestamp};
use std::time::Duration;

/// An agent reads a secret again after a time between these two, in seconds: 1.5 times an hour on average. Reads for the reasons
/// below make it up to twice an hour.
const LOOK_S: [f64; 2] = [20.0 * 60.0, 60.0 * 60.0];
/// The part of a token's life, at its end, in which a much better token replaces it: 3 of ECR's 12 hours. Much better is a token
/// that is good for 7 hours longer, so that two such replacements are 7 hours apart.
const LAST_PART: f64 = 1.0 / 4.0;
const MUCH_LONGER: f64 = 7.0 / 12.0;
/// The part in which a token that is less and less better replaces it, and any better one at the very end: 45 minutes.
const VERY_LAST_PART: f64 = 1.0 / 16.0;
/// The first read comes within this time, so that nodes that start together do not ask at the same moment.
const FIRST: Duration = Duration::from_secs(1);
/// A token that cannot be renewed has to be removed in the ten minutes before it expires. This is half of them.
const LAPSING: Duration = Duration::from_mins(5);
/// An agent reads a secret again after a time between these two, in seconds, when another agent wrote it at the same time.
const AGAIN_S: [f64; 2] = [1.0, 10.0];
/// All agents together repair a secret at most once in this time, so that a whole fleet does not fight with another program.
pub const REPAIR_PAUSE: SignedDuration = SignedDuration::from_mins(5);
/// The ceilings of the first and of the longest delay after a refusal, in seconds. A refusal holds for all agents, until somebody
/// changes a right or an object.
const REFUSED_S: [f64; 2] = [10.0, 3600.0];

/// When a token of this life should replace the token in the secret, which expires at `in_place`; `None` if it is no better.
#[must_use]
pub fn due(in_place: Timestamp, ours: Life) -> Option<Timestamp> {
    let life = seconds(ours.expires_at.duration_since(ours.fetched_at)).max(1.0);
    let better = seconds(ours.expires_at.duration_since(in_place));
    if better <= 0.0 {
        return None;
    }
    let much = life * MUCH_LONGER;
    let before = if better >= much { life * LAST_PART } else { life * VERY_LAST_PART * better / much };
    Some(in_place.checked_sub(SignedDuration::from_secs_f64(before)).unwrap_or(in_place))
}

/// How long until the next read of a secret whose token expires at `in_place`.
#[must_use]
pub fn next_look(now: Timestamp, in_place: Timestamp, ours: Life, random: [f64; 2]) -> Duration {
    let regular = between(LOOK_S, random[0]);
    let Some(due) = due(in_place, ours) else { return regular };
    // In the first half of the time that is left when the token is due, so that a failed write can be retried.
    let start = seconds(due.duration_since(now)).max(0.0);
    let left = (seconds(in_place.duration_since(now)) - start).max(0.0);
    let soon = Duration::from_secs_f64(start + left / 2.0 * random[1].clamp(0.0, 1.0));
    soon.min(regular)
}

/// How long until the first read.
#[must_use]
pub fn first_look(random: f64) -> Duration {
    FIRST.mul_f64(random.clamp(0.0, 1.0))
}

/// How long until the next read after another agent wrote the secret at the same time.
#[must_use]
pub fn look_again(random: f64) -> Duration {
    between(AGAIN_S, random)
}

/// How long until the next read after a repair was postponed.
#[must_use]
pub fn after_postponing(random: f64) -> Duration {
    let pause = REPAIR_PAUSE.as_secs_f64();
    between([pause, 2.0 * pause], random)
}

/// How long until the next read of a secret with an entry that has to be removed before it expires.
#[must_use]
pub fn lapsing(random: f64) -> Duration {
    LAPSING.mul_f64(random.clamp(0.0, 1.0))
}

/// How long until the next read after `refusals` (1 or more) refusals in a row. The delay is drawn from zero to a ceiling that
/// doubles with each refusal, so that a fleet is no load.
#[must_use]
pub fn after_refusal(refusals: u32, random: f64) -> Duration {
    let [first, longest] = REFUSED_S;
    let ceiling = (first * f64::from(1_u32 << refusals.saturating_sub(1).min(16))).min(longest);
    Duration::from_secs_f64(ceiling * random.clamp(0.0, 1.0))
}

fn between([least, most]: [f64; 2], random: f64) -> Duration {
    Duration::from_secs_f64(least + (most - least) * random.clamp(0.0, 1.0))
}

fn seconds(span: SignedDuration) -> f64 {
    span.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn start() -> Timestamp {
        "2026-11-23T00:00:00Z".parse().unwrap()
    }

    fn at(minutes: i64) -> Timestamp {
        start() + SignedDuration::from_mins(minutes)
    }

    /// The life of an ECR token.
    fn life(fetched_min: i64) -> Life {
        Life { fetched_at: at(fetched_min), expires_at: at(fetched_min + 12 * 60) }
    }

    #[test]
    fn a_much_better_token_is_due_three_hours_before_the_expiry_and_any_better_one_at_the_very_end() {
        let cases = [
            // The token in the secret expires at 12:00. When ours was fetched, and when it is due, in minutes.
            (11 * 60, Some(9 * 60)),
            (7 * 60, Some(9 * 60)),
            (6 * 60 + 59, Some(12 * 60 - 45)),
            (210, Some(12 * 60 - 23)),
            (1, Some(12 * 60 - 1)),
            (0, None),
            (-60, None),
        ];
        for (fetched, expected) in cases {
            let due = due(at(12 * 60), life(fetched));
            let minutes = due.map(|due| (due.duration_since(start()).as_secs_f64() / 60.0).floor());
            let expected = expected.map(f64::from);
            let near = minutes.zip(expected).map(|(a, b)| (a - b).abs() <= 1.0);
            assert!(near.unwrap_or(minutes == expected), "fetched at {fetched}: {minutes:?}, {expected:?}");
        }
    }

    #[test]
    fn short_lives_have_short_parts() {
        let ours = Life { fetched_at: start(), expires_at: start() + SignedDuration::from_secs(60) };
        let due = due(start() + SignedDuration::from_secs(20), ours).unwrap();
        assert_eq!(due, start() + SignedDuration::from_secs(5));
    }

    #[test]
    fn the_next_look_is_at_a_random_time_before_the_expiry() {
        let minutes = |look: Duration| look.as_secs() / 60;
        let cases = [
            // Now, when the token in the secret expires, when ours was fetched, random numbers; minutes until the look.
            (0, 720, 0, [0.0, 0.0], 20),
            (0, 720, 0, [1.0, 0.0], 60),
            (530, 720, 530, [1.0, 0.0], 10), // the last part begins in ten minutes
            (530, 720, 530, [1.0, 0.5], 55),
            (650, 720, 650, [1.0, 0.0], 0),  // the last part has begun long ago
            (650, 720, 650, [1.0, 1.0], 35), // half of it is left for retries
            (730, 720, 730, [1.0, 1.0], 0),
        ];
        for (now, in_place, fetched, random, expected) in cases {
            let look = next_look(at(now), at(in_place), life(fetched), random);
            assert_eq!(minutes(look), expected, "now {now}, ends {in_place}, random {random:?}");
        }
    }

    #[test]
    fn refusals_are_retried_with_growing_delays() {
        let cases = [(1, 10), (2, 20), (9, 2560), (10, 3600), (u32::MAX, 3600)];
        for (failures, seconds) in cases {
            assert_eq!(after_refusal(failures, 1.0), Duration::from_secs(seconds), "{failures}");
            assert_eq!(after_refusal(failures, 0.5), Duration::from_secs(seconds) / 2, "{failures}");
        }
    }

    #[test]
    fn reads_of_many_agents_are_spread() {
        let cases = [
            // milliseconds until the next read, for the random numbers 0, 0.5 and 1
            ([0.0, 0.5, 1.0].map(first_look), [0, 500, 1_000]),
            ([0.0, 0.5, 1.0].map(look_again), [1_000, 5_500, 10_000]),
            ([0.0, 0.5, 1.0].map(after_postponing), [300_000, 450_000, 600_000]),
            ([0.0, 0.5, 1.0].map(lapsing), [0, 150_000, 300_000]),
        ];
        for (delays, expected) in cases {
            assert_eq!(delays.map(|delay| delay.as_millis()), expected);
        }
    }

    proptest! {
        #[test]
        fn a_token_is_replaced_only_by_a_better_one_and_before_it_expires(
            life_s in 60_i64..1_000_000, in_place_s in -1_000_000_i64..1_000_000,
        ) {
            let ours = Life { fetched_at: start(), expires_at: start() + SignedDuration::from_secs(life_s) };
            let in_place = start() + SignedDuration::from_secs(in_place_s);
            match due(in_place, ours) {
                Some(due) => prop_assert!(in_place < ours.expires_at && due <= in_place),
                None => prop_assert!(in_place >= ours.expires_at),
            }
        }

        #[test]
        fn there_is_a_look_before_the_expiry_if_there_is_a_better_token(
            now_s in 0_i64..86_400, in_place_s in 0_i64..86_400, random in [0.0_f64..=1.0, 0.0..=1.0],
        ) {
            let ours = Life { fetched_at: start(), expires_at: start() + SignedDuration::from_secs(86_400) };
            let [now, in_place] = [now_s, in_place_s].map(|s| start() + SignedDuration::from_secs(s));
            let look = next_look(now, in_place, ours, random);
            let left = Duration::try_from(in_place.duration_since(now)).unwrap_or_default();
            prop_assert!(look <= Duration::from_hours(1) && look <= left);
        }
    }
}
