//! ECR authorization tokens from AWS, with the one AWS identity that is configured.
//!
//! | file | what is in it |
//! | --- | --- |
//! | [`registry`] | registry hosts and patterns, and the token source of each (pure) |
//! | [`token`] | a checked token, and when it expires (pure) |
//! | [`client`] | the calls: region, credentials, token |
//! | [`config`] | what the environment and the shared files configure |
//! | [`credentials`] | the credential sources |
//! | [`roles_anywhere`] | the credential source for nodes outside AWS |
//! | [`environment`] | the variables that concern AWS and the network |
//! | [`url`] | what a URL in a setting must look like (pure) |
//! | [`files`] | files, read without ever waiting for one |
//! | [`http`] | proxies, certificates, limits |
//! | [`sdk`] | how the AWS SDK is set up |
//! | [`sdk_error`] | what an error of the SDK or the network means |
//! | [`refusal`] | why there is no token (pure) |

pub mod client;
pub mod config;
pub mod credentials;
pub mod environment;
pub mod files;
pub mod http;
pub mod refusal;
pub mod registry;
pub mod roles_anywhere;
pub mod sdk;
pub mod sdk_error;
pub mod token;
pub mod url;
