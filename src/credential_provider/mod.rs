//! The kubelet's credential provider plugin: the protocol, what an image is answered with, and the kubelet's configuration.

pub mod config;
pub mod decide;
pub mod kubelet_config;
pub mod protocol;
