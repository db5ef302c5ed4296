//! `--listen`: `/metrics`, `/healthz` and `/readyz` over HTTP.
//!
//! The server has no state. It asks the agent's loop, so an answer also shows that the loop runs. Connections, requests and
//! times are limited.

use crate::time::retry::{Backoff, Retry};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, error, info};

/// Enough for probes and one or two Prometheus servers.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send its request's head.
const HEADERS: Duration = Duration::from_secs(1);
/// How long a whole exchange may take.
const EXCHANGE: Duration = Duration::from_secs(10);
/// The smallest limit that hyper allows, in bytes. No probe sends more.
const MAX_HEADERS: usize = 8192;
/// How long the loop may take to answer.
const ANSWER: Duration = Duration::from_secs(3);
/// The longest pause between two attempts to bind an address that is in use.
const BIND: Duration = Duration::from_secs(30);

/// A question to the agent's loop.
#[derive(Debug)]
pub enum Query {
    /// Whether the loop runs.
    Alive(oneshot::Sender<()>),
    /// Whether the agent is ready.
    Ready(oneshot::Sender<Readiness>),
    /// The metrics, as text.
    Metrics(oneshot::Sender<String>),
}

/// Whether the agent is ready.
#[derive(Debug)]
pub enum Readiness {
    /// It is. With a time, the kubelet may use what it read before until then.
    Ready(Option<Timestamp>),
    /// Why it is not, a line each.
    NotReady(Vec<String>),
}

/// Serves until dropped. An address that is in use is tried again, while the agent works without it.
pub async fn serve(address: SocketAddr, queries: mpsc::Sender<Query>) {
    let listener = bind(address).await;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // A client beyond the limit waits in the system's queue.
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, queries.clone()));
                }
                // Probably no file descriptor is left: the pause prevents a busy loop.
                Err(_) => sleep(Duration::from_secs(1)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn bind(address: SocketAddr) -> TcpListener {
    let mut backoff = Backoff::between(Duration::from_secs(1), BIND);
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                let address = listener.local_addr().unwrap_or(address);
                info!(%address, "serving metrics and probes");
                return listener;
            }
            Err(error) if backoff.failures() == 0 => {
                error!(%address, %error, "cannot serve metrics and probes yet; trying again until the address is free");
            }
            Err(error) => debug!(%address, %error, "cannot serve metrics and probes yet"),
        }
        sleep(backoff.failed(Retry::Later, Duration::ZERO, Duration::ZERO, fastrand::f64())).await;
    }
}

async fn connection(stream: TcpStream, queries: mpsc::Sender<Query>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let queries = queries.clone();
        async move { Ok::<_, Infallible>(answer(&request, &queries).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(MAX_HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // A client that disconnects or sends no HTTP is not worth a log line.
    drop(timeout(EXCHANGE, serving).await);
}

async fn answer(request: &Request<Incoming>, queries: &mpsc::Sender<Query>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only\n".to_owned());
    }
    let hangs = || text(StatusCode::SERVICE_UNAVAILABLE, "the agent's loop does not answer\n".to_owned());
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
        "/readyz" => match ask(queries, Query::Ready).await {
            Some(Readiness::Ready(None)) => text(StatusCode::OK, "ok\n".to_owned()),
            Some(Readiness::Ready(Some(from))) => {
                let cached = "the kubelet may use what it read before until";
                text(StatusCode::OK, format!("ok\n{cached} {from:.0}\n"))
            }
            Some(Readiness::NotReady(reasons)) => {
                text(StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n")
            }
            None => hangs(),
        },
        _ => text(StatusCode::NOT_FOUND, "/metrics, /healthz, /readyz\n".to_owned()),
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
