//! The instance metadata service, version 2.

use super::{Obtained, answer};
use crate::ecr::http::Http;
use crate::ecr::http::request::{Answer, Request, SendError};
use crate::ecr::refusal::Refusal;
use crate::ecr::sdk_error::{chain, links};
use crate::report::redact::{redact, remember};
use secrecy::{ExposeSecret as _, SecretString};
use std::error::Error;
use std::io::{self, ErrorKind};
use std::time::Duration;

/// Where there is a metadata service, it answers in milliseconds; where there is none, nothing answers.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How long a session is to live, in seconds: it serves three requests.
const SESSION: &str = "60";
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
/// A session token has 56 characters.
const MAX_SESSION: usize = 1024;
/// The longest text of the service's that is shown.
const LONGEST: usize = 200;
/// What to do without the service.
const ELSEWHERE: &str =
    "configure credentials: --aws-credentials-dir, --roles-anywhere, or one of the sources of the AWS CLI";

/// Why the service gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// Nothing answers at the address.
    #[error("nothing answers at {0}")]
    Silent(String),
    /// The network failed.
    #[error("{url} cannot be reached: {cause}")]
    Network {
        /// The service's URL.
        url: String,
        /// What the network said.
        cause: String,
        /// Whether something may be there a moment later.
        passing: bool,
    },
    /// An answer that is an error.
    #[error("{url} answers with HTTP status {status}")]
    Status {
        /// The service's URL.
        url: String,
        /// The status.
        status: u16,
    },
    /// The instance has no role.
    #[error("this instance has no role")]
    NoRole,
    /// An answer that is no metadata.
    #[error("{url} gave an answer that {problem}")]
    Answer {
        /// The service's URL.
        url: String,
        /// What is wrong with it.
        problem: String,
        /// Whether another answer may come a moment later.
        passing: bool,
    },
}

impl MetadataError {
    /// Whether the service may answer a moment later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Network { passing, .. } | Self::Answer { passing, .. } => *passing,
            Self::Status { status, .. } => *status >= 500 || *status == 429,
            Self::Silent(_) | Self::NoRole => false,
        }
    }

    /// What to do before [`ELSEWHERE`].
    fn remedy(&self) -> &'static str {
        match self {
            Self::Silent(_) => {
                "on EC2, a pod reaches the metadata service only with a hop limit of 2 or with hostNetwork; elsewhere, "
            }
            Self::NoRole => "give this node a role (an instance profile), or ",
            Self::Network { .. } | Self::Status { .. } | Self::Answer { .. } => {
                "where there is no metadata service, "
            }
        }
    }
}

/// The credentials of the instance's role. `configured_by` says which setting names the service; `None` where it is the
/// last resort.
///
/// # Errors
/// When the service is not there, or has no credentials.
pub async fn credentials(http: &Http, url: &str, configured_by: Option<&str>) -> Result<Obtained, Refusal> {
    let why = match configured_by {
        Some(place) => format!("the instance metadata service ({place} names it)"),
        None => "no other source is configured, and the instance metadata service".to_owned(),
    };
    role_credentials(http, url).await.map_err(|error| Refusal::NoCredentials {
        reason: format!("{why}: {error}; {}{ELSEWHERE}", error.remedy()),
        passing: error.is_passing(),
    })
}

/// The region that the instance is in.
///
/// # Errors
/// When the service is not there.
pub async fn region(http: &Http, url: &str) -> Result<String, MetadataError> {
    let session = Session::start(http, url).await?;
    let answer = session.get("/latest/meta-data/placement/region").await?;
    Ok(session.checked(answer)?.text().unwrap_or_default().trim().to_owned())
}

async fn role_credentials(http: &Http, url: &str) -> Result<Obtained, MetadataError> {
    let session = Session::start(http, url).await?;
    let answer = session.get(ROLES).await?;
    if answer.status() == 404 {
        return Err(MetadataError::NoRole);
    }
    let answer = session.checked(answer)?;
    let role = answer.text().unwrap_or_default().trim();
    let allowed = |c: char| c.is_ascii_alphanumeric() || "+=,.@-_".contains(c);
    if role.is_empty() || role.len() > 64 || !role.chars().all(allowed) {
        return Err(session.unusable("is no role's name", false));
    }
    let answer = session.get(&format!("{ROLES}{role}")).await?;
    let answer = session.checked(answer)?;
    if let Some(code) = answer::text(&answer.body, &["Code"]).filter(|code| code != "Success") {
        let message = answer::text(&answer.body, &["Message"]).unwrap_or_default();
        let said = redact(&format!("{code}: {message}"), LONGEST);
        return Err(session.unusable(&format!("refuses credentials of the role {role} ({said})"), false));
    }
    let credentials =
        answer::parse(&answer.body).map_err(|error| session.unusable(&error.to_string(), true))?;
    Ok(Obtained {
        credentials,
        source: "the instance metadata service".to_owned(),
        role: Some(role.to_owned()),
    })
}

/// A session with the service, which every request needs.
struct Session<'a> {
    http: &'a Http,
    url: &'a str,
    token: SecretString,
}

impl<'a> Session<'a> {
    async fn start(http: &'a Http, url: &'a str) -> Result<Self, MetadataError> {
        let headers = vec![("x-aws-ec2-metadata-token-ttl-seconds", SecretString::from(SESSION))];
        let mut session = Self { http, url, token: SecretString::default() };
        let answer = session.send("PUT", "/latest/api/token", headers).await?;
        let answer = session.checked(answer)?;
        let token = answer.text().unwrap_or_default().trim();
        let fits = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if token.is_empty() || token.len() > MAX_SESSION || !fits(token) {
            return Err(session.unusable("is no session token", true));
        }
        remember(token);
        session.token = SecretString::from(token);
        Ok(session)
    }

    async fn get(&self, path: &str) -> Result<Answer, MetadataError> {
        let token = SecretString::from(self.token.expose_secret());
        self.send("GET", path, vec![("x-aws-ec2-metadata-token", token)]).await
    }

    async fn send(
        &self,
        method: &'static str,
        path: &str,
        headers: Vec<(&'static str, SecretString)>,
    ) -> Result<Answer, MetadataError> {
        let url = format!("{}{path}", self.url);
        let request = Request { method, headers, ..Request::get(&url, TIMEOUT) };
        // Never through a proxy, which could only reach the service of its own instance.
        self.http.send_on_this_node(request).await.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &SendError) -> MetadataError {
        if let SendError::TimedOut(_) = error {
            return MetadataError::Silent(self.url.to_owned());
        }
        let system = links(error).filter_map(<dyn Error>::downcast_ref::<io::Error>);
        let kinds: Vec<ErrorKind> = system.map(io::Error::kind).collect();
        // Something is there, or will be when the network is.
        let passing =
            [ErrorKind::ConnectionRefused, ErrorKind::ConnectionReset, ErrorKind::NetworkUnreachable]
                .iter()
                .any(|kind| kinds.contains(kind));
        let passing = passing || matches!(error, SendError::BrokeOff(_));
        MetadataError::Network { url: self.url.to_owned(), cause: chain(error), passing }
    }

    fn checked(&self, answer: Answer) -> Result<Answer, MetadataError> {
        match answer.status() {
            200 => Ok(answer),
            status => Err(MetadataError::Status { url: self.url.to_owned(), status }),
        }
    }

    fn unusable(&self, problem: &str, passing: bool) -> MetadataError {
        MetadataError::Answer { url: self.url.to_owned(), problem: problem.to_owned(), passing }
    }
}
