//! The calls to AWS of one attempt: the region, the caller's credentials, a token.
//!
//! Each is tried once; the caller decides about another attempt. A panic in a dependency fails the attempt only.

use super::config::{self, Config, Metadata, Service};
use super::credentials::{self, Context, Obtained, directory, metadata, source, sts};
use super::environment::Environment;
use super::files::Reader;
use super::http::Http;
use super::http::proxy::{Proxies, ProxyError};
use super::http::trust::{Trust, TrustError};
use super::refusal::{AnswerError, Refusal};
use super::registry::{Endpoint, Region, RoleArn, TokenSource, host_of_proxy_endpoint, is_registry_in};
use super::roles_anywhere::{self, option::RolesAnywhere};
use super::sdk::sdk_config;
use super::sdk_error::{Call, refusal};
use super::token::{AuthorizationToken, Token, expiry};
use crate::report::redact::redact;
use crate::time::clock;
use futures_util::FutureExt as _;
use jiff::{Timestamp, Unit};
use secrecy::{ExposeSecret as _, SecretString};
use std::collections::BTreeMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

const GET_TOKEN: &str = "ecr:GetAuthorizationToken on \"*\"";
const GET_PUBLIC_TOKEN: &str = "ecr-public:GetAuthorizationToken and sts:GetServiceBearerToken on \"*\"";
/// Credentials that change during an attempt are worth another one at once, but not for ever.
const MOST_ATTEMPTS: usize = 3;
/// How long getting credentials may take, with all attempts. An attempt at a token has more time, so that its message names
/// the credential source.
const LONGEST_OBTAIN: Duration = Duration::from_secs(25);
/// What messages call the option.
const ROLES_ANYWHERE: &str = "--roles-anywhere";
/// The longest wrong value that is shown.
const LONGEST: usize = 100;

/// The AWS identity, and how AWS is reached.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The region of the default registry; `None` for the one that the environment, the profile or the instance names.
    pub region: Option<Region>,
    /// Where credentials come from.
    pub source: CredentialSource,
    /// The environment variables that concern AWS and the network.
    pub environment: Environment,
    /// Which certificate authorities are trusted.
    pub trust: Trust,
    /// How a role session is called, so that CloudTrail tells which node asked.
    pub session_name: String,
    /// Which identity each token source used last.
    pub last_used: LastUsed,
}

/// Where credentials come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialSource {
    /// The source that the environment and the shared files configure.
    Configured,
    /// A mounted Secret: `--aws-credentials-dir`.
    Directory(PathBuf),
    /// A certificate: `--roles-anywhere`.
    RolesAnywhere(Box<RolesAnywhere>),
}

/// Which identity each token source used last, so that a change is logged once. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct LastUsed(Arc<Mutex<BTreeMap<TokenSource, (String, String)>>>);

/// The caller's credentials, good for the calls of one attempt.
#[derive(Clone)]
pub struct Caller {
    obtained: Obtained,
    config: Arc<Config>,
    /// What the files held that the credentials come from.
    reader: Arc<Reader>,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Caller({})", self.obtained)
    }
}

/// AWS, for one attempt.
#[derive(Debug)]
pub struct Ecr {
    identity: Identity,
    proxies: Proxies,
    http: OnceCell<Http>,
}

impl Identity {
    /// The mounted Secret that credentials come from, if they come from one.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        match &self.source {
            CredentialSource::Directory(directory) => Some(directory),
            CredentialSource::Configured | CredentialSource::RolesAnywhere(_) => None,
        }
    }

    /// The files that credentials may come from, as far as they are known before one is read. They need not exist.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let tokens = ["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"];
        let tokens = tokens.iter().filter_map(|variable| self.environment.path(variable));
        let shared = config::load::shared_files(&self.environment).into_iter().map(|file| file.path);
        let certificates = match &self.source {
            CredentialSource::RolesAnywhere(option) => vec![option.certificate.clone(), option.key.clone()],
            CredentialSource::Configured | CredentialSource::Directory(_) => Vec::new(),
        };
        shared.chain(tokens).chain(certificates).filter(|path| path.is_absolute()).collect()
    }
}

impl Ecr {
    /// Gets ready to ask; neither AWS nor a file is asked yet.
    ///
    /// # Errors
    /// When a variable names a proxy that is none.
    pub fn new(identity: Identity) -> Result<Self, ProxyError> {
        let proxies = Proxies::new(&identity.environment)?;
        Ok(Self { identity, proxies, http: OnceCell::new() })
    }

    /// Reads the certificates to trust, so that a wrong file is known before AWS is asked.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn check(&self) -> Result<(), TrustError> {
        self.load_http().await.map(|_| ())
    }

    /// The region of the default registry.
    ///
    /// # Errors
    /// When none is configured, and the metadata service names none.
    pub async fn default_region(&self) -> Result<Region, Refusal> {
        contained("finding the region", Box::pin(self.find_region())).await
    }

    /// Gets the caller's credentials, until `until` or for 25 s at most. `region` is where STS is asked if this node is
    /// configured for no region.
    ///
    /// # Errors
    /// When the source that is configured has none, or AWS refuses them.
    pub async fn caller(&self, region: Option<&Region>, until: Instant) -> Result<Caller, Refusal> {
        let deadline = until.min(Instant::now() + LONGEST_OBTAIN);
        contained("getting credentials", Box::pin(self.obtain(region, deadline))).await
    }

    /// Fetches one token, after assuming the source's role if it has one.
    ///
    /// # Errors
    /// When there is no token that the kubelet could use from now on.
    pub async fn token(&self, source: &TokenSource, caller: &Caller) -> Result<Token, Refusal> {
        contained("fetching a token", Box::pin(self.fetch(source, caller))).await
    }

    /// Fetches one token as the role that a web identity token opens. No other identity takes its place.
    ///
    /// # Errors
    /// When STS refuses the role, or there is no token that the kubelet could use from now on.
    pub async fn token_for_web_identity(
        &self,
        source: &TokenSource,
        role: &RoleArn,
        web_identity: &SecretString,
    ) -> Result<Token, Refusal> {
        let fetch = async {
            let reader = Reader::default();
            let config = config::load::load(&self.identity.environment, &reader).await?;
            let home = self.home_region(&config)?;
            let context = self.context(&config, &reader, home.as_ref().or(Some(&source.region))).await?;
            let origin = "the service account's token";
            let obtained = sts::exchange(context, web_identity.expose_secret(), role, None, origin).await;
            let obtained = obtained.map_err(|refusal| refusal.of_source(origin))?;
            self.fetch_with(source, &config, &obtained).await
        };
        contained("fetching a token for a service account", Box::pin(fetch)).await
    }

    async fn load_http(&self) -> Result<&Http, TrustError> {
        self.http.get_or_try_init(|| Http::load(&self.identity.trust, self.proxies.clone())).await
    }

    async fn http(&self) -> Result<&Http, Refusal> {
        self.load_http().await.map_err(|error| Refusal::settings(&error))
    }

    async fn find_region(&self) -> Result<Region, Refusal> {
        if let Some(region) = &self.identity.region {
            return Ok(region.clone());
        }
        let config = config::load::load(&self.identity.environment, &Reader::default()).await?;
        if let Some(region) = self.home_region(&config)? {
            return Ok(region);
        }
        let unset = "--region, AWS_REGION and `region` in the profile are not set";
        let none = |reason, passing| Refusal::NoRegion { reason, passing };
        let url = match config.metadata() {
            Ok(Metadata::At(url)) => url,
            Err(error) => {
                let reason = format!("{unset}, and the instance metadata service cannot be asked: {error}");
                return Err(none(reason, false));
            }
            Ok(Metadata::Disabled(variable)) => {
                let reason = format!(
                    "{unset}, and {variable} switches off the instance metadata service: give --region"
                );
                return Err(none(reason, false));
            }
        };
        let region = metadata::region(self.http().await?, &url).await.map_err(|error| {
            let reason = format!("{unset}, and the instance metadata service: {error}: give --region");
            none(reason, error.is_passing())
        })?;
        region.parse().map_err(|_| {
            let shown = redact(&region, LONGEST);
            none(
                format!("{unset}, and the instance metadata service names `{shown}`, which is no AWS region"),
                false,
            )
        })
    }

    async fn obtain(&self, region: Option<&Region>, deadline: Instant) -> Result<Caller, Refusal> {
        let mut attempts = 1;
        loop {
            let reader = Arc::new(Reader::default());
            match self.obtain_once(region, deadline, &reader).await {
                Err(refusal)
                    if refusal.is_about_the_caller()
                        && attempts < MOST_ATTEMPTS
                        && Instant::now() < deadline
                        && reader.has_changed().await =>
                {
                    attempts += 1;
                    info!(error = %refusal, "the credentials have changed meanwhile, and are used at once");
                }
                result => return result,
            }
        }
    }

    async fn obtain_once(
        &self,
        region: Option<&Region>,
        deadline: Instant,
        reader: &Arc<Reader>,
    ) -> Result<Caller, Refusal> {
        let config = Arc::new(config::load::load(&self.identity.environment, reader).await?);
        let obtained = match &self.identity.source {
            CredentialSource::Directory(directory) => directory::read(directory, reader).await?,
            CredentialSource::RolesAnywhere(option) => {
                let context = self.context(&config, reader, None).await?;
                let obtained = roles_anywhere::obtain(context, option);
                let obtained = before(deadline, ROLES_ANYWHERE, Box::pin(obtained)).await;
                obtained.map_err(|refusal| refusal.of_source(ROLES_ANYWHERE))?
            }
            CredentialSource::Configured => {
                let source = source::choose(&config)?;
                let home = self.home_region(&config)?;
                let context = self.context(&config, reader, home.as_ref().or(region)).await?;
                let obtained = credentials::obtain(context, &source);
                before(deadline, &source.to_string(), Box::pin(obtained)).await?
            }
        };
        Ok(Caller { obtained, config, reader: Arc::clone(reader) })
    }

    /// The region that this node is configured for. STS is asked there: the region of a registry may be one whose STS is
    /// switched off, or out of reach.
    fn home_region(&self, config: &Config) -> Result<Option<Region>, Refusal> {
        if let Some(region) = &self.identity.region {
            return Ok(Some(region.clone()));
        }
        Ok(match (config.region()?, &self.identity.source) {
            (None, CredentialSource::RolesAnywhere(option)) => Some(option.region.clone()),
            (region, _) => region,
        })
    }

    async fn context<'a>(
        &'a self,
        config: &'a Config,
        reader: &'a Reader,
        region: Option<&'a Region>,
    ) -> Result<Context<'a>, Refusal> {
        let http = self.http().await?;
        Ok(Context { config, http, reader, region, session_name: &self.identity.session_name })
    }

    async fn fetch(&self, source: &TokenSource, caller: &Caller) -> Result<Token, Refusal> {
        let result = self.fetch_once(source, caller).await;
        match &result {
            Err(refusal) if refusal.is_about_the_caller() && caller.reader.has_changed().await => {
                info!(error = %refusal, "the credentials have changed meanwhile, and are used at once");
                let deadline = Instant::now() + LONGEST_OBTAIN;
                let caller = self.obtain(Some(&source.region), deadline).await?;
                self.fetch_once(source, &caller).await
            }
            _ => result,
        }
    }

    async fn fetch_once(&self, source: &TokenSource, caller: &Caller) -> Result<Token, Refusal> {
        let config = &caller.config;
        let mut obtained = caller.obtained.clone();
        if let Some(role) = &source.role {
            let home = self.home_region(config)?;
            let region = home.as_ref().unwrap_or(&source.region);
            let context = self.context(config, &caller.reader, Some(region)).await?;
            obtained = sts::assume(context, role, None, None, &obtained).await?;
        }
        let token = self.fetch_with(source, config, &obtained).await?;
        self.identity.last_used.note(source, &obtained);
        Ok(token)
    }

    /// Fetches a token with these credentials.
    async fn fetch_with(
        &self,
        source: &TokenSource,
        config: &Config,
        obtained: &Obtained,
    ) -> Result<Token, Refusal> {
        let http = self.http().await?;
        match source.endpoint {
            Endpoint::Private { fips, dual_stack } => {
                private_token(http, config, &source.region, obtained, (fips, dual_stack)).await
            }
            Endpoint::Public => public_token(http, config, &source.region, obtained).await,
        }
    }
}

impl LastUsed {
    /// Logs an identity that is another one than the last one. Returns whether it is.
    fn note(&self, source: &TokenSource, obtained: &Obtained) -> bool {
        let identity = obtained.identity();
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = last.get(source) != Some(&identity);
        if is_new {
            info!(source = %source, identity = %obtained, "AWS credentials in use");
            last.insert(source.clone(), identity);
        }
        is_new
    }
}

/// Asks a credential source until the deadline. The error names the source.
async fn before(
    deadline: Instant,
    source: &str,
    asking: impl Future<Output = Result<Obtained, Refusal>>,
) -> Result<Obtained, Refusal> {
    let late =
        || Refusal::NoCredentials { reason: format!("{source} gave no credentials in time"), passing: true };
    timeout_at(deadline, asking).await.unwrap_or_else(|_| Err(late()))
}

/// Does some work, in which a panic is an error like any other: one in a dependency must not end the program.
///
/// # Errors
/// When the work fails or panics.
pub async fn contained<T>(what: &str, work: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
    let failed = |_| Err(Refusal::Internal { reason: format!("{what} failed on an unexpected input") });
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(failed)
}

async fn private_token(
    http: &Http,
    config: &Config,
    region: &Region,
    obtained: &Obtained,
    needs: (bool, bool),
) -> Result<Token, Refusal> {
    let credentials = Some(obtained.credentials.clone());
    let (sdk, service) = sdk_config(http, config, Service::Ecr, region, credentials, needs)?;
    let answer = aws_sdk_ecr::Client::new(&sdk).get_authorization_token().send().await;
    let now = clock::now();
    let call = Call { service: &service, needs: GET_TOKEN };
    let answer = answer.map_err(|error| refusal(&error, &call, now))?;
    let data = answer.authorization_data.unwrap_or_default().into_iter().next().ok_or(AnswerError::NoData)?;
    let registry = data.proxy_endpoint.as_deref().and_then(host_of_proxy_endpoint);
    let token = token(data.authorization_token, data.expires_at, now)?;
    if let Some(host) = registry.as_ref().filter(|host| !is_registry_in(host, region)) {
        warn!(host, %region, "the answer names a host that is no ECR registry of the region; it is written only with --registry");
    }
    Ok(Token { registry: registry.filter(|host| is_registry_in(host, region)), ..token })
}

async fn public_token(
    http: &Http,
    config: &Config,
    region: &Region,
    obtained: &Obtained,
) -> Result<Token, Refusal> {
    let credentials = Some(obtained.credentials.clone());
    let (sdk, service) = sdk_config(http, config, Service::EcrPublic, region, credentials, (false, false))?;
    let answer = aws_sdk_ecrpublic::Client::new(&sdk).get_authorization_token().send().await;
    let now = clock::now();
    let call = Call { service: &service, needs: GET_PUBLIC_TOKEN };
    let answer = answer.map_err(|error| refusal(&error, &call, now))?;
    let data = answer.authorization_data.ok_or(AnswerError::NoData)?;
    token(data.authorization_token, data.expires_at, now)
}

fn token(
    text: Option<String>,
    expires_at: Option<aws_smithy_types::DateTime>,
    now: Timestamp,
) -> Result<Token, Refusal> {
    let text = text.map(SecretString::from).ok_or(AnswerError::NoToken)?;
    let authorization = AuthorizationToken::new(text).map_err(AnswerError::Token)?;
    // ECR gives milliseconds, as a floating point number.
    let named = expires_at.and_then(|at| Timestamp::from_nanosecond(at.as_nanos()).ok());
    let named = named.and_then(|at| at.round((Unit::Millisecond, 1)).ok()).ok_or(AnswerError::NoExpiry)?;
    let expiry = expiry(named, now).map_err(AnswerError::from)?;
    if expiry.is_shortened {
        warn!(expires_at = %named, used = %expiry.at, "the answer names an expiry beyond a token's life of 12 hours");
    }
    Ok(Token { authorization, expires_at: expiry.at, fetched_at: now, registry: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_credential_types::Credentials;

    #[test]
    fn an_identity_is_logged_when_it_changes_and_not_when_its_session_is_renewed() {
        let last = LastUsed::default();
        let region = "eu-west-1".parse().unwrap();
        let source = TokenSource { region, endpoint: Endpoint::STANDARD, role: None };
        let note = |id: &str, token: Option<&str>, role: Option<&str>| {
            let credentials = Credentials::new(id, "secret", token.map(str::to_owned), None, "test");
            let role = role.map(str::to_owned);
            last.note(&source, &Obtained { credentials, source: "the profile".to_owned(), role })
        };
        assert!(note("AKIA1", None, None));
        assert!(!note("AKIA1", None, None));
        assert!(note("AKIA2", None, None), "another key");
        assert!(note("ASIA1", Some("token"), Some("role/a")), "a role");
        assert!(!note("ASIA2", Some("token"), Some("role/a")), "the same role, renewed");
        assert!(note("ASIA3", Some("token"), Some("role/b")), "another role");
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_hangs_is_named() {
        let hangs = std::future::pending();
        let deadline = Instant::now() + LONGEST_OBTAIN;
        let refusal = before(deadline, "config line 2", hangs).await.unwrap_err();
        assert!(refusal.is_passing() && refusal.is_about_the_caller());
        assert_eq!(refusal.into_reason(), "config line 2 gave no credentials in time");
    }

    #[tokio::test]
    async fn a_panic_fails_the_attempt_only() {
        let failing = async { if true { panic!("on purpose") } else { Ok(()) } };
        let refusal = contained("asking", failing).await.unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "unexpected failure: asking failed on an unexpected input; please report it"
        );
        assert_eq!(contained("asking", async { Ok(5) }).await, Ok(5));
    }
}
