//! One round: fetch a token for each source, publish them to every target. `remove` is a round without tokens.
//!
//! What fails does not keep the rest from being served; [`Round`] says what became of each part, and all that an
//! operator sees is a function of it.

use crate::auth_file::publish::{Published, on_each};
use crate::auth_file::{AuthFile, PublishOptions};
use crate::ecr::client::{Caller, Ecr};
use crate::ecr::refusal::Refusal;
use crate::ecr::registry::{Region, TokenSource};
use crate::ecr::token::Token;
use crate::pull_secret::names::PullSecrets;
use crate::pull_secret::{self, SecretDone};
use crate::report::exit::ExitStatus;
use crate::settings::Settings;
use crate::time::clock;
use crate::time::retry::{self, Failed};
use crate::token::{TokenRequest, ask, questions, tell_fetched, wanted};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{Instrument as _, error, info_span, warn};

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

impl Round {
    /// How `--once` and `remove` end: the cause nearest to the node wins, since a node whose file cannot be written is
    /// helped by no token.
    #[must_use]
    pub fn ending(&self) -> ExitStatus {
        let refusals = || self.fetched.iter().filter_map(|fetched| fetched.result.as_ref().err());
        if self.published.iter().any(|published| published.result.is_err()) {
            ExitStatus::AuthFile
        } else if refusals().any(Refusal::is_about_the_caller) {
            ExitStatus::NoCredentials
        } else if refusals().next().is_some() {
            ExitStatus::Ecr
        } else if self.secrets.iter().any(|secret| secret.result.is_err()) {
            ExitStatus::PullSecret
        } else {
            ExitStatus::Done
        }
    }
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
        let manner = PublishOptions { now: clock::now(), dry_run: settings.dry_run, mode: None };
        let wanted = Arc::new(wanted);
        let for_files = Arc::clone(&wanted);
        let publish = move |file: &AuthFile| file.publish(&for_files, manner);
        round.published = on_each(&settings.auth_files, publish).await;
        // Last of all: a node's own file does not wait for the API server.
        if !settings.pull_secrets.is_empty() {
            let publishing = pull_secret::once(&settings.pull_secrets, &wanted, deadline, settings.dry_run);
            round.secrets = Box::pin(publishing).await;
        }
    }
    round
}

/// Takes everything of ours out of the auth files, undoes their links, and deletes the pull secrets that are named.
pub async fn remove(auth_files: &[AuthFile], secrets: &PullSecrets, dry_run: bool) -> Round {
    let now = clock::now();
    let published = on_each(auth_files, move |file| file.uninstall(now, dry_run)).await;
    let secrets = if secrets.is_empty() { Vec::new() } else { pull_secret::remove(secrets, dry_run).await };
    Round { fetched: Vec::new(), published, secrets }
}

/// Moves the auth files into directories of ours and leaves links, or undoes that.
pub async fn link(auth_files: &[AuthFile], undo: bool, dry_run: bool) -> Round {
    let now = clock::now();
    let act = move |file: &AuthFile| if undo { file.unlink(dry_run) } else { file.link(now, dry_run) };
    Round { published: on_each(auth_files, act).await, ..Round::default() }
}

/// One answer for each question, in their order. Sources are asked side by side, so that none waits for another.
async fn fetch(questions: &[TokenRequest], ecr: Arc<Ecr>, deadline: Instant) -> Vec<Result<Token, Refusal>> {
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

/// Makes attempts until one succeeds, one fails for good, or the deadline has come.
async fn until<T, F>(deadline: Instant, unanswered: Refusal, attempt: impl FnMut() -> F) -> Result<T, Refusal>
where
    F: Future<Output = Result<T, Refusal>>,
{
    let log = |failed: Failed<'_, Refusal>| {
        warn!(error = %failed.error, failures = failed.failures, delay = ?failed.delay, "will try again");
    };
    retry::until(deadline, unanswered, Refusal::retry, log, attempt).await
}
