//! The only code that reads clocks.

use crate::time::timer::Now;
use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// The wall clock's time, in whole seconds. It may be wrong at boot, and may be set.
#[must_use]
pub fn now() -> Timestamp {
    let now = both().wall;
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

/// The wall clock's time, and the time since boot.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
pub fn both() -> Now {
    // Every Linux since 2.6.39 has this clock.
    let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    Now { wall: Timestamp::now(), boot }
}
