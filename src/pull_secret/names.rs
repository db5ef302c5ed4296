//! Names of pull secrets, and patterns and labels that find their namespaces. Pure.
//!
//! A value of one of these types is valid for Kubernetes, so that no other code has to check or escape it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

/// Why a text is not valid. The messages teach the format.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ParseNameError {
    #[error("expected NAMESPACE/NAME, for example `default/ecr-creds`")]
    Shape,
    #[error("`{}` is not a valid namespace: use lower-case letters, digits and inner `-`, 63 at most", .0.escape_debug())]
    Namespace(String),
    #[error("`{}` cannot match a namespace: use lower-case letters, digits, `-`, `*` and `?`", .0.escape_debug())]
    Glob(String),
    #[error("`{}` is not a valid name: use lower-case letters, digits, inner `-` and `.`, 253 at most", .0.escape_debug())]
    Name(String),
    #[error("`{}` is not a valid label: expected KEY=VALUE, for example `ecr-creds=enabled`", .0.escape_debug())]
    Label(String),
}

/// A text type that is valid by `$is_valid`, and otherwise the error `$error`.
macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $is_valid:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseNameError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let valid = $is_valid(text).then(|| Self(text.to_owned()));
                valid.ok_or_else(|| ParseNameError::$name(text.to_owned()))
            }
        }
    };
}

text!(
    /// The name of a namespace: an RFC 1123 label.
    Namespace,
    is_label
);
text!(
    /// The name of a Secret or a service account: an RFC 1123 subdomain.
    Name,
    is_subdomain
);
text!(
    /// A pattern for namespaces, in which `*` stands for any number of characters and `?` for one.
    Glob,
    is_glob
);

/// A pull secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretRef {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: Name,
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A label that a namespace must have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label {
    key: String,
    value: String,
}

impl FromStr for Label {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let label = text.split_once('=').filter(|(key, value)| {
            let (prefix, name) =
                key.rsplit_once('/').map_or((None, *key), |(prefix, name)| (Some(prefix), name));
            let is_value = value.is_empty() || is_qualified(value);
            prefix.is_none_or(is_subdomain) && is_qualified(name) && is_value
        });
        let label = label.map(|(key, value)| Self { key: key.to_owned(), value: value.to_owned() });
        label.ok_or_else(|| ParseNameError::Label(text.to_owned()))
    }
}

/// The argument of `--pull-secret`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PullSecretArg {
    /// One secret.
    Exactly(SecretRef),
    /// A secret of this name in each namespace that matches.
    Glob(Glob, Name),
}

impl fmt::Display for PullSecretArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(secret) => write!(f, "{secret}"),
            Self::Glob(glob, name) => write!(f, "{glob}/{name}"),
        }
    }
}

impl FromStr for PullSecretArg {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, name) = text.split_once('/').ok_or(ParseNameError::Shape)?;
        let name = name.parse()?;
        if namespace.contains(['*', '?']) {
            Ok(Self::Glob(namespace.parse()?, name))
        } else {
            Ok(Self::Exactly(SecretRef { namespace: namespace.parse()?, name }))
        }
    }
}

/// Which namespaces have a pull secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamespaceSelector {
    /// Those whose name matches.
    Glob(Glob),
    /// Those that have this label.
    Label(Label),
}

/// The pull secrets to keep, and the service accounts that should name them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PullSecrets {
    /// Secrets that are named.
    pub named: BTreeSet<SecretRef>,
    /// Secrets of this name in the namespaces that a selector finds.
    pub found: Vec<(NamespaceSelector, Name)>,
    /// Service accounts to patch in each namespace with a secret.
    pub service_accounts: BTreeSet<Name>,
}

impl PullSecrets {
    /// Whether there is nothing to keep.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.named.is_empty() && self.found.is_empty()
    }

    /// Whether a label of this key finds namespaces.
    #[must_use]
    pub fn uses_label(&self, key: &str) -> bool {
        self.found
            .iter()
            .any(|(selector, _)| matches!(selector, NamespaceSelector::Label(label) if label.key == key))
    }

    /// The secrets to keep in a namespace.
    #[must_use]
    pub fn in_namespace(
        &self,
        namespace: &Namespace,
        labels: &BTreeMap<String, String>,
    ) -> BTreeSet<SecretRef> {
        let is_found = |selector: &NamespaceSelector| match selector {
            NamespaceSelector::Glob(glob) => glob.matches(namespace.as_str()),
            NamespaceSelector::Label(label) => labels.get(&label.key) == Some(&label.value),
        };
        let secret = |name: &Name| SecretRef { namespace: namespace.clone(), name: name.clone() };
        // The set is sorted by namespace, and no name is empty.
        let first = SecretRef { namespace: namespace.clone(), name: Name(String::new()) };
        let named = self.named.range(first..).take_while(|secret| secret.namespace == *namespace).cloned();
        named.chain(self.found.iter().filter(|(it, _)| is_found(it)).map(|(_, name)| secret(name))).collect()
    }
}

impl Glob {
    /// Whether the whole name of a namespace matches.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        // The positions in both, and those to go back to if the rest does not match: then the last `*` takes one character more.
        let (mut at, mut of, mut last_star) = (0, 0, None);
        while of < name.len() {
            match pattern.get(at) {
                Some(b'*') => {
                    last_star = Some((at, of));
                    at += 1;
                }
                Some(byte) if *byte == b'?' || *byte == name[of] => {
                    at += 1;
                    of += 1;
                }
                _ => {
                    let Some((star, taken)) = last_star else { return false };
                    (at, of) = (star, taken + 1);
                }
            }
        }
        pattern[at..].iter().all(|byte| *byte == b'*')
    }
}

/// Whether a text begins and ends with neither `-` nor another character that only inner characters may be.
fn has_plain_ends(text: &str) -> bool {
    !text.starts_with(['-', '_', '.']) && !text.ends_with(['-', '_', '.'])
}

fn is_label(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(is_allowed) && has_plain_ends(text)
}

fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

/// The rule for the value of a label, and for the last part of its key.
fn is_qualified(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=63).contains(&text.len()) && text.bytes().all(is_allowed) && has_plain_ends(text)
}

fn is_glob(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-*?".contains(&byte);
    let fixed = text.bytes().filter(|byte| *byte != b'*').count();
    (1..=253).contains(&text.len()) && fixed <= 63 && text.bytes().all(is_allowed) && has_plain_ends(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_pull_secret_is_a_namespace_and_a_name() {
        let cases = [
            ("default/ecr-creds", true),
            ("team-*/ecr-creds", true),
            ("*/a.b-c", true),
            ("?/a", true),
            ("default", false),
            ("/ecr-creds", false),
            ("default/", false),
            ("default/a/b", false),
            ("Default/a", false),
            ("-a/b", false),
            ("a-/b", false),
            ("-*/b", false),
            ("default/a*", false),
            ("default/.a", false),
            ("a.b/c", false),
            ("a_*/c", false),
            ("default/%2e%2e", false),
            ("default/..", false),
        ];
        for (text, good) in cases {
            let parsed = text.parse::<PullSecretArg>();
            assert_eq!(parsed.is_ok(), good, "{text}");
            assert!(parsed.is_err() || parsed.unwrap().to_string() == text, "{text}");
        }
        let cases = [
            // A namespace has 63 characters at most, and any number of `*` may stand for none.
            ("a".repeat(63), true),
            ("a".repeat(64), false),
            ("a".repeat(63) + "*", true),
            ("a".repeat(64) + "*", false),
            ("*".repeat(253), true),
            ("*".repeat(254), false),
        ];
        for (namespace, good) in cases {
            assert_eq!(format!("{namespace}/a").parse::<PullSecretArg>().is_ok(), good, "{namespace}");
        }
    }

    #[test]
    fn what_there_is_to_keep_is_known() {
        let mut secrets = PullSecrets::default();
        assert!(secrets.is_empty() && !secrets.uses_label("ecr"));
        let label = NamespaceSelector::Label("ecr=yes".parse().unwrap());
        secrets.found.push((label, "ecr-creds".parse().unwrap()));
        assert!(!secrets.is_empty() && secrets.uses_label("ecr") && !secrets.uses_label("yes"));
        let PullSecretArg::Exactly(named) = "default/ecr-creds".parse().unwrap() else { panic!() };
        let secrets = PullSecrets { named: BTreeSet::from([named]), ..PullSecrets::default() };
        assert!(!secrets.is_empty() && !secrets.uses_label("ecr"));
    }

    #[test]
    fn a_label_is_a_key_and_a_value() {
        let cases = [
            ("ecr-creds=enabled", true),
            ("example.com/ecr=yes", true),
            ("ecr=", true),
            ("ecr", false),
            ("=x", false),
            ("a/b/c=d", false),
            ("ecr=-", false),
            ("ecr=a b", false),
            ("ecr=a=b", false),
        ];
        for (text, good) in cases {
            assert_eq!(text.parse::<Label>().is_ok(), good, "{text}");
        }
    }

    #[test]
    fn a_glob_matches_whole_names() {
        let cases = [
            ("*", "default", true),
            ("team-*", "team-a", true),
            ("team-*", "team-", true),
            ("team-*", "my-team-a", false),
            ("*-prod", "a-prod", true),
            ("*-prod", "a-prod-b", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("team-?", "team-a", true),
            ("team-?", "team-ab", false),
            ("**", "a", true),
        ];
        for (glob, name, matches) in cases {
            assert_eq!(Glob(glob.to_owned()).matches(name), matches, "{glob} {name}");
        }
    }

    #[test]
    fn a_namespace_has_each_of_its_secrets_once() {
        let parse = |text: &str| text.parse::<Name>().unwrap();
        let secrets = PullSecrets {
            named: ["team-a/ecr-creds", "other/x"]
                .map(|text| match text.parse().unwrap() {
                    PullSecretArg::Exactly(secret) => secret,
                    PullSecretArg::Glob(..) => unreachable!(),
                })
                .into(),
            found: vec![
                (NamespaceSelector::Glob("team-*".parse().unwrap()), parse("ecr-creds")),
                (NamespaceSelector::Label("ecr=yes".parse().unwrap()), parse("more")),
            ],
            service_accounts: BTreeSet::new(),
        };
        let labels = |value: &str| BTreeMap::from([("ecr".to_owned(), value.to_owned())]);
        let names = |namespace: &str, labels| -> Vec<String> {
            let found = secrets.in_namespace(&namespace.parse().unwrap(), &labels);
            found.iter().map(ToString::to_string).collect()
        };
        assert_eq!(names("team-a", labels("yes")), ["team-a/ecr-creds", "team-a/more"]);
        assert_eq!(names("team-b", labels("no")), ["team-b/ecr-creds"]);
        assert_eq!(names("other", labels("yes")), ["other/more", "other/x"]);
        assert!(names("default", BTreeMap::new()).is_empty());
    }

    proptest! {
        #[test]
        fn a_glob_agrees_with_the_plain_definition(glob in "[ab*?]{1,8}", name in "[ab]{0,8}") {
            fn plain(glob: &[u8], name: &[u8]) -> bool {
                match (glob.first(), name.first()) {
                    (None, None) => true,
                    (Some(b'*'), _) => plain(&glob[1..], name) || (!name.is_empty() && plain(glob, &name[1..])),
                    (Some(b'?'), Some(_)) => plain(&glob[1..], &name[1..]),
                    (Some(a), Some(b)) if a == b => plain(&glob[1..], &name[1..]),
                    _ => false,
                }
            }
            prop_assert_eq!(Glob(glob.clone()).matches(&name), plain(glob.as_bytes(), name.as_bytes()));
        }
    }
}
