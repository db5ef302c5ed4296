//! IAM Roles Anywhere: `CreateSession`, signed by a certificate's key.
//!
//! Rules: <https://docs.aws.amazon.com/rolesanywhere/latest/userguide/authentication-sign-process.html> and the trust
//! model beside it. What a trust policy would refuse is a [`Fault`].

use crate::{
    Fault,
    server::{Asked, respond},
    signature::{canonical_request, parse_stamp, sha256_hex},
    world::World,
};
use axum::{http::HeaderValue, response::Response};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::{SignedDuration, Timestamp};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};
use serde_json::{Value, json};
use std::borrow::Cow;
use x509_parser::{
    certificate::X509Certificate, oid_registry::OID_EC_P256, oid_registry::OID_NIST_EC_P384, pem::Pem,
    prelude::FromDer as _, public_key::PublicKey,
};

/// How old, or how early, a signature may be.
const TOLERANCE: SignedDuration = SignedDuration::from_mins(5);
/// No more certificates than these between the leaf and the anchor.
const LONGEST_CHAIN: usize = 5;

/// What IAM Roles Anywhere knows.
#[derive(Debug, Clone)]
pub struct RolesAnywhere {
    /// The ARN of the trust anchor.
    pub trust_anchor: String,
    /// The certificates of its CA, as PEM.
    pub certificates: String,
    /// The ARN of the profile.
    pub profile: String,
    /// The roles that the profile lists.
    pub roles: Vec<String>,
    /// Whether the profile lets callers name their session.
    pub accepts_session_name: bool,
}

/// A request is refused: status, code, message.
pub(crate) type Denial = (u16, &'static str, &'static str);

const fn denied(message: &'static str) -> Denial {
    (403, "AccessDeniedException", message)
}

const SIGNATURE: Denial = denied("Invalid signature");
const INSUFFICIENT: Denial = denied("Untrusted certificate. Insufficient certificate");
const UNTRUSTED: Denial = denied("Untrusted signing certificate");

/// A session that a request asks for, once its certificate and its signature are good.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) role: String,
    pub(crate) seconds: i64,
    /// The certificate's serial number in hexadecimal, after which a session is called.
    pub(crate) name: String,
}

/// Answers `POST /sessions`.
pub(crate) fn answer(world: &World, asked: &Asked, fault: Option<&Fault>) -> Response {
    let session = match verify(asked, world.options.roles_anywhere.as_ref(), world.now()) {
        Ok(session) => session,
        Err((status, code, message)) => return error(status, code, message),
    };
    let Session { role, seconds, name } = session;
    let lifetime = match fault {
        Some(Fault::ExpiredToken) => SignedDuration::from_hours(-1),
        _ => SignedDuration::from_secs(seconds),
    };
    let lent = world.lend(Some(role.clone()), world.now() + lifetime);
    let credentials = json!({
        "accessKeyId": lent.access_key,
        "secretAccessKey": lent.secret,
        "sessionToken": lent.session_token,
        "expiration": lent.expires_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    });
    let arn = role.replacen(":iam::", ":sts::", 1).replacen(":role/", ":assumed-role/", 1);
    let user = json!({ "arn": format!("{arn}/{name}"), "assumedRoleId": format!("AROAEMULATED:{name}") });
    let entry = json!({ "credentials": credentials, "assumedRoleUser": user, "packedPolicySize": 1, "roleArn": role });
    let set = if fault == Some(&Fault::EmptyData) { json!([]) } else { json!([entry]) };
    respond(201, "application/json", json!({ "credentialSet": set, "subjectArn": "emulated" }).to_string())
}

/// An error as the API gives it: the code in a header.
pub(crate) fn error(status: u16, code: &str, message: &str) -> Response {
    let mut answer = respond(status, "application/json", json!({ "message": message }).to_string());
    if let Ok(code) = HeaderValue::try_from(code) {
        answer.headers_mut().insert("x-amzn-errortype", code);
    }
    answer
}

/// Checks a request: certificate, signature, time, chain, and what it asks for.
///
/// # Errors
/// With the first thing that is wrong.
pub(crate) fn verify(
    asked: &Asked,
    known: Option<&RolesAnywhere>,
    now: Timestamp,
) -> Result<Session, Denial> {
    let leaf = STANDARD.decode(asked.header("x-amz-x509")).map_err(|_| SIGNATURE)?;
    let leaf = parse(&leaf).ok_or(SIGNATURE)?;
    let chain = chain(asked)?;
    let chain: Vec<X509Certificate<'_>> =
        chain.iter().map(|der| parse(der).ok_or(SIGNATURE)).collect::<Result<_, _>>()?;
    let region = check_signature(asked, &leaf, now)?;

    let parameter = |name: &str| parameter(asked, name);
    let (anchor, profile, role) =
        (parameter("trustAnchorArn"), parameter("profileArn"), parameter("roleArn"));
    let known = known.ok_or(denied("Specified Trust Anchor wasn't found"))?;
    if anchor != known.trust_anchor || anchor.split(':').nth(3) != Some(region) {
        return Err(denied("Specified Trust Anchor wasn't found"));
    }
    check_usage(&leaf)?;
    check_chain(&leaf, &chain, &known.certificates, now)?;
    if profile != known.profile {
        return Err(denied("Invalid or empty profile provided"));
    }
    if !known.roles.contains(&role) {
        return Err(denied("Requested Role isn't one of those listed in the Profile"));
    }
    let body: Value = serde_json::from_slice(&asked.body).map_err(|_| validation())?;
    if !body["roleSessionName"].is_null() && !known.accepts_session_name {
        return Err(denied("Not authorized to set roleSessionName"));
    }
    let seconds = match &body["durationSeconds"] {
        Value::Null => 3600,
        seconds => seconds.as_i64().filter(|seconds| (900..=43_200).contains(seconds)).ok_or(validation())?,
    };
    Ok(Session { role, seconds, name: format!("{:x}", leaf.tbs_certificate.serial) })
}

const fn validation() -> Denial {
    (400, "ValidationException", "The request is malformed")
}

fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    X509Certificate::from_der(der)
        .ok()
        .filter(|(rest, _)| rest.is_empty())
        .map(|(_, certificate)| certificate)
}

/// The further certificates. A header without any is refused.
fn chain(asked: &Asked) -> Result<Vec<Vec<u8>>, Denial> {
    if !asked.parts.headers.contains_key("x-amz-x509-chain") {
        return Ok(Vec::new());
    }
    let all = all_values(asked, "x-amz-x509-chain");
    let texts: Vec<&str> = all.split(',').collect();
    if texts.len() > LONGEST_CHAIN {
        return Err(SIGNATURE);
    }
    let decoded = texts.iter().map(|text| STANDARD.decode(text).ok().filter(|der| !der.is_empty()));
    decoded.collect::<Option<_>>().ok_or(SIGNATURE)
}

/// A header's values, as they are signed.
fn all_values(asked: &Asked, name: &str) -> String {
    let values = asked.parts.headers.get_all(name).iter();
    let values: Vec<&str> = values.map(|value| value.to_str().unwrap_or_default().trim()).collect();
    values.join(",")
}

/// A member of the body, or else a parameter of the query.
fn parameter(asked: &Asked, name: &str) -> String {
    let body: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
    let query = asked.parts.uri.query().unwrap_or_default();
    let in_query = || form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name);
    let found = body[name].as_str().map(|text| Cow::Owned(text.to_owned())).or_else(|| Some(in_query()?.1));
    found.unwrap_or_default().into_owned()
}

/// Checks the signature, and returns the region of its scope.
fn check_signature<'a>(
    asked: &'a Asked,
    leaf: &X509Certificate<'_>,
    now: Timestamp,
) -> Result<&'a str, Denial> {
    let (name, algorithm) = algorithm(leaf).ok_or(SIGNATURE)?;
    let header = asked.header("authorization");
    let parameters = header.strip_prefix(name).and_then(|rest| rest.strip_prefix(' ')).ok_or(SIGNATURE)?;
    let parameter = |name: &str| {
        parameters.split(", ").find_map(|part| part.strip_prefix(name)?.strip_prefix('=')).ok_or(SIGNATURE)
    };
    let (credential, signed, signature) =
        (parameter("Credential")?, parameter("SignedHeaders")?, parameter("Signature")?);
    let fields: Vec<&str> = credential.split('/').collect();
    let [serial, date, region, "rolesanywhere", "aws4_request"] = fields.as_slice() else {
        return Err(SIGNATURE);
    };
    // In decimal, as the certificate has it.
    if *serial != leaf.tbs_certificate.serial.to_string() {
        return Err(SIGNATURE);
    }
    let names: Vec<&str> = signed.split(';').collect();
    let needed = ["content-type", "host", "x-amz-date", "x-amz-x509"];
    let has_chain = asked.parts.headers.contains_key("x-amz-x509-chain");
    if !names.is_sorted()
        || !needed.iter().all(|name| names.contains(name))
        || has_chain && !names.contains(&"x-amz-x509-chain")
    {
        return Err(SIGNATURE);
    }
    let stamp = asked.header("x-amz-date");
    let at = parse_stamp(stamp).ok_or(SIGNATURE)?;
    if !stamp.starts_with(*date) || now.duration_since(at).abs() > TOLERANCE {
        return Err(SIGNATURE);
    }
    let canonical = canonical_request(asked, signed);
    let scope = format!("{date}/{region}/rolesanywhere/aws4_request");
    let to_sign = format!("{name}\n{stamp}\n{scope}\n{}", sha256_hex(canonical.as_bytes()));
    let signature = unhex(signature).ok_or(SIGNATURE)?;
    let key = leaf.public_key().subject_public_key.data.as_ref();
    UnparsedPublicKey::new(algorithm, key).verify(to_sign.as_bytes(), &signature).map_err(|_| SIGNATURE)?;
    Ok(region)
}

/// What AWS calls signatures by the certificate's key, and how they are verified. P-521 is not known here.
fn algorithm(leaf: &X509Certificate<'_>) -> Option<(&'static str, &'static dyn VerificationAlgorithm)> {
    match leaf.public_key().parsed().ok()? {
        PublicKey::RSA(_) => Some(("AWS4-X509-RSA-SHA256", &RSA_PKCS1_2048_8192_SHA256)),
        PublicKey::EC(_) => {
            let curve = leaf.public_key().algorithm.parameters.as_ref()?.as_oid().ok()?;
            if curve == OID_EC_P256 {
                Some(("AWS4-X509-ECDSA-SHA256", &ECDSA_P256_SHA256_ASN1))
            } else if curve == OID_NIST_EC_P384 {
                Some(("AWS4-X509-ECDSA-SHA256", &ECDSA_P384_SHA256_ASN1))
            } else {
                None
            }
        }
        _ => None,
    }
}

/// What the trust model wants of a leaf.
fn check_usage(leaf: &X509Certificate<'_>) -> Result<(), Denial> {
    let signs = leaf.key_usage().ok().flatten().is_some_and(|usage| usage.value.digital_signature());
    if !signs || leaf.is_ca() || leaf.subject().iter().next().is_none() {
        return Err(INSUFFICIENT);
    }
    Ok(())
}

/// Each certificate must be signed by the next one, and the last by the trust anchor; all must be valid now.
fn check_chain(
    leaf: &X509Certificate<'_>,
    chain: &[X509Certificate<'_>],
    anchors: &str,
    now: Timestamp,
) -> Result<(), Denial> {
    let anchors: Vec<Pem> = Pem::iter_from_buffer(anchors.as_bytes()).filter_map(Result::ok).collect();
    let anchors: Vec<X509Certificate<'_>> = anchors.iter().filter_map(|pem| parse(&pem.contents)).collect();
    let seconds = now.as_second();
    let is_valid = |certificate: &X509Certificate<'_>| {
        let validity = certificate.validity();
        (validity.not_before.timestamp()..=validity.not_after.timestamp()).contains(&seconds)
    };
    if !is_valid(leaf) {
        return Err(denied("Untrusted certificate. Certificate is expired or not yet valid"));
    }
    let mut at = leaf;
    for _ in 0..=LONGEST_CHAIN {
        let is_signed_by = |issuer: &&X509Certificate<'_>| {
            issuer.subject() == at.issuer() && at.verify_signature(Some(issuer.public_key())).is_ok()
        };
        if anchors.iter().any(|anchor| is_signed_by(&anchor)) {
            return Ok(());
        }
        at =
            chain.iter().filter(|next| next.is_ca() && is_valid(next)).find(is_signed_by).ok_or(UNTRUSTED)?;
    }
    Err(UNTRUSTED)
}

/// Hexadecimal digits in lower case.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if !digits || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::Request;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../vectors/rolesanywhere.json")).unwrap()
    }

    fn text(value: &Value) -> String {
        value.as_str().unwrap_or_default().to_owned()
    }

    /// A recorded request, and the anchor that it is for.
    fn recorded(vector: &Value) -> (Asked, RolesAnywhere) {
        let request = &vector["request"];
        let mut builder = Request::builder().method("POST").uri(text(&request["target"]));
        for header in request["headers"].as_array().unwrap() {
            builder = builder.header(text(&header[0]), text(&header[1]));
        }
        let (parts, body) = builder.body(text(&request["body"])).unwrap().into_parts();
        let options = &vector["options"];
        let known = RolesAnywhere {
            trust_anchor: text(&options["trust_anchor_arn"]),
            certificates: text(&vectors()["trust_anchor_pem"]),
            profile: text(&options["profile_arn"]),
            roles: vec![text(&options["role_arn"])],
            accepts_session_name: true,
        };
        (Asked { parts, body: body.into() }, known)
    }

    fn at(asked: &Asked) -> Timestamp {
        parse_stamp(asked.header("x-amz-date")).unwrap()
    }

    #[test]
    fn recorded_requests_are_accepted() {
        for vector in vectors()["vectors"].as_array().unwrap() {
            let (asked, known) = recorded(vector);
            let session = verify(&asked, Some(&known), at(&asked));
            let session = session.unwrap_or_else(|denial| panic!("{}: {denial:?}", vector["name"]));
            assert_eq!(session.name, text(&vector["serial_number_hex"]), "{}", vector["name"]);
            assert_eq!(session.seconds, vector["options"]["duration_seconds"].as_i64().unwrap());
            let late = verify(&asked, Some(&known), at(&asked) + SignedDuration::from_mins(6));
            assert_eq!(late.unwrap_err(), SIGNATURE);
        }
        // P-521 cannot be verified here.
        for vector in vectors()["extra"].as_array().unwrap() {
            let (asked, known) = recorded(vector);
            assert_eq!(verify(&asked, Some(&known), at(&asked)).unwrap_err(), SIGNATURE);
        }
    }

    /// What is done to a recorded request.
    type Change = Box<dyn Fn(&mut Value)>;

    #[test]
    fn changed_requests_are_refused() {
        let replace = |from: &'static str, to: &'static str| {
            move |vector: &mut Value, name: &str| {
                let headers = vector["request"]["headers"].as_array_mut().unwrap();
                for header in headers.iter_mut().filter(|header| header[0] == name) {
                    let text = header[1].as_str().unwrap().to_owned();
                    header[1] = text.replacen(from, to, 1).into();
                }
            }
        };
        let header = |name: &'static str, from, to| -> Change {
            let replace = replace(from, to);
            Box::new(move |vector| replace(vector, name))
        };
        let changes: Vec<(&str, Change)> = vec![
            ("body", Box::new(|vector| vector["request"]["body"] = "{\"durationSeconds\":901}".into())),
            (
                "query",
                Box::new(|vector| {
                    let target = text(&vector["request"]["target"]);
                    vector["request"]["target"] = format!("{target}&a=b").into();
                }),
            ),
            (
                "path",
                Box::new(|vector| {
                    let target = text(&vector["request"]["target"]);
                    vector["request"]["target"] = target.replacen("/sessions", "/session", 1).into();
                }),
            ),
            ("host", header("Host", "127.0.0.1", "127.0.0.2")),
            ("type", header("Content-Type", "json", "xml")),
            ("algorithm", header("Authorization", "AWS4-X509-", "AWS4-X510-")),
            ("scope", header("Authorization", "/rolesanywhere/", "/sts/")),
            ("date", header("Authorization", "/2026", "/2025")),
            ("signed headers", header("Authorization", ";x-amz-x509", "")),
            ("signed headers", header("Authorization", "SignedHeaders=content-type;", "SignedHeaders=")),
            ("signature", header("Authorization", "Signature=3", "Signature=2")),
            ("signature", header("Authorization", "Signature=", "Signature=0")),
            ("certificate", header("X-Amz-X509", "MII", "MIJ")),
            (
                "serial number",
                Box::new(|vector| {
                    let (decimal, hex) =
                        (text(&vector["serial_number_decimal"]), text(&vector["serial_number_hex"]));
                    for header in vector["request"]["headers"].as_array_mut().unwrap() {
                        header[1] =
                            text(&header[1]).replacen(&format!("={decimal}/"), &format!("={hex}/"), 1).into();
                    }
                }),
            ),
            (
                "empty chain",
                Box::new(|vector| {
                    vector["request"]["headers"]
                        .as_array_mut()
                        .unwrap()
                        .push(json!(["X-Amz-X509-Chain", ""]));
                }),
            ),
        ];
        for vector in vectors()["vectors"].as_array().unwrap() {
            for (what, change) in &changes {
                let mut altered = vector.clone();
                change(&mut altered);
                if altered == *vector {
                    continue;
                }
                let (asked, known) = recorded(&altered);
                let denial = verify(&asked, Some(&known), at(&asked)).unwrap_err();
                assert_eq!(denial, SIGNATURE, "{}: {what}", vector["name"]);
            }
        }
    }

    #[test]
    fn each_refusal_has_the_words_of_aws() {
        let vector = &vectors()["vectors"][0];
        let said = |change: &dyn Fn(&mut RolesAnywhere)| {
            let (asked, mut known) = recorded(vector);
            change(&mut known);
            verify(&asked, Some(&known), at(&asked)).unwrap_err().2
        };
        let other = vectors()["vectors"][1]["certificate_pem"].as_str().unwrap().to_owned();
        assert_eq!(said(&|known| known.trust_anchor.push('0')), "Specified Trust Anchor wasn't found");
        assert_eq!(said(&|known| known.profile.push('0')), "Invalid or empty profile provided");
        assert_eq!(
            said(&|known| known.roles.clear()),
            "Requested Role isn't one of those listed in the Profile"
        );
        assert_eq!(said(&|known| known.certificates.clone_from(&other)), "Untrusted signing certificate");
        let named = vectors()["vectors"].as_array().unwrap().last().unwrap().clone();
        let (asked, mut known) = recorded(&named);
        known.accepts_session_name = false;
        assert_eq!(
            verify(&asked, Some(&known), at(&asked)).unwrap_err().2,
            "Not authorized to set roleSessionName"
        );
        assert_eq!(verify(&asked, None, at(&asked)).unwrap_err().2, "Specified Trust Anchor wasn't found");
    }
}
