//! What the kubelet reads from one entry under `auths`.
//!
//! The rule matters because a single entry that the kubelet cannot decode makes it ignore the whole file
//! (`pkg/credentialprovider/config.go`, `DockerConfigEntry.UnmarshalJSON`).

use super::json;
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use secrecy::SecretString;

/// User and password as the kubelet would send them. Both may be empty.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// The user name; `AWS` in ECR's tokens.
    pub username: String,
    /// The password.
    pub password: SecretString,
}

/// Why the kubelet cannot decode an entry. The messages show no part of the entry.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
pub enum EntryProblem {
    /// A string, a number, an array.
    #[error("it is no JSON object")]
    NotAnObject,
    /// `username`, `password`, `email` or `auth` is not a string.
    #[error("`{0}` is no string")]
    NotAString(&'static str),
    /// The alphabet or the padding is wrong, or there is white space.
    #[error("`auth` is not base64")]
    NotBase64,
    /// The decoded text has no colon between user and password.
    #[error("`auth` is not base64 of `user:password`")]
    NoColon,
}

/// Decodes one entry, given as its JSON text, as the kubelet does.
///
/// A non-empty `auth` wins over `username` and `password`; other fields (`identitytoken`) are ignored.
///
/// # Errors
/// In each case the kubelet ignores the whole file that the entry is in.
pub fn decode(text: &str) -> Result<Credentials, EntryProblem> {
    if text.trim() == "null" {
        return Ok(Credentials::default());
    }
    let members = json::members(text).map_err(|_| EntryProblem::NotAnObject)?;
    let (mut username, mut password, mut auth) = (String::new(), String::new(), String::new());
    let mut email = String::new();
    for member in members {
        let Some(name) = json::string(member.name) else { continue };
        let (field, place) = match () {
            () if json::is_field(&name, "username") => ("username", &mut username),
            () if json::is_field(&name, "password") => ("password", &mut password),
            () if json::is_field(&name, "email") => ("email", &mut email),
            () if json::is_field(&name, "auth") => ("auth", &mut auth),
            () => continue,
        };
        // Go leaves a field as it was where the value is null.
        if member.value != "null" {
            *place = json::string(member.value).ok_or(EntryProblem::NotAString(field))?;
        }
    }
    if auth.is_empty() {
        return Ok(Credentials { username, password: SecretString::from(password) });
    }
    decode_auth(&SecretString::from(auth))
}

/// Decodes the field `auth` as the kubelet does: standard alphabet, padded if it ends in `=`, else unpadded. CR and LF
/// are skipped, and non-zero trailing bits are accepted.
///
/// # Errors
/// If it is not base64, or has no colon.
pub fn decode_auth(auth: &SecretString) -> Result<Credentials, EntryProblem> {
    use secrecy::{ExposeSecret as _, zeroize::Zeroizing};

    let auth = auth.expose_secret();
    let padding = if auth.trim().ends_with('=') {
        DecodePaddingMode::RequireCanonical
    } else {
        DecodePaddingMode::RequireNone
    };
    let config =
        GeneralPurposeConfig::new().with_decode_padding_mode(padding).with_decode_allow_trailing_bits(true);
    // The capacity is reserved first: a vector that grows leaves copies of its content behind.
    let mut text = Zeroizing::new(Vec::with_capacity(auth.len()));
    text.extend(auth.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n')));
    let decoded = GeneralPurpose::new(&STANDARD, config).decode(&*text);
    let decoded = Zeroizing::new(decoded.map_err(|_| EntryProblem::NotBase64)?);
    let decoded = json::replaced(&decoded);
    let (username, password) = decoded.split_once(':').ok_or(EntryProblem::NoColon)?;
    Ok(Credentials { username: username.to_owned(), password: SecretString::from(password) })
}
