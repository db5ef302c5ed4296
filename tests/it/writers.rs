//! Promise 2 against programs that know nothing of the lock: no entry that they write, or leave alone, is lost.

use crate::crash::in_parallel;
use crate::needs::{Need, all_here, tell};
use crate::node::{HOST, Node};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How often each program writes.
const ROUNDS: usize = 3;
/// How many entries of other programs are in the file.
const ENTRIES: usize = 400;
/// What each program adds.
const ADDED: &str = "added.example";

/// A program that edits the file `$F`. `$NEW` is a file with the content that it should have, and `$REGISTRY` a registry that
/// accepts any login.
struct Writer {
    what: &'static str,
    needs: &'static [Need],
    script: &'static str,
}

const WRITERS: [Writer; 24] = [
    Writer { what: "cat >", needs: &[], script: r#"cat "$NEW" >"$F""# },
    Writer { what: "a producer that takes 0.3 s", needs: &[], script: r#"{ sleep 0.3; cat "$NEW"; } >"$F""# },
    Writer { what: "a producer that takes 3 s", needs: &[], script: r#"{ sleep 3; cat "$NEW"; } >"$F""# },
    Writer { what: "cp", needs: &[], script: r#"cp "$NEW" "$F""# },
    Writer { what: "tee", needs: &[], script: r#"tee "$F" <"$NEW" >/dev/null"# },
    Writer { what: "dd", needs: &[], script: r#"dd if="$NEW" of="$F" bs=512 2>/dev/null"# },
    Writer { what: "install -m 600", needs: &[], script: r#"install -m 600 "$NEW" "$F""# },
    Writer { what: "mv", needs: &[], script: r#"cp "$NEW" "$F.tmp" && mv "$F.tmp" "$F""# },
    Writer {
        what: "ln -f",
        needs: &[],
        script: r#"cp "$NEW" "$F.tmp" && ln -f "$F.tmp" "$F" && rm "$F.tmp""#,
    },
    Writer {
        what: "sed -i",
        needs: &[],
        script: r#"sed -i 's/"auths": *{/"auths": {"added.example": {},/' "$F""#,
    },
    Writer {
        what: "vim, which writes the file itself",
        needs: &[Need::Vim],
        script: r#"vim -Nu NONE -es -c 'set backupcopy=yes' -c '%s/"auths": *{/"auths": {"added.example": {},/' -c wq "$F""#,
    },
    Writer {
        what: "vim, which renames the file away",
        needs: &[Need::Vim],
        script: r#"vim -Nu NONE -es -c 'set backupcopy=no' -c '%s/"auths": *{/"auths": {"added.example": {},/' -c wq "$F""#,
    },
    Writer {
        what: "jq | sponge",
        needs: &[Need::Jq, Need::Sponge],
        script: r#"jq '.auths["added.example"] = {}' "$F" | sponge "$F""#,
    },
    Writer { what: "jq >", needs: &[Need::Jq], script: r#"jq . "$NEW" >"$F""# },
    Writer {
        what: "rename, create, write, delete",
        needs: &[],
        script: r#"mv "$F" "$F~"; cat "$NEW" >"$F"; rm "$F~""#,
    },
    Writer {
        what: "rename, create, write, delete, each after 0.2 s",
        needs: &[],
        script: r#"mv "$F" "$F~"; sleep 0.2; : >"$F"; sleep 0.2; cat "$NEW" >>"$F"; sleep 0.2; rm "$F~""#,
    },
    Writer { what: "rm, then write", needs: &[], script: r#"rm "$F"; cat "$NEW" >"$F""# },
    Writer {
        what: "rm, then write after 0.3 s",
        needs: &[],
        script: r#"rm "$F"; sleep 0.3; cat "$NEW" >"$F""#,
    },
    Writer { what: "rm, then write after 2 s", needs: &[], script: r#"rm "$F"; sleep 2; cat "$NEW" >"$F""# },
    Writer {
        what: "truncate, then write after 2 s",
        needs: &[],
        script: r#": >"$F"; sleep 2; cat "$NEW" >"$F""#,
    },
    Writer {
        what: "50 chunks over 2 s",
        needs: &[],
        script: r#"split -n 50 "$NEW" "$NEW."; for part in "$NEW".*; do cat "$part"; sleep 0.04; done >"$F""#,
    },
    Writer {
        what: "50 chunks over 2 s, opened anew for each",
        needs: &[],
        script: r#"split -n 50 "$NEW" "$NEW."; : >"$F"; for part in "$NEW".*; do cat "$part" >>"$F"; sleep 0.04; done"#,
    },
    Writer {
        what: "docker login",
        needs: &[Need::Docker],
        script: r#"docker --config "$(dirname "$F")" login --username user --password pass "$REGISTRY" >/dev/null 2>&1"#,
    },
    Writer {
        what: "podman login",
        needs: &[Need::Podman],
        script: r#"podman login --tls-verify=false --authfile "$F" --username user --password pass "$REGISTRY" >/dev/null"#,
    },
];

impl Writer {
    /// The keys that must be in the file afterwards.
    fn expected(&self, registry: &str) -> Vec<String> {
        let added = if self.script.contains("$REGISTRY") { registry } else { ADDED };
        keys().chain([added.to_owned()]).collect()
    }

    fn command(&self, node: &Node, registry: &str) -> Command {
        node.write("new.json", &document(Some(ADDED)));
        let mut command = Command::new("sh");
        command.args(["-euc", self.script]).env("F", node.auth_file()).env("NEW", node.path("new.json"));
        command.env("REGISTRY", registry).env("HOME", node.path("home"));
        command
    }
}

fn keys() -> impl Iterator<Item = String> {
    (0..ENTRIES).map(|number| format!("registry-{number}.example.com"))
}

/// The content that other programs give the file.
fn document(added: Option<&str>) -> String {
    let entries = keys().chain(added.map(str::to_owned)).map(|key| (key, json!({ "auth": "dXNlcjpwYXNz" })));
    let auths: serde_json::Map<String, Value> = entries.collect();
    serde_json::to_string_pretty(&json!({ "auths": auths })).unwrap()
}

/// How many of `expected` are missing in the file; all of them if it is no document.
fn lost(file: &Path, expected: &[String]) -> usize {
    let document: Option<Value> = fs::read(file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let Some(document) = document else { return expected.len() };
    expected.iter().filter(|key| document["auths"].get(key.as_str()).is_none()).count()
}

/// A registry that accepts any login over HTTP, for as long as the process lives.
fn registry() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut request = Vec::new();
                let mut buffer = [0; 4096];
                while !request.ends_with(b"\r\n\r\n") {
                    match stream.read(&mut buffer) {
                        Ok(0) | Err(_) => return,
                        Ok(count) => request.extend_from_slice(&buffer[..count]),
                    }
                }
                let has_login =
                    String::from_utf8_lossy(&request).to_ascii_lowercase().contains("authorization: basic");
                let status = if has_login { "200 OK" } else { "401 Unauthorized" };
                let answer = format!(
                    "HTTP/1.1 {status}\r\nWWW-Authenticate: Basic realm=\"r\"\r\n\
                     Docker-Distribution-Api-Version: registry/2.0\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
                );
                stream.write_all(answer.as_bytes()).ok();
            });
        }
    });
    address
}

/// Each program that is here, so many times.
fn rounds(count: usize) -> Vec<(&'static Writer, usize)> {
    let here = WRITERS.iter().filter(|writer| all_here(writer.needs));
    here.flat_map(|writer| (0..count).map(move |round| (writer, round))).collect()
}

#[test]
fn no_entry_is_lost_when_another_program_writes_the_file_beside_the_daemon() {
    let registry = registry();
    let slowest: Vec<(AtomicUsize, &str)> =
        WRITERS.iter().map(|writer| (AtomicUsize::new(0), writer.what)).collect();
    let written = AtomicUsize::new(0);
    in_parallel(&rounds(ROUNDS), |&(writer, round)| {
        let node = Node::with_auth_file(&document(None));
        let agent = node.start(&[]);
        agent.wait("our token", || lost(&node.auth_file(), &[HOST.to_owned()]) == 0);
        agent.wait_for("\"published\"", 1);
        // At another moment of the agent's work each time.
        std::thread::sleep(Duration::from_millis(37 * round as u64));
        let status = writer.command(&node, &registry).status().unwrap();
        assert!(status.success(), "{}: {status}", writer.what);
        let finished = Instant::now();
        let expected = writer.expected(&registry);
        let with_ours: Vec<String> = expected.iter().cloned().chain([HOST.to_owned()]).collect();
        let what = format!("{}, round {round}: every entry in the file", writer.what);
        agent.wait(&what, || lost(&node.auth_file(), &with_ours) == 0);
        let took = usize::try_from(finished.elapsed().as_millis()).unwrap();
        let (slowest, _) = slowest.iter().find(|(_, what)| *what == writer.what).unwrap();
        slowest.fetch_max(took, Ordering::Relaxed);
        written.fetch_add(1, Ordering::Relaxed);
        let run = agent.stop().expect(0, &[]);
        assert_eq!(lost(&node.auth_file(), &with_ours), 0, "{what}\n{}", run.err);
        assert_eq!(node.aws.count(ecr_emulator::Api::Ecr), 1, "{what}");
    });
    let times: Vec<String> =
        slowest.iter().map(|(time, what)| format!("{what}: {} ms", time.load(Ordering::Relaxed))).collect();
    let written = written.into_inner();
    tell(&format!(
        "{written} writes of {} entries beside the daemon, 0 lost; our entry was back after at most: {}",
        ENTRIES + 1,
        times.join(", ")
    ));
}

#[test]
fn no_entry_is_lost_when_another_program_writes_the_file_beside_runs_of_once() {
    let registry = registry();
    let written = AtomicUsize::new(0);
    in_parallel(&rounds(1), |&(writer, _)| {
        let node = Node::with_auth_file(&document(None));
        let mut writing = writer.command(&node, &registry).spawn().unwrap();
        let mut runs = 0;
        while writing.try_wait().unwrap().is_none() {
            let run = node.once(&[]);
            assert!(
                run.code == 0 || run.err.contains("was still changing it"),
                "{}: {}",
                writer.what,
                run.err
            );
            runs += 1;
        }
        let run = node.once(&[]).expect(0, &[]);
        let expected = writer.expected(&registry);
        let lost = lost(&node.auth_file(), &expected);
        assert_eq!(lost, 0, "{}, {runs} runs meanwhile: {}", writer.what, run.err);
        node.assert_latest_token(HOST);
        written.fetch_add(1, Ordering::Relaxed);
    });
    tell(&format!("{} writes beside --once, 0 entries lost", written.into_inner()));
}

#[test]
fn no_entry_is_lost_where_the_writers_are_not_known() {
    if !all_here(&[Need::Root]) {
        return;
    }
    // Without the capability the agent cannot look at the processes of a root that has it.
    let what = ["cat >", "a producer that takes 3 s", "cp", "50 chunks over 2 s"];
    let writers: Vec<&Writer> = WRITERS.iter().filter(|writer| what.contains(&writer.what)).collect();
    assert_eq!(writers.len(), what.len());
    let written = AtomicUsize::new(0);
    in_parallel(&writers, |writer| {
        let node = Node::with_auth_file(&document(None));
        let agent = node.start_under(&["setpriv", "--bounding-set=-sys_ptrace"], &[]);
        agent.wait("our token", || lost(&node.auth_file(), &[HOST.to_owned()]) == 0);
        assert!(writer.command(&node, "").status().unwrap().success(), "{}", writer.what);
        let expected: Vec<String> = writer.expected("").into_iter().chain([HOST.to_owned()]).collect();
        agent.wait(writer.what, || lost(&node.auth_file(), &expected) == 0);
        agent.stop().expect(0, &[]);
        assert_eq!(lost(&node.auth_file(), &expected), 0, "{}", writer.what);
        written.fetch_add(1, Ordering::Relaxed);
    });
    tell(&format!("{} writes where the writers are not known, 0 entries lost", written.into_inner()));
}
