//! `GetAuthorizationToken`, private and public.

use crate::{
    Api, Fault,
    server::{Asked, refuse, respond},
    signature::{Caller, verify},
    world::World,
};
use axum::response::Response;
use jiff::SignedDuration;
use serde_json::{Map, Value, json};

/// Answers `api`, which is [`Api::Ecr`] or [`Api::EcrPublic`].
pub(crate) fn answer(world: &World, api: Api, asked: &Asked, fault: Option<&Fault>) -> Response {
    let service = if api == Api::Ecr { "ecr" } else { "ecr-public" };
    let caller = match verify(world, asked, service) {
        Ok(caller) => caller,
        Err(denial) => {
            let (status, code, message) = denial.describe(api);
            return refuse(api, status, code, &message);
        }
    };
    let empty = fault == Some(&Fault::EmptyData);
    let data = match api {
        Api::Ecr if empty => json!({ "authorizationData": [] }),
        Api::Ecr => json!({ "authorizationData": [data(world, api, caller, fault)] }),
        _ if empty => json!({}),
        _ => json!({ "authorizationData": data(world, api, caller, fault) }),
    };
    respond(200, "application/x-amz-json-1.1", data.to_string())
}

/// One entry of `authorizationData`, with a token that nobody has seen before.
fn data(world: &World, api: Api, caller: Caller, fault: Option<&Fault>) -> Map<String, Value> {
    let lifetime = match fault {
        Some(Fault::ExpiredToken) => SignedDuration::from_hours(-1),
        _ => world.options.token_lifetime,
    };
    let user = if fault == Some(&Fault::TokenWithoutColon) { "" } else { "AWS:" };
    let endpoint = proxy_endpoint(&world.options.account, &caller.region);
    let issued = world.issue(user, &caller.region, caller.role, world.now() + lifetime);

    let mut data = Map::new();
    let token = match fault {
        Some(Fault::TokenNotBase64) => format!("!{}", issued.token_base64),
        _ => issued.token_base64,
    };
    if fault != Some(&Fault::NoToken) {
        data.insert("authorizationToken".to_owned(), token.into());
    }
    if fault != Some(&Fault::NoExpiry) {
        data.insert("expiresAt".to_owned(), issued.expires_at.as_duration().as_secs_f64().into());
    }
    match fault {
        _ if api == Api::EcrPublic => None,
        Some(Fault::NoProxyEndpoint) => None,
        Some(Fault::EvilProxyEndpoint(text)) => Some(text.clone()),
        _ => Some(endpoint),
    }
    .and_then(|endpoint| data.insert("proxyEndpoint".to_owned(), endpoint.into()));
    data
}

/// The registry's address; its suffix goes by the region's partition.
fn proxy_endpoint(account: &str, region: &str) -> String {
    let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    format!("https://{account}.dkr.ecr.{region}.{suffix}")
}
