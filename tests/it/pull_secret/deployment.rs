//! `--no-auth-file`: one agent, which watches namespaces, secrets and service accounts.

use super::rights::{asked, pairs};
use super::{NAME, TYPE, World, config, deployment_rights, foreign_data, secret, version};
use crate::cluster::{Cluster, RbacRule, unique};
use crate::needs::{Need, all_here, tell};
use crate::node::{HOST, Running};
use crate::serve;
use crate::wire::Wire;
use ecr_emulator::{Api as Aws, Fault, Options, Times};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The world of a Deployment, and a prefix for the names of its namespaces.
fn world() -> Option<(World<'static>, String)> {
    Some((World::deployed()?, unique("watched")))
}

impl World<'_> {
    /// Starts the Deployment.
    fn deploy(&self, arguments: &[&str]) -> Running<'_> {
        self.node.launch(&[], &[&["--no-auth-file", "--log-level", "debug"], arguments].concat())
    }

    /// Whether the secret in a namespace holds the latest token and nothing else.
    fn is_good(&self, namespace: &str) -> bool {
        let Some(token) = self.node.aws.issued().last().map(|issued| issued.token_base64.clone()) else {
            return false;
        };
        secret(self.cluster, namespace).is_some_and(|secret| {
            secret["type"] == TYPE
                && secret["data"][".dockerconfigjson"].is_string()
                && config(&secret) == json!({ "auths": { HOST: { "auth": token } } })
        })
    }

    /// Waits until the secret in a namespace is good, and prints how long that took. The agent does nothing periodically: only a
    /// watch can have made it look.
    #[track_caller]
    fn soon_good(&self, agent: &Running<'_>, namespace: &str, after: &str) {
        let start = Instant::now();
        agent.wait(&format!("the secret, after {after}"), || self.is_good(namespace));
        tell(&format!("after {after}, the secret was good in {:?}", start.elapsed()));
    }

    /// Waits until the agent has handled all changes of namespaces until now: a namespace that is new has its secret.
    #[track_caller]
    fn wait_for_namespaces(&self, agent: &Running<'_>, name: &str, labels: &Value) {
        self.cluster.make_namespace(name, labels);
        agent.wait("the secret of a new namespace", || self.is_good(name));
    }
}

#[test]
fn a_new_namespace_that_matches_a_glob_has_its_secret_soon() {
    let Some((world, start)) = world() else { return };
    let there = format!("{start}-there");
    world.cluster.make_namespace(&there, &json!({}));
    let agent = world.deploy(&["--pull-secret", &format!("{start}-*/{NAME}")]);
    agent.wait("the first secret", || world.is_good(&there));
    let other = unique("other");
    world.cluster.make_namespace(&other, &json!({}));
    for number in 0..3 {
        let name = format!("{start}-new-{number}");
        world.cluster.make_namespace(&name, &json!({}));
        world.soon_good(&agent, &name, "a new namespace");
    }
    assert_eq!(secret(world.cluster, &other), None);
    assert!(!world.node.auth_file().exists());
    agent.stop().expect(0, &[]);
}

#[test]
fn a_new_namespace_that_matches_a_label_has_its_secret_soon() {
    let Some((world, start)) = world() else { return };
    let (there, labelled) = (format!("{start}-there"), format!("{start}-labelled"));
    let labels = json!({ "pulls": &start });
    world.cluster.make_namespace(&there, &labels);
    world.cluster.make_namespace(&labelled, &json!({}));
    let selector = format!("pulls={start}");
    let agent = world.deploy(&["--pull-secret-selector", &selector, "--pull-secret-name", NAME]);
    agent.wait("the first secret", || world.is_good(&there));
    assert_eq!(secret(world.cluster, &labelled), None, "it has no label yet");
    let path = format!("/api/v1/namespaces/{labelled}");
    world.cluster.api().patch(&path, &json!({ "metadata": { "labels": labels } })).unwrap();
    world.soon_good(&agent, &labelled, "a new label");
    let new = format!("{start}-new");
    world.cluster.make_namespace(&new, &labels);
    world.soon_good(&agent, &new, "a new namespace with the label");

    // A namespace that loses its label keeps its secret as it is. Watches of namespaces and of secrets are independent: the
    // secret is damaged when the agent knows of the label.
    world.cluster.api().patch(&path, &json!({ "metadata": { "labels": { "pulls": null } } })).unwrap();
    world.wait_for_namespaces(&agent, &format!("{start}-later"), &labels);
    let damaged =
        world.cluster.api().patch(&super::path(&labelled), &json!({ "data": foreign_data() })).unwrap();
    // One watch is for all secrets, and tells of the damage before it tells of this deletion.
    world.cluster.api().delete(&super::path(&new)).unwrap();
    world.soon_good(&agent, &new, "a deletion elsewhere");
    assert_eq!(version(&secret(world.cluster, &labelled).unwrap()), version(&damaged));
    agent.stop().expect(0, &[]);
}

#[test]
fn a_deleted_or_changed_secret_is_back_soon() {
    let Some((world, start)) = world() else { return };
    let namespace = format!("{start}-a");
    world.cluster.make_namespace(&namespace, &json!({}));
    let agent = world.deploy(&["--pull-secret", &format!("{start}-*/{NAME}")]);
    agent.wait("the first secret", || world.is_good(&namespace));
    let path = super::path(&namespace);
    let api = world.cluster.api();
    for _ in 0..2 {
        api.delete(&path).unwrap();
        world.soon_good(&agent, &namespace, "a deletion");
    }
    let uid = secret(world.cluster, &namespace).unwrap()["metadata"]["uid"].clone();
    for (what, damage) in [
        ("another docker config", json!({ "data": foreign_data() })),
        ("an empty one", json!({ "data": { ".dockerconfigjson": "e30=" } })),
    ] {
        api.patch(&path, &damage).unwrap();
        world.soon_good(&agent, &namespace, what);
        assert_eq!(secret(world.cluster, &namespace).unwrap()["metadata"]["uid"], uid, "{what}");
    }
    api.patch(&path, &json!({ "metadata": { "annotations": { "ecr-node-agent/expires-at": null } } }))
        .unwrap();
    agent.wait("the annotation", || {
        secret(world.cluster, &namespace)
            .is_some_and(|secret| secret["metadata"]["annotations"]["ecr-node-agent/expires-at"].is_string())
    });
    // Labels and data that other programs set stay.
    api.patch(&path, &json!({ "metadata": { "labels": { "team": "a" } }, "data": { "more": "a2VwdA==" } }))
        .unwrap();
    api.patch(&path, &json!({ "data": foreign_data() })).unwrap();
    agent.wait("the repair", || {
        secret(world.cluster, &namespace).is_some_and(|secret| {
            config(&secret)["auths"][HOST].is_object()
                && secret["data"]["more"] == "a2VwdA=="
                && secret["metadata"]["labels"]["team"] == "a"
        })
    });
    agent.stop().expect(0, &[]);
    assert_eq!(world.node.aws.issued().len(), 1, "it was repaired from memory");
}

#[test]
fn a_secret_that_is_recreated_with_another_type_is_left_alone() {
    let Some((world, start)) = world() else { return };
    let namespace = format!("{start}-a");
    world.cluster.make_namespace(&namespace, &json!({}));
    let agent = world.deploy(&["--pull-secret", &format!("{start}-*/{NAME}")]);
    agent.wait("the first secret", || world.is_good(&namespace));
    // The agent may create the secret first: then again.
    let path = super::path(&namespace);
    let opaque = json!({ "metadata": { "name": NAME }, "type": "Opaque" });
    agent.wait("a secret of another type", || {
        world.cluster.api().delete(&path).ok();
        world.cluster.api().create(&path[..path.len() - NAME.len() - 1], &opaque).is_ok()
    });
    agent.wait_for("has type Opaque", 1);
    assert_eq!(secret(world.cluster, &namespace).unwrap()["type"], "Opaque");
    world.cluster.api().delete(&path).unwrap();
    world.soon_good(&agent, &namespace, "the deletion of a secret of another type");
    agent.stop().expect(0, &[]);
}

#[test]
fn a_refresh_reaches_every_namespace_and_keeps_every_uid() {
    let Some((world, start)) = world() else { return };
    let names = [0, 1, 2].map(|number| format!("{start}-{number}"));
    for name in &names {
        world.cluster.make_namespace(name, &json!({}));
    }
    let agent = world.deploy(&["--pull-secret", &format!("{start}-*/{NAME}")]);
    agent.wait("the first secrets", || names.iter().all(|name| world.is_good(name)));
    let uids =
        || names.each_ref().map(|name| secret(world.cluster, name).unwrap()["metadata"]["uid"].clone());
    let before = uids();
    let tokens = world.node.aws.issued().len();
    agent.signal(Signal::SIGHUP);
    agent.wait("a second token", || world.node.aws.issued().len() > tokens);
    agent.wait("the second secrets", || names.iter().all(|name| world.is_good(name)));
    assert_eq!(uids(), before);
    agent.stop().expect(0, &[]);
}

#[test]
fn a_watch_that_broke_is_resumed_and_nothing_is_missed() {
    let Some((mut world, start)) = world() else { return };
    let namespace = format!("{start}-a");
    world.cluster.make_namespace(&namespace, &json!({}));
    let wire = Wire::to(world.cluster.port());
    let user = json!({ "token": world.token });
    let kubeconfig = world.cluster.kubeconfig_at(&unique("by"), &wire.url(), &user);
    world.node.set("KUBECONFIG", kubeconfig.to_str().unwrap());
    let agent = world.deploy(&["--pull-secret", &format!("{start}-*/{NAME}")]);
    agent.wait("the first secret", || world.is_good(&namespace));

    for round in 0..3 {
        // Nothing passes the wire meanwhile, and then its connections end.
        wire.silence();
        world.cluster.api().delete(&super::path(&namespace)).unwrap();
        let new = format!("{start}-new-{round}");
        world.cluster.make_namespace(&new, &json!({}));
        wire.cut();
        wire.speak();
        agent.wait("the secrets", || world.is_good(&namespace) && world.is_good(&new));
    }
    world.cluster.api().delete(&super::path(&namespace)).unwrap();
    world.soon_good(&agent, &namespace, "a deletion while the watch works again");
    agent.stop().expect(0, &[]);
}

#[test]
fn an_api_server_that_was_restarted_is_watched_again() {
    if !all_here(&[Need::ApiServer]) {
        return;
    }
    let cluster = Cluster::start();
    let world = World::on(&cluster, Options::default());
    world.grant(&deployment_rights());
    let namespace = format!("{}-more", world.namespace);
    let agent = world.deploy(&["--pull-secret", &format!("{}*/{NAME}", world.namespace)]);
    agent.wait("the first secret", || world.is_good(&world.namespace));
    cluster.stop_api_server();
    agent.wait_for("cannot be reached", 1);
    cluster.start_api_server();
    cluster.make_namespace(&namespace, &json!({}));
    cluster.api().delete(&super::path(&world.namespace)).unwrap();
    let start = Instant::now();
    agent.wait("both secrets", || world.is_good(&world.namespace) && world.is_good(&namespace));
    tell(&format!("after a restart of the API server, the secrets were good in {:?}", start.elapsed()));
    agent.stop().expect(0, &[]);
}

#[test]
fn a_namespace_that_is_being_terminated_is_left_alone_and_delays_no_other() {
    let Some((world, start)) = world() else { return };
    let (going, staying) = (format!("{start}-going"), format!("{start}-staying"));
    for name in [&going, &staying] {
        world.cluster.make_namespace(name, &json!({}));
    }
    let agent = world.deploy(&["--pull-secret", &format!("{start}-*/{NAME}")]);
    agent.wait("the first secrets", || world.is_good(&going) && world.is_good(&staying));
    // As the namespace controller does it: first it marks the namespace, then it deletes what is in it.
    world.cluster.api().delete(&format!("/api/v1/namespaces/{going}")).unwrap();
    world.cluster.api().delete(&super::path(&going)).unwrap();
    world.cluster.api().delete(&super::path(&staying)).unwrap();
    world.soon_good(&agent, &staying, "a deletion beside a namespace that is being terminated");
    assert_eq!(secret(world.cluster, &going), None);

    // The namespace is deleted, and another one gets its name.
    let finalize = json!({ "metadata": { "name": going }, "spec": { "finalizers": [] } });
    world.cluster.api().replace(&format!("/api/v1/namespaces/{going}/finalize"), &finalize).unwrap();
    world.cluster.make_namespace(&going, &json!({}));
    world.soon_good(&agent, &going, "a namespace that was created again");
    let run = agent.stop().expect(0, &[]);
    let failures = run.err.matches("terminated").count();
    assert!(failures < 10, "{failures} lines about one namespace:\n{}", run.err);
}

#[test]
fn service_accounts_name_the_secret_and_keep_what_they_have() {
    let Some(world) = World::deployed() else { return };
    let (verbs, resource) = ("list,watch,get,patch", "serviceaccounts");
    world.account.may(RbacRule { namespace: None, verbs, resource, name: Some("default") });
    let start = unique("patched");
    let api = world.cluster.api();
    let path = |namespace: &str| format!("/api/v1/namespaces/{namespace}/serviceaccounts/default");
    let make = |namespace: &str, secrets: Value| {
        let account = json!({
            "metadata": { "name": "default", "annotations": { "kept": "yes" } },
            "imagePullSecrets": secrets, "secrets": [{ "name": "mounted" }], "automountServiceAccountToken": false,
        });
        let made = api.create(&path(namespace)[..path(namespace).len() - "/default".len()], &account);
        made.unwrap();
    };
    let listed = |namespace: &str| api.get(&path(namespace)).unwrap()["imagePullSecrets"].clone();
    let cases = [
        ("none", json!([]), json!([{ "name": NAME }])),
        (
            "others",
            json!([{ "name": "z" }, { "name": "a" }]),
            json!([{ "name": "z" }, { "name": "a" }, { "name": NAME }]),
        ),
        ("first", json!([{ "name": NAME }, { "name": "b" }]), json!([{ "name": NAME }, { "name": "b" }])),
    ];
    for (name, before, _) in &cases {
        let namespace = format!("{start}-{name}");
        world.cluster.make_namespace(&namespace, &json!({}));
        make(&namespace, before.clone());
    }
    let late = format!("{start}-late");
    world.cluster.make_namespace(&late, &json!({}));
    let glob = format!("{start}-*/{NAME}");
    let agent = world.deploy(&["--pull-secret", &glob, "--patch-service-account", "default"]);
    for (name, _, after) in &cases {
        let namespace = format!("{start}-{name}");
        agent.wait(name, || listed(&namespace) == *after);
        let account = api.get(&path(&namespace)).unwrap();
        assert_eq!(account["secrets"], json!([{ "name": "mounted" }]), "{name}");
        assert_eq!(account["automountServiceAccountToken"], false, "{name}");
        assert_eq!(account["metadata"]["annotations"]["kept"], "yes", "{name}");
    }
    // A new namespace gets its service account a moment later.
    make(&late, json!([{ "name": "x" }]));
    let began = Instant::now();
    agent.wait("a later service account", || listed(&late) == json!([{ "name": "x" }, { "name": NAME }]));
    tell(&format!("a new service account was patched after {:?}", began.elapsed()));
    // Another program that replaces the list.
    let (namespace, _, _) = &cases[1];
    let namespace = format!("{start}-{namespace}");
    api.patch(&path(&namespace), &json!({ "imagePullSecrets": [{ "name": "new" }] })).unwrap();
    agent.wait("the secret beside another one", || {
        listed(&namespace) == json!([{ "name": "new" }, { "name": NAME }])
    });
    // A new token changes nothing about a service account.
    let before = api.get(&path(&namespace)).unwrap()["metadata"]["resourceVersion"].clone();
    agent.signal(Signal::SIGHUP);
    agent.wait("a second token", || world.node.aws.issued().len() == 2);
    agent.wait("the second secrets", || world.is_good(&namespace) && world.is_good(&late));
    assert_eq!(api.get(&path(&namespace)).unwrap()["metadata"]["resourceVersion"], before);
    agent.stop().expect(0, &[]);
}

#[test]
fn named_namespaces_are_watched_with_rights_in_them_alone() {
    let Some(world) = World::bare(Options::default()) else { return };
    let namespace = Some(world.namespace.as_str());
    let named = RbacRule { namespace, verbs: "get,list,watch,patch", resource: "secrets", name: Some(NAME) };
    let create = RbacRule { verbs: "create", name: None, ..named };
    let own = RbacRule { namespace: None, verbs: "list,watch", resource: "namespaces", name: namespace };
    world.grant(&[named, create, own]);
    let agent = world.deploy(&["--pull-secret", &world.named()]);
    agent.wait("the first secret", || world.is_good(&world.namespace));
    world.cluster.api().delete(&world.path()).unwrap();
    world.soon_good(&agent, &world.namespace, "a deletion");
    agent.stop().expect(0, &[]);
    let refused: Vec<_> = world.requests().into_iter().filter(|request| request.code == 403).collect();
    assert!(refused.is_empty(), "{refused:?}");
}

#[test]
fn the_agent_is_ready_with_a_token_and_metrics_show_every_secret() {
    let Some((world, start)) = world() else { return };
    let (good, wrong) = (format!("{start}-good"), format!("{start}-wrong"));
    for name in [&good, &wrong] {
        world.cluster.make_namespace(name, &json!({}));
    }
    let opaque = json!({ "metadata": { "name": NAME }, "type": "Opaque" });
    world.cluster.api().create(&format!("/api/v1/namespaces/{wrong}/secrets"), &opaque).unwrap();
    let code = "AccessDeniedException".to_owned();
    let denied = Fault::Error { status: 400, code, message: "no".to_owned() };
    world.node.aws.fail(Aws::Ecr, denied, Times::Always);
    let agent = world.deploy(&["--pull-secret", &format!("{start}-*/{NAME}"), "--listen", "127.0.0.1:0"]);
    let address = serve::address(&agent);
    agent.wait("an attempt", || world.node.aws.count(Aws::Ecr) > 0);
    assert_eq!(serve::get(&address, "/healthz").0, 200);
    assert_eq!(serve::get(&address, "/readyz").0, 503);

    world.node.aws.heal();
    agent.signal(Signal::SIGHUP);
    agent.wait("the secret", || world.is_good(&good));
    // A secret that cannot be written is for an alert: the agent is ready all the same.
    agent.wait("ready", || serve::get(&address, "/readyz").0 == 200);
    let end = world.node.aws.issued().last().unwrap().expires_at.as_second();
    let of = format!("{{name=\"{NAME}\",namespace=\"{good}\"");
    let lines = [
        format!("ecr_node_agent_pull_secret_writes_total{of},result=\"success\"}} 1"),
        format!("ecr_node_agent_pull_secret_expiry_timestamp_seconds{of}}} {end}"),
        "ecr_node_agent_pull_secret_failing 1".to_owned(),
        "ecr_node_agent_pull_secret_repairs_total 0".to_owned(),
    ];
    let shows = |line: &String| serve::get(&address, "/metrics").1.lines().any(|it| it == line);
    for line in &lines {
        agent.wait(line, || shows(line));
    }
    world.cluster.api().patch(&super::path(&good), &json!({ "data": foreign_data() })).unwrap();
    let repaired = "ecr_node_agent_pull_secret_repairs_total 1".to_owned();
    agent.wait(&repaired, || shows(&repaired));
    world.cluster.api().delete(&super::path(&wrong)).unwrap();
    let none_fails = "ecr_node_agent_pull_secret_failing 0".to_owned();
    agent.wait(&none_fails, || shows(&none_fails));
    agent.stop().expect(0, &[]);
}

#[test]
fn repairs_are_slowed_down_while_another_program_keeps_changing_a_secret() {
    let Some((world, start)) = world() else { return };
    let (fought, calm) = (format!("{start}-fought"), format!("{start}-calm"));
    for name in [&fought, &calm] {
        world.cluster.make_namespace(name, &json!({}));
    }
    let agent = world.deploy(&["--pull-secret", &format!("{start}-*/{NAME}")]);
    agent.wait("the first secrets", || world.is_good(&fought) && world.is_good(&calm));
    let path = super::path(&fought);
    let change = || {
        // As a program does that replaces the whole Secret.
        let theirs = json!({ "metadata": { "annotations": null }, "data": foreign_data() });
        world.cluster.api().patch(&path, &theirs).ok();
    };
    agent.wait("slower repairs", || {
        change();
        agent.said().contains("once a minute")
    });
    let writes = || {
        let requests = world.requests();
        requests.iter().filter(|it| it.namespace == fought && it.verb == "patch").count()
    };
    // The last change may have come before the last repair.
    agent.wait("the secret of the other program", || {
        change();
        std::thread::sleep(Duration::from_secs(1));
        !world.is_good(&fought)
    });
    tell(&format!("repairs were slowed down after {} writes", writes()));
    assert!(writes() < 30, "{} writes", writes());
    // Other secrets are restored at once.
    world.cluster.api().delete(&super::path(&calm)).unwrap();
    world.soon_good(&agent, &calm, "a deletion elsewhere");
    agent.stop().expect(0, &[]);
}

#[test]
fn two_hundred_namespaces_are_served_in_one_pass() {
    const NAMESPACES: usize = 200;
    let start = unique("many");
    let Some(world) = World::deployed() else { return };
    let names: Vec<String> = (0..NAMESPACES).map(|number| format!("{start}-{number}")).collect();
    for name in &names {
        world.cluster.make_namespace(name, &json!({}));
    }
    let glob = format!("{start}-*/{NAME}");
    let began = Instant::now();
    let agent = world.node.launch(&[], &["--no-auth-file", "--pull-secret", &glob, "--log-level", "debug"]);
    let written = || {
        let requests = world.requests();
        requests.iter().filter(|request| request.verb == "create" && request.code == 201).count()
    };
    agent.wait("200 secrets", || written() >= NAMESPACES);
    tell(&format!("{NAMESPACES} namespaces were served after {:?}", began.elapsed()));
    let token = world.node.aws.issued().last().unwrap().token_base64.clone();
    for name in &names {
        let secret = secret(world.cluster, name).expect("no secret is there");
        assert_eq!(config(&secret), json!({ "auths": { HOST: { "auth": token } } }), "{name}");
    }
    agent.stop().expect(0, &[]);
    assert_eq!(world.node.aws.issued().len(), 1, "all secrets hold the same token");
    assert_eq!(written(), NAMESPACES);
}

#[test]
fn a_deployment_makes_only_the_documented_requests() {
    let Some(world) = World::deployed() else { return };
    let namespace = unique("asked");
    world.cluster.make_namespace(&namespace, &json!({}));
    let agent = world.node.launch(&[], &["--no-auth-file", "--pull-secret", &format!("{namespace}*/{NAME}")]);
    agent.wait("the secret", || secret(world.cluster, &namespace).is_some());
    world.cluster.api().delete(&super::path(&namespace)).unwrap();
    agent.wait("the secret again", || secret(world.cluster, &namespace).is_some());
    agent.stop().expect(0, &[]);
    let requests = world.requests();
    let all = pairs(&[
        ("list", "namespaces"),
        ("watch", "namespaces"),
        ("get", "secrets"),
        ("list", "secrets"),
        ("watch", "secrets"),
        ("create", "secrets"),
        ("patch", "secrets"),
    ]);
    assert!(asked(&requests).is_subset(&all), "{requests:?}");
    assert!(requests.iter().all(|request| request.code != 403), "{requests:?}");
}

#[test]
fn a_missing_right_of_a_deployment_is_named() {
    // The missing verb and resource, how the log names them, and whether the secret exists before.
    let needed = [
        ("list", "namespaces", "list namespaces", false),
        ("watch", "namespaces", "watch namespaces", false),
        ("list", "secrets", "list secrets", false),
        ("watch", "secrets", "watch secrets", false),
        ("get", "secrets", "get secrets/ecr-creds", true),
        ("patch", "secrets", "patch secrets/ecr-creds", true),
        ("create", "secrets", "create secrets", false),
    ];
    for (verb, resource, named, there) in needed {
        let Some(world) = World::bare(Options::default()) else { return };
        for rule in deployment_rights() {
            for given in rule.verbs.split(',') {
                if (given, rule.resource) != (verb, resource) {
                    world.account.may(RbacRule { verbs: given, ..rule });
                }
            }
        }
        let namespace = unique("without");
        world.cluster.make_namespace(&namespace, &json!({}));
        if there {
            let secret = json!({ "metadata": { "name": NAME }, "type": TYPE, "data": foreign_data() });
            world.cluster.api().create(&format!("/api/v1/namespaces/{namespace}/secrets"), &secret).unwrap();
        }
        let agent = world.deploy(&["--pull-secret", &format!("{namespace}*/{NAME}")]);
        agent.wait_for(&format!("kubectl auth can-i {named}"), 1);
        agent.stop().expect(0, &[]);
    }
}

#[test]
fn a_watch_without_the_right_to_list_is_logged_once() {
    let Some(world) = World::bare(Options::default()) else { return };
    for rule in deployment_rights() {
        let is_namespaces = rule.resource == "namespaces";
        world.account.may(RbacRule { verbs: if is_namespaces { "watch" } else { rule.verbs }, ..rule });
    }
    let agent = world.deploy(&["--pull-secret", &format!("{}*/{NAME}", world.namespace)]);
    let lists = || {
        let requests = world.requests();
        requests.iter().filter(|it| (&*it.verb, &*it.resource) == ("list", "namespaces")).count()
    };
    agent.wait("five attempts", || lists() >= 5);
    let run = agent.stop().expect(0, &["kubectl auth can-i list namespaces"]);
    assert_eq!(run.err.matches("cannot watch").count(), 1, "{}", run.err);
    assert!(!run.err.contains("watching again"), "{}", run.err);
}

#[test]
fn events_of_a_namespace_do_not_shorten_the_delay_of_a_failed_secret() {
    const EVENTS: usize = 60;
    let Some((world, start)) = world() else { return };
    let namespace = format!("{start}-wrong");
    world.cluster.make_namespace(&namespace, &json!({}));
    let opaque = json!({ "metadata": { "name": NAME }, "type": "Opaque" });
    let secrets = format!("/api/v1/namespaces/{namespace}/secrets");
    world.cluster.api().create(&secrets, &opaque).unwrap();
    let agent = world.deploy(&["--pull-secret", &format!("{start}-*/{NAME}")]);
    agent.wait_for("has type Opaque", 1);
    let path = format!("/api/v1/namespaces/{namespace}");
    for number in 0..EVENTS {
        let changes = json!({ "metadata": { "annotations": { "number": number.to_string() } } });
        world.cluster.api().patch(&path, &changes).unwrap();
        // Each of them is an event of its own for the agent.
        let other = format!("{start}-{number}");
        world.wait_for_namespaces(&agent, &other, &json!({}));
    }
    let requests = world.requests();
    let attempts = requests.iter().filter(|it| it.verb == "get" && it.namespace == namespace).count();
    assert!(attempts < EVENTS / 2, "{attempts} attempts for {EVENTS} events");
    agent.stop().expect(0, &[]);
}

#[test]
fn metrics_forget_a_namespace_that_is_gone() {
    let Some((world, start)) = world() else { return };
    let (good, wrong, staying) =
        (format!("{start}-good"), format!("{start}-wrong"), format!("{start}-staying"));
    for name in [&good, &wrong, &staying] {
        world.cluster.make_namespace(name, &json!({}));
    }
    let opaque = json!({ "metadata": { "name": NAME }, "type": "Opaque" });
    world.cluster.api().create(&format!("/api/v1/namespaces/{wrong}/secrets"), &opaque).unwrap();
    let agent = world.deploy(&["--pull-secret", &format!("{start}-*/{NAME}"), "--listen", "127.0.0.1:0"]);
    let address = serve::address(&agent);
    let metrics = || serve::get(&address, "/metrics").1;
    agent.wait("a failing secret", || metrics().contains("ecr_node_agent_pull_secret_failing 1"));
    agent.wait("good secrets", || [&good, &staying].iter().all(|name| world.is_good(name)));
    agent.wait("their metrics", || [&good, &staying].iter().all(|name| metrics().contains(name.as_str())));
    // Without a namespace controller, both namespaces stay in this state.
    for name in [&good, &wrong] {
        world.cluster.api().delete(&format!("/api/v1/namespaces/{name}")).unwrap();
    }
    let forgotten = || {
        let metrics = metrics();
        !metrics.contains(&good) && !metrics.contains(&wrong) && metrics.contains("pull_secret_failing 0")
    };
    agent.wait("metrics without them", forgotten);
    for name in [&good, &wrong] {
        let finalize = json!({ "metadata": { "name": name }, "spec": { "finalizers": [] } });
        world.cluster.api().replace(&format!("/api/v1/namespaces/{name}/finalize"), &finalize).unwrap();
    }
    world.wait_for_namespaces(&agent, &format!("{start}-later"), &json!({}));
    assert!(forgotten() && metrics().contains(&staying), "{}", metrics());
    agent.stop().expect(0, &[]);
}

#[test]
fn a_named_namespace_that_comes_later_has_its_secret_soon() {
    let Some((world, start)) = world() else { return };
    let (there, later) = (format!("{start}-there"), format!("{start}-later"));
    world.cluster.make_namespace(&there, &json!({}));
    let named = [&there, &later].map(|name| format!("{name}/{NAME}"));
    let agent = world.deploy(&["--pull-secret", &named[0], "--pull-secret", &named[1]]);
    agent.wait("the first secret", || world.is_good(&there));
    agent.wait_for(&format!("there is no namespace {later}"), 1);
    world.cluster.make_namespace(&later, &json!({}));
    world.soon_good(&agent, &later, "a named namespace");
    // The namespace is deleted, and another one gets its name.
    world.cluster.api().delete(&super::path(&later)).unwrap();
    world.soon_good(&agent, &later, "a deletion");
    world.cluster.api().delete(&format!("/api/v1/namespaces/{later}")).unwrap();
    world.cluster.api().delete(&super::path(&later)).unwrap();
    let finalize = json!({ "metadata": { "name": later }, "spec": { "finalizers": [] } });
    world.cluster.api().replace(&format!("/api/v1/namespaces/{later}/finalize"), &finalize).unwrap();
    world.cluster.make_namespace(&later, &json!({}));
    world.soon_good(&agent, &later, "a named namespace that was created again");
    agent.stop().expect(0, &[]);
}
