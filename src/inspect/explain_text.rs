//! What `explain` prints, on standard output: user names, never passwords.

use super::explain::{Explanation, ImageExplanation, State, Tried};
use super::explain_json::to_json;
use super::registry::answer::{Answers, Meaning};
use super::registry::challenge::Challenge;
use super::registry::client::Verification;
use crate::docker_config::search::Verdict;
use crate::report::exit::{ExitStatus, chain, failed};
use crate::report::output::{OutputFormat, print_json, relative};
use jiff::Timestamp;
use std::io::{self, Write};

/// It is unknown which file the kubelet uses.
#[derive(Debug, thiserror::Error)]
#[error("cannot determine which file the kubelet uses: {path}: {why}")]
struct Uncertain {
    path: String,
    why: String,
}

/// Prints an explanation. Returns the exit status that it means.
#[must_use]
pub fn print(explanation: &Explanation, output: OutputFormat, now: Timestamp) -> ExitStatus {
    let out = &mut io::stdout().lock();
    let printed = match output {
        OutputFormat::Text => print_text(out, explanation, now),
        OutputFormat::Json => print_json(out, &to_json(explanation)),
    };
    match (printed, explanation.search.unknown()) {
        (Err(error), _) => failed(&error, ExitStatus::Unexpected),
        (Ok(()), Some((place, why))) => {
            let path = place.path.display().to_string();
            failed(&Uncertain { path, why: why.to_owned() }, ExitStatus::AuthFile)
        }
        (Ok(()), None) if explanation.is_usable() => ExitStatus::Done,
        (Ok(()), None) => ExitStatus::Unexpected,
    }
}

fn print_text(out: &mut impl Write, explanation: &Explanation, now: Timestamp) -> io::Result<()> {
    let (kubelet, search) = (&explanation.kubelet, &explanation.search);
    if kubelet.is_searched() {
        let root = kubelet.auth_file.parent().unwrap_or(&kubelet.auth_file).display();
        let home = kubelet.home.as_ref().map_or("unset".to_owned(), |home| home.display().to_string());
        let working_dir = kubelet.working_dir.display();
        writeln!(
            out,
            "Auth files of a kubelet with root directory {root}, working directory {working_dir}, HOME {home}:"
        )?;
    } else {
        writeln!(out, "Auth file (the kubelet does not search for files of this name):")?;
    }
    let paths = search.places.iter().map(|(place, _)| place.path.display().to_string());
    let width = paths.map(|path| path.chars().count()).max().unwrap_or_default();
    for (place, verdict) in &search.places {
        writeln!(out, "  {:width$}  {}", place.path.display().to_string(), verdict_in_words(verdict))?;
    }
    if let Some(own) = &search.read_instead {
        let (path, own) = (kubelet.auth_file.display(), own.display());
        writeln!(
            out,
            "  not checked: {path} cannot be seen from this pod; read was {own}, to which it links"
        )?;
    }
    if let Some(plugins) = &explanation.plugins {
        let found = match &plugins.providers {
            Ok(providers) => providers.iter().map(|it| escaped(&it.name)).collect::<Vec<_>>().join(", "),
            Err(error) => format!("unknown: {}", escaped(&chain(error))),
        };
        writeln!(out, "Plugins that {} configures: {found}", plugins.config.display())?;
    }
    for image in &explanation.images {
        writeln!(out)?;
        print_image(out, image, search.unknown().is_none(), now)?;
    }
    Ok(())
}

fn print_image(
    out: &mut impl Write,
    image: &ImageExplanation,
    is_known: bool,
    now: Timestamp,
) -> io::Result<()> {
    writeln!(out, "{}", image.image)?;
    if !is_known {
        return writeln!(out, "  result: unknown, like the file that the kubelet uses");
    }
    let name = image.image.repository();
    if image.tried.is_empty() {
        let then =
            if image.plugins.is_empty() { "pulls without credentials" } else { "asks its plugins only" };
        writeln!(out, "  no entry matches {name}: the kubelet {then}")?;
    } else {
        let default =
            if image.is_docker_hub_default { " (Docker Hub's entry, since none matches)" } else { "" };
        writeln!(out, "  tried for {name}, in this order{default}:")?;
    }
    if let Some(verification) = &image.verification {
        writeln!(out, "  {}", asked_in_words(verification))?;
        if image.tried.is_empty() {
            writeln!(out, "    without a credential: {}", answers_in_words(&verification.without, false))?;
        }
    }
    let width = image.tried.iter().map(|tried| escaped(&tried.key).chars().count()).max().unwrap_or_default();
    for (number, tried) in image.tried.iter().enumerate() {
        let (key, user) = (escaped(&tried.key), escaped(&tried.username));
        writeln!(out, "    {}. {key:width$}  user `{user}`, {}", number + 1, tried_in_words(tried, now))?;
        if let Some(answers) = image.verification.as_ref().and_then(|found| found.with.get(number)) {
            writeln!(out, "       {}", answers_in_words(answers, true))?;
        }
    }
    if !image.not_tried.is_empty() {
        writeln!(out, "  not tried:")?;
    }
    let width =
        image.not_tried.iter().map(|entry| escaped(&entry.key).chars().count()).max().unwrap_or_default();
    for entry in &image.not_tried {
        writeln!(out, "    {:width$}  {}", escaped(&entry.key), entry.mismatch)?;
    }
    if image.more_not_tried > 0 {
        writeln!(out, "    and {} more", image.more_not_tried)?;
    }
    if !image.plugins.is_empty() {
        let names: Vec<_> = image.plugins.iter().map(|name| escaped(name)).collect();
        writeln!(out, "  tried after these: the answers of the plugins {}", names.join(", "))?;
    }
    let verdict = match (image.is_usable(), image.tried.is_empty()) {
        (false, _) if !image.plugins.is_empty() => {
            "unknown; the registry was not asked with the credentials of plugins"
        }
        (true, _) if image.verification.is_none() && !image.has_usable_entry() => {
            "a plugin may have a credential that works"
        }
        (true, _) if image.verification.is_some() => "a pull would work now",
        (false, false) if image.verification.is_some() => {
            "a pull would fail now; the kubelet does not try without a credential after these"
        }
        (true, _) => "a credential that may work",
        (false, false) => {
            "no credential that can work; the kubelet does not try without a credential after these"
        }
        (false, true) => "no credential",
    };
    writeln!(out, "  result: {verdict}")
}

/// A text with control characters escaped, for a terminal.
fn escaped(text: &str) -> String {
    text.escape_debug().to_string()
}

fn asked_in_words(verification: &Verification) -> String {
    let wants = match &verification.challenge {
        Some(Challenge::Basic) => "it wants user and password",
        Some(Challenge::Bearer { .. }) => {
            "it wants a token, which a token service gives for user and password"
        }
        None => "it asks for no credential of a known kind",
    };
    match &verification.endpoint {
        Some(endpoint) => format!("asked {}: {wants}", endpoint.url("")),
        None => "asked the registry, which did not answer".to_owned(),
    }
}

fn answers_in_words(answers: &Answers, with_credential: bool) -> String {
    let steps = [("token", answers.token), ("/v2/", answers.base), ("manifest", answers.manifest)];
    let steps: Vec<_> =
        steps.iter().filter_map(|(step, status)| status.map(|status| format!("{step} {status}"))).collect();
    let meaning = match &answers.meaning {
        Meaning::NotAccepted | Meaning::NotAllowed if !with_credential => {
            "the registry wants a credential for this repository".to_owned()
        }
        Meaning::NotThere if !with_credential => "there is no such image or tag".to_owned(),
        meaning => meaning.to_string(),
    };
    let said = answers.said.as_ref().map(|said| format!(" (the registry says: {said})")).unwrap_or_default();
    let steps = if steps.is_empty() { String::new() } else { format!("{}: ", steps.join(", ")) };
    format!("{steps}{meaning}{said}")
}

fn verdict_in_words(verdict: &Verdict) -> String {
    let entries = |count: usize| if count == 1 { "1 entry".to_owned() } else { format!("{count} entries") };
    match verdict {
        Verdict::Missing => "missing".to_owned(),
        Verdict::Ignored(why) => format!("ignored: {}", why.join("; ")),
        Verdict::Used(keyring) => format!("used: {}", entries(keyring.entries().len())),
        Verdict::Hidden(keyring) => {
            format!("hidden by an earlier file: {}", entries(keyring.entries().len()))
        }
        Verdict::Unknown(why) => format!("unknown: {why}"),
    }
}

fn tried_in_words(tried: &Tried, now: Timestamp) -> String {
    let state = match tried.state {
        State::Valid(at) => format!("valid until {at} ({})", relative(at, now)),
        State::Expired(at) => format!("expired {at} ({})", relative(at, now)),
        State::Unknown => "written by another program, expiry unknown".to_owned(),
        State::Empty => "neither user nor password: the registry is asked without a credential".to_owned(),
    };
    let source = tried.source.as_ref().map(|source| format!(", from {source}")).unwrap_or_default();
    let order = if tried.in_random_order {
        "; another spelling of the same key is tried too, in random order"
    } else {
        ""
    };
    format!("{state}{source}{order}")
}
