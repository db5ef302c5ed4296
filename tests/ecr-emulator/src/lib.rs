//! Stands in for AWS, on loopback, and fails as told.
//!
//! One port serves every API that the agent talks to, told apart by the request:
//!
//! | API | served in | checks |
//! | --- | --- | --- |
//! | ECR and ECR Public, `GetAuthorizationToken` | `ecr.rs` | the signature, by `signature.rs` |
//! | STS, `AssumeRole` | `sts.rs` | the signature |
//! | STS, `AssumeRoleWithWebIdentity` | `sts.rs` | the web identity token |
//! | IAM Roles Anywhere, `CreateSession` | `sessions.rs` | the signature by a certificate's key, its chain and its usage |
//! | instance metadata service, version 2 | `metadata.rs` | its session token |
//! | container credentials (ECS, EKS Pod Identity) | `metadata.rs` | the `Authorization` header |
//! | a registry: `/v2/` and manifests | `registry.rs` | HTTP basic with a token from here that still lives, or a bearer token for one |
//!
//! Signatures are really verified, with AWS's rules on clocks and temporary credentials; what STS, the metadata
//! service and the container endpoint hand out is good for the signed APIs, and the tokens that ECR hands out are good
//! at the registry. [`Fault`]s are set while it runs. The `Host` header decides nothing and is recorded, so that a
//! test sees which endpoint was asked for; [`proxy`] is a forward proxy that ends every connection here.
//!
//! What it does not do: policies (whoever signs well may do all), the other calls of these services, and blobs.
//!
//! ```
//! use ecr_emulator::{Api, Emulator, Fault, Options, Times};
//!
//! let aws = Emulator::start(Options::default())?;
//! aws.fail(Api::Ecr, Fault::Throttle, Times::First(2));
//! // Run something with `aws.environment()`, then look:
//! assert_eq!(aws.count(Api::Ecr), 0);
//! # Ok::<(), std::io::Error>(())
//! ```

mod background;
mod ecr;
mod fault;
mod metadata;
pub mod proxy;
mod registry;
mod server;
mod sessions;
mod signature;
mod sts;
#[cfg(test)]
mod tests;
mod tls;
mod world;

pub use fault::{Fault, Times};
pub use sessions::RolesAnywhere;

use background::Background;
use jiff::{SignedDuration, Timestamp};
use std::{io, net::SocketAddr, sync::Arc};
use world::World;

/// What can be asked for, as far as faults and counts tell it apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Api {
    /// Private ECR's `GetAuthorizationToken`.
    Ecr,
    /// ECR Public's `GetAuthorizationToken`.
    EcrPublic,
    /// STS's `AssumeRole`.
    AssumeRole,
    /// STS's `AssumeRoleWithWebIdentity`.
    WebIdentity,
    /// IAM Roles Anywhere's `CreateSession`.
    RolesAnywhere,
    /// The metadata service's `PUT /latest/api/token`, which comes before everything else there.
    ImdsSession,
    /// The metadata service's role name and credentials: two calls for one set.
    ImdsCredentials,
    /// The metadata service's region.
    ImdsRegion,
    /// The container endpoint.
    Container,
    /// The registry.
    Registry,
}

/// A request that was understood, whether or not it was answered well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What was asked.
    pub api: Api,
    /// The region of the signature's scope; empty without one.
    pub region: String,
    /// The access key that signed, known or not; empty without one.
    pub access_key: String,
    /// The role whose credentials STS handed out, and which signed.
    pub role: Option<String>,
    /// The host that the client believes to talk to, with its port if it named one.
    pub host: String,
    /// The fault that the call met.
    pub fault: Option<Fault>,
    /// When, by the emulator's clock.
    pub at: Timestamp,
}

/// An authorization token that was handed out. Its `Debug` shows it all: nothing here is a real secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// What the answer held: the base64 of `AWS:` and the password.
    pub token_base64: String,
    /// The password alone. `SECRETPASSWORD` stands in it.
    pub password: String,
    /// The region it was asked for.
    pub region: String,
    /// The role that asked, if it came from STS.
    pub role: Option<String>,
    /// Its end, by the emulator's clock.
    pub expires_at: Timestamp,
}

/// How to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// The port on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// Long-lived access keys: id and secret.
    pub access_keys: Vec<(String, String)>,
    /// The account whose registry the answers name.
    pub account: String,
    /// How long an authorization token lives.
    pub token_lifetime: SignedDuration,
    /// How long credentials of the metadata service and the container endpoint live.
    pub credentials_lifetime: SignedDuration,
    /// How far the emulator's clock is ahead of the real one. Used for `Date`, expiry and the age of signatures.
    pub clock_offset: SignedDuration,
    /// What the container endpoint wants as `Authorization`; `None` lets everybody in.
    pub container_token: Option<String>,
    /// With `Some`, the registry wants a token of the service at this URL, its own `/token` if it is empty.
    pub registry_realm: Option<String>,
    /// What IAM Roles Anywhere knows; `None` for no trust anchor.
    pub roles_anywhere: Option<RolesAnywhere>,
    /// The web identity token that STS takes.
    pub web_identity_token: String,
    /// The name of the instance's role.
    pub imds_role: String,
    /// The region that the instance is in.
    pub imds_region: String,
    /// With `Some`, TLS with a certificate for `localhost`, `127.0.0.1` and these names. `*.amazonaws.com` is a
    /// possible name, which covers one label: `api.ecr.eu-west-1.amazonaws.com` needs its own.
    pub tls: Option<Vec<String>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            port: 0,
            // The pair of AWS's documentation, which scanners for secrets know as harmless.
            access_keys: vec![(
                "AKIAIOSFODNN7EXAMPLE".to_owned(),
                "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
            )],
            account: "123456789012".to_owned(),
            token_lifetime: SignedDuration::from_hours(12),
            credentials_lifetime: SignedDuration::from_hours(6),
            clock_offset: SignedDuration::ZERO,
            container_token: Some("emulated-container-authorization".to_owned()),
            registry_realm: None,
            roles_anywhere: None,
            web_identity_token: "emulated.web.identity".to_owned(),
            imds_role: "node".to_owned(),
            imds_region: "eu-west-1".to_owned(),
            tls: None,
        }
    }
}

/// A running emulator. Dropping it closes every connection and joins its thread.
#[derive(Debug)]
pub struct Emulator {
    world: Arc<World>,
    address: SocketAddr,
    ca_pem: String,
    _background: Background,
}

impl Emulator {
    /// Starts on 127.0.0.1. When this returns, the port takes connections.
    ///
    /// # Errors
    /// When the port is taken, the system gives no thread, or a name in [`Options::tls`] is none.
    pub fn start(options: Options) -> io::Result<Self> {
        let listener = background::listen(options.port)?;
        let address = listener.local_addr()?;
        let (ca_pem, tls) = match &options.tls {
            Some(names) => tls::make(names).map(|(ca_pem, acceptor)| (ca_pem, Some(acceptor)))?,
            None => (String::new(), None),
        };
        let world = Arc::new(World::new(options));
        let shared = Arc::clone(&world);
        let background = Background::start("ecr-emulator", move || server::serve(listener, tls, shared))?;
        Ok(Self { world, address, ca_pem, _background: background })
    }

    /// `http://127.0.0.1:PORT`, or `https://localhost:PORT` with TLS; no slash at the end.
    #[must_use]
    pub fn url(&self) -> String {
        let start = if self.ca_pem.is_empty() { "http://127.0.0.1" } else { "https://localhost" };
        format!("{start}:{}", self.port())
    }

    /// The port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Where it listens, as [`proxy::Proxy::start`] wants it.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate authority to trust; empty without TLS.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The variables that make an AWS SDK come here with the first access key.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let options = &self.world.options;
        let (id, secret) = options.access_keys.first().cloned().unwrap_or_default();
        vec![
            ("AWS_ENDPOINT_URL", self.url()),
            ("AWS_REGION", options.imds_region.clone()),
            ("AWS_ACCESS_KEY_ID", id),
            ("AWS_SECRET_ACCESS_KEY", secret),
        ]
    }

    /// The emulator's clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.world.now()
    }

    /// Sets how far the emulator's clock is ahead of the real one.
    pub fn set_clock_offset(&self, offset: SignedDuration) {
        self.world.set_clock_offset(offset);
    }

    /// Every request that was understood, oldest first.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.world.calls()
    }

    /// How many requests `api` got.
    #[must_use]
    pub fn count(&self, api: Api) -> usize {
        self.world.count(api)
    }

    /// Every authorization token handed out, oldest first.
    #[must_use]
    pub fn issued(&self) -> Vec<Issued> {
        self.world.issued()
    }

    /// Every secret text it knows or has handed out: secret access keys, session tokens, passwords, tokens in base64.
    #[must_use]
    pub fn secrets(&self) -> Vec<String> {
        self.world.secrets()
    }

    /// Makes `api` fail, in every region that has no fault of its own. Takes the place of the last such fault.
    pub fn fail(&self, api: Api, fault: Fault, times: Times) {
        self.world.fail(api, None, fault, times);
    }

    /// Makes `api` fail in one region, which goes before a fault for all. Only signed requests name a region.
    pub fn fail_in(&self, region: &str, api: Api, fault: Fault, times: Times) {
        self.world.fail(api, Some(region), fault, times);
    }

    /// Takes all faults away. An answer under way keeps its own.
    pub fn heal(&self) {
        self.world.heal();
    }

    /// Makes the registry refuse every token issued until now. What the answers said of their end stays said.
    pub fn expire_all(&self) {
        self.world.expire_all();
    }
}
