//! Places that a refresh publishes to.

pub mod auth_file;
pub mod link;
pub mod pull_secret;
pub mod replace;
