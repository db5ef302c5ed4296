//! The ledger: whatever another program has made of it, it is read or ignored, and what is read is written the same.
#![no_main]

use fuzz::docker_config::ledger::{Ledger, is_of_a_later_version};
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use std::hint::black_box;

fuzz_target!(|text: &str| {
    black_box(is_of_a_later_version(text));
    let Some(ledger) = Ledger::from_json(text) else { return };
    for line in [ledger.to_json(), ledger.to_line()] {
        assert_eq!(Ledger::from_json(&line).as_ref(), Some(&ledger), "{line}");
    }
    let ranks: Vec<_> = ledger.entries.values().map(|record| record.rank(Timestamp::UNIX_EPOCH)).collect();
    for a in &ranks {
        for b in &ranks {
            assert_eq!(a.cmp(b), b.cmp(a).reverse());
        }
    }
});
