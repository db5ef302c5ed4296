//! What the daemon costs while it waits: wake-ups, CPU time, memory, and whether either grows with the refreshes.
//!
//! `cargo bench --bench idle` takes three minutes; `-- --seconds 300 --refreshes 10000` is the long form, of 25 minutes:
//! no source is asked more often than once a second, so the refreshes are of ten regions at a time.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints its figures")]

use clap::Parser;
use ecr_emulator::{Api, Emulator, Options};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_ecr-node-agent");
const REGIONS: [&str; 10] = [
    "ap-northeast-1",
    "ap-south-1",
    "ap-southeast-1",
    "ca-central-1",
    "eu-central-1",
    "eu-north-1",
    "eu-west-1",
    "sa-east-1",
    "us-east-1",
    "us-west-2",
];

#[derive(Debug, Parser)]
struct Arguments {
    /// How long to watch the agent do nothing.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How many refreshes to run another one through afterwards, of ten regions at a time.
    #[arg(long, default_value_t = 500)]
    refreshes: usize,
    /// What cargo passes to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What the kernel says of a process.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    wakeups: u64,
    cpu_ticks: u64,
    rss_kib: u64,
    anonymous_kib: u64,
    files: usize,
    threads: usize,
}

impl Cost {
    fn of(pid: u32) -> Self {
        let process = format!("/proc/{pid}");
        let number = |text: &str, name: &str| -> u64 {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_whitespace().nth(1).and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        let status = fs::read_to_string(format!("{process}/status")).unwrap();
        let mut cost = Self {
            rss_kib: number(&status, "VmRSS:"),
            anonymous_kib: number(&status, "RssAnon:"),
            files: fs::read_dir(format!("{process}/fd")).unwrap().count(),
            ..Self::default()
        };
        for task in fs::read_dir(format!("{process}/task")).unwrap().flatten() {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            // A thread that is switched off by its own wish had been woken for something.
            cost.wakeups += number(&status, "voluntary_ctxt_switches:");
            cost.threads += 1;
        }
        let stat = fs::read_to_string(format!("{process}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        cost.cpu_ticks = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        cost
    }
}

struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn wait(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_mins(5), "{what} did not come to pass");
        sleep(Duration::from_millis(2));
    }
}

fn start(aws: &Emulator, folder: &Path, regions: &[&str]) -> Agent {
    let auth_file = folder.join("config.json");
    let mut command = Command::new(PROGRAM);
    command.args(["--listen", "127.0.0.1:0", "--log-level", "warn", "--auth-file"]).arg(auth_file);
    for region in regions {
        command.args(["--registry", &format!("123456789012.dkr.ecr.{region}.amazonaws.com")]);
    }
    command.env_clear().envs(aws.environment()).env("HOME", folder);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Agent(command.spawn().unwrap())
}

fn verdict(reached: bool) -> &'static str {
    if reached { "reached" } else { "missed" }
}

fn main() {
    let arguments = Arguments::parse();
    let aws = Emulator::start(Options::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let agent = start(&aws, folder.path(), &[]);
    let pid = agent.0.id();
    wait("the first refresh", || folder.path().join("config.json").exists());
    // The thread that wrote the file goes after ten seconds without work, and idle connections are closed.
    sleep(Duration::from_secs(15));
    let before = Cost::of(pid);
    sleep(Duration::from_secs(arguments.seconds));
    let after = Cost::of(pid);
    let minutes = Duration::from_secs(arguments.seconds).as_secs_f64() / 60.0;
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let wakeups = (after.wakeups - before.wakeups) as f64 / minutes;
    // The kernel counts in hundredths of a second.
    let cpu_ms = (after.cpu_ticks - before.cpu_ticks) * 10;
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let mib = |kib: u64| kib as f64 / 1024.0;

    println!("| idle for {} s, after the first refresh, `--listen` on | | target |", arguments.seconds);
    println!("| --- | --: | --- |");
    println!(
        "| wake-ups a minute, all {} threads | {wakeups:.1} | at most 1: {} |",
        after.threads,
        verdict(wakeups <= 1.0)
    );
    println!("| CPU time | {cpu_ms} ms | 0 ms: {} |", verdict(cpu_ms == 0));
    println!(
        "| resident memory | {:.1} MiB | under 12 MiB: {} |",
        mib(after.rss_kib),
        verdict(mib(after.rss_kib) < 12.0)
    );
    println!(
        "| anonymous memory | {:.2} MiB | under 2.5 MiB: {} |",
        mib(after.anonymous_kib),
        verdict(mib(after.anonymous_kib) < 2.5)
    );

    drop(agent);
    let folder = tempfile::tempdir().unwrap();
    let agent = start(&aws, folder.path(), &REGIONS);
    let pid = agent.0.id();
    wait("the first refresh", || folder.path().join("config.json").exists());
    // A tenth of the refreshes first, so that what is allocated once is.
    let run = |refreshes: usize| {
        for _ in 0..refreshes.div_ceil(REGIONS.len()) {
            let calls = aws.count(Api::Ecr);
            kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGHUP).unwrap();
            wait("a refresh", || aws.count(Api::Ecr) >= calls + REGIONS.len());
        }
        sleep(Duration::from_secs(15));
        Cost::of(pid)
    };
    let early = run(arguments.refreshes.div_ceil(10));
    let late = run(arguments.refreshes);
    println!();
    println!(
        "| | after {} refreshes | after {} more |",
        arguments.refreshes.div_ceil(10),
        arguments.refreshes
    );
    println!("| --- | --: | --: |");
    println!("| resident memory | {:.1} MiB | {:.1} MiB |", mib(early.rss_kib), mib(late.rss_kib));
    println!(
        "| anonymous memory | {:.2} MiB | {:.2} MiB |",
        mib(early.anonymous_kib),
        mib(late.anonymous_kib)
    );
    println!("| open files | {} | {} |", early.files, late.files);
}
