//! Credentials from beside the workload: the instance metadata service (version 2 only) and the container endpoint.

use crate::{
    Api, Fault, Options,
    server::{Asked, refuse, respond},
    world::World,
};
use axum::{http::HeaderValue, response::Response};
use jiff::SignedDuration;
use serde_json::{Value, json};

/// Where the metadata service lists the instance's role. Newer SDKs ask the path with `-extended` first.
pub(crate) const ROLES: &str = "/latest/meta-data/iam/security-credentials";

/// The request's header and the answer's.
const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";

/// `PUT /latest/api/token`: opens a session of 1 second to 6 hours.
pub(crate) fn session(world: &World, asked: &Asked, fault: Option<&Fault>) -> Response {
    let ttl = asked.header(TTL);
    match ttl.parse() {
        Ok(seconds @ 1..=21_600) => {
            let token = world.open_session(SignedDuration::from_secs(seconds));
            let mut answer = respond(200, "text/plain", token);
            let lifetime = match fault {
                Some(Fault::AbsurdLifetime) => HeaderValue::from_static("18446744073709551615"),
                _ => HeaderValue::from(seconds),
            };
            answer.headers_mut().insert(TTL, lifetime);
            answer
        }
        _ => refuse(
            Api::ImdsSession,
            400,
            "BadRequest",
            &format!("{TTL} is no number from 1 to 21600: {ttl:?}"),
        ),
    }
}

/// The role's name, or its credentials.
pub(crate) fn instance(world: &World, asked: &Asked, fault: Option<&Fault>) -> Response {
    let api = Api::ImdsCredentials;
    if !world.has_session(asked.header("x-aws-ec2-metadata-token")) {
        return unauthorized(api);
    }
    let path = asked.parts.uri.path().strip_prefix(ROLES).unwrap_or_default();
    let role = &world.options.imds_role;
    match path.strip_prefix("-extended").unwrap_or(path).trim_start_matches('/') {
        "" => respond(200, "text/plain", role.clone()),
        name if name == role => {
            let mut answer = json!({
                "Code": "Success",
                "LastUpdated": world.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                "Type": "AWS-HMAC",
                "AccountId": world.options.account,
            });
            add_credentials(&mut answer, world, fault);
            respond(200, "text/plain", format!("{answer:#}"))
        }
        name => refuse(api, 404, "NotFound", &format!("the instance has no role {name:?}, but {role:?}")),
    }
}

/// The region that the instance is in.
pub(crate) fn region(world: &World, asked: &Asked) -> Response {
    if world.has_session(asked.header("x-aws-ec2-metadata-token")) {
        respond(200, "text/plain", world.options.imds_region.clone())
    } else {
        unauthorized(Api::ImdsRegion)
    }
}

/// The container endpoint, of ECS and of EKS Pod Identity alike.
pub(crate) fn container(world: &World, asked: &Asked, fault: Option<&Fault>) -> Response {
    if world.options.container_token.as_deref().is_some_and(|token| token != asked.header("authorization")) {
        return unauthorized(Api::Container);
    }
    let Options { account, imds_role, .. } = &world.options;
    let mut answer =
        json!({ "RoleArn": format!("arn:aws:iam::{account}:role/{imds_role}"), "AccountId": account });
    add_credentials(&mut answer, world, fault);
    respond(200, "application/json", answer.to_string())
}

/// Adds new temporary credentials to `answer`, less what the fault takes out.
fn add_credentials(answer: &mut Value, world: &World, fault: Option<&Fault>) {
    if fault == Some(&Fault::EmptyData) {
        return;
    }
    let lifetime = match fault {
        Some(Fault::ExpiredToken) => SignedDuration::from_hours(-1),
        _ => world.options.credentials_lifetime,
    };
    let lent = world.lend(None, world.now() + lifetime);
    answer["AccessKeyId"] = lent.access_key.into();
    answer["SecretAccessKey"] = lent.secret.into();
    if fault != Some(&Fault::NoToken) {
        answer["Token"] = lent.session_token.into();
    }
    if fault != Some(&Fault::NoExpiry) {
        answer["Expiration"] = lent.expires_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
    }
}

fn unauthorized(api: Api) -> Response {
    refuse(api, 401, "Unauthorized", "The token in the request is missing, unknown or has expired.")
}
