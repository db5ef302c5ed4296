//! Asking ECR for authorization tokens.
//!
//! | file | what it knows |
//! | --- | --- |
//! | [`registry`] | hosts and patterns of ECR's, and whom to ask for each (pure) |
//! | [`token`] | what is a token (pure) |
//! | [`client`] | the calls |
//! | [`credentials`] | whose credentials, from where |
//! | [`http`] | proxies, certificates, bounds |
//! | [`refusal`] | what an error means, and what nobody must see of it |

pub mod client;
pub mod credentials;
pub mod http;
pub mod refusal;
pub mod registry;
pub mod token;
