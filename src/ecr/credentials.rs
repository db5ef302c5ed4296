//! AWS credentials and region: the SDK's default chain, source by source, so that each can say why it had none.

use super::http::Http;
use super::refusal::{self, Refusal, chain, first_line, links};
use super::registry::Region;
use aws_config::BehaviorVersion;
use aws_config::ecs::EcsCredentialsProvider;
use aws_config::environment::{EnvironmentVariableCredentialsProvider, EnvironmentVariableRegionProvider};
use aws_config::imds;
use aws_config::imds::client::SensitiveString;
use aws_config::imds::client::error::{ImdsError, TokenError};
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::meta::region::ProvideRegion as _;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::provider_config::ProviderConfig;
use aws_config::web_identity_token::WebIdentityTokenCredentialsProvider;
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sts::operation::assume_role::AssumeRoleError;
use aws_sdk_sts::operation::assume_role_with_web_identity::AssumeRoleWithWebIdentityError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::{ConnectorError, SdkError};
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use jiff::Timestamp;
use secrecy::zeroize::Zeroizing;
use std::error::Error;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::time::Duration;

/// A key is 20 or 40 characters, a session token about a thousand.
const MAX_KEY_FILE: u64 = 64 * 1024;
/// Where there is a metadata service, it answers in milliseconds; where there is none, nothing answers.
const METADATA_TIMEOUT: Duration = Duration::from_secs(1);
/// What AWS's own services may take to answer: connect, and in all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
const WEB_IDENTITY: &str =
    "sts:AssumeRoleWithWebIdentity (the role's trust policy must allow this service account)";

/// How long one call may take.
pub(super) fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_attempt_timeout(ATTEMPT_TIMEOUT)
        .operation_timeout(ATTEMPT_TIMEOUT)
        .build()
}

/// The region of the SDK's chain: environment, profile, metadata service.
///
/// # Errors
/// When none of them names one.
pub(super) async fn region(http: &Http) -> Result<Region, Refusal> {
    match configured_region(http).await? {
        Some(region) => Ok(region),
        None => read_region(&metadata_region(http).await?),
    }
}

/// The region that the environment or the profile names.
///
/// # Errors
/// When it is none.
pub(super) async fn configured_region(http: &Http) -> Result<Option<Region>, Refusal> {
    let named = |region: aws_config::Region| region.as_ref().trim().to_owned();
    let mut found = EnvironmentVariableRegionProvider::new().region().await.map(named);
    // An empty variable is an unset one, as for other programs of AWS's.
    if found.as_ref().is_none_or(String::is_empty) {
        let profile = ProfileFileRegionProvider::builder().configure(&config(http, None)).build();
        found = profile.region().await.map(named);
    }
    found.filter(|region| !region.is_empty()).map(|region| read_region(&region)).transpose()
}

fn read_region(text: &str) -> Result<Region, Refusal> {
    text.trim().parse().map_err(|error: super::registry::ParseRegionError| Refusal::NoRegion {
        said: format!(" (what the environment, the profile or the metadata service names is none: {error})"),
        passing: false,
    })
}

async fn metadata_region(http: &Http) -> Result<String, Refusal> {
    if metadata_is_disabled() {
        return Err(Refusal::NoRegion { said: String::new(), passing: false });
    }
    match metadata(&metadata_client(http), "/latest/meta-data/placement/region").await {
        Ok(region) => Ok(region.as_ref().to_owned()),
        Err(error) => {
            let (said, passing) = metadata_said(&error);
            Err(Refusal::NoRegion { said: format!(" (the metadata service: {said})"), passing })
        }
    }
}

/// Credentials out of the SDK's default chain, or out of `directory` alone where one is given.
///
/// # Errors
/// When there are none, with what each source said; or when a source that is there is refused.
pub(super) async fn resolve(
    http: &Http,
    directory: Option<&Path>,
    region: Option<&Region>,
    now: Timestamp,
) -> Result<Credentials, Refusal> {
    if let Some(directory) = directory {
        return from_directory(directory).and_then(checked);
    }
    from_chain(http, region, now).await.and_then(checked)
}

/// Credentials that fit into a request.
///
/// # Errors
/// When the SDK could not send them: it panics on some, and takes others for a network that fails.
pub(super) fn checked(credentials: Credentials) -> Result<Credentials, Refusal> {
    let fits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    let what = if !fits(credentials.access_key_id()) {
        "the access key id"
    } else if !credentials.session_token().is_none_or(fits) {
        "the session token"
    } else {
        return Ok(credentials);
    };
    Err(Refusal::BadCredentials {
        said: format!("{what} holds a space, a line break or another character that none has"),
    })
}

async fn from_chain(http: &Http, region: Option<&Region>, now: Timestamp) -> Result<Credentials, Refusal> {
    let config = config(http, region);
    let node = config.clone().with_http_client(http.for_this_node());
    let mut tried = Tried::default();

    let environment = EnvironmentVariableCredentialsProvider::new();
    let found = tried.ask(
        "environment variables",
        environment,
        now,
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not both set",
    );
    if let Some(credentials) = found.await? {
        return Ok(credentials);
    }
    let profile = ProfileFileCredentialsProvider::builder().configure(&config).build();
    let unset = "no credentials for the profile in ~/.aws/credentials or ~/.aws/config";
    if let Some(credentials) = tried.ask("shared profile", profile, now, unset).await? {
        return Ok(credentials);
    }
    let web_identity = WebIdentityTokenCredentialsProvider::builder().configure(&config).build();
    let unset = "AWS_WEB_IDENTITY_TOKEN_FILE is not set";
    if let Some(credentials) = tried.ask(WEB_IDENTITY_SOURCE, web_identity, now, unset).await? {
        return Ok(credentials);
    }
    let container = EcsCredentialsProvider::builder().configure(&node).build();
    let unset = "AWS_CONTAINER_CREDENTIALS_FULL_URI is not set";
    if let Some(credentials) =
        tried.ask("container credentials (EKS Pod Identity, ECS)", container, now, unset).await?
    {
        return Ok(credentials);
    }
    let client = metadata_client(http);
    match metadata_role(&client).await {
        Ok(role) => {
            let source = ImdsCredentialsProvider::builder().configure(&node).imds_client(client);
            if let Some(credentials) = tried.ask(METADATA, source.profile(role).build(), now, "").await? {
                return Ok(credentials);
            }
            // It named the role a moment ago, so it is there.
            tried.passing |= tried.remedy == NOBODY_REMEDY;
        }
        Err((said, passing)) => tried.nothing_from(METADATA, &said, passing),
    }
    Err(tried.nothing())
}

const METADATA: &str = "instance metadata";
const WEB_IDENTITY_SOURCE: &str = "web identity (IRSA)";
const NO_ROLE: &str = "this instance has no role";
const NOBODY: &str = "nothing answers there";
const NOBODY_REMEDY: &str = "; on EC2, a pod reaches the metadata service only with a hop limit of 2 or with \
                             hostNetwork; elsewhere, mount a Secret and name it with --aws-credentials-dir";

/// What each source said that had nothing.
#[derive(Default)]
struct Tried {
    said: Vec<String>,
    passing: bool,
    remedy: &'static str,
}

impl Tried {
    /// Asks one source. `None` lets the next one be asked; as in the SDK's own chain, a source that is there but fails
    /// ends the search, since the next one could be somebody else.
    async fn ask(
        &mut self,
        name: &'static str,
        source: impl ProvideCredentials,
        now: Timestamp,
        unset: &str,
    ) -> Result<Option<Credentials>, Refusal> {
        let error = match source.provide_credentials().await {
            Ok(credentials) => return Ok(Some(credentials)),
            Err(error) => error,
        };
        if let Some(refused) = refused_by_sts(&error, now) {
            return Err(refused);
        }
        let metadata = links(&error).find_map(<dyn Error>::downcast_ref::<ImdsError>);
        let (said, passing) = match metadata {
            Some(error) => metadata_said(error),
            None if matches!(error, CredentialsError::CredentialsNotLoaded(_)) && !unset.is_empty() => {
                (unset.to_owned(), false)
            }
            None => said(&error),
        };
        // The SDK does not say which file it could not read.
        let names_a_file = name == WEB_IDENTITY_SOURCE && links(&error).any(<dyn Error>::is::<io::Error>);
        let said =
            if names_a_file { format!("the file in AWS_WEB_IDENTITY_TOKEN_FILE: {said}") } else { said };
        self.nothing_from(name, &said, passing);
        if matches!(error, CredentialsError::CredentialsNotLoaded(_)) || name == METADATA {
            return Ok(None);
        }
        Err(self.nothing())
    }

    fn nothing_from(&mut self, name: &str, said: &str, passing: bool) {
        if name == METADATA {
            self.remedy = metadata_remedy(said);
        }
        self.said.push(format!("{name}: {said}"));
        self.passing |= passing;
    }

    fn nothing(&mut self) -> Refusal {
        Refusal::NoCredentials {
            tried: format!("tried {}", std::mem::take(&mut self.said).join("; ")),
            remedy: self.remedy,
            passing: self.passing,
        }
    }
}

fn metadata_remedy(said: &str) -> &'static str {
    if said == NOBODY {
        NOBODY_REMEDY
    } else if said == NO_ROLE || said.contains("AWS_EC2_METADATA_DISABLED") {
        "; give this node a role (an instance profile), or mount a Secret and name it with --aws-credentials-dir"
    } else {
        "; where there is no metadata service, mount a Secret and name it with --aws-credentials-dir"
    }
}

/// What an error other than one of STS or of the metadata service says, and whether it may pass.
fn said(error: &CredentialsError) -> (String, bool) {
    let passing = links(error).any(|link| {
        link.downcast_ref::<ConnectorError>().is_some_and(|error| error.is_io() || error.is_timeout())
    });
    let texts: Vec<String> = links(error).skip(1).map(|link| first_line(&link.to_string())).collect();
    let server_error =
        texts.iter().any(|text| text.contains("Non-success status") && text.contains("StatusCode(5"));
    // The SDK's own first sentence says only that there are no credentials.
    let text = error.source().map_or_else(|| first_line(&error.to_string()), chain);
    (text, passing || server_error)
}

/// A refusal by STS, which hands out the credentials of a web identity or of a profile's role.
fn refused_by_sts(error: &CredentialsError, now: Timestamp) -> Option<Refusal> {
    let refused = links(error).find_map(|link| {
        if let Some(error) = link.downcast_ref::<SdkError<AssumeRoleWithWebIdentityError, HttpResponse>>() {
            return Some(refusal::refusal(error, WEB_IDENTITY, now));
        }
        let error = link.downcast_ref::<SdkError<AssumeRoleError, HttpResponse>>()?;
        Some(refusal::refusal(error, "sts:AssumeRole on the role that the profile names", now))
    })?;
    Some(refused)
}

/// What went wrong with the metadata service, and whether it may be there a moment later.
fn metadata_said(error: &ImdsError) -> (String, bool) {
    let session = links(error).find_map(<dyn Error>::downcast_ref::<SdkError<TokenError, HttpResponse>>);
    let status = match error {
        // Its own text would show the whole answer.
        ImdsError::ErrorResponse(answer) => Some(answer.response().status()),
        _ => session.and_then(SdkError::raw_response).map(HttpResponse::status),
    };
    if let Some(status) = status.map(StatusCode::as_u16).filter(|status| *status >= 400) {
        return (format!("it answered with HTTP status {status}"), status >= 500 || status == 429);
    }
    let system = links(error).filter_map(<dyn Error>::downcast_ref::<io::Error>);
    let kind = system.filter(|error| error.raw_os_error().is_some()).map(io::Error::kind).next();
    // Something is there, or will be when the network is.
    let passing = matches!(
        kind,
        Some(
            io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::NetworkUnreachable
        )
    );
    let said = chain(error);
    // The SDK has several kinds of time-out, and no type for all of them.
    if said.contains("timeout") || said.contains("timed out") {
        return (NOBODY.to_owned(), false);
    }
    (said, passing)
}

/// The role of this instance, as the metadata service names it.
async fn metadata_role(client: &imds::Client) -> Result<String, (String, bool)> {
    if metadata_is_disabled() {
        return Err(("switched off by AWS_EC2_METADATA_DISABLED".to_owned(), false));
    }
    let answer = metadata(client, "/latest/meta-data/iam/security-credentials/").await;
    let role = match answer {
        Ok(role) => role.as_ref().trim().to_owned(),
        Err(ImdsError::ErrorResponse(answer)) if answer.response().status().as_u16() == 404 => {
            return Err((NO_ROLE.to_owned(), false));
        }
        Err(error) => return Err(metadata_said(&error)),
    };
    // The SDK would make a URL of it, and panic on what fits in none.
    let allowed = |c: char| c.is_ascii_alphanumeric() || "+=,.@-_".contains(c);
    if role.is_empty() || role.len() > 64 || !role.chars().all(allowed) {
        return Err(("it answered with something that is no role's name".to_owned(), false));
    }
    Ok(role)
}

/// Asks the metadata service, twice if it does not answer in time: it may miss a second, and not two.
async fn metadata(client: &imds::Client, path: &'static str) -> Result<SensitiveString, ImdsError> {
    match client.get(path).await {
        Err(error) if metadata_said(&error).0 == NOBODY => client.get(path).await,
        answer => answer,
    }
}

fn metadata_client(http: &Http) -> imds::Client {
    imds::Client::builder()
        .configure(&config(http, None).with_http_client(http.for_metadata()))
        .connect_timeout(METADATA_TIMEOUT)
        .read_timeout(METADATA_TIMEOUT)
        .operation_attempt_timeout(METADATA_TIMEOUT)
        .operation_timeout(METADATA_TIMEOUT)
        .max_attempts(1)
        .build()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the SDK reads its own variables itself; this one for all its clients"
)]
fn metadata_is_disabled() -> bool {
    std::env::var("AWS_EC2_METADATA_DISABLED").is_ok_and(|value| value.eq_ignore_ascii_case("true"))
}

fn config(http: &Http, region: Option<&Region>) -> ProviderConfig {
    ProviderConfig::without_region()
        .with_behavior_version(Some(BehaviorVersion::latest()))
        .with_http_client(http.for_apis())
        .with_region(region.map(|region| aws_config::Region::new(region.as_str().to_owned())))
        // Who tries again is decided elsewhere. The container's provider has a loop of its own, which nobody can end.
        .with_retry_config(RetryConfig::disabled())
        .with_timeout_config(timeouts())
}

/// Reads a Secret that is mounted as files, one for each key.
fn from_directory(directory: &Path) -> Result<Credentials, Refusal> {
    let read = |name: &str| -> Result<Option<Zeroizing<String>>, Refusal> {
        let path = directory.join(name);
        let failed = |why: String| Refusal::NoCredentials {
            tried: format!(
                "--aws-credentials-dir names {}, and its file `{name}` {why}",
                directory.display()
            ),
            remedy: "; it must hold the files aws_access_key_id and aws_secret_access_key",
            passing: false,
        };
        let mut text = Zeroizing::new(String::with_capacity(4096));
        let read = File::open(&path).and_then(|file| file.take(MAX_KEY_FILE + 1).read_to_string(&mut text));
        match read {
            Ok(length) if length as u64 > MAX_KEY_FILE => Err(failed("is larger than 64 KiB".to_owned())),
            // Editors and `echo` end a file with a newline, which is no part of a key.
            Ok(_) => Ok(Some(Zeroizing::new(text.trim().to_owned())).filter(|text| !text.is_empty())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(format!("cannot be read: {error}"))),
        }
    };
    let needed = |name: &str| {
        read(name)?.ok_or_else(|| Refusal::NoCredentials {
            tried: format!(
                "--aws-credentials-dir names {}, and its file `{name}` is missing or empty",
                directory.display()
            ),
            remedy: "; it must hold the files aws_access_key_id and aws_secret_access_key",
            passing: false,
        })
    };
    let (id, secret) = (needed("aws_access_key_id")?, needed("aws_secret_access_key")?);
    let session = read("aws_session_token")?;
    Ok(Credentials::new(
        id.as_str(),
        secret.as_str(),
        session.map(|token| token.to_string()),
        None,
        "directory",
    ))
}
