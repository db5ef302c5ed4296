//! Which credential source is configured, and therefore used. It is used alone: where it fails, no other source takes its
//! place, which could be another identity.

use super::source_error::SourceError;
use crate::ecr::config::load::shared_files;
use crate::ecr::config::profiles::{Found, FoundKey, Kind};
use crate::ecr::config::{Config, Metadata, not_found};
use crate::report::redact::{redact, shown_path};
use secrecy::SecretString;
use std::fmt;
use std::path::PathBuf;

/// The longest wrong value that is shown.
const LONGEST: usize = 100;
/// A profile that leads to more profiles than this is a mistake.
const LONGEST_CHAIN: usize = 16;

/// A credential source, and the roles that are assumed with what it gives, in this order.
#[derive(Debug)]
pub struct Source {
    /// Where the first credentials come from.
    pub base: Base,
    /// The roles that profiles name.
    pub roles: Vec<Role>,
}

impl fmt::Display for Source {
    /// Where the source is configured.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.base {
            Base::Key(key) => &key.origin,
            Base::Process(process) => &process.origin,
            Base::WebIdentity(identity) => &identity.origin,
            Base::Container(container) => container.variable,
            Base::Metadata { .. } => "the instance metadata service",
        })?;
        self.roles.last().map_or(Ok(()), |role| write!(f, " with the role at {}", role.origin))
    }
}

/// Where credentials come from.
#[derive(Debug)]
pub enum Base {
    /// An access key in the environment or in a profile.
    Key(Key),
    /// A program that prints credentials.
    Process(Process),
    /// A token of an OIDC provider, such as a Kubernetes service account's.
    WebIdentity(WebIdentity),
    /// An HTTP endpoint for containers: ECS, EKS Pod Identity.
    Container(Container),
    /// The instance metadata service.
    Metadata {
        /// Where it is asked.
        url: String,
        /// The setting that names it; `None` where nothing is configured and it is the last resort.
        configured_by: Option<String>,
    },
}

/// An access key.
pub struct Key {
    /// Where it stands.
    pub origin: String,
    /// The id.
    pub id: String,
    /// The secret.
    pub secret: SecretString,
    /// The session token of temporary credentials.
    pub session_token: Option<SecretString>,
}

impl fmt::Debug for Key {
    /// The place only: the id may be a secret that stands in the wrong place.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.origin)
    }
}

/// A `credential_process`.
#[derive(Debug)]
pub struct Process {
    /// Where it is configured.
    pub origin: String,
    /// The command line. Its arguments may hold secrets.
    pub command: SecretString,
}

/// A web identity.
#[derive(Debug)]
pub struct WebIdentity {
    /// Where it is configured.
    pub origin: String,
    /// The file with the token.
    pub token_file: PathBuf,
    /// The role that takes the token.
    pub role: String,
    /// How the role session is called; `None` for this agent's usual name.
    pub session_name: Option<String>,
}

/// A container's endpoint.
#[derive(Debug)]
pub struct Container {
    /// The variable that names it.
    pub variable: &'static str,
    /// Its URL, or the path at ECS's address.
    pub address: String,
    /// The `Authorization` header, or where it stands.
    pub authorization: Authorization,
}

/// How a container's endpoint knows its caller.
#[derive(Debug)]
pub enum Authorization {
    /// Not at all.
    None,
    /// By the value of this variable.
    Token(SecretString),
    /// By the content of this file.
    File(PathBuf),
}

/// A role that a profile names.
#[derive(Debug)]
pub struct Role {
    /// Where it is configured.
    pub origin: String,
    /// The role.
    pub arn: String,
    /// How the role session is called; `None` for this agent's usual name.
    pub session_name: Option<String>,
    /// The external ID, which a role of another account may require.
    pub external_id: Option<String>,
}

/// Chooses the source, in the documented order: access key in the environment, profile, web identity, container, metadata
/// service.
///
/// # Errors
/// When what is configured cannot be used, or nothing is.
pub fn choose(config: &Config) -> Result<Source, SourceError> {
    if let Some(key) = environment_key(config)? {
        return Ok(Base::Key(key).into());
    }
    if let Some(source) = profile(config)? {
        return Ok(source);
    }
    if let Some(identity) = environment_web_identity(config)? {
        return Ok(Base::WebIdentity(identity).into());
    }
    if let Some(container) = container(config)? {
        return Ok(Base::Container(container).into());
    }
    match config.metadata()? {
        Metadata::At(url) => Ok(Base::Metadata { url, configured_by: None }.into()),
        Metadata::Disabled(variable) => {
            let files = shared_files(&config.environment);
            let paths: Vec<String> = files.iter().map(|file| shown_path(&file.path)).collect();
            let files = match paths.as_slice() {
                [] => "no shared files, since HOME is not set".to_owned(),
                paths => format!("credentials of the profile `default` in {}", paths.join(" and ")),
            };
            Err(SourceError::Nothing { variable, files })
        }
    }
}

impl From<Base> for Source {
    fn from(base: Base) -> Self {
        Self { base, roles: Vec::new() }
    }
}

fn environment_key(config: &Config) -> Result<Option<Key>, SourceError> {
    let get = |name| config.environment.get(name);
    let (id, secret) = (get("AWS_ACCESS_KEY_ID"), get("AWS_SECRET_ACCESS_KEY"));
    let token = config.environment.first(&["AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"]);
    let partial = |set, missing| Err(SourceError::PartialVariables { set, missing });
    match (id, secret, token) {
        (None, None, None) => Ok(None),
        (Some(_), None, _) => partial("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        (None, Some(_), _) => partial("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
        (None, None, Some((variable, _))) => {
            partial(variable, "AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY")
        }
        (Some(id), Some(secret), token) => Ok(Some(Key {
            origin: "the environment (AWS_ACCESS_KEY_ID)".to_owned(),
            id: id.trim().to_owned(),
            secret: SecretString::from(secret.trim()),
            session_token: token.map(|(_, token)| SecretString::from(token.trim())),
        })),
    }
}

fn environment_web_identity(config: &Config) -> Result<Option<WebIdentity>, SourceError> {
    let environment = &config.environment;
    let (token_file, role) =
        (environment.path("AWS_WEB_IDENTITY_TOKEN_FILE"), environment.get("AWS_ROLE_ARN"));
    let partial = |set, missing| Err(SourceError::PartialVariables { set, missing });
    match (token_file, role) {
        (None, None) => Ok(None),
        (Some(_), None) => partial("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"),
        (None, Some(_)) => partial("AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"),
        (Some(token_file), Some(role)) => Ok(Some(WebIdentity {
            origin: "the web identity of AWS_WEB_IDENTITY_TOKEN_FILE".to_owned(),
            token_file,
            role: role.trim().to_owned(),
            session_name: environment.get("AWS_ROLE_SESSION_NAME").map(str::to_owned),
        })),
    }
}

fn container(config: &Config) -> Result<Option<Container>, SourceError> {
    let environment = &config.environment;
    let names = ["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"];
    let file = environment.path("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE");
    let token = environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN");
    let Some((variable, address)) = environment.first(&names) else {
        let authorization = ["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN"];
        return match environment.first(&authorization) {
            Some((set, _)) => Err(SourceError::PartialVariables { set, missing: names[1] }),
            None => Ok(None),
        };
    };
    let authorization = match (file, token) {
        (Some(file), _) => Authorization::File(file),
        (None, Some(token)) => Authorization::Token(SecretString::from(token.trim())),
        (None, None) => Authorization::None,
    };
    Ok(Some(Container { variable, address: address.trim().to_owned(), authorization }))
}

/// What the selected profile says; `None` if no variable names a profile and `default` has no
/// credentials.
fn profile(config: &Config) -> Result<Option<Source>, SourceError> {
    let mut name = config.profile.clone();
    let mut named_at = String::new();
    let mut seen: Vec<String> = Vec::new();
    let mut roles = Vec::new();
    loop {
        let is_first = seen.is_empty();
        let get = |setting: &str| config.profiles.get(&name, setting);
        let key = config.profiles.key(&name);
        let role = get("role_arn").filter(|_| get("web_identity_token_file").is_none());
        // An access key in a profile that another one names comes before a role there.
        let Some(role) = role.filter(|_| is_first || key.is_none()) else {
            let base = match base(config, &name)? {
                Some(base) => base,
                None if !is_first => {
                    return Err(SourceError::EmptySourceProfile { profile: shown(&name), place: named_at });
                }
                None => return empty(config),
            };
            roles.reverse();
            return Ok(Some(Source { base, roles }));
        };
        if let Some(mfa) = get("mfa_serial") {
            let what = "a role with multi-factor authentication";
            return Err(SourceError::NeedsAPerson { place: mfa.place.to_string(), what });
        }
        let place = role.place.to_string();
        roles.push(Role {
            origin: place.clone(),
            arn: role.value.to_owned(),
            session_name: get("role_session_name").map(|found| found.value.to_owned()),
            external_id: get("external_id").map(|found| found.value.to_owned()),
        });
        let next = match (get("source_profile"), get("credential_source")) {
            (Some(_), Some(_)) => return Err(SourceError::RoleSource { place, what: "both" }),
            (None, None) => return Err(SourceError::RoleSource { place, what: "none" }),
            (None, Some(source)) => {
                let base = named_source(config, &source)?;
                roles.reverse();
                return Ok(Some(Source { base, roles }));
            }
            (Some(next), None) => next,
        };
        named_at = next.place.to_string();
        let next = next.value.to_owned();
        if config.profiles.place(&next).is_none() {
            let which = not_found(&config.profiles, &next);
            return Err(SourceError::NoSourceProfile { place: named_at, profile: shown(&next), which });
        }
        // A profile may name itself: its own access key assumes its role.
        let is_itself = next == name && key.is_some();
        seen.push(std::mem::replace(&mut name, next));
        if seen.contains(&name) && !is_itself || seen.len() > LONGEST_CHAIN {
            return Err(SourceError::Circle { place: named_at, profile: shown(&name) });
        }
    }
}

fn empty(config: &Config) -> Result<Option<Source>, SourceError> {
    let (Some(variable), Some(place)) = (config.selected_by, config.profile_place()) else { return Ok(None) };
    Err(SourceError::EmptyProfile { variable, profile: shown(&config.profile), place: place.to_string() })
}

/// What a profile that names no role says. As the AWS CLI does, an access key in the credentials file comes before a
/// process, and one in the config file after it.
fn base(config: &Config, profile: &str) -> Result<Option<Base>, SourceError> {
    let get = |setting: &str| config.profiles.get(profile, setting);
    if let Some(token_file) = get("web_identity_token_file") {
        let origin = token_file.place.to_string();
        let Some(role) = get("role_arn") else {
            return Err(SourceError::WebIdentityWithoutRole { place: origin });
        };
        return Ok(Some(Base::WebIdentity(WebIdentity {
            origin,
            token_file: PathBuf::from(token_file.value),
            role: role.value.to_owned(),
            session_name: get("role_session_name").map(|found| found.value.to_owned()),
        })));
    }
    let person =
        |found: Found<'_>, what| Err(SourceError::NeedsAPerson { place: found.place.to_string(), what });
    if let Some(found) = get("sso_account_id").or_else(|| get("sso_role_name")) {
        return person(found, "IAM Identity Center (SSO)");
    }
    let key = config.profiles.key(profile);
    if let Some(key) = key.as_ref().filter(|key| key.kind == Kind::Credentials) {
        return profile_key(key).map(Base::Key).map(Some);
    }
    if let Some(found) = get("login_session") {
        return person(found, "a console login");
    }
    if let Some(process) = get("credential_process") {
        return Ok(Some(Base::Process(Process {
            origin: process.place.to_string(),
            command: SecretString::from(process.value),
        })));
    }
    if let Some(key) = key {
        return profile_key(&key).map(Base::Key).map(Some);
    }
    if let Some(source) = get("credential_source") {
        return named_source(config, &source).map(Some);
    }
    match get("sso_session").or_else(|| get("sso_start_url")) {
        Some(found) => person(found, "IAM Identity Center (SSO)"),
        None => Ok(None),
    }
}

fn profile_key(key: &FoundKey<'_>) -> Result<Key, SourceError> {
    let lacking = |found: Option<&Found<'_>>, name: &str| match found {
        Some(found) if found.value.is_empty() => Some(format!("`{name}` is empty ({})", found.place)),
        Some(_) => None,
        None => Some(format!("`{name}` is missing in that profile ({})", key.place)),
    };
    let missing = lacking(key.id.as_ref(), "aws_access_key_id")
        .or_else(|| lacking(key.secret.as_ref(), "aws_secret_access_key"));
    match (&key.id, &key.secret, missing) {
        (Some(id), Some(secret), None) => Ok(Key {
            origin: format!("the profile at {}", key.place),
            id: id.value.to_owned(),
            secret: SecretString::from(secret.value),
            session_token: key.session_token.as_ref().map(|token| SecretString::from(token.value)),
        }),
        (_, _, missing) => Err(SourceError::PartialKey {
            set: format!("an access key at {}", key.place),
            missing: missing.unwrap_or_default(),
        }),
    }
}

fn named_source(config: &Config, source: &Found<'_>) -> Result<Base, SourceError> {
    let missing = |missing: &str| SourceError::NamedSourceMissing {
        place: source.place.to_string(),
        value: source.value.to_owned(),
        missing: missing.to_owned(),
    };
    match source.value {
        "Environment" => environment_key(config)?
            .map(Base::Key)
            .ok_or_else(|| missing("AWS_ACCESS_KEY_ID is not set")),
        "EcsContainer" => container(config)?.map(Base::Container).ok_or_else(|| {
            missing("neither AWS_CONTAINER_CREDENTIALS_RELATIVE_URI nor AWS_CONTAINER_CREDENTIALS_FULL_URI is set")
        }),
        "Ec2InstanceMetadata" => match config.metadata()? {
            Metadata::At(url) => {
                Ok(Base::Metadata { url, configured_by: Some(source.place.to_string()) })
            }
            Metadata::Disabled(variable) => Err(missing(&format!("{variable} switches it off"))),
        },
        value => {
            Err(SourceError::CredentialSource { place: source.place.to_string(), value: redact(value, LONGEST) })
        }
    }
}

fn shown(profile: &str) -> String {
    redact(profile, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_part_of_an_access_key() {
        let key = Key {
            origin: "config line 2".to_owned(),
            id: "s3cret-in-the-wrong-place".to_owned(),
            secret: SecretString::from("AKIAIOSFODNN7EXAMPLE"),
            session_token: None,
        };
        assert_eq!(format!("{:?}", Base::Key(key)), "Key(Key(config line 2))");
    }
}
