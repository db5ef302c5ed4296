//! Signature Version 4, seen from the server.
//!
//! Rules: <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>. Only the parts
//! that header-signed requests to `/` need; messages are the ones that AWS gives.

use crate::{
    Api,
    server::Asked,
    world::{Key, World},
};
use jiff::{SignedDuration, Timestamp, civil::DateTime, tz::Offset};
use ring::{digest, hmac};
use std::fmt::Write as _;

/// How old, or how early, a signature may be.
const TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

/// What an `Authorization` header says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Authorization<'a> {
    pub(crate) access_key: &'a str,
    /// `yyyymmdd`.
    pub(crate) date: &'a str,
    pub(crate) region: &'a str,
    pub(crate) service: &'a str,
    /// Names of headers, joined by `;`.
    pub(crate) signed_headers: &'a str,
    /// 64 hexadecimal digits.
    pub(crate) signature: &'a str,
}

impl<'a> Authorization<'a> {
    /// Takes the header's value apart; `None` when a part is missing or malformed.
    pub(crate) fn parse(header: &'a str) -> Option<Self> {
        let parameters = header.strip_prefix("AWS4-HMAC-SHA256 ")?;
        let parameter = |name: &str| {
            parameters.split(',').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='))
        };
        let signature = parameter("Signature")?;
        let signed_headers = parameter("SignedHeaders")?;
        let mut scope = parameter("Credential")?.split('/');
        let [access_key, date, region, service] =
            [scope.next()?, scope.next()?, scope.next()?, scope.next()?];
        let well_formed = scope.eq(["aws4_request"])
            && ![access_key, region, service, signed_headers].contains(&"")
            && date.len() == 8
            && date.bytes().all(|byte| byte.is_ascii_digit())
            && signature.len() == 64
            && signature.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        well_formed.then_some(Self { access_key, date, region, service, signed_headers, signature })
    }
}

/// Who asked, after every check has passed.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) region: String,
    /// The role behind the access key, if STS handed it out.
    pub(crate) role: Option<String>,
}

/// Why a signed request is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Denial {
    /// No `Authorization` header at all.
    Missing,
    /// The header, or one that it needs, is malformed.
    Incomplete(String),
    /// The access key or the session token is not one of ours.
    Unknown,
    /// The credentials were ours, and have expired.
    Expired,
    /// Wrong scope, wrong time or wrong signature.
    Invalid(String),
}

impl Denial {
    /// Status, code and message, in the words of the API: JSON services and the query API of STS differ.
    pub(crate) fn describe(self, api: Api) -> (u16, &'static str, String) {
        let json = matches!(api, Api::Ecr | Api::EcrPublic);
        let pick = |for_json, for_query| if json { (400, for_json) } else { for_query };
        let ((status, code), message) = match self {
            Self::Missing => (
                pick("MissingAuthenticationTokenException", (403, "MissingAuthenticationToken")),
                "Missing Authentication Token".to_owned(),
            ),
            Self::Incomplete(message) => {
                (pick("IncompleteSignatureException", (400, "IncompleteSignature")), message)
            }
            Self::Unknown => (
                pick("UnrecognizedClientException", (403, "InvalidClientTokenId")),
                "The security token included in the request is invalid.".to_owned(),
            ),
            Self::Expired => (
                pick("ExpiredTokenException", (403, "ExpiredToken")),
                "The security token included in the request is expired".to_owned(),
            ),
            Self::Invalid(message) => {
                (pick("InvalidSignatureException", (403, "SignatureDoesNotMatch")), message)
            }
        };
        (status, code, message)
    }
}

/// Checks a request that has to be signed for `service`.
///
/// # Errors
/// With the first thing that is wrong, in the order in which AWS looks.
pub(crate) fn verify(world: &World, asked: &Asked, service: &str) -> Result<Caller, Denial> {
    let header = asked.header("authorization");
    if header.is_empty() {
        return Err(Denial::Missing);
    }
    let authorization = Authorization::parse(header).ok_or_else(|| {
        Denial::Incomplete(format!(
            "Authorization header is not a well-formed AWS4-HMAC-SHA256 one: it has {header:?}"
        ))
    })?;
    let signs = |name| authorization.signed_headers.split(';').any(|signed| signed == name);
    if !signs("host") || !signs("x-amz-date") {
        return Err(Denial::Invalid(
            "'Host' or ':authority' and 'x-amz-date' must be 'SignedHeader's in the AWS Authorization."
                .to_owned(),
        ));
    }
    if authorization.service != service {
        return Err(Denial::Invalid(format!(
            "Credential should be scoped to correct service: '{service}'. "
        )));
    }
    if service == "ecr-public" && authorization.region != "us-east-1" {
        return Err(Denial::Invalid("Credential should be scoped to a valid region. ".to_owned()));
    }
    let key = world.key(authorization.access_key).ok_or(Denial::Unknown)?;
    check_time(asked.header("x-amz-date"), authorization.date, world.now())?;
    check_session(&key, asked.header("x-amz-security-token"), world.now())?;
    if sign(&key.secret, &authorization, asked) != authorization.signature {
        return Err(Denial::Invalid(
            "The request signature we calculated does not match the signature you provided. Check your AWS Secret \
             Access Key and signing method. Consult the service documentation for details."
                .to_owned(),
        ));
    }
    Ok(Caller { region: authorization.region.to_owned(), role: key.role })
}

/// The signing time must be the scope's date, and near `now`.
fn check_time(stamp: &str, date: &str, now: Timestamp) -> Result<(), Denial> {
    let signed_at = parse_stamp(stamp).ok_or_else(|| {
        Denial::Incomplete(format!("Date must be in ISO-8601 'basic format'. Got '{stamp}'. See http://en.wikipedia.org/wiki/ISO_8601"))
    })?;
    if !stamp.starts_with(date) {
        let day = stamp.get(..8).unwrap_or_default();
        return Err(Denial::Invalid(format!(
            "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{date}' != \
             '{day}', from '{stamp}'."
        )));
    }
    let (oldest, newest) = (now - TOLERANCE, now + TOLERANCE);
    let now = format_stamp(now);
    if signed_at < oldest {
        let oldest = format_stamp(oldest);
        return Err(Denial::Invalid(format!(
            "Signature expired: {stamp} is now earlier than {oldest} ({now} - 5 min.)"
        )));
    }
    if signed_at > newest {
        let newest = format_stamp(newest);
        return Err(Denial::Invalid(format!(
            "Signature not yet current: {stamp} is still later than {newest} ({now} + 5 min.)"
        )));
    }
    Ok(())
}

/// Temporary credentials are three things, and only the three together are good, for a while.
fn check_session(key: &Key, session_token: &str, now: Timestamp) -> Result<(), Denial> {
    if key.session_token.as_deref().unwrap_or_default() != session_token {
        return Err(Denial::Unknown);
    }
    if key.expires_at.is_some_and(|end| end <= now) {
        return Err(Denial::Expired);
    }
    Ok(())
}

/// The canonical form of a request, for the headers that are signed: names in lower case, separated by semicolons.
pub(crate) fn canonical_request(asked: &Asked, signed_headers: &str) -> String {
    let mut query: Vec<_> = asked.parts.uri.query().unwrap_or_default().split('&').collect();
    query.sort_unstable();
    let headers: Vec<_> = signed_headers
        .split(';')
        .map(|name| {
            let values = asked.parts.headers.get_all(name).iter().map(|value| {
                let words: Vec<_> = value.to_str().unwrap_or_default().split_whitespace().collect();
                words.join(" ")
            });
            format!("{name}:{}\n", values.collect::<Vec<_>>().join(","))
        })
        .collect();
    format!(
        "{}\n{}\n{}\n{}\n{signed_headers}\n{}",
        asked.parts.method,
        asked.parts.uri.path(),
        query.join("&"),
        headers.concat(),
        sha256_hex(&asked.body),
    )
}

/// The signature that a holder of `secret` gives this request in this scope.
pub(crate) fn sign(secret: &str, authorization: &Authorization<'_>, asked: &Asked) -> String {
    let Authorization { date, region, service, signed_headers, .. } = authorization;
    let canonical = canonical_request(asked, signed_headers);
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{}\n{date}/{region}/{service}/aws4_request\n{}",
        asked.header("x-amz-date"),
        sha256_hex(canonical.as_bytes()),
    );
    let key = [*date, *region, *service, "aws4_request", &to_sign]
        .iter()
        .fold(format!("AWS4{secret}").into_bytes(), |key, part| {
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), part.as_bytes()).as_ref().to_vec()
        });
    hex(&key)
}

/// `20261123T100000Z`, or `None` when `text` has another form.
pub(crate) fn parse_stamp(text: &str) -> Option<Timestamp> {
    // jiff would also take a day of one digit.
    (text.len() == 16).then_some(())?;
    let at = DateTime::strptime("%Y%m%dT%H%M%SZ", text).ok()?;
    Offset::UTC.to_timestamp(at).ok()
}

/// The form of `X-Amz-Date`: `20261123T100000Z`.
pub(crate) fn format_stamp(at: Timestamp) -> String {
    at.strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// SHA-256 in lower-case hexadecimal digits.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        write!(text, "{byte:02x}").unwrap_or_default();
        text
    })
}
