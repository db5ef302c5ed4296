//! The ways to fail, and how each looks on the wire.

use crate::{
    Api,
    server::{Connection, refuse, respond},
};
use axum::{
    body::{Body, Bytes, HttpBody, to_bytes},
    http::header::CONTENT_LENGTH,
    response::Response,
};
use http_body::Frame;
use std::{
    collections::VecDeque,
    future::{Future as _, pending},
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep};

/// How many of the matching calls a fault meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// All of them, until [`heal`](crate::Emulator::heal) or another fault for the same API.
    Always,
    /// The next ones, this many; the calls after them are answered well.
    First(usize),
}

/// A way to fail.
///
/// Those from `Throttle` to `Forbidden` are answered before a request is checked, so an
/// unsigned request meets them too. The others spoil the good answer to a good request and leave a refusal alone; where
/// an answer has nothing of the kind (a registry has no `expiresAt`), they change nothing, but are counted and recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// "Rate exceeded": 400 from ECR and STS, 429 from the others.
    Throttle,
    /// An error in the shape of the API. Status 200 is what the metadata service gives for a role it cannot assume.
    Error {
        /// The HTTP status.
        status: u16,
        /// The code, for example `AccessDeniedException`.
        code: String,
        /// What AWS says to people.
        message: String,
    },
    /// 500 in the shape of the API.
    InternalError,
    /// 503 with a body of HTML, as a load balancer gives it.
    ServiceUnavailable,
    /// The request is taken and never answered.
    Hang,
    /// 200 with bytes that are neither JSON nor XML nor UTF-8.
    Garbage,
    /// 200 with 100 MiB of white space in what begins like JSON.
    HugeBody,
    /// 404; for the metadata service's credentials: no role is attached to the instance.
    NotFound,
    /// 403; for the metadata service's session: it is switched off.
    Forbidden,

    /// A good answer, one byte a second.
    SlowDrip,
    /// Half of a good answer, then a TCP reset.
    Reset,
    /// Half of a good answer, then an orderly end of the connection.
    CutOff,

    /// No data: ECR gives an empty list, ECR Public and the credentials' APIs leave it out.
    EmptyData,
    /// Data without `authorizationToken`, or credentials without a session token.
    NoToken,
    /// Data without `expiresAt`, or credentials without `Expiration`.
    NoExpiry,
    /// An `authorizationToken` that is no base64.
    TokenNotBase64,
    /// An `authorizationToken` that is base64, but not of `user:password`.
    TokenWithoutColon,
    /// A token, or credentials, that expired an hour ago.
    ExpiredToken,
    /// Data without `proxyEndpoint`, which ECR Public never has.
    NoProxyEndpoint,
    /// This text as `proxyEndpoint`.
    EvilProxyEndpoint(String),
    /// A metadata session that claims to live longer than a 64-bit number of seconds can say.
    AbsurdLifetime,
}

impl Fault {
    /// An error with these three, see [`Fault::Error`].
    #[must_use]
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        Self::Error { status, code: code.to_owned(), message: message.to_owned() }
    }

    /// What ECR says to a role whose policies do not mention it.
    #[must_use]
    pub fn access_denied() -> Self {
        Self::error(
            400,
            "AccessDeniedException",
            "User: arn:aws:sts::123456789012:assumed-role/node/i-0123456789abcdef0 is not authorized to perform: \
             ecr:GetAuthorizationToken on resource: * because no identity-based policy allows the \
             ecr:GetAuthorizationToken action",
        )
    }

    /// The answer that needs no look at the request, if this is such a fault. For [`Fault::Hang`] it never comes.
    pub(crate) async fn instead(&self, api: Api) -> Option<Response> {
        let answer = match self {
            Self::Throttle => match api {
                Api::Ecr | Api::EcrPublic => refuse(api, 400, "ThrottlingException", "Rate exceeded"),
                Api::AssumeRole | Api::WebIdentity => refuse(api, 400, "Throttling", "Rate exceeded"),
                Api::Registry => refuse(api, 429, "TOOMANYREQUESTS", "Rate exceeded"),
                _ => refuse(api, 429, "TooManyRequests", "Rate exceeded"),
            },
            Self::Error { status, code, message } => refuse(api, *status, code, message),
            Self::InternalError => refuse(
                api,
                500,
                "InternalFailure",
                "The request processing has failed because of an unknown error, exception or failure.",
            ),
            Self::ServiceUnavailable => {
                respond(503, "text/html", "<html><body><b>Http/1.1 Service Unavailable</b></body> </html>")
            }
            Self::Hang => pending().await,
            Self::Garbage => respond(
                200,
                "application/x-amz-json-1.1",
                &b"\x00\xff{\"authorizationData\": <garbage>\xfe"[..],
            ),
            Self::HugeBody => huge(),
            Self::NotFound => refuse(api, 404, "NotFound", "There is nothing here."),
            Self::Forbidden => refuse(api, 403, "Forbidden", "This service is switched off."),
            _ => return None,
        };
        Some(answer)
    }

    /// Sends a good answer badly, if this is such a fault.
    pub(crate) async fn spoil(&self, answer: Response, connection: &Connection) -> Response {
        if !matches!(self, Self::SlowDrip | Self::Reset | Self::CutOff) {
            return answer;
        }
        let (mut parts, body) = answer.into_parts();
        let whole = to_bytes(body, usize::MAX).await.unwrap_or_default();
        parts.headers.insert(CONTENT_LENGTH, whole.len().into());
        let body = if matches!(self, Self::SlowDrip) {
            let bytes = (0..whole.len()).map(|at| whole.slice(at..=at)).collect();
            Pieces::new(bytes, Duration::from_secs(1), false)
        } else {
            connection.reset_when_closed(matches!(self, Self::Reset));
            // The pause lets the half get out before the connection ends.
            Pieces::new([whole.slice(..whole.len() / 2)].into(), Duration::from_millis(50), true)
        };
        Response::from_parts(parts, Body::new(body))
    }
}

/// 100 MiB, held once in memory and not a hundred times.
fn huge() -> Response {
    let blank = Bytes::from(vec![b' '; 1 << 20]);
    let mut pieces = VecDeque::from([Bytes::from_static(b"{\"authorizationData\": [")]);
    pieces.extend((0..100).map(|_| blank.clone()));
    let mut answer = respond(200, "application/x-amz-json-1.1", Body::empty());
    *answer.body_mut() = Body::new(Pieces::new(pieces, Duration::ZERO, false));
    answer
}

/// A body that comes in pieces, with a pause after each.
struct Pieces {
    left: VecDeque<Bytes>,
    pause: Duration,
    resting: Pin<Box<Sleep>>,
    /// Ends in an error, on which hyper drops the connection.
    broken: bool,
}

impl Pieces {
    fn new(left: VecDeque<Bytes>, pause: Duration, broken: bool) -> Self {
        Self { left, pause, resting: Box::pin(sleep(Duration::ZERO)), broken }
    }
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        ready!(this.resting.as_mut().poll(context));
        let wake = Instant::now() + this.pause;
        this.resting.as_mut().reset(wake);
        Poll::Ready(match this.left.pop_front() {
            Some(piece) => Some(Ok(Frame::data(piece))),
            None if this.broken => Some(Err(io::Error::other("cut off as told"))),
            None => None,
        })
    }
}
