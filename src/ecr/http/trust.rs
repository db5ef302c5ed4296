//! Which certificate authorities are trusted, and their certificates.

use crate::ecr::files::{self, ReadError};
use crate::report::redact::shown_path;
use aws_smithy_http_client::tls::TrustStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::path::{Path, PathBuf};

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

/// Which certificate authorities are trusted, as the environment names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Those of the system.
    System,
    /// Those in this file alone: `AWS_CA_BUNDLE`, or else `SSL_CERT_FILE`.
    File {
        /// The variable that names the file.
        variable: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// Those in the files of these directories: `SSL_CERT_DIR`.
    Directories(Vec<PathBuf>),
}

/// A file of certificates that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{variable} names {}, which {problem}", shown_path(path))]
pub struct TrustError {
    variable: &'static str,
    path: PathBuf,
    problem: Problem,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Unreadable(#[from] ReadError),
    #[error("holds no certificate in PEM form")]
    Empty,
    #[error("holds {0} that cannot be read as certificates")]
    Broken(usize),
}

/// Reads the certificates, off the runtime's thread.
///
/// # Errors
/// When a file that was named holds no certificate, or cannot be read.
pub async fn load(trust: &Trust) -> Result<TrustStore, TrustError> {
    let named = trust.clone();
    match (files::off_thread(move || load_now(&named)).await, trust) {
        (Ok(loaded), _) => loaded,
        (Err(problem), Trust::File { variable, path }) => {
            Err(TrustError { variable, path: path.clone(), problem: problem.into() })
        }
        (Err(problem), Trust::Directories(directories)) => {
            let path = directories.first().cloned().unwrap_or_default();
            Err(TrustError { variable: "SSL_CERT_DIR", path, problem: problem.into() })
        }
        (Err(problem), Trust::System) => {
            let path = PathBuf::from(SYSTEM_BUNDLES[0]);
            Err(TrustError { variable: "the system", path, problem: problem.into() })
        }
    }
}

/// Reads the certificates on this thread.
///
/// # Errors
/// When a file that was named holds no certificate, or cannot be read.
pub fn load_now(trust: &Trust) -> Result<TrustStore, TrustError> {
    match trust {
        Trust::File { variable, path } => {
            read_named(path).map_err(|problem| TrustError { variable, path: path.clone(), problem })
        }
        Trust::System => Ok(read_system()),
        Trust::Directories(directories) => Ok(read_directories(directories)),
    }
}

fn read_named(path: &Path) -> Result<TrustStore, Problem> {
    let pem = files::read_now(path, MAX_BUNDLE)?;
    match count(&pem) {
        (0, _) => Err(Problem::Empty),
        (_, 0) => Ok(TrustStore::empty().with_pem_certificate(pem.to_vec())),
        (_, broken) => Err(Problem::Broken(broken)),
    }
}

/// The system's bundle; where there is none in a known place, what lies in the usual directories.
fn read_system() -> TrustStore {
    match SYSTEM_BUNDLES.iter().find_map(|path| read_good(Path::new(path))) {
        Some(pem) => TrustStore::empty().with_pem_certificate(pem),
        None => read_directories(&SYSTEM_DIRECTORIES.map(PathBuf::from)),
    }
}

/// The certificates in the files of some directories. As in other programs, a file that holds none is skipped.
fn read_directories(directories: &[PathBuf]) -> TrustStore {
    let mut trust = TrustStore::empty();
    for directory in directories {
        for file in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if let Some(pem) = read_good(&file.path()) {
                trust.add_pem_certificate(pem);
            }
        }
    }
    trust
}

/// A file's content, if the SDK can read every certificate in it: it panics on one that it cannot read.
fn read_good(path: &Path) -> Option<Vec<u8>> {
    let pem = files::read_now(path, MAX_BUNDLE).ok()?;
    matches!(count(&pem), (1.., 0)).then(|| pem.to_vec())
}

/// How many certificates of a bundle can be read, and how many cannot.
fn count(pem: &[u8]) -> (usize, usize) {
    let mut roots = rustls::RootCertStore::empty();
    let (mut good, mut broken) = (0, 0);
    for certificate in CertificateDer::pem_slice_iter(pem) {
        match certificate.ok().map(|certificate| roots.add(certificate)) {
            Some(Ok(())) => good += 1,
            _ => broken += 1,
        }
    }
    (good, broken)
}
