//! An API server that is unreachable or slow, or does not accept the credentials. The auth file does not wait for it.

use super::{NAME, World, node_rights, version};
use crate::cluster::{Cluster, unique};
use crate::needs::{Need, all_here, tell};
use crate::node::HOST;
use crate::wire::Wire;
use ecr_emulator::Options;
use nix::sys::signal::Signal;
use serde_json::json;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Instant;

impl World<'_> {
    /// Lets the agent use this address of the API server.
    fn go_by(&mut self, url: &str) {
        let user = json!({ "token": self.token });
        let kubeconfig = self.cluster.kubeconfig_at(&unique("by"), url, &user);
        self.node.set("KUBECONFIG", kubeconfig.to_str().unwrap());
    }
}

#[test]
fn an_unreachable_api_server_fails_no_auth_file() {
    let Some(mut world) = World::new() else { return };
    // No program listens on this port.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    world.go_by(&format!("https://127.0.0.1:{port}"));
    world.once(&["--timeout", "3s"]).expect(6, &["the API server cannot be reached", &world.named()]);
    world.node.assert_latest_token(HOST);
    assert_eq!(world.secret(), None);
}

#[test]
fn an_api_server_that_never_answers_delays_no_auth_file_and_not_the_end() {
    let Some(mut world) = World::new() else { return };
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    world.go_by(&format!("https://127.0.0.1:{}", silent.local_addr().unwrap().port()));
    let start = Instant::now();
    let agent = world.start(&["--once", "--timeout", "8s"]);
    agent.wait("the auth file", || world.node.auth_file().exists());
    let until_file = start.elapsed();
    agent.wait("the end", || agent.is_over());
    tell(&format!(
        "a silent API server: the auth file after {until_file:?}, the end after {:?}",
        start.elapsed()
    ));
    agent.ended().expect(6, &["the API server", &world.named()]);
    world.node.assert_latest_token(HOST);
}

#[test]
fn an_api_server_that_answers_within_the_timeout_is_enough() {
    let Some(mut world) = World::new() else { return };
    let wire = Wire::to(world.cluster.port());
    wire.silence();
    world.go_by(&wire.url());
    let agent = world.start(&["--once", "--timeout", "60s"]);
    agent.wait("the auth file", || world.node.auth_file().exists());
    agent.wait("an attempt", || wire.taken() > 0);
    wire.cut();
    wire.speak();
    agent.ended().expect(0, &[]);
    world.assert_latest(HOST);
}

#[test]
fn an_api_server_that_is_stopped_and_started_delays_no_auth_file() {
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
        tell(&format!("without an API server, the auth file had the token after {took:?}"));
        agent.signal(Signal::SIGHUP);
    }
    agent.wait_for("the API server cannot be reached", 1);

    cluster.start_api_server();
    let start = Instant::now();
    agent.wait("the secret", || world.secret().is_some());
    tell(&format!("after the start of the API server, the secret existed after {:?}", start.elapsed()));
    let token = super::config(&world.secret().unwrap())["auths"][HOST]["auth"].clone();
    assert!(world.node.aws.issued().iter().any(|issued| token == issued.token_base64.as_str()));
    agent.stop().expect(0, &[]);
}

#[test]
fn a_kubeconfig_that_names_another_server_is_read_again() {
    for watching in [false, true] {
        let Some(mut world) = (if watching { World::deployed() } else { World::new() }) else { return };
        let here = fs::read_to_string(world.account.kubeconfig_with(&world.token)).unwrap();
        // No program listens on this port.
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
fn an_expired_service_account_token_is_an_error_and_a_rotated_one_is_used() {
    let Some(mut world) = World::new() else { return };
    let file = world.node.path("token");
    let write = |world: &World<'_>, token: &str| {
        // As the kubelet replaces it.
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

    // A token that is signed in the same way is accepted: the other one was refused for its expiry.
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
    // In its own mount namespace, which ends with the program. Every machine has /run.
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
fn a_daemon_stops_although_the_api_server_is_silent() {
    let Some(mut world) = World::new() else { return };
    let wire = Wire::to(world.cluster.port());
    wire.silence();
    world.go_by(&wire.url());
    let agent = world.start(&[]);
    agent.wait("an attempt", || wire.taken() > 0);
    agent.wait("the auth file", || world.node.auth_file().exists());
    agent.signal(Signal::SIGTERM);
    agent.wait("the end", || agent.is_over());
    agent.ended().expect(0, &[]);
}

#[test]
fn a_secret_of_another_type_is_tried_again_until_it_is_deleted() {
    let Some(world) = World::new() else { return };
    let before = world.put(&json!({ "type": "Opaque" }));
    let agent = world.start(&[]);
    agent.wait_for("has type Opaque", 1);
    assert_eq!(version(&world.secret().unwrap()), version(&before));
    agent.wait("the auth file", || world.node.auth_file().exists());
    // As the message says.
    world.cluster.kubectl(&["delete", "secret", NAME, "--namespace", &world.namespace]);
    agent.signal(Signal::SIGHUP);
    agent.wait("the secret", || world.secret().is_some_and(|secret| secret["type"] == super::TYPE));
    agent.stop().expect(0, &[]);
}

/// Stands in for an API server: gives these answers, one for each request, and the last one to all later requests.
fn answers(answers: Vec<String>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut answers = answers.into_iter();
        let mut answer = String::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            if let Some(next) = answers.next() {
                answer = next;
            }
            read_request(&stream);
            // The client may close the connection first.
            stream.write_all(answer.as_bytes()).ok();
            if answer.contains("ENDLESS") {
                while stream.write_all(&[b' '; 16 * 1024]).is_ok() {}
            }
        }
    });
    port
}

fn read_request(stream: &TcpStream) {
    let mut reader = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        line.clear();
    }
    reader.read_exact(&mut vec![0; length]).ok();
}

fn answer(status: &str, header: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{header}\r\n{body}")
}

#[test]
fn a_busy_api_server_is_left_alone_as_long_as_it_asks() {
    let Some(mut world) = World::new() else { return };
    let created =
        json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": NAME, "resourceVersion": "1" } });
    let port = answers(vec![
        // The API server's own limit answers with plain text.
        answer("429 Too Many Requests", "Retry-After: 3\r\n", "too many requests"),
        answer("503 Service Unavailable", "", "<html>"),
        answer("404 Not Found", "", &json!({ "reason": "NotFound" }).to_string()),
        answer("201 Created", "", &created.to_string()),
    ]);
    world.go_by(&format!("http://127.0.0.1:{port}"));
    let run = world.once(&["--timeout", "60s"]).expect(0, &["429: too many requests", "503: <html>"]);
    let delays: Vec<f64> = run
        .err
        .lines()
        .filter_map(|line| line.split("\"retry_in\":\"").nth(1)?.split("s\"").next()?.parse().ok())
        .collect();
    assert!(delays.first().is_some_and(|delay| *delay >= 3.0), "{delays:?}: {}", run.err);
}

#[test]
fn answers_of_the_api_server_are_limited_and_not_shown() {
    let Some(mut world) = World::new() else { return };
    let secret = |data: serde_json::Value| {
        let secret =
            json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": NAME }, "data": data });
        answer("200 OK", "", &secret.to_string())
    };
    let bodies = [
        "HTTP/1.1 200 OK\r\nConnection: close\r\nX: ENDLESS\r\n\r\n".to_owned(),
        secret(json!({ "x": "x".repeat(5 << 20) })),
        secret(json!({ ".dockerconfigjson": "SECRETPASSWORD!!" })),
        secret(json!({ ".dockerconfigjson": ["SECRETPASSWORD"] })),
        answer("200 OK", "", "SECRETPASSWORD"),
    ];
    for body in bodies {
        let port = answers(vec![body]);
        world.go_by(&format!("http://127.0.0.1:{port}"));
        // A run that shows `SECRETPASSWORD` fails.
        let run = world.once(&["--timeout", "1s", "--log-level", "trace"]);
        let run = run.expect(6, &["the API server"]);
        assert!(!run.err.contains("panicked"), "{}", run.err);
    }
}
