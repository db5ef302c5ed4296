//! Why there is no token: one variant for each thing that an operator has to do about it.
//!
//! A refusal holds text only. No value of the AWS SDK leaves `ecr`: the `Debug` form of the SDK's errors, and the `Display`
//! form of some, carries whole answers with the secrets in them.

use super::token::{ExpiryError, TokenError};
use crate::time::retry::Retry;
use jiff::{SignedDuration, Timestamp};
use std::fmt;

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The credential source that is configured has none, or no source is configured.
    #[error("no usable AWS credentials: {reason}")]
    NoCredentials {
        /// Which variable or file, which line, why, and what to do.
        reason: String,
        /// Whether the source may have some a moment later.
        passing: bool,
    },
    /// AWS does not accept the credentials.
    #[error("AWS does not accept the credentials: {reason}")]
    BadCredentials {
        /// What AWS answered.
        reason: String,
        /// Whether the same credentials may be accepted a moment later.
        passing: bool,
    },
    /// No region is configured, and the metadata service names none.
    #[error("no AWS region: {reason}")]
    NoRegion {
        /// What was looked at, and what to do.
        reason: String,
        /// Whether the metadata service may answer a moment later.
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
    /// AWS refuses the credential source that is configured, or cannot be reached for it.
    #[error("no usable AWS credentials: {origin}: {refusal}")]
    Source {
        /// Where the source is configured.
        origin: String,
        /// Why there are no credentials.
        refusal: Box<Refusal>,
    },
    /// The caller lacks a permission.
    #[error("access denied: {reason}; the caller needs {needs}")]
    Forbidden {
        /// What AWS answered.
        reason: String,
        /// The permission that is missing.
        needs: String,
    },
    /// AWS refuses the time of the signature.
    #[error("AWS refuses the signature for its time: {reason}; {}", clock(*.ahead))]
    Clock {
        /// What AWS answered.
        reason: String,
        /// How far this node's clock is ahead of the server's, in whole seconds; `None` if the answer has no date.
        ahead: Option<i64>,
    },
    /// Too many calls in this account and region.
    #[error("throttled: {reason}")]
    Throttled {
        /// What AWS answered.
        reason: String,
    },
    /// No answer, or a server error.
    #[error("no answer: {reason}")]
    Unavailable {
        /// Which server, and what the network or the server said.
        reason: String,
    },
    /// The server's certificate cannot be trusted.
    #[error(
        "the server's certificate is refused: {reason}; if a proxy or a private endpoint has its own CA, name the CA's file \
         in AWS_CA_BUNDLE or SSL_CERT_FILE"
    )]
    Untrusted {
        /// Which server, and what is wrong with its certificate.
        reason: String,
    },
    /// A setting that cannot work.
    #[error("the AWS settings do not work: {reason}")]
    Settings {
        /// Which setting, and what is wrong with it.
        reason: String,
    },
    /// AWS refuses the request, and will go on to do so.
    #[error("refused: {reason}")]
    Rejected {
        /// What AWS answered.
        reason: String,
    },
    /// An answer that is not what the API promises.
    #[error("the answer cannot be used: {0}")]
    BadAnswer(#[from] AnswerError),
    /// A part of the program failed on some input.
    #[error("unexpected failure: {reason}; please report it")]
    Internal {
        /// What was being done.
        reason: String,
    },
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
    /// A fault of this program.
    Internal,
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
            Self::Internal => "internal",
        }
    }
}

/// What is wrong with an answer that came with success. The texts show nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Neither JSON nor XML of the expected shape.
    #[error("it cannot be read")]
    Unreadable,
    /// Longer than any should be. Names the service.
    #[error("the one of {0} is too long")]
    TooLong(String),
    /// `authorizationData` is missing or empty.
    #[error("it holds no authorization data")]
    NoData,
    /// There is no token in the data.
    #[error("it holds no authorization token")]
    NoToken,
    /// There is no `expiresAt` in the data, or one that is no time.
    #[error("it does not say when the token expires")]
    NoExpiry,
    /// `expiresAt` has passed.
    #[error("its token expired {0} ago, or this node's clock is wrong")]
    Expired(Seconds),
    /// The token ends too soon to be of use.
    #[error("its token expires in {0} already, or this node's clock is wrong")]
    ExpiresSoon(Seconds),
    /// The token is not one that the kubelet could use.
    #[error("{0}")]
    Token(#[from] TokenError),
    /// `proxyEndpoint` is missing, or names a host that is not a registry of ECR in the region that was asked.
    #[error("it names no ECR registry of the region that was asked; give --registry HOST,region=REGION")]
    NoRegistry,
    /// STS gave no credentials for the role.
    #[error("it holds no credentials for the role")]
    NoRoleCredentials,
}

/// A span of time, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seconds(pub i64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", SignedDuration::from_secs(self.0))
    }
}

impl From<ExpiryError> for AnswerError {
    fn from(error: ExpiryError) -> Self {
        match error {
            ExpiryError::Expired(ago) => {
                Self::Expired(Seconds(ago.saturating_add(SignedDuration::from_millis(999)).as_secs()))
            }
            ExpiryError::Soon(left) => Self::ExpiresSoon(Seconds(left.as_secs())),
        }
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
            Self::Source { refusal, .. } => refusal.class(),
            Self::NoRegion { .. } => Class::Region,
            Self::Forbidden { .. } => Class::Denied,
            Self::Clock { .. } => Class::Clock,
            Self::Throttled { .. } => Class::Throttled,
            Self::Unavailable { .. } => Class::Unreachable,
            Self::Untrusted { .. } => Class::Untrusted,
            Self::Settings { .. } => Class::Settings,
            Self::Rejected { .. } => Class::Rejected,
            Self::BadAnswer(_) => Class::BadAnswer,
            Self::Internal { .. } => Class::Internal,
        }
    }

    /// What this says about the next attempt.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Source { refusal, .. } => refusal.retry(),
            Self::Throttled { .. } => Retry::Throttled,
            refusal if refusal.is_passing() => Retry::Later,
            _ => Retry::Useless,
        }
    }

    /// Whether the same request may succeed a moment later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::NoCredentials { passing, .. }
            | Self::BadCredentials { passing, .. }
            | Self::NoRegion { passing, .. } => *passing,
            Self::NoCredentialsNorRegion { credentials, .. } => credentials.is_passing(),
            Self::Source { refusal, .. } => refusal.is_passing(),
            Self::Clock { .. } | Self::Throttled { .. } | Self::Unavailable { .. } => true,
            Self::Forbidden { .. }
            | Self::Untrusted { .. }
            | Self::Settings { .. }
            | Self::Rejected { .. }
            | Self::BadAnswer(_)
            | Self::Internal { .. } => false,
        }
    }

    /// Whether there are no usable credentials or no region, or a setting cannot work, rather than an ECR that refuses.
    #[must_use]
    pub fn is_about_the_caller(&self) -> bool {
        matches!(self, Self::Source { .. })
            || matches!(self.class(), Class::Credentials | Class::Region | Class::Settings)
    }

    /// The same, with what is wrong with the credentials, if the region is missing and they are missing too.
    #[must_use]
    pub fn and_credentials(self, credentials: Option<Self>) -> Self {
        match (&self, credentials) {
            (
                Self::NoRegion { .. },
                Some(credentials @ (Self::NoCredentials { .. } | Self::Source { .. })),
            ) => Self::NoCredentialsNorRegion { credentials: Box::new(credentials), region: Box::new(self) },
            _ => self,
        }
    }

    /// Whether this node's clock may be to blame: signatures, certificates and tokens are valid for a time.
    #[must_use]
    pub fn may_be_the_clock(&self) -> bool {
        if let Self::Source { refusal, .. } = self {
            return refusal.may_be_the_clock();
        }
        let expired = matches!(self, Self::BadAnswer(AnswerError::Expired(_) | AnswerError::ExpiresSoon(_)));
        expired || matches!(self, Self::Clock { .. } | Self::Untrusted { .. })
    }

    /// The same, as a failure of the credential source that is configured there. The refusal must not name it yet.
    pub(super) fn of_source(self, origin: &str) -> Self {
        match self {
            Self::NoCredentials { reason, passing } => {
                Self::NoCredentials { reason: format!("{origin}: {reason}"), passing }
            }
            Self::NoRegion { .. } | Self::Source { .. } => self,
            refusal => Self::Source { origin: origin.to_owned(), refusal: Box::new(refusal) },
        }
    }

    /// The reason alone, without the class in words.
    pub(super) fn into_reason(self) -> String {
        match self {
            Self::NoCredentials { reason, .. }
            | Self::BadCredentials { reason, .. }
            | Self::NoRegion { reason, .. }
            | Self::Forbidden { reason, .. }
            | Self::Clock { reason, .. }
            | Self::Throttled { reason }
            | Self::Unavailable { reason }
            | Self::Untrusted { reason }
            | Self::Settings { reason }
            | Self::Rejected { reason }
            | Self::Internal { reason } => reason,
            Self::BadAnswer(_) | Self::NoCredentialsNorRegion { .. } | Self::Source { .. } => {
                self.to_string()
            }
        }
    }

    /// No credentials until an operator changes something.
    pub(super) fn no_credentials(reason: &(impl fmt::Display + ?Sized)) -> Self {
        Self::NoCredentials { reason: reason.to_string(), passing: false }
    }

    /// A setting that cannot work.
    pub(super) fn settings(reason: &(impl fmt::Display + ?Sized)) -> Self {
        Self::Settings { reason: reason.to_string() }
    }
}

/// How far `now` is ahead of a server's `Date`, in whole seconds; `None` if that is no date.
#[must_use]
pub fn ahead(date: Option<&str>, now: Timestamp) -> Option<i64> {
    let date = jiff::fmt::rfc2822::parse(date?).ok()?;
    Some(now.duration_since(date.timestamp()).as_secs())
}

/// How far a clock is off, in words.
#[must_use]
pub fn clock(ahead: Option<i64>) -> String {
    let Some(seconds) = ahead else {
        return "set this node's clock".to_owned();
    };
    let off = SignedDuration::from_secs(seconds.abs());
    let direction = if seconds < 0 { "behind" } else { "ahead of" };
    format!("this node's clock is {off:#} {direction} the server's: set it")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason() -> String {
        "why".to_owned()
    }

    fn source(refusal: Refusal) -> Refusal {
        Refusal::Source { origin: "AWS_PROFILE".to_owned(), refusal: Box::new(refusal) }
    }

    #[test]
    fn a_refusal_says_whether_the_next_attempt_may_succeed_and_who_is_at_fault() {
        use Retry::{Later, Throttled, Useless};

        let missing = |passing| Refusal::NoCredentials { reason: reason(), passing };
        let bad = |passing| Refusal::BadCredentials { reason: reason(), passing };
        let no_region = |passing| Refusal::NoRegion { reason: reason(), passing };
        let neither = |passing| no_region(true).and_credentials(Some(missing(passing)));
        let forbidden = Refusal::Forbidden { reason: reason(), needs: reason() };
        let cases = [
            // refusal, class, what to do next, whether it is about the caller, whether the clock may be to blame
            (missing(true), "credentials", Later, true, false),
            (missing(false), "credentials", Useless, true, false),
            (bad(true), "credentials", Later, true, false),
            (bad(false), "credentials", Useless, true, false),
            (no_region(true), "region", Later, true, false),
            (no_region(false), "region", Useless, true, false),
            (neither(true), "credentials", Later, true, false),
            (neither(false), "credentials", Useless, true, false),
            (forbidden.clone(), "denied", Useless, false, false),
            (source(forbidden), "denied", Useless, true, false),
            (Refusal::Throttled { reason: reason() }, "throttled", Throttled, false, false),
            (source(Refusal::Throttled { reason: reason() }), "throttled", Throttled, true, false),
            (Refusal::Unavailable { reason: reason() }, "unreachable", Later, false, false),
            (source(Refusal::Unavailable { reason: reason() }), "unreachable", Later, true, false),
            (Refusal::Untrusted { reason: reason() }, "untrusted", Useless, false, true),
            (source(Refusal::Untrusted { reason: reason() }), "untrusted", Useless, true, true),
            (Refusal::Settings { reason: reason() }, "settings", Useless, true, false),
            (Refusal::Rejected { reason: reason() }, "rejected", Useless, false, false),
            (Refusal::Internal { reason: reason() }, "internal", Useless, false, false),
            (Refusal::BadAnswer(AnswerError::NoData), "bad_answer", Useless, false, false),
            (Refusal::BadAnswer(AnswerError::Expired(Seconds(1))), "bad_answer", Useless, false, true),
            (Refusal::BadAnswer(AnswerError::ExpiresSoon(Seconds(1))), "bad_answer", Useless, false, true),
            (Refusal::Clock { reason: reason(), ahead: None }, "clock", Later, false, true),
        ];
        for (refusal, class, retry, about_the_caller, clock) in cases {
            assert_eq!(refusal.class().as_str(), class, "{refusal:?}");
            assert_eq!(refusal.retry(), retry, "{refusal:?}");
            assert_eq!(refusal.is_passing(), retry != Useless, "{refusal:?}");
            assert_eq!(refusal.is_about_the_caller(), about_the_caller, "{refusal:?}");
            assert_eq!(refusal.may_be_the_clock(), clock, "{refusal:?}");
        }
    }

    #[test]
    fn a_missing_region_names_missing_credentials_too() {
        let region = || Refusal::NoRegion { reason: "no region".to_owned(), passing: false };
        let credentials = Refusal::no_credentials("no key");
        let both = region().and_credentials(Some(credentials.clone()));
        assert_eq!(both.to_string(), format!("{credentials}; and {}", region()));
        let of_source = source(Refusal::Throttled { reason: reason() });
        assert!(matches!(region().and_credentials(Some(of_source)), Refusal::NoCredentialsNorRegion { .. }));
        // Credentials that are there and are refused say nothing about the region.
        let refused = Refusal::BadCredentials { reason: reason(), passing: false };
        assert_eq!(region().and_credentials(Some(refused)), region());
        assert_eq!(region().and_credentials(None), region());
        // The reason alone is for a text that says the rest.
        assert_eq!(credentials.into_reason(), "no key");
        assert_eq!(
            Refusal::BadAnswer(AnswerError::Expired(Seconds(90))).into_reason(),
            "the answer cannot be used: its token expired 1m 30s ago, or this node's clock is wrong"
        );
    }

    #[test]
    fn the_clock_is_compared_with_a_servers_date() {
        let date = "Mon, 23 Nov 2026 10:00:00 GMT";
        let cases = [
            ("2026-11-23T10:00:00Z", "this node's clock is 0s ahead of the server's: set it"),
            ("2026-11-23T10:20:00Z", "this node's clock is 20m ahead of the server's: set it"),
            ("2026-11-23T09:40:00Z", "this node's clock is 20m behind the server's: set it"),
        ];
        for (now, expected) in cases {
            assert_eq!(clock(ahead(Some(date), now.parse().unwrap())), expected);
        }
        for date in [None, Some("today")] {
            assert_eq!(ahead(date, Timestamp::UNIX_EPOCH), None);
        }
        assert_eq!(clock(None), "set this node's clock");
    }
}
