//! A merge never loses foreign content, whatever the document.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ecr_node_agent::docker_config::document::Document;
use ecr_node_agent::docker_config::merge::{self, MergeInput, Origin, Plan, Wanted, WantedEntry};
use ecr_node_agent::docker_config::parse;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use secrecy::SecretString;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

fn now() -> Timestamp {
    "2026-11-23T10:00:00Z".parse().unwrap()
}

fn wanted_entry(password: &str) -> WantedEntry {
    WantedEntry {
        auth: SecretString::from(STANDARD.encode(format!("AWS:{password}"))),
        expires_at: now() + SignedDuration::from_hours(12),
        fetched_at: now(),
        source: "eu-west-1".to_owned(),
        default_registry: false,
    }
}

fn wanted(entries: &BTreeMap<String, String>) -> Wanted {
    let entries = entries.iter().map(|(key, password)| (key.clone(), wanted_entry(password))).collect();
    Wanted { entries, drop_others: true, ..Wanted::default() }
}

fn parse(text: &str) -> Document<'_> {
    let parsed = parse::parse(text.as_bytes()).unwrap();
    assert_eq!(parsed.defects, [], "{text}");
    parsed.document
}

fn input(origin: Origin) -> MergeInput {
    MergeInput { origin, copied: BTreeMap::new(), explicit: false, now: now() }
}

/// The text after a plan; the same text if there is nothing to do.
fn after(text: &str, plan: Plan) -> String {
    match plan {
        Plan::Keep => text.to_owned(),
        Plan::Replace(bytes, _) => String::from_utf8(bytes.to_vec()).unwrap(),
        Plan::Delete(_) => String::new(),
    }
}

fn merged(text: &str, entries: &BTreeMap<String, String>) -> String {
    after(text, merge::plan(parse(text), &wanted(entries), input(Origin::File)))
}

fn removed(text: &str) -> String {
    after(text, merge::remove(parse(text), false, &[]))
}

fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Any JSON value.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        // Exact in binary: the reader of these tests, not the program, would round others.
        any::<i32>().prop_map(|number| Value::from(f64::from(number) / 8.0)),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((any::<String>(), inner), 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// An entry that the kubelet can decode, with unknown fields.
fn foreign_entry() -> impl Strategy<Value = Value> {
    (any::<Option<String>>(), any::<String>(), any_json()).prop_map(|(password, email, unknown)| {
        let mut entry = Map::new();
        if let Some(password) = password {
            entry.insert("auth".to_owned(), json!(STANDARD.encode(format!("user:{password}"))));
        }
        entry.insert("email".to_owned(), json!(email));
        entry.insert("x-unknown".to_owned(), unknown);
        Value::Object(entry)
    })
}

/// A docker config that the kubelet accepts: any fields, `auths` or not, null or not, anywhere among them.
fn foreign_document() -> impl Strategy<Value = Value> {
    let fields = prop::collection::vec(("x[a-zA-Z \"\\\\é]{0,8}", any_json()), 0..5);
    let entries =
        prop::collection::vec(("[a-z]{1,8}\\.example(:[0-9]{2,4})?(/[a-z]{1,4})?", foreign_entry()), 0..6);
    let auths = prop::option::of(prop::option::of(entries));
    (fields, auths, any::<prop::sample::Index>()).prop_map(|(fields, auths, place)| {
        let mut members: Vec<(String, Value)> = fields;
        if let Some(entries) = auths {
            let auths = entries.map_or(Value::Null, |entries| Value::Object(entries.into_iter().collect()));
            members.insert(place.index(members.len() + 1), ("auths".to_owned(), auths));
        }
        Value::Object(members.into_iter().collect())
    })
}

fn our_entries() -> impl Strategy<Value = BTreeMap<String, String>> {
    let host = "[0-9]{12}\\.dkr\\.ecr\\.(us-east-1|eu-west-1)\\.amazonaws\\.com";
    prop::collection::btree_map(host, "[ -~]{1,40}", 1..4)
}

fn entries_of(document: &Value) -> Vec<(String, Value)> {
    let auths = document["auths"].as_object().cloned().unwrap_or_default();
    auths.into_iter().collect()
}

proptest! {
    #[test]
    fn foreign_content_keeps_its_value_and_order(document in foreign_document(), ours in our_entries()) {
        let before = document.clone();
        let after = value(&merged(&document.to_string(), &ours));
        let is_foreign = |key: &str| !ours.contains_key(key);

        let fields = |document: &Value| -> Vec<(String, Value)> {
            let all = document.as_object().unwrap().clone().into_iter();
            all.filter(|(name, _)| name != "auths" && name != "ecr-node-agent").collect()
        };
        prop_assert_eq!(fields(&before), fields(&after));
        let kept: Vec<_> = entries_of(&after).into_iter().filter(|(key, _)| is_foreign(key)).collect();
        prop_assert_eq!(entries_of(&before), kept);
        for (key, password) in &ours {
            prop_assert_eq!(&after["auths"][key], &json!({ "auth": STANDARD.encode(format!("AWS:{password}")) }));
        }
    }

    #[test]
    fn a_second_merge_changes_nothing(document in foreign_document(), ours in our_entries()) {
        let once = merged(&document.to_string(), &ours);
        let again = merge::plan(parse(&once), &wanted(&ours), input(Origin::File));
        prop_assert!(matches!(again, Plan::Keep), "{:?}", again);
    }

    #[test]
    fn a_removal_gives_back_the_original(document in foreign_document(), ours in our_entries(), later in our_entries()) {
        let mut text = merged(&document.to_string(), &ours);
        text = merged(&text, &later);
        let back = value(&removed(&text));
        // Written out, since `Value` compares objects in any order.
        prop_assert_eq!(back.to_string(), document.to_string());
    }

    #[test]
    fn the_kubelet_accepts_a_merged_document(document in foreign_document(), ours in our_entries()) {
        let text = merged(&document.to_string(), &ours);
        let parsed = parse::parse(text.as_bytes()).unwrap();
        prop_assert!(parsed.defects.is_empty());
        for key in ours.keys() {
            prop_assert_eq!(parsed.document.credentials(key).unwrap().username, "AWS");
        }
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        parse::parse(&bytes).ok();
        parse::parse_legacy(&bytes).ok();
    }

    #[test]
    fn any_text_like_a_document_is_parsed_or_refused(text in "[{}\\[\\]\",:authsX0-9nul \\\\]{0,60}") {
        parse::parse(text.as_bytes()).ok();
    }
}

const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

fn ours() -> BTreeMap<String, String> {
    BTreeMap::from([(HOST.to_owned(), "new".to_owned())])
}

#[test]
fn values_that_serde_would_change_stay_unchanged() {
    let text = concat!(
        "{\"n\": 1e999, \"big\": 12345678901234567890.10, \"s\": \"\\ud800 \\u0041\", \"d\": 1, \"d\": 2,\n",
        " \"auths\": {\"a.example\": {\"auth\": \"dTpw\", \"z\": -0.0}, \"a.example\": {}}}"
    );
    let after = merged(text, &ours());
    for part in [
        "\"n\": 1e999",
        "\"big\": 12345678901234567890.10",
        "\"s\": \"\\ud800 \\u0041\"",
        "\"d\": 1,\n\t\"d\": 2",
        "\"a.example\": {\"auth\": \"dTpw\", \"z\": -0.0},\n\t\t\"a.example\": {}",
    ] {
        assert!(after.contains(part), "{part} is not in {after}");
    }
}

#[test]
fn every_spelling_of_a_configured_registry_is_taken_over_and_no_other_key() {
    let text = json!({ "auths": {
        "first.example": {},
        format!("https://{HOST}/v2/"): { "auth": "dTpvbGQ=" },
        format!("{HOST}/team"): { "auth": "dTpwYXRo" },
        HOST: { "auth": "dTpvbGQ=", "email": "e" },
        "*.dkr.ecr.eu-west-1.amazonaws.com": { "auth": "dTpnbG9i" },
    }});
    let Plan::Replace(bytes, changes) =
        merge::plan(parse(&text.to_string()), &wanted(&ours()), input(Origin::File))
    else {
        panic!("nothing to do?")
    };
    assert_eq!(changes.taken_over, [format!("https://{HOST}/v2/"), HOST.to_owned()]);
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let keys: Vec<_> = parse(&text).keys().map(str::to_owned).collect();
    let expected = ["first.example", HOST, &format!("{HOST}/team"), "*.dkr.ecr.eu-west-1.amazonaws.com"];
    assert_eq!(keys, expected);
}

#[test]
fn another_spelling_beside_the_same_token_is_taken_over() {
    let text = merged(&json!({ "auths": { "first.example": {} } }).to_string(), &ours());
    let other = format!("https://{HOST}/v2/");
    let text = text.replacen("\"first.example\"", &format!("\"{other}\""), 1);
    let Plan::Replace(bytes, changes) = merge::plan(parse(&text), &wanted(&ours()), input(Origin::File))
    else {
        panic!("nothing to do?")
    };
    // The agent's own entry is none that it takes over.
    assert_eq!(changes.taken_over, [other]);
    let after = String::from_utf8(bytes.to_vec()).unwrap();
    assert_eq!(parse(&after).keys().collect::<Vec<_>>(), [HOST], "{after}");
}

#[test]
fn a_token_of_a_higher_rank_serves_as_the_one_of_the_default_registry() {
    let record = |text: &str| parse(text).own_records().remove(HOST).unwrap();
    let later = merged("{}", &ours());
    assert!(!record(&later).default_registry);
    assert_eq!(parse::own_records(later.as_bytes()).into_keys().collect::<Vec<_>>(), [HOST]);
    assert!(parse::own_records(b"{").is_empty());
    let mut older = wanted(&BTreeMap::from([(HOST.to_owned(), "older".to_owned())]));
    let entry = older.entries.get_mut(HOST).unwrap();
    (entry.expires_at, entry.default_registry) = (now() + SignedDuration::from_hours(1), true);
    let after = after(&later, merge::plan(parse(&later), &older, input(Origin::File)));
    assert!(record(&after).default_registry, "{after}");
    assert_eq!(record(&after).expires_at, now() + SignedDuration::from_hours(12), "the later token stays");
}

#[test]
fn the_record_of_an_entry_that_another_program_has_changed_is_deleted() {
    let text = merged("{}", &ours()).replace(&STANDARD.encode("AWS:new"), "dTp0aGVpcnM=");
    let after = after(&text, merge::plan(parse(&text), &Wanted::default(), input(Origin::File)));
    assert_eq!(value(&after)["ecr-node-agent"]["entries"], json!({}), "{after}");
    assert_eq!(value(&after)["auths"][HOST]["auth"], "dTp0aGVpcnM=");
}

#[test]
fn copied_entries_are_written_before_there_is_a_token() {
    for (origin, created) in [(Origin::Nothing, json!("file")), (Origin::File, Value::Null)] {
        let copied = BTreeMap::from([("a.example".to_owned(), "digest".to_owned())]);
        let text = after("", merge::plan_copied(parse("{\"auths\":{\"a.example\":{}}}"), origin, copied));
        let ledger = &value(&text)["ecr-node-agent"];
        assert_eq!(ledger["takenAlong"], json!({ "a.example": "digest" }), "{text}");
        assert_eq!(ledger["created"], created, "{text}");
    }
}

#[test]
fn a_version_that_adds_nothing_can_be_replaced() {
    let foreign = json!({ "credsStore": "x", "auths": { "a.example": { "auth": "dTpw" } } });
    let with_ours = merged(&foreign.to_string(), &ours());
    let mut copies = Document::default();
    let along = copies.copy_entries(&parse("{\"auths\": {\"b.example\": {\"auth\": \"dTpw\"}}}"));
    let with_copies = after(
        "",
        merge::plan(copies, &wanted(&ours()), MergeInput { copied: along, ..input(Origin::Nothing) }),
    );
    let cases = [
        // a version, what replaces it, whether copies count, whether nothing is lost
        (foreign.to_string(), foreign.to_string(), false, true),
        (with_ours.clone(), foreign.to_string(), false, true),
        (foreign.to_string(), with_ours.clone(), false, true),
        (foreign.to_string(), "{}".to_owned(), false, false),
        (json!({ "credsStore": "x" }).to_string(), "{}".to_owned(), false, false),
        (json!({ "auths": { "a.example": { "auth": "dTpw" } } }).to_string(), "{}".to_owned(), false, false),
        (foreign.to_string(), foreign.to_string().replace("dTpw", "dTpx"), false, false),
        // An entry of the agent's that another program has changed is foreign content.
        (with_ours.replace(&STANDARD.encode("AWS:new"), "dTpw"), foreign.to_string(), false, false),
        (with_copies.clone(), "{}".to_owned(), false, true),
        (with_copies.clone(), "{}".to_owned(), true, false),
        (with_copies.replace("dTpw", "dTpx"), "{}".to_owned(), false, false),
    ];
    for (version, other, copies_count, expected) in cases {
        let found = merge::adds_nothing(&parse(&version), &parse(&other), copies_count);
        assert_eq!(found, expected, "{version} by {other}, copies count: {copies_count}");
    }
}

#[test]
fn only_own_entries_that_are_not_configured_are_removed() {
    let other = "210987654321.dkr.ecr.us-east-1.amazonaws.com";
    let failed = "210987654321.dkr.ecr.us-west-2.amazonaws.com";
    let both = BTreeMap::from([HOST, other, failed].map(|key| (key.to_owned(), "old".to_owned())));
    let start = json!({ "auths": { "999999999999.dkr.ecr.us-east-1.amazonaws.com": {} } }).to_string();
    let text = merged(&start, &both);
    let mut next = wanted(&ours());
    next.keep.push(failed.to_owned());
    let Plan::Replace(bytes, changes) = merge::plan(parse(&text), &next, input(Origin::File)) else {
        panic!()
    };
    assert_eq!(changes.removed, [other]);
    let after: Value = serde_json::from_slice(&bytes).unwrap();
    let keys: Vec<_> = entries_of(&after).into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["999999999999.dkr.ecr.us-east-1.amazonaws.com", HOST, failed]);
    assert!(after["ecr-node-agent"]["entries"].get(other).is_none());
    assert!(after["ecr-node-agent"]["entries"].get(failed).is_some());
}

#[test]
fn a_public_entry_without_a_new_token_is_removed_before_it_expires() {
    let public = "public.ecr.aws";
    let text = merged("{}", &BTreeMap::from([(public.to_owned(), "old".to_owned())]));
    let end = now() + SignedDuration::from_hours(12);
    for (until, stays) in [(end - SignedDuration::from_secs(1), true), (end, false)] {
        let wanted = Wanted {
            lapse: BTreeMap::from([(public.to_owned(), until)]),
            drop_others: true,
            ..Wanted::default()
        };
        let after = after(&text, merge::plan(parse(&text), &wanted, input(Origin::File)));
        assert_eq!(value(&after)["auths"].get(public).is_some(), stays, "{after}");
    }
}

#[test]
fn a_created_file_is_deleted_if_it_holds_nothing_else() {
    let made = after("", merge::plan(Document::default(), &wanted(&ours()), input(Origin::Nothing)));
    assert!(matches!(merge::remove(parse(&made), false, &[]), Plan::Delete(_)));

    // Entries that were copied from a hidden file are removed, and the hidden file counts again.
    let hidden = parse("{\"auths\": {\"a.example\": {\"auth\": \"dTpw\"}}}");
    let mut document = Document::default();
    let along = document.copy_entries(&hidden);
    assert_eq!(along.keys().collect::<Vec<_>>(), ["a.example"]);
    let made = after(
        "",
        merge::plan(document, &wanted(&ours()), MergeInput { copied: along, ..input(Origin::Nothing) }),
    );
    assert!(matches!(merge::remove(parse(&made), true, &[]), Plan::Delete(_)));
    // They stay if that file is gone, or if the entry was changed here: then this is its only place.
    let kept = value(&after(&made, merge::remove(parse(&made), false, &[])));
    assert_eq!(kept["auths"], json!({ "a.example": { "auth": "dTpw" } }));
    let changed = made.replace("dTpw", "dTpx");
    let kept = value(&after(&changed, merge::remove(parse(&changed), true, &[])));
    assert_eq!(kept["auths"], json!({ "a.example": { "auth": "dTpx" } }));
}

#[test]
fn a_created_file_with_a_field_of_another_program_is_not_deleted() {
    let made = after("", merge::plan(Document::default(), &wanted(&ours()), input(Origin::Nothing)));
    let theirs = made.replacen('{', "{\"credsStore\": \"x\",", 1);
    for hides_another in [false, true] {
        let plan = merge::remove(parse(&theirs), hides_another, &[]);
        let Plan::Replace(bytes, _) = plan else { panic!("{plan:?}") };
        let left: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(left, json!({ "credsStore": "x", "auths": {} }));
    }
}

#[test]
fn the_buffer_of_a_document_is_allocated_once() {
    let text = json!({ "x": "y".repeat(1000), "auths": { "a.example": { "auth": "dTpw" } } }).to_string();
    let plan = merge::plan(parse(&text), &wanted(&ours()), input(Origin::File));
    let Plan::Replace(bytes, _) = plan else { panic!("{plan:?}") };
    assert!(bytes.capacity() - bytes.len() < 100, "{} for {}", bytes.capacity(), bytes.len());
}

#[test]
fn an_entry_that_another_program_has_changed_is_foreign() {
    let text = merged("{}", &ours());
    let theirs = text.replace(&STANDARD.encode("AWS:new"), "dTp0aGVpcnM=");
    let kept = value(&after(&theirs, merge::remove(parse(&theirs), false, &[])));
    assert_eq!(kept["auths"][HOST]["auth"], "dTp0aGVpcnM=");
    // It stays if the registry is no longer configured. If it is, the entry is taken over, and reported.
    let other = BTreeMap::from([("210987654321.dkr.ecr.us-east-1.amazonaws.com".to_owned(), "x".to_owned())]);
    assert_eq!(value(&merged(&theirs, &other))["auths"][HOST]["auth"], "dTp0aGVpcnM=");
    let plan = merge::plan(parse(&theirs), &wanted(&ours()), input(Origin::File));
    let Plan::Replace(_, changes) = plan else { panic!() };
    assert_eq!(changes.taken_over, [HOST]);
}

#[test]
fn a_token_of_a_higher_rank_stays() {
    let later = merged("{}", &ours());
    let mut older = wanted(&BTreeMap::from([(HOST.to_owned(), "older".to_owned())]));
    older.entries.get_mut(HOST).unwrap().expires_at = now() + SignedDuration::from_hours(1);
    let plan = merge::plan(parse(&later), &older, input(Origin::File));
    assert!(matches!(plan, Plan::Keep), "{plan:?}");
    // A token from another source does not.
    older.entries.get_mut(HOST).unwrap().source = "eu-west-1 as another".to_owned();
    let plan = merge::plan(parse(&later), &older, input(Origin::File));
    assert!(matches!(plan, Plan::Replace(..)), "{plan:?}");
}

#[test]
fn unusual_text_in_the_ledger_does_not_damage_the_file() {
    let mut wanted = wanted(&ours());
    let entry = wanted.entries.get_mut(HOST).unwrap();
    entry.source = "two  spaces\n\tand \"quotes\"".to_owned();
    let text = after("{}", merge::plan(parse("{}"), &wanted, input(Origin::File)));
    assert_eq!(value(&text)["ecr-node-agent"]["entries"][HOST]["source"], "two  spaces\n\tand \"quotes\"");
}

#[test]
fn a_file_with_the_ledger_of_a_later_version_is_not_touched() {
    for text in
        ["{\"ecr-node-agent\":{\"version\":2}}", "{\"ecr-node-agent\":{\"version\":2},\"ecr-node-agent\":{}}"]
    {
        let found = parse::parse(text.as_bytes());
        assert!(matches!(found, Err(parse::ParseError::CannotPreserve(_))), "{text}: {found:?}");
    }
}

#[test]
fn headers_must_be_strings() {
    let cases = [
        ("null", true),
        ("{}", true),
        (r#"{"a":"b","c":null}"#, true),
        (r#"{"a":"b","c":1}"#, false),
        ("[]", false),
        ("\"a\"", false),
    ];
    for (headers, is_accepted) in cases {
        let text = format!("{{\"HttpHeaders\":{headers}}}");
        assert_eq!(parse::parse(text.as_bytes()).unwrap().defects.is_empty(), is_accepted, "{text}");
    }
}

#[test]
fn a_damaged_file_is_not_repaired_without_an_entry_to_write() {
    let lapse = BTreeMap::from([("public.ecr.aws".to_owned(), now())]);
    let wanted = Wanted { lapse, drop_others: true, ..Wanted::default() };
    let plan = merge::plan(parse("{\"auths\":{\"a\":{}}}"), &wanted, input(Origin::Repaired));
    assert!(matches!(plan, Plan::Keep), "{plan:?}");
}

#[test]
fn a_removal_without_a_ledger_changes_nothing() {
    let text = json!({ "auths": { HOST: { "auth": "dTpw" } } }).to_string();
    assert!(matches!(merge::remove(parse(&text), false, &[]), Plan::Keep));
}

#[test]
fn two_agents_that_fetched_in_the_same_second_settle_on_one_token() {
    let tokens =
        ["one", "other"].map(|password| wanted(&BTreeMap::from([(HOST.to_owned(), password.to_owned())])));
    for start in 0..2 {
        let mut text = "{}".to_owned();
        let mut writes = 0;
        // Both agents look at the file in turns and write their own token if it outranks the one that is there.
        for turn in 0..6 {
            let plan = merge::plan(parse(&text), &tokens[(start + turn) % 2], input(Origin::File));
            writes += usize::from(!matches!(plan, Plan::Keep));
            text = after(&text, plan);
        }
        assert!(writes <= 2, "{writes} writes");
    }
}

#[test]
fn a_record_that_claims_an_impossible_expiry_keeps_no_token_away() {
    let mut planted = wanted(&BTreeMap::from([(HOST.to_owned(), "planted".to_owned())]));
    planted.entries.get_mut(HOST).unwrap().expires_at = now() + SignedDuration::from_hours(24 * 365);
    let text = after("{}", merge::plan(parse("{}"), &planted, input(Origin::File)));
    let plan = merge::plan(parse(&text), &wanted(&ours()), input(Origin::File));
    assert!(matches!(plan, Plan::Replace(..)), "{plan:?}");
}

#[test]
fn an_explicit_refresh_writes_what_it_fetched() {
    let later = merged("{}", &ours());
    let mut older = wanted(&BTreeMap::from([(HOST.to_owned(), "older".to_owned())]));
    older.entries.get_mut(HOST).unwrap().expires_at = now() + SignedDuration::from_hours(1);
    let plan = merge::plan(parse(&later), &older, MergeInput { explicit: true, ..input(Origin::File) });
    assert!(matches!(plan, Plan::Replace(..)), "{plan:?}");
}

#[test]
fn a_removal_takes_out_an_entry_without_a_record_if_it_is_ecrs_and_asked_for() {
    // `docker login` has dropped the ledger.
    let auth = STANDARD.encode("AWS:new");
    let other = "210987654321.dkr.ecr.us-east-1.amazonaws.com";
    let text = json!({ "auths": {
        HOST: { "auth": auth },
        other: { "auth": auth },
        "registry.example.com": { "auth": STANDARD.encode("user:pass") },
    }})
    .to_string();
    assert_eq!(merge::unrecorded(&parse(&text)), [HOST, other]);
    assert!(matches!(merge::remove(parse(&text), false, &[]), Plan::Keep));
    let registries = [HOST.to_owned(), "registry.example.com".to_owned()];
    // In any spelling.
    for spelling in [HOST.to_owned(), format!("https://{HOST}/v2/")] {
        let text = text.replace(HOST, &spelling);
        let Plan::Replace(bytes, changes) = merge::remove(parse(&text), false, &registries) else {
            panic!("{text}")
        };
        assert_eq!(changes.removed, [spelling]);
        let left: Value = serde_json::from_slice(&bytes).unwrap();
        let keys: Vec<_> = entries_of(&left).into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, [other, "registry.example.com"]);
    }
}

#[test]
fn a_document_of_thousands_of_entries_is_merged_and_emptied_again() {
    let key = |number: usize| format!("{number:012}.dkr.ecr.us-east-1.amazonaws.com");
    let ours: BTreeMap<_, _> = (0..1500).map(|number| (key(number), "password".to_owned())).collect();
    let foreign: Map<_, _> = (0..6000).map(|number| (format!("{number}.example"), json!({}))).collect();
    let text = json!({ "auths": foreign }).to_string();
    let merged = merged(&text, &ours);
    let again = merge::plan(parse(&merged), &wanted(&ours), input(Origin::File));
    assert!(matches!(again, Plan::Keep));
    assert_eq!(value(&removed(&merged)), value(&text));
}
