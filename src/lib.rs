//! Keeps a Kubernetes node's Amazon ECR credentials fresh in the file that the kubelet reads.
//!
//! Data flows one way: arguments, settings, token source, token, plan, target, record. Log lines, metrics and the exit
//! code are derived from the record. `docs/architecture.md` has the map of the modules and two walks through them.

pub mod agent;
pub mod auth_file;
pub mod cli;
pub mod commands;
pub mod credential_provider;
pub mod docker_config;
pub mod ecr;
pub mod events;
pub mod inspect;
pub mod process;
pub mod pull_secret;
pub mod report;
pub mod round;
pub mod settings;
pub mod startup_taint;
pub mod time;
pub mod token;

use report::exit::ExitStatus;
use std::process::ExitCode;

/// The program: parse the command line, start logging, run the command, return the exit code.
#[must_use]
pub fn main() -> ExitCode {
    report::exit::forbid_core_dumps();
    let status = match cli::parse(std::env::args_os()) {
        Ok(invocation) => {
            report::logging::init(&invocation.log_filter, invocation.log_format);
            report::panics::log_panics();
            commands::run(invocation.command)
        }
        // Also help and the version, which are no failures. A stream that is closed takes no text.
        Err(message) => {
            message.print().unwrap_or_default();
            if message.use_stderr() { ExitStatus::Usage } else { ExitStatus::Done }
        }
    };
    status.into()
}
