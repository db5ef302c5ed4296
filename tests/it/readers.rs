//! Under load: a reader in a tight loop, and several writers at once.

use crate::auth_file::{auth_file, publish};
use crate::beside::Over;
use crate::needs::tell;
use crate::node::{FOREIGN, HOST, Node, read};
use ecr_node_agent::auth_file::Memory;
use ecr_node_agent::docker_config::parse;
use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

#[test]
fn a_reader_never_sees_anything_but_a_whole_document() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let file = auth_file(&path);
    let mut memory = Memory::default();
    publish(&file, 0, &mut memory);
    let over = Over::default();
    let reads = AtomicU32::new(0);
    let replacements = std::thread::scope(|scope| {
        let end = over.guard();
        let reader = scope.spawn(|| {
            while !over.is_set() {
                let bytes = fs::read(&path).unwrap();
                let parsed = parse::parse(&bytes).unwrap();
                assert_eq!(parsed.defects, []);
                assert_eq!(parsed.document.credentials(HOST).unwrap().username, "AWS");
                assert!(parsed.document.ledger().is_some());
                reads.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut replacements = 0;
        // As often as it takes for the reader to have had its share, however busy the machine.
        while replacements < 1000 || reads.load(Ordering::Relaxed) < 1000 {
            assert!(!reader.is_finished(), "the reader saw something else");
            replacements += 1;
            publish(&file, replacements, &mut memory);
        }
        drop(end);
        reader.join().unwrap();
        replacements
    });
    let reads = reads.into_inner();
    tell(&format!("{reads} reads during {replacements} replacements, every one whole"));
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
