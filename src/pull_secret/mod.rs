//! Keeps pull secrets: once, as one of many agents, or alone and watching. A room of its own, beside the loop of the auth
//! files, which waits for nothing that happens here.

pub mod api;
pub mod controller;
pub mod names;
pub mod publish;
pub mod reconcile;
pub mod schedule;
pub mod shared;
pub mod watch;

use crate::docker_config::key::shown;
use crate::docker_config::merge::Wanted;
use crate::pull_secret::api::{ApiError, Cluster, SeenNamespace};
use crate::pull_secret::names::{Name, Namespace, PullSecrets, SecretRef};
use crate::pull_secret::publish::{
    self as target, Effect, PublishOptions, Published, PullSecretError, patch_service_account,
};
use crate::pull_secret::reconcile::{Ownership, WriteReason};
use crate::report::exit::chain;
use crate::report::metrics::{Metrics, SecretWrite};
use crate::time::clock;
use crate::time::retry::{self, Failed};
use futures_util::{StreamExt as _, stream};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

/// So many requests are under way at once. More would find the API server's own limit for one client.
const AT_ONCE: usize = 16;

/// The longest pause before another attempt that anything asks for.
const LONGEST_ASKED_FOR: Duration = Duration::from_mins(5);

/// What a first attempt is given at least.
const LEAST: Duration = Duration::from_secs(10);

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A secret.
    Secret(SecretRef),
    /// The pull secrets that a service account names.
    ServiceAccount(Namespace, Name),
    /// The namespaces, to find the others in.
    Namespaces,
    /// One of them.
    Namespace(Namespace),
}

impl Target {
    /// The namespace that it is in.
    #[must_use]
    pub fn namespace(&self) -> Option<&Namespace> {
        match self {
            Self::Secret(secret) => Some(&secret.namespace),
            Self::ServiceAccount(namespace, _) | Self::Namespace(namespace) => Some(namespace),
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
            Self::Namespace(namespace) => write!(f, "namespace {namespace}"),
        }
    }
}

/// What became of one of them.
#[derive(Debug)]
pub struct SecretDone {
    /// Which.
    pub target: Target,
    /// What was done, or why not.
    pub result: Result<Done, PullSecretError>,
}

/// What was done.
#[derive(Debug)]
pub enum Done {
    /// To a secret.
    Secret(Published),
    /// These names were added to a service account.
    Patched(Vec<Name>),
}

/// Publishes to each secret once, and tries again what may get better until the deadline.
pub async fn once(
    secrets: &PullSecrets,
    wanted: &Arc<Wanted>,
    deadline: Instant,
    dry_run: bool,
) -> Vec<SecretDone> {
    let cluster = Arc::new(Cluster::default());
    let time = end(deadline);
    let places = match places(&cluster, secrets, time).await {
        Ok(places) => places,
        Err(failed) => return vec![failed],
    };
    let publish = |secret: SecretRef| {
        let (cluster, wanted) = (Arc::clone(&cluster), Arc::clone(wanted));
        async move {
            let too_late = PullSecretError::Api { secret: secret.clone(), source: ApiError::TooSlow };
            let attempt = || {
                let manner = PublishOptions { now: clock::now(), among: Ownership::Alone, dry_run };
                target::publish(&cluster, &secret, &wanted, manner)
            };
            let result = until(time, too_late, attempt).await.map(Done::Secret);
            told(SecretDone { target: Target::Secret(secret), result }, dry_run)
        }
    };
    let mut done = on_each(places.values().flatten().cloned(), publish).await;
    let accounts = places.iter().flat_map(|(namespace, secrets_there)| {
        let names: BTreeSet<Name> = secrets_there.iter().map(|secret| secret.name.clone()).collect();
        secrets
            .service_accounts
            .iter()
            .map(move |account| (namespace.clone(), account.clone(), names.clone()))
    });
    let patch = |(namespace, account, names): (Namespace, Name, BTreeSet<Name>)| {
        let cluster = Arc::clone(&cluster);
        async move {
            let too_late = PullSecretError::ServiceAccount {
                namespace: namespace.clone(),
                name: account.clone(),
                source: ApiError::TooSlow,
            };
            let attempt = || patch_service_account(&cluster, &namespace, &account, &names, dry_run);
            let result = until(time, too_late, attempt).await.map(Done::Patched);
            told(SecretDone { target: Target::ServiceAccount(namespace, account), result }, dry_run)
        }
    };
    done.extend(on_each(accounts, patch).await);
    done
}

/// Deletes those of the secrets that are ours.
pub async fn remove(secrets: &PullSecrets, dry_run: bool) -> Vec<SecretDone> {
    let cluster = Arc::new(Cluster::default());
    // Nobody waits for an uninstall; it can be run again.
    let places = match places(&cluster, secrets, end(Instant::now())).await {
        Ok(places) => places,
        Err(failed) => return vec![failed],
    };
    let remove = |secret: SecretRef| {
        let cluster = Arc::clone(&cluster);
        async move {
            let result = target::remove(&cluster, &secret, dry_run).await.map(Done::Secret);
            told(SecretDone { target: Target::Secret(secret), result }, dry_run)
        }
    };
    on_each(places.into_values().flatten(), remove).await
}

/// The secrets, by their namespace. Asks for the namespaces where they are to be found.
async fn places(
    cluster: &Cluster,
    secrets: &PullSecrets,
    time: Instant,
) -> Result<BTreeMap<Namespace, BTreeSet<SecretRef>>, SecretDone> {
    let mut places: BTreeMap<Namespace, BTreeSet<SecretRef>> = BTreeMap::new();
    for secret in &secrets.named {
        places.entry(secret.namespace.clone()).or_default().insert(secret.clone());
    }
    if !secrets.found.is_empty() {
        let ask = || async { cluster.namespaces().await.map_err(PullSecretError::Namespaces) };
        let namespaces = until(time, PullSecretError::Namespaces(ApiError::TooSlow), ask).await;
        let namespaces = namespaces
            .map_err(|error| told(SecretDone { target: Target::Namespaces, result: Err(error) }, false))?;
        for SeenNamespace { name, labels, terminating } in namespaces {
            let found = secrets.in_namespace(&name, &labels);
            if !terminating && !found.is_empty() {
                places.entry(name).or_default().extend(found);
            }
        }
    }
    Ok(places)
}

/// Does something with each, a few at a time.
async fn on_each<T, F>(items: impl IntoIterator<Item = T>, act: impl Fn(T) -> F) -> Vec<SecretDone>
where
    F: Future<Output = SecretDone>,
{
    let mut done: Vec<SecretDone> = stream::iter(items).map(act).buffer_unordered(AT_ONCE).collect().await;
    done.sort_by(|a, b| a.target.cmp(&b.target));
    done
}

/// When to give up: at the deadline, or after the time that a first attempt is given at least.
fn end(deadline: Instant) -> Instant {
    deadline.max(Instant::now() + LEAST)
}

/// Makes attempts until one succeeds, one fails for good, or the deadline has come.
async fn until<T, F>(
    deadline: Instant,
    unanswered: PullSecretError,
    attempt: impl FnMut() -> F,
) -> Result<T, PullSecretError>
where
    F: Future<Output = Result<T, PullSecretError>>,
{
    let log = |failed: Failed<'_, PullSecretError>| {
        let error = chain(failed.error);
        warn!(error, failures = failed.failures, delay = ?failed.delay, "will try again");
    };
    retry::until(deadline, unanswered, PullSecretError::retry, log, attempt).await
}

/// Logs what became of one.
fn told(done: SecretDone, dry_run: bool) -> SecretDone {
    if !dry_run || done.result.is_err() {
        tell(&done.target, &done.result);
    }
    done
}

fn tell(target: &Target, result: &Result<Done, PullSecretError>) {
    match result {
        Ok(Done::Secret(published)) => tell_secret(target, published),
        Ok(Done::Patched(names)) if names.is_empty() => debug!(object = %target, "already as it should be"),
        Ok(Done::Patched(names)) => {
            let names: Vec<&str> = names.iter().map(Name::as_str).collect();
            info!(object = %target, added = names.join(","), "added to its pull secrets");
        }
        Err(error) => error!(error = chain(error), "not published"),
    }
}

fn tell_secret(target: &Target, published: &Published) {
    let expires_at = published.ends.values().min().map(ToString::to_string).unwrap_or_default();
    match &published.effect {
        Effect::Unchanged => debug!(object = %target, expires_at, "already as it should be"),
        Effect::PutOff => {
            debug!(object = %target, "changed again, and repaired later: it was a short while ago");
        }
        Effect::Overtaken => debug!(object = %target, "another agent was faster"),
        Effect::NotOurs => {
            warn!(object = %target, "left alone: another field manager than ours has set what it holds");
        }
        Effect::Deleted => info!(object = %target, "deleted"),
        Effect::Written(WriteReason::Missing) => info!(object = %target, expires_at, "created"),
        Effect::Written(WriteReason::New) => info!(object = %target, expires_at, "published"),
        Effect::Written(WriteReason::Changed) => {
            warn!(object = %target, expires_at, "it had been changed, and was repaired");
        }
        Effect::Written(WriteReason::TakenOver(lost)) => {
            let lost: Vec<String> = lost.iter().map(|key| shown(key)).collect();
            if lost.is_empty() {
                info!(object = %target, expires_at, "taken over");
            } else {
                warn!(object = %target, expires_at, lost = lost.join(","), "taken over; it held other registries' entries, which are gone");
            }
        }
    }
}

/// Counts what became of a pull secret, or of a service account.
fn count(metrics: &Metrics, done: &SecretDone) {
    let secret = match (&done.target, &done.result) {
        (Target::Secret(secret), _) => secret,
        (_, Ok(Done::Patched(names))) if names.is_empty() => return,
        (_, result) => return metrics.account_patched(result.is_ok()),
    };
    let (namespace, name) = (secret.namespace.as_str(), secret.name.as_str());
    metrics.secret_read(done.result.is_ok());
    match &done.result {
        Ok(Done::Secret(published)) => {
            match &published.effect {
                Effect::Written(reason) => {
                    metrics.secret_written(namespace, name, SecretWrite::Success);
                    if *reason == WriteReason::Changed {
                        metrics.secret_repaired();
                    }
                }
                Effect::Overtaken => metrics.secret_written(namespace, name, SecretWrite::Conflict),
                Effect::Unchanged | Effect::NotOurs | Effect::PutOff | Effect::Deleted => {}
            }
            if let Some(end) = published.ends.values().min() {
                metrics.secret_expires(namespace, name, *end);
            }
        }
        Ok(Done::Patched(_)) => {}
        Err(_) => metrics.secret_written(namespace, name, SecretWrite::Failure),
    }
}
