//! What an error of the network or an answer of AWS means.
//!
//! Errors are told apart by their types and by AWS's error codes. Their text is only shown, by [`redact`].

use super::http::connector::{CameThrough, Unreachable};
use super::http::request::SendError;
use super::refusal::{AnswerError, Refusal, ahead};
use crate::report::redact::{redact, redact_known};
use aws_smithy_http::endpoint::error::ResolveEndpointError;
use aws_smithy_runtime_api::client::dns::ResolveDnsError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use http_body_util::LengthLimitError;
use jiff::Timestamp;
use rustls::CertificateError;
use std::error::Error;
use std::io;

/// The longest text of a server's or of a library's that is shown.
const LONGEST: usize = 300;

/// AWS refuses signatures that are five minutes old or more, in seconds; less, since a date is in whole seconds and an
/// answer takes its time.
pub const CLOCK_TOLERANCE: i64 = 290;

/// A call to an API of AWS, as far as its errors depend on it.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    /// The API and where it is asked: `STS in eu-west-1`.
    pub service: &'a str,
    /// The permission that it needs.
    pub needs: &'a str,
}

/// Sorts an error of an SDK call. An error code that is not known may pass: to ask again later does no harm.
pub fn refusal<E>(error: &SdkError<E, HttpResponse>, call: &Call<'_>, now: Timestamp) -> Refusal
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    let has = |is: fn(&(dyn Error + 'static)) -> bool| links(error).any(is);
    match error {
        SdkError::ConstructionFailure(_) => Refusal::settings(&chain(error)),
        SdkError::TimeoutError(_) => {
            Refusal::Unavailable { reason: format!("{} did not answer in time", call.service) }
        }
        SdkError::DispatchFailure(failure)
            if failure.is_user() || has(<dyn Error>::is::<ResolveEndpointError>) =>
        {
            Refusal::settings(&chain(error))
        }
        SdkError::ResponseError(_) if has(<dyn Error>::is::<LengthLimitError>) => {
            AnswerError::TooLong(call.service.to_owned()).into()
        }
        SdkError::ServiceError(failure) => {
            let raw = failure.raw();
            match failure.err().code() {
                None if raw.status().is_success() => AnswerError::Unreadable.into(),
                code => answer_refusal(code, failure.err().message(), raw, call, now),
            }
        }
        _ => network_refusal(error, call.service),
    }
}

/// Sorts an answer of AWS that is an error.
fn answer_refusal(
    code: Option<&str>,
    message: Option<&str>,
    raw: &HttpResponse,
    call: &Call<'_>,
    now: Timestamp,
) -> Refusal {
    let status = raw.status().as_u16();
    let mut reason = match (code, message.map(first_line).filter(|line| !line.is_empty())) {
        (Some(code), Some(message)) => format!("{}: {message}", first_line(code)),
        (Some(code), None) => first_line(code),
        (None, _) => format!("HTTP status {status} from {}", call.service),
    };
    if let (None, Some(CameThrough(proxy))) = (code, raw.extension()) {
        reason = format!("{reason}, or from {proxy} on the way");
    }
    let ahead = ahead(raw.headers().get("date"), now);
    match code.unwrap_or_default() {
        "RequestExpired" | "RequestTimeTooSkewed" => Refusal::Clock { reason, ahead },
        // AWS's JSON APIs have no code of its own for a signature that is too old or too new.
        "InvalidSignatureException" | "SignatureDoesNotMatch"
            if ahead.is_some_and(|ahead| ahead.abs() >= CLOCK_TOLERANCE) =>
        {
            Refusal::Clock { reason, ahead }
        }
        "AccessDeniedException" | "AccessDenied" | "UnauthorizedOperation" => {
            Refusal::Forbidden { reason, needs: call.needs.to_owned() }
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
        | "InvalidIdentityToken" => Refusal::BadCredentials { reason, passing: false },
        "ThrottlingException"
        | "Throttling"
        | "ThrottledException"
        | "TooManyRequestsException"
        | "RequestLimitExceeded"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "LimitExceededException"
        | "SlowDown" => Refusal::Throttled { reason },
        "InvalidParameterException"
        | "InvalidParameterValue"
        | "ValidationError"
        | "ValidationException"
        | "UnknownOperationException"
        | "UnsupportedCommandException"
        | "InvalidAction"
        | "OptInRequired"
        | "RegionDisabledException"
        | "MalformedPolicyDocument" => Refusal::Rejected { reason },
        _ if status == 429 => Refusal::Throttled { reason },
        _ => Refusal::Unavailable { reason },
    }
}

/// Sorts a failure of the network on the way to a service.
pub fn network_refusal(error: &(dyn Error + 'static), service: &str) -> Refusal {
    let unreachable = links(error).find_map(<dyn Error>::downcast_ref::<Unreachable>);
    // The server is named once: by its host where that is known, which the service's name explains.
    let server = match unreachable {
        Some(Unreachable { host, proxy: None, .. }) => format!("{service} ({host})"),
        Some(Unreachable { host, proxy: Some(proxy), .. }) => format!("{service} ({host}) through {proxy}"),
        None => service.to_owned(),
    };
    let cause = match unreachable.and_then(Error::source) {
        Some(cause) => root_cause(cause),
        None => root_cause(error),
    };
    let tls = links(error).find_map(<dyn Error>::downcast_ref::<rustls::Error>);
    match tls {
        // The clock may be wrong, which at boot passes.
        Some(rustls::Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        )) => Refusal::Unavailable {
            reason: format!(
                "the certificate of {server} is not valid at this time; either the certificate or this node's clock is wrong"
            ),
        },
        Some(tls @ rustls::Error::InvalidCertificate(_)) => {
            Refusal::Untrusted { reason: format!("{server}: {}", redact(&tls.to_string(), LONGEST)) }
        }
        _ if links(error).any(<dyn Error>::is::<ResolveDnsError>) => {
            Refusal::Unavailable { reason: format!("cannot resolve the name of {server}: {cause}") }
        }
        _ => Refusal::Unavailable { reason: format!("cannot reach {server}: {cause}") },
    }
}

/// Sorts a failure of a request of this program's own.
#[must_use]
pub fn send_refusal(error: &SendError, service: &str) -> Refusal {
    match error {
        SendError::Unusable => Refusal::settings(&format!("{service}: {error}")),
        SendError::TooLong => AnswerError::TooLong(service.to_owned()).into(),
        SendError::TimedOut(_) => Refusal::Unavailable { reason: format!("{service}: {error}") },
        SendError::Connection(error) => network_refusal(error, service),
        SendError::BrokeOff(_) => Refusal::Unavailable { reason: format!("{service}: {}", chain(error)) },
    }
}

/// An error and all its causes, also the payload of an `io::Error`, which its `source` leaves out.
pub fn links<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    fn next<'a>(error: &&'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
        let error = *error;
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(payload) => Some(payload),
            None => error.source(),
        }
    }
    std::iter::successors(Some(error), next)
}

/// What the system said, or where it said nothing the whole chain.
fn root_cause(error: &(dyn Error + 'static)) -> String {
    match links(error).last().filter(|_| links(error).any(<dyn Error>::is::<io::Error>)) {
        Some(last) => first_line(&last.to_string()),
        None => chain(error),
    }
}

/// An error and its causes on one line, each once. Only for errors without an answer behind them.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut texts: Vec<String> = Vec::new();
    for link in links(error) {
        let text = first_line(&link.to_string());
        if !texts.iter().any(|before| before.contains(&text)) {
            texts.push(text);
        }
    }
    texts.join(": ")
}

/// The first line that is not empty, as it may be shown. AWS explains a wrong signature with the whole request in the lines
/// below.
#[must_use]
pub fn first_line(text: &str) -> String {
    redact_known(text.trim_start().lines().next().unwrap_or_default(), LONGEST)
}
