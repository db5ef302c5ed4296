//! The daemon: promises 6, 8, 9 and 10, through the program.

use crate::needs::{Need, all_here, tell};
use crate::node::{FOREIGN, HOST, Node, Running};
use ecr_emulator::{Api, Fault, Options, Times};
use jiff::SignedDuration;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs;
use std::io::{PipeReader, PipeWriter, Read as _, Write as _, pipe};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

const ID: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

/// A node whose file holds a good token of ours, and no call to ECR counted yet beside that one.
fn served() -> Node {
    let node = Node::with_auth_file(FOREIGN);
    node.once(&[]).expect(0, &[]);
    node
}

#[test]
fn it_fetches_at_once_publishes_and_stops_when_asked() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let node = Node::with_auth_file(FOREIGN);
        let agent = node.start(&[]);
        agent.wait_for("\"published\"", 1);
        node.assert_latest_token(HOST);
        agent.stop_by(signal).expect(0, &["stopping"]);
        assert_eq!(node.aws.count(Api::Ecr), 1);
        assert_eq!(node.names(), ["config.json"]);
    }
}

#[test]
fn a_start_that_finds_a_good_token_asks_nobody() {
    let node = served();
    let before = fs::metadata(node.auth_file()).unwrap().modified().unwrap();
    for _ in 0..3 {
        let agent = node.start(&[]);
        agent.wait_for("the auth file is up to date", 1);
        agent.stop().expect(0, &["found a good token in the auth file"]);
    }
    assert_eq!(node.aws.count(Api::Ecr), 1);
    assert_eq!(fs::metadata(node.auth_file()).unwrap().modified().unwrap(), before);

    // A second file gets the same token, and still nobody is asked.
    let second = node.path("kubelet/second.json");
    let agent = node.start(&["--auth-file", second.to_str().unwrap()]);
    agent.wait("the second file", || second.exists());
    agent.stop().expect(0, &[]);
    assert_eq!(node.aws.count(Api::Ecr), 1);

    // A token of another caller's, or from a time that has not come yet, is not good.
    let role = "arn:aws:iam::111111111111:role/pull";
    let agent = node.start(&["--role-arn", role]);
    agent.wait("a second token", || node.aws.count(Api::Ecr) == 2);
    agent.wait_for("\"published\"", 1);
    agent.stop();
    let text =
        fs::read_to_string(node.auth_file()).unwrap().replace("\"fetchedAt\": \"2", "\"fetchedAt\": \"3");
    node.write("kubelet/config.json", &text);
    let agent = node.start(&["--role-arn", role]);
    agent.wait("a third token", || node.aws.count(Api::Ecr) == 3);
    agent.stop().expect(0, &[]);
}

/// Damages a file, and says whether it is mended.
type Drift = (&'static str, fn(&Node), fn(&Node) -> bool);

fn document(node: &Node) -> Option<Value> {
    serde_json::from_slice(&fs::read(node.auth_file()).ok()?).ok()
}

fn has_our_token(node: &Node) -> bool {
    let Some(token) = node.aws.issued().last().map(|issued| issued.token_base64.clone()) else {
        return false;
    };
    document(node).is_some_and(|document| document["auths"][HOST] == json!({ "auth": token }))
}

fn replace(node: &Node, content: &str) {
    node.write("kubelet/other.tmp", content);
    fs::rename(node.path("kubelet/other.tmp"), node.auth_file()).unwrap();
}

#[test]
fn drift_is_repaired_from_memory_without_asking_ecr() {
    let cases: [Drift; 7] = [
        ("deleted", |node| fs::remove_file(node.auth_file()).unwrap(), has_our_token),
        ("truncated", |node| drop(fs::File::create(node.auth_file()).unwrap()), has_our_token),
        (
            "replaced",
            |node| replace(node, "{\"auths\":{\"other.example\":{}}}"),
            |node| {
                has_our_token(node)
                    && document(node).is_some_and(|it| it["auths"]["other.example"].is_object())
            },
        ),
        ("spoilt", |node| replace(node, "no JSON"), has_our_token),
        (
            "our entry changed",
            |node| {
                let mut document = document(node).unwrap();
                document["auths"][HOST]["auth"] = json!("QVdTOm9sZA==");
                replace(node, &document.to_string());
            },
            has_our_token,
        ),
        (
            "a foreign entry added",
            |node| {
                let mut document = document(node).unwrap();
                document["auths"]["added.example"] = json!({});
                document["auths"].as_object_mut().unwrap().remove(HOST);
                replace(node, &document.to_string());
            },
            |node| {
                has_our_token(node)
                    && document(node).is_some_and(|it| it["auths"]["added.example"].is_object())
            },
        ),
        (
            "its permissions changed",
            |node| {
                fs::set_permissions(node.auth_file(), fs::Permissions::from_mode(0o666)).unwrap();
            },
            |node| fs::metadata(node.auth_file()).unwrap().permissions().mode() & 0o777 == 0o600,
        ),
    ];
    for (what, damage, is_mended) in cases {
        let node = served();
        fs::set_permissions(node.auth_file(), fs::Permissions::from_mode(0o600)).unwrap();
        let agent = node.start(&[]);
        agent.wait_for("the auth file is up to date", 1);
        let start = Instant::now();
        damage(&node);
        agent.wait(what, || is_mended(&node));
        tell(&format!("{what}: repaired after {} ms", start.elapsed().as_millis()));
        agent.wait_for("were restored", 1);
        let run = agent.stop().expect(0, &[]);
        assert!(!run.err.contains("once a minute"), "the watch did not see it: {}", run.err);
        assert_eq!(node.aws.count(Api::Ecr), 1, "{what}");
    }
}

#[test]
fn a_fight_with_another_writer_is_damped_and_told() {
    let node = served();
    let agent = node.start(&[]);
    agent.wait_for("the auth file is up to date", 1);
    for round in 1..=11 {
        agent.wait("our token", || has_our_token(&node));
        fs::remove_file(node.auth_file()).unwrap();
        agent.wait_for(
            if round <= 10 { "were restored" } else { "once a minute" },
            if round <= 10 { round } else { 1 },
        );
    }
    // From now on it lets the other one be, for a minute.
    agent.wait("our token", || has_our_token(&node));
    fs::remove_file(node.auth_file()).unwrap();
    sleep(Duration::from_millis(300));
    assert!(!node.auth_file().exists());
    agent.stop().expect(0, &[]);
    assert_eq!(node.aws.count(Api::Ecr), 1);
}

#[test]
fn a_fight_over_one_file_leaves_the_others_as_quick_as_they_were() {
    let node = served();
    let other = node.path("other/config.json");
    fs::create_dir(node.path("other")).unwrap();
    let agent = node.start(&["--auth-file", other.to_str().unwrap()]);
    for file in [&node.auth_file(), &other] {
        agent.wait_for(&format!("the auth file is up to date\",\"path\":\"{}\"", file.display()), 1);
    }
    for round in 1..=11 {
        agent.wait("our token", || has_our_token(&node));
        fs::remove_file(node.auth_file()).unwrap();
        agent.wait_for("were restored", round.min(10));
    }
    agent.wait_for("the agent now restores it once a minute", 1);
    agent.wait("our token", || has_our_token(&node));
    fs::remove_file(node.auth_file()).unwrap();
    for round in 11..=13 {
        let start = Instant::now();
        fs::remove_file(&other).unwrap();
        agent.wait("the other file", || other.exists());
        tell(&format!("beside a fight: repaired after {} ms", start.elapsed().as_millis()));
        agent.wait_for("were restored", round);
        assert!(!node.auth_file().exists(), "it waited for the fight, or the fight goes on");
    }
    agent.stop().expect(0, &[]);
    assert_eq!(node.aws.count(Api::Ecr), 1);
}

#[test]
fn a_directory_that_is_replaced_is_watched_again() {
    let node = served();
    let agent = node.start(&[]);
    agent.wait_for("the auth file is up to date", 1);
    fs::rename(node.path("kubelet"), node.path("old")).unwrap();
    fs::create_dir(node.path("kubelet")).unwrap();
    agent.wait("our token in the new directory", || has_our_token(&node));
    fs::remove_file(node.auth_file()).unwrap();
    agent.wait("our token once more", || has_our_token(&node));
    agent.stop().expect(0, &[]);
    assert_eq!(node.aws.count(Api::Ecr), 1);
}

#[test]
fn a_disk_that_is_mounted_later_is_written_to_and_watched() {
    if !all_here(&[Need::Mounts]) {
        return;
    }
    let node = served();
    let agent = node.start_under(&["unshare", "--mount", "--propagation", "private"], &[]);
    agent.wait_for("the auth file is up to date", 1);
    let root = node.path("kubelet");
    let inside = |program: &str, arguments: &[&str]| {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", &agent.pid().to_string(), program]).args(arguments).arg(&root);
        command.status().unwrap().success()
    };
    // As the agent sees it.
    let file = || {
        let seen = format!("/proc/{}/root{}", agent.pid(), node.auth_file().display());
        fs::read_to_string(seen).is_ok_and(|text| text.contains(HOST))
    };
    let remove = || {
        let seen = format!("/proc/{}/root{}", agent.pid(), node.auth_file().display());
        fs::remove_file(seen).unwrap();
    };
    assert!(inside("mount", &["-t", "tmpfs", "tmpfs"]));
    agent.wait("our token on the new disk", file);
    agent.wait_for("the path leads to another directory now", 1);
    agent.wait_for("were restored", 1);
    remove();
    agent.wait("our token once more", file);
    agent.wait_for("were restored", 2);
    // And when it goes, the one below counts again. It is busy while the agent looks at the file.
    agent.wait("umount", || inside("umount", &[]));
    agent.wait_for("the path leads to another directory now", 2);
    agent.wait("the file below", file);
    fs::remove_file(node.auth_file()).unwrap();
    agent.wait("our token below", file);
    let run = agent.stop().expect(0, &[]);
    assert!(!run.err.contains("once a minute"), "{}", run.err);
    assert_eq!(node.aws.count(Api::Ecr), 1);
}

/// A limit on inotify, in a user namespace of the agent's own, as a node that has reached it shows it to everybody.
fn limited(limit: &str) -> String {
    format!("echo 0 >/proc/sys/user/{limit} && exec \"$@\"")
}

fn start_limited<'a>(node: &'a Node, limit: &str) -> Running<'a> {
    node.start_under(&["unshare", "--user", "--map-root-user", "sh", "-c", &limited(limit), "sh"], &[])
}

/// A look once a minute, and something for a busy machine.
const BLIND: Duration = Duration::from_secs(90);

#[test]
fn without_a_watch_the_files_are_looked_at_once_a_minute() {
    if !all_here(&[Need::UserNamespace]) {
        return;
    }
    let node = served();
    let agent = start_limited(&node, "max_inotify_watches");
    agent.wait_for("the auth file is up to date", 1);
    agent.wait_for("cannot be watched; looking at it once a minute", 1);
    fs::remove_file(node.auth_file()).unwrap();
    agent.wait_within(BLIND, "our token", || has_our_token(&node));
    agent.wait_for("were restored", 1);
    let run = agent.stop().expect(0, &[]);
    assert!(!run.err.contains("watched again"), "{}", run.err);
    assert_eq!(node.aws.count(Api::Ecr), 1);
}

#[test]
fn a_watch_comes_back_once_there_is_room_for_it() {
    if !all_here(&[Need::UserNamespace]) {
        return;
    }
    let node = served();
    let limit = "max_inotify_instances";
    let agent = start_limited(&node, limit);
    agent.wait_for("cannot be watched; looking at it once a minute", 1);
    let mut raise = Command::new("nsenter");
    raise.args(["--user", "--preserve-credentials", "--target", &agent.pid().to_string()]);
    raise.args(["sh", "-c", &format!("echo 128 >/proc/sys/user/{limit}")]);
    assert!(raise.status().unwrap().success());
    agent.wait_within(BLIND, "a watch", || agent.said().contains("watched again"));
    let start = Instant::now();
    for _ in 0..5 {
        fs::remove_file(node.auth_file()).unwrap();
        agent.wait("our token", || has_our_token(&node));
    }
    // Looks once a minute would have taken four minutes at least.
    assert!(start.elapsed() < Duration::from_mins(4), "{:?}", start.elapsed());
    agent.stop().expect(0, &[]);
    assert_eq!(node.aws.count(Api::Ecr), 1);
}

#[test]
fn events_that_nobody_had_room_for_are_no_drift_that_nobody_sees() {
    let node = served();
    let agent = node.start(&[]);
    agent.wait_for("the auth file is up to date", 1);
    let room: u32 =
        fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    agent.signal(Signal::SIGSTOP);
    // Each name is made and goes: two events at the least, and no two in a row are the same.
    for number in 0..=room / 2 {
        let name = node.path(&format!("kubelet/other-{}", number % 2));
        drop(fs::File::create(&name).unwrap());
        fs::remove_file(name).unwrap();
    }
    fs::remove_file(node.auth_file()).unwrap();
    agent.signal(Signal::SIGCONT);
    agent.wait_for("were restored", 1);
    agent.wait("our token", || has_our_token(&node));
    fs::remove_file(node.auth_file()).unwrap();
    agent.wait("our token once more", || has_our_token(&node));
    let run = agent.stop().expect(0, &[]);
    assert!(!run.err.contains("once a minute"), "{}", run.err);
    assert_eq!(node.aws.count(Api::Ecr), 1);
}

#[test]
fn a_stop_waits_for_a_replacement_but_not_for_ever() {
    if !all_here(&[Need::Strace]) {
        return;
    }
    // The file's fsync takes so long.
    let stopped = |microseconds: &str, signals: usize| {
        let node = Node::with_auth_file(FOREIGN);
        let (log, inject) = (node.path("strace.log"), format!("inject=fsync:{microseconds}:when=1"));
        let log = log.to_str().unwrap();
        let strace = ["strace", "-D", "-f", "-o", log, "-e", "trace=fsync", "-e", &inject];
        let agent = node.start_under(&strace, &[]);
        let temporary = || node.names().iter().any(|name| name != "config.json");
        agent.wait("a replacement under way", temporary);
        agent.signal(Signal::SIGTERM);
        agent.wait_for("stopping", 1);
        if signals == 2 {
            agent.signal(Signal::SIGINT);
        }
        agent.wait("its end", || agent.is_over());
        // Until the delay is over, strace would hold up the news of the end.
        agent.end_tracer();
        let run = agent.ended().expect(0, &[]);
        assert_eq!(node.document()["auths"]["registry.example.com"]["auth"], "dXNlcjpwYXNz");
        run
    };
    let gave_up = "gave up a write that took too long";
    // On a busy machine it can take longer than the agent waits.
    let mut tries = (0..10).map(|_| stopped("delay_enter=1000000", 1));
    let run = tries.find(|run| !run.err.contains(gave_up)).expect("a machine that is less busy");
    run.expect(0, &["\"published\""]);
    stopped("delay_enter=600000000", 1).expect(0, &[gave_up]);
    let said = "second stop signal: gave up a write that was under way";
    stopped("delay_enter=600000000", 2).expect(0, &[said]);
}

#[test]
fn rotated_credentials_are_used_as_soon_as_they_are_there() {
    let node = Node::new().without_keys();
    let secret = |version: &str, id: &str| {
        node.write(&format!("secret/{version}/aws_access_key_id"), id);
        node.write(&format!("secret/{version}/aws_secret_access_key"), SECRET);
    };
    let swap = |version: &str| {
        symlink(version, node.path("secret/..data_tmp")).unwrap();
        fs::rename(node.path("secret/..data_tmp"), node.path("secret/..data")).unwrap();
    };
    secret("..1", "AKIAUNKNOWN");
    swap("..1");
    for name in ["aws_access_key_id", "aws_secret_access_key"] {
        symlink(format!("..data/{name}"), node.path("secret").join(name)).unwrap();
    }
    let directory = node.path("secret");
    let agent = node.start(&["--aws-credentials-dir", directory.to_str().unwrap()]);
    // Until the next try by itself is further away than this test waits.
    agent.wait("a long back-off", || agent.last_delay() > Duration::from_secs(5));
    secret("..2", ID);
    swap("..2");
    agent.wait("our token", || node.auth_file().exists() && has_our_token(&node));
    assert!(agent.said().contains("\"reason\":\"credentials\""), "{}", agent.said());
    // With a good token, a rotation is no reason to ask.
    let calls = node.aws.count(Api::Ecr);
    secret("..3", ID);
    swap("..3");
    sleep(Duration::from_millis(200));
    agent.stop().expect(0, &[]);
    assert_eq!(node.aws.count(Api::Ecr), calls);
}

#[test]
fn many_hangups_at_once_cost_two_calls_at_most() {
    let node = served();
    let agent = node.start(&[]);
    agent.wait_for("the auth file is up to date", 1);
    agent.signal(Signal::SIGHUP);
    agent.wait_for("fetched an authorization token", 1);
    assert_eq!(node.aws.count(Api::Ecr), 2);
    let start = Instant::now();
    for _ in 0..50 {
        agent.signal(Signal::SIGHUP);
    }
    // A machine that was too busy to send them at once has let the agent ask once a second meanwhile.
    let seconds = usize::try_from(start.elapsed().as_secs()).unwrap();
    agent.wait_for("fetched an authorization token", 2);
    sleep(Duration::from_millis(300));
    agent.stop().expect(0, &[]);
    let calls = node.aws.count(Api::Ecr) - 2;
    assert!(calls <= 2 + seconds, "{calls} calls");
}

#[test]
fn tokens_are_replaced_before_they_end_whatever_fails_meanwhile() {
    let node = Node::with(Options { token_lifetime: SignedDuration::from_secs(12), ..Options::default() });
    let agent = node.start(&["--spread", "0s"]);
    agent.wait_for("fetched an authorization token", 1);
    // Away from here on: the old token stays, and is told to be past its end.
    node.aws.fail(Api::Ecr, Fault::ServiceUnavailable, Times::Always);
    agent.wait_for("the old one is still valid", 1);
    agent.wait_for("no valid token: image pulls from ECR fail", 1);
    assert!(has_our_token(&node), "an old token stays until a new one is there");
    node.aws.heal();
    agent.wait_for("fetched an authorization token", 2);
    agent.wait("the new token", || has_our_token(&node));
    // And again, by itself.
    agent.wait_for("fetched an authorization token", 3);
    agent.stop().expect(0, &[]);
}

#[test]
fn one_region_failing_does_not_hold_up_another() {
    let node = Node::new();
    let other = "123456789012.dkr.ecr.us-east-1.amazonaws.com";
    node.aws.fail_in("us-east-1", Api::Ecr, Fault::Hang, Times::Always);
    let agent = node.start(&["--registry", HOST, "--registry", other]);
    agent.wait("our token", || node.auth_file().exists() && has_our_token(&node));
    node.aws.heal();
    agent.stop().expect(0, &[]);
}

#[test]
fn it_waits_for_what_is_not_there_yet() {
    let mut node = Node::new().without_keys();
    node.unset("AWS_REGION");
    node.unset("AWS_EC2_METADATA_DISABLED");
    node.set("AWS_EC2_METADATA_SERVICE_ENDPOINT", &node.aws.url());
    node.aws.fail(Api::ImdsSession, Fault::NotFound, Times::Always);
    fs::remove_dir(node.path("kubelet")).unwrap();
    let agent = node.start(&[]);
    agent.wait_for("cannot determine which registry to ask", 2);
    node.aws.heal();
    agent.wait_for("wrong directory mounted", 1);
    fs::create_dir(node.path("kubelet")).unwrap();
    agent.wait("our token", || node.auth_file().exists() && has_our_token(&node));
    agent.stop().expect(0, &["the path leads to another directory now"]);
}

#[test]
fn asleep_for_longer_than_the_interval_it_refreshes_when_it_wakes() {
    let node = served();
    let agent = node.start(&["--interval", "2s", "--spread", "0s"]);
    agent.wait_for("fetched an authorization token", 1);
    agent.signal(Signal::SIGSTOP);
    // What was under way has arrived by then.
    sleep(Duration::from_secs(2));
    let calls = node.aws.count(Api::Ecr);
    sleep(Duration::from_secs(5));
    assert_eq!(node.aws.count(Api::Ecr), calls);
    agent.signal(Signal::SIGCONT);
    agent.wait("another call", || node.aws.count(Api::Ecr) > calls);
    agent.stop().expect(0, &[]);
}

#[test]
fn stopped_at_any_moment_the_file_is_whole_and_nothing_is_left() {
    // In turn, so that most files have been at rest for as long as the agent waits.
    let nodes: Vec<Node> = (0..15).map(|_| Node::with_auth_file(FOREIGN)).collect();
    let mut written = 0;
    for round in 0..200_usize {
        let node = &nodes[round % nodes.len()];
        let agent = node.start(&[]);
        if round % 2 == 0 {
            sleep(Duration::from_micros(fastrand::u64(0..40_000)));
        } else {
            // Just before, in and after the replacement.
            agent.wait_for("fetched an authorization token", 1);
            sleep(Duration::from_micros(fastrand::u64(0..20_000)));
        }
        let run = agent.stop();
        // Early on it is the signal itself that ends it.
        assert!([0, -1].contains(&run.code), "round {round}: {}", run.err);
        written += usize::from(fs::read_to_string(node.auth_file()).unwrap().contains(HOST));
        let text = fs::read_to_string(node.auth_file()).unwrap();
        let document: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("round {round}: {error}: {text}"));
        assert_eq!(document["auths"]["registry.example.com"]["auth"], "dXNlcjpwYXNz", "round {round}");
        if run.err.contains("gave up a write that took too long") {
            // On a busy disk. What it left goes with the next run.
            node.once(&[]).expect(0, &[]);
        }
        assert_eq!(node.names(), ["config.json"], "round {round}");
        // It never finds a good token, so that every start fetches and writes.
        node.write("kubelet/config.json", FOREIGN);
    }
    tell(&format!("stopped 200 times, {written} times after the file was replaced"));
    assert!(written > 0);
}

#[test]
fn a_schedule_takes_the_place_of_the_interval() {
    let node = Node::new();
    let agent = node.start(&["--schedule", "*/2 * * * * *", "--spread", "0s"]);
    agent.wait_for("fetched an authorization token", 3);
    agent.stop().expect(0, &[]);
}

#[test]
fn one_bad_file_costs_the_others_nothing() {
    let node = Node::new();
    let missing = node.path("missing/config.json");
    let agent = node.start(&["--auth-file", missing.to_str().unwrap()]);
    agent.wait("our token", || node.auth_file().exists() && has_our_token(&node));
    agent.wait_for("not published", 5);
    fs::remove_file(node.auth_file()).unwrap();
    agent.wait("our token once more", || node.auth_file().exists() && has_our_token(&node));
    agent.stop().expect(0, &[]);
}

#[test]
fn a_newer_token_of_another_run_stays() {
    let node = served();
    let agent = node.start(&[]);
    agent.wait_for("the auth file is up to date", 1);
    node.once(&[]).expect(0, &[]);
    let newer = node.document();
    agent.wait_for("the auth file is up to date", 2);
    agent.stop().expect(0, &[]);
    // Within one second both are as good.
    let issued = node.aws.issued();
    if issued[0].expires_at.as_second() != issued[1].expires_at.as_second() {
        assert_eq!(node.document(), newer);
    }
}

#[test]
fn a_clock_that_is_set_while_nobody_waits_is_no_failure() {
    if !all_here(&[Need::Strace]) {
        return;
    }
    let node = served();
    let log = node.path("strace.log");
    let inject = "inject=timerfd_settime:error=ECANCELED:when=3";
    let agent = node.start_under(&["strace", "-D", "-f", "-o", log.to_str().unwrap(), "-e", inject], &[]);
    // As often as that the loop comes round.
    agent.wait_for("the auth file is up to date", 1);
    agent.signal(Signal::SIGHUP);
    agent.wait("an injection", || fs::read_to_string(&log).is_ok_and(|log| log.contains("ECANCELED")));
    agent.wait_for("fetched an authorization token", 1);
    agent.stop().expect(0, &[]);
}

#[test]
fn an_expired_public_entry_of_an_earlier_run_goes() {
    let public = "public.ecr.aws";
    let node = Node::new();
    node.once(&["--registry", public]).expect(0, &[]);
    let end = node.document()["ecr-node-agent"]["entries"][public]["expiresAt"].as_str().unwrap().to_owned();
    let text = fs::read_to_string(node.auth_file()).unwrap().replace(&end, "2026-01-01T00:00:00Z");
    node.write("kubelet/config.json", &text);
    node.aws.fail(Api::EcrPublic, Fault::access_denied(), Times::Always);
    let agent = node.start(&["--registry", public]);
    agent.wait("its removal", || document(&node).is_some_and(|it| it["auths"].get(public).is_none()));
    agent.stop().expect(0, &[]);
}

/// A pipe that has room for nothing more.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = pipe().unwrap();
    let size = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(1 << 16)).unwrap();
    writer.write_all(&vec![b'.'; usize::try_from(size).unwrap()]).unwrap();
    (reader, writer)
}

#[test]
fn a_log_that_nobody_reads_holds_nothing_up() {
    let node = Node::with_auth_file(FOREIGN);
    let (mut reader, writer) = full_pipe();
    let agent = node.start_logging_to(writer.into());
    agent.wait("our token", || has_our_token(&node));
    fs::remove_file(node.auth_file()).unwrap();
    agent.wait("our token once more", || has_our_token(&node));
    // Somebody reads again, and learns that something is missing.
    let mut said = vec![0; 1 << 16];
    reader.read_exact(&mut said).unwrap();
    agent.signal(Signal::SIGHUP);
    agent.wait("another call", || node.aws.count(Api::Ecr) == 2);
    while !String::from_utf8_lossy(&said).contains("refreshing now") {
        let mut more = [0; 4096];
        let length = reader.read(&mut more).unwrap();
        assert!(length > 0, "it has ended");
        said.extend_from_slice(&more[..length]);
    }
    let said = String::from_utf8_lossy(&said[1 << 16..]).into_owned();
    let first: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    assert!(
        first["message"].as_str().unwrap().ends_with("log lines were lost: the log was not read"),
        "{said}"
    );
    // Nobody ever will.
    drop(reader);
    agent.signal(Signal::SIGHUP);
    agent.wait("a third call", || node.aws.count(Api::Ecr) == 3);
    agent.stop().expect(0, &[]);
}

#[test]
fn a_log_that_nobody_reads_holds_up_no_stop() {
    let node = Node::with_auth_file(FOREIGN);
    let (_reader, writer) = full_pipe();
    let agent = node.start_logging_to(writer.into());
    agent.wait("our token", || has_our_token(&node));
    agent.signal(Signal::SIGTERM);
    agent.wait("its end", || agent.is_over());
    agent.ended().expect(0, &[]);
}
