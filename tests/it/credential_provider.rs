//! The kubelet's plugin: what it answers, whom it asks, and what it keeps to itself.

use crate::node::{HOST, Node};
use ecr_emulator::{Api, Fault, Issued, Options, Times};
use ecr_node_agent::docker_config::matching::matches;
use ecr_node_agent::ecr::registry::is_ecr_host;
use ecr_node_agent::time::clock;
use serde_json::{Value, json};
use std::io::Write as _;
use std::process::{Output, Stdio};

const ROLE: &str = "arn:aws:iam::123456789012:role/pod";
const GROUP: &str = "credentialprovider.kubelet.k8s.io";
const PUBLIC: &str = "public.ecr.aws";

/// How the plugin ended.
struct Provided {
    code: i32,
    /// Standard output; null if it is empty.
    response: Value,
    err: String,
}

impl Provided {
    /// Fails unless this is an answer with this token. Returns for how many seconds it is cached.
    #[track_caller]
    fn expect(&self, host: &str, token: &Issued) -> u64 {
        assert_eq!((self.code, self.err.as_str()), (0, ""));
        let mut response = self.response.clone();
        let duration = response.as_object_mut().unwrap().remove("cacheDuration").unwrap();
        let expected = json!({
            "kind": "CredentialProviderResponse",
            "apiVersion": format!("{GROUP}/v1"),
            "cacheKeyType": "Registry",
            "auth": { host: { "username": "AWS", "password": token.password } },
        });
        assert_eq!(response, expected);
        duration.as_str().unwrap().strip_suffix('s').unwrap().parse().unwrap()
    }

    #[track_caller]
    fn expect_error(&self, code: i32, said: &[&str]) {
        assert_eq!((self.code, &self.response), (code, &Value::Null), "{}", self.err);
        assert_eq!(self.err.lines().count(), 1, "{}", self.err);
        for text in said {
            assert!(self.err.contains(text), "`{text}` is missing in: {}", self.err);
        }
    }

    #[track_caller]
    fn expect_no_credential(&self) {
        let expected = json!({
            "kind": "CredentialProviderResponse",
            "apiVersion": format!("{GROUP}/v1"),
            "cacheKeyType": "Registry",
            "cacheDuration": "0s",
            "auth": {},
        });
        assert_eq!((self.code, &self.response, self.err.as_str()), (0, &expected, ""));
    }
}

fn request(host: &str) -> Value {
    json!({
        "kind": "CredentialProviderRequest",
        "apiVersion": format!("{GROUP}/v1"),
        "image": format!("{host}/team/app"),
    })
}

fn for_service_account(host: &str, token: &str, annotation: Option<&str>) -> Value {
    let mut request = request(host);
    request["serviceAccountToken"] = json!(token);
    if let Some(role) = annotation {
        request["serviceAccountAnnotations"] = json!({ "eks.amazonaws.com/ecr-role-arn": role });
    }
    request
}

/// The plugin on this node, as the kubelet runs it.
fn ask_with(node: &Node, options: &[&str], input: &[u8]) -> Provided {
    let mut command = node.command(&[], &[&["credential-provider"], options].concat());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may end before it has read all.
    child.stdin.take().unwrap().write_all(input).ok();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let response = match stdout.as_slice() {
        [] => Value::Null,
        line => {
            assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1), "one line");
            serde_json::from_slice(line).unwrap()
        }
    };
    let run = node.checked(&Output { status, stdout: Vec::new(), stderr });
    Provided { code: run.code, response, err: run.err }
}

fn ask(node: &Node, options: &[&str], request: &Value) -> Provided {
    let auth_file = node.auth_file();
    let options = [&["--auth-file", auth_file.to_str().unwrap()], options].concat();
    ask_with(node, &options, format!("{request}\n").as_bytes())
}

/// A node whose auth file holds a token that expires in so many seconds, and that token.
fn with_token(seconds: i64) -> (Node, Issued) {
    let node = Node::new();
    node.once(&[]).expect(0, &[]);
    let mut document = node.document();
    let expires_at = clock::now() + jiff::SignedDuration::from_secs(seconds);
    document["ecr-node-agent"]["entries"][HOST]["expiresAt"] = json!(expires_at);
    node.write("kubelet/config.json", &document.to_string());
    let token = node.aws.issued().pop().unwrap();
    (node, token)
}

fn config(node: &Node, options: &[&str]) -> (String, Value) {
    let auth_file = node.auth_file();
    let common = ["credential-provider", "--print-config", "--auth-file", auth_file.to_str().unwrap()];
    let run = node.run(&[&common, options].concat()).expect(0, &[]);
    let config: Value = serde_saphyr::from_str(&run.out).unwrap();
    assert_eq!(config["providers"].as_array().unwrap().len(), 1, "{}", run.out);
    (run.out, config["providers"][0].clone())
}

#[test]
fn the_printed_configuration_runs_the_plugin_with_the_same_options() {
    let mut node = Node::new();
    let domain = "registry.example";
    node.set("ECR_NODE_AGENT_REGISTRY", &format!("{HOST} {domain},region=eu-north-1"));
    node.set("HTTPS_PROXY", "http://user:SECRETPASSWORD@proxy.example");
    let (text, provider) = config(&node, &["--role-arn", ROLE]);
    assert_eq!(provider["matchImages"], json!([HOST, domain]));
    assert!(provider["tokenAttributes"].is_null());
    for secret in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY"] {
        assert!(text.contains(&format!("# {secret} is not here, because it holds a secret")), "{text}");
    }
    // As the kubelet runs it: its own environment, and what the configuration adds.
    let mut bare = Node::new();
    let variables: Vec<String> = bare.variables().into_keys().filter(|name| !name.contains("KEY")).collect();
    for name in &variables {
        bare.unset(name);
    }
    for variable in provider["env"].as_array().unwrap() {
        bare.set(variable["name"].as_str().unwrap(), variable["value"].as_str().unwrap());
    }
    let arguments: Vec<&str> =
        provider["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap()).collect();
    assert_eq!(arguments[0], "credential-provider");
    let answered = ask_with(&bare, &arguments[1..], request(domain).to_string().as_bytes());
    let issued = node.aws.issued().pop().unwrap();
    assert_eq!((issued.region.as_str(), issued.role.as_deref()), ("eu-north-1", Some(ROLE)));
    answered.expect(domain, &issued);
    assert_eq!(bare.aws.calls(), [], "the endpoint is the one of the configuration");
}

#[test]
fn the_printed_configuration_matches_every_host_of_ecr() {
    let node = Node::new();
    let (_, provider) = config(&node, &["--token-audience", "sts.amazonaws.com"]);
    let patterns: Vec<&str> =
        provider["matchImages"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let account = "123456789012";
    for host in [
        "dkr.ecr.eu-west-1.amazonaws.com",
        "dkr.ecr-fips.us-gov-west-1.amazonaws.com",
        "dkr.ecr.cn-north-1.amazonaws.com.cn",
        "dkr.ecr.eusc-de-east-1.amazonaws.eu",
        "dkr.ecr.us-iso-east-1.c2s.ic.gov",
        "dkr.ecr.us-isob-east-1.sc2s.sgov.gov",
        "dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk",
        "dkr.ecr.us-isof-south-1.csp.hci.ic.gov",
        "dkr-ecr.us-west-2.on.aws",
        "dkr-ecr-fips.us-west-2.on.aws",
        "dkr-ecr.cn-northwest-1.on.amazonwebservices.com.cn",
    ]
    .map(|rest| format!("{account}.{rest}"))
    .iter()
    .map(String::as_str)
    .chain([PUBLIC, "ecr-public.aws.com"])
    {
        let matching = patterns.iter().filter(|pattern| matches(pattern, host)).count();
        assert_eq!(matching, 1, "{host}");
        assert!(is_ecr_host(host), "{host}");
    }
    for host in
        ["docker.io", "dkr.ecr.eu-west-1.amazonaws.com", "a.dkr.ecr.eu-west-1.amazonaws.com.evil.example"]
    {
        assert!(!patterns.iter().any(|pattern| matches(pattern, host)), "{host}");
    }
    assert_eq!(
        provider["tokenAttributes"],
        json!({
            "serviceAccountTokenAudience": "sts.amazonaws.com",
            "cacheType": "ServiceAccount",
            "requireServiceAccount": false,
            "optionalServiceAccountAnnotationKeys": ["eks.amazonaws.com/ecr-role-arn"],
        })
    );
    node.run(&["credential-provider", "--token-audience", "a"]).expect(2, &["--print-config"]);
}

fn denied() -> Fault {
    Fault::error(400, "AccessDeniedException", "User is not authorized")
}

#[test]
fn without_an_auth_file_the_plugin_asks_ecr_and_writes_nothing() {
    let node = Node::new();
    let cached = ask(&node, &[], &request(HOST)).expect(HOST, &node.aws.issued()[0]);
    assert!((21_500..=21_600).contains(&cached), "{cached}");
    assert_eq!(node.names(), [""; 0]);
    for version in ["v1beta1", "v1alpha1"] {
        let mut request = request(HOST);
        request["apiVersion"] = json!(format!("{GROUP}/{version}"));
        let response = ask(&node, &[], &request).response;
        assert_eq!(response["apiVersion"], request["apiVersion"]);
    }
}

#[test]
fn a_token_of_the_agent_is_used_for_every_registry_of_its_source_and_no_other() {
    let (node, token) = with_token(40_000);
    let same = "999999999999.dkr.ecr.eu-west-1.amazonaws.com";
    for host in [HOST, same] {
        let cached = ask(&node, &[], &request(host)).expect(host, &token);
        assert!((19_900..=20_000).contains(&cached), "{cached}");
    }
    assert_eq!(node.aws.calls().len(), 1, "the agent's own call");
    let others: [(&str, &[&str]); 4] = [
        ("123456789012.dkr.ecr.eu-central-1.amazonaws.com", &[]),
        ("123456789012.dkr.ecr-fips.eu-west-1.amazonaws.com", &[]),
        (PUBLIC, &[]),
        (HOST, &["--role-arn", ROLE]),
    ];
    for (host, options) in others {
        let provided = ask(&node, options, &request(host));
        let issued = node.aws.issued().pop().unwrap();
        assert_ne!(issued.password, token.password, "{host}");
        provided.expect(host, &issued);
    }
    // Entries that the agent did not write, or that another program has changed, say nothing of their source.
    let text = node.document().to_string();
    node.write("kubelet/config.json", &text.replace(&token.token_base64, "QVdTOm90aGVy"));
    ask(&node, &[], &request(HOST)).expect(HOST, &node.aws.issued().pop().unwrap());
}

#[test]
fn the_agents_files_are_found_without_an_option_and_by_the_variable() {
    let (mut node, token) = with_token(40_000);
    let auth_file = node.auth_file();
    let files = format!("/nonexistent/config.json {}", auth_file.to_str().unwrap());
    node.set("ECR_NODE_AGENT_AUTH_FILE", &files);
    ask_with(&node, &[], request(HOST).to_string().as_bytes()).expect(HOST, &token);
    let help = node.run(&["credential-provider", "--help"]).expect(0, &[]).out;
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help.contains("[default: /run/ecr-node-agent/config.json and /var/lib/kubelet/config.json]"));
}

#[test]
fn a_token_that_has_nearly_expired_is_the_last_resort_and_is_not_cached() {
    let (node, old) = with_token(600);
    let cached = ask(&node, &[], &request(HOST)).expect(HOST, &node.aws.issued()[1]);
    assert!(cached > 21_000, "{cached}");
    node.aws.fail(Api::Ecr, denied(), Times::Always);
    assert_eq!(ask(&node, &[], &request(HOST)).expect(HOST, &old), 0);
    // One that has expired, and one whose expiry nobody can know.
    for seconds in [-1, 3, 100_000] {
        let (node, _) = with_token(seconds);
        node.aws.fail(Api::Ecr, denied(), Times::Always);
        ask(&node, &[], &request(HOST)).expect_error(4, &["access denied"]);
    }
}

#[test]
fn a_host_that_is_not_ours_gets_an_empty_answer() {
    let node = Node::new();
    for host in ["docker.io", "registry.example", "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.example"]
    {
        ask(&node, &[], &request(host)).expect_no_credential();
    }
    assert_eq!(node.aws.calls(), []);
}

#[test]
fn a_custom_domain_has_the_region_and_the_role_of_its_option() {
    let mut node = Node::new();
    let domain = "registry.example";
    node.set("ECR_NODE_AGENT_REGISTRY", &format!("{domain},region=eu-north-1,role={ROLE}"));
    let provided = ask(&node, &[], &request(domain));
    let issued = node.aws.issued().pop().unwrap();
    assert_eq!((issued.region.as_str(), issued.role.as_deref()), ("eu-north-1", Some(ROLE)));
    provided.expect(domain, &issued);
    // Hosts of ECR need no option.
    ask(&node, &[], &request(HOST)).expect(HOST, &node.aws.issued().pop().unwrap());
}

#[test]
fn a_failure_is_one_line_that_says_what_to_do() {
    let node = Node::new();
    node.aws.fail(Api::Ecr, denied(), Times::Always);
    ask(&node, &[], &request(HOST)).expect_error(4, &[HOST, "eu-west-1", "ecr:GetAuthorizationToken"]);
    let node = Node::new().without_keys();
    ask(&node, &[], &request(HOST)).expect_error(3, &["no usable AWS credentials"]);
    for (input, said) in [
        ("", "standard input is not a CredentialProviderRequest"),
        ("{\"kind\":\"Pod\"}", "is of kind `Pod`"),
        ("{\"kind\":\"CredentialProviderRequest\",\"apiVersion\":\"v1\"}", "the request has apiVersion `v1`"),
    ] {
        ask_with(&node, &[], input.as_bytes()).expect_error(1, &[said]);
    }
    let long = vec![b' '; 1024 * 1024 + 1];
    ask_with(&node, &[], &long).expect_error(1, &["longer than 1 MiB"]);
}

#[test]
fn a_passing_failure_is_tried_again() {
    let node = Node::new();
    node.aws.fail(Api::Ecr, Fault::InternalError, Times::First(1));
    ask(&node, &[], &request(HOST)).expect(HOST, &node.aws.issued()[0]);
}

/// The node, an agent's token in its file, and the token of a service account that STS accepts.
fn with_service_accounts() -> (Node, String) {
    let token = "eyJhbGciOiJSUzI1NiJ9.service-account.SECRETPASSWORD".to_owned();
    let mut node = Node::with(Options { web_identity_token: token.clone(), ..Options::default() });
    node.once(&[]).expect(0, &[]);
    node.hide(&token);
    (node, token)
}

#[test]
fn a_pods_role_gets_a_token_of_its_own_that_nobody_else_gets() {
    let (mut node, token) = with_service_accounts();
    let file = std::fs::read(node.auth_file()).unwrap();
    let provided = ask(&node, &[], &for_service_account(HOST, &token, Some(ROLE)));
    let pods = node.aws.issued().pop().unwrap();
    assert_eq!(pods.role.as_deref(), Some(ROLE));
    provided.expect(HOST, &pods);
    assert_eq!(std::fs::read(node.auth_file()).unwrap(), file, "the auth file is as it was");
    let nodes = node.aws.issued()[0].clone();
    ask(&node, &[], &request(HOST)).expect(HOST, &nodes);
    assert_eq!(node.aws.count(Api::WebIdentity), 1);
    // A role that the registry's option names is the node's.
    let option = format!("{HOST},role=arn:aws:iam::123456789012:role/node");
    ask(&node, &["--registry", &option], &for_service_account(HOST, &token, Some(ROLE)))
        .expect(HOST, &node.aws.issued().pop().unwrap());
    assert_eq!(node.aws.count(Api::AssumeRole), 0);
    // Without a role for the service account, the pod is one of the node's.
    ask(&node, &[], &for_service_account(HOST, &token, None)).expect(HOST, &nodes);
    node.set("AWS_ECR_ROLE_ARN", ROLE);
    let provided = ask(&node, &[], &for_service_account(HOST, &token, None));
    let pods = node.aws.issued().pop().unwrap();
    assert_eq!(pods.role.as_deref(), Some(ROLE));
    provided.expect(HOST, &pods);
    // The pod's token is all that it takes.
    let node = node.without_keys();
    ask(&node, &[], &for_service_account(HOST, &token, Some(ROLE)))
        .expect(HOST, &node.aws.issued().pop().unwrap());
}

#[test]
fn a_pod_whose_role_is_refused_gets_no_token_of_the_node() {
    let (node, token) = with_service_accounts();
    let calls = node.aws.count(Api::Ecr);
    ask(&node, &[], &for_service_account(HOST, "another token", Some(ROLE)))
        .expect_error(3, &["the service account's token", ROLE]);
    ask(&node, &[], &for_service_account(HOST, &token, Some("reader")))
        .expect_error(1, &["annotation eks.amazonaws.com/ecr-role-arn", "`reader` is no role's ARN"]);
    assert_eq!(node.aws.count(Api::Ecr), calls);
}
