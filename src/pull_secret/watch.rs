//! Watches of namespaces, and of the metadata of the agent's own secrets and service accounts.
//!
//! `kube` lists, watches, resumes a watch that broke, and lists again where it cannot. Secrets and service accounts are watched
//! by name, so that no other program's objects are ever read.

use super::api::PAGE;
use super::error::{ApiError, object};
use crate::report::exit::chain;
use futures_util::{Stream, StreamExt as _, future};
use k8s_openapi::api::authorization::v1::ResourceAttributes;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PartialObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Config, DefaultBackoff, Event, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::time::Duration;
use tracing::{error, info};

/// The delays of a watch that fails. `kube` resets a backoff on each event, and emits one before each list, also before a list
/// that then fails. So this one ends a series of failures only after two minutes without one.
#[derive(Default)]
struct WatchBackoff(DefaultBackoff);

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next()
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {}
}

/// The events of a watch of the objects that `request` names. A failure is logged, and the watch is tried again.
pub(super) fn events<K>(
    api: Api<PartialObjectMeta<K>>,
    request: ResourceAttributes,
) -> impl Stream<Item = Event<PartialObjectMeta<K>>> + Send
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut config = Config::default().page_size(PAGE);
    if let Some(name) = &request.name {
        config = config.fields(&format!("metadata.name={name}"));
    }
    report(watcher(api, config).backoff(WatchBackoff::default()), request)
}

/// Logs the failures of a watch, each once, and returns the events.
fn report<K: Send>(
    watch: impl Stream<Item = watcher::Result<Event<PartialObjectMeta<K>>>> + Send,
    request: ResourceAttributes,
) -> impl Stream<Item = Event<PartialObjectMeta<K>>> + Send {
    // The error that was logged last; `None` while the watch works.
    let mut logged: Option<String> = None;
    watch.filter_map(move |event| {
        let event = match event {
            Ok(event) => {
                // An `Init` comes before each list, also before one that then fails.
                if !matches!(event, Event::Init) && logged.take().is_some() {
                    info!(watch = object(&request), "watching again");
                }
                essential(event)
            }
            Err(error) => {
                let error = meaning(&error, &request).map(|error| chain(&error));
                if let Some(error) = error.filter(|error| logged.as_ref() != Some(error)) {
                    error!(watch = object(&request), error, "cannot watch; retrying");
                    logged = Some(error);
                }
                None
            }
        };
        future::ready(event)
    })
}

/// What a failure of a watch means; `None` for one that `kube` recovers from at once, as when a connection ends.
fn meaning(error: &watcher::Error, request: &ResourceAttributes) -> Option<ApiError> {
    const GONE: u16 = 410;
    let with = |verb: &str| ResourceAttributes { verb: Some(verb.to_owned()), ..request.clone() };
    match error {
        watcher::Error::InitialListFailed(error) => Some(ApiError::of(error, &with("list"))),
        watcher::Error::WatchStartFailed(error) => Some(ApiError::of(error, &with("watch"))),
        // What was missed is too old, and is listed again.
        watcher::Error::WatchError(status) if status.code == GONE => None,
        watcher::Error::WatchError(status) => Some(ApiError::of_status(status, &with("watch"))),
        watcher::Error::WatchFailed(_) => None,
        watcher::Error::NoResourceVersion => Some(ApiError::InvalidAnswer),
    }
}

/// An event with only those parts of an object that are used, since objects are kept in memory. `None` for an object without a
/// name, on which `kube`'s store would abort the program.
fn essential<K>(event: Event<PartialObjectMeta<K>>) -> Option<Event<PartialObjectMeta<K>>> {
    let mut is_named = true;
    let event = event.modify(|object: &mut PartialObjectMeta<K>| {
        let ObjectMeta { name, namespace, labels, uid, resource_version, deletion_timestamp, .. } =
            std::mem::take(&mut object.metadata);
        is_named = name.is_some();
        let rest = ObjectMeta::default();
        object.metadata =
            ObjectMeta { name, namespace, labels, uid, resource_version, deletion_timestamp, ..rest };
        object.types = None;
    });
    is_named.then_some(event)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pull_secret::api::request;
    use futures_util::stream;
    use k8s_openapi::api::core::v1::Secret;
    use tokio::time::Instant;

    type Item = watcher::Result<Event<PartialObjectMeta<Secret>>>;

    #[tokio::test(start_paused = true)]
    async fn the_delays_of_a_list_that_fails_grow() {
        // As `kube` emits it: an `Init` before each list.
        let watch = stream::unfold(false, async |is_list| {
            let item: Item = if is_list { Err(watcher::Error::NoResourceVersion) } else { Ok(Event::Init) };
            Some((item, !is_list))
        });
        let start = Instant::now();
        let errors =
            Box::pin(watch).backoff(WatchBackoff::default()).filter(|item| future::ready(item.is_err()));
        let times: Vec<_> = errors.take(10).map(|_| start.elapsed()).collect().await;
        let delays: Vec<_> = times.windows(2).map(|pair| pair[1].abs_diff(pair[0])).collect();
        assert!(delays[0] < Duration::from_secs(2), "{delays:?}");
        assert!(delays[8] >= Duration::from_secs(30), "{delays:?}");
        assert!(delays.is_sorted_by(|a, b| a < b || *a >= Duration::from_secs(30)), "{delays:?}");
    }

    #[tokio::test]
    async fn an_object_without_a_name_is_dropped_and_others_keep_what_is_used() {
        let object = |name: Option<&str>| {
            let metadata = ObjectMeta {
                name: name.map(str::to_owned),
                resource_version: Some("7".to_owned()),
                annotations: Some([("a".to_owned(), "b".to_owned())].into()),
                ..ObjectMeta::default()
            };
            Event::Apply(PartialObjectMeta::<Secret> { metadata, ..PartialObjectMeta::default() })
        };
        let watch = stream::iter([Ok(object(None)), Ok(object(Some("x"))), Ok(Event::InitDone)]);
        let events: Vec<_> = report(watch, request("watch", "secrets", None, None)).collect().await;
        let [Event::Apply(object), Event::InitDone] = &events[..] else { panic!("{events:?}") };
        assert_eq!(object.metadata.name.as_deref(), Some("x"));
        assert_eq!(object.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(object.metadata.annotations, None);
    }

    #[test]
    fn a_failure_that_kube_recovers_from_at_once_is_not_reported() {
        let request = request("", "secrets", None, Some("ecr-creds"));
        let status = |code| Box::new(kube::core::Status { code, ..kube::core::Status::default() });
        let api = |code| kube::Error::Api(status(code));
        let cases = [
            (watcher::Error::WatchFailed(api(500)), None),
            (watcher::Error::WatchError(status(410)), None),
            (watcher::Error::WatchError(status(403)), Some("auth can-i watch secrets/ecr-creds -A")),
            (watcher::Error::InitialListFailed(api(403)), Some("auth can-i list secrets/ecr-creds -A")),
            (watcher::Error::WatchStartFailed(api(403)), Some("auth can-i watch secrets/ecr-creds -A")),
            (watcher::Error::InitialListFailed(api(410)), Some("410")),
        ];
        for (error, expected) in cases {
            let message = meaning(&error, &request).map(|error| error.to_string());
            let is_expected = match expected {
                Some(text) => message.as_ref().is_some_and(|message| message.contains(text)),
                None => message.is_none(),
            };
            assert!(is_expected, "{error}: {message:?}");
        }
    }
}
