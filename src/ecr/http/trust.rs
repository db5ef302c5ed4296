//! Which certificate authorities are trusted, and their certificates.

use crate::ecr::files::{self, ReadError};
use crate::report::redact::shown_path;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::OnceCell;

/// Debian's bundle is 220 KB.
const MAX_BUNDLE: u64 = 16 * 1024 * 1024;
/// Debian's directory has 300 files.
const MOST_FILES: usize = 10_000;
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
    #[error("holds certificates that cannot be read ({0} of them)")]
    Broken(usize),
}

/// The settings for TLS, with the authorities that are trusted.
#[derive(Debug)]
pub(super) struct Tls {
    trust: Trust,
    /// Set when the certificates have been read.
    config: OnceCell<Arc<ClientConfig>>,
}

impl Tls {
    /// Reads no certificate yet: plain HTTP needs none, and decoding them takes longer than the rest of a call.
    pub(super) fn new(trust: Trust) -> Self {
        Self { trust, config: OnceCell::new() }
    }

    /// The settings. The first call reads the certificates, off the runtime's thread.
    ///
    /// # Errors
    /// When a file that was named holds no certificate, or cannot be read.
    pub(super) async fn config(&self) -> Result<Arc<ClientConfig>, TrustError> {
        let read = || async {
            let trust = self.trust.clone();
            match files::off_thread(move || read(&trust)).await {
                Ok(roots) => roots.map(config),
                Err(problem) => Err(self.trust.error(problem.into())),
            }
        };
        self.config.get_or_try_init(read).await.cloned()
    }
}

fn config(roots: RootCertStore) -> Arc<ClientConfig> {
    Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

/// The settings for connections without TLS.
pub(super) fn no_tls() -> Arc<ClientConfig> {
    config(RootCertStore::empty())
}

impl Trust {
    fn error(&self, problem: Problem) -> TrustError {
        let (variable, path) = match self {
            Self::File { variable, path } => (*variable, path.clone()),
            Self::Directories(directories) => {
                ("SSL_CERT_DIR", directories.first().cloned().unwrap_or_default())
            }
            Self::System => ("the system", PathBuf::from(SYSTEM_BUNDLES[0])),
        };
        TrustError { variable, path, problem }
    }
}

fn read(trust: &Trust) -> Result<RootCertStore, TrustError> {
    match trust {
        Trust::File { path, .. } => read_named(path).map_err(|problem| trust.error(problem)),
        Trust::System => Ok(read_system()),
        Trust::Directories(directories) => Ok(read_directories(directories, MAX_BUNDLE)),
    }
}

fn read_named(path: &Path) -> Result<RootCertStore, Problem> {
    let mut roots = RootCertStore::empty();
    match add(&mut roots, &read_file(path, MAX_BUNDLE)?) {
        (0, _) => Err(Problem::Empty),
        (_, 0) => Ok(roots),
        (_, broken) => Err(Problem::Broken(broken)),
    }
}

/// The system's bundle; where there is none in a known place, what lies in the usual directories.
fn read_system() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    if !SYSTEM_BUNDLES.iter().any(|path| add_file(&mut roots, Path::new(path))) {
        return read_directories(&SYSTEM_DIRECTORIES.map(PathBuf::from), MAX_BUNDLE);
    }
    roots
}

/// The certificates in the files of some directories, of `limit` bytes together. Files beyond it are skipped, and so are files
/// beyond a number that no directory of certificates has.
fn read_directories(directories: &[PathBuf], limit: u64) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let mut left = limit;
    let files = directories.iter().flat_map(|directory| std::fs::read_dir(directory).into_iter().flatten());
    for file in files.flatten().take(MOST_FILES) {
        // As in other programs, what cannot be read is skipped.
        if let Ok(pem) = read_file(&file.path(), left) {
            left = left.saturating_sub(pem.len() as u64);
            add(&mut roots, &pem);
        }
    }
    roots
}

/// Adds the certificates in a file, and returns whether there are some.
fn add_file(roots: &mut RootCertStore, path: &Path) -> bool {
    read_file(path, MAX_BUNDLE).is_ok_and(|pem| add(roots, &pem).0 > 0)
}

/// A file's content. Certificates are public: to zero a whole bundle when it is dropped takes longer than to read it.
fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
    files::read_now(path, limit).map(|mut content| std::mem::take(&mut *content))
}

/// Adds the certificates of a bundle. Returns how many there are, and how many more cannot be read.
fn add(roots: &mut RootCertStore, pem: &[u8]) -> (usize, usize) {
    let (mut good, mut broken) = (0, 0);
    for certificate in CertificateDer::pem_slice_iter(pem) {
        match certificate.ok().map(|certificate| roots.add(certificate)) {
            Some(Ok(())) => good += 1,
            _ => broken += 1,
        }
    }
    (good, broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "test code")]
    fn write(path: &Path, text: &str) {
        std::fs::write(path, text).unwrap();
    }

    fn certificate() -> String {
        rcgen::generate_simple_self_signed(vec!["ca.example".to_owned()]).unwrap().cert.pem()
    }

    #[test]
    fn a_certificate_that_cannot_be_read_ends_nothing() {
        let good = certificate();
        let not_base64 = "-----BEGIN CERTIFICATE-----\n????\n-----END CERTIFICATE-----\n";
        let no_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let cut = "-----BEGIN CERTIFICATE-----\nAAAA\n";
        let root = tempfile::tempdir().unwrap();
        for broken in [not_base64, no_certificate, cut] {
            let file = root.path().join("bundle.pem");
            write(&file, &format!("{good}{broken}"));
            let directories = read(&Trust::Directories(vec![root.path().to_owned()])).unwrap();
            assert_eq!(directories.len(), 1, "{broken}");
            let named = Trust::File { variable: "AWS_CA_BUNDLE", path: file.clone() };
            let error = read(&named).unwrap_err().to_string();
            assert!(error.ends_with("which holds certificates that cannot be read (1 of them)"), "{error}");
            write(&file, broken);
            assert!(matches!(read(&named).unwrap_err().problem, Problem::Empty), "{broken}");
        }
    }

    #[tokio::test]
    async fn a_bundle_is_read_once_and_not_before_it_is_needed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("bundle.pem");
        let tls = Tls::new(Trust::File { variable: "AWS_CA_BUNDLE", path: path.clone() });
        // It is not there yet.
        write(&path, &certificate());
        let first = tls.config().await.unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(Arc::ptr_eq(&first, &tls.config().await.unwrap()));
    }

    #[test]
    fn a_directory_is_read_up_to_a_limit() {
        let root = tempfile::tempdir().unwrap();
        for name in ["one", "two", "three"] {
            write(&root.path().join(name), &certificate());
        }
        let size = std::fs::metadata(root.path().join("one")).unwrap().len();
        let directories = [root.path().to_owned()];
        assert_eq!(read_directories(&directories, 3 * size + 100).len(), 3);
        assert_eq!(read_directories(&directories, size + 100).len(), 1);
        assert_eq!(read_directories(&directories, 0).len(), 0);
    }
}
