//! Tokens: which token sources are asked for what, and what the targets should hold.

use crate::docker_config::merge::{Wanted, WantedEntry};
use crate::ecr::client::{Caller, Ecr};
use crate::ecr::refusal::{AnswerError, Refusal};
use crate::ecr::registry::{Endpoint, TokenSource};
use crate::ecr::token::Token;
use crate::settings::Settings;
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use tracing::info;

/// An entry for a registry that also serves anonymously goes this long before its end: twice as long as the kubelet
/// may go on using what it has read.
pub const LAPSE: SignedDuration = SignedDuration::from_mins(10);

/// A source to ask, and the keys that its token is for. No keys: the one that the answer names.
#[derive(Debug, Clone)]
pub struct TokenRequest {
    /// Whom to ask, and as whom.
    pub source: TokenSource,
    /// The keys under `auths`.
    pub keys: Vec<String>,
}

/// Whom to ask for what. Asks for the region, where it is not given.
///
/// # Errors
/// When there is no region.
pub async fn questions(settings: &Settings, ecr: &Ecr) -> Result<Vec<TokenRequest>, Refusal> {
    if settings.registries.is_empty() {
        let region = match ecr.default_region().await {
            Ok(region) => region,
            Err(refusal) => return Err(without_region(refusal, ecr).await),
        };
        let source = TokenSource { region, endpoint: Endpoint::STANDARD, role: settings.role.clone() };
        return Ok(vec![TokenRequest { source, keys: Vec::new() }]);
    }
    let mut keys: BTreeMap<TokenSource, Vec<String>> = BTreeMap::new();
    for registry in &settings.registries {
        keys.entry(registry.source(settings.role.as_ref())).or_default().push(registry.key().to_owned());
    }
    Ok(keys.into_iter().map(|(source, keys)| TokenRequest { source, keys }).collect())
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
    answers: impl IntoIterator<Item = (&'a TokenRequest, Option<&'a Token>)>,
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
