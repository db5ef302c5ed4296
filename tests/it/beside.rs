//! Threads that do something beside a test.

use std::sync::atomic::{AtomicBool, Ordering};

/// Tells the threads beside a test to end.
#[derive(Default)]
pub struct Over(AtomicBool);

/// Sets [`Over`] when it is dropped.
pub struct Guard<'a>(&'a Over);

impl Over {
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Where the test fails, the guard is dropped too. Otherwise the test would wait for its threads for ever.
    pub const fn guard(&self) -> Guard<'_> {
        Guard(self)
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}
