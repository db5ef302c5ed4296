//! The only reader of clocks.

use jiff::Timestamp;

/// The wall clock's time, in whole seconds as ECR gives them. It may be wrong at boot, and may step.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}
