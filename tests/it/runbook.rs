//! Every command in `docs/operations.md` runs, and prints what the runbook says.
//!
//! `kubectl` is replaced by a script that finds the agent's pod, runs what it is given in that pod on this node, and shows the
//! agent's log.

use crate::node::Node;
use crate::stories::contains;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

/// Stands in for `kubectl`. What it is not made for is an error.
const KUBECTL: &str = r#"#!/bin/sh
set -eu
case "$*" in
    "-n ecr-node-agent get pod -o name --field-selector spec.nodeName=NODE --selector app.kubernetes.io/component=node-agent")
        echo pod/ecr-node-agent-x7k2p ;;
    "-n ecr-node-agent exec pod/ecr-node-agent-x7k2p -- "*)
        shift 5
        exec "$@" ;;
    "-n ecr-node-agent logs pod/ecr-node-agent-x7k2p --since 12h")
        cat "$AGENT_LOG" ;;
    "get secrets -A --field-selector type=kubernetes.io/dockerconfigjson -o custom-columns="*)
        echo "NAMESPACE   NAME        EXPIRES" ;;
    *)
        echo "unknown command: kubectl $*" >&2
        exit 64 ;;
esac
"#;

/// The shell blocks of the runbook, each with the output that follows it, if the runbook prints one.
fn blocks() -> Vec<(String, Option<String>)> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md")).unwrap();
    let blocks = page.split("```sh\n").skip(1).map(|block| {
        let (commands, rest) = block.split_once("```").unwrap();
        let output =
            rest.trim_start().strip_prefix("```text\n").map(|output| output.split("```").next().unwrap());
        (commands.to_owned(), output.map(str::to_owned))
    });
    blocks.collect()
}

#[test]
fn every_command_in_the_runbook_runs_and_prints_what_it_says() {
    let mut node = Node::new();
    node.set("ECR_NODE_AGENT_AUTH_FILE", node.auth_file().to_str().unwrap());
    let log = node.path("agent.log");
    let agent = node.start_logging_to(fs::File::create(&log).unwrap().into());
    agent.wait("a token", || node.auth_file().exists());
    let bin = node.path("bin");
    node.write("bin/kubectl", KUBECTL);
    fs::set_permissions(bin.join("kubectl"), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ecr-node-agent"), bin.join("ecr-node-agent")).unwrap();

    let blocks = blocks();
    assert!(blocks.len() >= 5, "{blocks:?}");
    for (commands, expected) in blocks {
        // Each block goes on from the first one, which finds the pod.
        let script = format!("PATH={}:$PATH\nagent=pod/ecr-node-agent-x7k2p\n{commands}", bin.display());
        let mut shell: Command = node.command(&["sh", "-eu", "-c", &script], &[]);
        let output = shell.env("AGENT_LOG", &log).output().unwrap();
        let run = node.checked(&output).expect(0, &[]);
        for line in expected.iter().flat_map(|expected| expected.lines()) {
            let line = line.replace("/var/lib/kubelet/config.json", node.auth_file().to_str().unwrap());
            // The columns are as wide as their longest cell.
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            let out: Vec<String> = run.out.lines().map(words).collect();
            assert!(contains(&out.join("\n"), &words(&line)), "`{line}` is not in:\n{}", run.out);
        }
    }
    agent.stop().expect(0, &[]);
}

#[test]
fn every_class_that_a_failure_has_is_in_the_runbook() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md")).unwrap();
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schema/status.json");
    let schema: serde_json::Value = serde_json::from_str(&fs::read_to_string(schema).unwrap()).unwrap();
    let classes = schema["$defs"]["failure"]["properties"]["class"]["enum"].as_array().unwrap();
    assert!(classes.len() > 10);
    let headings: Vec<&str> = page.lines().filter(|line| line.starts_with("### `")).collect();
    for class in classes.iter().map(|class| class.as_str().unwrap()) {
        assert!(headings.iter().any(|heading| heading.contains(&format!("`{class}`"))), "{class}");
    }
}
