//! Many writers, many agents, many namespaces.

use super::{NAME, World, foreign_data, secret};
use crate::cluster::{Api, RbacRule, Refused, Request, unique};
use crate::needs::tell;
use crate::node::{HOST, Node, Running};
use ecr_emulator::Options;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use std::thread;

#[test]
fn it_gets_through_a_storm_of_conflicts_and_undoes_nobodys_work() {
    const WRITERS: usize = 4;
    const WRITES: usize = 200;
    let Some(world) = World::new() else { return };
    world.put(&json!({ "type": super::TYPE, "data": foreign_data() }));
    let rounds = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|number| {
                let world = &world;
                scope.spawn(move || {
                    let api = Api::new(&world.cluster.admin());
                    let name = format!("storm-{number}");
                    let mut count = 0;
                    while count < WRITES {
                        let changes =
                            json!({ "metadata": { "annotations": { &name: (count + 1).to_string() } } });
                        match api.patch(&world.path(), &changes) {
                            Ok(_) => count += 1,
                            // The server gives up on a patch that loses too often.
                            Err(Refused(409, ..)) => {}
                            Err(refused) => panic!("{refused:?}"),
                        }
                    }
                })
            })
            .collect();
        let mut rounds = 0;
        while rounds == 0 || writers.iter().any(|writer| !writer.is_finished()) {
            world.once(&["--timeout", "120s"]).expect(0, &[]);
            world.assert_latest(HOST);
            rounds += 1;
        }
        rounds
    });
    let conflicts = world.requests().iter().filter(|request| request.code == 409).count();
    tell(&format!("{rounds} refreshes among {} foreign writes met {conflicts} conflicts", WRITERS * WRITES));
    assert!(conflicts > 0, "there was no storm");
    let secret = world.secret().unwrap();
    for number in 0..WRITERS {
        let annotation = &secret["metadata"]["annotations"][format!("storm-{number}")];
        assert_eq!(*annotation, json!(WRITES.to_string()), "a write of somebody else's was undone");
    }
}

/// Starts fifty agents with nodes of their own at the same moment, and waits until each has decided. Says how many writes
/// of the secret that took.
fn fifty_at_once(world: &World<'_>) -> usize {
    const AGENTS: usize = 50;
    let before = writes(world);
    let nodes: Vec<Node> = (0..AGENTS)
        .map(|_| {
            let mut node = Node::new();
            node.set("KUBECONFIG", world.account.kubeconfig_with(&world.token).to_str().unwrap());
            node
        })
        .collect();
    let named = world.named();
    let agents: Vec<Running<'_>> = nodes.iter().map(|node| node.start(&["--pull-secret", &named])).collect();
    for (agent, node) in agents.iter().zip(&nodes) {
        agent.wait("the auth file", || node.auth_file().exists());
        // In its own words, what it found or did.
        let done = ["\"created\"", "\"published\"", "already as it should be", "another agent was faster"];
        let of_secret = |line: &str| line.contains(&named) && done.iter().any(|done| line.contains(done));
        agent.wait("a decision", || agent.said().lines().any(of_secret));
    }
    for agent in agents {
        agent.stop().expect(0, &[]);
    }
    let metadata = &world.secret().expect("nobody wrote")["metadata"];
    let end: Timestamp =
        metadata["annotations"]["ecr-node-agent/expires-at"].as_str().unwrap().parse().unwrap();
    assert!(end.duration_since(world.node.aws.now()) > SignedDuration::from_hours(11), "it ends at {end}");
    writes(world) - before
}

/// How many writes of the secret were taken.
fn writes(world: &World<'_>) -> usize {
    let written = |request: &&Request| ["create", "patch"].contains(&&*request.verb) && request.code < 300;
    world.requests().iter().filter(written).count()
}

#[test]
fn fifty_agents_write_one_secret_once_and_then_let_it_be() {
    let Some(world) = World::new() else { return };
    let first = fifty_at_once(&world);
    let second = fifty_at_once(&world);
    tell(&format!("50 agents made a secret with {first} writes, and 50 more changed it with {second}"));
    assert!((1..3).contains(&first), "{first} writes");
    assert_eq!(second, 0);
}

#[test]
fn fifty_agents_replace_a_token_at_its_end_once() {
    let life = SignedDuration::from_mins(2);
    let Some(world) = World::with(Options { token_lifetime: life, ..Options::default() }) else { return };
    world.once(&[]).expect(0, &[]);
    let uid = world.secret().unwrap()["metadata"]["uid"].clone();
    let count = fifty_at_once(&world);
    tell(&format!("50 agents replaced a token at its end with {count} writes"));
    assert!((1..3).contains(&count), "{count} writes");
    assert_eq!(world.secret().unwrap()["metadata"]["uid"], uid);
}

#[test]
fn once_serves_namespaces_by_glob_and_by_label() {
    let start = unique("once");
    let Some(world) = World::bare(Options::default()) else { return };
    let named = RbacRule { namespace: None, verbs: "get,patch", resource: "secrets", name: Some(NAME) };
    let create = RbacRule { verbs: "create", name: None, ..named };
    let list = RbacRule { verbs: "list", resource: "namespaces", name: None, ..named };
    world.grant(&[named, create, list]);
    for (name, labels) in [("a", json!({})), ("b", json!({ &start: "yes" })), ("c", json!({ &start: "no" }))]
    {
        world.cluster.make_namespace(&format!("{start}-{name}"), &labels);
    }
    let there = || ["a", "b", "c"].map(|name| secret(world.cluster, &format!("{start}-{name}")).is_some());
    let selector = format!("{start}=yes");
    world.node.once(&["--pull-secret-selector", &selector, "--pull-secret-name", NAME]).expect(0, &[]);
    assert_eq!(there(), [false, true, false]);
    world.node.once(&["--pull-secret", &format!("{start}-?/{NAME}")]).expect(0, &[]);
    assert_eq!(there(), [true, true, true]);
}
