//! When to try again.
//!
//! Pure: no clock, no sleep, no I/O. The caller passes the random source and does the waiting.

use std::time::Duration;

/// What the first delay is drawn from.
const FIRST: Duration = Duration::from_secs(1);
/// What no delay exceeds.
const LONGEST: Duration = Duration::from_mins(5);

/// How long to wait before the next try, after `failures` (1 or more) in a row.
///
/// Exponential with full jitter: anything from zero to a second, doubling with each failure up to five minutes, so
/// that a fleet that failed together does not come back together. `random` is uniform in `0.0..1.0`.
#[must_use]
pub fn retry_delay(failures: u32, random: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let ceiling = FIRST.saturating_mul(1 << doublings).min(LONGEST);
    ceiling.mul_f64(random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_ceiling_doubles_from_a_second_to_five_minutes() {
        let cases = [(0, 1), (1, 1), (2, 2), (3, 4), (9, 256), (10, 300), (17, 300), (u32::MAX, 300)];
        for (failures, seconds) in cases {
            assert_eq!(retry_delay(failures, 1.0), Duration::from_secs(seconds), "after {failures} failures");
        }
    }

    proptest! {
        #[test]
        fn jitter_is_full(failures in 1_u32..20, random in 0.0_f64..1.0) {
            let ceiling = retry_delay(failures, 1.0);
            let delay = retry_delay(failures, random);
            prop_assert!(delay <= ceiling);
            prop_assert!((delay.as_secs_f64() - ceiling.as_secs_f64() * random).abs() < 1e-6);
        }
    }
}
