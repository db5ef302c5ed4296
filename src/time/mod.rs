//! Time: clocks, timers, and the rules that say when something is done next. Knows nothing of the rest of the program.

pub mod clock;
pub mod cron;
pub mod retry;
pub mod schedule;
pub mod timer;
pub mod write_scheduler;
