//! The mirror of a node's file system agrees with itself. What its units do under systemd, `.ci/units` shows.

use std::fs;
use std::path::{Path, PathBuf};

fn layout(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("hostpath-layout").join(path)
}

#[test]
fn both_units_are_shut_in_alike() {
    let sandbox = |unit: &str| {
        let text = fs::read_to_string(layout(&format!("etc/systemd/system/{unit}.service"))).unwrap();
        let (_, rest) = text.split_once("# What it may do.").expect("where the sandbox begins");
        rest.to_owned()
    };
    let daemon = sandbox("ecr-node-agent");
    assert!(daemon.contains("\nCapabilityBoundingSet=\n") && daemon.contains("\nProtectSystem=strict\n"));
    assert_eq!(daemon, sandbox("ecr-node-agent-once"));
}

#[test]
fn the_readme_names_every_path() {
    let readme = fs::read_to_string(layout("usr/share/doc/ecr-node-agent/README.md")).unwrap();
    let mut directories = vec![layout("")];
    let mut files = 0;
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let on_node = Path::new("/").join(path.strip_prefix(layout("")).unwrap());
            assert!(readme.contains(&format!("| `{}` |", on_node.display())), "{}", on_node.display());
            files += 1;
        }
    }
    assert!(files >= 7, "{files}");
}
