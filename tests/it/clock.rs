//! The wall clock is set while the agent runs, on a kernel of its own.
//!
//! A test must not set the clock of the machine that it runs on, a time namespace has no wall clock, and a library that changes
//! what a clock shows (`libfaketime`) does not make the kernel report a step. So the clock is set in a small virtual machine:
//! Debian's kernel, started by `qemu` without acceleration, with this test binary, the program and a `busybox` in its initial
//! file system. The second half of this file runs in there.

use crate::needs::{Need, all_here, found, kernel, tell};
use crate::node::{HOST, Node, Running};
use ecr_emulator::{Api, Options};
use jiff::SignedDuration;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Set in the virtual machine, and nowhere else: a `cargo test -- --ignored` must not set anybody's clock.
pub const OWN_MACHINE: &str = "ECR_NODE_AGENT_TEST_OWN_MACHINE";
const DAY: Duration = Duration::from_hours(24);

/// The first process of the virtual machine.
const INIT: &str = "#!/bin/busybox sh
export PATH=/bin
busybox mount -t proc proc /proc
busybox mount -t devtmpfs dev /dev
busybox mount -t tmpfs scratch /scratch
busybox ip link set lo up
export ECR_NODE_AGENT_TEST_OWN_MACHINE=1 RUST_BACKTRACE=1 TMPDIR=/scratch
/it clock::steps:: --ignored --test-threads 1 --color never
busybox poweroff -f
";

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the machine is an x86-64 one")]
fn the_clock_is_set_on_a_machine_of_its_own() {
    if !all_here(&[Need::VirtualMachine]) {
        return;
    }
    let start = Instant::now();
    let folder = tempfile::tempdir().unwrap();
    let (root, image) = (folder.path().join("root"), folder.path().join("initrd"));
    // Nothing is mounted over a directory that the program's own path may lead through.
    for directory in ["bin", "proc", "dev", "scratch"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    let program = Path::new(env!("CARGO_BIN_EXE_ecr-node-agent"));
    bring(&root, program, program);
    bring(&root, &std::env::current_exe().unwrap(), Path::new("/it"));
    bring(&root, &found("busybox").unwrap(), Path::new("/bin/busybox"));
    symlink("busybox", root.join("bin/sh")).unwrap();
    fs::File::create(root.join("init")).unwrap().write_all(INIT.as_bytes()).unwrap();
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755)).unwrap();
    pack(&root, &image);

    let mut machine = Command::new("timeout");
    machine.args(["1200", "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "1024", "-nodefaults"]);
    machine.args([
        "-no-reboot",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-append",
        "console=ttyS0 quiet panic=-1",
    ]);
    machine.arg("-kernel").arg(kernel().unwrap()).arg("-initrd").arg(&image);
    let output = machine.stdin(Stdio::null()).output().unwrap();
    let console = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(console.contains("test result: ok. 4 passed"), "{console}\n{said}");
    tell(&format!(
        "a virtual machine of its own, and four steps of its clock: {} s",
        start.elapsed().as_secs()
    ));
}

/// Copies a program into the file system of the machine, with the libraries that it is linked to.
fn bring(root: &Path, from: &Path, to: &Path) {
    let copy = |from: &Path, to: &Path| {
        let to = root.join(to.strip_prefix("/").unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    };
    copy(from, to);
    // It fails for what is linked to none.
    let libraries = Command::new("ldd").arg(from).output().unwrap();
    let libraries = String::from_utf8_lossy(&libraries.stdout).into_owned();
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        copy(Path::new(library), Path::new(library));
    }
}

/// Packs a folder as the kernel wants its initial file system.
fn pack(root: &Path, image: &Path) {
    let names = Command::new("find").arg(".").current_dir(root).output().unwrap().stdout;
    let mut cpio = Command::new("busybox");
    cpio.args(["cpio", "-o", "-H", "newc"]).current_dir(root).stdin(Stdio::piped()).stderr(Stdio::null());
    let mut cpio = cpio.stdout(fs::File::create(image).unwrap()).spawn().unwrap();
    cpio.stdin.take().unwrap().write_all(&names).unwrap();
    assert!(cpio.wait().unwrap().success());
}

/// What runs in the virtual machine.
mod steps {
    use super::*;

    /// Sets the clock, to what it would say `by` later or earlier.
    fn step(by: i64) {
        #[expect(clippy::disallowed_methods, reason = "test code")]
        let own = std::env::var_os(OWN_MACHINE).is_some();
        assert!(own, "this sets the clock of the machine that it runs on");
        let now = clock_gettime(ClockId::CLOCK_REALTIME).unwrap();
        clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(now.tv_sec() + by, now.tv_nsec())).unwrap();
    }

    fn day() -> i64 {
        i64::try_from(DAY.as_secs()).unwrap()
    }

    /// How many tokens it has fetched. There can be more calls: on this slow machine an answer can come too late.
    fn tokens(agent: &Running<'_>) -> usize {
        agent.said().matches("fetched an authorization token").count()
    }

    /// Waits until the agent is idle for three seconds, and fails if it asks ECR once more. A loop would never be idle.
    fn assert_calm(agent: &Running<'_>, node: &Node) {
        let calls = node.aws.count(Api::Ecr);
        agent.wait("three idle seconds", || {
            let before = agent.cpu_ticks();
            sleep(Duration::from_secs(3));
            // In hundredths of a second, of which a loop would take most of 300.
            agent.cpu_ticks() - before < 20
        });
        assert_eq!(node.aws.count(Api::Ecr), calls, "{}", agent.said());
    }

    #[test]
    #[ignore = "sets the machine's clock: the_clock_is_set_on_a_machine_of_its_own runs it where that may be"]
    fn a_day_forward_ends_the_token_and_it_is_replaced_at_once() {
        let node = Node::new();
        let agent = node.start(&[]);
        agent.wait_for("\"published\"", 1);
        step(day());
        agent.wait_for("the wall clock was set", 1);
        agent.wait_for("\"published\"", 2);
        node.assert_latest_token(HOST);
        assert_eq!(tokens(&agent), 2, "{}", agent.said());
        assert_calm(&agent, &node);
        agent.stop().expect(0, &[]);
    }

    #[test]
    #[ignore = "as above"]
    fn a_day_back_costs_no_call_and_the_next_refresh_comes_when_it_should() {
        let node = Node::new();
        let start = Instant::now();
        let agent = node.start(&["--interval", "40s", "--spread", "0s"]);
        agent.wait_for("\"published\"", 1);
        // What its own write wakes it for is over.
        sleep(Duration::from_secs(2));
        let calls = node.aws.count(Api::Ecr);
        step(-day());
        agent.wait_for("the wall clock was set", 1);
        assert_eq!(
            node.aws.count(Api::Ecr),
            calls,
            "nobody told it before the next refresh: {}",
            agent.said()
        );
        assert_calm(&agent, &node);
        // Not a day late: by the time since boot.
        agent.wait("another call", || node.aws.count(Api::Ecr) > calls);
        assert!(start.elapsed() >= Duration::from_secs(36), "{:?}", start.elapsed());
        agent.wait_for("fetched an authorization token", 2);
        assert_calm(&agent, &node);
        agent.stop().expect(0, &[]);
    }

    #[test]
    #[ignore = "as above"]
    fn a_start_that_finds_a_token_from_the_future_asks() {
        let node = Node::new();
        node.once(&[]).expect(0, &[]);
        step(-day());
        let agent = node.start(&[]);
        agent.wait_for("fetched an authorization token", 1);
        assert_eq!(tokens(&agent), 1, "{}", agent.said());
        assert_calm(&agent, &node);
        agent.stop().expect(0, &[]);
    }

    #[test]
    #[ignore = "as above"]
    fn a_clock_that_was_wrong_at_boot_costs_nothing_once_it_is_set() {
        for set in [-day(), day()] {
            // ECR goes by the right time.
            let options = Options { clock_offset: SignedDuration::from_secs(set), ..Options::default() };
            let node = Node::with(options);
            let agent = node.start(&[]);
            agent.wait("a long back-off", || agent.last_delay() > Duration::from_secs(12));
            assert!(agent.said().contains("refuses the signature for its time"), "{}", agent.said());
            let start = Instant::now();
            step(set);
            node.aws.set_clock_offset(SignedDuration::ZERO);
            agent.wait_for("\"published\"", 1);
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "it waited for the next try: {}",
                agent.said()
            );
            assert_calm(&agent, &node);
            agent.stop().expect(0, &[]);
        }
    }
}
