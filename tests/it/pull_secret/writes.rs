//! What the agent writes into a pull secret, and what it leaves unchanged.

use super::{NAME, TYPE, World, config, foreign_data, version};
use crate::beside::Over;
use crate::cluster::Api;
use crate::node::{FOREIGN, HOST, Node};
use ecr_emulator::{Api as Aws, Fault, Times};
use jiff::SignedDuration;
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

const OTHER: &str = "210987654321.dkr.ecr.eu-west-1.amazonaws.com";

#[test]
fn a_missing_secret_is_created() {
    let Some(world) = World::new() else { return };
    world.once(&[]).expect(0, &[]);
    world.node.assert_latest_token(HOST);
    let secret = world.assert_latest(HOST);
    assert_eq!(secret["type"], TYPE);
    assert_eq!(secret["data"].as_object().unwrap().len(), 1, "{secret}");
    let expires_at = world.node.aws.issued().last().unwrap().expires_at;
    let annotation: jiff::Timestamp =
        secret["metadata"]["annotations"]["ecr-node-agent/expires-at"].as_str().unwrap().parse().unwrap();
    assert_eq!(annotation.as_second(), expires_at.as_second());
    let managers = secret["metadata"]["managedFields"].as_array().unwrap();
    assert!(managers.iter().all(|manager| manager["manager"] == "ecr-node-agent"), "{managers:?}");
}

#[test]
fn no_annotation_holds_the_token() {
    let Some(world) = World::new() else { return };
    world.once(&[]).expect(0, &[]);
    let secret = world.secret().unwrap();
    let metadata = secret["metadata"].to_string();
    for secret in world.node.aws.secrets() {
        assert!(!metadata.contains(&secret[..24.min(secret.len())]), "a secret is shown");
    }
}

/// How another program creates a secret.
type Maker = (&'static str, fn(&World<'_>));

#[test]
fn a_secret_of_another_program_is_taken_over_in_place() {
    let makers: [Maker; 4] = [
        ("kubectl create", |world| {
            world.cluster.kubectl(&[
                "create",
                "secret",
                "docker-registry",
                NAME,
                "--namespace",
                &world.namespace,
                "--docker-server",
                HOST,
                "--docker-username=AWS",
                "--docker-password=OLDSECRETPASSWORD",
            ]);
        }),
        ("kubectl apply", |world| {
            let secret = json!({
                "apiVersion": "v1", "kind": "Secret", "type": TYPE, "data": foreign_data(),
                "metadata": { "name": NAME, "namespace": world.namespace },
            });
            world.cluster.kubectl_with(&["apply", "--filename=-"], &secret.to_string());
        }),
        ("kubectl apply --server-side", |world| {
            let secret = json!({
                "apiVersion": "v1", "kind": "Secret", "type": TYPE, "data": foreign_data(),
                "metadata": { "name": NAME, "namespace": world.namespace },
            });
            world.cluster.kubectl_with(&["apply", "--server-side", "--filename=-"], &secret.to_string());
        }),
        ("another client", |world| {
            world.put(&json!({ "type": TYPE, "data": foreign_data() }));
        }),
    ];
    for (what, make) in makers {
        let Some(world) = World::new() else { return };
        make(&world);
        let patch = json!({
            "metadata": {
                "labels": { "app.kubernetes.io/managed-by": "team-a" },
                "annotations": { "note": "not ours" },
                "finalizers": ["example.com/kept"],
            },
            "data": { "more": "a2VwdA==" },
        });
        let before = world.cluster.api().patch(&world.path(), &patch).unwrap();

        world.once(&[]).expect(0, &[]);
        let after = world.assert_latest(HOST);
        assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"], "{what}");
        assert_eq!(after["metadata"]["creationTimestamp"], before["metadata"]["creationTimestamp"], "{what}");
        assert_eq!(after["metadata"]["labels"], before["metadata"]["labels"], "{what}");
        assert_eq!(after["metadata"]["finalizers"], before["metadata"]["finalizers"], "{what}");
        assert_eq!(after["data"]["more"], "a2VwdA==", "{what}");
        let annotations = after["metadata"]["annotations"].as_object().unwrap();
        for (name, value) in before["metadata"]["annotations"].as_object().unwrap() {
            assert_eq!(annotations.get(name), Some(value), "{what}");
        }
        assert!(annotations.contains_key("ecr-node-agent/expires-at"), "{what}");

        // Later updates keep it as well.
        world.once(&[]).expect(0, &[]);
        let later = world.assert_latest(HOST);
        assert_eq!(later["metadata"]["uid"], before["metadata"]["uid"], "{what}");
        assert_eq!(later["data"]["more"], "a2VwdA==", "{what}");
        let finalizers = json!({ "metadata": { "finalizers": null } });
        world.cluster.api().patch(&world.path(), &finalizers).unwrap();
    }
}

/// Starts the agent of a node, and waits until it has read the secret.
fn look(world: &World<'_>) {
    let gets = || world.requests().iter().filter(|request| request.verb == "get").count();
    let before = gets();
    let agent = world.start(&[]);
    agent.wait("a read of the secret", || gets() > before);
    agent.stop().expect(0, &[]);
}

#[test]
fn a_node_leaves_a_good_secret_alone() {
    let Some(world) = World::new() else { return };
    world.once(&[]).expect(0, &[]);
    let before = version(&world.secret().unwrap());
    for _ in 0..3 {
        look(&world);
    }
    assert_eq!(version(&world.secret().unwrap()), before);
    // Another node has a token of its own, which is not much better.
    let mut other = Node::new();
    other.set("KUBECONFIG", world.account.kubeconfig_with(&world.token).to_str().unwrap());
    let gets = world.requests().len();
    let agent = other.start(&["--pull-secret", &world.named()]);
    agent.wait("the auth file", || other.auth_file().exists());
    agent.wait("a read of the secret", || world.requests().len() > gets);
    agent.stop().expect(0, &[]);
    other.assert_latest_token(HOST);
    assert_eq!(version(&world.secret().unwrap()), before);
}

#[test]
fn a_node_restores_a_secret_that_another_program_has_damaged() {
    let Some(world) = World::new() else { return };
    world.once(&[]).expect(0, &[]);
    let good = world.secret().unwrap();
    let expires_at = |text: &str| json!({ "ecr-node-agent/expires-at": text });
    let damages = [
        ("another docker config", json!({ "data": foreign_data() })),
        ("an empty docker config", json!({ "data": { ".dockerconfigjson": "e30=" } })),
        ("no annotations", json!({ "metadata": { "annotations": null } })),
        ("an expiry that is no time", json!({ "metadata": { "annotations": expires_at("soon") } })),
        (
            "an expiry that is not that of the token",
            json!({ "metadata": { "annotations": expires_at("2099-01-01T00:00:00Z") } }),
        ),
    ];
    for (what, mut damage) in damages {
        if !damage["metadata"]["annotations"].is_null() || damage["metadata"].is_null() {
            // Shortly after a write, the repair would be postponed.
            let long_ago = (world.node.aws.now() - SignedDuration::from_hours(1)).to_string();
            damage["metadata"]["annotations"]["ecr-node-agent/written-at"] = json!(long_ago);
        }
        world.cluster.api().patch(&world.path(), &damage).unwrap();
        let before = version(&world.secret().unwrap());
        let agent = world.start(&[]);
        agent.wait(what, || version(&world.secret().unwrap()) != before);
        agent.stop().expect(0, &[]);
        let secret = world.assert_latest(HOST);
        assert_eq!(secret["metadata"]["uid"], good["metadata"]["uid"], "{what}");
        let annotation = &secret["metadata"]["annotations"]["ecr-node-agent/expires-at"];
        assert_eq!(*annotation, good["metadata"]["annotations"]["ecr-node-agent/expires-at"], "{what}");
    }
    assert_eq!(world.node.aws.issued().len(), 1, "ECR was asked for nothing");
}

#[test]
fn an_expiry_that_no_token_can_have_is_not_believed() {
    let Some(world) = World::new() else { return };
    world.once(&[]).expect(0, &[]);
    let issued = world.node.aws.issued().len();
    // A token that is worthless by now, whose annotations agree with each other that it is good for years.
    let secret = world.secret().unwrap();
    let text = |name: &str| secret["metadata"]["annotations"][name].as_str().unwrap().to_owned();
    let mut entries: serde_json::Value = serde_json::from_str(&text("ecr-node-agent/entries")).unwrap();
    entries["entries"][HOST]["expiresAt"] = json!("2099-01-01T00:00:00Z");
    let long_ago = (world.node.aws.now() - SignedDuration::from_hours(1)).to_string();
    let claims = json!({
        "ecr-node-agent/entries": entries.to_string(),
        "ecr-node-agent/expires-at": "2099-01-01T00:00:00Z",
        "ecr-node-agent/written-at": long_ago,
    });
    world.cluster.api().patch(&world.path(), &json!({ "metadata": { "annotations": claims } })).unwrap();
    let claimed = version(&world.secret().unwrap());
    let mut other = Node::new();
    other.set("KUBECONFIG", world.account.kubeconfig_with(&world.token).to_str().unwrap());
    let agent = other.start(&["--pull-secret", &world.named()]);
    agent.wait("a repair", || version(&world.secret().unwrap()) != claimed);
    agent.stop().expect(0, &[]);
    let token = other.aws.issued().last().unwrap().token_base64.clone();
    assert_eq!(config(&world.secret().unwrap()), json!({ "auths": { HOST: { "auth": token } } }));
    assert_eq!(world.node.aws.issued().len(), issued);
}

#[test]
fn a_reader_never_misses_the_secret_while_it_is_refreshed() {
    let Some(world) = World::new() else { return };
    world.once(&[]).expect(0, &[]);
    let uid = world.secret().unwrap()["metadata"]["uid"].clone();
    let (over, tokens) = (Over::default(), AtomicUsize::new(0));
    let (reads, seen) = thread::scope(|scope| {
        let end = over.guard();
        let reader = scope.spawn(|| {
            // Its own connection.
            let api = Api::new(&world.cluster.admin());
            let (mut reads, mut seen) = (0, BTreeSet::new());
            while !over.is_set() {
                let secret = api.get(&world.path()).expect("the secret is missing");
                assert_eq!(secret["metadata"]["uid"], uid);
                assert_eq!(secret["type"], TYPE);
                let config = config(&secret);
                assert_eq!(config["auths"].as_object().unwrap().len(), 1, "{config}");
                seen.insert(config["auths"][HOST]["auth"].as_str().unwrap().to_owned());
                tokens.store(seen.len(), Ordering::Relaxed);
                reads += 1;
            }
            (reads, seen)
        });
        // As often as it takes for the reader to have had its share, however busy the machine.
        while tokens.load(Ordering::Relaxed) < 20 {
            assert!(!reader.is_finished(), "the reader saw something else");
            world.once(&[]).expect(0, &[]);
        }
        drop(end);
        reader.join().unwrap()
    });
    crate::needs::tell(&format!("{reads} reads while it was refreshed saw {} tokens", seen.len()));
    let issued = world.node.aws.issued();
    for token in seen {
        assert!(issued.iter().any(|issued| issued.token_base64 == token), "a token that ECR never issued");
    }
}

#[test]
fn a_dry_run_prints_what_would_change_and_changes_nothing() {
    let Some(world) = World::new() else { return };
    let named = world.named();
    world.once(&["--dry-run"]).expect(0, &[&named]);
    assert_eq!(world.secret(), None);

    let before = world.put(&json!({ "type": TYPE, "data": foreign_data() }));
    world.once(&["--dry-run"]).expect(0, &[&named]);
    assert_eq!(version(&world.secret().unwrap()), version(&before));
    assert!(!world.node.auth_file().exists());
    // The API server was asked whether it would accept the change.
    let requests = world.requests();
    assert!(requests.iter().all(|request| request.verb == "get" || request.dry_run), "{requests:?}");
}

#[test]
fn every_registry_is_in_the_secret_and_nothing_from_the_auth_file() {
    let Some(world) = World::new() else { return };
    world.node.write("kubelet/config.json", FOREIGN);
    world.once(&["--registry", HOST, "--registry", OTHER]).expect(0, &[]);
    let config = config(&world.secret().unwrap());
    assert_eq!(config["auths"].as_object().unwrap().keys().collect::<Vec<_>>(), [HOST, OTHER]);

    // An entry for a registry that is no longer configured is removed.
    world.once(&["--registry", OTHER]).expect(0, &[]);
    let config = super::config(&world.secret().unwrap());
    assert_eq!(config["auths"].as_object().unwrap().keys().collect::<Vec<_>>(), [OTHER]);
}

#[test]
fn the_kubelet_accepts_the_content_of_the_secret() {
    let Some(world) = World::new() else { return };
    world.once(&[]).expect(0, &[]);
    let secret = world.secret().unwrap();
    let data = secret["data"][".dockerconfigjson"].as_str().unwrap();
    let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, data).unwrap();
    let parsed = ecr_node_agent::docker_config::parse::parse(&bytes);
    assert!(parsed.is_ok_and(|parsed| parsed.defects.is_empty()), "the kubelet refuses it");
}

#[test]
fn all_secrets_of_a_round_hold_the_same_token() {
    let Some(world) = World::new() else { return };
    let others: Vec<String> = (0..3)
        .map(|_| {
            let namespace = world.cluster.namespace("team");
            for rule in super::node_rights(&namespace) {
                world.account.may(rule);
            }
            namespace
        })
        .collect();
    let named: Vec<String> = others.iter().map(|namespace| format!("{namespace}/{NAME}")).collect();
    let more: Vec<&str> = named.iter().flat_map(|named| ["--pull-secret", named]).collect();
    world.once(&more).expect(0, &[]);
    let data = world.assert_latest(HOST)["data"].clone();
    for namespace in &others {
        let secret = super::secret(world.cluster, namespace).expect("no secret is there");
        assert_eq!(secret["data"], data, "{namespace}");
    }
}

#[test]
fn remove_deletes_only_named_secrets_that_the_agent_made() {
    let Some(world) = World::new() else { return };
    let rule = crate::cluster::RbacRule {
        namespace: Some(&world.namespace),
        verbs: "delete",
        resource: "secrets",
        name: Some(NAME),
    };
    let file = world.node.auth_file();
    let file = file.to_str().unwrap();
    let named = world.named();
    world.once(&[]).expect(0, &[]);

    world.node.run(&["remove", "--auth-file", file]).expect(0, &[]);
    world.assert_latest(HOST);
    world.once(&[]).expect(0, &[]);

    // A running agent has no right to delete secrets.
    world
        .node
        .run(&["remove", "--auth-file", file, "--pull-secret", &named])
        .expect(6, &["auth can-i delete", NAME, &world.namespace]);
    assert!(world.secret().is_some());
    assert!(!world.node.auth_file().exists(), "the auth file is removed first");

    world.account.may(rule);
    world
        .node
        .run(&["remove", "--auth-file", file, "--pull-secret", &named, "--dry-run"])
        .expect(0, &[&named]);
    assert!(world.secret().is_some());
    world.node.run(&["remove", "--auth-file", file, "--pull-secret", &named]).expect(0, &[&named]);
    assert_eq!(world.secret(), None);
    // Nothing is left to do.
    world.node.run(&["remove", "--auth-file", file, "--pull-secret", &named]).expect(0, &[]);

    let before = world.put(&json!({ "type": TYPE, "data": foreign_data() }));
    world.node.run(&["remove", "--auth-file", file, "--pull-secret", &named]).expect(0, &[]);
    assert_eq!(version(&world.secret().unwrap()), version(&before));
}

#[test]
fn a_secret_that_fails_does_not_delay_the_others() {
    let Some(world) = World::new() else { return };
    let missing = crate::cluster::unique("missing");
    let refused = world.cluster.namespace("refused");
    let (missing, refused) = (format!("{missing}/{NAME}"), format!("{refused}/{NAME}"));
    let before: Vec<&str> = vec!["--pull-secret", &missing, "--pull-secret", &refused, "--timeout", "3s"];
    world.once(&before).expect(6, &[&missing, &refused]);
    world.assert_latest(HOST);
    world.node.assert_latest_token(HOST);
}

#[test]
fn variables_name_secrets_as_options_do() {
    let Some(mut world) = World::new() else { return };
    let named = world.named();
    world.node.set("ECR_NODE_AGENT_PULL_SECRET", &named);
    world.node.once(&[]).expect(0, &[]);
    world.assert_latest(HOST);
}

#[test]
fn without_a_new_token_the_secret_is_left_alone() {
    let Some(world) = World::new() else { return };
    world.once(&[]).expect(0, &[]);
    let before = version(&world.secret().unwrap());
    world.node.aws.fail(Aws::Ecr, denied(), Times::Always);
    world.once(&["--timeout", "2s"]).expect(4, &[]);
    assert_eq!(version(&world.secret().unwrap()), before);
}

fn denied() -> Fault {
    let code = "AccessDeniedException".to_owned();
    Fault::Error { status: 400, code, message: "not authorized".to_owned() }
}
