//! `status`: what the auth files hold for ECR, and what the running agent says. No secret reaches this file.

use super::status::{EntryStatus, FileStatus, State, look};
use super::visibility::Visibility;
use crate::auth_file::AuthFile;
use crate::ecr::registry::Registry;
use crate::report::agent_state::{AgentState, FoundAgent};
use crate::report::exit::{ExitStatus, failed};
use crate::report::output::{OutputFormat, print_json, print_table, relative};
use crate::settings::RefreshPolicy;
use crate::time::clock;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::Path;
use tracing::error;

/// The version of the JSON schema. It changes if a member goes or changes its meaning.
const VERSION: u32 = 1;

/// Prints what the auth files hold. Returns the exit status that it means.
pub fn run(
    auth_files: &[AuthFile],
    registries: &[Registry],
    policy: &RefreshPolicy,
    state_file: Option<&Path>,
    output: OutputFormat,
) -> ExitStatus {
    let now = clock::now();
    let visibility = Visibility::of_this_process();
    let files: Vec<_> =
        auth_files.iter().map(|file| look(file, registries, policy, &visibility, now)).collect();
    for file in files.iter().filter(|file| file.is_unreadable) {
        error!(path = file.path, "{}", file.problems.join("; "));
    }
    let agent = state_file.map(AgentState::find);
    let is_healthy = files.iter().all(FileStatus::is_healthy);
    let out = &mut io::stdout().lock();
    let printed = match output {
        OutputFormat::Text => print_text(out, &files, agent.as_ref(), now),
        OutputFormat::Json => print_json(
            out,
            &json!({
                "version": VERSION,
                "healthy": is_healthy,
                "auth_files": files,
                "agent": agent_to_json(agent.as_ref()),
            }),
        ),
    };
    match printed {
        Err(error) => failed(&error, ExitStatus::Unexpected),
        Ok(()) if files.iter().any(|file| file.is_unreadable) => ExitStatus::AuthFile,
        Ok(()) if is_healthy => ExitStatus::Done,
        Ok(()) => ExitStatus::Unexpected,
    }
}

fn agent_to_json(agent: Option<&FoundAgent>) -> Value {
    let state = match agent {
        Some(FoundAgent::Running(state)) => {
            return json!({ "state": "running", "auth_files": state.auth_files, "failures": state.failures });
        }
        Some(FoundAgent::Ended | FoundAgent::NotFound) => "not_found",
        Some(FoundAgent::Unreadable(_)) | None => "unknown",
    };
    json!({ "state": state, "auth_files": [], "failures": [] })
}

fn print_text(
    out: &mut impl Write,
    files: &[FileStatus],
    agent: Option<&FoundAgent>,
    now: Timestamp,
) -> io::Result<()> {
    for file in files {
        print_file(out, file, now)?;
    }
    let Some(agent) = agent else { return Ok(()) };
    match agent {
        FoundAgent::Running(state) => {
            writeln!(out, "agent: running (process {})", state.pid())?;
            let is_kept = |file: &FileStatus| state.auth_files.iter().any(|kept| *kept == *file.path);
            for file in files.iter().filter(|file| !is_kept(file)) {
                writeln!(out, "  warning: it does not keep {}", file.path)?;
            }
            for failure in &state.failures {
                writeln!(out, "  failing: {}", failure.in_words())?;
            }
        }
        FoundAgent::Ended => writeln!(out, "agent: not running: it ended without stopping in order")?,
        FoundAgent::NotFound => {
            writeln!(out, "agent: not found: it does not run here, or has no directory for --state-file")?;
        }
        FoundAgent::Unreadable(why) => writeln!(out, "agent: unknown: its state cannot be read: {why}")?,
    }
    Ok(())
}

fn print_file(out: &mut impl Write, file: &FileStatus, now: Timestamp) -> io::Result<()> {
    writeln!(out, "{}", file.path)?;
    for problem in &file.problems {
        writeln!(out, "  problem: {}", escaped(problem))?;
    }
    for warning in &file.warnings {
        writeln!(out, "  warning: {}", escaped(warning))?;
    }
    match file.kubelet_reads_by {
        Some(by) if by > now => {
            writeln!(
                out,
                "  kubelet: reads this version by {by} at the latest; until then it may use the one before"
            )?;
        }
        Some(_) => writeln!(out, "  kubelet: uses this version, unchanged for five minutes")?,
        None => {}
    }
    if file.registries.is_empty() {
        return writeln!(out, "  no entry for ECR");
    }
    let heading = ["REGISTRY", "STATE", "EXPIRES", "REFRESH BY", "WRITTEN BY", "SOURCE"].map(str::to_owned);
    let rows: Vec<_> =
        std::iter::once(heading).chain(file.registries.iter().map(|entry| row(entry, now))).collect();
    print_table(out, "  ", &rows)
}

fn row(entry: &EntryStatus, now: Timestamp) -> [String; 6] {
    let nothing = || "-".to_owned();
    let expires = entry.expires_at.map_or_else(nothing, |at| format!("{at} ({})", relative(at, now)));
    let refresh = entry.refresh_by.map_or_else(nothing, |at| relative(at, now));
    let by = match (entry.ours, entry.state) {
        (true, _) => "ecr-node-agent",
        (false, State::Missing) => "-",
        (false, _) => "another program",
    };
    let source = entry.source.clone().unwrap_or_else(nothing);
    [escaped(&entry.registry), entry.state.word().to_owned(), expires, refresh, by.to_owned(), source]
}

/// A text with control characters escaped, for a terminal.
fn escaped(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_debug().collect() } else { vec![c] }).collect()
}
