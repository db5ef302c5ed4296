//! The API server: who it is, who we are, and each request that we make of it. Nothing decides here.
//!
//! Requests are bounded in time and answers in size, and only what is needed of an answer is ever decoded. `kube` knows
//! where the server is and proves who we are; its typed calls are not used for Secrets, since they read answers of any
//! length, log what they cannot decode, and keep no `Retry-After`.

use super::names::{Name, Namespace, SecretRef};
use super::reconcile::{Content, DATA_KEY, Seen, TYPE};
use crate::report::redact::redact;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt as _, Limited};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::proxy::matcher::Matcher;
use kube::client::{AuthError, Body};
use kube::config::{ExecInteractiveMode, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use secrecy::ExposeSecret as _;
use secrecy::zeroize::Zeroizing;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Who we are in `managedFields`.
pub const FIELD_MANAGER: &str = "ecr-node-agent";
/// What one request may take, from connecting to the last byte.
const REQUEST: Duration = Duration::from_secs(10);
/// For how long nothing may come of a connection in use: longer than a watch lasts, which the server ends.
const SILENCE: Duration = Duration::from_mins(5);
/// A Secret holds 1 MiB of data, in base64, and 256 KiB of annotations, twice where `kubectl apply` made it.
const MAX_ANSWER: usize = 4 * 1024 * 1024;
/// How many namespaces to list at a time: their metadata, 256 KiB of annotations each at most.
const PAGE: usize = 100;
const MAX_PAGE: usize = 64 * 1024 * 1024;
/// What is shown of what the server said.
const MAX_SAID: usize = 300;

/// Why a request came to nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApiError {
    /// Nobody said where the API server is, or what was said cannot be used.
    #[error("the API server is not known: {0}")]
    Config(String),
    /// No connection, or none that is to be trusted.
    #[error("the API server cannot be reached: {0}")]
    Unreachable(String),
    /// No answer in time.
    #[error("the API server did not answer within {} s", REQUEST.as_secs())]
    TooSlow,
    /// It does not know us, or no longer.
    #[error("the API server does not accept our credentials: {0}")]
    Unauthorized(String),
    /// RBAC says no.
    #[error("not allowed: `{can_i}` says no")]
    Forbidden {
        /// The question as an administrator can ask it.
        can_i: String,
    },
    /// Something else than RBAC says no: a quota, a webhook.
    #[error("refused: {0}")]
    Refused(String),
    /// A namespace on its way out takes nothing new.
    #[error("namespace {0} is being terminated")]
    Terminating(Namespace),
    /// There is none.
    #[error("there is no namespace {0}")]
    NoNamespace(Namespace),
    /// Somebody else was faster.
    #[error("it was changed by somebody else at the same time")]
    Conflict,
    /// The server has too much to do, or is not well.
    #[error("the API server cannot answer now: {said}")]
    Busy {
        /// What it said.
        said: String,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// An answer that is none.
    #[error("the API server's answer makes no sense: {0}")]
    Nonsense(&'static str),
}

impl ApiError {
    /// Whether it may get better by itself.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Unreachable(_) | Self::TooSlow | Self::Conflict | Self::Busy { .. } | Self::Unauthorized(_)
        )
    }

    /// How long the server asks to be left alone.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// What is done to what, as `kubectl auth can-i` takes it.
#[derive(Debug, Clone, Copy)]
pub(super) struct RbacAction<'a> {
    pub(super) verb: &'static str,
    pub(super) resource: &'static str,
    pub(super) name: Option<&'a str>,
    pub(super) namespace: Option<&'a Namespace>,
}

impl fmt::Display for RbacAction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kubectl auth can-i {} {}", self.verb, self.resource)?;
        self.name.map_or(Ok(()), |name| write!(f, "/{name}"))?;
        match self.namespace {
            Some(namespace) => write!(f, " -n {namespace}"),
            None if self.resource == "namespaces" => Ok(()),
            None => f.write_str(" -A"),
        }
    }
}

/// A namespace, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenNamespace {
    /// Its name.
    pub name: Namespace,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it is on its way out.
    pub terminating: bool,
}

/// A service account, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenServiceAccount {
    /// Its version.
    pub resource_version: String,
    /// The names of the pull secrets that its pods get; `None` where the field is missing.
    pub pull_secrets: Option<Vec<String>>,
}

/// The API server. The connection is made when it is first needed, and anew when the server no longer knows us.
#[derive(Debug, Default)]
pub struct Cluster {
    client: Mutex<State>,
}

#[derive(Default)]
enum State {
    #[default]
    None,
    /// A kubeconfig may name a command to run, which may take its time.
    Making(JoinHandle<Result<Client, ApiError>>),
    Ready(Client),
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("State")
    }
}

impl Cluster {
    /// The client.
    ///
    /// # Errors
    /// When there can be none.
    pub async fn client(&self) -> Result<Client, ApiError> {
        let mut state = self.client.lock().await;
        if let State::Ready(client) = &*state {
            return Ok(client.clone());
        }
        if let State::None = &*state {
            let runtime = tokio::runtime::Handle::current();
            // Off the runtime's only thread, since `kube` reads files and runs commands as it goes.
            *state = State::Making(tokio::task::spawn_blocking(move || runtime.block_on(connect())));
        }
        let State::Making(making) = &mut *state else { return Err(ApiError::TooSlow) };
        // One that hangs is waited for again the next time, and no second one is started beside it.
        let made = timeout(REQUEST, making)
            .await
            .map_err(|_| ApiError::Config("the command that the kubeconfig names does not end".to_owned()))?;
        *state = State::None;
        let client = made.map_err(|_| ApiError::Config("making a client failed".to_owned()))??;
        *state = State::Ready(client.clone());
        Ok(client)
    }

    /// Forgets the client, so that credentials and certificates are read anew.
    pub(super) async fn forget(&self) {
        let mut state = self.client.lock().await;
        // One that is being made reads them anyway, and no second one is made beside it.
        if let State::Ready(_) = &*state {
            *state = State::None;
        }
    }

    /// The Secret, if there is one.
    ///
    /// # Errors
    /// When the server does not say.
    pub async fn secret(&self, secret: &SecretRef) -> Result<Option<Seen>, ApiError> {
        let act = act("get", secret);
        let answer = self.send(act, Method::GET, &path(secret), None, MAX_ANSWER).await?;
        answer.map(|answer| seen(&answer)).transpose()
    }

    /// Creates the Secret, where there is none. Says what it looks like then.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] where there is one by now.
    pub async fn create(
        &self,
        secret: &SecretRef,
        content: &Content,
        dry_run: bool,
    ) -> Result<Seen, ApiError> {
        let path = format!("/api/v1/namespaces/{}/secrets?{}", secret.namespace, options(dry_run));
        let act = RbacAction { name: None, ..act("create", secret) };
        let answer =
            self.send(act, Method::POST, &path, Some(body(secret, content, None)), MAX_ANSWER).await?;
        seen(&answer.ok_or_else(|| ApiError::NoNamespace(secret.namespace.clone()))?)
    }

    /// Changes the Secret by a server-side apply: only what we set is ours, and all else stays. Says what it looks like
    /// then.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] where it is not as it was `seen`.
    pub async fn apply(
        &self,
        secret: &SecretRef,
        before: &Seen,
        content: &Content,
        dry_run: bool,
    ) -> Result<Seen, ApiError> {
        let path = format!("{}?force=true&{}", path(secret), options(dry_run));
        let body = body(secret, content, Some(before));
        let answer = self.send(act("patch", secret), Method::PATCH, &path, Some(body), MAX_ANSWER).await?;
        // Deleted meanwhile; a version is a precondition of the object, too.
        seen(&answer.ok_or(ApiError::Conflict)?)
    }

    /// Deletes the Secret as it was `seen`.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] where it is not that one.
    pub async fn delete(&self, secret: &SecretRef, seen: &Seen, dry_run: bool) -> Result<(), ApiError> {
        let mut body = json!({
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": { "uid": seen.uid, "resourceVersion": seen.resource_version },
        });
        if dry_run {
            body["dryRun"] = json!(["All"]);
        }
        let body = ("application/json", Zeroizing::new(body.to_string().into_bytes()));
        self.send(act("delete", secret), Method::DELETE, &path(secret), Some(body), MAX_ANSWER)
            .await
            .map(|_| ())
    }

    /// All namespaces.
    ///
    /// # Errors
    /// When the server does not say.
    pub async fn namespaces(&self) -> Result<Vec<SeenNamespace>, ApiError> {
        #[derive(Deserialize)]
        struct Page {
            metadata: ListMeta,
            items: Vec<Item>,
        }
        #[derive(Deserialize)]
        struct ListMeta {
            #[serde(default, rename = "continue")]
            next: String,
        }
        #[derive(Deserialize)]
        struct Item {
            metadata: Metadata,
        }
        let act = RbacAction { verb: "list", resource: "namespaces", name: None, namespace: None };
        let mut found = Vec::new();
        let mut next = String::new();
        loop {
            // The server's token may hold anything.
            let from: String = hyper_safe(&next);
            let path = format!("/api/v1/namespaces?limit={PAGE}&continue={from}");
            let answer = self.send(act, Method::GET, &path, None, MAX_PAGE).await?;
            let answer = answer.ok_or(ApiError::Nonsense("there are no namespaces at all"))?;
            let page: Page = decode(&answer)?;
            let namespaces = page.items.into_iter().map(|item| item.metadata);
            found.extend(namespaces.filter_map(|metadata| {
                Some(SeenNamespace {
                    name: metadata.name.parse().ok()?,
                    labels: metadata.labels,
                    terminating: metadata.deletion_timestamp.is_some(),
                })
            }));
            next = page.metadata.next;
            if next.is_empty() {
                return Ok(found);
            }
        }
    }

    /// The service account, if there is one.
    ///
    /// # Errors
    /// When the server does not say.
    pub async fn service_account(
        &self,
        namespace: &Namespace,
        name: &Name,
    ) -> Result<Option<SeenServiceAccount>, ApiError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Answer {
            metadata: Metadata,
            image_pull_secrets: Option<Vec<Reference>>,
        }
        #[derive(Deserialize)]
        struct Reference {
            #[serde(default)]
            name: String,
        }
        let act = service_account_act("get", namespace, name);
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}");
        let Some(answer) = self.send(act, Method::GET, &path, None, MAX_ANSWER).await? else {
            return Ok(None);
        };
        let answer: Answer = decode(&answer)?;
        let names =
            |references: Vec<Reference>| references.into_iter().map(|reference| reference.name).collect();
        Ok(Some(SeenServiceAccount {
            resource_version: answer.metadata.resource_version,
            pull_secrets: answer.image_pull_secrets.map(names),
        }))
    }

    /// Adds names to the end of a service account's pull secrets.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] where it is not as it was `seen`, or is gone.
    pub async fn add_pull_secrets(
        &self,
        namespace: &Namespace,
        name: &Name,
        seen: &SeenServiceAccount,
        more: &[&Name],
        dry_run: bool,
    ) -> Result<(), ApiError> {
        let test =
            json!({ "op": "test", "path": "/metadata/resourceVersion", "value": seen.resource_version });
        let reference = |name: &&Name| json!({ "name": name.as_str() });
        let add = |path: &str, value: Value| json!({ "op": "add", "path": path, "value": value });
        let mut changes = vec![test];
        if seen.pull_secrets.is_some() {
            changes.extend(more.iter().map(|name| add("/imagePullSecrets/-", reference(name))));
        } else {
            changes.push(add("/imagePullSecrets", more.iter().map(reference).collect()));
        }
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}?{}", options(dry_run));
        let body = Zeroizing::new(Value::from(changes).to_string().into_bytes());
        let act = service_account_act("patch", namespace, name);
        let sent = self
            .send(act, Method::PATCH, &path, Some(("application/json-patch+json", body)), MAX_ANSWER)
            .await;
        match sent {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(ApiError::Conflict),
            Err(error) => Err(error),
        }
    }

    /// One request. `None` where the thing itself is not there.
    async fn send(
        &self,
        act: RbacAction<'_>,
        method: Method,
        path: &str,
        body: Option<(&'static str, Zeroizing<Vec<u8>>)>,
        limit: usize,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, ApiError> {
        let client = self.client().await?;
        let mut request = Request::builder().method(method).uri(path);
        request = request.header(ACCEPT, "application/json");
        let body = body.map_or_else(
            || Body::from(Vec::new()),
            |(kind, bytes)| {
                if let Some(headers) = request.headers_mut() {
                    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
                }
                Body::from(bytes.to_vec())
            },
        );
        let request = request.body(body).map_err(|_| ApiError::Nonsense("it cannot be asked so"))?;
        let exchange = async {
            let answer = client.send(request).await.map_err(|error| unreachable(&error))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, limit).collect().await;
            let body = body.map_err(|error| ApiError::Unreachable(said(&error.to_string())))?;
            Ok((head, Zeroizing::new(body.to_bytes().to_vec())))
        };
        let (head, body) = match timeout(REQUEST, exchange).await.unwrap_or(Err(ApiError::TooSlow)) {
            Ok(answer) => answer,
            Err(error) => {
                // The kubeconfig may name another server by now, or another CA.
                self.forget().await;
                return Err(error);
            }
        };
        if head.status.is_success() {
            return Ok(Some(body));
        }
        let retry_after = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let refused = refusal(act, head.status, &body, retry_after.map(Duration::from_secs));
        if let Some(ApiError::Unauthorized(_)) = refused {
            self.forget().await;
        }
        refused.map_or(Ok(None), Err)
    }
}

/// What the server says where it does not do what it was asked.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    message: String,
    reason: String,
    details: Details,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Details {
    kind: String,
    causes: Vec<Cause>,
    #[serde(rename = "retryAfterSeconds")]
    retry_after_seconds: u64,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Cause {
    reason: String,
}

/// What a refusal means; `None` where the thing is not there.
fn refusal(
    act: RbacAction<'_>,
    code: StatusCode,
    body: &[u8],
    retry_after: Option<Duration>,
) -> Option<ApiError> {
    let status: Status = serde_json::from_slice(body).unwrap_or_default();
    let message =
        if status.message.is_empty() { String::from_utf8_lossy(body) } else { status.message.into() };
    let asked_for = Some(status.details.retry_after_seconds).filter(|s| *s > 0).map(Duration::from_secs);
    let refused = Refused {
        code,
        message: &message,
        reason: &status.reason,
        of_a_namespace: status.details.kind == "namespaces",
        terminating: status.details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating"),
        retry_after: retry_after.or(asked_for),
    };
    refused.meaning(act)
}

/// What a refusal of one of `kube`'s own requests means; `None` where the thing is not there, or is too old.
pub(super) fn after_refusal(act: RbacAction<'_>, error: &kube::Error) -> Option<ApiError> {
    let kube::Error::Api(status) = error else { return Some(unreachable(error)) };
    if status.code == StatusCode::GONE.as_u16() {
        return None;
    }
    let refused = Refused {
        code: StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        message: &status.message,
        reason: &status.reason,
        of_a_namespace: false,
        terminating: false,
        retry_after: None,
    };
    refused.meaning(act)
}

/// A refusal, whoever read it.
struct Refused<'a> {
    code: StatusCode,
    message: &'a str,
    reason: &'a str,
    of_a_namespace: bool,
    terminating: bool,
    retry_after: Option<Duration>,
}

impl Refused<'_> {
    fn meaning(&self, act: RbacAction<'_>) -> Option<ApiError> {
        let text = said(self.message);
        let code = self.code;
        Some(match code {
            StatusCode::NOT_FOUND => {
                ApiError::NoNamespace(act.namespace.filter(|_| self.of_a_namespace)?.clone())
            }
            StatusCode::UNAUTHORIZED => ApiError::Unauthorized(text),
            StatusCode::FORBIDDEN => match act.namespace.filter(|_| self.terminating) {
                Some(namespace) => ApiError::Terminating(namespace.clone()),
                // RBAC's words; admission plugins and webhooks have their own.
                None if self.message.contains(&format!(" cannot {} resource ", act.verb)) => {
                    ApiError::Forbidden { can_i: act.to_string() }
                }
                None => ApiError::Refused(text),
            },
            StatusCode::CONFLICT => ApiError::Conflict,
            // A JSON patch whose `test` does not hold.
            StatusCode::UNPROCESSABLE_ENTITY if act.resource == "serviceaccounts" => ApiError::Conflict,
            code if code == StatusCode::TOO_MANY_REQUESTS || code.is_server_error() => {
                ApiError::Busy { said: format!("{code}: {text}"), retry_after: self.retry_after }
            }
            _ if self.reason.is_empty() => ApiError::Refused(format!("{code}: {text}")),
            _ => ApiError::Refused(format!("{}: {text}", said(self.reason))),
        })
    }
}

fn said(text: &str) -> String {
    redact(text, MAX_SAID)
}

fn act<'a>(verb: &'static str, secret: &'a SecretRef) -> RbacAction<'a> {
    RbacAction {
        verb,
        resource: "secrets",
        name: Some(secret.name.as_str()),
        namespace: Some(&secret.namespace),
    }
}

fn service_account_act<'a>(verb: &'static str, namespace: &'a Namespace, name: &'a Name) -> RbacAction<'a> {
    RbacAction { verb, resource: "serviceaccounts", name: Some(name.as_str()), namespace: Some(namespace) }
}

fn path(secret: &SecretRef) -> String {
    format!("/api/v1/namespaces/{}/secrets/{}", secret.namespace, secret.name)
}

fn options(dry_run: bool) -> String {
    format!("fieldManager={FIELD_MANAGER}{}", if dry_run { "&dryRun=All" } else { "" })
}

/// The token that goes on with a list, for a URL.
fn hyper_safe(text: &str) -> String {
    use std::fmt::Write as _;
    let mut safe = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            safe.push(char::from(byte));
        } else {
            write!(safe, "%{byte:02X}").ok();
        }
    }
    safe
}

/// The object to create, or to apply to what was seen.
fn body(secret: &SecretRef, content: &Content, before: Option<&Seen>) -> (&'static str, Zeroizing<Vec<u8>>) {
    let mut metadata = json!({
        "name": secret.name.as_str(),
        "namespace": secret.namespace.as_str(),
        "annotations": content.annotations,
    });
    if let Some(before) = before {
        metadata["uid"] = json!(before.uid);
        metadata["resourceVersion"] = json!(before.resource_version);
    }
    let config = Zeroizing::new(STANDARD.encode(content.config.as_bytes()));
    // The one value that is a secret is put in as text, so that no copy of it is left in a tree of values.
    let mut text = Zeroizing::new(Vec::with_capacity(config.len() + 16 * 1024));
    text.extend_from_slice(br#"{"apiVersion":"v1","kind":"Secret","metadata":"#);
    text.extend_from_slice(metadata.to_string().as_bytes());
    text.extend_from_slice(format!(r#","type":"{TYPE}","data":{{"{DATA_KEY}":""#).as_bytes());
    text.extend_from_slice(config.as_bytes());
    text.extend_from_slice(br#""}}"#);
    // JSON is YAML, and every server that takes an apply takes this.
    (if before.is_some() { "application/apply-patch+yaml" } else { "application/json" }, text)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    resource_version: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    deletion_timestamp: Option<String>,
    #[serde(default)]
    managed_fields: Vec<ManagedFields>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManagedFields {
    #[serde(default)]
    manager: String,
    #[serde(default)]
    fields_v1: Value,
}

fn decode<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, ApiError> {
    // The parser's own words would show a value of the wrong type.
    serde_json::from_slice(text).map_err(|_| ApiError::Nonsense("it is no JSON of this kind"))
}

fn seen(answer: &[u8]) -> Result<Seen, ApiError> {
    #[derive(Deserialize)]
    struct Answer {
        metadata: Metadata,
        #[serde(default, rename = "type")]
        kind: String,
        #[serde(default)]
        immutable: bool,
        #[serde(default)]
        data: Option<Data>,
    }
    #[derive(Deserialize)]
    struct Data {
        #[serde(rename = ".dockerconfigjson")]
        config: Option<String>,
    }
    let answer: Answer = decode(answer)?;
    let config = answer.data.and_then(|data| data.config).map(Zeroizing::new);
    let config = config.and_then(|config| STANDARD.decode(config.as_bytes()).ok()).map(Zeroizing::new);
    let ours = |fields: &ManagedFields| {
        fields.manager == FIELD_MANAGER
            && fields.fields_v1.get("f:data").is_some_and(|data| data.get(format!("f:{DATA_KEY}")).is_some())
    };
    Ok(Seen {
        uid: answer.metadata.uid,
        resource_version: answer.metadata.resource_version,
        kind: answer.kind,
        immutable: answer.immutable,
        ours: answer.metadata.managed_fields.iter().any(ours),
        annotations: answer.metadata.annotations,
        config,
    })
}

/// A client for the API server that `KUBECONFIG` names, that this pod belongs to, or that `~/.kube/config` names.
async fn connect() -> Result<Client, ApiError> {
    let mut config = match (is_set("KUBECONFIG"), is_set("KUBERNETES_SERVICE_HOST")) {
        // A pod goes to its own API server, past any proxy: that is for what lies outside of the cluster.
        (false, true) => Config::incluster().map_err(|error| ApiError::Config(innermost(&error)))?,
        _ => from_kubeconfig().await?,
    };
    config.connect_timeout = Some(REQUEST);
    // A server that takes a request and then falls silent would otherwise hold up a watch for ever.
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    // What is tried again, and when, is decided elsewhere.
    config.default_retry = false;
    Client::try_from(config).map_err(|error| match error {
        kube::Error::Auth(error) => ApiError::Config(auth(&error)),
        // It holds all of its causes' words already.
        error => ApiError::Config(said(&error.to_string())),
    })
}

async fn from_kubeconfig() -> Result<Config, ApiError> {
    let wrong = |error: KubeconfigError| ApiError::Config(fault(&error));
    let mut kubeconfig = Kubeconfig::read().map_err(|error| match error {
        KubeconfigError::FindPath | KubeconfigError::ReadConfig(..) if !is_set("KUBECONFIG") => {
            ApiError::Config(format!(
                "neither KUBECONFIG nor KUBERNETES_SERVICE_HOST is set, and {}",
                fault(&error)
            ))
        }
        error => wrong(error),
    })?;
    let options = KubeConfigOptions::default();
    // `kube` compares `NO_PROXY` with the proxy's own address: the choice is made here.
    let own_proxy = has_own_proxy(&kubeconfig);
    kubeconfig.preferences = None;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(wrong)?;
    // `kube` takes for granted that a token fits into a header, and ends the program where one does not.
    let token = config.auth_info.token.as_ref();
    if token.is_some_and(|token| HeaderValue::from_str(token.expose_secret()).is_err()) {
        return Err(ApiError::Config("the kubeconfig's token has characters that no token has".to_owned()));
    }
    // Its tokens go the way on which `kube` ends the program, were one malformed; Kubernetes has dropped it long ago.
    if config.auth_info.auth_provider.is_some() {
        return Err(ApiError::Config(
            "the kubeconfig names an `auth-provider`: use `exec` instead".to_owned(),
        ));
    }
    if let Some(exec) = &mut config.auth_info.exec {
        // Otherwise the command has our standard error, and what it writes there passes by all that guards ours.
        exec.interactive_mode = Some(ExecInteractiveMode::Never);
    }
    if !own_proxy {
        config.proxy_url =
            Matcher::from_env().intercept(&config.cluster_url).map(|proxy| proxy.uri().clone());
    }
    Ok(config)
}

/// Whether the cluster in use has a proxy of its own.
fn has_own_proxy(kubeconfig: &Kubeconfig) -> bool {
    let current = kubeconfig.current_context.as_ref();
    let context = kubeconfig.contexts.iter().find(|context| Some(&context.name) == current);
    let name = context.and_then(|context| Some(&context.context.as_ref()?.cluster));
    let cluster = kubeconfig.clusters.iter().find(|cluster| Some(&cluster.name) == name);
    cluster.and_then(|cluster| cluster.cluster.as_ref()?.proxy_url.as_ref()).is_some()
}

/// Why a kubeconfig cannot be used. The parser's own words would show the lines around a mistake, and a token in them.
fn fault(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::ReadConfig(error, path) => format!("{} cannot be read: {error}", path.display()),
        KubeconfigError::Parse(error) => {
            let place = error.location().map(|at| format!(", line {}", at.line())).unwrap_or_default();
            format!("the kubeconfig cannot be parsed{place}")
        }
        other => said(&other.to_string()),
    }
}

#[expect(clippy::disallowed_methods, reason = "as `kube` itself finds its way; no setting of ours")]
fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}

/// Why we cannot say who we are. Neither what a command of the kubeconfig's wrote is shown, nor its arguments: they may
/// hold a credential.
fn auth(error: &AuthError) -> String {
    match error {
        AuthError::AuthExecRun { out, .. } => format!("the kubeconfig's command ended with {}", out.status),
        AuthError::AuthExecStart(error) => format!("the kubeconfig's command cannot be run: {error}"),
        AuthError::ReadTokenFile(error, path) => format!("{} cannot be read: {error}", path.display()),
        AuthError::AuthExecParse(_) => "the kubeconfig's command wrote no credential".to_owned(),
        other => said(&other.to_string()),
    }
}

/// Why a request came to no answer at all.
fn unreachable(error: &kube::Error) -> ApiError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<AuthError>() {
            return ApiError::Config(auth(error));
        }
        cause = error.source();
    }
    ApiError::Unreachable(said(&innermost(error)))
}

/// What is at the bottom of an error: `kube` repeats it on every level, and the outer ones say little.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    innermost.to_string()
}
