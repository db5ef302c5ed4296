//! The requests: `/v2/` and a manifest, with each credential in turn, as a container runtime sends them for a pull.
//!
//! Nothing but the head of the manifest's answer is downloaded. A redirect is never followed, and every answer is limited in
//! size and time.

use super::answer::{Answers, Meaning, said, token};
use super::challenge::{self, Challenge, Endpoint, is_loopback, token_url};
use crate::docker_config::entry::Credentials;
use crate::docker_config::image::Image;
use crate::ecr::http::registries::{Answer, Registries};
use crate::ecr::refusal::Refusal;
use crate::report::redact::remember;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret as _, SecretString};

/// The name of Docker Hub in images, and the host of its registry.
const HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");
/// The kinds of manifests that container runtimes accept.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json, \
                         application/vnd.docker.distribution.manifest.v2+json";

/// What a registry answered for an image.
#[derive(Debug)]
pub struct Verification {
    /// Where it was asked; `None` if it did not answer.
    pub endpoint: Option<Endpoint>,
    /// What it wants; `None` if nothing of a known kind.
    pub challenge: Option<Challenge>,
    /// Without a credential, which is what the kubelet tries if no entry matches.
    pub without: Answers,
    /// With each credential.
    pub with: Vec<Answers>,
}

/// Asks the registry of `image` with each of `credentials`, and with none.
///
/// `plain_http` asks without TLS. A registry on this node that does not speak TLS is asked without it anyway.
pub async fn verify(
    http: &Registries,
    image: &Image,
    credentials: &[&Credentials],
    plain_http: bool,
) -> Verification {
    let (endpoint, first) = match reach(http, image, plain_http).await {
        Ok(reached) => reached,
        Err(why) => {
            let unanswered = Answers::new(Meaning::NoAnswer(why));
            let with = credentials.iter().map(|_| unanswered.clone()).collect();
            return Verification { endpoint: None, challenge: None, without: unanswered, with };
        }
    };
    let asking = Asking { http, endpoint: &endpoint, image };
    let mut challenge = challenge::parse(first.challenges());
    let mut without = Answers { base: Some(first.status), ..Answers::new(Meaning::Unexpected) };
    // The base may be open and the repository not.
    match asking.manifest(None).await {
        Ok(answer) => {
            challenge = challenge::parse(answer.challenges()).or(challenge);
            without.take(&answer);
        }
        Err(why) => without.meaning = Meaning::NoAnswer(why),
    }
    if without.meaning == Meaning::Works {
        without.meaning = Meaning::NotAsked;
        let with = credentials.iter().map(|_| without.clone()).collect();
        return Verification { challenge, without, with, endpoint: Some(endpoint) };
    }
    if let Some(Challenge::Bearer { .. }) = &challenge {
        // A token service may also give a token without a credential, as Docker Hub's does.
        without = Answers { base: without.base, ..asking.with(challenge.as_ref(), None).await };
    }
    let mut with = Vec::new();
    for credentials in credentials {
        with.push(asking.with(challenge.as_ref(), Some(credentials)).await);
    }
    Verification { challenge, without, with, endpoint: Some(endpoint) }
}

/// The first answer to `/v2/`, and where it came from.
async fn reach(http: &Registries, image: &Image, plain_http: bool) -> Result<(Endpoint, Answer), String> {
    let host = if image.host() == HUB.0 { HUB.1 } else { image.host() };
    if host.is_empty() {
        return Err("the image's name names no registry that can be asked".to_owned());
    }
    let ways: &[bool] = match (plain_http, is_loopback(host)) {
        (true, _) => &[false],
        (false, true) => &[true, false],
        (false, false) => &[true],
    };
    let mut failed = String::new();
    for tls in ways {
        let endpoint = Endpoint { host: host.to_owned(), tls: *tls };
        match ask(http, &endpoint.url("/v2/"), &[], false).await {
            Ok(answer) => return Ok((endpoint, answer)),
            // It speaks TLS.
            Err(error @ Refusal::Untrusted { .. }) => return Err(error.to_string()),
            Err(error) => failed = error.to_string(),
        }
    }
    Err(failed)
}

async fn ask(
    http: &Registries,
    url: &str,
    headers: &[(&'static str, &SecretString)],
    wants_body: bool,
) -> Result<Answer, Refusal> {
    let host = url.split_once("://").and_then(|(_, rest)| rest.split(['/', '?']).next());
    http.get(url, headers, host.is_some_and(is_loopback), wants_body).await
}

struct Asking<'a> {
    http: &'a Registries,
    endpoint: &'a Endpoint,
    image: &'a Image,
}

impl Asking<'_> {
    /// All requests with one credential, or with none.
    async fn with(&self, challenge: Option<&Challenge>, credentials: Option<&Credentials>) -> Answers {
        let mut answers = Answers::new(Meaning::Unexpected);
        let basic = credentials.and_then(basic);
        let authorization = match challenge {
            Some(Challenge::Bearer { realm, service }) => {
                match self.bearer(realm, service.as_deref(), basic, &mut answers).await {
                    Some(bearer) => Some(bearer),
                    None => return answers,
                }
            }
            Some(Challenge::Basic) => basic,
            // The registry wants none, so a container runtime sends none.
            None => None,
        };
        let header = authorization.as_ref();
        match self.get("/v2/", header).await {
            Ok(answer) => answers.base = Some(answer.status),
            Err(why) => {
                answers.meaning = Meaning::NoAnswer(why);
                return answers;
            }
        }
        match self.manifest(header).await {
            Ok(answer) => answers.take(&answer),
            Err(why) => answers.meaning = Meaning::NoAnswer(why),
        }
        answers
    }

    /// Fetches a token from the service that the registry names.
    async fn bearer(
        &self,
        realm: &str,
        service: Option<&str>,
        basic: Option<SecretString>,
        answers: &mut Answers,
    ) -> Option<SecretString> {
        let url = match token_url(realm, service, self.image.path(), self.endpoint) {
            Ok(url) => url,
            Err(untrusted) => {
                answers.meaning = Meaning::NotSent(untrusted);
                return None;
            }
        };
        let header = basic.as_ref().map(|basic| ("authorization", basic));
        let answer = match ask(self.http, &url, header.as_slice(), true).await {
            Ok(answer) => answer,
            Err(error) => {
                answers.meaning = Meaning::NoAnswer(error.to_string());
                return None;
            }
        };
        answers.token = Some(answer.status);
        if answer.status != 200 {
            answers.meaning = Meaning::of_status(answer.status);
            answers.said = said(&answer.body);
            return None;
        }
        let Some(token) = token(&answer.body) else {
            answers.meaning = Meaning::NoAnswer("the token service gave no token".to_owned());
            return None;
        };
        // The registry may repeat what it is sent.
        remember(token.expose_secret());
        Some(SecretString::from(format!("Bearer {}", token.expose_secret())))
    }

    async fn manifest(&self, authorization: Option<&SecretString>) -> Result<Answer, String> {
        let path = format!("/v2/{}/manifests/{}", self.image.path(), self.image.reference());
        self.get(&path, authorization).await
    }

    async fn get(&self, path: &str, authorization: Option<&SecretString>) -> Result<Answer, String> {
        let accept = SecretString::from(MANIFESTS);
        let mut headers = vec![("accept", &accept)];
        headers.extend(authorization.map(|header| ("authorization", header)));
        let answer = ask(self.http, &self.endpoint.url(path), &headers, false).await;
        answer.map_err(|error| error.to_string())
    }
}

impl Answers {
    fn new(meaning: Meaning) -> Self {
        Self { token: None, base: None, manifest: None, meaning, said: None }
    }

    /// Takes the manifest's answer.
    fn take(&mut self, answer: &Answer) {
        self.manifest = Some(answer.status);
        self.meaning = Meaning::of_status(answer.status);
        self.said = said(&answer.body);
    }
}

impl Answer {
    fn challenges(&self) -> impl Iterator<Item = &str> {
        self.challenges.iter().map(String::as_str)
    }
}

/// User and password as a header. For container runtimes, an entry without both is no credential. From now on no output shows
/// the password: a registry may repeat what it is sent.
fn basic(credentials: &Credentials) -> Option<SecretString> {
    let password = credentials.password.expose_secret();
    if credentials.username.is_empty() && password.is_empty() {
        return None;
    }
    let pair = Zeroizing::new(format!("{}:{password}", credentials.username));
    let encoded = Zeroizing::new(STANDARD.encode(pair.as_bytes()));
    remember(password);
    remember(&encoded);
    Some(SecretString::from(format!("Basic {}", encoded.as_str())))
}
