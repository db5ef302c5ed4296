//! The token store: tokens that the auth files remember, and new ones from ECR.

use super::request::TokenRequest;
use crate::auth_file::AuthFile;
use crate::docker_config::ledger::{Ledger, Record};
use crate::docker_config::parse::{self, Parsed};
use crate::ecr::client::{Caller, Ecr, Identity};
use crate::ecr::http::proxy::ProxyError;
use crate::ecr::refusal::{AnswerError, Refusal};
use crate::ecr::registry::{Endpoint, Registry, RoleArn, TokenSource};
use crate::ecr::token::{AuthorizationToken, Token};
use crate::settings::Settings;
use crate::time::schedule::Life;
use jiff::Timestamp;
use secrecy::SecretString;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

/// How long one attempt may take: to find credentials (25 s at most), to assume a role, to fetch.
const ATTEMPT: Duration = Duration::from_secs(40);
/// How long to wait for an auth file to be read. Its file system may hang, and ECR can be asked instead.
const READ: Duration = Duration::from_secs(5);

/// Where tokens come from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TokenStore {
    identity: Identity,
    registries: Vec<Registry>,
    role: Option<RoleArn>,
    auth_files: Vec<AuthFile>,
}

impl TokenStore {
    /// The store for these settings.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Self {
            identity: settings.identity.clone(),
            registries: settings.registries.clone(),
            role: settings.role.clone(),
            auth_files: settings.auth_files.clone(),
        }
    }

    /// The requests for the registries that the user named, which are known without asking; empty if none is named.
    #[must_use]
    pub fn named_requests(&self) -> Vec<TokenRequest> {
        TokenRequest::for_registries(&self.registries, self.role.as_ref())
    }

    /// A client for ECR. Certificates and credentials are read anew with each client, so that renewed ones count.
    ///
    /// # Errors
    /// When a variable names a proxy that is none.
    pub fn connect(&self) -> Result<Ecr, Refusal> {
        let failed = |error: ProxyError| Refusal::Settings { reason: error.to_string() };
        Ecr::new(self.identity.clone()).map_err(failed)
    }

    /// One request for each token source. Asks the metadata service for the region where no setting names one.
    ///
    /// # Errors
    /// When there is no region.
    pub async fn requests(&self, ecr: &Ecr) -> Result<Vec<TokenRequest>, Refusal> {
        if !self.registries.is_empty() {
            return Ok(self.named_requests());
        }
        let region = match ecr.default_region().await {
            Ok(region) => region,
            // Where the region is missing, credentials often are too, and then the operator needs to know both.
            Err(refusal @ Refusal::NoRegion { .. }) => {
                let until = Instant::now() + ATTEMPT;
                return Err(refusal.and_credentials(ecr.caller(None, until).await.err()));
            }
            Err(refusal) => return Err(refusal),
        };
        let source = TokenSource { region, endpoint: Endpoint::STANDARD, role: self.role.clone() };
        Ok(vec![TokenRequest { source, keys: Vec::new() }])
    }

    /// All requests, each with the token that an auth file remembers for it. One attempt.
    ///
    /// # Errors
    /// When there is no region.
    pub async fn resume(&self, now: Timestamp) -> Result<Vec<(TokenRequest, Option<Token>)>, Refusal> {
        let requests = async { self.requests(&self.connect()?).await };
        let requests = timeout(ATTEMPT, Box::pin(requests)).await;
        let requests =
            requests.unwrap_or_else(|_| Err(unanswered("the region was not found out", ATTEMPT)))?;
        let mut resumed = Vec::new();
        for request in requests {
            let token = self.remembered(&request, now).await;
            resumed.push((request, token));
        }
        Ok(resumed)
    }

    /// The token for a request that an auth file holds: an entry of ours, from the same source, that is good at `now`. Of
    /// several files' tokens the one that expires last.
    pub async fn remembered(&self, request: &TokenRequest, now: Timestamp) -> Option<Token> {
        let request = request.clone();
        self.best_of_files(move |parsed, ledger| remembered_in(parsed, ledger, &request, now)).await
    }

    /// The token of a source that an auth file holds under any key: an entry of ours that is good at `now`. Of several tokens the
    /// one that expires last.
    pub async fn remembered_of(&self, source: &TokenSource, now: Timestamp) -> Option<Token> {
        let source = source.clone();
        let of_source = move |parsed: &Parsed<'_>, ledger: &Ledger| {
            let good = ledger.entries.iter().filter(|(_, record)| is_good(record, &source, now));
            good.filter_map(|(key, record)| token(parsed, key, record)).max_by_key(|token| token.expires_at)
        };
        self.best_of_files(of_source).await
    }

    /// The token that expires last of those that `find` finds in the auth files.
    async fn best_of_files(
        &self,
        find: impl Fn(&Parsed<'_>, &Ledger) -> Option<Token> + Clone + Send + 'static,
    ) -> Option<Token> {
        let mut reads = JoinSet::new();
        for file in self.auth_files.clone() {
            let find = find.clone();
            reads.spawn_blocking(move || {
                let bytes = file.read().ok().flatten()?;
                let parsed = parse::parse(&bytes).ok()?;
                find(&parsed, parsed.document.ledger()?)
            });
        }
        let late = Instant::now() + READ;
        let mut best: Option<Token> = None;
        // A file that cannot be read in time is left out.
        while let Ok(Some(read)) = timeout_at(late, reads.join_next()).await {
            let token = read.ok().flatten();
            best = best.into_iter().chain(token).max_by_key(|token| token.expires_at);
        }
        best
    }

    /// Fetches a token. One attempt, of 40 s at most.
    ///
    /// # Errors
    /// When there is no token to use.
    pub async fn fetch(&self, request: &TokenRequest) -> Result<Token, Refusal> {
        let attempt = async {
            let ecr = self.connect()?;
            let until = Instant::now() + ATTEMPT;
            let caller = ecr.caller(Some(&request.source.region), until).await?;
            fetch_as(&ecr, request, &caller).await
        };
        let source = &request.source;
        let late = |_| Err(unanswered(&format!("ECR gave no token for {source}"), ATTEMPT));
        timeout(ATTEMPT, Box::pin(attempt)).await.unwrap_or_else(late)
    }

    /// Fetches a token as the role that a web identity token opens, without any credentials of the node. One attempt, of 40 s at
    /// most. The token is not stored.
    ///
    /// # Errors
    /// When there is no token to use.
    pub async fn fetch_for_web_identity(
        &self,
        source: &TokenSource,
        role: &RoleArn,
        web_identity: &SecretString,
    ) -> Result<Token, Refusal> {
        let attempt = async { self.connect()?.token_for_web_identity(source, role, web_identity).await };
        let late = |_| Err(unanswered(&format!("there was no token for {role}"), ATTEMPT));
        timeout(ATTEMPT, Box::pin(attempt)).await.unwrap_or_else(late)
    }
}

/// Fetches a token as a caller whose credentials are known. Where no registry was asked for, the answer must name one.
///
/// # Errors
/// When there is no token to use.
pub async fn fetch_as(ecr: &Ecr, request: &TokenRequest, caller: &Caller) -> Result<Token, Refusal> {
    let token = ecr.token(&request.source, caller).await?;
    if request.keys.is_empty() && token.registry.is_none() {
        return Err(AnswerError::NoRegistry.into());
    }
    Ok(token)
}

/// An attempt took too long: what did not happen within the limit.
#[must_use]
pub fn unanswered(what: &str, limit: Duration) -> Refusal {
    Refusal::Unavailable { reason: format!("{what} within {} s", limit.as_secs()) }
}

fn remembered_in(
    parsed: &Parsed<'_>,
    ledger: &Ledger,
    request: &TokenRequest,
    now: Timestamp,
) -> Option<Token> {
    let token = |key: &String| {
        let record = ledger.entries.get(key)?;
        token(parsed, key, record).filter(|_| is_good(record, &request.source, now))
    };
    if request.keys.is_empty() {
        return default_entry(ledger, request).and_then(token);
    }
    // All of them, and all the same token: otherwise it is fetched anew for all.
    let mut tokens = request.keys.iter().map(token);
    let first = tokens.next()??;
    let is_same =
        |token: Option<Token>| token.is_some_and(|token| token.authorization.is_same(&first.authorization));
    tokens.all(is_same).then_some(first)
}

fn is_good(record: &Record, source: &TokenSource, now: Timestamp) -> bool {
    let life = Life { fetched_at: record.fetched_at, expires_at: record.expires_at };
    record.source == source.to_string() && life.is_good(now) && record.is_believable(now)
}

/// The entry that was written when no registry was asked for. There is one at most; entries of registries that were asked
/// for say nothing of which registry ECR would name.
fn default_entry<'a>(ledger: &'a Ledger, request: &TokenRequest) -> Option<&'a String> {
    let source = request.source.to_string();
    let mut entries =
        ledger.entries.iter().filter(|(_, record)| record.default_registry && record.source == source);
    let (key, _) = entries.next()?;
    entries.next().is_none().then_some(key)
}

/// The token in an entry that is still as we wrote it.
fn token(parsed: &Parsed<'_>, key: &str, record: &Record) -> Option<Token> {
    parsed.document.digest(key).filter(|digest| *digest == record.digest)?;
    Some(Token {
        authorization: AuthorizationToken::new(parsed.document.plain_auth(key)?).ok()?,
        expires_at: record.expires_at,
        fetched_at: record.fetched_at,
        registry: Some(key.to_owned()),
    })
}
