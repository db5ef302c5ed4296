//! The one port: takes connections, finds out what is asked, and sends it to its API.

use crate::{
    Api, ecr, metadata, registry, sessions, sts,
    world::{World, random_request_id},
};
use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{ConnectInfo, Request, State, connect_info::Connected},
    http::{
        HeaderValue, Method, StatusCode,
        header::{CONTENT_TYPE, DATE},
        request::Parts,
    },
    response::Response,
    serve::{IncomingStream, Listener},
};
use jiff::fmt::rfc2822;
use serde_json::json;
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::sleep,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::either::Either;

/// A request, read to its end.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) parts: Parts,
    pub(crate) body: Bytes,
}

impl Asked {
    /// A header's value; empty when it is missing or no text.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The host that the client believes to talk to.
    pub(crate) fn host(&self) -> &str {
        let in_target = self.parts.uri.authority().map(axum::http::uri::Authority::as_str);
        in_target.unwrap_or_else(|| self.header("host"))
    }

    /// A field of the form in the body; empty when it is missing.
    pub(crate) fn field(&self, name: &str) -> String {
        let mut fields = form_urlencoded::parse(&self.body);
        fields.find(|(key, _)| key == name).map(|(_, value)| value.into_owned()).unwrap_or_default()
    }

    /// Which API is meant, if any.
    fn api(&self) -> Option<Api> {
        let path = self.parts.uri.path();
        match self.parts.method {
            Method::POST if path == "/" => match self.header("x-amz-target") {
                "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken" => Some(Api::Ecr),
                "SpencerFrontendService.GetAuthorizationToken" => Some(Api::EcrPublic),
                "" => match self.field("Action").as_str() {
                    "AssumeRole" => Some(Api::AssumeRole),
                    "AssumeRoleWithWebIdentity" => Some(Api::WebIdentity),
                    _ => None,
                },
                _ => None,
            },
            Method::POST if path.ends_with("/sessions") => Some(Api::RolesAnywhere),
            Method::PUT if path == "/latest/api/token" => Some(Api::ImdsSession),
            Method::GET if path == "/latest/meta-data/placement/region" => Some(Api::ImdsRegion),
            Method::GET if path.starts_with(metadata::ROLES) => Some(Api::ImdsCredentials),
            // Before the container's paths: a repository may be named `credentials`.
            Method::GET | Method::HEAD
                if path == "/v2/" || path.starts_with("/v2/") && path.contains("/manifests/") =>
            {
                Some(Api::Registry)
            }
            Method::GET if path == "/token" => Some(Api::Registry),
            Method::GET if path == "/v1/credentials" || path.starts_with("/v2/credentials/") => {
                Some(Api::Container)
            }
            _ => None,
        }
    }
}

/// Serves until dropped.
///
/// # Errors
/// When the runtime refuses the listener.
pub(crate) async fn serve(
    listener: std::net::TcpListener,
    tls: Option<TlsAcceptor>,
    world: Arc<World>,
) -> io::Result<()> {
    let listener = Door { tcp: TcpListener::from_std(listener)?, tls, handshakes: JoinSet::new() };
    let router = Router::new().fallback(answer).with_state(world);
    axum::serve(listener, router.into_make_service_with_connect_info::<Connection>()).await
}

async fn answer(
    State(world): State<Arc<World>>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, 1 << 20).await else {
        return respond(
            413,
            "text/plain",
            "ecr-emulator: the request's body is longer than 1 MiB, or broken off\n",
        );
    };
    // Read before the request is judged: a refusal for its time never comes with a date that the clock was set to since.
    let now = world.now();
    let mut answer = route(&world, &Asked { parts, body }, &connection).await;
    let headers = answer.headers_mut();
    if let Ok(id) = HeaderValue::try_from(random_request_id()) {
        headers.insert("x-amzn-requestid", id);
    }
    let date = rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&now);
    if let Some(date) = date.ok().and_then(|date| HeaderValue::try_from(date).ok()) {
        headers.insert(DATE, date);
    }
    answer
}

/// Records, fails as told, or answers.
async fn route(world: &World, asked: &Asked, connection: &Connection) -> Response {
    let Some(api) = asked.api() else {
        let (method, uri) = (&asked.parts.method, &asked.parts.uri);
        let target = asked.header("x-amz-target");
        return respond(
            404,
            "text/plain",
            format!("ecr-emulator: nothing is known of {method} {uri}, X-Amz-Target {target:?}\n"),
        );
    };
    let fault = world.record(api, asked);
    let fault = fault.as_ref();
    if let Some(fault) = fault
        && let Some(answer) = fault.instead(api).await
    {
        return answer;
    }
    let answer = match api {
        Api::Ecr | Api::EcrPublic => ecr::answer(world, api, asked, fault),
        Api::AssumeRole | Api::WebIdentity => sts::answer(world, api, asked, fault),
        Api::RolesAnywhere => sessions::answer(world, asked, fault),
        Api::ImdsSession => metadata::session(world, asked, fault),
        Api::ImdsCredentials => metadata::instance(world, asked, fault),
        Api::ImdsRegion => metadata::region(world, asked),
        Api::Container => metadata::container(world, asked, fault),
        Api::Registry => registry::answer(world, asked),
    };
    match fault {
        Some(fault) if answer.status().is_success() => fault.spoil(answer, connection).await,
        _ => answer,
    }
}

/// A response of three parts. A `status` that is none becomes 500.
pub(crate) fn respond(status: u16, content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut answer = Response::new(body.into());
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// An error in the shape of `api`.
pub(crate) fn refuse(api: Api, status: u16, code: &str, message: &str) -> Response {
    match api {
        Api::Ecr | Api::EcrPublic => {
            let body = json!({ "__type": code, "message": message });
            respond(status, "application/x-amz-json-1.1", body.to_string())
        }
        Api::AssumeRole | Api::WebIdentity => sts::error(status, code, message),
        Api::RolesAnywhere => sessions::error(status, code, message),
        Api::ImdsSession | Api::ImdsCredentials | Api::ImdsRegion => {
            respond(status, "text/plain", json!({ "Code": code, "Message": message }).to_string())
        }
        Api::Container => {
            respond(status, "application/json", json!({ "code": code, "message": message }).to_string())
        }
        Api::Registry => {
            let body = json!({ "errors": [{ "code": code, "message": message }] });
            respond(status, "application/json", body.to_string())
        }
    }
}

/// What a handler may do to the connection that it answers on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Connection {
    reset: Arc<AtomicBool>,
}

impl Connection {
    /// Makes the connection end in a TCP reset (`true`) or in an orderly way.
    pub(crate) fn reset_when_closed(&self, reset: bool) {
        self.reset.store(reset, Ordering::Relaxed);
    }
}

impl Connected<IncomingStream<'_, Door>> for Connection {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        match stream.io() {
            Either::Left(socket) => socket.connection.clone(),
            Either::Right(tls) => tls.get_ref().0.connection.clone(),
        }
    }
}

/// Takes connections, and with TLS gives them on once their handshake is done. One that dallies keeps nobody waiting.
pub(crate) struct Door {
    tcp: TcpListener,
    tls: Option<TlsAcceptor>,
    handshakes: JoinSet<Option<(TlsStream<Socket>, SocketAddr)>>,
}

impl Listener for Door {
    type Io = Either<Socket, TlsStream<Socket>>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            tokio::select! {
                accepted = self.tcp.accept() => match (accepted, self.tls.clone()) {
                    // Or an answer in two parts waits 40 ms for the client's delayed acknowledgement. A connection that
                    // cannot be set so is gone already.
                    (Ok((tcp, _)), _) if tcp.set_nodelay(true).is_err() => {}
                    (Ok((tcp, from)), None) => return (Either::Left(Socket::new(tcp)), from),
                    (Ok((tcp, from)), Some(tls)) => {
                        let handshake = async move { Some((tls.accept(Socket::new(tcp)).await.ok()?, from)) };
                        self.handshakes.spawn(handshake);
                    }
                    // Out of descriptors, most likely: a pause, so that the loop does not spin on it.
                    (Err(_), _) => sleep(Duration::from_millis(100)).await,
                },
                Some(done) = self.handshakes.join_next() => if let Ok(Some((stream, from))) = done {
                    return (Either::Right(stream), from);
                },
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

/// A TCP connection that can end in a reset.
pub(crate) struct Socket {
    tcp: TcpStream,
    connection: Connection,
}

impl Socket {
    fn new(tcp: TcpStream) -> Self {
        Self { tcp, connection: Connection::default() }
    }

    fn resets(&self) -> bool {
        self.connection.reset.load(Ordering::Relaxed)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.resets() {
            // With no lingering the kernel answers a close with RST; where it refuses, the end is a plain one.
            self.tcp.set_zero_linger().unwrap_or_default();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.resets() {
            // An orderly FIN would reach the client before the reset.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}
