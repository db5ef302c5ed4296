//! The JSON with which processes, containers' endpoints and the metadata service answer (pure).

use super::key::{self, KeyError};
use aws_credential_types::Credentials;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

/// Credentials as JSON. When they expire is of no interest: they serve one refresh, and AWS knows better.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Json {
    access_key_id: Option<SecretString>,
    secret_access_key: Option<SecretString>,
    /// What processes call the session token.
    session_token: Option<SecretString>,
    /// What the others call it.
    token: Option<SecretString>,
}

/// Why an answer holds no credentials. The texts show nothing of it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// No JSON object, or one with members of another type.
    #[error("is not a JSON object with credentials (line {line}, column {column})")]
    NotJson {
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
    },
    /// A member is missing or empty.
    #[error("has no `{0}`")]
    Missing(&'static str),
    /// What it holds is no access key.
    #[error("holds no access key: {0}")]
    Key(#[from] KeyError),
}

/// Takes credentials out of an answer. An empty session token is none.
///
/// # Errors
/// When there are none in it.
pub fn parse(answer: &[u8]) -> Result<Credentials, AnswerError> {
    // The text of serde's error may show a part of the answer.
    let json: Json = serde_json::from_slice(answer)
        .map_err(|error| AnswerError::NotJson { line: error.line(), column: error.column() })?;
    let needed = |text: Option<SecretString>, name| {
        text.filter(|text| !text.expose_secret().is_empty()).ok_or(AnswerError::Missing(name))
    };
    let id = needed(json.access_key_id, "AccessKeyId")?;
    let secret = needed(json.secret_access_key, "SecretAccessKey")?;
    let token = json.session_token.or(json.token);
    let token = token.as_ref().map(SecretString::expose_secret);
    Ok(key::access_key(id.expose_secret(), secret.expose_secret(), token)?)
}

/// A member of an answer that is text; `None` if the answer is no JSON object, or the member is no text.
#[must_use]
pub fn text(answer: &[u8], names: &[&str]) -> Option<String> {
    let json: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(answer).ok()?;
    let (_, value) = json.iter().find(|(name, _)| names.iter().any(|it| it.eq_ignore_ascii_case(name)))?;
    value.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_taken_out_and_nothing_is_shown() {
        let cases = [
            (r#"{"AccessKeyId":"A","SecretAccessKey":"SECRET"}"#, Ok(None)),
            (r#"{"AccessKeyId":"A","SecretAccessKey":"SECRET","SessionToken":""}"#, Ok(None)),
            (
                r#"{"AccessKeyId":"A","SecretAccessKey":"SECRET","SessionToken":null,"Token":"T"}"#,
                Ok(Some("T")),
            ),
            (r#"{"Expiration":"2026-11-24 UTC","AccessKeyId":"A","SecretAccessKey":"SECRET"}"#, Ok(None)),
            (r#"{"AccessKeyId":"","SecretAccessKey":"SECRET"}"#, Err("has no `AccessKeyId`")),
            (r#"{"AccessKeyId":"A"}"#, Err("has no `SecretAccessKey`")),
            (r#"{"AccessKeyId":5,"SecretAccessKey":"SECRET"}"#, Err("is not a JSON object")),
            (r#""SECRET""#, Err("is not a JSON object")),
            ("SECRET", Err("is not a JSON object")),
            (r#"{"AccessKeyId":"A B","SecretAccessKey":"SECRET"}"#, Err("holds no access key")),
        ];
        for (answer, expected) in cases {
            match (parse(answer.as_bytes()), expected) {
                (Ok(credentials), Ok(token)) => assert_eq!(credentials.session_token(), token, "{answer}"),
                (Err(error), Err(said)) => {
                    let error = error.to_string();
                    assert!(error.contains(said) && !error.contains("SECRET"), "{answer}: {error}");
                }
                (found, expected) => panic!("{answer}: {found:?}, not {expected:?}"),
            }
        }
        assert_eq!(text(br#"{"Message":"no"}"#, &["code", "message"]).as_deref(), Some("no"));
        assert_eq!(text(b"no", &["message"]), None);
    }
}
