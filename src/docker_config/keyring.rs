//! Which entries the kubelet tries for an image, in which order.
//!
//! The rules are those of `BasicDockerKeyring` in the kubelet's `pkg/credentialprovider/keyring.go`. `tests/it/oracle.rs`
//! compares the results with that code itself.

use super::document::Entry as DocumentEntry;
use super::entry::Credentials;
use super::image::Image;
use super::json;
use super::key::{self, Location};
use super::ledger::Record;
use super::matching::{Mismatch, is_of_the_default_registry, mismatch, overlap};
use super::parse::{self, Defect, ParseError, Shape};
use secrecy::ExposeSecret as _;
use secrecy::zeroize::Zeroizing;
use std::cmp::Reverse;

/// The index key of Docker Hub's entry (`https://index.docker.io/v1/`).
const HUB: &[u8] = b"index.docker.io";

/// How many entries that are not tried are listed for an image. A file may hold hundreds of thousands.
const MAX_PASSED_OVER: usize = 1000;

/// The credentials of one file, as the kubelet indexes them.
#[derive(Debug, Default)]
pub struct Keyring {
    /// In the kubelet's order; entries whose key is no URL come last.
    entries: Vec<Entry>,
}

/// One entry.
#[derive(Debug)]
pub struct Entry {
    /// Its key, as it is spelt in the file.
    pub key: String,
    /// User and password.
    pub credentials: Credentials,
    /// What the ledger stores about it; `None` if the entry is foreign.
    pub record: Option<Record>,
    /// The key under which the kubelet indexes it; `None` if its key is no URL.
    filed_under: Option<Vec<u8>>,
    /// The index key, parsed once more, as the kubelet does: what was an escape the first time may be no URL now.
    location: Option<Location>,
}

/// Why the kubelet goes on to the next file.
#[derive(Debug, PartialEq, Eq)]
pub enum Ignored {
    /// The file is no docker config.
    Invalid(String),
    /// The file has defects.
    Defects(Vec<Defect>),
}

/// What a keyring has for an image.
#[derive(Debug)]
pub struct LookUp<'a> {
    /// The entries that the kubelet tries, in its order.
    pub tried: Vec<&'a Entry>,
    /// The first 1,000 of the entries that it does not try.
    pub passed_over: Vec<(&'a Entry, Mismatch)>,
    /// How many more it does not try.
    pub more_passed_over: usize,
    /// Whether nothing matched, and Docker Hub's entry is tried instead.
    pub as_default: bool,
}

impl Keyring {
    /// Reads a file as the kubelet does.
    ///
    /// # Errors
    /// If the kubelet ignores the file.
    pub fn read(bytes: &[u8], shape: Shape) -> Result<Self, Ignored> {
        let replaced: Zeroizing<String>;
        let text = if let Ok(text) = std::str::from_utf8(bytes) {
            text
        } else {
            replaced = json::replaced(bytes);
            &replaced
        };
        let parsed = parse::parse_to_read(text, shape).map_err(|error| match error {
            ParseError::Invalid(why) => Ignored::Invalid(why),
            ParseError::CannotPreserve(why) => Ignored::Invalid(why.to_owned()),
        })?;
        if !parsed.defects.is_empty() {
            return Err(Ignored::Defects(parsed.defects));
        }
        let ledger = parsed.document.ledger();
        let record = |key: &str, entry: &DocumentEntry<'_>| {
            let record = ledger?.entries.get(key)?;
            (record.digest == entry.digest()).then(|| record.clone())
        };
        let all = parsed.document.all_entries().into_iter();
        let mut entries: Vec<Entry> = all
            .map(|(key, entry)| {
                let filed_under = key::filed_under(key);
                Entry {
                    key: key.to_owned(),
                    credentials: entry.credentials().unwrap_or_default(),
                    record: record(key, entry),
                    location: filed_under.as_ref().and_then(|key| Location::parse(key)),
                    filed_under,
                }
            })
            .collect();
        // A stable sort: several spellings of one key stay side by side. The kubelet's order among these is random.
        entries.sort_by(|a, b| Reverse(&a.filed_under).cmp(&Reverse(&b.filed_under)));
        Ok(Self { entries })
    }

    /// All entries.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The other entries that the kubelet tries before the one with the index key `filed_under`, for an image that both
    /// are for.
    #[must_use]
    pub fn tried_before(&self, filed_under: &str) -> Vec<&Entry> {
        let Some(at) = self.entries.iter().position(|entry| entry.is_filed_under(filed_under)) else {
            return Vec::new();
        };
        let Some(key) = &self.entries[at].location else { return Vec::new() };
        let overlaps = |entry: &&Entry| entry.location.as_ref().is_some_and(|other| overlap(key, other));
        self.entries[..at].iter().filter(overlaps).collect()
    }

    /// The entries with one index key. There are several if the file has several spellings of it.
    pub fn filed_under<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(move |entry| entry.is_filed_under(key))
    }

    /// What the kubelet tries for an image.
    #[must_use]
    pub fn look_up(&self, image: &Image) -> LookUp<'_> {
        self.look_up_name(&image.repository())
    }

    /// What the kubelet tries for a name without tag and digest, well-formed or not.
    #[must_use]
    pub fn look_up_name(&self, name: &str) -> LookUp<'_> {
        let target = Location::parse(name.as_bytes());
        let mut found =
            LookUp { tried: Vec::new(), passed_over: Vec::new(), more_passed_over: 0, as_default: false };
        for entry in &self.entries {
            match entry.mismatch(target.as_ref()) {
                None => found.tried.push(entry),
                Some(mismatch) if found.passed_over.len() < MAX_PASSED_OVER => {
                    found.passed_over.push((entry, mismatch));
                }
                Some(_) => found.more_passed_over += 1,
            }
        }
        if found.tried.is_empty() && is_of_the_default_registry(name) {
            let is_hub = |entry: &Entry| entry.filed_under.as_deref() == Some(HUB);
            found.tried = self.entries.iter().filter(|entry| is_hub(entry)).collect();
            found.as_default = !found.tried.is_empty();
            found.passed_over.retain(|(entry, _)| !is_hub(entry));
            let others = self.entries.len() - found.tried.len();
            found.more_passed_over = others - found.passed_over.len();
        }
        found
    }
}

impl Entry {
    /// The key under which the kubelet indexes it; `None` if its key is no URL.
    #[must_use]
    pub fn filed_under(&self) -> Option<String> {
        self.filed_under.as_ref().map(|key| String::from_utf8_lossy(key).into_owned())
    }

    fn is_filed_under(&self, key: &str) -> bool {
        self.filed_under.as_deref() == Some(key.as_bytes())
    }

    /// Whether the kubelet indexes both under one key, and so tries them in random order.
    #[must_use]
    pub fn is_filed_with(&self, other: &Self) -> bool {
        self.filed_under == other.filed_under
    }

    /// Whether both user and password are empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.credentials.username.is_empty() && self.credentials.password.expose_secret().is_empty()
    }

    fn mismatch(&self, target: Option<&Location>) -> Option<Mismatch> {
        let (Some(filed_under), Some(key)) = (&self.filed_under, &self.location) else {
            return Some(Mismatch::NoUrl);
        };
        let Some(target) = target else { return Some(Mismatch::ImageNoUrl) };
        let mismatch = mismatch(key, target)?;
        // `https://` and `http://` are cut off by now.
        let rest = std::str::from_utf8(filed_under).ok().and_then(|key| key.split_once("://"));
        let has_scheme = rest.is_some_and(|(scheme, _)| key::is_scheme(scheme));
        Some(if has_scheme { Mismatch::Scheme } else { mismatch })
    }
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
        let together: Vec<_> = keyring.filed_under("r.example.com").collect();
        assert!(together.len() == 2 && together[0].is_filed_with(together[1]));
        assert!(!together[0].is_filed_with(&keyring.entries()[0]));
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

    #[test]
    fn an_entry_has_a_record_while_it_is_as_the_agent_wrote_it() {
        let digest = super::super::ledger::digest("QVdTOnA=");
        let record = format!(
            r#"{{"expiresAt":"2026-11-24T00:00:00Z","fetchedAt":"2026-11-23T12:00:00Z","source":"s","digest":"{digest}"}}"#
        );
        let read = |entry: &str| {
            let ledger = format!(r#"{{"version":1,"entries":{{"https://a.b/v2/":{record}}}}}"#);
            let document = format!(r#"{{"auths":{{"https://a.b/v2/":{entry}}},"ecr-node-agent":{ledger}}}"#);
            let keyring = Keyring::read(document.as_bytes(), Shape::DockerConfig).unwrap();
            let [entry] = keyring.entries() else { panic!("{document}") };
            (entry.record.is_some(), entry.is_empty(), entry.filed_under())
        };
        let index = || Some("a.b".to_owned());
        assert_eq!(read(r#"{"auth":"QVdTOnA="}"#), (true, false, index()));
        assert_eq!(read(r#"{"auth":"QVdTOnB="}"#), (false, false, index()));
        assert_eq!(read(r#"{"username":"u"}"#), (false, false, index()));
        assert_eq!(read(r#"{"password":"p"}"#), (false, false, index()));
        assert_eq!(read("{}"), (false, true, index()));
    }

    #[test]
    fn a_limited_number_of_entries_that_are_not_tried_is_listed() {
        let hosts: Vec<String> =
            (0..MAX_PASSED_OVER + 2).map(|number| format!("{number:04}.example")).collect();
        let mut keys: Vec<&str> = hosts.iter().map(String::as_str).collect();
        let counts = |keys: &[&str], image: &str| {
            let keyring = keyring(keys);
            let found = keyring.look_up(&image.parse().unwrap());
            (found.tried.len(), found.passed_over.len(), found.more_passed_over)
        };
        assert_eq!(counts(&keys, "registry.example.com/app"), (0, MAX_PASSED_OVER, 2));
        assert_eq!(counts(&keys[..MAX_PASSED_OVER], "registry.example.com/app"), (0, MAX_PASSED_OVER, 0));
        // Docker Hub's entry is tried after all, and is none of these.
        keys.push("https://index.docker.io/v1/");
        let (tried, listed, more) = counts(&keys, "nginx");
        assert_eq!((tried, listed + more), (1, hosts.len()));
        assert_eq!(counts(&keys[MAX_PASSED_OVER..], "nginx"), (1, 2, 0));
    }
}
