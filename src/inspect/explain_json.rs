//! `explain --output json`. `docs/schema/explain.json` describes it.

use super::explain::{Explanation, ImageExplanation, State, Tried};
use super::plugins::Plugins;
use super::registry::answer::Answers;
use super::registry::challenge::Challenge;
use super::registry::client::Verification;
use crate::credential_provider::kubelet_config::Provider;
use crate::docker_config::matching::Mismatch;
use crate::docker_config::search::{Place, Verdict};
use crate::report::exit::chain;
use serde_json::{Value, json};

/// The version of the schema. It changes if a member goes or changes its meaning.
const VERSION: u32 = 1;

/// The explanation as JSON.
#[must_use]
pub fn to_json(explanation: &Explanation) -> Value {
    let (kubelet, search) = (&explanation.kubelet, &explanation.search);
    let is_known = search.unknown().is_none();
    json!({
        "version": VERSION,
        "usable": explanation.is_usable(),
        "kubelet": {
            "auth_file": kubelet.auth_file.display().to_string(),
            "working_dir": kubelet.working_dir.display().to_string(),
            "home": kubelet.home.as_ref().map(|home| home.display().to_string()),
        },
        "read_instead": search.read_instead.as_ref().map(|path| path.display().to_string()),
        "files": search.places.iter().map(|(place, verdict)| file(place, verdict)).collect::<Vec<_>>(),
        "plugins": explanation.plugins.as_ref().map(plugins),
        "images": explanation.images.iter().map(|explained| image(explained, is_known)).collect::<Vec<_>>(),
    })
}

fn file(place: &Place, verdict: &Verdict) -> Value {
    let (state, entries, problems) = match verdict {
        Verdict::Missing => ("missing", None, Vec::new()),
        Verdict::Ignored(why) => ("ignored", None, why.clone()),
        Verdict::Used(keyring) => ("used", Some(keyring.entries().len()), Vec::new()),
        Verdict::Hidden(keyring) => ("hidden", Some(keyring.entries().len()), Vec::new()),
        Verdict::Unknown(why) => ("unknown", None, vec![why.clone()]),
    };
    json!({ "path": place.path.display().to_string(), "state": state, "entries": entries, "problems": problems })
}

fn plugins(plugins: &Plugins) -> Value {
    let names = |providers: &Vec<Provider>| providers.iter().map(|it| it.name.clone()).collect::<Vec<_>>();
    json!({
        "config": plugins.config.display().to_string(),
        "names": plugins.providers.as_ref().ok().map(names),
        "problem": plugins.providers.as_ref().err().map(|error| chain(error)),
    })
}

fn image(image: &ImageExplanation, is_known: bool) -> Value {
    let answers = |number: usize| image.verification.as_ref().and_then(|found| found.with.get(number));
    let all_tried = image.tried.iter().enumerate().map(|(number, entry)| tried(entry, answers(number)));
    let not_tried = image.not_tried.iter().map(|entry| {
        json!({ "key": entry.key, "reason": reason(&entry.mismatch), "detail": entry.mismatch.to_string() })
    });
    json!({
        "image": image.image.to_string(),
        "looked_up": image.image.repository(),
        "usable": is_known.then(|| image.is_usable()),
        "docker_hub_default": image.is_docker_hub_default,
        "registry": image.verification.as_ref().map(verification),
        "tried": all_tried.collect::<Vec<_>>(),
        "not_tried": not_tried.collect::<Vec<_>>(),
        "not_tried_more": image.more_not_tried,
        "plugins": image.plugins,
    })
}

fn tried(tried: &Tried, answer: Option<&Answers>) -> Value {
    let (state, expires_at) = match tried.state {
        State::Valid(at) => ("valid", Some(at)),
        State::Expired(at) => ("expired", Some(at)),
        State::Unknown => ("unknown", None),
        State::Empty => ("empty", None),
    };
    json!({
        "key": tried.key,
        "username": tried.username,
        "state": state,
        "ours": tried.source.is_some(),
        "expires_at": expires_at,
        "source": tried.source,
        "in_random_order": tried.in_random_order,
        "answer": answer.map(answers),
    })
}

fn answers(answers: &Answers) -> Value {
    json!({
        "token_status": answers.token,
        "base_status": answers.base,
        "manifest_status": answers.manifest,
        "meaning": answers.meaning.word(),
        "detail": answers.meaning.to_string(),
        "said": answers.said,
    })
}

fn verification(verification: &Verification) -> Value {
    let challenge = verification.challenge.as_ref().map(|challenge| match challenge {
        Challenge::Basic => "basic",
        Challenge::Bearer { .. } => "bearer",
    });
    json!({
        "url": verification.endpoint.as_ref().map(|endpoint| endpoint.url("")),
        "challenge": challenge,
        "without_credential": answers(&verification.without),
    })
}

/// A word for programs.
fn reason(mismatch: &Mismatch) -> &'static str {
    match mismatch {
        Mismatch::NoUrl => "no_url",
        Mismatch::ImageNoUrl => "image_no_url",
        Mismatch::Scheme => "scheme",
        Mismatch::Port { .. } => "port",
        Mismatch::Labels { .. } => "label_count",
        Mismatch::Capitals { .. } => "capitals",
        Mismatch::Label { .. } => "host",
        Mismatch::Path { .. } => "path",
    }
}
