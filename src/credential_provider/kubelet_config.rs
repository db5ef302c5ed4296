//! A kubelet's configuration of its plugins, read by the rules of the newest kubelet.
//!
//! Pure. Kubelets before 1.32 ignore unknown fields, and kubelets before 1.34 take one file only.

use crate::docker_config::matching;
use serde::Deserialize;
use std::collections::BTreeSet;

const CONFIG_GROUP: &str = "kubelet.config.k8s.io/";
const PLUGIN_GROUP: &str = "credentialprovider.kubelet.k8s.io/";
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];

/// A plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    /// Its name, which is that of a program.
    pub name: String,
    /// The hosts or patterns of the images that the kubelet runs it for.
    match_images: Vec<String>,
}

/// Why a kubelet does not start with a configuration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Not YAML, not of this kind, or with a field that is unknown or of another type.
    #[error("{file} is not a CredentialProviderConfig: {problem}")]
    NotAConfig {
        /// The file's name.
        file: String,
        /// What the parser said.
        problem: String,
    },
    /// An empty directory, or one without `.json`, `.yaml` and `.yml`.
    #[error("there is no configuration file in the directory")]
    NoFile,
    /// No plugin in any file.
    #[error("`providers` is missing or empty")]
    NoProvider,
    /// Two plugins of one name.
    #[error("the provider `{}` is there twice", .0.escape_debug())]
    Twice(String),
    /// A field whose value the kubelet refuses.
    #[error("the provider `{}` has no valid `{field}`", provider.escape_debug())]
    Field {
        /// The plugin.
        provider: String,
        /// The field.
        field: &'static str,
    },
}

impl Provider {
    /// Whether the kubelet runs it for an image, whose name is complete and has no tag.
    #[must_use]
    pub fn serves(&self, repository: &str) -> bool {
        self.match_images.iter().any(|pattern| matching::matches(pattern, repository))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    kind: String,
    api_version: String,
    #[serde(default)]
    providers: Option<Vec<ProviderFields>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ProviderFields {
    #[serde(default)]
    name: String,
    #[serde(default)]
    match_images: Option<Vec<String>>,
    #[serde(default)]
    default_cache_duration: Option<String>,
    #[serde(default)]
    api_version: String,
    #[serde(default, rename = "args")]
    _args: Option<Vec<String>>,
    #[serde(default, rename = "env")]
    _env: Option<Vec<Variable>>,
    #[serde(default)]
    token_attributes: Option<TokenAttributes>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    #[serde(default, rename = "name")]
    _name: String,
    #[serde(default, rename = "value")]
    _value: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct TokenAttributes {
    #[serde(default)]
    service_account_token_audience: String,
    #[serde(default)]
    cache_type: String,
    #[serde(default)]
    require_service_account: Option<bool>,
    #[serde(default)]
    required_service_account_annotation_keys: Option<Vec<String>>,
    #[serde(default)]
    optional_service_account_annotation_keys: Option<Vec<String>>,
}

/// Whether the kubelet reads a file of this name in a directory of configurations.
#[must_use]
pub fn is_read(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, extension)| ["json", "yaml", "yml"].contains(&extension))
}

/// The plugins of a configuration, in the order in which the kubelet asks them. `files` are the names and the texts of the files
/// that it reads: one file, or those of a directory.
///
/// # Errors
/// If the kubelet does not start with this configuration.
pub fn read(mut files: Vec<(String, String)>) -> Result<Vec<Provider>, ConfigError> {
    files.sort();
    if files.is_empty() {
        return Err(ConfigError::NoFile);
    }
    let mut providers = Vec::new();
    let mut names = BTreeSet::new();
    for (file, text) in files {
        for fields in read_file(&text).map_err(|problem| ConfigError::NotAConfig { file, problem })? {
            if !names.insert(fields.name.clone()) {
                return Err(ConfigError::Twice(fields.name));
            }
            providers.push(fields);
        }
    }
    if providers.is_empty() {
        return Err(ConfigError::NoProvider);
    }
    providers.into_iter().map(ProviderFields::check).collect()
}

fn read_file(text: &str) -> Result<Vec<ProviderFields>, String> {
    let file: File = serde_saphyr::from_str(text).map_err(|error| {
        // The first line says what and where; a picture of the text follows, in which `env` may hold a secret.
        error.to_string().lines().next().unwrap_or_default().to_owned()
    })?;
    let version = file.api_version.strip_prefix(CONFIG_GROUP).filter(|version| VERSIONS.contains(version));
    let Some(version) = version else {
        return Err(format!("apiVersion is `{}`", file.api_version.escape_debug()));
    };
    if file.kind != "CredentialProviderConfig" {
        return Err(format!("kind is `{}`", file.kind.escape_debug()));
    }
    let providers = file.providers.unwrap_or_default();
    if version != "v1" && providers.iter().any(|provider| provider.token_attributes.is_some()) {
        return Err(format!("{version} has no field `tokenAttributes`"));
    }
    Ok(providers)
}

impl ProviderFields {
    fn check(self) -> Result<Provider, ConfigError> {
        let match_images = self.match_images.unwrap_or_default();
        let version = self.api_version.strip_prefix(PLUGIN_GROUP);
        let attributes = self.token_attributes.as_ref();
        let is_name = !self.name.contains(['/', ' ']) && !["", ".", ".."].contains(&self.name.as_str());
        let is_duration = self.default_cache_duration.as_deref().is_some_and(is_duration);
        let fields = [
            ("name", is_name),
            ("apiVersion", version.is_some_and(|version| VERSIONS.contains(&version))),
            ("matchImages", !match_images.is_empty() && match_images.iter().all(|it| matching::is_key(it))),
            ("defaultCacheDuration", is_duration),
            (
                "tokenAttributes",
                attributes.is_none_or(|attributes| version == Some("v1") && attributes.is_valid()),
            ),
        ];
        match fields.into_iter().find(|(_, is_valid)| !is_valid) {
            Some((field, _)) => Err(ConfigError::Field { provider: self.name, field }),
            None => Ok(Provider { name: self.name, match_images }),
        }
    }
}

impl TokenAttributes {
    fn is_valid(&self) -> bool {
        let required = self.required_service_account_annotation_keys.as_deref().unwrap_or_default();
        let optional = self.optional_service_account_annotation_keys.as_deref().unwrap_or_default();
        let mut keys = BTreeSet::new();
        let are_keys = required.iter().chain(optional).all(|key| is_annotation(key) && keys.insert(key));
        let fits = match self.require_service_account {
            None => false,
            Some(is_required) => is_required || required.is_empty(),
        };
        let is_cache_type = ["Token", "ServiceAccount"].contains(&self.cache_type.as_str());
        !self.service_account_token_audience.is_empty() && is_cache_type && fits && are_keys
    }
}

/// Whether Go reads a text as a duration that is not negative, such as `1h30m` or `0`.
fn is_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return true;
    }
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (digits, tail) = rest.split_at(number);
        let is_number = digits.bytes().any(|byte| byte != b'.') && digits.matches('.').count() <= 1;
        let unit = ["ns", "us", "µs", "μs", "ms", "s", "m", "h"].into_iter();
        let Some(tail) = unit.filter_map(|unit| tail.strip_prefix(unit)).min_by_key(|tail| tail.len()) else {
            return false;
        };
        if !is_number {
            return false;
        }
        rest = tail;
    }
    !text.is_empty() && text != "+"
}

/// Whether a text is an annotation's key: a name, after a DNS name and a slash or without them.
fn is_annotation(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let is_name = |text: &str, longest: usize, others: &[u8]| {
        let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
        text.len() <= longest
            && ends(text.bytes().next())
            && ends(text.bytes().next_back())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || others.contains(&byte))
    };
    let is_prefix =
        |prefix: &str| prefix.len() <= 253 && prefix.split('.').all(|label| is_name(label, 253, b"-"));
    is_name(name, 63, b"-_.") && prefix.is_none_or(is_prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        let cases = [
            ("0", true),
            ("0s", true),
            ("1h30m", true),
            ("1.5h", true),
            (".5s", true),
            ("+1m0s", true),
            ("100ms", true),
            ("1d", false),
            ("-1s", false),
            ("1", false),
            ("s", false),
            (".s", false),
            ("", false),
            ("+", false),
            ("1 s", false),
        ];
        for (text, expected) in cases {
            assert_eq!(is_duration(text), expected, "{text}");
        }
    }

    #[test]
    fn keys_of_annotations_are_those_of_kubernetes() {
        let (name, domain) = ("a".repeat(63), format!("{0}.{0}.{0}.{1}", "a".repeat(63), "a".repeat(61)));
        let cases = [
            ("a", true),
            ("Example.com/Role_a-b.c9", true),
            ("eks.amazonaws.com/role-arn", true),
            (&format!("{domain}/{name}"), true),
            (&format!("{domain}a/{name}"), false),
            (&format!("{domain}/{name}a"), false),
            ("", false),
            ("/a", false),
            ("a/", false),
            ("a/b/c", false),
            ("-a", false),
            ("a-", false),
            ("a b", false),
            ("-a.com/b", false),
            ("a-.com/b", false),
            ("a_b.com/c", false),
            ("a..com/b", false),
        ];
        for (key, expected) in cases {
            assert_eq!(is_annotation(key), expected, "{key}");
        }
    }

    #[test]
    fn files_of_some_names_are_read() {
        let cases =
            [("a.json", true), ("a.yaml", true), ("a.b.yml", true), ("a.conf", false), ("yaml", false)];
        for (name, expected) in cases {
            assert_eq!(is_read(name), expected, "{name}");
        }
    }

    #[test]
    fn a_plugin_needs_patterns_that_are_all_keys() {
        let config = |patterns: &str| {
            let text = format!(
                "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: a\n  \
                 apiVersion: credentialprovider.kubelet.k8s.io/v1\n  defaultCacheDuration: 1h\n  matchImages: {patterns}\n"
            );
            read(vec![("config.yaml".to_owned(), text)])
        };
        let providers = config("[\"*.example.com\", b.example/team]").unwrap();
        let cases = [("a.example.com/x", true), ("b.example/team/x", true), ("b.example/x", false)];
        for (repository, expected) in cases {
            assert_eq!(providers[0].serves(repository), expected, "{repository}");
        }
        for patterns in ["[]", "[\"a b\"]", "[a.example, \"a b\"]"] {
            let found = config(patterns);
            assert!(matches!(found, Err(ConfigError::Field { field: "matchImages", .. })), "{patterns}");
        }
    }

    #[test]
    fn an_error_shows_no_value_of_a_variable() {
        let text = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: a\n  env:\n  - \
                    {name: A, value: secret, more: secret}\n";
        let error = read(vec![("config.yaml".to_owned(), text.to_owned())]).unwrap_err().to_string();
        assert!(
            error.starts_with("config.yaml is not a CredentialProviderConfig") && !error.contains("secret"),
            "{error}"
        );
    }
}
