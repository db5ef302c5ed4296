//! `--listen`: `/metrics`, `/healthz` and `/readyz` over HTTP.
//!
//! The server knows nothing. It asks the loop, which so shows that it is alive: a loop that hangs answers nobody. Bounded
//! in connections, in what a client may send, and in time.

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Probes and one or two Prometheus servers.
const MAX_CONNECTIONS: usize = 64;
/// What a client may take to send its request, and the whole exchange.
const HEADERS: Duration = Duration::from_secs(1);
const EXCHANGE: Duration = Duration::from_secs(10);
/// The least that hyper takes, and more than any probe sends.
const MAX_HEADERS: usize = 8192;
/// How long the loop may take to answer.
const ANSWER: Duration = Duration::from_secs(3);

/// What is asked of the loop.
#[derive(Debug)]
pub enum Query {
    /// Are you there?
    Alive(oneshot::Sender<()>),
    /// Which keys must be in the auth files? `None` where nobody knows yet.
    Keys(oneshot::Sender<Option<Vec<String>>>),
    /// The metrics, as text.
    Metrics(oneshot::Sender<String>),
}

/// Serves until dropped. `missing` looks at the auth files and says which of the keys have no valid entry; it may block.
/// `pull_secrets` says why the pull secrets are not ready, and is `None` where they do not count.
pub async fn serve<M, P>(listener: TcpListener, queries: mpsc::Sender<Query>, missing: M, pull_secrets: P)
where
    M: Fn(&[String]) -> Vec<String> + Clone + Send + 'static,
    P: Fn() -> Option<&'static str> + Clone + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // A client beyond the bound waits in the queue of the system.
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, queries.clone(), missing.clone(), pull_secrets.clone()));
                }
                // Out of descriptors, most likely: a pause, so that this does not spin on it.
                Err(_) => sleep(Duration::from_secs(1)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection<M, P>(stream: TcpStream, queries: mpsc::Sender<Query>, missing: M, pull_secrets: P)
where
    M: Fn(&[String]) -> Vec<String> + Clone + Send + 'static,
    P: Fn() -> Option<&'static str>,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let (missing, queries) = (missing.clone(), queries.clone());
        let not_ready = pull_secrets();
        async move { Ok::<_, Infallible>(answer(&request, &queries, missing, not_ready).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(MAX_HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // A client that goes away or sends nonsense is no event.
    drop(timeout(EXCHANGE, serving).await);
}

async fn answer(
    request: &Request<Incoming>,
    queries: &mpsc::Sender<Query>,
    missing: impl Fn(&[String]) -> Vec<String> + Send + 'static,
    not_ready: Option<&'static str>,
) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only\n".to_owned());
    }
    let hangs = || text(StatusCode::SERVICE_UNAVAILABLE, "the loop does not answer\n".to_owned());
    match request.uri().path() {
        "/metrics" => match ask(queries, Query::Metrics).await {
            Some(metrics) => {
                let mut response = text(StatusCode::OK, metrics);
                let kind = "text/plain; version=0.0.4; charset=utf-8";
                response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
                response
            }
            None => hangs(),
        },
        "/healthz" => match ask(queries, Query::Alive).await {
            Some(()) => text(StatusCode::OK, "ok\n".to_owned()),
            None => hangs(),
        },
        "/readyz" => match ask(queries, Query::Keys).await {
            Some(Some(keys)) => match not_ready {
                Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
                None => readiness(missing, keys).await,
            },
            Some(None) => text(StatusCode::SERVICE_UNAVAILABLE, "not known yet whom to ask\n".to_owned()),
            None => hangs(),
        },
        _ => text(StatusCode::NOT_FOUND, "/metrics, /healthz, /readyz\n".to_owned()),
    }
}

/// Whether every registry that was asked for has an unexpired entry on disk now.
async fn readiness(
    missing: impl Fn(&[String]) -> Vec<String> + Send + 'static,
    keys: Vec<String>,
) -> Response<Full<Bytes>> {
    match tokio::task::spawn_blocking(move || missing(&keys)).await {
        Ok(missing) if missing.is_empty() => text(StatusCode::OK, "ok\n".to_owned()),
        Ok(missing) => text(StatusCode::SERVICE_UNAVAILABLE, missing.join("\n") + "\n"),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the files could not be looked at\n".to_owned()),
    }
}

async fn ask<T>(queries: &mpsc::Sender<Query>, query: impl FnOnce(oneshot::Sender<T>) -> Query) -> Option<T> {
    let (sender, receiver) = oneshot::channel();
    let exchange = async {
        queries.send(query(sender)).await.ok()?;
        receiver.await.ok()
    };
    timeout(ANSWER, exchange).await.ok().flatten()
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}
