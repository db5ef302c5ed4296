//! Keeps a Kubernetes node's Amazon ECR credentials fresh in the file that the kubelet reads.
//!
//! Data runs one way; nothing flows back but [`refresh::Round`], a plain value, and all that an operator sees is a
//! function of it.
//!
//! ```text
//! cli ─► settings ─► trigger ─► agent ─► refresh ─► report
//! said    meant      why now    loop     one round  log, status, exit code
//!                                        ├─ 1. ecr            -> token, validity
//!                                        ├─ 2. docker_config  -> plan (pure: keep, or replace by these bytes)
//!                                        └─ 3. target         -> publish
//! ```

pub mod agent;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod docker_config;
pub mod ecr;
pub mod explain;
pub mod pull_secrets;
pub mod quote;
pub mod refresh;
pub mod registry;
pub mod report;
pub mod schedule;
pub mod settings;
pub mod target;
pub mod trigger;
pub mod upkeep;

use clap::Parser as _;
use std::process::ExitCode;

/// The program: parse, start logging, run, exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let (filter, format) = cli.logging();
    report::logging::init(filter, format);
    let ending = match cli.into_command() {
        Ok(command) => commands::run(command),
        Err(error) => report::ending::failed(&error, report::ending::Ending::Usage),
    };
    ending.into()
}
