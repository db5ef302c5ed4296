//! What the environment and the shared files say about AWS: region, endpoints, switches, the profile.
//!
//! | file | what is in it |
//! | --- | --- |
//! | [`parse`] | the text of a shared file (pure) |
//! | [`profiles`] | the profiles in both files (pure) |
//! | [`load`] | reads the files |

pub mod load;
pub mod parse;
pub mod profiles;

use self::parse::ParseError;
use self::profiles::{Found, Place, Profiles};
use super::environment::Environment;
use super::files::ReadError;
use super::refusal::Refusal;
use super::registry::Region;
use super::url::is_endpoint;
use crate::report::redact::{redact, shown_path};
use std::path::PathBuf;

/// The longest wrong value that is shown.
const LONGEST: usize = 100;

/// What is configured.
#[derive(Debug)]
pub struct Config {
    /// The variables.
    pub environment: Environment,
    /// The shared files.
    pub profiles: Profiles,
    /// The selected profile.
    pub profile: String,
    /// The variable that selects it; `None` for `default`.
    pub selected_by: Option<&'static str>,
}

/// An API that may have an endpoint of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Private ECR.
    Ecr,
    /// ECR Public.
    EcrPublic,
    /// STS.
    Sts,
    /// IAM Roles Anywhere.
    RolesAnywhere,
}

/// Where an API is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// At this URL. FIPS and dual-stack switches do not concern it.
    Own(String),
    /// At AWS's endpoint for the region.
    Aws {
        /// The FIPS 140 endpoint.
        fips: bool,
        /// The endpoint that also speaks IPv6.
        dual_stack: bool,
    },
}

/// Where the instance metadata service is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Metadata {
    /// Not at all, since this variable says so.
    Disabled(&'static str),
    /// At this URL, without a slash at the end.
    At(String),
}

/// Something that is configured and cannot work.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A shared file cannot be read.
    #[error("{} {problem}{}", shown_path(path), file_hint(*variable, problem))]
    File {
        /// The file.
        path: PathBuf,
        /// The variable that names it; `None` at its usual place.
        variable: Option<&'static str>,
        /// Why not.
        problem: ReadError,
    },
    /// A shared file breaks the rules.
    #[error("{}: {problem}", shown_path(path))]
    Content {
        /// The file.
        path: PathBuf,
        /// Which line, and why.
        problem: ParseError,
    },
    /// A profile is named, and no file has it.
    #[error("{variable} names the profile `{profile}`, {which}")]
    NoProfile {
        /// The variable.
        variable: &'static str,
        /// The profile.
        profile: String,
        /// Where it was looked for, and what to do.
        which: String,
    },
    /// Two variables name two profiles.
    #[error("AWS_PROFILE and AWS_DEFAULT_PROFILE name different profiles: unset one of them")]
    TwoProfiles,
    /// A region that is none.
    #[error("{origin} names `{value}`, which is no AWS region: expected one like `eu-west-1`")]
    Region {
        /// The variable, or the file and the line.
        origin: String,
        /// The value.
        value: String,
    },
    /// An endpoint that is not a valid URL. Its value is not shown if it may hold a password.
    #[error(
        "{origin} is {value}, which is not a valid endpoint: expected a URL such as `https://HOST`, without user and query"
    )]
    Endpoint {
        /// The variable, or the file and the line.
        origin: String,
        /// The value as it may be shown.
        value: String,
    },
    /// A switch that is neither on nor off.
    #[error("{origin} is `{value}`: expected `true` or `false`")]
    Switch {
        /// The variable, or the file and the line.
        origin: String,
        /// The value.
        value: String,
    },
    /// `AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE`.
    #[error("{origin} is `{value}`: expected `IPv4` or `IPv6`")]
    Mode {
        /// The variable, or the file and the line.
        origin: String,
        /// The value.
        value: String,
    },
}

/// What else there is to say about a shared file that cannot be read. One at its usual place is configured by being there.
fn file_hint(variable: Option<&str>, problem: &ReadError) -> String {
    match (variable, problem) {
        (Some(name), _) => format!(" ({name} names it)"),
        (None, ReadError::Denied { .. }) => ", or remove the file".to_owned(),
        (None, _) => String::new(),
    }
}

impl From<ConfigError> for Refusal {
    fn from(error: ConfigError) -> Self {
        let reason = error.to_string();
        match error {
            ConfigError::File { .. }
            | ConfigError::Content { .. }
            | ConfigError::NoProfile { .. }
            | ConfigError::TwoProfiles => {
                let passing = matches!(&error, ConfigError::File { problem, .. } if problem.is_passing());
                Self::NoCredentials { reason, passing }
            }
            ConfigError::Region { .. } => Self::NoRegion { reason, passing: false },
            ConfigError::Endpoint { .. } | ConfigError::Switch { .. } | ConfigError::Mode { .. } => {
                Self::Settings { reason }
            }
        }
    }
}

impl Service {
    /// The variable for this API's endpoint.
    #[must_use]
    pub fn endpoint_variable(self) -> &'static str {
        match self {
            Self::Ecr => "AWS_ENDPOINT_URL_ECR",
            Self::EcrPublic => "AWS_ENDPOINT_URL_ECR_PUBLIC",
            Self::Sts => "AWS_ENDPOINT_URL_STS",
            Self::RolesAnywhere => "AWS_ENDPOINT_URL_ROLESANYWHERE",
        }
    }

    /// This API's name in a section `[services NAME]`.
    fn setting(self) -> &'static str {
        match self {
            Self::Ecr => "ecr",
            Self::EcrPublic => "ecr_public",
            Self::Sts => "sts",
            Self::RolesAnywhere => "rolesanywhere",
        }
    }
}

/// A value and where it comes from: a variable, or a place in a file.
struct Value<'a> {
    origin: String,
    text: &'a str,
}

impl<'a> From<Found<'a>> for Value<'a> {
    fn from(found: Found<'a>) -> Self {
        Self { origin: found.place.to_string(), text: found.value }
    }
}

impl<'a> From<(&'static str, &'a str)> for Value<'a> {
    fn from((variable, text): (&'static str, &'a str)) -> Self {
        Self { origin: variable.to_owned(), text }
    }
}

impl Config {
    /// Selects the profile.
    ///
    /// # Errors
    /// When one is named that is in no file.
    pub fn new(environment: Environment, profiles: Profiles) -> Result<Self, ConfigError> {
        let variables = ["AWS_PROFILE", "AWS_DEFAULT_PROFILE"];
        let selected = environment.first(&variables);
        let other = environment.get(variables[1]);
        if selected.zip(other).is_some_and(|((_, one), other)| one != other) {
            return Err(ConfigError::TwoProfiles);
        }
        let (selected_by, profile) = match selected {
            Some((variable, profile)) => (Some(variable), profile.to_owned()),
            None => (None, "default".to_owned()),
        };
        if let Some(variable) = selected_by.filter(|_| profiles.place(&profile).is_none()) {
            let which = not_found(&profiles, &profile);
            return Err(ConfigError::NoProfile { variable, profile: redact(&profile, LONGEST), which });
        }
        Ok(Self { environment, profiles, profile, selected_by })
    }

    /// Where the selected profile starts; `None` for a `default` that is in no file.
    #[must_use]
    pub fn profile_place(&self) -> Option<Place> {
        self.profiles.place(&self.profile)
    }

    /// The value of the first of these variables that is set, or of this setting of the profile.
    fn value(&self, variables: &[&'static str], setting: &str) -> Option<Value<'_>> {
        let variable = self.environment.first(variables).map(Value::from);
        variable.or_else(|| self.profiles.get(&self.profile, setting).map(Value::from))
    }

    /// The region that the environment or the profile names.
    ///
    /// # Errors
    /// When it is none.
    pub fn region(&self) -> Result<Option<Region>, ConfigError> {
        let named = self.value(&["AWS_REGION", "AWS_DEFAULT_REGION"], "region");
        let read = |Value { origin, text }: Value<'_>| {
            let value = redact(text, LONGEST);
            text.trim().parse().map_err(|_| ConfigError::Region { origin, value })
        };
        named.map(read).transpose()
    }

    /// Where an API is asked.
    ///
    /// # Errors
    /// When its endpoint is no URL, or a switch is neither on nor off.
    pub fn endpoint(&self, service: Service) -> Result<Endpoint, ConfigError> {
        let is_on = |variable, setting| self.switch(variable, setting).map(|switch| switch == Some(true));
        let ignored = is_on("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "ignore_configured_endpoint_urls")?;
        let own = || {
            let variables = [service.endpoint_variable(), "AWS_ENDPOINT_URL"];
            let variable = self.environment.first(&variables).map(Value::from);
            variable
                .or_else(|| {
                    let services = self.profiles.get(&self.profile, "services")?;
                    self.profiles.service(services.value, service.setting(), "endpoint_url").map(Value::from)
                })
                .or_else(|| self.profiles.get(&self.profile, "endpoint_url").map(Value::from))
        };
        if let Some(Value { origin, text }) = Some(()).filter(|()| !ignored).and_then(|()| own()) {
            let text = text.trim();
            return if is_endpoint(text) {
                Ok(Endpoint::Own(text.trim_end_matches('/').to_owned()))
            } else {
                Err(ConfigError::Endpoint { origin, value: shown_endpoint(text) })
            };
        }
        Ok(Endpoint::Aws {
            fips: is_on("AWS_USE_FIPS_ENDPOINT", "use_fips_endpoint")?,
            dual_stack: is_on("AWS_USE_DUALSTACK_ENDPOINT", "use_dualstack_endpoint")?,
        })
    }

    /// Where the instance metadata service is asked.
    ///
    /// # Errors
    /// When its endpoint is no URL, or a setting has no meaning.
    pub fn metadata(&self) -> Result<Metadata, ConfigError> {
        const DISABLED: &str = "AWS_EC2_METADATA_DISABLED";
        if self.switch(DISABLED, "")? == Some(true) {
            return Ok(Metadata::Disabled(DISABLED));
        }
        let endpoint = self.value(&["AWS_EC2_METADATA_SERVICE_ENDPOINT"], "ec2_metadata_service_endpoint");
        if let Some(Value { origin, text }) = endpoint {
            let text = text.trim();
            return if is_endpoint(text) {
                Ok(Metadata::At(text.trim_end_matches('/').to_owned()))
            } else {
                Err(ConfigError::Endpoint { origin, value: shown_endpoint(text) })
            };
        }
        let mode =
            self.value(&["AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"], "ec2_metadata_service_endpoint_mode");
        let url = match mode {
            Some(Value { text, .. }) if text.trim().eq_ignore_ascii_case("IPv6") => "http://[fd00:ec2::254]",
            Some(Value { origin, text }) if !text.trim().eq_ignore_ascii_case("IPv4") => {
                return Err(ConfigError::Mode { origin, value: redact(text, LONGEST) });
            }
            _ => "http://169.254.169.254",
        };
        Ok(Metadata::At(url.to_owned()))
    }

    /// A switch; `None` if it is not set.
    fn switch(&self, variable: &'static str, setting: &str) -> Result<Option<bool>, ConfigError> {
        let Some(Value { origin, text }) = self.value(&[variable], setting) else { return Ok(None) };
        match text.trim().to_ascii_lowercase().as_str() {
            "true" => Ok(Some(true)),
            "false" => Ok(Some(false)),
            _ => Err(ConfigError::Switch { origin, value: redact(text, LONGEST) }),
        }
    }
}

/// Where a profile was looked for, and what to do.
#[must_use]
pub fn not_found(profiles: &Profiles, profile: &str) -> String {
    if let Some((place, right)) = profiles.misspelt(profile) {
        let right = redact(&right, LONGEST);
        return format!("which is not found: the section at {place} must be `{right}`");
    }
    let paths: Vec<String> = profiles.paths().map(shown_path).collect();
    match paths.as_slice() {
        [] => "but there is no shared credentials or config file: add one, or unset the variable".to_owned(),
        paths => format!("which is not in {}: add it, or correct the name", paths.join(" or ")),
    }
}

/// A wrong endpoint as it may be shown. One with a user in it may hold a password, and is not shown.
fn shown_endpoint(url: &str) -> String {
    if url.contains('@') {
        "a URL with a user in it".to_owned()
    } else {
        format!("`{}`", redact(url, LONGEST))
    }
}
