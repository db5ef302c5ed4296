//! `credential-provider`: answers one request of the kubelet.

use crate::credential_provider::decide::{self, Requester};
use crate::credential_provider::protocol::{Request, RequestError, Response};
use crate::docker_config::entry;
use crate::ecr::refusal::Refusal;
use crate::ecr::registry::TokenSource;
use crate::ecr::token::{Token, expiry};
use crate::report::exit::{ExitStatus, chain};
use crate::settings::Settings;
use crate::time::{clock, retry};
use crate::token::{TokenRequest, TokenStore, unanswered};
use secrecy::zeroize::Zeroizing;
use std::io::{self, Read as _, Write as _};
use tokio::time::Instant;

/// The longest request. A service account's token has about 1,200 bytes, and its annotations have 256 KiB at most.
const MAX_REQUEST: u64 = 1024 * 1024;

/// Why a request is not answered.
#[derive(Debug, thiserror::Error)]
enum ProviderError {
    #[error("cannot read the request from standard input")]
    Read(#[source] io::Error),
    #[error("the request is longer than 1 MiB")]
    TooLong,
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Role(#[from] decide::RoleError),
    #[error("no ECR token for {host} ({source_name}): {refusal}")]
    Refused { host: String, source_name: String, refusal: Refusal },
    #[error("the token of {0} cannot be decoded")]
    Token(String),
    #[error("cannot encode the response")]
    Encode(#[source] serde_json::Error),
    #[error("cannot write the response to standard output")]
    Write(#[source] io::Error),
}

/// Answers the request on standard input. The kubelet logs the line on standard error if the exit code is not zero.
pub(super) async fn run(settings: &Settings) -> ExitStatus {
    let Err(error) = respond(settings).await else { return ExitStatus::Done };
    // Not by the log, whose lines have a time and a level.
    writeln!(io::stderr(), "{}", chain(&error)).ok();
    match error {
        ProviderError::Refused { refusal, .. } if refusal.is_about_the_caller() => ExitStatus::NoCredentials,
        ProviderError::Refused { .. } => ExitStatus::Ecr,
        _ => ExitStatus::Unexpected,
    }
}

async fn respond(settings: &Settings) -> Result<(), ProviderError> {
    let request = Request::read(&read_input()?)?;
    let response = answer(&request, settings).await?;
    let line = response.to_line().map_err(ProviderError::Encode)?;
    let mut out = io::stdout().lock();
    out.write_all(line.as_bytes()).and_then(|()| out.flush()).map_err(ProviderError::Write)
}

fn read_input() -> Result<Zeroizing<Vec<u8>>, ProviderError> {
    let mut text = Zeroizing::new(Vec::new());
    io::stdin().lock().take(MAX_REQUEST + 1).read_to_end(&mut text).map_err(ProviderError::Read)?;
    if text.len() as u64 > MAX_REQUEST { Err(ProviderError::TooLong) } else { Ok(text) }
}

async fn answer(request: &Request, settings: &Settings) -> Result<Response, ProviderError> {
    let Some(registry) = decide::registry(&request.host, &settings.registries) else {
        return Ok(request.decline());
    };
    let store = TokenStore::new(settings);
    let role_variable = settings.identity.environment.get(decide::ROLE_VARIABLE);
    let (source, token) = match decide::requester(request, role_variable)? {
        Requester::Node => {
            let source = registry.source(settings.role.as_ref());
            let token = node_token(&store, &source, &request.host).await;
            (source, token)
        }
        // The role is the pod's, and never one that the node may assume.
        Requester::ServiceAccount { role, token } => {
            let source = TokenSource { role: None, ..registry.source(None) };
            let fetch = || store.fetch_for_web_identity(&source, &role, &token);
            let token = until(&source, false, fetch).await;
            (TokenSource { role: Some(role), ..source }, token)
        }
    };
    let token = token.map_err(|refusal| ProviderError::Refused {
        host: request.host.clone(),
        source_name: source.to_string(),
        refusal,
    })?;
    let credentials = entry::decode_auth(token.authorization.for_auth_entry())
        .map_err(|_| ProviderError::Token(source.to_string()))?;
    let left = token.expires_at.duration_since(clock::now());
    Ok(request.answer(credentials.username, credentials.password, decide::cache_duration(left)))
}

/// A token that an auth file holds, or else a new one. If ECR gives none, a token that has nearly expired.
async fn node_token(store: &TokenStore, source: &TokenSource, host: &str) -> Result<Token, Refusal> {
    let now = clock::now();
    // An expiry beyond a token's life is not believed.
    let is_believed = |token: &Token| expiry(token.expires_at, now).is_ok_and(|expiry| !expiry.is_shortened);
    let remembered = store.remembered_of(source, now).await.filter(is_believed);
    if let Some(token) = &remembered
        && !decide::is_nearly_expired(token.expires_at.duration_since(now))
    {
        return Ok(token.clone());
    }
    let request = TokenRequest { source: source.clone(), keys: vec![host.to_owned()] };
    let fetched = until(source, remembered.is_some(), || store.fetch(&request)).await;
    match (fetched, remembered) {
        (Err(_), Some(token)) if clock::now() < token.expires_at => Ok(token),
        (fetched, _) => fetched,
    }
}

/// Asks until there is a token, or the kubelet would not wait any longer.
async fn until<F>(source: &TokenSource, has_other: bool, attempt: impl FnMut() -> F) -> Result<Token, Refusal>
where
    F: Future<Output = Result<Token, Refusal>>,
{
    let patience = decide::patience(source, has_other);
    let deadline = Instant::now() + patience;
    retry::until(deadline, unanswered("ECR gave no token", patience), Refusal::retry, |_| {}, attempt).await
}
