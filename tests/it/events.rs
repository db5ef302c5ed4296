//! Kubernetes Events, on a real API server, with the permission that the chart grants.

use crate::cluster::shared;
use crate::needs::{Need, all_here};
use crate::node::Node;
use ecr_emulator::{Api, Fault, Times};
use serde_json::{Value, json};
use std::path::Path;

/// Runs the program where the kubelet would mount the service account's token.
pub const IN_A_POD: &str = r#"
set -eu
mount -t tmpfs tmpfs /run
mkdir -p /run/secrets/kubernetes.io/serviceaccount /var/run
mount --bind /run /var/run
cp "$ACCOUNT"/* /run/secrets/kubernetes.io/serviceaccount/
exec "$@"
"#;

#[test]
fn a_node_that_is_refused_has_an_event_and_another_when_it_is_restored() {
    if !all_here(&[Need::ApiServer, Need::Mounts]) {
        return;
    }
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("daemonset/golden/everything-watched.yaml");
    let granted =
        "rules:\n  - apiGroups: [events.k8s.io]\n    resources: [events]\n    verbs: [create, patch]\n";
    assert!(std::fs::read_to_string(golden).unwrap().contains(granted));

    let cluster = shared();
    let account = cluster.service_account();
    let name = &account.name;
    let (group, metadata) = ("rbac.authorization.k8s.io", json!({ "name": "events", "namespace": name }));
    let rules =
        json!([{ "apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"] }]);
    let subject = json!({ "kind": "ServiceAccount", "name": name, "namespace": name });
    cluster.apply(&[
        json!({ "apiVersion": format!("{group}/v1"), "kind": "Role", "metadata": metadata, "rules": rules }),
        json!({
            "apiVersion": format!("{group}/v1"), "kind": "RoleBinding", "metadata": metadata,
            "roleRef": { "apiGroup": group, "kind": "Role", "name": "events" }, "subjects": [subject],
        }),
    ]);

    let mut node = Node::new();
    node.write("account/token", &account.token());
    node.write("account/ca.crt", &std::fs::read_to_string(cluster.ca_file()).unwrap());
    node.write("account/namespace", name);
    node.set("ACCOUNT", node.path("account").to_str().unwrap());
    node.set("KUBERNETES_SERVICE_HOST", "127.0.0.1");
    node.set("KUBERNETES_SERVICE_PORT", &cluster.port().to_string());
    node.set("ECR_NODE_AGENT_EVENT_POD", &format!("{name}/agent-x7k2p/0a1b2c3d-0000-0000-0000-000000000000"));
    node.aws.fail(Api::Ecr, Fault::access_denied(), Times::Always);
    let wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-c", IN_A_POD, "sh"];
    let agent = node.start_under(&wrapper, &[]);
    let events = || -> Vec<Value> {
        let path = format!("/apis/events.k8s.io/v1/namespaces/{name}/events");
        cluster.api().get(&path).unwrap()["items"].as_array().unwrap().clone()
    };
    let find = |reason: &str| events().into_iter().find(|event| event["reason"] == reason);
    agent.wait("the Event", || find("CredentialsRefused").is_some());
    let event = find("CredentialsRefused").unwrap();
    assert_eq!(event["type"], "Warning", "{event}");
    assert_eq!(event["regarding"]["name"], "agent-x7k2p", "{event}");
    assert_eq!(event["reportingController"], "ecr-node-agent", "{event}");
    assert!(event["note"].as_str().unwrap().contains("access denied"), "{event}");
    node.aws.heal();
    agent.wait("the end", || find("Restored").is_some());
    assert_eq!(find("Restored").unwrap()["type"], "Normal");
    assert_eq!(events().len(), 2, "one Event for each change, however many attempts there were");
    agent.stop().expect(0, &[]);
}

#[test]
fn without_a_service_account_the_agent_works_and_says_why_there_are_no_events() {
    let node = Node::new();
    node.aws.fail(Api::Ecr, Fault::access_denied(), Times::Always);
    let agent = node.start(&["--event-pod", "a/b/c"]);
    agent.wait_for("cannot publish an Event", 1);
    node.aws.heal();
    agent.wait_for("\"published\"", 1);
    let reason = "\"cannot connect to the API server: cannot use KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT: ";
    agent.stop().expect(0, &[reason]);
    node.run(&["--event-pod", "agent"]).expect(2, &["expected NAMESPACE/NAME/UID of this pod"]);
}

#[test]
fn a_service_account_whose_files_hang_delays_no_token() {
    if !all_here(&[Need::Mounts]) {
        return;
    }
    let mut node = Node::new();
    for (name, value) in [("token", ""), ("ca.crt", ""), ("namespace", "a")] {
        node.write(&format!("account/{name}"), value);
    }
    node.set("ACCOUNT", node.path("account").to_str().unwrap());
    node.set("KUBERNETES_SERVICE_HOST", "127.0.0.1");
    node.set("KUBERNETES_SERVICE_PORT", "1");
    node.aws.fail(Api::Ecr, Fault::access_denied(), Times::Always);
    // A pipe that no program writes to stands for a file system that hangs.
    let hangs = IN_A_POD
        .replace("exec", "cd /run/secrets/kubernetes.io/serviceaccount\nrm token\nmkfifo token\nexec");
    let wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &hangs, "sh"];
    let agent = node.start_under(&wrapper, &["--event-pod", "a/b/c"]);
    agent.wait_for("access denied", 1);
    agent.wait_for("cannot publish an Event", 1);
    node.aws.heal();
    agent.wait_for("\"published\"", 1);
    agent.stop().expect(0, &[]);
}
