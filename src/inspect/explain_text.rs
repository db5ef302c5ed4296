//! What `explain` prints, on standard output: user names, never passwords.

use super::status::relative;
use crate::docker_config::keyring::Mismatch;
use crate::docker_config::search::{Place, Verdict};
use crate::inspect::explain::{Explanation, ImageExplanation, State, Tried};
use crate::inspect::registry::answer::{Answers, Meaning};
use crate::inspect::registry::challenge::Challenge;
use crate::inspect::registry::client::Verification;
use crate::report::exit::{ExitStatus, failed};
use crate::report::output::OutputFormat;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::io::{self, Write};

/// Where nobody can say which file the kubelet uses.
#[derive(Debug, thiserror::Error)]
#[error("cannot say which file the kubelet uses: {path}: {why}")]
struct Uncertain {
    path: String,
    why: String,
}

/// Prints what was found, and says whether that is enough.
#[must_use]
pub fn print(explanation: &Explanation, output: OutputFormat, now: Timestamp) -> ExitStatus {
    let out = &mut io::stdout().lock();
    let printed = match output {
        OutputFormat::Text => print_text(out, explanation, now),
        OutputFormat::Json => print_json(out, explanation),
    };
    match (printed, explanation.unknown()) {
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
    let kubelet = &explanation.kubelet;
    if kubelet.is_searched() {
        let root = kubelet.auth_file.parent().unwrap_or(&kubelet.auth_file);
        let home =
            kubelet.home.as_ref().map_or_else(|| "unset".to_owned(), |home| home.display().to_string());
        let working_dir = kubelet.working_dir.display();
        let root = root.display();
        writeln!(
            out,
            "Auth files of a kubelet with root directory {root}, working directory {working_dir}, HOME {home}:"
        )?;
    } else {
        writeln!(out, "Auth file (no kubelet looks for one of this name by itself):")?;
    }
    let paths = explanation.places.iter().map(|(place, _)| place.path.display().to_string());
    let width = paths.map(|path| path.chars().count()).max().unwrap_or_default();
    for (place, verdict) in &explanation.places {
        writeln!(out, "  {:width$}  {}", place.path.display().to_string(), in_words(verdict))?;
    }
    for image in &explanation.images {
        writeln!(out)?;
        print_image(out, image, now)?;
    }
    Ok(())
}

fn print_image(out: &mut impl Write, image: &ImageExplanation, now: Timestamp) -> io::Result<()> {
    writeln!(out, "{}", image.image)?;
    if image.tried.is_empty() {
        writeln!(
            out,
            "  no entry is for {}: the kubelet pulls without credentials",
            image.image.repository()
        )?;
    } else {
        let as_default = if image.as_default { ", as Docker Hub's, since none matches" } else { "" };
        writeln!(out, "  tried for {}, in this order{as_default}:", image.image.repository())?;
    }
    if let Some(verification) = &image.verification {
        writeln!(out, "  {}", asked_in_words(verification))?;
        if image.tried.is_empty() {
            writeln!(out, "    without a credential: {}", answers_in_words(&verification.without, false))?;
        }
    }
    let width = image.tried.iter().map(|tried| tried.key.chars().count()).max().unwrap_or_default();
    for (number, tried) in image.tried.iter().enumerate() {
        let user = tried.username.escape_debug();
        writeln!(out, "    {}. {:width$}  user `{user}`, {}", number + 1, tried.key, tried.in_words(now))?;
        if let Some(answers) = image.verification.as_ref().and_then(|found| found.with.get(number)) {
            writeln!(out, "       {}", answers_in_words(answers, true))?;
        }
    }
    if !image.passed_over.is_empty() {
        writeln!(out, "  not tried:")?;
    }
    let width = image.passed_over.iter().map(|entry| entry.key.chars().count()).max().unwrap_or_default();
    for entry in &image.passed_over {
        writeln!(out, "    {:width$}  {}", entry.key, entry.mismatch)?;
    }
    let verdict = match (image.is_usable(), image.tried.is_empty()) {
        (true, _) if image.verification.is_some() => "a pull would work now",
        (false, false) if image.verification.is_some() => {
            "a pull would fail now; none without a credential is tried after these"
        }
        (true, _) => "a credential that may be good",
        (false, false) => "no credential that can be good; no pull without one is tried after these",
        (false, true) => "no credential",
    };
    writeln!(out, "  result: {verdict}")
}

fn asked_in_words(verification: &Verification) -> String {
    let wants = match &verification.challenge {
        Some(Challenge::Basic) => "it wants user and password",
        Some(Challenge::Bearer { .. }) => "it wants a token, which a service hands out for user and password",
        None => "it asks for no credential that we know of",
    };
    match &verification.endpoint {
        Some(endpoint) => format!("asked {}: {wants}", endpoint.url("")),
        None => "asked the registry, and nobody answered".to_owned(),
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
    let said = answers.said.as_ref().map(|said| format!(" (it said: {said})")).unwrap_or_default();
    let steps = if steps.is_empty() { String::new() } else { format!("{}: ", steps.join(", ")) };
    format!("{steps}{meaning}{said}")
}

fn answers_to_json(answers: &Answers) -> Value {
    json!({
        "token_status": answers.token,
        "base_status": answers.base,
        "manifest_status": answers.manifest,
        "meaning": answers.meaning.word(),
        "detail": answers.meaning.to_string(),
        "said": answers.said,
    })
}

fn verification_to_json(verification: &Verification) -> Value {
    let challenge = verification.challenge.as_ref().map(|challenge| match challenge {
        Challenge::Basic => "basic",
        Challenge::Bearer { .. } => "bearer",
    });
    json!({
        "url": verification.endpoint.as_ref().map(|endpoint| endpoint.url("")),
        "challenge": challenge,
        "without_credential": answers_to_json(&verification.without),
    })
}

fn in_words(verdict: &Verdict) -> String {
    let entries = |count: usize| if count == 1 { "1 entry".to_owned() } else { format!("{count} entries") };
    match verdict {
        Verdict::Missing => "missing".to_owned(),
        Verdict::Ignored(why) => format!("ignored: {}", why.join("; ")),
        Verdict::Used(keyring) => format!("used: {}", entries(keyring.entries().len())),
        Verdict::Hidden(keyring) => {
            format!("hidden by the one before: {}", entries(keyring.entries().len()))
        }
        Verdict::Unknown(why) => format!("unknown: {why}"),
    }
}

impl Tried {
    fn in_words(&self, now: Timestamp) -> String {
        let state = match self.state {
            State::Valid(end) => format!("valid until {end} ({})", relative(end, now)),
            State::Expired(end) => format!("expired {end} ({})", relative(end, now)),
            State::Unknown => "by somebody else, end unknown".to_owned(),
            State::Empty => "neither user nor password: the registry is asked as nobody".to_owned(),
        };
        let source = self.source.as_ref().map(|source| format!(", from {source}")).unwrap_or_default();
        let order = if self.in_random_order {
            "; another spelling of the same key is tried too, and which comes first is random"
        } else {
            ""
        };
        format!("{state}{source}{order}")
    }

    fn to_json(&self, answers: Option<&Answers>) -> Value {
        let (state, expires_at) = match self.state {
            State::Valid(end) => ("valid", Some(end)),
            State::Expired(end) => ("expired", Some(end)),
            State::Unknown => ("unknown", None),
            State::Empty => ("empty", None),
        };
        json!({
            "key": self.key,
            "username": self.username,
            "state": state,
            "ours": self.source.is_some(),
            "expires_at": expires_at,
            "source": self.source,
            "in_random_order": self.in_random_order,
            "answer": answers.map(answers_to_json),
        })
    }
}

fn print_json(out: &mut impl Write, explanation: &Explanation) -> io::Result<()> {
    let kubelet = &explanation.kubelet;
    let report = json!({
        "usable": explanation.is_usable() && explanation.unknown().is_none(),
        "kubelet": {
            "auth_file": kubelet.auth_file.display().to_string(),
            "working_dir": kubelet.working_dir.display().to_string(),
            "home": kubelet.home.as_ref().map(|home| home.display().to_string()),
        },
        "files": explanation.places.iter().map(|(place, verdict)| file_to_json(place, verdict)).collect::<Vec<_>>(),
        "images": explanation.images.iter().map(image_to_json).collect::<Vec<_>>(),
    });
    serde_json::to_writer_pretty(&mut *out, &report)?;
    writeln!(out)
}

fn file_to_json(place: &Place, verdict: &Verdict) -> Value {
    let (state, entries, problems) = match verdict {
        Verdict::Missing => ("missing", None, Vec::new()),
        Verdict::Ignored(why) => ("ignored", None, why.clone()),
        Verdict::Used(keyring) => ("used", Some(keyring.entries().len()), Vec::new()),
        Verdict::Hidden(keyring) => ("hidden", Some(keyring.entries().len()), Vec::new()),
        Verdict::Unknown(why) => ("unknown", None, vec![why.clone()]),
    };
    json!({ "path": place.path.display().to_string(), "state": state, "entries": entries, "problems": problems })
}

fn image_to_json(image: &ImageExplanation) -> Value {
    let answers = |number: usize| image.verification.as_ref().and_then(|found| found.with.get(number));
    let tried = image.tried.iter().enumerate().map(|(number, tried)| tried.to_json(answers(number)));
    let passed_over = image.passed_over.iter().map(|entry| {
        json!({ "key": entry.key, "reason": reason(&entry.mismatch), "detail": entry.mismatch.to_string() })
    });
    json!({
        "image": image.image.to_string(),
        "looked_up": image.image.repository(),
        "usable": image.is_usable(),
        "docker_hub_default": image.as_default,
        "registry": image.verification.as_ref().map(verification_to_json),
        "tried": tried.collect::<Vec<_>>(),
        "not_tried": passed_over.collect::<Vec<_>>(),
    })
}

/// A word for programs.
fn reason(mismatch: &Mismatch) -> &'static str {
    match mismatch {
        Mismatch::NoUrl => "no_url",
        Mismatch::Scheme => "scheme",
        Mismatch::Port { .. } => "port",
        Mismatch::Labels { .. } => "label_count",
        Mismatch::Capitals { .. } => "capitals",
        Mismatch::Label { .. } => "host",
        Mismatch::Path { .. } => "path",
    }
}
