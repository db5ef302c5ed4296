//! The documented rights suffice, and the agent makes no other requests.

use super::{NAME, World};
use crate::cluster::Request;
use std::collections::BTreeSet;

/// The verbs and resources of requests, as a role names them.
pub fn asked(requests: &[Request]) -> BTreeSet<(String, String)> {
    requests.iter().map(|request| (request.verb.clone(), request.resource.clone())).collect()
}

/// Verbs and resources.
pub fn pairs(pairs: &[(&str, &str)]) -> BTreeSet<(String, String)> {
    pairs.iter().map(|(verb, resource)| ((*verb).to_owned(), (*resource).to_owned())).collect()
}

#[test]
fn a_node_only_reads_patches_and_creates_its_secret() {
    let Some(world) = World::new() else { return };
    let agent = world.start(&[]);
    agent.wait("the secret", || world.secret().is_some());
    agent.stop().expect(0, &[]);
    for _ in 0..2 {
        world.once(&[]).expect(0, &[]);
    }
    let requests = world.requests();
    let all = pairs(&[("get", "secrets"), ("create", "secrets"), ("patch", "secrets")]);
    assert_eq!(asked(&requests), all, "{requests:?}");
    assert!(requests.iter().all(|request| request.code < 400 || request.code == 404), "{requests:?}");
    // The path of a create has no name.
    let named = |request: &Request| request.verb == "create" || request.name == NAME;
    assert!(requests.iter().all(|it| named(it) && it.namespace == world.namespace), "{requests:?}");
}
