//! The vectors about credential provider plugins (`tests/vectors/kubelet.json`).
//!
//! Not tested: `plugin_cache_expiry`, the kubelet's own clock, and `plugin_env`, the kubelet's own merge of variables.
//! `plugin_oracle` lets the kubelet's code cache responses and set variables.

use crate::vectors::kubelet;
use ecr_node_agent::credential_provider::kubelet_config;
use ecr_node_agent::credential_provider::protocol::Request;
use ecr_node_agent::docker_config::keyring::Keyring;
use ecr_node_agent::docker_config::matching::matches;
use ecr_node_agent::docker_config::parse::Shape;
use jiff::SignedDuration;
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const GROUP: &str = "credentialprovider.kubelet.k8s.io";

/// A response as the kubelet decodes it: strictly.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Response {
    kind: String,
    api_version: String,
    cache_key_type: String,
    #[serde(default)]
    cache_duration: Option<String>,
    #[serde(default)]
    auth: Option<BTreeMap<String, Auth>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Auth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

/// The response, and for how many seconds it is cached; `None` if the kubelet refuses it.
fn decode(text: &str) -> Option<(Response, Option<i64>)> {
    let response: Response = serde_json::from_str(text).ok()?;
    let version = response.api_version.strip_prefix(GROUP)?;
    let is_known = ["/v1", "/v1beta1", "/v1alpha1"].contains(&version)
        && ["Image", "Registry", "Global"].contains(&response.cache_key_type.as_str())
        && response.kind == "CredentialProviderResponse";
    let duration = response.cache_duration.as_ref().map(|text| text.parse::<SignedDuration>());
    let seconds = duration.transpose().ok()?.map(|duration| duration.as_secs());
    is_known.then_some((response, seconds))
}

fn credentials(response: &Response) -> Value {
    let auth = response.auth.iter().flatten();
    auth.map(|(key, auth)| (key.clone(), json!({ "username": auth.username, "password": auth.password })))
        .collect()
}

#[test]
fn responses_are_those_that_the_kubelet_decodes() {
    // First the judge itself, ...
    for case in kubelet(&["plugin_exec"]) {
        let (id, expected) = (&case["id"], &case["expected"]);
        let decoded = decode(case["input"]["stdout"].as_str().unwrap());
        assert_eq!(decoded.is_none(), expected["error"].as_bool().unwrap(), "{id}: {decoded:?}");
        let Some((response, seconds)) = decoded else { continue };
        assert_eq!(credentials(&response), expected["config"], "{id}");
        let is_cached = seconds.is_none_or(|seconds| seconds > 0);
        assert_eq!(expected["execs_after_two_lookups"], if is_cached { 1 } else { 2 }, "{id}");
    }
    for case in kubelet(&["plugin_response"]) {
        let (id, expected) = (&case["id"], &case["expected"]);
        let decoded = decode(case["input"]["stdout"].as_str().unwrap());
        assert_eq!(decoded.is_none(), expected["error"].as_bool().unwrap(), "{id}: {decoded:?}");
        let Some((response, seconds)) = decoded else { continue };
        assert_eq!(expected["cacheKeyType"], response.cache_key_type, "{id}");
        assert_eq!(expected["cacheDuration_s"], json!(seconds), "{id}");
        assert_eq!(expected["auth"], credentials(&response), "{id}");
    }
    // ... then what we answer to the requests of kubelets.
    let asked = kubelet(&["plugin_exec", "plugin_request"]);
    let asked: Vec<&str> = asked.iter().filter_map(|case| case["expected"]["stdin"].as_str()).collect();
    assert_eq!(asked.len(), 2);
    for asked in asked {
        let request = Request::read(asked.as_bytes()).unwrap();
        let sent: Value = serde_json::from_str(asked).unwrap();
        let password = "with \"quotes\", \\ and \u{7}, ü";
        let hours = SignedDuration::from_hours(6);
        let line = request.answer("AWS".to_owned(), SecretString::from(password), hours).to_line().unwrap();
        let (response, seconds) = decode(&line).unwrap();
        assert_eq!((seconds, &json!(response.api_version)), (Some(21_600), &sent["apiVersion"]));
        let expected = json!({ request.host.clone(): { "username": "AWS", "password": password } });
        assert_eq!(credentials(&response), expected);
        let (response, seconds) = decode(&request.decline().to_line().unwrap()).unwrap();
        assert_eq!((credentials(&response), seconds), (json!({}), Some(0)));
    }
}

#[test]
fn a_response_is_cached_for_its_registry() {
    for case in kubelet(&["plugin_cache_key"]) {
        let (id, image) = (&case["id"], case["input"]["image"].as_str().unwrap());
        let request = json!({
            "kind": "CredentialProviderRequest", "apiVersion": format!("{GROUP}/v1"), "image": image,
        });
        let request = Request::read(request.to_string().as_bytes()).unwrap();
        assert_eq!(json!([request.host]), case["expected"]["cache_keys"], "{id}");
        let line =
            request.answer(String::new(), String::new().into(), SignedDuration::ZERO).to_line().unwrap();
        let (response, _) = decode(&line).unwrap();
        assert_eq!(case["input"]["response"]["cacheKeyType"], response.cache_key_type, "{id}");
    }
}

#[test]
fn plugins_are_asked_about_the_images_that_they_match() {
    for case in kubelet(&["plugin_provide"]) {
        let image = case["input"]["image"].as_str().unwrap();
        let patterns = case["input"]["matchImages"].as_array().unwrap();
        let is_matched = patterns.iter().any(|pattern| matches(pattern.as_str().unwrap(), image));
        let is_answered = case["expected"]["config"].as_object().is_some_and(|found| !found.is_empty());
        assert_eq!(is_matched, is_answered, "{}", case["id"]);
    }
    for case in kubelet(&["plugin_keyring"]) {
        // The keys of all plugins are sorted together. A file cannot have one key twice, as two plugins can.
        if case["id"] == "plugin_keyring-05" {
            continue;
        }
        let providers = case["input"]["providers"].as_array().unwrap().iter();
        let entries = providers.flat_map(|keys| keys.as_object().unwrap());
        let auths: Value = entries.map(|(key, user)| (key.clone(), json!({ "username": user }))).collect();
        let document = json!({ "auths": auths }).to_string();
        let keyring = Keyring::read(document.as_bytes(), Shape::DockerConfig).unwrap();
        let image = case["input"]["lookup"].as_str().unwrap().parse().unwrap();
        let users: Vec<_> =
            keyring.look_up(&image).tried.iter().map(|entry| entry.credentials.username.clone()).collect();
        assert_eq!(case["expected"]["users"], json!(users), "{}", case["id"]);
    }
}

#[test]
fn configurations_are_judged_as_the_kubelet_judges_them() {
    for case in kubelet(&["plugin_config"]) {
        let config = case["input"]["config"].to_string();
        let read = kubelet_config::read(vec![("config.json".to_owned(), config)]);
        assert_eq!(read.is_ok(), case["expected"]["valid"].as_bool().unwrap(), "{}: {read:?}", case["id"]);
    }
    for case in kubelet(&["plugin_config_files"]) {
        let id = &case["id"];
        let input = &case["input"];
        let files = match (input["directory"].as_object(), input["file"].as_str()) {
            (Some(files), _) => files
                .iter()
                .filter(|(name, _)| kubelet_config::is_read(name))
                .map(|(name, text)| (name.clone(), text.as_str().unwrap().to_owned()))
                .collect(),
            (None, Some(text)) => vec![("config.yaml".to_owned(), text.to_owned())],
            // `explain` says that there is no such file.
            (None, None) => continue,
        };
        let read = kubelet_config::read(files);
        assert_eq!(read.is_err(), case["expected"]["error"].as_bool().unwrap(), "{id}: {read:?}");
    }
}
