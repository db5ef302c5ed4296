//! What is asked of which token source, and what the targets should hold.
//!
//! Pure.

use crate::docker_config::merge::{Wanted, WantedEntry};
use crate::ecr::registry::{Endpoint, Registry, RoleArn, TokenSource};
use crate::ecr::token::Token;
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;

/// How long before its expiry an entry is taken out, if its registry also serves anonymously and no new token comes: twice
/// as long as the kubelet caches the file.
pub const LAPSE: SignedDuration = SignedDuration::from_mins(10);

/// A token source to ask, and the registries that its token is for.
#[derive(Debug, Clone)]
pub struct TokenRequest {
    /// The region, kind of endpoint and role.
    pub source: TokenSource,
    /// The registries' keys under `auths`. Empty if no registry was asked for: then the answer names one.
    pub keys: Vec<String>,
}

impl TokenRequest {
    /// One request for each token source of these registries.
    #[must_use]
    pub fn for_registries(registries: &[Registry], role: Option<&RoleArn>) -> Vec<Self> {
        let mut keys: BTreeMap<TokenSource, Vec<String>> = BTreeMap::new();
        for registry in registries {
            keys.entry(registry.source(role)).or_default().push(registry.key().to_owned());
        }
        keys.into_iter().map(|(source, keys)| Self { source, keys }).collect()
    }

    /// The keys that `token` is written under: those that were asked for, or else the registry that the token names.
    #[must_use]
    pub fn keys(&self, token: Option<&Token>) -> Vec<String> {
        if self.keys.is_empty() {
            token.and_then(|token| token.registry.clone()).into_iter().collect()
        } else {
            self.keys.clone()
        }
    }
}

/// What the targets should hold: for each request its token, or `None` if there is none.
pub fn wanted<'a>(
    requests: impl IntoIterator<Item = (&'a TokenRequest, Option<&'a Token>)>,
    now: Timestamp,
) -> Wanted {
    let mut wanted = Wanted { drop_others: true, ..Wanted::default() };
    for (request, token) in requests {
        let keys = request.keys(token);
        // Without keys it is unknown which of our entries this request is for, so all of them stay.
        wanted.drop_others &= !keys.is_empty();
        for key in keys {
            match token {
                Some(token) => {
                    let entry = WantedEntry {
                        auth: token.authorization.for_auth_entry().clone(),
                        expires_at: token.expires_at,
                        fetched_at: token.fetched_at,
                        source: request.source.to_string(),
                        default_registry: request.keys.is_empty(),
                    };
                    wanted.entries.insert(key, entry);
                }
                None if request.source.endpoint == Endpoint::Public => {
                    wanted.lapse.insert(key, now.saturating_add(LAPSE).unwrap_or(Timestamp::MAX));
                }
                None => wanted.keep.push(key),
            }
        }
    }
    wanted
}
