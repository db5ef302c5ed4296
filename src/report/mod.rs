//! What an operator sees of a running agent: log lines, metrics and probes, its state, systemd's status, the exit code.

pub mod agent_state;
pub mod exit;
pub mod logging;
pub mod metrics;
pub mod output;
pub mod panics;
pub mod redact;
pub mod server;
pub mod systemd;
