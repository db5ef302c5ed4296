//! The one place where requests leave for the network, whoever makes them: the AWS SDK or this program.
//!
//! A [`Connector`] chooses the proxy, limits the length of an answer, and names in its errors the server and the proxy.

use super::proxy::{Proxies, Proxy};
use super::trust::{Tls, no_tls};
use aws_smithy_runtime_api::client::dns::ResolveDnsError;
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use futures_util::FutureExt as _;
use futures_util::future::Fuse;
use http_body_util::Limited;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue, PROXY_AUTHORIZATION};
use hyper::{Request, Uri};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector as TcpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::rt::TokioIo;
use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower::{ServiceExt as _, service_fn};

/// An answer of ECR is 3 KB, one of the metadata service less.
pub(super) const MAX_ANSWER: usize = 1024 * 1024;
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// No answer came from a server.
#[derive(Debug, thiserror::Error)]
#[error("cannot reach {host}{}", proxy.as_deref().map(|proxy| format!(" through {proxy}")).unwrap_or_default())]
pub struct Unreachable {
    /// The server's host, with its port if the URL has one.
    pub host: String,
    /// The proxy on the way; `None` if there is none.
    pub proxy: Option<String>,
    source: Box<dyn Error + Send + Sync>,
}

/// The proxy that an answer came through, as an extension of the answer. A proxy answers plain HTTP requests itself when it
/// refuses them.
#[derive(Debug, Clone)]
pub struct CameThrough(pub String);

/// No connection in time.
#[derive(Debug, thiserror::Error)]
#[error("no connection within {} s", CONNECT_TIMEOUT.as_secs())]
struct ConnectTimeout;

/// Makes a connection for each request. There is no pool: an attempt makes few requests, most of them to different servers,
/// and no connection may stay open until the next attempt.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    tls: Arc<Tls>,
    proxies: Arc<Proxies>,
}

/// TCP to the server or the proxy; if to a proxy with an `https` URL, inside TLS.
type Hop = MaybeHttpsStream<TokioIo<TcpStream>>;
/// A connection to a server: plain, or inside TLS.
type Stream = MaybeHttpsStream<Hop>;

impl Connector {
    pub(super) fn new(tls: Arc<Tls>, proxies: Proxies) -> Self {
        Self { tls, proxies: Arc::new(proxies) }
    }

    async fn send(self, request: HttpRequest, url: Uri) -> Result<HttpResponse, ConnectorError> {
        let proxy = self.proxies.for_url(&url);
        let exchange = async {
            let connecting = timeout(CONNECT_TIMEOUT, connect(&self.tls, &url, proxy));
            let stream =
                connecting.await.map_err(|_| ConnectorError::timeout(Box::new(ConnectTimeout)))??;
            exchange(stream, message(request, &url, proxy)?).await
        };
        let mut answer = exchange.await.map_err(|error| {
            let host = url.authority().map(ToString::to_string).unwrap_or_default();
            named(error, host, proxy.map(ToString::to_string))
        })?;
        if let Some(proxy) = proxy {
            answer.add_extension(CameThrough(proxy.to_string()));
        }
        Ok(answer)
    }
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        match request.uri().parse::<Uri>() {
            Ok(url) => HttpConnectorFuture::new(self.clone().send(request, url)),
            Err(_) => {
                HttpConnectorFuture::ready(Err(ConnectorError::user("the request's URL is none".into())))
            }
        }
    }
}

/// The same error, with the names of the server and the proxy.
fn named(error: ConnectorError, host: String, proxy: Option<String>) -> ConnectorError {
    let again = if error.is_timeout() {
        ConnectorError::timeout
    } else if error.is_user() {
        ConnectorError::user
    } else {
        ConnectorError::io
    };
    again(Box::new(Unreachable { host, proxy, source: error.into_source() }))
}

/// Connects to the server of a URL, or to the proxy.
async fn connect(tls: &Tls, url: &Uri, proxy: Option<&Proxy>) -> Result<Stream, ConnectorError> {
    let is_tls = |url: &Uri| url.scheme_str() == Some("https");
    let config = if is_tls(url) || proxy.is_some_and(|proxy| is_tls(proxy.url())) {
        tls.config().await.map_err(|error| ConnectorError::user(error.into()))?
    } else {
        no_tls()
    };
    let mut tcp = TcpConnector::new_with_resolver(service_fn(resolve));
    // `https` URLs are for the layer above.
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    // For all addresses of a host together.
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let hop = HttpsConnector::from((tcp, Arc::clone(&config)));
    let stream = match proxy {
        None => hop.oneshot(url.clone()).await.map(MaybeHttpsStream::Http),
        Some(proxy) if is_tls(url) => {
            let mut tunnel = Tunnel::new(proxy.url().clone(), hop);
            if let Some(authorization) = proxy.authorization() {
                tunnel = tunnel.with_auth(authorization.clone());
            }
            HttpsConnector::from((tunnel, config)).oneshot(url.clone()).await
        }
        Some(proxy) => hop.oneshot(proxy.url().clone()).await.map(MaybeHttpsStream::Http),
    };
    stream.map_err(ConnectorError::io)
}

/// The system's resolver, with an error of its own type.
async fn resolve(name: Name) -> Result<impl Iterator<Item = std::net::SocketAddr>, ResolveDnsError> {
    let addresses = tokio::net::lookup_host((name.as_str(), 0)).await.map_err(ResolveDnsError::new)?;
    Ok(addresses.collect::<Vec<_>>().into_iter())
}

/// The request as it is written to the connection.
fn message(
    request: HttpRequest,
    url: &Uri,
    proxy: Option<&Proxy>,
) -> Result<Request<SdkBody>, ConnectorError> {
    let mut request = request.try_into_http1x().map_err(|error| ConnectorError::user(error.into()))?;
    if !request.headers().contains_key(HOST) {
        let host = url.host().unwrap_or_default();
        let default = if url.scheme_str() == Some("https") { 443 } else { 80 };
        let host = match url.port_u16().filter(|port| *port != default) {
            Some(port) => HeaderValue::try_from(format!("{host}:{port}")),
            None => HeaderValue::try_from(host),
        };
        request.headers_mut().insert(HOST, host.map_err(|error| ConnectorError::user(error.into()))?);
    }
    match proxy {
        // The proxy needs the whole URL.
        Some(proxy) if url.scheme_str() == Some("http") => {
            if let Some(authorization) = proxy.authorization() {
                request.headers_mut().insert(PROXY_AUTHORIZATION, authorization.clone());
            }
        }
        _ => {
            let path = url.path_and_query().cloned();
            *request.uri_mut() = path.map_or_else(Uri::default, Uri::from);
        }
    }
    Ok(request)
}

/// Sends a request and receives the head of its answer.
async fn exchange(stream: Stream, request: Request<SdkBody>) -> Result<HttpResponse, ConnectorError> {
    let failed = |error: hyper::Error| {
        if error.is_user() { ConnectorError::user(error.into()) } else { ConnectorError::io(error.into()) }
    };
    let (mut sender, connection) = http1::handshake(stream).await.map_err(failed)?;
    let mut connection = connection.fuse();
    let mut sending = std::pin::pin!(sender.send_request(request));
    let answer = std::future::poll_fn(|context| {
        // An error of the connection is the answer's, too.
        let _ended = connection.poll_unpin(context).is_ready();
        sending.as_mut().poll(context)
    });
    let answer = answer.await.map_err(failed)?;
    let answer =
        answer.map(|body| SdkBody::from_body_1_x(Limited::new(Driven { connection, body }, MAX_ANSWER)));
    HttpResponse::try_from(answer).map_err(|error| ConnectorError::io(error.into()))
}

/// The body of an answer, with the connection that it comes from. Whoever reads the body drives the connection, and it ends
/// with the body.
struct Driven {
    connection: Fuse<http1::Connection<Stream, SdkBody>>,
    body: Incoming,
}

impl Body for Driven {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let _ended = self.connection.poll_unpin(context).is_ready();
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ecr::http::request::{Request, SendError};
    use crate::ecr::http::trust::Trust;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    /// A server that takes one request and gives one answer, and its URL.
    async fn server(answer: &'static str) -> (impl Future<Output = String>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/path?query", listener.local_addr().unwrap());
        let serve = async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            request.truncate(length);
            String::from_utf8(request).unwrap()
        };
        (serve, url)
    }

    fn connector() -> Connector {
        // Reading the authorities would fail, and the request with it.
        let path = "/nonexistent".into();
        let tls = Tls::new(Trust::File { variable: "AWS_CA_BUNDLE", path });
        Connector::new(Arc::new(tls), Proxies::default())
    }

    #[tokio::test]
    async fn plain_http_needs_no_authorities() {
        let (serve, url) = server("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        let connector = connector();
        let send = Request::get(&url, CONNECT_TIMEOUT).send(&connector);
        let (request, answer) = tokio::join!(serve, send);
        assert_eq!(answer.unwrap().text(), Some("ok"));
        let lines: Vec<&str> = request.lines().collect();
        assert_eq!(lines[0], "GET /path?query HTTP/1.1");
        let host = url.strip_prefix("http://").unwrap().split('/').next().unwrap();
        assert!(lines.contains(&format!("host: {host}").as_str()), "{request}");

        let url = url.replace("http://", "https://");
        let error = Request::get(&url, CONNECT_TIMEOUT).send(&connector).await.unwrap_err();
        let SendError::Connection(error) = error else { panic!("{error}") };
        assert!(error.is_user(), "{error}");
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_or_is_none_is_an_error() {
        for (answer, breaks_off) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nok", true),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\nok", true),
            ("220 mail.example ESMTP\r\n", false),
            ("", false),
        ] {
            let (serve, url) = server(answer).await;
            let connector = connector();
            let send = Request::get(&url, CONNECT_TIMEOUT).send(&connector);
            let (_, result) = tokio::join!(serve, send);
            match result.unwrap_err() {
                SendError::BrokeOff(_) => assert!(breaks_off, "{answer}"),
                SendError::Connection(_) => assert!(!breaks_off, "{answer}"),
                other => panic!("{answer}: {other}"),
            }
        }
    }
}
