//! Whether a key matches an image's name, and if not, why.
//!
//! The rules are those of `URLsMatch` in the kubelet's `pkg/credentialprovider/keyring.go`.

use super::key::Location;

/// Why an entry is not for an image. The kubelet may find another reason first; this is the most useful one for a person.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum Mismatch {
    /// The kubelet skips the entry.
    #[error("its key is no URL, so it is never used")]
    NoUrl,
    /// The kubelet cannot read the image's name.
    #[error("the kubelet cannot read the image's name as a URL, so it finds no entry for it")]
    ImageNoUrl,
    /// The kubelet removes only `https://` and `http://`.
    #[error("the scheme before `://` is none that the kubelet knows, so it is never used")]
    Scheme,
    /// `:443` is not implied.
    #[error("the port differs: {} here, {} in the image", port(key), port(image))]
    Port {
        /// The key's port.
        key: String,
        /// The image's port.
        image: String,
    },
    /// `*` stands for one label.
    #[error("the host has {key} labels here, {image} in the image; `*` stands for one")]
    Labels {
        /// How many labels the key's host has.
        key: usize,
        /// How many labels the image's host has.
        image: usize,
    },
    /// The hosts differ in capital letters only.
    #[error("the host is spelt with other capitals: `{key}` here, `{image}` in the image")]
    Capitals {
        /// The key's label.
        key: String,
        /// The image's label.
        image: String,
    },
    /// The hosts differ.
    #[error("the host differs: `{key}` here, `{image}` in the image")]
    Label {
        /// The key's label, with its globs.
        key: String,
        /// The image's label.
        image: String,
    },
    /// The key's path must be a prefix of the image's path. It has no globs.
    #[error("the image's name does not begin with its path `{path}`")]
    Path {
        /// The key's path.
        path: String,
    },
}

/// Whether the kubelet uses a key with globs for a name, neither of them with a scheme.
#[must_use]
pub fn matches(glob: &str, name: &str) -> bool {
    match (Location::parse(glob.as_bytes()), Location::parse(name.as_bytes())) {
        (Some(key), Some(target)) => mismatch(&key, &target).is_none(),
        _ => false,
    }
}

/// Whether the kubelet can use a text as a key, with or without globs, or whether it is no URL.
#[must_use]
pub fn is_key(text: &str) -> bool {
    Location::parse(text.as_bytes()).is_some()
}

/// Why the key is not for the target; `None` if it is.
pub(super) fn mismatch(key: &Location, target: &Location) -> Option<Mismatch> {
    let (host, port) = key.host_and_port();
    let (target_host, target_port) = target.host_and_port();
    let (globs, names) = (labels(host).count(), labels(target_host).count());
    if globs != names {
        return Some(Mismatch::Labels { key: globs, image: names });
    }
    let differ = || labels(host).zip(labels(target_host)).filter(|(glob, name)| !glob_matches(glob, name));
    let is_other =
        |(glob, name): &(&[u8], &[u8])| !glob_matches(&glob.to_ascii_lowercase(), &name.to_ascii_lowercase());
    // Another label says more than one that only differs in capitals.
    if let Some((glob, name)) = differ().find(is_other) {
        return Some(Mismatch::Label { key: text(glob), image: text(name) });
    }
    if let Some((glob, name)) = differ().next() {
        return Some(Mismatch::Capitals { key: text(glob), image: text(name) });
    }
    if port != target_port {
        return Some(Mismatch::Port { key: text(port), image: text(target_port) });
    }
    (!target.path.starts_with(&key.path)).then(|| Mismatch::Path { path: visible_path(&key.path) })
}

/// Whether there may be an image that both keys are for. If both have a glob in the same label, one glob must match the
/// other.
pub(super) fn overlap(a: &Location, b: &Location) -> bool {
    if !a.path.starts_with(&b.path) && !b.path.starts_with(&a.path) {
        return false;
    }
    // Most keys have no glob; a file may hold thousands of them.
    let is_exact = |location: &Location| !location.host.iter().any(|byte| b"*[".contains(byte));
    if is_exact(a) && is_exact(b) {
        return a.host == b.host;
    }
    let ((a_host, a_port), (b_host, b_port)) = (a.host_and_port(), b.host_and_port());
    let meet = |(a, b): (&[u8], &[u8])| glob_matches(a, b) || glob_matches(b, a);
    a_port == b_port
        && labels(a_host).count() == labels(b_host).count()
        && labels(a_host).zip(labels(b_host)).all(meet)
}

/// Whether an image's name belongs to Docker Hub (`isDefaultRegistryMatch`).
#[must_use]
pub fn is_of_the_default_registry(name: &str) -> bool {
    match name.split_once('/') {
        None => !name.is_empty(),
        Some(("", _)) => false,
        Some(("docker.io" | "index.docker.io", _)) => true,
        Some((first, _)) => !first.contains(['.', ':']),
    }
}

fn labels(host: &[u8]) -> impl Iterator<Item = &[u8]> {
    host.split(|byte| *byte == b'.')
}

/// Go's `filepath.Match` for one label: `*` is any text, `[…]` one character of a class.
///
/// A host has no `?` and no `\`, and brackets only around an IPv6 address, so `[::1]` is a class here, as it is for the
/// kubelet, and no class has a range. The match goes back to the last `*` at most, so a key with many of them costs no exponential time.
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

/// The rest of `glob` if it begins with `byte`, or with a class that contains `byte`.
fn after_one(glob: &[u8], byte: u8) -> Option<&[u8]> {
    match glob {
        [b'[', rest @ ..] => {
            let (class, rest) = rest.split_at(rest.iter().position(|end| *end == b']')?);
            class.contains(&byte).then_some(&rest[1..])
        }
        [first, rest @ ..] => (*first == byte).then_some(rest),
        [] => None,
    }
}

/// A key's path without a possible password before an `@`.
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

    #[test]
    fn an_address_without_a_port_is_a_class_of_characters() {
        for (name, expected) in
            [("1/x", true), ("2/x", false), ("11/x", false), ("/x", false), ("[::1]/x", false)]
        {
            assert_eq!(matches("[::1]", name), expected, "{name}");
        }
    }

    #[test]
    fn two_keys_overlap_if_an_image_may_match_both() {
        let cases = [
            ("a.b", "a.b", true),
            ("a.b/x", "a.b", true),
            ("a.b/x", "a.b/y", false),
            ("a.b", "a.c", false),
            ("*.b", "a.b", true),
            ("*.b", "a.*", true),
            ("*.b/x", "a.*", true),
            ("*.b", "a.c", false),
            ("*.b", "x.a.b", false),
            ("*.b", "a.b:1", false),
            ("*.b:1", "a.b:1", true),
            ("[::1]", "1", true),
        ];
        for (a, b, expected) in cases {
            let [a, b] = [a, b].map(|key| Location::parse(key.as_bytes()).unwrap());
            assert_eq!((overlap(&a, &b), overlap(&b, &a)), (expected, expected), "{a:?} {b:?}");
        }
    }

    #[test]
    fn many_globs_in_a_key_take_no_time() {
        let glob = "a*".repeat(2000) + "b";
        assert!(!matches(&glob, &"a".repeat(4000)));
        assert!(matches(&glob, &("a".repeat(4000) + "b")));
    }
}
