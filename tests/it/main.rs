//! One binary, one module per promise. `node` builds the world, `needs` says what it takes.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]
#![expect(unreachable_pub, reason = "modules of one binary")]

mod api_server;
mod auth_file;
mod beside;
mod cli;
mod clock;
mod cluster;
mod containers_image;
mod crash;
mod credential_provider;
mod credentials;
mod crowd;
mod daemon;
mod docs;
mod ecr;
mod events;
mod explain;
mod hostpath;
mod identity;
mod in_pod;
mod link;
mod manifests;
mod merge;
mod migration;
mod needs;
mod node;
mod oracle;
mod plugin_oracle;
mod plugin_peer;
mod plugin_vectors;
mod pull_secret;
mod races;
mod readers;
mod roles_anywhere;
mod runbook;
mod schema;
mod serve;
mod startup_taint;
mod stories;
mod stuck;
mod tidy;
mod vectors;
mod verify;
mod wire;
mod writers;
