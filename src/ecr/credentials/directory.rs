//! An access key in the files of a directory, such as a mounted Secret.

use super::Obtained;
use super::key;
use crate::ecr::files::Reader;
use crate::ecr::refusal::Refusal;
use crate::report::redact::shown_path;
use secrecy::zeroize::Zeroizing;
use std::path::Path;

/// A key has 20 or 40 characters, a session token about a thousand.
const MAX_FILE: u64 = 64 * 1024;
/// The files: the third one is there for temporary credentials only.
const NAMES: [&str; 3] = ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"];

/// Reads the files.
///
/// # Errors
/// When one of the first two is missing or empty, or what they hold is no access key.
pub async fn read(directory: &Path, reader: &Reader) -> Result<Obtained, Refusal> {
    let source = format!("--aws-credentials-dir {}", shown_path(directory));
    let failed = |problem: String, passing| Refusal::NoCredentials {
        reason: format!(
            "{source}: {problem}; it must hold the files aws_access_key_id and aws_secret_access_key"
        ),
        passing,
    };
    let files = reader
        .read_all(directory, NAMES, MAX_FILE)
        .await
        .map_err(|(path, error)| failed(format!("{} {error}", shown_path(&path)), error.is_passing()))?;
    let mut texts = [const { None }; 3];
    for ((name, bytes), text) in NAMES.iter().zip(files).zip(&mut texts) {
        let Some(bytes) = bytes else { continue };
        let found = std::str::from_utf8(&bytes)
            .map_err(|_| failed(format!("the file `{name}` is no text"), false))?;
        // Editors and `echo` end a file with a newline, which is no part of a key.
        *text = Some(Zeroizing::new(found.trim().to_owned())).filter(|text| !text.is_empty());
    }
    let [id, secret, session_token] = texts;
    let (Some(id), Some(secret)) = (&id, &secret) else {
        let missing = if id.is_none() { NAMES[0] } else { NAMES[1] };
        return Err(failed(format!("the file `{missing}` is missing or empty"), false));
    };
    let session_token = session_token.as_ref().map(|token| token.as_str());
    let credentials = key::access_key(id, secret, session_token)
        .map_err(|error| Refusal::no_credentials(&format!("{source}: {error}")))?;
    Ok(Obtained { credentials, source, role: None })
}
