//! The calls to AWS: a role to assume, a token to fetch. One call, one answer; who calls again is not decided here.

use super::credentials::{self, timeouts};
use super::http::{Http, Trust, TrustError};
use super::refusal::{Ago, AnswerError, Refusal, first_line, refusal};
use super::registry::{Endpoint, Region, RoleArn, TokenSource, host_of_proxy_endpoint};
use super::token::{AuthorizationToken, Token};
use crate::time::clock;
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
        let home = self.home_region().await?;
        credentials::resolve(&self.http, directory, home.as_ref().or(region), clock::now()).await.map(Caller)
    }

    /// The region that this node is configured for, where STS is asked: that of a registry may be one whose STS is
    /// switched off, or out of reach.
    async fn home_region(&self) -> Result<Option<Region>, Refusal> {
        match &self.identity.region {
            Some(region) => Ok(Some(region.clone())),
            None => credentials::configured_region(&self.http).await,
        }
    }

    /// Fetches one token, after assuming the source's role if it has one.
    ///
    /// # Errors
    /// When there is no token that the kubelet could use from now on.
    pub async fn token(&self, source: &TokenSource, caller: &Caller) -> Result<Token, Refusal> {
        let mut credentials = caller.0.clone();
        if let Some(role) = &source.role {
            let home = self.home_region().await?;
            let config = self.sdk_config(home.as_ref().unwrap_or(&source.region), credentials).await;
            credentials = self.assume(role, &config).await?;
        }
        let config = self.sdk_config(&source.region, credentials).await;
        let token = match source.endpoint {
            Endpoint::Private { fips, dual_stack } => private_token(&config, fips, dual_stack).await,
            Endpoint::Public => public_token(&config).await,
        };
        token.map_err(|refusal| match refusal {
            // Whether the name is wrong or the network is not up yet, the resolver does not say.
            Refusal::Unavailable { said } if said.contains("dns error") => {
                Refusal::Unavailable { said: format!("{said} (is `{}` a region of AWS's?)", source.region) }
            }
            refusal => refusal,
        })
    }

    async fn assume(&self, role: &RoleArn, config: &SdkConfig) -> Result<Credentials, Refusal> {
        own_endpoint(config, "sts")?;
        let call = aws_sdk_sts::Client::new(config).assume_role();
        let answer = call.role_arn(role.as_str()).role_session_name(&self.identity.session_name).send().await;
        let needs = format!("sts:AssumeRole on {role}, whose trust policy must allow it too");
        let answer = answer.map_err(|error| refusal(&error, &needs, clock::now()))?;
        let role = answer.credentials.ok_or(AnswerError::NoRoleCredentials)?;
        let token = Some(role.session_token);
        credentials::checked(Credentials::new(
            role.access_key_id,
            role.secret_access_key,
            token,
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
    if own_endpoint(config, "ecr")?.is_none() {
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
    own_endpoint(config, "ecr public")?;
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

/// The endpoint that the environment or the profile names for a service (`AWS_ENDPOINT_URL_ECR`, `AWS_ENDPOINT_URL`).
///
/// # Errors
/// When it is no URL: the SDK panics on an empty one, and shows the whole request for others.
fn own_endpoint(config: &SdkConfig, service: &'static str) -> Result<Option<String>, Refusal> {
    let key = ServiceConfigKey::builder()
        .service_id(service)
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build();
    let named = key.ok().zip(config.service_config()).and_then(|(key, config)| config.load_config(key));
    let named = named.or_else(|| config.endpoint_url().map(str::to_owned));
    match named {
        Some(url) if !is_endpoint(&url) => Err(Refusal::Settings {
            said: format!(
                "the endpoint URL for {service} in the environment or the profile is {}: expected one like `https://HOST`",
                shown_endpoint(&url)
            ),
        }),
        named => Ok(named),
    }
}

/// A wrong endpoint URL as people may see it: not where a user, and perhaps a password, stands in it.
fn shown_endpoint(url: &str) -> String {
    match url {
        "" => "empty".to_owned(),
        url if url.contains('@') => "a URL with a user in it".to_owned(),
        url => format!("`{}`", first_line(url)),
    }
}

/// Whether a text is an HTTP URL with a host, and without a user.
#[must_use]
pub fn is_endpoint(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")).unwrap_or_default();
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let allowed = |byte: u8| byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte);
    let port_is_one = match authority.rsplit_once(':') {
        Some((_, port)) if !port.ends_with(']') => port.parse::<u16>().is_ok(),
        _ => true,
    };
    !authority.is_empty()
        && !authority.starts_with(':')
        && !authority.contains('@')
        && port_is_one
        && url.bytes().all(allowed)
}
