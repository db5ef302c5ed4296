//! Beside the plugin of AWS's cloud provider (`ecr-credential-provider`): the same answers, except where they should differ.
//!
//! `tests/kubernetes/build` makes that program, of the version that `ecr-credential-provider/go.mod` pins.

use crate::needs::{Need, all_here};
use crate::node::{HOST, Node};
use ecr_emulator::Api;
use ecr_emulator::proxy::Proxy;
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const GROUP: &str = "credentialprovider.kubelet.k8s.io";
const ROLE: &str = "arn:aws:iam::123456789012:role/pod";

pub fn is_here() -> bool {
    program().is_file()
}

fn program() -> PathBuf {
    PathBuf::from(crate::cluster::PROGRAMS).join("ecr-credential-provider")
}

/// What a plugin did.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    /// It has answered for this key, with the token that it got from this endpoint, and half of its life as the time in the
    /// kubelet's cache.
    Token { key: String, endpoint: String },
    /// It has answered that it has no credential.
    NoCredential,
    /// It has failed.
    Failed,
}

fn token(key: &str, endpoint: &str) -> Answer {
    Answer::Token { key: key.to_owned(), endpoint: format!("{endpoint}:443") }
}

/// Runs a plugin with this request.
fn run(node: &Node, proxy: &Proxy, mut command: Command, request: &Value) -> Answer {
    command.env_clear().envs(node.variables());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    writeln!(child.stdin.take().unwrap(), "{request}").unwrap();
    let output = child.wait_with_output().unwrap();
    if !output.status.success() {
        return Answer::Failed;
    }
    let response: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(response["kind"], "CredentialProviderResponse");
    assert_eq!(response["apiVersion"], request["apiVersion"]);
    assert_eq!(response["cacheKeyType"], "Registry");
    let Some((key, auth)) = response["auth"].as_object().and_then(|auth| auth.iter().next()) else {
        return Answer::NoCredential;
    };
    let issued = node.aws.issued().pop().unwrap();
    assert_eq!(*auth, json!({ "username": "AWS", "password": issued.password }), "{request}");
    let duration = response["cacheDuration"].as_str().unwrap();
    let duration: jiff::SignedDuration = duration.parse().unwrap();
    assert!((21_500..=21_600).contains(&duration.as_secs()), "{duration}");
    Answer::Token { key: key.clone(), endpoint: proxy.requests().pop().unwrap() }
}

/// What both plugins do, ours first.
fn both(node: &Node, proxy: &Proxy, request: &Value) -> [Answer; 2] {
    let ours = node.command(&[], &["credential-provider", "--auth-file", "/nonexistent/config.json"]);
    let theirs = Command::new(program());
    [ours, theirs].map(|command| run(node, proxy, command, request))
}

fn request(image: &str) -> Value {
    json!({ "kind": "CredentialProviderRequest", "apiVersion": format!("{GROUP}/v1"), "image": image })
}

#[test]
fn both_plugins_answer_alike_where_both_serve() {
    if !all_here(&[Need::EcrCredentialProvider]) {
        return;
    }
    let hosts = [
        (HOST, "api.ecr.eu-west-1.amazonaws.com"),
        ("000000000000.dkr.ecr.us-east-1.amazonaws.com", "api.ecr.us-east-1.amazonaws.com"),
        ("123456789012.dkr.ecr.us-gov-west-1.amazonaws.com", "api.ecr.us-gov-west-1.amazonaws.com"),
        ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", "api.ecr.cn-north-1.amazonaws.com.cn"),
        ("public.ecr.aws", "api.ecr-public.us-east-1.amazonaws.com"),
        ("ecr-public.aws.com", "api.ecr-public.us-east-1.amazonaws.com"),
    ];
    let (node, proxy) = Node::behind_a_proxy(&hosts.map(|(_, endpoint)| endpoint));
    for (host, endpoint) in hosts {
        for image in [format!("{host}/app"), format!("{host}/team/a/b")] {
            let expected = token(host, endpoint);
            assert_eq!(both(&node, &proxy, &request(&image)), [expected.clone(), expected], "{image}");
        }
    }
    let wrong = [
        json!({ "kind": "CredentialProviderRequest", "apiVersion": "v1", "image": "a/b" }),
        json!({ "kind": "Pod", "apiVersion": format!("{GROUP}/v1"), "image": format!("{HOST}/app") }),
        request(""),
    ];
    for request in wrong {
        assert_eq!(both(&node, &proxy, &request), [Answer::Failed, Answer::Failed], "{request}");
    }
}

#[test]
fn the_plugins_differ_as_documented() {
    if !all_here(&[Need::EcrCredentialProvider]) {
        return;
    }
    let fips = "123456789012.dkr.ecr-fips.us-east-1.amazonaws.com";
    let dual_stack = "123456789012.dkr-ecr.eu-west-1.on.aws";
    let both_forms = "123456789012.dkr-ecr-fips.us-east-1.on.aws";
    let custom = "registry.example";
    let foreign = "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.example";
    let port = "mirror.example:5000";
    let (standard, home) = ("api.ecr.us-east-1.amazonaws.com", "api.ecr.eu-west-1.amazonaws.com");
    let endpoints = [
        "api.ecr-fips.us-east-1.amazonaws.com",
        "ecr.eu-west-1.api.aws",
        "ecr-fips.us-east-1.api.aws",
        "api.ecr.eu-north-1.amazonaws.com",
    ];
    let (mut node, proxy) = Node::behind_a_proxy(&[&endpoints[..], &[standard, home]].concat());
    node.set("ECR_NODE_AGENT_REGISTRY", &format!("{custom},region=eu-north-1 {port},region=eu-north-1"));
    let cases = [
        (fips, token(fips, endpoints[0]), token(fips, standard)),
        (dual_stack, token(dual_stack, endpoints[1]), token(dual_stack, home)),
        (both_forms, token(both_forms, endpoints[2]), token(both_forms, standard)),
        (custom, token(custom, endpoints[3]), token(custom, home)),
        // Without the port, the kubelet finds no credential in that answer.
        (port, token(port, endpoints[3]), token("mirror.example", home)),
        // A token of ECR for a host that is not.
        (foreign, Answer::NoCredential, token(foreign, home)),
        ("docker.io", Answer::NoCredential, token("docker.io", home)),
    ];
    for (host, ours, theirs) in cases {
        assert_eq!(both(&node, &proxy, &request(&format!("{host}/app"))), [ours, theirs], "{host}");
    }
    // Other versions of the protocol.
    for version in ["v1beta1", "v1alpha1"] {
        let mut request = request(&format!("{HOST}/app"));
        request["apiVersion"] = json!(format!("{GROUP}/{version}"));
        let [ours, _] = both(&node, &proxy, &request);
        assert_eq!(ours, token(HOST, home), "{version}");
    }
}

#[test]
fn both_plugins_exchange_a_service_accounts_token_alike() {
    if !all_here(&[Need::EcrCredentialProvider]) {
        return;
    }
    let (ecr, sts) = ("api.ecr.eu-west-1.amazonaws.com", "sts.eu-west-1.amazonaws.com");
    let (mut node, proxy) = Node::behind_a_proxy(&[ecr, sts]);
    let annotation = |role: &str| json!({ "eks.amazonaws.com/ecr-role-arn": role });
    let cases = [
        // annotations, AWS_ECR_ROLE_ARN, whether a role is assumed
        (Value::Null, None, false),
        (json!({}), Some(ROLE), true),
        (annotation(ROLE), None, true),
        (annotation(""), Some(ROLE), false),
        (json!({ "eks.amazonaws.com/role-arn": ROLE }), None, false),
    ];
    for (annotations, variable, has_role) in cases {
        match variable {
            Some(role) => node.set("AWS_ECR_ROLE_ARN", role),
            None => node.unset("AWS_ECR_ROLE_ARN"),
        }
        let mut request = request(&format!("{HOST}/app"));
        request["serviceAccountToken"] = json!("emulated.web.identity");
        request["serviceAccountAnnotations"] = annotations;
        let (issued, exchanged) = (node.aws.issued().len(), node.aws.count(Api::WebIdentity));
        let expected = token(HOST, ecr);
        assert_eq!(both(&node, &proxy, &request), [expected.clone(), expected], "{request}");
        let roles: Vec<_> = node.aws.issued()[issued..].iter().map(|token| token.role.clone()).collect();
        let role = has_role.then(|| ROLE.to_owned());
        assert_eq!(roles, [role.clone(), role], "{request} {variable:?}");
        assert_eq!(node.aws.count(Api::WebIdentity) - exchanged, if has_role { 2 } else { 0 });
    }
    let mut refused = request(&format!("{HOST}/app"));
    refused["serviceAccountToken"] = json!("another");
    refused["serviceAccountAnnotations"] = annotation(ROLE);
    assert_eq!(both(&node, &proxy, &refused), [Answer::Failed, Answer::Failed]);
}
