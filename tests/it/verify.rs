//! `explain --verify` asks the registry what the kubelet would be told, and sends a credential nowhere else.

use super::node::{HOST, Node, Run};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ecr_emulator::{Api, Options, proxy::Proxy};
use serde_json::{Map, Value, json};

/// A node whose auth file holds ECR's token for the emulated registry too, behind these entries.
fn node(options: Options, before: &[(&str, Value)]) -> (Node, String) {
    let mut node = Node::with(options);
    if !node.aws.ca_pem().is_empty() {
        node.write("authority.pem", node.aws.ca_pem());
        let authority = node.path("authority.pem");
        node.set("AWS_CA_BUNDLE", authority.to_str().unwrap());
    }
    node.once(&[]).expect(0, &[]);
    let token = node.document()["auths"][HOST]["auth"].clone();
    let start = if node.aws.ca_pem().is_empty() { "127.0.0.1" } else { "localhost" };
    let registry = format!("{start}:{}", node.aws.port());
    let mut auths = Map::new();
    for (key, entry) in before {
        auths.insert(key.replace("REGISTRY", &registry), entry.clone());
    }
    auths.insert(registry.clone(), json!({ "auth": token }));
    node.write("kubelet/config.json", &json!({ "auths": auths }).to_string());
    (node, registry)
}

fn bearer(realm: &str) -> Options {
    Options { registry_realm: Some(realm.to_owned()), ..Options::default() }
}

/// An entry that no registry takes.
fn wrong() -> Value {
    json!({ "auth": STANDARD.encode("AWS:SECRETPASSWORD of yesterday") })
}

fn verify(node: &Node, more: &[&str]) -> Run {
    let auth_file = node.auth_file();
    node.run(&[&["explain", "--verify", "--auth-file", auth_file.to_str().unwrap()], more].concat())
}

fn verified(node: &Node, code: i32, image: &str) -> Value {
    let run = verify(node, &["--output", "json", image]).expect(code, &[]);
    let report: Value = serde_json::from_str(&run.out).unwrap();
    report["images"][0].clone()
}

/// What each credential was answered with: token, `/v2/`, manifest, meaning.
fn answers(image: &Value) -> Vec<(Value, Value, Value, String)> {
    let answer = |tried: &Value| {
        let answer = &tried["answer"];
        let status = |name: &str| answer[name].clone();
        let meaning = answer["meaning"].as_str().unwrap().to_owned();
        (status("token_status"), status("base_status"), status("manifest_status"), meaning)
    };
    image["tried"].as_array().unwrap().iter().map(answer).collect()
}

fn row(
    token: Option<u16>,
    base: Option<u16>,
    manifest: Option<u16>,
    meaning: &str,
) -> (Value, Value, Value, String) {
    (json!(token), json!(base), json!(manifest), meaning.to_owned())
}

#[test]
fn each_credential_is_tried_and_its_answer_told() {
    let (node, registry) = node(Options::default(), &[("REGISTRY/app", wrong())]);
    let image = verified(&node, 0, &format!("{registry}/app:1"));
    let expected =
        [row(None, Some(401), Some(401), "not_accepted"), row(None, Some(200), Some(200), "works")];
    assert_eq!(answers(&image), expected);
    assert_eq!(image["registry"]["challenge"], "basic");
    assert_eq!(image["registry"]["url"], format!("http://{registry}"));
    assert_eq!(image["registry"]["without_credential"]["manifest_status"], 401);

    let cases = [
        ("missing", 404, "not_there", Some("NAME_UNKNOWN: repository name not known to registry")),
        ("forbidden", 403, "not_allowed", Some("DENIED: Your authorization token has expired.")),
        // It repeats the credential.
        ("echo", 403, "not_allowed", Some("DENIED: Basic …")),
        ("moved", 307, "redirected", None),
    ];
    for (repository, status, meaning, said) in cases {
        let image = verified(&node, 1, &format!("{registry}/{repository}/app"));
        assert_eq!(answers(&image), [row(None, Some(200), Some(status), meaning)], "{repository}");
        assert_eq!(image["tried"][0]["answer"]["said"], json!(said), "{repository}");
    }
    let image = verified(&node, 0, &format!("{registry}/open/app"));
    assert_eq!(answers(&image), [row(None, Some(401), Some(200), "not_asked")]);
    let run = verify(&node, &[&format!("{registry}/missing/app")]);
    run.expect(1, &["/v2/ 200, manifest 404: the credential is accepted, and there is no such image or tag"]);

    // A token that the registry has forgotten.
    node.aws.expire_all();
    verify(&node, &[&format!("{registry}/x")])
        .expect(1, &["a pull would fail now", "wrong, revoked or expired"]);
    // No entry at all: the kubelet asks as nobody.
    node.write("kubelet/config.json", "{}");
    let run = verify(&node, &[&format!("{registry}/x")]);
    run.expect(1, &["without a credential: /v2/ 401, manifest 401: the registry wants a credential"]);
}

#[test]
fn a_token_is_fetched_where_the_registry_wants_one() {
    let (node, registry) = node(bearer(""), &[("REGISTRY/app", wrong())]);
    let image = verified(&node, 0, &format!("{registry}/app"));
    let expected =
        [row(Some(401), None, None, "not_accepted"), row(Some(200), Some(200), Some(200), "works")];
    assert_eq!(answers(&image), expected);
    assert_eq!(image["registry"]["challenge"], "bearer");
    let image = verified(&node, 1, &format!("{registry}/echo/app"));
    assert_eq!(answers(&image), [row(Some(200), Some(200), Some(403), "not_allowed")]);
    assert_eq!(image["tried"][0]["answer"]["said"], "DENIED: Bearer …");

    // Nobody may pull what is public; the exit code still says that there is no credential.
    node.write("kubelet/config.json", "{}");
    let image = verified(&node, 1, &format!("{registry}/public/app"));
    assert_eq!(image["registry"]["without_credential"]["meaning"], "works");
}

#[test]
fn a_credential_goes_to_no_token_service_without_tls() {
    let (node, registry) = node(bearer("http://auth.example.com/token"), &[]);
    let calls = node.aws.count(Api::Registry);
    let run = verify(&node, &[&format!("{registry}/app")]);
    run.expect(
        1,
        &["not sent: the registry names a token service without TLS, `http://auth.example.com/token`"],
    );
    // `/v2/` and the manifest, as nobody; not even the name of the service was looked up.
    assert_eq!(node.aws.count(Api::Registry), calls + 2);
}

#[test]
fn a_registry_elsewhere_is_asked_over_tls_and_through_the_proxy() {
    let registry = "registry.example.com";
    let options = Options { tls: Some(vec![registry.to_owned()]), ..Options::default() };
    let (mut node, here) = node(options, &[]);
    let entry = node.document()["auths"][&here].clone();
    node.write("kubelet/config.json", &json!({ "auths": { registry: entry, &here: entry } }).to_string());
    let proxy = Proxy::start(node.aws.address(), None).unwrap();
    node.set("HTTPS_PROXY", &proxy.url());
    node.unset("AWS_CA_BUNDLE");
    let run = verify(&node, &[&format!("{registry}/app"), &format!("{here}/app")]);
    run.expect(1, &["did not answer", "the server's certificate is refused"]);

    let authority = node.path("authority.pem");
    node.set("AWS_CA_BUNDLE", authority.to_str().unwrap());
    let run = verify(&node, &[&format!("{registry}/app"), &format!("{here}/app")]).expect(0, &[]);
    for asked in [format!("asked https://{registry}:"), format!("asked https://{here}:")] {
        assert!(run.out.contains(&asked), "{}", run.out);
    }
    assert!(run.out.contains("/v2/ 200, manifest 200: a pull would work"), "{}", run.out);
    let through_the_proxy = proxy.requests();
    assert!(!through_the_proxy.is_empty());
    let is_elsewhere = |request: &String| request.contains(registry) && !request.contains("localhost");
    assert!(through_the_proxy.iter().all(is_elsewhere), "{through_the_proxy:?}");
    node.set("AWS_CA_BUNDLE", "/nonexistent");
    verify(&node, &["a.example/b"]).expect(2, &["AWS_CA_BUNDLE names /nonexistent"]);
}

#[test]
fn plain_http_elsewhere_is_asked_for_alone() {
    let (mut node, here) = node(Options::default(), &[]);
    let entry = node.document()["auths"][&here].clone();
    node.write("kubelet/config.json", &json!({ "auths": { "registry.example.com": entry } }).to_string());
    let proxy = Proxy::start(node.aws.address(), None).unwrap();
    node.set("HTTP_PROXY", &proxy.url());
    node.set("HTTPS_PROXY", &proxy.url());
    let calls = node.aws.count(Api::Registry);
    verify(&node, &["registry.example.com/app"]).expect(1, &["did not answer"]);
    assert_eq!(node.aws.count(Api::Registry), calls, "nothing was asked without TLS");
    verify(&node, &["--plain-http", "registry.example.com/app"])
        .expect(0, &["asked http://registry.example.com"]);
    node.run(&["explain", "--plain-http", "a.example/b"]).expect(2, &["--verify"]);
}
