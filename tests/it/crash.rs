//! A reader never sees a torn file, whenever the agent is killed; and what a failing system call leaves behind.

use crate::needs::{Need, all_here, tell};
use crate::node::{FOREIGN, HOST, Node, Run, output};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::Duration;

/// How a node starts, and what a finished refresh leaves in the kubelet's root.
struct Start {
    what: &'static str,
    content: Option<&'static str>,
    copies: usize,
    quiet: Duration,
}

/// How long a file must be left alone before an update writes it at once.
const QUIET: Duration = Duration::from_secs(1);
/// The same for a spoilt file, where the agent cannot see which programs have it open.
const QUIET_IF_SPOILT: Duration = Duration::from_secs(11);

const SPOILT: &str = "{\"auths\":{\"registry.example.com\":{\"auth\":\"dXNlcjpwYXNz\"},\"bad.example\":[]}}";
const STARTS: [Start; 3] = [
    Start { what: "a foreign file", content: Some(FOREIGN), copies: 0, quiet: QUIET },
    Start { what: "no file", content: None, copies: 0, quiet: QUIET },
    Start { what: "a spoilt file", content: Some(SPOILT), copies: 1, quiet: QUIET_IF_SPOILT },
];

impl Start {
    fn node(&self) -> Node {
        let node = Node::new();
        if let Some(content) = self.content {
            node.write("kubelet/config.json", content);
            fs::set_permissions(node.auth_file(), fs::Permissions::from_mode(0o600)).unwrap();
        }
        node
    }

    /// Fails unless the file is the old one or a new one, whole.
    fn assert_whole(&self, node: &Node, case: &str) {
        let Ok(text) = fs::read_to_string(node.auth_file()) else {
            assert_eq!(self.content, None, "{case}: the file is gone");
            return;
        };
        let mode = fs::metadata(node.auth_file()).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o600, "{case}");
        if Some(text.as_str()) == self.content {
            return;
        }
        let document: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{case}: {error}: {text}"));
        assert!(document["auths"][HOST]["auth"].is_string(), "{case}: {text}");
        assert!(document["ecr-node-agent"]["entries"][HOST].is_object(), "{case}: {text}");
        if self.content.is_some() {
            assert_eq!(document["auths"]["registry.example.com"]["auth"], "dXNlcjpwYXNz", "{case}");
        }
    }
}

/// Does the same with all items, several at a time: each mostly waits.
pub fn in_parallel<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(item);
                }
            });
        }
    });
}

/// Waits until the file has been at rest for so long that an update does not wait for other writers: then the same run makes
/// the same calls each time.
pub fn settle(node: &Node) {
    settle_for(node, QUIET);
}

fn settle_for(node: &Node, quiet: Duration) {
    let paths =
        ["kubelet", "kubelet/config.json", "kubelet/ecr-node-agent", "kubelet/ecr-node-agent/config.json"];
    let newest =
        || paths.iter().filter_map(|path| fs::metadata(node.path(path)).ok()).map(|it| changed(&it)).max();
    let now = || fs::metadata(tempfile::NamedTempFile::new().unwrap().path()).map(|it| changed(&it)).unwrap();
    while newest().is_some_and(|newest| now().saturating_sub(newest) < quiet) {
        sleep(Duration::from_millis(50));
    }
}

/// When a file was changed, by the file system's clock.
fn changed(metadata: &fs::Metadata) -> Duration {
    Duration::new(metadata.ctime().try_into().unwrap(), metadata.ctime_nsec().try_into().unwrap())
}

/// Runs a refresh under `strace`, which traces the calls on the kubelet's root and on what is in it, and injects what `inject`
/// describes.
fn traced(node: &Node, inject: Option<&str>) -> (Run, String) {
    traced_run(node, "--once", &[], inject)
}

/// As [`traced`], for another command.
pub fn traced_run(node: &Node, command: &str, more: &[&str], inject: Option<&str>) -> (Run, String) {
    let log = node.path("strace.log");
    let inside = ["", "/config.json", "/.ecr-node-agent-config.json.tmp"];
    let directories = ["kubelet", "kubelet/ecr-node-agent"];
    let paths = directories.map(|directory| inside.map(|name| node.path(&format!("{directory}{name}"))));
    let paths = paths.concat();
    let paths: Vec<&str> = paths.iter().map(|path| path.to_str().unwrap()).collect();
    let mut wrapper = vec!["strace", "-f", "-y", "-o", log.to_str().unwrap()];
    wrapper.extend(paths.iter().flat_map(|path| ["-P", path]));
    wrapper.extend(inject.iter().flat_map(|inject| ["-e", inject]));
    let auth_file = node.auth_file();
    let arguments = [&[command, "--auth-file", auth_file.to_str().unwrap()], more].concat();
    let output = output(&mut node.command(&wrapper, &arguments));
    (node.checked(&output), fs::read_to_string(log).unwrap_or_default())
}

/// How often each system call is made.
pub fn calls(log: &str) -> BTreeMap<String, usize> {
    let mut calls = BTreeMap::new();
    for line in log.lines() {
        let call = line.split_whitespace().nth(1).and_then(|call| call.split_once('(')).map(|(name, _)| name);
        if let Some(name) = call.filter(|name| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')) {
            *calls.entry(name.to_owned()).or_insert(0) += 1;
        }
    }
    calls
}

#[test]
fn killed_at_any_system_call_the_file_is_old_or_new_and_the_next_run_cleans_up() {
    if !all_here(&[Need::Strace]) {
        return;
    }
    for start in &STARTS {
        let node = start.node();
        settle_for(&node, start.quiet);
        let (run, log) = traced(&node, None);
        run.expect(0, &[]);
        let calls = calls(&log);
        for needed in ["openat", "flock", "write", "fsync", "renameat2"] {
            assert!(calls.contains_key(needed), "{needed} is not among {calls:?}");
        }
        // One more than there are: the run then ends well, which shows that the count is that of these calls.
        let kills: Vec<(&str, usize, usize)> = calls
            .iter()
            .flat_map(|(name, count)| (1..=count + 1).map(|number| (name.as_str(), number, *count)))
            .collect();
        in_parallel(&kills, |&(name, number, count)| {
            let case = format!("{}, killed at {name} {number} of {count}", start.what);
            let node = start.node();
            settle_for(&node, start.quiet);
            let (run, _) = traced(&node, Some(&format!("inject={name}:signal=KILL:when={number}")));
            assert_eq!(run.code, if number > count { 0 } else { -1 }, "{case}: {}", run.err);
            start.assert_whole(&node, &case);
            node.once(&[]).expect(0, &[]);
            node.assert_latest_token(HOST);
            assert_eq!(node.names().len(), 1 + start.copies, "{case}: {:?}", node.names());
        });
        let kills = kills.len() - calls.len();
        tell(&format!("{}: killed at each of {kills} calls, the file was whole", start.what));
    }
}

#[test]
fn a_failing_system_call_leaves_the_old_file_and_is_reported() {
    if !all_here(&[Need::Strace]) {
        return;
    }
    let cases = [
        // injected,                        what is said,                               is the old file there?
        ("write:error=EIO", "cannot write the temporary file: EIO", true),
        ("write:error=ENOSPC", "cannot write the temporary file: ENOSPC", true),
        ("fsync:error=EIO:when=1", "cannot sync the temporary file: EIO", true),
        ("renameat2:error=EIO", "cannot rename the temporary file over the old one: EIO", true),
        ("renameat2:error=EBUSY", "is a mount of its own", true),
        ("openat:error=EACCES:when=4", "cannot open the file: EACCES", true),
        ("openat:error=EROFS:when=6", "cannot create the temporary file: EROFS", true),
        ("pread64:error=EIO:when=1", "cannot read", true),
        ("fsync:error=EIO:when=2", "after a power cut the previous file may be back", false),
    ];
    for (inject, said, old) in cases {
        let node = Node::with_auth_file(FOREIGN);
        settle(&node);
        let (run, _) = traced(&node, Some(&format!("inject={inject}")));
        run.expect(5, &[said, node.auth_file().to_str().unwrap()]);
        let is_old = fs::read_to_string(node.auth_file()).unwrap() == FOREIGN;
        assert_eq!(is_old, old, "{inject}");
        assert_eq!(node.names(), ["config.json"], "{inject}");
        if old {
            node.once(&[]).expect(0, &[]);
        }
        node.assert_latest_token(HOST);
    }
}

#[test]
fn a_file_that_cannot_be_set_aside_is_not_replaced() {
    if !all_here(&[Need::Strace]) {
        return;
    }
    let node = Node::with_auth_file(SPOILT);
    let (run, _) = traced(&node, Some("inject=linkat:error=ENOSPC"));
    run.expect(5, &["cannot keep a copy", "it is untouched", "ENOSPC"]);
    assert_eq!(fs::read_to_string(node.auth_file()).unwrap(), SPOILT);
    assert_eq!(node.names(), ["config.json"]);
}

/// Runs a refresh on an auth file below a mount that `mount` makes on the kubelet's root, and prints the file after it.
fn on_mount(node: &Node, mount: &str) -> Run {
    let root = node.path("kubelet");
    let script = format!(
        "root=$0; {mount} || exit 90; \"$@\"; code=$?; cat \"$root/config.json\"; ls -A \"$root\" >&2; exit $code"
    );
    let wrapper =
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script, root.to_str().unwrap()];
    let auth_file = node.auth_file();
    let arguments = ["--once", "--auth-file", auth_file.to_str().unwrap()];
    node.checked(&output(&mut node.command(&wrapper, &arguments)))
}

#[test]
fn a_full_disk_and_a_read_only_one_leave_the_old_file() {
    if !all_here(&[Need::Mounts]) {
        return;
    }
    let node = Node::with_auth_file(FOREIGN);
    let full = "cp \"$root/config.json\" /dev/shm/$$ && mount -t tmpfs -o size=16k t \"$root\" && mv /dev/shm/$$ \
                \"$root/config.json\" && { dd if=/dev/zero of=\"$root/full\" bs=4k 2>/dev/null; true; }";
    let run = on_mount(&node, full).expect(5, &["cannot write the temporary file: ENOSPC", "untouched"]);
    assert_eq!(run.out, FOREIGN);
    assert!(run.err.ends_with("config.json\nfull\n"), "litter: {}", run.err);

    let read_only = "mount --bind \"$root\" \"$root\" && mount -o remount,bind,ro \"$root\"";
    let run = on_mount(&node, read_only).expect(5, &["cannot create the temporary file: EROFS"]);
    assert_eq!(run.out, FOREIGN);
}

#[test]
fn without_write_permission_the_old_file_stays() {
    if !all_here(&[Need::Root]) {
        return;
    }
    let node = Node::with_auth_file("{}");
    fs::set_permissions(node.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let auth_file = node.auth_file();
    let wrapper = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let arguments = ["--once", "--auth-file", auth_file.to_str().unwrap()];
    let output = output(&mut node.command(&wrapper, &arguments));
    node.checked(&output)
        .expect(5, &["cannot create the temporary file: EACCES", auth_file.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(auth_file).unwrap(), "{}");
}

#[test]
fn a_lock_that_another_program_keeps_only_delays_a_write() {
    use nix::fcntl::{Flock, FlockArg};

    let node = Node::with_auth_file(FOREIGN);
    let lock = Flock::lock(fs::File::open(node.path("kubelet")).unwrap(), FlockArg::LockExclusive).unwrap();
    node.once(&[]).expect(0, &["could not be locked", "another program holds the lock", "published"]);
    node.assert_latest_token(HOST);
    assert_eq!(node.names(), ["config.json"]);
    // A later run with the lock removes what a run without it has left, once no run can be using it any more.
    node.write("kubelet/.ecr-node-agent-config.json.0123456789abcdef.tmp", "half a docum");
    drop(lock);
    node.once(&[]).expect(0, &[]);
    assert_eq!(node.names().len(), 2, "another run may still be using it: {:?}", node.names());
}

#[test]
fn a_file_system_without_exchange_or_locks_is_supported() {
    if !all_here(&[Need::Strace]) {
        return;
    }
    for inject in ["flock:error=ENOLCK", "renameat2:error=EINVAL", "renameat2:error=ENOSYS"] {
        for start in &STARTS {
            let node = start.node();
            let (run, _) = traced(&node, Some(&format!("inject={inject}")));
            run.expect(0, &[]);
            node.assert_latest_token(HOST);
            assert_eq!(node.names().len(), 1 + start.copies, "{inject}: {:?}", node.names());
            let auth_file = node.auth_file();
            let (run, _) = traced_run(&node, "remove", &[], Some(&format!("inject={inject}")));
            run.expect(0, &[]);
            assert!(!fs::read_to_string(auth_file).is_ok_and(|text| text.contains(HOST)), "{inject}");
        }
    }
}

#[test]
fn a_version_that_a_killed_run_left_beside_the_file_is_not_lost() {
    let node = Node::with_auth_file(FOREIGN);
    let other = FOREIGN.replace("registry.example.com", "other.example.com");
    node.write("kubelet/.ecr-node-agent-config.json.tmp", &other);
    node.once(&[]).expect(0, &["with other content, which is kept as", "config.json.replaced-"]);
    assert_eq!(node.names().len(), 2, "{:?}", node.names());
    // A file without other content is not another program's version.
    let node = Node::with_auth_file(FOREIGN);
    node.write("kubelet/.ecr-node-agent-config.json.tmp", FOREIGN);
    node.once(&[]).expect(0, &[]);
    assert_eq!(node.names(), ["config.json"]);
}

#[test]
fn a_version_that_cannot_be_copied_is_kept_under_another_name() {
    let other = FOREIGN.replace("registry.example.com", "other.example.com");
    let too_large = format!("{other}{}", " ".repeat(1024 * 1024));
    for (what, content, copies) in [("too many copies", &other, 16), ("too large", &too_large, 0)] {
        let node = Node::with_auth_file(FOREIGN);
        for number in 0..copies {
            node.write(&format!("kubelet/config.json.replaced-{number}"), "{}");
        }
        node.write("kubelet/.ecr-node-agent-config.json.tmp", content);
        node.once(&[]).expect(0, &["which is kept as", "config.json.replaced-"]);
        assert_eq!(node.names().len(), 2 + copies, "{what}: {:?}", node.names());
        let is_kept =
            |name: &String| fs::read_to_string(node.path("kubelet").join(name)).unwrap() == *content;
        assert!(node.names().iter().any(is_kept), "{what}");
    }
}
