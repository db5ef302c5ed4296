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
/// The variables of AWS that this program reads and that hold no secret.
const WITHOUT_SECRETS: [&str; 25] = [
    "AWS_CA_BUNDLE",
    "AWS_CONFIG_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_DEFAULT_PROFILE",
    "AWS_DEFAULT_REGION",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE",
    "AWS_ECR_ROLE_ARN",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_ECR",
    "AWS_ENDPOINT_URL_ECR_PUBLIC",
    "AWS_ENDPOINT_URL_ROLESANYWHERE",
    "AWS_ENDPOINT_URL_STS",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_USE_DUALSTACK_ENDPOINT",
    "AWS_USE_FIPS_ENDPOINT",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
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

    /// The variables that can be written down, with their values, and the names of those that hold secrets or may do so.
    /// `HOME` is in neither list: another process has its own.
    #[must_use]
    pub fn without_secrets(&self) -> (Vec<(String, String)>, Vec<String>) {
        // A URL may hold a password, and a variable of other programs anything.
        let is_known = |name: &str| WITHOUT_SECRETS.contains(&name) || OTHERS.contains(&name);
        let is_secret = |name: &str, value: &str| {
            !is_known(name)
                || value.contains("://") && value.contains('@')
                || name.to_ascii_uppercase().ends_with("_PROXY") && value.contains('@')
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
    fn only_variables_without_secrets_are_written_down() {
        let variables = [
            ("AWS_REGION", "eu-west-1"),
            ("AWS_ROLE_SESSION_NAME", "a@b"),
            ("AWS_ENDPOINT_URL", "https://user:password@ecr.example"),
            ("AWS_BEARER_TOKEN_BEDROCK", "a-token"),
            ("AWS_SECRET_ACCESS_KEY", "a-secret"),
            ("AWS_ACCESS_KEY_ID", "an-id"),
            ("HTTPS_PROXY", "user:password@proxy:3128"),
            ("NO_PROXY", "localhost"),
            ("HOME", "/root"),
        ];
        let environment =
            Environment::new(variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let (shown, hidden) = environment.without_secrets();
        let shown: Vec<&str> = shown.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(shown, ["AWS_REGION", "AWS_ROLE_SESSION_NAME", "NO_PROXY"]);
        let expected = [
            "AWS_ACCESS_KEY_ID",
            "AWS_BEARER_TOKEN_BEDROCK",
            "AWS_ENDPOINT_URL",
            "AWS_SECRET_ACCESS_KEY",
            "HTTPS_PROXY",
        ];
        assert_eq!(hidden, expected);
    }

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
