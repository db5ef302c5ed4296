//! What a registry's answer means for a pull.

use super::challenge::Untrusted;
use crate::report::redact::redact;
use serde::Deserialize;

/// The answers to the requests for an image, with one credential or with none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// The status of the token service's answer; `None` if it was not asked.
    pub token: Option<u16>,
    /// The status of `/v2/`; `None` if it was not asked.
    pub base: Option<u16>,
    /// The status of the manifest; `None` if it was not asked.
    pub manifest: Option<u16>,
    /// What it means.
    pub meaning: Meaning,
    /// The registry's message to a refusal, shortened and without secrets; `None` if it sent none.
    pub said: Option<String>,
}

/// What the answers mean for a pull.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Meaning {
    /// The registry served the manifest.
    #[error("a pull would work")]
    Works,
    /// The registry served the manifest without a credential.
    #[error("a pull would work: the registry asks for no credential")]
    NotAsked,
    /// There is no such image for this caller.
    #[error("the credential is accepted, and there is no such image or tag")]
    NotThere,
    /// The credential is wrong, revoked or expired.
    #[error("the registry does not accept it: it is wrong, revoked or expired")]
    NotAccepted,
    /// The credential may not pull from this repository; ECR also answers so to an expired token.
    #[error("it may not pull from this repository, or it has expired")]
    NotAllowed,
    /// Too many requests.
    #[error("throttled: ask again later")]
    Throttled,
    /// The registry redirects to another place, which gets no credential.
    #[error("the registry redirects the request, which was not followed")]
    Redirected,
    /// Another answer.
    #[error("the answer says nothing about the credential")]
    Unexpected,
    /// The credential was not sent.
    #[error("not sent: {0}")]
    NotSent(Untrusted),
    /// The registry did not answer.
    #[error("no answer: {0}")]
    NoAnswer(String),
}

impl Meaning {
    /// What the status of the manifest's answer means.
    #[must_use]
    pub fn of_status(status: u16) -> Self {
        match status {
            200 => Self::Works,
            401 => Self::NotAccepted,
            403 => Self::NotAllowed,
            404 => Self::NotThere,
            429 => Self::Throttled,
            300..=399 => Self::Redirected,
            _ => Self::Unexpected,
        }
    }

    /// Whether a pull would work.
    #[must_use]
    pub fn is_good(&self) -> bool {
        matches!(self, Self::Works | Self::NotAsked)
    }

    /// A word for programs.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Works => "works",
            Self::NotAsked => "not_asked",
            Self::NotThere => "not_there",
            Self::NotAccepted => "not_accepted",
            Self::NotAllowed => "not_allowed",
            Self::Throttled => "throttled",
            Self::Redirected => "redirected",
            Self::Unexpected => "unexpected",
            Self::NotSent(_) => "not_sent",
            Self::NoAnswer(_) => "no_answer",
        }
    }
}

/// The longest message of a registry that is shown, in characters.
const MAX_SAID: usize = 200;

/// The message in the body of a refusal, if it has the form of the distribution specification, without secrets.
#[must_use]
pub fn said(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Refusal {
        errors: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let refusal: Refusal = serde_json::from_slice(body).ok()?;
    let Item { code, message } = refusal.errors.into_iter().next()?;
    let text = if message.is_empty() { code } else { format!("{code}: {message}") };
    (!text.is_empty()).then(|| redact(&text, MAX_SAID))
}

/// The token in a token service's answer.
#[must_use]
pub fn token(body: &[u8]) -> Option<secrecy::SecretString> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<secrecy::SecretString>,
        access_token: Option<secrecy::SecretString>,
    }
    let answer: Answer = serde_json::from_slice(body).ok()?;
    answer.token.or(answer.access_token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::redact::remember;
    use secrecy::ExposeSecret as _;

    #[test]
    fn what_a_registry_says_is_shown_without_secrets() {
        remember("pa\"ss-of-registry");
        let said = |body: &str| said(body.as_bytes());
        let cases = [
            (r#"{"errors":[{"code":"DENIED","message":"no\nway"}]}"#, Some("DENIED: no\\nway")),
            (r#"{"errors":[{"code":"DENIED"}]}"#, Some("DENIED")),
            (r#"{"errors":[{"message":"not with pa\"ss-of-registry"}]}"#, Some(": not with …")),
            (r#"{"errors":[{"code":"x with-pa\"ss-of-reg y"}]}"#, Some("x with-… y")),
            (r#"{"errors":[]}"#, None),
            (r#"{"errors":[{}]}"#, None),
            ("<html>", None),
        ];
        for (body, expected) in cases {
            assert_eq!(said(body).as_deref(), expected, "{body}");
        }
        let coded = |code: &str| said(&format!(r#"{{"errors":[{{"code":"{code}"}}]}}"#));
        assert_eq!(coded(&"x ".repeat(1000)).map(|text| text.chars().count()), Some(MAX_SAID + 1));
        // What looks like a token is not shown either.
        assert_eq!(coded(&"x".repeat(1000)).as_deref(), Some("…"));
    }

    #[test]
    fn a_status_means_something_for_a_pull() {
        let cases = [
            (200, "works", true),
            (401, "not_accepted", false),
            (403, "not_allowed", false),
            (404, "not_there", false),
            (429, "throttled", false),
            (307, "redirected", false),
            (500, "unexpected", false),
        ];
        for (status, word, is_good) in cases {
            let meaning = Meaning::of_status(status);
            assert_eq!((meaning.word(), meaning.is_good()), (word, is_good), "{status}");
        }
        assert!(Meaning::NotAsked.is_good());
    }

    #[test]
    fn a_token_has_one_of_two_names() {
        let token = |body: &str| token(body.as_bytes()).map(|token| token.expose_secret().to_owned());
        assert_eq!(token(r#"{"token":"a"}"#).as_deref(), Some("a"));
        assert_eq!(token(r#"{"access_token":"b","expires_in":60}"#).as_deref(), Some("b"));
        assert_eq!(token(r#"{"token":"a","access_token":"b"}"#).as_deref(), Some("a"));
        assert_eq!(token("{}"), None);
        assert_eq!(token("[]"), None);
    }
}
