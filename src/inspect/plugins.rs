//! Which credential provider plugins the kubelet has, from its configuration.

use crate::auth_file::read_place;
use crate::credential_provider::kubelet_config::{self, ConfigError, Provider};
use crate::docker_config::search::Content;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The configurations of distributions that set the kubelet's flag by themselves: k3s and RKE2, kOps, EKS; and the
/// folder of `docs/credential-provider.md`.
const USUAL: [&str; 4] = [
    "/var/lib/rancher/credentialprovider/config.yaml",
    "/var/lib/kubelet/credential-provider.conf",
    "/etc/eks/image-credential-provider/config.json",
    "/etc/kubernetes/credential-providers",
];

/// The kubelet's plugins.
#[derive(Debug)]
pub struct Plugins {
    /// The file or the directory of the configuration.
    pub config: PathBuf,
    /// The plugins in the kubelet's order, or why there are none.
    pub providers: Result<Vec<Provider>, PluginsError>,
}

/// Why it is unknown which plugins the kubelet has.
#[derive(Debug, thiserror::Error)]
pub enum PluginsError {
    /// The configuration cannot be read.
    #[error("cannot read it")]
    Read(#[source] io::Error),
    /// The configuration is invalid.
    #[error("the kubelet does not start with it: {0}")]
    Invalid(#[from] ConfigError),
}

/// Reads the configuration at this path, or, if it is `None`, at the usual path that exists. `None` if there is none.
#[must_use]
pub fn look(config: Option<&Path>) -> Option<Plugins> {
    let usual = || USUAL.map(Path::new).into_iter().find(|path| path.exists());
    let config = config.or_else(usual)?;
    Some(Plugins { config: config.to_owned(), providers: read(config) })
}

fn read(config: &Path) -> Result<Vec<Provider>, PluginsError> {
    let mut files = Vec::new();
    if config.is_dir() {
        for entry in fs::read_dir(config).map_err(PluginsError::Read)? {
            let entry = entry.map_err(PluginsError::Read)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if kubelet_config::is_read(&name) && !entry.path().is_dir() {
                files.push((name, read_file(&entry.path())?));
            }
        }
    } else {
        let name = config.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.push((name, read_file(config)?));
    }
    Ok(kubelet_config::read(files)?)
}

fn read_file(path: &Path) -> Result<String, PluginsError> {
    match read_place(path) {
        Content::Bytes(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Content::Missing => Err(PluginsError::Read(io::ErrorKind::NotFound.into())),
        Content::Unreadable(why) | Content::Unknown(why) => Err(PluginsError::Read(io::Error::other(why))),
    }
}
