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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ecr::token::AuthorizationToken;
    use secrecy::{ExposeSecret as _, SecretString};

    const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    const SAME_SOURCE: &str = "210987654321.dkr.ecr.eu-west-1.amazonaws.com";
    const PUBLIC: &str = "public.ecr.aws";

    fn now() -> Timestamp {
        "2026-11-23T10:00:00Z".parse().unwrap()
    }

    fn token(registry: Option<&str>) -> Token {
        Token {
            authorization: AuthorizationToken::new(SecretString::from("QVdTOnNlY3JldA==")).unwrap(),
            expires_at: now() + SignedDuration::from_hours(12),
            fetched_at: now(),
            registry: registry.map(str::to_owned),
        }
    }

    fn requests(hosts: &[&str]) -> Vec<TokenRequest> {
        let registries: Vec<Registry> = hosts.iter().map(|host| host.parse().unwrap()).collect();
        TokenRequest::for_registries(&registries, None)
    }

    #[test]
    fn one_token_serves_all_registries_of_its_source() {
        let role = "arn:aws:iam::123456789012:role/pull";
        let with_role = format!("{HOST},role={role}");
        let found = requests(&[HOST, PUBLIC, SAME_SOURCE, &with_role]);
        let found: Vec<_> = found.iter().map(|it| (it.source.to_string(), it.keys.clone())).collect();
        let expected = [
            ("eu-west-1".to_owned(), vec![HOST.to_owned(), SAME_SOURCE.to_owned()]),
            (format!("eu-west-1 as {role}"), vec![HOST.to_owned()]),
            ("us-east-1 public".to_owned(), vec![PUBLIC.to_owned()]),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn each_registry_gets_the_token_of_its_source_or_keeps_its_entry() {
        let [private, public] = requests(&[HOST, PUBLIC]).try_into().unwrap();
        let token = token(None);
        let found = wanted([(&private, Some(&token)), (&public, None)], now());
        let [(key, entry)] = found.entries.into_iter().collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(key, HOST);
        assert_eq!(entry.auth.expose_secret(), "QVdTOnNlY3JldA==");
        assert_eq!((entry.expires_at, entry.fetched_at), (token.expires_at, token.fetched_at));
        assert_eq!((entry.source.as_str(), entry.default_registry), ("eu-west-1", false));
        // The public gallery serves anonymously too, so its entry is removed before it expires.
        assert_eq!(found.lapse, BTreeMap::from([(PUBLIC.to_owned(), now() + LAPSE)]));
        assert_eq!(found.keep, [""; 0]);
        assert!(found.drop_others);

        let found = wanted([(&private, None), (&public, Some(&token))], now());
        assert_eq!(found.entries.into_keys().collect::<Vec<_>>(), [PUBLIC]);
        assert_eq!(found.keep, [HOST]);
        assert!(found.lapse.is_empty() && found.drop_others);
    }

    #[test]
    fn without_a_configured_registry_the_token_names_it_and_without_a_token_every_entry_stays() {
        let mut request = requests(&[HOST]).remove(0);
        request.keys.clear();
        let found = wanted([(&request, Some(&token(Some(HOST))))], now());
        assert!(found.entries[HOST].default_registry && found.drop_others);
        let found = wanted([(&request, None)], now());
        assert!(found.entries.is_empty() && found.keep.is_empty() && !found.drop_others);
        // One such request is enough.
        let other = requests(&[SAME_SOURCE]).remove(0);
        let both = [(&request, None), (&other, None)];
        assert!(!wanted(both, now()).drop_others && !wanted(both.into_iter().rev(), now()).drop_others);
    }
}
