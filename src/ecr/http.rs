//! The HTTP clients for AWS: one TLS stack, proxies and private CAs from the environment, answers of bounded size.

use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use http_body_util::Limited;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

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

/// Makes HTTP clients.
#[derive(Debug)]
pub struct Http {
    trust: TrustStore,
}

impl Http {
    /// Reads the certificates to trust.
    ///
    /// # Errors
    /// When a file that was named holds none, or cannot be read.
    pub fn new(trust: &Trust) -> Result<Self, TrustError> {
        let trust = match trust {
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
        };
        Ok(Self { trust })
    }

    /// A client for AWS's APIs, through the proxy that `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` name.
    #[must_use]
    pub fn for_apis(&self) -> SharedHttpClient {
        client(self.trust.clone(), ProxyConfig::from_env())
    }

    /// A client for the node's own services, such as the metadata service: never through a proxy, which could only be
    /// another node's, and would see the credentials.
    #[must_use]
    pub fn for_this_node(&self) -> SharedHttpClient {
        client(self.trust.clone(), ProxyConfig::disabled())
    }
}

fn client(trust: TrustStore, proxy: ProxyConfig) -> SharedHttpClient {
    // One connector is enough: all calls of one client have the same settings, and reading the certificates into one
    // costs more than a call.
    let connector = OnceLock::<SharedHttpConnector>::new();
    http_client_fn(move |settings, components| {
        let connect = || {
            let mut builder =
                Connector::builder().connector_settings(settings.clone()).proxy_config(proxy.clone());
            builder.set_sleep_impl(components.sleep_impl());
            let tls = TlsContext::builder().with_trust_store(trust.clone()).build().unwrap_or_default();
            let connector = builder.tls_provider(Provider::Rustls(CryptoMode::Ring)).tls_context(tls).build();
            SharedHttpConnector::new(Bounded(connector))
        };
        connector.get_or_init(connect).clone()
    })
}

/// Ends an answer that is longer than any should be, however long it says it is.
#[derive(Debug)]
struct Bounded(Connector);

impl HttpConnector for Bounded {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let answer = self.0.call(request);
        HttpConnectorFuture::new(async move {
            Ok(answer.await?.map(|body| SdkBody::from_body_1_x(Limited::new(body, MAX_ANSWER))))
        })
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
    let mut pem = Vec::new();
    if File::open(path)?.take(MAX_BUNDLE + 1).read_to_end(&mut pem)? as u64 > MAX_BUNDLE {
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
