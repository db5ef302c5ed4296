//! `daemonset/`: the program and a real API server accept what the chart renders, and the chart has every option.
//!
//! `daemonset/golden` holds what the chart renders; `.ci/manifests` checks that it is up to date.

use crate::cluster::{Cluster, shared, unique};
use crate::needs::{Need, all_here};
use crate::node::Node;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Options that the chart does not set, and why.
const NOT_IN_THE_CHART: [(&str, &str); 4] = [
    ("ECR_NODE_AGENT_STATE_FILE", "the chart mounts a volume at the default"),
    ("ECR_NODE_AGENT_ONCE", "the container would be started again and again"),
    ("ECR_NODE_AGENT_DRY_RUN", "likewise: the program ends after one round"),
    ("ECR_NODE_AGENT_TIMEOUT", "for --once only: the daemon never gives up"),
];
/// The namespace of everything in `golden/` and `install.yaml`.
pub const NAMESPACE: &str = "ecr-node-agent";

fn daemonset() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("daemonset")
}

fn read(path: &str) -> String {
    fs::read_to_string(daemonset().join(path)).unwrap()
}

/// The rendered files, by name.
fn golden() -> BTreeMap<String, PathBuf> {
    let files = fs::read_dir(daemonset().join("golden")).unwrap().map(|entry| entry.unwrap().path());
    let named = |path: PathBuf| (path.file_stem().unwrap().to_str().unwrap().to_owned(), path);
    let golden: BTreeMap<_, _> = files.map(named).collect();
    assert!(golden.len() > 10, "{golden:?}");
    golden
}

/// The words with this prefix, each once.
fn words(text: &str, start: &str) -> BTreeSet<String> {
    let of_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !of_word(c)).filter(|word| word.starts_with(start));
    words.map(str::to_owned).collect()
}

fn help() -> String {
    let output =
        Command::new(env!("CARGO_BIN_EXE_ecr-node-agent")).env_clear().arg("--help").output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_option_has_its_value_and_every_value_its_option() {
    let options = words(&help(), "ECR_NODE_AGENT_");
    assert!(options.len() > 10, "{options:?}");
    let mut set = BTreeSet::new();
    for path in golden().values() {
        set.extend(words(&fs::read_to_string(path).unwrap(), "ECR_NODE_AGENT_"));
    }
    let without: BTreeSet<_> = NOT_IN_THE_CHART.iter().map(|(name, _)| (*name).to_owned()).collect();
    let wanted: BTreeSet<_> = options.difference(&without).cloned().collect();
    assert_eq!(set, wanted, "of the chart, and of --help without {without:?}");
    assert!(without.is_subset(&options), "{without:?}");
}

#[test]
fn the_chart_is_of_the_programs_version() {
    let chart = read("chart/Chart.yaml");
    for name in ["version", "appVersion"] {
        let line = format!("\n{name}: {}\n", env!("CARGO_PKG_VERSION"));
        assert!(chart.contains(&line), "{name} is not {}", env!("CARGO_PKG_VERSION"));
    }
    let image = format!("image: ecr-node-agent:{}\n", env!("CARGO_PKG_VERSION"));
    for file in ["install.yaml", "remove/remove.yaml"] {
        assert!(read(file).contains(&image), "{file}");
    }
    for file in ["kustomization.yaml", "remove/kustomization.yaml"] {
        assert!(read(file).contains(&format!("newTag: {}\n", env!("CARGO_PKG_VERSION"))), "{file}");
    }
}

#[test]
fn alerts_and_dashboard_use_metrics_that_exist_and_the_dashboard_all_of_them() {
    let docs = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md")).unwrap();
    let known = words(&docs, "ecr_node_agent_");
    let alerts = words(&read("alerts.yaml"), "ecr_node_agent_");
    assert!(alerts.len() > 2 && alerts.is_subset(&known), "{alerts:?}");

    let board: Value = serde_json::from_str(&read("chart/files/dashboard.json")).unwrap();
    let panels = board["panels"].as_array().unwrap();
    let mut shown = BTreeSet::new();
    for panel in panels {
        for target in panel["targets"].as_array().unwrap() {
            // A query reads a histogram by its buckets.
            let query = target["expr"].as_str().unwrap().replace("_bucket{", "{");
            shown.extend(words(&query, "ecr_node_agent_"));
        }
    }
    assert_eq!(shown, known, "of the dashboard, and of docs/metrics.md");
    let variables = board["templating"]["list"].as_array().unwrap();
    for query in variables.iter().filter_map(|variable| variable["definition"].as_str()) {
        assert!(words(query, "ecr_node_agent_").is_subset(&known), "{query}");
    }
    // Grafana shows two panels with the same id or place as one.
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    let places: BTreeSet<_> = panels.iter().map(|panel| panel["gridPos"].to_string()).collect();
    assert_eq!((ids.len(), places.len()), (panels.len(), panels.len()));
}

/// `promtool` checks each query of the dashboard, as a rule of its own.
#[test]
fn every_query_of_the_dashboard_is_promql() {
    if !all_here(&[Need::Promtool]) {
        return;
    }
    let board: Value = serde_json::from_str(&read("chart/files/dashboard.json")).unwrap();
    let targets =
        board["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let rules: Vec<Value> = targets
        .enumerate()
        .map(|(number, target)| {
            // Grafana replaces this variable.
            let query = target["expr"].as_str().unwrap().replace("$__rate_interval", "5m");
            json!({ "record": format!("panel:{number}"), "expr": query })
        })
        .collect();
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    let groups = json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    serde_json::to_writer(&file, &groups).unwrap();
    let output = Command::new("promtool").args(["check", "rules"]).arg(file.path()).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains(&format!("{} rules", rules.len())), "{output:?}");
}

/// A custom kind, with any content.
fn custom_kind(kind: &str, plural: &str) -> Value {
    let schema = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.monitoring.coreos.com") },
        "spec": {
            "group": "monitoring.coreos.com",
            "names": { "kind": kind, "plural": plural, "singular": kind.to_lowercase(), "listKind": format!("{kind}List") },
            "scope": "Namespaced",
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": schema } }],
        },
    })
}

/// The service account that a controller would make in each namespace.
fn default_account(namespace: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default", "namespace": namespace },
    })
}

/// The cluster with `install.yaml` in it, installed as a user does it.
pub fn installed() -> &'static Cluster {
    static INSTALLED: std::sync::Once = std::sync::Once::new();
    let cluster = shared();
    INSTALLED.call_once(|| {
        cluster.apply(&[
            custom_kind("PodMonitor", "podmonitors"),
            custom_kind("ServiceMonitor", "servicemonitors"),
            custom_kind("PrometheusRule", "prometheusrules"),
        ]);
        // The namespaces of `golden/`.
        for namespace in ["team-a", "team-b"] {
            cluster.make_namespace(namespace, &json!({}));
        }
        cluster.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"]);
        cluster.kubectl(&["apply", "--server-side", "--kustomize", daemonset().to_str().unwrap()]);
        cluster.apply(&[NAMESPACE, "team-a", "team-b"].map(default_account));
    });
    cluster
}

/// The objects of a file as the API server would store them. A warning, such as for an unknown field, is a failure.
fn dry_run(cluster: &Cluster, path: &Path) -> Vec<Value> {
    let path = path.to_str().unwrap();
    let flags = ["--server-side", "--dry-run=server", "--validate=strict", "--warnings-as-errors"];
    // Server-side, like the installation: a field that this file leaves out does not come from another file.
    let arguments = [&["apply"], &flags[..], &["-o", "json", "-f", path]].concat();
    let mut answer: Value = serde_json::from_str(&cluster.kubectl(&arguments)).unwrap();
    match answer["items"].take() {
        Value::Array(objects) => objects,
        _ => vec![answer],
    }
}

fn workloads(objects: &[Value]) -> impl Iterator<Item = &Value> {
    objects.iter().filter(|object| object["spec"]["template"].is_object())
}

/// A pod of a workload, as its controller would make it.
fn pod(workload: &Value, namespace: &str) -> String {
    let template = &workload["spec"]["template"];
    let mut metadata = template["metadata"].clone();
    metadata["name"] = json!("pod");
    metadata["namespace"] = json!(namespace);
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"] }).to_string()
}

/// A pod of a workload as the API server would store it, or why the API server refuses it.
fn admitted(cluster: &Cluster, workload: &Value, namespace: &str) -> Result<Value, String> {
    // The account must exist; its rights do not matter.
    let account = workload["spec"]["template"]["spec"]["serviceAccountName"].as_str().unwrap_or("default");
    cluster.apply(&[json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": account, "namespace": namespace },
    })]);
    let create = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
    let output = cluster.run(&cluster.admin(), &create, &pod(workload, namespace));
    if !output.status.success() {
        return Err(String::from_utf8(output.stderr).unwrap());
    }
    Ok(serde_json::from_slice(&output.stdout).unwrap())
}

/// A namespace with an enforced level of Pod Security.
fn at_level(cluster: &Cluster, level: &str) -> String {
    let namespace = cluster.namespace(level);
    let label = format!("pod-security.kubernetes.io/enforce={level}");
    cluster.kubectl(&["label", "namespace", &namespace, &label]);
    namespace
}

/// Applies every manifest over the installation, so a change of a field that cannot change, such as a selector, fails too.
#[test]
fn the_api_server_accepts_every_manifest_and_every_pod_of_it() {
    if !all_here(&[Need::ApiServer]) {
        return;
    }
    let cluster = installed();
    let baseline = at_level(cluster, "baseline");
    let restricted = at_level(cluster, "restricted");
    for (name, path) in golden() {
        let objects = dry_run(cluster, &path);
        assert!(workloads(&objects).count() > 0, "{name}: {objects:?}");
        for workload in workloads(&objects) {
            let pod = admitted(cluster, workload, NAMESPACE).unwrap_or_else(|why| panic!("{name}: {why}"));
            let spec = &pod["spec"];
            let text = spec.to_string();

            let on_node = workload["kind"] == "DaemonSet";
            // Only an agent that keeps pull secrets, publishes Events or removes a taint has a token for the API server.
            let keeps_secrets =
                !on_node || ["secrets-on-nodes", "everything-watched", "startup-taint"].contains(&&*name);
            assert_eq!(spec["automountServiceAccountToken"], json!(keeps_secrets), "{name}");
            assert_eq!(text.contains("kube-api-access"), keeps_secrets, "{name}: {text}");
            // system-node-critical and system-cluster-critical
            let priority = if on_node { 2_000_001_000 } else { 2_000_000_000 };
            if !["custom", "secrets-found"].contains(&&*name) {
                assert_eq!(spec["priority"], json!(priority), "{name}");
            }
            // One directory of the node, or two with the kubelet's home directory; one more in the linked layout.
            let volumes = spec["volumes"].as_array().unwrap().iter();
            let folders: Vec<_> = volumes.filter_map(|volume| volume["hostPath"]["path"].as_str()).collect();
            let wanted: &[&str] = match name.as_str() {
                _ if !on_node => &[],
                "k0s" => &["/var/lib/k0s/kubelet"],
                "microk8s" => &["/var/snap/microk8s/common/var/lib/kubelet"],
                "linked-watched" => &["/var/lib/kubelet", "/var/lib/kubelet/ecr-node-agent"],
                "kops" => &["/var/lib/kubelet", "/root/.docker"],
                // Linked, and the kubelet's certificate.
                "roles-anywhere" => {
                    &["/var/lib/kubelet", "/var/lib/kubelet/ecr-node-agent", "/var/lib/kubelet/pki"]
                }
                "roles-anywhere-files" => &["/var/lib/kubelet", "/etc/ssl/node"],
                "uninstall" if workload["metadata"]["name"] != NAMESPACE => {
                    &["/var/lib/kubelet", "/root/.docker"]
                }
                "linked" | "uninstall" => {
                    &["/var/lib/kubelet", "/root/.docker", "/var/lib/kubelet/ecr-node-agent"]
                }
                _ => &["/var/lib/kubelet"],
            };
            assert_eq!(folders, wanted, "{name}");
            let mounts = spec["containers"][0]["volumeMounts"].as_array().unwrap();
            let seen: Vec<_> = mounts.iter().filter_map(|mount| mount["mountPath"].as_str()).collect();
            if name.starts_with("linked") {
                assert_eq!(seen, ["/var/lib/kubelet/ecr-node-agent", "/run/ecr-node-agent"]);
            }

            if on_node {
                // Why the namespace needs its label.
                let why = admitted(cluster, workload, &baseline).unwrap_err();
                let words = ["violates PodSecurity \"baseline", "hostPath volumes"];
                assert!(words.iter().all(|word| why.contains(word)), "{name}: {why}");
            } else {
                admitted(cluster, workload, &restricted).unwrap_or_else(|why| panic!("{name}: {why}"));
            }
        }
    }
}

#[test]
fn the_installed_pods_need_the_nodes_directory_and_network_and_nothing_else() {
    if !all_here(&[Need::ApiServer]) {
        return;
    }
    let cluster = installed();
    let label = ["get", "namespace", NAMESPACE, "-o", "jsonpath={.metadata.labels}"];
    assert!(cluster.kubectl(&label).contains("\"pod-security.kubernetes.io/enforce\":\"privileged\""));

    // Without these two, without root and SELinux' type, Pod Security's strictest level accepts the pod.
    let restricted = at_level(cluster, "restricted");
    let installed = ["get", "daemonset", NAMESPACE, "--namespace", NAMESPACE, "-o", "json"];
    let mut daemonset: Value = serde_json::from_str(&cluster.kubectl(&installed)).unwrap();
    let why = admitted(cluster, &daemonset, &restricted).unwrap_err();
    let spec = &mut daemonset["spec"]["template"]["spec"];
    spec["hostNetwork"] = json!(false);
    for volume in spec["volumes"].as_array_mut().unwrap() {
        *volume = json!({ "name": volume["name"], "emptyDir": {} });
    }
    let container = &mut spec["containers"][0];
    for probe in ["livenessProbe", "readinessProbe"] {
        container[probe]["httpGet"].as_object_mut().unwrap().remove("host").unwrap();
    }
    container["ports"][0].as_object_mut().unwrap().remove("hostPort");
    container["securityContext"]["runAsUser"] = json!(1000);
    container["securityContext"].as_object_mut().unwrap().remove("seLinuxOptions").unwrap();
    container["securityContext"]["runAsNonRoot"] = json!(true);
    container["volumeMounts"][0].as_object_mut().unwrap().remove("mountPropagation").unwrap();
    admitted(cluster, &daemonset, &restricted).unwrap_or_else(|why| panic!("{why}"));
    for reason in
        ["hostNetwork=true", "type \"hostPath\"", "runAsNonRoot != true", "runAsUser=0", "type \"spc_t\""]
    {
        assert!(why.contains(reason), "{reason}: {why}");
    }
}

/// The variables of a container.
fn variables(container: &Value) -> BTreeMap<String, String> {
    let variables = container["env"].as_array().unwrap().iter().filter_map(|variable| {
        let value =
            variable["value"].as_str()?.replace("$(HOST_IP)", "192.0.2.1").replace("$(NODE_NAME)", "node-1");
        Some((variable["name"].as_str().unwrap().to_owned(), value))
    });
    variables.collect()
}

/// Runs the program with the arguments and variables of each manifest: a wrong one, such as an invalid registry, exits with 2.
#[test]
fn the_program_accepts_the_options_of_every_manifest() {
    if !all_here(&[Need::ApiServer]) {
        return;
    }
    let cluster = installed();
    let root = tempfile::tempdir().unwrap();
    for (name, path) in golden() {
        for object in dry_run(cluster, &path) {
            // Of a pod, or of the pods of a workload.
            let spec =
                if object["kind"] == "Pod" { &object["spec"] } else { &object["spec"]["template"]["spec"] };
            let containers = ["initContainers", "containers"].map(|kind| spec[kind].as_array().cloned());
            let runs_agent =
                |container: &Value| container["image"].as_str().unwrap().contains("ecr-node-agent");
            for container in containers.into_iter().flatten().flatten().filter(runs_agent) {
                let arguments = container["args"].as_array().cloned().unwrap_or_default();
                let arguments: Vec<_> = arguments.iter().map(|argument| argument.as_str().unwrap()).collect();
                let mut command = Command::new(env!("CARGO_BIN_EXE_ecr-node-agent"));
                command.env_clear().envs(variables(&container)).env("HOME", root.path());
                // `status` of missing files changes nothing and needs no AWS. It does not know this option, which
                // `the_rights_in_the_chart_are_enough` covers.
                command.env_remove("ECR_NODE_AGENT_NO_AUTH_FILE");
                match arguments.first() {
                    Some(first) if !first.starts_with('-') => command.args(&arguments).arg("--help"),
                    _ => command.arg("status").args(&arguments),
                };
                let output = command.output().unwrap();
                let printed = String::from_utf8_lossy(&output.stderr);
                assert_ne!(output.status.code(), Some(2), "{name}: {arguments:?}: {printed}");
                assert!(output.status.code().is_some(), "{name}: {arguments:?}: {printed}");
            }
        }
    }
}

/// Applies a file without a dry run: Roles have an effect only once they exist.
pub fn apply(cluster: &Cluster, name: &str) {
    cluster.kubectl(&["apply", "--server-side", "-f", golden()[name].to_str().unwrap()]);
}

/// What `kubectl auth can-i` answers for a service account, such as for `get secrets/ecr-creds -n team-a`.
fn may(cluster: &Cluster, account: &str, what: &str) -> bool {
    let user = format!("--as=system:serviceaccount:{NAMESPACE}:{account}");
    let arguments: Vec<_> = ["auth", "can-i"].into_iter().chain(what.split(' ')).chain([&*user]).collect();
    let output = cluster.run(&cluster.admin(), &arguments, "");
    match output.stdout.trim_ascii() {
        b"yes" => true,
        b"no" => false,
        _ => panic!("can-i {what}: {output:?}"),
    }
}

/// Waits until the API server applies a change that it has accepted.
pub fn soon(what: &str, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed().as_secs() < 60, "{what}");
    }
}

#[test]
fn a_keeper_of_pull_secrets_has_the_documented_rights_and_no_others() {
    if !all_here(&[Need::ApiServer]) {
        return;
    }
    let cluster = installed();
    let never = [
        "delete secrets/ecr-creds -n team-a",
        "update secrets/ecr-creds -n team-a",
        "get secrets/other -n team-a",
        "list secrets -n team-a",
        "list secrets -A",
        "patch secrets/ecr-creds -n kube-system",
        "create serviceaccounts/token -n team-a",
        "create pods -n team-a",
        "get configmaps -n team-a",
        "get secrets/aws-credentials -n ecr-node-agent",
        "patch namespaces/team-a",
        "get nodes",
    ];
    let on_nodes = (
        "secrets-on-nodes",
        "on-nodes",
        &["get secrets/ecr-creds -n team-a", "patch secrets/ecr-creds -n team-b", "create secrets -n team-a"]
            [..],
        &[
            "watch secrets/ecr-creds -n team-a",
            "create secrets -n default",
            "list namespaces",
            "list namespaces/team-a",
            "get serviceaccounts/default -n team-a",
        ][..],
    );
    let named = (
        "secrets-named",
        "named-pull-secrets",
        &[
            "get secrets/ecr-creds -n team-a",
            "watch secrets/ecr-creds -n team-a",
            "list secrets/ecr-creds -n team-b",
            "patch secrets/ecr-creds -n team-b",
            "create secrets -n team-b",
            "watch namespaces/team-a",
            "list namespaces/team-b",
            "watch serviceaccounts/default -n team-a",
            "patch serviceaccounts/default -n team-a",
        ][..],
        &[
            "list namespaces",
            "watch namespaces/default",
            "create secrets -n default",
            "get secrets/ecr-creds -n default",
            "patch serviceaccounts/other -n team-a",
            "create serviceaccounts -n team-a",
        ][..],
    );
    let found = (
        "secrets-found",
        "found-pull-secrets",
        &[
            "list namespaces",
            "watch namespaces",
            "get secrets/ecr-pull -n default",
            "watch secrets/ecr-creds -n team-a",
            "create secrets -n default",
            "patch serviceaccounts/builder -n default",
        ][..],
        &[
            "get namespaces/team-a",
            "create serviceaccounts -n default",
            "patch serviceaccounts/other -n default",
        ][..],
    );
    for (file, account, allowed, denied) in [on_nodes, named, found] {
        apply(cluster, file);
        for what in allowed {
            soon(&format!("{account} may not {what}"), || may(cluster, account, what));
        }
        // With a pattern the right is for every namespace; only the agent knows which ones match.
        let never = never.iter().filter(|what| file != "secrets-found" || !what.contains("kube-system"));
        for what in never.chain(denied) {
            assert!(!may(cluster, account, what), "{account} may {what}");
        }
    }
    // With a Deployment, the account of the nodes' agents has no rights.
    assert!(!may(cluster, "named", "get secrets/ecr-creds -n team-a"));
}

#[test]
fn the_policy_refuses_what_rbac_cannot() {
    if !all_here(&[Need::ApiServer]) {
        return;
    }
    let cluster = installed();
    apply(cluster, "secrets-named");
    cluster.apply(&[json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default", "namespace": "team-a" },
    })]);
    let user = format!("--as=system:serviceaccount:{NAMESPACE}:named-pull-secrets");
    let ask = |verb: &[&str], object: &Value| -> Result<(), String> {
        let arguments = [verb, &["--dry-run=server", "-n", "team-a", &user]].concat();
        let output = cluster.run(&cluster.admin(), &arguments, &object.to_string());
        let printed = String::from_utf8(output.stderr).unwrap();
        if output.status.success() { Ok(()) } else { Err(printed) }
    };
    let secret = |name: &str, kind: &str, annotations: Value| {
        let config = if kind == "kubernetes.io/dockerconfigjson" {
            json!({ ".dockerconfigjson": "e30=" })
        } else {
            json!({})
        };
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": kind, "data": config,
            "metadata": { "name": name, "annotations": annotations },
        })
    };
    let create = |secret: &Value| ask(&["create", "-f", "-"], secret);
    let patch = |patch: &str| ask(&["patch", "serviceaccount", "default", "-p", patch], &Value::Null);
    let pull_secret = "kubernetes.io/dockerconfigjson";
    let token = "kubernetes.io/service-account-token";
    let of_account = json!({ "kubernetes.io/service-account.name": "default" });

    let stolen = secret("ecr-creds", token, of_account);
    // RBAC alone allows it; the API server applies the policy a moment later.
    soon("the policy has no effect", || {
        create(&stolen).is_err_and(|why| why.contains("may write pull secrets"))
    });
    // By an apply, since an agent of another test may have created it.
    let apply = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
    ask(&apply, &secret("ecr-creds", pull_secret, json!({}))).unwrap();
    patch(r#"{"imagePullSecrets":[{"name":"ecr-creds"}]}"#).unwrap();
    for refused in [secret("other", pull_secret, json!({})), secret("ecr-creds", "Opaque", json!({}))] {
        let why = create(&refused).unwrap_err();
        assert!(why.contains("may write pull secrets with the configured names"), "{why}");
    }
    for refused in [
        r#"{"metadata":{"annotations":{"eks.amazonaws.com/role-arn":"arn:aws:iam::123456789012:role/admin"}}}"#,
        r#"{"metadata":{"labels":{"azure.workload.identity/use":"true"}}}"#,
        r#"{"secrets":[{"name":"another"}]}"#,
        r#"{"automountServiceAccountToken":true}"#,
    ] {
        let why = patch(refused).unwrap_err();
        assert!(
            why.contains("may change the imagePullSecrets of a service account, and nothing else"),
            "{refused}: {why}"
        );
    }
    // Other users are not affected.
    let others = secret("mine", "Opaque", json!({})).to_string();
    cluster.kubectl_with(&["create", "--dry-run=server", "-n", "team-a", "-f", "-"], &others);
}

/// Runs the program with the options and the account of each of these manifests: the rights are enough, also to restore a deleted
/// secret, and to find a new namespace.
#[test]
fn the_rights_in_the_chart_are_enough() {
    if !all_here(&[Need::ApiServer]) {
        return;
    }
    let cluster = installed();
    let api = cluster.api();
    let account = |namespace: &str| format!("/api/v1/namespaces/{namespace}/serviceaccounts");
    let make_accounts = |namespace: &str| {
        for name in ["default", "builder"] {
            cluster.apply(&[json!({
                "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name, "namespace": namespace },
            })]);
        }
    };
    let patched = |namespace: &str, name: &str, secret: &str| {
        let object = api.get(&format!("{}/{name}", account(namespace))).unwrap();
        object["imagePullSecrets"] == json!([{ "name": secret }])
    };
    // Other tests' namespaces must not match.
    let prefix = unique("found");
    let (one, two) = (format!("{prefix}-one"), format!("{prefix}-two"));
    for (file, user) in [
        ("secrets-on-nodes", "on-nodes"),
        ("secrets-named", "named-pull-secrets"),
        ("secrets-found", "found-pull-secrets"),
    ] {
        apply(cluster, file);
        let objects = dry_run(cluster, &golden()[file]);
        let keeper = workloads(&objects)
            .find(|workload| workload["spec"]["template"]["spec"]["serviceAccountName"] == user);
        let container = &keeper.unwrap()["spec"]["template"]["spec"]["containers"][0];
        let mut node = Node::new();
        let is_ours = ["LISTEN", "AWS_CREDENTIALS_DIR", "REGION", "AUTH_FILE"]
            .map(|name| format!("ECR_NODE_AGENT_{name}"));
        for (name, value) in variables(container) {
            // These depend on the test's node.
            if !is_ours.contains(&name) {
                node.set(&name, &value);
            }
        }
        let token = api.create(&format!("{}/{user}/token", account(NAMESPACE)), &json!({})).unwrap();
        let token = token["status"]["token"].as_str().unwrap();
        let kubeconfig = cluster.kubeconfig_at(user, &cluster.url(), &json!({ "token": token }));
        node.set("KUBECONFIG", kubeconfig.to_str().unwrap());

        let found = file == "secrets-found";
        let namespaces = if found { [&*one, &*two] } else { ["team-a", "team-b"] };
        if found {
            node.set("ECR_NODE_AGENT_PULL_SECRET", &format!("{prefix}-*/ecr-creds"));
            node.set("ECR_NODE_AGENT_PULL_SECRET_SELECTOR", &format!("pulls={prefix}"));
            cluster.make_namespace(&one, &json!({ "pulls": prefix }));
            make_accounts(&one);
        } else {
            for namespace in namespaces {
                make_accounts(namespace);
            }
        }
        let path = |namespace: &str, name: &str| format!("/api/v1/namespaces/{namespace}/secrets/{name}");
        for namespace in namespaces {
            api.delete(&path(namespace, "ecr-creds")).ok();
        }
        // The API server applies Roles a moment later.
        for what in ["get secrets/ecr-creds", "patch secrets/ecr-creds", "create secrets"] {
            soon(what, || may(cluster, user, &format!("{what} -n {}", namespaces[0])));
        }

        let auth_file = node.auth_file();
        let on_node = ["--auth-file", auth_file.to_str().unwrap()];
        let agent = node.launch(&[], if file == "secrets-on-nodes" { &on_node } else { &[] });
        let is_there = |namespace: &str, name: &str| api.get(&path(namespace, name)).is_ok();
        agent.wait("the first secret", || is_there(namespaces[0], "ecr-creds"));
        if found {
            agent.wait("the labelled namespace's secret", || is_there(&one, "ecr-pull"));
            cluster.make_namespace(&two, &json!({}));
            make_accounts(&two);
        }
        agent.wait("the second secret", || is_there(namespaces[1], "ecr-creds"));
        if file != "secrets-on-nodes" {
            agent.wait("the service account", || patched(namespaces[1], "default", "ecr-creds"));
            api.delete(&path(namespaces[1], "ecr-creds")).unwrap();
            agent.wait("the deleted secret", || is_there(namespaces[1], "ecr-creds"));
        }
        let run = agent.stop();
        assert_eq!(run.code, 0, "{file}: {}", run.err);
        assert!(!run.err.contains("can-i"), "{file}: {}", run.err);
        let user = format!("system:serviceaccount:{NAMESPACE}:{user}");
        let requests = cluster.requests().into_iter().filter(|request| request.user == user);
        let refused: Vec<_> = requests.filter(|request| request.code == 403).collect();
        assert_eq!(refused, [], "{file}");
    }
}

/// Only the API server runs, so no pod starts: this test is about the objects that helm makes and leaves.
#[test]
fn helm_uninstall_leaves_a_daemonset_only_with_uninstall_remove() {
    if !all_here(&[Need::ApiServer, Need::Helm]) {
        return;
    }
    let cluster = shared();
    let namespace = cluster.namespace("helm");
    let helm = |arguments: &[&str]| -> Result<String, String> {
        let output = Command::new("helm")
            .args(arguments)
            .args(["--namespace", &namespace])
            .env("HOME", cluster.folder())
            .env("KUBECONFIG", cluster.admin())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    };
    let chart = daemonset().join("chart");
    let install =
        ["install", "pulls", chart.to_str().unwrap(), "--set", "image.repository=registry.example/x"];
    let names = || cluster.kubectl(&["get", "daemonsets", "--namespace", &namespace, "-o", "name"]);

    // The API server would refuse every pod, and `helm install` would succeed all the same.
    let level = |level: &str| {
        let label = format!("pod-security.kubernetes.io/enforce{level}");
        cluster.kubectl(&["label", "--overwrite", "namespace", &namespace, &label]);
    };
    for refused in ["=baseline", "=restricted"] {
        level(refused);
        let why = helm(&install).unwrap_err();
        assert!(why.contains("level of Pod Security refuses pods"), "{refused}: {why}");
    }
    level("-");

    let notes = helm(&install).unwrap();
    // The namespace has no label, so the notes name the one that it needs.
    let label = format!(
        "kubectl label --overwrite namespace {namespace} pod-security.kubernetes.io/enforce=privileged"
    );
    assert!(notes.contains(&label) && notes.contains("leaves the credentials on the nodes"), "{notes}");
    assert_eq!(names(), "daemonset.apps/pulls-ecr-node-agent\n");
    helm(&["uninstall", "pulls"]).unwrap();
    assert_eq!(names(), "");

    let removing = [&install[..], &["--set", "uninstall.remove=true"]].concat();
    let notes = helm(&removing).unwrap();
    assert!(notes.contains("rollout status daemonset/pulls-ecr-node-agent-remove"), "{notes}");
    assert_eq!(names(), "daemonset.apps/pulls-ecr-node-agent\n");
    helm(&["uninstall", "pulls"]).unwrap();
    assert_eq!(names(), "daemonset.apps/pulls-ecr-node-agent-remove\n");

    // No agent would be scheduled beside it.
    let why = helm(&install).unwrap_err();
    assert!(why.contains("pulls-ecr-node-agent-remove of an earlier uninstall still exists"), "{why}");
    cluster.kubectl(&["delete", "daemonset", "--namespace", &namespace, "pulls-ecr-node-agent-remove"]);
    helm(&install).unwrap();
}
