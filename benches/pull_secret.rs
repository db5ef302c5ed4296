//! What keeping pull secrets costs, against a real API server on this machine: `tests/kubernetes/build` makes it.
//!
//! `cargo bench --bench pull_secret` takes two minutes, and `-- --namespaces 10000 --passes 1` ten.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark prints its figures"
)]

#[path = "../tests/it/cluster.rs"]
#[expect(dead_code, unreachable_pub, reason = "shared with the tests")]
mod cluster;

use clap::Parser;
use cluster::{Account, Cluster, RbacRule, unique};
use ecr_emulator::{Emulator, Options};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_ecr-node-agent");
const NAME: &str = "ecr-creds";

#[derive(Debug, Parser)]
struct Arguments {
    /// How many namespaces the Deployment serves.
    #[arg(long, default_value_t = 500)]
    namespaces: usize,
    /// How many full passes to measure.
    #[arg(long, default_value_t = 5)]
    passes: usize,
    /// How many seconds an agent is idle before its memory is read.
    #[arg(long, default_value_t = 15)]
    settle: u64,
    /// What cargo passes to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A running agent. It is killed when this is dropped.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.kill().unwrap_or_default();
        self.0.wait().map(drop).unwrap_or_default();
    }
}

impl Agent {
    fn start(aws: &Emulator, account: &Account<'_>, home: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(PROGRAM);
        command.args(arguments).env_clear().envs(aws.environment()).env("HOME", home);
        command.env("AWS_EC2_METADATA_DISABLED", "true").env("KUBECONFIG", account.kubeconfig());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn refresh(&self) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGHUP).unwrap();
    }

    /// User and system time until now.
    fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        // The name of the program, in parentheses, may hold spaces.
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        let ticks = |field: usize| fields[field].parse::<u64>().unwrap();
        Duration::from_millis((ticks(11) + ticks(12)) * 10)
    }

    /// Resident memory now, and the most until now, in MiB.
    fn memory(&self) -> (f64, f64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let kib = |name: &str| -> f64 {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_whitespace().nth(1).and_then(|value| value.parse().ok()).unwrap_or(0.0)
        };
        (kib("VmRSS:") / 1024.0, kib("VmHWM:") / 1024.0)
    }
}

fn wait(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    loop {
        let began = Instant::now();
        if holds() {
            return;
        }
        assert!(start.elapsed().as_secs() < 900, "timeout: {what}");
        // A look at many secrets costs the API server a lot.
        sleep(began.elapsed().max(Duration::from_millis(10)));
    }
}

/// The docker configs in the namespaces with this prefix.
fn configs(cluster: &Cluster, start: &str) -> BTreeMap<String, String> {
    let list = cluster.api().get(&format!("/api/v1/secrets?fieldSelector=metadata.name%3D{NAME}")).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let items = list["items"].as_array().unwrap().iter();
    items
        .map(|item| (text(&item["metadata"]["namespace"]), text(&item["data"][".dockerconfigjson"])))
        .filter(|(namespace, _)| namespace.starts_with(start))
        .collect()
}

/// What one pass of the Deployment cost: time until every secret held something else than before, and CPU time.
struct Pass {
    wall: Duration,
    cpu: Duration,
}

fn pass(
    cluster: &Cluster,
    start: &str,
    count: usize,
    before: &BTreeMap<String, String>,
    deployment: &Agent,
    trigger: impl FnOnce(),
) -> Pass {
    let (began, cpu) = (Instant::now(), deployment.cpu());
    trigger();
    wait("a pass", || {
        let now = configs(cluster, start);
        now.len() == count && now.iter().all(|(name, config)| before.get(name) != Some(config))
    });
    Pass { wall: began.elapsed(), cpu: deployment.cpu().saturating_sub(cpu) }
}

fn verdict(reached: bool) -> &'static str {
    if reached { "reached" } else { "missed" }
}

fn main() {
    let arguments = Arguments::parse();
    let cluster = Cluster::start();
    let aws = Emulator::start(Options::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let account = cluster.service_account();
    for (verbs, resource, name) in [
        ("list,watch", "namespaces", None),
        ("get,list,watch,patch", "secrets", Some(NAME)),
        ("create", "secrets", None),
    ] {
        account.may(RbacRule { namespace: None, verbs, resource, name });
    }
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let size = fs::metadata(PROGRAM).unwrap().len() as f64 / 1e6;

    let own = cluster.namespace("node");
    let file = folder.path().join("config.json");
    let named = format!("{own}/{NAME}");
    let node = Agent::start(
        &aws,
        &account,
        folder.path(),
        &["--auth-file", file.to_str().unwrap(), "--pull-secret", &named, "--listen", "127.0.0.1:0"],
    );
    wait("the first secret", || file.exists() && configs(&cluster, &own).len() == 1);
    sleep(Duration::from_secs(arguments.settle));
    let (node_now, node_peak) = node.memory();
    drop(node);

    let start = unique("many");
    for number in 0..arguments.namespaces {
        cluster.make_namespace(&format!("{start}-{number}"), &json!({}));
    }
    let glob = format!("{start}-*/{NAME}");
    let deployment = Agent::start(
        &aws,
        &account,
        folder.path(),
        &["--no-auth-file", "--pull-secret", &glob, "--listen", "127.0.0.1:0"],
    );
    let first = pass(&cluster, &start, arguments.namespaces, &BTreeMap::new(), &deployment, || {});
    let mut passes = Vec::new();
    for _ in 0..arguments.passes {
        // The agent asks ECR at most once a second.
        sleep(Duration::from_secs(2));
        let before = configs(&cluster, &start);
        let refresh = || deployment.refresh();
        passes.push(pass(&cluster, &start, arguments.namespaces, &before, &deployment, refresh));
    }
    passes.sort_by_key(|pass| pass.wall);
    sleep(Duration::from_secs(arguments.settle));
    let (deployment_now, deployment_peak) = deployment.memory();
    drop(deployment);

    println!("| | | target |");
    println!("| --- | --: | --- |");
    println!("| stripped binary | {size:.2} MB | under 13 MB: {} |", verdict(size < 13.0));
    println!(
        "| node agent with a pull secret, idle: resident memory | {node_now:.1} MiB, at most {node_peak:.1} | under 12 MiB: {} |",
        verdict(node_now < 12.0)
    );
    let namespaces = arguments.namespaces;
    // Memory grows with the namespaces.
    let target = if namespaces <= 500 {
        format!("under 24 MiB: {}", verdict(deployment_now < 24.0))
    } else {
        String::new()
    };
    println!(
        "| Deployment with {namespaces} namespaces, idle: resident memory | {deployment_now:.1} MiB, at most {deployment_peak:.1} | {target} |"
    );
    let cpu = |pass: &Pass| {
        let each = pass.cpu.as_secs_f64() * 1000.0 / f64::from(u32::try_from(namespaces).unwrap());
        format!("{:.2} s ({each:.2} ms for each namespace)", pass.cpu.as_secs_f64())
    };
    println!(
        "| its first pass, which creates every secret | {:.2} s, CPU {} | |",
        first.wall.as_secs_f64(),
        cpu(&first)
    );
    if let (Some(least), Some(most)) = (passes.first(), passes.last()) {
        let median = &passes[passes.len() / 2];
        let seconds = median.wall.as_secs_f64();
        let target =
            if namespaces <= 500 { format!("under 5 s: {}", verdict(seconds < 5.0)) } else { String::new() };
        println!(
            "| a full pass with a new token: median of {} (least to most) | {seconds:.2} s ({:.2} to {:.2}), CPU {} | {target} |",
            passes.len(),
            least.wall.as_secs_f64(),
            most.wall.as_secs_f64(),
            cpu(median),
        );
    }
}
