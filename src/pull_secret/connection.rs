//! Every client for the API server, over connections that are replaced as servers and credentials change.
//!
//! A `kube` client keeps the API server and the credentials that it was made with, and its typed requests are not limited in
//! time or size and drop `Retry-After`. So this client sends each request through the inner client that is current then, and
//! adds these limits. All watches and requests of a client share its inner client, and so the work of making a new one.

use super::error::ApiError;
use super::exec::{self, Credential};
use super::kubeconfig::{self, ConfigError};
use crate::time::clock;
use crate::time::timer::{Deadline, Now};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt as _, Either, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::header::RETRY_AFTER;
use hyper::http::response::Parts;
use hyper::{Request, Response, StatusCode};
use jiff::SignedDuration;
use kube::client::Body;
use kube::config::ExecConfig;
use kube::{Client, Config};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};
use tower::service_fn;

/// How long a request for one object may take, and how many bytes its answer may have: 1 MiB of data in base64, and twice
/// 256 KiB of annotations where `kubectl apply` made it.
const OBJECT: (Duration, usize) = (Duration::from_secs(10), 4 << 20);
/// The same for one page of a list, and for a watch. API servers give up after a minute.
const LIST: (Duration, usize) = (Duration::from_mins(1), 64 << 20);
/// A token that comes from a file is read again after this time.
const TOKEN_FILE: Duration = Duration::from_mins(1);
/// A credential is renewed this much before it expires.
const EARLY: SignedDuration = SignedDuration::from_secs(60);
/// An inner client is not replaced sooner, however many requests fail.
const RECONNECT: Duration = Duration::from_secs(1);

/// A client for the API server that the environment names. The first request connects.
pub(super) fn client() -> Client {
    client_by(kubeconfig::load)
}

/// A client for the API server of this pod's cluster, with the pod's service account and no other credential: a kubeconfig could
/// run a program. The first request connects.
#[must_use]
pub fn client_of_pod() -> Client {
    client_by(kubeconfig::load_in_cluster)
}

fn client_by(load: Load) -> Client {
    let connection = Arc::new(Connection { load, state: Mutex::default(), files: Arc::default() });
    let send = move |request| {
        let connection = Arc::clone(&connection);
        async move { connection.send(request).await }
    };
    Client::new(service_fn(send), "default")
}

/// Finds the API server, and where its configuration comes from.
type Load = fn() -> Result<(Config, String), ConfigError>;

struct Connection {
    load: Load,
    state: Mutex<State>,
    /// Held while files are read, also by a read that hangs: then no second thread waits for the same file.
    files: Arc<Mutex<()>>,
}

#[derive(Default)]
struct State {
    inner: Option<Inner>,
    /// The last credential of a kubeconfig's command, and the command.
    credential: Option<(String, Credential)>,
}

/// The inner client, or why there is none.
struct Inner {
    client: Result<Client, ApiError>,
    made_at: Instant,
    /// When another one is to be made; `None` while nothing demands it.
    replace_at: Option<Deadline>,
}

impl Connection {
    async fn send(
        &self,
        request: Request<Body>,
    ) -> Result<Response<Either<Full<Bytes>, Limited<Body>>>, ApiError> {
        let query = request.uri().query().unwrap_or_default();
        let is_watch = query.contains("watch=");
        let (limit, size) = if is_watch || query.contains("limit=") { LIST } else { OBJECT };
        let (client, made_at) = self.inner().await?;
        let exchange = async {
            let answer = client.send(request).await.map_err(|error| ApiError::unreachable(&error))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, size);
            if is_watch && head.status.is_success() {
                return Ok(Response::from_parts(head, Either::Right(body)));
            }
            let body =
                body.collect().await.map_err(|error| match error.downcast_ref::<LengthLimitError>() {
                    Some(_) => ApiError::InvalidAnswer,
                    None => ApiError::unreachable(error.as_ref()),
                })?;
            let bytes = body.to_bytes();
            let bytes = if head.status.is_success() { bytes } else { status(&head, &bytes) };
            Ok(Response::from_parts(head, Either::Left(Full::new(bytes))))
        };
        let answer = timeout(limit, exchange).await.unwrap_or(Err(ApiError::Timeout(limit)));
        let is_unauthorized = answer.as_ref().is_ok_and(|answer| answer.status() == StatusCode::UNAUTHORIZED);
        if is_unauthorized || answer.is_err() {
            // The kubeconfig may name another API server or CA by now, or hold another token.
            let mut state = self.state.lock().await;
            if let Some(inner) = state.inner.as_mut().filter(|inner| inner.made_at == made_at) {
                inner.replace_at = Some(clock::both().after(Duration::ZERO));
                state.credential.take_if(|_| is_unauthorized);
            }
        }
        answer
    }

    /// The current inner client, and when it was made.
    async fn inner(&self) -> Result<(Client, Instant), ApiError> {
        let asked_at = Instant::now();
        let mut state = self.state.lock().await;
        let now = clock::both();
        // Callers that have waited for the same attempt share its result, also a failure.
        let current = state.inner.take().filter(|inner| {
            let is_new = inner.made_at >= asked_at || inner.made_at.elapsed() < RECONNECT;
            is_new || !inner.replace_at.is_some_and(|at| now.is_past(at))
        });
        let inner = match current {
            Some(inner) => inner,
            None => match self.connect(&mut state.credential, now).await {
                Ok((client, replace_at)) => Inner { client: Ok(client), made_at: Instant::now(), replace_at },
                Err(error) => Inner {
                    client: Err(ApiError::Config(Arc::new(error))),
                    made_at: Instant::now(),
                    replace_at: Some(now.after(Duration::ZERO)),
                },
            },
        };
        let client = inner.client.clone().map(|client| (client, inner.made_at));
        state.inner = Some(inner);
        client
    }

    async fn connect(
        &self,
        cached: &mut Option<(String, Credential)>,
        now: Now,
    ) -> Result<(Client, Option<Deadline>), ConfigError> {
        let (mut config, origin) = self.off_the_loop(self.load).await??;
        let mut replace_at = config.auth_info.token_file.take().map(|_| now.after(TOKEN_FILE));
        let has_other = config.auth_info.token.is_some() || config.auth_info.username.is_some();
        if let Some(exec) = config.auth_info.exec.take().filter(|_| !has_other) {
            let credential = credential(&exec, cached, now).await?;
            replace_at = credential.expires_at.map(|end| now.until(early(end)));
            use_credential(&mut config, credential);
        }
        let client = self.off_the_loop(move || kubeconfig::client(config, &origin)).await??;
        Ok((client, replace_at))
    }

    /// Runs blocking file I/O, for a limited time.
    async fn off_the_loop<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ConfigError> {
        let job = async {
            let files = Arc::clone(&self.files).lock_owned().await;
            let run = move || {
                let _files = files;
                job()
            };
            spawn_blocking(run).await.ok()
        };
        timeout(OBJECT.0, job).await.ok().flatten().ok_or(ConfigError::Slow(OBJECT.0))
    }
}

fn early(expires_at: jiff::Timestamp) -> jiff::Timestamp {
    expires_at.saturating_sub(EARLY).unwrap_or(expires_at)
}

/// The credential of a kubeconfig's command. The command runs again if its last credential expires soon or was not accepted.
async fn credential(
    exec: &ExecConfig,
    cached: &mut Option<(String, Credential)>,
    now: Now,
) -> Result<Credential, ConfigError> {
    let key = serde_json::to_string(exec).unwrap_or_default();
    let is_good = |held: &Credential| held.expires_at.is_none_or(|end| early(end) > now.wall);
    if let Some((_, credential)) = cached.as_ref().filter(|(of, held)| *of == key && is_good(held)) {
        return Ok(credential.clone());
    }
    let command = exec.command.clone().unwrap_or_default();
    let credential = exec::run(exec).await.map_err(|source| ConfigError::Exec { command, source })?;
    *cached = Some((key, credential.clone()));
    Ok(credential)
}

fn use_credential(config: &mut Config, credential: Credential) {
    let user = &mut config.auth_info;
    user.token = credential.token;
    if let (Some(certificate), Some(key)) = (credential.client_certificate_data, credential.client_key_data) {
        user.client_certificate_data = Some(STANDARD.encode(certificate));
        user.client_key_data = Some(SecretString::from(STANDARD.encode(key.expose_secret())));
    }
}

/// The answer to a request that failed, as a `Status` with its code and with what `Retry-After` says: `kube` reads nothing
/// else.
fn status(head: &Parts, body: &[u8]) -> Bytes {
    let parsed = serde_json::from_slice(body).ok().filter(Value::is_object);
    let mut status = parsed.unwrap_or_else(|| json!({ "message": String::from_utf8_lossy(body).trim() }));
    status["code"] = json!(head.status.as_u16());
    let retry_after =
        head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse::<u32>().ok());
    if let Some(seconds) = retry_after {
        if !status["details"].is_object() {
            status["details"] = json!({});
        }
        status["details"]["retryAfterSeconds"] = json!(seconds);
    }
    Bytes::from(status.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: u16, retry_after: Option<&str>, body: &str) -> Value {
        let mut response = Response::builder().status(code);
        if let Some(value) = retry_after {
            response = response.header(RETRY_AFTER, value);
        }
        let (head, ()) = response.body(()).unwrap().into_parts();
        serde_json::from_slice(&status(&head, body.as_bytes())).unwrap()
    }

    #[test]
    fn a_failed_answer_has_its_code_and_the_time_to_wait() {
        let text = answer(429, Some("7"), "too many\n");
        assert_eq!(
            text,
            json!({ "message": "too many", "code": 429, "details": { "retryAfterSeconds": 7 } })
        );
        // A proxy's own JSON.
        assert_eq!(answer(502, None, r#"{"error":"x"}"#), json!({ "error": "x", "code": 502 }));
        let own = answer(403, Some("soon"), r#"{"message":"no","code":7,"details":{"kind":"secrets"}}"#);
        assert_eq!(own, json!({ "message": "no", "code": 403, "details": { "kind": "secrets" } }));
        let null = answer(503, Some("1"), r#"{"details":null}"#);
        assert_eq!(null["details"]["retryAfterSeconds"], 1);
        assert_eq!(answer(500, None, "[1]")["message"], "[1]");
    }
}
