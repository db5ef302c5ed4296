//! AWS credentials, from the one source that is configured.
//!
//! | file | what is in it |
//! | --- | --- |
//! | [`source`] | which source is configured (pure) |
//! | [`source_error`] | why none can be used (pure) |
//! | [`key`] | what can be an access key (pure) |
//! | [`answer`] | credentials as JSON (pure) |
//! | [`directory`] | a mounted Secret |
//! | [`process`] | a `credential_process` |
//! | [`container`] | a container's HTTP endpoint |
//! | [`metadata`] | the instance metadata service |
//! | [`sts`] | roles: assumed, and for a web identity |

pub mod answer;
pub mod container;
pub mod directory;
pub mod key;
pub mod metadata;
pub mod process;
pub mod source;
pub mod source_error;
pub mod sts;

use self::source::{Base, Key, Source};
use super::config::Config;
use super::files::Reader;
use super::http::Http;
use super::refusal::Refusal;
use super::registry::Region;
use aws_credential_types::Credentials;
use secrecy::{ExposeSecret as _, SecretString};
use std::fmt;

/// Credentials, and whose they are.
#[derive(Clone)]
pub struct Obtained {
    /// What requests are signed with.
    pub credentials: Credentials,
    /// Where they come from: a variable, a file, a service.
    pub source: String,
    /// The role session, as its ARN, or the instance's role; `None` for an access key that is no role's.
    pub role: Option<String>,
}

impl Obtained {
    /// What stays the same while the same identity is used: the source, and the role session or the id of a long-lived key.
    /// Temporary credentials have a new id each time.
    #[must_use]
    pub fn identity(&self) -> (String, String) {
        let is_lasting = self.credentials.session_token().is_none();
        let id = is_lasting.then(|| self.credentials.access_key_id().to_owned());
        (self.source.clone(), self.role.clone().or(id).unwrap_or_default())
    }
}

impl fmt::Display for Obtained {
    /// The source and the identity, without any secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.credentials.access_key_id();
        let id = if key::is_usual_id(id) { id } else { "(not shown)" };
        write!(f, "{}, access key {id}", self.source)?;
        self.role.as_ref().map_or(Ok(()), |role| write!(f, ", role {role}"))
    }
}

impl fmt::Debug for Obtained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What it takes to ask a source.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// What is configured.
    pub config: &'a Config,
    /// The HTTP clients.
    pub http: &'a Http,
    /// Reads the files that credentials come from.
    pub reader: &'a Reader,
    /// Where STS is asked; `None` if no region is known.
    pub region: Option<&'a Region>,
    /// How a role session is called where nothing else is configured.
    pub session_name: &'a str,
}

/// Asks a source, and assumes the roles that the profile names.
///
/// # Errors
/// When the source has no credentials, or AWS refuses them.
pub async fn obtain(context: Context<'_>, source: &Source) -> Result<Obtained, Refusal> {
    let mut obtained = match &source.base {
        Base::Key(key) => static_key(key)?,
        Base::Process(process) => process::run(process).await?,
        Base::WebIdentity(identity) => {
            let obtained = sts::web_identity(context, identity).await;
            obtained.map_err(|refusal| refusal.of_source(&identity.origin))?
        }
        Base::Container(container) => container::ask(context, container).await?,
        Base::Metadata { url, configured_by } => {
            metadata::credentials(context.http, url, configured_by.as_deref()).await?
        }
    };
    for role in &source.roles {
        let assume = async {
            let (arn, session) = (sts::role_arn(&role.arn)?, role.session_name.as_deref());
            sts::assume(context, &arn, session, role.external_id.as_deref(), &obtained).await
        };
        let assumed = Box::pin(assume).await;
        obtained = assumed.map_err(|refusal| refusal.of_source(&format!("the role at {}", role.origin)))?;
    }
    Ok(obtained)
}

fn static_key(key: &Key) -> Result<Obtained, Refusal> {
    let session_token = key.session_token.as_ref().map(SecretString::expose_secret);
    let credentials = key::access_key(&key.id, key.secret.expose_secret(), session_token)
        .map_err(|error| Refusal::no_credentials(&format!("{}: {error}", key.origin)))?;
    Ok(Obtained { credentials, source: key.origin.clone(), role: None })
}
