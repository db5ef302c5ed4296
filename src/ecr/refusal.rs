//! What an answer other than a token means, sorted by what somebody has to do about it.
//!
//! No SDK value leaves `ecr`: the `Debug` form of the SDK's errors, and the `Display` form of some, carries whole
//! answers with all that is secret in them. What is kept here is text that was chosen for being harmless.

use super::token::TokenError;
use crate::time::retry::Retry;
use aws_smithy_http::endpoint::error::ResolveEndpointError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use jiff::{SignedDuration, Timestamp};
use std::error::Error;

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nowhere did anybody find credentials.
    #[error("no AWS credentials found; {tried}{remedy}")]
    NoCredentials {
        /// Each source with what it said, as one text.
        tried: String,
        /// What to do about it.
        remedy: &'static str,
        /// Whether a source may answer a moment later.
        passing: bool,
    },
    /// There are credentials, and AWS does not take them.
    #[error("AWS does not accept the credentials: {said}")]
    BadCredentials {
        /// What AWS said.
        said: String,
    },
    /// No region to ask.
    #[error("no AWS region: give --region, set AWS_REGION, or set `region` in the profile{said}")]
    NoRegion {
        /// What the metadata service said to it.
        said: String,
        /// Whether it may answer a moment later.
        passing: bool,
    },
    /// Neither credentials nor a region.
    #[error("{credentials}; and {region}")]
    NoCredentialsNorRegion {
        /// Why there are no credentials.
        credentials: Box<Refusal>,
        /// Why there is no region.
        region: Box<Refusal>,
    },
    /// The caller lacks a right.
    #[error("access denied: {said}; the caller needs {needs}")]
    Forbidden {
        /// What AWS said.
        said: String,
        /// The right that is missing.
        needs: String,
    },
    /// Signed with a wrong time.
    #[error("AWS refuses the signature for its time: {said}; {}", clock(*.ahead))]
    Clock {
        /// What AWS said.
        said: String,
        /// How far this node's clock is ahead of the server's, in whole seconds, where the answer tells.
        ahead: Option<i64>,
    },
    /// Too many calls in this account and region.
    #[error("throttled: {said}")]
    Throttled {
        /// What AWS said.
        said: String,
    },
    /// No answer, or one that says "later".
    #[error("no answer: {said}")]
    Unavailable {
        /// What the network or the server said.
        said: String,
    },
    /// The server's certificate is not to be trusted.
    #[error(
        "the server's certificate is refused: {said}; where a proxy or a private endpoint has its own CA, name its \
             file in AWS_CA_BUNDLE or SSL_CERT_FILE"
    )]
    Untrusted {
        /// What is wrong with it.
        said: String,
    },
    /// A setting that cannot work.
    #[error("the AWS settings do not work: {said}")]
    Settings {
        /// What is wrong.
        said: String,
    },
    /// An answer that says no, for good.
    #[error("refused: {said}")]
    Rejected {
        /// What AWS said.
        said: String,
    },
    /// An answer that is none.
    #[error("the answer is no use: {0}")]
    BadAnswer(#[from] AnswerError),
}

/// A refusal's class: a short name that metrics and the documentation use, and that never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// No usable credentials.
    Credentials,
    /// No region.
    Region,
    /// A permission is missing.
    Denied,
    /// This node's clock is wrong.
    Clock,
    /// Too many calls.
    Throttled,
    /// No answer from the server.
    Unreachable,
    /// The server's certificate cannot be trusted.
    Untrusted,
    /// A setting cannot work.
    Settings,
    /// AWS refuses the request.
    Rejected,
    /// The answer cannot be used.
    BadAnswer,
}

impl Class {
    /// The name, as a label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Credentials => "credentials",
            Self::Region => "region",
            Self::Denied => "denied",
            Self::Clock => "clock",
            Self::Throttled => "throttled",
            Self::Unreachable => "unreachable",
            Self::Untrusted => "untrusted",
            Self::Settings => "settings",
            Self::Rejected => "rejected",
            Self::BadAnswer => "bad_answer",
        }
    }
}

/// What is wrong with an answer that came with success. The texts show nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Neither JSON nor XML of the expected shape, or far too long.
    #[error("it cannot be read")]
    Unreadable,
    /// `authorizationData` is missing or empty.
    #[error("it holds no authorization data")]
    NoData,
    /// There is no token in the data.
    #[error("it holds no authorization token")]
    NoToken,
    /// There is no `expiresAt` in the data, or one that no calendar has.
    #[error("it does not say until when the token is good")]
    NoExpiry,
    /// `expiresAt` has passed already.
    #[error("its token has expired {0} already, or this node's clock is wrong")]
    Expired(Ago),
    /// The token is not what the kubelet could use.
    #[error("{0}")]
    Token(TokenError),
    /// `proxyEndpoint` is missing, or not a URL of a bare host.
    #[error("it names no registry host; give --registry")]
    NoRegistry,
    /// STS gave no credentials for the role.
    #[error("it holds no credentials for the role")]
    NoRoleCredentials,
}

/// A span of time that has passed, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ago(pub i64);

impl std::fmt::Display for Ago {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#} ago", SignedDuration::from_secs(self.0))
    }
}

impl Refusal {
    /// The refusal's class.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::NoCredentials { .. }
            | Self::BadCredentials { .. }
            | Self::NoCredentialsNorRegion { .. } => Class::Credentials,
            Self::NoRegion { .. } => Class::Region,
            Self::Forbidden { .. } => Class::Denied,
            Self::Clock { .. } => Class::Clock,
            Self::Throttled { .. } => Class::Throttled,
            Self::Unavailable { .. } => Class::Unreachable,
            Self::Untrusted { .. } => Class::Untrusted,
            Self::Settings { .. } => Class::Settings,
            Self::Rejected { .. } => Class::Rejected,
            Self::BadAnswer(_) => Class::BadAnswer,
        }
    }

    /// What this says about the next attempt.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Throttled { .. } => Retry::Throttled,
            refusal if refusal.is_passing() => Retry::Later,
            _ => Retry::Useless,
        }
    }

    /// Whether the same question may be answered a moment later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::NoCredentials { passing, .. } | Self::NoRegion { passing, .. } => *passing,
            Self::NoCredentialsNorRegion { credentials, .. } => credentials.is_passing(),
            Self::Clock { .. } | Self::Throttled { .. } | Self::Unavailable { .. } => true,
            Self::BadCredentials { .. }
            | Self::Forbidden { .. }
            | Self::Untrusted { .. }
            | Self::Settings { .. }
            | Self::Rejected { .. }
            | Self::BadAnswer(_) => false,
        }
    }

    /// Whether there are no usable credentials or no region, rather than an ECR that refuses.
    #[must_use]
    pub fn is_about_the_caller(&self) -> bool {
        matches!(
            self,
            Self::NoCredentials { .. }
                | Self::BadCredentials { .. }
                | Self::NoRegion { .. }
                | Self::NoCredentialsNorRegion { .. }
        )
    }

    /// The same, with what is wrong with the credentials, if they are missing too.
    #[must_use]
    pub fn and_credentials(self, credentials: Option<Self>) -> Self {
        match credentials {
            Some(credentials @ Self::NoCredentials { .. }) => {
                Self::NoCredentialsNorRegion { credentials: Box::new(credentials), region: Box::new(self) }
            }
            _ => self,
        }
    }

    /// Whether this node's clock may be to blame: signatures, certificates and tokens are good for a time.
    #[must_use]
    pub fn may_be_the_clock(&self) -> bool {
        let expired = matches!(self, Self::BadAnswer(AnswerError::Expired(_)));
        expired || matches!(self, Self::Clock { .. } | Self::Untrusted { .. })
    }
}

fn clock(ahead: Option<i64>) -> String {
    let Some(seconds) = ahead else {
        return "set this node's clock".to_owned();
    };
    let off = SignedDuration::from_secs(seconds.abs());
    let way = if seconds < 0 { "behind" } else { "ahead of" };
    format!("this node's clock is {off:#} {way} the server's: set it")
}

/// Sorts an SDK error. `asked` names the right that the call needs. Codes that we do not know are taken as passing: to
/// ask again later does no harm.
pub fn refusal<E>(error: &SdkError<E, HttpResponse>, asked: &str, now: Timestamp) -> Refusal
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    match error {
        SdkError::ConstructionFailure(_) => Refusal::Settings { said: chain(error) },
        SdkError::TimeoutError(_) => Refusal::Unavailable { said: "timed out".to_owned() },
        SdkError::DispatchFailure(failure)
            if failure.is_user() || links(error).any(<dyn Error>::is::<ResolveEndpointError>) =>
        {
            Refusal::Settings { said: chain(error) }
        }
        SdkError::ResponseError(_)
            if links(error).any(<dyn Error>::is::<http_body_util::LengthLimitError>) =>
        {
            AnswerError::Unreadable.into()
        }
        SdkError::DispatchFailure(_) | SdkError::ResponseError(_) => network_refusal(error),
        SdkError::ServiceError(service) => {
            let raw = service.raw();
            let code = service.err().code();
            match code {
                None if raw.status().is_success() => AnswerError::Unreadable.into(),
                _ => answer_refusal(code, service.err().message(), raw, asked, now),
            }
        }
        // The SDK may learn new kinds.
        _ => Refusal::Unavailable { said: chain(error) },
    }
}

fn answer_refusal(
    code: Option<&str>,
    message: Option<&str>,
    raw: &HttpResponse,
    asked: &str,
    now: Timestamp,
) -> Refusal {
    let status = raw.status().as_u16();
    let said = match (code, message.map(first_line).filter(|line| !line.is_empty())) {
        (Some(code), Some(message)) => format!("{}: {message}", first_line(code)),
        (Some(code), None) => first_line(code),
        (None, _) => format!("HTTP status {status}"),
    };
    let about_time = message
        .is_some_and(|text| text.contains("Signature expired") || text.contains("Signature not yet current"));
    let code = code.unwrap_or_default();
    if about_time || matches!(code, "RequestExpired" | "RequestTimeTooSkewed") {
        return Refusal::Clock { said, ahead: ahead(raw, now) };
    }
    match code {
        "AccessDeniedException" | "AccessDenied" | "UnauthorizedOperation" => {
            Refusal::Forbidden { said, needs: asked.to_owned() }
        }
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidAccessKeyId"
        | "ExpiredTokenException"
        | "ExpiredToken"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "IncompleteSignature"
        | "IncompleteSignatureException"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "InvalidIdentityToken" => Refusal::BadCredentials { said },
        "ThrottlingException"
        | "Throttling"
        | "ThrottledException"
        | "TooManyRequestsException"
        | "RequestLimitExceeded"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "LimitExceededException"
        | "SlowDown" => Refusal::Throttled { said },
        "InvalidParameterException"
        | "InvalidParameterValue"
        | "ValidationError"
        | "ValidationException"
        | "UnknownOperationException"
        | "UnsupportedCommandException"
        | "InvalidAction"
        | "OptInRequired"
        | "RegionDisabledException"
        | "MalformedPolicyDocument" => Refusal::Rejected { said },
        _ if status == 429 => Refusal::Throttled { said },
        _ => Refusal::Unavailable { said },
    }
}

/// Sorts a failure of the connection.
pub(super) fn network_refusal(error: &(dyn Error + 'static)) -> Refusal {
    use rustls::CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};

    let tls = links(error).find_map(<dyn Error>::downcast_ref::<rustls::Error>);
    match tls {
        // It may be the clock that is wrong, which at boot passes.
        Some(rustls::Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
        )) => {
            let said =
                "the server's certificate is not valid at this time; either it or this node's clock is wrong";
            Refusal::Unavailable { said: said.to_owned() }
        }
        Some(tls @ rustls::Error::InvalidCertificate(_)) => Refusal::Untrusted { said: tls.to_string() },
        _ => Refusal::Unavailable { said: chain(error) },
    }
}

/// How far `now` is ahead of the answer's `Date`.
fn ahead(raw: &HttpResponse, now: Timestamp) -> Option<i64> {
    let date = jiff::fmt::rfc2822::parse(raw.headers().get("date")?).ok()?;
    Some(now.duration_since(date.timestamp()).as_secs())
}

/// An error and all that is behind it, also what hides in an `io::Error`, whose `source` leaves out its own payload.
pub(super) fn links<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    fn next<'a>(error: &&'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
        let error = *error;
        match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(payload) => Some(payload),
            None => error.source(),
        }
    }
    std::iter::successors(Some(error), next)
}

/// An error of the SDK and its causes on one line, each said once.
///
/// Only for errors without an answer behind them: what was answered may be in the text.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut said: Vec<String> = Vec::new();
    for link in links(error) {
        let text = first_line(&link.to_string());
        // A `Debug` form of a request, headers and all.
        if text.contains("SdkBody") {
            continue;
        }
        if !said.iter().any(|before| before.contains(&text)) {
            said.push(text);
        }
    }
    said.join(": ")
}

/// The first line, without control characters, 300 characters at most. AWS explains a wrong signature with the whole
/// request below the first line, session token included.
pub(super) fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(300).collect()
}
