//! What an operator sees: log lines, what `status` and `--dry-run` print, the exit code.

pub mod ending;
pub mod logging;
pub mod status;
