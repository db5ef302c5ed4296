//! The profiles in AWS's two shared files: what each setting is, and where it stands.

use super::parse::{ParseError, Section, Setting, parse};
use crate::report::redact::shown_path;
use std::fmt;
use std::path::{Path, PathBuf};

/// Which of the two files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `~/.aws/credentials`: profiles are sections of their own name.
    Credentials,
    /// `~/.aws/config`: profiles are sections such as `[profile one]`, but for `[default]`.
    Config,
}

impl Kind {
    /// The variable that names the file.
    #[must_use]
    pub fn variable(self) -> &'static str {
        match self {
            Self::Credentials => "AWS_SHARED_CREDENTIALS_FILE",
            Self::Config => "AWS_CONFIG_FILE",
        }
    }

    /// The file's usual path in the home directory.
    #[must_use]
    pub fn usual(self) -> &'static str {
        match self {
            Self::Credentials => ".aws/credentials",
            Self::Config => ".aws/config",
        }
    }

    /// Whether a section with this header is the profile of this name.
    fn is_profile(self, header: &str, name: &str) -> bool {
        match self {
            Self::Credentials => header == name,
            Self::Config => {
                header == "default" && name == "default"
                    || named_section(header, "profile") == Some(name.to_owned())
            }
        }
    }
}

/// The name in a header such as `profile one` or `services "my services"`.
fn named_section(header: &str, kind: &str) -> Option<String> {
    let [first, name] = <[String; 2]>::try_from(shlex::split(header)?).ok()?;
    (first == kind).then_some(name)
}

/// One of the two files, which exists.
#[derive(Debug)]
pub struct ProfileFile {
    kind: Kind,
    path: PathBuf,
    sections: Vec<Section>,
}

/// The two files, as far as they exist.
#[derive(Debug, Default)]
pub struct Profiles {
    /// The credentials file comes first: what it says counts.
    files: Vec<ProfileFile>,
}

/// Where something stands in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} line {}", shown_path(&self.path), self.line)
    }
}

/// A setting that was found.
pub struct Found<'a> {
    /// Its value, which may be empty.
    pub value: &'a str,
    /// Where it stands.
    pub place: Place,
}

impl fmt::Debug for Found<'_> {
    /// The place only: the value may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Found({})", self.place)
    }
}

/// The access key that a profile holds, as far as it is there. All of it is from one file.
#[derive(Debug)]
pub struct FoundKey<'a> {
    /// `aws_access_key_id`.
    pub id: Option<Found<'a>>,
    /// `aws_secret_access_key`.
    pub secret: Option<Found<'a>>,
    /// `aws_session_token`.
    pub session_token: Option<Found<'a>>,
    /// Which file it is from.
    pub kind: Kind,
    /// Where the profile starts.
    pub place: Place,
}

impl ProfileFile {
    /// Reads the content of a file.
    ///
    /// # Errors
    /// At the first line that breaks the rules.
    pub fn parse(kind: Kind, path: &Path, content: &[u8]) -> Result<Self, ParseError> {
        Ok(Self { kind, path: path.to_owned(), sections: parse(content)? })
    }

    fn section(&self, profile: &str) -> Option<&Section> {
        let mut named = self.sections.iter().filter(|section| self.kind.is_profile(&section.header, profile));
        let first = named.next()?;
        // `[profile default]` hides `[default]`.
        Some(named.find(|section| section.header != profile).unwrap_or(first))
    }

    fn place(&self, line: usize) -> Place {
        Place { path: self.path.clone(), line }
    }

    fn found<'a>(&self, setting: &'a Setting) -> Found<'a> {
        Found { value: setting.value.as_str(), place: self.place(setting.line) }
    }
}

impl Profiles {
    /// The profiles of these files.
    #[must_use]
    pub fn new(mut files: Vec<ProfileFile>) -> Self {
        files.sort_by_key(|file| file.kind == Kind::Config);
        Self { files }
    }

    /// Where a profile starts; `None` if no file has it.
    #[must_use]
    pub fn place(&self, profile: &str) -> Option<Place> {
        self.files.iter().find_map(|file| Some(file.place(file.section(profile)?.line)))
    }

    /// A profile's setting. One that is empty counts as unset.
    #[must_use]
    pub fn get(&self, profile: &str, name: &str) -> Option<Found<'_>> {
        self.files.iter().find_map(|file| {
            let mut settings = file.section(profile)?.settings.iter();
            let setting = settings.find(|setting| setting.name == name && !setting.value.is_empty())?;
            Some(file.found(setting))
        })
    }

    /// A profile's access key, from the first file that has a part of one, even an empty part.
    #[must_use]
    pub fn key(&self, profile: &str) -> Option<FoundKey<'_>> {
        self.files.iter().find_map(|file| {
            let section = file.section(profile)?;
            let find = |name: &str| {
                let setting = section.settings.iter().find(|setting| setting.name == name)?;
                Some(file.found(setting))
            };
            let (id, secret) = (find("aws_access_key_id"), find("aws_secret_access_key"));
            let session_token = find("aws_session_token").filter(|token| !token.value.is_empty());
            if id.is_none() && secret.is_none() && session_token.is_none() {
                return None;
            }
            Some(FoundKey { id, secret, session_token, kind: file.kind, place: file.place(section.line) })
        })
    }

    /// A setting of one service in a section `[services NAME]`.
    #[must_use]
    pub fn service(&self, services: &str, service: &str, name: &str) -> Option<Found<'_>> {
        let file = self.files.iter().find(|file| file.kind == Kind::Config)?;
        let section = file
            .sections
            .iter()
            .find(|it| named_section(&it.header, "services").as_deref() == Some(services))?;
        let setting = section.settings.iter().find(|setting| setting.name == service)?;
        let mut lines = setting.value.split('\n').zip(setting.line..);
        lines.find_map(|(text, line)| {
            let (found, value) = text.split_once('=')?;
            let is_it = found.trim().eq_ignore_ascii_case(name) && !value.trim().is_empty();
            is_it.then(|| Found { value: value.trim(), place: file.place(line) })
        })
    }

    /// A section that was probably meant to be this profile: `[one]` in the config file, or `[profile one]` in the
    /// credentials file. Where it stands, and what it should be.
    #[must_use]
    pub fn misspelt(&self, profile: &str) -> Option<(Place, String)> {
        self.files.iter().find_map(|file| {
            let (wrong, right) = match file.kind {
                Kind::Config => (profile.to_owned(), format!("[profile {profile}]")),
                Kind::Credentials => (format!("profile {profile}"), format!("[{profile}]")),
            };
            let section = file.sections.iter().find(|section| section.header == wrong)?;
            Some((file.place(section.line), right))
        })
    }

    /// The files that exist.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profiles(credentials: &str, config: &str) -> Profiles {
        let file = |kind, path: &str, text: &str| {
            ProfileFile::parse(kind, Path::new(path), text.as_bytes()).unwrap()
        };
        Profiles::new(vec![
            file(Kind::Config, "config", config),
            file(Kind::Credentials, "credentials", credentials),
        ])
    }

    fn at(profiles: &Profiles, profile: &str, name: &str) -> Option<(String, String)> {
        profiles.get(profile, name).map(|found| (found.value.to_owned(), found.place.to_string()))
    }

    #[test]
    fn a_profile_has_another_header_in_each_file() {
        let profiles = profiles(
            "[default]\na = 1\nempty =\n[one]\nb = 2\n[profile two]\nb = 0\n",
            "[default]\na = 3\nempty = 4\n[profile one]\nb = 5\nc = 6\n[three]\nd = 7\n[profile \"with space\"]\ne = 8\n",
        );
        let pair = |value: &str, place: &str| Some((value.to_owned(), place.to_owned()));
        assert_eq!(at(&profiles, "default", "a"), pair("1", "credentials line 2"));
        assert_eq!(at(&profiles, "default", "empty"), pair("4", "config line 3"));
        assert_eq!(at(&profiles, "one", "b"), pair("2", "credentials line 5"));
        assert_eq!(at(&profiles, "one", "c"), pair("6", "config line 6"));
        assert_eq!(at(&profiles, "with space", "e"), pair("8", "config line 10"));
        for missing in ["two", "three", "profile two"] {
            let is_literal = missing.starts_with("profile");
            assert_eq!(profiles.place(missing).is_some(), is_literal, "{missing}");
        }
        let misspelt = |name| profiles.misspelt(name).map(|(place, right)| format!("{place}: {right}"));
        assert_eq!(misspelt("two").as_deref(), Some("credentials line 6: [two]"));
        assert_eq!(misspelt("three").as_deref(), Some("config line 7: [profile three]"));
        assert_eq!(misspelt("four"), None);
    }

    #[test]
    fn profile_default_hides_default_in_the_config_file() {
        for config in
            ["[default]\na = 1\n[profile default]\na = 2\n", "[profile default]\na = 2\n[default]\na = 1\n"]
        {
            assert_eq!(at(&profiles("", config), "default", "a").unwrap().0, "2", "{config}");
        }
    }

    #[test]
    fn an_access_key_is_of_one_file() {
        let profiles = profiles(
            "[default]\naws_access_key_id = A\n",
            "[default]\naws_access_key_id = B\naws_secret_access_key = S\naws_session_token = T\n",
        );
        let key = profiles.key("default").unwrap();
        assert!(format!("{:?}", key.id).starts_with("Some(Found(credentials line 2))"), "{key:?}");
        assert_eq!(key.id.unwrap().value, "A");
        assert!(key.secret.is_none() && key.session_token.is_none());
        assert!(profiles.key("one").is_none());
    }

    #[test]
    fn a_session_token_alone_is_a_part_of_an_access_key() {
        let key = |text: &str| profiles(text, "").key("default").map(|key| key.session_token.is_some());
        assert_eq!(key("[default]\naws_session_token = T\n"), Some(true));
        assert_eq!(key("[default]\naws_session_token =\n"), None);
        assert_eq!(key("[default]\naws_access_key_id =\n"), Some(false));
    }

    #[test]
    fn services_have_settings_of_their_own() {
        let profiles = profiles(
            "",
            "[services mine]\necr =\n  endpoint_url = http://one\nsts =\n  other = x\n  Endpoint_URL=http://two\n",
        );
        let found = |service: &str| {
            let found = profiles.service("mine", service, "endpoint_url")?;
            Some((found.value.to_owned(), found.place.line))
        };
        assert_eq!(found("ecr"), Some(("http://one".to_owned(), 3)));
        assert_eq!(found("sts"), Some(("http://two".to_owned(), 6)));
        assert_eq!(found("s3"), None);
    }
}
