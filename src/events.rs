//! Kubernetes Events about the agent's pod: what `kubectl describe pod` shows of a node that cannot get its token.
//!
//! Off unless the user names the pod, since the agent needs a permission for it. An Event is published when a condition begins,
//! when it ends, and every half hour between, since the API server forgets Events after an hour. Equal Events become one with a
//! count, by the API's own rules. If the API server does not take one, it is lost: the log and `status` say the same.

use crate::pull_secret::api::request;
use crate::pull_secret::connection::client_of_pod;
use crate::pull_secret::error::ApiError;
use crate::report::agent_state::Failure;
use crate::report::exit::chain;
use crate::report::redact::redact;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use std::collections::BTreeMap;
use std::io;
use std::str::FromStr;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{debug, warn};

/// The name under which the Events are reported.
const CONTROLLER: &str = "ecr-node-agent";
/// How often an Event is repeated while its condition lasts.
const REPEAT: Duration = Duration::from_mins(30);
/// How long the API server may take for one Event.
const LIMIT: Duration = Duration::from_secs(10);
/// The longest note, in characters. The API server accepts 1024 bytes.
const MAX_NOTE: usize = 300;
/// The longest error that is logged, in characters.
const MAX_ERROR: usize = 500;

/// The pod that the Events are about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRef {
    namespace: String,
    name: String,
    uid: String,
}

/// A text that names no pod.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("expected NAMESPACE/NAME/UID of this pod")]
pub struct ParsePodRefError;

impl FromStr for PodRef {
    type Err = ParsePodRefError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            [namespace, name, uid] if parts.iter().all(|part| !part.is_empty()) => Ok(Self {
                namespace: (*namespace).to_owned(),
                name: (*name).to_owned(),
                uid: (*uid).to_owned(),
            }),
            _ => Err(ParsePodRefError),
        }
    }
}

/// What the agent sees at the moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// What fails.
    pub failures: Vec<Failure>,
    /// The registries whose token on disk has expired.
    pub expired: Vec<String>,
}

/// A condition that an Event reports, by its subject.
type Conditions = BTreeMap<(Reason, String), String>;

/// Why an Event is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reason {
    CredentialsRefused,
    TokenExpired,
    AuthFileFailing,
    DriftFight,
    Restored,
}

impl Reason {
    fn name(self) -> &'static str {
        match self {
            Self::CredentialsRefused => "CredentialsRefused",
            Self::TokenExpired => "TokenExpired",
            Self::AuthFileFailing => "AuthFileFailing",
            Self::DriftFight => "DriftFight",
            Self::Restored => "Restored",
        }
    }

    /// The reason for a class of failures; `None` if failures of this class usually pass by themselves.
    fn of_class(class: &str) -> Option<Self> {
        match class {
            "credentials" | "region" | "denied" => Some(Self::CredentialsRefused),
            "auth_file" | "link" => Some(Self::AuthFileFailing),
            "drift" => Some(Self::DriftFight),
            _ => None,
        }
    }
}

/// The conditions that hold.
fn conditions(observed: &Observed) -> Conditions {
    let failures = observed.failures.iter().filter_map(|failure| {
        let reason = Reason::of_class(&failure.class)?;
        let note = format!("{}: {}", failure.subject, redact(&failure.error, MAX_NOTE));
        Some(((reason, failure.subject.clone()), note))
    });
    let expired = observed.expired.iter().map(|registry| {
        let note = format!("The token for {registry} on this node has expired: image pulls from there fail");
        ((Reason::TokenExpired, registry.clone()), note)
    });
    failures.chain(expired).collect()
}

/// The Events to publish: each condition that is new, or all of them if they are repeated, and each that has ended.
fn to_publish(before: &Conditions, now: &Conditions, repeat: bool) -> Vec<(Reason, String)> {
    let is_new = |key: &&(Reason, String)| repeat || !before.contains_key(*key);
    let begun = now.keys().filter(is_new).map(|key| (key.0, now[key].clone()));
    let ended = before.keys().filter(|key| !now.contains_key(*key));
    let ended = ended.map(|(reason, subject)| {
        (Reason::Restored, format!("{subject} is in order again: {} has ended", reason.name()))
    });
    begun.chain(ended).collect()
}

/// Publishes Events until dropped. Never ends by itself.
///
/// # Errors
/// None at present; the result is that of every task of the agent.
pub async fn run(pod: PodRef, mut observed: watch::Receiver<Observed>) -> io::Result<()> {
    let mut before = Conditions::new();
    let reporter = Reporter { controller: CONTROLLER.to_owned(), instance: Some(pod.name.clone()) };
    let recorder = Recorder::new(client_of_pod(), reporter);
    loop {
        let changed = timeout(REPEAT, observed.changed()).await;
        if matches!(changed, Ok(Err(_))) {
            // The agent is about to end.
            return std::future::pending().await;
        }
        let now = conditions(&observed.borrow_and_update());
        for (reason, note) in to_publish(&before, &now, changed.is_err()) {
            publish(&pod, &recorder, reason, note).await;
        }
        before = now;
    }
}

async fn publish(pod: &PodRef, recorder: &Recorder, reason: Reason, note: String) {
    let event = Event {
        type_: if reason == Reason::Restored { EventType::Normal } else { EventType::Warning },
        reason: reason.name().to_owned(),
        note: Some(note),
        action: "Refresh".to_owned(),
        secondary: None,
    };
    match timeout(LIMIT, recorder.publish(&event, &reference(pod))).await {
        Ok(Ok(())) => debug!(reason = reason.name(), "published an Event"),
        Ok(Err(error)) => {
            let request = request("create", "events", Some(&pod.namespace), None);
            let error = redact(&chain(&ApiError::of(&error, &request)), MAX_ERROR);
            warn!(reason = reason.name(), error, "cannot publish an Event");
        }
        Err(_) => warn!(reason = reason.name(), "cannot publish an Event: the API server does not answer"),
    }
}

fn reference(pod: &PodRef) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace.clone()),
        name: Some(pod.name.clone()),
        uid: Some(pod.uid.clone()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn failure(class: &str, subject: &str) -> Failure {
        Failure {
            subject: subject.to_owned(),
            class: class.to_owned(),
            error: "no".to_owned(),
            since: Timestamp::UNIX_EPOCH,
            next_attempt: None,
        }
    }

    #[test]
    fn a_condition_is_published_when_it_begins_and_when_it_ends() {
        let nothing = Conditions::new();
        let failures = vec![failure("denied", "eu-west-1"), failure("throttled", "us-east-1")];
        let now = conditions(&Observed { failures, expired: vec!["r.example".to_owned()] });
        let names = |events: Vec<(Reason, String)>| {
            events.into_iter().map(|(reason, note)| format!("{} {note}", reason.name())).collect::<Vec<_>>()
        };
        let begun = names(to_publish(&nothing, &now, false));
        assert_eq!(begun.len(), 2, "what is throttled passes by itself: {begun:?}");
        assert_eq!(begun[0], "CredentialsRefused eu-west-1: no");
        assert!(begun[1].starts_with("TokenExpired The token for r.example"), "{begun:?}");
        assert_eq!(to_publish(&now, &now, false), []);
        assert_eq!(names(to_publish(&now, &now, true)), begun);
        let ended = names(to_publish(&now, &nothing, false));
        assert_eq!(ended[0], "Restored eu-west-1 is in order again: CredentialsRefused has ended");
        assert_eq!(ended.len(), 2);
    }

    #[test]
    fn a_pod_has_a_namespace_a_name_and_a_uid() {
        assert!("a/b/c".parse::<PodRef>().is_ok());
        for text in ["", "a", "a/b", "a//c", "a/b/c/d"] {
            assert_eq!(text.parse::<PodRef>(), Err(ParsePodRefError), "{text}");
        }
    }
}
