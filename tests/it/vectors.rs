//! Cases from other programs, with which this program must agree (`tests/vectors/`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ecr_node_agent::auth_file::read_place;
use ecr_node_agent::docker_config::document::Document;
use ecr_node_agent::docker_config::image::Image;
use ecr_node_agent::docker_config::keyring::{Entry, Keyring};
use ecr_node_agent::docker_config::parse::{self, ParseError, Shape};
use ecr_node_agent::docker_config::search::{self, Content, Kubelet, Verdict};
use ecr_node_agent::docker_config::{entry, json as json_text, key, matching};
use ecr_node_agent::ecr::registry::{Endpoint, Registry, host_of_proxy_endpoint};
use ecr_node_agent::ecr::token::AuthorizationToken;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use std::path::Path;

const KUBELET: &str = include_str!("../vectors/kubelet.json");
const PEERS: &str = include_str!("../vectors/peers.json");

/// The kubelet's cases of some groups.
pub fn kubelet(groups: &[&str]) -> Vec<Value> {
    let all: Vec<Value> = serde_json::from_str(KUBELET).unwrap();
    let cases: Vec<Value> =
        all.into_iter().filter(|case| groups.contains(&case["group"].as_str().unwrap())).collect();
    assert!(!cases.is_empty(), "no case in {groups:?}");
    cases
}

fn peers(id: &str) -> Vec<Value> {
    let all: Vec<Value> = serde_json::from_str(PEERS).unwrap();
    let group = all.into_iter().find(|group| group["id"] == id).unwrap_or_else(|| panic!("no group {id}"));
    group["cases"].as_array().unwrap().clone()
}

fn content(input: &Value) -> Vec<u8> {
    if let Some(hex) = input["content_hex"].as_str() {
        return (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect();
    }
    if let Some(repeat) = input["content_repeat"].as_object() {
        let times = usize::try_from(repeat["times"].as_u64().unwrap()).unwrap();
        let text = |name: &str| repeat[name].as_str().unwrap_or_default();
        let (unit, closing) = (text("unit").repeat(times), text("closing_unit").repeat(times));
        return format!("{}{unit}{closing}{}", text("prefix"), text("suffix")).into_bytes();
    }
    input["content"].as_str().unwrap().as_bytes().to_vec()
}

fn assert_credentials(document: &Document<'_>, expected: &Value, id: &str) {
    let expected = expected.as_object().unwrap();
    let mut keys: Vec<&str> = document.keys().collect();
    keys.sort_unstable();
    keys.dedup();
    let mut wanted: Vec<&String> = expected.keys().collect();
    wanted.sort_unstable();
    assert_eq!(keys, wanted, "{id}");
    for key in keys {
        let found = document.credentials(key).unwrap();
        assert_eq!(found.username, expected[key]["username"].as_str().unwrap(), "{id}: {key}");
        assert_eq!(
            found.password.expose_secret(),
            expected[key]["password"].as_str().unwrap(),
            "{id}: {key}"
        );
    }
}

#[test]
fn files_are_judged_as_the_kubelet_judges_them() {
    for case in kubelet(&["file_parse", "file_parse_edge"]) {
        let id = case["id"].as_str().unwrap();
        let (bytes, expected) = (content(&case["input"]), &case["expected"]);
        let parsed = match case["input"]["format"].as_str().unwrap() {
            "dockercfg" => parse::parse_legacy(&bytes),
            _ => parse::parse(&bytes),
        };
        match id {
            // The kubelet accepts the file, but it could not be written again unchanged, so it is left alone.
            "file_parse_edge-25" | "file_parse_edge-26" | "file_parse_edge-27" | "file_parse_edge-67" => {
                assert!(matches!(parsed, Err(ParseError::CannotPreserve(_))), "{id}: {parsed:?}");
                continue;
            }
            _ => {}
        }
        match parsed {
            Ok(parsed) if parsed.defects.is_empty() => {
                assert_eq!(expected["error"], false, "{id}: the kubelet refuses this file");
                assert_credentials(&parsed.document, &expected["entries"], id);
            }
            Ok(_) | Err(ParseError::Invalid(_)) => {
                assert_eq!(expected["error"], true, "{id}: the kubelet accepts it");
            }
            Err(error) => panic!("{id}: {error}"),
        }
    }
}

#[test]
fn entries_are_decoded_as_the_kubelet_decodes_them() {
    for case in kubelet(&["auth_decode", "auth_decode_edge"]) {
        let (id, expected) = (&case["id"], &case["expected"]);
        let auth = SecretString::from(case["input"]["auth"].as_str().unwrap());
        match entry::decode_auth(&auth) {
            Ok(found) => {
                assert_eq!(expected["error"], false, "{id}");
                assert_eq!(found.username, expected["username"].as_str().unwrap(), "{id}");
                assert_eq!(found.password.expose_secret(), expected["password"].as_str().unwrap(), "{id}");
            }
            Err(error) => assert_eq!(expected["error"], true, "{id}: {error}"),
        }
    }
    for case in kubelet(&["entry_decode"]) {
        let (id, expected) = (&case["id"], &case["expected"]);
        match entry::decode(case["input"]["json"].as_str().unwrap()) {
            Ok(found) => {
                assert_eq!(found.username, expected["entry"]["username"].as_str().unwrap(), "{id}");
                assert_eq!(
                    found.password.expose_secret(),
                    expected["entry"]["password"].as_str().unwrap(),
                    "{id}"
                );
            }
            Err(error) => assert_eq!(expected["error"], true, "{id}: {error}"),
        }
    }
}

#[test]
fn keys_are_indexed_as_the_kubelet_indexes_them() {
    for case in kubelet(&["key_normalise", "key_normalise_edge"]) {
        let key = case["input"]["key"].as_str().unwrap();
        assert_eq!(key::index_key(key).as_deref(), case["expected"]["index_key"].as_str(), "{key}");
    }
}

/// The vectors for matching, each as a document and a name to look up.
pub fn matching() -> Vec<(String, String)> {
    let groups = [
        "url_match",
        "url_match_ecr",
        "url_match_edge",
        "keyring_hit",
        "keyring_miss",
        "keyring_hub",
        "lookup_order",
        "lookup_order_ecr",
        "lookup_order_edge",
        "file_lookup",
    ];
    kubelet(&groups).iter().map(|case| document_and_name(&case["input"])).collect()
}

/// A document with the entries of a vector's keyring, and the name that the vector looks up.
fn document_and_name(input: &Value) -> (String, String) {
    let text = |name: &str| input[name].as_str().unwrap_or_default().to_owned();
    if input.get("glob").is_some() {
        return (json!({ "auths": { text("glob"): { "username": "u" } } }).to_string(), text("target"));
    }
    let document = match (input.get("content"), input["keys"].as_object()) {
        (Some(content), _) => content.as_str().unwrap().to_owned(),
        (None, Some(keys)) => {
            let entry = |(key, user): (&String, &Value)| (key.clone(), json!({ "username": user }));
            json!({ "auths": keys.iter().map(entry).collect::<serde_json::Map<_, _>>() }).to_string()
        }
        (None, None) => json!({ "auths": { text("key"): input["entry"] } }).to_string(),
    };
    (document, text("lookup"))
}

#[test]
fn entries_are_tried_as_the_kubelet_tries_them() {
    for case in kubelet(&["keyring_hit", "keyring_miss", "keyring_hub"]) {
        let (document, name) = document_and_name(&case["input"]);
        let keyring = Keyring::read(document.as_bytes(), Shape::DockerConfig).unwrap();
        let tried = keyring.look_up_name(&name).tried;
        let (expected, id) = (&case["expected"], &case["id"]);
        assert_eq!(!tried.is_empty(), expected["found"].as_bool().unwrap(), "{id}");
        if let Some(first) = tried.first() {
            assert_eq!(first.credentials.username, expected["first"]["username"].as_str().unwrap(), "{id}");
            let password = first.credentials.password.expose_secret();
            assert_eq!(password, expected["first"]["password"].as_str().unwrap(), "{id}");
        }
    }
    for case in kubelet(&["lookup_order", "lookup_order_ecr", "lookup_order_edge"]) {
        let (document, name) = document_and_name(&case["input"]);
        let keyring = Keyring::read(document.as_bytes(), Shape::DockerConfig).unwrap();
        let found = keyring.look_up_name(&name);
        let mut users: Vec<_> = found.tried.iter().map(|entry| entry.credentials.username.as_str()).collect();
        if case["input"]["unordered"] == true {
            users.sort_unstable();
        }
        assert_eq!(json!(users), case["expected"]["users"], "{}", case["id"]);
    }
    for case in kubelet(&["file_lookup"]) {
        let (document, name) = document_and_name(&case["input"]);
        let found = Keyring::read(document.as_bytes(), Shape::DockerConfig);
        let (expected, id) = (&case["expected"], &case["id"]);
        assert_eq!(found.is_err(), expected["error"].as_bool().unwrap(), "{id}");
        let Ok(keyring) = found else { continue };
        let credential = |entry: &&Entry| {
            format!("{}:{}", entry.credentials.username, entry.credentials.password.expose_secret())
        };
        let mut credentials: Vec<_> = keyring.look_up_name(&name).tried.iter().map(credential).collect();
        if case["input"]["unordered"] == true {
            credentials.sort_unstable();
        }
        assert_eq!(json!(credentials), expected["credentials"], "{id}");
    }
}

#[test]
fn keys_match_names_as_the_kubelet_matches_them() {
    for case in kubelet(&["url_match", "url_match_ecr", "url_match_edge"]) {
        let text = |name: &str| case["input"][name].as_str().unwrap();
        let found = matching::matches(text("glob"), text("target"));
        assert_eq!(found, case["expected"]["match"].as_bool().unwrap(), "{}", case["id"]);
    }
    for case in kubelet(&["default_registry"]) {
        let found = matching::is_of_the_default_registry(case["input"]["image"].as_str().unwrap());
        assert_eq!(found, case["expected"]["is_default"].as_bool().unwrap(), "{}", case["id"]);
    }
}

#[test]
fn image_names_are_parsed_as_the_kubelet_parses_them() {
    for case in kubelet(&["image_trim"]) {
        let image = case["input"]["image"].as_str().unwrap().parse::<Image>();
        assert_eq!(image.is_err(), case["expected"]["error"].as_bool().unwrap(), "{}", case["id"]);
        if let Ok(image) = image {
            // Elsewhere the kubelet keeps the short form of Docker Hub's names.
            let (name, repository) = (case["expected"]["name"].as_str().unwrap(), image.repository());
            let is_same = repository == name || repository == format!("docker.io/library/{name}");
            assert!(is_same, "{}: {repository}", case["id"]);
        }
    }
}

#[test]
fn files_are_searched_as_the_kubelet_searches_them() {
    let root = tempfile::tempdir().unwrap();
    let [r, cwd, home] = ["R", "CWD", "HOME"].map(|name| root.path().join(name));
    let kubelet_here = Kubelet { auth_file: r.join("config.json"), working_dir: cwd, home: Some(home) };
    let inside = |path: &Path| path.strip_prefix(root.path()).unwrap_or(path).to_str().unwrap().to_owned();
    for case in kubelet(&["search_order"]) {
        let (id, input, expected) = (&case["id"], &case["input"], &case["expected"]);
        if let Some(paths) = expected.get("paths") {
            let places: Vec<_> = kubelet_here.places().iter().map(|place| inside(&place.path)).collect();
            assert_eq!(json!(places), *paths, "{id}");
            continue;
        }
        let content = |path: &str| match input["files"][path].as_str() {
            None => Content::Missing,
            Some("valid" | "symlink-to-valid") if path.ends_with("config.json") => {
                bytes(r#"{"auths":{"a.b":{}}}"#)
            }
            Some("valid") => bytes(r#"{"a.b":{}}"#),
            Some("malformed") => bytes("{"),
            Some("zero-bytes") => bytes(""),
            Some("empty-object") => bytes("{}"),
            Some("directory" | "symlink-loop") => Content::Unreadable(String::new()),
            Some(other) => panic!("{id}: {other}"),
        };
        let places = kubelet_here.places().into_iter().map(|place| {
            let content = content(&inside(&place.path));
            (place, content)
        });
        let judged = search::judge(places.collect());
        let used = judged.iter().find(|(_, verdict)| matches!(verdict, Verdict::Used(_)));
        assert_eq!(json!(used.map(|(place, _)| inside(&place.path))), expected["winner"], "{id}");
    }
}

fn bytes(text: &str) -> Content {
    Content::Bytes(Zeroizing::new(text.as_bytes().to_vec()))
}

#[test]
fn the_kind_of_a_file_decides_as_for_the_kubelet() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    std::fs::create_dir(path("directory")).unwrap();
    #[expect(clippy::disallowed_methods, reason = "test code")]
    std::fs::write(path("file"), "{}").unwrap();
    std::os::unix::fs::symlink("file", path("link")).unwrap();
    std::os::unix::fs::symlink("loop", path("loop")).unwrap();
    std::os::unix::fs::symlink("nothing", path("dangling")).unwrap();
    nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let is = |name: &str| match read_place(&path(name)) {
        Content::Missing => "missing",
        Content::Bytes(_) => "bytes",
        Content::Unreadable(_) => "unreadable",
        Content::Unknown(_) => "unknown",
    };
    assert_eq!(["directory", "loop", "fifo", "file/below"].map(is), ["unreadable"; 4]);
    assert_eq!(["file", "link"].map(is), ["bytes"; 2]);
    assert_eq!(["nothing", "dangling", "nothing/below"].map(is), ["missing"; 3]);
}

#[test]
fn an_entry_decodes_to_what_was_written_into_it() {
    for case in peers("kubelet-entry-decode") {
        let found = entry::decode(&case["in"].to_string());
        match case.get("out") {
            Some(out) => {
                let found = found.unwrap();
                assert_eq!(found.username, out["username"].as_str().unwrap(), "{case}");
                assert_eq!(found.password.expose_secret(), out["password"].as_str().unwrap(), "{case}");
            }
            None => assert!(found.is_err(), "{case}"),
        }
    }
}

#[test]
fn ecr_hosts_are_distinguished_from_similar_ones() {
    for case in peers("private-host-match") {
        let host = case["in"].as_str().unwrap();
        assert_eq!(
            host.parse::<Registry>().is_ok(),
            case["out"].as_bool().unwrap(),
            "{host}: {}",
            case["why"]
        );
    }
    // Our choices, on purpose: AWS publishes neither of the two mixed forms; a host is lower-cased, since host names
    // have no case and the kubelet's keys do; a port is refused, since no image of ECR's names one; an interface
    // endpoint's name needs `region=`, as any custom domain.
    let ours = [false, false, true, false, false];
    for (case, accepted) in peers("host-match-laxity").iter().zip(ours) {
        let host = case["in"].as_str().unwrap();
        assert_eq!(host.parse::<Registry>().is_ok(), accepted, "{host}: {}", case["why"]);
    }
    assert!("vpce-0abc.dkr.ecr.us-east-1.vpce.amazonaws.com,region=us-east-1".parse::<Registry>().is_ok());
}

#[test]
fn a_host_determines_its_region_and_endpoint() {
    for case in peers("region-from-host") {
        let (host, region) = (case["in"].as_str().unwrap(), case["out"].as_str().unwrap());
        let found = host.parse::<Registry>().map(|registry| registry.source(None).region.to_string());
        // Where others fall back to the SDK's region, we ask for one: a token of another region is no good.
        assert_eq!(found.unwrap_or_default(), region, "{host}");
    }
    for case in peers("pfnet-region-dual-stack") {
        let registry: Registry = case["in"].as_str().unwrap().parse().unwrap();
        assert_eq!(registry.source(None).region.as_str(), case["expected_of_us"].as_str().unwrap());
    }
    for case in peers("server-url-parse") {
        // A registry is given as a host; others also take URLs, and cut them down to their host.
        let host = case["in"].as_str().unwrap().trim_start_matches("https://");
        let is_more_than_a_host = host.contains('/');
        let host = host.split('/').next().unwrap();
        let found = host.parse::<Registry>();
        if is_more_than_a_host {
            assert!(case["in"].as_str().unwrap().parse::<Registry>().is_err(), "{case}");
        }
        let Some(out) = case.get("out") else {
            assert!(found.is_err(), "{case}");
            continue;
        };
        let source = found.unwrap().source(None);
        match source.endpoint {
            Endpoint::Public => assert_eq!(out["service"], "ecr-public", "{case}"),
            Endpoint::Private { fips, .. } => {
                assert_eq!(out["region"], source.region.as_str(), "{case}");
                assert_eq!(out["fips"], fips, "{case}");
                assert!(host.starts_with(out["id"].as_str().unwrap()), "{case}");
            }
        }
    }
}

#[test]
fn only_user_and_password_make_a_token() {
    let tokens = |case: &Value| match &case["in"]["authorizationData"] {
        Value::Array(list) => list.first().cloned(),
        Value::Object(object) => Some(Value::Object(object.clone())),
        _ => None,
    };
    for case in peers("private-token-response").iter().chain(&peers("public-token-response")) {
        let Some(plain) = tokens(case).and_then(|data| data["token_plain"].as_str().map(str::to_owned))
        else {
            // Answers without data or without a token are played by the emulator (`ecr.rs`).
            assert!(case.get("error").is_some(), "{case}");
            continue;
        };
        let token = AuthorizationToken::new(SecretString::from(STANDARD.encode(plain)));
        match case.get("out") {
            Some(out) => {
                let found = entry::decode_auth(token.unwrap().for_auth_entry()).unwrap();
                assert_eq!(found.username, out["username"].as_str().unwrap());
                assert_eq!(found.password.expose_secret(), out["password"].as_str().unwrap());
            }
            None => assert!(token.is_err(), "{case}"),
        }
    }
}

#[test]
fn no_secret_in_an_answer_reaches_an_error() {
    for case in peers("no-secret-in-logs") {
        if let Some(plain) = case["in"]["token_plain"].as_str() {
            let error = AuthorizationToken::new(SecretString::from(STANDARD.encode(plain))).unwrap_err();
            assert!(!format!("{error} {error:?}").contains(plain), "{case}");
        }
        if let Some(url) = case["in"]["proxyEndpoint"].as_str() {
            assert_eq!(host_of_proxy_endpoint(url), None, "{case}");
        }
    }
}

#[test]
fn names_match_as_go_matches_them() {
    let cases = [("auths", true), ("AUTHS", true), ("auth\u{17F}", true), ("auth", false), ("authss", false)];
    for (name, matches) in cases {
        assert_eq!(json_text::is_field(name, "auths"), matches, "{name}");
    }
}
