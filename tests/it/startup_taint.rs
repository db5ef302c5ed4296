//! The startup taint, on a real API server, with the rights and the policy that the chart renders.

use crate::cluster::{Api, Cluster, Refused, unique};
use crate::events::IN_A_POD;
use crate::manifests::{NAMESPACE, apply, installed, soon};
use crate::needs::{Need, all_here};
use crate::node::{Node, Running};
use crate::serve::{address, get};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use std::fs::Permissions;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

const TAINT: &str = "ecr-node-agent/not-ready";
/// The service account of `golden/startup-taint.yaml`.
const ACCOUNT: &str = "tainted";

fn taint(key: &str) -> Value {
    json!({ "key": key, "effect": "NoSchedule" })
}

/// A new node in the cluster, with the startup taint and another one.
fn tainted_node(cluster: &Cluster) -> String {
    let name = unique("node");
    let node = json!({
        "metadata": { "name": name, "labels": { "pool": "a" } },
        "spec": { "taints": [taint("example.com/other"), taint(TAINT)] },
    });
    let taints = json!({ "spec": { "taints": node["spec"]["taints"] } });
    cluster.api().create("/api/v1/nodes", &node).unwrap();
    // The API server adds the taint of a node that is not ready, which a controller would remove.
    cluster.api().patch(&format!("/api/v1/nodes/{name}"), &taints).unwrap();
    name
}

/// A token of an agent's pod on that node; `None` for a token that belongs to no pod.
fn token(cluster: &Cluster, node: Option<&str>) -> String {
    let mut request = json!({ "spec": { "expirationSeconds": 3600 } });
    if let Some(node) = node {
        let pod = json!({
            "metadata": { "name": unique("agent") },
            "spec": {
                "serviceAccountName": ACCOUNT, "nodeName": node,
                "containers": [{ "name": "agent", "image": "registry.example/x" }],
            },
        });
        let pod = cluster.api().create(&format!("/api/v1/namespaces/{NAMESPACE}/pods"), &pod).unwrap();
        let metadata = &pod["metadata"];
        request["spec"]["boundObjectRef"] =
            json!({ "kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": metadata["uid"] });
    }
    let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{ACCOUNT}/token");
    let answer = cluster.api().create(&path, &request).unwrap();
    answer["status"]["token"].as_str().unwrap().to_owned()
}

fn taints(cluster: &Cluster, node: &str) -> Vec<String> {
    let node = cluster.api().get(&format!("/api/v1/nodes/{node}")).unwrap();
    let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    taints.iter().map(|taint| taint["key"].as_str().unwrap().to_owned()).collect()
}

/// The rights and the policy of the chart, in effect.
fn granted() -> &'static Cluster {
    let cluster = installed();
    apply(cluster, "startup-taint");
    let node = tainted_node(cluster);
    let user = json!({ "token": token(cluster, None) });
    let api = Api::new(&cluster.kubeconfig_at(&unique("no-pod"), &cluster.url(), &user));
    soon("the policy has no effect", || {
        let refused = api.patch(&format!("/api/v1/nodes/{node}"), &json!({}));
        // Until the role and the policy are in effect, RBAC refuses, and then nothing does.
        refused.is_err_and(|Refused(_, _, why)| why.contains("its own node, with the token of its pod"))
    });
    cluster
}

/// Makes the socket that a kubelet makes when it starts.
fn start_kubelet(node: &Node) {
    let socket = node.path("kubelet/device-plugins/kubelet.sock");
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    until_later(node, || {
        drop(std::fs::remove_file(&socket));
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    });
}

/// Changes the kubelet's socket until that is later than the change of the auth file by the kernel's clock for files.
fn until_later(node: &Node, change: impl Fn()) {
    let time = |path| std::fs::metadata(path).map_or((0, 0), |found| (found.ctime(), found.ctime_nsec()));
    let written = time(node.auth_file());
    loop {
        change();
        if time(node.path("kubelet/device-plugins/kubelet.sock")) > written {
            return;
        }
    }
}

/// Starts the agent as its pod on that node would run.
fn start<'a>(node: &'a mut Node, cluster: &Cluster, name: &str) -> Running<'a> {
    node.set("ECR_NODE_AGENT_STARTUP_TAINT_NODE", name);
    start_with(node, cluster, &token(cluster, Some(name)))
}

fn start_with<'a>(node: &'a mut Node, cluster: &Cluster, token: &str) -> Running<'a> {
    start_beside(node, cluster.port(), &std::fs::read_to_string(cluster.ca_file()).unwrap(), token)
}

fn start_beside<'a>(node: &'a mut Node, port: u16, ca: &str, token: &str) -> Running<'a> {
    node.write("account/token", token);
    node.write("account/ca.crt", ca);
    node.write("account/namespace", NAMESPACE);
    node.set("ACCOUNT", node.path("account").to_str().unwrap());
    node.set("KUBERNETES_SERVICE_HOST", "127.0.0.1");
    node.set("KUBERNETES_SERVICE_PORT", &port.to_string());
    let wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-c", IN_A_POD, "sh"];
    node.start_under(&wrapper, &["--listen", "127.0.0.1:0"])
}

/// How many seconds the agent has announced to wait, each time.
fn waits(log: &str) -> Vec<u64> {
    let waits = log.split("\"in_s\":").skip(1);
    waits.map(|wait| wait.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()).collect()
}

#[test]
fn the_taint_goes_at_once_if_the_file_was_valid_before_the_kubelet_started() {
    if !all_here(&[Need::ApiServer, Need::Mounts]) {
        return;
    }
    let cluster = granted();
    let name = tainted_node(cluster);
    let mut node = Node::new();
    // The boot unit, and then the kubelet.
    node.once(&[]).expect(0, &[]);
    start_kubelet(&node);
    let agent = start(&mut node, cluster, &name);
    agent.wait("the removal", || taints(cluster, &name) == ["example.com/other"]);
    agent.wait_for("removed the startup taint", 1);
    assert_eq!(get(&address(&agent), "/readyz"), (200, "ok\n".to_owned()));
    // As Karpenter does when it registers a node later.
    let both = json!({ "spec": { "taints": [taint("example.com/other"), taint(TAINT)] } });
    cluster.api().patch(&format!("/api/v1/nodes/{name}"), &both).unwrap();
    agent.wait("the second removal", || taints(cluster, &name) == ["example.com/other"]);
    assert_eq!(waits(&agent.stop().expect(0, &[]).err), [0; 0]);

    let agent = start(&mut node, cluster, &name);
    agent.wait_for("the node has no startup taint", 1);
    agent.stop().expect(0, &[]);
    assert_eq!(taints(cluster, &name), ["example.com/other"]);
}

#[test]
fn the_taint_stays_while_the_kubelet_may_have_cached_that_there_was_no_file() {
    if !all_here(&[Need::ApiServer, Need::Mounts]) {
        return;
    }
    let cluster = granted();
    let name = tainted_node(cluster);
    let mut node = Node::new();
    start_kubelet(&node);
    node.once(&[]).expect(0, &[]);
    // As `restorecon -R` does: the socket's inode changes after the file, and the kubelet has not started again.
    let socket = node.path("kubelet/device-plugins/kubelet.sock");
    until_later(&node, || std::fs::set_permissions(&socket, Permissions::from_mode(0o600)).unwrap());
    let agent = start(&mut node, cluster, &name);
    agent.wait_for("will remove the startup taint", 1);
    // The listener learns of it a moment after the log.
    let address = address(&agent);
    agent.wait("a probe that says until when", || {
        let (code, answer) = get(&address, "/readyz");
        code == 200 && answer.starts_with("ok\nthe kubelet may use what it read before until ")
    });
    assert_eq!(taints(cluster, &name), ["example.com/other", TAINT]);
    assert!(waits(&agent.stop().expect(0, &[]).err)[0] > 60);
}

#[test]
fn a_file_that_another_program_is_changing_makes_the_taint_wait() {
    if !all_here(&[Need::ApiServer, Need::Mounts]) {
        return;
    }
    let cluster = granted();
    let name = tainted_node(cluster);
    let mut node = Node::new();
    node.once(&[]).expect(0, &[]);
    start_kubelet(&node);
    let (status, auth_file) = (node.path("state.json"), node.auth_file());
    let is_refused =
        || std::fs::read_to_string(&status).is_ok_and(|state| state.contains("\"startup_taint\""));
    // Its pod is on another node, so the policy refuses the removal, and the agent tries again and again.
    node.set("ECR_NODE_AGENT_STARTUP_TAINT_NODE", &name);
    let agent = start_with(&mut node, cluster, &token(cluster, Some(&tainted_node(cluster))));
    agent.wait("a refused removal", is_refused);
    let content = std::fs::read_to_string(&auth_file).unwrap();
    let mut writer = std::fs::OpenOptions::new().write(true).truncate(true).open(&auth_file).unwrap();
    agent.wait("the end of the attempts", || !is_refused());
    writer.write_all(content.as_bytes()).unwrap();
    drop(writer);
    agent.wait("the kubelet to look again", || waits(&agent.said()).last().is_some_and(|wait| *wait > 60));
    agent.stop().expect(0, &[]);
}

#[test]
fn a_taint_that_cannot_be_removed_is_reported() {
    if !all_here(&[Need::ApiServer, Need::Mounts]) {
        return;
    }
    let cluster = granted();
    let name = tainted_node(cluster);
    let mut node = Node::new();
    node.once(&[]).expect(0, &[]);
    start_kubelet(&node);
    let status = node.path("state.json");
    // Its pod is on another node, so the policy refuses.
    node.set("ECR_NODE_AGENT_STARTUP_TAINT_NODE", &name);
    let agent = start_with(&mut node, cluster, &token(cluster, Some(&tainted_node(cluster))));
    agent.wait_for("cannot remove the startup taint; while it is there, no pod is scheduled on this node", 1);
    agent.wait("the state", || {
        std::fs::read_to_string(&status).is_ok_and(|text| text.contains("startup_taint"))
    });
    assert_eq!(taints(cluster, &name), ["example.com/other", TAINT]);
    agent.stop().expect(0, &["its own node, with the token of its pod"]);
}

/// Answers every request with a body of 256 MiB, as far as the client reads. Returns the port, the certificate authority, and the
/// most bytes that one connection was sent.
fn api_server_with_large_answers() -> (u16, String, Arc<AtomicUsize>) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
    let config = ServerConfig::builder().with_no_client_auth();
    let config = Arc::new(config.with_single_cert(vec![made.cert.der().clone()], key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let most = Arc::new(AtomicUsize::new(0));
    let sent_at_most = Arc::clone(&most);
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let tls = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut client = StreamOwned::new(tls, connection.unwrap());
            if client.read(&mut [0; 8192]).is_err() {
                continue;
            }
            let head =
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 268435456\r\n\r\n\"";
            let mut block = head.as_bytes().to_vec();
            let mut sent = 0;
            while sent < 256 << 20 && client.write_all(&block).is_ok() {
                sent += block.len();
                most.fetch_max(sent, Relaxed);
                block = vec![b'x'; 1 << 16];
            }
        }
    });
    (port, made.cert.pem(), sent_at_most)
}

#[test]
fn an_answer_that_is_too_large_is_not_read_to_its_end() {
    if !all_here(&[Need::Mounts]) {
        return;
    }
    let (port, ca, sent) = api_server_with_large_answers();
    let mut node = Node::new();
    node.once(&[]).expect(0, &[]);
    start_kubelet(&node);
    node.set("ECR_NODE_AGENT_STARTUP_TAINT_NODE", "node-1");
    let agent = start_beside(&mut node, port, &ca, "token");
    agent.wait_for("cannot remove the startup taint; while it is there, no pod is scheduled on this node", 1);
    agent.stop().expect(0, &["the API server's answer is invalid"]);
    let sent = sent.load(Relaxed) >> 20;
    assert!(sent < 64, "the agent has read {sent} MiB");
}

#[test]
fn the_reason_of_a_refusal_is_told() {
    if !all_here(&[Need::ApiServer, Need::Mounts]) {
        return;
    }
    let cluster = granted();
    let (existing, missing) = (tainted_node(cluster), unique("node"));
    let cases = [
        (&missing, token(cluster, Some(&existing)), format!("there is no node {missing}")),
        (&existing, cluster.service_account().token(), "cannot patch resource \\\"nodes\\\"".to_owned()),
    ];
    for (name, token, reason) in cases {
        let mut node = Node::new();
        node.once(&[]).expect(0, &[]);
        start_kubelet(&node);
        node.set("ECR_NODE_AGENT_STARTUP_TAINT_NODE", name);
        let agent = start_with(&mut node, cluster, &token);
        agent.wait_for(
            "cannot remove the startup taint; while it is there, no pod is scheduled on this node",
            1,
        );
        agent.stop().expect(0, &[&reason]);
    }
}

#[test]
fn the_policy_allows_the_removal_of_this_taint_from_the_own_node_and_nothing_else() {
    if !all_here(&[Need::ApiServer]) {
        return;
    }
    let cluster = granted();
    let (own, other) = (tainted_node(cluster), tainted_node(cluster));
    let user = json!({ "token": token(cluster, Some(&own)) });
    let api = Api::new(&cluster.kubeconfig_at(&unique("own"), &cluster.url(), &user));
    let path = |node: &str| format!("/api/v1/nodes/{node}");
    let both = [taint("example.com/other"), taint(TAINT)];
    let owner = json!({ "apiVersion": "v1", "kind": "Node", "name": other, "uid": "0" });
    let config = json!({ "name": "a", "namespace": "b", "kubeletConfigKey": "c", "uid": "1" });
    let cases = [
        (json!({ "spec": { "taints": [] } }), "change no other taint"),
        (json!({ "spec": { "taints": [taint(TAINT)] } }), "change no other taint"),
        (json!({ "spec": { "taints": [both[0], both[1], taint("new")] } }), "change no other taint"),
        (
            json!({ "spec": { "taints": [{ "key": both[0]["key"], "effect": "NoExecute" }] } }),
            "change no other taint",
        ),
        (json!({ "spec": { "unschedulable": true } }), "and nothing else"),
        (json!({ "spec": { "providerID": "aws:///x" } }), "and nothing else"),
        (json!({ "metadata": { "labels": { "pool": "b" } } }), "and nothing else"),
        (json!({ "metadata": { "annotations": { "a": "b" } } }), "and nothing else"),
        (json!({ "metadata": { "finalizers": ["example.com/x"] } }), "and nothing else"),
        (json!({ "metadata": { "ownerReferences": [owner] } }), "and nothing else"),
        // The API server's own rule comes first.
        (json!({ "spec": { "externalID": "x" } }), "may not be updated"),
        (json!({ "spec": { "podCIDR": "10.1.2.0/24", "podCIDRs": ["10.1.2.0/24"] } }), "and nothing else"),
    ];
    for (changes, words) in cases {
        let Refused(code, _, why) = api.patch(&path(&own), &changes).unwrap_err();
        assert!((code == 422 || code == 403) && why.contains(words), "{changes}: {code} {why}");
    }
    // The API server drops this field since Kubernetes 1.24.
    let dropped = json!({ "spec": { "configSource": { "configMap": config } } });
    let unchanged = api.patch(&path(&own), &dropped).unwrap();
    assert_eq!(unchanged["spec"]["configSource"], Value::Null);
    let removal = json!({ "spec": { "taints": [taint("example.com/other")] } });
    let Refused(_, _, why) = api.patch(&path(&other), &removal).unwrap_err();
    assert!(why.contains("its own node"), "{why}");
    // RBAC allows no other verb, and no other resource.
    for refused in [
        api.get(&path(&own)),
        api.delete(&path(&own)),
        api.create("/api/v1/nodes", &json!({ "metadata": { "name": unique("node") } })),
        api.replace(&path(&own), &json!({ "metadata": { "name": own } })),
        api.patch(&format!("{}/status", path(&own)), &json!({})),
    ] {
        let Refused(code, _, why) = refused.unwrap_err();
        assert!(code == 403 && why.contains("cannot"), "{code} {why}");
    }
    api.patch(&path(&own), &removal).unwrap();
    assert_eq!(taints(cluster, &own), ["example.com/other"]);
    assert_eq!(taints(cluster, &other), ["example.com/other", TAINT]);
    // Other users are not affected.
    cluster.api().patch(&path(&other), &json!({ "metadata": { "labels": { "pool": "b" } } })).unwrap();
}

#[test]
fn the_policy_also_refuses_what_another_role_would_let_the_agent_do() {
    if !all_here(&[Need::ApiServer]) {
        return;
    }
    let cluster = granted();
    let (own, new) = (tainted_node(cluster), unique("node"));
    let user = format!("system:serviceaccount:{NAMESPACE}:{ACCOUNT}");
    // RBAC allows this group everything.
    let ask = |method: &str, path: &str, kind: &str, node: &str, body: &Value| {
        let headers = [
            ("Content-Type", kind),
            ("Impersonate-User", &user),
            ("Impersonate-Group", "system:masters"),
            ("Impersonate-Extra-authentication.kubernetes.io%2Fnode-name", node),
        ];
        cluster.api().ask_with(method, path, &headers, body)
    };
    let (apply, merge) = ("application/apply-patch+yaml", "application/merge-patch+json");
    let path = |node: &str| format!("/api/v1/nodes/{node}");
    let node = |name: &str| json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } });
    let by = "?fieldManager=it&force=true";
    let labelled =
        json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": own, "labels": { "pool": "b" } } });
    let ready = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
    let cases = [
        ("a new node by apply", ask("PATCH", &(path(&new) + by), apply, &new, &node(&new))),
        ("a new node", ask("POST", "/api/v1/nodes", "application/json", &new, &node(&new))),
        ("a label by apply", ask("PATCH", &(path(&own) + by), apply, &own, &labelled)),
        ("the status", ask("PATCH", &(path(&own) + "/status"), merge, &own, &ready)),
    ];
    for (what, result) in cases {
        let Refused(code, _, why) = result.expect_err(what);
        assert!(
            (code == 422 || code == 403) && why.contains("ValidatingAdmissionPolicy"),
            "{what}: {code} {why}"
        );
    }
    assert_eq!(cluster.api().get(&path(&new)).unwrap_err().0, 404);
    // Its own removal is allowed, so the requests above were not refused for another reason.
    let removal = json!({ "spec": { "taints": [taint("example.com/other")] } });
    ask("PATCH", &path(&own), merge, &own, &removal).unwrap();
    assert_eq!(taints(cluster, &own), ["example.com/other"]);
}
