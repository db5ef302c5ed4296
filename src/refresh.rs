//! One round: fetch a token for each source, publish them to every target. `remove` is a round without tokens.
//!
//! What fails does not keep the rest from being served; [`Round`] says what became of each part, and all that an
//! operator sees is a function of it.

use crate::clock;
use crate::docker_config::key::shown;
use crate::docker_config::merge::{Wanted, WantedEntry};
use crate::ecr::client::{Caller, Ecr};
use crate::ecr::refusal::{AnswerError, Refusal};
use crate::ecr::registry::{Endpoint, Region, TokenSource};
use crate::ecr::token::Token;
use crate::pull_secrets::{self, SecretDone};
use crate::report::ending::{Ending, chain};
use crate::schedule::{retry_delay, throttled_delay_within};
use crate::settings::Settings;
use crate::target::auth_file::{AuthFile, AuthFileError, Effect, Manner, Outcome};
use crate::target::link::Link;
use crate::target::pull_secret::names::PullSecrets;
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{Instrument as _, debug, error, info, info_span, warn};

/// An entry for a registry that also serves anonymously goes this long before its end: twice as long as the kubelet
/// may go on using what it has read.
pub const LAPSE: SignedDuration = SignedDuration::from_mins(10);

/// Longer than anybody waits, and short enough for every clock.
const FOREVER: Duration = Duration::from_hours(24 * 365);

/// What one round did.
#[derive(Debug, Default)]
pub struct Round {
    /// What ECR said, for each source that was asked.
    pub fetched: Vec<Fetched>,
    /// What became of each auth file.
    pub published: Vec<Published>,
    /// What became of each pull secret.
    pub secrets: Vec<SecretDone>,
}

/// What ECR said.
#[derive(Debug)]
pub struct Fetched {
    /// Who was asked; `None` where not even that could be found out.
    pub source: Option<TokenSource>,
    /// Until when the token is good, or why there is none.
    pub result: Result<Timestamp, Refusal>,
}

/// What became of a target.
#[derive(Debug)]
pub struct Published {
    /// The auth file.
    pub path: PathBuf,
    /// What was done, or why nothing.
    pub result: Result<Outcome, AuthFileError>,
}

impl Round {
    /// How `--once` and `remove` end: the cause nearest to the node wins, since a node whose file cannot be written is
    /// helped by no token.
    #[must_use]
    pub fn ending(&self) -> Ending {
        let refusals = || self.fetched.iter().filter_map(|fetched| fetched.result.as_ref().err());
        if self.published.iter().any(|published| published.result.is_err()) {
            Ending::AuthFile
        } else if refusals().any(Refusal::is_about_the_caller) {
            Ending::NoCredentials
        } else if refusals().next().is_some() {
            Ending::Ecr
        } else if self.secrets.iter().any(|secret| secret.result.is_err()) {
            Ending::PullSecret
        } else {
            Ending::Done
        }
    }
}

/// A source to ask, and the keys that its token is for. No keys: the one that the answer names.
#[derive(Debug, Clone)]
pub struct Question {
    /// Whom to ask, and as whom.
    pub source: TokenSource,
    /// The keys under `auths`.
    pub keys: Vec<String>,
}

/// Runs one round, trying again what may get better until `settings.timeout` is over.
pub async fn refresh(settings: &Settings, ecr: Arc<Ecr>) -> Round {
    let deadline = Instant::now() + settings.timeout.min(FOREVER);
    let mut round = Round::default();
    let unanswered =
        Refusal::NoRegion { said: " (nothing answered within --timeout)".to_owned(), passing: true };
    let questions = match until(deadline, unanswered, || questions(settings, &ecr)).await {
        Ok(questions) => questions,
        Err(refusal) => {
            error!(error = %refusal, "no token was fetched; what was there stays");
            round.fetched.push(Fetched { source: None, result: Err(refusal) });
            return round;
        }
    };
    let tokens = fetch(&questions, ecr, deadline).await;
    let answers = questions.iter().zip(&tokens).map(|(question, token)| (question, token.as_ref().ok()));
    let wanted = wanted(answers, clock::now());
    round.fetched = questions
        .into_iter()
        .zip(tokens)
        .map(|(question, token)| Fetched {
            source: Some(question.source),
            result: token.map(|token| token.expires_at),
        })
        .collect();
    // Without anything new, and nothing to take back, a target has nothing to gain from being opened.
    if !wanted.entries.is_empty() || !wanted.lapse.is_empty() {
        let manner = Manner { now: clock::now(), dry_run: settings.dry_run, mode: None };
        let wanted = Arc::new(wanted);
        let for_files = Arc::clone(&wanted);
        let publish = move |file: &AuthFile| file.publish(&for_files, manner);
        round.published = on_each(&settings.auth_files, publish).await;
        // Last of all: a node's own file does not wait for the API server.
        if !settings.pull_secrets.is_empty() {
            let publishing = pull_secrets::once(&settings.pull_secrets, &wanted, deadline, settings.dry_run);
            round.secrets = Box::pin(publishing).await;
        }
    }
    round
}

/// Takes everything of ours out of the auth files, undoes their links, and deletes the pull secrets that are named.
pub async fn remove(auth_files: &[AuthFile], secrets: &PullSecrets, dry_run: bool) -> Round {
    let now = clock::now();
    let published = on_each(auth_files, move |file| file.uninstall(now, dry_run)).await;
    let secrets = if secrets.is_empty() { Vec::new() } else { pull_secrets::remove(secrets, dry_run).await };
    Round { fetched: Vec::new(), published, secrets }
}

/// Moves the auth files into directories of ours and leaves links, or undoes that.
pub async fn link(auth_files: &[AuthFile], undo: bool, dry_run: bool) -> Round {
    let now = clock::now();
    let act = move |file: &AuthFile| if undo { file.unlink(dry_run) } else { file.link(now, dry_run) };
    Round { published: on_each(auth_files, act).await, ..Round::default() }
}

/// Whom to ask for what. Asks for the region, where it is not given.
///
/// # Errors
/// When there is no region.
pub async fn questions(settings: &Settings, ecr: &Ecr) -> Result<Vec<Question>, Refusal> {
    if settings.registries.is_empty() {
        let region = match ecr.default_region().await {
            Ok(region) => region,
            Err(refusal) => return Err(without_region(refusal, ecr).await),
        };
        let source = TokenSource { region, endpoint: Endpoint::STANDARD, role: settings.role.clone() };
        return Ok(vec![Question { source, keys: Vec::new() }]);
    }
    let mut keys: BTreeMap<TokenSource, Vec<String>> = BTreeMap::new();
    for registry in &settings.registries {
        keys.entry(registry.source(settings.role.as_ref())).or_default().push(registry.key().to_owned());
    }
    Ok(keys.into_iter().map(|(source, keys)| Question { source, keys }).collect())
}

/// Where the region is missing, credentials often are too, and then they are the first thing to see to.
async fn without_region(refusal: Refusal, ecr: &Ecr) -> Refusal {
    match ecr.caller(None).await {
        Err(Refusal::NoCredentials { tried, remedy, passing }) => Refusal::NoCredentials {
            tried: format!("{tried}; and there is {}", no_region(&refusal)),
            remedy,
            passing,
        },
        _ => refusal,
    }
}

fn no_region(refusal: &Refusal) -> String {
    refusal.to_string().replacen("no AWS region: ", "no AWS region either: ", 1)
}

/// One answer for each question, in their order. Sources are asked side by side, so that none waits for another.
async fn fetch(questions: &[Question], ecr: Arc<Ecr>, deadline: Instant) -> Vec<Result<Token, Refusal>> {
    let region: Option<&Region> = questions.first().map(|question| &question.source.region);
    let unanswered = Refusal::NoCredentials {
        tried: "the source that was asked did not answer within --timeout".to_owned(),
        remedy: "",
        passing: true,
    };
    let caller: Caller = match until(deadline, unanswered, || ecr.caller(region)).await {
        Ok(caller) => caller,
        Err(refusal) => {
            error!(error = %refusal, "no token was fetched; what was there stays");
            return questions.iter().map(|_| Err(refusal.clone())).collect();
        }
    };
    let mut tasks = JoinSet::new();
    for (number, question) in questions.iter().enumerate() {
        let (ecr, caller, source) = (Arc::clone(&ecr), caller.clone(), question.source.clone());
        let span = info_span!("fetch", source = %source);
        let names_its_registry = question.keys.is_empty();
        let task = async move {
            let unanswered = Refusal::Unavailable { said: "nothing came within --timeout".to_owned() };
            let attempt = || Box::pin(ask(&ecr, &source, names_its_registry, &caller));
            let token = until(deadline, unanswered, attempt).await;
            match &token {
                Ok(token) => tell_fetched(token),
                Err(refusal) => error!(error = %refusal, "no token was fetched; what was there stays"),
            }
            (number, token)
        };
        tasks.spawn(task.instrument(span));
    }
    let mut tokens: BTreeMap<usize, Result<Token, Refusal>> = BTreeMap::new();
    while let Some(Ok((number, token))) = tasks.join_next().await {
        tokens.insert(number, token);
    }
    let missing = || Refusal::Unavailable { said: "the call was given up".to_owned() };
    (0..questions.len()).map(|number| tokens.remove(&number).unwrap_or_else(|| Err(missing()))).collect()
}

/// Fetches one token. Where the question names no key, the answer must.
///
/// # Errors
/// When there is no token to use.
pub async fn ask(
    ecr: &Ecr,
    source: &TokenSource,
    names_its_registry: bool,
    caller: &Caller,
) -> Result<Token, Refusal> {
    let token = ecr.token(source, caller).await?;
    if names_its_registry && token.registry.is_none() {
        return Err(AnswerError::NoRegistry.into());
    }
    Ok(token)
}

/// Logs that there is a new token.
pub fn tell_fetched(token: &Token) {
    info!(expires_at = %token.expires_at, "fetched an authorization token");
}

/// What the targets should hold, by what is known of each question: a token, or that there is none.
pub fn wanted<'a>(
    answers: impl IntoIterator<Item = (&'a Question, Option<&'a Token>)>,
    now: Timestamp,
) -> Wanted {
    let mut wanted = Wanted { drop_others: true, ..Wanted::default() };
    for (question, token) in answers {
        let named = token.and_then(|token| token.registry.clone());
        let keys = if question.keys.is_empty() { named.into_iter().collect() } else { question.keys.clone() };
        // Nobody can say which of our entries this question was for, so none is given up.
        wanted.drop_others &= !keys.is_empty();
        for key in keys {
            match token {
                Some(token) => {
                    let entry = WantedEntry {
                        auth: token.authorization.for_auth_entry().clone(),
                        expires_at: token.expires_at,
                        fetched_at: token.fetched_at,
                        source: question.source.to_string(),
                    };
                    wanted.entries.insert(key, entry);
                }
                None if question.source.endpoint == Endpoint::Public => {
                    wanted.lapse.insert(key, now.saturating_add(LAPSE).unwrap_or(Timestamp::MAX));
                }
                None => wanted.keep.push(key),
            }
        }
    }
    wanted
}

/// Does something with each auth file, one after the other, off the runtime's only thread.
pub async fn on_each(
    auth_files: &[AuthFile],
    act: impl Fn(&AuthFile) -> Result<Outcome, AuthFileError> + Clone + Send + 'static,
) -> Vec<Published> {
    let mut published = Vec::new();
    for file in auth_files {
        let span = info_span!("target", path = %file.path.display());
        let (mine, act) = (file.clone(), act.clone());
        let result = match tokio::task::spawn_blocking(move || span.in_scope(|| tell(act(&mine)))).await {
            Ok(result) => result,
            // In a release a panic has ended the program already.
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => continue,
            },
        };
        published.push(Published { path: file.path.clone(), result });
    }
    published
}

fn tell(result: Result<Outcome, AuthFileError>) -> Result<Outcome, AuthFileError> {
    match &result {
        Ok(outcome) => {
            for note in &outcome.notes {
                warn!("{note}");
            }
            match &outcome.effect {
                Effect::Unchanged => debug!("already as it should be"),
                Effect::ModeRestored => {
                    warn!("its permission bits had been changed, and are as they were again");
                }
                Effect::Replaced(changes) => {
                    for key in &changes.taken_over {
                        let key = shown(key);
                        warn!(
                            key,
                            "an entry that was not marked as ours stood for our registry; it is ours from now on"
                        );
                    }
                    for (key, expires_at) in &changes.written {
                        info!(key, %expires_at, "published");
                    }
                    for key in &changes.removed {
                        info!(key = shown(key), "removed");
                    }
                }
                Effect::Deleted(_) => info!("deleted: it was ours, and nothing was left in it"),
            }
            match &outcome.link {
                None => {}
                Some(Link::Made) => info!("linked: it is in our directory now"),
                Some(Link::Undone { left }) if left.is_empty() => info!("the link is undone"),
                Some(Link::Undone { left }) => {
                    warn!(?left, "the link is undone; our directory stays, since something is left in it");
                }
            }
        }
        Err(failure) => error!(error = chain(failure), "not published"),
    }
    result
}

/// Tries until it works, until it cannot get better, or until the deadline. `last` is what to say if the first attempt
/// is not answered by then.
async fn until<T, F>(
    deadline: Instant,
    mut last: Refusal,
    mut attempt: impl FnMut() -> F,
) -> Result<T, Refusal>
where
    F: Future<Output = Result<T, Refusal>>,
{
    let mut failures = 0_u32;
    let mut throttled_since = None;
    loop {
        match timeout_at(deadline, attempt()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(refusal)) if !refusal.is_passing() => return Err(refusal),
            Ok(Err(refusal)) => last = refusal,
            // What an attempt before said tells more than that this one had no time left.
            Err(_) => return Err(last),
        }
        failures += 1;
        let now = Instant::now();
        let (remaining, random) = (deadline.duration_since(now), fastrand::f64());
        let delay = if matches!(last, Refusal::Throttled { .. }) {
            // Many nodes that start at once ask at once: they are served sooner if they do not insist.
            let first = *throttled_since.get_or_insert(now);
            throttled_delay_within(now.duration_since(first), remaining, random)
        } else {
            throttled_since = None;
            Some(retry_delay(failures, random)).filter(|delay| *delay < remaining)
        };
        let Some(delay) = delay else { return Err(last) };
        warn!(error = %last, failures, ?delay, "will try again");
        sleep(delay).await;
    }
}
