//! What an operator sees at 3 a.m., for each cause: the alert fires, `status` and `/readyz` name the cause as the runbook
//! prints it, and after the cause is gone everything is in order again without a restart.
//!
//! The alerts are evaluated by `promtool` over the series that the program exported.

use crate::beside::Over;
use crate::needs::{Need, all_here};
use crate::node::{FOREIGN, HOST, Node, Running};
use crate::serve::{address, get};
use ecr_emulator::{Api, Emulator, Fault, Times};
use jiff::SignedDuration;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The job that the alerts are for.
const JOB: &str = "ecr-node-agent/ecr-node-agent";

/// A cause, as the runbook calls it, and the alerts that it raises.
struct Story {
    class: &'static str,
    alerts: &'static [&'static str],
}

/// The series in a scrape, each with its value, on the node `a`. Times are relative to the scrape, which promtool places at
/// zero.
fn series(scrape: &str, now: i64) -> Vec<Value> {
    let samples = scrape.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let mut series: Vec<Value> = samples
        .filter_map(|sample| {
            let (name, value) = sample.rsplit_once(' ').unwrap();
            let (metric, labels) = name.split_once('{').unwrap_or((name, "}"));
            let labels = labels.trim_end_matches('}');
            let comma = if labels.is_empty() { "" } else { "," };
            let value: f64 = value.parse().unwrap();
            #[expect(clippy::cast_precision_loss, reason = "seconds since 1970")]
            let value = if metric.ends_with("_timestamp_seconds") { value - now as f64 } else { value };
            let name = format!("{metric}{{{labels}{comma}job=\"{JOB}\",node=\"a\",pod=\"p\"}}");
            // Buckets of the histogram are in no alert.
            (!metric.ends_with("_bucket")).then(|| json!({ "series": name, "values": format!("{value}x40") }))
        })
        .collect();
    series.push(json!({ "series": format!("up{{job=\"{JOB}\",node=\"a\",pod=\"p\"}}"), "values": "1x40" }));
    series
}

/// The alerts that fire if the node stays as it is in this scrape for half an hour.
#[track_caller]
fn assert_alerts(scrape: &str, expected: &[&str]) {
    let samples: Vec<Value> = expected
        .iter()
        .map(|alert| json!({ "labels": format!("{{alertname=\"{alert}\",node=\"a\"}}"), "value": 1 }))
        .collect();
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("daemonset/alerts.yaml");
    let test = json!({
        "rule_files": [rules],
        "evaluation_interval": "1m",
        "tests": [{
            "interval": "1m",
            "input_series": series(scrape, now()),
            "promql_expr_test": [{
                "expr": "count by (alertname, node) (ALERTS{alertstate=\"firing\"})",
                "eval_time": "30m",
                "exp_samples": samples,
            }],
        }],
    });
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    serde_json::to_writer(&file, &test).unwrap();
    let output = Command::new("promtool").args(["test", "rules"]).arg(file.path()).output().unwrap();
    assert!(output.status.success(), "{}\n{scrape}", String::from_utf8_lossy(&output.stderr));
}

fn now() -> i64 {
    #[expect(clippy::disallowed_methods, reason = "test code")]
    jiff::Timestamp::now().as_second()
}

/// The block of output that the runbook prints for a class.
fn in_the_runbook(class: &str) -> String {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md")).unwrap();
    let section = page.split("\n### ").find(|section| section.starts_with(&format!("`{class}`"))).unwrap();
    section.split("```text\n").nth(1).unwrap().split("```").next().unwrap().trim().to_owned()
}

/// Whether a text contains a line like this one, in which `…` stands for anything.
pub fn contains(text: &str, pattern: &str) -> bool {
    let fits = |line: &str| {
        let mut parts = pattern.split('…');
        let Some(mut rest) = line.trim().strip_prefix(parts.next().unwrap().trim_start()) else {
            return false;
        };
        parts.all(|part| match rest.find(part.trim()) {
            Some(at) => {
                rest = &rest[at + part.trim().len()..];
                true
            }
            None => false,
        })
    };
    text.lines().any(fits)
}

fn status(node: &Node, more: &[&str]) -> crate::node::Run {
    let auth_file = node.auth_file();
    node.run(&[&["status", "--auth-file", auth_file.to_str().unwrap()], more].concat())
}

/// While the cause is there: metrics and alerts, `/readyz`, `status` as text and as JSON, and the runbook agree on it.
fn assert_named(node: &Node, agent: &Running<'_>, address: &str, story: &Story, is_ready: bool) {
    let failing = format!("failing_since_timestamp_seconds{{class=\"{}\"}}", story.class);
    agent.wait(&failing, || get(address, "/metrics").1.contains(&failing));
    assert_alerts(&get(address, "/metrics").1, story.alerts);

    let expected = in_the_runbook(story.class);
    agent.wait(&expected, || contains(&status(node, &[]).out, &expected));
    // Between two looks there can be another attempt, whose error names another time.
    agent.wait("the same failure in `status` and `/readyz`", || {
        let report: Value = serde_json::from_str(&status(node, &["--output", "json"]).out).unwrap();
        assert_eq!(report["agent"]["state"], "running", "{report}");
        let failure = &report["agent"]["failures"][0];
        assert_eq!(failure["class"], story.class, "{report}");
        let (code, body) = get(address, "/readyz");
        assert_eq!(code == 200, is_ready, "{body}");
        let named = format!("({}; failing since", story.class);
        is_ready || body.contains(failure["error"].as_str().unwrap()) && body.contains(&named)
    });
}

/// After the cause is gone: everything is in order, without a restart.
fn assert_in_order(node: &Node, agent: &Running<'_>, address: &str) {
    let is_in_order = || {
        let metrics = get(address, "/metrics").1;
        get(address, "/readyz").0 == 200 && !metrics.contains("failing_since_timestamp_seconds{")
    };
    agent.wait_within(std::time::Duration::from_mins(3), "order", is_in_order);
    let metrics = get(address, "/metrics").1;
    assert!(
        metrics.contains(&format!("ecr_node_agent_registry_ready{{registry=\"{HOST}\"}} 1")),
        "{metrics}"
    );
    assert!(metrics.contains("ecr_node_agent_retries_pending 0"), "{metrics}");
    assert_alerts(&metrics, &[]);
    agent.wait("a quiet status", || {
        let run = status(node, &[]);
        run.code == 0 && run.out.contains("agent: running") && !run.out.contains("failing:")
    });
}

const NO_TOKEN: &[&str] = &["EcrNodeCannotPull"];

/// A cause that lies with AWS, from the start, on a node without a token.
fn refused(fault: Fault, class: &'static str) {
    let (breaks, heals) = (|aws: &Emulator| aws.fail(Api::Ecr, fault, Times::Always), Emulator::heal);
    breaks_and_heals(breaks, heals, class);
}

fn breaks_and_heals(breaks: impl FnOnce(&Emulator), heals: impl FnOnce(&Emulator), class: &'static str) {
    if !all_here(&[Need::Promtool]) {
        return;
    }
    let node = Node::with_auth_file(FOREIGN);
    breaks(&node.aws);
    let agent = node.start(&["--listen", "127.0.0.1:0", "--registry", HOST]);
    let address = address(&agent);
    // From the first scrape on.
    let first = get(&address, "/metrics").1;
    assert!(first.contains(&format!("ecr_node_agent_registry_ready{{registry=\"{HOST}\"}} 0")), "{first}");
    assert_named(&node, &agent, &address, &Story { class, alerts: NO_TOKEN }, false);
    heals(&node.aws);
    assert_in_order(&node, &agent, &address);
    agent.stop().expect(0, &[]);
    // The state went with the agent.
    status(&node, &[]).expect(0, &["agent: not found"]);
}

#[test]
fn access_is_denied() {
    refused(Fault::access_denied(), "denied");
}

#[test]
fn calls_are_throttled() {
    refused(Fault::Throttle, "throttled");
}

#[test]
fn ecr_is_unreachable() {
    refused(Fault::ServiceUnavailable, "unreachable");
}

#[test]
fn the_clock_is_wrong() {
    let set = |offset| move |aws: &Emulator| aws.set_clock_offset(offset);
    breaks_and_heals(set(SignedDuration::from_hours(1)), set(SignedDuration::ZERO), "clock");
}

#[test]
fn there_are_no_credentials() {
    if !all_here(&[Need::Promtool]) {
        return;
    }
    let mut node = Node::with_auth_file(FOREIGN).without_keys();
    let file = node.path("aws/credentials");
    node.write("aws/other", "");
    node.set("AWS_SHARED_CREDENTIALS_FILE", file.to_str().unwrap());
    let agent = node.start(&["--listen", "127.0.0.1:0"]);
    let address = address(&agent);
    assert_named(&node, &agent, &address, &Story { class: "credentials", alerts: NO_TOKEN }, false);
    let metrics = get(&address, "/metrics").1;
    assert!(metrics.contains("registry_ready{registry=\"default\"} 0"), "ECR has named none: {metrics}");
    let [(id, secret)] = &*ecr_emulator::Options::default().access_keys else { panic!() };
    node.write(
        "aws/credentials",
        &format!("[default]\naws_access_key_id={id}\naws_secret_access_key={secret}\n"),
    );
    assert_in_order(&node, &agent, &address);
    assert!(!get(&address, "/metrics").1.contains("\"default\""));
    agent.stop().expect(0, &[]);
}

#[test]
fn the_auth_file_cannot_be_written() {
    if !all_here(&[Need::Promtool]) {
        return;
    }
    let node = Node::new();
    let (kubelet, away) = (node.path("kubelet"), node.path("away"));
    fs::rename(&kubelet, &away).unwrap();
    let agent = node.start(&["--listen", "127.0.0.1:0", "--registry", HOST]);
    let address = address(&agent);
    assert_named(&node, &agent, &address, &Story { class: "auth_file", alerts: NO_TOKEN }, false);
    fs::rename(&away, &kubelet).unwrap();
    assert_in_order(&node, &agent, &address);
    // It goes away again, with the token in it.
    fs::rename(&kubelet, &away).unwrap();
    let gone = format!("registry_ready{{registry=\"{HOST}\"}} 0");
    agent.wait(&gone, || get(&address, "/metrics").1.contains(&gone));
    fs::rename(&away, &kubelet).unwrap();
    assert_in_order(&node, &agent, &address);
    agent.stop().expect(0, &[]);
}

#[test]
fn another_program_keeps_changing_the_file() {
    if !all_here(&[Need::Promtool]) {
        return;
    }
    let node = Node::new();
    let agent = node.start(&["--listen", "127.0.0.1:0"]);
    let address = address(&agent);
    agent.wait("a token", || get(&address, "/readyz").0 == 200);
    let over = Over::default();
    std::thread::scope(|scope| {
        let _end = over.guard();
        scope.spawn(|| {
            while !over.is_set() {
                node.write("kubelet/config.json", FOREIGN);
                std::thread::sleep(std::time::Duration::from_millis(800));
            }
        });
        let story = Story { class: "drift", alerts: &["EcrDriftFight"] };
        assert_named(&node, &agent, &address, &story, true);
    });
    assert_in_order(&node, &agent, &address);
    agent.stop().expect(0, &[]);
}

#[test]
fn the_token_expired_while_the_agent_was_down() {
    if !all_here(&[Need::Promtool]) {
        return;
    }
    let node = Node::new();
    node.once(&[]).expect(0, &[]);
    let end = node.document()["ecr-node-agent"]["entries"][HOST]["expiresAt"].as_str().unwrap().to_owned();
    let text = fs::read_to_string(node.auth_file()).unwrap().replace(&end, "2026-01-01T00:00:00Z");
    node.write("kubelet/config.json", &text);
    node.aws.fail(Api::Ecr, Fault::access_denied(), Times::Always);
    // No registry is named: the file alone knows which one it was.
    let agent = node.start(&["--listen", "127.0.0.1:0"]);
    let address = address(&agent);
    let expired = format!("ecr_node_agent_token_expiry_timestamp_seconds{{registry=\"{HOST}\"}} 1767225600");
    agent.wait(&expired, || get(&address, "/metrics").1.contains(&expired));
    let metrics = get(&address, "/metrics").1;
    assert!(metrics.contains(&format!("registry_ready{{registry=\"{HOST}\"}} 0")), "{metrics}");
    assert_named(&node, &agent, &address, &Story { class: "denied", alerts: NO_TOKEN }, false);
    status(&node, &[]).expect(1, &["expired"]);
    node.aws.heal();
    assert_in_order(&node, &agent, &address);
    agent.stop().expect(0, &[]);
}

#[test]
fn a_public_entry_that_was_removed_is_out_of_the_metrics_too() {
    let node = Node::new();
    let registry = "public.ecr.aws";
    let options = ["--registry", registry];
    node.once(&options).expect(0, &[]);
    let end =
        node.document()["ecr-node-agent"]["entries"][registry]["expiresAt"].as_str().unwrap().to_owned();
    #[expect(clippy::disallowed_methods, reason = "test code")]
    let soon = (jiff::Timestamp::now() + SignedDuration::from_secs(60)).strftime("%FT%TZ").to_string();
    let text = fs::read_to_string(node.auth_file()).unwrap().replace(&end, &soon);
    node.write("kubelet/config.json", &text);
    node.aws.fail(Api::EcrPublic, Fault::access_denied(), Times::Always);
    let agent = node.start(&[&["--listen", "127.0.0.1:0"], &options[..]].concat());
    let address = address(&agent);
    agent.wait("the removal", || {
        !fs::read_to_string(node.auth_file()).is_ok_and(|text| text.contains(registry))
    });
    agent.wait("no series", || {
        let metrics = get(&address, "/metrics").1;
        metrics.contains("class=\"denied\"") && !metrics.contains(registry)
    });
    agent.stop().expect(0, &[]);
}

#[test]
fn the_pattern_of_the_runbook_is_understood() {
    let line = "  failing: eu-west-1: no answer: x (unreachable; failing since T, next attempt at U)";
    for (pattern, fits) in [
        ("failing: …: no answer: … (unreachable; failing since …, next attempt at …)", true),
        ("failing: …: throttled: …", false),
        ("failing: eu-west-1", true),
        ("no answer", false),
    ] {
        assert_eq!(contains(line, pattern), fits, "{pattern}");
    }
}

/// The metrics of an agent whose calls to ECR meet the fault.
fn scrape_of(fault: Option<Fault>) -> String {
    let node = Node::new();
    if let Some(fault) = fault {
        node.aws.fail(Api::Ecr, fault, Times::Always);
    }
    let agent = node.start(&["--listen", "127.0.0.1:0", "--registry", HOST]);
    let address = address(&agent);
    let settled = |metrics: &str| {
        metrics.contains("registry_ready{registry=\"1234") && metrics.contains("refreshes_total{")
    };
    agent.wait("an attempt", || settled(&get(&address, "/metrics").1));
    agent.wait("a result", || {
        let metrics = get(&address, "/metrics").1;
        metrics.contains("} 1\n")
            && (metrics.contains("class=\"") || metrics.contains("token_expiry_timestamp_seconds{"))
    });
    let scrape = get(&address, "/metrics").1;
    agent.stop().expect(0, &[]);
    scrape
}

fn dashboard() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("daemonset/chart/files/dashboard.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The queries of each panel, with values in the places of the dashboard's variables.
fn queries_of(board: &Value) -> BTreeMap<String, Vec<String>> {
    let mut queries: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for panel in board["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let query = target["expr"].as_str().unwrap();
            let query = query
                .replace("$__rate_interval", "5m")
                .replace("=~\"$job\"", "=~\".*\"")
                .replace("=~\"$node\"", "=~\".*\"");
            queries.entry(panel["title"].as_str().unwrap().to_owned()).or_default().push(query);
        }
    }
    queries
}

/// Every query of the dashboard and every alert, over the series of a fleet of 200 nodes that the program's own output was
/// copied to: 180 in order, 20 without a token.
#[test]
fn a_fleet_of_200_nodes_raises_one_alert_and_fills_the_dashboard() {
    if !all_here(&[Need::Promtool]) {
        return;
    }
    let (good, bad) = (scrape_of(None), scrape_of(Some(Fault::access_denied())));
    let at = now();
    let fleet: Vec<Value> = (0..200)
        .flat_map(|number| {
            let scrape = if number < 180 { &good } else { &bad };
            let of_node = move |sample: Value| {
                let name = sample["series"]
                    .as_str()
                    .unwrap()
                    .replace("node=\"a\"", &format!("node=\"n{number:03}\""));
                json!({ "series": name, "values": sample["values"] })
            };
            series(scrape, at).into_iter().map(of_node)
        })
        .collect();

    let board = dashboard();
    let queries = queries_of(&board);
    let count = |query: &str, series: u32| {
        json!({
            "expr": format!("count({query}) or vector(0)"), "eval_time": "30m",
            "exp_samples": [{ "labels": "{}", "value": series }],
        })
    };
    let value = |query: &str, value: u32| {
        json!({
            "expr": query, "eval_time": "30m", "exp_samples": [{ "labels": "{}", "value": value }],
        })
    };
    let mut tests = vec![
        value(&queries["Nodes that cannot pull now"][0], 20),
        value(&queries["Agents that answer"][0], 200),
        value(&queries["Agents that do not answer"][0], 0),
        value(&queries["Nodes that retry"][0], 20),
        count(&queries["Nodes, worst first"][0], 200),
        count(&queries["Nodes, worst first"][1], 200),
        // One alert for all of them.
        json!({
            "expr": "count by (alertname) (ALERTS{alertstate=\"firing\"})", "eval_time": "30m",
            "exp_samples": [
                { "labels": "{alertname=\"EcrManyNodesCannotPull\"}", "value": 1 },
                { "labels": "{alertname=\"EcrManyNodesFailing\"}", "value": 1 },
            ],
        }),
    ];
    // Lines over time are few, however many nodes there are.
    for (title, queries) in &queries {
        let is_over_time = board["panels"]
            .as_array()
            .unwrap()
            .iter()
            .any(|panel| panel["title"] == title.as_str() && panel["type"] == "timeseries");
        for query in queries.iter().filter(|_| is_over_time) {
            tests.push(json!({
                "expr": format!("(count({query}) or vector(0)) <= bool 10"), "eval_time": "30m",
                "exp_samples": [{ "labels": "{}", "value": 1 }],
            }));
        }
    }
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("daemonset/alerts.yaml");
    let test = json!({
        "rule_files": [rules],
        "evaluation_interval": "1m",
        "tests": [{ "interval": "1m", "input_series": fleet, "promql_expr_test": tests }],
    });
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    serde_json::to_writer(&file, &test).unwrap();
    let output = Command::new("promtool").args(["test", "rules"]).arg(file.path()).output().unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
