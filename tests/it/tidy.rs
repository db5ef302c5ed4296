//! House rules, so that nobody has to remember them.

use std::fs;
use std::path::{Path, PathBuf};

/// The rooms that decide, and what would make them do I/O.
const PURE: [&str; 12] = [
    "src/docker_config",
    "src/quote.rs",
    "src/schedule.rs",
    "src/ecr/registry.rs",
    "src/ecr/token.rs",
    "src/registry/challenge.rs",
    "src/registry/answer.rs",
    "src/trigger/cron.rs",
    "src/upkeep.rs",
    "src/target/pull_secret/names.rs",
    "src/target/pull_secret/content.rs",
    "src/target/pull_secret/when.rs",
];
const IMPURE: [&str; 10] = [
    "std::fs", "std::env", "std::net", "tokio::", "kube::", "aws_", "nix::", "rustix::", "::now()",
    "fastrand",
];
/// Rooms, and what they may not know.
const BORDERS: [(&str, &[&str]); 9] = [
    (
        "src/target",
        &[
            "aws_",
            "crate::ecr",
            "crate::cli",
            "crate::commands",
            "crate::agent",
            "crate::refresh",
            "crate::pull_secrets",
        ],
    ),
    (
        "src/ecr",
        &[
            "crate::target",
            "crate::docker_config",
            "crate::cli",
            "crate::commands",
            "crate::agent",
            "crate::refresh",
        ],
    ),
    (
        "src/pull_secrets",
        &["aws_", "kube::", "crate::ecr", "crate::cli", "crate::commands", "crate::agent", "crate::refresh"],
    ),
    ("src/docker_config", &["crate::"]),
    (
        "src/registry",
        &["aws_", "crate::target", "crate::cli", "crate::commands", "crate::agent", "crate::refresh"],
    ),
    ("src/schedule.rs", &["crate::cli", "crate::commands", "crate::agent", "crate::target"]),
    ("src/settings.rs", &["crate::cli", "clap"]),
    ("src/refresh.rs", &["crate::cli", "crate::commands", "crate::agent", "aws_", "nix::"]),
    ("src/report/logging.rs", &["crate::"]),
];

fn sources(path: &str) -> Vec<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
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
    found
}

/// The lines of a source's program: what its tests say does not count.
fn lines(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).unwrap();
    let program = text.split("#[cfg(test)]").next().unwrap_or_default();
    let code = program.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
    code.map(|(number, line)| (number + 1, line.to_owned())).collect()
}

fn assert_nowhere(path: &str, words: &[&str]) {
    for path in sources(path) {
        for (number, line) in lines(&path) {
            let found = words.iter().find(|word| line.contains(**word));
            assert_eq!(found, None, "{}:{number}: {line}", path.display());
        }
    }
}

#[test]
fn pure_rooms_do_no_io() {
    for path in PURE {
        assert_nowhere(path, &IMPURE);
    }
}

#[test]
fn rooms_keep_to_their_borders() {
    for (path, words) in BORDERS {
        assert_nowhere(path, words);
    }
}

#[test]
fn every_source_opens_with_what_it_is() {
    for path in sources("src").into_iter().chain(sources("tests/it")) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//! "), "{}", path.display());
    }
}

#[test]
fn every_room_is_on_the_map() {
    let map = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md")).unwrap();
    for path in sources("src") {
        let inside = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().to_str().unwrap().to_owned();
        assert!(map.contains(&format!("`{inside}`")), "{inside} is not in docs/architecture.md");
    }
}
