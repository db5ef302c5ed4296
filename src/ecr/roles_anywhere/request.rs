//! The request `CreateSession`, and its signature by a certificate's key.

use super::identity::ClientIdentity;
use super::option::RolesAnywhere;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use secrecy::SecretString;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;

/// How long the session lives, in seconds: as short as AWS allows, since it serves one refresh.
const SESSION: u32 = 900;
/// The path of the API.
pub const PATH: &str = "/sessions";

/// The request: its headers and its body.
#[derive(Debug)]
pub struct SignedRequest {
    /// The headers, in lower case.
    pub headers: Vec<(&'static str, SecretString)>,
    /// The body.
    pub body: String,
}

/// The signed request; `None` if the key cannot sign. `host` is that of the URL, with its port if it is not the usual one,
/// and `path` is the URL's whole path.
#[must_use]
pub fn create_session(
    option: &RolesAnywhere,
    identity: &ClientIdentity,
    host: &str,
    path: &str,
    now: Timestamp,
) -> Option<SignedRequest> {
    let body = json!({
        "durationSeconds": SESSION,
        "profileArn": option.profile,
        "roleArn": option.role.as_str(),
        "trustAnchorArn": option.anchor,
    });
    let body = body.to_string();
    let date = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    let mut headers = vec![
        ("content-type", "application/json".to_owned()),
        ("host", host.to_owned()),
        ("x-amz-date", date.clone()),
        ("x-amz-x509", STANDARD.encode(&identity.leaf.der)),
    ];
    // AWS refuses an empty chain.
    if !identity.chain.is_empty() {
        let chain: Vec<String> =
            identity.chain.iter().map(|certificate| STANDARD.encode(&certificate.der)).collect();
        headers.push(("x-amz-x509-chain", chain.join(",")));
    }
    let canonical = canonical_request(path, "", &headers, &body);
    let to_sign = string_to_sign(identity.algorithm(), &date, option.region.as_str(), &canonical);
    let signature = hex(&identity.sign(&to_sign)?);
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let authorization = format!(
        "{} Credential={}/{}, SignedHeaders={}, Signature={signature}",
        identity.algorithm(),
        identity.leaf.serial,
        scope(&date, option.region.as_str()),
        names.join(";"),
    );
    headers.push(("authorization", authorization));
    let headers = headers.into_iter().map(|(name, value)| (name, SecretString::from(value))).collect();
    Some(SignedRequest { headers, body })
}

/// What is hashed of a request. The headers are those to sign, sorted by name.
fn canonical_request(path: &str, query: &str, headers: &[(&'static str, String)], body: &str) -> String {
    let lines: Vec<String> = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    format!("POST\n{path}\n{query}\n{}\n{}\n{}", lines.concat(), names.join(";"), hex(&Sha256::digest(body)))
}

/// What is signed.
fn string_to_sign(algorithm: &str, date: &str, region: &str, canonical: &str) -> String {
    format!("{algorithm}\n{date}\n{}\n{}", scope(date, region), hex(&Sha256::digest(canonical)))
}

fn scope(date: &str, region: &str) -> String {
    format!("{}/{region}/rolesanywhere/aws4_request", date.get(..8).unwrap_or_default())
}

fn hex(octets: &[u8]) -> String {
    octets.iter().fold(String::new(), |mut text, octet| {
        // Writing to a string cannot fail.
        write!(text, "{octet:02x}").ok();
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret as _;
    use serde_json::Value;

    /// The AWS credential helper's requests have their ARNs in the query; the rules are the same.
    #[test]
    fn recorded_requests_have_these_strings_to_sign() {
        let vectors: Value =
            serde_json::from_str(include_str!("../../../tests/vectors/rolesanywhere.json")).unwrap();
        for vector in ["vectors", "extra"].iter().flat_map(|key| vectors[*key].as_array().unwrap()) {
            let request = &vector["request"];
            let sent = request["headers"].as_array().unwrap();
            let names = vector["signed_headers"].as_array().unwrap();
            let headers: Vec<(&'static str, String)> = names
                .iter()
                .map(|name| {
                    let name = name.as_str().unwrap();
                    let header =
                        sent.iter().find(|header| header[0].as_str().unwrap().eq_ignore_ascii_case(name));
                    (&*name.to_owned().leak(), header.unwrap()[1].as_str().unwrap().to_owned())
                })
                .collect();
            let query = request["target"].as_str().unwrap().split_once('?').unwrap().1;
            let canonical = canonical_request(PATH, query, &headers, request["body"].as_str().unwrap());
            assert_eq!(canonical, vector["canonical_request"], "{}", vector["name"]);
            let date = headers.iter().find(|(name, _)| *name == "x-amz-date").unwrap().1.clone();
            let region = vector["options"]["trust_anchor_arn"].as_str().unwrap().split(':').nth(3).unwrap();
            let algorithm = vector["algorithm"].as_str().unwrap();
            let to_sign = string_to_sign(algorithm, &date, region, &canonical);
            assert_eq!(to_sign, vector["string_to_sign"], "{}", vector["name"]);
        }
    }

    #[test]
    fn the_request_is_complete() {
        let vectors: Value =
            serde_json::from_str(include_str!("../../../tests/vectors/rolesanywhere.json")).unwrap();
        let pem = vectors["vectors"][0]["certificate_pem"].as_str().unwrap();
        let now: Timestamp = "2026-11-25T20:00:05.5Z".parse().unwrap();
        let identity = ClientIdentity::new(pem.as_bytes(), pem.as_bytes(), now).unwrap();
        let option: RolesAnywhere = "anchor=arn:aws:rolesanywhere:eu-west-1:123456789012:trust-anchor/a,\
             profile=arn:aws:rolesanywhere:eu-west-1:123456789012:profile/p,role=arn:aws:iam::123456789012:role/r"
            .parse()
            .unwrap();
        let request = create_session(&option, &identity, "host:1", PATH, now).unwrap();
        let names: Vec<&str> = request.headers.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["content-type", "host", "x-amz-date", "x-amz-x509", "authorization"]);
        assert_eq!(request.headers[2].1.expose_secret(), "20261125T200005Z");
        let authorization = request.headers[4].1.expose_secret();
        let start = "AWS4-X509-ECDSA-SHA256 Credential=323842314424884351062436232024062594960/20261125/eu-west-1/\
                     rolesanywhere/aws4_request, SignedHeaders=content-type;host;x-amz-date;x-amz-x509, Signature=30";
        assert!(authorization.starts_with(start), "{authorization}");
        assert_eq!(
            request.body,
            r#"{"durationSeconds":900,"profileArn":"arn:aws:rolesanywhere:eu-west-1:123456789012:profile/p","roleArn":"arn:aws:iam::123456789012:role/r","trustAnchorArn":"arn:aws:rolesanywhere:eu-west-1:123456789012:trust-anchor/a"}"#
        );
    }
}
