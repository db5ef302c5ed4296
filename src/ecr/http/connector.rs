//! The one place where requests leave for the network, whoever makes them: the AWS SDK or this program.
//!
//! A [`Connector`] chooses the proxy, limits the length of an answer, and names in its errors the server and the proxy.

use super::proxy::Proxies;
use aws_smithy_async::rt::sleep::default_async_sleep;
use aws_smithy_http_client::Connector as SdkConnector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_runtime_api::client::dns::{DnsFuture, ResolveDns, ResolveDnsError};
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture, HttpConnectorSettings};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use http_body_util::Limited;
use hyper::Uri;
use secrecy::ExposeSecret as _;
use std::error::Error;
use std::sync::OnceLock;
use std::time::Duration;

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

/// Makes connections. The parts of it are made when they are first used, since reading certificates takes time.
#[derive(Debug)]
pub(super) struct Connector {
    trust: TrustStore,
    proxies: Proxies,
    /// Plain HTTP without a proxy.
    plain: OnceLock<SdkConnector>,
    /// TLS without a proxy.
    tls: OnceLock<SdkConnector>,
    /// Through the proxy for `http` URLs.
    plain_by_proxy: OnceLock<SdkConnector>,
    /// Through the proxy for `https` URLs.
    tls_by_proxy: OnceLock<SdkConnector>,
}

impl Connector {
    pub(super) fn new(trust: TrustStore, proxies: Proxies) -> Self {
        Self {
            trust,
            proxies,
            plain: OnceLock::new(),
            tls: OnceLock::new(),
            plain_by_proxy: OnceLock::new(),
            tls_by_proxy: OnceLock::new(),
        }
    }
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let Ok(url) = request.uri().parse::<Uri>() else {
            return HttpConnectorFuture::ready(Err(ConnectorError::user("the request's URL is none".into())));
        };
        let is_tls = url.scheme_str() == Some("https");
        let proxy = self.proxies.for_url(&url);
        let connector = match (is_tls, proxy) {
            (false, None) => self.plain.get_or_init(|| connect(TrustStore::empty(), ProxyConfig::disabled())),
            (true, None) => self.tls.get_or_init(|| connect(self.trust.clone(), ProxyConfig::disabled())),
            (_, Some(proxy)) => {
                let through = if is_tls { &self.tls_by_proxy } else { &self.plain_by_proxy };
                // The variable was checked when it was read.
                let config = || {
                    ProxyConfig::all(proxy.url.expose_secret()).unwrap_or_else(|_| ProxyConfig::disabled())
                };
                through.get_or_init(|| connect(self.trust.clone(), config()))
            }
        };
        let host = url.authority().map(ToString::to_string).unwrap_or_default();
        let proxy = proxy.map(ToString::to_string);
        let answer = connector.call(request);
        HttpConnectorFuture::new(async move {
            match answer.await {
                Ok(answer) => {
                    let mut answer =
                        answer.map(|body| SdkBody::from_body_1_x(Limited::new(body, MAX_ANSWER)));
                    if let Some(proxy) = proxy {
                        answer.add_extension(CameThrough(proxy));
                    }
                    Ok(answer)
                }
                Err(error) => Err(named(error, host, proxy)),
            }
        })
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

fn connect(trust: TrustStore, proxy: ProxyConfig) -> SdkConnector {
    let settings = HttpConnectorSettings::builder().connect_timeout(CONNECT_TIMEOUT).build();
    let mut builder = SdkConnector::builder().connector_settings(settings).proxy_config(proxy);
    builder.set_sleep_impl(default_async_sleep());
    let tls = TlsContext::builder().with_trust_store(trust).build().unwrap_or_default();
    builder.tls_provider(Provider::Rustls(CryptoMode::Ring)).tls_context(tls).build_with_resolver(Resolver)
}

/// The system's resolver, with an error of its own type.
#[derive(Debug, Clone)]
struct Resolver;

impl ResolveDns for Resolver {
    fn resolve_dns<'a>(&'a self, name: &'a str) -> DnsFuture<'a> {
        DnsFuture::new(async move {
            let addresses = tokio::net::lookup_host((name, 0)).await.map_err(ResolveDnsError::new)?;
            Ok(addresses.map(|address| address.ip()).collect())
        })
    }
}
