//! Nothing that hangs or is taken away holds up the agent: file systems, locks, sockets, credential sources, renamed
//! directories.

use crate::needs::{Need, all_here};
use crate::node::{FOREIGN, HOST, Node, Running, read};
use crate::serve::{address, get};
use ecr_emulator::Api;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A file system that can be made to hang: a directory of the node's, seen through FUSE.
struct Hanging {
    program: Child,
    mount: PathBuf,
}

impl Hanging {
    fn new(node: &Node) -> Self {
        let (below, mount) = (node.path("below"), node.path("hanging"));
        fs::create_dir(&below).unwrap();
        fs::create_dir(&mount).unwrap();
        let mut bindfs = Command::new("bindfs");
        bindfs.args(["-f", "-o", "attr_timeout=0,entry_timeout=0"]).arg(&below).arg(&mount);
        let program = bindfs.stdin(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        let is_mounted =
            || fs::read_to_string("/proc/self/mounts").unwrap().contains(mount.to_str().unwrap());
        while !is_mounted() {
            assert!(start.elapsed() < Duration::from_secs(30), "bindfs does not mount");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { program, mount }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.program.id()).unwrap()), signal).unwrap();
    }

    fn hang(&self) {
        self.signal(Signal::SIGSTOP);
    }

    fn go_on(&self) {
        self.signal(Signal::SIGCONT);
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.go_on();
        Command::new("fusermount3").args(["-u", "-z"]).arg(&self.mount).status().ok();
        self.program.kill().ok();
        self.program.wait().ok();
    }
}

/// Whether an auth file holds the token that the emulator handed out last.
fn has_token(node: &Node, path: &Path) -> bool {
    let Some(token) = node.aws.issued().last().map(|issued| issued.token_base64.clone()) else {
        return false;
    };
    let document = fs::read(path).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    document.is_some_and(|document| document["auths"][HOST]["auth"] == token.as_str())
}

/// The agent is alive, repairs its own file, and stops when it is asked to.
#[track_caller]
fn assert_works(node: &Node, agent: &Running<'_>, address: &str) {
    assert_eq!(get(address, "/healthz").0, 200);
    for _ in 0..3 {
        fs::remove_file(node.auth_file()).unwrap();
        agent.wait("our token in the other file", || has_token(node, &node.auth_file()));
    }
    assert_eq!(get(address, "/metrics").0, 200);
    agent.signal(Signal::SIGTERM);
    agent.wait("its end", || agent.is_over());
}

#[test]
fn a_file_system_that_hangs_delays_neither_other_files_nor_probes_nor_a_stop() {
    if !all_here(&[Need::Root, Need::Fuse]) {
        return;
    }
    let node = Node::with_auth_file(FOREIGN);
    let hanging = Hanging::new(&node);
    let other = hanging.mount.join("config.json");
    let agent = node.start(&["--listen", "127.0.0.1:0", "--auth-file", other.to_str().unwrap()]);
    let address = address(&agent);
    agent.wait("our token in both files", || has_token(&node, &node.auth_file()) && has_token(&node, &other));
    hanging.hang();
    // A mount anywhere makes the agent check what it watches.
    agent.signal(Signal::SIGHUP);
    agent.wait("a second token", || node.aws.count(Api::Ecr) == 2);
    agent.wait("our token in the other file", || has_token(&node, &node.auth_file()));
    // Probes start no thread that stays behind.
    let threads = || fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap().count();
    let before = threads();
    for _ in 0..20 {
        get(&address, "/readyz");
    }
    assert!(threads() <= before + 1, "{before} threads, and {} after twenty probes", threads());
    assert_works(&node, &agent, &address);
    // A thread of a process that has ended stays in the system call until that returns.
    hanging.go_on();
    agent.ended().expect(0, &["gave up a write that took too long"]);
}

#[test]
fn a_file_system_that_hangs_at_the_start_is_written_to_once_it_answers() {
    if !all_here(&[Need::Root, Need::Fuse]) {
        return;
    }
    let node = Node::with_auth_file(FOREIGN);
    let hanging = Hanging::new(&node);
    let other = hanging.mount.join("config.json");
    hanging.hang();
    let agent = node.start(&["--auth-file", other.to_str().unwrap()]);
    agent.wait("our token in the other file", || has_token(&node, &node.auth_file()));
    hanging.go_on();
    agent.wait("our token in both files", || has_token(&node, &other));
    agent.stop().expect(0, &[]);
}

#[test]
fn one_shot_commands_give_up_a_file_system_that_hangs() {
    if !all_here(&[Need::Root, Need::Fuse]) {
        return;
    }
    let node = Node::new();
    let hanging = Hanging::new(&node);
    let other = hanging.mount.join("config.json");
    hanging.hang();
    let run = node.once(&["--timeout", "1s", "--auth-file", other.to_str().unwrap()]);
    run.expect(5, &["its file system hangs", "\"published\""]);
    assert!(has_token(&node, &node.auth_file()));
}

#[test]
fn a_credentials_file_that_hangs_costs_only_its_attempt() {
    if !all_here(&[Need::Root, Need::Fuse]) {
        return;
    }
    let mut node = Node::with_auth_file(FOREIGN).without_keys();
    let hanging = Hanging::new(&node);
    let file = hanging.mount.join("credentials");
    let [(id, secret)] = &*ecr_emulator::Options::default().access_keys else { panic!() };
    let content = format!("[default]\naws_access_key_id={id}\naws_secret_access_key={secret}\n");
    node.write("hanging/credentials", &content);
    node.set("AWS_SHARED_CREDENTIALS_FILE", file.to_str().unwrap());
    hanging.hang();
    let run = node.once(&["--timeout", "8s"]);
    run.expect(3, &[file.to_str().unwrap(), "its file system hangs"]);

    let agent = node.start(&["--listen", "127.0.0.1:0"]);
    let address = address(&agent);
    agent.wait("a failure", || get(&address, "/readyz").1.contains("its file system hangs"));
    assert_eq!(get(&address, "/healthz").0, 200);
    hanging.go_on();
    agent.wait("our token", || has_token(&node, &node.auth_file()));
    // With a token in the file, nothing but the next token depends on the credentials.
    hanging.hang();
    agent.signal(Signal::SIGHUP);
    assert_works(&node, &agent, &address);
    hanging.go_on();
    agent.ended().expect(0, &["stopping"]);
}

#[test]
fn a_credential_source_that_blocks_holds_nothing_up() {
    let node = Node::with_auth_file(FOREIGN);
    node.once(&[]).expect(0, &[]);
    let node = node.without_keys();
    // A program that opens a FIFO waits for another one that writes to it.
    fs::create_dir(node.path("secret")).unwrap();
    for name in ["aws_access_key_id", "aws_secret_access_key"] {
        nix::unistd::mkfifo(&node.path("secret").join(name), nix::sys::stat::Mode::S_IRUSR).unwrap();
    }
    let directory = node.path("secret");
    let directory = directory.to_str().unwrap();
    let agent = node.start(&["--listen", "127.0.0.1:0", "--aws-credentials-dir", directory]);
    let address = address(&agent);
    // Also while the agent is still reading what the file holds.
    agent.signal(Signal::SIGHUP);
    agent.wait_for("aws_access_key_id is a FIFO", 1);
    assert_works(&node, &agent, &address);
    agent.ended().expect(0, &["stopping"]);
    let options = ["--timeout", "1s", "--aws-credentials-dir", directory];
    node.once(&options).expect(3, &["aws_access_key_id is a FIFO"]);
}

#[test]
fn a_lock_on_one_directory_delays_no_other_file() {
    let node = Node::with_auth_file(FOREIGN);
    fs::create_dir(node.path("other")).unwrap();
    let other = node.path("other/config.json");
    let agent = node.start(&["--listen", "127.0.0.1:0", "--auth-file", other.to_str().unwrap()]);
    let address = address(&agent);
    agent.wait("our token in both files", || has_token(&node, &node.auth_file()) && has_token(&node, &other));
    let mut flock = Command::new("flock");
    flock.args(["-x", "-F"]).arg(node.path("other")).args(["sh", "-c", "echo locked; exec sleep 300"]);
    let mut holder = flock.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = [0; 7];
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut said).unwrap();
    fs::remove_file(&other).unwrap();
    assert_works(&node, &agent, &address);
    agent.ended().expect(0, &["stopping"]);
    assert!(holder.try_wait().unwrap().is_none(), "the lock was still held");
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn a_program_that_keeps_a_file_open_is_named_and_delays_no_other_file() {
    let node = Node::with_auth_file(FOREIGN);
    node.write("other/config.json", FOREIGN);
    let other = node.path("other/config.json");
    let open = fs::File::options().append(true).open(&other).unwrap();
    let agent = node.start(&["--listen", "127.0.0.1:0", "--auth-file", other.to_str().unwrap()]);
    let address = address(&agent);
    agent.wait("our token in the first file", || has_token(&node, &node.auth_file()));
    let named = "another program is still changing this file";
    agent.wait_for(named, 1);
    let metric = "failing_since_timestamp_seconds{class=\"drift\"}";
    let metrics = get(&address, "/metrics").1;
    assert!(metrics.contains(metric), "{metrics}");
    let status = node.run(&["status", "--auth-file", other.to_str().unwrap()]);
    assert!(status.out.contains(named), "{}", status.out);
    assert!(!has_token(&node, &other));
    drop(open);
    agent.wait("our token in the other file", || has_token(&node, &other));
    agent.wait("the end of the wait in the metrics", || !get(&address, "/metrics").1.contains(metric));
    assert_works(&node, &agent, &address);
    agent.ended().expect(0, &["\"published\""]);
}

#[test]
fn a_one_shot_command_says_that_it_waits_for_another_program() {
    let node = Node::with_auth_file(FOREIGN);
    let path = node.auth_file();
    let open = fs::File::options().append(true).open(&path).unwrap();
    let run = node.launch(&[], &["--once", "--auth-file", path.to_str().unwrap()]);
    run.wait_for("another program may still be changing this file; waiting for its end", 1);
    assert!(!has_token(&node, &path));
    drop(open);
    run.ended().expect(0, &["\"published\""]);
    assert!(has_token(&node, &path));
}

#[test]
fn a_supervisor_that_takes_no_messages_holds_nothing_up() {
    let mut node = Node::with_auth_file(FOREIGN);
    let path = node.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    // Its queue is full, as that of a frozen systemd.
    let sender = UnixDatagram::unbound().unwrap();
    sender.set_nonblocking(true).unwrap();
    while sender.send_to(b"STATUS=full", &path).is_ok() {}
    node.set("NOTIFY_SOCKET", path.to_str().unwrap());
    node.set("WATCHDOG_USEC", "200000");
    let agent = node.start(&["--listen", "127.0.0.1:0"]);
    let address = address(&agent);
    agent.wait("our token", || has_token(&node, &node.auth_file()));
    assert_works(&node, &agent, &address);
    agent.ended().expect(0, &["stopping"]);
    drop(socket);
}

#[test]
fn renamed_ancestors_and_turned_symlinks_are_followed() {
    let node = Node::new();
    fs::create_dir_all(node.path("a/b/kubelet")).unwrap();
    fs::create_dir_all(node.path("c/b/kubelet")).unwrap();
    symlink("a", node.path("link")).unwrap();
    let file = node.path("link/b/kubelet/config.json");
    let agent = node.launch(&[], &["--auth-file", file.to_str().unwrap(), "--log-level", "debug"]);
    agent.wait("our token", || has_token(&node, &file));
    // An ancestor is replaced.
    fs::rename(node.path("a/b"), node.path("a/old")).unwrap();
    fs::create_dir_all(node.path("a/b/kubelet")).unwrap();
    agent.wait("our token in the new directory", || has_token(&node, &file));
    // A symlink in the middle of the path leads elsewhere.
    symlink("c", node.path("turned")).unwrap();
    fs::rename(node.path("turned"), node.path("link")).unwrap();
    agent.wait("our token behind the turned symlink", || {
        has_token(&node, &node.path("c/b/kubelet/config.json"))
    });
    // And the new place is watched.
    for _ in 0..3 {
        fs::remove_file(&file).unwrap();
        agent.wait("our token once more", || has_token(&node, &file));
    }
    agent.stop().expect(0, &[]);
    assert_eq!(node.aws.count(Api::Ecr), 1);
}

#[test]
fn hangups_in_a_flood_are_logged_once_a_second_at_most() {
    let node = Node::with_auth_file(FOREIGN);
    let agent = node.start(&[]);
    agent.wait("our token", || has_token(&node, &node.auth_file()));
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        agent.signal(Signal::SIGHUP);
    }
    agent.wait("a second token", || node.aws.count(Api::Ecr) >= 2);
    let run = agent.stop().expect(0, &[]);
    let lines = run.err.matches("refreshing now").count();
    let seconds = usize::try_from(start.elapsed().as_secs()).unwrap() + 1;
    // One for what is due, and one for what comes while it is under way.
    assert!(lines <= 2 * seconds, "{lines} lines in {seconds} s");
}

#[test]
fn a_start_without_registries_takes_no_other_entry_for_its_own() {
    let first = "111111111111.dkr.ecr.eu-west-1.amazonaws.com";
    let node = Node::new();
    node.once(&["--registry", first, "--registry", HOST]).expect(0, &[]);
    let agent = node.start(&[]);
    agent.wait("a token of its own", || node.aws.count(Api::Ecr) == 2);
    agent.wait("the node's own registry", || {
        let document = read(&node.auth_file());
        document["auths"][first].is_null() && has_token(&node, &node.auth_file())
    });
    agent.stop().expect(0, &[]);
    // What it wrote itself it finds again.
    let agent = node.start(&[]);
    agent.wait_for("the auth file is up to date", 1);
    agent.stop().expect(0, &["found a good token"]);
    assert_eq!(node.aws.count(Api::Ecr), 2);
}
