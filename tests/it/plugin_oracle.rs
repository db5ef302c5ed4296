//! The kubelet's own code as the judge of the plugin: it reads the configuration that we print, runs the program, decodes its
//! responses and caches them.
//!
//! `tests/kubernetes/build oracle` makes the judges. `ECR_NODE_AGENT_SEED` gives other cases than CI's.

use crate::needs::{Need, all_here, tell};
use crate::node::{HOST, Node};
use crate::oracle::{VERSIONS, seed};
use ecr_emulator::{Api, Fault, Options, Times};
use ecr_node_agent::credential_provider::kubelet_config;
use fastrand::Rng;
use jiff::SignedDuration;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

const ROLE: &str = "arn:aws:iam::123456789012:role/pull";
/// How many configurations are tried, and how many images with each.
const WORLDS: u32 = 24;
const IMAGES: u32 = 40;

pub fn is_here() -> bool {
    VERSIONS.iter().all(|version| program(version).is_file())
}

fn program(version: &str) -> PathBuf {
    PathBuf::from(crate::cluster::PROGRAMS).join(format!("plugin-oracle-{version}"))
}

/// The part of a kubelet that runs plugins.
struct Kubelet {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// What the kubelet says of an image.
#[derive(Debug)]
struct Answer {
    /// The password of each credential; the user is always `AWS`.
    passwords: Vec<String>,
    /// Its error messages.
    logged: String,
    /// The audience of the token that it requested.
    audience: String,
}

impl Kubelet {
    /// Starts with this configuration, in the environment of a service.
    fn start(node: &Node, version: &str, config: &str) -> Self {
        node.write("plugins.yaml", config);
        let plugins = node.path("plugins");
        if !plugins.exists() {
            std::fs::create_dir(&plugins).unwrap();
            std::os::unix::fs::symlink(crate::node::PROGRAM, plugins.join("ecr-node-agent")).unwrap();
        }
        let mut command = Command::new(program(version));
        command.arg(node.path("plugins.yaml")).arg(plugins).env_clear();
        // All that the plugin needs is in its configuration, except secrets.
        let secrets = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
        command.envs(node.variables().into_iter().filter(|(name, _)| secrets.contains(&name.as_str())));
        Self::spawn(command)
    }

    /// Starts without plugins, for questions about configurations.
    fn without_plugins(version: &str) -> Self {
        Self::spawn(Command::new(program(version)))
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let questions = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, questions, answers }
    }

    fn ask(&mut self, question: &Value) -> Value {
        writeln!(self.questions, "{question}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?} to {question}"))
    }

    fn look_up(&mut self, image: &str) -> Answer {
        self.look_up_for(image, &Value::Null)
    }

    fn look_up_for(&mut self, image: &str, service_account: &Value) -> Answer {
        let answer = self.ask(&json!({ "image": image, "serviceAccount": service_account }));
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let found = answer["found"].as_array().unwrap();
        for credential in found {
            assert_eq!(credential[0], "AWS", "{image}");
        }
        Answer {
            passwords: found.iter().map(|credential| text(&credential[1])).collect(),
            logged: text(&answer["logged"]),
            audience: text(&answer["audience"]),
        }
    }

    /// What is wrong with a configuration; empty if nothing is.
    fn check(&mut self, files: &Value) -> String {
        self.ask(&json!({ "files": files }))["error"].as_str().unwrap().to_owned()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The configuration that the program prints.
fn printed(node: &Node, options: &[&str]) -> String {
    let auth_file = node.auth_file();
    let common = ["credential-provider", "--print-config", "--auth-file", auth_file.to_str().unwrap()];
    node.run(&[&common, options].concat()).expect(0, &[]).out
}

#[test]
fn kubelets_accept_the_printed_configuration() {
    if !all_here(&[Need::PluginOracle]) {
        return;
    }
    let mut node = Node::new();
    node.set("NO_PROXY", "localhost, \"odd\" # 'value': \\");
    let registry = format!("*.dkr.ecr.eu-west-1.amazonaws.com,role={ROLE}");
    let cases: [&[&str]; 4] = [
        &[],
        &["--registry", HOST, "--registry", "registry.example:5000,region=eu-west-1"],
        &["--registry", &registry, "--region", "eu-west-1"],
        &["--token-audience", "sts.amazonaws.com"],
    ];
    for version in VERSIONS {
        let mut kubelet = Kubelet::without_plugins(version);
        for options in cases {
            let config = printed(&node, options);
            assert_eq!(kubelet.check(&json!({ "": config })), "", "{version}: {config}");
        }
        // A judge that accepts everything would be none.
        let spoilt = printed(&node, &[]).replace("defaultCacheDuration: 0s", "defaultCacheDuration: -1s");
        assert!(kubelet.check(&json!({ "": spoilt })).contains("defaultCacheDuration"), "{version}");
    }
}

#[test]
fn the_newest_kubelet_judges_configurations_as_we_do() {
    if !all_here(&[Need::PluginOracle]) {
        return;
    }
    let node = Node::new();
    let good = printed(&node, &["--token-audience", "sts.amazonaws.com"]);
    let edits = [
        ("name: ecr-node-agent", "name: \"\""),
        ("name: ecr-node-agent", "name: .."),
        ("name: ecr-node-agent", "name: a/b"),
        ("name: ecr-node-agent", "name: a b"),
        ("name: ecr-node-agent", "name: a.b"),
        ("name: ecr-node-agent", "other: a"),
        ("defaultCacheDuration: 0s", "defaultCacheDuration: 1h30m"),
        ("defaultCacheDuration: 0s", "defaultCacheDuration: 1d"),
        ("defaultCacheDuration: 0s", "defaultCacheDuration: .5h"),
        ("defaultCacheDuration: 0s", "defaultCacheDuration: \"\""),
        ("defaultCacheDuration: 0s", ""),
        ("credentialprovider.kubelet.k8s.io/v1", "credentialprovider.kubelet.k8s.io/v1beta1"),
        ("credentialprovider.kubelet.k8s.io/v1", "credentialprovider.kubelet.k8s.io/v2"),
        ("kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1beta1"),
        ("kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v2"),
        ("kind: CredentialProviderConfig", "kind: KubeletConfiguration"),
        ("matchImages:", "matchImages: []\n  ignored:"),
        ("public.ecr.aws", "public.ecr.aws/team"),
        ("public.ecr.aws", "host with space"),
        ("public.ecr.aws", "host:port"),
        ("cacheType: ServiceAccount", "cacheType: Token"),
        ("cacheType: ServiceAccount", "cacheType: token"),
        ("cacheType: ServiceAccount", ""),
        ("requireServiceAccount: false", ""),
        ("requireServiceAccount: false", "requireServiceAccount: true"),
        ("optionalServiceAccountAnnotationKeys", "requiredServiceAccountAnnotationKeys"),
        ("eks.amazonaws.com/ecr-role-arn", "a/b/c"),
        ("eks.amazonaws.com/ecr-role-arn", "UPPER.example/Key_1.x"),
        ("eks.amazonaws.com/ecr-role-arn", "-a"),
        ("serviceAccountTokenAudience: \"sts.amazonaws.com\"", "serviceAccountTokenAudience: \"\""),
        ("providers:", "providers: []\nignored:"),
    ];
    let mut kubelet = Kubelet::without_plugins(VERSIONS[1]);
    let mut counts = [0, 0];
    // Each alone, and each two of them.
    for (number, first) in edits.iter().enumerate() {
        for second in &edits[number..] {
            let config = good.replace(first.0, first.1).replace(second.0, second.1);
            let theirs = kubelet.check(&json!({ "": config }));
            let ours = kubelet_config::read(vec![("config.yaml".to_owned(), config.clone())]);
            counts[usize::from(theirs.is_empty())] += 1;
            assert_eq!(ours.is_ok(), theirs.is_empty(), "{theirs}\n{ours:?}\n{config}");
        }
    }
    tell(&format!(
        "plugin-oracle {}: {} invalid configurations, {} valid",
        VERSIONS[1], counts[0], counts[1]
    ));
    assert!(counts[0] > 300 && counts[1] > 30, "{counts:?}");
    for names in [["a.yaml", "b.json"], ["a.txt", "b.yml"], [".a.yaml", "b.yaml"], ["a.txt", "b.conf"]] {
        let texts = [good.clone(), good.replace("name: ecr-node-agent", "name: other")];
        let files: Vec<_> = names.map(str::to_owned).into_iter().zip(texts).collect();
        let asked: Value = files.iter().cloned().collect::<BTreeMap<String, String>>().into_iter().collect();
        let theirs = kubelet.check(&asked);
        let ours = kubelet_config::read(
            files.into_iter().filter(|(name, _)| kubelet_config::is_read(name)).collect(),
        );
        assert_eq!(ours.is_ok(), theirs.is_empty(), "{names:?}: {theirs} {ours:?}");
    }
}

/// An image's host, and the region and the role that its token must come from; `None` if it is not ours.
type Host = (String, Option<(&'static str, Option<&'static str>)>);

fn host(rng: &mut Rng) -> Host {
    let account = format!("{:012}", rng.u64(0..1_000_000_000_000));
    let region =
        ["eu-west-1", "us-east-1", "us-gov-west-1", "cn-north-1", "ap-southeast-5", "eusc-de-east-1"];
    let region = region[rng.usize(..region.len())];
    let ecr = |form: String| (form, Some((region, None)));
    match rng.u8(..12) {
        0..=3 => ecr(format!("{account}.dkr.ecr.{region}.amazonaws.com")),
        4 => ecr(format!("{account}.dkr.ecr-fips.{region}.amazonaws.com")),
        5 => ecr(format!("{account}.dkr-ecr.{region}.on.aws")),
        6 => ecr(format!("{account}.dkr-ecr-fips.{region}.on.amazonwebservices.com.cn")),
        7 => ("public.ecr.aws".to_owned(), Some(("us-east-1", None))),
        8 => (format!("team{}.registry.example", rng.u8(..)), Some(("eu-north-1", Some(ROLE)))),
        9 => ("mirror.example:5000".to_owned(), Some(("eu-south-2", None))),
        // The configuration lets these in, and the plugin knows better.
        10 => (format!("{account}0.dkr.ecr.{region}.amazonaws.com"), None),
        _ => (format!("{account}.dkr.ecr.Region.amazonaws.com"), None),
    }
}

/// An answer of ECR without a token that can be used.
fn fault(rng: &mut Rng) -> Fault {
    let faults = [
        Fault::error(400, "AccessDeniedException", "no \"quoted\" right\u{7}"),
        Fault::Garbage,
        Fault::EmptyData,
        Fault::NoToken,
        Fault::NoExpiry,
        Fault::TokenNotBase64,
        Fault::TokenWithoutColon,
        Fault::ExpiredToken,
    ];
    faults[rng.usize(..faults.len())].clone()
}

#[derive(Debug, Default)]
struct Counts {
    lookups: u32,
    with_a_credential: u32,
    from_the_kubelets_cache: u32,
    declined: u32,
    failed: u32,
}

#[test]
fn kubelets_get_the_token_of_every_image_and_cache_it_as_long_as_it_is_good() {
    if !all_here(&[Need::PluginOracle]) {
        return;
    }
    let seed = seed();
    std::thread::scope(|scope| {
        for version in VERSIONS {
            scope.spawn(move || all_worlds(version, seed));
        }
    });
}

fn all_worlds(version: &str, seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let mut counts = Counts::default();
    for _ in 0..WORLDS {
        one_world(version, &mut rng, &mut counts);
    }
    tell(&format!("plugin-oracle {version}, seed {seed}: {counts:?}"));
    assert!(counts.with_a_credential > counts.lookups / 3, "{counts:?}");
    assert!(counts.from_the_kubelets_cache > counts.lookups / 10, "{counts:?}");
    assert!(counts.declined > counts.lookups / 20 && counts.failed > counts.lookups / 20, "{counts:?}");
}

fn one_world(version: &str, rng: &mut Rng, counts: &mut Counts) {
    let minutes = [720, 60, 31, 10, 2][rng.usize(..5)];
    let token_lifetime = SignedDuration::from_mins(minutes);
    let mut node = Node::with(Options { token_lifetime, ..Options::default() });
    let registries =
        format!("*.registry.example,region=eu-north-1,role={ROLE} mirror.example:5000,region=eu-south-2");
    node.set("ECR_NODE_AGENT_REGISTRY", &registries);
    let mut config = printed(&node, &["--region=eu-west-1"]);
    // With registries, these alone are matched. Ours are all hosts of ECR, and these.
    let every_host = ecr_node_agent::ecr::registry::every_host();
    let patterns: Vec<String> = every_host.iter().map(|host| format!("  - \"{host}\"")).collect();
    config = config.replace("  matchImages:\n", &format!("  matchImages:\n{}\n", patterns.join("\n")));
    let api = ["v1", "v1beta1", "v1alpha1"][rng.usize(..3)];
    config = config
        .replace("credentialprovider.kubelet.k8s.io/v1", &format!("credentialprovider.kubelet.k8s.io/{api}"));
    let mut kubelet = Kubelet::start(&node, version, &config);
    let mut seen: Vec<String> = Vec::new();
    for _ in 0..IMAGES {
        let (host, source) = host(rng);
        // The kubelet has cached an answer for this host, or there is none that it could cache.
        if seen.contains(&host) {
            continue;
        }
        seen.push(host.clone());
        let is_spoilt = rng.u8(..5) == 0;
        if is_spoilt {
            let fault = fault(rng);
            node.aws.fail(Api::Ecr, fault.clone(), Times::Always);
            node.aws.fail(Api::EcrPublic, fault, Times::Always);
        }
        let tokens = node.aws.issued().len();
        let calls = node.aws.calls().len();
        let answer = kubelet.look_up(&format!("{host}/team/app"));
        let issued = node.aws.issued();
        counts.lookups += 2;
        let again = kubelet.look_up(&format!("{host}/another"));
        node.aws.heal();
        let said = format!("{version} {api} {minutes} {host} {source:?}: {answer:?} {again:?}");
        let Some((region, role)) = source else {
            counts.declined += 2;
            assert!(answer.passwords.is_empty() && again.passwords.is_empty(), "{said}");
            assert_eq!((answer.logged.as_str(), node.aws.calls().len()), ("", calls), "{said}");
            continue;
        };
        if is_spoilt {
            counts.failed += 2;
            assert!(answer.passwords.is_empty() && again.passwords.is_empty(), "{said}");
            assert!(answer.logged.contains(&format!("no ECR token for {host} ({region}")), "{said}");
            continue;
        }
        counts.with_a_credential += 2;
        let token = issued.last().unwrap();
        assert_eq!(issued.len(), tokens + 1, "{said}");
        assert_eq!((token.region.as_str(), token.role.as_deref()), (region, role), "{said}");
        assert_eq!(answer.passwords, [token.password.as_str()], "{said}");
        let issued = node.aws.issued();
        let is_cached = minutes > 15;
        counts.from_the_kubelets_cache += u32::from(is_cached);
        assert_eq!(issued.len(), tokens + if is_cached { 1 } else { 2 }, "{said}");
        assert_eq!(again.passwords, [issued.last().unwrap().password.as_str()], "{said}");
    }
}

#[test]
fn a_kubelet_gets_the_agents_token_while_ecr_is_away() {
    if !all_here(&[Need::PluginOracle]) {
        return;
    }
    let node = Node::new();
    node.once(&[]).expect(0, &[]);
    node.aws.fail(Api::Ecr, Fault::Hang, Times::Always);
    let password = node.aws.issued()[0].password.clone();
    for version in VERSIONS {
        let mut kubelet = Kubelet::start(&node, version, &printed(&node, &[]));
        assert_eq!(kubelet.look_up(&format!("{HOST}/team/app")).passwords, [password.as_str()]);
    }
    assert_eq!(node.aws.count(Api::Ecr), 1);
}

#[test]
fn a_kubelet_keeps_the_tokens_of_service_accounts_apart() {
    if !all_here(&[Need::PluginOracle]) {
        return;
    }
    let token = "eyJhbGciOiJSUzI1NiJ9.service-account.SECRETPASSWORD";
    let node = Node::with(Options { web_identity_token: token.to_owned(), ..Options::default() });
    node.once(&[]).expect(0, &[]);
    let config = printed(&node, &["--token-audience", "sts.amazonaws.com"]);
    let mut kubelet = Kubelet::start(&node, VERSIONS[1], &config);
    let image = format!("{HOST}/team/app");
    let role = |name: &str| format!("arn:aws:iam::123456789012:role/{name}");
    let account = |name: &str, token: &str, role: Option<String>| {
        let annotations = role.map(|role| json!({ "eks.amazonaws.com/ecr-role-arn": role, "other": "x" }));
        json!({ "name": name, "token": token, "annotations": annotations })
    };
    let mut passwords = Vec::new();
    for name in ["one", "two", "one"] {
        let answer = kubelet.look_up_for(&image, &account(name, token, Some(role(name))));
        assert_eq!(answer.audience, "sts.amazonaws.com");
        assert_eq!(answer.passwords.len(), 1, "{answer:?}");
        passwords.extend(answer.passwords);
    }
    let issued = node.aws.issued();
    let roles: Vec<_> = issued.iter().map(|token| token.role.clone()).collect();
    assert_eq!(roles, [None, Some(role("one")), Some(role("two"))]);
    let expected: Vec<&String> = [1, 2, 1].map(|number: usize| &issued[number].password).to_vec();
    assert_eq!(passwords.iter().collect::<Vec<_>>(), expected);
    // A service account without a role, and a static pod, are the node's.
    let nodes = [issued[0].password.clone()];
    assert_eq!(kubelet.look_up_for(&image, &account("three", token, None)).passwords, nodes);
    assert_eq!(kubelet.look_up(&image).passwords, nodes);
    // A role that STS refuses leaves nothing behind.
    let refused = kubelet.look_up_for(&image, &account("four", "wrong", Some(role("four"))));
    assert!(
        refused.passwords.is_empty() && refused.logged.contains("the service account's token"),
        "{refused:?}"
    );
    let answer = kubelet.look_up_for(&image, &account("four", token, Some(role("four"))));
    assert_eq!(answer.passwords, [node.aws.issued().last().unwrap().password.clone()]);
}
