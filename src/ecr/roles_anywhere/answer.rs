//! What an answer to `CreateSession` means.

use super::certificate::Certificate;
use super::option::RolesAnywhere;
use crate::ecr::credentials::key;
use crate::ecr::refusal::{AnswerError, Refusal};
use crate::ecr::sdk_error::CLOCK_TOLERANCE;
use crate::report::redact::redact_known;
use aws_credential_types::Credentials;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

/// The longest ARN has 2,048 characters.
const LONGEST_ARN: usize = 2048;
/// The longest text of AWS's that is shown.
const LONGEST: usize = 300;

/// An answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorAnswer {
    /// The status.
    pub status: u16,
    /// The error's code; empty if there is none.
    pub code: String,
    /// What AWS says to people; empty if nothing.
    pub message: String,
    /// How far this node's clock is ahead of the server's, in whole seconds; `None` if the answer has no date.
    pub ahead: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Success {
    credential_set: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    credentials: Secrets,
    #[serde(default)]
    assumed_role_user: User,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Secrets {
    access_key_id: SecretString,
    secret_access_key: SecretString,
    session_token: SecretString,
}

#[derive(Deserialize, Default)]
struct User {
    #[serde(default)]
    arn: String,
}

/// The credentials in an answer, and the role session.
///
/// # Errors
/// When there are none.
pub fn credentials(body: &[u8]) -> Result<(Credentials, String), Refusal> {
    let answer: Success = serde_json::from_slice(body).map_err(|_| AnswerError::Unreadable)?;
    let entry = answer.credential_set.into_iter().next().ok_or(AnswerError::NoRoleCredentials)?;
    let Secrets { access_key_id, secret_access_key, session_token } = entry.credentials;
    let credentials = key::access_key(
        access_key_id.expose_secret(),
        secret_access_key.expose_secret(),
        Some(session_token.expose_secret()),
    );
    let credentials = credentials.map_err(|error| {
        Refusal::no_credentials(&format!("IAM Roles Anywhere gave credentials, but {error}"))
    })?;
    Ok((credentials, redact_known(&entry.assumed_role_user.arn, LONGEST_ARN)))
}

impl ErrorAnswer {
    /// Reads an answer. The code stands in a header, or else in the body.
    #[must_use]
    pub fn new(status: u16, header: Option<&str>, body: &[u8], ahead: Option<i64>) -> Self {
        let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let member = |names: &[&str]| names.iter().find_map(|name| json[*name].as_str()).unwrap_or_default();
        let code = header.unwrap_or_else(|| member(&["__type", "code", "Code"]));
        // Both places may hold more than the code: `Code:http://...`, `namespace#Code`.
        let code = code.split(':').next().unwrap_or_default().rsplit('#').next().unwrap_or_default();
        Self {
            status,
            code: redact_known(code, LONGEST),
            message: redact_known(member(&["message", "Message"]), LONGEST),
            ahead,
        }
    }

    /// What the answer means, and what to do.
    ///
    /// AWS has one code for almost everything that is wrong (`AccessDeniedException`), so its documented messages decide.
    #[must_use]
    pub fn refusal(&self, option: &RolesAnywhere, leaf: &Certificate) -> Refusal {
        let RolesAnywhere { anchor, profile, role, .. } = option;
        let Self { status, code, message, ahead } = self;
        let answered = match (code.as_str(), message.as_str()) {
            ("", "") => format!("HTTP status {status}"),
            (code, "") => code.to_owned(),
            ("", message) => format!("HTTP status {status}: {message}"),
            (code, message) => format!("{code}: {message}"),
        };
        if *status == 429 || code.starts_with("Throttl") {
            return Refusal::Throttled { reason: format!("IAM Roles Anywhere: {answered}") };
        }
        if *status >= 500 {
            return Refusal::Unavailable { reason: format!("IAM Roles Anywhere: {answered}") };
        }
        let says = |text: &str| message.to_ascii_lowercase().contains(text);
        let remedy = if says("invalid signature") {
            if ahead.is_some_and(|ahead| ahead.abs() >= CLOCK_TOLERANCE) {
                return Refusal::Clock { reason: answered, ahead: *ahead };
            }
            let clock = match ahead {
                Some(_) => "",
                None => "the answer has no date: either this node's clock is wrong, or ",
            };
            format!("{clock}a proxy on the way has changed the request: let it pass the request as it is")
        } else if says("insufficient certificate") {
            let problem = match (leaf.is_ca, leaf.may_sign, leaf.subject.is_empty()) {
                (true, _, _) => "it is the certificate of a CA",
                (_, false, _) => "its key usage has no digitalSignature",
                (_, _, true) => "its subject is empty",
                _ => "AWS wants X.509 version 3, key usage digitalSignature, a subject and no CA",
            };
            format!(
                "AWS does not take the certificate of `{}`, since {problem}: use another one",
                leaf.subject
            )
        } else if says("untrusted signing certificate") {
            format!(
                "the certificate was issued by `{}`: register that CA as the trust anchor {anchor}, or give the certificates \
                 between them in the certificate file",
                leaf.issuer
            )
        } else if says("revoked") {
            "the certificate is on a revocation list of the trust anchor: this node was shut out".to_owned()
        } else if says("rolesessionname") {
            format!(
                "the agent asks for no session name, so a proxy on the way adds one: remove it there, or set \
                 acceptRoleSessionName in the profile {profile}"
            )
        } else if says("unable to assume role") {
            format!(
                "the trust policy of {role} must allow rolesanywhere.amazonaws.com the actions sts:AssumeRole, sts:TagSession \
                 and sts:SetSourceIdentity, with conditions that this certificate meets (`{}`, trust anchor {anchor})",
                leaf.subject
            )
        } else {
            format!(
                "check the trust anchor {anchor}, the profile {profile} and the role {role} that it lists"
            )
        };
        Refusal::no_credentials(&format!("{answered}; {remedy}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::retry::Retry;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    use serde_json::Value;

    #[test]
    fn each_documented_error_says_what_to_do() {
        let vectors: Value =
            serde_json::from_str(include_str!("../../../tests/vectors/rolesanywhere.json")).unwrap();
        let pem = vectors["vectors"][0]["certificate_pem"].as_str().unwrap();
        let leaf = Certificate::parse(&CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
        let option: RolesAnywhere = "anchor=arn:aws:rolesanywhere:eu-west-1:123456789012:trust-anchor/a,\
             profile=arn:aws:rolesanywhere:eu-west-1:123456789012:profile/p,role=arn:aws:iam::123456789012:role/r"
            .parse()
            .unwrap();
        let denied = |message: &str, ahead| {
            let body = format!("{{\"message\":\"{message}\"}}");
            ErrorAnswer::new(403, Some("AccessDeniedException:http://x"), body.as_bytes(), ahead)
        };
        let answer = |status, body: &str| ErrorAnswer::new(status, None, body.as_bytes(), None);
        let cases = [
            (denied("Invalid signature", Some(1800)), Retry::Later, "this node's clock is 30m ahead of"),
            (denied("Invalid signature", Some(60)), Retry::Useless, "a proxy on the way"),
            (
                denied("Invalid signature", None),
                Retry::Useless,
                "either this node's clock is wrong, or a proxy",
            ),
            (
                denied("Untrusted certificate. Insufficient certificate", None),
                Retry::Useless,
                "AWS wants X.509 version 3",
            ),
            (denied("Untrusted signing certificate", None), Retry::Useless, "issued by `CN=kubernetes`"),
            (denied("Certificate revoked", None), Retry::Useless, "revocation list"),
            (
                denied("Specified Trust Anchor wasn't found", None),
                Retry::Useless,
                "check the trust anchor arn:aws:rolesanywhere:",
            ),
            (denied("Invalid or empty profile provided", None), Retry::Useless, ":profile/p"),
            (
                denied("Requested Role isn't one of those listed in the Profile", None),
                Retry::Useless,
                ":role/r that it lists",
            ),
            (
                denied("Unable to assume role for ARN", None),
                Retry::Useless,
                "sts:TagSession and sts:SetSourceIdentity, with conditions that this certificate meets (`O=system:nodes, \
                 CN=system:node:node-1`",
            ),
            (
                denied("Not authorized to set roleSessionName", None),
                Retry::Useless,
                "set acceptRoleSessionName in the profile arn:aws:rolesanywhere:",
            ),
            (answer(429, "{}"), Retry::Throttled, "IAM Roles Anywhere: HTTP status 429"),
            (
                answer(400, r#"{"__type":"a#ThrottlingException","Message":"slow"}"#),
                Retry::Throttled,
                "ThrottlingException: slow",
            ),
            (answer(500, "<html>"), Retry::Later, "HTTP status 500"),
            (
                answer(404, r#"{"code":"ResourceNotFoundException","message":"no"}"#),
                Retry::Useless,
                "ResourceNotFoundException: no",
            ),
            (
                answer(400, r#"{"__type":"ValidationException"}"#),
                Retry::Useless,
                "ValidationException; check",
            ),
        ];
        for (answer, retry, expected) in cases {
            let refusal = answer.refusal(&option, &leaf);
            assert_eq!(refusal.retry(), retry, "{refusal}");
            assert!(refusal.to_string().contains(expected), "{refusal}");
        }
        let weak = Certificate { may_sign: false, ..leaf.clone() };
        let refusal = denied("Untrusted certificate. Insufficient certificate", None).refusal(&option, &weak);
        assert!(refusal.to_string().contains("its key usage has no digitalSignature"), "{refusal}");
    }

    #[test]
    fn credentials_are_taken_out_of_the_answer() {
        let body = r#"{"credentialSet":[{"credentials":{"accessKeyId":"ASIAIOSFODNN7EXAMPLE",
            "secretAccessKey":"s3cret-of-session","sessionToken":"t0ken-of-session","expiration":"2026-11-25T20:15:00Z"},
            "assumedRoleUser":{"arn":"arn:aws:sts::1:assumed-role/r/f3a1","assumedRoleId":"x"},"roleArn":"x"}],"subjectArn":"x"}"#;
        let (credentials, role) = credentials(body.as_bytes()).unwrap();
        assert_eq!(credentials.access_key_id(), "ASIAIOSFODNN7EXAMPLE");
        assert_eq!(credentials.session_token(), Some("t0ken-of-session"));
        assert_eq!(role, "arn:aws:sts::1:assumed-role/r/f3a1");
        for body in ["", "{}", r#"{"credentialSet":[]}"#, r#"{"credentialSet":[{"credentials":{}}]}"#] {
            assert!(matches!(super::credentials(body.as_bytes()), Err(Refusal::BadAnswer(_))), "{body}");
        }
    }
}
