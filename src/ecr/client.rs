//! The calls to AWS: a role to assume, a token to fetch. One call, one answer; who calls again is not decided here.

use super::credentials::{self, timeouts};
use super::http::{Http, Trust, TrustError};
use super::refusal::{Ago, AnswerError, Refusal, refusal};
use super::registry::{Endpoint, Region, RoleArn, TokenSource, host_of_proxy_endpoint};
use super::token::{AuthorizationToken, Token};
use crate::clock;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_types::retry::RetryConfig;
use aws_types::service_config::ServiceConfigKey;
use jiff::Timestamp;
use secrecy::SecretString;
use std::path::PathBuf;

const GET_TOKEN: &str = "ecr:GetAuthorizationToken on \"*\"";
const GET_PUBLIC_TOKEN: &str = "ecr-public:GetAuthorizationToken and sts:GetServiceBearerToken on \"*\"";

/// Who asks, and from where.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The region of the default registry; the SDK's chain where there is none.
    pub region: Option<Region>,
    /// A mounted Secret with credentials; the SDK's chain where there is none.
    pub credentials_dir: Option<PathBuf>,
    /// Whose certificates to accept.
    pub trust: Trust,
    /// What a role session is called, so that CloudTrail tells which node asked.
    pub session_name: String,
}

/// The caller's credentials, good for the calls of one refresh.
#[derive(Clone)]
pub struct Caller(Credentials);

/// AWS, as far as a refresh needs it.
#[derive(Debug)]
pub struct Ecr {
    identity: Identity,
    http: Http,
}

impl Ecr {
    /// Makes ready to ask; asks nothing yet.
    ///
    /// # Errors
    /// When the certificates to trust cannot be read.
    pub fn new(identity: Identity) -> Result<Self, TrustError> {
        let http = Http::new(&identity.trust)?;
        Ok(Self { identity, http })
    }

    /// The region of the default registry.
    ///
    /// # Errors
    /// When none is given, and the SDK's chain names none.
    pub async fn default_region(&self) -> Result<Region, Refusal> {
        match &self.identity.region {
            Some(region) => Ok(region.clone()),
            None => credentials::region(&self.http).await,
        }
    }

    /// Finds the caller's credentials. `region` is where STS is asked, if it must be.
    ///
    /// # Errors
    /// When there are none, or they are refused.
    pub async fn caller(&self, region: Option<&Region>) -> Result<Caller, Refusal> {
        let directory = self.identity.credentials_dir.as_deref();
        credentials::resolve(&self.http, directory, region, clock::now()).await.map(Caller)
    }

    /// Fetches one token, after assuming the source's role if it has one.
    ///
    /// # Errors
    /// When there is no token that the kubelet could use from now on.
    pub async fn token(&self, source: &TokenSource, caller: &Caller) -> Result<Token, Refusal> {
        let mut credentials = caller.0.clone();
        if let Some(role) = &source.role {
            let config = self.sdk_config(&source.region, credentials).await;
            credentials = self.assume(role, &config).await?;
        }
        let config = self.sdk_config(&source.region, credentials).await;
        match source.endpoint {
            Endpoint::Private { fips, dual_stack } => private_token(&config, fips, dual_stack).await,
            Endpoint::Public => public_token(&config).await,
        }
    }

    async fn assume(&self, role: &RoleArn, config: &SdkConfig) -> Result<Credentials, Refusal> {
        let call = aws_sdk_sts::Client::new(config).assume_role();
        let answer = call.role_arn(role.as_str()).role_session_name(&self.identity.session_name).send().await;
        let needs = format!("sts:AssumeRole on {role}, whose trust policy must allow it too");
        let answer = answer.map_err(|error| refusal(&error, &needs, clock::now()))?;
        let role = answer.credentials.ok_or(AnswerError::NoRoleCredentials)?;
        Ok(Credentials::new(
            role.access_key_id,
            role.secret_access_key,
            Some(role.session_token),
            None,
            "role",
        ))
    }

    async fn sdk_config(&self, region: &Region, credentials: Credentials) -> SdkConfig {
        aws_config::defaults(BehaviorVersion::latest())
            .http_client(self.http.for_apis())
            .region(aws_config::Region::new(region.as_str().to_owned()))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            // Ours is the only loop that tries again.
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts())
            .load()
            .await
    }
}

async fn private_token(config: &SdkConfig, fips: bool, dual_stack: bool) -> Result<Token, Refusal> {
    let mut ecr = aws_sdk_ecr::config::Builder::from(config);
    // An endpoint of the user's own is asked as it is: the SDK refuses it together with these.
    if !has_own_endpoint(config) {
        ecr.set_use_fips(fips.then_some(true).or(config.use_fips()));
        ecr.set_use_dual_stack(dual_stack.then_some(true).or(config.use_dual_stack()));
    }
    let answer = aws_sdk_ecr::Client::from_conf(ecr.build()).get_authorization_token().send().await;
    let now = clock::now();
    let answer = answer.map_err(|error| refusal(&error, GET_TOKEN, now))?;
    let data = answer.authorization_data.unwrap_or_default().into_iter().next().ok_or(AnswerError::NoData)?;
    let registry = data.proxy_endpoint.as_deref().and_then(host_of_proxy_endpoint);
    token(data.authorization_token, data.expires_at, registry, now)
}

async fn public_token(config: &SdkConfig) -> Result<Token, Refusal> {
    let answer = aws_sdk_ecrpublic::Client::new(config).get_authorization_token().send().await;
    let now = clock::now();
    let answer = answer.map_err(|error| refusal(&error, GET_PUBLIC_TOKEN, now))?;
    let data = answer.authorization_data.ok_or(AnswerError::NoData)?;
    token(data.authorization_token, data.expires_at, None, now)
}

fn token(
    text: Option<String>,
    expires_at: Option<aws_smithy_types::DateTime>,
    registry: Option<String>,
    now: Timestamp,
) -> Result<Token, Refusal> {
    let text = text.map(SecretString::from).ok_or(AnswerError::NoToken)?;
    let authorization = AuthorizationToken::new(text).map_err(AnswerError::Token)?;
    let expires_at =
        expires_at.and_then(|at| Timestamp::new(at.secs(), 0).ok()).ok_or(AnswerError::NoExpiry)?;
    if expires_at <= now {
        return Err(AnswerError::Expired(Ago(now.duration_since(expires_at).as_secs())).into());
    }
    Ok(Token { authorization, expires_at, fetched_at: now, registry })
}

/// Whether the environment or the profile names an endpoint for ECR (`AWS_ENDPOINT_URL_ECR`, `AWS_ENDPOINT_URL`).
fn has_own_endpoint(config: &SdkConfig) -> bool {
    let key =
        ServiceConfigKey::builder().service_id("ecr").env("AWS_ENDPOINT_URL").profile("endpoint_url").build();
    let named = key.ok().zip(config.service_config()).and_then(|(key, config)| config.load_config(key));
    named.is_some() || config.endpoint_url().is_some()
}
