//! Many writers, many agents, many namespaces.

use super::{NAME, World, config, foreign_data, secret};
use crate::cluster::{Api, Refused, Rule, unique};
use crate::needs::tell;
use crate::node::{HOST, Node, Running};
use ecr_emulator::Options;
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

#[test]
fn fifty_agents_write_one_secret_once_and_then_let_it_be() {
    const AGENTS: usize = 50;
    let Some(world) = World::new() else { return };
    let nodes: Vec<Node> = (0..AGENTS)
        .map(|_| {
            let mut node = Node::new();
            node.set("KUBECONFIG", world.account.kubeconfig_with(&world.token).to_str().unwrap());
            node
        })
        .collect();
    let named = world.named();
    let agents: Vec<Running<'_>> = nodes.iter().map(|node| node.start(&["--pull-secret", &named])).collect();
    let looks = || world.requests().iter().filter(|request| request.verb == "get").count();
    for (agent, node) in agents.iter().zip(&nodes) {
        agent.wait("the auth file", || node.auth_file().exists());
    }
    agents[0].wait("every agent's look", || looks() >= AGENTS);
    let secret_now = world.secret().expect("nobody wrote");
    let token = config(&secret_now)["auths"][HOST]["auth"].as_str().unwrap().to_owned();
    assert!(nodes.iter().any(|node| node.aws.issued().iter().any(|issued| issued.token_base64 == token)));
    for agent in agents {
        agent.stop().expect(0, &[]);
    }
    let written = world
        .requests()
        .iter()
        .filter(|request| {
            ["create", "patch", "update"].contains(&request.verb.as_str()) && request.code < 300
        })
        .count();
    tell(&format!("{AGENTS} agents: {} looks, {written} writes", looks()));
    assert!((1..3).contains(&written), "{written} writes");
}

#[test]
fn once_serves_namespaces_by_glob_and_by_label() {
    let start = unique("once");
    let Some(world) = World::bare(Options::default()) else { return };
    let named = Rule { namespace: None, verbs: "get,patch", resource: "secrets", name: Some(NAME) };
    let create = Rule { verbs: "create", name: None, ..named };
    let list = Rule { verbs: "list", resource: "namespaces", name: None, ..named };
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
