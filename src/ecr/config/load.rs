//! Reads AWS's shared files.

use super::profiles::{Kind, ProfileFile, Profiles};
use super::{Config, ConfigError};
use crate::ecr::environment::Environment;
use crate::ecr::files::{ReadError, Reader};
use std::path::PathBuf;

/// A file with a thousand profiles has 200 KB.
const MAX_FILE: u64 = 1024 * 1024;

/// A shared file: where it is, and the variable that names it, if one does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedFile {
    /// Which file.
    pub kind: Kind,
    /// Where it is.
    pub path: PathBuf,
    /// The variable; `None` at its usual place.
    pub variable: Option<&'static str>,
}

/// Where the shared files are. Without `HOME` and without the variables there are none.
#[must_use]
pub fn shared_files(environment: &Environment) -> Vec<SharedFile> {
    let home = environment.path("HOME");
    let file = |kind: Kind| {
        let variable = kind.variable();
        match environment.get(variable) {
            Some(path) => {
                let in_home = path.strip_prefix("~/").zip(home.as_ref()).map(|(rest, home)| home.join(rest));
                let path = in_home.unwrap_or_else(|| PathBuf::from(path));
                Some(SharedFile { kind, path, variable: Some(variable) })
            }
            None => Some(SharedFile { kind, path: home.as_ref()?.join(kind.usual()), variable: None }),
        }
    };
    [Kind::Credentials, Kind::Config].into_iter().filter_map(file).collect()
}

/// Reads what is configured.
///
/// # Errors
/// When a shared file that exists cannot be used, a file is named that does not exist, or a profile is named that no file
/// has.
pub async fn load(environment: &Environment, reader: &Reader) -> Result<Config, ConfigError> {
    let mut files = shared_files(environment);
    let paths = files.iter().map(|file| file.path.clone()).collect();
    let contents = reader.read_each(paths, MAX_FILE).await.map_err(|(number, problem)| {
        let SharedFile { path, variable, .. } = files.swap_remove(number);
        ConfigError::File { path, variable, problem }
    })?;
    let mut found = Vec::new();
    for (SharedFile { kind, path, variable }, content) in files.into_iter().zip(contents) {
        match content {
            Ok(content) => found.push(
                ProfileFile::parse(kind, &path, &content)
                    .map_err(|problem| ConfigError::Content { path, problem })?,
            ),
            Err(ReadError::Missing) if variable.is_none() => {}
            Err(problem) => return Err(ConfigError::File { path, variable, problem }),
        }
    }
    Config::new(environment.clone(), Profiles::new(found))
}
