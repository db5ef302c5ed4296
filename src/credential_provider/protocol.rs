//! The kubelet's credential provider protocol: one request on standard input, one response on standard output.
//!
//! Pure. The types are those of `credentialprovider.kubelet.k8s.io`. Since 1.32 the kubelet decodes a response strictly: an
//! unknown, repeated or differently spelt field makes the whole response invalid.

use crate::report::redact;
use jiff::SignedDuration;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret as _, SecretString};
use serde::ser::SerializeStruct as _;
use serde::{Deserialize, Serialize, Serializer};
use std::collections::BTreeMap;

/// The API group of requests and responses.
const GROUP: &str = "credentialprovider.kubelet.k8s.io";
/// The versions that kubelets ask in. Requests and responses are the same in all of them.
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];
/// The longest part of a wrong name that an error shows.
const LONGEST_SHOWN: usize = 128;

/// What the kubelet asks.
#[derive(Debug)]
pub struct Request {
    /// The API version of the request, which the response must repeat.
    api_version: String,
    /// The host of the image, with its port if it has one, as the image's name spells it.
    pub host: String,
    /// The token of the pod's service account; `None` if the kubelet sends none.
    pub service_account_token: Option<SecretString>,
    /// The annotations of the service account that the kubelet is configured to send.
    pub service_account_annotations: BTreeMap<String, String>,
}

/// Why a request cannot be answered. The messages show no value of a request that could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RequestError {
    /// Not JSON, or not the expected object.
    #[error(
        "standard input is not a CredentialProviderRequest: {problem} at line {line}, column {column}; the kubelet runs this \
         command, see docs/credential-provider.md"
    )]
    NotARequest {
        /// The class of the problem.
        problem: &'static str,
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
    },
    /// An object of another kind.
    #[error("standard input is of kind `{0}`, not CredentialProviderRequest")]
    Kind(String),
    /// An unknown version.
    #[error("the request has apiVersion `{0}`, which is none of {GROUP}/v1, v1beta1 and v1alpha1")]
    Version(String),
    /// No image in the request, or an image without a host.
    #[error("the request names no image")]
    NoImage,
}

impl Request {
    /// Reads a request. Unknown fields are ignored: a newer kubelet may send more.
    ///
    /// # Errors
    /// If it is not a request that can be answered.
    pub fn read(text: &[u8]) -> Result<Self, RequestError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Fields {
            #[serde(default)]
            kind: String,
            #[serde(default)]
            api_version: String,
            #[serde(default)]
            image: String,
            #[serde(default)]
            service_account_token: Option<SecretString>,
            #[serde(default)]
            service_account_annotations: Option<BTreeMap<String, String>>,
        }
        let fields: Fields = serde_json::from_slice(text).map_err(|error| RequestError::NotARequest {
            // The error's own text may quote a value.
            problem: match error.classify() {
                serde_json::error::Category::Eof => "it ends too early",
                serde_json::error::Category::Data => "a value has the wrong type",
                serde_json::error::Category::Io | serde_json::error::Category::Syntax => "it is not JSON",
            },
            line: error.line(),
            column: error.column(),
        })?;
        let token = fields.service_account_token.filter(|token| !token.expose_secret().is_empty());
        if let Some(token) = &token {
            redact::remember(token.expose_secret());
        }
        if fields.kind != "CredentialProviderRequest" {
            return Err(RequestError::Kind(redact::redact_known(&fields.kind, LONGEST_SHOWN)));
        }
        let version = fields.api_version.strip_prefix(GROUP).and_then(|rest| rest.strip_prefix('/'));
        if !version.is_some_and(|version| VERSIONS.contains(&version)) {
            return Err(RequestError::Version(redact::redact_known(&fields.api_version, LONGEST_SHOWN)));
        }
        let host = fields.image.split('/').next().unwrap_or_default();
        if host.is_empty() {
            return Err(RequestError::NoImage);
        }
        Ok(Self {
            api_version: fields.api_version,
            host: host.to_owned(),
            service_account_token: token,
            service_account_annotations: fields.service_account_annotations.unwrap_or_default(),
        })
    }

    /// The response with a credential for the image's host. The kubelet caches it for `cache_duration`.
    #[must_use]
    pub fn answer(
        &self,
        username: String,
        password: SecretString,
        cache_duration: SignedDuration,
    ) -> Response {
        let auth = Some(Credential { host: self.host.clone(), username, password });
        Response { api_version: self.api_version.clone(), cache_duration, auth }
    }

    /// The response without a credential, which the kubelet does not cache. It tries its other plugins, or no credential.
    #[must_use]
    pub fn decline(&self) -> Response {
        Response { api_version: self.api_version.clone(), cache_duration: SignedDuration::ZERO, auth: None }
    }
}

/// The answer to a request.
pub struct Response {
    api_version: String,
    cache_duration: SignedDuration,
    /// `None` for no credential.
    auth: Option<Credential>,
}

struct Credential {
    host: String,
    username: String,
    password: SecretString,
}

impl Response {
    /// The response as one line of JSON.
    ///
    /// # Errors
    /// Never, as far as this is known: every field is a text.
    pub fn to_line(&self) -> Result<Zeroizing<String>, serde_json::Error> {
        let mut line = Zeroizing::new(serde_json::to_string(self)?);
        line.push('\n');
        Ok(line)
    }
}

impl Serialize for Response {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Auth<'a> {
            username: &'a str,
            password: &'a str,
        }
        let auth = self.auth.as_ref().map(|Credential { host, username, password }| {
            BTreeMap::from([(host, Auth { username, password: password.expose_secret() })])
        });
        let mut fields = serializer.serialize_struct("CredentialProviderResponse", 5)?;
        fields.serialize_field("kind", "CredentialProviderResponse")?;
        fields.serialize_field("apiVersion", &self.api_version)?;
        // One token serves every repository of a registry. `Global` would send it to every other registry, too.
        fields.serialize_field("cacheKeyType", "Registry")?;
        fields.serialize_field("cacheDuration", &format!("{}s", self.cache_duration.as_secs()))?;
        fields.serialize_field("auth", &auth.unwrap_or_default())?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: &str) -> Vec<u8> {
        format!(
            r#"{{"kind":"CredentialProviderRequest","apiVersion":"{GROUP}/{version}","image":"registry.example/team/app","new":1}}"#
        )
        .into_bytes()
    }

    #[test]
    fn a_request_is_answered_in_its_own_version() {
        for version in VERSIONS {
            let request = Request::read(&request(version)).unwrap();
            assert_eq!(request.host, "registry.example");
            let response = request.answer("AWS".to_owned(), "secret".into(), SignedDuration::from_hours(6));
            let expected = format!(
                "{{\"kind\":\"CredentialProviderResponse\",\"apiVersion\":\"{GROUP}/{version}\",\
                 \"cacheKeyType\":\"Registry\",\"cacheDuration\":\"21600s\",\
                 \"auth\":{{\"registry.example\":{{\"username\":\"AWS\",\"password\":\"secret\"}}}}}}\n"
            );
            assert_eq!(*response.to_line().unwrap(), expected);
        }
        let declined = Request::read(&request("v1")).unwrap().decline().to_line().unwrap();
        assert!(declined.ends_with("\"cacheDuration\":\"0s\",\"auth\":{}}\n"), "{}", *declined);
    }

    #[test]
    fn other_objects_are_refused() {
        let with = |kind: &str, version: &str, image: &str| {
            format!(r#"{{"kind":"{kind}","apiVersion":"{version}","image":"{image}"}}"#).into_bytes()
        };
        let (kind, version) = ("CredentialProviderRequest", "credentialprovider.kubelet.k8s.io/v1");
        let cases = [
            (b"[]".to_vec(), RequestError::Kind(String::new())),
            (with("Pod", version, "a/b"), RequestError::Kind("Pod".to_owned())),
            (with(kind, "v1", "a/b"), RequestError::Version("v1".to_owned())),
            (with(kind, &format!("{GROUP}/v2"), "a/b"), RequestError::Version(format!("{GROUP}/v2"))),
            (with(kind, version, ""), RequestError::NoImage),
            (with(kind, version, "/b"), RequestError::NoImage),
        ];
        for (text, expected) in cases {
            assert_eq!(Request::read(&text).unwrap_err(), expected);
        }
        let secret = br#"{"kind":"CredentialProviderRequest","serviceAccountToken":{"a":"secret"}}"#;
        for text in [&b""[..], b"{", b"null", b"\"secret\"", secret] {
            let error = Request::read(text).unwrap_err();
            assert!(matches!(error, RequestError::NotARequest { .. }), "{error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
