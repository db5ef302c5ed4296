//! The documentation: its links lead somewhere, and the command lines in it can be meant.

use clap::CommandFactory as _;
use clap::error::ErrorKind;
use ecr_node_agent::cli::{Cli, parse};
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Options of other programs that the documentation names.
const FOREIGN: [&str; 11] = [
    "--cluster-signing-duration",
    "--create-namespace",
    "--data-dir",
    "--kubelet-arg",
    "--kubelet-root-dir",
    "--image-credential-provider-config",
    "--image-credential-provider-bin-dir",
    "--register-with-taints",
    "--root-dir",
    "--service-account-issuer",
    "--startup-taint",
];

/// What a page holds that can be wrong.
#[derive(Default)]
struct Page {
    anchors: Vec<String>,
    links: Vec<String>,
    /// The lines of its shell blocks, a line that ends in `\` together with the next.
    commands: Vec<String>,
    /// What it quotes in running text.
    quotes: Vec<String>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn find(directory: &Path, found: &mut BTreeMap<PathBuf, Page>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && !name.starts_with('.') && name != "target" {
            find(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            let page = read(&fs::read_to_string(&path).unwrap());
            found.insert(path.strip_prefix(root()).unwrap().to_owned(), page);
        }
    }
}

fn pages() -> BTreeMap<PathBuf, Page> {
    let mut found = BTreeMap::new();
    find(root(), &mut found);
    assert!(found.contains_key(Path::new("README.md")) && found.len() > 5, "{:?}", found.keys());
    found
}

fn read(text: &str) -> Page {
    let mut page = Page::default();
    let (mut heading, mut shell) = (None::<String>, None::<String>);
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                page.links.push(dest_url.into_string());
            }
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => {
                let anchor = anchor(&heading.take().unwrap());
                let twice = page.anchors.iter().filter(|other| **other == anchor).count();
                page.anchors.push(if twice == 0 { anchor } else { format!("{anchor}-{twice}") });
            }
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language)))
                if ["sh", "bash", "shell", "console"].contains(&&*language) =>
            {
                shell = Some(String::new());
            }
            Event::End(TagEnd::CodeBlock) => {
                let block = shell.take().unwrap_or_default().replace("\\\n", " ");
                page.commands.extend(block.lines().map(str::to_owned));
            }
            Event::Text(text) => {
                for sink in [&mut heading, &mut shell].into_iter().flatten() {
                    sink.push_str(&text);
                }
            }
            Event::Code(code) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&code);
                }
                page.quotes.push(code.into_string());
            }
            _ => {}
        }
    }
    page
}

/// What GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// `docs/` and `../src/a.rs` are `src/a.rs`.
fn join(directory: &Path, link: &str) -> PathBuf {
    let mut path = PathBuf::new();
    for part in directory.join(link).components() {
        match part {
            Component::ParentDir => assert!(path.pop(), "{link} leads out of the repository"),
            Component::Normal(part) => path.push(part),
            _ => {}
        }
    }
    path
}

#[test]
fn every_link_within_the_documentation_leads_somewhere() {
    let pages = pages();
    let mut checked = 0;
    for (path, page) in &pages {
        for link in page.links.iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let to = match file {
                "" => path.clone(),
                file => join(path.parent().unwrap(), file),
            };
            assert!(root().join(&to).exists(), "{}: {link}: there is no such file", path.display());
            if !anchor.is_empty() {
                let there = pages.get(&to).is_some_and(|page| page.anchors.iter().any(|it| it == anchor));
                assert!(there, "{}: {link}: there is no such heading", path.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 10, "{checked}");
}

/// The calls of this program in a line for the shell: its words after the name.
fn calls(line: &str) -> Vec<Vec<String>> {
    let line = line.trim_start().strip_prefix("$ ").unwrap_or(line);
    // What ends a command ends it also where no space is around it.
    let line = ["&&", "||", "|", ";", ">", "<", "$(", ")"]
        .iter()
        .fold(line.to_owned(), |line, end| line.replace(end, &format!(" {end} ")));
    let words = shlex::split(&line).unwrap_or_default();
    let mut calls: Vec<Vec<String>> = Vec::new();
    let (mut starts, mut inside) = (true, false);
    for word in words {
        let ends = ["&&", "||", "|", ";", ">", "<", "$(", ")", "&", "2"].contains(&word.as_str());
        if ends {
            (starts, inside) = (true, false);
        } else if starts && word.rsplit('/').next() == Some("ecr-node-agent") {
            calls.push(vec![word]);
            (starts, inside) = (false, true);
        } else if inside {
            calls.last_mut().unwrap().push(word);
        } else {
            let goes_on = word == "--" || word == "sudo" || word == "exec" || word.contains('=');
            starts = word == "--" || (starts && goes_on);
        }
    }
    calls
}

#[test]
fn the_calls_in_a_line_are_found() {
    let cases: [(&str, &[&str]); 9] = [
        ("ecr-node-agent --once # do it", &["ecr-node-agent --once"]),
        ("$ sudo /usr/local/bin/ecr-node-agent status", &["/usr/local/bin/ecr-node-agent status"]),
        ("AWS_REGION=eu-west-1 ecr-node-agent --once", &["ecr-node-agent --once"]),
        ("kubectl exec ds/ecr-node-agent -- ecr-node-agent status", &["ecr-node-agent status"]),
        (
            "ecr-node-agent remove && ecr-node-agent status | jq .",
            &["ecr-node-agent remove", "ecr-node-agent status"],
        ),
        ("journalctl -u ecr-node-agent -n 50", &[]),
        ("helm upgrade ecr-node-agent daemonset/chart", &[]),
        ("install -m 0755 target/release/ecr-node-agent /usr/local/bin/", &[]),
        ("ecr-node-agent status>status.txt", &["ecr-node-agent status"]),
    ];
    for (line, expected) in cases {
        let found: Vec<String> = calls(line).iter().map(|words| words.join(" ")).collect();
        assert_eq!(found, expected, "{line}");
    }
}

#[test]
fn every_command_line_in_the_documentation_can_be_meant() {
    let mut checked = 0;
    for (path, page) in pages() {
        let in_text = page.quotes.iter().map(|line| (line, true));
        for (line, in_text) in page.commands.iter().map(|line| (line, false)).chain(in_text) {
            for call in calls(line).iter().filter(|call| call.len() > 1) {
                if let Err(error) = parse(call) {
                    let asks = [ErrorKind::DisplayHelp, ErrorKind::DisplayVersion].contains(&error.kind());
                    // Text may speak of a subcommand by its name alone.
                    let names = in_text && error.kind() == ErrorKind::MissingRequiredArgument;
                    assert!(asks || names, "{}: {line}\n{error}", path.display());
                }
                checked += 1;
            }
        }
    }
    assert!(checked > 5, "{checked}");
}

#[test]
fn every_option_that_the_documentation_names_exists() {
    let mut known: Vec<String> = FOREIGN.map(str::to_owned).to_vec();
    let mut command = Cli::command();
    command.build();
    for command in std::iter::once(&command).chain(command.get_subcommands()) {
        known.extend(command.get_arguments().filter_map(|it| it.get_long()).map(|long| format!("--{long}")));
    }
    // What is written for developers speaks of options of many programs.
    for (path, page) in pages().into_iter().filter(|(path, _)| !path.starts_with("benches")) {
        for quote in page.quotes.iter().filter(|quote| quote.starts_with("--")) {
            let option = quote.split([' ', '=', '[']).next().unwrap();
            let is_known = known.iter().any(|it| it == option);
            assert!(is_known, "{}: `{quote}` is neither ours nor in FOREIGN", path.display());
        }
    }
}

#[test]
fn the_readme_has_at_most_900_words() {
    let words = text("README.md").split_whitespace().count();
    assert!(words <= 900, "{words} words: details belong on a page in docs/");
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// All sources of the program, a text that goes on in the next line as one.
fn sources() -> String {
    fn add(directory: &Path, text: &mut String) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                add(&path, text);
            } else {
                text.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut text = String::new();
    add(&root().join("src"), &mut text);
    text.replace("\\\n", "").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn every_log_line_that_operators_are_told_of_is_one() {
    let page = text("docs/operations.md");
    let section = page.split("\n## ").find(|section| section.starts_with("Reading the log")).unwrap();
    let lines: Vec<&str> = section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .flat_map(|line| line.split('|').nth(1).unwrap().split('`').skip(1).step_by(2))
        .collect();
    assert!(lines.len() > 8, "{lines:?}");
    let sources = sources();
    for line in lines {
        // It begins so, or with a number.
        let said = [format!("\"{line}"), format!("\"{{}} {line}")];
        assert!(said.iter().any(|said| sources.contains(said)), "`{line}` is not said by the program");
    }
}

#[test]
fn every_metric_that_the_documentation_names_exists() {
    let sources = sources();
    let mut checked = 0;
    for path in pages().keys() {
        let page = text(path.to_str().unwrap());
        for after in page.split("ecr_node_agent_").skip(1) {
            let name: String = after.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            // Of a histogram, Prometheus names the parts.
            let parts = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
            let name = parts.unwrap_or(&name);
            assert!(sources.contains(&format!("\"{name}\"")), "{}: ecr_node_agent_{name}", path.display());
            checked += 1;
        }
    }
    assert!(checked > 10, "{checked}");
}

#[test]
fn operators_are_told_what_every_alert_means() {
    let alerts = text("daemonset/chart/files/alerts.yaml");
    let alerts: Vec<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let page = text("docs/operations.md");
    let section = page.split("\n## ").find(|section| section.starts_with("Alerts")).unwrap();
    let told: Vec<&str> = section.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert!(alerts.len() > 5, "{alerts:?}");
    assert_eq!(told, alerts);
    // Each alert links to its heading.
    let links = text("daemonset/chart/files/alerts.yaml");
    for alert in alerts {
        let link = format!("runbook_url: \"@RUNBOOK@#{}\"", alert.to_lowercase());
        assert_eq!(links.matches(&link).count(), 1, "{link}");
    }
}
