//! The command line: what it takes, what it refuses, what it prints; and that `docs/reference.md` says the same.

use crate::node::{FOREIGN, HOST, Node, read};
use crate::tidy::sources;
use clap::CommandFactory as _;
use ecr_node_agent::cli::Cli;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

#[test]
fn what_cannot_be_meant_is_refused_with_one_line_and_nothing_is_written() {
    let two = format!("{HOST} public.ecr.aws");
    let cases: [(&[&str], &str); 53] = [
        (&["--once", "status"], "unexpected argument '--once'"),
        (&["status", "--pull-secret", "a/b"], "unexpected argument '--pull-secret'"),
        (&["explain", "--dry-run", "a.example/b"], "unexpected argument '--dry-run'"),
        (&["link", "--registry", HOST], "unexpected argument '--registry'"),
        (&["--listen", "9797"], "such as `127.0.0.1:9797`"),
        (&["--once", "--registry", &two], "--registry takes one value"),
        (&["--state-file", "state.json"], "--state-file state.json is relative"),
        (&["--schedule", "hourly"], "`hourly` is not a cron expression"),
        (&["--schedule", "TZ=Mars 0 * * * *"], "`Mars` is not a time zone"),
        (&["--schedule", "0 6 * * *"], "a token expires after 12 hours"),
        (&["--interval", "0s"], "--interval 0s would ask ECR without end"),
        (&["--once", "--auth-file", "config.json"], "is relative"),
        (&["--once", "--auth-file", "/a", "--auth-file", "/a"], "is given twice"),
        (&["--once", "--aws-credentials-dir", "secret"], "--aws-credentials-dir secret is relative"),
        (&["--once", "--region", "Europe"], "`Europe` is no AWS region"),
        (&["--once", "--region", "eu-west"], "`eu-west` is no AWS region"),
        (&["--once", "--role-arn", "pull"], "`pull` is no role's ARN"),
        (&["--once", "--role-arn", "arn:aws:iam::1:role/x"], "is no role's ARN"),
        (&["--once", "--timeout", "60"], "expected a duration such as `90s`"),
        (&["--once", "--timeout=-1s"], "a duration cannot be negative"),
        (&["--once", "--log-level", "verbose"], "`verbose` is no level"),
        (&["--once", "--log-format", "xml"], "possible values: text, json"),
        (&["--once", "--no-such"], "unexpected argument '--no-such'"),
        (&["status", "--output", "xml"], "possible values: text, json"),
        (&["--no-auth-file", "--auth-file", "/a"], "contradict each other"),
        (&["--no-auth-file"], "leaves nothing to do"),
        (&["status", "--no-auth-file"], "status reads auth files"),
        (&["--pull-secret", "ecr-creds"], "expected NAMESPACE/NAME"),
        (&["--pull-secret", "Team/ecr-creds"], "`Team` is not a valid namespace"),
        (&["--pull-secret", "team_*/ecr-creds"], "`team_*` cannot match a namespace"),
        (&["--pull-secret", "team/../x"], "`../x` is not a valid name"),
        (&["--pull-secret", "a/b", "--pull-secret", "a/b"], "is given twice"),
        (&["--pull-secret", "team-*/ecr-creds"], "--pull-secret with a pattern finds its namespaces by"),
        (
            &["--pull-secret-selector", "ecr=yes", "--pull-secret-name", "b"],
            "--pull-secret-selector finds its namespaces by",
        ),
        (&["--once", "--pull-secret-selector", "ecr=yes"], "belong together"),
        (
            &["--once", "--pull-secret-selector", "ecr", "--pull-secret-name", "b"],
            "`ecr` is not a valid label",
        ),
        (&["--once", "--patch-service-account", "default"], "needs a --pull-secret to add"),
        (&["--once", "--registry", HOST, "--registry", HOST], "is given twice"),
        (&["--once", "--registry", ",region=eu-west-1"], "the host is missing"),
        (&["--once", "--registry", "https://public.ecr.aws"], "is more than a host"),
        (&["--once", "--registry", "registry.example.com"], "is no ECR registry"),
        (&["--once", "--registry", "12345.dkr.ecr.eu-west-1.amazonaws.com"], "`12345` is no AWS account"),
        (&["--once", "--registry", "*.dkr.ecr.*.amazonaws.com"], "must name its region"),
        (&["--once", "--registry", "*.dkr.ecr.Europe.amazonaws.com"], "the host's region is wrong"),
        (&["--once", "--registry", "*.dkr.ecr.eu-west-1.amazonaws.lol"], "`amazonaws.lol` is not AWS's"),
        (&["--once", "--registry", "*.dkr.ecr.eu-west-1.amazonaws.com:443"], "drop `:443`"),
        (&["--once", "--registry", "a.example:+7,region=eu-west-1"], "`+7` is no port"),
        (&["--once", "--registry", "a.example:65536,region=eu-west-1"], "`65536` is no port"),
        (&["--once", "--registry", "a_b.example,region=eu-west-1"], "is no host name (label `a_b`)"),
        (&["--once", "--registry", "*.*,region=eu-west-1"], "would also match registries of others"),
        (&["--once", "--registry", "a.example,zone=1"], "is neither `region=REGION` nor `role=ARN`"),
        (
            &["--once", "--registry", "a.example,region=us-east-1,region=us-east-1"],
            "`region=` is given twice",
        ),
        (
            &["--once", "--registry", "123456789012.dkr.ecr.eu-west-1.amazonaws.com,region=us-east-1"],
            "a token of us-east-1 is no good there",
        ),
    ];
    let node = Node::new();
    for (arguments, said) in cases {
        let run = node.run(arguments).expect(2, &[said]);
        assert_eq!(run.out, "", "{arguments:?}");
        // Text, although standard error is no terminal.
        assert!(run.err.starts_with("error: ") && run.err.contains("--help"), "{}", run.err);
        assert_eq!(run.err.lines().filter(|line| line.contains(said)).count(), 1, "{}", run.err);
    }
    assert_eq!(node.aws.calls(), []);
    assert_eq!(node.names(), [""; 0]);
}

#[test]
fn a_role_may_have_commas_in_its_name() {
    let node = Node::new();
    let role = "arn:aws:iam::111111111111:role/team/a,b=c";
    node.once(&["--registry", &format!("{HOST},role={role},region=eu-west-1")]).expect(0, &[]);
    assert_eq!(node.aws.calls().last().unwrap().role.as_deref(), Some(role));
}

#[test]
fn every_option_has_its_variable() {
    for argument in Cli::command().get_arguments() {
        let Some(long) = argument.get_long().filter(|long| !["help", "version"].contains(long)) else {
            continue;
        };
        let variable = format!("ECR_NODE_AGENT_{}", long.replace('-', "_").to_uppercase());
        assert_eq!(argument.get_env().and_then(|name| name.to_str()), Some(variable.as_str()), "--{long}");
    }
    let mut node = Node::new();
    let other = "123456789012.dkr.ecr.us-east-1.amazonaws.com";
    let files = [node.auth_file(), node.path("kubelet/second.json")];
    node.set("ECR_NODE_AGENT_ONCE", "1");
    node.set("ECR_NODE_AGENT_AUTH_FILE", &files.each_ref().map(|file| file.to_str().unwrap()).join(" "));
    node.set("ECR_NODE_AGENT_REGISTRY", &format!("{HOST} {other}"));
    node.set("ECR_NODE_AGENT_LOG_FORMAT", "text");
    node.run(&[]).expect(0, &[]);
    for file in files {
        let auths = read(&file)["auths"].clone();
        assert!(auths[HOST].is_object() && auths[other].is_object(), "{auths}");
    }
    node.set("ECR_NODE_AGENT_DRY_RUN", "true");
    node.run(&[]).expect(0, &["would be replaced"]);
    node.set("ECR_NODE_AGENT_ONCE", "perhaps");
    node.run(&[]).expect(2, &["invalid value 'perhaps' for 'ECR_NODE_AGENT_ONCE'"]);
}

#[test]
fn an_error_names_the_variable_or_the_option_whichever_was_given() {
    let bad = |name: &str, value: &str, arguments: &[&str]| {
        let mut node = Node::new();
        node.set(name, value);
        node.run(arguments).expect(2, &[]).err
    };
    let error = bad("ECR_NODE_AGENT_INTERVAL", "6", &["status"]);
    assert!(error.contains("invalid value '6' for 'ECR_NODE_AGENT_INTERVAL'"), "{error}");
    let error = bad("ECR_NODE_AGENT_INTERVAL", "6", &["--interval", "7"]);
    assert!(error.contains("invalid value '7' for '--interval <DURATION>'"), "{error}");
    let error = bad("ECR_NODE_AGENT_AUTH_FILE", "/a /a", &["--once"]);
    assert!(error.contains("error: ECR_NODE_AGENT_AUTH_FILE /a is given twice"), "{error}");
    let error = bad("ECR_NODE_AGENT_PULL_SECRET_SELECTOR", "a=b", &["--once"]);
    assert!(error.contains("ECR_NODE_AGENT_PULL_SECRET_SELECTOR and --pull-secret-name belong"), "{error}");
    let error = bad("ECR_NODE_AGENT_NO_AUTH_FILE", "1", &["--auth-file", "/a"]);
    assert!(error.contains("ECR_NODE_AGENT_NO_AUTH_FILE and --auth-file contradict"), "{error}");
}

#[test]
fn a_subcommand_lists_only_the_options_that_it_uses() {
    let node = Node::new();
    let help = |subcommand: &str| node.run(&[subcommand, "--help"]).expect(0, &[]).out;
    let listed = |subcommand: &str| -> Vec<String> {
        let help = help(subcommand);
        let options = help.lines().filter_map(|line| line.trim().strip_prefix("--"));
        options.map(|option| option.split(' ').next().unwrap().to_owned()).collect()
    };
    let log = ["log-format", "log-level"];
    let status = ["auth-file", "registry", "interval", "schedule", "spread", "state-file", "output"];
    assert_eq!(listed("status"), [&status[..], &log].concat());
    assert_eq!(listed("link"), [&["auth-file", "undo", "watch", "dry-run"][..], &log].concat());
    assert_eq!(listed("completion"), [""; 0]);
    let aws = ["region", "role-arn", "aws-credentials-dir", "roles-anywhere"];
    let provider = ["print-config", "token-audience", "auth-file", "registry"];
    assert_eq!(listed("credential-provider"), [provider, aws].concat());
    let secrets = ["no-auth-file", "pull-secret", "pull-secret-selector", "pull-secret-name"];
    assert_eq!(
        listed("remove"),
        [&["auth-file"], &secrets[..], &["registry", "stay", "dry-run"], &log].concat()
    );
}

#[test]
fn a_path_with_a_space_is_one_path_on_the_command_line() {
    let node = Node::new();
    fs::create_dir(node.path("my kubelet")).unwrap();
    let file = node.path("my kubelet/config.json");
    node.run(&["--once", "--auth-file", file.to_str().unwrap()]).expect(0, &[]);
    assert!(read(&file)["auths"][HOST].is_object());
}

#[test]
fn the_program_prints_its_completion_and_its_manual_page() {
    let node = Node::new();
    for (shell, word) in
        [("bash", "complete -F"), ("zsh", "#compdef ecr-node-agent"), ("fish", "-l auth-file")]
    {
        node.run(&["completion", shell]).expect(0, &[word]);
    }
    node.run(&["completion", "csh"]).expect(2, &["possible values"]);
    node.run(&["man"]).expect(0, &[".TH ecr", "ECR_NODE_AGENT_STATE_FILE", ".SH \"EXIT STATUS\""]);
}

#[test]
fn status_tells_what_is_there_and_until_when() {
    let status = |node: &Node, more: &[&str]| {
        let auth_file = node.auth_file();
        node.run(&[&["status", "--auth-file", auth_file.to_str().unwrap()], more].concat())
    };
    let json = |node: &Node, code: i32| -> Value {
        serde_json::from_str(&status(node, &["--output", "json"]).expect(code, &[]).out).unwrap()
    };
    let node = Node::with_auth_file(FOREIGN);
    status(&node, &[]).expect(1, &["no entry for ECR"]);
    node.once(&[]).expect(0, &[]);
    let table =
        status(&node, &[]).expect(0, &["REGISTRY", HOST, "valid", "ecr-node-agent", "eu-west-1", "(in 1"]);
    assert!(!table.out.contains("registry.example.com"), "not an ECR registry: {}", table.out);
    let report = json(&node, 0);
    assert_eq!(report["healthy"], true);
    let entry = &report["auth_files"][0]["registries"][0];
    assert_eq!(
        (&entry["registry"], &entry["state"], &entry["ours"]),
        (&json!(HOST), &json!("valid"), &json!(true))
    );
    assert_eq!(entry["expires_at"], node.document()["ecr-node-agent"]["entries"][HOST]["expiresAt"]);

    let refresh_by: jiff::Timestamp = entry["refresh_by"].as_str().unwrap().parse().unwrap();
    let fetched_at: jiff::Timestamp = entry["fetched_at"].as_str().unwrap().parse().unwrap();
    assert_eq!(refresh_by.duration_since(fetched_at), jiff::SignedDuration::from_hours(11));
    let auth_file = node.auth_file();
    let auth_file = auth_file.to_str().unwrap();
    for sooner in [["--interval", "5h", "status"], ["status", "--interval", "5h"]] {
        let table = node.run(&[&sooner[..], &["--auth-file", auth_file]].concat()).expect(0, &["REFRESH BY"]);
        assert!(table.out.contains("in 5h") || table.out.contains("in 4h 59m"), "{}", table.out);
    }

    // One that is asked for and not there.
    let other = "123456789012.dkr.ecr.us-east-1.amazonaws.com";
    status(&node, &["--registry", HOST, "--registry", other]).expect(1, &["missing", other]);

    // An expired one; somebody else's; a file that the kubelet ignores; none; one that cannot be read.
    let past = node.document()["ecr-node-agent"]["entries"][HOST]["expiresAt"].as_str().unwrap().to_owned();
    let text = fs::read_to_string(node.auth_file()).unwrap().replace(&past, "2026-01-01T00:00:00Z");
    node.write("kubelet/config.json", &text);
    status(&node, &[]).expect(1, &["expired", "ago)"]);
    let foreign =
        json!({ "auths": { format!("https://{HOST}/v2/"): { "auth": "QVdTOm9sZA==" } } }).to_string();
    let theirs = Node::with_auth_file(&foreign);
    status(&theirs, &["--registry", HOST]).expect(0, &["unknown", "another program"]);
    theirs.write("kubelet/config.json", "{\"auths\":{\"a\":[]}}");
    status(&theirs, &[])
        .expect(1, &["problem: the kubelet ignores this file: the entry `a` cannot be decoded"]);
    fs::remove_file(theirs.auth_file()).unwrap();
    status(&theirs, &["--registry", HOST]).expect(1, &["there is no such file", "missing"]);
    fs::create_dir(theirs.auth_file()).unwrap();
    status(&theirs, &[]).expect(5, &["no regular file"]);
}

#[test]
fn remove_gives_the_node_back_and_leaves_the_rest() {
    let node = Node::new();
    let auth_file = node.auth_file();
    let remove = ["remove", "--auth-file", auth_file.to_str().unwrap()];
    node.run(&remove).expect(0, &[]);
    node.once(&[]).expect(0, &[]);
    node.run(&remove).expect(0, &["deleted"]);
    assert_eq!(node.names(), [""; 0]);
    node.write("kubelet/config.json", FOREIGN);
    let before = fs::metadata(&auth_file).unwrap().modified().unwrap();
    node.run(&remove).expect(0, &[]);
    assert_eq!(fs::metadata(&auth_file).unwrap().modified().unwrap(), before, "nothing of ours was in it");
    node.run(&["remove", "--auth-file", "/nonexistent/config.json"]).expect(5, &["does not exist"]);
}

#[test]
fn a_dry_run_logs_nothing_that_it_did_not_do() {
    let node = Node::with_auth_file(FOREIGN);
    let auth_file = node.auth_file();
    let run = node.once(&["--dry-run"]).expect(0, &["would be replaced"]);
    assert!(!run.err.contains("published"), "{}", run.err);
    node.once(&[]).expect(0, &["published"]);
    let run = node.run(&["remove", "--dry-run", "--auth-file", auth_file.to_str().unwrap()]);
    let run = run.expect(0, &["would be replaced"]);
    assert!(!run.err.contains("removed"), "{}", run.err);
}

#[test]
fn status_says_when_the_kubelet_reads_the_file_and_whether_its_directory_is_missing() {
    let node = Node::new();
    node.once(&[]).expect(0, &[]);
    let auth_file = node.auth_file();
    let status = |file: &str| node.run(&["status", "--auth-file", file]);
    status(auth_file.to_str().unwrap()).expect(0, &["kubelet: reads this version by 20", "agent: not found"]);
    let run = status("/nonexistent/config.json").expect(5, &["the directory /nonexistent does not exist"]);
    assert!(!run.out.contains("nothing was written"), "{}", run.out);
}

#[test]
fn remove_stays_when_it_is_done_only_where_it_is_asked_to_and_all_went_well() {
    let node = Node::new();
    node.once(&[]).expect(0, &[]);
    let auth_file = node.auth_file();
    let staying = node.launch(&[], &["remove", "--stay", "--auth-file", auth_file.to_str().unwrap()]);
    staying.wait_for("staying until stopped", 1);
    assert_eq!(node.names(), [""; 0]);
    assert!(!staying.is_over());
    assert_eq!(staying.stop().code, 0);
    let failing = node.launch(&[], &["remove", "--stay", "--auth-file", "/nonexistent/config.json"]);
    assert_eq!(failing.ended().code, 5);
}

#[test]
fn log_lines_are_json_or_text_as_asked() {
    let node = Node::new();
    let run = node.once(&[]).expect(0, &[]);
    for line in run.err.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(
            line["timestamp"].is_string() && line["level"].is_string() && line["message"].is_string(),
            "{line}"
        );
    }
    let run = node.once(&["--log-format", "text"]).expect(0, &["INFO"]);
    assert!(serde_json::from_str::<Value>(run.err.lines().next().unwrap()).is_err());
    assert_eq!(node.once(&["--log-level", "error"]).expect(0, &[]).err, "");
    // A filter for one room leaves the others as they are.
    node.once(&["--log-level", "ecr_node_agent::ecr=debug"]).expect(0, &["published"]);
    // The longest time that can be written is no more than a long time.
    node.once(&["--timeout", "PT2562047788015215H"]).expect(0, &[]);
}

fn file(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The cells of a table's rows in the reference, by the table's heading.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let reference = file("docs/reference.md");
    let section = reference.split("\n## ").find(|section| section.starts_with(heading)).unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| --"));
    let cells = |row: &str| row.split('|').skip(1).map(|cell| cell.trim().to_owned()).collect();
    rows.skip(1).map(cells).collect()
}

#[test]
fn the_table_of_options_is_that_of_the_program() {
    let command = Cli::command();
    let options: Vec<_> = command
        .get_arguments()
        .filter(|argument| argument.get_long().is_some_and(|long| !["help", "version"].contains(&long)))
        .collect();
    let rows = rows("Options");
    assert_eq!(rows.len(), options.len());
    for (row, option) in rows.iter().zip(options) {
        let value = option.get_value_names().filter(|_| option.get_action().takes_values());
        let value = value.map(|names| format!(" {}", names[0])).unwrap_or_default();
        let repeatable = matches!(option.get_action(), clap::ArgAction::Append);
        let repeatable = if repeatable { ", repeatable" } else { "" };
        assert_eq!(row[0], format!("`--{}{value}`{repeatable}", option.get_long().unwrap()));
        let help = option.get_help().unwrap().to_string();
        let default = match (option.get_default_values(), help.split_once("[default: ")) {
            ([value], _) if option.get_action().takes_values() => value.to_str().unwrap().to_owned(),
            (_, Some((_, default))) => default.trim_end_matches(']').to_owned(),
            _ => String::new(),
        };
        assert_eq!(row[1].replace('`', ""), default, "{}", row[0]);
    }
}

#[test]
fn the_messages_that_the_reference_explains_are_those_of_the_program() {
    let text: String = sources("src").iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    // A long message goes on in the next line of its source.
    let text = text.replace("\\\n", "").split_whitespace().collect::<Vec<_>>().join(" ");
    let rows = rows("Troubleshooting");
    assert!(rows.len() > 10);
    for row in rows {
        let message = row[0].trim_matches('`');
        assert!(text.contains(message), "`{message}` is not said by the program");
    }
}

#[test]
fn the_units_defaults_name_every_variable_and_its_default() {
    let defaults = file("hostpath-layout/etc/default/ecr-node-agent");
    let command = Cli::command();
    for option in command.get_arguments() {
        let Some(variable) = option.get_env().and_then(|name| name.to_str()) else { continue };
        let prefix = format!("#{variable}=");
        let value = defaults.lines().find_map(|line| line.strip_prefix(&prefix));
        let value = value.unwrap_or_else(|| panic!("{variable} is not in the defaults, commented out"));
        if let [default] = option.get_default_values() {
            assert_eq!(value, default, "{variable}");
        }
    }
    // As it is shipped, it changes nothing.
    assert_eq!(defaults.lines().find(|line| !line.is_empty() && !line.starts_with('#')), None);
}
