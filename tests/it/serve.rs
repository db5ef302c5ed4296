//! `--listen`: metrics and probes, through the program.

use crate::needs::{Need, all_here};
use crate::node::{FOREIGN, HOST, Node, Running};
use ecr_emulator::{Api, Fault, Times};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The address that the agent says it serves on.
pub fn address(agent: &Running<'_>) -> String {
    agent.wait_for("serving metrics and probes", 1);
    let said = agent.said();
    let line = said.lines().find(|line| line.contains("serving metrics")).unwrap().to_owned();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    line["address"].as_str().unwrap().to_owned()
}

/// Status and body of an answer, or nothing where the connection was closed.
pub fn get(address: &str, path: &str) -> (u16, String) {
    raw(address, &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n"))
}

fn raw(address: &str, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(request.as_bytes()).ok();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok();
    stream.shutdown(Shutdown::Both).ok();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

#[test]
fn metrics_and_probes_tell_how_things_stand() {
    // A file that has nothing to do with ECR, and so lacks nothing by itself.
    let node = Node::with_auth_file(FOREIGN);
    node.aws.fail(Api::Ecr, Fault::InternalError, Times::Always);
    let agent = node.start(&["--listen", "127.0.0.1:0"]);
    let address = address(&agent);
    assert_eq!(get(&address, "/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(get(&address, "/readyz").0, 503);
    agent.wait_for("no valid token", 1);
    let (status, metrics) = get(&address, "/metrics");
    assert_eq!(status, 200);
    assert!(
        metrics.contains("ecr_node_agent_refreshes_total{reason=\"start\",result=\"unreachable\"} 1"),
        "{metrics}"
    );
    assert!(metrics.contains("ecr_node_agent_retries_pending 1"), "{metrics}");

    node.aws.heal();
    agent.wait("ready", || get(&address, "/readyz").0 == 200);
    // Ready is what is on disk; it is counted a moment later.
    let written = "ecr_node_agent_auth_file_writes_total{result=\"success\"} 1";
    agent.wait(written, || get(&address, "/metrics").1.contains(written));
    let (_, metrics) = get(&address, "/metrics");
    let expires_at = node.aws.issued()[0].expires_at.as_second();
    let line = format!("ecr_node_agent_token_expiry_timestamp_seconds{{registry=\"{HOST}\"}} {expires_at}");
    assert!(metrics.contains(&line), "{line} is not in {metrics}");
    for line in [
        "ecr_node_agent_retries_pending 0",
        "ecr_node_agent_drift_repairs_total 0",
        "ecr_node_agent_build_info{version=",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    for secret in node.aws.secrets() {
        assert!(!metrics.contains(&secret[..secret.len().min(24)]), "a secret is shown");
    }
    // Ready means: on disk, now.
    let other = node.path("kubelet/elsewhere.json");
    std::fs::rename(node.auth_file(), other).unwrap();
    agent.wait("repaired", || node.auth_file().exists());
    agent.wait("ready again", || get(&address, "/readyz").0 == 200);
    let counted = "ecr_node_agent_drift_repairs_total 1";
    agent.wait(counted, || get(&address, "/metrics").1.contains(counted));
    assert_eq!(get(&address, "/").0, 404);
    assert_eq!(raw(&address, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").0, 405);
    agent.stop().expect(0, &[]);
}

#[test]
fn prometheus_finds_nothing_to_complain_of() {
    if !all_here(&[Need::Promtool]) {
        return;
    }
    let node = Node::new();
    let agent = node.start(&["--listen", "127.0.0.1:0"]);
    let address = address(&agent);
    agent.wait("ready", || get(&address, "/readyz").0 == 200);
    let mut check = Command::new("promtool");
    check.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut check = check.spawn().unwrap();
    check.stdin.take().unwrap().write_all(get(&address, "/metrics").1.as_bytes()).unwrap();
    let said = check.wait_with_output().unwrap();
    assert!(
        said.status.success(),
        "{}{}",
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr)
    );
    agent.stop().expect(0, &[]);
}

#[test]
fn the_server_is_bounded() {
    let node = Node::new();
    let agent = node.start(&["--listen", "127.0.0.1:0"]);
    let address = address(&agent);
    // More than any probe sends.
    let long = format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(20_000));
    assert_ne!(raw(&address, &long).0, 200);
    // Clients that connect and say nothing keep others out for a while, not for good.
    let idle: Vec<_> = (0..40).map(|_| TcpStream::connect(&address).unwrap()).collect();
    agent.wait("an answer", || get(&address, "/healthz").0 == 200);
    drop(idle);
    agent.stop().expect(0, &[]);
}

#[test]
fn an_address_that_is_taken_delays_no_token_and_is_served_once_it_is_free() {
    let node = Node::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let agent = node.start(&["--listen", &address]);
    agent.wait_for("cannot serve metrics and probes yet", 1);
    agent.wait_for("\"published\"", 1);
    drop(taken);
    agent.wait("an answer", || agent.said().contains("serving metrics and probes"));
    agent.wait("ready", || get(&address, "/readyz").0 == 200);
    agent.stop().expect(0, &[&address]);
    node.run(&["--listen", "nowhere"]).expect(2, &["such as `127.0.0.1:9797`"]);
}

#[test]
fn systemd_is_told_where_it_asks() {
    let mut node = Node::new();
    let path = node.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    node.set("NOTIFY_SOCKET", path.to_str().unwrap());
    node.set("WATCHDOG_USEC", "200000");
    let agent = node.start(&[]);
    let next = || {
        let mut buffer = [0; 1024];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let wait_for = |text: &str| while !next().contains(text) {};
    wait_for("READY=1");
    wait_for("STATUS=1 of 1 tokens are valid");
    for _ in 0..3 {
        wait_for("WATCHDOG=1");
    }
    agent.stop().expect(0, &[]);
    wait_for("STOPPING=1");
}
