//! What an auth file holds for ECR.

use super::explain;
use super::visibility::Visibility;
use crate::auth_file::{AuthFile, AuthFileError, DIRECTORY, LinkWatch};
use crate::docker_config::key::{index_key, visible};
use crate::docker_config::keyring::{Entry, Keyring};
use crate::docker_config::ledger::Record;
use crate::docker_config::parse::{self, Defect, Shape};
use crate::docker_config::search::Verdict;
use crate::ecr::registry::{Registry, is_ecr_host};
use crate::report::exit::chain;
use crate::report::redact::redact_known;
use crate::settings::RefreshPolicy;
use crate::time::schedule::Life;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::os::unix::fs::MetadataExt as _;

/// The longest error of a watcher that is shown, in characters.
const LONGEST_ERROR: usize = 300;
/// How long the kubelet caches the file.
const KUBELET_CACHE: SignedDuration = SignedDuration::from_mins(5);

/// What an auth file holds for ECR.
#[derive(Debug, Serialize)]
pub struct FileStatus {
    /// The file.
    pub path: String,
    /// Why the kubelet does not use the file, or why it could not be read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// What makes the kubelet use another file, or try other credentials first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// From when on every pull uses this version of the file, since the kubelet caches it; `None` if there is no file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubelet_reads_by: Option<Timestamp>,
    /// The entries for ECR.
    pub registries: Vec<EntryStatus>,
    /// Whether the file could not be read.
    #[serde(skip)]
    pub is_unreadable: bool,
}

/// One ECR entry, present or missing.
#[derive(Debug, Serialize)]
pub struct EntryStatus {
    /// The registry, without passwords.
    pub registry: String,
    /// The kubelet's name for the key.
    #[serde(skip)]
    index: String,
    /// Whether it can be used.
    pub state: State,
    /// Whether the agent wrote it.
    pub ours: bool,
    /// When its token expires; `None` if that is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// When its token was fetched; `None` if that is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fetched_at: Option<Timestamp>,
    /// When an agent with this schedule replaces it at the latest; `None` if the agent did not write it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh_by: Option<Timestamp>,
    /// Region, kind of endpoint and role of its token; `None` if the agent did not write it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// Whether an entry can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The kubelet can use it now.
    Valid,
    /// It has expired.
    Expired,
    /// It is asked for and not there.
    Missing,
    /// Another program wrote it, and nothing says when it expires.
    Unknown,
}

impl State {
    /// A word for people and programs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Expired => "expired",
            Self::Missing => "missing",
            Self::Unknown => "unknown",
        }
    }
}

impl FileStatus {
    /// Whether the kubelet can use every entry.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        let good = |entry: &EntryStatus| matches!(entry.state, State::Valid | State::Unknown);
        self.problems.is_empty() && !self.registries.is_empty() && self.registries.iter().all(good)
    }
}

/// Reads an auth file, and judges it.
#[must_use]
pub fn look(
    file: &AuthFile,
    registries: &[Registry],
    policy: &RefreshPolicy,
    visibility: &Visibility,
    now: Timestamp,
) -> FileStatus {
    let path = file.path.display().to_string();
    let bytes = match file.read() {
        Ok(bytes) => bytes,
        Err(error) => {
            let mut status = FileStatus::new(path, problem(&error));
            status.is_unreadable = true;
            return status;
        }
    };
    let bytes = bytes.as_ref().map(|bytes| bytes.as_slice());
    let mut status = inspect(path, bytes, registries, now);
    let shadowing = bytes.map(|bytes| status.shadowing(bytes)).unwrap_or_default();
    let (lost, links) = link(file);
    status.problems.extend(lost);
    status.warnings = [hiding(file, visibility), shadowing, links].concat();
    status.kubelet_reads_by = std::fs::metadata(&file.path)
        .ok()
        .and_then(|metadata| Timestamp::from_second(metadata.ctime()).ok())
        .map(|changed| changed + KUBELET_CACHE);
    for entry in &mut status.registries {
        entry.refresh_by = entry.life().map(|life| policy.due(life, 0.0));
    }
    status
}

/// Why a file could not be read. Nothing was to be written, so the error of a writer does not fit everywhere.
fn problem(error: &AuthFileError) -> String {
    match error {
        AuthFileError::NoDirectory(directory) => {
            format!(
                "the directory {} does not exist: a wrong path, or it is not mounted",
                directory.display()
            )
        }
        error => chain(error),
    }
}

/// What `bytes`, read from `path`, hold for ECR. The ECR registries that are asked for are listed even if they are missing; if
/// none is asked for, at least one must be there.
fn inspect(path: String, bytes: Option<&[u8]>, asked: &[Registry], now: Timestamp) -> FileStatus {
    let Some(bytes) = bytes else {
        return FileStatus::new(path, "there is no such file".to_owned()).with_missing(asked);
    };
    let parsed = match parse::parse(bytes) {
        Ok(parsed) => parsed,
        Err(error) => {
            let problem = format!("the kubelet ignores this file, or the agent cannot write it: {error}");
            return FileStatus::new(path, problem).with_missing(asked);
        }
    };
    let ignored = |defect: &Defect| format!("the kubelet ignores this file: {defect}");
    let mut status = FileStatus::new(path, String::new());
    status.problems = parsed.defects.iter().map(ignored).collect();
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
            // No token lives so long: the record says nothing.
            Some(record) if !record.is_believable(now) => State::Unknown,
            Some(record) if record.expires_at <= now => State::Expired,
            Some(_) => State::Valid,
            None => State::Unknown,
        };
        status.registries.push(EntryStatus {
            registry: visible(key),
            index: host,
            state,
            ours: record.is_some(),
            expires_at: record.map(|record| record.expires_at),
            fetched_at: record.map(|record| record.fetched_at),
            refresh_by: None,
            // Whoever may write the file may have planted it.
            source: record.map(|record| redact_known(&record.source, explain::LONGEST_SOURCE)),
        });
    }
    status.with_missing(asked)
}

/// In the linked layout: why there is no link, and what else is to be known of the link to this file.
fn link(file: &AuthFile) -> (Option<String>, Vec<String>) {
    if !file.is_inside() && !file.is_linked() {
        let inside = file.inside().path;
        let target =
            inside.file_name().map(|name| std::path::Path::new(DIRECTORY).join(name)).unwrap_or_default();
        let warning = format!(
            "this is no link to {}: `ecr-node-agent link` makes it again, `ecr-node-agent link --undo` deletes that file",
            target.display()
        );
        return (None, if inside.is_file() { vec![warning] } else { Vec::new() });
    }
    let unwatched =
        "if another program replaces the link to this file, the kubelet does not read this file any more";
    let watch = LinkWatch::find(file);
    let mut warnings = match &watch {
        // An agent that sees the kubelet's root directory needs no watcher.
        _ if !file.is_inside() => Vec::new(),
        Ok(LinkWatch::Running(_)) => Vec::new(),
        Ok(LinkWatch::None) => vec![format!("no `link --watch` runs: {unwatched}")],
        Ok(LinkWatch::Ended(_)) => vec![format!("`link --watch` has ended: {unwatched}")],
        Err(error) => vec![format!("cannot read {}: {error}", file.link_record().display())],
    };
    let Some(record) = watch.as_ref().ok().and_then(LinkWatch::record) else { return (None, warnings) };
    if let Some(last) = record.last_repair {
        let times =
            if record.repairs == 1 { "1 time".to_owned() } else { format!("{} times", record.repairs) };
        warnings.push(format!(
            "another program has replaced the link to this file {times}, and `link --watch` has made it again, last at {last:.0}"
        ));
    }
    let lost = record.failure.as_ref().filter(|_| file.is_inside());
    let lost = lost.map(|lost| redact_known(&lost.error, LONGEST_ERROR));
    (lost.map(|error| format!("the kubelet does not read this file: {error}")), warnings)
}

/// Files in the kubelet's search path that it uses instead of this one, or that this one hides.
fn hiding(file: &AuthFile, visibility: &Visibility) -> Vec<String> {
    let kubelet = file.kubelet();
    if !kubelet.is_searched() {
        return Vec::new();
    }
    let places = explain::look(&kubelet, &file.path, visibility).places;
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
        let lost = hidden.entries().iter().filter(|entry| !is_here(entry));
        let lost: Vec<_> = lost.map(|entry| visible(&entry.key)).collect();
        if !lost.is_empty() {
            let (path, lost) = (place.path.display(), lost.join(", "));
            warnings.push(format!("{path} is hidden by this file, and its entries are not used: {lost}"));
        }
    }
    warnings
}

impl FileStatus {
    /// A file of which nothing is known but a problem, which is none if it is empty.
    fn new(path: String, problem: String) -> Self {
        let problems = Some(problem).filter(|problem| !problem.is_empty()).into_iter().collect();
        let (warnings, registries) = (Vec::new(), Vec::new());
        Self { path, problems, warnings, kubelet_reads_by: None, registries, is_unreadable: false }
    }

    /// Entries of other programs that the kubelet tries before the agent's, or beside them in random order.
    fn shadowing(&self, bytes: &[u8]) -> Vec<String> {
        let Ok(keyring) = Keyring::read(bytes, Shape::DockerConfig) else { return Vec::new() };
        let mut warnings = Vec::new();
        for entry in self.registries.iter().filter(|entry| entry.ours) {
            for other in keyring.tried_before(&entry.index).iter().filter(|other| other.record.is_none()) {
                let (other, key) = (visible(&other.key), &entry.registry);
                warnings
                    .push(format!("the kubelet tries `{other}` before `{key}`, for images that match both"));
            }
            for other in keyring.filed_under(&entry.index).filter(|other| other.record.is_none()) {
                let (other, key) = (visible(&other.key), &entry.registry);
                warnings.push(format!(
                    "`{other}` is another spelling of `{key}`: the kubelet tries them in random order"
                ));
            }
        }
        warnings
    }

    fn with_missing(mut self, asked: &[Registry]) -> Self {
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
        self
    }
}

impl EntryStatus {
    fn life(&self) -> Option<Life> {
        Some(Life { fetched_at: self.fetched_at?, expires_at: self.expires_at? })
    }
}
