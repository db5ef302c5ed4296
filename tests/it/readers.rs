//! Promises 1 and 3 under load: a reader in a tight loop, and writers side by side.

use crate::auth_file::{auth_file, wanted};
use crate::node::{FOREIGN, HOST, Node, read};
use ecr_node_agent::docker_config::document;
use jiff::Timestamp;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn a_reader_never_sees_anything_but_a_whole_document() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let file = auth_file(&path);
    file.publish(&wanted(0), Timestamp::UNIX_EPOCH, false).unwrap();
    let done = AtomicBool::new(false);
    let reads = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0_u32;
            while !done.load(Ordering::Relaxed) {
                let bytes = fs::read(&path).unwrap();
                let parsed = document::parse(&bytes).unwrap();
                assert_eq!(parsed.spoilt, []);
                assert_eq!(parsed.document.credentials(HOST).unwrap().username, "AWS");
                assert!(parsed.document.ledger().is_some());
                reads += 1;
            }
            reads
        });
        for number in 1..=1000 {
            file.publish(&wanted(number), Timestamp::UNIX_EPOCH, false).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap()
    });
    assert!(reads > 1000, "{reads} reads");
    eprintln!("{reads} reads during 1000 replacements, every one whole");
}

#[test]
fn two_agents_on_one_file_lose_no_entry() {
    let node = Node::with_auth_file(FOREIGN);
    let other = "*.dkr.ecr.us-east-1.amazonaws.com";
    let arguments = ["--registry", HOST, "--registry", other];
    for round in 0..20 {
        std::thread::scope(|scope| {
            let runs = [scope.spawn(|| node.once(&arguments)), scope.spawn(|| node.once(&arguments))];
            for run in runs {
                run.join().unwrap().expect(0, &[]);
            }
        });
        let document = read(&node.auth_file());
        let keys: Vec<_> = document["auths"].as_object().unwrap().keys().collect();
        assert_eq!(keys, ["registry.example.com", other, HOST], "round {round}");
        for key in [HOST, other] {
            assert!(document["ecr-node-agent"]["entries"][key].is_object(), "round {round}");
        }
    }
    assert_eq!(node.names(), ["config.json"]);
}
