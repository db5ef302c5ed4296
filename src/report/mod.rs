//! What an operator sees: log lines, metrics and probes, what `status` and `--dry-run` print, the exit code.

pub mod ending;
pub mod explain;
pub mod logging;
pub mod metrics;
pub mod serve;
pub mod status;
pub mod supervisor;
