//! ECR's registry hosts, and the values of `--registry`.
//!
//! A host contains its region and its kind of endpoint, and so determines the one API call whose token it accepts. A host that
//! only looks like one of ECR is refused, and the message names the part that is wrong: an entry for a host that is not ECR's
//! would send the token to a stranger.

use std::fmt;
use std::str::FromStr;

/// Suffixes of `<account>.dkr.ecr[-fips].<region>.<suffix>`, one for each AWS partition.
const SUFFIXES: [&str; 7] = [
    "amazonaws.com",
    "amazonaws.com.cn",
    "amazonaws.eu",
    "c2s.ic.gov",
    "sc2s.sgov.gov",
    "cloud.adc-e.uk",
    "csp.hci.ic.gov",
];
/// Suffixes of the dual-stack form `<account>.dkr-ecr[-fips].<region>.<suffix>`.
const DUAL_STACK_SUFFIXES: [&str; 2] = ["on.aws", "on.amazonwebservices.com.cn"];
/// ECR Public has one API, in one region.
const PUBLIC_HOSTS: [&str; 2] = ["public.ecr.aws", "ecr-public.aws.com"];
const PUBLIC_REGION: &str = "us-east-1";

/// An AWS region's name, such as `eu-west-1`. It is well-formed; only AWS knows whether the region exists.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Region(String);

/// A text that is not the name of a region.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{}` is no AWS region: expected one like `eu-west-1`", .0.escape_debug())]
pub struct ParseRegionError(String);

impl FromStr for Region {
    type Err = ParseRegionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.split('-').collect();
        let well_formed = match parts.as_slice() {
            [first, middle @ .., number] => {
                !middle.is_empty()
                    && std::iter::once(first)
                        .chain(middle)
                        .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase()))
                    && (1..=2).contains(&number.len())
                    && number.bytes().all(|byte| byte.is_ascii_digit())
            }
            _ => false,
        };
        if well_formed && text.len() <= 32 {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseRegionError(text.to_owned()))
        }
    }
}

impl Region {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The ARN of an IAM role, such as `arn:aws:iam::123456789012:role/nodes`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoleArn(String);

/// A text that is not the ARN of a role.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{}` is no role's ARN: expected one like `arn:aws:iam::123456789012:role/NAME`", .0.escape_debug())]
pub struct ParseRoleArnError(String);

impl FromStr for RoleArn {
    type Err = ParseRoleArnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        let well_formed = match parts.as_slice() {
            ["arn", partition, "iam", "", account, role] => {
                partition.starts_with("aws")
                    && is_account(account)
                    && role.strip_prefix("role/").is_some_and(|name| {
                        !name.is_empty()
                            && !name.ends_with('/')
                            && name
                                .bytes()
                                .all(|byte| byte.is_ascii_alphanumeric() || b"+=,.@-_/".contains(&byte))
                    })
            }
            _ => false,
        };
        if well_formed && text.len() <= 2048 {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseRoleArnError(text.to_owned()))
        }
    }
}

impl RoleArn {
    /// The ARN.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which of ECR's endpoints of a region a host belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {
    /// `ecr`, private registries.
    Private {
        /// The FIPS 140 endpoint.
        fips: bool,
        /// The endpoint that also speaks IPv6.
        dual_stack: bool,
    },
    /// `ecr-public`: the public gallery.
    Public,
}

impl Endpoint {
    /// A region's ordinary endpoint.
    pub const STANDARD: Self = Self::Private { fips: false, dual_stack: false };
}

/// Where a token comes from: the endpoint that is asked, and the role that asks. Two registries share one token if, and only
/// if, their token sources are equal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenSource {
    /// The region that is asked.
    pub region: Region,
    /// The endpoint that is asked.
    pub endpoint: Endpoint,
    /// The role to assume first.
    pub role: Option<RoleArn>,
}

impl fmt::Display for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.endpoint {
            Endpoint::Public => " public",
            Endpoint::Private { fips: true, dual_stack: true } => " fips dual-stack",
            Endpoint::Private { fips: true, dual_stack: false } => " fips",
            Endpoint::Private { fips: false, dual_stack: true } => " dual-stack",
            Endpoint::Private { fips: false, dual_stack: false } => "",
        };
        write!(f, "{}{kind}", self.region)?;
        self.role.as_ref().map_or(Ok(()), |role| write!(f, " as {role}"))
    }
}

/// A registry to write an entry for: the value of `--registry HOST[,region=REGION][,role=ARN]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registry {
    key: String,
    region: Region,
    endpoint: Endpoint,
    role: Option<RoleArn>,
}

/// Why a text is not a [`Registry`]. The messages name the part that is wrong.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseRegistryError {
    /// Nothing before the first comma.
    #[error("the host is missing: expected HOST[,region=REGION][,role=ARN]")]
    NoHost,
    /// Something after the host that is neither `region=` nor `role=`.
    #[error("`{}` is neither `region=REGION` nor `role=ARN`", .0.escape_debug())]
    Option(String),
    /// The same option twice.
    #[error("`{0}=` is given twice")]
    Twice(&'static str),
    /// `region=` without a region.
    #[error(transparent)]
    Region(#[from] ParseRegionError),
    /// `role=` without an ARN.
    #[error(transparent)]
    Role(#[from] ParseRoleArnError),
    /// A URL, a repository, a tag.
    #[error("`{}` is more than a host: give the host alone, without scheme, path or user", .0.escape_debug())]
    NotAHost(String),
    /// A port on a host of ECR: the kubelet would match it with no image.
    #[error("ECR's registries have no port: drop `:{}`", .0.escape_debug())]
    Port(String),
    /// A port of a custom domain that is none.
    #[error("`{}` is no port: expected a number up to 65535", .0.escape_debug())]
    NoPort(String),
    /// A character that no host name has, or a label that is empty or too long.
    #[error("`{}` is no host name (label `{}`)", .0.escape_debug(), .1.escape_debug())]
    Label(String, String),
    /// Not twelve digits.
    #[error("`{}` is no AWS account: expected 12 digits, or a pattern such as `*`", .0.escape_debug())]
    Account(String),
    /// A pattern where the region belongs.
    #[error("a pattern must name its region, and `{}` does not: a token is good for one region only", .0.escape_debug())]
    RegionPattern(String),
    /// The region in the host is not the name of a region.
    #[error("the host's region is wrong: {0}")]
    HostRegion(ParseRegionError),
    /// Like a host of ECR, but with a suffix that AWS does not use.
    #[error("`{}` is not AWS's: expected {expected}", .suffix.escape_debug())]
    Suffix {
        /// What follows the region.
        suffix: String,
        /// What may follow it.
        expected: String,
    },
    /// Not a host of ECR, and without the `region=` that would make it a custom domain.
    #[error("`{}` is no ECR registry; for a custom domain in front of one, add `,region=REGION`", .0.escape_debug())]
    NotEcr(String),
    /// `region=` contradicts the host.
    #[error("the host is in {host}, and a token of {given} is no good there: drop `region=`")]
    OtherRegion {
        /// The region in the host.
        host: Region,
        /// The region behind `region=`.
        given: Region,
    },
    /// A pattern that also matches registries that are not AWS's.
    #[error("`{}` would also match registries of others: its last two labels must be spelt out", .0.escape_debug())]
    WidePattern(String),
}

impl FromStr for Registry {
    type Err = ParseRegistryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, mut options) =
            text.split_once(',').map_or((text, None), |(host, rest)| (host, Some(rest)));
        let (mut region, mut role) = (None, None);
        while let Some(option) = options {
            // A role's name may contain commas: an option ends where the next one begins.
            let end = [",region=", ",role="].iter().filter_map(|next| option.find(next)).min();
            let (this, rest) = end.map_or((option, None), |end| (&option[..end], Some(&option[end + 1..])));
            options = rest;
            if let Some(value) = this.strip_prefix("region=") {
                if region.replace(value.parse::<Region>()?).is_some() {
                    return Err(ParseRegistryError::Twice("region"));
                }
            } else if let Some(value) = this.strip_prefix("role=") {
                if role.replace(value.parse::<RoleArn>()?).is_some() {
                    return Err(ParseRegistryError::Twice("role"));
                }
            } else {
                return Err(ParseRegistryError::Option(this.to_owned()));
            }
        }
        let key = host.to_ascii_lowercase();
        let (host_region, endpoint) = match (read_host(&key), &region) {
            (Ok(known), _) => known,
            // A name that only looks like one of ECR is refused even with a region: it is a mistake or a trick.
            (Err(ParseRegistryError::NotEcr(_)), Some(region)) => {
                check_custom_domain(&key)?;
                (region.clone(), Endpoint::STANDARD)
            }
            (Err(error), _) => return Err(error),
        };
        if let Some(given) = region.filter(|given| *given != host_region) {
            return Err(ParseRegistryError::OtherRegion { host: host_region, given });
        }
        Ok(Self { key, region: host_region, endpoint, role })
    }
}

impl Registry {
    /// The key of its entry under `auths`: the host or pattern, in lower case.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Where its token comes from. `default_role` is for a registry that names no role itself.
    #[must_use]
    pub fn source(&self, default_role: Option<&RoleArn>) -> TokenSource {
        let role = self.role.as_ref().or(default_role).cloned();
        TokenSource { region: self.region.clone(), endpoint: self.endpoint, role }
    }
}

/// Whether this key is a host or a pattern of ECR, for people who want to know what an auth file holds.
#[must_use]
pub fn is_ecr_host(key: &str) -> bool {
    read_host(key).is_ok()
}

/// Patterns for every host of ECR in every partition and region, as the kubelet matches them.
#[must_use]
pub fn every_host() -> Vec<String> {
    let forms = [("dkr.ecr", &SUFFIXES[..]), ("dkr.ecr-fips", &SUFFIXES), ("dkr-ecr", &DUAL_STACK_SUFFIXES)];
    let forms = forms.into_iter().chain([("dkr-ecr-fips", &DUAL_STACK_SUFFIXES[..])]);
    let private = forms
        .flat_map(|(middle, suffixes)| suffixes.iter().map(move |suffix| format!("*.{middle}.*.{suffix}")));
    private.chain(PUBLIC_HOSTS.map(str::to_owned)).collect()
}

/// The host that an answer of ECR names as its `proxyEndpoint`: a bare `host[:port]`, in lower case. Nothing that is more
/// than a host is taken. Whether it is a registry of ECR is another question: see [`is_registry_in`].
#[must_use]
pub fn host_of_proxy_endpoint(url: &str) -> Option<String> {
    let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
    let host = host.strip_suffix('/').unwrap_or(host).to_ascii_lowercase();
    let (name, port) = host.split_once(':').map_or((host.as_str(), None), |(name, port)| (name, Some(port)));
    (port.is_none_or(is_port) && !name.contains('*') && check_labels(name).is_ok()).then(|| host.clone())
}

/// Whether a host in lower case is a private registry of ECR in this region. A token of the region is good there, and
/// would be a stranger's anywhere else.
#[must_use]
pub fn is_registry_in(host: &str, region: &Region) -> bool {
    matches!(read_host(host), Ok((found, Endpoint::Private { .. })) if found == *region)
}

/// Region and endpoint of a host or pattern of ECR, given in lower case.
fn read_host(host: &str) -> Result<(Region, Endpoint), ParseRegistryError> {
    if host.is_empty() {
        return Err(ParseRegistryError::NoHost);
    }
    if host.contains(['/', '@']) {
        return Err(ParseRegistryError::NotAHost(host.to_owned()));
    }
    let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    check_labels(name)?;
    if PUBLIC_HOSTS.contains(&name) {
        return match port {
            Some(port) => Err(ParseRegistryError::Port(port.to_owned())),
            None => Ok((Region(PUBLIC_REGION.to_owned()), Endpoint::Public)),
        };
    }
    let labels: Vec<&str> = name.split('.').collect();
    let (account, fips, dual_stack, region, suffix) = match labels.as_slice() {
        [account, "dkr", "ecr", region, suffix @ ..] => (account, false, false, region, suffix),
        [account, "dkr", "ecr-fips", region, suffix @ ..] => (account, true, false, region, suffix),
        [account, "dkr-ecr", region, suffix @ ..] => (account, false, true, region, suffix),
        [account, "dkr-ecr-fips", region, suffix @ ..] => (account, true, true, region, suffix),
        _ => return Err(ParseRegistryError::NotEcr(host.to_owned())),
    };
    let suffix = suffix.join(".");
    // The name of an interface endpoint (`vpce-….dkr.ecr.<region>.vpce.amazonaws.com`) counts as a custom domain.
    if account.starts_with("vpce-") && suffix.starts_with("vpce.amazonaws.com") {
        return Err(ParseRegistryError::NotEcr(host.to_owned()));
    }
    let expected: &[&str] = if dual_stack { &DUAL_STACK_SUFFIXES } else { &SUFFIXES };
    if !expected.contains(&suffix.as_str()) {
        let expected = expected.iter().map(|suffix| format!("`{suffix}`")).collect::<Vec<_>>().join(", ");
        return Err(ParseRegistryError::Suffix { suffix, expected });
    }
    let account_pattern = account.contains('*')
        && account.len() <= 12
        && account.bytes().all(|byte| byte == b'*' || byte.is_ascii_digit());
    if !account_pattern && !is_account(account) {
        return Err(ParseRegistryError::Account((*account).to_owned()));
    }
    if region.contains('*') {
        return Err(ParseRegistryError::RegionPattern(name.to_owned()));
    }
    if let Some(port) = port {
        return Err(ParseRegistryError::Port(port.to_owned()));
    }
    let region = region.parse().map_err(ParseRegistryError::HostRegion)?;
    Ok((region, Endpoint::Private { fips, dual_stack }))
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether this is the number of a port, in digits alone: Rust reads `+7` as a number, URL parsers do not.
pub(super) fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

/// A custom domain: any host name, with or without a port. A pattern may match the names of one owner only.
fn check_custom_domain(host: &str) -> Result<(), ParseRegistryError> {
    let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    if let Some(port) = port.filter(|port| !is_port(port)) {
        return Err(ParseRegistryError::NoPort(port.to_owned()));
    }
    if name.rsplit('.').take(2).any(|label| label.contains('*')) {
        return Err(ParseRegistryError::WidePattern(host.to_owned()));
    }
    Ok(())
}

/// Host name labels (RFC 1123), in which `*` may stand for a part. `?` and `[` do not survive the kubelet's URL parser.
fn check_labels(name: &str) -> Result<(), ParseRegistryError> {
    let is_label = |label: &str| {
        let inner =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'*';
        (1..=63).contains(&label.len())
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match name.split('.').find(|label| !is_label(label)) {
        Some(label) => Err(ParseRegistryError::Label(name.to_owned(), label.to_owned())),
        None if name.len() > 253 => Err(ParseRegistryError::Label(name.to_owned(), name.to_owned())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_has_a_name_of_lower_case_words_and_a_number() {
        let longest = format!("{}-b-10", "a".repeat(27));
        for name in ["eu-west-1", "us-gov-east-1", "ap-southeast-10", &longest] {
            assert_eq!(name.parse::<Region>().unwrap().as_str(), name);
        }
        let too_long = format!("a{longest}");
        let refused = [
            "",
            "eu",
            "eu-1",
            "-1",
            "--1",
            "eu--1",
            "-west-1",
            "EU-west-1",
            "eu-West-1",
            "eu-west1-1",
            "eu-west-",
            "eu-west-x",
            "eu-west-100",
            "eu-west-*",
            &too_long,
        ];
        for name in refused {
            assert!(name.parse::<Region>().is_err(), "{name}");
        }
    }

    #[test]
    fn a_role_is_an_arn_of_iam_with_account_and_name() {
        let role = |name: &str| format!("arn:aws:iam::123456789012:role/{name}");
        let longest = role(&"a".repeat(2048 - role("").len()));
        for arn in ["arn:aws-cn:iam::123456789012:role/path/r,o=l@e+._-1", &role("a"), &longest] {
            assert_eq!(arn.parse::<RoleArn>().unwrap().as_str(), arn);
        }
        let refused = [
            "",
            "arn:other:iam::123456789012:role/a",
            "arn:aws:sts::123456789012:role/a",
            "arn:aws:iam:eu-west-1:123456789012:role/a",
            "arn:aws:iam::12345678901:role/a",
            "arn:aws:iam::12345678901x:role/a",
            "arn:aws:iam::123456789012:user/a",
            &role(""),
            &role("path/"),
            &role("a b"),
            &format!("{longest}a"),
        ];
        for arn in refused {
            assert!(arn.parse::<RoleArn>().is_err(), "{arn}");
        }
    }

    #[test]
    fn a_host_that_is_no_registry_is_refused_and_the_message_names_what_is_wrong() {
        use ParseRegistryError as E;

        let kind = |text: &str| match text.parse::<Registry>() {
            Ok(_) => "ok",
            Err(E::NoHost) => "no host",
            Err(E::NotAHost(_)) => "more than a host",
            Err(E::Port(_)) => "port",
            Err(E::NoPort(_)) => "no port",
            Err(E::Label(..)) => "label",
            Err(E::Account(_)) => "account",
            Err(E::RegionPattern(_)) => "region pattern",
            Err(E::HostRegion(_)) => "region",
            Err(E::Suffix { .. }) => "suffix",
            Err(E::NotEcr(_)) => "not ECR",
            Err(E::OtherRegion { .. }) => "other region",
            Err(E::WidePattern(_)) => "wide pattern",
            Err(E::Option(_) | E::Twice(_) | E::Region(_) | E::Role(_)) => "option",
        };
        let custom = |host: &str| format!("{host},region=eu-west-1");
        let label = "a".repeat(63);
        let name = format!("{label}.{label}.{label}.{}", "a".repeat(61));
        let cases = [
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", "ok"),
            ("*.dkr.ecr.eu-west-1.amazonaws.com", "ok"),
            ("1234*.dkr.ecr.eu-west-1.amazonaws.com", "ok"),
            ("public.ecr.aws", "ok"),
            ("public.ecr.aws:443", "port"),
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.com:443", "port"),
            ("12345678901.dkr.ecr.eu-west-1.amazonaws.com", "account"),
            ("123456789012*.dkr.ecr.eu-west-1.amazonaws.com", "account"),
            ("x*.dkr.ecr.eu-west-1.amazonaws.com", "account"),
            ("vpce-1.dkr.ecr.eu-west-1.amazonaws.com", "account"),
            ("vpce-1.dkr.ecr.eu-west-1.vpce.amazonaws.com", "not ECR"),
            ("123456789012.dkr.ecr.eu-west-1.vpce.amazonaws.com", "suffix"),
            ("123456789012.dkr-ecr.eu-west-1.amazonaws.com", "suffix"),
            ("123456789012.dkr.ecr.*.amazonaws.com", "region pattern"),
            ("123456789012.dkr.ecr.eu.amazonaws.com", "region"),
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.com,region=us-east-1", "other region"),
            ("", "no host"),
            ("https://public.ecr.aws", "more than a host"),
            ("user@public.ecr.aws", "more than a host"),
            ("registry.example.com", "not ECR"),
            (&custom("registry.example.com"), "ok"),
            (&custom("registry.example.com:5000"), "ok"),
            (&custom("registry.example.com:65536"), "no port"),
            (&custom("registry.example.com:+7"), "no port"),
            (&custom("registry"), "ok"),
            (&custom("*.example.com"), "ok"),
            (&custom("*"), "wide pattern"),
            (&custom("*.com"), "wide pattern"),
            (&custom("registry.*.com"), "wide pattern"),
            (&custom("registry.example.*"), "wide pattern"),
            (&custom("-registry.example.com"), "label"),
            (&custom("registry-.example.com"), "label"),
            (&custom("registry..com"), "label"),
            (&custom("a_b.example.com"), "label"),
            (&custom("[::1]"), "label"),
            (&custom(&format!("{label}a.example.com")), "label"),
            (&custom(&name), "ok"),
            (&custom(&format!("{name}a")), "label"),
            (&custom(&format!("{name}.a.b.c")), "label"),
        ];
        for (text, expected) in cases {
            assert_eq!(kind(text), expected, "{text}");
        }
    }

    #[test]
    fn the_patterns_for_every_host_are_registries() {
        let patterns = every_host();
        assert_eq!(patterns.len(), 2 * SUFFIXES.len() + 2 * DUAL_STACK_SUFFIXES.len() + PUBLIC_HOSTS.len());
        for pattern in patterns {
            let host = pattern.replacen('*', "123456789012", 1).replacen('*', "eu-west-1", 1);
            assert!(is_ecr_host(&host), "{host}");
        }
    }

    #[test]
    fn an_answer_of_ecr_names_a_host_and_nothing_more() {
        let host = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
        let cases = [
            (format!("https://{host}"), Some(host.to_owned())),
            (format!("http://{host}/"), Some(host.to_owned())),
            (format!("https://{}", host.to_ascii_uppercase()), Some(host.to_owned())),
            ("https://localhost:5000".to_owned(), Some("localhost:5000".to_owned())),
            (host.to_owned(), None),
            (format!("ftp://{host}"), None),
            (format!("https://{host}/path"), None),
            (format!("https://user@{host}"), None),
            (format!("https://{host}:65536"), None),
            ("https://*.dkr.ecr.eu-west-1.amazonaws.com".to_owned(), None),
            ("https://".to_owned(), None),
        ];
        for (url, expected) in cases {
            assert_eq!(host_of_proxy_endpoint(&url), expected, "{url}");
        }
        let region: Region = "eu-west-1".parse().unwrap();
        assert!(is_registry_in(host, &region));
        assert!(!is_registry_in("123456789012.dkr.ecr.us-east-1.amazonaws.com", &region));
        assert!(!is_registry_in("registry.example.com", &region));
        assert!(!is_registry_in("public.ecr.aws", &"us-east-1".parse().unwrap()), "it is not private");
        assert!(is_ecr_host(host) && !is_ecr_host("registry.example.com"));
    }
}
