//! Which API server the agent asks, and as whom: a kubeconfig behaves as with kubectl.

use super::{NAME, World, node_rights};
use crate::cluster::unique;
use crate::node::{HOST, wait_until_gone};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

impl World<'_> {
    /// The kubeconfig that works, as a document to change.
    fn kubeconfig(&self) -> Value {
        let path = self.account.kubeconfig_with(&self.token);
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    }

    /// Writes a kubeconfig on the node, and returns its path.
    fn write_kubeconfig(&self, name: &str, kubeconfig: &Value) -> PathBuf {
        self.node.write(name, &kubeconfig.to_string());
        self.node.path(name)
    }

    /// Lets the agent use this kubeconfig.
    fn use_kubeconfig(&mut self, kubeconfig: &Value) {
        let path = self.write_kubeconfig("kubeconfig", kubeconfig);
        self.node.set("KUBECONFIG", path.to_str().unwrap());
    }

    /// Lets the agent use a kubeconfig whose user is a command of the shell.
    fn use_plugin(&mut self, script: &str) {
        let mut kubeconfig = self.kubeconfig();
        kubeconfig["users"][0]["user"] = plugin(script);
        self.use_kubeconfig(&kubeconfig);
    }

    /// A credential as a plugin prints it.
    fn credential(&self, status: &Value) -> String {
        let credential = json!({
            "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status,
        });
        let path = self.node.path("credential.json");
        self.node.write("credential.json", &credential.to_string());
        format!("cat {}", path.display())
    }
}

fn plugin(script: &str) -> Value {
    json!({ "exec": {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "sh",
        "args": ["-c", script],
        "interactiveMode": "IfAvailable",
    } })
}

/// Whether a process with this identifier runs.
fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn a_token_file_may_end_with_a_newline() {
    let Some(mut world) = World::new() else { return };
    world.node.write("token", &format!("{}\n", world.token));
    let mut kubeconfig = world.kubeconfig();
    kubeconfig["users"][0]["user"] = json!({ "tokenFile": world.node.path("token") });
    world.use_kubeconfig(&kubeconfig);
    world.once(&[]).expect(0, &[]);
    world.assert_latest(HOST);
}

#[test]
fn a_file_that_is_missing_from_the_list_in_kubeconfig_is_skipped() {
    let Some(mut world) = World::new() else { return };
    let present = world.write_kubeconfig("kubeconfig", &world.kubeconfig());
    let absent = world.node.path("absent");
    for list in [[&present, &absent], [&absent, &present]] {
        let list = list.map(|path| path.to_str().unwrap()).join(":");
        world.node.set("KUBECONFIG", &list);
        world.once(&[]).expect(0, &[]);
        world.assert_latest(HOST);
    }
    let list = format!("{0}:{0}2", absent.display());
    world.node.set("KUBECONFIG", &list);
    world.once(&["--timeout", "1s"]).expect(6, &["KUBECONFIG", &list]);
}

#[test]
fn a_server_without_a_scheme_is_asked_over_tls_where_there_is_a_ca() {
    let Some(mut world) = World::new() else { return };
    let mut kubeconfig = world.kubeconfig();
    kubeconfig["clusters"][0]["cluster"]["server"] = json!(format!("127.0.0.1:{}", world.cluster.port()));
    world.use_kubeconfig(&kubeconfig);
    world.once(&[]).expect(0, &[]);
    world.assert_latest(HOST);
}

#[test]
fn a_server_that_is_no_address_is_an_error_that_names_the_file() {
    let Some(mut world) = World::new() else { return };
    for server in ["", "https://", "/just/a/path", "https://a b", "https:///api"] {
        let mut kubeconfig = world.kubeconfig();
        kubeconfig["clusters"][0]["cluster"]["server"] = json!(server);
        world.use_kubeconfig(&kubeconfig);
        let path = world.node.path("kubeconfig");
        let run = world.once(&["--timeout", "1s"]).expect(6, &[path.to_str().unwrap()]);
        assert!(!run.err.contains("panicked"), "{server}: {}", run.err);
    }
}

#[test]
fn errors_name_the_file_or_the_variable() {
    let Some(mut world) = World::new() else { return };
    let absent = world.node.path("absent");
    let cases = [
        ("users", json!({ "tokenFile": absent })),
        ("users", json!({ "client-certificate": absent, "client-key": absent })),
        ("clusters", json!({ "server": world.cluster.url(), "certificate-authority": absent })),
    ];
    for (list, value) in cases {
        let mut kubeconfig = world.kubeconfig();
        kubeconfig[list][0][if list == "users" { "user" } else { "cluster" }] = value;
        world.use_kubeconfig(&kubeconfig);
        world.once(&["--timeout", "1s"]).expect(6, &[absent.to_str().unwrap()]);
    }
    world.node.unset("KUBECONFIG");
    world.node.set("KUBERNETES_SERVICE_HOST", "127.0.0.1");
    world.once(&["--timeout", "1s"]).expect(6, &["KUBERNETES_SERVICE_PORT"]);
    world.node.set("KUBERNETES_SERVICE_PORT", "https");
    world.once(&["--timeout", "1s"]).expect(6, &["KUBERNETES_SERVICE_PORT", "invalid digit"]);
    world.node.set("KUBERNETES_SERVICE_PORT", "443");
    // What a pod finds there is missing on a machine that is no pod.
    if !Path::new("/var/run/secrets/kubernetes.io").exists() {
        let folder = "/var/run/secrets/kubernetes.io/serviceaccount/";
        world.once(&["--timeout", "1s"]).expect(6, &[folder]);
    }
}

#[test]
fn a_plugin_may_answer_in_json_or_yaml_with_a_token_or_without() {
    let Some(mut world) = World::new() else { return };
    let token = world.token.clone();
    world.use_plugin(&world.credential(&json!({ "token": token })));
    world.once(&[]).expect(0, &[]);
    world.assert_latest(HOST);

    let yaml = format!(
        "apiVersion: client.authentication.k8s.io/v1\nkind: ExecCredential\nstatus:\n  token: {token}\n  \
         expirationTimestamp: {}\n",
        world.node.aws.now() + jiff::SignedDuration::from_hours(1)
    );
    world.node.write("credential.yaml", &yaml);
    world.use_plugin(&format!("cat {}", world.node.path("credential.yaml").display()));
    world.once(&[]).expect(0, &[]);
    world.assert_latest(HOST);
}

#[test]
fn a_plugin_whose_answer_is_malformed_is_an_error() {
    let Some(mut world) = World::new() else { return };
    let malformed = [
        world.credential(&json!({ "token": "SECRETPASSWORD\nand more" })),
        world.credential(&json!({ "token": "" })),
        world.credential(&json!({})),
        world.credential(&Value::Null),
        world.credential(&json!({ "token": "a.b.c", "expirationTimestamp": "SECRETPASSWORD" })),
        world.credential(&json!({ "clientCertificateData": "SECRETPASSWORD" })),
        world.credential(
            &json!({ "clientCertificateData": "SECRETPASSWORD", "clientKeyData": "SECRETPASSWORD" }),
        ),
        world.credential(&json!({ "token": ["SECRETPASSWORD"] })),
        "echo SECRETPASSWORD".to_owned(),
        "echo [SECRETPASSWORD".to_owned(),
        "true".to_owned(),
        "head -c 20000000 /dev/zero".to_owned(),
    ];
    for (number, script) in malformed.iter().enumerate() {
        world.use_plugin(script);
        let run = world.once(&["--timeout", "1s", "--log-level", "trace"]).expect(6, &["`sh`"]);
        assert!(!run.err.contains("panicked"), "case {number}: {}", run.err);
        world.node.assert_latest_token(HOST);
    }
}

#[test]
fn a_plugin_that_hangs_is_killed_with_its_children_and_runs_once_for_all_callers() {
    let Some(mut world) = World::new() else { return };
    let others: Vec<String> = (0..4)
        .map(|_| {
            let namespace = world.cluster.namespace("team");
            for rule in node_rights(&namespace) {
                world.account.may(rule);
            }
            format!("{namespace}/{NAME}")
        })
        .collect();
    let started = world.node.path("started");
    let script = format!("sleep 1000 & echo $$ >>{0}; echo $! >>{0}; wait", started.display());
    world.use_plugin(&script);
    let more: Vec<&str> = others.iter().flat_map(|named| ["--pull-secret", named]).collect();
    world.once(&[&["--timeout", "40s"], &more[..]].concat()).expect(6, &["`sh`", "did not end within"]);
    let pids = lines(&started);
    assert!(!pids.is_empty());
    for pid in &pids {
        wait_until_gone(pid);
    }
    // The callers share what came of one run, and the time is over then.
    assert_eq!(pids.len(), 2, "{pids:?}");
}

#[test]
fn a_plugin_ends_with_the_agent() {
    let Some(mut world) = World::new() else { return };
    let started = world.node.path("started");
    let script = format!("sleep 1000 & echo $$ >>{0}; echo $! >>{0}; wait", started.display());
    world.use_plugin(&script);
    let agent = world.start(&[]);
    agent.wait("the plugin", || lines(&started).len() >= 2);
    agent.stop().expect(0, &[]);
    for pid in lines(&started) {
        wait_until_gone(&pid);
    }
}

#[test]
fn watches_that_fail_together_run_a_plugin_once() {
    let Some(mut world) = World::new() else { return };
    let named: Vec<String> = (0..6).map(|_| format!("{}/{NAME}", unique("team"))).collect();
    // Nobody listens on this port.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let started = world.node.path("started");
    let credential = world.credential(&json!({ "token": world.token }));
    let mut kubeconfig = world.kubeconfig();
    kubeconfig["clusters"][0]["cluster"]["server"] = json!(format!("https://127.0.0.1:{port}"));
    kubeconfig["users"][0]["user"] = plugin(&format!("echo run >>{}; {credential}", started.display()));
    world.use_kubeconfig(&kubeconfig);
    let arguments: Vec<&str> = named.iter().flat_map(|named| ["--pull-secret", named]).collect();
    let agent =
        world.node.launch(&[], &[&["--no-auth-file", "--log-level", "debug"], &arguments[..]].concat());
    // Two watches for each of six namespaces, and each says so once.
    agent.wait_for("cannot watch", 12);
    // Each secret is tried several times meanwhile.
    agent.wait_for("cannot be reached", 24);
    agent.stop().expect(0, &[]);
    assert_eq!(lines(&started), ["run"]);
}
