//! What `status` and `--dry-run` print, on standard output. No secret is in reach of this file's tables.

use crate::auth_file::AuthFile;
use crate::docker_config::document::{self, Shape, Spoilt};
use crate::docker_config::key::{index_key, shown};
use crate::docker_config::keyring::{Entry, Keyring};
use crate::docker_config::ledger::Record;
use crate::docker_config::search::Verdict;
use crate::ecr::registry::{Registry, is_ecr_host};
use crate::inspect::explain;
use crate::report::exit::{ExitStatus, chain, failed};
use crate::report::output::OutputFormat;
use crate::settings::RefreshPolicy;
use crate::time::clock;
use crate::time::schedule::Life;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::io::{self, Write};

/// What an auth file holds for ECR.
#[derive(Debug, Serialize)]
pub struct FileStatus {
    path: String,
    /// Why the kubelet does not use the file, or we could not read it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<String>,
    /// What has the kubelet use another file, or try others' credentials first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    registries: Vec<EntryStatus>,
}

/// One ECR entry, there or missing.
#[derive(Debug, Serialize)]
pub struct EntryStatus {
    registry: String,
    /// What the kubelet files it under.
    #[serde(skip)]
    index: String,
    state: State,
    /// Whether it is marked as ours.
    ours: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fetched_at: Option<Timestamp>,
    /// When an agent with the default or the given interval replaces it at the latest.
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_by: Option<Timestamp>,
    /// Region, kind of endpoint and role that its token came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
}

/// How an entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// The kubelet can use it now.
    Valid,
    /// It is past its end.
    Expired,
    /// It is asked for and not there.
    Missing,
    /// It is somebody else's, and says nothing of its end.
    Unknown,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Expired => "expired",
            Self::Missing => "missing",
            Self::Unknown => "unknown",
        }
    }
}

/// Prints what the auth files hold, and says whether that is enough.
pub fn run(
    auth_files: &[AuthFile],
    registries: &[Registry],
    rule: &RefreshPolicy,
    output: OutputFormat,
) -> ExitStatus {
    let now = clock::now();
    let mut unreadable = None;
    let mut files = Vec::new();
    for file in auth_files {
        let path = file.path.display().to_string();
        files.push(match file.read() {
            Ok(bytes) => {
                let bytes = bytes.as_ref().map(|bytes| bytes.as_slice());
                let mut status = inspect(path, bytes, registries, now);
                let shadowing = bytes.map(|bytes| status.shadowing(bytes)).unwrap_or_default();
                status.warnings = [hiding(file), shadowing].concat();
                status
            }
            Err(error) => {
                unreadable = Some(failed(&error, ExitStatus::AuthFile));
                let problems = vec![chain(&error)];
                FileStatus { path, problems, warnings: Vec::new(), registries: Vec::new() }
            }
        });
    }
    for entry in files.iter_mut().flat_map(|file| &mut file.registries) {
        entry.refresh_by = entry.life().map(|life| rule.due(life, 0.0));
    }
    let healthy = files.iter().all(FileStatus::is_healthy);
    let printed = match output {
        OutputFormat::Text => print_text(&mut io::stdout().lock(), &files, now),
        OutputFormat::Json => print_json(&mut io::stdout().lock(), &files, healthy),
    };
    match (printed, unreadable) {
        (Err(error), _) => failed(&error, ExitStatus::Unexpected),
        (_, Some(ending)) => ending,
        (Ok(()), None) if healthy => ExitStatus::Done,
        (Ok(()), None) => ExitStatus::Unexpected,
    }
}

/// What is missing or expired of `keys`, in any of the files, in words. Empty where all is well.
#[must_use]
pub fn missing(files: &[AuthFile], keys: &[String], now: Timestamp) -> Vec<String> {
    let mut missing = Vec::new();
    for file in files {
        let path = file.path.display().to_string();
        let status = match file.read() {
            Ok(bytes) => inspect(path.clone(), bytes.as_ref().map(|bytes| bytes.as_slice()), &[], now),
            Err(error) => {
                missing.push(chain(&error));
                continue;
            }
        };
        missing.extend(status.problems.iter().map(|problem| format!("{path}: {problem}")));
        for key in keys {
            let entry = status.registries.iter().find(|entry| entry.index == *key);
            let state = entry.map_or(State::Missing, |entry| entry.state);
            if state != State::Valid {
                missing.push(format!("{path}: {key}: {}", state.word()));
            }
        }
    }
    missing
}

/// What `bytes`, read from `path`, hold for ECR. The ECR registries that are asked for are listed even if they are
/// missing; where none is asked for, at least one must be there.
fn inspect(path: String, bytes: Option<&[u8]>, asked: &[Registry], now: Timestamp) -> FileStatus {
    let mut status = FileStatus { path, problems: Vec::new(), warnings: Vec::new(), registries: Vec::new() };
    let Some(bytes) = bytes else {
        status.problems.push("there is no such file".to_owned());
        status.add_missing(asked);
        return status;
    };
    let parsed = match document::parse(bytes) {
        Ok(parsed) => parsed,
        Err(error) => {
            status.problems.push(format!("the kubelet ignores this file, or we cannot write it: {error}"));
            status.add_missing(asked);
            return status;
        }
    };
    status.problems = parsed
        .spoilt
        .iter()
        .map(|spoilt: &Spoilt| format!("the kubelet ignores this file: {spoilt}"))
        .collect();
    let ledger = parsed.document.ledger().cloned().unwrap_or_default();
    for key in parsed.document.keys() {
        let is_ours = |record: &&Record| parsed.document.digest(key).as_ref() == Some(&record.digest);
        let record = ledger.entries.get(key).filter(is_ours);
        let host = index_key(key).unwrap_or_default();
        let is_asked = asked.iter().any(|registry| registry.key() == host);
        if record.is_none() && !is_asked && !is_ecr_host(&host) {
            continue;
        }
        let state = match record {
            Some(record) if record.expires_at <= now => State::Expired,
            Some(_) => State::Valid,
            None => State::Unknown,
        };
        status.registries.push(EntryStatus {
            registry: shown(key),
            index: host,
            state,
            ours: record.is_some(),
            expires_at: record.map(|record| record.expires_at),
            fetched_at: record.map(|record| record.fetched_at),
            refresh_by: None,
            source: record.map(|record| record.source.clone()),
        });
    }
    status.add_missing(asked);
    status
}

/// What stands in the kubelet's search path besides this file, and does not go with it.
fn hiding(file: &AuthFile) -> Vec<String> {
    let kubelet = file.kubelet();
    if !kubelet.is_searched() {
        return Vec::new();
    }
    let places = explain::look(&kubelet);
    let mut warnings = Vec::new();
    let used = places.iter().position(|(_, verdict)| matches!(verdict, Verdict::Used(_)));
    if let Some(at) = used.filter(|at| *at > 0) {
        let path = places[at].0.path.display();
        warnings.push(format!("the kubelet uses {path} instead of this file"));
    }
    let Some((_, Verdict::Used(keyring))) = places.first() else { return warnings };
    for (place, verdict) in &places {
        let Verdict::Hidden(hidden) = verdict else { continue };
        let is_here = |entry: &&Entry| keyring.entries().iter().any(|here| here.is_filed_with(entry));
        let lost: Vec<_> =
            hidden.entries().iter().filter(|entry| !is_here(entry)).map(|entry| shown(&entry.key)).collect();
        if !lost.is_empty() {
            let (path, lost) = (place.path.display(), lost.join(", "));
            warnings.push(format!("{path} is hidden by this file, and its entries are not used: {lost}"));
        }
    }
    warnings
}

impl FileStatus {
    /// Which entries the kubelet tries before ours, or beside them in random order.
    fn shadowing(&self, bytes: &[u8]) -> Vec<String> {
        let Ok(keyring) = Keyring::read(bytes, Shape::DockerConfig) else { return Vec::new() };
        let mut warnings = Vec::new();
        for entry in self.registries.iter().filter(|entry| entry.ours) {
            for other in keyring.tried_before(&entry.index).iter().filter(|other| other.record.is_none()) {
                let (other, key) = (shown(&other.key), &entry.registry);
                warnings.push(format!(
                    "the kubelet tries `{other}` before `{key}`, for images that both are for"
                ));
            }
            for other in keyring.filed_under(&entry.index).filter(|other| other.record.is_none()) {
                let (other, key) = (shown(&other.key), &entry.registry);
                warnings.push(format!(
                    "`{other}` is another spelling of `{key}`: which of them the kubelet tries first is random"
                ));
            }
        }
        warnings
    }

    fn add_missing(&mut self, asked: &[Registry]) {
        for registry in asked {
            let is_there = |entry: &EntryStatus| entry.index == registry.key();
            if !self.registries.iter().any(is_there) {
                self.registries.push(EntryStatus {
                    registry: registry.key().to_owned(),
                    index: registry.key().to_owned(),
                    state: State::Missing,
                    ours: false,
                    expires_at: None,
                    fetched_at: None,
                    refresh_by: None,
                    source: None,
                });
            }
        }
    }

    fn is_healthy(&self) -> bool {
        let good = |entry: &EntryStatus| matches!(entry.state, State::Valid | State::Unknown);
        self.problems.is_empty() && !self.registries.is_empty() && self.registries.iter().all(good)
    }
}

fn print_json(out: &mut impl Write, files: &[FileStatus], healthy: bool) -> io::Result<()> {
    let report = serde_json::json!({ "healthy": healthy, "auth_files": files });
    serde_json::to_writer_pretty(&mut *out, &report)?;
    writeln!(out)
}

fn print_text(out: &mut impl Write, files: &[FileStatus], now: Timestamp) -> io::Result<()> {
    for file in files {
        writeln!(out, "{}", file.path)?;
        for problem in &file.problems {
            writeln!(out, "  problem: {problem}")?;
        }
        for warning in &file.warnings {
            writeln!(out, "  warning: {warning}")?;
        }
        if file.registries.is_empty() {
            writeln!(out, "  no entry for ECR")?;
            continue;
        }
        let mut rows =
            vec![["REGISTRY", "STATE", "EXPIRES", "REFRESH BY", "WRITTEN BY", "SOURCE"].map(str::to_owned)];
        rows.extend(file.registries.iter().map(|entry| entry.row(now)));
        let widths: Vec<usize> = (0..5)
            .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
            .collect();
        for row in &rows {
            let cells =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect::<Vec<_>>();
            writeln!(out, "  {}", cells.join("  ").trim_end())?;
        }
    }
    Ok(())
}

impl EntryStatus {
    fn life(&self) -> Option<Life> {
        Some(Life { fetched_at: self.fetched_at?, expires_at: self.expires_at? })
    }

    fn row(&self, now: Timestamp) -> [String; 6] {
        let expires =
            self.expires_at.map_or_else(|| "-".to_owned(), |at| format!("{at} ({})", relative(at, now)));
        let refresh = self.refresh_by.map_or_else(|| "-".to_owned(), |at| relative(at, now));
        let by = match (self.ours, self.state) {
            (true, _) => "ecr-node-agent",
            (false, State::Missing) => "-",
            (false, _) => "somebody else",
        };
        let source = self.source.clone().unwrap_or_else(|| "-".to_owned());
        [self.registry.clone(), self.state.word().to_owned(), expires, refresh, by.to_owned(), source]
    }
}

/// `in 11h 3m`, `5m ago`.
pub(super) fn relative(at: Timestamp, now: Timestamp) -> String {
    let span = at.duration_since(now);
    let whole = SignedDuration::from_secs(span.as_secs().abs() / 60 * 60);
    if span.is_negative() { format!("{whole:#} ago") } else { format!("in {whole:#}") }
}
