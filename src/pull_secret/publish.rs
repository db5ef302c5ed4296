//! Pull secrets: Secrets that hold what the auth file holds, for pods that name them.
//!
//! A secret is created once and then changed in place, so that there is no moment without it and a kubelet that
//! remembers it by its UID goes on knowing it. Nothing here deletes one but [`remove`].

use super::api::{ApiError, Cluster};
use super::names::{Name, Namespace, SecretRef};
use super::reconcile::{Expirations, Ownership, Plan, Seen, Unfit, WriteReason};
use crate::docker_config::merge::Wanted;
use crate::time::retry::Retry;
use jiff::Timestamp;
use std::collections::BTreeSet;

/// How often a change is tried where others are faster.
const TRIES: usize = 5;

/// How to publish.
#[derive(Debug, Clone, Copy)]
pub struct PublishOptions {
    /// The time.
    pub now: Timestamp,
    /// Who else writes the same secrets.
    pub among: Ownership,
    /// Change nothing; the server says whether it would.
    pub dry_run: bool,
}

/// What became of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// What was done.
    pub effect: Effect,
    /// Until when its tokens are good.
    pub ends: Expirations,
    /// The version that it has now, where there is one.
    pub resource_version: Option<String>,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: it is good as it is, or not there to be deleted.
    Unchanged,
    /// It was not deleted: what it holds was set by somebody else.
    NotOurs,
    /// Nothing yet: it was repaired a short while ago.
    PutOff,
    /// Nothing: somebody else was faster, and will have done it.
    Overtaken,
    /// It was written.
    Written(WriteReason),
    /// It was deleted.
    Deleted,
}

/// Why a pull secret is not as it should be.
#[derive(Debug, Clone, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum PullSecretError {
    #[error("secret {secret} {why}: {}", remedy(secret))]
    Unfit { secret: SecretRef, why: Unfit },
    #[error("secret {secret} was not written")]
    Api {
        secret: SecretRef,
        #[source]
        source: ApiError,
    },
    #[error("service account {namespace}/{name} was not patched")]
    ServiceAccount {
        namespace: Namespace,
        name: Name,
        #[source]
        source: ApiError,
    },
    #[error("the namespaces are not known")]
    Namespaces(#[source] ApiError),
}

fn remedy(secret: &SecretRef) -> String {
    let SecretRef { namespace, name } = secret;
    format!(
        "delete it (kubectl delete secret {name} -n {namespace}), and it is created anew, or choose another name"
    )
}

impl PullSecretError {
    /// What this says about the next attempt.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self.api().and_then(ApiError::retry_after) {
            Some(pause) => Retry::After(pause),
            None if self.is_passing() => Retry::Later,
            None => Retry::Useless,
        }
    }

    /// Whether it may get better by itself.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        self.api().is_some_and(ApiError::is_passing)
    }

    /// What the API server said, where it was that.
    #[must_use]
    pub fn api(&self) -> Option<&ApiError> {
        match self {
            Self::Unfit { .. } => None,
            Self::Api { source, .. } | Self::ServiceAccount { source, .. } | Self::Namespaces(source) => {
                Some(source)
            }
        }
    }
}

/// Publishes to one secret.
///
/// # Errors
/// When the secret is not as it should be.
pub async fn publish(
    cluster: &Cluster,
    secret: &SecretRef,
    wanted: &Wanted,
    manner: PublishOptions,
) -> Result<Published, PullSecretError> {
    let failed = |source| PullSecretError::Api { secret: secret.clone(), source };
    let mut tries = 0;
    loop {
        let seen = cluster.secret(secret).await.map_err(failed)?;
        let plan = super::reconcile::plan(seen.as_ref(), wanted, manner.among, manner.now)
            .map_err(|why| PullSecretError::Unfit { secret: secret.clone(), why })?;
        let version = |seen: Option<&Seen>| seen.map(|seen| seen.resource_version.clone());
        let (content, because) = match plan {
            Plan::Keep(ends) => {
                let resource_version = version(seen.as_ref());
                return Ok(Published { effect: Effect::Unchanged, ends, resource_version });
            }
            Plan::PutOff => {
                let resource_version = version(seen.as_ref());
                return Ok(Published { effect: Effect::PutOff, ends: Expirations::new(), resource_version });
            }
            Plan::Write(content, because) => (content, because),
        };
        let written = match &seen {
            Some(before) => cluster.apply(secret, before, &content, manner.dry_run).await,
            None => cluster.create(secret, &content, manner.dry_run).await,
        };
        match written {
            Ok(after) => {
                return Ok(Published {
                    effect: Effect::Written(because),
                    ends: content.ends,
                    resource_version: version(Some(&after)),
                });
            }
            // It was another agent, most likely. Were it not, a later look will tell.
            Err(ApiError::Conflict) if manner.among == Ownership::Many => {
                return Ok(Published {
                    effect: Effect::Overtaken,
                    ends: Expirations::new(),
                    resource_version: None,
                });
            }
            Err(ApiError::Conflict) if tries < TRIES => tries += 1,
            Err(error) => return Err(failed(error)),
        }
    }
}

/// Adds the secrets' names to a service account's pull secrets, behind those that are there. Says which it added; a
/// service account that is not there gets none.
///
/// # Errors
/// When the service account is not as it should be.
pub async fn patch_service_account(
    cluster: &Cluster,
    namespace: &Namespace,
    name: &Name,
    secrets: &BTreeSet<Name>,
    dry_run: bool,
) -> Result<Vec<Name>, PullSecretError> {
    let failed =
        |source| PullSecretError::ServiceAccount { namespace: namespace.clone(), name: name.clone(), source };
    let mut tries = 0;
    loop {
        let Some(seen) = cluster.service_account(namespace, name).await.map_err(failed)? else {
            return Ok(Vec::new());
        };
        let there = seen.pull_secrets.as_deref().unwrap_or_default();
        let more: Vec<&Name> =
            secrets.iter().filter(|secret| !there.iter().any(|name| name == secret.as_str())).collect();
        if more.is_empty() {
            return Ok(Vec::new());
        }
        match cluster.add_pull_secrets(namespace, name, &seen, &more, dry_run).await {
            Ok(()) => return Ok(more.into_iter().cloned().collect()),
            Err(ApiError::Conflict) if tries < TRIES => tries += 1,
            Err(error) => return Err(failed(error)),
        }
    }
}

/// Deletes a secret, where our field manager has set what it holds. Says whether there was anything to delete.
///
/// # Errors
/// When that cannot be known or done.
pub async fn remove(
    cluster: &Cluster,
    secret: &SecretRef,
    dry_run: bool,
) -> Result<Published, PullSecretError> {
    let failed = |source| PullSecretError::Api { secret: secret.clone(), source };
    let mut tries = 0;
    loop {
        let seen = cluster.secret(secret).await.map_err(failed)?;
        let left = |effect| Published { effect, ends: Expirations::new(), resource_version: None };
        let Some(seen) = seen else { return Ok(left(Effect::Unchanged)) };
        if !seen.ours {
            return Ok(left(Effect::NotOurs));
        }
        match cluster.delete(secret, &seen, dry_run).await {
            Ok(()) => return Ok(left(Effect::Deleted)),
            Err(ApiError::Conflict) if tries < TRIES => tries += 1,
            Err(error) => return Err(failed(error)),
        }
    }
}
