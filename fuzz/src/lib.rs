//! The parts of the program that read what others write. They use nothing of the rest, so they are compiled here alone, and
//! the fuzzers are built within a minute.

#[path = "../../src/inspect/registry/challenge.rs"]
pub mod challenge;
#[path = "../../src/docker_config/mod.rs"]
pub mod docker_config;
#[path = "../../src/ecr/registry.rs"]
pub mod registry;

/// How long tokens live.
#[path = "../../src/time"]
pub mod time {
    pub mod schedule;
}
