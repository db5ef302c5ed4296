//! Text from outside, made fit to be shown: without secrets, on one line, of limited length.
//!
//! A server, a process or a file may repeat what it was sent, whole or in part. So each secret that this process holds or
//! has read is remembered here, and [`redact`] removes every part of one. All text from outside goes through [`redact`]
//! before it reaches a log line, an error or standard output.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret as _, SecretString};
use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};

/// What takes the place of a removed part.
const REMOVED: &str = "…";
/// This many bytes in a row that are also in a secret are removed; a shorter secret is removed where it stands whole.
const WINDOW: usize = 12;
/// A secret that is shorter than this is not removed: it would stand in too many ordinary words.
const SHORTEST: usize = 4;
/// How many bytes of secrets are remembered. A refresh reads about 5 KiB; the oldest secret is forgotten first.
const CAPACITY: usize = 256 * 1024;
/// No more of a text than this is looked at.
const LONGEST_TEXT: usize = 16 * 1024;
/// A run of a token's characters that is as long as this is removed, if it has a part as long as [`LONGEST_WORD`].
const LONGEST_RUN: usize = 40;
/// The longest part between `/`, `-` and `_` that a path, an ARN or another composed name has.
const LONGEST_WORD: usize = 25;

/// What stays as it is in a URL's user, password and query.
const PERCENT: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const BASE64: [GeneralPurpose; 2] =
    [GeneralPurpose::new(&alphabet::STANDARD, NO_PAD), GeneralPurpose::new(&alphabet::URL_SAFE, NO_PAD)];

static KNOWN: Mutex<Known> = Mutex::new(Known::new());

/// The secrets that are removed, oldest first.
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

impl Known {
    const fn new() -> Self {
        Self { secrets: VecDeque::new(), bytes: 0 }
    }

    fn add(&mut self, secret: &str) {
        if self.secrets.iter().any(|known| known.expose_secret() == secret) {
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
        let mut end = text.len().min(LONGEST_TEXT);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let text = &text[..end];
        let mut removed = self.parts_of_secrets(text);
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
        let bytes = text.as_bytes();
        let mut removed = vec![false; bytes.len()];
        let windows: HashSet<&[u8]> = bytes.windows(WINDOW).collect();
        let mut found: HashSet<&[u8]> = HashSet::new();
        for secret in &self.secrets {
            for form in forms(secret.expose_secret()) {
                if form.len() < WINDOW {
                    for (at, part) in text.match_indices(form.as_str()) {
                        removed[at..at + part.len()].fill(true);
                    }
                } else {
                    let common = form.as_bytes().windows(WINDOW).filter_map(|window| windows.get(window));
                    found.extend(common);
                }
            }
        }
        for (at, window) in bytes.windows(WINDOW).enumerate() {
            if found.contains(window) {
                removed[at..at + WINDOW].fill(true);
            }
        }
        removed
    }
}

/// A secret as others may write it: as it is, in a URL, and within base64.
fn forms(secret: &str) -> impl Iterator<Item = Zeroizing<String>> {
    let percent = utf8_percent_encode(secret, &PERCENT).to_string();
    let percent = (percent != secret).then(|| Zeroizing::new(percent));
    let bytes = secret.as_bytes();
    // Three bytes are four characters of base64: what they look like depends on how many bytes stand before the secret.
    let shifted = (0..3).filter_map(move |before| {
        let aligned = bytes.get((3 - before) % 3..)?;
        let whole = &aligned[..aligned.len() / 3 * 3];
        (whole.len() >= SHORTEST).then_some(whole)
    });
    let base64 =
        shifted.flat_map(|part| BASE64.iter().map(move |engine| Zeroizing::new(engine.encode(part))));
    std::iter::once(Zeroizing::new(secret.to_owned())).chain(percent).chain(base64)
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
            (format!("http://user:{percent}@host"), "http://user:…@host"),
            ("http://user:hunter2@host".to_owned(), "http://user:…@host"),
            ("nothing here".to_owned(), "nothing here"),
        ];
        for (text, expected) in cases {
            assert_eq!(known.redact(&text, 200, true), expected, "{text}");
        }
        for user in ["", "u", "us", "user"] {
            for encoded in [
                STANDARD.encode(format!("{user}{SECRET}x")),
                URL_SAFE_NO_PAD.encode(format!("{user}{SECRET}xy")),
            ] {
                let shown = known.redact(&format!("Basic {encoded}."), 200, false);
                assert!(shown.len() < 20, "{shown}");
            }
        }
    }

    #[test]
    fn what_is_remembered_is_limited() {
        let mut known = knowing(&[SECRET, SECRET]);
        assert_eq!(known.secrets.len(), 1);
        for number in 0..100 {
            known.add(&format!("{number:05}").repeat(1000));
        }
        assert!(known.bytes <= CAPACITY, "{}", known.bytes);
        assert!(known.redact(&"00099".repeat(4), 100, false).contains('…'), "the newest is known");
    }

    #[test]
    fn secrets_are_remembered_for_the_whole_program() {
        remember("  of-the-whole-program\n");
        remember("abc");
        assert_eq!(redact("say of-the-whole-program, abc", 100), "say …, abc");
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
