//! Pull secrets for commands that run once: `--once` and `remove`.

use super::api;
use super::connection;
use super::error::ApiError;
use super::names::{Name, Namespace, PullSecrets, SecretRef};
use super::publish::{self, PublishOptions, PullSecretError, patch_service_account};
use super::reconcile::Ownership;
use super::record::{Done, SecretDone, Target};
use crate::docker_config::merge::Wanted;
use crate::report::exit::chain;
use crate::time::clock;
use crate::time::retry::{self, Failed};
use futures_util::{StreamExt as _, TryFutureExt as _, stream};
use kube::{Client, ResourceExt as _};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;

/// How many requests run at the same time. An API server limits the requests of one client.
const CONCURRENCY: usize = 16;
/// How long the first attempts may take, also where the deadline is nearer or over.
const LEAST: Duration = Duration::from_secs(10);

/// How a command makes its attempts.
struct Attempts {
    client: Client,
    /// Until when attempts are made.
    deadline: Instant,
    dry_run: bool,
}

/// Publishes to each secret, and then to service accounts. Temporary errors are retried until the deadline.
pub async fn once(
    secrets: &PullSecrets,
    wanted: &Arc<Wanted>,
    deadline: Instant,
    dry_run: bool,
) -> Vec<SecretDone> {
    let run = Attempts::new(deadline, dry_run);
    let places = match run.places(secrets).await {
        Ok(places) => places,
        Err(failed) => return vec![failed],
    };
    let publish = async |secret: SecretRef| {
        let attempt = || {
            let options = PublishOptions { now: clock::now(), ownership: Ownership::Alone, dry_run };
            publish::publish(&run.client, &secret, wanted, options).map_ok(Done::Secret)
        };
        run.attempts(Target::Secret(secret.clone()), attempt).await
    };
    let patch = async |(namespace, account): (Namespace, Name)| {
        let names = places[&namespace].iter().map(|secret| secret.name.clone()).collect();
        let attempt = || {
            patch_service_account(&run.client, &namespace, &account, &names, dry_run).map_ok(Done::Patched)
        };
        run.attempts(Target::ServiceAccount(namespace.clone(), account.clone()), attempt).await
    };
    let accounts = places.keys().flat_map(|namespace| {
        secrets.service_accounts.iter().map(|account| (namespace.clone(), account.clone()))
    });
    let mut done = on_each(places.values().flatten().cloned(), publish).await;
    done.extend(on_each(accounts, patch).await);
    done
}

/// Deletes the secrets that the agents made.
pub async fn remove(secrets: &PullSecrets, dry_run: bool) -> Vec<SecretDone> {
    let run = Attempts::new(Instant::now(), dry_run);
    let places = match run.places(secrets).await {
        Ok(places) => places,
        Err(failed) => return vec![failed],
    };
    let remove = async |secret: SecretRef| {
        let attempt = || publish::remove(&run.client, &secret, dry_run).map_ok(Done::Secret);
        run.attempts(Target::Secret(secret.clone()), attempt).await
    };
    on_each(places.into_values().flatten(), remove).await
}

/// Runs a function on each item, a few at the same time.
async fn on_each<T>(
    items: impl IntoIterator<Item = T>,
    act: impl AsyncFn(T) -> SecretDone,
) -> Vec<SecretDone> {
    let mut done: Vec<SecretDone> =
        stream::iter(items).map(|item| act(item)).buffer_unordered(CONCURRENCY).collect().await;
    done.sort_by(|a, b| a.target.cmp(&b.target));
    done
}

impl Attempts {
    fn new(deadline: Instant, dry_run: bool) -> Self {
        Self { client: connection::client(), deadline: deadline.max(Instant::now() + LEAST), dry_run }
    }

    /// The namespaces with their secrets. Lists the namespaces if some are to be found by a pattern or a label.
    async fn places(
        &self,
        secrets: &PullSecrets,
    ) -> Result<BTreeMap<Namespace, BTreeSet<SecretRef>>, SecretDone> {
        let mut places: BTreeMap<Namespace, BTreeSet<SecretRef>> = BTreeMap::new();
        for secret in &secrets.named {
            places.entry(secret.namespace.clone()).or_default().insert(secret.clone());
        }
        if secrets.found.is_empty() {
            return Ok(places);
        }
        let list = || api::namespaces(&self.client).map_err(PullSecretError::from);
        let namespaces = self.until(&Target::Namespaces, list).await.map_err(|error| {
            let failed = SecretDone { target: Target::Namespaces, result: Err(error) };
            failed.log();
            failed
        })?;
        let live = namespaces.iter().filter(|namespace| namespace.metadata.deletion_timestamp.is_none());
        for namespace in live {
            // A name that is not valid cannot be one of ours.
            let Ok(name) = namespace.name_any().parse() else { continue };
            let found = secrets.in_namespace(&name, namespace.labels());
            if !found.is_empty() {
                places.entry(name).or_default().extend(found);
            }
        }
        Ok(places)
    }

    /// Makes attempts on a target, and logs what happened.
    async fn attempts<F>(&self, target: Target, attempt: impl FnMut() -> F) -> SecretDone
    where
        F: Future<Output = Result<Done, PullSecretError>>,
    {
        let result = self.until(&target, attempt).await;
        let done = SecretDone { target, result };
        if !self.dry_run || done.result.is_err() {
            done.log();
        }
        done
    }

    /// Makes attempts until one succeeds, one fails for good, or the deadline has come.
    async fn until<T, F>(&self, target: &Target, attempt: impl FnMut() -> F) -> Result<T, PullSecretError>
    where
        F: Future<Output = Result<T, PullSecretError>>,
    {
        let log = |failed: Failed<'_, PullSecretError>| {
            let error = chain(failed.error);
            warn!(object = %target, error, failures = failed.failures, retry_in = ?failed.delay, "retrying");
        };
        let unanswered = ApiError::Timeout(LEAST).into();
        retry::until(self.deadline, unanswered, PullSecretError::retry, log, attempt).await
    }
}
