//! What ECR hands out, checked before it is used.

use crate::report::redact;
use crate::time::schedule::{TOKEN_LIFE, latest_expiry};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret as _, SecretString};
use std::fmt;

/// Ten times what ECR sends today. A larger one would crowd the auth file, which is read up to 1 MiB.
const MAX_LEN: usize = 32 * 1024;
/// A token that lives no longer than this expires before a pull could use it.
const SHORTEST_LIFE: SignedDuration = SignedDuration::from_secs(10);

/// An authorization token: the base64 of `AWS:<password>`. Zeroed when dropped.
#[derive(Clone)]
pub struct AuthorizationToken(SecretString);

/// Why a text is no token. The messages show nothing of it.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    /// The kubelet cannot decode it, and would ignore the whole file.
    #[error("the authorization token is not base64")]
    NotBase64,
    /// It is not `user:password` once it is decoded, or one of the two is empty.
    #[error("the authorization token is not base64 of `user:password`")]
    NotUserAndPassword,
    /// It is longer than any token of ECR.
    #[error("the authorization token is longer than 32 KiB")]
    TooLong,
}

impl AuthorizationToken {
    /// Checks a token. From now on no output shows it.
    ///
    /// # Errors
    /// When the kubelet cannot decode it.
    pub fn new(text: SecretString) -> Result<Self, TokenError> {
        redact::remember(text.expose_secret());
        if text.expose_secret().len() > MAX_LEN {
            return Err(TokenError::TooLong);
        }
        let decoded =
            Zeroizing::new(STANDARD.decode(text.expose_secret()).map_err(|_| TokenError::NotBase64)?);
        let colon = decoded.iter().position(|byte| *byte == b':').ok_or(TokenError::NotUserAndPassword)?;
        if colon == 0 || colon + 1 == decoded.len() {
            return Err(TokenError::NotUserAndPassword);
        }
        redact::remember(&String::from_utf8_lossy(&decoded[colon + 1..]));
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

/// An authorization token that the kubelet can use, and what goes with it.
#[derive(Debug, Clone)]
pub struct Token {
    /// The token.
    pub authorization: AuthorizationToken,
    /// When ECR stops accepting it; 12 hours after it was handed out.
    pub expires_at: Timestamp,
    /// When it was handed out.
    pub fetched_at: Timestamp,
    /// The registry that the answer names: a host in lower case, without scheme. ECR Public names none.
    pub registry: Option<String>,
}

/// When a token expires that an answer says expires at `expires_at`: never later than a token's life from now.
///
/// An expiry that is believed although it lies too far in the future would keep every later token out of the node's file.
///
/// # Errors
/// When the token has expired, or does so within seconds.
pub fn expiry(expires_at: Timestamp, now: Timestamp) -> Result<Expiry, ExpiryError> {
    let left = expires_at.duration_since(now);
    if left <= SignedDuration::ZERO {
        Err(ExpiryError::Expired(left.abs()))
    } else if left < SHORTEST_LIFE {
        Err(ExpiryError::Soon(left))
    } else if expires_at > latest_expiry(now) {
        Ok(Expiry { at: now.saturating_add(TOKEN_LIFE).unwrap_or(now), is_shortened: true })
    } else {
        Ok(Expiry { at: expires_at, is_shortened: false })
    }
}

/// When a token expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    /// The time.
    pub at: Timestamp,
    /// Whether the answer named a time that no token lives to see.
    pub is_shortened: bool,
}

/// A token that is of no use any more, and for how long, or how long it still is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpiryError {
    /// It expired so long ago.
    Expired(SignedDuration),
    /// It expires so soon.
    Soon(SignedDuration),
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
    fn an_expiry_is_neither_past_nor_later_than_a_token_lives() {
        let now: Timestamp = "2026-11-23T10:00:00Z".parse().unwrap();
        let at = |at, is_shortened| Ok(Expiry { at, is_shortened });
        let hours = SignedDuration::from_hours;
        let ms = SignedDuration::from_millis;
        let cases = [
            (now - hours(1), Err(ExpiryError::Expired(hours(1)))),
            (now, Err(ExpiryError::Expired(ms(0)))),
            (now + ms(9_999), Err(ExpiryError::Soon(ms(9_999)))),
            (now + ms(10_000), at(now + ms(10_000), false)),
            // ECR's fractions of a second are kept: they tell two tokens apart.
            (now + hours(12) - ms(1), at(now + hours(12) - ms(1), false)),
            (now + hours(12) + ms(900_000), at(now + hours(12) + ms(900_000), false)),
            (now + hours(12) + ms(900_001), at(now + hours(12), true)),
            (Timestamp::MAX, at(now + hours(12), true)),
            (Timestamp::MIN, Err(ExpiryError::Expired(now.duration_since(Timestamp::MIN)))),
        ];
        for (expires_at, expected) in cases {
            assert_eq!(expiry(expires_at, now), expected, "{expires_at}");
        }
    }

    #[test]
    fn a_token_is_the_same_as_itself_alone() {
        let [one, same, other] =
            ["AWS:one", "AWS:one", "AWS:other"].map(|plain| AuthorizationToken::new(encoded(plain)).unwrap());
        assert!(one.is_same(&same) && !one.is_same(&other));
    }

    #[test]
    fn debug_shows_no_token() {
        let token = AuthorizationToken::new(encoded("AWS:secret")).unwrap();
        assert_eq!(format!("{token:?}"), "AuthorizationToken(redacted)");
    }
}
