//! When the kubelet uses the current auth file (no I/O).
//!
//! The kubelet reads the file at an image pull and caches what it found, also that there was no file, for five minutes. A kubelet
//! that started after the last change of the file has cached nothing older.

use jiff::{SignedDuration, Timestamp};
use std::time::Duration;

/// How long after a change of the file the kubelet may use what it read before: its cache's five minutes, and a second for the time
/// between its read and the start of that time.
pub const LONGEST: Duration = Duration::from_secs(5 * 60 + 1);

/// What a node shows about an auth file that is valid now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evidence {
    /// When the file last changed.
    pub changed: Timestamp,
    /// When the kubelet that runs now made its socket for device plugins, which it does at each start before its first look at the
    /// auth file; `None` if the agent does not see the socket.
    pub kubelet_started: Option<Timestamp>,
}

/// How long it is until the kubelet cannot be using an older look at the file.
///
/// A time in the future means that the clock was set back since. Then the order of the two times is not known, and the longest
/// time applies.
#[must_use]
pub fn remaining(evidence: Evidence, now: Timestamp) -> Duration {
    let Evidence { changed, kubelet_started } = evidence;
    if kubelet_started.is_some_and(|started| changed < started && started <= now) {
        return Duration::ZERO;
    }
    let passed: SignedDuration = now.duration_since(changed);
    // Negative if the change is in the future: then nothing has passed.
    LONGEST.saturating_sub(Duration::try_from(passed).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_wait_ends_when_the_kubelet_cannot_hold_an_older_look() {
        let at = |seconds: i64| Timestamp::from_second(1_800_000_000 + seconds).unwrap();
        // changed, kubelet started, now, expected wait in seconds
        let cases = [
            // The boot unit wrote the file before the kubelet started.
            (0, Some(10), 20, 0),
            (0, Some(1), 1, 0),
            // The file changed after the kubelet had started.
            (10, Some(0), 20, 291),
            (10, Some(0), 311, 0),
            // Both at the same time: the order is not known.
            (10, Some(10), 20, 291),
            // The kubelet's start is not known.
            (0, None, 0, 301),
            (0, None, 300, 1),
            (0, None, 301, 0),
            (0, None, 100_000, 0),
            // The clock was set back.
            (100, None, 0, 301),
            (100, Some(200), 0, 301),
            (0, Some(200), 100, 201),
        ];
        for (changed, started, now, expected) in cases {
            let evidence = Evidence { changed: at(changed), kubelet_started: started.map(at) };
            let wait = remaining(evidence, at(now));
            assert_eq!(wait, Duration::from_secs(expected), "{changed} {started:?} {now}");
        }
    }

    proptest! {
        #[test]
        fn no_wait_is_longer_than_the_cache_lives(
            changed in -1_000_000_000i64..1_000_000_000,
            started in proptest::option::of(-1_000_000_000i64..1_000_000_000),
            now in -1_000_000_000i64..1_000_000_000,
        ) {
            let at = |seconds: i64| Timestamp::from_second(seconds).unwrap();
            let evidence = Evidence { changed: at(changed), kubelet_started: started.map(at) };
            let wait = remaining(evidence, at(now));
            prop_assert!(wait <= LONGEST);
            // A file that changed less than five minutes ago, under a kubelet that may have looked before, is waited for.
            let may_have_looked = started.is_none_or(|started| started <= changed);
            prop_assert!(!(may_have_looked && (0..=300).contains(&(now - changed)) && wait.is_zero()));
        }
    }
}
