//! The HTTP clients for AWS and for registries: one TLS stack, proxies and private CAs from the environment, answers of
//! bounded size.

use super::refusal::{Refusal, network_refusal};
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use http_body_util::{BodyExt as _, Limited};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret as _, SecretString};
use std::fs::File;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// An answer of ECR's is 3 KB, one of the metadata service's less.
const MAX_ANSWER: usize = 1024 * 1024;
/// Debian's bundle is 220 KB.
const MAX_BUNDLE: u64 = 16 * 1024 * 1024;
/// Where the distributions keep all certificates in one file. Reading one file is a tenth of the work of reading the
/// directory beside it.
const SYSTEM_BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Where certificates lie one by one.
const SYSTEM_DIRECTORIES: [&str; 2] = ["/etc/ssl/certs", "/etc/pki/tls/certs"];

/// Whom to trust, as the environment says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// The system's certificates.
    System,
    /// The certificates in this file alone: `AWS_CA_BUNDLE`, or else `SSL_CERT_FILE`.
    File {
        /// The variable that named it.
        variable: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The certificates in the files of these directories: `SSL_CERT_DIR`.
    Directories(Vec<PathBuf>),
}

/// A file of certificates that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{variable} names {}, which {what}", path.display())]
pub struct TrustError {
    variable: &'static str,
    path: PathBuf,
    what: String,
}

/// The HTTP clients. Made once: each reads the certificates when it is first used.
#[derive(Debug)]
pub struct Http {
    apis: SharedHttpClient,
    this_node: SharedHttpClient,
    metadata: SharedHttpClient,
}

impl Http {
    /// Reads the certificates to trust.
    ///
    /// # Errors
    /// When a file that was named holds none, or cannot be read.
    pub fn new(trust: &Trust) -> Result<Self, TrustError> {
        // Shared: a bundle is 220 KB, and most runs need it once.
        let trust = Arc::new(trust_store(trust)?);
        Ok(Self {
            apis: client(Arc::clone(&trust), ProxyConfig::from_env()),
            this_node: client(trust, ProxyConfig::disabled()),
            metadata: client(Arc::new(TrustStore::empty()), ProxyConfig::disabled()),
        })
    }

    /// The client for AWS's APIs, through the proxy that `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` name.
    #[must_use]
    pub fn for_apis(&self) -> SharedHttpClient {
        self.apis.clone()
    }

    /// The client for a container's endpoint on the same node: never through a proxy, which could only be another node's,
    /// and would see the credentials.
    #[must_use]
    pub fn for_this_node(&self) -> SharedHttpClient {
        self.this_node.clone()
    }

    /// The client for the metadata service, which speaks no TLS. Never through a proxy either.
    #[must_use]
    pub fn for_metadata(&self) -> SharedHttpClient {
        self.metadata.clone()
    }
}

/// The certificates to trust.
fn trust_store(trust: &Trust) -> Result<TrustStore, TrustError> {
    Ok(match trust {
        Trust::File { variable, path } => {
            let failed = |what| TrustError { variable, path: path.clone(), what };
            let pem = read_bundle(path).map_err(|error| failed(format!("cannot be read: {error}")))?;
            let (good, bad) = check_bundle(&pem);
            match (good, bad) {
                (0, _) => return Err(failed("holds no certificate in PEM form".to_owned())),
                (_, 0) => TrustStore::empty().with_pem_certificate(pem),
                (_, bad) => {
                    return Err(failed(format!("holds {bad} that cannot be read as certificates")));
                }
            }
        }
        Trust::System => system_trust(),
        Trust::Directories(directories) => directory_trust(directories),
    })
}

fn client(trust: Arc<TrustStore>, proxy: ProxyConfig) -> SharedHttpClient {
    // One connector is enough: all calls of one client have the same settings, and reading the certificates into one
    // costs more than a call.
    let connector = OnceLock::<SharedHttpConnector>::new();
    http_client_fn(move |settings, components| {
        let connect = |trust: TrustStore, proxy: ProxyConfig| {
            let mut builder = Connector::builder().connector_settings(settings.clone()).proxy_config(proxy);
            builder.set_sleep_impl(components.sleep_impl());
            let tls = TlsContext::builder().with_trust_store(trust).build().unwrap_or_default();
            builder.tls_provider(Provider::Rustls(CryptoMode::Ring)).tls_context(tls).build()
        };
        let bounded = || {
            SharedHttpConnector::new(Bounded {
                // The node's own services speak no TLS, so there is nobody to trust.
                direct: connect(TrustStore::empty(), ProxyConfig::disabled()),
                other: connect((*trust).clone(), proxy.clone()),
            })
        };
        connector.get_or_init(bounded).clone()
    })
}

/// Ends an answer that is longer than any should be, however long it says it is; and goes past the proxy to what is on
/// this node.
#[derive(Debug)]
struct Bounded {
    direct: Connector,
    other: Connector,
}

impl HttpConnector for Bounded {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let connector = if is_on_this_node(request.uri()) { &self.direct } else { &self.other };
        let answer = connector.call(request);
        HttpConnectorFuture::new(async move {
            Ok(answer.await?.map(|body| SdkBody::from_body_1_x(Limited::new(body, MAX_ANSWER))))
        })
    }
}

/// Whether a URL is one of the metadata service's or of a container's endpoint: plain HTTP on a link-local address, or on
/// the one that EC2 has for IPv6. Through a proxy it would be another node's, and the proxy would see the credentials.
fn is_on_this_node(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("http://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, _)) => host,
        None => authority.split(':').next().unwrap_or_default(),
    };
    match host.parse() {
        Ok(IpAddr::V4(address)) => address.is_link_local(),
        Ok(IpAddr::V6(address)) => address.segments()[..2] == [0xFD00, 0x0EC2],
        Err(_) => false,
    }
}

/// How long a registry may take for one answer.
const REGISTRY_TIMEOUT: Duration = Duration::from_secs(10);

/// The client for registries. It follows no redirect.
#[derive(Debug)]
pub struct Registries {
    direct: Connector,
    other: Connector,
}

/// What a registry answered.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The values of `WWW-Authenticate`.
    pub challenges: Vec<String>,
    /// The body, where it was wanted, or the answer is not 200.
    pub body: Zeroizing<Vec<u8>>,
}

impl Registries {
    /// Reads the certificates to trust. A registry on this node is asked without a proxy, others through the one that
    /// `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` name.
    ///
    /// # Errors
    /// When a file that was named holds none, or cannot be read.
    pub fn new(trust: &Trust) -> Result<Self, TrustError> {
        let trust = trust_store(trust)?;
        let connect = |trust: TrustStore, proxy| {
            let tls = TlsContext::builder().with_trust_store(trust).build().unwrap_or_default();
            let builder = Connector::builder().proxy_config(proxy);
            builder.tls_provider(Provider::Rustls(CryptoMode::Ring)).tls_context(tls).build()
        };
        let direct = connect(trust.clone(), ProxyConfig::disabled());
        Ok(Self { direct, other: connect(trust, ProxyConfig::from_env()) })
    }

    /// Asks for `url`. A body that comes with 200 is read only if it is wanted.
    ///
    /// # Errors
    /// When there is no answer within ten seconds, or it is longer than any should be.
    pub async fn get(
        &self,
        url: &str,
        headers: &[(&'static str, &SecretString)],
        on_this_node: bool,
        wants_body: bool,
    ) -> Result<Answer, Refusal> {
        let unusable = |_| Refusal::Settings { said: "the request cannot be made".to_owned() };
        let mut request = HttpRequest::get(url).map_err(unusable)?;
        let agent = concat!("ecr-node-agent/", env!("CARGO_PKG_VERSION"));
        request.headers_mut().insert("user-agent", agent);
        for (name, value) in headers {
            let value = value.expose_secret().to_owned();
            request.headers_mut().try_insert(*name, value).map_err(unusable)?;
        }
        let connector = if on_this_node { &self.direct } else { &self.other };
        let exchange = async {
            let answer = connector.call(request).await.map_err(|error| network_refusal(&error))?;
            let status = answer.status().as_u16();
            let challenges = answer.headers().get_all("www-authenticate").map(str::to_owned).collect();
            let body = if wants_body || status != 200 {
                let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
                body.map(|body| body.to_bytes().to_vec())
                    .map_err(|error| Refusal::Unavailable { said: error.to_string() })?
            } else {
                Vec::new()
            };
            Ok(Answer { status, challenges, body: Zeroizing::new(body) })
        };
        let late = |_| Refusal::Unavailable { said: "timed out".to_owned() };
        tokio::time::timeout(REGISTRY_TIMEOUT, exchange).await.map_err(late)?
    }
}

/// The system's bundle; where there is none in a place that we know, what lies in the usual directories.
fn system_trust() -> TrustStore {
    let good = |path: &str| read_bundle(Path::new(path)).ok().filter(|pem| is_good(pem));
    match SYSTEM_BUNDLES.iter().find_map(|path| good(path)) {
        Some(pem) => TrustStore::empty().with_pem_certificate(pem),
        None => directory_trust(&SYSTEM_DIRECTORIES.map(PathBuf::from)),
    }
}

/// The certificates in the files of some directories. What is no certificate is passed over, as others do.
fn directory_trust(directories: &[PathBuf]) -> TrustStore {
    let mut trust = TrustStore::empty();
    for directory in directories {
        let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let paths = files.map(|file| file.path()).filter(|path| path.is_file());
        for pem in paths.filter_map(|path| read_bundle(&path).ok()).filter(|pem| is_good(pem)) {
            trust.add_pem_certificate(pem);
        }
    }
    trust
}

/// Whether the SDK can read every certificate in it. It panics on one that it cannot.
fn is_good(pem: &[u8]) -> bool {
    matches!(check_bundle(pem), (1.., 0))
}

fn read_bundle(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let size = file.metadata()?.len().min(MAX_BUNDLE);
    let mut pem = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
    if file.take(MAX_BUNDLE + 1).read_to_end(&mut pem)? as u64 > MAX_BUNDLE {
        return Err(io::Error::other("it is larger than 16 MiB"));
    }
    Ok(pem)
}

/// How many certificates of a bundle can be read, and how many cannot.
fn check_bundle(pem: &[u8]) -> (usize, usize) {
    let mut roots = rustls::RootCertStore::empty();
    let (mut good, mut bad) = (0, 0);
    for certificate in CertificateDer::pem_slice_iter(pem) {
        match certificate.ok().map(|certificate| roots.add(certificate)) {
            Some(Ok(())) => good += 1,
            _ => bad += 1,
        }
    }
    (good, bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_own_services_are_known_by_their_address() {
        let cases = [
            ("http://169.254.169.254/latest/api/token", true),
            ("http://169.254.170.23:80/v1/credentials", true),
            ("http://[fd00:ec2::254]/latest", true),
            ("http://[fd00:ec2::23]:80", true),
            ("https://169.254.169.254/", false),
            ("http://127.0.0.1:8080/", false),
            ("http://169.254.169.254.example.com/", false),
            ("https://api.ecr.eu-west-1.amazonaws.com/", false),
            ("http://[::1]/", false),
        ];
        for (url, own) in cases {
            assert_eq!(is_on_this_node(url), own, "{url}");
        }
    }
}
