//! Why the agent wakes: a deadline, a changed file, a signal. Nothing here polls.

pub mod cron;
pub mod signal;
pub mod timer;
pub mod watch;
