//! What happens when another program changes the file in the moment between reading and replacing it.

use crate::auth_file::{OPTIONS, at_rest, auth_file, publish, wanted};
use crate::beside::Over;
use crate::crash::{in_parallel, settle};
use crate::needs::{Need, all_here, tell};
use crate::node::{FOREIGN, HOST, Node, read};
use ecr_node_agent::auth_file::{Link, Memory};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Child, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A document with another foreign entry.
fn edited() -> String {
    FOREIGN.replace("registry.example.com", "other.example.com")
}

/// What another program does in that moment, and what must be true at the end.
struct Race {
    what: &'static str,
    edit: fn(&Path),
    holds: fn(&Path) -> bool,
}

#[expect(clippy::disallowed_methods, reason = "test code")]
fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
}

fn replace(path: &Path, text: &str) {
    let temporary = path.with_file_name("other.tmp");
    write(&temporary, text);
    fs::rename(temporary, path).unwrap();
}

fn has_other(path: &Path) -> bool {
    read(path)["auths"]["other.example.com"].is_object()
}

const RACES: [Race; 6] = [
    Race { what: "writes the file", edit: |path| write(path, &edited()), holds: has_other },
    Race { what: "replaces the file", edit: |path| replace(path, &edited()), holds: has_other },
    Race {
        what: "deletes the file and writes it",
        edit: |path| {
            fs::remove_file(path).unwrap();
            write(path, &edited());
        },
        holds: has_other,
    },
    Race {
        what: "opens the file and writes it later",
        edit: |path| {
            let mut file = fs::File::options().write(true).open(path).unwrap();
            std::thread::spawn(move || {
                sleep(Duration::from_secs(4));
                std::io::Write::write_all(&mut file, edited().as_bytes()).unwrap();
                file.set_len(edited().len() as u64).unwrap();
            });
        },
        holds: has_other,
    },
    Race {
        what: "makes the file stricter",
        edit: |path| fs::set_permissions(path, fs::Permissions::from_mode(0o400)).unwrap(),
        holds: |path| fs::metadata(path).unwrap().mode() & 0o777 == 0o400,
    },
    Race {
        what: "deletes the file",
        edit: |path| fs::remove_file(path).unwrap(),
        holds: |path| read(path)["auths"]["registry.example.com"].is_null(),
    },
];

/// Starts a command of the program with one system call slowed down.
fn slowed(node: &Node, command: &[&str], inject: &str) -> Child {
    slowed_under(&[], node, command, inject)
}

/// As [`slowed`], by a wrapper that becomes `strace`.
fn slowed_under(wrapper: &[&str], node: &Node, command: &[&str], inject: &str) -> Child {
    let log = node.path("strace.log");
    let inject = format!("inject={inject}");
    let wrapper = [wrapper, &["strace", "-f", "-o", log.to_str().unwrap(), "-e", &inject]].concat();
    let auth_file = node.auth_file();
    let arguments = [command, &["--auth-file", auth_file.to_str().unwrap()]].concat();
    let mut command = node.command(&wrapper, &arguments);
    command.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap()
}

/// Waits for a moment of a run, which must come.
fn wait_for(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_mins(1), "{what} did not come to pass");
        sleep(Duration::from_millis(2));
    }
}

fn ended(node: &Node, child: Child) -> Output {
    let output = child.wait_with_output().unwrap();
    node.checked(&output).expect(0, &[]);
    output
}

#[test]
fn a_change_between_reading_and_replacing_is_not_lost() {
    if !all_here(&[Need::Strace]) {
        return;
    }
    let temporary = "kubelet/.ecr-node-agent-config.json.tmp";
    in_parallel(&RACES, |race| {
        let node = Node::with_auth_file(FOREIGN);
        settle(&node);
        // The new file is written, and will have its name in three seconds.
        let run = slowed(&node, &["--once"], "fsync:delay_enter=3000000:when=1");
        wait_for("the new file", || node.path(temporary).exists());
        (race.edit)(&node.auth_file());
        ended(&node, run);
        wait_for(race.what, || (race.holds)(&node.auth_file()));
        node.assert_latest_token(HOST);
        assert_eq!(node.names(), ["config.json"], "another program {}", race.what);
    });
}

/// A wrapper without the capability to look at the processes of a root that has it: the agent does not know then which
/// programs have the file open.
const HIDDEN: [&str; 2] = ["setpriv", "--bounding-set=-sys_ptrace"];

/// How often a run under `strace` has begun the call.
fn begun(node: &Node, call: &str) -> usize {
    fs::read_to_string(node.path("strace.log")).unwrap_or_default().matches(call).count()
}

#[test]
fn a_program_that_has_the_file_open_is_noticed_where_it_cannot_be_seen() {
    if !all_here(&[Need::Strace, Need::Root]) {
        return;
    }
    // How many bytes it writes at once; they are the same as before.
    in_parallel(&[0, 1], |&first| {
        let node = Node::with_auth_file(FOREIGN);
        settle(&node);
        let run = slowed_under(&HIDDEN, &node, &["--once"], "renameat2:delay_enter=5000000:when=1");
        // The last look at the file before that is over.
        wait_for("the exchange", || begun(&node, "renameat2(") == 1);
        let mut file = fs::File::options().write(true).open(node.auth_file()).unwrap();
        std::io::Write::write_all(&mut file, &FOREIGN.as_bytes()[..first]).unwrap();
        wait_for("the exchange back", || begun(&node, "renameat2(") >= 2);
        std::io::Write::write_all(&mut file, &edited().as_bytes()[first..]).unwrap();
        file.set_len(edited().len() as u64).unwrap();
        drop(file);
        ended(&node, run);
        assert!(has_other(&node.auth_file()), "the edit is lost");
        node.assert_latest_token(HOST);
    });
}

#[test]
fn a_reader_that_has_finished_does_not_delay_a_write_where_it_cannot_be_seen() {
    if !all_here(&[Need::Strace, Need::Root]) {
        return;
    }
    let node = Node::with_auth_file(FOREIGN);
    settle(&node);
    let run = slowed_under(&HIDDEN, &node, &["--once"], "renameat2:delay_enter=5000000:when=1");
    wait_for("the exchange", || begun(&node, "renameat2(") == 1);
    assert_eq!(fs::read_to_string(node.auth_file()).unwrap(), FOREIGN);
    ended(&node, run);
    assert_eq!(begun(&node, "renameat2("), 1, "the agent has started over");
    node.assert_latest_token(HOST);
}

/// Another program edits the file before the exchange, so that its version is put back; and once more before that.
#[test]
fn a_second_change_while_a_version_is_put_back_loses_none_of_the_two() {
    if !all_here(&[Need::Strace]) {
        return;
    }
    in_parallel(&["edits", "deletes"], |what| {
        let node = Node::with_auth_file(FOREIGN);
        settle(&node);
        let run = slowed(&node, &["--once"], "renameat2:delay_enter=2000000");
        wait_for("the exchange", || begun(&node, "renameat2(") == 1);
        write(&node.auth_file(), &edited());
        wait_for("the exchange back", || begun(&node, "renameat2(") == 2);
        if *what == "edits" {
            let mut document = read(&node.auth_file());
            document["auths"]["third.example.com"] = json!({});
            write(&node.auth_file(), &document.to_string());
        } else {
            fs::remove_file(node.auth_file()).unwrap();
        }
        ended(&node, run);
        node.assert_latest_token(HOST);
        let document = node.document();
        assert_eq!(
            document["auths"]["third.example.com"].is_object(),
            *what == "edits",
            "{what}: {document}"
        );
        assert!(!has_other(&node.auth_file()), "{what}: {document}");
        let names = node.names();
        assert_eq!(names.len(), 2, "{what}: {names:?}");
        assert!(names[1].starts_with("config.json.replaced-"), "{what}: {names:?}");
        assert!(has_other(&node.path("kubelet").join(&names[1])), "{what}: the first edit is lost");
    });
}

#[test]
fn a_program_that_empties_the_file_while_the_directory_is_synced_is_waited_for() {
    if !all_here(&[Need::Strace, Need::Root]) {
        return;
    }
    let node = Node::with_auth_file(FOREIGN);
    settle(&node);
    let log = node.path("strace.log");
    let inject = "inject=fsync:delay_enter=3000000:when=2";
    // With `-D` the agent is the child, so the signal to stop reaches it.
    let strace = ["strace", "-D", "-f", "-o", log.to_str().unwrap(), "-e", "trace=fsync", "-e", inject];
    let agent = node.start_under(&[&HIDDEN[..], &strace].concat(), &[]);
    agent.wait("the sync of the directory", || begun(&node, "fsync(") == 2);
    let mut file = fs::File::create(node.auth_file()).unwrap();
    agent.wait_for("\"published\"", 1);
    // A look at the file that takes it for the agent's own would come at once.
    sleep(Duration::from_secs(4));
    std::io::Write::write_all(&mut file, edited().as_bytes()).unwrap();
    drop(file);
    agent.wait("our token beside the edit", || {
        let document =
            fs::read(node.auth_file()).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        document
            .is_some_and(|it| it["auths"]["other.example.com"].is_object() && it["auths"][HOST].is_object())
    });
    agent.stop();
}

#[test]
fn a_change_while_the_layout_changes_is_not_lost() {
    if !all_here(&[Need::Strace]) {
        return;
    }
    let cases: Vec<(&str, &Race)> =
        ["link", "undo"].iter().flat_map(|way| RACES[..4].iter().map(move |race| (*way, race))).collect();
    in_parallel(&cases, |&(way, race)| {
        let node = Node::with_auth_file(FOREIGN);
        let inside = node.path("kubelet/ecr-node-agent/config.json");
        let path = node.auth_file();
        let names = || fs::metadata(&path).map_or(0, |it| it.nlink());
        let run = if way == "link" {
            settle(&node);
            // The file has its second name, and the link will take its place in three seconds.
            let run = slowed(&node, &["link"], "symlinkat:delay_enter=3000000");
            wait_for("the second name", || names() == 2);
            run
        } else {
            let auth_file = path.to_str().unwrap();
            node.run(&["link", "--auth-file", auth_file]).expect(0, &[]);
            settle(&node);
            let run = slowed(&node, &["link", "--undo"], "renameat2:delay_enter=3000000:when=1");
            wait_for("the second name", || names() == 2);
            run
        };
        (race.edit)(&path);
        ended(&node, run);
        let case = format!("{way}: another program {}", race.what);
        wait_for(&case, || has_other(&path));
        assert_eq!(path.is_symlink(), way == "link", "{case}");
        // A program that replaces the link does not see the file behind it, which then stays.
        let keeps_both = way == "undo" && race.what != "writes the file" && !race.what.starts_with("opens");
        assert_eq!(inside.exists(), way == "link" || keeps_both, "{case}");
        if keeps_both {
            assert!(read(&inside)["auths"]["registry.example.com"].is_object(), "{case}");
        }
    });
}

/// Edits the file at the moment at which the agent has written its new version and is about to put it in place, each time
/// with another entry. Nothing slows the agent down.
#[test]
fn edits_at_the_worst_moment_lose_nothing() {
    const ROUNDS: usize = 60;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    write(&path, FOREIGN);
    let file = auth_file(&path);
    let temporary = directory.path().join(".ecr-node-agent-config.json.tmp");
    let mut memory = Memory::default();
    publish(&file, 0, &mut memory);
    let (edited, over) = (AtomicUsize::new(0), Over::default());
    let mut started_over = 0;
    std::thread::scope(|scope| {
        let _end = over.guard();
        scope.spawn(|| {
            for number in 0..ROUNDS {
                while !temporary.exists() {
                    if over.is_set() {
                        return;
                    }
                    std::hint::spin_loop();
                }
                // Another program reads, and writes what it has read with one entry more.
                let Ok(mut document) = serde_json::from_slice::<Value>(&fs::read(&path).unwrap()) else {
                    continue;
                };
                document["auths"][format!("race-{number}.example")] = json!({});
                let text = document.to_string();
                let edit = if number % 2 == 0 { write } else { replace };
                edit(&path, &text);
                edited.fetch_add(1, Ordering::Relaxed);
                while temporary.exists() && !over.is_set() {
                    std::hint::spin_loop();
                }
            }
        });
        let mut number = 0;
        while edited.load(Ordering::Relaxed) < ROUNDS && number < 4 * ROUNDS {
            number += 1;
            let before = edited.load(Ordering::Relaxed);
            at_rest(|| {
                let outcome = file.publish(&wanted(number), OPTIONS, &mut memory).unwrap();
                // The edit came in between: the agent has seen it.
                let is_waiting =
                    matches!(outcome.effect, ecr_node_agent::auth_file::Effect::NotAtRest { .. });
                started_over += usize::from(is_waiting && edited.load(Ordering::Relaxed) > before);
                outcome
            });
        }
    });
    publish(&file, 9999, &mut memory);
    let edited = edited.into_inner();
    let document = read(&path);
    let auths = document["auths"].as_object().unwrap();
    let kept = (0..ROUNDS).filter(|number| auths.contains_key(&format!("race-{number}.example"))).count();
    tell(&format!(
        "{edited} edits in the moment before a replacement, {} lost; the agent waited for {started_over} of them",
        edited - kept
    ));
    assert!(edited >= ROUNDS / 2, "only {edited} edits");
    assert_eq!(kept, edited);
    assert!(auths.contains_key("registry.example.com") && auths.contains_key(HOST));
}

#[test]
fn a_layout_that_changes_beside_edits_loses_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    write(&path, "{\"auths\":{}}");
    let file = auth_file(&path);
    let over = Over::default();
    let mut changes = 0;
    let edits = std::thread::scope(|scope| {
        // Another program adds entries one after the other, in place or by a new file, and pauses now and then.
        let editor = scope.spawn(|| {
            let mut number = 0;
            while !over.is_set() {
                let Ok(mut document) = serde_json::from_slice::<Value>(&fs::read(&path).unwrap()) else {
                    continue;
                };
                document["auths"][format!("edit-{number}.example")] = json!({});
                let edit = if number % 2 == 0 { write } else { replace };
                edit(&path, &document.to_string());
                number += 1;
                sleep(Duration::from_millis(if number % 50 == 0 { 1500 } else { 3 }));
            }
            number
        });
        let end = over.guard();
        let start = Instant::now();
        while changes < 5 {
            assert!(start.elapsed().as_secs() < 600, "the layout changed only {changes} times");
            // The other program may be faster again and again: then nothing is changed.
            let Ok(made) = file.link(OPTIONS, &mut Memory::default()) else { continue };
            changes += usize::from(made.link == Some(Link::Made));
            while path.is_symlink() {
                file.unlink(OPTIONS).ok();
            }
        }
        drop(end);
        editor.join().unwrap()
    });
    let document = read(&path);
    let auths = document["auths"].as_object().unwrap();
    let lost: Vec<usize> =
        (0..edits).filter(|number| !auths.contains_key(&format!("edit-{number}.example"))).collect();
    tell(&format!(
        "{edits} edits while the file was linked and put back {changes} times, {} lost",
        lost.len()
    ));
    assert_eq!(lost, [0; 0]);
}
