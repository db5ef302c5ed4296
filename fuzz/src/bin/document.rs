//! A docker config: whatever it holds, a merge keeps what is foreign, the kubelet accepts the result, and a removal undoes it.
#![no_main]

use fuzz::docker_config::document::Document;
use fuzz::docker_config::keyring::Keyring;
use fuzz::docker_config::merge::{self, MergeInput, Origin, Plan, Wanted, WantedEntry};
use fuzz::docker_config::other_program;
use fuzz::docker_config::parse::{Shape, parse, parse_legacy};
use jiff::{SignedDuration, Timestamp};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use std::hint::black_box;

const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

fuzz_target!(|bytes: &[u8]| {
    for shape in [Shape::DockerConfig, Shape::Legacy] {
        if let Ok(keyring) = Keyring::read(bytes, shape) {
            black_box(keyring.look_up_name(HOST));
            black_box(keyring.tried_before(HOST));
        }
    }
    black_box(parse_legacy(bytes).ok());
    if let Ok(text) = std::str::from_utf8(bytes) {
        black_box(other_program::recognise(text));
    }
    let Ok(parsed) = parse(bytes) else { return };
    if !parsed.defects.is_empty() {
        return;
    }
    let before = parsed.document;
    let now: Timestamp = "2026-11-23T10:00:00Z".parse().expect("a time");
    let entry = WantedEntry {
        auth: "QVdTOnBhc3N3b3Jk".to_owned().into(),
        expires_at: now + SignedDuration::from_hours(12),
        fetched_at: now,
        source: "eu-west-1".to_owned(),
        default_registry: false,
    };
    let wanted = Wanted { entries: BTreeMap::from([(HOST.to_owned(), entry)]), ..Wanted::default() };
    let input = || MergeInput { origin: Origin::File, copied: BTreeMap::new(), explicit: true, now };
    let merged = match merge::plan(before.clone(), &wanted, input()) {
        Plan::Replace(merged, _) => merged,
        Plan::Keep => before.to_bytes(),
        Plan::Delete(_) => panic!("a publish deletes nothing"),
    };
    let after = parse(&merged).expect("the kubelet accepts what is merged");
    assert!(after.defects.is_empty(), "{:?}", after.defects);
    let after = after.document;
    assert_eq!(after.plain_auth(HOST).map(|_| ()), Some(()));
    assert_foreign_is_kept(&before, &after);
    assert!(
        matches!(merge::plan(after.clone(), &wanted, input()), Plan::Keep),
        "a second merge changes nothing"
    );
    match merge::remove(after, false, &[]) {
        Plan::Replace(left, _) => {
            let left = parse(&left).expect("the kubelet accepts what is left").document;
            assert!(left.plain_auth(HOST).is_none());
            assert_foreign_is_kept(&before, &left);
        }
        Plan::Delete(_) => {}
        Plan::Keep => panic!("there was an entry to remove"),
    }
});

/// Every entry that is not for our registry is in both, and says the same.
fn assert_foreign_is_kept(before: &Document<'_>, after: &Document<'_>) {
    let own = before.own_records();
    let copied = before.ledger().map(|ledger| ledger.taken_along.clone()).unwrap_or_default();
    for key in before.keys() {
        let is_ours = fuzz::docker_config::key::index_key(key).as_deref() == Some(HOST) || key == HOST;
        if is_ours || own.contains_key(key) || copied.contains_key(key) {
            continue;
        }
        assert_eq!(before.digest(key), after.digest(key), "{key}");
    }
}
