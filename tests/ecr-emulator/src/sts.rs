//! `AssumeRole` and `AssumeRoleWithWebIdentity`: forms in, XML out.

use crate::{
    Api, Fault,
    server::{Asked, refuse, respond},
    signature::verify,
    world::{World, random_id, random_request_id},
};
use axum::response::Response;
use jiff::SignedDuration;

/// Answers `api`, which is [`Api::AssumeRole`] or [`Api::WebIdentity`].
pub(crate) fn answer(world: &World, api: Api, asked: &Asked, fault: Option<&Fault>) -> Response {
    if api == Api::AssumeRole {
        if let Err(denial) = verify(world, asked, "sts") {
            let (status, code, message) = denial.describe(api);
            return refuse(api, status, code, &message);
        }
    } else if asked.field("WebIdentityToken") != world.options.web_identity_token {
        let message =
            "The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)";
        return refuse(api, 400, "InvalidIdentityToken", message);
    }
    let role = asked.field("RoleArn");
    let session = asked.field("RoleSessionName");
    let Some((account, name)) = account_and_name(&role).filter(|_| !session.is_empty()) else {
        return refuse(
            api,
            400,
            "ValidationError",
            &format!("{role} is invalid, or there is no RoleSessionName"),
        );
    };
    let lifetime = match fault {
        Some(Fault::ExpiredToken) => SignedDuration::from_hours(-1),
        // From 15 minutes to 12 hours; an hour unless told.
        _ => SignedDuration::from_secs(
            asked.field("DurationSeconds").parse().unwrap_or(3600).clamp(900, 43_200),
        ),
    };
    let lent = world.lend(Some(role.clone()), world.now() + lifetime);

    let tag = |name: &str, text: &str| format!("<{name}>{}</{name}>", escape(text));
    let unless = |hidden: Fault, element: String| {
        if fault == Some(&hidden) { String::new() } else { element }
    };
    let credentials = [
        tag("AccessKeyId", &lent.access_key),
        tag("SecretAccessKey", &lent.secret),
        unless(Fault::NoToken, tag("SessionToken", &lent.session_token)),
        unless(
            Fault::NoExpiry,
            tag("Expiration", &lent.expires_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        ),
    ]
    .concat();
    let credentials = unless(Fault::EmptyData, format!("<Credentials>{credentials}</Credentials>"));
    let user = tag("AssumedRoleId", &format!("AROA{}:{session}", random_id(16)))
        + &tag("Arn", &format!("arn:aws:sts::{account}:assumed-role/{name}/{session}"));
    let action = asked.field("Action");
    respond(
        200,
        "text/xml",
        format!(
            "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n  <{action}Result>\n    \
             <AssumedRoleUser>{user}</AssumedRoleUser>\n    {credentials}\n  </{action}Result>\n  \
             <ResponseMetadata>{}</ResponseMetadata>\n</{action}Response>\n",
            tag("RequestId", &random_request_id()),
        ),
    )
}

/// An error as the query API gives it.
pub(crate) fn error(status: u16, code: &str, message: &str) -> Response {
    let side = if status < 500 { "Sender" } else { "Receiver" };
    respond(
        status,
        "text/xml",
        format!(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n  <Error>\n    <Type>{side}</Type>\n    \
             <Code>{}</Code>\n    <Message>{}</Message>\n  </Error>\n  <RequestId>{}</RequestId>\n</ErrorResponse>\n",
            escape(code),
            escape(message),
            random_request_id(),
        ),
    )
}

/// The two parts of `arn:aws:iam::ACCOUNT:role/NAME` that the answer repeats. A path before the name is left out.
fn account_and_name(role: &str) -> Option<(&str, &str)> {
    let (account, path) = role.strip_prefix("arn:")?.split_once(":iam::")?.1.split_once(":role/")?;
    Some((account, path.rsplit('/').next()?)).filter(|(_, name)| !name.is_empty())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
