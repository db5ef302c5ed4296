//! What happened to each target of a round, and how that is logged and counted.

use super::names::{Name, Namespace, SecretRef};
use super::publish::{Effect, Published, PullSecretError};
use super::reconcile::WriteReason;
use crate::docker_config::key::shown;
use crate::report::exit::chain;
use crate::report::metrics::{Metrics, SecretWrite};
use std::fmt;
use tracing::{debug, error, info, warn};

/// An object in the cluster that the agent works on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A pull secret.
    Secret(SecretRef),
    /// A service account, which names pull secrets.
    ServiceAccount(Namespace, Name),
    /// The list of all namespaces.
    Namespaces,
}

impl Target {
    /// The namespace that it is in.
    pub(super) fn namespace(&self) -> Option<&Namespace> {
        match self {
            Self::Secret(secret) => Some(&secret.namespace),
            Self::ServiceAccount(namespace, _) => Some(namespace),
            Self::Namespaces => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(secret) => write!(f, "secret {secret}"),
            Self::ServiceAccount(namespace, name) => write!(f, "service account {namespace}/{name}"),
            Self::Namespaces => f.write_str("namespaces"),
        }
    }
}

/// What happened to a target.
#[derive(Debug)]
pub struct SecretDone {
    /// The target.
    pub target: Target,
    /// What was done, or why it failed.
    pub result: Result<Done, PullSecretError>,
}

/// What was done to a target.
#[derive(Debug)]
pub enum Done {
    /// This was done to a secret.
    Secret(Published),
    /// These names were added to a service account.
    Patched(Vec<Name>),
}

impl SecretDone {
    /// Logs one line.
    pub(super) fn log(&self) {
        let object = &self.target;
        match &self.result {
            Ok(Done::Secret(published)) => log_secret(object, published),
            Ok(Done::Patched(added)) if added.is_empty() => debug!(%object, "no change needed"),
            Ok(Done::Patched(added)) => {
                let added: Vec<&str> = added.iter().map(Name::as_str).collect();
                info!(%object, added = added.join(","), "added pull secrets to the service account");
            }
            Err(error) => {
                let fix = match (object, error) {
                    (Target::Secret(SecretRef { namespace, name }), PullSecretError::Unfit(_)) => {
                        Some(format!(
                            "delete it (kubectl delete secret {name} -n {namespace}), and the agent creates it again"
                        ))
                    }
                    _ => None,
                };
                error!(%object, error = chain(error), fix, "cannot update");
            }
        }
    }

    /// Counts it.
    pub(super) fn count(&self, metrics: &Metrics) {
        let secret = match (&self.target, &self.result) {
            (Target::Secret(secret), _) => secret,
            (_, Ok(Done::Patched(added))) if added.is_empty() => return,
            (_, result) => return metrics.account_patched(result.is_ok()),
        };
        let written =
            |result| metrics.secret_written(secret.namespace.as_str(), secret.name.as_str(), result);
        metrics.secret_read(self.result.is_ok());
        let Ok(Done::Secret(published)) = &self.result else { return written(SecretWrite::Failure) };
        match &published.effect {
            Effect::Written(reason) => {
                written(SecretWrite::Success);
                if *reason == WriteReason::Changed {
                    metrics.secret_repaired();
                }
            }
            Effect::Overtaken => written(SecretWrite::Conflict),
            Effect::Unchanged | Effect::NotOurs | Effect::PutOff | Effect::Deleted => {}
        }
        if let Some(first) = published.ends.values().min() {
            metrics.secret_expires(secret.namespace.as_str(), secret.name.as_str(), *first);
        }
    }
}

fn log_secret(object: &Target, published: &Published) {
    let expires_at = published.ends.values().min().map(ToString::to_string).unwrap_or_default();
    match &published.effect {
        Effect::Unchanged => debug!(%object, expires_at, "no change needed"),
        Effect::PutOff => {
            debug!(%object, "another program has changed the secret again; it is restored in some minutes");
        }
        Effect::Overtaken => debug!(%object, "another agent wrote the secret at the same time"),
        Effect::NotOurs => warn!(%object, "not deleted: another field manager has set its content"),
        Effect::Deleted => info!(%object, "deleted the secret"),
        Effect::Written(WriteReason::Missing) => info!(%object, expires_at, "created the secret"),
        Effect::Written(WriteReason::New) => info!(%object, expires_at, "updated the secret"),
        Effect::Written(WriteReason::Changed) => {
            warn!(%object, expires_at, "restored the secret, which another program had changed");
        }
        Effect::Written(WriteReason::TakenOver(removed)) if removed.is_empty() => {
            info!(%object, expires_at, "took over the secret");
        }
        Effect::Written(WriteReason::TakenOver(removed)) => {
            let removed = removed.iter().map(|key| shown(key)).collect::<Vec<_>>().join(",");
            warn!(%object, expires_at, removed, "took over the secret, and removed its entries for other registries");
        }
    }
}
