//! The Deployment: one agent that keeps all pull secrets, by `kube`'s controller runtime over namespaces.
//!
//! The runtime's queue holds namespaces. A change of a namespace, of one of its secrets or service accounts, or of the tokens,
//! queues the namespace. The runtime removes duplicates, limits how many namespaces are reconciled at the same time, and queues a
//! namespace again after the time that a reconcile asks for. What a secret holds is not believed: it should be what this agent
//! has published, and nothing else.

use super::api::request;
use super::connection;
use super::names::{Name, Namespace, PullSecrets, SecretRef};
use super::publish::{PublishOptions, patch_service_account, publish};
use super::reconcile::Ownership;
use super::record::{Done, SecretDone, Target};
use super::targets::Targets;
use super::watch::events;
use crate::docker_config::merge::Wanted;
use crate::report::metrics::Metrics;
use crate::time::clock;
use crate::time::timer::Timer;
use futures_util::stream::{self, BoxStream, SelectAll};
use futures_util::{FutureExt as _, StreamExt as _, future};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PartialObjectMeta;
use kube::runtime::controller::{Action, Config, applier};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::Event;
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt::Debug;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// How many namespaces are reconciled at the same time. An API server limits the requests of one client.
const CONCURRENCY: u16 = 16;

type NamespaceMeta = PartialObjectMeta<v1::Namespace>;
/// Namespaces to reconcile.
type Queue = BoxStream<'static, ObjectRef<NamespaceMeta>>;

/// Why the agent is not ready yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotReadyReason {
    /// There is no token to publish.
    Tokens,
    /// The namespaces have not been listed.
    Namespaces,
    /// Not every secret has been tried once.
    Pass,
    /// Nothing: the agent is ready.
    Nothing,
}

impl NotReadyReason {
    /// The reason as text; `None` if the agent is ready.
    #[must_use]
    pub fn in_words(self) -> Option<&'static str> {
        match self {
            Self::Tokens => Some("there is no token yet"),
            Self::Namespaces => Some("the API server has not listed the namespaces yet"),
            Self::Pass => Some("not every pull secret has been tried yet"),
            Self::Nothing => None,
        }
    }
}

/// Keeps the secrets until it is dropped.
///
/// # Errors
/// When the system gives no timer.
pub async fn run(
    secrets: PullSecrets,
    mut tokens: watch::Receiver<Arc<Wanted>>,
    not_ready: watch::Sender<NotReadyReason>,
    metrics: Metrics,
) -> io::Result<()> {
    let timer = Timer::new()?;
    let (namespaces, writer) = reflector::store();
    let context = Arc::new(Context {
        client: connection::client(),
        secrets,
        tokens: tokens.clone(),
        targets: Mutex::new(Targets::new(metrics)),
        untried: Mutex::new(None),
        not_ready,
        namespaces: namespaces.clone(),
    });
    let controller = applier(
        |namespace, context| reconcile(namespace, context).map(Ok::<_, Infallible>).boxed(),
        |_, never, _| match *never {},
        Arc::clone(&context),
        namespaces,
        queue(&context, writer).map(Ok::<_, Infallible>),
        Config::default().concurrency(CONCURRENCY),
    );
    // The runtime also reports namespaces that were gone before they were reconciled.
    let controller = controller.for_each(|_| future::ready(()));
    let readiness = async {
        loop {
            let wanted = Arc::clone(&tokens.borrow_and_update());
            let now = clock::both();
            let ends = wanted.entries.values().map(|entry| entry.expires_at);
            let end = ends.filter(|end| *end > now.wall).min();
            context.update_readiness();
            tokio::select! {
                changed = tokens.changed() => if changed.is_err() {
                    // The agent is about to end, and this with it.
                    future::pending::<()>().await;
                },
                // Without a valid token, the agent is not ready any more.
                ended = timer.wait(end.map_or(now.after(Duration::from_hours(24)), |end| now.until(end))) => ended?,
            }
        }
    };
    tokio::select! {
        () = controller => Ok(()),
        ended = readiness => ended,
    }
}

struct Context {
    client: Client,
    secrets: PullSecrets,
    tokens: watch::Receiver<Arc<Wanted>>,
    namespaces: Store<NamespaceMeta>,
    targets: Mutex<Targets>,
    /// The namespaces that have not been tried since the start; `None` while they have not been listed.
    untried: Mutex<Option<BTreeSet<String>>>,
    not_ready: watch::Sender<NotReadyReason>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Brings the secrets and service accounts of a namespace to what they should be. A target that fails has its own backoff.
async fn reconcile(namespace: Arc<NamespaceMeta>, context: Arc<Context>) -> Action {
    // A name that is not valid cannot be one of ours.
    let Ok(name) = namespace.name_any().parse::<Namespace>() else { return Action::await_change() };
    let mut secrets = context.secrets.in_namespace(&name, namespace.labels());
    if namespace.metadata.deletion_timestamp.is_some() {
        secrets.clear();
    }
    let names: BTreeSet<Name> = secrets.iter().map(|secret| secret.name.clone()).collect();
    let accounts = context.secrets.service_accounts.iter().filter(|_| !names.is_empty());
    let accounts = accounts.map(|account| Target::ServiceAccount(name.clone(), account.clone()));
    let targets = accounts.chain(secrets.into_iter().map(Target::Secret)).collect();
    let uid = namespace.metadata.uid.as_ref();
    lock(&context.targets).set(&name, uid, &targets);
    let wanted = Arc::clone(&context.tokens.borrow());
    if wanted.entries.is_empty() && wanted.lapse.is_empty() {
        return Action::await_change();
    }
    let attempts = targets.into_iter().map(|target| context.keep(&name, uid, target, &names, &wanted));
    let next = future::join_all(attempts).await.into_iter().flatten().min();
    context.tried(name.as_str());
    next.map_or_else(Action::await_change, Action::requeue)
}

impl Context {
    /// Reconciles one target, if it is due. Returns how long to wait before the next attempt; `None` if there is none to make.
    async fn keep(
        &self,
        namespace: &Namespace,
        uid: Option<&String>,
        target: Target,
        names: &BTreeSet<Name>,
        wanted: &Arc<Wanted>,
    ) -> Option<Duration> {
        let delay = lock(&self.targets).start(namespace, &target, wanted, clock::both())?;
        if !delay.is_zero() {
            return Some(delay);
        }
        let client = &self.client;
        let options = PublishOptions { now: clock::now(), ownership: Ownership::Alone, dry_run: false };
        let result = match &target {
            Target::Secret(secret) => publish(client, secret, wanted, options).await.map(Done::Secret),
            Target::ServiceAccount(_, account) => {
                patch_service_account(client, namespace, account, names, false).await.map(Done::Patched)
            }
            Target::Namespaces => return None,
        };
        let done = SecretDone { target, result };
        lock(&self.targets).finish(namespace, uid, &done, clock::both(), fastrand::f64())
    }

    /// The namespaces have been listed, and are in the store.
    fn listed(&self) {
        let mut targets = lock(&self.targets);
        for namespace in targets.namespaces() {
            if self.namespaces.get(&ObjectRef::new(namespace.as_str())).is_none() {
                targets.forget(&namespace);
            }
        }
        let names = || self.namespaces.state().iter().map(|namespace| namespace.name_any()).collect();
        lock(&self.untried).get_or_insert_with(names);
    }

    /// Each secret of a namespace has been tried, or the namespace is gone.
    fn tried(&self, namespace: &str) {
        let was_untried = lock(&self.untried).as_mut().is_some_and(|untried| untried.remove(namespace));
        if was_untried {
            self.update_readiness();
        }
    }

    fn update_readiness(&self) {
        let now = clock::now();
        let has_token = self.tokens.borrow().entries.values().any(|entry| entry.expires_at > now);
        let reason = match &*lock(&self.untried) {
            _ if !has_token => NotReadyReason::Tokens,
            None => NotReadyReason::Namespaces,
            Some(untried) if !untried.is_empty() => NotReadyReason::Pass,
            Some(_) => NotReadyReason::Nothing,
        };
        self.not_ready.send_if_modified(|current| std::mem::replace(current, reason) != reason);
    }

    /// All namespaces, to queue them.
    fn all(&self) -> Vec<ObjectRef<NamespaceMeta>> {
        self.namespaces.state().iter().map(|namespace| ObjectRef::from_obj(&**namespace)).collect()
    }
}

/// What queues namespaces. The whole cluster is watched only for what has to be found in it.
fn queue(context: &Arc<Context>, writer: Writer<NamespaceMeta>) -> SelectAll<Queue> {
    let secrets = &context.secrets;
    let mut queue = SelectAll::new();
    queue.push(watch_namespaces(context, writer));
    let secret = |namespace, name| Target::Secret(SecretRef { namespace, name });
    let found: BTreeSet<&Name> = secrets.found.iter().map(|(_, name)| name).collect();
    for name in &found {
        queue.push(watch::<v1::Secret>(context, None, name, secret));
    }
    for SecretRef { namespace, name } in secrets.named.iter().filter(|secret| !found.contains(&secret.name)) {
        queue.push(watch::<v1::Secret>(context, Some(namespace), name, secret));
    }
    let named: BTreeSet<Option<&Namespace>> =
        secrets.named.iter().map(|secret| Some(&secret.namespace)).collect();
    let places = if found.is_empty() { named } else { BTreeSet::from([None]) };
    for (namespace, name) in
        places.iter().flat_map(|place| secrets.service_accounts.iter().map(move |name| (place, name)))
    {
        queue.push(watch::<v1::ServiceAccount>(context, *namespace, name, Target::ServiceAccount));
    }
    let new_tokens = stream::unfold(context.tokens.clone(), async |mut tokens| {
        tokens.changed().await.ok()?;
        Some(((), tokens))
    });
    let context = Arc::clone(context);
    queue.push(new_tokens.flat_map(move |()| stream::iter(context.all())).boxed());
    queue
}

/// Watches the objects of one name, and queues the namespace of each that changes.
fn watch<K>(
    context: &Arc<Context>,
    scope: Option<&Namespace>,
    name: &Name,
    target: impl Fn(Namespace, Name) -> Target + Send + 'static,
) -> Queue
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + 'static,
{
    let request = request("watch", &K::plural(&()), scope.map(Namespace::as_str), Some(name.as_str()));
    let api: Api<PartialObjectMeta<K>> = match scope {
        Some(namespace) => Api::namespaced(context.client.clone(), namespace.as_str()),
        None => Api::all(context.client.clone()),
    };
    let (context, scope, name) = (Arc::clone(context), scope.cloned(), name.clone());
    // The versions in the list that is under way.
    let mut listed = BTreeMap::new();
    let changes = events(api, request).flat_map(move |event| {
        let place = |object: &PartialObjectMeta<K>| object.namespace()?.parse::<Namespace>().ok();
        let seen = |place: Namespace, version| {
            lock(&context.targets).seen(&target(place.clone(), name.clone()), version);
            ObjectRef::new(place.as_str())
        };
        stream::iter(match event {
            Event::Init => {
                listed.clear();
                Vec::new()
            }
            Event::InitApply(object) => {
                listed.extend(place(&object).map(|place| (place, object.resource_version())));
                Vec::new()
            }
            Event::InitDone => {
                // An object that is not in the list may have been deleted.
                let places = lock(&context.targets).namespaces().into_iter();
                let places = places.filter(|place| scope.as_ref().is_none_or(|scope| scope == place));
                places
                    .map(|place| (listed.remove(&place).flatten(), place))
                    .map(|(version, place)| seen(place, version))
                    .collect()
            }
            Event::Apply(object) => {
                place(&object).map(|place| seen(place, object.resource_version())).into_iter().collect()
            }
            Event::Delete(object) => place(&object).map(|place| seen(place, None)).into_iter().collect(),
        })
    });
    changes.boxed()
}

/// Watches the namespaces, and queues those that change. A namespace that is named stays in the store, without its UID, while it
/// does not exist. So its secrets are tried, and an operator hears of it.
fn watch_namespaces(context: &Arc<Context>, mut writer: Writer<NamespaceMeta>) -> Queue {
    let context = Arc::clone(context);
    let named: BTreeSet<Namespace> =
        context.secrets.named.iter().map(|secret| secret.namespace.clone()).collect();
    let changes = namespace_events(&context, &named).flat_map(move |event| {
        // The store keeps what is used.
        let event = event.modify(|namespace| {
            namespace.metadata.resource_version = None;
            let labels = namespace.metadata.labels.take().into_iter().flatten();
            namespace.metadata.labels =
                Some(labels.filter(|(key, _)| context.secrets.uses_label(key)).collect());
        });
        stream::iter(match event {
            Event::Init => {
                writer.apply_watcher_event(&event);
                for name in &named {
                    writer.apply_watcher_event(&Event::InitApply(missing(name)));
                }
                Vec::new()
            }
            Event::InitApply(_) => {
                writer.apply_watcher_event(&event);
                Vec::new()
            }
            Event::InitDone => {
                writer.apply_watcher_event(&event);
                context.listed();
                context.update_readiness();
                context.all()
            }
            Event::Apply(ref namespace) => {
                writer.apply_watcher_event(&event);
                vec![ObjectRef::from_obj(namespace)]
            }
            Event::Delete(ref namespace) => {
                let changed = ObjectRef::from_obj(namespace);
                let name = namespace.name_any().parse::<Namespace>().ok();
                if let Some(name) = &name {
                    lock(&context.targets).forget(name);
                    context.tried(name.as_str());
                }
                let known = name.filter(|name| named.contains(name)).map(|name| Event::Apply(missing(&name)));
                writer.apply_watcher_event(&known.unwrap_or(event));
                vec![changed]
            }
        })
    });
    changes.boxed()
}

/// The events of all namespaces if some have to be found, else of those that are named.
fn namespace_events(
    context: &Context,
    named: &BTreeSet<Namespace>,
) -> BoxStream<'static, Event<NamespaceMeta>> {
    let watch = |name: Option<&str>| {
        events(Api::all(context.client.clone()), request("watch", "namespaces", None, name))
    };
    if !context.secrets.found.is_empty() {
        return watch(None).boxed();
    }
    let one = |name: &Namespace| {
        let mut is_listed = false;
        let missing = missing(name);
        let event = move |event| {
            let change = match event {
                Event::InitApply(namespace) => Some(Event::Apply(namespace)),
                Event::InitDone if !is_listed => Some(Event::Delete(missing.clone())),
                Event::Init | Event::InitDone => None,
                change => Some(change),
            };
            is_listed = change.is_some();
            future::ready(change)
        };
        watch(Some(name.as_str())).filter_map(event).boxed()
    };
    let known = stream::iter([Event::Init, Event::InitDone]);
    known.chain(stream::select_all(named.iter().map(one))).boxed()
}

/// A namespace of which nothing but its name is known.
fn missing(name: &Namespace) -> NamespaceMeta {
    let metadata = ObjectMeta { name: Some(name.to_string()), ..ObjectMeta::default() };
    NamespaceMeta { metadata, ..NamespaceMeta::default() }
}
