//! The files in `hostpath-layout/` agree with each other. `.ci/units` shows what the units do under systemd.

use std::fs;
use std::path::{Path, PathBuf};

fn layout(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("hostpath-layout").join(path)
}

#[test]
fn all_units_have_the_same_sandbox() {
    let sandbox = |unit: &str| {
        let text = fs::read_to_string(layout(&format!("etc/systemd/system/{unit}.service"))).unwrap();
        let (_, rest) = text.split_once("# What the program may do.").expect("where the sandbox begins");
        rest.split("\n[Install]").next().unwrap().to_owned()
    };
    let daemon = sandbox("ecr-node-agent");
    assert!(daemon.contains("\nCapabilityBoundingSet=\n") && daemon.contains("\nProtectSystem=strict\n"));
    assert_eq!(daemon, sandbox("ecr-node-agent-once"));
    assert_eq!(daemon, sandbox("ecr-node-agent-remove"));
}

#[test]
fn the_unit_and_the_image_have_the_same_settings_for_memory() {
    let setting = |path: PathBuf, before: &str| {
        let text = fs::read_to_string(&path).unwrap();
        let mut values = text.lines().filter_map(|line| line.strip_prefix(before));
        let value = values.next().expect(before).to_owned();
        assert_eq!(values.next(), None, "{}", path.display());
        value
    };
    let unit = layout("etc/systemd/system/ecr-node-agent.service");
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("Dockerfile");
    let name = "GLIBC_TUNABLES=";
    assert_eq!(setting(unit, &format!("Environment={name}")), setting(image, &format!("ENV {name}")));
}

#[test]
fn the_readme_names_every_file() {
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
