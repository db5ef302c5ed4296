//! Structure rules, so that nobody has to remember them. The dependency graph comes from the sources' own paths.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The parts of the program, lowest first. Each may use the parts before it, and no other.
const LAYERS: [&str; 18] = [
    "time",
    "docker_config",
    "report",
    "process",
    "ecr",
    "auth_file",
    "pull_secret",
    "events",
    "startup_taint",
    "settings",
    "token",
    "credential_provider",
    "round",
    "inspect",
    "agent",
    "commands",
    "cli",
    "lib",
];

/// Parts that may use less than their layer allows.
const MUST_NOT_USE: [(&str, &[&str]); 8] = [
    ("time", &["crate::"]),
    ("docker_config", &["crate::"]),
    ("auth_file", &["aws_", "crate::ecr"]),
    ("pull_secret", &["aws_", "crate::ecr", "crate::auth_file"]),
    ("ecr", &["crate::docker_config"]),
    ("settings", &["clap"]),
    ("credential_provider", &["crate::settings", "crate::token", "crate::auth_file", "crate::pull_secret"]),
    ("inspect", &["aws_"]),
];

/// How long tokens live: a pure module that uses no other.
const ANY_MAY_USE: &str = "crate::time::schedule";

/// Modules that decide. They do no I/O; time and chance are arguments.
const PURE: [&str; 30] = [
    "src/credential_provider",
    "src/docker_config",
    "src/report/redact.rs",
    "src/agent/source_state.rs",
    "src/token/request.rs",
    "src/time/schedule.rs",
    "src/time/cron.rs",
    "src/time/write_scheduler.rs",
    "src/ecr/registry.rs",
    "src/ecr/token.rs",
    "src/ecr/config/mod.rs",
    "src/ecr/config/parse.rs",
    "src/ecr/config/profiles.rs",
    "src/ecr/credentials/answer.rs",
    "src/ecr/credentials/key.rs",
    "src/ecr/credentials/source.rs",
    "src/ecr/credentials/source_error.rs",
    "src/ecr/url.rs",
    "src/ecr/environment.rs",
    "src/ecr/roles_anywhere/answer.rs",
    "src/ecr/roles_anywhere/certificate.rs",
    "src/ecr/roles_anywhere/identity.rs",
    "src/ecr/roles_anywhere/option.rs",
    "src/ecr/roles_anywhere/request.rs",
    "src/inspect/registry/challenge.rs",
    "src/inspect/registry/answer.rs",
    "src/pull_secret/names.rs",
    "src/pull_secret/reconcile.rs",
    "src/pull_secret/schedule.rs",
    "src/startup_taint/kubelet_view.rs",
];
/// What would be I/O, a clock or chance.
const IMPURE: [&str; 11] = [
    "std::fs",
    "std::env",
    "std::net::Tcp",
    "tokio::",
    "kube::",
    "aws_sdk_",
    "aws_smithy_",
    "nix::",
    "rustix::",
    "::now()",
    "fastrand",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The sources below a path that is relative to the repository.
pub fn sources(path: &str) -> Vec<PathBuf> {
    let path = root().join(path);
    if path.is_file() {
        return vec![path];
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())) {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(sources(path.to_str().unwrap())),
            false if path.extension().is_some_and(|extension| extension == "rs") => found.push(path),
            false => {}
        }
    }
    found.sort();
    found
}

/// The program text of a source: without comments, and without its unit tests.
fn program(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let program = text.split("#[cfg(test)]").next().unwrap_or_default();
    program.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn assert_nowhere(path: &str, words: &[&str]) {
    for path in sources(path) {
        for line in program(&path).lines() {
            let found = words.iter().find(|word| line.contains(**word));
            assert_eq!(found, None, "{}: {line}", path.display());
        }
    }
}

/// A module's path as its parents name it: `time::cron` for `src/time/cron.rs`, `time` for `src/time/mod.rs`.
fn module(path: &Path) -> Vec<String> {
    let inside = path.strip_prefix(root().join("src")).unwrap().with_extension("");
    let mut parts: Vec<String> = inside.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    parts
}

/// The paths that a program names: `use` trees taken apart, and what stands in the code itself.
fn named(program: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in program.match_indices(start) {
            let before = program[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            expand("", &program[at..], &mut paths);
        }
    }
    paths
}

/// Takes one path apart, which may end in a group: `a::{b, c::d}` is `a::b` and `a::c::d`. Returns what follows it.
fn expand<'a>(prefix: &str, text: &'a str, paths: &mut Vec<String>) -> &'a str {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
    let path = format!("{prefix}{}", &text[..end]);
    let mut rest = &text[end..];
    if !path.ends_with("::") || !rest.starts_with('{') {
        paths.push(path);
        return rest;
    }
    rest = &rest[1..];
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
        if let Some(rest) = rest.strip_prefix('}') {
            return rest;
        }
        rest = expand(&path, rest, paths);
        // A name of its own for the imported thing, as in `self as published`.
        if let Some(end) = rest.find([',', '}']) {
            rest = &rest[end..];
        }
    }
}

/// Which other files each file uses.
fn graph() -> BTreeMap<Vec<String>, BTreeSet<Vec<String>>> {
    let files: BTreeMap<Vec<String>, PathBuf> =
        sources("src").into_iter().map(|path| (module(&path), path)).collect();
    let mut graph = BTreeMap::new();
    for (name, path) in &files {
        let is_folder = path.ends_with("mod.rs");
        let mut uses = BTreeSet::new();
        for path in named(&program(path)) {
            let mut parts: Vec<&str> = path.split("::").filter(|part| !part.is_empty()).collect();
            let mut base = name.clone();
            if parts[0] == "crate" {
                base.clear();
                parts.remove(0);
            } else {
                if !is_folder && parts[0] == "super" {
                    base.pop();
                    parts.remove(0);
                } else if parts[0] == "self" {
                    parts.remove(0);
                }
                while parts.first() == Some(&"super") {
                    base.pop();
                    parts.remove(0);
                }
            }
            let mut target = base;
            target.extend(parts.iter().map(|part| (*part).to_owned()));
            while !target.is_empty() && !files.contains_key(&target) {
                target.pop();
            }
            if !target.is_empty() && target != *name {
                uses.insert(target);
            }
        }
        graph.insert(name.clone(), uses);
    }
    graph
}

/// The first circle that is found, as the files along it.
fn circle(graph: &BTreeMap<Vec<String>, BTreeSet<Vec<String>>>) -> Option<Vec<String>> {
    fn visit<'a>(
        graph: &'a BTreeMap<Vec<String>, BTreeSet<Vec<String>>>,
        at: &'a Vec<String>,
        way: &mut Vec<&'a Vec<String>>,
        done: &mut BTreeSet<&'a Vec<String>>,
    ) -> Option<Vec<String>> {
        if let Some(start) = way.iter().position(|before| *before == at) {
            return Some(way[start..].iter().chain([&at]).map(|module| module.join("::")).collect());
        }
        if !done.insert(at) {
            return None;
        }
        way.push(at);
        let found = graph[at].iter().find_map(|next| visit(graph, next, way, done));
        way.pop();
        found
    }
    let mut done = BTreeSet::new();
    graph.keys().find_map(|start| visit(graph, start, &mut Vec::new(), &mut done))
}

#[test]
fn pure_modules_do_no_io() {
    for path in PURE {
        assert_nowhere(path, &IMPURE);
    }
}

#[test]
fn modules_use_only_what_is_below_them() {
    for (part, words) in MUST_NOT_USE {
        let path = if part == "settings" { "src/settings.rs".to_owned() } else { format!("src/{part}") };
        let own = format!("crate::{part}");
        let is_allowed = |line: &&str| line.contains(&own) || line.contains(ANY_MAY_USE);
        for path in sources(&path) {
            for line in program(&path).lines().filter(|line| !is_allowed(line)) {
                let found = words.iter().find(|word| line.contains(**word));
                assert_eq!(found, None, "{}: {line}", path.display());
            }
        }
    }
    let layer = |part: &str| {
        LAYERS.iter().position(|layer| *layer == part).unwrap_or_else(|| panic!("{part} has no layer"))
    };
    let mut upward = Vec::new();
    for (module, uses) in graph() {
        for used in uses.iter().filter(|_| module[0] != "lib" && module[0] != "main") {
            if used[0] != module[0] && layer(&used[0]) >= layer(&module[0]) {
                upward.push(format!("{} -> {}", module.join("::"), used.join("::")));
            }
        }
    }
    assert!(upward.is_empty(), "these use what is above them: {upward:#?}");
}

#[test]
fn no_file_uses_itself_through_others() {
    assert_eq!(circle(&graph()), None);
}

#[test]
fn paths_are_taken_apart() {
    let program =
        "use crate::a::{self, B, c::{D as E, f}};\nuse super::g;\nlet x = crate::h::i();\nmycrate::x";
    let mut found = named(program);
    found.sort();
    let expected =
        ["crate::a::B", "crate::a::c::D", "crate::a::c::f", "crate::a::self", "crate::h::i", "super::g"];
    assert_eq!(found, expected);
    let edge = |uses: &[&str]| uses.iter().map(|name| vec![(*name).to_owned()]).collect::<BTreeSet<_>>();
    let graph = BTreeMap::from([
        (vec!["a".to_owned()], edge(&["b"])),
        (vec!["b".to_owned()], edge(&["c"])),
        (vec!["c".to_owned()], edge(&["b"])),
    ]);
    assert_eq!(circle(&graph), Some(["b", "c", "b"].map(str::to_owned).to_vec()));
}

#[test]
fn every_source_opens_with_what_it_is() {
    for path in sources("src").into_iter().chain(sources("tests/it")) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//! "), "{}", path.display());
    }
}

#[test]
fn every_part_is_on_the_map() {
    let page = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let (_, parts) = page.split_once("## The parts").unwrap();
    let (_, drawing) = parts.split_once("```text\n").unwrap();
    let (drawing, _) = drawing.split_once("```").unwrap();
    // Each line begins with names, and two spaces separate them from their description.
    let drawn: BTreeSet<String> = drawing
        .lines()
        .flat_map(|line| line.split_once("  ").unwrap().0.split(' '))
        .map(|name| name.trim_end_matches('/').to_owned())
        .collect();
    let there: BTreeSet<String> = fs::read_dir(root().join("src"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(drawn, there);
}

#[test]
fn a_stub_replaces_the_crate_that_only_refused_kubeconfigs_need() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let packages: Vec<&str> = lock.split("[[package]]").collect();
    let named = |name: &str| {
        let line = format!("name = \"{name}\"");
        packages.iter().filter(|package| package.lines().any(|found| found == line)).collect::<Vec<_>>()
    };
    let [stub] = named("jsonpath-rust")[..] else { panic!("one package is called jsonpath-rust") };
    // A package of this repository has no source.
    assert!(!stub.contains("source ="), "{stub}");
    assert_eq!((named("pest").len(), named("regex").len()), (0, 0));
}
