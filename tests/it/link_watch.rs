//! `link --watch`, and what the agent and `status` say about the link in the linked layout.

use crate::link::HIDDEN;
use crate::node::{FOREIGN, HOST, Node, Run, Running, names};
use crate::serve::{address, get};
use std::fs;
use std::os::unix::fs::symlink;

/// Runs `link --watch` on a node until it watches.
fn watch(node: &Node) -> Running<'_> {
    let watch = node.launch(&[], &["link", "--watch", "--auth-file", node.auth_file().to_str().unwrap()]);
    watch.wait_for("watching the links", 1);
    watch
}

#[test]
fn a_watched_link_is_made_again_when_another_program_replaces_it() {
    let node = Node::with_auth_file(FOREIGN);
    let auth_file = node.auth_file();
    let watch = watch(&node);
    node.assert_linked();
    // As `sed -i` and most tools do it.
    node.write("kubelet/new", HIDDEN);
    fs::rename(node.path("kubelet/new"), &auth_file).unwrap();
    watch.wait("the link", || auth_file.is_symlink());
    // The other program's content is what the kubelet read, so it stays.
    let content = fs::read_to_string(&auth_file).unwrap();
    assert!(content.contains("a.example"), "{content}");
    watch.stop().expect(0, &["another program has replaced a link"]);
    assert!(auth_file.is_symlink());
    node.run(&["link", "--watch", "--undo"]).expect(2, &["--watch"]);
}

#[test]
fn a_program_that_replaces_the_watched_link_all_the_time_does_not_postpone_its_repair() {
    let node = Node::with_auth_file(FOREIGN);
    let watch = watch(&node);
    let (new, mut writers) = (node.path("kubelet/new"), Vec::new());
    while !watch.said().contains("another program has replaced a link") {
        assert!(!watch.is_over() && writers.len() < 600, "{}", watch.said());
        node.write("kubelet/new", HIDDEN);
        writers.push(fs::OpenOptions::new().append(true).open(&new).unwrap());
        fs::rename(&new, node.auth_file()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    // The repair waits for the writer to close the file, and the stop does not wait for the repair.
    watch.stop().expect(0, &[]);
    assert!(!node.auth_file().is_symlink());
}

#[test]
fn a_watched_link_that_leads_elsewhere_is_reported() {
    let node = Node::with_auth_file(FOREIGN);
    let watch = watch(&node);
    symlink("/etc/hostname", node.path("kubelet/new")).unwrap();
    fs::rename(node.path("kubelet/new"), node.auth_file()).unwrap();
    watch.wait_for("it is a symlink already, to /etc/hostname", 1);
    watch.stop().expect(0, &[]);
}

/// Replaces the link as `sed -i` and most tools do it.
fn replace_link(node: &Node) {
    node.write("kubelet/new", HIDDEN);
    fs::rename(node.path("kubelet/new"), node.auth_file()).unwrap();
}

/// The agent as its pod in the linked layout runs it: it knows the file by its name in its own directory.
fn agent(node: &Node) -> (Running<'_>, String) {
    let inside = node.inside();
    let agent = node.launch(
        &[],
        &["--auth-file", inside.to_str().unwrap(), "--registry", HOST, "--listen", "127.0.0.1:0"],
    );
    let address = address(&agent);
    agent.wait("ready", || get(&address, "/readyz").0 == 200);
    (agent, address)
}

fn status(node: &Node, auth_file: &std::path::Path) -> Run {
    node.run(&["status", "--auth-file", auth_file.to_str().unwrap()])
}

const FAILING: &str = "ecr_node_agent_failing_since_timestamp_seconds{class=\"link\"}";

#[test]
fn a_link_that_was_replaced_and_made_again_is_counted() {
    let node = Node::with_auth_file(FOREIGN);
    let watch = watch(&node);
    let (agent, address) = agent(&node);
    let metrics = || get(&address, "/metrics").1;
    assert!(metrics().contains("ecr_node_agent_link_repairs_total 0"), "{}", metrics());
    for place in [node.auth_file(), node.inside()] {
        let run = status(&node, &place).expect(0, &[]);
        assert!(!run.out.contains("link"), "{}", run.out);
    }
    replace_link(&node);
    agent.wait("the count", || metrics().contains("ecr_node_agent_link_repairs_total 1"));
    node.assert_linked();
    assert!(!metrics().contains(FAILING), "{}", metrics());
    // The agent may put back the other program's file first, and then adds its entries to that.
    let warning = "warning: another program has replaced the link to this file 1 time";
    for place in [node.auth_file(), node.inside()] {
        agent.wait("its entries, and the warning", || {
            let run = status(&node, &place);
            run.code == 0 && run.out.contains(warning)
        });
    }
    agent.stop().expect(0, &[]);
    watch.stop().expect(0, &[]);
}

#[test]
fn a_link_that_cannot_be_made_again_fails() {
    let node = Node::with_auth_file(FOREIGN);
    let watch = watch(&node);
    let (agent, address) = agent(&node);
    let metrics = || get(&address, "/metrics").1;
    // No link of the agent's: what it leads to belongs to another program.
    symlink("/etc/hostname", node.path("kubelet/new")).unwrap();
    fs::rename(node.path("kubelet/new"), node.auth_file()).unwrap();
    agent.wait("the failure", || metrics().contains(FAILING));
    let words = ["the kubelet does not read this file", "it is a symlink already, to /etc/hostname"];
    status(&node, &node.inside()).expect(1, &words).expect(1, &["(link; failing since", "next attempt at"]);
    agent.stop().expect(0, &[]);
    watch.stop().expect(0, &[]);
}

#[test]
fn a_watch_that_has_ended_is_noticed_until_it_runs_again() {
    let node = Node::with_auth_file(FOREIGN);
    let first = watch(&node);
    let (agent, address) = agent(&node);
    let metrics = || get(&address, "/metrics").1;
    assert!(!metrics().contains(FAILING), "{}", metrics());
    first.stop_by(nix::sys::signal::Signal::SIGKILL);
    agent.wait("the failure", || metrics().contains(FAILING));
    let words = "`link --watch` has ended";
    status(&node, &node.inside()).expect(0, &[&format!("warning: {words}"), "(link; failing since"]);
    let second = watch(&node);
    agent.wait("its end", || !metrics().contains(FAILING));
    second.stop().expect(0, &[]);
    agent.wait("the failure", || metrics().contains(FAILING));
    // As the init container of a pod without `watchLink`.
    node.link(&[]).expect(0, &[]);
    agent.wait("its end", || !metrics().contains(FAILING));
    status(&node, &node.inside()).expect(0, &["warning: no `link --watch` runs"]);
    agent.stop().expect(0, &[]);
    assert_eq!(names(&node.path("kubelet/ecr-node-agent")), ["config.json"]);
}

#[test]
fn a_link_that_was_replaced_while_no_watch_runs_is_seen_on_the_node() {
    let node = Node::with_auth_file(FOREIGN);
    node.link(&[]).expect(0, &[]);
    status(&node, &node.inside()).expect(1, &["warning: no `link --watch` runs"]);
    // An agent that sees the kubelet's root directory follows the link, and replaces a file.
    assert!(!status(&node, &node.auth_file()).out.contains("warning"));
    replace_link(&node);
    let words = "warning: this is no link to ecr-node-agent/config.json";
    status(&node, &node.auth_file()).expect(1, &[words]);
}

#[test]
fn the_record_of_a_watch_goes_with_the_link() {
    let node = Node::with_auth_file(FOREIGN);
    watch(&node).stop().expect(0, &[]);
    assert_eq!(names(&node.path("kubelet/ecr-node-agent")), ["config.json", "config.json.link"]);
    node.link(&["--undo", "--dry-run"]).expect(0, &[]);
    node.link(&["--undo"]).expect(0, &[]);
    assert_eq!(node.names(), ["config.json"]);
}
