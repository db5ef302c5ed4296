//! The linked layout: the file moves into the agent's directory and back, and a reader finds it at any moment.

use crate::auth_file::{OPTIONS, at_rest, auth_file, publish};
use crate::beside::Over;
use crate::crash::{calls, in_parallel, settle, traced_run};
use crate::needs::{Need, all_here, tell};
use crate::node::{FOREIGN, HOST, Node, Run, names, output, read};
use ecr_node_agent::auth_file::{AuthFile, Link, Memory};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

pub const HIDDEN: &str = "{\"auths\":{\"a.example\":{\"auth\":\"dXNlcjpwYXNz\"}}}";

impl Node {
    pub fn link(&self, more: &[&str]) -> Run {
        self.on_file("link", more)
    }

    fn on_file(&self, command: &str, more: &[&str]) -> Run {
        let auth_file = self.auth_file();
        self.run(&[&[command, "--auth-file", auth_file.to_str().unwrap()], more].concat())
    }

    pub fn inside(&self) -> PathBuf {
        self.path("kubelet/ecr-node-agent/config.json")
    }

    #[track_caller]
    pub fn assert_linked(&self) {
        let target = fs::read_link(self.auth_file()).unwrap();
        assert_eq!(target, Path::new("ecr-node-agent/config.json"), "the kubelet may see its root elsewhere");
        let directory = fs::symlink_metadata(self.path("kubelet/ecr-node-agent")).unwrap();
        assert!(directory.is_dir());
        assert_eq!(directory.permissions().mode() & 0o7777, 0o700);
        assert_eq!(self.names(), ["config.json", "ecr-node-agent"]);
    }

    #[track_caller]
    fn assert_plain(&self) {
        assert!(fs::symlink_metadata(self.auth_file()).unwrap().is_file());
        assert_eq!(self.names(), ["config.json"]);
    }
}

#[test]
fn the_file_is_the_same_file_through_the_link_and_back() {
    let node = Node::with_auth_file(FOREIGN);
    fs::set_permissions(node.auth_file(), fs::Permissions::from_mode(0o640)).unwrap();
    let special = all_here(&[Need::Root, Need::SecurityAttributes]);
    if special {
        std::os::unix::fs::chown(node.auth_file(), Some(12), Some(34)).unwrap();
        let file = fs::File::open(node.auth_file()).unwrap();
        let label = b"system_u:object_r:container_var_lib_t:s0";
        rustix::fs::fsetxattr(&file, "security.selinux", label, rustix::fs::XattrFlags::empty()).unwrap();
    }
    // One inode has one content, owner, mode, label and access list.
    let identity = || {
        let metadata = fs::metadata(node.auth_file()).unwrap();
        (metadata.ino(), metadata.uid(), metadata.gid(), metadata.mode(), metadata.nlink())
    };
    let before = identity();
    node.link(&[]).expect(0, &["linked"]);
    node.assert_linked();
    assert_eq!(identity(), before);
    assert_eq!(names(&node.path("kubelet/ecr-node-agent")), ["config.json"]);
    let link = fs::symlink_metadata(node.auth_file()).unwrap();

    let again = node.link(&[]).expect(0, &[]);
    assert_eq!(again.err, "", "nothing is to be told");
    let same = fs::symlink_metadata(node.auth_file()).unwrap();
    assert_eq!((link.ino(), link.ctime_nsec()), (same.ino(), same.ctime_nsec()), "the link was made anew");

    node.link(&["--undo"]).expect(0, &["the link was undone"]);
    node.assert_plain();
    assert_eq!(identity(), before);
    assert_eq!(node.link(&["--undo"]).expect(0, &[]).err, "");
    node.assert_plain();
}

#[test]
fn an_agent_that_sees_only_the_directory_does_everything() {
    if !all_here(&[Need::Mounts]) {
        return;
    }
    let node = Node::with_auth_file(FOREIGN);
    node.write("home/.docker/config.json", HIDDEN);
    node.link(&[]).expect(0, &[]);
    // As in a container: of the kubelet's root only the agent's directory, and a home without credentials.
    let script = "root=$0; mkdir -p /run/inside && mount -t tmpfs t /run && mkdir /run/inside \
                  && mount --bind \"$root/ecr-node-agent\" /run/inside && mount -t tmpfs t \"$root\" \
                  && mkdir \"$root/ecr-node-agent\" && mount --bind /run/inside \"$root/ecr-node-agent\" \
                  && umount /run/inside && export HOME=/run && exec \"$@\"";
    let root = node.path("kubelet");
    let wrapper =
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, root.to_str().unwrap()];
    let inside = node.inside();
    let run = |command: &str| {
        let arguments = [command, "--auth-file", inside.to_str().unwrap()];
        node.checked(&output(&mut node.command(&wrapper, &arguments)))
    };
    run("--once").expect(0, &["published"]);
    node.assert_latest_token(HOST);
    node.assert_linked();
    // The file was whole: it has hidden the other file before, so nothing was copied.
    let keys: Vec<_> = node.document()["auths"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["registry.example.com", HOST]);
    run("status").expect(0, &["valid"]);
    run("link").expect(5, &["it is in a directory of ours"]);
    // On the node the same file is found through the link.
    node.on_file("status", &[]).expect(0, &["valid"]);
    node.once(&[]).expect(0, &[]);
    node.assert_latest_token(HOST);
    node.assert_linked();

    run("remove").expect(0, &["removed"]);
    assert_eq!(fs::read_to_string(&inside).unwrap().trim_end(), FOREIGN);
    node.assert_linked();
}

#[test]
fn a_dangling_link_hides_nothing_until_the_agent_writes() {
    let node = Node::new();
    node.link(&[]).expect(0, &["linked"]);
    node.assert_linked();
    assert!(!node.inside().exists(), "even an empty document would hide what the kubelet finds elsewhere");
    node.on_file("status", &[]).expect(1, &["there is no such file"]);
    node.once(&[]).expect(0, &[]);
    node.assert_latest_token(HOST);
    node.assert_linked();
    node.on_file("remove", &[]).expect(0, &["deleted", "the link was undone"]);
    assert_eq!(node.names(), [""; 0]);

    node.link(&[]).expect(0, &[]);
    node.link(&["--undo"]).expect(0, &[]);
    assert_eq!(node.names(), [""; 0]);
}

#[test]
fn the_entries_that_a_later_file_will_hide_are_copied_by_link() {
    for with_directory in [false, true] {
        let node = Node::new();
        if with_directory {
            fs::create_dir(node.path("kubelet/ecr-node-agent")).unwrap();
        }
        node.write("home/.docker/config.json", HIDDEN);
        node.link(&[]).expect(0, &["is hidden by this file from now on", "a.example", "linked"]);
        let keys =
            |node: &Node| node.document()["auths"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&node), ["a.example"]);
        node.assert_linked();
        node.once(&[]).expect(0, &[]);
        assert_eq!(keys(&node), ["a.example", HOST]);
        // The hidden file counts again, and ours is gone.
        node.on_file("remove", &[]).expect(0, &["deleted"]);
        assert_eq!(node.names(), [""; 0]);
    }
    // Entries that come later are copied by the next run.
    let node = Node::new();
    node.link(&[]).expect(0, &[]);
    node.write("home/.docker/config.json", HIDDEN);
    node.link(&[]).expect(0, &["a.example"]);
    assert_eq!(fs::read_to_string(node.inside()).unwrap().matches("a.example").count(), 2);
    node.assert_linked();
}

#[test]
fn remove_leaves_the_node_as_it_was() {
    let node = Node::with_auth_file(FOREIGN);
    node.link(&[]).expect(0, &[]);
    node.once(&[]).expect(0, &[]);
    let dry = node.on_file("remove", &["--dry-run"]).expect(0, &["remove  ", "would no longer be a link"]);
    assert!(!dry.out.contains("keep "), "{}", dry.out);
    node.assert_linked();
    node.on_file("remove", &[]).expect(0, &["removed", "the link was undone"]);
    node.assert_plain();
    assert_eq!(fs::read_to_string(node.auth_file()).unwrap().trim_end(), FOREIGN);

    // Another program has deleted the link: the file in the agent's directory is found all the same.
    let node = Node::new();
    node.link(&[]).expect(0, &[]);
    node.once(&[]).expect(0, &[]);
    fs::remove_file(node.auth_file()).unwrap();
    let dry = node.on_file("remove", &["--dry-run"]).expect(0, &["would be deleted"]);
    assert!(!dry.out.contains("keep "), "{}", dry.out);
    node.on_file("remove", &[]).expect(0, &["deleted"]);
    assert_eq!(node.names(), [""; 0]);

    // A copy that was set aside may hold foreign credentials: it stays, and the log names it.
    let node = Node::new();
    node.link(&[]).expect(0, &[]);
    node.write("kubelet/ecr-node-agent/config.json", "damaged");
    node.once(&[]).expect(0, &["the original is kept"]);
    node.on_file("remove", &[]).expect(0, &["removed", "files are left in it", "config.json.invalid-"]);
    assert_eq!(node.names(), ["config.json", "ecr-node-agent"]);
}

#[test]
fn a_dry_run_changes_nothing() {
    for content in [None, Some(FOREIGN)] {
        let node = Node::new();
        node.write("home/.docker/config.json", HIDDEN);
        if let Some(content) = content {
            node.write("kubelet/config.json", content);
        }
        let before = node.names();
        node.link(&["--dry-run"]).expect(0, &["would become a link to the same file in ecr-node-agent/"]);
        assert_eq!(node.names(), before);
        node.link(&[]).expect(0, &[]);
        node.link(&["--dry-run"]).expect(0, &["would stay as it is"]);
        node.link(&["--undo", "--dry-run"]).expect(0, &["would no longer be a link"]);
        node.assert_linked();
        node.link(&["--undo"]).expect(0, &[]);
        node.link(&["--undo", "--dry-run"]).expect(0, &["would stay as it is"]);
    }
}

#[test]
fn an_unsafe_layout_is_refused_and_stays() {
    type Prepare = fn(&Node);
    let cases: [(&str, Prepare); 8] = [
        ("it is a symlink already, to /etc/hostname", |node| {
            symlink("/etc/hostname", node.auth_file()).unwrap();
        }),
        ("it is a symlink already, to ecr-node-agent/../x", |node| {
            symlink("ecr-node-agent/../x", node.auth_file()).unwrap();
        }),
        ("is a directory", |node| fs::create_dir(node.auth_file()).unwrap()),
        ("is a pipe", |node| nix::unistd::mkfifo(&node.auth_file(), nix::sys::stat::Mode::S_IRWXU).unwrap()),
        ("ecr-node-agent is no directory", |node| node.write("kubelet/ecr-node-agent", "")),
        ("ecr-node-agent is no directory", |node| {
            symlink("/tmp", node.path("kubelet/ecr-node-agent")).unwrap();
        }),
        ("may be written by others", |node| {
            fs::create_dir(node.path("kubelet/ecr-node-agent")).unwrap();
            let mode = fs::Permissions::from_mode(0o770);
            fs::set_permissions(node.path("kubelet/ecr-node-agent"), mode).unwrap();
        }),
        ("everybody may write to its directory", |node| {
            fs::set_permissions(node.path("kubelet"), fs::Permissions::from_mode(0o1777)).unwrap();
        }),
    ];
    for (said, prepare) in cases {
        let node = Node::new();
        prepare(&node);
        let before = node.names();
        node.link(&[]).expect(5, &[said]);
        node.link(&["--dry-run"]).expect(5, &[said]);
        assert_eq!(node.names(), before, "{said}");
    }
    if all_here(&[Need::Root]) {
        let node = Node::with_auth_file(FOREIGN);
        fs::create_dir(node.path("kubelet/ecr-node-agent")).unwrap();
        std::os::unix::fs::chown(node.path("kubelet/ecr-node-agent"), Some(12345), None).unwrap();
        node.link(&[]).expect(5, &["belongs to another user"]);
        assert!(fs::symlink_metadata(node.auth_file()).unwrap().is_file());
        // It was never ours, so removing has nothing to do with it.
        node.on_file("remove", &[]).expect(0, &[]);
    }
    let node = Node::new();
    let missing = node.path("missing/config.json");
    node.run(&["link", "--auth-file", missing.to_str().unwrap()]).expect(5, &["does not exist"]);
    node.run(&["link", "--once"]).expect(2, &["--once"]);

    // The kubelet makes it so for a hostPath of type `DirectoryOrCreate`.
    fs::create_dir(node.path("kubelet/ecr-node-agent")).unwrap();
    node.link(&[]).expect(0, &[]);
    node.assert_linked();
}

#[test]
fn a_mount_is_refused_with_the_reason() {
    if !all_here(&[Need::Mounts]) {
        return;
    }
    let cases = [
        (
            "touch \"$root/config.json\" && mount --bind /etc/hostname \"$root/config.json\"",
            "is a mount of its own",
        ),
        (
            "mkdir \"$root/ecr-node-agent\" && mount --bind \"$root/ecr-node-agent\" \"$root/ecr-node-agent\"",
            "ecr-node-agent is a mount of its own",
        ),
        (
            "mkdir \"$root/ecr-node-agent\" && mount -t tmpfs -o mode=700 t \"$root/ecr-node-agent\"",
            "ecr-node-agent is a mount of its own",
        ),
    ];
    for (mount, said) in cases {
        let node = Node::new();
        let root = node.path("kubelet");
        let script = format!("root=$0; {mount} && exec \"$@\"");
        let wrapper =
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script, root.to_str().unwrap()];
        let auth_file = node.auth_file();
        let arguments = ["link", "--auth-file", auth_file.to_str().unwrap()];
        node.checked(&output(&mut node.command(&wrapper, &arguments))).expect(5, &[said]);
        assert!(!fs::symlink_metadata(&auth_file).is_ok_and(|found| found.is_symlink()), "{mount}");
    }
}

#[test]
fn an_openshift_node_is_left_alone_unless_the_file_is_named() {
    if !all_here(&[Need::Mounts]) {
        return;
    }
    let node = Node::new();
    let script = "mount -t tmpfs t /var/lib && mount -t tmpfs t /etc && mkdir /var/lib/kubelet /etc/machine-config-daemon \
                  && \"$0\" \"$@\"; code=$?; ls /var/lib/kubelet; exit $code";
    let wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script];
    let run = |arguments: &[&str]| node.checked(&output(&mut node.command(&wrapper, arguments)));
    assert_eq!(run(&["link"]).expect(5, &["OpenShift"]).out, "");
    let done = run(&["link", "--auth-file", "/var/lib/kubelet/config.json"]).expect(0, &[]);
    assert_eq!(done.out, "config.json\necr-node-agent\n");
}

#[test]
fn of_two_files_the_one_that_the_kubelet_reads_stays() {
    // Another program has replaced the link by a file, as `sed -i` does.
    let node = Node::new();
    node.link(&[]).expect(0, &[]);
    node.once(&[]).expect(0, &[]);
    let sed = |content: &str| {
        fs::remove_file(node.auth_file()).unwrap();
        node.write("kubelet/config.json", content);
    };
    sed(FOREIGN);
    let run = node.link(&[]).expect(0, &["linked"]);
    assert!(!run.err.contains("made way"), "nothing was lost: {}", run.err);
    node.assert_linked();
    assert_eq!(fs::read_to_string(node.inside()).unwrap(), FOREIGN);
    assert_eq!(names(&node.path("kubelet/ecr-node-agent")), ["config.json"]);
    // This time the other file holds a foreign entry.
    node.once(&[]).expect(0, &[]);
    sed("{}");
    node.link(&[]).expect(0, &["has made way for that; what it held is kept as", "config.json.replaced-"]);
    assert_eq!(fs::read_to_string(node.inside()).unwrap(), "{}");
    let [_, copy] = &names(&node.path("kubelet/ecr-node-agent"))[..] else { panic!("no copy") };
    let copy = read(&node.path("kubelet/ecr-node-agent").join(copy));
    assert!(copy["auths"]["registry.example.com"].is_object());

    // After an undo, a file that adds nothing is deleted; a file that does stays, and the log names it.
    fs::remove_file(node.auth_file()).unwrap();
    node.write("kubelet/config.json", FOREIGN);
    node.link(&["--undo"]).expect(0, &["config.json.replaced-"]);
    assert_eq!(names(&node.path("kubelet/ecr-node-agent")).len(), 1);
}

/// A node before a change of its layout, and the change.
struct Change {
    what: &'static str,
    prepare: fn(&Node),
    command: (&'static str, &'static [&'static str]),
    /// The names in the kubelet's root at the end.
    names: &'static [&'static str],
}

const LINKED: &[&str] = &["config.json", "ecr-node-agent"];
const CHANGES: [Change; 6] = [
    Change { what: "link a file", prepare: |_| {}, command: ("link", &[]), names: LINKED },
    Change {
        what: "link where another file lies",
        prepare: |node| node.write("kubelet/ecr-node-agent/config.json", "{\"auths\":{\"b.example\":{}}}"),
        command: ("link", &[]),
        names: LINKED,
    },
    Change {
        what: "link nothing",
        prepare: |node| {
            fs::remove_file(node.auth_file()).unwrap();
            node.write("home/.docker/config.json", FOREIGN);
        },
        command: ("link", &[]),
        names: LINKED,
    },
    Change {
        what: "undo",
        prepare: |node| {
            node.link(&[]).expect(0, &[]);
        },
        command: ("link", &["--undo"]),
        names: &["config.json"],
    },
    Change {
        what: "undo a link to nothing",
        prepare: |node| {
            fs::remove_file(node.auth_file()).unwrap();
            node.link(&[]).expect(0, &[]);
        },
        command: ("link", &["--undo"]),
        names: &[],
    },
    Change {
        what: "remove",
        prepare: |node| {
            node.link(&[]).expect(0, &[]);
            node.once(&[]).expect(0, &[]);
        },
        command: ("remove", &[]),
        names: &["config.json"],
    },
];

#[test]
fn killed_at_any_system_call_the_kubelet_reads_the_same_and_the_next_run_finishes() {
    if !all_here(&[Need::Strace]) {
        return;
    }
    for change in &CHANGES {
        let prepared = || {
            let node = Node::with_auth_file(FOREIGN);
            fs::set_permissions(node.auth_file(), fs::Permissions::from_mode(0o600)).unwrap();
            (change.prepare)(&node);
            node
        };
        // What the kubelet's own credentials are there: of this file, or of the one behind it.
        let credential = |node: &Node| {
            let first = [node.auth_file(), node.path("home/.docker/config.json")]
                .into_iter()
                .find(|path| path.exists());
            first
                .map(|path| read(&path)["auths"]["registry.example.com"]["auth"].clone())
                .filter(|it| !it.is_null())
        };
        let node = prepared();
        settle(&node);
        let (wanted, run) = (credential(&node), traced_run(&node, change.command.0, change.command.1, None));
        run.0.expect(0, &[]);
        let calls = calls(&run.1);
        let kills: Vec<(&str, usize, usize)> = calls
            .iter()
            .flat_map(|(name, count)| (1..=count + 1).map(|number| (name.as_str(), number, *count)))
            .collect();
        in_parallel(&kills, |&(name, number, count)| {
            let case = format!("{}, killed at {name} {number} of {count}", change.what);
            let node = prepared();
            settle(&node);
            let inject = format!("inject={name}:signal=KILL:when={number}");
            let (run, _) = traced_run(&node, change.command.0, change.command.1, Some(&inject));
            assert_eq!(run.code, if number > count { 0 } else { -1 }, "{case}: {}", run.err);
            assert_eq!(credential(&node), wanted, "{case}");
            // The agent works meanwhile, in whichever layout it finds.
            node.once(&[]).expect(0, &[]);
            assert_eq!(credential(&node), wanted, "{case}");
            node.on_file(change.command.0, change.command.1).expect(0, &[]);
            assert_eq!(credential(&node), wanted, "{case}");
            if change.names.len() == 2 {
                node.assert_linked();
            } else if !change.names.is_empty() {
                node.assert_plain();
            }
        });
        let kills = kills.len() - calls.len();
        tell(&format!("{}: killed at each of {kills} calls, the kubelet had its credential", change.what));
    }
}

#[test]
fn a_reader_finds_the_file_at_any_moment_while_the_layout_changes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let file = auth_file(&path);
    let mut memory = Memory::default();
    publish(&file, 0, &mut memory);
    let (over, reads) = (Over::default(), AtomicU32::new(0));
    let mut changes = 0;
    std::thread::scope(|scope| {
        let end = over.guard();
        let reader = scope.spawn(|| {
            while !over.is_set() {
                let bytes = fs::read(&path).unwrap();
                assert_eq!(bytes.last(), Some(&b'\n'), "a document, whole");
                reads.fetch_add(1, Ordering::Relaxed);
            }
        });
        // A writer of ours knows nothing of it, and waits its turn.
        let writer = scope.spawn(|| {
            let mut number = 1;
            while !over.is_set() {
                publish(&file, number, &mut memory);
                number += 1;
                // A file that changes all the time keeps a change of the layout waiting.
                std::thread::sleep(std::time::Duration::from_millis(300));
            }
        });
        while changes < 8 || reads.load(Ordering::Relaxed) < 1000 {
            assert!(!reader.is_finished() && !writer.is_finished(), "somebody saw something else");
            let change = |file: &AuthFile| {
                // As the command does, it remembers how long it has waited.
                let mut memory = Memory::default();
                let made = at_rest(|| file.link(OPTIONS, &mut memory).unwrap());
                assert_eq!(made.link, Some(Link::Made));
                let undone = file.unlink(OPTIONS).unwrap();
                assert_eq!(undone.link, Some(Link::Undone { left: Vec::new() }));
            };
            change(&file);
            changes += 1;
        }
        drop(end);
        reader.join().unwrap();
        writer.join().unwrap();
    });
    assert_eq!(names(directory.path()), ["config.json"]);
    tell(&format!("{} reads while the file was linked and put back {changes} times", reads.into_inner()));
}
