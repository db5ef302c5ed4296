//! STS: roles that are assumed with credentials, and roles that a web identity token opens.

use super::{Context, Obtained, key};
use crate::ecr::config::Service;
use crate::ecr::credentials::source::WebIdentity;
use crate::ecr::refusal::{AnswerError, Refusal};
use crate::ecr::registry::{ParseRoleArnError, Region, RoleArn};
use crate::ecr::sdk::sdk_config;
use crate::ecr::sdk_error::{Call, refusal};
use crate::report::redact::{redact, redact_known, remember, shown_path};
use crate::time::clock;
use aws_sdk_sts::types::AssumedRoleUser;

/// A token of a Kubernetes service account has about 1,200 characters.
const MAX_TOKEN: u64 = 64 * 1024;
/// The longest ARN has 2,048 characters.
const LONGEST_ARN: usize = 2048;

/// Assumes a role with credentials.
///
/// # Errors
/// When STS refuses, or cannot be reached.
pub async fn assume(
    context: Context<'_>,
    role: &RoleArn,
    session_name: Option<&str>,
    external_id: Option<&str>,
    with: &Obtained,
) -> Result<Obtained, Refusal> {
    let region = region(context)?;
    let credentials = Some(with.credentials.clone());
    let (sdk, service) =
        sdk_config(context.http, context.config, Service::Sts, region, credentials, (false, false))?;
    let needs = format!("sts:AssumeRole on {role}, whose trust policy must allow it too");
    let answer = aws_sdk_sts::Client::new(&sdk)
        .assume_role()
        .role_arn(role.as_str())
        .role_session_name(session_name.unwrap_or(context.session_name))
        .set_external_id(external_id.map(str::to_owned))
        .send()
        .await;
    let call = Call { service: &service, needs: &needs };
    let answer = answer.map_err(|error| refusal(&error, &call, clock::now()))?;
    let credentials = answer.credentials.ok_or(AnswerError::NoRoleCredentials)?;
    obtained(&credentials, answer.assumed_role_user, with.source.clone())
}

/// Exchanges a web identity token for credentials of a role.
///
/// # Errors
/// When the token cannot be read, STS refuses it, or STS cannot be reached.
pub async fn web_identity(context: Context<'_>, identity: &WebIdentity) -> Result<Obtained, Refusal> {
    let WebIdentity { origin, token_file, role, session_name } = identity;
    let failed = |problem: &str, passing| Refusal::NoCredentials {
        reason: format!("the token file {} {problem}", shown_path(token_file)),
        passing,
    };
    let token = context.reader.read(token_file, MAX_TOKEN).await;
    let token = token.map_err(|error| failed(&error.to_string(), error.is_passing()))?;
    let token = std::str::from_utf8(&token).unwrap_or_default().trim();
    if token.is_empty() {
        return Err(failed("holds no token", false));
    }
    remember(token);
    let role = role_arn(role)?;
    exchange(context, token, &role, session_name.as_deref(), origin).await
}

/// Exchanges a web identity token, which is at hand, for credentials of a role. `origin` says where both come from.
///
/// # Errors
/// When STS refuses the token, or cannot be reached.
pub async fn exchange(
    context: Context<'_>,
    token: &str,
    role: &RoleArn,
    session_name: Option<&str>,
    origin: &str,
) -> Result<Obtained, Refusal> {
    remember(token);
    let region = region(context)?;
    let (sdk, service) =
        sdk_config(context.http, context.config, Service::Sts, region, None, (false, false))?;
    let needs = format!(
        "sts:AssumeRoleWithWebIdentity on {role}, whose trust policy must allow this service account"
    );
    let answer = aws_sdk_sts::Client::new(&sdk)
        .assume_role_with_web_identity()
        .role_arn(role.as_str())
        .role_session_name(session_name.unwrap_or(context.session_name))
        .web_identity_token(token)
        .send()
        .await;
    let call = Call { service: &service, needs: &needs };
    let answer = answer.map_err(|error| refusal(&error, &call, clock::now()))?;
    let credentials = answer.credentials.ok_or(AnswerError::NoRoleCredentials)?;
    obtained(&credentials, answer.assumed_role_user, origin.to_owned())
}

/// The role that a variable or a profile names.
///
/// # Errors
/// When it is no ARN of a role.
pub fn role_arn(text: &str) -> Result<RoleArn, Refusal> {
    text.parse()
        .map_err(|error: ParseRoleArnError| Refusal::no_credentials(&redact(&error.to_string(), LONGEST_ARN)))
}

fn obtained(
    credentials: &aws_sdk_sts::types::Credentials,
    user: Option<AssumedRoleUser>,
    source: String,
) -> Result<Obtained, Refusal> {
    let token = Some(credentials.session_token.as_str());
    let credentials = key::access_key(&credentials.access_key_id, &credentials.secret_access_key, token)
        .map_err(|error| Refusal::no_credentials(&format!("the credentials of STS: {error}")))?;
    let role = user.map(|user| redact_known(&user.arn, LONGEST_ARN));
    Ok(Obtained { credentials, source, role })
}

fn region(context: Context<'_>) -> Result<&Region, Refusal> {
    context.region.ok_or_else(|| Refusal::NoRegion {
        reason: "STS is asked for a role, in the region of --region, AWS_REGION or the profile: set one"
            .to_owned(),
        passing: false,
    })
}
