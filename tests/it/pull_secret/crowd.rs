//! Many writers and many agents.

use super::{NAME, World, foreign_data, secret};
use crate::cluster::{Api, RbacRule, Refused, unique};
use crate::needs::tell;
use crate::node::{HOST, Node, Running};
use ecr_emulator::Options;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use std::thread;

#[test]
fn conflicts_delay_no_refresh_for_long_and_no_write_of_another_program_is_undone() {
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
                        let annotations = json!({ &name: (count + 1).to_string() });
                        match api.patch(&world.path(), &json!({ "metadata": { "annotations": annotations } }))
                        {
                            Ok(_) => count += 1,
                            // The API server gives up on a patch that meets too many conflicts.
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
    tell(&format!("{rounds} refreshes among {} other writes met {conflicts} conflicts", WRITERS * WRITES));
    assert!(conflicts > 0, "there was no conflict");
    let secret = world.secret().unwrap();
    for number in 0..WRITERS {
        let annotation = &secret["metadata"]["annotations"][format!("storm-{number}")];
        assert_eq!(*annotation, json!(WRITES.to_string()), "a write of another program was undone");
    }
}

/// Starts fifty agents with nodes of their own at the same moment, waits until each has decided, and returns how many have
/// written the secret.
fn fifty_at_once(world: &World<'_>) -> usize {
    const AGENTS: usize = 50;
    const WRITTEN: [&str; 2] = ["created the secret", "updated the secret"];
    const NOT_WRITTEN: [&str; 2] = ["no change needed", "another agent wrote the secret"];
    let nodes: Vec<Node> = (0..AGENTS)
        .map(|_| {
            let mut node = Node::new();
            node.set("KUBECONFIG", world.account.kubeconfig_with(&world.token).to_str().unwrap());
            node
        })
        .collect();
    let named = world.named();
    // Whether an agent has logged one of these about the secret.
    let logged = |log: &str, messages: &[&str]| {
        log.lines().any(|line| line.contains(&named) && messages.iter().any(|message| line.contains(message)))
    };
    let agents: Vec<Running<'_>> = nodes.iter().map(|node| node.start(&["--pull-secret", &named])).collect();
    for (agent, node) in agents.iter().zip(&nodes) {
        agent.wait("the auth file", || node.auth_file().exists());
        agent.wait("a decision", || logged(&agent.said(), &[WRITTEN, NOT_WRITTEN].concat()));
    }
    let runs = agents.into_iter().map(|agent| agent.stop().expect(0, &[]));
    let writes = runs.filter(|run| logged(&run.err, &WRITTEN)).count();
    let metadata = &world.secret().expect("no agent wrote the secret")["metadata"];
    let end: Timestamp =
        metadata["annotations"]["ecr-node-agent/expires-at"].as_str().unwrap().parse().unwrap();
    assert!(end.duration_since(world.node.aws.now()) > SignedDuration::from_hours(11), "it expires at {end}");
    writes
}

#[test]
fn fifty_agents_write_one_secret_once_and_then_leave_it_alone() {
    let Some(world) = World::new() else { return };
    let first = fifty_at_once(&world);
    let second = fifty_at_once(&world);
    tell(&format!("50 agents created a secret with {first} writes, and 50 more changed it with {second}"));
    assert!((1..3).contains(&first), "{first} writes");
    assert_eq!(second, 0);
}

#[test]
fn fifty_agents_replace_a_token_that_expires_soon_once() {
    let life = SignedDuration::from_mins(2);
    let Some(world) = World::with(Options { token_lifetime: life, ..Options::default() }) else { return };
    world.once(&[]).expect(0, &[]);
    let uid = world.secret().unwrap()["metadata"]["uid"].clone();
    let count = fifty_at_once(&world);
    tell(&format!("50 agents replaced a token that expires soon with {count} writes"));
    assert!((1..3).contains(&count), "{count} writes");
    assert_eq!(world.secret().unwrap()["metadata"]["uid"], uid);
}

#[test]
fn once_finds_namespaces_by_a_pattern_and_by_a_label() {
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
    let exist = || ["a", "b", "c"].map(|name| secret(world.cluster, &format!("{start}-{name}")).is_some());
    let selector = format!("{start}=yes");
    world.node.once(&["--pull-secret-selector", &selector, "--pull-secret-name", NAME]).expect(0, &[]);
    assert_eq!(exist(), [false, true, false]);
    world.node.once(&["--pull-secret", &format!("{start}-?/{NAME}")]).expect(0, &[]);
    assert_eq!(exist(), [true, true, true]);
}
