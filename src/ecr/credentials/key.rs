//! An access key, checked before it is used.

use crate::report::redact;
use aws_credential_types::Credentials;

/// AWS documents 16 to 128 characters; emulators have shorter ones.
const LONGEST_ID: usize = 128;
/// The length of a secret access key of AWS.
const SECRET_LENGTH: usize = 40;

/// Other services with AWS's API have secrets that are longer than [`SECRET_LENGTH`].
const LONGEST_SECRET: usize = 1024;
/// AWS documents no limit for session tokens; they have up to 4 KiB today.
const LONGEST_TOKEN: usize = 32 * 1024;

/// Why an access key cannot be used. The texts show nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The id has characters that no id has.
    #[error(
        "the access key id holds a space, a line break or another character that none has: an id is letters, digits and \
         `_`; perhaps the id and the secret are swapped"
    )]
    NotAnId,
    /// The id looks like a secret, and the secret like an id.
    #[error("the access key id looks like a secret access key, and the other way round: they are swapped")]
    Swapped,
    /// The secret has characters that no secret has.
    #[error("the secret access key holds a space, a line break or another character that none has")]
    NotASecret,
    /// The session token has characters that no token has.
    #[error("the session token holds a space, a line break or another character that none has")]
    NotASessionToken,
    /// A part is longer than any of its kind.
    #[error("the secret access key or the session token is longer than any")]
    TooLong,
}

/// Takes an access key. The secrets in it are remembered, so that no output shows them. An empty session token is none.
///
/// # Errors
/// When it could be no access key. The AWS SDK panics on some of them, and AWS repeats others in its answer.
pub fn access_key(id: &str, secret: &str, session_token: Option<&str>) -> Result<Credentials, KeyError> {
    let session_token = session_token.filter(|token| !token.is_empty());
    for text in [Some(secret), session_token].into_iter().flatten() {
        redact::remember(text);
    }
    if !is_usual_id(id) {
        // It may be a secret that stands in the wrong place.
        redact::remember(id);
    }
    let is_id = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let is_graphic = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if id.is_empty() || id.len() > LONGEST_ID || !id.bytes().all(is_id) {
        return Err(KeyError::NotAnId);
    }
    if id.len() == SECRET_LENGTH && is_usual_id(secret) {
        return Err(KeyError::Swapped);
    }
    if secret.len() > LONGEST_SECRET || session_token.is_some_and(|token| token.len() > LONGEST_TOKEN) {
        return Err(KeyError::TooLong);
    }
    if !is_graphic(secret) {
        return Err(KeyError::NotASecret);
    }
    if !session_token.is_none_or(is_graphic) {
        return Err(KeyError::NotASessionToken);
    }
    Ok(Credentials::new(id, secret, session_token.map(str::to_owned), None, "ecr-node-agent"))
}

/// Whether an id is as AWS makes them, such as `AKIAIOSFODNN7EXAMPLE`. Others are not shown.
#[must_use]
pub fn is_usual_id(id: &str) -> bool {
    let is_upper = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit();
    id.starts_with('A') && (16..SECRET_LENGTH).contains(&id.len()) && id.bytes().all(is_upper)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_an_access_key_is_taken() {
        const ID: &str = "AKIAIOSFODNN7EXAMPLE";
        const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
        let plain = "wJalrXUtnFEMIxK7MDENGxbPxRfiCYEXAMPLEKEY";
        let cases = [
            (ID, SECRET, None, Ok(())),
            (ID, SECRET, Some(""), Ok(())),
            (ID, SECRET, Some("token/+="), Ok(())),
            ("k3y_of_test", "s3cret-of-test", None, Ok(())),
            (SECRET, ID, None, Err(KeyError::NotAnId)),
            (plain, ID, None, Err(KeyError::Swapped)),
            ("", SECRET, None, Err(KeyError::NotAnId)),
            ("AKIA\nX", SECRET, None, Err(KeyError::NotAnId)),
            ("ключ", SECRET, None, Err(KeyError::NotAnId)),
            (&"I".repeat(LONGEST_ID), SECRET, None, Ok(())),
            (&"I".repeat(LONGEST_ID + 1), SECRET, None, Err(KeyError::NotAnId)),
            // Not swapped: the id has the length of a secret, and the secret is none of AWS's ids.
            (plain, SECRET, None, Ok(())),
            (plain, "BKIAIOSFODNN7EXAMPLE", None, Ok(())),
            (plain, "AKIAIOSFODNN7EXAMPLe", None, Ok(())),
            (plain, "AKIAIOSFODNN7EX", None, Ok(())),
            (ID, ID, None, Ok(())),
            (ID, "", None, Err(KeyError::NotASecret)),
            (ID, "a b", None, Err(KeyError::NotASecret)),
            (ID, SECRET, Some("a\nb"), Err(KeyError::NotASessionToken)),
            (ID, &"s".repeat(LONGEST_SECRET), None, Ok(())),
            (ID, &"s".repeat(LONGEST_SECRET + 1), None, Err(KeyError::TooLong)),
            (ID, SECRET, Some(&"t".repeat(LONGEST_TOKEN)), Ok(())),
            (ID, SECRET, Some(&"t".repeat(LONGEST_TOKEN + 1)), Err(KeyError::TooLong)),
        ];
        for (id, secret, token, expected) in cases {
            assert_eq!(access_key(id, secret, token).map(|_| ()), expected, "{id}");
        }
        // An id that AWS may have made is shown, and any other may be a secret in the wrong place.
        access_key("AKIATHESHOWNEXAMPLE1", SECRET, None).unwrap();
        assert_eq!(redact::redact("AKIATHESHOWNEXAMPLE1", 200), "AKIATHESHOWNEXAMPLE1");
        access_key("in-the/wrong+place", SECRET, None).unwrap_err();
        assert_eq!(redact::redact("in-the/wrong+place", 200), "…");
        // Whatever was refused is not shown from now on.
        assert_eq!(redact::redact(&format!("{plain}, {SECRET}, {ID}"), 200), "…, …, …");
    }
}
