//! Pull secrets: Secrets that hold what the auth file holds, for pods that name them.
//!
//! A [`Plan`](reconcile::Plan) says what to do with one secret, and [`publish`] does it. `--once` and `remove` do that once
//! for each secret, the agent of a node at random times ([`shared`]), and the Deployment when something changes
//! ([`controller`]).

pub mod api;
pub mod connection;
pub mod controller;
pub mod error;
pub mod exec;
pub mod kubeconfig;
pub mod names;
mod once;
pub mod publish;
pub mod reconcile;
mod record;
pub mod schedule;
pub mod shared;
mod targets;
mod watch;

pub use once::{once, remove};
pub use record::{Done, SecretDone, Target};
