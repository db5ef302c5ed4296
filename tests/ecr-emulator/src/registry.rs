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

/// Answers `/v2/` and every manifest.
pub(crate) fn answer(world: &World, asked: &Asked) -> Response {
    if !password(asked.header("authorization")).is_some_and(|password| world.admits(&password)) {
        let mut answer = refuse(Api::Registry, 401, "UNAUTHORIZED", "authentication required");
        let challenge = format!("Basic realm=\"https://{}/\",service=\"ecr.amazonaws.com\"", asked.host());
        if let Ok(challenge) = HeaderValue::try_from(challenge) {
            answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        return answer;
    }
    let mut answer = if asked.parts.uri.path().contains("/manifests/") {
        let mut answer = respond(200, "application/vnd.oci.image.manifest.v1+json", MANIFEST);
        let digest = format!("sha256:{}", sha256_hex(MANIFEST.as_bytes()));
        if let Ok(digest) = HeaderValue::try_from(digest) {
            answer.headers_mut().insert(HeaderName::from_static("docker-content-digest"), digest);
        }
        answer
    } else {
        respond(200, "application/json", "{}")
    };
    let version = HeaderName::from_static("docker-distribution-api-version");
    answer.headers_mut().insert(version, HeaderValue::from_static("registry/2.0"));
    answer
}

/// The password of HTTP basic authentication as user `AWS`.
fn password(header: &str) -> Option<String> {
    let bytes = STANDARD.decode(header.strip_prefix("Basic ")?).ok()?;
    Some(String::from_utf8(bytes).ok()?.strip_prefix("AWS:")?.to_owned())
}
