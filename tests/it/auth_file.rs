//! What the agent does to the auth file, and what it never does.

use crate::needs::{Need, all_here};
use crate::node::{FOREIGN, HOST, Node, names, output, read};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ecr_node_agent::auth_file::{AuthFile, Effect, Memory, Outcome, PublishOptions};
use ecr_node_agent::docker_config::merge::{Wanted, WantedEntry};
use jiff::{SignedDuration, Timestamp};
use secrecy::SecretString;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

#[test]
fn a_refresh_writes_the_entry_and_records_when_it_expires() {
    let node = Node::new();
    node.once(&[]).expect(0, &["fetched an authorization token", "published"]);
    node.assert_latest_token(HOST);
    let document = node.document();
    let issued = &node.aws.issued()[0];
    let expires_at: Timestamp =
        document["ecr-node-agent"]["entries"][HOST]["expiresAt"].as_str().unwrap().parse().unwrap();
    assert!(expires_at.duration_since(issued.expires_at).abs() <= SignedDuration::from_secs(1));
    assert_eq!(document["ecr-node-agent"]["entries"][HOST]["source"], "eu-west-1");
    let metadata = fs::metadata(node.auth_file()).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
    assert_eq!(node.names(), ["config.json"]);
}

#[test]
fn foreign_entries_keep_their_order_and_ours_is_replaced() {
    let node = Node::with_auth_file(FOREIGN);
    node.once(&[]).expect(0, &[]);
    node.once(&[]).expect(0, &[]);
    assert_eq!(node.aws.issued().len(), 2);
    node.assert_latest_token(HOST);
    let text = fs::read_to_string(node.auth_file()).unwrap();
    assert!(text.starts_with(FOREIGN.trim_end_matches("\n\t}\n}")), "{text}");

    let auth_file = node.auth_file();
    node.run(&["remove", "--auth-file", auth_file.to_str().unwrap()]).expect(0, &["removed"]);
    assert_eq!(fs::read_to_string(auth_file).unwrap().trim_end(), FOREIGN);
}

#[test]
fn an_entry_without_a_record_is_taken_over_with_a_log_line() {
    let content = json!({ "auths": { HOST: { "auth": "QVdTOm9sZA==" } } }).to_string();
    let node = Node::with_auth_file(&content);
    node.once(&[]).expect(0, &["took over entries that carried no record of this agent", HOST]);
    node.assert_latest_token(HOST);
}

#[test]
fn a_registry_that_is_no_longer_configured_is_removed() {
    let node = Node::with_auth_file(FOREIGN);
    let other = "123456789012.dkr.ecr.us-east-1.amazonaws.com";
    node.once(&["--registry", HOST, "--registry", other]).expect(0, &[]);
    node.once(&["--registry", HOST]).expect(0, &["removed"]);
    let auths = node.document()["auths"].as_object().unwrap().clone();
    assert_eq!(auths.keys().collect::<Vec<_>>(), ["registry.example.com", HOST]);
}

#[test]
fn a_failure_leaves_the_old_file_unchanged() {
    let node = Node::with_auth_file(FOREIGN);
    let before = fs::metadata(node.auth_file()).unwrap();
    node.aws.fail(ecr_emulator::Api::Ecr, ecr_emulator::Fault::access_denied(), ecr_emulator::Times::Always);
    node.once(&[]).expect(4, &["access denied", "ecr:GetAuthorizationToken"]);
    let after = fs::metadata(node.auth_file()).unwrap();
    assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
}

#[test]
fn a_region_that_fails_does_not_affect_the_other() {
    let node = Node::new();
    let other = "123456789012.dkr.ecr.us-east-1.amazonaws.com";
    let both = ["--registry", HOST, "--registry", other];
    node.once(&both).expect(0, &[]);
    let old = node.document()["auths"][other].clone();
    let fault = ecr_emulator::Fault::access_denied();
    node.aws.fail_in("us-east-1", ecr_emulator::Api::Ecr, fault, ecr_emulator::Times::Always);
    node.once(&both).expect(4, &["access denied"]);
    node.assert_latest_token(HOST);
    assert_eq!(node.document()["auths"][other], old, "the old token stays");
}

#[test]
fn an_auth_file_that_fails_does_not_affect_the_other() {
    let node = Node::new();
    let missing = node.path("missing/config.json");
    node.once(&["--auth-file", missing.to_str().unwrap()])
        .expect(5, &["does not exist", "wrong directory mounted"]);
    node.assert_latest_token(HOST);
    assert!(!node.path("missing").exists(), "a directory was made");
}

#[test]
fn a_symlink_stays_and_its_target_is_replaced() {
    let node = Node::new();
    node.write("elsewhere/real.json", FOREIGN);
    symlink("../elsewhere/real.json", node.path("kubelet/hop.json")).unwrap();
    symlink("hop.json", node.auth_file()).unwrap();
    node.once(&[]).expect(0, &[]);
    assert!(fs::symlink_metadata(node.auth_file()).unwrap().is_symlink());
    assert!(fs::symlink_metadata(node.path("kubelet/hop.json")).unwrap().is_symlink());
    assert!(fs::symlink_metadata(node.path("elsewhere/real.json")).unwrap().is_file());
    node.assert_latest_token(HOST);
    assert_eq!(node.names(), ["config.json", "hop.json"]);
    assert_eq!(names(&node.path("elsewhere")), ["real.json"]);
}

#[test]
fn a_dangling_symlink_gets_its_target() {
    let node = Node::new();
    fs::create_dir(node.path("kubelet/agent")).unwrap();
    symlink("agent/config.json", node.auth_file()).unwrap();
    node.once(&[]).expect(0, &[]);
    node.assert_latest_token(HOST);
    assert_eq!(names(&node.path("kubelet/agent")), ["config.json"]);
}

#[test]
fn symlinks_that_other_users_may_have_made_are_not_followed() {
    let node = Node::new();
    symlink("config.json", node.auth_file()).unwrap();
    node.once(&[]).expect(5, &["leads to more than 40 others"]);

    fs::remove_file(node.auth_file()).unwrap();
    symlink("/etc/hostname", node.auth_file()).unwrap();
    fs::set_permissions(node.path("kubelet"), fs::Permissions::from_mode(0o1777)).unwrap();
    node.once(&[]).expect(5, &["everybody may write to its directory"]);
    fs::set_permissions(node.path("kubelet"), fs::Permissions::from_mode(0o755)).unwrap();

    if all_here(&[Need::Root]) {
        std::os::unix::fs::lchown(node.auth_file(), Some(12345), None).unwrap();
        node.once(&[]).expect(5, &["belongs to another user"]);
    }
}

#[test]
fn mode_owner_label_and_access_list_are_kept() {
    let node = Node::with_auth_file(FOREIGN);
    fs::set_permissions(node.auth_file(), fs::Permissions::from_mode(0o640)).unwrap();
    let who = format!("group {} may read it (mode 0640)", fs::metadata(node.auth_file()).unwrap().gid());
    node.once(&[]).expect(0, &["others than root can get at this file", &who]);
    assert_eq!(fs::metadata(node.auth_file()).unwrap().mode() & 0o7777, 0o640);

    if all_here(&[Need::Root, Need::SecurityAttributes]) {
        let label = b"system_u:object_r:container_var_lib_t:s0";
        let file = fs::File::open(node.auth_file()).unwrap();
        rustix::fs::fsetxattr(&file, "security.selinux", label, rustix::fs::XattrFlags::empty()).unwrap();
        std::os::unix::fs::chown(node.auth_file(), Some(12), Some(34)).unwrap();
        node.once(&[]).expect(0, &[]);
        let metadata = fs::metadata(node.auth_file()).unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (12, 34, 0o640));
        let mut found = [0_u8; 100];
        let file = fs::File::open(node.auth_file()).unwrap();
        let length = rustix::fs::fgetxattr(&file, "security.selinux", &mut found[..]).unwrap();
        assert_eq!(&found[..length], label);
    }
}

#[test]
fn a_file_that_the_kubelet_ignores_is_set_aside_and_its_valid_entries_stay() {
    let spoilt = "{\"auths\":{\"good.example\":{\"auth\":\"dXNlcjpwYXNz\"},\"bad.example\":{\"auth\":\"eA==\"}},\"x\":1}";
    let cases = [
        // what is there,     what is said,             what lives on
        (spoilt, "the entry `bad.example` cannot be decoded", json!(["good.example", HOST])),
        ("{\"auths\":{\"good.example\":[]}}", "it is no JSON object", json!([HOST])),
        ("{\"auths\":{\"a.example\":{}}", "it ends too early, at line 1", json!([HOST])),
        ("{\"auths\":[],\"x\":1}", "`auths` is no JSON object", json!([HOST])),
        (
            "{\"HttpHeaders\":{\"a\":1},\"auths\":{\"good.example\":{}}}",
            "`HttpHeaders`",
            json!(["good.example", HOST]),
        ),
        ("not JSON", "it does not begin with `{`", json!([HOST])),
    ];
    for (content, said, left) in cases {
        let node = Node::with_auth_file(content);
        fs::set_permissions(node.auth_file(), fs::Permissions::from_mode(0o644)).unwrap();
        node.once(&[]).expect(0, &[said, "the original is kept as"]);
        let keys: Vec<_> = node.document()["auths"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(json!(keys), left, "{content}");
        let [_, copy] = &node.names()[..] else { panic!("{:?}", node.names()) };
        assert!(copy.starts_with("config.json.invalid-2"), "{copy}");
        let copy = node.path("kubelet").join(copy);
        assert_eq!(fs::read_to_string(&copy).unwrap(), content);
        assert_eq!(fs::metadata(&copy).unwrap().mode() & 0o7777, 0o600, "it holds credentials");
        // The same damage a second time is the same original.
        node.write("kubelet/config.json", content);
        node.once(&[]).expect(0, &["the original is kept as"]);
        assert_eq!(node.names().len(), 2);
    }
}

#[test]
fn copies_of_damaged_files_do_not_fill_the_disk() {
    let node = Node::new();
    for number in 0..20 {
        node.write("kubelet/config.json", &format!("damage {number}"));
        let said = if number < 16 { "the original is kept" } else { "there are 16 copies" };
        node.once(&[]).expect(0, &[said]);
    }
    assert_eq!(node.names().len(), 17);
}

#[test]
fn an_empty_file_is_filled_and_not_set_aside() {
    let node = Node::with_auth_file(" \n");
    node.once(&[]).expect(0, &[]);
    assert_eq!(node.names(), ["config.json"]);
}

#[test]
fn a_file_that_cannot_be_preserved_is_left_alone() {
    let cases = [
        ("{\"auths\":{\"a\":{}},\"auths\":{\"b\":{}}}".as_bytes(), "more than once"),
        (b"{\"auths\":{\"a\":{\"username\":\"\xFF\"}}}", "invalid UTF-8"),
    ];
    for (content, said) in cases {
        let node = Node::new();
        #[expect(clippy::disallowed_methods, reason = "test code")]
        fs::write(node.auth_file(), content).unwrap();
        node.once(&[]).expect(5, &[said, "was left alone"]);
        assert_eq!(fs::read(node.auth_file()).unwrap(), content);
    }
}

#[test]
fn only_a_small_regular_file_is_accepted() {
    let node = Node::new();
    fs::create_dir(node.auth_file()).unwrap();
    node.once(&[]).expect(5, &["is a directory"]);
    fs::remove_dir(node.auth_file()).unwrap();

    nix::unistd::mkfifo(&node.auth_file(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    node.once(&[]).expect(5, &["is a pipe"]);
    fs::remove_file(node.auth_file()).unwrap();

    node.write("kubelet/config.json", &format!("{{\"x\":\"{}\"}}", "a".repeat(1024 * 1024)));
    node.once(&[]).expect(5, &["larger than 1 MiB"]);

    let auth_file = node.path("kubelet/config.json/config.json");
    node.run(&["--once", "--auth-file", auth_file.to_str().unwrap()]).expect(5, &["config.json"]);
}

#[test]
fn a_new_file_copies_the_entries_that_it_hides() {
    let node = Node::new();
    node.write(
        "home/.docker/config.json",
        &format!("{{\"auths\":{{\"a.example\":{{\"auth\":\"dXNlcjpwYXNz\"}},\"{HOST}\":{{}}}}}}"),
    );
    node.once(&[]).expect(0, &["is hidden by this file from now on", "a.example"]);
    let keys: Vec<_> = node.document()["auths"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["a.example", HOST]);
    // Without the new file the kubelet finds the hidden file again, unchanged.
    let auth_file = node.auth_file();
    node.run(&["remove", "--auth-file", auth_file.to_str().unwrap()]).expect(0, &["deleted"]);
    assert_eq!(node.names(), [""; 0]);
}

#[test]
fn a_file_that_the_kubelet_may_have_read_copies_no_hidden_entries() {
    let hidden = "{\"a.example\":{\"auth\":\"dXNlcjpwYXNz\"}}";
    // Truncated or damaged a moment ago: the kubelet has cached what it read of this file before.
    for content in ["", "damaged", "{\"auths\":{\"b.example\":{},\"c.example\":[]}}"] {
        let node = Node::with_auth_file(content);
        node.write("home/.dockercfg", hidden);
        node.once(&[]).expect(0, &["did not come along", "changed less than five minutes ago"]);
        assert!(node.document()["auths"].get("a.example").is_none(), "{content}");
    }

    let node = Node::with_auth_file(FOREIGN);
    node.write("home/.dockercfg", hidden);
    node.once(&[]).expect(0, &[]);
    assert!(node.document()["auths"].get("a.example").is_none(), "that file was hidden before us");
}

#[test]
fn remove_does_not_delete_a_file_whose_original_was_set_aside() {
    let node = Node::with_auth_file("damaged");
    node.once(&[]).expect(0, &["the original is kept"]);
    let auth_file = node.auth_file();
    node.run(&["remove", "--auth-file", auth_file.to_str().unwrap()]).expect(0, &["removed"]);
    assert_eq!(node.document(), json!({}));
}

#[test]
fn a_hidden_file_of_another_user_is_not_copied() {
    if !all_here(&[Need::Root]) {
        return;
    }
    let node = Node::new();
    node.write("home/.docker/config.json", "{\"auths\":{\"a.example\":{\"auth\":\"dXNlcjpwYXNz\"}}}");
    for theirs in ["home/.docker/config.json", "home/.docker", "home"] {
        std::os::unix::fs::chown(node.path(theirs), Some(12345), None).unwrap();
        node.once(&[]).expect(0, &[]);
        assert!(node.document()["auths"].get("a.example").is_none(), "{theirs}");
        fs::remove_file(node.auth_file()).unwrap();
        std::os::unix::fs::chown(node.path(theirs), Some(0), None).unwrap();
    }
    // The other user's link to a file of root's.
    node.write("roots.json", "{\"auths\":{\"a.example\":{\"auth\":\"dXNlcjpwYXNz\"}}}");
    fs::remove_file(node.path("home/.docker/config.json")).unwrap();
    symlink(node.path("roots.json"), node.path("home/.docker/config.json")).unwrap();
    std::os::unix::fs::lchown(node.path("home/.docker/config.json"), Some(12345), None).unwrap();
    node.once(&[]).expect(0, &[]);
    assert!(node.document()["auths"].get("a.example").is_none());
}

#[test]
fn a_mounted_file_is_refused_with_the_reason() {
    if !all_here(&[Need::Mounts]) {
        return;
    }
    let node = Node::with_auth_file(FOREIGN);
    node.write("host.json", FOREIGN);
    let script = "mount --bind \"$0\" \"$1\" && shift 1 && exec \"$@\"";
    let (host, auth_file) = (node.path("host.json"), node.auth_file());
    let wrapper =
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, host.to_str().unwrap()];
    let wrapper = [&wrapper[..], &[auth_file.to_str().unwrap()]].concat();
    let arguments = ["--once", "--auth-file", auth_file.to_str().unwrap()];
    let output = output(&mut node.command(&wrapper, &arguments));
    node.checked(&output).expect(5, &["a mount of its own", "mount its directory instead", "untouched"]);
    assert_eq!(fs::read_to_string(host).unwrap(), FOREIGN);
    assert_eq!(node.names(), ["config.json"]);
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
    let refused = run(&["--once"]).expect(5, &["OpenShift", "--auth-file"]);
    assert_eq!(refused.out, "");
    let done = run(&["--once", "--auth-file", "/var/lib/kubelet/config.json"]).expect(0, &[]);
    assert_eq!(done.out, "config.json\n");
}

/// An explicit refresh. No test here depends on the time.
pub const OPTIONS: PublishOptions =
    PublishOptions { now: Timestamp::UNIX_EPOCH, dry_run: false, explicit: true };

/// Publishes as soon as the file is at rest.
pub fn publish(file: &AuthFile, number: usize, memory: &mut Memory) -> Outcome {
    at_rest(|| file.publish(&wanted(number), OPTIONS, memory).unwrap())
}

/// Repeats an update until the file is at rest.
pub fn at_rest(mut update: impl FnMut() -> Outcome) -> Outcome {
    let start = std::time::Instant::now();
    loop {
        match update() {
            Outcome { effect: Effect::NotAtRest { retry_in }, .. } => {
                assert!(start.elapsed().as_secs() < 300, "it waits longer than any update may");
                std::thread::sleep(retry_in);
            }
            outcome => return outcome,
        }
    }
}

/// One entry with a new token each time.
pub fn wanted(number: usize) -> Wanted {
    let now: Timestamp = "2026-11-23T10:00:00Z".parse().unwrap();
    let auth = SecretString::from(STANDARD.encode(format!("AWS:{number:01800}")));
    let expires_at = now + SignedDuration::from_hours(12);
    let entry = WantedEntry {
        auth,
        expires_at,
        fetched_at: now,
        source: "eu-west-1".to_owned(),
        default_registry: false,
    };
    let entries = BTreeMap::from([(HOST.to_owned(), entry)]);
    Wanted { entries, drop_others: true, ..Wanted::default() }
}

pub fn auth_file(path: &Path) -> AuthFile {
    AuthFile { path: path.to_owned(), named: true, kubelet_home: Some(path.with_file_name("home")) }
}

#[test]
fn a_file_that_is_up_to_date_is_not_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let file = auth_file(&path);
    let mut memory = Memory::default();
    let mut publish = |number| publish(&file, number, &mut memory).effect;
    let state =
        |path: &Path| fs::metadata(path).map(|it| (it.ino(), it.mtime(), it.mtime_nsec(), it.ctime_nsec()));
    assert!(matches!(publish(1), Effect::Replaced(_)));
    let before = (state(&path).unwrap(), state(directory.path()).unwrap());
    assert_eq!(publish(1), Effect::Unchanged);
    assert_eq!(before, (state(&path).unwrap(), state(directory.path()).unwrap()));
    assert!(matches!(publish(2), Effect::Replaced(_)));
}

#[test]
fn the_next_start_removes_what_a_killed_run_left() {
    let node = Node::new();
    node.write("kubelet/.ecr-node-agent-config.json.tmp", "half a docum");
    node.once(&[]).expect(0, &[]);
    assert_eq!(node.names(), ["config.json"]);
}

#[test]
fn a_dry_run_prints_the_changes_and_makes_none() {
    let node = Node::with_auth_file(FOREIGN);
    node.write("kubelet/.ecr-node-agent-config.json.tmp", "half a docum");
    let run = node.once(&["--dry-run"]).expect(0, &["would be replaced", "write   ", HOST, "redacted"]);
    assert!(run.out.contains("everything else stays"), "{}", run.out);
    assert_eq!(fs::read_to_string(node.auth_file()).unwrap(), FOREIGN);
    assert_eq!(node.names(), [".ecr-node-agent-config.json.tmp", "config.json"]);

    node.once(&[]).expect(0, &[]);
    let before = read(&node.auth_file());
    let auth_file = node.auth_file();
    let remove = ["remove", "--dry-run", "--auth-file", auth_file.to_str().unwrap()];
    node.run(&remove).expect(0, &["would be replaced", "remove  ", HOST]);
    assert_eq!(read(&node.auth_file()), before);
}

#[test]
fn a_secret_in_a_file_that_is_no_document_is_not_shown() {
    for content in ["\"QVdTOnN1cGVyc2VjcmV0\"", "[\"QVdTOnN1cGVyc2VjcmV0\"]", "QVdTOnN1cGVyc2VjcmV0"] {
        let node = Node::with_auth_file(content);
        let auth_file = node.auth_file();
        let status = node
            .run(&["status", "--auth-file", auth_file.to_str().unwrap()])
            .expect(1, &["it does not begin with"]);
        let once = node.once(&[]).expect(0, &["it does not begin with"]);
        assert!(!format!("{}{}", status.out, once.err).contains("QVdTOnN1"), "{content} is shown");
    }
    let key = format!("https://AWS:hunter2@{HOST}");
    let node = Node::with_auth_file(&json!({ "auths": { &key: { "auth": "QVdTOm9sZA==" } } }).to_string());
    let auth_file = node.auth_file();
    let status = node
        .run(&["status", "--auth-file", auth_file.to_str().unwrap()])
        .expect(0, &[&format!("https://…@{HOST}")]);
    let once = node.once(&[]).expect(0, &["took over entries that carried no record of this agent"]);
    assert!(!format!("{}{}", status.out, once.err).contains("hunter2"), "a password in a key is shown");
}

#[test]
fn a_file_that_would_become_too_large_is_not_written() {
    let content = format!("{{\"x\":\"{}\"}}", "a".repeat(1024 * 1024 - 1000));
    let node = Node::with_auth_file(&content);
    node.once(&[]).expect(5, &["would be larger than 1 MiB, so nothing was written"]);
    assert_eq!(fs::read_to_string(node.auth_file()).unwrap(), content);
}

#[test]
fn the_default_access_list_of_a_directory_gives_no_user_access() {
    if !all_here(&[Need::Root, Need::SecurityAttributes]) {
        return;
    }
    let node = Node::with_auth_file(FOREIGN);
    fs::set_permissions(node.auth_file(), fs::Permissions::from_mode(0o640)).unwrap();
    // The kernel's form of `d:u::rwx,d:u:12345:rw-,d:g::r-x,d:m::rwx,d:o::---`.
    let entries: [(u16, u16, u32); 5] =
        [(1, 7, u32::MAX), (2, 6, 12345), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)];
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        list.extend(tag.to_le_bytes().into_iter().chain(permissions.to_le_bytes()).chain(id.to_le_bytes()));
    }
    let directory = fs::File::open(node.path("kubelet")).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::fsetxattr(&directory, "system.posix_acl_default", &list, flags).unwrap();
    node.once(&[]).expect(0, &[]);
    let file = fs::File::open(node.auth_file()).unwrap();
    let mut found = [0_u8; 100];
    assert!(
        rustix::fs::fgetxattr(&file, "system.posix_acl_access", &mut found[..]).is_err(),
        "it has an access list"
    );
    assert_eq!(fs::metadata(node.auth_file()).unwrap().mode() & 0o7777, 0o640);
}

#[test]
fn a_file_that_no_kubelet_looks_for_hides_nothing() {
    let node = Node::new();
    node.write("home/.docker/config.json", "{\"auths\":{\"a.example\":{\"auth\":\"dXNlcjpwYXNz\"}}}");
    let other = node.path("kubelet/auth.json");
    node.run(&["--once", "--auth-file", other.to_str().unwrap()]).expect(0, &[]);
    assert!(read(&other)["auths"].get("a.example").is_none());
}

#[test]
fn a_hidden_file_that_cannot_be_copied_is_reported() {
    let cases = [
        (
            "home/.docker/config.json",
            format!("{{\"x\":\"{}\"}}", "a".repeat(1024 * 1024)).into_bytes(),
            "larger than 1 MiB",
        ),
        ("home/.dockercfg", b"{\"a.example\":{\"username\":\"\xE4\"}}".to_vec(), "invalid UTF-8"),
    ];
    for (path, content, said) in cases {
        let node = Node::new();
        node.write(path, "");
        #[expect(clippy::disallowed_methods, reason = "test code")]
        fs::write(node.path(path), content).unwrap();
        node.once(&[]).expect(0, &["its entries did not come along: it could not be read", said]);
    }
}

#[test]
fn the_ledger_of_a_later_version_is_left_alone() {
    let node = Node::new();
    node.once(&[]).expect(0, &[]);
    let later = fs::read_to_string(node.auth_file()).unwrap().replace("\"version\": 1", "\"version\": 2");
    node.write("kubelet/config.json", &later);
    let auth_file = node.auth_file();
    for arguments in [vec!["remove"], vec!["--once"]] {
        let arguments = [&arguments[..], &["--auth-file", auth_file.to_str().unwrap()]].concat();
        node.run(&arguments).expect(5, &["a later version"]);
    }
    assert_eq!(fs::read_to_string(auth_file).unwrap(), later);
}

#[test]
fn a_file_that_is_ignored_anyway_is_replaced() {
    for content in [
        "{\"auths\":{\"a\":{}},\"auths\":{\"bad\":[]}}".as_bytes(),
        b"{\"auths\":{\"a\":{\"username\":\"\xFF\"},\"bad\":[]}}",
    ] {
        let node = Node::new();
        #[expect(clippy::disallowed_methods, reason = "test code")]
        fs::write(node.auth_file(), content).unwrap();
        node.once(&[]).expect(0, &["the entry `bad` cannot be decoded", "the original is kept as"]);
    }
}

#[test]
fn another_programs_file_is_refused_and_untouched() {
    let cases = [
        (
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n",
            "of kind KubeletConfiguration",
        ),
        (
            "{\"kind\":\"KubeletConfiguration\",\"apiVersion\":\"kubelet.config.k8s.io/v1beta1\"}",
            "of kind KubeletConfiguration",
        ),
        ("kind: CredentialProviderConfig\nproviders:\n- name: ecr\n", "of kind CredentialProviderConfig"),
        ("apiVersion: v1\nclusters: []\nkind: Config\n", "of kind Config"),
        ("auths:\n  a.example: {}\nx: 1\n", "a YAML file"),
    ];
    for (content, said) in cases {
        let node = Node::with_auth_file(content);
        node.once(&[]).expect(5, &[said, "was left alone"]);
        let auth_file = node.auth_file();
        node.run(&["remove", "--auth-file", auth_file.to_str().unwrap()]).expect(5, &[said]);
        assert_eq!(fs::read_to_string(&auth_file).unwrap(), content);
        assert_eq!(node.names(), ["config.json"]);
    }
}

#[test]
fn a_form_feed_is_content() {
    let node = Node::with_auth_file("\u{C}");
    node.once(&[]).expect(0, &["the original is kept as"]);
    assert_eq!(node.names().len(), 2);
}

#[test]
fn a_mode_that_has_become_stricter_is_kept_and_a_wider_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let file = auth_file(&path);
    let mut memory = Memory::default();
    publish(&file, 1, &mut memory);
    let mode = || fs::metadata(&path).unwrap().mode() & 0o777;
    let mut after = |set: u32, number| {
        fs::set_permissions(&path, fs::Permissions::from_mode(set)).unwrap();
        let outcome = publish(&file, number, &mut memory);
        (outcome.effect == Effect::ModeRestored, mode())
    };
    assert_eq!(after(0o400, 1), (false, 0o400), "the owner wants it so");
    assert_eq!(after(0o644, 1), (true, 0o600), "others could read the token");
    assert_eq!(after(0o400, 2), (false, 0o400), "a new file is as strict");
    if all_here(&[Need::Root]) {
        // Root alone can read it then.
        assert_eq!(after(0o200, 3), (false, 0o200));
    }
}

#[test]
fn who_else_can_read_or_replace_the_file_is_reported_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    #[expect(clippy::disallowed_methods, reason = "test code")]
    fs::write(&path, FOREIGN).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let file = auth_file(&path);
    let mut memory = Memory::default();
    let mut said = |number| {
        let outcome = publish(&file, number, &mut memory);
        outcome.notes.iter().map(ToString::to_string).collect::<String>()
    };
    assert!(said(1).contains("every user may read it (mode 0644)"));
    assert_eq!(said(1), "");
    assert_eq!(said(2), "", "a new token is no news of it");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(said(2).contains("every user may write to its directory and can replace it"));
    if all_here(&[Need::Root]) {
        std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
        assert!(said(2).contains("user 12345 owns it"));
    }
}

#[test]
fn attributes_of_users_and_programs_are_kept() {
    let node = Node::with_auth_file(FOREIGN);
    // Some do not fit into what is usual.
    let long = format!("user.{}", "long".repeat(60));
    let attributes = [("user.note", 5), ("trusted.note", 5), (&long, 1000)];
    let set = |(name, length): (&str, usize)| {
        let file = fs::File::open(node.auth_file()).unwrap();
        rustix::fs::fsetxattr(&file, name, &vec![b'v'; length], rustix::fs::XattrFlags::empty()).is_ok()
    };
    let attributes = attributes.into_iter().filter(|one| set(*one)).collect::<Vec<_>>();
    node.once(&[]).expect(0, &[]);
    for (name, length) in attributes {
        let file = fs::File::open(node.auth_file()).unwrap();
        let mut found = [0_u8; 2000];
        let found_length = rustix::fs::fgetxattr(&file, name, &mut found[..]).unwrap();
        assert_eq!(found[..found_length], vec![b'v'; length], "{name}");
    }
}

#[test]
fn remove_reports_an_entry_without_a_record_and_removes_it_on_request() {
    let node = Node::with_auth_file(FOREIGN);
    node.once(&[]).expect(0, &[]);
    // `docker login` drops the ledger.
    let mut document = node.document();
    document.as_object_mut().unwrap().remove("ecr-node-agent");
    node.write("kubelet/config.json", &document.to_string());
    let auth_file = node.auth_file();
    let remove =
        |more: &[&str]| node.run(&[&["remove", "--auth-file", auth_file.to_str().unwrap()], more].concat());
    remove(&[]).expect(0, &["look like ours (user AWS) but carry no record", HOST, "remove --registry"]);
    assert!(node.document()["auths"][HOST].is_object());
    remove(&["--registry", "210987654321.dkr.ecr.eu-west-1.amazonaws.com"]).expect(0, &["carry no record"]);
    remove(&["--registry", HOST]).expect(0, &["removed"]);
    let auths = node.document()["auths"].as_object().unwrap().clone();
    assert_eq!(auths.keys().collect::<Vec<_>>(), ["registry.example.com"]);
}

#[test]
fn lost_content_is_restored_and_deleted_content_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let home = directory.path().join("home/.docker");
    fs::create_dir_all(&home).unwrap();
    #[expect(clippy::disallowed_methods, reason = "test code")]
    let write = |path: &Path, text: &str| fs::write(path, text).unwrap();
    write(&home.join("config.json"), "{\"auths\":{\"private.example\":{\"auth\":\"dXNlcjpwYXNz\"}}}");
    write(&path, "{\"auths\":{\"a.example\":{}},\"field\":1}");
    let file = auth_file(&path);
    let mut memory = Memory::default();
    publish(&file, 1, &mut memory);
    let keys = || read(&path)["auths"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let mut after = |content: Option<&str>| {
        match content {
            Some(content) => write(&path, content),
            None => fs::remove_file(&path).unwrap(),
        }
        let outcome = publish(&file, 1, &mut memory);
        outcome.notes.iter().map(ToString::to_string).collect::<String>()
    };
    for partial in ["", "\n", "{\"auths\":{\"a.exam", "\0\0\0\0"] {
        let said = after(Some(partial));
        assert!(said.contains("what the agent had read there before was restored: a.example"), "{said}");
        assert_eq!(keys(), ["a.example", HOST], "{partial}");
        assert_eq!(read(&path)["field"], 1);
    }
    // A document without the entry says that it is not wanted.
    assert!(!after(Some("{\"auths\":{\"b.example\":{}}}")).contains("restored"));
    assert_eq!(keys(), ["b.example", HOST]);
    // So does a deletion; the log names the entry. The kubelet has not read root's own credentials, so they are not copied.
    let said = after(None);
    assert!(
        said.contains("made anew without the entries of other programs that were in it: b.example"),
        "{said}"
    );
    assert_eq!(keys(), [HOST]);
    // Each damaged version is kept beside the file, and nothing else.
    assert_eq!(names(directory.path()).len(), 4, "{:?}", names(directory.path()));
}

#[test]
fn an_entry_that_another_program_has_removed_does_not_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    #[expect(clippy::disallowed_methods, reason = "test code")]
    let write = |text: &str| fs::write(&path, text).unwrap();
    write("{\"auths\":{\"a.example\":{},\"b.example\":{}}}");
    let (file, mut memory) = (auth_file(&path), Memory::default());
    publish(&file, 1, &mut memory);
    write("{\"auths\":{\"b.example\":{}}}");
    // The file has just changed, so it is only read.
    let outcome = file.publish(&wanted(1), OPTIONS, &mut memory).unwrap();
    assert!(matches!(outcome.effect, Effect::NotAtRest { .. }), "{outcome:?}");
    write("");
    publish(&file, 1, &mut memory);
    let document = read(&path);
    assert_eq!(document["auths"].as_object().unwrap().keys().collect::<Vec<_>>(), ["b.example", HOST]);
}

#[test]
fn what_one_file_held_does_not_come_into_another() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let turn_to = |target: &str| {
        fs::remove_file(&path).ok();
        symlink(target, &path).unwrap();
    };
    for name in ["one", "other"] {
        fs::create_dir(directory.path().join(name)).unwrap();
    }
    #[expect(clippy::disallowed_methods, reason = "test code")]
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    write("one/config.json", FOREIGN);
    write("other/config.json", "");
    turn_to("one/config.json");
    let (file, mut memory) = (auth_file(&path), Memory::default());
    publish(&file, 1, &mut memory);
    turn_to("other/config.json");
    publish(&file, 1, &mut memory);
    let document = read(&path);
    assert_eq!(document["auths"].as_object().unwrap().keys().collect::<Vec<_>>(), [HOST]);
}

#[test]
fn what_a_deleted_file_held_does_not_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    #[expect(clippy::disallowed_methods, reason = "test code")]
    let write = |text: &str| fs::write(&path, text).unwrap();
    write(FOREIGN);
    let (file, mut memory) = (auth_file(&path), Memory::default());
    publish(&file, 1, &mut memory);
    fs::remove_file(&path).unwrap();
    let nothing = Wanted { entries: BTreeMap::new(), ..wanted(1) };
    let outcome = at_rest(|| file.publish(&nothing, OPTIONS, &mut memory).unwrap());
    assert_eq!(outcome.effect, Effect::Unchanged);
    write("");
    publish(&file, 1, &mut memory);
    let document = read(&path);
    assert_eq!(document["auths"].as_object().unwrap().keys().collect::<Vec<_>>(), [HOST]);
}

#[test]
fn what_the_agent_has_read_before_its_first_token_is_restored() {
    let node = Node::with_auth_file(FOREIGN);
    node.aws.fail(ecr_emulator::Api::Ecr, ecr_emulator::Fault::access_denied(), ecr_emulator::Times::Always);
    let agent = node.start(&[]);
    // The file is read at the start; the second attempt comes after that.
    agent.wait_for("access denied", 1);
    agent.signal(nix::sys::signal::Signal::SIGHUP);
    agent.wait_for("access denied", 2);
    node.write("kubelet/config.json", "");
    node.aws.heal();
    agent.signal(nix::sys::signal::Signal::SIGHUP);
    agent.wait_for("what the agent had read there before was restored", 1);
    agent.stop();
    node.assert_latest_token(HOST);
    assert!(node.document()["auths"]["registry.example.com"].is_object());
}

#[test]
fn a_program_that_replaces_the_file_all_the_time_is_waited_for_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    #[expect(clippy::disallowed_methods, reason = "test code")]
    let replace = || {
        fs::write(directory.path().join("new"), FOREIGN).unwrap();
        fs::rename(directory.path().join("new"), &path).unwrap();
    };
    replace();
    let (file, mut memory) = (auth_file(&path), Memory::default());
    let over = crate::beside::Over::default();
    std::thread::scope(|scope| {
        let _end = over.guard();
        scope.spawn(|| {
            while !over.is_set() {
                replace();
            }
        });
        let mut attempts = 0;
        // The wait is over when an attempt fails because the program was faster. Then each update attempts it again.
        let outcome = loop {
            let outcome = file.publish(&wanted(1), OPTIONS, &mut memory);
            match outcome.as_ref().map(|outcome| &outcome.effect) {
                Ok(Effect::NotAtRest { retry_in }) if *retry_in == std::time::Duration::from_millis(100) => {
                    attempts += 1;
                    if attempts == 3 {
                        break Ok(());
                    }
                }
                Ok(Effect::NotAtRest { retry_in }) if attempts == 0 => std::thread::sleep(*retry_in),
                // It was faster than the program for once.
                Ok(Effect::Replaced(_)) => break Ok(()),
                _ => break Err(outcome),
            }
        };
        assert!(outcome.is_ok(), "after {attempts} attempts: {outcome:?}");
    });
}

#[test]
fn a_start_beside_an_emptied_file_copies_no_credentials_of_root() {
    let node = Node::with_auth_file("");
    node.write("home/.docker/config.json", "{\"auths\":{\"private.example\":{\"auth\":\"dXNlcjpwYXNz\"}}}");
    let agent = node.start(&[]);
    agent.wait("our token", || node.auth_file().metadata().unwrap().len() > 0);
    agent.wait_for("this file was emptied a short while ago", 1);
    agent.wait_for("its entries did not come along", 1);
    agent.stop();
    assert!(node.document()["auths"].get("private.example").is_none());
}

#[test]
fn a_program_that_keeps_the_file_open_does_not_keep_the_token_away() {
    use ecr_node_agent::auth_file::Note;

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    #[expect(clippy::disallowed_methods, reason = "test code")]
    fs::write(&path, FOREIGN).unwrap();
    let open = fs::File::options().append(true).open(&path).unwrap();
    let (file, mut memory) = (auth_file(&path), Memory::default());
    let outcome = publish(&file, 1, &mut memory);
    assert!(outcome.notes.iter().any(|note| matches!(note, Note::NotAwaited { .. })), "{:?}", outcome.notes);
    assert!(
        read(&path)["auths"][HOST].is_object() && read(&path)["auths"]["registry.example.com"].is_object()
    );
    drop(open);
}

#[test]
fn a_record_that_claims_an_impossible_expiry_keeps_no_token_away() {
    let node = Node::new();
    node.once(&[]).expect(0, &[]);
    let planted = |node: &Node| {
        let mut document = node.document();
        document["ecr-node-agent"]["entries"][HOST]["expiresAt"] = json!("2999-01-01T00:00:00Z");
        node.write("kubelet/config.json", &document.to_string());
    };
    planted(&node);
    let auth_file = node.auth_file();
    let status = node.run(&["status", "--auth-file", auth_file.to_str().unwrap()]);
    assert!(!status.out.contains("valid"), "{}", status.out);
    node.once(&[]).expect(0, &[]);
    node.assert_latest_token(HOST);
    // A start does not believe the record either, and asks ECR.
    planted(&node);
    let agent = node.start(&[]);
    agent.wait("a third token", || node.aws.count(ecr_emulator::Api::Ecr) == 3);
    agent.wait("it in the file", || {
        let latest = node.aws.issued().last().map(|issued| issued.token_base64.clone()).unwrap_or_default();
        fs::read_to_string(node.auth_file()).is_ok_and(|text| text.contains(&latest))
    });
    agent.stop().expect(0, &[]);
}
