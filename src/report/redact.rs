//! Text from outside, made fit to be shown: without secrets, on one line, of limited length.
//!
//! A server, a process or a file may repeat what it was sent, whole or in part. So each secret that this process holds or
//! has read is remembered here, and [`redact`] removes every part of one. All text from outside goes through [`redact`]
//! before it reaches a log line, an error or standard output.

use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret as _, SecretString};
use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError, TryLockError};

/// What takes the place of a removed part.
const REMOVED: &str = "…";
/// This many bytes in a row that are also in a secret are removed; a shorter secret is removed where it stands whole.
const WINDOW: usize = 12;
/// A secret that is shorter than this is not removed: it would stand in too many ordinary words.
const SHORTEST: usize = 4;
/// How many bytes of secrets are remembered. A refresh reads about 5 KiB; the secret that was not seen for the longest time is
/// forgotten first.
const CAPACITY: usize = 256 * 1024;
/// No more of a secret than this is remembered. The longest token that is used has 64 KiB.
const LONGEST_SECRET: usize = 64 * 1024;
/// The longest path of Linux.
const LONGEST_PATH: usize = 4096;
/// No more of a text than this is looked at.
const LONGEST_TEXT: usize = 16 * 1024;
/// A run of a token's characters that is as long as this is removed, if it has a part as long as [`LONGEST_WORD`].
const LONGEST_RUN: usize = 40;
/// The longest part between `/`, `-` and `_` that a path, an ARN or another composed name has.
const LONGEST_WORD: usize = 25;

static KNOWN: Mutex<Known> = Mutex::new(Known::new());

/// The secrets that are removed, the one that was seen last at the end.
struct Known {
    secrets: VecDeque<SecretString>,
    /// The length of all of them.
    bytes: usize,
}

/// Remembers a secret: from now on [`redact`] removes it. Cheap for a secret that is known already.
pub fn remember(secret: &str) {
    let secret = secret.trim();
    if secret.len() < SHORTEST {
        return;
    }
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner).add(secret);
}

/// Remembers the lines of a private key in PEM as secrets. Certificates beside it are none.
pub fn remember_private_key(pem: &str) {
    let mut is_key = false;
    for line in pem.lines() {
        if line.starts_with("-----") {
            is_key = line.starts_with("-----BEGIN") && line.contains("PRIVATE KEY");
        } else if is_key {
            remember(line);
        }
    }
}

/// A text from outside as it may be shown: no secret of this process, nothing that looks like a token, no control
/// character, one line, at most `longest` characters.
#[must_use]
pub fn redact(text: &str, longest: usize) -> String {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner).redact(text, longest, true)
}

/// The same for a text in which a name may look like a token, such as the ARN of a role session, and which cannot hold a
/// secret that this process does not know.
#[must_use]
pub fn redact_known(text: &str, longest: usize) -> String {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner).redact(text, longest, false)
}

/// The same as [`redact`]; `None` while another call, on this thread or another one, is at work. A panic in this module would
/// otherwise wait for itself.
#[must_use]
pub fn redact_at_once(text: &str, longest: usize) -> Option<String> {
    let known = match KNOWN.try_lock() {
        Ok(known) => known,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return None,
    };
    Some(known.redact(text, longest, true))
}

/// A path as it may be shown.
#[must_use]
pub fn shown_path(path: &Path) -> String {
    redact_known(&path.to_string_lossy(), LONGEST_PATH)
}

impl Known {
    const fn new() -> Self {
        Self { secrets: VecDeque::new(), bytes: 0 }
    }

    fn add(&mut self, secret: &str) {
        // More of it than this cannot be kept without forgetting others.
        let secret = &secret[..secret.floor_char_boundary(LONGEST_SECRET)];
        if let Some(at) = self.secrets.iter().position(|known| known.expose_secret() == secret) {
            // It is in use, so it is forgotten last.
            let known = self.secrets.remove(at);
            self.secrets.extend(known);
            return;
        }
        self.bytes += secret.len();
        self.secrets.push_back(SecretString::from(secret));
        while self.bytes > CAPACITY
            && let Some(oldest) = self.secrets.pop_front()
        {
            self.bytes -= oldest.expose_secret().len();
        }
    }

    fn redact(&self, text: &str, longest: usize, and_tokens: bool) -> String {
        let text = text.trim();
        let text = &text[..text.floor_char_boundary(LONGEST_TEXT)];
        let mut removed = self.parts_of_secrets(text);
        remove_users(text, &mut removed);
        if and_tokens {
            remove_tokens(text, &mut removed);
        }
        let mut shown = String::new();
        let mut previous = false;
        for (at, c) in text.char_indices() {
            let is_removed = removed[at..at + c.len_utf8()].contains(&true);
            if is_removed && !previous {
                shown.push_str(REMOVED);
            } else if !is_removed && matches!(c, '"' | '\'' | '\\') {
                shown.push(c);
            } else if !is_removed {
                shown.extend(c.escape_debug());
            }
            previous = is_removed;
        }
        if let Some((end, _)) = shown.char_indices().nth(longest) {
            shown.truncate(end);
            shown.push('…');
        }
        shown
    }

    /// For each byte of the text whether it is a part of a secret.
    fn parts_of_secrets(&self, text: &str) -> Vec<bool> {
        let mut removed = vec![false; text.len()];
        let views = views(text.as_bytes());
        let windows: HashSet<&[u8]> = views.iter().flat_map(|view| view.bytes.windows(WINDOW)).collect();
        // Most windows of a secret are not in the text, which their first two bytes tell without a look into the set.
        let mut starts = vec![false; 1 << 16];
        for window in &windows {
            starts[start(window)] = true;
        }
        let mut found: HashSet<&[u8]> = HashSet::new();
        for secret in &self.secrets {
            let secret = secret.expose_secret().as_bytes();
            if secret.len() < WINDOW {
                for view in &views {
                    view.remove(&mut removed, secret.len(), |part| part == secret);
                }
                continue;
            }
            let known = secret.windows(WINDOW).filter(|window| starts[start(window)]);
            found.extend(known.filter_map(|window| windows.get(window)));
        }
        if !found.is_empty() {
            for view in &views {
                view.remove(&mut removed, WINDOW, |part| found.contains(part));
            }
        }
        removed
    }
}

/// The first two bytes as a number.
fn start(window: &[u8]) -> usize {
    usize::from(window[0]) << 8 | usize::from(window[1])
}

/// A text as its reader may decode it, and where each byte comes from.
#[derive(Default)]
struct View {
    bytes: Zeroizing<Vec<u8>>,
    /// For each byte the part of the text that it stands in.
    origins: Vec<Range<usize>>,
}

impl View {
    fn push(&mut self, byte: u8, origin: Range<usize>) {
        self.bytes.push(byte);
        self.origins.push(origin);
    }

    /// Marks every part of this length that is to be removed.
    fn remove(&self, removed: &mut [bool], length: usize, is_secret: impl Fn(&[u8]) -> bool) {
        for (at, part) in self.bytes.windows(length).enumerate() {
            if is_secret(part) {
                removed[self.origins[at].start..self.origins[at + length - 1].end].fill(true);
            }
        }
    }
}

/// The text as it is, as a part of a URL, and each part of it that may be base64. What is encoded may start anywhere, and a
/// secret anywhere in it.
fn views(text: &[u8]) -> Vec<View> {
    let mut plain = View::default();
    for (at, byte) in text.iter().enumerate() {
        plain.push(*byte, at..at + 1);
    }
    let mut views = vec![plain];
    if text.contains(&b'%') {
        let mut decoded = View::default();
        let mut at = 0;
        while at < text.len() {
            let octet = text.get(at + 1..at + 3).filter(|_| text[at] == b'%');
            let octet =
                octet.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
            let length = if octet.is_some() { 3 } else { 1 };
            decoded.push(octet.unwrap_or(text[at]), at..at + length);
            at += length;
        }
        views.push(decoded);
    }
    let mut start = 0;
    for run in text.split(|byte| digit(*byte).is_none()) {
        for shift in 0..4.min(run.len()) {
            let mut decoded = View::default();
            let digits: Vec<u32> = run[shift..].iter().filter_map(|byte| digit(*byte)).collect();
            for (number, pair) in digits.windows(2).enumerate() {
                // Four digits of six bits are three bytes of eight.
                let (left, right) = [(2, 4), (4, 2), (6, 0), (0, 0)][number % 4];
                if number % 4 < 3 {
                    let byte = (pair[0] << left | pair[1] >> right) & 0xFF;
                    let at = start + shift + number;
                    decoded.push(u8::try_from(byte).unwrap_or(0), at..at + 2);
                }
            }
            views.push(decoded);
        }
        start += run.len() + 1;
    }
    views
}

/// The value of a digit of base64, in either alphabet.
fn digit(byte: u8) -> Option<u32> {
    let value = match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' | b'-' => 62,
        b'/' | b'_' => 63,
        _ => return None,
    };
    Some(u32::from(value))
}

/// Removes the user and the password of a URL, wherever it stands.
fn remove_users(text: &str, removed: &mut [bool]) {
    for (at, scheme) in text.match_indices("://") {
        let start = at + scheme.len();
        let authority = text[start..].split([' ', '/', '?', '#', '"', '\'', '`']).next().unwrap_or_default();
        if let Some(user) = authority.rfind('@') {
            removed[start..start + user].fill(true);
        }
    }
}

/// Removes runs of letters, digits and what else a token is made of. A name that is composed of words, such as a path or
/// an ARN, is no token.
fn remove_tokens(text: &str, removed: &mut [bool]) {
    let is_separator = |byte: u8| b"/-_".contains(&byte);
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"+=".contains(&byte) || is_separator(byte);
    let bytes = text.as_bytes();
    let mut start = 0;
    for run in bytes.split(|byte| !is_token(*byte)) {
        let longest_word = run.split(|byte| is_separator(*byte)).map(<[u8]>::len).max().unwrap_or(0);
        if run.len() >= LONGEST_RUN && longest_word >= LONGEST_WORD {
            removed[start..start + run.len()].fill(true);
        }
        start += run.len() + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use proptest::prelude::*;

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

    fn knowing(secrets: &[&str]) -> Known {
        let mut known = Known::new();
        for secret in secrets {
            known.add(secret);
        }
        known
    }

    #[test]
    fn what_looks_like_a_token_is_removed_and_names_and_paths_are_not() {
        let token = "QVdTOmV5SndZWGxzYjJGa0lqb2lVMFZEVWtWVVVFRlRVMWRQVWtRaQ==";
        let user = "User: arn:aws:sts::123456789012:assumed-role/eksctl-my-cluster-nodegroup-ng-1-NodeInstanceRole-ABCDEFGHIJKL/i-0123";
        let cases = [
            (" a b\n", "a b".to_owned()),
            ("two\nlines\u{1b}[31m", "two\\nlines\\u{1b}[31m".to_owned()),
            ("right\u{202e}to left", "right\\u{202e}to left".to_owned()),
            ("'Host' is \"x\"", "'Host' is \"x\"".to_owned()),
            (&format!("bad token {token}, sorry"), "bad token …, sorry".to_owned()),
            (&format!("bad token {}", &token[..40]), "bad token …".to_owned()),
            (user, user.to_owned()),
            ("no http://user:pass@host/a@b, http://host", "no http://…@host/a@b, http://host".to_owned()),
            (
                "/var/lib/kubelet/pki/kubelet-client-current",
                "/var/lib/kubelet/pki/kubelet-client-current".to_owned(),
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(Known::new().redact(text, 200, true), expected, "{text}");
        }
        let session = "arn:aws:sts::123456789012:assumed-role/nodes/f3a1c2d4e5b60718293a4b5c6d7e8f90";
        assert_eq!(Known::new().redact(session, 200, false), session);
        assert_eq!(Known::new().redact(&"a b ".repeat(50), 80, true), format!("{}…", "a b ".repeat(20)));
    }

    #[test]
    fn a_known_secret_is_removed_in_every_form_and_in_part() {
        let known = knowing(&[SECRET, "hunter2"]);
        let percent = "wJalrXUtnFEMI%2FK7MDENG%2FbPxRfiCYEXAMPLEKEY";
        let cases = [
            (format!("Credential={SECRET}/20261123"), "Credential=…/20261123"),
            (format!("the first half: {}", &SECRET[..20]), "the first half: …"),
            (format!("user:{percent}@host"), "user:…@host"),
            ("user hunter2".to_owned(), "user …"),
            ("nothing here".to_owned(), "nothing here"),
        ];
        for (text, expected) in cases {
            assert_eq!(known.redact(&text, 200, true), expected, "{text}");
        }
        let lower = "say wJalrXUtnFEMI%2fK7MDENG%2fbPxRfiCYEXAMPLEKEY%";
        assert_eq!(known.redact(lower, 200, false), "say …%");
        for user in ["", "u", "us", "user"] {
            for encoded in [
                STANDARD.encode(format!("{user}{SECRET}x")),
                URL_SAFE_NO_PAD.encode(format!("{user}{SECRET}xy")),
            ] {
                let shown = known.redact(&format!("Basic {encoded}."), 200, false);
                // The first and the last two bytes of a secret share a character with what stands beside it.
                assert!(shown.len() < 25, "{shown}");
                assert!(shown.starts_with("Basic ") && shown.ends_with('.'), "{shown}");
            }
        }
        // Encoded, it has the two digits that differ between the alphabets of base64.
        let known = knowing(&["~~~>>>???~~~>>>???"]);
        for encoded in [STANDARD.encode("~~~>>>???~~~>>>???"), URL_SAFE_NO_PAD.encode("~~~>>>???~~~>>>???")] {
            assert_eq!(known.redact(&format!("Basic {encoded}."), 200, false), "Basic ….", "{encoded}");
        }
    }

    #[test]
    fn a_long_text_is_cut_between_two_characters() {
        let text = format!("{}ä b", "a".repeat(LONGEST_TEXT - 1));
        assert_eq!(Known::new().redact(&text, LONGEST_TEXT, false), "a".repeat(LONGEST_TEXT - 1));
    }

    #[test]
    fn the_lines_of_a_private_key_are_secrets_and_those_of_a_certificate_are_not() {
        remember_private_key(
            "before-the-first\n-----BEGIN CERTIFICATE-----\nof-the-certificate\n-----END CERTIFICATE-----\n\
             -----BEGIN EC PRIVATE KEY-----\nof-the-private-key\n-----END EC PRIVATE KEY-----\nafter-the-last\n",
        );
        let text = "before-the-first of-the-certificate of-the-private-key after-the-last";
        assert_eq!(redact_known(text, 100), text.replace("of-the-private-key", REMOVED));
    }

    #[test]
    fn what_is_remembered_is_limited() {
        let mut known = knowing(&[SECRET, SECRET]);
        assert_eq!(known.secrets.len(), 1);
        for number in 0..100 {
            known.add(&format!("{number:05}").repeat(1000));
        }
        let bytes: usize = known.secrets.iter().map(|secret| secret.expose_secret().len()).sum();
        assert_eq!(known.bytes, bytes);
        assert!(bytes <= CAPACITY && bytes + 5000 > CAPACITY, "{bytes}");
        assert!(known.redact(&"00099".repeat(4), 100, false).contains('…'), "the newest is known");
        // Exactly as much as there is room for.
        let mut known = knowing(&[&"a".repeat(LONGEST_SECRET), &"b".repeat(LONGEST_SECRET)]);
        known.add(&"c".repeat(LONGEST_SECRET));
        known.add(&"d".repeat(CAPACITY - 3 * LONGEST_SECRET));
        assert_eq!((known.bytes, known.secrets.len()), (CAPACITY, 4));
        known.add("e");
        assert_eq!(known.secrets.len(), 4, "the oldest is forgotten");
    }

    #[test]
    fn a_secret_in_use_is_kept_and_a_long_one_does_not_push_others_out() {
        let mut known = knowing(&[SECRET]);
        for number in 0..100 {
            known.add(&format!("{number:05}").repeat(1000));
            known.add(SECRET);
        }
        assert_eq!(known.redact(SECRET, 100, false), REMOVED);
        known.add(&format!("long-{}", "ä".repeat(CAPACITY)));
        assert!(known.bytes <= CAPACITY && known.secrets.len() > 2, "{}", known.bytes);
        assert_eq!(known.redact(SECRET, 100, false), REMOVED);
        assert_eq!(known.redact("long-äääää", 100, false), REMOVED);
    }

    #[test]
    fn secrets_are_remembered_for_the_whole_program() {
        remember("  of-the-whole-program\n");
        remember("abc");
        remember("wXyZ");
        assert_eq!(redact("say of-the-whole-program, abc, wXyZ", 100), "say …, abc, …");
        assert_eq!(shown_path(Path::new("/run/of-the-whole-program/x\ny")), "/run/…/x\\ny");
    }

    #[test]
    fn a_panic_while_secrets_are_removed_waits_for_nothing() {
        let held = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(redact_at_once("anything", 100), None);
        drop(held);
        // Other tests use it at the same time, each for a moment.
        let shown =
            std::iter::repeat_with(|| redact_at_once("anything", 100)).take(10_000_000).flatten().next();
        assert_eq!(shown.as_deref(), Some("anything"));
    }

    proptest! {
        #[test]
        fn no_part_of_a_secret_is_shown(
            secret in "[!-~]{8,60}",
            before in "[ -~äß]{0,20}",
            after in "\\PC{0,20}",
        ) {
            let known = knowing(&[&secret]);
            let shown = known.redact(&format!("{before}{secret}{after}"), 1000, false);
            for part in secret.as_bytes().windows(WINDOW.min(secret.len())) {
                let part = std::str::from_utf8(part).unwrap();
                prop_assert!(!shown.contains(part), "{shown}");
            }
            prop_assert!(!shown.chars().any(char::is_control));
        }
    }
}
