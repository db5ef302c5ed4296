//! What the daemon costs while it waits: wake-ups, CPU time, memory, and whether memory grows with the refreshes.
//!
//! The daemon asks the emulator over HTTPS, and trusts the system's authorities, as on a node.
//!
//! `cargo bench --bench idle` takes three minutes. `-- --seconds 300 --refreshes 10000` takes 25 minutes: no token source is
//! asked more often than once a second, so the agent refreshes ten regions at a time.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints its figures")]

#[path = "shared/authorities.rs"]
mod authorities;
#[path = "shared/table.rs"]
mod table;

use clap::Parser;
use ecr_emulator::{Api, Emulator, Options};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use table::{table, verdict};

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

/// The unit's settings for memory, which are also those of the image.
const UNIT: &str = include_str!("../hostpath-layout/etc/systemd/system/ecr-node-agent.service");
const TUNABLES: &str = "GLIBC_TUNABLES";

#[derive(Debug, Parser)]
struct Arguments {
    /// For how many seconds to watch the idle agent.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How many refreshes another agent does afterwards, of ten regions at a time.
    #[arg(long, default_value_t = 500)]
    refreshes: usize,
    /// The agent to measure. [default: the one that cargo has just built]
    #[arg(long, value_name = "PATH", default_value = env!("CARGO_BIN_EXE_ecr-node-agent"), hide_default_value = true)]
    agent: PathBuf,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a running process has cost until now, as the kernel accounts for it.
#[derive(Debug, Clone, Copy, Default)]
struct Usage {
    wakeups: u64,
    cpu_ticks: u64,
    rss_kib: u64,
    anonymous_kib: u64,
    files: usize,
    threads: usize,
}

impl Usage {
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
            // A thread gives up the processor once for each time that it was woken.
            cost.wakeups += number(&status, "voluntary_ctxt_switches:");
            cost.threads += 1;
        }
        let stat = fs::read_to_string(format!("{process}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        cost.cpu_ticks = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        cost
    }
}

/// A running agent. It is killed when this is dropped.
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
        assert!(start.elapsed() < Duration::from_mins(5), "timeout: {what}");
        sleep(Duration::from_millis(2));
    }
}

fn start(program: &Path, aws: &Emulator, folder: &Path, regions: &[&str]) -> Agent {
    let auth_file = folder.join("config.json");
    let mut command = Command::new(program);
    command.args(["--listen", "127.0.0.1:0", "--log-level", "warn", "--auth-file"]).arg(auth_file);
    for region in regions {
        command.args(["--registry", &format!("123456789012.dkr.ecr.{region}.amazonaws.com")]);
    }
    command.env_clear().envs(aws.environment()).env("HOME", folder);
    command.env("AWS_EC2_METADATA_DISABLED", "true").env("AWS_CA_BUNDLE", bundle(aws, folder));
    command.env(TUNABLES, tunables());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Agent(command.spawn().unwrap())
}

fn tunables() -> &'static str {
    let line = UNIT.lines().find_map(|line| line.strip_prefix("Environment=")?.strip_prefix(TUNABLES));
    line.unwrap().trim_start_matches('=')
}

/// The system's authorities, and that of the emulator.
#[expect(clippy::disallowed_methods, reason = "no file of a node's")]
fn bundle(aws: &Emulator, folder: &Path) -> PathBuf {
    let file = folder.join("bundle.pem");
    fs::write(&file, format!("{}\n{}", authorities::system().unwrap_or_default(), aws.ca_pem())).unwrap();
    file
}

/// A folder of which no ancestor changes meanwhile: the agent watches all of them, and in `/tmp` each program would wake it.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn mib(kib: u64) -> f64 {
    f64::from(u32::try_from(kib).unwrap()) / 1024.0
}

fn main() {
    let arguments = Arguments::parse();
    let aws = Emulator::start(Options { tls: Some(Vec::new()), ..Options::default() }).unwrap();
    print!("{}", table(&idle(&arguments, &aws)));
    println!();
    print!("{}", table(&growth(&arguments, &aws)));
}

/// Watches an agent between two refreshes.
fn idle(arguments: &Arguments, aws: &Emulator) -> [[String; 3]; 5] {
    let folder = folder();
    let agent = start(&arguments.agent, aws, folder.path(), &[]);
    let pid = agent.0.id();
    wait("the first refresh", || folder.path().join("config.json").exists());
    // The thread that wrote the file ends after ten seconds without work.
    sleep(Duration::from_secs(15));
    let before = Usage::of(pid);
    sleep(Duration::from_secs(arguments.seconds));
    let after = Usage::of(pid);
    let minutes = Duration::from_secs(arguments.seconds).as_secs_f64() / 60.0;
    let wakeups = f64::from(u32::try_from(after.wakeups - before.wakeups).unwrap()) / minutes;
    // The kernel counts in hundredths of a second.
    let cpu_ms = (after.cpu_ticks - before.cpu_ticks) * 10;
    let (resident, anonymous) = (mib(after.rss_kib), mib(after.anonymous_kib));
    let title = format!("idle for {} s over HTTPS, `--listen` on", arguments.seconds);
    [
        [title, String::new(), "target".to_owned()],
        [
            format!("wake-ups a minute, all {} threads", after.threads),
            format!("{wakeups:.1}"),
            verdict("at most 1", wakeups <= 1.0),
        ],
        ["CPU time".to_owned(), format!("{cpu_ms} ms"), verdict("0 ms", cpu_ms == 0)],
        [
            "resident memory".to_owned(),
            format!("{resident:.2} MiB"),
            verdict("under 8.5 MiB", resident < 8.5),
        ],
        [
            "anonymous memory".to_owned(),
            format!("{anonymous:.2} MiB"),
            verdict("under 1.3 MiB", anonymous < 1.3),
        ],
    ]
}

/// Runs an agent through many refreshes.
fn growth(arguments: &Arguments, aws: &Emulator) -> [[String; 3]; 4] {
    let folder = folder();
    let agent = start(&arguments.agent, aws, folder.path(), &REGIONS);
    let pid = agent.0.id();
    wait("the first refresh", || folder.path().join("config.json").exists());
    let run = |refreshes: usize| {
        for _ in 0..refreshes.div_ceil(REGIONS.len()) {
            let calls = aws.count(Api::Ecr);
            kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGHUP).unwrap();
            wait("a refresh", || aws.count(Api::Ecr) >= calls + REGIONS.len());
        }
        sleep(Duration::from_secs(15));
        Usage::of(pid)
    };
    // After a tenth of the refreshes, all that is allocated once is there.
    let early_refreshes = arguments.refreshes.div_ceil(10);
    let (early, late) = (run(early_refreshes), run(arguments.refreshes));
    let memory = |kib| format!("{:.2} MiB", mib(kib));
    [
        [
            String::new(),
            format!("after {early_refreshes} refreshes"),
            format!("after {} more", arguments.refreshes),
        ],
        ["resident memory".to_owned(), memory(early.rss_kib), memory(late.rss_kib)],
        ["anonymous memory".to_owned(), memory(early.anonymous_kib), memory(late.anonymous_kib)],
        ["open files".to_owned(), early.files.to_string(), late.files.to_string()],
    ]
}
