//! Requests to registries.

use super::connector::Connector;
use super::proxy::{Proxies, ProxyError};
use super::request::{self, Request, SendError};
use super::trust::{Tls, Trust, TrustError};
use crate::ecr::environment::Environment;
use crate::ecr::refusal::Refusal;
use crate::ecr::sdk_error::send_refusal;
use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long a registry may take for one answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The client for registries. It follows no redirect.
#[derive(Debug)]
pub struct Registries {
    direct: Connector,
    other: Connector,
}

/// What a registry answered.
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The values of `WWW-Authenticate`.
    pub challenges: Vec<String>,
    /// The body, where it was wanted, or the answer is not 200.
    pub body: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Answer {
    /// The status only: the body may be a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Answer({})", self.status)
    }
}

/// Why registries cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A file of certificates cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// A variable names no proxy.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
}

impl Registries {
    /// Reads the certificates to trust. A registry on this node is asked without a proxy, others through the one that the
    /// environment names.
    ///
    /// # Errors
    /// When a file of certificates or a proxy that was named cannot be used.
    pub async fn load(trust: &Trust, environment: &Environment) -> Result<Self, SetupError> {
        let proxies = Proxies::new(environment)?;
        let tls = Arc::new(Tls::new(trust.clone()));
        // Only to know now whether they can be read.
        tls.config().await?;
        Ok(Self {
            direct: Connector::new(Arc::clone(&tls), Proxies::default()),
            other: Connector::new(tls, proxies),
        })
    }

    /// Asks for `url`. A body that comes with 200 is read only if it is wanted.
    ///
    /// # Errors
    /// When there is no answer within ten seconds, or it is longer than any should be.
    pub async fn get(
        &self,
        url: &str,
        headers: &[(&'static str, &SecretString)],
        on_this_node: bool,
        wants_body: bool,
    ) -> Result<Answer, Refusal> {
        let connector = if on_this_node { &self.direct } else { &self.other };
        let headers = headers.iter().map(|(name, value)| (*name, (*value).clone())).collect();
        let request = Request { headers, ..Request::get(url, TIMEOUT) };
        let exchange = async {
            let (head, body) = request::start(request, connector).await?;
            let status = head.status().as_u16();
            let challenges = head.headers().get_all("www-authenticate").map(str::to_owned).collect();
            let is_read = wants_body || status != 200;
            let body = if is_read { request::read(body).await? } else { Zeroizing::default() };
            Ok(Answer { status, challenges, body })
        };
        let answer = timeout(TIMEOUT, exchange).await.unwrap_or(Err(SendError::TimedOut(TIMEOUT)));
        answer.map_err(|error| send_refusal(&error, "the registry"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_body() {
        let body = Zeroizing::new(b"s3cret-token".to_vec());
        let answer = Answer { status: 200, challenges: Vec::new(), body };
        assert_eq!(format!("{answer:?}"), "Answer(200)");
    }
}
