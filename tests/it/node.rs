//! A node: a folder with the kubelet's root in it, an emulated AWS, and the program, run with nothing in its environment
//! but what the case says.

use crate::clock::OWN_MACHINE;
use ecr_emulator::proxy::Proxy;
use ecr_emulator::{Emulator, Options};
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The registry that the emulator's answers name.
pub const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
/// An entry of somebody else's, as docker writes it.
pub const FOREIGN: &str =
    "{\n\t\"auths\": {\n\t\t\"registry.example.com\": {\n\t\t\t\"auth\": \"dXNlcjpwYXNz\"\n\t\t}\n\t}\n}";
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_ecr-node-agent");

/// The world around one run of the program.
pub struct Node {
    root: TempDir,
    /// AWS.
    pub aws: Emulator,
    environment: BTreeMap<String, String>,
    hidden: Vec<String>,
}

/// How a run ended.
pub struct Run {
    /// The exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Node {
    /// A node with an AWS that answers, credentials in the environment, and no auth file yet.
    pub fn new() -> Self {
        Self::with(Options::default())
    }

    pub fn with(options: Options) -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("kubelet")).unwrap();
        std::fs::create_dir(root.path().join("home")).unwrap();
        let aws = Emulator::start(options).unwrap();
        let environment =
            aws.environment().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let mut node = Self { root, aws, environment, hidden: Vec::new() };
        node.set("HOME", node.path("home").to_str().unwrap());
        node.set("AWS_EC2_METADATA_DISABLED", "true");
        node.set("ECR_NODE_AGENT_STATE_FILE", node.path("state.json").to_str().unwrap());
        node
    }

    /// A node whose AWS is reached through a proxy, which shows the endpoint that is asked.
    pub fn behind_a_proxy(endpoints: &[&str]) -> (Self, Proxy) {
        let names = endpoints.iter().map(|name| (*name).to_owned()).collect();
        let mut node = Self::with(Options { tls: Some(names), ..Options::default() });
        node.write("ca.pem", node.aws.ca_pem());
        let proxy = Proxy::start(node.aws.address(), None).unwrap();
        node.unset("AWS_ENDPOINT_URL");
        node.set("HTTPS_PROXY", &proxy.url());
        let ca = node.path("ca.pem");
        node.set("AWS_CA_BUNDLE", ca.to_str().unwrap());
        (node, proxy)
    }

    /// A node whose auth file holds `content`.
    pub fn with_auth_file(content: &str) -> Self {
        let node = Self::new();
        node.write("kubelet/config.json", content);
        node
    }

    pub fn path(&self, inside: &str) -> PathBuf {
        self.root.path().join(inside)
    }

    pub fn auth_file(&self) -> PathBuf {
        self.path("kubelet/config.json")
    }

    pub fn write(&self, inside: &str, content: &str) {
        let path = self.path(inside);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        #[expect(clippy::disallowed_methods, reason = "test code")]
        std::fs::write(path, content).unwrap();
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    pub fn unset(&mut self, name: &str) {
        self.environment.remove(name);
    }

    /// The program's environment.
    pub fn variables(&self) -> BTreeMap<String, String> {
        self.environment.clone()
    }

    /// From now on no run may show this.
    pub fn hide(&mut self, secret: &str) {
        self.hidden.push(secret.to_owned());
    }

    /// Takes the credentials out of the environment.
    pub fn without_keys(mut self) -> Self {
        self.unset("AWS_ACCESS_KEY_ID");
        self.unset("AWS_SECRET_ACCESS_KEY");
        self
    }

    /// The program with this node's environment, as `wrapper` runs it.
    pub fn command(&self, wrapper: &[&str], arguments: &[&str]) -> Command {
        let line: Vec<&str> =
            wrapper.iter().copied().chain([PROGRAM]).chain(arguments.iter().copied()).collect();
        let mut command = Command::new(line[0]);
        command.args(&line[1..]).env_clear().envs(&self.environment).stdin(Stdio::null());
        // The wrappers are found by it; the program itself looks nothing up.
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// `--once` on this node's auth file, and what else the case says.
    pub fn once(&self, more: &[&str]) -> Run {
        let auth_file = self.auth_file();
        self.run(&[&["--once", "--auth-file", auth_file.to_str().unwrap()], more].concat())
    }

    /// As [`Self::once`], where what is said depends on an answer within `--timeout`. A machine that has other things to
    /// do may be too slow for a short one: then there is another run with twice the time, until two minutes did not do.
    #[track_caller]
    pub fn once_within(&self, timeout: Duration, code: i32, said: &[&str]) -> Run {
        let start = Instant::now();
        let run = self.once(&["--timeout", &format!("{}ms", timeout.as_millis())]);
        assert!(
            start.elapsed() < timeout + Duration::from_secs(20),
            "the timeout was not heard: {}",
            run.err
        );
        let is_said = said.iter().all(|text| run.err.contains(text));
        if (run.code == code && is_said) || timeout > Duration::from_mins(2) {
            return run.expect(code, said);
        }
        self.once_within(timeout * 2, code, said)
    }

    pub fn run(&self, arguments: &[&str]) -> Run {
        self.checked(&output(&mut self.command(&[], arguments)))
    }

    /// No test's run may show a secret, in any stream.
    pub fn checked(&self, output: &Output) -> Run {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let run = Run {
            code: output.status.code().unwrap_or(-1),
            out: text(&output.stdout),
            err: text(&output.stderr),
        };
        for secret in self.aws.secrets().iter().chain(&self.hidden) {
            // Also a part of one: a cut line still shows what is in it.
            let part = &secret[..secret.len().min(24)];
            assert!(!run.out.contains(part) && !run.err.contains(part), "a secret is shown");
        }
        assert!(
            !run.out.contains("SECRETPASSWORD") && !run.err.contains("SECRETPASSWORD"),
            "a password is shown"
        );
        assert!(!run.err.contains("dXNlcjpwYXNz"), "a foreign credential is shown: {}", run.err);
        run
    }

    /// The auth file's document.
    pub fn document(&self) -> Value {
        read(&self.auth_file())
    }

    /// What stands under `key` in the auth file, as the token that the emulator handed out last.
    pub fn assert_latest_token(&self, key: &str) {
        let issued = self.aws.issued();
        let latest = issued.last().expect("no token was issued");
        assert_eq!(self.document()["auths"][key]["auth"], latest.token_base64.as_str(), "{key}");
    }

    /// The names in the kubelet's root.
    pub fn names(&self) -> Vec<String> {
        names(&self.path("kubelet"))
    }
}

impl Run {
    /// Fails unless the run ended so, showing what it said.
    #[track_caller]
    pub fn expect(self, code: i32, said: &[&str]) -> Self {
        assert_eq!(self.code, code, "{}\n{}", self.out, self.err);
        for text in said {
            assert!(
                self.err.contains(text) || self.out.contains(text),
                "`{text}` is missing in:\n{}\n{}",
                self.out,
                self.err
            );
        }
        self
    }
}

/// Longer than any run of the program takes on a busy machine. One that does not end fails its test, and does not hold up the
/// others.
const LIMIT: Duration = Duration::from_mins(5);

/// Runs a command to its end, and kills it with its child processes if that does not come.
pub fn output(command: &mut Command) -> Output {
    command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let group = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    let (is_over, end) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        if end.recv_timeout(LIMIT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL).ok();
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(is_over);
    output
}

/// Waits until a process that was killed is gone. A busy machine takes a moment for it.
#[track_caller]
pub fn wait_until_gone(pid: &str) {
    let start = Instant::now();
    let line = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    while !line().is_empty() && !line().contains(") Z ") {
        assert!(start.elapsed().as_secs() < 60, "{pid} lives on: {}", line());
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn read(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names
}

/// The program, running.
pub struct Running<'a> {
    node: &'a Node,
    child: std::process::Child,
    log: PathBuf,
}

impl Node {
    /// Starts the agent on this node's auth file, with what else the case says.
    pub fn start(&self, more: &[&str]) -> Running<'_> {
        self.start_under(&[], more)
    }

    /// As [`Self::start`], by a wrapper that becomes the program.
    pub fn start_under(&self, wrapper: &[&str], more: &[&str]) -> Running<'_> {
        let auth_file = self.auth_file();
        self.launch(
            wrapper,
            &[&["--auth-file", auth_file.to_str().unwrap(), "--log-level", "debug"], more].concat(),
        )
    }

    /// Starts the agent with just these arguments.
    pub fn launch(&self, wrapper: &[&str], arguments: &[&str]) -> Running<'_> {
        let (file, log) = self.log();
        self.spawn(wrapper, arguments, file.into(), log)
    }

    /// As [`Self::start`], with its log going elsewhere: what it says stays unknown here.
    pub fn start_logging_to(&self, log: Stdio) -> Running<'_> {
        let auth_file = self.auth_file();
        self.spawn(&[], &["--auth-file", auth_file.to_str().unwrap()], log, self.log().1)
    }

    fn log(&self) -> (std::fs::File, PathBuf) {
        let log = tempfile::Builder::new().prefix("agent-").suffix(".log").tempfile_in(&self.root).unwrap();
        log.keep().unwrap()
    }

    fn spawn(&self, wrapper: &[&str], arguments: &[&str], stderr: Stdio, log: PathBuf) -> Running<'_> {
        let child = self.command(wrapper, arguments).stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        Running { node: self, child, log }
    }
}

impl Running<'_> {
    /// What it has logged until now.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until something holds, for a minute at most; fails with what the program said.
    #[track_caller]
    pub fn wait(&self, what: &str, holds: impl Fn() -> bool) {
        #[expect(clippy::disallowed_methods, reason = "test code")]
        let emulated = std::env::var_os(OWN_MACHINE).is_some();
        // What takes a second takes half a minute on an emulated machine, if the real one is busy.
        let limit = if emulated { Duration::from_mins(10) } else { Duration::from_mins(1) };
        self.wait_within(limit, what, holds);
    }

    /// As [`Self::wait`], for what takes its time.
    #[track_caller]
    pub fn wait_within(&self, limit: Duration, what: &str, holds: impl Fn() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(start.elapsed() < limit, "{what} did not come to pass:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until it has said something so many times.
    #[track_caller]
    pub fn wait_for(&self, text: &str, times: usize) {
        self.wait(&format!("`{text}`, {times} times"), || self.said().matches(text).count() >= times);
    }

    /// How long it waits after what has failed last.
    pub fn last_delay(&self) -> Duration {
        let said = self.said();
        let last = said.rsplit("\"retry_in\":\"").next().and_then(|rest| rest.split('"').next());
        let last = last.and_then(|text| text.parse::<jiff::SignedDuration>().ok());
        last.map_or(Duration::ZERO, jiff::SignedDuration::unsigned_abs)
    }

    /// The CPU time that it has used, in hundredths of a second.
    pub fn cpu_ticks(&self) -> u64 {
        let stat = self.stat();
        let fields: Vec<&str> = stat.split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills the program that traces it, if there is one.
    pub fn end_tracer(&self) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:")).unwrap().trim();
        if tracer != "0" {
            let tracer = nix::unistd::Pid::from_raw(tracer.parse().unwrap());
            nix::sys::signal::kill(tracer, nix::sys::signal::Signal::SIGKILL).ok();
        }
    }

    /// Whether it has ended by itself.
    pub fn is_over(&self) -> bool {
        self.stat().starts_with('Z')
    }

    /// What the kernel says of it, from its state on.
    fn stat(&self) -> String {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        stat.rsplit(") ").next().unwrap().to_owned()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Stops it as the kubelet and systemd do.
    pub fn stop(self) -> Run {
        self.stop_by(nix::sys::signal::Signal::SIGTERM)
    }

    pub fn stop_by(self, signal: nix::sys::signal::Signal) -> Run {
        self.signal(signal);
        self.ended()
    }

    /// Waits for its end.
    pub fn ended(mut self) -> Run {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < LIMIT, "it does not end:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(2));
        };
        let output = Output { status, stdout: Vec::new(), stderr: self.said().into_bytes() };
        self.node.checked(&output)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // Not when a test has ended it already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
