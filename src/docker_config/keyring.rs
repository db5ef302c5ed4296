//! Which entries the kubelet tries for an image, in which order, and why not the others.
//!
//! The rules are those of `BasicDockerKeyring` in the kubelet's `pkg/credentialprovider/keyring.go`. `tests/it/oracle.rs`
//! compares the answers with that code itself.

use super::document::{self, Entry as Text, Shape, Spoilt, Unusable};
use super::entry::Credentials;
use super::key::{self, Location};
use super::ledger::Record;
use super::{image::Image, json};
use secrecy::ExposeSecret as _;
use secrecy::zeroize::Zeroizing;
use std::cmp::Reverse;

/// What Docker Hub's entry is filed under (`https://index.docker.io/v1/`).
const HUB: &[u8] = b"index.docker.io";

/// The credentials of one file, as the kubelet files them.
#[derive(Debug, Default)]
pub struct Keyring {
    /// In the order in which the kubelet goes through them; what is no URL comes last.
    entries: Vec<Entry>,
}

/// One entry.
#[derive(Debug)]
pub struct Entry {
    /// Its key, as it is spelt in the file.
    pub key: String,
    /// User and password.
    pub credentials: Credentials,
    /// What we remember of it, where it is ours.
    pub record: Option<Record>,
    filed_under: Option<Vec<u8>>,
}

/// Why the kubelet goes on to the next file.
#[derive(Debug, PartialEq, Eq)]
pub enum Ignored {
    /// It is no docker config.
    Invalid(String),
    /// Something in it spoils it.
    Spoilt(Vec<Spoilt>),
}

/// What a keyring has for an image.
#[derive(Debug)]
pub struct Found<'a> {
    /// What the kubelet tries, in its order.
    pub tried: Vec<&'a Entry>,
    /// What it does not try.
    pub passed_over: Vec<(&'a Entry, Mismatch)>,
    /// Nothing matched, and Docker Hub's entry is tried instead.
    pub as_default: bool,
}

/// Why an entry is not for an image. The kubelet's first reason may be another one: this is the most telling.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum Mismatch {
    /// The kubelet skips the entry.
    #[error("its key is no URL, so it is never used")]
    NoUrl,
    /// The kubelet cannot read the image's name.
    #[error("the kubelet cannot read the image's name as a URL, so it finds no entry for it")]
    ImageNoUrl,
    /// Only `https://` and `http://` are cut off.
    #[error("the scheme before `://` is none that the kubelet knows, so it is never used")]
    Scheme,
    /// `:443` is not implied.
    #[error("the port differs: {} here, {} in the image", port(key), port(image))]
    Port {
        /// The key's.
        key: String,
        /// The image's.
        image: String,
    },
    /// `*` stands for one label.
    #[error("the host has {key} labels here, {image} in the image; `*` stands for one")]
    Labels {
        /// How many the key's host has.
        key: usize,
        /// How many the image's has.
        image: usize,
    },
    /// Same host, but for capital letters.
    #[error("the host is spelt with other capitals: `{key}` here, `{image}` in the image")]
    Capitals {
        /// The key's label.
        key: String,
        /// The image's label.
        image: String,
    },
    /// Another host.
    #[error("the host differs: `{key}` here, `{image}` in the image")]
    Label {
        /// The key's label, with its globs.
        key: String,
        /// The image's label.
        image: String,
    },
    /// The key's path must be the beginning of the image's. It knows no globs.
    #[error("the image's name does not begin with its path `{path}`")]
    Path {
        /// The key's path.
        path: String,
    },
}

impl Keyring {
    /// Reads a file as the kubelet does.
    ///
    /// # Errors
    /// When the kubelet ignores the file.
    pub fn read(bytes: &[u8], shape: Shape) -> Result<Self, Ignored> {
        let replaced: Zeroizing<String>;
        let text = if let Ok(text) = std::str::from_utf8(bytes) {
            text
        } else {
            replaced = json::replaced(bytes);
            &replaced
        };
        let parsed = document::parse_to_read(text, shape).map_err(|unusable| match unusable {
            Unusable::Invalid(why) => Ignored::Invalid(why),
            Unusable::CannotCarry(why) => Ignored::Invalid(why.to_owned()),
        })?;
        if !parsed.spoilt.is_empty() {
            return Err(Ignored::Spoilt(parsed.spoilt));
        }
        let ledger = parsed.document.ledger();
        let record = |key: &str, entry: &Text<'_>| {
            let record = ledger?.entries.get(key)?;
            (record.digest == entry.digest()).then(|| record.clone())
        };
        let all = parsed.document.all_entries().into_iter();
        let mut entries: Vec<Entry> = all
            .map(|(key, entry)| Entry {
                key: key.to_owned(),
                credentials: entry.credentials().unwrap_or_default(),
                record: record(key, entry),
                filed_under: key::filed_under(key),
            })
            .collect();
        // Stable: several spellings of one key stay side by side, in the order of their spellings. The kubelet's order
        // among these is random.
        entries.sort_by(|a, b| Reverse(&a.filed_under).cmp(&Reverse(&b.filed_under)));
        Ok(Self { entries })
    }

    /// All entries.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The other entries that the kubelet tries before the one filed under `filed_under`, for an image that both are for.
    #[must_use]
    pub fn tried_before(&self, filed_under: &str) -> Vec<&Entry> {
        let Some(at) = self.entries.iter().position(|entry| entry.is_filed_under(filed_under)) else {
            return Vec::new();
        };
        let Some(key) = self.entries[at].filed_under.as_ref().and_then(|key| Location::parse(key)) else {
            return Vec::new();
        };
        let overlaps = |entry: &&Entry| {
            let other = entry.filed_under.as_ref().and_then(|other| Location::parse(other));
            other.is_some_and(|other| overlap(&key, &other))
        };
        self.entries[..at].iter().filter(overlaps).collect()
    }

    /// The entries filed under one key, in several spellings perhaps.
    pub fn filed_under<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(move |entry| entry.is_filed_under(key))
    }

    /// What there is for an image.
    #[must_use]
    pub fn look_up(&self, image: &Image) -> Found<'_> {
        self.look_up_name(&image.repository())
    }

    /// What there is for a name without tag and digest, well-formed or not.
    #[must_use]
    pub fn look_up_name(&self, name: &str) -> Found<'_> {
        let target = Location::parse(name.as_bytes());
        let mut found = Found { tried: Vec::new(), passed_over: Vec::new(), as_default: false };
        for entry in &self.entries {
            match entry.mismatch(target.as_ref()) {
                None => found.tried.push(entry),
                Some(mismatch) => found.passed_over.push((entry, mismatch)),
            }
        }
        if found.tried.is_empty() && is_of_the_default_registry(name) {
            let is_hub = |entry: &Entry| entry.filed_under.as_deref() == Some(HUB);
            found.tried = self.entries.iter().filter(|entry| is_hub(entry)).collect();
            found.as_default = !found.tried.is_empty();
            found.passed_over.retain(|(entry, _)| !is_hub(entry));
        }
        found
    }
}

impl Entry {
    /// What the kubelet files it under; `None` where its key is no URL.
    #[must_use]
    pub fn filed_under(&self) -> Option<String> {
        self.filed_under.as_ref().map(|key| String::from_utf8_lossy(key).into_owned())
    }

    fn is_filed_under(&self, key: &str) -> bool {
        self.filed_under.as_deref() == Some(key.as_bytes())
    }

    /// Whether the kubelet files both under one key, and so tries them in random order.
    #[must_use]
    pub fn is_filed_with(&self, other: &Self) -> bool {
        self.filed_under == other.filed_under
    }

    /// Whether there is neither user nor password in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.credentials.username.is_empty() && self.credentials.password.expose_secret().is_empty()
    }

    fn mismatch(&self, target: Option<&Location>) -> Option<Mismatch> {
        let Some(filed_under) = &self.filed_under else { return Some(Mismatch::NoUrl) };
        // Parsed once more, as the kubelet does: what was an escape the first time may be no URL now.
        let Some(key) = Location::parse(filed_under) else { return Some(Mismatch::NoUrl) };
        let Some(target) = target else { return Some(Mismatch::ImageNoUrl) };
        let mismatch = mismatch(&key, target)?;
        // `https://` and `http://` are cut off by now.
        let rest = std::str::from_utf8(filed_under).ok().and_then(|key| key.split_once("://"));
        let has_scheme = rest.is_some_and(|(scheme, _)| key::is_scheme(scheme));
        Some(if has_scheme { Mismatch::Scheme } else { mismatch })
    }
}

/// Whether the kubelet takes a key with globs for a name, neither with a scheme.
#[must_use]
pub fn matches(glob: &str, name: &str) -> bool {
    match (Location::parse(glob.as_bytes()), Location::parse(name.as_bytes())) {
        (Some(key), Some(target)) => mismatch(&key, &target).is_none(),
        _ => false,
    }
}

fn mismatch(key: &Location, target: &Location) -> Option<Mismatch> {
    let (host, port) = key.host_and_port();
    let (target_host, target_port) = target.host_and_port();
    let labels = |host: &[u8]| host.split(|byte| *byte == b'.').map(<[u8]>::to_vec).collect::<Vec<_>>();
    let (globs, names) = (labels(host), labels(target_host));
    if globs.len() != names.len() {
        return Some(Mismatch::Labels { key: globs.len(), image: names.len() });
    }
    let differ: Vec<_> = globs.iter().zip(&names).filter(|(glob, name)| !glob_matches(glob, name)).collect();
    let is_other = |(glob, name): &&(&Vec<u8>, &Vec<u8>)| {
        !glob_matches(&glob.to_ascii_lowercase(), &name.to_ascii_lowercase())
    };
    // Another label says more than one that is only spelt with other capitals.
    if let Some((glob, name)) = differ.iter().find(is_other) {
        return Some(Mismatch::Label { key: text(glob), image: text(name) });
    }
    if let Some((glob, name)) = differ.first() {
        return Some(Mismatch::Capitals { key: text(glob), image: text(name) });
    }
    if port != target_port {
        return Some(Mismatch::Port { key: text(port), image: text(target_port) });
    }
    (!target.path.starts_with(&key.path)).then(|| Mismatch::Path { path: visible_path(&key.path) })
}

/// Whether there may be an image that both keys are for. Of two globs in one label it is said if one matches the other.
fn overlap(a: &Location, b: &Location) -> bool {
    let ((a_host, a_port), (b_host, b_port)) = (a.host_and_port(), b.host_and_port());
    let labels = |host| <[u8]>::split(host, |byte| *byte == b'.');
    let meet = |(a, b): (&[u8], &[u8])| glob_matches(a, b) || glob_matches(b, a);
    a_port == b_port
        && labels(a_host).count() == labels(b_host).count()
        && labels(a_host).zip(labels(b_host)).all(meet)
        && (a.path.starts_with(&b.path) || b.path.starts_with(&a.path))
}

/// Whether an image is one of Docker Hub's by its name (`isDefaultRegistryMatch`).
#[must_use]
pub fn is_of_the_default_registry(name: &str) -> bool {
    match name.split_once('/') {
        None => !name.is_empty(),
        Some(("", _)) => false,
        Some(("docker.io" | "index.docker.io", _)) => true,
        Some((first, _)) => !first.contains(['.', ':']),
    }
}

/// What Go's `filepath.Match` says of one label: `*` is any text, `[…]` one character of a class.
///
/// A host has no `?` and no `\`, and brackets only around an IPv6 address, so that `[::1]` is a class here, as it is for the
/// kubelet. Never goes back further than to the last `*`: a key of many must not take for ever.
fn glob_matches(glob: &[u8], name: &[u8]) -> bool {
    let (mut glob, mut name) = (glob, name);
    let mut last_star = None;
    loop {
        if let [b'*', rest @ ..] = glob {
            glob = rest;
            last_star = Some((rest, name));
            continue;
        }
        match name {
            [] if glob.is_empty() => return true,
            [first, tail @ ..] if let Some(rest) = after_one(glob, *first) => (glob, name) = (rest, tail),
            _ => {
                let Some((rest, [_, tail @ ..])) = last_star else { return false };
                (glob, name) = (rest, tail);
                last_star = Some((rest, tail));
            }
        }
    }
}

/// What is left of `glob` if it begins with `byte`, or with a class that `byte` is in.
fn after_one(glob: &[u8], byte: u8) -> Option<&[u8]> {
    match glob {
        [b'[', rest @ ..] => {
            let (class, rest) = rest.split_at(rest.iter().position(|end| *end == b']')?);
            is_in_class(class, byte).then_some(&rest[1..])
        }
        [first, rest @ ..] => (*first == byte).then_some(rest),
        [] => None,
    }
}

fn is_in_class(class: &[u8], byte: u8) -> bool {
    let (mut class, mut found) = (class, false);
    loop {
        match class {
            [] => return found,
            [b'-', ..] | [_, b'-'] => return false,
            [low, b'-', high, rest @ ..] => {
                found |= (low..=high).contains(&&byte);
                class = rest;
            }
            [only, rest @ ..] => {
                found |= *only == byte;
                class = rest;
            }
        }
    }
}

/// A key's path without what may be a password before an `@`.
fn visible_path(path: &[u8]) -> String {
    match path.iter().rposition(|byte| *byte == b'@') {
        Some(at) => format!("…{}", text(&path[at..])),
        None => text(path),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).escape_debug().to_string()
}

fn port(port: &str) -> String {
    if port.is_empty() { "none".to_owned() } else { format!("`{port}`") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyring(keys: &[&str]) -> Keyring {
        let auths: Vec<String> =
            keys.iter().map(|key| format!("{}:{{\"username\":\"u\"}}", json::quoted(key))).collect();
        let document = format!("{{\"auths\":{{{}}}}}", auths.join(","));
        Keyring::read(document.as_bytes(), Shape::DockerConfig).unwrap()
    }

    #[test]
    fn what_does_not_match_says_why() {
        let image: Image = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/app:1".parse().unwrap();
        let cases = [
            ("a b.example", "its key is no URL, so it is never used"),
            (
                "oci://123456789012.dkr.ecr.eu-west-1.amazonaws.com",
                "the scheme before `://` is none that the kubelet knows, so it is never used",
            ),
            (
                "123456789012.dkr.ecr.eu-west-1.amazonaws.com:443",
                "the port differs: `443` here, none in the image",
            ),
            ("*.amazonaws.com", "the host has 3 labels here, 6 in the image; `*` stands for one"),
            (
                "123456789012.dkr.ecr.EU-West-1.amazonaws.com",
                "the host is spelt with other capitals: `EU-West-1` here, `eu-west-1` in the image",
            ),
            (
                "*.dkr.ecr.us-east-1.amazonaws.com",
                "the host differs: `us-east-1` here, `eu-west-1` in the image",
            ),
            (
                "*.dkr.ecr.eu-west-1.amazonaws.com/tools",
                "the image's name does not begin with its path `/tools`",
            ),
            (
                "https://user:12/secret@123456789012.dkr.ecr.eu-west-1.amazonaws.com",
                "the host has 1 labels here, 6 in the image; `*` stands for one",
            ),
            (
                "123456789012.dkr.ecr.eu-west-1.amazonaws.com/secret@x",
                "the image's name does not begin with its path `…@x`",
            ),
            (
                "123456789012.DKR.ecr.us-east-1.amazonaws.com",
                "the host differs: `us-east-1` here, `eu-west-1` in the image",
            ),
        ];
        for (key, why) in cases {
            let keyring = keyring(&[key]);
            let found = keyring.look_up(&image);
            assert_eq!(
                found.passed_over.iter().map(|(_, why)| why.to_string()).collect::<Vec<_>>(),
                [why],
                "{key}"
            );
        }
    }

    #[test]
    fn the_reason_is_about_the_image_or_the_key_whichever_is_at_fault() {
        let why = |key: &str, name: &str| {
            let keyring = keyring(&[key]);
            keyring.look_up_name(name).passed_over[0].1.clone()
        };
        assert_eq!(why("a.b", "[A]/x"), Mismatch::ImageNoUrl);
        assert_eq!(why("a b", "[A]/x"), Mismatch::NoUrl);
        let other = Mismatch::Label { key: "example".to_owned(), image: "other".to_owned() };
        assert_eq!(why("Reg.example", "reg.other/x"), other);
        assert_eq!(why("a.b/x://y", "a.b/z"), Mismatch::Path { path: "/x://y".to_owned() });
        assert_eq!(why("oci://a.b", "a.b/z"), Mismatch::Scheme);
    }

    #[test]
    fn what_is_tried_before_an_entry_is_known() {
        let keyring = keyring(&[
            "r.example.com",
            "r.example.com/team",
            "*.example.com",
            "*.example.com/team",
            "s.example.com/x",
            "r.example.com:443",
            "https://r.example.com/v2/",
        ]);
        let before =
            |key| keyring.tried_before(key).iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>();
        assert_eq!(before("r.example.com"), ["r.example.com/team"]);
        assert_eq!(before("r.example.com/team"), [""; 0]);
        let of_all = [
            "s.example.com/x",
            "r.example.com/team",
            "https://r.example.com/v2/",
            "r.example.com",
            "*.example.com/team",
        ];
        assert_eq!(before("*.example.com"), of_all);
        assert_eq!(before("no.example.com"), [""; 0]);
        assert_eq!(keyring.filed_under("r.example.com").count(), 2);
    }

    #[test]
    fn many_globs_in_a_key_take_no_time() {
        let glob = "a*".repeat(2000) + "b";
        assert!(!matches(&glob, &"a".repeat(4000)));
        assert!(matches(&glob, &("a".repeat(4000) + "b")));
    }

    #[test]
    fn docker_hubs_entry_is_the_last_resort() {
        let keyring = keyring(&["https://index.docker.io/v1/", "docker.io/team"]);
        let tried = |image: &str| {
            let found = keyring.look_up(&image.parse().unwrap());
            (found.tried.iter().map(|entry| entry.key.clone()).collect::<Vec<_>>(), found.as_default)
        };
        assert_eq!(tried("nginx"), (vec!["https://index.docker.io/v1/".to_owned()], true));
        assert_eq!(tried("team/app"), (vec!["docker.io/team".to_owned()], false));
        assert_eq!(tried("registry.example.com/app"), (Vec::new(), false));
    }
}
