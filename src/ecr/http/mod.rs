//! HTTP for AWS and for registries: one TLS stack, proxies and private CAs from the environment, answers of limited size.
//!
//! | file | what is in it |
//! | --- | --- |
//! | [`trust`] | which certificate authorities are trusted |
//! | [`proxy`] | which proxy a request goes through (pure) |
//! | [`connector`] | where requests leave for the network |
//! | [`request`] | one request of this program's own, and its answer |
//! | [`registries`] | requests to registries |

pub mod connector;
pub mod proxy;
pub mod registries;
pub mod request;
pub mod trust;

use self::connector::Connector;
use self::proxy::Proxies;
use self::request::{Answer, Request, SendError};
use self::trust::{Tls, Trust, TrustError};
use aws_smithy_runtime_api::client::http::{SharedHttpClient, SharedHttpConnector, http_client_fn};
use std::sync::Arc;

/// The HTTP clients of one attempt.
#[derive(Debug, Clone)]
pub struct Http {
    /// For AWS's APIs, through proxies.
    apis: SharedHttpConnector,
    /// For services on this node, never through a proxy: it would see the credentials.
    this_node: SharedHttpConnector,
}

impl Http {
    /// Reads the certificates to trust, if a variable names some. Those of the system are read when they are first needed.
    ///
    /// # Errors
    /// When a file that was named holds no certificate, or cannot be read.
    pub async fn load(trust: &Trust, proxies: Proxies) -> Result<Self, TrustError> {
        let tls = Arc::new(Tls::new(trust.clone()));
        if *trust != Trust::System {
            tls.config().await?;
        }
        let shared = |proxies| SharedHttpConnector::new(Connector::new(Arc::clone(&tls), proxies));
        Ok(Self { apis: shared(proxies), this_node: shared(Proxies::default()) })
    }

    /// The client that the AWS SDK uses.
    #[must_use]
    pub fn for_sdk(&self) -> SharedHttpClient {
        let connector = self.apis.clone();
        http_client_fn(move |_, _| connector.clone())
    }

    /// Sends a request to an API of AWS that the SDK does not know.
    ///
    /// # Errors
    /// When no answer comes in time, or it is too long.
    pub async fn send(&self, request: Request<'_>) -> Result<Answer, SendError> {
        request.send(&self.apis).await
    }

    /// Sends a request to a service on this node.
    ///
    /// # Errors
    /// When no answer comes in time, or it is too long.
    pub async fn send_on_this_node(&self, request: Request<'_>) -> Result<Answer, SendError> {
        request.send(&self.this_node).await
    }
}
