//! `--once`: one round. Fetches a token from each source, and publishes them to every target.
//!
//! What fails does not keep the rest from being served.

use crate::auth_file::publish::on_each;
use crate::auth_file::{AuthFile, Memory, PublishOptions};
use crate::ecr::client::Ecr;
use crate::ecr::refusal::Refusal;
use crate::ecr::token::Token;
use crate::pull_secret;
use crate::report::exit::{ExitStatus, failed};
use crate::report::metrics::Reason;
use crate::round::{Fetched, Round, log_fetched};
use crate::settings::Settings;
use crate::time::clock;
use crate::time::retry::{self, Failed};
use crate::token::{TokenRequest, TokenStore, fetch_as, wanted};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::warn;

/// A timeout beyond this is the same as none, and a clock still holds the deadline.
const FOREVER: Duration = Duration::from_hours(24 * 365);
/// What the files are given at least, even where ECR has used up the timeout.
const FILES: Duration = Duration::from_secs(15);

/// Runs one round to its end.
pub(super) async fn run(settings: &Settings) -> ExitStatus {
    let ecr = match Ecr::new(settings.identity.clone()) {
        Ok(ecr) => ecr,
        Err(error) => return failed(&error, ExitStatus::Usage),
    };
    if let Err(error) = ecr.check().await {
        return failed(&error, ExitStatus::Usage);
    }
    super::finished(&refresh(settings, Arc::new(ecr)).await, settings.dry_run)
}

/// One round. What may succeed later is tried again until `settings.timeout` is over.
async fn refresh(settings: &Settings, ecr: Arc<Ecr>) -> Round {
    let deadline = Instant::now() + settings.timeout.min(FOREVER);
    let mut round = Round::default();
    let store = TokenStore::new(settings);
    let unanswered =
        Refusal::NoRegion { reason: "nothing answered within --timeout".to_owned(), passing: true };
    let requests = match until(deadline, unanswered, || store.requests(&ecr)).await {
        Ok(requests) => requests,
        Err(refusal) => {
            round.fetched.push(logged(Fetched::new(None, Reason::Start, Err(refusal), Duration::ZERO)));
            return round;
        }
    };
    let tokens = fetch(&requests, ecr, deadline).await;
    let results = requests.iter().zip(&tokens).map(|(request, (token, _))| (request, token.as_ref()));
    let wanted = wanted(results, clock::now());
    round.fetched = tokens.into_iter().map(|(_, fetched)| fetched).collect();
    // Without anything to write or to take out, no target has to be opened.
    if wanted.entries.is_empty() && wanted.lapse.is_empty() {
        return round;
    }
    let options = PublishOptions { now: clock::now(), dry_run: settings.dry_run, explicit: true };
    let wanted = Arc::new(wanted);
    let for_files = Arc::clone(&wanted);
    let publish = move |file: &AuthFile, memory: &mut Memory| file.publish(&for_files, options, memory);
    let files_deadline = deadline.max(Instant::now() + FILES);
    round.published = on_each(&settings.auth_files, files_deadline, publish).await;
    super::log_files(&round, settings.dry_run);
    // Last of all: a node's own file does not wait for the API server.
    if !settings.pull_secrets.is_empty() {
        let publishing = pull_secret::once(&settings.pull_secrets, &wanted, deadline, settings.dry_run);
        round.secrets = Box::pin(publishing).await;
    }
    round
}

/// One result for each request, in their order. Sources are asked side by side, so that none waits for another.
async fn fetch(requests: &[TokenRequest], ecr: Arc<Ecr>, deadline: Instant) -> Vec<(Option<Token>, Fetched)> {
    let region = requests.first().map(|request| &request.source.region);
    let unanswered = Refusal::NoCredentials {
        reason: "no credential source was asked within --timeout".to_owned(),
        passing: true,
    };
    let caller = match until(deadline, unanswered, || ecr.caller(region, deadline)).await {
        Ok(caller) => caller,
        Err(refusal) => {
            let fetched = |request: &TokenRequest| {
                let source = Some(request.source.clone());
                (None, Fetched::new(source, Reason::Start, Err(refusal.clone()), Duration::ZERO))
            };
            let fetched: Vec<_> = requests.iter().map(fetched).collect();
            // All of them failed for the same reason.
            fetched.iter().take(1).for_each(|(_, fetched)| log_fetched(fetched));
            return fetched;
        }
    };
    let mut tasks = JoinSet::new();
    for (number, request) in requests.iter().cloned().enumerate() {
        let (ecr, caller) = (Arc::clone(&ecr), caller.clone());
        tasks.spawn(async move {
            let start = Instant::now();
            let reason = format!("ECR gave no token for {} within --timeout", request.source);
            let unanswered = Refusal::Unavailable { reason };
            let attempt = || Box::pin(fetch_as(&ecr, &request, &caller));
            let token = until(deadline, unanswered, attempt).await;
            let result = token.as_ref().map(|token| token.expires_at).map_err(Clone::clone);
            let fetched = Fetched::new(Some(request.source), Reason::Start, result, start.elapsed());
            (number, token.ok(), logged(fetched))
        });
    }
    let mut results = tasks.join_all().await;
    results.sort_by_key(|(number, ..)| *number);
    results.into_iter().map(|(_, token, fetched)| (token, fetched)).collect()
}

fn logged(fetched: Fetched) -> Fetched {
    log_fetched(&fetched);
    fetched
}

/// Makes attempts until one succeeds, one fails for good, or the deadline has come.
async fn until<T, F>(deadline: Instant, unanswered: Refusal, attempt: impl FnMut() -> F) -> Result<T, Refusal>
where
    F: Future<Output = Result<T, Refusal>>,
{
    let log = |failed: Failed<'_, Refusal>| {
        warn!(error = %failed.error, failures = failed.failures, retry_in = ?failed.delay, "will try again");
    };
    retry::until(deadline, unanswered, Refusal::retry, log, attempt).await
}
