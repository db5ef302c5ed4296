//! An API server that is away, slow, or takes no longer who we are. The node comes first.

use super::{NAME, World, node_rights, version};
use crate::cluster::{Cluster, unique};
use crate::needs::{Need, all_here, tell};
use crate::node::HOST;
use crate::wire::Wire;
use ecr_emulator::Options;
use nix::sys::signal::Signal;
use serde_json::json;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

impl World<'_> {
    /// From now on the agent goes this way to the API server.
    fn go_by(&mut self, url: &str) {
        let user = json!({ "token": self.token });
        let kubeconfig = self.cluster.kubeconfig_at(&unique("by"), url, &user);
        self.node.set("KUBECONFIG", kubeconfig.to_str().unwrap());
    }
}

#[test]
fn one_that_is_away_fails_no_auth_file() {
    let Some(mut world) = World::new() else { return };
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    world.go_by(&format!("https://127.0.0.1:{port}"));
    world.once(&["--timeout", "3s"]).expect(6, &["the API server cannot be reached", &world.named()]);
    world.node.assert_latest_token(HOST);
    assert_eq!(world.secret(), None);
}

#[test]
fn one_that_never_answers_holds_nothing_up() {
    let Some(mut world) = World::new() else { return };
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    world.go_by(&format!("https://127.0.0.1:{}", silent.local_addr().unwrap().port()));
    let start = Instant::now();
    let agent = world.start(&["--once", "--timeout", "8s"]);
    agent.wait("the auth file", || world.node.auth_file().exists());
    let until_file = start.elapsed();
    let run = agent.ended().expect(6, &["the API server", &world.named()]);
    let until_end = start.elapsed();
    tell(&format!("a silent API server: the auth file after {until_file:?}, the end after {until_end:?}"));
    assert!(until_file < Duration::from_secs(8), "the auth file waited for the API server");
    assert!(until_end < Duration::from_secs(40), "--timeout 8s was not kept: {}", run.err);
    world.node.assert_latest_token(HOST);
}

#[test]
fn one_that_comes_back_within_the_timeout_is_enough() {
    let Some(mut world) = World::new() else { return };
    let wire = Wire::to(world.cluster.port());
    wire.silence();
    world.go_by(&wire.url());
    let agent = world.start(&["--once", "--timeout", "60s"]);
    agent.wait("the auth file", || world.node.auth_file().exists());
    agent.wait("a try", || wire.taken() > 0);
    wire.cut();
    wire.speak();
    agent.ended().expect(0, &[]);
    world.assert_latest(HOST);
}

#[test]
fn one_that_is_stopped_and_started_delays_no_auth_file() {
    if !all_here(&[Need::ApiServer]) {
        return;
    }
    let cluster = Cluster::start();
    let world = World::on(&cluster, Options::default());
    world.grant(&node_rights(&world.namespace));
    cluster.stop_api_server();

    let agent = world.start(&[]);
    for tokens in 0..3 {
        agent.wait("a new token", || world.node.aws.issued().len() > tokens);
        let start = Instant::now();
        agent.wait("the new token in the auth file", || {
            let token = world.node.aws.issued().last().unwrap().token_base64.clone();
            world.node.auth_file().exists() && world.node.document()["auths"][HOST]["auth"] == token.as_str()
        });
        let took = start.elapsed();
        tell(&format!("the API server being away, the auth file had the token after {took:?}"));
        agent.signal(Signal::SIGHUP);
    }
    agent.wait_for("the API server cannot be reached", 1);

    cluster.start_api_server();
    let start = Instant::now();
    agent.wait("the secret", || world.secret().is_some());
    tell(&format!("the API server being back, the secret was there after {:?}", start.elapsed()));
    let token = super::config(&world.secret().unwrap())["auths"][HOST]["auth"].clone();
    assert!(world.node.aws.issued().iter().any(|issued| token == issued.token_base64.as_str()));
    agent.stop().expect(0, &[]);
}

#[test]
fn one_that_has_moved_is_found_again() {
    for watching in [false, true] {
        let Some(mut world) = (if watching { World::deployed() } else { World::new() }) else { return };
        let here = fs::read_to_string(world.account.kubeconfig_with(&world.token)).unwrap();
        // A port that was free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let gone = here.replace(&world.cluster.url(), &format!("https://127.0.0.1:{port}"));
        assert_ne!(gone, here);
        world.node.write("kubeconfig", &gone);
        world.node.set("KUBECONFIG", world.node.path("kubeconfig").to_str().unwrap());
        let named = world.named();
        let agent = if watching {
            world.node.launch(&[], &["--no-auth-file", "--pull-secret", &named])
        } else {
            world.start(&[])
        };
        agent.wait_for("cannot be reached", 1);
        world.node.write("kubeconfig", &here);
        agent.wait("the secret", || world.secret().is_some());
        agent.stop().expect(0, &[]);
    }
}

#[test]
fn an_expired_service_account_token_is_told_and_a_rotated_one_is_picked_up() {
    let Some(mut world) = World::new() else { return };
    let file = world.node.path("token");
    let write = |world: &World<'_>, token: &str| {
        // As the kubelet swaps it.
        world.node.write("token.new", token);
        fs::rename(world.node.path("token.new"), &file).unwrap();
    };
    let now = world.node.aws.now();
    let expired = world.account.token_until(now - jiff::SignedDuration::from_mins(5));
    write(&world, &expired);
    expired.split('.').for_each(|part| world.node.hide(part));
    let user = json!({ "tokenFile": file });
    let kubeconfig = world.cluster.kubeconfig_at(&unique("rotated"), &world.cluster.url(), &user);
    world.node.set("KUBECONFIG", kubeconfig.to_str().unwrap());

    world.once(&["--timeout", "3s"]).expect(6, &["Unauthorized"]);
    world.node.assert_latest_token(HOST);

    let agent = world.start(&[]);
    agent.wait_for("Unauthorized", 1);
    assert_eq!(world.secret(), None);
    write(&world, &world.account.token());
    let start = Instant::now();
    agent.wait("the secret", || world.secret().is_some());
    tell(&format!("a rotated token was used after {:?}", start.elapsed()));
    agent.stop().expect(0, &[]);

    // Signed by the same key, this one is good: it was the time that made the other one bad.
    write(&world, &world.account.token_until(now + jiff::SignedDuration::from_mins(5)));
    world.once(&[]).expect(0, &[]);
}

#[test]
fn a_service_account_in_the_cluster_is_found_without_a_kubeconfig() {
    if !all_here(&[Need::ApiServer, Need::Mounts]) {
        return;
    }
    let Some(mut world) = World::new() else { return };
    world.node.unset("KUBECONFIG");
    world.node.set("KUBERNETES_SERVICE_HOST", "127.0.0.1");
    world.node.set("KUBERNETES_SERVICE_PORT", &world.cluster.port().to_string());
    let ca = fs::read_to_string(world.cluster.ca_file()).unwrap();
    world.node.write("serviceaccount/ca.crt", &ca);
    world.node.write("serviceaccount/token", &world.token);
    world.node.write("serviceaccount/namespace", &world.account.name);
    let mounted = world.node.path("serviceaccount");
    let auth_file = world.node.auth_file();
    // In a mount namespace of its own, which goes with the program. /run is a place that every machine has.
    let script = "mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io/serviceaccount \
                  && mount --bind \"$0\" /run/secrets/kubernetes.io/serviceaccount && exec \"$@\"";
    assert!(fs::canonicalize("/var/run").is_ok_and(|path| path == Path::new("/run")));
    let output = world
        .node
        .command(
            &[
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                script,
                mounted.to_str().unwrap(),
            ],
            &["--once", "--auth-file", auth_file.to_str().unwrap(), "--pull-secret", &world.named()],
        )
        .output()
        .unwrap();
    world.node.checked(&output).expect(0, &[]);
    world.assert_latest(HOST);
}

#[test]
fn a_daemon_stops_at_once_though_the_api_server_is_silent() {
    let Some(mut world) = World::new() else { return };
    let wire = Wire::to(world.cluster.port());
    wire.silence();
    world.go_by(&wire.url());
    let agent = world.start(&[]);
    agent.wait("a try", || wire.taken() > 0);
    agent.wait("the auth file", || world.node.auth_file().exists());
    let start = Instant::now();
    agent.stop().expect(0, &[]);
    assert!(start.elapsed() < Duration::from_secs(20), "it took {:?}", start.elapsed());
}

#[test]
fn what_cannot_be_written_yet_is_tried_again_until_it_can() {
    let Some(world) = World::new() else { return };
    let before = world.put(&json!({ "type": "Opaque" }));
    let agent = world.start(&[]);
    agent.wait_for("has type Opaque", 1);
    assert_eq!(version(&world.secret().unwrap()), version(&before));
    agent.wait("the auth file", || world.node.auth_file().exists());
    // What the message says.
    world.cluster.kubectl(&["delete", "secret", NAME, "--namespace", &world.namespace]);
    agent.signal(Signal::SIGHUP);
    agent.wait("the secret", || world.secret().is_some_and(|secret| secret["type"] == super::TYPE));
    agent.stop().expect(0, &[]);
}
