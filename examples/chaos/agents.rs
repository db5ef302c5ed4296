//! The agents: real processes.

use crate::files::File;
use ecr_emulator::Emulator;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

/// The options of the agents, besides the files.
const OPTIONS: [&[&str]; 4] = [
    &["--interval", "20s", "--spread", "5s"],
    &["--interval", "11h"],
    &["--interval", "40s", "--spread", "0s", "--log-level", "trace"],
    &["--interval", "30s", "--listen", "127.0.0.1:0"],
];
/// Starts a program that cannot look at the processes of a root with more capabilities, as in a pod.
const WITHOUT_A_VIEW: [&str; 2] = ["setpriv", "--bounding-set=-sys_ptrace"];

/// All agents of this run.
pub struct Agents {
    environment: Vec<(&'static str, String)>,
    home: PathBuf,
    log: PathBuf,
    files: Vec<PathBuf>,
    /// One agent, or two for a while.
    running: Mutex<Vec<Child>>,
    /// Whether ECR cannot be reached.
    outage: AtomicBool,
    counts: Counts,
}

/// How often each thing was done.
#[derive(Default)]
struct Counts {
    starts: AtomicU64,
    kills: AtomicU64,
    freezes: AtomicU64,
    hangups: AtomicU64,
    doubles: AtomicU64,
    refreshes: AtomicU64,
    outages: AtomicU64,
}

/// What an agent uses.
pub struct Usage {
    /// Memory that is the process's own, in KiB.
    pub anonymous_kib: u64,
    /// How many files it has open.
    pub files: u64,
}

impl Agents {
    /// Agents on these files, none of which runs yet.
    pub fn new(aws: &Emulator, root: &Path, files: &[File]) -> Self {
        let mut paths: Vec<PathBuf> = files.iter().map(|file| file.path.clone()).collect();
        // The agents are given the second file by a symlink.
        paths[1] = root.join("linked/config.json");
        Self {
            environment: aws.environment(),
            home: root.to_owned(),
            log: root.join("agents.log"),
            files: paths,
            running: Mutex::default(),
            outage: AtomicBool::new(false),
            counts: Counts::default(),
        }
    }

    /// An agent. `sees_writers` says whether it can see which processes have a file open.
    fn command(&self, options: &[&str], sees_writers: bool) -> io::Result<Command> {
        let program = std::env::current_exe()?;
        let mut command = if sees_writers || !nix::unistd::geteuid().is_root() {
            Command::new(program)
        } else {
            let mut command = Command::new(WITHOUT_A_VIEW[0]);
            command.args(&WITHOUT_A_VIEW[1..]).arg(program);
            command
        };
        command.env_clear().envs(self.environment.iter().map(|(name, value)| (*name, value)));
        command
            .env("CHAOS_AGENT", "1")
            .env("HOME", &self.home)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("PATH", "/usr/bin:/bin");
        command.env("ECR_NODE_AGENT_LOG_LEVEL", "debug");
        for file in &self.files {
            command.arg("--auth-file").arg(file);
        }
        command.args(options).stdin(Stdio::null()).stdout(Stdio::null());
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        command.stderr(log);
        Ok(command)
    }

    /// Starts an agent, in the place of the agent of this number if there is one. `choice` decides how.
    pub fn start(&self, number: usize, choice: usize) -> io::Result<()> {
        let options = OPTIONS[choice % OPTIONS.len()];
        let child = self.command(options, (choice / OPTIONS.len()).is_multiple_of(2))?.spawn()?;
        self.counts.starts.fetch_add(1, Ordering::Relaxed);
        let mut running = self.running.lock().unwrap();
        if number < running.len() {
            running[number] = child;
        } else {
            running.push(child);
        }
        Ok(())
    }

    /// Kills the first agent, and starts it again.
    pub fn kill_and_restart(&self, rng: &mut fastrand::Rng) {
        self.counts.kills.fetch_add(1, Ordering::Relaxed);
        self.end(0, Signal::SIGKILL);
        sleep(Duration::from_millis(rng.u64(0..300)));
        self.start(0, rng.usize(..)).unwrap();
    }

    /// Stops the first agent as a supervisor does, and starts it with other options.
    pub fn restart_with_other_options(&self, rng: &mut fastrand::Rng) {
        self.end(0, Signal::SIGTERM);
        self.start(0, rng.usize(..)).unwrap();
    }

    /// A second agent for a while, as during a rollout with surge.
    pub fn double(&self, rng: &mut fastrand::Rng) {
        self.counts.doubles.fetch_add(1, Ordering::Relaxed);
        self.start(1, rng.usize(..)).unwrap();
        sleep(Duration::from_millis(rng.u64(500..5000)));
        // The old one goes, the new one stays.
        self.end(0, Signal::SIGTERM);
        drop(self.running.lock().unwrap().remove(0).wait());
    }

    /// Refreshes once, as an operator does by hand.
    pub fn once(&self, rng: &mut fastrand::Rng) {
        self.counts.refreshes.fetch_add(1, Ordering::Relaxed);
        let timeout = format!("{}s", rng.u8(1..20));
        // It fails if ECR fails, or if the file is not at rest within its time.
        self.command(&["--once", "--timeout", &timeout], rng.bool()).unwrap().status().unwrap();
    }

    /// Freezes the first agent.
    pub fn freeze(&self, time: Duration) {
        self.counts.freezes.fetch_add(1, Ordering::Relaxed);
        self.signal(0, Signal::SIGSTOP);
        sleep(time);
        self.signal(0, Signal::SIGCONT);
    }

    /// Asks every agent to refresh now.
    pub fn hang_up(&self) {
        self.counts.hangups.fetch_add(1, Ordering::Relaxed);
        let running = self.running.lock().unwrap().len();
        (0..running).for_each(|number| self.signal(number, Signal::SIGHUP));
    }

    /// Does something during which ECR cannot be reached.
    pub fn without_ecr(&self, outage: impl FnOnce()) {
        self.counts.outages.fetch_add(1, Ordering::Relaxed);
        self.outage.store(true, Ordering::SeqCst);
        outage();
        self.outage.store(false, Ordering::SeqCst);
    }

    /// Whether ECR can be reached.
    pub fn can_refresh(&self) -> bool {
        !self.outage.load(Ordering::SeqCst)
    }

    /// What the first agent uses. `None` if it has ended.
    pub fn usage(&self) -> Option<Usage> {
        let process = PathBuf::from(format!("/proc/{}", self.running.lock().unwrap().first()?.id()));
        let status = std::fs::read_to_string(process.join("status")).ok()?;
        let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
        let anonymous_kib = anonymous.trim().trim_end_matches(" kB").parse().ok()?;
        let files = std::fs::read_dir(process.join("fd")).ok()?.count() as u64;
        Some(Usage { anonymous_kib, files })
    }

    fn signal(&self, number: usize, signal: Signal) {
        let running = self.running.lock().unwrap();
        if let Some(child) = running.get(number) {
            kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).ok();
        }
    }

    fn end(&self, number: usize, signal: Signal) {
        self.signal(number, signal);
        let mut running = self.running.lock().unwrap();
        if let Some(child) = running.get_mut(number) {
            child.wait().unwrap();
        }
    }

    /// Restarts the agent with an interval that is too long for another refresh.
    pub fn restart_quietly(&self) -> io::Result<()> {
        self.end(0, Signal::SIGTERM);
        self.start(0, 1)
    }

    /// Stops all agents.
    pub fn stop_all(&self) {
        let running = self.running.lock().unwrap().len();
        (0..running).for_each(|number| self.end(number, Signal::SIGTERM));
    }

    /// The promises that the agents' logs show to be broken.
    pub fn broken(&self, aws: &Emulator) -> Vec<String> {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let is_shown = |secret: &&String| log.contains(&secret[..secret.len().min(24)]);
        let shown = aws.secrets().iter().filter(is_shown).count();
        let panics = log.matches("panicked").count();
        let mut broken = Vec::new();
        if shown > 0 {
            broken.push(format!("{shown} secrets are in the log"));
        }
        if panics > 0 {
            broken.push(format!("{panics} panics"));
        }
        broken
    }

    /// What was done to the agents.
    pub fn counts(&self) -> String {
        let Counts { starts, kills, freezes, hangups, doubles, refreshes, outages } = &self.counts;
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines = |text: &str| log.matches(text).count();
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        format!(
            "{} starts, {} kills, {} freezes, {} hangups, {} doubles, {} runs of --once, {} outages; \
             the agents published {} times, restored {} times, and waited {} times for another writer",
            get(starts),
            get(kills),
            get(freezes),
            get(hangups),
            get(doubles),
            get(refreshes),
            get(outages),
            lines("\"published\""),
            lines("were restored"),
            lines("may still be changing"),
        )
    }
}
