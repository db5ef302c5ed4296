//! An image's name, as the kubelet reads it before it looks for credentials.
//!
//! The rules are those of `ParseImageName` in the kubelet's `pkg/util/parsers`, which hands the work to
//! `github.com/distribution/reference`: `nginx` is `docker.io/library/nginx`, and credentials are looked up for the name
//! without tag and digest.

use std::fmt;
use std::str::FromStr;

/// The host of names without a host.
const HUB: &str = "docker.io";
/// The name of the same host in older files.
const HUB_OF_OLD: &str = "index.docker.io";
/// The longest path of a repository.
const MAX_PATH: usize = 255;
const MAX_TAG: usize = 128;

/// An image that the kubelet would try to pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    said: String,
    host: String,
    path: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// Why the kubelet refuses an image's name (`InvalidImageName`).
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
pub enum ParseImageError {
    /// The name is empty.
    #[error("it is empty")]
    Empty,
    /// `https://…`.
    #[error("drop the scheme before `//`: an image's name has none")]
    Scheme,
    /// The kubelet reads 64 hexadecimal digits as an image's id.
    #[error("64 hexadecimal digits are an image's id, not its name")]
    Id,
    /// A repository's name is in lower case.
    #[error("a repository's name has no capital letters")]
    UpperCase,
    /// A repository's name is too long.
    #[error("a repository's name has {MAX_PATH} characters at most")]
    TooLong,
    /// The tag has other characters, or too many.
    #[error("`:` is followed by no tag: letters, digits and `_.-`, {MAX_TAG} at most")]
    Tag,
    /// The digest is of no kind that the kubelet knows.
    #[error("`@` is followed by no digest: expected `sha256:` and 64 hexadecimal digits in lower case")]
    Digest,
    /// Anything else.
    #[error("expected HOST/REPOSITORY, and perhaps :TAG or @DIGEST")]
    Shape,
}

impl FromStr for Image {
    type Err = ParseImageError;

    fn from_str(said: &str) -> Result<Self, ParseImageError> {
        if said.is_empty() {
            return Err(ParseImageError::Empty);
        }
        if said.len() == 64 && said.bytes().all(is_lower_hex) {
            return Err(ParseImageError::Id);
        }
        let (host, rest) = host_and_rest(said);
        let name =
            if host == HUB && !rest.contains('/') { format!("library/{rest}") } else { rest.to_owned() };
        let whole = format!("{host}/{name}");

        let (whole, digest) = match whole.split_once('@') {
            Some((whole, digest)) => (whole, Some(digest)),
            None => (whole.as_str(), None),
        };
        // A port is followed by a slash, a tag is not.
        let last = whole.rfind('/').unwrap_or_default();
        let (repository, tag) = match whole[last..].find(':').map(|at| last + at) {
            Some(at) => (&whole[..at], Some(&whole[at + 1..])),
            None => (whole, None),
        };
        let (host, path) = parse_repository(repository).ok_or_else(|| what_is_wrong(said, repository))?;
        if path.len() > MAX_PATH {
            return Err(ParseImageError::TooLong);
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(ParseImageError::Tag);
        }
        if digest.is_some_and(|digest| !is_digest(digest)) {
            return Err(ParseImageError::Digest);
        }
        Ok(Self {
            said: said.to_owned(),
            host: host.to_owned(),
            path: path.to_owned(),
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
        })
    }
}

impl Image {
    /// The name that credentials are looked up for: host and path, without tag and digest.
    #[must_use]
    pub fn repository(&self) -> String {
        match self.host.as_str() {
            "" => self.path.clone(),
            host => format!("{host}/{}", self.path),
        }
    }

    /// The registry's host with its port; `docker.io` for images of Docker Hub. Empty for a name that the kubelet accepts
    /// although its first part can be no host (`a_b.example/app`); no registry serves such an image.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository's name in that registry.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What to request from the registry: the digest, or else the tag; `latest` if there is neither.
    #[must_use]
    pub fn reference(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.said)
    }
}

/// Splits a name as docker does: the first part is a host if it looks like one.
fn host_and_rest(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((HUB_OF_OLD, rest)) => (HUB, rest),
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (HUB, name),
    }
}

/// Host and path of a well-formed repository. The host is empty if the first part is no host but may start a path.
fn parse_repository(text: &str) -> Option<(&str, &str)> {
    let (first, rest) = text.split_once('/')?;
    if is_host(first) {
        return is_path(rest).then_some((first, rest));
    }
    is_path(text).then_some(("", text))
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        // Not a colon inside brackets.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let digits = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    if !port.is_none_or(digits) {
        return false;
    }
    match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => {
            !address.is_empty() && address.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':')
        }
        None => host.split('.').all(|label| {
            let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(inner)
        }),
    }
}

fn is_path(text: &str) -> bool {
    text.split('/').all(is_path_part)
}

/// Lower-case letters and digits, parted by one `.`, one or two `_`, or any number of `-`.
fn is_path_part(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    if !bytes.first().copied().is_some_and(is_word) || !bytes.last().copied().is_some_and(is_word) {
        return false;
    }
    let mut separators = bytes.split(|byte| is_word(*byte)).filter(|separator| !separator.is_empty());
    separators.all(|separator| {
        matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-')
    })
}

fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= MAX_TAG
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-')
}

fn is_digest(text: &str) -> bool {
    let length = match text.split_once(':') {
        Some(("sha256", _)) => 64,
        Some(("sha384", _)) => 96,
        Some(("sha512", _)) => 128,
        _ => return false,
    };
    text.len() == "sha256:".len() + length && text["sha256:".len()..].bytes().all(is_lower_hex)
}

fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn what_is_wrong(said: &str, repository: &str) -> ParseImageError {
    if said.contains("://") {
        return ParseImageError::Scheme;
    }
    let in_lower_case = repository.to_ascii_lowercase();
    if parse_repository(&in_lower_case).is_some() {
        ParseImageError::UpperCase
    } else {
        ParseImageError::Shape
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_the_kubelet_reads_it() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let at_digest = format!("public.ecr.aws/x/y:1@{digest}");
        let (sha384, sha512) = (format!("sha384:{}", "ab".repeat(48)), format!("sha512:{}", "ab".repeat(64)));
        let no_id = "a".repeat(63) + "z";
        let cases = [
            // said, looked up, host, reference
            ("nginx", "docker.io/library/nginx", "docker.io", "latest"),
            ("nginx:1.2", "docker.io/library/nginx", "docker.io", "1.2"),
            ("team/app", "docker.io/team/app", "docker.io", "latest"),
            ("index.docker.io/app", "docker.io/library/app", "docker.io", "latest"),
            ("localhost/app", "localhost/app", "localhost", "latest"),
            ("localhost:5000/a/b:x", "localhost:5000/a/b", "localhost:5000", "x"),
            ("[::1]:5000/a", "[::1]:5000/a", "[::1]:5000", "latest"),
            ("[::1]/a", "[::1]/a", "[::1]", "latest"),
            ("Team/app", "Team/app", "Team", "latest"),
            ("a_b.c/app", "a_b.c/app", "", "latest"),
            ("r.example.com:0443/a__b/c---d:1", "r.example.com:0443/a__b/c---d", "r.example.com:0443", "1"),
            (&at_digest, "public.ecr.aws/x/y", "public.ecr.aws", &digest),
            ("abc", "docker.io/library/abc", "docker.io", "latest"),
            (&no_id, &format!("docker.io/library/{no_id}"), "docker.io", "latest"),
            (&format!("app@{sha384}"), "docker.io/library/app", "docker.io", &sha384),
            (&format!("app@{sha512}"), "docker.io/library/app", "docker.io", &sha512),
        ];
        for (said, repository, host, reference) in cases {
            let image: Image = said.parse().unwrap_or_else(|error| panic!("{said}: {error}"));
            assert_eq!(
                (image.repository().as_str(), image.host(), image.reference()),
                (repository, host, reference)
            );
            assert!(
                repository.ends_with(image.path()) && image.path().len() >= repository.len() - host.len() - 1
            );
            assert_eq!(image.to_string(), said);
        }
    }

    #[test]
    fn the_longest_name_has_255_characters() {
        let image: Image = format!("r.example.com/{}", "a".repeat(255)).parse().unwrap();
        assert_eq!(image.path().len(), 255);
    }

    #[test]
    fn a_name_that_the_kubelet_refuses_is_refused_for_its_reason() {
        let (id, long) = ("ab".repeat(32), format!("r.example.com/{}", "a".repeat(256)));
        let upper = format!("app@sha256:{}", "AB".repeat(32));
        let (tag, half) = (format!("app:{}", "a".repeat(129)), format!("app@sha256:{}", "a".repeat(32)));
        let cases = [
            ("", ParseImageError::Empty),
            ("https://r.example.com/app", ParseImageError::Scheme),
            (&id, ParseImageError::Id),
            ("r.example.com/App", ParseImageError::UpperCase),
            ("App", ParseImageError::UpperCase),
            (&long, ParseImageError::TooLong),
            (&tag, ParseImageError::Tag),
            ("app:", ParseImageError::Tag),
            ("r.example.com/app:1:2", ParseImageError::Tag),
            (&half, ParseImageError::Digest),
            ("app@", ParseImageError::Digest),
            (&upper, ParseImageError::Digest),
            ("r.example.com/-a", ParseImageError::Shape),
            ("r.example.com/a-", ParseImageError::Shape),
            ("[x:]/a", ParseImageError::Shape),
            ("[]/a", ParseImageError::Shape),
            ("r.example.com/", ParseImageError::Shape),
            ("/app", ParseImageError::Shape),
            ("r.example.com//app", ParseImageError::Shape),
            ("a..b/c", ParseImageError::Shape),
            ("r.example.com/a___b", ParseImageError::Shape),
            ("r.example.com:/app", ParseImageError::Shape),
            ("::1/app", ParseImageError::Shape),
            ("app ", ParseImageError::Shape),
        ];
        for (said, error) in cases {
            assert_eq!(said.parse::<Image>(), Err(error), "{said}");
        }
    }
}
