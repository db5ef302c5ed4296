//! What changes in the cluster, as it changes: namespaces, our secrets and service accounts, their metadata alone.
//!
//! `kube` lists, watches, goes on from where a watch broke, and begins anew where it cannot. Secrets and service accounts
//! are watched by name, so that nobody else's are ever read.

use super::api::{ApiError, Cluster, RbacAction, SeenNamespace, after_refusal};
use super::names::{Name, Namespace, SecretRef};
use crate::time::retry::{Backoff, Retry};
use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PartialObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// So many objects come at a time when a watch begins: metadata can be large.
const PAGE: u32 = 100;

/// A watch that lasted so long begins anew without the delay of those before.
const LASTING: Duration = Duration::from_mins(1);
/// A watch is tried again within half a minute.
const LONGEST: Duration = Duration::from_secs(32);

/// What to watch. Without a namespace: in all of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Interest {
    /// Namespaces; all of them, or one.
    Namespaces(Option<Namespace>),
    /// Secrets of this name.
    Secrets(Option<Namespace>, Name),
    /// Service accounts of this name.
    ServiceAccounts(Option<Namespace>, Name),
}

/// What changed.
#[derive(Debug, Clone)]
pub enum Change {
    /// A namespace is there, or its labels changed, or it is on its way out.
    Namespace(SeenNamespace),
    /// A namespace is gone.
    NoNamespace(Namespace),
    /// A Secret is there in this version.
    Secret(SecretRef, String),
    /// A Secret is gone.
    NoSecret(SecretRef),
    /// A service account is there, or changed.
    ServiceAccount(Namespace, Name),
    /// A list begins: what is not in it is gone.
    Begin,
    /// The list is at its end.
    End,
    /// It cannot be watched, and is tried again.
    Failed(ApiError),
}

/// Tells of changes until dropped, or until nobody listens.
pub async fn watch(
    cluster: Arc<Cluster>,
    number: usize,
    interest: Interest,
    changes: mpsc::Sender<(usize, Change)>,
) {
    let mut backoff = Backoff::between(Duration::from_secs(1), LONGEST);
    loop {
        let began = tokio::time::Instant::now();
        let failed = match cluster.client().await {
            Ok(client) => {
                let failed = follow(client, number, &interest, &changes).await;
                // Credentials, or the server's address, may have been replaced.
                cluster.forget().await;
                failed
            }
            Err(error) => error,
        };
        if began.elapsed() > LASTING {
            backoff.reset();
        }
        let delay = backoff.failed(Retry::Later, Duration::ZERO, Duration::ZERO, fastrand::f64());
        if changes.send((number, Change::Failed(failed))).await.is_err() {
            return;
        }
        tokio::time::sleep(delay).await;
    }
}

/// Follows one interest until the server is out of reach, or no longer knows us.
async fn follow(
    client: Client,
    number: usize,
    interest: &Interest,
    changes: &mpsc::Sender<(usize, Change)>,
) -> ApiError {
    let config = |name: Option<&str>| {
        let config = watcher::Config::default().page_size(PAGE);
        match name {
            Some(name) => config.fields(&format!("metadata.name={name}")),
            None => config,
        }
    };
    match interest {
        Interest::Namespaces(name) => {
            let api: Api<PartialObjectMeta<v1::Namespace>> = Api::all(client);
            let config = config(name.as_ref().map(Namespace::as_str));
            events(watcher::watcher(api, config), number, interest, changes).await
        }
        Interest::Secrets(namespace, name) => {
            let api: Api<PartialObjectMeta<v1::Secret>> = match namespace {
                Some(namespace) => Api::namespaced(client, namespace.as_str()),
                None => Api::all(client),
            };
            events(watcher::watcher(api, config(Some(name.as_str()))), number, interest, changes).await
        }
        Interest::ServiceAccounts(namespace, name) => {
            let api: Api<PartialObjectMeta<v1::ServiceAccount>> = match namespace {
                Some(namespace) => Api::namespaced(client, namespace.as_str()),
                None => Api::all(client),
            };
            events(watcher::watcher(api, config(Some(name.as_str()))), number, interest, changes).await
        }
    }
}

async fn events<K>(
    stream: impl futures_util::Stream<Item = watcher::Result<Event<PartialObjectMeta<K>>>> + Send,
    number: usize,
    interest: &Interest,
    changes: &mpsc::Sender<(usize, Change)>,
) -> ApiError
where
    K: kube::Resource,
{
    let stream = stream.default_backoff();
    pin_mut!(stream);
    while let Some(event) = stream.next().await {
        let change = match event {
            Ok(Event::Init) => Some(Change::Begin),
            Ok(Event::InitDone) => Some(Change::End),
            Ok(Event::Apply(object) | Event::InitApply(object)) => there(interest, &object.metadata),
            Ok(Event::Delete(object)) => gone(interest, &object.metadata),
            Err(error) => match refusal(interest, error) {
                // A watch that ends is picked up again; one too old begins anew.
                None => None,
                Some(error @ (ApiError::Unauthorized(_) | ApiError::Unreachable(_))) => return error,
                Some(error) => Some(Change::Failed(error)),
            },
        };
        if let Some(change) = change {
            // Nobody listens any more: this task ends with the loop that it was for.
            if changes.send((number, change)).await.is_err() {
                break;
            }
        }
    }
    ApiError::Nonsense("a watch has ended")
}

fn there(interest: &Interest, metadata: &ObjectMeta) -> Option<Change> {
    // A name that is none is nothing that we keep.
    let name = metadata.name.as_deref()?;
    let namespace = || metadata.namespace.as_deref()?.parse::<Namespace>().ok();
    Some(match interest {
        Interest::Namespaces(_) => Change::Namespace(SeenNamespace {
            name: name.parse().ok()?,
            labels: metadata.labels.clone().unwrap_or_default(),
            terminating: metadata.deletion_timestamp.is_some(),
        }),
        Interest::Secrets(_, name) => {
            let secret = SecretRef { namespace: namespace()?, name: name.clone() };
            Change::Secret(secret, metadata.resource_version.clone().unwrap_or_default())
        }
        Interest::ServiceAccounts(_, name) => Change::ServiceAccount(namespace()?, name.clone()),
    })
}

fn gone(interest: &Interest, metadata: &ObjectMeta) -> Option<Change> {
    let namespace = || metadata.namespace.as_deref()?.parse::<Namespace>().ok();
    match interest {
        Interest::Namespaces(_) => {
            metadata.name.as_deref().and_then(|name| name.parse().ok()).map(Change::NoNamespace)
        }
        Interest::Secrets(_, name) => {
            Some(Change::NoSecret(SecretRef { namespace: namespace()?, name: name.clone() }))
        }
        // When it comes back, it says so.
        Interest::ServiceAccounts(..) => None,
    }
}

/// What an error means; `None` for one that is in the nature of a watch.
fn refusal(interest: &Interest, error: watcher::Error) -> Option<ApiError> {
    let (verb, error) = match error {
        watcher::Error::InitialListFailed(error) => ("list", error),
        watcher::Error::WatchStartFailed(error) => ("watch", error),
        watcher::Error::WatchError(status) => ("watch", kube::Error::Api(status)),
        watcher::Error::WatchFailed(_) => return None,
        watcher::Error::NoResourceVersion => return Some(ApiError::Nonsense("there is no version in it")),
    };
    let (resource, namespace, name) = match interest {
        Interest::Namespaces(name) => ("namespaces", None, name.as_ref().map(Namespace::as_str)),
        Interest::Secrets(namespace, name) => ("secrets", namespace.as_ref(), Some(name.as_str())),
        Interest::ServiceAccounts(namespace, name) => {
            ("serviceaccounts", namespace.as_ref(), Some(name.as_str()))
        }
    };
    let act = RbacAction { verb, resource, name, namespace };
    after_refusal(act, &error).filter(|error| !matches!(error, ApiError::Conflict))
}
