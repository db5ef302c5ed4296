//! What an image is answered with: whether its registry is ours, which identity asks ECR, and for how long the answer is good.
//!
//! Pure.

use super::protocol::Request;
use crate::docker_config::matching;
use crate::ecr::registry::{Endpoint, ParseRoleArnError, Registry, RoleArn, TokenSource};
use crate::report::redact::redact;
use jiff::SignedDuration;
use secrecy::SecretString;
use std::time::Duration;

/// The annotation of a service account that names the role for its pods' images. The name is that of the plugin of AWS's cloud
/// provider.
pub const ROLE_ANNOTATION: &str = "eks.amazonaws.com/ecr-role-arn";
/// The variable that names the role for service accounts without the annotation, also as in that plugin.
pub const ROLE_VARIABLE: &str = "AWS_ECR_ROLE_ARN";
/// A token that expires sooner than this is used only if no other one can be had, and is not cached: a pull that starts with it
/// may take longer.
const NEARLY_EXPIRED: SignedDuration = SignedDuration::from_mins(15);
/// How long ECR is asked, if the pull fails without its token. The kubelet ends a plugin after one minute.
const PATIENCE: Duration = Duration::from_secs(50);
/// How long ECR is asked, if the pull can do without its token.
const SHORT_PATIENCE: Duration = Duration::from_secs(15);
/// The longest part of a wrong ARN that an error shows.
const LONGEST_SHOWN: usize = 200;

/// Who asks ECR for the token.
#[derive(Debug)]
pub enum Requester {
    /// The node's identity, whose token an auth file may hold.
    Node,
    /// A role for the pod's service account. Its token is used for this answer only.
    ServiceAccount {
        /// The role.
        role: RoleArn,
        /// The token of the service account, which opens the role.
        token: SecretString,
    },
}

/// A role that cannot be assumed.
#[derive(Debug, thiserror::Error)]
#[error("{origin}: {problem}")]
pub struct RoleError {
    /// The annotation or the variable.
    origin: String,
    /// What is wrong with the value.
    problem: String,
}

/// The registry that an image's host belongs to; `None` if it is not ours, so that this program has no credential for it.
///
/// A configured registry comes first, by its exact host, then by a pattern, of several patterns the one that the kubelet would
/// try first. Then any host that is ECR's by its name.
#[must_use]
pub fn registry(host: &str, configured: &[Registry]) -> Option<Registry> {
    let host = host.to_ascii_lowercase();
    // No image has such a host. `*` and `,` have a meaning in the values of `--registry`.
    if host.contains(['*', ',']) {
        return None;
    }
    let exact = configured.iter().find(|registry| registry.key() == host);
    let pattern = || {
        let matching = configured.iter().filter(|registry| matching::matches(registry.key(), &host));
        matching.max_by_key(|registry| registry.key())
    };
    exact.or_else(pattern).cloned().or_else(|| host.parse().ok())
}

/// Who asks for the token. Without a service account, or without a role for it, it is the node.
///
/// # Errors
/// If the role is not the ARN of one.
pub fn requester(request: &Request, role_variable: Option<&str>) -> Result<Requester, RoleError> {
    let Some(token) = request.service_account_token.clone() else { return Ok(Requester::Node) };
    let annotation = request.service_account_annotations.get(ROLE_ANNOTATION);
    let (origin, role) = match (annotation, role_variable) {
        (Some(role), _) => (format!("annotation {ROLE_ANNOTATION} of the service account"), role.as_str()),
        (None, Some(role)) => (ROLE_VARIABLE.to_owned(), role),
        (None, None) => return Ok(Requester::Node),
    };
    match role.trim() {
        "" => Ok(Requester::Node),
        role => {
            let role = role.parse().map_err(|error: ParseRoleArnError| RoleError {
                origin,
                problem: redact(&error.to_string(), LONGEST_SHOWN),
            })?;
            Ok(Requester::ServiceAccount { role, token })
        }
    }
}

/// Whether a token that expires in `left` is too old to be used without asking ECR for a new one.
#[must_use]
pub fn is_nearly_expired(left: SignedDuration) -> bool {
    left < NEARLY_EXPIRED
}

/// How long the kubelet may cache a token that expires in `left`: half of that time, but not until the token has nearly expired.
///
/// A pull that starts at the end of this time still has the other half. Of a new token that is six hours, which every pull is
/// shorter than. And the kubelet asks again early enough to learn of a new token or a new role within six hours.
#[must_use]
pub fn cache_duration(left: SignedDuration) -> SignedDuration {
    let until_nearly_expired = left.saturating_sub(NEARLY_EXPIRED);
    SignedDuration::from_secs((left.as_secs() / 2).min(until_nearly_expired.as_secs()).max(0))
}

/// How long to ask ECR at most. `has_other` is true if there is a token that has nearly expired. Images of ECR Public can be
/// pulled without any.
#[must_use]
pub fn patience(source: &TokenSource, has_other: bool) -> Duration {
    if has_other || source.endpoint == Endpoint::Public { SHORT_PATIENCE } else { PATIENCE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_belongs_to_a_configured_registry_or_to_ecr() {
        let role = "arn:aws:iam::111111111111:role";
        let configured: Vec<Registry> = [
            format!("registry.example,region=eu-north-1,role={role}/exact"),
            format!("*.registry.example,region=eu-west-3,role={role}/pattern"),
            "mirror.example:5000,region=eu-west-2".to_owned(),
            format!("1*.dkr.ecr.us-east-1.amazonaws.com,role={role}/one"),
            format!("*.dkr.ecr.us-east-1.amazonaws.com,role={role}/any"),
            format!("123456789012.dkr.ecr.us-east-1.amazonaws.com,role={role}/account"),
        ]
        .map(|text| text.parse().unwrap())
        .to_vec();
        let cases = [
            ("registry.example", Some(format!("eu-north-1 as {role}/exact"))),
            ("Registry.Example", Some(format!("eu-north-1 as {role}/exact"))),
            ("a.registry.example", Some(format!("eu-west-3 as {role}/pattern"))),
            ("a.b.registry.example", None),
            ("registry.example:443", None),
            ("mirror.example:5000", Some("eu-west-2".to_owned())),
            ("mirror.example", None),
            ("123456789012.dkr.ecr.us-east-1.amazonaws.com", Some(format!("us-east-1 as {role}/account"))),
            ("111111111111.dkr.ecr.us-east-1.amazonaws.com", Some(format!("us-east-1 as {role}/one"))),
            ("222222222222.dkr.ecr.us-east-1.amazonaws.com", Some(format!("us-east-1 as {role}/any"))),
            ("222222222222.dkr.ecr.us-east-2.amazonaws.com", Some("us-east-2".to_owned())),
            ("222222222222.dkr.ecr-fips.us-east-2.amazonaws.com", Some("us-east-2 fips".to_owned())),
            (
                "222222222222.dkr-ecr.cn-north-1.on.amazonwebservices.com.cn",
                Some("cn-north-1 dual-stack".to_owned()),
            ),
            ("222222222222.dkr-ecr-fips.us-east-2.on.aws", Some("us-east-2 fips dual-stack".to_owned())),
            ("public.ecr.aws", Some("us-east-1 public".to_owned())),
            ("docker.io", None),
            ("*.dkr.ecr.eu-west-1.amazonaws.com", None),
            ("evil.example,region=eu-west-1", None),
            ("222222222222.dkr.ecr.us-east-2.amazonaws.com.evil.example", None),
            ("222222222222.dkr.ecr.us-east-2.amazonaws.com:443", None),
            ("", None),
        ];
        for (host, expected) in cases {
            let found = registry(host, &configured).map(|registry| registry.source(None).to_string());
            assert_eq!(found, expected, "{host}");
        }
    }

    fn request(more: &str) -> Request {
        let text = format!(
            r#"{{"kind":"CredentialProviderRequest","apiVersion":"credentialprovider.kubelet.k8s.io/v1","image":"a/b"{more}}}"#
        );
        Request::read(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_service_account_with_a_role_asks_for_itself() {
        let (one, two) = ("arn:aws:iam::111111111111:role/one", "arn:aws:iam::111111111111:role/two");
        let annotated = |role: &str| {
            format!(
                r#","serviceAccountToken":"t","serviceAccountAnnotations":{{"{ROLE_ANNOTATION}":"{role}"}}"#
            )
        };
        let token = r#","serviceAccountToken":"t""#.to_owned();
        let cases = [
            (String::new(), None, None),
            (String::new(), Some(two), None),
            (r#","serviceAccountToken":"","serviceAccountAnnotations":null"#.to_owned(), Some(two), None),
            (token.clone(), None, None),
            (token, Some(two), Some(two)),
            (annotated(one), None, Some(one)),
            (annotated(one), Some(two), Some(one)),
            // As in the other plugin, an empty annotation says that this service account has no role.
            (annotated(""), Some(two), None),
            (annotated(one).replace(r#""serviceAccountToken":"t","#, ""), Some(two), None),
        ];
        for (more, variable, expected) in cases {
            let role = match requester(&request(&more), variable).unwrap() {
                Requester::Node => None,
                Requester::ServiceAccount { role, .. } => Some(role.to_string()),
            };
            assert_eq!(role.as_deref(), expected, "{more} {variable:?}");
        }
        let error = requester(&request(&annotated("reader")), None).unwrap_err().to_string();
        assert!(
            error.starts_with("annotation eks.amazonaws.com/ecr-role-arn of the service account: `reader`"),
            "{error}"
        );
    }

    #[test]
    fn a_token_is_cached_for_half_of_its_remaining_life_and_not_until_it_has_nearly_expired() {
        let cases = [
            // seconds left, seconds cached
            (43_200, 21_600),
            (43_201, 21_600),
            (3600, 1800),
            (1800, 900),
            (1600, 700),
            (901, 1),
            (900, 0),
            (1, 0),
            (0, 0),
            (-5, 0),
        ];
        for (left, cached) in cases {
            let left = SignedDuration::from_secs(left);
            assert_eq!(cache_duration(left).as_secs(), cached, "{left}");
            assert_eq!(is_nearly_expired(left), cached == 0 && left.as_secs() != 900, "{left}");
        }
    }

    #[test]
    fn ecr_is_asked_for_less_time_if_the_pull_can_do_without_it() {
        let source = |host: &str| host.parse::<Registry>().unwrap().source(None);
        let private = source("222222222222.dkr.ecr.us-east-2.amazonaws.com");
        assert_eq!(patience(&private, false), PATIENCE);
        assert_eq!(patience(&private, true), SHORT_PATIENCE);
        assert_eq!(patience(&source("public.ecr.aws"), false), SHORT_PATIENCE);
    }
}
