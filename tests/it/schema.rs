//! The JSON Schemas in `docs/schema` describe what `status` and `explain` really print.
//!
//! A small validator, for the keywords that these schemas use. It fails on any other keyword.

use crate::node::{HOST, Node};
use ecr_emulator::{Api, Fault, Times};
use serde_json::{Value, json};
use std::path::Path;

fn schema(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schema").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Where a value does not fit its schema, with the reason.
fn misfits(schema: &Value, root: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    for (keyword, rule) in schema.as_object().unwrap() {
        match keyword.as_str() {
            "$schema" | "$id" | "$defs" | "title" | "description" | "format" => {}
            "$ref" => {
                let name = rule.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
                misfits(&root["$defs"][name], root, value, at, found);
            }
            "type" => {
                let names = rule.as_array().cloned().unwrap_or_else(|| vec![rule.clone()]);
                let is = |name: &Value| match name.as_str().unwrap() {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "boolean" => value.is_boolean(),
                    "integer" => value.is_i64() || value.is_u64(),
                    "null" => value.is_null(),
                    other => panic!("{other}"),
                };
                if !names.iter().any(is) {
                    found.push(format!("{at}: {value} is not {rule}"));
                }
            }
            "const" | "enum" => {
                let allowed = rule.as_array().cloned().unwrap_or_else(|| vec![rule.clone()]);
                if !allowed.contains(value) {
                    found.push(format!("{at}: {value} is not {rule}"));
                }
            }
            "anyOf" => {
                let fits = |schema: &Value| {
                    let mut inner = Vec::new();
                    misfits(schema, root, value, at, &mut inner);
                    inner.is_empty()
                };
                if !rule.as_array().unwrap().iter().any(fits) {
                    found.push(format!("{at}: {value} fits none of {rule}"));
                }
            }
            "required" => {
                for name in rule.as_array().unwrap().iter().map(|name| name.as_str().unwrap()) {
                    if value.is_object() && value.get(name).is_none() {
                        found.push(format!("{at}: {name} is missing"));
                    }
                }
            }
            "properties" => {
                for (name, member) in value.as_object().into_iter().flatten() {
                    match rule.get(name) {
                        Some(schema) => misfits(schema, root, member, &format!("{at}.{name}"), found),
                        // Programs may meet new members, and the schema must know all of today's.
                        None => found.push(format!("{at}.{name} is not in the schema")),
                    }
                }
            }
            "items" => {
                for (number, item) in value.as_array().into_iter().flatten().enumerate() {
                    misfits(rule, root, item, &format!("{at}[{number}]"), found);
                }
            }
            other => panic!("the keyword {other} is not known here"),
        }
    }
}

#[track_caller]
fn assert_fits(name: &str, text: &str) {
    let schema = schema(name);
    let value: Value = serde_json::from_str(text).unwrap();
    let mut found = Vec::new();
    misfits(&schema, &schema, &value, "", &mut found);
    assert!(found.is_empty(), "{name}: {found:#?}\n{text}");
}

#[test]
fn what_status_prints_fits_its_schema() {
    let node = Node::new();
    let auth_file = node.auth_file();
    let status = || {
        let run = node.run(&[
            "status",
            "--output",
            "json",
            "--registry",
            HOST,
            "--auth-file",
            auth_file.to_str().unwrap(),
        ]);
        assert_fits("status.json", &run.out);
        serde_json::from_str::<Value>(&run.out).unwrap()
    };
    assert_eq!(status()["agent"]["state"], "not_found");
    node.aws.fail(Api::Ecr, Fault::access_denied(), Times::Always);
    let agent = node.start(&[]);
    agent.wait("the failure", || status()["agent"]["failures"][0]["class"] == "denied");
    node.aws.heal();
    agent.wait("health", || status()["healthy"] == true && status()["agent"]["failures"] == json!([]));
    agent.stop().expect(0, &[]);
    let document = json!({ "auths": { format!("https://{HOST}"): { "auth": "QVdTOm9sZA==" } } });
    node.write("kubelet/config.json", &document.to_string());
    assert_eq!(status()["auth_files"][0]["registries"][0]["state"], "unknown");
    node.write("kubelet/config.json", "{");
    assert_eq!(status()["healthy"], false);
}

#[test]
fn what_explain_prints_fits_its_schema() {
    let node = Node::new();
    node.once(&[]).expect(0, &[]);
    let registry = format!("127.0.0.1:{}", node.aws.port());
    let token = node.document()["auths"][HOST].clone();
    let mut document = node.document();
    let auths = document["auths"].as_object_mut().unwrap();
    auths.insert(registry.clone(), token);
    auths.insert("a\nb".to_owned(), json!({ "username": "u" }));
    node.write("kubelet/config.json", &document.to_string());
    let auth_file = node.auth_file();
    node.write("plugins.yaml", &node.run(&["credential-provider", "--print-config"]).out);
    let plugins = node.path("plugins.yaml");
    let plugins = ["--kubelet-plugin-config", plugins.to_str().unwrap()];
    for more in [&[][..], &["--verify"], &plugins, &["--kubelet-plugin-config", "/nonexistent"]] {
        let command = ["explain", "--output", "json", "--auth-file", auth_file.to_str().unwrap()];
        let images = [format!("{registry}/app"), "registry.example.com/app".to_owned()];
        let run = node.run(&[&command, more, &[&*images[0], &*images[1]]].concat());
        assert_fits("explain.json", &run.out);
        // A key is escaped once, by JSON itself.
        let report: Value = serde_json::from_str(&run.out).unwrap();
        let not_tried = report["images"][0]["not_tried"].as_array().unwrap();
        assert!(not_tried.iter().any(|entry| entry["key"] == "a\nb"), "{report}");
    }
}

#[test]
fn the_validator_finds_what_does_not_fit() {
    let mut found = Vec::new();
    let schema = json!({
        "type": "object", "required": ["a", "b"],
        "properties": { "a": { "enum": [1] }, "c": { "type": ["string", "null"] } },
    });
    misfits(&schema, &schema, &json!({ "a": 2, "c": 3, "d": 4 }), "", &mut found);
    assert_eq!(found.len(), 4, "{found:?}");
}
