//! Why the credential source that is configured cannot be used, and what to do about it.

use crate::ecr::config::ConfigError;
use crate::ecr::refusal::Refusal;

/// Why no credential source can be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A setting cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Part of an access key is missing.
    #[error(
        "{set} is set, but {missing}: set both `aws_access_key_id` and `aws_secret_access_key`, or neither"
    )]
    PartialKey {
        /// What is there, and where.
        set: String,
        /// What is not there.
        missing: String,
    },
    /// Part of the environment's settings of one source is missing.
    #[error("{set} is set, but {missing} is not: set both, or neither")]
    PartialVariables {
        /// The variable that is set.
        set: &'static str,
        /// The variables that are not.
        missing: &'static str,
    },
    /// A profile that was named has no credentials.
    #[error(
        "{variable} names the profile `{profile}` ({place}), which has no credentials: add some there, for an instance's \
         role `credential_source = Ec2InstanceMetadata`, or unset {variable}"
    )]
    EmptyProfile {
        /// The variable.
        variable: &'static str,
        /// The profile.
        profile: String,
        /// Where it starts.
        place: String,
    },
    /// A profile that another one names has no credentials.
    #[error(
        "the profile `{profile}`, which {place} names as `source_profile`, has no credentials: add some there"
    )]
    EmptySourceProfile {
        /// The profile.
        profile: String,
        /// Where it is named.
        place: String,
    },
    /// A profile that another one names is not there.
    #[error("{place} names the source_profile `{profile}`, {which}")]
    NoSourceProfile {
        /// Where it is named.
        place: String,
        /// The profile.
        profile: String,
        /// Where it was looked for, and what to do.
        which: String,
    },
    /// Profiles that name each other in a circle.
    #[error(
        "{place} names the source_profile `{profile}`, which leads back to itself: one of them must have credentials"
    )]
    Circle {
        /// Where it is named.
        place: String,
        /// The profile.
        profile: String,
    },
    /// A role without anything to assume it with, or with two things.
    #[error(
        "{place} names a role, and the profile has {what} of `source_profile` and `credential_source`: it needs exactly one"
    )]
    RoleSource {
        /// Where the role is named.
        place: String,
        /// `both` or `none`.
        what: &'static str,
    },
    /// A `credential_source` that does not exist.
    #[error(
        "{place} names the credential_source `{value}`: expected `Environment`, `EcsContainer` or `Ec2InstanceMetadata`"
    )]
    CredentialSource {
        /// Where it is named.
        place: String,
        /// What it says.
        value: String,
    },
    /// A `credential_source` that is not configured.
    #[error("{place} names the credential_source `{value}`, but {missing}")]
    NamedSourceMissing {
        /// Where it is named.
        place: String,
        /// What it says.
        value: String,
        /// What is not there.
        missing: String,
    },
    /// A source that needs a person.
    #[error(
        "{place} configures {what}, which needs a person at a browser or a device: a node agent cannot use it; name a \
             profile with an access key, a role or a `credential_process`"
    )]
    NeedsAPerson {
        /// Where it is configured.
        place: String,
        /// What it is.
        what: &'static str,
    },
    /// A web identity without its role.
    #[error("{place} names a web identity token file, and the profile has no `role_arn`: add it")]
    WebIdentityWithoutRole {
        /// Where it is configured.
        place: String,
    },
    /// Nothing is configured, and there is no metadata service to ask.
    #[error(
        "no credential source is configured, and {variable} switches off the instance metadata service; looked for: \
         AWS_ACCESS_KEY_ID, {files}, AWS_WEB_IDENTITY_TOKEN_FILE, AWS_CONTAINER_CREDENTIALS_FULL_URI; give \
         --aws-credentials-dir or --roles-anywhere, or configure one of these"
    )]
    Nothing {
        /// The variable.
        variable: &'static str,
        /// The profile and the files.
        files: String,
    },
}

impl From<SourceError> for Refusal {
    fn from(error: SourceError) -> Self {
        match error {
            // Only the settings of the metadata service are read while a source is chosen.
            SourceError::Config(error) => {
                Self::from(error).of_source("the instance metadata service cannot be asked")
            }
            error => Self::no_credentials(&error),
        }
    }
}
