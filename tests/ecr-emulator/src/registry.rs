//! A registry that holds one tiny image under every name, for whoever has a good token.

use crate::{
    Api,
    server::{Asked, refuse, respond},
    signature::sha256_hex,
    world::World,
};
use axum::{
    http::{HeaderName, HeaderValue, header::WWW_AUTHENTICATE},
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};

/// An image of nothing: configuration and layer are both the two bytes `{}`.
const MANIFEST: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2}]}"#;

/// Who asks.
enum Caller {
    /// Somebody with a good token.
    Known,
    /// Somebody whom the token service has given a token without a password: good for `public/` alone.
    Anybody,
}

/// Answers `/v2/`, every manifest, and `/token`.
///
/// The first part of a repository's name says what is wrong with it: `missing/`, `forbidden/`, `moved/`; `echo/` refuses and
/// repeats what it was sent. `public/` is open to whoever has a bearer token, and `open/` to everybody.
pub(crate) fn answer(world: &World, asked: &Asked) -> Response {
    let path = asked.parts.uri.path();
    if path == "/token" {
        return lend(world, asked);
    }
    let repository = path.strip_prefix("/v2/").unwrap_or_default();
    match caller(world, asked.header("authorization")) {
        None if !repository.starts_with("open/") => return challenge(world, asked),
        Some(Caller::Anybody) if !repository.is_empty() && !repository.starts_with("public/") => {
            return challenge(world, asked);
        }
        _ => {}
    }
    let mut answer = match repository.split('/').next() {
        Some("missing") => {
            refuse(Api::Registry, 404, "NAME_UNKNOWN", "repository name not known to registry")
        }
        Some("forbidden") => refuse(Api::Registry, 403, "DENIED", "Your authorization token has expired."),
        Some("echo") => refuse(Api::Registry, 403, "DENIED", asked.header("authorization")),
        Some("moved") => {
            let mut answer = respond(307, "text/plain", "");
            let elsewhere = HeaderValue::from_static("/v2/open/elsewhere/manifests/latest");
            answer.headers_mut().insert(axum::http::header::LOCATION, elsewhere);
            answer
        }
        Some("") | None => respond(200, "application/json", "{}"),
        Some(_) => {
            let mut answer = respond(200, "application/vnd.oci.image.manifest.v1+json", MANIFEST);
            let digest = format!("sha256:{}", sha256_hex(MANIFEST.as_bytes()));
            if let Ok(digest) = HeaderValue::try_from(digest) {
                answer.headers_mut().insert(HeaderName::from_static("docker-content-digest"), digest);
            }
            answer
        }
    };
    let version = HeaderName::from_static("docker-distribution-api-version");
    answer.headers_mut().insert(version, HeaderValue::from_static("registry/2.0"));
    answer
}

fn caller(world: &World, header: &str) -> Option<Caller> {
    let known = |password: String| world.admits(&password).then_some(Caller::Known);
    match (header.strip_prefix("Bearer "), &world.options.registry_realm) {
        (Some(token), Some(_)) => match world.bearer(token)? {
            nobodys if nobodys.is_empty() => Some(Caller::Anybody),
            password => known(password),
        },
        (None, None) => known(password(header)?),
        _ => None,
    }
}

/// The token service: a token for a good password, and one for nobody.
fn lend(world: &World, asked: &Asked) -> Response {
    let header = asked.header("authorization");
    let password = password(header);
    if !header.is_empty() && !password.as_ref().is_some_and(|password| world.admits(password)) {
        return refuse(Api::Registry, 401, "UNAUTHORIZED", "authentication required");
    }
    if !asked.parts.uri.query().unwrap_or_default().contains("scope=repository:") {
        return refuse(Api::Registry, 400, "UNSUPPORTED", "no scope");
    }
    let token = world.lend_bearer(password.unwrap_or_default());
    respond(200, "application/json", serde_json::json!({ "token": token, "expires_in": 300 }).to_string())
}

fn challenge(world: &World, asked: &Asked) -> Response {
    let mut answer = refuse(Api::Registry, 401, "UNAUTHORIZED", "authentication required");
    let scheme = if world.options.tls.is_some() { "https" } else { "http" };
    let challenge = match world.options.registry_realm.as_deref() {
        None => format!("Basic realm=\"https://{}/\",service=\"ecr.amazonaws.com\"", asked.host()),
        Some("") => format!("Bearer realm=\"{scheme}://{}/token\",service=\"emulated\"", asked.host()),
        Some(realm) => format!("Bearer realm=\"{realm}\""),
    };
    if let Ok(challenge) = HeaderValue::try_from(challenge) {
        answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    answer
}

/// The password of HTTP basic authentication as user `AWS`.
fn password(header: &str) -> Option<String> {
    let bytes = STANDARD.decode(header.strip_prefix("Basic ")?).ok()?;
    Some(String::from_utf8(bytes).ok()?.strip_prefix("AWS:")?.to_owned())
}
