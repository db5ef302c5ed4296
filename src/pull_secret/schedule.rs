//! When one of many agents looks at a pull secret, and when it writes.
//!
//! Pure. The agents of a cluster's nodes keep the same secrets, know nothing of each other and have no leader. Each looks
//! at moments that chance draws, and replaces a token only where its own is good for so much longer that few such
//! replacements fit into a token's life. Whoever looks first writes, with the secret's version as a precondition, and the
//! others see that it is done. So the number of writes does not depend on the number of agents: `examples/crowd.rs`.

use crate::time::schedule::Life;
use jiff::{SignedDuration, Timestamp};
use std::time::Duration;

/// An agent looks after a time between these two, drawn anew each time: 1.5 looks an hour in the mean, and half a one to
/// spare for those below.
const LOOK_S: [f64; 2] = [20.0 * 60.0, 60.0 * 60.0];
/// The part of a token's life, at its end, in which a much better token replaces it: 3 of ECR's 12 hours. What it takes
/// is a token that is good for 7 hours longer, so that no two such replacements fit into 7 hours.
const LAST_PART: f64 = 1.0 / 4.0;
const MUCH_LONGER: f64 = 7.0 / 12.0;
/// The part in which less and less will do, down to any better one at the very end: 45 minutes.
const VERY_LAST_PART: f64 = 1.0 / 16.0;
/// A first look comes within this, so that nodes that start together do not ask in the same instant.
const FIRST: Duration = Duration::from_secs(1);
/// Half of the ten minutes before its end in which a token that cannot be renewed has to go.
const LAPSING: Duration = Duration::from_mins(5);
/// After another agent was faster, or a repair was put off, the next look comes within this at the latest.
const AGAIN_S: [f64; 2] = [1.0, 10.0];
/// What repairs of one secret are apart, by whichever agent: a fight with another program is not fought by a whole fleet.
pub const REPAIR_PAUSE: SignedDuration = SignedDuration::from_mins(5);
/// What is refused is refused for all agents alike, until somebody does something about it.
const REFUSED_S: [f64; 2] = [10.0, 3600.0];

/// The moment from which a token of ours, of this life, should replace one in place that ends at `in_place`; never where
/// it is no better.
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

/// When to look next, at a secret that was seen to hold a token until `in_place`. `chance` is uniform in `0.0..1.0`,
/// twice.
#[must_use]
pub fn next_look(now: Timestamp, in_place: Timestamp, ours: Life, chance: [f64; 2]) -> Duration {
    let some_time = between(LOOK_S, chance[0]);
    let Some(due) = due(in_place, ours) else { return some_time };
    // In the first half of what is left then: there must be time to try again.
    let start = seconds(due.duration_since(now)).max(0.0);
    let left = (seconds(in_place.duration_since(now)) - start).max(0.0);
    let soon = Duration::from_secs_f64(start + left / 2.0 * chance[1].clamp(0.0, 1.0));
    soon.min(some_time)
}

/// When to look for the first time.
#[must_use]
pub fn first_look(chance: f64) -> Duration {
    FIRST.mul_f64(chance.clamp(0.0, 1.0))
}

/// When to look again where somebody else was faster.
#[must_use]
pub fn look_again(chance: f64) -> Duration {
    between(AGAIN_S, chance)
}

/// When to look again where a repair was put off.
#[must_use]
pub fn after_postponing(chance: f64) -> Duration {
    let pause = Duration::try_from(REPAIR_PAUSE).unwrap_or_default();
    pause.mul_f64(1.0 + chance.clamp(0.0, 1.0))
}

/// When to look at a secret that holds what has to go before its end.
#[must_use]
pub fn lapsing(chance: f64) -> Duration {
    LAPSING.mul_f64(chance.clamp(0.0, 1.0))
}

/// When to try again what was refused, `failures` (1 or more) times in a row. With full jitter, as every other delay,
/// but up to an hour: only somebody who changes something can help, and a fleet must not be a load until then.
#[must_use]
pub fn after_refusal(failures: u32, chance: f64) -> Duration {
    let [first, longest] = REFUSED_S;
    let ceiling = (first * f64::from(1_u32 << failures.saturating_sub(1).min(16))).min(longest);
    Duration::from_secs_f64(ceiling * chance.clamp(0.0, 1.0))
}

fn between([least, most]: [f64; 2], chance: f64) -> Duration {
    Duration::from_secs_f64(least + (most - least) * chance.clamp(0.0, 1.0))
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

    /// ECR's.
    fn life(fetched_min: i64) -> Life {
        Life { fetched_at: at(fetched_min), expires_at: at(fetched_min + 12 * 60) }
    }

    #[test]
    fn a_much_better_token_is_due_three_hours_before_the_end_and_any_better_one_at_the_very_end() {
        let cases = [
            // the token in place ends at 12:00; ours was fetched at, due at, minutes
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
    fn the_next_look_is_at_random_and_before_the_end() {
        let minutes = |look: Duration| look.as_secs() / 60;
        let cases = [
            // now, the token in place ends, ours was fetched, chance, minutes until the look
            (0, 720, 0, [0.0, 0.0], 20),
            (0, 720, 0, [1.0, 0.0], 60),
            (530, 720, 530, [1.0, 0.0], 10), // the last part begins in ten minutes …
            (530, 720, 530, [1.0, 0.5], 55),
            (650, 720, 650, [1.0, 0.0], 0),  // … or has begun long ago,
            (650, 720, 650, [1.0, 1.0], 35), // and half of it is left to try again
            (730, 720, 730, [1.0, 1.0], 0),
        ];
        for (now, in_place, fetched, chance, expected) in cases {
            let look = next_look(at(now), at(in_place), life(fetched), chance);
            assert_eq!(minutes(look), expected, "now {now}, ends {in_place}, chance {chance:?}");
        }
    }

    #[test]
    fn refusals_are_retried_more_and_more_seldom() {
        let cases = [(1, 10), (2, 20), (9, 2560), (10, 3600), (u32::MAX, 3600)];
        for (failures, seconds) in cases {
            assert_eq!(after_refusal(failures, 1.0), Duration::from_secs(seconds), "{failures}");
        }
    }

    proptest! {
        #[test]
        fn a_replacement_is_never_for_the_worse_and_never_too_late(
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
        fn there_is_a_look_before_the_end_while_there_is_something_better(
            now_s in 0_i64..86_400, in_place_s in 0_i64..86_400, chance in [0.0_f64..=1.0, 0.0..=1.0],
        ) {
            let ours = Life { fetched_at: start(), expires_at: start() + SignedDuration::from_secs(86_400) };
            let [now, in_place] = [now_s, in_place_s].map(|s| start() + SignedDuration::from_secs(s));
            let look = next_look(now, in_place, ours, chance);
            let left = Duration::try_from(in_place.duration_since(now)).unwrap_or_default();
            prop_assert!(look <= Duration::from_hours(1) && look <= left);
        }
    }
}
