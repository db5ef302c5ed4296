//! Why the agent wakes: a deadline, a changed file, a mount, a signal. Nothing here polls.

pub mod cron;
pub mod mounts;
pub mod signal;
pub mod timer;
pub mod watch;
