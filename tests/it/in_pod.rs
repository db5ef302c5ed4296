//! `status` and `explain` in the pods that the chart renders: what is not mounted there is unknown, never missing.

use crate::needs::{Need, all_here};
use crate::node::{FOREIGN, HOST, Node, Run, output};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Makes a root directory with nothing in it but the program, its libraries and the given mounts, and runs the program there.
/// `POD` is that directory, `MOUNTS` lists `SOURCE TARGET` lines, and `NODE_MOUNT` is a file that is a mount of its own on the node.
const RUN: &str = r#"
set -eu
program=$1
shift
if [ -n "${NODE_MOUNT-}" ]; then mount --bind "$NODE_MOUNT" "$NODE_MOUNT"; fi
mount --bind "$POD" "$POD"
for directory in usr lib lib64 proc; do
    if [ -e "/$directory" ]; then
        mkdir -p "$POD/$directory"
        mount --bind "/$directory" "$POD/$directory"
    fi
done
touch "$POD/program"
mount --bind "$program" "$POD/program"
printf '%s\n' "$MOUNTS" | while read -r source target; do
    mkdir -p "$POD$target" "$source"
    # With the mounts below it, as container runtimes do.
    mount --rbind "$source" "$POD$target"
done
exec chroot "$POD" /program "$@"
"#;

/// The agent's container in what the chart renders.
struct Container {
    variables: BTreeMap<String, String>,
    /// For each mount, the path in the container and on the node; `None` if it is no directory of the node.
    mounts: Vec<(String, Option<String>)>,
}

/// Every DaemonSet's container, by the name of its values.
fn containers() -> Vec<(String, Container)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("daemonset/golden");
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let documents = text.split("\n---").filter(|document| document.contains("\nkind: DaemonSet"));
        for document in documents.filter(|document| !document.contains("app.kubernetes.io/component: remove"))
        {
            let (_, containers) = document.split_once("\n      containers:\n").unwrap();
            let (containers, volumes) = containers.split_once("\n      volumes:\n").unwrap();
            // The agent's is the first one.
            let container = containers.split("\n        - name: ").next().unwrap();
            found.push((name.clone(), container_of(container, volumes)));
        }
    }
    found
}

fn container_of(container: &str, volumes: &str) -> Container {
    let value = |line: &str| line.split_once(": ").map(|(_, value)| value.trim_matches('"').to_owned());
    let mut hosts = BTreeMap::new();
    let mut name = String::new();
    for line in volumes.lines().map(str::trim_start) {
        if line.starts_with("- name: ") {
            name = value(line).unwrap();
        } else if line.starts_with("path: \"/") {
            hosts.insert(name.clone(), value(line).unwrap());
        }
    }
    let (mut variables, mut mounts) = (BTreeMap::new(), Vec::new());
    for line in container.lines().map(str::trim_start) {
        if line.starts_with("- name: ") {
            name = value(line).unwrap();
        } else if line.starts_with("value: ") {
            variables.insert(name.clone(), value(line).unwrap());
        } else if line.starts_with("mountPath: ") {
            mounts.push((value(line).unwrap(), hosts.get(&name).cloned()));
        }
    }
    assert!(!mounts.is_empty() && variables.contains_key("ECR_NODE_AGENT_AUTH_FILE"));
    Container { variables, mounts }
}

/// Runs a command in the container, over a node whose files are in `node/disk`.
fn run(node: &mut Node, container: &Container, arguments: &[&str]) -> Run {
    let pod = tempfile::tempdir_in(node.path("")).unwrap();
    let mounts = container.mounts.iter().enumerate().map(|(number, (target, host))| {
        let source = match host {
            Some(host) => node.path("disk").join(host.trim_start_matches('/')),
            None => node.path(&format!("volumes/{number}")),
        };
        format!("{} {target}", source.display())
    });
    let mounts = mounts.collect::<Vec<_>>().join("\n");
    node.set("POD", pod.path().to_str().unwrap());
    node.set("MOUNTS", &mounts);
    node.set("KUBERNETES_SERVICE_HOST", "10.96.0.1");
    for name in ["ECR_NODE_AGENT_STATE_FILE", "HOME"] {
        node.unset(name);
    }
    for name in ["ECR_NODE_AGENT_AUTH_FILE", "HOME"] {
        if let Some(value) = container.variables.get(name) {
            node.set(name, value);
        }
    }
    let wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-c", RUN, "sh"];
    let output = output(&mut node.command(&wrapper, arguments));
    node.checked(&output)
}

/// Puts the auth file of a working agent where the container expects it.
fn install(node: &Node, container: &Container, content: &str) -> PathBuf {
    let path = container.variables["ECR_NODE_AGENT_AUTH_FILE"].trim_start_matches('/');
    let file = node.path("disk").join(path);
    node.write(file.strip_prefix(node.path("")).unwrap().to_str().unwrap(), content);
    file
}

#[test]
fn what_the_pod_cannot_see_is_unknown_and_its_own_file_is_explained_in_every_layout() {
    if !all_here(&[Need::Mounts]) {
        return;
    }
    let image = format!("{HOST}/app:1");
    let mut layouts = 0;
    for (name, container) in containers() {
        let mut node = Node::new();
        node.once(&[]).expect(0, &[]);
        let content = fs::read_to_string(node.auth_file()).unwrap();
        let file = install(&node, &container, &content);

        run(&mut node, &container, &["status"]).expect(0, &["valid"]);
        let text = run(&mut node, &container, &["explain", &image]).expect(0, &["used: 1 entry"]);
        let is_linked = container.variables["ECR_NODE_AGENT_AUTH_FILE"].contains("/ecr-node-agent/");
        assert_eq!(text.out.contains("not checked: "), is_linked, "{name}: {}", text.out);
        let json = ["explain", "--output", "json", &image];
        let report: Value =
            serde_json::from_str(&run(&mut node, &container, &json).expect(0, &[]).out).unwrap();
        assert_eq!(report["usable"], true, "{name}: {report}");
        assert_eq!(report["read_instead"].is_string(), is_linked, "{name}: {report}");
        for file in report["files"].as_array().unwrap() {
            let path = Path::new(file["path"].as_str().unwrap());
            let is_mounted = container.mounts.iter().any(|(target, _)| path.starts_with(target));
            let expected: &[&str] =
                if is_mounted { &["used", "missing", "hidden"] } else { &["unknown", "used"] };
            assert!(expected.contains(&file["state"].as_str().unwrap()), "{name}: {file}");
        }

        // Without the agent's file, the kubelet may use one that cannot be seen.
        fs::remove_file(file).unwrap();
        let run = run(&mut node, &container, &["explain", &image]);
        let run = run.expect(5, &["cannot be seen from this pod", "result: unknown"]);
        assert!(!run.out.contains("pulls without credentials"), "{name}: {}", run.out);
        layouts += 1;
    }
    assert!(layouts > 10, "{layouts}");
}

/// kind's documentation mounts a file of the machine at the kubelet's place.
#[test]
fn a_file_that_is_mounted_on_the_node_is_read_and_never_replaced() {
    if !all_here(&[Need::Mounts]) {
        return;
    }
    let (_, container) = containers().into_iter().find(|(name, _)| name == "default").unwrap();
    let mut node = Node::new();
    let file = install(&node, &container, FOREIGN);
    node.set("NODE_MOUNT", file.to_str().unwrap());
    for arguments in [&["--once"][..], &["link"]] {
        let run = run(&mut node, &container, arguments);
        run.expect(
            5,
            &["is a mount of its own, and a mounted file cannot be replaced as a whole (it is untouched)"],
        );
    }
    let run = run(&mut node, &container, &["status", "--registry", HOST]);
    run.expect(1, &[&format!("{HOST}  missing")]);
    assert_eq!(fs::read_to_string(&file).unwrap(), FOREIGN);
}
