//! One request of this program's own, and its answer.

use super::connector::MAX_ANSWER;
use aws_smithy_runtime_api::client::http::HttpConnector;
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret as _, SecretString};
use std::error::Error;
use std::fmt;
use std::time::Duration;
use tokio::time::timeout;

/// A request.
pub struct Request<'a> {
    /// `GET`, `PUT` or `POST`.
    pub method: &'static str,
    /// The whole URL.
    pub url: &'a str,
    /// Headers besides `User-Agent`. A value may be a secret.
    pub headers: Vec<(&'static str, SecretString)>,
    /// The body; empty for none.
    pub body: String,
    /// How long the whole exchange may take.
    pub within: Duration,
}

/// An answer, with any status.
pub struct Answer {
    head: HttpResponse,
    /// The body.
    pub body: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Request<'_> {
    /// Method and URL only: headers and body may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Request({} {})", self.method, self.url)
    }
}

impl fmt::Debug for Answer {
    /// The status only: headers and body may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Answer({})", self.status())
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// A part of the request does not fit into one.
    #[error("the request cannot be made: its URL or one of its headers holds a character that none has")]
    Unusable,
    /// The answer did not come in time.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The answer is longer than any should be.
    #[error("the answer is too long")]
    TooLong,
    /// The connection failed.
    #[error("the connection failed")]
    Connection(#[source] ConnectorError),
    /// The answer broke off.
    #[error("the answer broke off")]
    BrokeOff(#[source] Box<dyn Error + Send + Sync>),
}

impl<'a> Request<'a> {
    /// A `GET` request without headers.
    #[must_use]
    pub fn get(url: &'a str, within: Duration) -> Self {
        Self { method: "GET", url, headers: Vec::new(), body: String::new(), within }
    }

    /// Sends it and reads the answer.
    pub(super) async fn send(self, connector: &impl HttpConnector) -> Result<Answer, SendError> {
        let within = self.within;
        let exchange = async {
            let (head, body) = start(self, connector).await?;
            Ok(Answer { head, body: read(body).await? })
        };
        timeout(within, exchange).await.map_err(|_| SendError::TimedOut(within))?
    }
}

/// Sends a request and reads the answer's head.
pub(super) async fn start(
    request: Request<'_>,
    connector: &impl HttpConnector,
) -> Result<(HttpResponse, SdkBody), SendError> {
    let mut sent = HttpRequest::new(SdkBody::from(request.body));
    sent.set_method(request.method).map_err(|_| SendError::Unusable)?;
    sent.set_uri(request.url).map_err(|_| SendError::Unusable)?;
    let agent = concat!("ecr-node-agent/", env!("CARGO_PKG_VERSION"));
    sent.headers_mut().insert("user-agent", agent);
    for (name, value) in request.headers {
        let value = value.expose_secret().to_owned();
        sent.headers_mut().try_insert(name, value).map_err(|_| SendError::Unusable)?;
    }
    let mut answer = connector.call(sent).await.map_err(SendError::Connection)?;
    let body = answer.take_body();
    Ok((answer, body))
}

/// Reads an answer's body, of limited length.
pub(super) async fn read(body: SdkBody) -> Result<Zeroizing<Vec<u8>>, SendError> {
    match Limited::new(body, MAX_ANSWER).collect().await {
        Ok(body) => Ok(Zeroizing::new(body.to_bytes().to_vec())),
        Err(error) if error.is::<LengthLimitError>() => Err(SendError::TooLong),
        Err(error) => Err(SendError::BrokeOff(error)),
    }
}

impl Answer {
    /// The status.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.head.status().as_u16()
    }

    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.headers().get(name)
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.body).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_smithy_runtime_api::http::StatusCode;

    #[test]
    fn debug_shows_no_header_and_no_body() {
        let body = "s3cret-body".to_owned();
        let headers = vec![("authorization", SecretString::from("s3cret-header"))];
        let request = Request { headers, body, ..Request::get("http://host/", Duration::from_secs(1)) };
        assert_eq!(format!("{request:?}"), "Request(GET http://host/)");
        let mut head = HttpResponse::new(StatusCode::try_from(403).unwrap(), SdkBody::empty());
        head.headers_mut().insert("set-cookie", "s3cret-header");
        let answer = Answer { head, body: Zeroizing::new(b"s3cret-body".to_vec()) };
        assert_eq!(format!("{answer:?}"), "Answer(403)");
    }
}
