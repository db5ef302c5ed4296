//! What ECR hands out, checked before anybody relies on it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret as _, SecretString};
use std::fmt;

/// Ten times what ECR sends today. A larger one would crowd the auth file, which is read up to 1 MiB.
const MAX_LEN: usize = 32 * 1024;

/// An authorization token: the base64 of `AWS:<password>`. Zeroed when dropped.
#[derive(Clone)]
pub struct AuthorizationToken(SecretString);

/// Why an answer's token is none. The texts show nothing of it.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    /// The kubelet could not decode it, and would ignore the whole file.
    #[error("the authorization token is not base64")]
    NotBase64,
    /// Decoded, there is no `user:password`, or one of the two is empty.
    #[error("the authorization token is not base64 of `user:password`")]
    NotUserAndPassword,
    /// Longer than any token of ECR's.
    #[error("the authorization token is longer than 32 KiB")]
    TooLong,
}

impl AuthorizationToken {
    /// Takes the token out of ECR's answer.
    ///
    /// # Errors
    /// When the kubelet could not make user and password of it.
    pub fn new(text: SecretString) -> Result<Self, TokenError> {
        if text.expose_secret().len() > MAX_LEN {
            return Err(TokenError::TooLong);
        }
        let decoded =
            Zeroizing::new(STANDARD.decode(text.expose_secret()).map_err(|_| TokenError::NotBase64)?);
        let colon = decoded.iter().position(|byte| *byte == b':').ok_or(TokenError::NotUserAndPassword)?;
        if colon == 0 || colon + 1 == decoded.len() {
            return Err(TokenError::NotUserAndPassword);
        }
        Ok(Self(text))
    }

    /// Whether both are the same token.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.0.expose_secret() == other.0.expose_secret()
    }

    /// The secret itself, for the entry that it is written into.
    #[must_use]
    pub fn for_auth_entry(&self) -> &SecretString {
        &self.0
    }
}

impl fmt::Debug for AuthorizationToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthorizationToken(redacted)")
    }
}

/// One answer of ECR's: a token and what goes with it.
#[derive(Debug, Clone)]
pub struct Token {
    /// The token.
    pub authorization: AuthorizationToken,
    /// When ECR stops accepting it; 12 hours after it was handed out.
    pub expires_at: Timestamp,
    /// When it was handed out.
    pub fetched_at: Timestamp,
    /// The registry that the answer names: host in lower case, without scheme. Public ECR names none.
    pub registry: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(plain: &str) -> SecretString {
        SecretString::from(STANDARD.encode(plain))
    }

    #[test]
    fn a_token_is_base64_of_user_and_password() {
        let cases = [
            (encoded("AWS:secret"), Ok(())),
            (encoded("AWS:with:colons"), Ok(())),
            (encoded("AWS"), Err(TokenError::NotUserAndPassword)),
            (encoded("AWS:"), Err(TokenError::NotUserAndPassword)),
            (encoded(":secret"), Err(TokenError::NotUserAndPassword)),
            (SecretString::from(""), Err(TokenError::NotUserAndPassword)),
            (SecretString::from("not base64!"), Err(TokenError::NotBase64)),
            (SecretString::from("QVdTOnNlY3JldA"), Err(TokenError::NotBase64)),
            (SecretString::from("A".repeat(40_000)), Err(TokenError::TooLong)),
        ];
        for (number, (text, expected)) in cases.into_iter().enumerate() {
            assert_eq!(AuthorizationToken::new(text).map(|_| ()), expected, "case {number}");
        }
    }

    #[test]
    fn debug_shows_no_token() {
        let token = AuthorizationToken::new(encoded("AWS:secret")).unwrap();
        assert_eq!(format!("{token:?}"), "AuthorizationToken(redacted)");
    }
}
