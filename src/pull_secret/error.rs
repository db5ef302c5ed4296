//! What the errors of requests to the API server mean. Decided by types and status codes, never by an error's text.

use super::kubeconfig::ConfigError;
use crate::report::redact::redact;
use k8s_openapi::api::authorization::v1::ResourceAttributes;
use kube::core::Status;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

/// How many characters of a server's message are shown.
const LONGEST_MESSAGE: usize = 400;

/// Why a request failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApiError {
    /// It is not known which API server to ask, or as whom.
    #[error("cannot connect to the API server")]
    Config(#[source] Arc<ConfigError>),
    /// There is no connection, or none that can be trusted.
    #[error("the API server cannot be reached: {0}")]
    Unreachable(String),
    /// The API server did not answer in time.
    #[error("the API server did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The API server does not accept the credentials, or no longer.
    #[error("the API server does not accept the credentials: {0}")]
    Unauthorized(String),
    /// The agent lacks a right. The text is the command with which an administrator can check this.
    #[error("not allowed: `{0}` says no")]
    Forbidden(String),
    /// The API server refused a write: a quota, a webhook, an invalid object. Also a missing right, unless the answer was
    /// `checked`.
    #[error("the API server refused the request: {0}")]
    Refused(String),
    /// Nothing can be created in a namespace that is being deleted.
    #[error("namespace {0} is being terminated")]
    Terminating(String),
    /// The namespace does not exist.
    #[error("there is no namespace {0}")]
    NoNamespace(String),
    /// The object was changed, created or deleted after it was read.
    #[error("another program changed the object at the same time")]
    Conflict,
    /// The API server is overloaded or unhealthy. It may have said how long its clients should wait.
    #[error("the API server cannot answer now: {0}")]
    Busy(String, Option<Duration>),
    /// The answer is too large, or is not what was asked for.
    #[error("the API server's answer is invalid")]
    InvalidAnswer,
}

impl ApiError {
    /// Whether the same request may succeed later although nobody changes a right, an object or a setting.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        use ApiError::{Busy, Conflict, Timeout, Unauthorized, Unreachable};
        matches!(self, Unreachable(_) | Timeout(_) | Conflict | Busy(..) | Unauthorized(_))
    }

    /// How long the API server asks its clients to wait.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        if let Self::Busy(_, retry_after) = self { *retry_after } else { None }
    }

    /// What an error of `kube` means for a request.
    #[must_use]
    pub fn of(error: &kube::Error, request: &ResourceAttributes) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_status(status, request),
            kube::Error::Service(error) => match error.downcast_ref::<Self>() {
                Some(error) => error.clone(),
                None => Self::unreachable(error.as_ref()),
            },
            kube::Error::HyperError(error) => Self::unreachable(error),
            // Their messages may show a part of the answer, and with it a Secret.
            _ => Self::InvalidAnswer,
        }
    }

    /// No answer came. The innermost cause says most: `kube` repeats it on each level.
    pub(super) fn unreachable(error: &(dyn Error + 'static)) -> Self {
        let mut innermost = error;
        while let Some(cause) = innermost.source() {
            innermost = cause;
        }
        Self::Unreachable(shown(&innermost.to_string()))
    }

    /// What an answer means that is not a success.
    pub(super) fn of_status(status: &Status, request: &ResourceAttributes) -> Self {
        let message = shown(&status.message);
        let namespace = || request.namespace.clone().unwrap_or_default();
        let is_about = |kind| status.details.as_ref().is_some_and(|details| details.kind == kind);
        let mut causes = status.details.iter().flat_map(|details| &details.causes);
        match status.code {
            401 => Self::Unauthorized(message),
            403 if causes.any(|cause| cause.reason == "NamespaceTerminating") => {
                Self::Terminating(namespace())
            }
            // Admission plugins refuse writes with the same code.
            403 if is_write(request) => Self::Refused(message),
            403 => Self::Forbidden(can_i(request)),
            404 if is_about("namespaces") => Self::NoNamespace(namespace()),
            // Deleted after it was read.
            404 if is_write(request) => Self::Conflict,
            409 => Self::Conflict,
            429 | 500.. => {
                let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
                let retry_after = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
                Self::Busy(format!("{}: {message}", status.code), retry_after)
            }
            code if status.reason.is_empty() => Self::Refused(format!("{code}: {message}")),
            _ => Self::Refused(format!("{}: {message}", shown(&status.reason))),
        }
    }
}

fn is_write(request: &ResourceAttributes) -> bool {
    request.verb.as_deref().is_some_and(|verb| ["create", "patch", "delete"].contains(&verb))
}

/// The command that says whether a request is allowed.
pub(super) fn can_i(request: &ResourceAttributes) -> String {
    let verb = request.verb.as_deref().unwrap_or_default();
    format!("kubectl auth can-i {verb} {}", object(request))
}

/// The object of a request, as arguments for `kubectl`.
pub(super) fn object(request: &ResourceAttributes) -> String {
    let resource = request.resource.as_deref().unwrap_or_default();
    let name = request.name.as_ref().map(|name| format!("/{name}")).unwrap_or_default();
    match &request.namespace {
        Some(namespace) => format!("{resource}{name} -n {namespace}"),
        None if resource == "namespaces" => format!("{resource}{name}"),
        None => format!("{resource}{name} -A"),
    }
}

/// Text from outside, as far as it may be shown.
fn shown(text: &str) -> String {
    redact(text, LONGEST_MESSAGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn meaning(verb: &str, status: Value) -> ApiError {
        let text = |text: &str| Some(text.to_owned());
        let request = ResourceAttributes {
            verb: text(verb),
            resource: text("secrets"),
            namespace: text("team-a"),
            name: text("ecr-creds").filter(|_| verb != "create"),
            ..ResourceAttributes::default()
        };
        let status = serde_json::from_value(status).unwrap();
        ApiError::of(&kube::Error::Api(Box::new(status)), &request)
    }

    #[test]
    fn an_error_is_known_by_its_code_and_its_details() {
        let terminating = json!({ "causes": [{ "reason": "NamespaceTerminating" }] });
        let cases = [
            ("get", json!({ "code": 401 }), "does not accept the credentials"),
            ("get", json!({ "code": 403 }), "can-i get secrets/ecr-creds -n team-a"),
            // The API server is asked whether that right is missing.
            ("patch", json!({ "code": 403, "message": "quota" }), "quota"),
            (
                "create",
                json!({ "code": 403, "details": terminating }),
                "namespace team-a is being terminated",
            ),
            ("create", json!({ "code": 404, "details": { "kind": "namespaces" } }), "no namespace team-a"),
            ("patch", json!({ "code": 404, "details": { "kind": "secrets" } }), "at the same time"),
            ("create", json!({ "code": 409 }), "at the same time"),
            ("patch", json!({ "code": 422, "reason": "Invalid", "message": "why" }), "Invalid: why"),
            ("get", json!({ "code": 400, "message": "why" }), "400: why"),
            ("get", json!({ "code": 429, "message": "why" }), "429: why"),
            ("get", json!({ "code": 504 }), "504: "),
        ];
        for (verb, status, expected) in cases {
            let message = meaning(verb, status.clone()).to_string();
            assert!(message.contains(expected), "{verb} {status}: {message}");
        }
    }

    #[test]
    fn the_api_server_says_how_long_to_wait() {
        let busy = |details: Value| meaning("get", json!({ "code": 429, "details": details })).retry_after();
        assert_eq!(busy(json!({ "retryAfterSeconds": 7 })), Some(Duration::from_secs(7)));
        assert_eq!(busy(json!({})), None);
    }

    #[test]
    fn no_token_in_a_message_is_shown() {
        let token = "QVdTOmV5SndZWGxzYjJGa0lqb2lVMFZEVWtWVVVFRlRVMWRQVWtRaQ==";
        let error = meaning("patch", json!({ "code": 422, "message": format!("invalid {token}") }));
        assert!(!error.to_string().contains(&token[..24]), "{error}");
        let parsing = serde_json::from_str::<u8>("\"SECRETPASSWORD\"").unwrap_err();
        let error = ApiError::of(&kube::Error::SerdeError(parsing), &ResourceAttributes::default());
        assert_eq!(error.to_string(), "the API server's answer is invalid");
    }
}
