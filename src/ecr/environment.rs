//! The environment variables that concern AWS and the network, as they were at the start of the program.

use crate::report::redact;
use secrecy::{ExposeSecret as _, SecretString};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// The variables that are kept besides those that start with `AWS_`.
const OTHERS: [&str; 11] = [
    "HOME",
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];
/// The variables whose whole value is a secret.
const SECRETS: [&str; 4] =
    ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN"];

/// The variables. An empty one counts as unset. One that holds only spaces is set, to a value that no source accepts.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, SecretString>);

impl Environment {
    /// Keeps the variables that concern AWS and the network, and remembers the secrets in them.
    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let concerns_us = |name: &str| name.starts_with("AWS_") || OTHERS.contains(&name);
        let kept = variables.into_iter().filter(|(name, value)| concerns_us(name) && !value.is_empty());
        let environment = Self(kept.map(|(name, value)| (name, SecretString::from(value))).collect());
        for value in SECRETS.iter().filter_map(|name| environment.get(name)) {
            redact::remember(value);
        }
        environment
    }

    /// The same variables, with `HOME` set to this directory; unchanged if it is `None`.
    #[must_use]
    pub fn with_home(mut self, home: Option<PathBuf>) -> Self {
        let home = home.map(|home| SecretString::from(home.to_string_lossy().into_owned()));
        self.0.extend(home.map(|home| ("HOME".to_owned(), home)));
        self
    }

    /// A variable's value, which is not empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(SecretString::expose_secret)
    }

    /// The first of these variables that is set: its name and its value.
    #[must_use]
    pub fn first<'a>(&'a self, names: &[&'static str]) -> Option<(&'static str, &'a str)> {
        names.iter().find_map(|name| Some((*name, self.get(name)?)))
    }

    /// The variables that can be written down, with their values, and the names of those that hold secrets. `HOME` is in
    /// neither list: another process has its own.
    #[must_use]
    pub fn without_secrets(&self) -> (Vec<(String, String)>, Vec<String>) {
        // A proxy's URL may hold a password, and the id of a key is of no use without its secret.
        let is_secret = |name: &str, value: &str| {
            SECRETS.contains(&name) || name == "AWS_ACCESS_KEY_ID" || value.contains('@')
        };
        let mut lists = (Vec::new(), Vec::new());
        for (name, value) in self.0.iter().filter(|(name, _)| *name != "HOME") {
            match value.expose_secret() {
                value if is_secret(name, value) => lists.1.push(name.clone()),
                value => lists.0.push((name.clone(), value.to_owned())),
            }
        }
        lists
    }

    /// A variable's value as a path.
    #[must_use]
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from)
    }
}

impl fmt::Debug for Environment {
    /// The names only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_variable_is_unset_and_others_are_not_kept() {
        let variables = [
            ("AWS_REGION", ""),
            ("AWS_ROLE_ARN", " "),
            ("AWS_PROFILE", "one"),
            ("PATH", "/bin"),
            ("HOME", "/root"),
        ];
        let environment =
            Environment::new(variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(environment.get("AWS_REGION"), None);
        assert_eq!(environment.get("AWS_ROLE_ARN"), Some(" "));
        assert_eq!(environment.get("PATH"), None);
        assert_eq!(environment.first(&["AWS_REGION", "AWS_PROFILE"]), Some(("AWS_PROFILE", "one")));
        assert_eq!(environment.path("HOME"), Some(PathBuf::from("/root")));
        assert_eq!(format!("{environment:?}"), r#"{"AWS_PROFILE", "AWS_ROLE_ARN", "HOME"}"#);
        assert_eq!(environment.with_home(Some("/other".into())).get("HOME"), Some("/other"));
    }
}
