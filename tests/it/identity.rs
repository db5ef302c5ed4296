//! Which credential source is used: compared with the AWS CLI's own choice, and with thousands of random configurations.

use crate::needs::{self, Need};
use crate::node::{Node, Run};
use ecr_emulator::{Api, Options};
use ecr_node_agent::ecr::client::{CredentialSource, Ecr, Identity, LastUsed};
use ecr_node_agent::ecr::environment::Environment;
use ecr_node_agent::ecr::http::trust::Trust;
use ecr_node_agent::ecr::refusal::Refusal;
use ecr_node_agent::ecr::registry::{Endpoint, TokenSource};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;

/// The access keys that AWS knows: where each one stands, and its id.
const KEYS: [(&str, &str); 6] = [
    ("environment", "AKIAENVIRONMENT00001"),
    ("credentials file", "AKIACREDENTIALS00001"),
    ("config file", "AKIACONFIGFILE000001"),
    ("process", "AKIAPROCESS000000001"),
    ("other profile", "AKIAOTHERPROFILE0001"),
    ("directory", "AKIADIRECTORY0000001"),
];
const ROLE: &str = "arn:aws:iam::111111111111:role/pull";
/// Stands in every secret, good or wrong.
const MARK: &str = "S3CR3T";
const CONTAINER_TOKEN: &str = "emulated-S3CR3T-authorization";
const WEB_IDENTITY_TOKEN: &str = "emulated.S3CR3T.identity";

fn secret(id: &str) -> String {
    format!("the-{MARK}-access-key-of-{id}")
}

fn id(place: &str) -> &'static str {
    KEYS.iter().find(|(name, _)| *name == place).unwrap().1
}

/// The two lines of an access key.
fn key(place: &str) -> String {
    format!("aws_access_key_id = {}\naws_secret_access_key = {}\n", id(place), secret(id(place)))
}

/// A node with the metadata service, which has credentials for everybody who asks.
fn instance() -> Node {
    let access_keys = KEYS.iter().map(|(_, id)| ((*id).to_owned(), secret(id))).collect();
    let container_token = Some(CONTAINER_TOKEN.to_owned());
    let web_identity_token = WEB_IDENTITY_TOKEN.to_owned();
    let options = Options { access_keys, container_token, web_identity_token, ..Options::default() };
    let mut node = Node::with(options).without_keys();
    node.set("AWS_EC2_METADATA_SERVICE_ENDPOINT", &node.aws.url());
    node.unset("AWS_EC2_METADATA_DISABLED");
    node.set("AWS_DEFAULT_REGION", "eu-west-1");
    // The AWS CLI asks three times, for a second each.
    node.set("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "1");
    node.set("AWS_METADATA_SERVICE_TIMEOUT", "5");
    node.write("token", WEB_IDENTITY_TOKEN);
    node.write("wrong-token", "another.S3CR3T.identity");
    node.write("container-token", CONTAINER_TOKEN);
    node.write("empty", "\n");
    let answer = format!(
        "{{\"Version\":1,\"AccessKeyId\":\"{0}\",\"SecretAccessKey\":\"{1}\"}}",
        id("process"),
        secret(id("process"))
    );
    node.write("answer.json", &answer);
    node
}

/// Whose credentials the token was asked with, or `failed`.
fn used(node: &Node, has_failed: bool) -> String {
    let calls = node.aws.calls();
    let Some(call) = calls.iter().rfind(|call| call.api == Api::Ecr).filter(|_| !has_failed) else {
        return "failed".to_owned();
    };
    let first =
        KEYS.iter().find_map(|(name, id)| calls.iter().any(|call| call.access_key == *id).then_some(*name));
    let first = match first {
        Some(name) => name,
        None if calls.iter().any(|call| call.api == Api::WebIdentity) => "web identity",
        None if calls.iter().any(|call| call.api == Api::Container) => "container",
        None => "instance",
    };
    match call.role {
        Some(_) if first != "web identity" => format!("role by {first}"),
        _ => first.to_owned(),
    }
}

/// One configuration: variables, and the content of the two shared files. `{DIR}` and `{URL}` stand for the node's directory
/// and for AWS.
#[derive(Debug, Clone, Default)]
struct Case {
    name: String,
    variables: BTreeMap<String, String>,
    credentials: Option<Vec<u8>>,
    config: Option<Vec<u8>>,
}

impl Case {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    fn set(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    fn credentials(mut self, content: impl AsRef<[u8]>) -> Self {
        self.credentials = Some(content.as_ref().to_vec());
        self
    }

    fn config(mut self, content: impl AsRef<[u8]>) -> Self {
        self.config = Some(content.as_ref().to_vec());
        self
    }

    /// A node that is configured so.
    fn node(&self) -> Node {
        let mut node = instance();
        self.apply(&mut node);
        node
    }

    /// Configures a node so, in place of what it was configured for before.
    fn apply(&self, node: &mut Node) {
        for name in IDENTITY_VARIABLES.iter().chain(&OTHER_VARIABLES) {
            if !self.variables.contains_key(*name) && !["AWS_REGION", "AWS_DEFAULT_REGION"].contains(name) {
                node.unset(name);
            }
        }
        let (directory, url) = (node.path("").display().to_string(), node.aws.url());
        let filled =
            |text: &str| text.replace("{DIR}", directory.trim_end_matches('/')).replace("{URL}", &url);
        for (name, value) in &self.variables {
            node.set(name, &filled(value));
        }
        std::fs::create_dir_all(node.path("home/.aws")).unwrap();
        for (name, content) in [("credentials", &self.credentials), ("config", &self.config)] {
            let path = node.path("home/.aws").join(name);
            let Some(content) = content else {
                // It may be that of an earlier configuration.
                std::fs::remove_file(path).ok();
                continue;
            };
            let content = match std::str::from_utf8(content) {
                Ok(text) => filled(text).into_bytes(),
                Err(_) => content.clone(),
            };
            #[expect(clippy::disallowed_methods, reason = "test code")]
            std::fs::write(path, content).unwrap();
        }
    }

    /// What the AWS CLI does.
    fn by_aws_cli(&self) -> (String, String) {
        let node = self.node();
        let mut command = Command::new(needs::found("aws").unwrap());
        command.env_clear().envs(node.variables()).env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
        let output = command.args(["ecr", "get-authorization-token", "--output", "json"]).output().unwrap();
        (used(&node, !output.status.success()), String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }

    /// What the agent does.
    fn by_agent(&self) -> (String, String) {
        let node = self.node();
        let run = once(&node);
        assert!([0, 3].contains(&run.code), "{}: {}: {}", self.name, run.code, run.err);
        (used(&node, run.code != 0), run.err)
    }
}

/// One run of the agent. A second is enough for what does not get better; a busy machine may need more for an answer.
fn once(node: &Node) -> Run {
    let run = node.once(&["--timeout", "1s"]);
    let is_late = run.err.contains("in time") || run.err.contains("within --timeout");
    if is_late { node.once(&["--timeout", "60s"]) } else { run }
}

/// Each variable and each file, present, empty and broken, alone and in pairs that matter.
#[expect(clippy::too_many_lines, reason = "one table")]
fn cases() -> Vec<Case> {
    let utf16 = |text: &str| -> Vec<u8> {
        [0xFF, 0xFE].into_iter().chain(text.encode_utf16().flat_map(u16::to_le_bytes)).collect()
    };
    let default = |place: &str| format!("[default]\n{}", key(place));
    let environment = |case: Case| {
        case.set("AWS_ACCESS_KEY_ID", id("environment"))
            .set("AWS_SECRET_ACCESS_KEY", &secret(id("environment")))
    };
    let web = |case: Case| case.set("AWS_ROLE_ARN", ROLE).set("AWS_WEB_IDENTITY_TOKEN_FILE", "{DIR}/token");
    let container = |case: Case| {
        case.set("AWS_CONTAINER_CREDENTIALS_FULL_URI", "{URL}/v1/credentials")
            .set("AWS_CONTAINER_AUTHORIZATION_TOKEN", CONTAINER_TOKEN)
    };
    let process = "credential_process = cat {DIR}/answer.json\n";
    let role = |source: &str| format!("[default]\nrole_arn = {ROLE}\n{source}\n");
    let base = format!("[base]\n{}", key("other profile"));
    vec![
        Case::new("nothing"),
        Case::new("metadata disabled").set("AWS_EC2_METADATA_DISABLED", "true"),
        Case::new("metadata disabled in capitals").set("AWS_EC2_METADATA_DISABLED", "TRUE"),
        Case::new("metadata not disabled").set("AWS_EC2_METADATA_DISABLED", "false"),
        Case::new("metadata disabled by an empty value").set("AWS_EC2_METADATA_DISABLED", ""),
        Case::new("metadata disabled by nonsense").set("AWS_EC2_METADATA_DISABLED", "yes"),
        Case::new("metadata disabled by a space").set("AWS_EC2_METADATA_DISABLED", " "),
        // The environment.
        environment(Case::new("environment")),
        environment(Case::new("environment and everything else"))
            .set("AWS_WEB_IDENTITY_TOKEN_FILE", "{DIR}/token")
            .set("AWS_ROLE_ARN", ROLE)
            .set("AWS_CONTAINER_CREDENTIALS_FULL_URI", "{URL}/v1/credentials")
            .credentials(default("credentials file")),
        Case::new("id alone").set("AWS_ACCESS_KEY_ID", id("environment")),
        Case::new("id and an empty secret").set("AWS_ACCESS_KEY_ID", id("environment")).set("AWS_SECRET_ACCESS_KEY", ""),
        Case::new("secret alone").set("AWS_SECRET_ACCESS_KEY", &secret(id("environment"))),
        Case::new("session token alone").set("AWS_SESSION_TOKEN", "a-S3CR3T-session-token"),
        Case::new("empty variables")
            .set("AWS_ACCESS_KEY_ID", "")
            .set("AWS_SECRET_ACCESS_KEY", "")
            .set("AWS_SESSION_TOKEN", ""),
        Case::new("id of a space").set("AWS_ACCESS_KEY_ID", " "),
        Case::new("key of spaces").set("AWS_ACCESS_KEY_ID", " ").set("AWS_SECRET_ACCESS_KEY", " "),
        environment(Case::new("environment with a wrong security token")).set("AWS_SECURITY_TOKEN", "wrong-S3CR3T-token"),
        Case::new("security token alone").set("AWS_SECURITY_TOKEN", "a-S3CR3T-session-token"),
        environment(Case::new("environment with an empty session token")).set("AWS_SESSION_TOKEN", ""),
        environment(Case::new("environment with a wrong session token")).set("AWS_SESSION_TOKEN", "wrong-S3CR3T-session-token"),
        environment(Case::new("environment beside a missing profile")).set("AWS_PROFILE", "nope"),
        environment(Case::new("environment beside a broken config file")).config("[default\n"),
        // The shared files.
        Case::new("credentials file").credentials(default("credentials file")),
        Case::new("config file").config(default("config file")),
        Case::new("both files").credentials(default("credentials file")).config(default("config file")),
        Case::new("a key in the credentials file and settings in the config file")
            .credentials(default("credentials file"))
            .config("[default]\nregion = eu-west-1\noutput = json\n"),
        Case::new("half a key in the credentials file and one in the config file")
            .credentials(format!("[default]\naws_access_key_id = {}\n", id("credentials file")))
            .config(default("config file")),
        Case::new("empty files").credentials("").config(""),
        Case::new("comments only").credentials("# nothing\n; here\n").config("\n\n"),
        Case::new("config file with settings only").config("[default]\nregion = eu-west-1\n"),
        Case::new("credentials file in UTF-16").credentials(utf16(&default("credentials file"))),
        Case::new("credentials file in Latin-1")
            .credentials([default("credentials file").as_bytes(), b"# \xE9\n"].concat()),
        Case::new("credentials file with a byte order mark")
            .credentials([b"\xEF\xBB\xBF", default("credentials file").as_bytes()].concat()),
        Case::new("credentials file with an indented key")
            .credentials(default("credentials file").replace("\naws_", "\n  aws_")),
        Case::new("credentials file with a line that is none")
            .credentials(format!("{}nonsense\n", default("credentials file"))),
        Case::new("credentials file that starts with a setting").credentials(key("credentials file")),
        Case::new("credentials file with a colon")
            .credentials(default("credentials file").replace(" = ", ": ")),
        Case::new("credentials file with a section twice")
            .credentials([default("credentials file"), default("other profile")].concat()),
        Case::new("credentials file with an empty id").credentials(format!(
            "[default]\naws_access_key_id =\naws_secret_access_key = {}\n",
            secret(id("credentials file"))
        )),
        Case::new("credentials file with an empty session token")
            .credentials(format!("{}aws_session_token =\n", default("credentials file"))),
        Case::new("credentials file with a session token alone")
            .credentials("[default]\naws_session_token = a-S3CR3T-session-token\n"),
        Case::new("credentials file with an empty session token alone").credentials("[default]\naws_session_token =\n"),
        Case::new("credentials file named by a space").set("AWS_SHARED_CREDENTIALS_FILE", " "),
        Case::new("credentials file named and missing").set("AWS_SHARED_CREDENTIALS_FILE", "{DIR}/none"),
        Case::new("config file named and missing").set("AWS_CONFIG_FILE", "{DIR}/none"),
        Case::new("credentials file named by an empty variable")
            .set("AWS_SHARED_CREDENTIALS_FILE", "")
            .credentials(default("credentials file")),
        Case::new("credentials file is /dev/null").set("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        // Profiles.
        Case::new("profile missing").set("AWS_PROFILE", "nope").credentials(default("credentials file")),
        Case::new("profile without files").set("AWS_PROFILE", "nope"),
        Case::new("profile without its prefix").set("AWS_PROFILE", "ecr").config(format!("[ecr]\n{}", key("config file"))),
        Case::new("profile with its prefix").set("AWS_PROFILE", "ecr").config(format!("[profile ecr]\n{}", key("config file"))),
        Case::new("profile with quotes")
            .set("AWS_PROFILE", "my ecr")
            .config(format!("[profile \"my ecr\"]\n{}", key("config file"))),
        Case::new("profile with a prefix in the credentials file")
            .set("AWS_PROFILE", "ecr")
            .credentials(format!("[profile ecr]\n{}", key("credentials file"))),
        Case::new("profile in the credentials file")
            .set("AWS_PROFILE", "base")
            .credentials(base.clone()),
        Case::new("profile empty").set("AWS_PROFILE", "").credentials(default("credentials file")),
        Case::new("profile of a space").set("AWS_PROFILE", " ").credentials(default("credentials file")),
        Case::new("profile by the old variable").set("AWS_DEFAULT_PROFILE", "base").credentials(base.clone()),
        Case::new("profile by two variables")
            .set("AWS_DEFAULT_PROFILE", "base")
            .set("AWS_PROFILE", "default")
            .credentials([base.clone(), default("credentials file")].concat()),
        Case::new("profile with settings only").set("AWS_PROFILE", "ecr").config("[profile ecr]\nregion = eu-west-1\n"),
        environment(Case::new("profile beside the environment"))
            .set("AWS_PROFILE", "base")
            .credentials(base.clone()),
        // Roles.
        Case::new("role by another profile").config(role("source_profile = base")).credentials(base.clone()),
        Case::new("role by a missing profile").config(role("source_profile = gone")),
        Case::new("role by itself").config(format!("{}{}", role("source_profile = default"), key("config file"))),
        Case::new("role by itself without a key").config(role("source_profile = default")),
        Case::new("role by a circle").config(format!(
            "{}[profile a]\nrole_arn = {ROLE}\nsource_profile = default\n",
            role("source_profile = a")
        )),
        Case::new("role by nothing").config(role("")),
        Case::new("role by two sources").config(role("source_profile = base\ncredential_source = Environment")).credentials(base.clone()),
        Case::new("role by a profile without credentials").config(format!("{}[profile a]\nregion = x\n", role("source_profile = a"))),
        environment(Case::new("role by the environment, which comes first")).config(role("credential_source = Environment")),
        Case::new("role by the environment without one").config(role("credential_source = Environment")),
        Case::new("role by the instance").config(role("credential_source = Ec2InstanceMetadata")),
        container(Case::new("role by the container")).config(role("credential_source = EcsContainer")),
        Case::new("role by a container without one").config(role("credential_source = EcsContainer")),
        Case::new("role by nonsense").config(role("credential_source = Nonsense")),
        Case::new("role and a key").config(role("source_profile = base")).credentials([base.clone(), default("credentials file")].concat()),
        Case::new("role by a process").config(format!("{}[profile a]\n{process}", role("source_profile = a"))),
        Case::new("source without a role").config("[default]\ncredential_source = Environment\n"),
        // Processes.
        Case::new("process").config(format!("[default]\n{process}")),
        Case::new("process and a key in the credentials file")
            .config(format!("[default]\n{process}"))
            .credentials(default("credentials file")),
        Case::new("process and a key in the config file").config(format!("[default]\n{process}{}", key("config file"))),
        Case::new("process that fails").config("[default]\ncredential_process = false\n"),
        Case::new("process that is missing").config("[default]\ncredential_process = /nonexistent/helper\n"),
        Case::new("process that prints nothing").config("[default]\ncredential_process = true\n"),
        Case::new("process with a quote").config("[default]\ncredential_process = cat '{DIR}/answer.json\n"),
        Case::new("process with a pipe").config("[default]\ncredential_process = cat {DIR}/answer.json | cat\n"),
        Case::new("process in quotes").config("[default]\ncredential_process = \"cat\" '{DIR}/answer.json'\n"),
        Case::new("empty process").config("[default]\ncredential_process =\n"),
        Case::new("single sign-on").config("[default]\nsso_start_url = https://x\nsso_region = eu-west-1\nsso_account_id = 1\nsso_role_name = x\n"),
        Case::new("single sign-on and a key")
            .config("[default]\nsso_start_url = https://x\nsso_region = eu-west-1\nsso_account_id = 1\nsso_role_name = x\n")
            .credentials(default("credentials file")),
        // Web identity.
        web(Case::new("web identity")),
        web(Case::new("web identity beside a profile")).credentials(default("credentials file")),
        Case::new("web identity without a role").set("AWS_WEB_IDENTITY_TOKEN_FILE", "{DIR}/token"),
        Case::new("web identity without a token").set("AWS_ROLE_ARN", ROLE),
        web(Case::new("web identity with a missing file")).set("AWS_WEB_IDENTITY_TOKEN_FILE", "{DIR}/none"),
        web(Case::new("web identity with a wrong token")).set("AWS_WEB_IDENTITY_TOKEN_FILE", "{DIR}/wrong-token"),
        web(Case::new("web identity empty")).set("AWS_WEB_IDENTITY_TOKEN_FILE", "").set("AWS_ROLE_ARN", ""),
        web(Case::new("web identity in a file called a space")).set("AWS_WEB_IDENTITY_TOKEN_FILE", " "),
        web(Case::new("web identity with an empty file")).set("AWS_WEB_IDENTITY_TOKEN_FILE", "{DIR}/empty"),
        Case::new("web identity in a profile").config(role("web_identity_token_file = {DIR}/token")),
        Case::new("web identity in a profile without a role").config("[default]\nweb_identity_token_file = {DIR}/token\n"),
        // Container.
        container(Case::new("container")),
        container(Case::new("container beside a profile")).credentials(default("credentials file")),
        container(web(Case::new("container beside a web identity"))),
        container(Case::new("container with a wrong token")).set("AWS_CONTAINER_AUTHORIZATION_TOKEN", "wrong-S3CR3T-token"),
        container(Case::new("container with its token in a file"))
            .set("AWS_CONTAINER_AUTHORIZATION_TOKEN", "")
            .set("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "{DIR}/container-token"),
        container(Case::new("container with a token file beside a wrong token"))
            .set("AWS_CONTAINER_AUTHORIZATION_TOKEN", "wrong-S3CR3T-token")
            .set("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "{DIR}/container-token"),
        container(Case::new("container with an empty token file"))
            .set("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "{DIR}/empty"),
        container(Case::new("container with a missing token file"))
            .set("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "{DIR}/none"),
        Case::new("container by a path that is none").set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "v1"),
        container(Case::new("container by a path that is none beside a URL"))
            .set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "v1"),
        Case::new("container of a space").set("AWS_CONTAINER_CREDENTIALS_FULL_URI", " "),
        Case::new("container without a scheme").set("AWS_CONTAINER_CREDENTIALS_FULL_URI", "localhost:1"),
        Case::new("container elsewhere").set("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://example.com/"),
        Case::new("container empty").set("AWS_CONTAINER_CREDENTIALS_FULL_URI", ""),
        Case::new("container token alone").set("AWS_CONTAINER_AUTHORIZATION_TOKEN", "a-S3CR3T-container-token"),
    ]
}

/// Where the agent and the AWS CLI differ: what each of them uses, and why.
const DIFFERENCES: [(&str, &str, &str, &str); 21] = [
    // A value that is neither on nor off is a mistake, and the metadata service may be another identity.
    ("metadata disabled by nonsense", "instance", "failed", "a switch is `true` or `false`"),
    ("metadata disabled by a space", "instance", "failed", "a switch is `true` or `false`"),
    ("credentials file named by a space", "instance", "failed", "a file is configured"),
    ("security token alone", "instance", "failed", "a part of an access key is configured"),
    (
        "credentials file with a session token alone",
        "instance",
        "failed",
        "a part of an access key is configured",
    ),
    // The CLI looks at one variable of each source only, and goes on to the instance's role without it.
    ("secret alone", "instance", "failed", "half an access key is configured"),
    ("session token alone", "instance", "failed", "a part of an access key is configured"),
    ("web identity without a token", "instance", "failed", "half a web identity is configured"),
    ("container token alone", "instance", "failed", "half a container endpoint is configured"),
    ("credentials file named and missing", "instance", "failed", "a file is configured"),
    ("config file named and missing", "instance", "failed", "a file is configured"),
    ("profile with settings only", "instance", "failed", "a profile is named, and has no credentials"),
    ("source without a role", "instance", "failed", "a credential source is named"),
    ("profile by two variables", "other profile", "failed", "two profiles are named"),
    // The AWS SDKs refuse both; Python's parser takes them.
    (
        "credentials file with an indented key",
        "credentials file",
        "failed",
        "the line continues the one above it",
    ),
    ("credentials file with a colon", "credentials file", "failed", "a setting has a `=`"),
    // Empty means unset, as in the AWS SDKs.
    ("credentials file named by an empty variable", "instance", "credentials file", "empty means unset"),
    ("profile empty", "failed", "credentials file", "empty means unset"),
    ("empty process", "failed", "instance", "empty means unset"),
    ("container empty", "failed", "instance", "empty means unset"),
    // The documented order is that of the AWS SDK for Rust.
    ("web identity beside a profile", "web identity", "credentials file", "the profile comes first"),
];

#[test]
fn the_source_is_the_one_that_the_aws_cli_uses() {
    if !needs::all_here(&[Need::AwsCli]) {
        return;
    }
    let mut listed = Vec::new();
    for case in cases() {
        let ((cli, why), (agent, said)) = (case.by_aws_cli(), case.by_agent());
        match DIFFERENCES.iter().find(|(name, ..)| *name == case.name) {
            None => assert_eq!(agent, cli, "{}\nthe CLI: {why}\nthe agent: {said}", case.name),
            Some((name, by_cli, by_agent, _)) => {
                assert_eq!((cli.as_str(), agent.as_str()), (*by_cli, *by_agent), "{name}\n{why}\n{said}");
                listed.push(*name);
            }
        }
    }
    assert_eq!(listed.len(), DIFFERENCES.len(), "a listed difference is no case: {listed:?}");
}

/// A random configuration, and what has to be true of it.
struct Chaos {
    case: Case,
    /// Whether a shared file breaks the rules.
    is_broken: bool,
    /// Whether anything names an identity, so that the metadata service is not the last resort.
    is_configured: bool,
}

fn pick<'a>(random: &mut fastrand::Rng, choices: &[&'a str]) -> &'a str {
    choices[random.usize(..choices.len())]
}

/// Values that fit anywhere and nowhere.
const ODD: [&str; 12] = [
    "",
    " ",
    "x",
    "odd-value",
    "a b",
    "\u{1b}[2J",
    "日本",
    "/nonexistent",
    "{DIR}",
    "http://user:S3CR3T-password@host",
    "localhost:1",
    "[::1]",
];
/// What names an identity, as a variable.
const IDENTITY_VARIABLES: [&str; 12] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
];
/// Other variables.
const OTHER_VARIABLES: [&str; 9] = [
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_USE_FIPS_ENDPOINT",
    "AWS_USE_DUALSTACK_ENDPOINT",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE",
    "AWS_ROLE_SESSION_NAME",
    "HTTPS_PROXY",
    "NO_PROXY",
];
/// Settings of a profile that name an identity, each with values that work.
const IDENTITY_SETTINGS: [(&str, &[&str]); 10] = [
    ("aws_access_key_id", &["AKIACREDENTIALS00001", "S3CR3T-as-an-id", "S3CR3T/swapped"]),
    (
        "aws_secret_access_key",
        &["the-S3CR3T-access-key-of-AKIACREDENTIALS00001", "S3CR3T-key", "AKIACREDENTIALS00001"],
    ),
    ("aws_session_token", &["S3CR3T-session-token"]),
    ("role_arn", &[ROLE, "no-arn"]),
    ("source_profile", &["default", "a", "gone"]),
    ("credential_source", &["Environment", "EcsContainer", "Nonsense"]),
    (
        "credential_process",
        &[
            "cat {DIR}/answer.json",
            "false",
            "/nonexistent/helper --password S3CR3T-argument",
            "echo S3CR3T-output",
            "cat '",
        ],
    ),
    ("web_identity_token_file", &["{DIR}/token", "{DIR}/none"]),
    ("sso_account_id", &["1"]),
    ("login_session", &["x"]),
];
/// Other settings.
const OTHER_SETTINGS: [&str; 7] =
    ["region", "output", "endpoint_url", "services", "use_fips_endpoint", "mfa_serial", "external_id"];

fn chaos(seed: u64) -> Chaos {
    let random = &mut fastrand::Rng::with_seed(seed);
    let mut case = Case::new(&format!("seed {seed}"));
    let mut is_configured = false;
    for name in IDENTITY_VARIABLES {
        if random.u8(..8) == 0 {
            let good: &[&str] = match name {
                "AWS_ACCESS_KEY_ID" => &["AKIAENVIRONMENT00001", "S3CR3T/swapped"],
                "AWS_SECRET_ACCESS_KEY" => {
                    &["the-S3CR3T-access-key-of-AKIAENVIRONMENT00001", "AKIAENVIRONMENT00001"]
                }
                "AWS_PROFILE" | "AWS_DEFAULT_PROFILE" => &["default", "a"],
                "AWS_ROLE_ARN" => &[ROLE],
                "AWS_WEB_IDENTITY_TOKEN_FILE" => &["{DIR}/token", "{DIR}/none"],
                "AWS_CONTAINER_CREDENTIALS_FULL_URI" => &["{URL}/v1/credentials", "http://127.0.0.1:1/"],
                "AWS_CONTAINER_AUTHORIZATION_TOKEN" => &[CONTAINER_TOKEN, "S3CR3T-token"],
                "AWS_SHARED_CREDENTIALS_FILE" => &["{DIR}/home/.aws/credentials"],
                _ => &["x"],
            };
            let value = if random.bool() { pick(random, good) } else { pick(random, &ODD) };
            // The file at its usual place says itself whether it configures anything.
            is_configured |= !value.is_empty() && !value.ends_with("/.aws/credentials") && value != "default";
            case = case.set(name, value);
        }
    }
    for name in OTHER_VARIABLES {
        if random.u8(..12) == 0 {
            case = case.set(
                name,
                if random.bool() { pick(random, &["true", "eu-west-1", "IPv4"]) } else { pick(random, &ODD) },
            );
        }
    }
    let mut is_broken = false;
    for is_config in [false, true] {
        if random.u8(..3) == 0 {
            continue;
        }
        let mut text = String::new();
        let mut headers = vec!["default", "profile a", "a", "profile \"q", "services x", "odd header"];
        for _ in 0..random.u8(..4) {
            let header = headers.swap_remove(random.usize(..headers.len()));
            writeln!(text, "[{header}]").unwrap();
            let mut names = Vec::new();
            for _ in 0..random.u8(..5) {
                let (name, value) = if random.bool() {
                    let (name, values) = IDENTITY_SETTINGS[random.usize(..IDENTITY_SETTINGS.len())];
                    (name, if random.u8(..4) > 0 { pick(random, values) } else { pick(random, &ODD) })
                } else {
                    (pick(random, &OTHER_SETTINGS), pick(random, &ODD))
                };
                if names.contains(&name) {
                    continue;
                }
                names.push(name);
                writeln!(text, "{name} = {value}").unwrap();
                let is_key = name.starts_with("aws_access") || name.starts_with("aws_secret");
                let is_identity = IDENTITY_SETTINGS.iter().any(|(known, _)| *known == name);
                // A source profile alone names no identity.
                is_configured |= header == "default"
                    && is_identity
                    && name != "source_profile"
                    && (is_key || !value.trim().is_empty());
            }
            if random.u8(..20) == 0 {
                text += pick(random, &["S3CR3T line\n", "= S3CR3T\n", "[S3CR3T\n"]);
                is_broken = true;
            }
        }
        let mut content = text.into_bytes();
        if random.u8(..30) == 0 {
            content.extend_from_slice(b"# \xE9\n");
            is_broken = true;
        }
        case = if is_config { case.config(content) } else { case.credentials(content) };
    }
    Chaos { case, is_broken, is_configured }
}

/// Checks what was said and asked.
fn check(chaos: &Chaos, said: &str, asked_instance: bool, asked_anything: bool) {
    let case = &chaos.case;
    assert!(!said.contains(MARK), "a secret is shown: {said}\n{case:?}");
    assert!(!said.contains('\u{1b}'), "a control character is shown: {said}\n{case:?}");
    assert!(!said.contains("please report it"), "a panic: {said}\n{case:?}");
    if chaos.is_configured {
        assert!(!asked_instance, "another identity was asked: {said}\n{case:?}");
    }
    if chaos.is_broken {
        assert!(!asked_anything, "a file that breaks the rules was ignored: {said}\n{case:?}");
    }
}

/// What the library does with a configuration: what it says and logs.
fn attempt(node: &Node, runtime: &tokio::runtime::Runtime) -> String {
    let environment = Environment::new(node.variables());
    let identity = Identity {
        region: Some("eu-west-1".parse().unwrap()),
        source: CredentialSource::Configured,
        environment,
        trust: Trust::Directories(Vec::new()),
        session_name: "test".to_owned(),
        last_used: LastUsed::default(),
    };
    let ecr = match Ecr::new(identity) {
        Ok(ecr) => ecr,
        Err(error) => return error.to_string(),
    };
    let source =
        TokenSource { region: "eu-west-1".parse().unwrap(), endpoint: Endpoint::STANDARD, role: None };
    let attempt = async {
        let caller = ecr.caller(None, Instant::now() + Duration::from_mins(1)).await?;
        let token = ecr.token(&source, &caller).await?;
        Ok::<_, Refusal>(format!("{caller:?} {token:?}"))
    };
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false);
    let target = |event: &tracing::Metadata<'_>| event.target().starts_with("ecr_node_agent");
    let subscriber = subscriber.with_writer(log.clone()).finish().with(filter_fn(target));
    let said = tracing::subscriber::with_default(subscriber, || runtime.block_on(attempt));
    let said = said.unwrap_or_else(|refusal| format!("{refusal} {refusal:?}"));
    let log = log.0.lock().unwrap();
    format!("{said}\n{}", String::from_utf8_lossy(&log))
}

/// Keeps the log lines.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self::Writer {
        self.clone()
    }
}

#[test]
fn without_home_the_shared_files_are_in_the_users_home_directory() {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap();
    let said = format!("{}/.aws/credentials", user.dir.display());
    let mut node = Node::new().without_keys();
    node.set("HOME", "");
    node.once(&[]).expect(3, &[&said]);
    node.unset("HOME");
    node.once(&[]).expect(3, &[&said]);
}

#[test]
fn ten_thousand_random_configurations_never_panic_leak_or_fall_back() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut node = instance();
    let (mut configured, mut broken, mut instances) = (0, 0, 0);
    for seed in 0..10_000 {
        let chaos = chaos(seed);
        chaos.case.apply(&mut node);
        let before = node.aws.calls().len();
        let said = attempt(&node, &runtime);
        let calls = node.aws.calls().split_off(before);
        let asked_instance = calls.iter().any(|call| call.api == Api::ImdsSession);
        check(&chaos, &said, asked_instance, !calls.is_empty());
        configured += usize::from(chaos.is_configured);
        broken += usize::from(chaos.is_broken);
        instances += usize::from(asked_instance);
    }
    // The test would prove little if all of them were of one kind.
    assert!(configured > 3000 && broken > 500 && instances > 300, "{configured} {broken} {instances}");
}

#[test]
fn random_configurations_never_end_the_program_by_a_signal() {
    for seed in 0..150 {
        let chaos = chaos(seed);
        let mut node = chaos.case.node();
        node.hide(MARK);
        let run = once(&node);
        assert!([0, 2, 3, 4].contains(&run.code), "{}: {:?}", run.err, chaos.case);
        let calls = node.aws.calls();
        let asked_instance = calls.iter().any(|call| call.api == Api::ImdsCredentials);
        check(&chaos, &run.err, asked_instance, false);
    }
}
