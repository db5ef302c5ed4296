//! How the AWS SDK is set up. It reads no variable and no file itself: all that is configured comes from [`Config`].

use super::config::{Config, Endpoint, Service};
use super::http::Http;
use super::refusal::Refusal;
use super::registry::Region;
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_ecr::config::BehaviorVersion;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use aws_types::SdkConfig;
use std::time::Duration;

/// How long one call may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The SDK's settings for calls of one service in one region, and the name of both for messages.
///
/// # Errors
/// When the service's endpoint cannot work.
pub fn sdk_config(
    http: &Http,
    config: &Config,
    service: Service,
    region: &Region,
    credentials: Option<Credentials>,
    (needs_fips, needs_dual_stack): (bool, bool),
) -> Result<(SdkConfig, String), Refusal> {
    let timeouts =
        TimeoutConfig::builder().operation_attempt_timeout(TIMEOUT).operation_timeout(TIMEOUT).build();
    let mut sdk = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(http.for_sdk())
        .region(aws_types::region::Region::new(region.as_str().to_owned()))
        // This program has one rule for trying again.
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts);
    sdk.set_credentials_provider(credentials.map(SharedCredentialsProvider::new));
    let name = match service {
        Service::Ecr => "ECR",
        Service::EcrPublic => "ECR Public",
        Service::Sts => "STS",
        Service::RolesAnywhere => "IAM Roles Anywhere",
    };
    match config.endpoint(service)? {
        Endpoint::Own(url) => {
            sdk.set_endpoint_url(Some(url));
        }
        Endpoint::Aws { fips, dual_stack } => {
            sdk.set_use_fips(Some(fips || needs_fips));
            sdk.set_use_dual_stack(Some(dual_stack || needs_dual_stack));
        }
    }
    Ok((sdk.build(), format!("{name} in {region}")))
}
