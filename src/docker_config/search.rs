//! Where the kubelet looks for docker configs, and which of them it uses.
//!
//! The first file that it can read and decode ends the search; files are never merged (`ReadDockerConfigFile` in the
//! kubelet's `pkg/credentialprovider/config.go`).

use super::keyring::{Ignored, Keyring};
use super::parse::Shape;
use secrecy::zeroize::Zeroizing;
use std::path::{Path, PathBuf};

/// The file name that the kubelet looks for first.
const DOCKER_CONFIG: &str = "config.json";
const LEGACY: &str = ".dockercfg";

/// What a kubelet's search depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubelet {
    /// The file that it looks for first: `config.json` in its root directory (`--root-dir`).
    pub auth_file: PathBuf,
    /// Its working directory; `/` under systemd.
    pub working_dir: PathBuf,
    /// `HOME` in its environment, if it is set there: systemd sets none.
    pub home: Option<PathBuf>,
}

/// A place where a kubelet looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Which kind of file it must be.
    pub shape: Shape,
}

/// What is in a place.
#[derive(Debug)]
pub enum Content {
    /// Nothing.
    Missing,
    /// A file with these bytes.
    Bytes(Zeroizing<Vec<u8>>),
    /// Something that the kubelet cannot read either.
    Unreadable(String),
    /// Something that this program cannot read, and the kubelet perhaps can.
    Unknown(String),
}

/// What the kubelet makes of a place.
#[derive(Debug)]
pub enum Verdict {
    /// Nothing is there.
    Missing,
    /// The kubelet goes on to the next place.
    Ignored(Vec<String>),
    /// The kubelet uses this file.
    Used(Keyring),
    /// The kubelet would use this file if there was no earlier one.
    Hidden(Keyring),
    /// Cannot be determined, and so neither can the verdict on later places.
    Unknown(String),
}

impl Kubelet {
    /// The places in the kubelet's order. A place may occur twice.
    ///
    /// An auth file with another name is in no kubelet's search path: it is the only place.
    #[must_use]
    pub fn places(&self) -> Vec<Place> {
        let first = Place { path: self.auth_file.clone(), shape: Shape::DockerConfig };
        if !self.is_searched() {
            return vec![first];
        }
        // Without a HOME the path is relative, and so to the working directory.
        let home = self.home.as_ref().unwrap_or(&self.working_dir);
        let slash = Path::new("/");
        let root = self.auth_file.parent().unwrap_or(slash);
        let place = |directory: &Path, name, shape| Place { path: directory.join(name), shape };
        let configs = [self.working_dir.clone(), home.join(".docker"), slash.join(".docker")];
        let legacy = [root, &self.working_dir, home, slash];
        std::iter::once(first)
            .chain(configs.iter().map(|directory| place(directory, DOCKER_CONFIG, Shape::DockerConfig)))
            .chain(legacy.iter().map(|directory| place(directory, LEGACY, Shape::Legacy)))
            .collect()
    }

    /// Whether the auth file has the name that the kubelet looks for.
    #[must_use]
    pub fn is_searched(&self) -> bool {
        self.auth_file.file_name().is_some_and(|name| name == DOCKER_CONFIG)
    }
}

/// What the kubelet makes of each place, given in its order.
#[must_use]
pub fn judge(places: Vec<(Place, Content)>) -> Vec<(Place, Verdict)> {
    let mut is_found = false;
    let judged = places.into_iter().map(|(place, content)| {
        let verdict = match content {
            Content::Missing => Verdict::Missing,
            Content::Unreadable(why) => Verdict::Ignored(vec![why]),
            Content::Unknown(why) => Verdict::Unknown(why),
            Content::Bytes(bytes) => match Keyring::read(&bytes, place.shape) {
                Ok(keyring) if is_found => Verdict::Hidden(keyring),
                Ok(keyring) => Verdict::Used(keyring),
                Err(Ignored::Invalid(why)) => Verdict::Ignored(vec![why]),
                Err(Ignored::Defects(defects)) => {
                    Verdict::Ignored(defects.iter().map(ToString::to_string).collect())
                }
            },
        };
        is_found |= matches!(verdict, Verdict::Used(_) | Verdict::Unknown(_));
        (place, verdict)
    });
    judged.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(kubelet: &Kubelet) -> Vec<String> {
        kubelet.places().iter().map(|place| place.path.display().to_string()).collect()
    }

    #[test]
    fn the_places_are_the_kubelets() {
        let mut kubelet =
            Kubelet { auth_file: "/k/config.json".into(), working_dir: "/w".into(), home: Some("/h".into()) };
        let with_home = [
            "/k/config.json",
            "/w/config.json",
            "/h/.docker/config.json",
            "/.docker/config.json",
            "/k/.dockercfg",
            "/w/.dockercfg",
            "/h/.dockercfg",
            "/.dockercfg",
        ];
        assert_eq!(paths(&kubelet), with_home);
        kubelet.home = None;
        assert_eq!(paths(&kubelet)[2], "/w/.docker/config.json");
        assert_eq!(paths(&kubelet)[6], "/w/.dockercfg");
        kubelet.auth_file = "/etc/crio/auth.json".into();
        assert_eq!(paths(&kubelet), ["/etc/crio/auth.json"]);
    }

    #[test]
    fn the_first_file_that_can_be_decoded_is_used() {
        let place = || Place { path: "/".into(), shape: Shape::DockerConfig };
        let bytes = |text: &str| Content::Bytes(Zeroizing::new(text.as_bytes().to_vec()));
        let words = |contents: Vec<Content>| -> Vec<&'static str> {
            let judged = judge(contents.into_iter().map(|content| (place(), content)).collect());
            judged
                .iter()
                .map(|(_, verdict)| match verdict {
                    Verdict::Missing => "missing",
                    Verdict::Ignored(_) => "ignored",
                    Verdict::Used(_) => "used",
                    Verdict::Hidden(_) => "hidden",
                    Verdict::Unknown(_) => "unknown",
                })
                .collect()
        };
        let found = words(vec![Content::Missing, bytes("{"), bytes("{}"), bytes("{}"), bytes("")]);
        assert_eq!(found, ["missing", "ignored", "used", "hidden", "ignored"]);
        assert_eq!(words(vec![Content::Unreadable(String::new()), bytes("null")]), ["ignored", "used"]);
        // Whether the second is used cannot be determined.
        assert_eq!(words(vec![Content::Unknown(String::new()), bytes("{}")]), ["unknown", "hidden"]);
    }
}
