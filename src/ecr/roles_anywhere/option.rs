//! The value of `--roles-anywhere`, and the endpoint that belongs to it.

use crate::ecr::registry::{ParseRegionError, ParseRoleArnError, Region, RoleArn};
use crate::report::redact::shown_path;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The kubelet's own client certificate and key, in one file.
pub const KUBELET_CERTIFICATE: &str = "/var/lib/kubelet/pki/kubelet-client-current.pem";

/// `anchor=ARN,profile=ARN[,certificate=PATH][,key=PATH],role=ARN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolesAnywhere {
    /// The ARN of the trust anchor.
    pub anchor: String,
    /// The ARN of the profile.
    pub profile: String,
    /// The role.
    pub role: RoleArn,
    /// The region of anchor and profile.
    pub region: Region,
    /// The partition of all three.
    partition: Partition,
    /// The file with the certificate, and the certificates above it.
    pub certificate: PathBuf,
    /// The file with the private key; the certificate's by default.
    pub key: PathBuf,
}

/// A part of AWS with domains of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Partition {
    name: &'static str,
    domain: &'static str,
    /// The domain of endpoints that also speak IPv6; `None` if there are none.
    dual_stack: Option<&'static str>,
    has_fips: bool,
}

const fn partition(
    name: &'static str,
    domain: &'static str,
    dual_stack: Option<&'static str>,
    has_fips: bool,
) -> Partition {
    Partition { name, domain, dual_stack, has_fips }
}

const PARTITIONS: [Partition; 8] = [
    partition("aws", "amazonaws.com", Some("api.aws"), true),
    partition("aws-us-gov", "amazonaws.com", Some("api.aws"), true),
    partition("aws-cn", "amazonaws.com.cn", Some("api.amazonwebservices.com.cn"), false),
    partition("aws-eusc", "amazonaws.eu", None, false),
    partition("aws-iso", "c2s.ic.gov", None, true),
    partition("aws-iso-b", "sc2s.sgov.gov", None, true),
    partition("aws-iso-e", "cloud.adc-e.uk", None, true),
    partition("aws-iso-f", "csp.hci.ic.gov", None, true),
];

/// The parts before the role.
const NAMES: [&str; 4] = ["anchor", "profile", "certificate", "key"];

/// Why a text is not the value of `--roles-anywhere`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseError {
    /// The role is missing, or is not the last part.
    #[error(
        "`role=` is missing at the end: expected anchor=ARN,profile=ARN[,certificate=PATH][,key=PATH],role=ARN"
    )]
    NoRole,
    /// A part that has to be there.
    #[error("`{0}=` is missing")]
    Missing(&'static str),
    /// The same part twice.
    #[error("`{0}=` is given twice")]
    Twice(&'static str),
    /// A part that is none of those.
    #[error("`{}` is none of `anchor=ARN`, `profile=ARN`, `certificate=PATH` and `key=PATH`", .0.escape_debug())]
    Part(String),
    /// An ARN of another kind.
    #[error(
        "`{}` is no ARN of a {kind}: expected one like `arn:aws:rolesanywhere:eu-west-1:123456789012:{kind}/ID`",
        .arn.escape_debug()
    )]
    Arn {
        /// `trust-anchor` or `profile`.
        kind: &'static str,
        /// What is there.
        arn: String,
    },
    /// A role that is none.
    #[error(transparent)]
    Role(#[from] ParseRoleArnError),
    /// A region that is none.
    #[error(transparent)]
    Region(#[from] ParseRegionError),
    /// A partition that is not known.
    #[error("the partition `{}` is not known", .0.escape_debug())]
    Partition(String),
    /// Two ARNs that do not belong together.
    #[error("the ARNs of {0} are of different {1}")]
    Differ(&'static str, &'static str),
    /// A relative path.
    #[error("{} is relative: give an absolute path", shown_path(.0))]
    Relative(PathBuf),
}

/// An ARN taken apart: partition, region, account.
type Parts<'a> = (&'a str, &'a str, &'a str);

fn parts<'a>(arn: &'a str, kind: &'static str) -> Result<Parts<'a>, ParseError> {
    let failed = || ParseError::Arn { kind, arn: arn.to_owned() };
    let fields: Vec<&str> = arn.split(':').collect();
    let ["arn", partition, "rolesanywhere", region, account, resource] = fields.as_slice() else {
        return Err(failed());
    };
    let is_account = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
    let id = resource.strip_prefix(kind).and_then(|rest| rest.strip_prefix('/')).unwrap_or_default();
    let is_id = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if is_account && is_id { Ok((partition, region, account)) } else { Err(failed()) }
}

impl FromStr for RolesAnywhere {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A role's name may contain commas, so the role is the last part.
        let (rest, role) = text.split_once(",role=").ok_or(ParseError::NoRole)?;
        let mut found = [None; 4];
        for part in rest.split(',') {
            let (name, value) = part.split_once('=').ok_or_else(|| ParseError::Part(part.to_owned()))?;
            let number = NAMES.iter().position(|known| *known == name && !value.is_empty());
            let number = number.ok_or_else(|| ParseError::Part(part.to_owned()))?;
            if found[number].replace(value).is_some() {
                return Err(ParseError::Twice(NAMES[number]));
            }
        }
        let [anchor, profile, certificate, key] = found;
        let anchor = anchor.ok_or(ParseError::Missing("anchor"))?;
        let profile = profile.ok_or(ParseError::Missing("profile"))?;
        let role: RoleArn = role.parse()?;
        let (partition, region, account) = parts(anchor, "trust-anchor")?;
        let of_profile = parts(profile, "profile")?;
        let mut of_role = role.as_str().split(':').skip(1);
        let of_role = (of_role.next().unwrap_or_default(), of_role.nth(2).unwrap_or_default());
        for (is_same, what, which) in [
            (of_profile.0 == partition, "anchor and profile", "partitions"),
            (of_profile.1 == region, "anchor and profile", "regions"),
            (of_profile.2 == account, "anchor and profile", "accounts"),
            (of_role.0 == partition, "anchor and role", "partitions"),
            (of_role.1 == account, "anchor and role", "accounts"),
        ] {
            if !is_same {
                return Err(ParseError::Differ(what, which));
            }
        }
        let certificate = PathBuf::from(certificate.unwrap_or(KUBELET_CERTIFICATE));
        let key = key.map_or_else(|| certificate.clone(), PathBuf::from);
        if let Some(path) = [&certificate, &key].into_iter().find(|path| !path.is_absolute()) {
            return Err(ParseError::Relative(path.clone()));
        }
        let known = PARTITIONS.iter().find(|known| known.name == partition);
        Ok(Self {
            anchor: anchor.to_owned(),
            profile: profile.to_owned(),
            role,
            region: region.parse()?,
            partition: *known.ok_or_else(|| ParseError::Partition(partition.to_owned()))?,
            certificate,
            key,
        })
    }
}

/// An endpoint that AWS does not have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("IAM Roles Anywhere has no {kind} endpoint in the partition `{partition}`: switch it off")]
pub struct NoEndpoint {
    kind: &'static str,
    partition: &'static str,
}

impl RolesAnywhere {
    /// The URL of AWS's endpoint.
    ///
    /// # Errors
    /// When AWS has none of this kind.
    pub fn endpoint(&self, fips: bool, dual_stack: bool) -> Result<String, NoEndpoint> {
        let Partition { name, domain, dual_stack: dual_stack_domain, has_fips } = self.partition;
        let none = |kind| NoEndpoint { kind, partition: name };
        if fips && !has_fips {
            return Err(none("FIPS"));
        }
        let domain = if dual_stack { dual_stack_domain.ok_or(none("dual-stack"))? } else { domain };
        let service = if fips { "rolesanywhere-fips" } else { "rolesanywhere" };
        Ok(format!("https://{service}.{}.{domain}", self.region))
    }

    /// Whether a path is the file of the kubelet's own certificate.
    #[must_use]
    pub fn is_kubelets(path: &Path) -> bool {
        path.file_name() == Path::new(KUBELET_CERTIFICATE).file_name()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANCHOR: &str = "anchor=arn:aws:rolesanywhere:eu-west-1:123456789012:trust-anchor/1-a";
    const PROFILE: &str = "profile=arn:aws:rolesanywhere:eu-west-1:123456789012:profile/2-b";
    const ROLE: &str = "role=arn:aws:iam::123456789012:role/nodes";

    #[test]
    fn the_option_is_taken_apart() {
        let option: RolesAnywhere = format!("{ANCHOR},{PROFILE},{ROLE},x=y").parse().unwrap();
        assert_eq!(option.role.as_str(), "arn:aws:iam::123456789012:role/nodes,x=y");
        assert_eq!(option.certificate, Path::new(KUBELET_CERTIFICATE));
        assert_eq!(option.key, option.certificate);
        let option: RolesAnywhere =
            format!("key=/k,{PROFILE},certificate=/c,{ANCHOR},{ROLE}").parse().unwrap();
        assert_eq!((option.certificate.to_str(), option.key.to_str()), (Some("/c"), Some("/k")));
        assert_eq!(option.anchor, "arn:aws:rolesanywhere:eu-west-1:123456789012:trust-anchor/1-a");
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let other = |text: &str, from: &str, to: &str| text.replace(from, to);
        let cases = [
            (format!("{ANCHOR},{PROFILE}"), "`role=` is missing at the end"),
            (format!("{ROLE},{ANCHOR},{PROFILE}"), "`role=` is missing at the end"),
            (format!("{PROFILE},{ROLE}"), "`anchor=` is missing"),
            (format!("{ANCHOR},{ROLE}"), "`profile=` is missing"),
            (format!("{ANCHOR},{ANCHOR},{PROFILE},{ROLE}"), "`anchor=` is given twice"),
            (format!("{ANCHOR},{PROFILE},file=/x,{ROLE}"), "`file=/x` is none of"),
            (format!("{ANCHOR},{PROFILE},key=,{ROLE}"), "`key=` is none of"),
            (format!("{ANCHOR},{PROFILE},key=k.pem,{ROLE}"), "k.pem is relative"),
            (format!("{ANCHOR},{PROFILE},role=x"), "`x` is no role's ARN"),
            (
                format!("{},{PROFILE},{ROLE}", other(ANCHOR, "trust-anchor", "profile")),
                "is no ARN of a trust-anchor",
            ),
            (
                format!("{},{PROFILE},{ROLE}", other(ANCHOR, "123456789012", "1")),
                "is no ARN of a trust-anchor",
            ),
            (
                format!("{ANCHOR},{},{ROLE}", other(PROFILE, "eu-west-1", "eu-west-2")),
                "anchor and profile are of different regions",
            ),
            (
                format!("{ANCHOR},{},{ROLE}", other(PROFILE, "123456789012", "210987654321")),
                "anchor and profile are of different accounts",
            ),
            (
                format!("{ANCHOR},{PROFILE},{}", other(ROLE, "123456789012", "210987654321")),
                "anchor and role are of different accounts",
            ),
            (
                format!("{ANCHOR},{PROFILE},{}", other(ROLE, "arn:aws:", "arn:aws-cn:")),
                "anchor and role are of different partitions",
            ),
            (
                other(&format!("{ANCHOR},{PROFILE},{ROLE}"), "arn:aws:", "arn:aws-moon:"),
                "the partition `aws-moon` is not known",
            ),
            (
                other(&format!("{ANCHOR},{PROFILE},{ROLE}"), "eu-west-1", "europe"),
                "`europe` is no AWS region",
            ),
        ];
        for (text, expected) in cases {
            let error = text.parse::<RolesAnywhere>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn each_partition_has_its_endpoints() {
        let at = |partition: &str, region: &str, fips, dual_stack| {
            let text = format!("{ANCHOR},{PROFILE},{ROLE}")
                .replace("arn:aws:", &format!("arn:{partition}:"))
                .replace("eu-west-1", region);
            text.parse::<RolesAnywhere>().unwrap().endpoint(fips, dual_stack).map_err(|error| error.kind)
        };
        let cases = [
            (("aws", "eu-west-1", false, false), Ok("https://rolesanywhere.eu-west-1.amazonaws.com")),
            (("aws", "us-east-1", true, false), Ok("https://rolesanywhere-fips.us-east-1.amazonaws.com")),
            (("aws", "eu-west-1", false, true), Ok("https://rolesanywhere.eu-west-1.api.aws")),
            (("aws", "us-east-1", true, true), Ok("https://rolesanywhere-fips.us-east-1.api.aws")),
            (
                ("aws-us-gov", "us-gov-west-1", true, true),
                Ok("https://rolesanywhere-fips.us-gov-west-1.api.aws"),
            ),
            (("aws-cn", "cn-north-1", false, false), Ok("https://rolesanywhere.cn-north-1.amazonaws.com.cn")),
            (
                ("aws-cn", "cn-north-1", false, true),
                Ok("https://rolesanywhere.cn-north-1.api.amazonwebservices.com.cn"),
            ),
            (("aws-cn", "cn-north-1", true, false), Err("FIPS")),
            (
                ("aws-iso", "us-iso-east-1", true, false),
                Ok("https://rolesanywhere-fips.us-iso-east-1.c2s.ic.gov"),
            ),
            (("aws-iso-b", "us-isob-east-1", false, true), Err("dual-stack")),
            (
                ("aws-eusc", "eusc-de-east-1", false, false),
                Ok("https://rolesanywhere.eusc-de-east-1.amazonaws.eu"),
            ),
        ];
        for ((partition, region, fips, dual_stack), expected) in cases {
            let found = at(partition, region, fips, dual_stack);
            assert_eq!(found, expected.map(str::to_owned), "{partition} {fips} {dual_stack}");
        }
    }
}
