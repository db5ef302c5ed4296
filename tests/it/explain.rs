//! `explain` tells what the kubelet would do, and shows no password.

use super::node::{HOST, Node, Run};
use serde_json::{Value, json};
use std::fs;

/// `explain` for a kubelet of this node, with what else the case says.
fn explain(node: &Node, more: &[&str]) -> Run {
    explain_with_home(node, node.path("home").to_str().unwrap(), more)
}

fn explain_with_home(node: &Node, home: &str, more: &[&str]) -> Run {
    let paths = [node.auth_file(), node.path("work")].map(|path| path.to_str().unwrap().to_owned());
    let kubelet = ["--auth-file", &paths[0], "--kubelet-home", home, "--kubelet-working-dir", &paths[1]];
    let run = node.run(&[&["explain"], &kubelet[..], more].concat());
    for secret in ["dXNlcjpwYXNz", "s3cr3t", "czNjcjN0"] {
        assert!(!run.out.contains(secret) && !run.err.contains(secret), "a secret is shown: {}", run.out);
    }
    run
}

fn explained(node: &Node, code: i32, more: &[&str]) -> Value {
    let run = explain(node, &[&["--output", "json"], more].concat()).expect(code, &[]);
    serde_json::from_str(&run.out).unwrap()
}

fn entry(user: &str) -> Value {
    json!({ "username": user, "password": "s3cr3t" })
}

/// What each file is, by its path inside the node.
fn states(node: &Node, report: &Value) -> Vec<(String, String)> {
    let root = node.path("");
    let files = report["files"].as_array().unwrap().iter();
    let inside = files.filter_map(|file| {
        let path = file["path"].as_str().unwrap().strip_prefix(root.to_str().unwrap())?;
        Some((path.to_owned(), file["state"].as_str().unwrap().to_owned()))
    });
    inside.collect()
}

#[test]
fn the_first_file_that_the_kubelet_can_read_is_used_and_the_others_say_why_not() {
    let node = Node::with_auth_file(r#"{"auths":{"good.example.com":{},"bad.example.com":{"auth":"eA=="}}}"#);
    let document = json!({ "auths": { "good.example.com": entry("a") } }).to_string();
    fs::create_dir_all(node.path("work/config.json")).unwrap();
    node.write("home/.docker/config.json", &document);
    node.write("kubelet/.dockercfg", &json!({ "good.example.com": entry("b") }).to_string());
    node.write("work/.dockercfg", "[]");
    let report = explained(&node, 0, &["good.example.com/app"]);
    let expected = [
        ("kubelet/config.json", "ignored"),
        ("work/config.json", "ignored"),
        ("home/.docker/config.json", "used"),
        ("kubelet/.dockercfg", "hidden"),
        ("work/.dockercfg", "ignored"),
        ("home/.dockercfg", "missing"),
    ];
    assert_eq!(states(&node, &report), expected.map(|(path, state)| (path.to_owned(), state.to_owned())));
    let problem = report["files"][0]["problems"][0].as_str().unwrap();
    assert_eq!(
        problem,
        "the entry `bad.example.com` cannot be decoded: `auth` is not base64 of `user:password`"
    );
    assert_eq!(report["images"][0]["tried"][0]["username"], "a");

    // The legacy file counts once no config.json does.
    fs::remove_file(node.path("home/.docker/config.json")).unwrap();
    let report = explained(&node, 0, &["good.example.com/app"]);
    assert_eq!(report["images"][0]["tried"][0]["username"], "b");
    // A kubelet without a HOME looks in its working directory instead.
    node.write("work/.docker/config.json", &document);
    explain_with_home(&node, "", &["good.example.com/app"])
        .expect(0, &["HOME unset", "work/.docker/config.json  used"]);
    explain_with_home(&node, "home", &["good.example.com/app"])
        .expect(2, &["--kubelet-home home is relative"]);
}

#[test]
fn entries_are_told_in_the_order_in_which_they_are_tried() {
    let node = Node::new();
    node.once(&[]).expect(0, &[]);
    let mut document = node.document();
    let auths = document["auths"].as_object_mut().unwrap();
    auths.insert("*.dkr.ecr.eu-west-1.amazonaws.com".to_owned(), entry("glob"));
    auths.insert(format!("{HOST}/team"), entry("team"));
    auths.insert(format!("https://{HOST}/v2/"), entry("other"));
    auths.insert(format!("{HOST}:443"), entry("port"));
    auths.insert("user:s3cr3t@registry.example.com".to_owned(), json!({ "identitytoken": "s3cr3t" }));
    node.write("kubelet/config.json", &document.to_string());

    let image = format!("{HOST}/team/app:1");
    let report = explained(&node, 0, &[&image]);
    let found = &report["images"][0];
    assert_eq!(found["looked_up"], format!("{HOST}/team/app"));
    let tried = found["tried"].as_array().unwrap();
    let of = |name: &str| tried.iter().map(|tried| tried[name].clone()).collect::<Vec<_>>();
    assert_eq!(of("username"), ["team", "AWS", "other", "glob"]);
    assert_eq!(of("state"), ["unknown", "valid", "unknown", "unknown"]);
    assert_eq!(of("ours"), [false, true, false, false]);
    assert_eq!(of("in_random_order"), [false, true, true, false]);
    assert_eq!(tried[1]["expires_at"], node.document()["ecr-node-agent"]["entries"][HOST]["expiresAt"]);
    let not_tried = found["not_tried"].as_array().unwrap();
    let reasons: Vec<_> = not_tried.iter().map(|entry| (&entry["key"], &entry["reason"])).collect();
    let (with_port, shown) = (json!(format!("{HOST}:443")), json!("…@registry.example.com"));
    assert_eq!(reasons, [(&shown, &json!("label_count")), (&with_port, &json!("port"))]);

    let text = explain(&node, &[&image])
        .expect(0, &["used: 6 entries", "the port differs: `443` here, none in the image"]);
    assert!(text.out.contains(&format!("1. {HOST}/team")), "{}", text.out);
}

#[test]
fn it_ends_well_only_with_a_usable_credential_for_every_image() {
    let node = Node::new();
    node.once(&[]).expect(0, &[]);
    let (ours, other) = (format!("{HOST}/app"), "registry.example.com/app");
    explain(&node, &[&ours]).expect(0, &["a credential that may work"]);
    explain(&node, &[&ours, other]).expect(1, &["the kubelet pulls without credentials"]);

    // An expired one is tried, and no pull without a credential after it.
    let end = node.document()["ecr-node-agent"]["entries"][HOST]["expiresAt"].as_str().unwrap().to_owned();
    let text = fs::read_to_string(node.auth_file()).unwrap().replace(&end, "2026-01-01T00:00:00Z");
    node.write("kubelet/config.json", &text);
    let run =
        explain(&node, &[&ours]).expect(1, &["expired 2026-01-01T00:00:00Z", "no credential that can work"]);
    assert!(run.out.contains("the kubelet does not try without a credential after these"), "{}", run.out);

    // The kubelet ignores an identity token.
    node.write(
        "kubelet/config.json",
        &json!({ "auths": { HOST: { "identitytoken": "s3cr3t" } } }).to_string(),
    );
    explain(&node, &[&ours]).expect(1, &["neither user nor password"]);
    // No file at all; one that only we cannot judge.
    fs::remove_file(node.auth_file()).unwrap();
    explain(&node, &[&ours]).expect(1, &["missing", "the kubelet pulls without credentials"]);
    fs::File::create(node.auth_file()).unwrap().set_len(16 * 1024 * 1024 + 1).unwrap();
    let run = explain(&node, &[&ours]).expect(
        5,
        &["larger than 16 MiB", "cannot determine which file the kubelet uses", "result: unknown"],
    );
    assert!(!run.out.contains("pulls without credentials"), "{}", run.out);
    assert_eq!(explained(&node, 5, &[&ours])["images"][0]["usable"], Value::Null);

    explain(&node, &["https://registry.example.com/app"]).expect(2, &["drop the scheme"]);
    explain(&node, &["Registry/App"]).expect(2, &["no capital letters"]);
    explain(&node, &[]).expect(2, &["<IMAGE>"]);
}

#[test]
fn the_plugins_that_the_kubelet_asks_are_named() {
    let node = Node::new();
    let image = format!("{HOST}/app");
    let config = node.run(&["credential-provider", "--print-config"]).expect(0, &[]).out;
    let other = config.replace("name: ecr-node-agent", "name: other").replace("ecr.*", "ecr.us-east-1");
    node.write("plugins/20.yaml", &config);
    node.write("plugins/10.yml", &other);
    node.write("plugins/notes.txt", "not a configuration");
    let directory = node.path("plugins");
    let directory = directory.to_str().unwrap();
    let plugins = ["--kubelet-plugin-config", directory];
    let of = |report: &Value| report["images"][0]["plugins"].clone();

    // Without an entry, a plugin may have a credential.
    let asked = [&plugins[..], &[&image]].concat();
    let run = explain(&node, &asked).expect(0, &["asks its plugins only", "a plugin may have a credential"]);
    let first = format!("Plugins that {directory} configures: other, ecr-node-agent");
    assert!(run.out.contains(&first), "{}", run.out);
    assert!(
        run.out.contains("tried after these: the answers of the plugins ecr-node-agent\n"),
        "{}",
        run.out
    );
    let report = explained(&node, 0, &asked);
    assert_eq!(report["plugins"]["names"], json!(["other", "ecr-node-agent"]));
    assert_eq!(of(&report), json!(["ecr-node-agent"]));
    let both = [&plugins[..], &["123456789012.dkr.ecr.us-east-1.amazonaws.com/app"]].concat();
    assert_eq!(of(&explained(&node, 0, &both)), json!(["other", "ecr-node-agent"]));
    explain(&node, &[&plugins[..], &["registry.example.com/app"]].concat())
        .expect(1, &["the kubelet pulls without credentials"]);

    // The file comes first.
    node.once(&[]).expect(0, &[]);
    explain(&node, &asked).expect(0, &["1. ", "tried after these", "result: a credential that may work"]);

    for (text, said) in [
        ("", "the kubelet does not start with it: 10.yml is not a CredentialProviderConfig"),
        (&config, "the provider `ecr-node-agent` is there twice"),
        (&other.replace("0s", "1 day"), "the provider `other` has no valid `defaultCacheDuration`"),
    ] {
        node.write("plugins/10.yml", text);
        explain(&node, &asked).expect(0, &["configures: unknown: ", said]);
    }
    assert!(explained(&node, 0, &asked)["plugins"]["problem"].is_string());
    explain(&node, &["--kubelet-plugin-config", "/nonexistent", &image]).expect(0, &["cannot read it"]);
    explain(&node, &["--kubelet-plugin-config", "plugins", &image]).expect(2, &["is relative"]);
}

#[test]
fn status_warns_of_what_goes_before_ours_and_of_what_ours_hides() {
    let node = Node::new();
    node.once(&[]).expect(0, &[]);
    let auth_file = node.auth_file();
    let status = || node.run(&["status", "--auth-file", auth_file.to_str().unwrap()]);
    assert!(!status().expect(0, &[]).out.contains("warning:"));

    let mut document = node.document();
    let auths = document["auths"].as_object_mut().unwrap();
    auths.insert(format!("{HOST}/team"), entry("team"));
    auths.insert(format!("http://{HOST}"), entry("again"));
    auths.insert("*.dkr.ecr.eu-west-1.amazonaws.com/team".to_owned(), entry("after"));
    node.write("kubelet/config.json", &document.to_string());
    let hidden = json!({ "auths": { HOST: entry("x"), "lost.example.com": entry("y") } });
    node.write("home/.docker/config.json", &hidden.to_string());
    let run = status();
    let home = node.path("home/.docker/config.json");
    let warnings = [
        format!(
            "warning: {} is hidden by this file, and its entries are not used: lost.example.com",
            home.display()
        ),
        format!("warning: the kubelet tries `{HOST}/team` before `{HOST}`, for images that match both"),
        format!("warning: `http://{HOST}` is another spelling of `{HOST}`"),
    ];
    let told: Vec<_> = run.out.lines().filter(|line| line.contains("warning:")).collect();
    assert_eq!(told.len(), 3, "{}", run.out);
    for warning in warnings {
        assert!(run.out.contains(&warning), "{warning}\n{}", run.out);
    }

    // One that the kubelet passes over.
    node.write("kubelet/config.json", "{\"auths\":{\"a\":[]}}");
    let instead = format!("warning: the kubelet uses {} instead of this file", home.display());
    status().expect(1, &[&instead]);
}

#[test]
fn a_file_of_another_name_is_looked_at_alone() {
    let node = Node::new();
    node.write("crio/auth.json", &json!({ "auths": { "registry.example.com": entry("a") } }).to_string());
    let file = node.path("crio/auth.json");
    let run = node.run(&["explain", "--auth-file", file.to_str().unwrap(), "registry.example.com/app"]);
    let run = run.expect(0, &["the kubelet does not search for files of this name"]);
    assert!(!run.out.contains(".dockercfg"), "{}", run.out);
}

#[test]
fn no_password_in_a_key_is_shown_by_any_command() {
    let node = Node::new();
    node.once(&[]).expect(0, &[]);
    let keys = [
        "https://user:pa/s3cr3t@example.com".to_owned(),
        format!("https://AWS:s3cr3t/abc+def==@{HOST}"),
        "user:s3cr3t@example.com?x=://".to_owned(),
        format!("//user:s3cr3t@{HOST}"),
        format!("https:/user:s3cr3t@{HOST}"),
        format!("{HOST}?token=s3cr3t"),
        format!("{HOST}:s3cr3t"),
        format!("https://user:s3cr3t@{HOST}"),
    ];
    let mut document = node.document();
    for key in &keys {
        document["auths"][key] = entry("other");
    }
    node.write("kubelet/config.json", &document.to_string());
    let image = format!("{HOST}/app");
    let auth_file = node.auth_file();
    let file = ["--auth-file", auth_file.to_str().unwrap()];
    let commands: [&[&str]; 4] = [
        &["explain", &image],
        &["explain", "--output", "json", &image],
        &["status"],
        &["status", "--output", "json"],
    ];
    for command in commands {
        let run = node.run(&[command, &file].concat());
        assert!(
            !run.out.is_empty() && !run.out.contains("s3cr3t") && !run.err.contains("s3cr3t"),
            "{}",
            run.out
        );
    }
    // Entries that are taken over, or that spoil the file, are named, too.
    for more in [&[][..], &["--dry-run"]] {
        let once = node.once(&[&["--log-level", "debug"], more].concat());
        assert!(!once.out.contains("s3cr3t") && !once.err.contains("s3cr3t"), "{}\n{}", once.out, once.err);
        for key in &keys {
            document["auths"][key] = json!({ "auth": "eA==" });
        }
        node.write("kubelet/config.json", &document.to_string());
    }
}
