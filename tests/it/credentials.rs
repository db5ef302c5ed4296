//! Every source of AWS credentials, through the program: it uses the one that is configured, and no other if that fails.

use crate::node::{HOST, Node, Run, output, wait_until_gone};
use crate::wire::Wire;
use ecr_emulator::proxy::Proxy;
use ecr_emulator::{Api, Fault, Options, Times};
use std::fs::Permissions;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::time::Duration;

const ID: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const ROLE: &str = "arn:aws:iam::111111111111:role/pull";

/// A node without any credentials.
fn poor() -> Node {
    Node::new().without_keys()
}

/// A node with the metadata service, which has credentials for everybody who asks.
fn instance() -> Node {
    let mut node = poor();
    node.set("AWS_EC2_METADATA_SERVICE_ENDPOINT", &node.aws.url());
    node.unset("AWS_EC2_METADATA_DISABLED");
    node
}

fn keys(profile: &str) -> String {
    format!("[{profile}]\naws_access_key_id = {ID}\naws_secret_access_key = {SECRET}\n")
}

fn profile(node: &Node, credentials: &str, config: &str) {
    node.write("home/.aws/credentials", credentials);
    node.write("home/.aws/config", config);
}

/// Runs the program, which must fail for want of credentials without asking any other source or ECR.
#[track_caller]
fn refused(node: &Node, arguments: &[&str], said: &[&str]) -> Run {
    let run = node.once(arguments).expect(3, said);
    for api in [Api::Ecr, Api::ImdsSession, Api::ImdsCredentials] {
        assert_eq!(node.aws.count(api), 0, "{api:?} was asked: {}", run.err);
    }
    assert_eq!(run.err.lines().count(), 1, "one clear line: {}", run.err);
    run
}

/// Makes a FIFO that nobody writes to.
fn fifo(path: &Path) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
}

#[test]
fn environment_variables() {
    let node = Node::new();
    node.once(&[])
        .expect(0, &["AWS credentials in use", "the environment (AWS_ACCESS_KEY_ID), access key AKIA"]);
    assert_eq!(node.aws.calls()[0].access_key, ID);
}

#[test]
fn shared_profile() {
    let mut node = poor();
    node.unset("AWS_REGION");
    profile(
        &node,
        &keys("default"),
        "[default]\nregion = eu-central-1\n[profile other]\nregion = us-west-2\n",
    );
    node.once(&[]).expect(0, &["the profile at ", "/.aws/credentials line 1"]);
    assert_eq!(node.aws.calls()[0].region, "eu-central-1");
    // A profile of another name, at other places.
    let (credentials, config) = (node.path("home/.aws/credentials"), node.path("home/.aws/config"));
    node.write("home/.aws/credentials", &keys("other"));
    node.set("HOME", "/nonexistent");
    node.set("AWS_SHARED_CREDENTIALS_FILE", credentials.to_str().unwrap());
    node.set("AWS_CONFIG_FILE", config.to_str().unwrap());
    for variable in ["AWS_PROFILE", "AWS_DEFAULT_PROFILE"] {
        node.set(variable, "other");
        node.once(&[]).expect(0, &[]);
        assert_eq!(node.aws.calls().last().unwrap().region, "us-west-2", "{variable}");
        node.unset(variable);
    }
}

#[test]
fn profile_with_roles_and_with_a_process() {
    let node = poor();
    let config = format!(
        "[default]\nrole_arn = {ROLE}\nsource_profile = middle\n[profile middle]\n\
         role_arn = arn:aws:iam::111111111111:role/middle\nrole_session_name = between\nsource_profile = base\n"
    );
    profile(&node, &keys("base"), &config);
    node.once(&[]).expect(0, &["role arn:aws:sts::111111111111:assumed-role/pull/ecr-node-agent@"]);
    let apis: Vec<Api> = node.aws.calls().iter().map(|call| call.api).collect();
    assert_eq!(apis, [Api::AssumeRole, Api::AssumeRole, Api::Ecr]);
    assert_eq!(node.aws.calls()[2].role.as_deref(), Some(ROLE));

    let answer = format!(
        "{{\"Version\":1,\"AccessKeyId\":\"{ID}\",\"SecretAccessKey\":\"{SECRET}\",\"SessionToken\":\"\",\
         \"Expiration\":\"2126-11-24 11:00:00 UTC\"}}"
    );
    node.write("answer.json", &answer);
    let process = format!("cat {}", node.path("answer.json").display());
    profile(&node, "", &format!("[default]\ncredential_process = {process}\n"));
    node.once(&[]).expect(0, &["the credential_process `cat`"]);
    assert_eq!(node.aws.calls().last().unwrap().access_key, ID);
}

#[test]
fn web_identity() {
    let mut node = poor();
    node.write("token", "emulated.web.identity\n");
    node.set("AWS_ROLE_ARN", ROLE);
    node.set("AWS_WEB_IDENTITY_TOKEN_FILE", node.path("token").to_str().unwrap());
    node.once(&[]).expect(0, &[]);
    assert_eq!(node.aws.calls()[0].api, Api::WebIdentity);
    assert_eq!(node.aws.calls()[1].role.as_deref(), Some(ROLE));

    node.write("token", "another.web.identity");
    node.once(&[]).expect(3, &["does not accept the credentials: InvalidIdentityToken"]);
    let denied = Fault::error(403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity");
    node.aws.fail(Api::WebIdentity, denied, Times::Always);
    // ECR is not asked: the source that is configured has no credentials.
    node.once(&[]).expect(
        3,
        &[
            "the web identity of AWS_WEB_IDENTITY_TOKEN_FILE: access denied",
            "trust policy must allow this service account",
        ],
    );
    node.aws.fail(Api::WebIdentity, Fault::Throttle, Times::First(1));
    node.write("token", "emulated.web.identity");
    node.once(&[]).expect(0, &["throttled", "will try again"]);
}

#[test]
fn container_credentials() {
    let mut node = poor();
    node.set("AWS_CONTAINER_CREDENTIALS_FULL_URI", &format!("{}/v1/credentials", node.aws.url()));
    node.write("token", "emulated-container-authorization\n");
    node.set("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", node.path("token").to_str().unwrap());
    node.once(&[]).expect(0, &["role arn:aws:iam::123456789012:role/node"]);
    assert_eq!(node.aws.count(Api::Container), 1);
    let endpoint = "the container endpoint of AWS_CONTAINER_CREDENTIALS_FULL_URI";
    node.aws.fail(Api::Container, Fault::CutOff, Times::Always);
    node.once_within(Duration::from_secs(2), 3, &[endpoint, "the answer broke off"]);
    node.aws.fail(Api::Container, Fault::Hang, Times::Always);
    let said = "AWS_CONTAINER_CREDENTIALS_FULL_URI gave no credentials in time";
    node.once_within(Duration::from_millis(200), 3, &[said]);
    node.once(&["--timeout", "6s"]).expect(3, &[endpoint, "no answer within 5 s"]);
    node.aws.fail(Api::Container, Fault::HugeBody, Times::Always);
    node.once(&[]).expect(3, &[endpoint, "is too long"]);
    node.aws.fail(Api::Container, Fault::Forbidden, Times::Always);
    node.once(&[]).expect(3, &[endpoint, "HTTP status 403: Forbidden: This service is switched off."]);
    node.aws.fail(Api::Container, Fault::InternalError, Times::First(4));
    node.once(&[]).expect(0, &["will try again"]);
}

#[test]
fn instance_metadata() {
    let mut node = instance();
    node.unset("AWS_REGION");
    node.once(&[]).expect(0, &["the instance metadata service, access key ASIA", "role node"]);
    node.assert_latest_token(HOST);
    assert_eq!(node.aws.count(Api::ImdsRegion), 1);
    assert_eq!(node.aws.count(Api::ImdsCredentials), 2);

    // It is not up yet: so it is, a moment later.
    node.aws.fail(Api::ImdsSession, Fault::ServiceUnavailable, Times::First(2));
    node.once(&[]).expect(0, &["will try again"]);
    // What it says about itself is checked.
    node.aws.fail(Api::ImdsSession, Fault::AbsurdLifetime, Times::Always);
    node.once(&[]).expect(0, &[]);
}

#[test]
fn a_mounted_secret() {
    let node = poor();
    // As the kubelet mounts it: a link to a directory that is swapped as a whole; and keys as `echo` writes them.
    node.write("secret/..1/aws_access_key_id", &format!("{ID}\n"));
    node.write("secret/..1/aws_secret_access_key", &format!("{SECRET}\r\n"));
    symlink("..1", node.path("secret/..data")).unwrap();
    for name in ["aws_access_key_id", "aws_secret_access_key"] {
        symlink(format!("..data/{name}"), node.path("secret").join(name)).unwrap();
    }
    let directory = node.path("secret");
    let option = ["--aws-credentials-dir", directory.to_str().unwrap()];
    node.once(&option).expect(0, &[]);
    assert_eq!(node.aws.calls()[0].access_key, ID);

    node.write("secret/..1/aws_session_token", "not-the-session\n");
    node.once(&option).expect(3, &["does not accept the credentials"]);
    node.write("secret/..1/aws_secret_access_key", " \n");
    node.once(&option).expect(3, &["the file `aws_secret_access_key` is missing or empty"]);
    std::fs::remove_file(node.path("secret/..1/aws_access_key_id")).unwrap();
    node.once(&option).expect(3, &["the file `aws_access_key_id` is missing or empty"]);
    // No other source is asked when one was named.
    let mut node = Node::new();
    node.set("AWS_EC2_METADATA_SERVICE_ENDPOINT", &node.aws.url());
    refused(&node, &["--aws-credentials-dir", "/nonexistent"], &["/nonexistent"]);
    assert_eq!(node.aws.calls(), []);
}

#[test]
fn a_role_on_top_of_any_source() {
    let node = Node::new();
    node.once(&["--role-arn", ROLE]).expect(0, &["role arn:aws:sts::111111111111:assumed-role/pull/"]);
    assert_eq!(node.aws.calls()[1].role.as_deref(), Some(ROLE));
    assert_eq!(node.document()["ecr-node-agent"]["entries"][HOST]["source"], format!("eu-west-1 as {ROLE}"));

    let node = instance();
    node.once(&["--role-arn", ROLE]).expect(0, &[]);
    assert_eq!(node.aws.calls().last().unwrap().role.as_deref(), Some(ROLE));

    let denied = Fault::error(403, "AccessDenied", "User: u is not authorized to perform: sts:AssumeRole");
    node.aws.fail(Api::AssumeRole, denied, Times::Always);
    node.once(&["--role-arn", ROLE]).expect(4, &["access denied", &format!("sts:AssumeRole on {ROLE}")]);
    node.aws.fail(Api::AssumeRole, Fault::EmptyData, Times::Always);
    node.once(&["--role-arn", ROLE]).expect(4, &["no credentials for the role"]);
}

#[test]
fn a_profile_that_is_named_and_unusable_is_never_replaced_by_the_instances_role() {
    let mut node = instance();
    node.set("AWS_PROFILE", "nope");
    refused(
        &node,
        &[],
        &["AWS_PROFILE names the profile `nope`, but there is no shared credentials or config file"],
    );
    profile(&node, &keys("default"), "[ecr]\nregion = eu-west-1\n");
    refused(&node, &[], &["AWS_PROFILE names the profile `nope`, which is not in ", "/.aws/credentials or "]);
    node.set("AWS_PROFILE", "ecr");
    refused(&node, &[], &["the profile `ecr`", "/.aws/config line 1 must be `[profile ecr]`"]);
    profile(&node, "[profile ecr]\nx = y\n", "");
    refused(&node, &[], &["/.aws/credentials line 1 must be `[ecr]`"]);
    profile(&node, "", "[profile ecr]\nregion = eu-west-1\n");
    refused(&node, &[], &["(", "/.aws/config line 1), which has no credentials"]);
    node.set("AWS_DEFAULT_PROFILE", "other");
    refused(&node, &[], &["AWS_PROFILE and AWS_DEFAULT_PROFILE name different profiles"]);
    node.unset("AWS_DEFAULT_PROFILE");

    let source = |line: &str| format!("[profile ecr]\nrole_arn = {ROLE}\n{line}\n");
    let cases = [
        (source("source_profile = gone"), "config line 3 names the source_profile `gone`, which is not in"),
        (source("source_profile = ecr"), "leads back to itself"),
        (
            source("credential_source = Nowhere"),
            "expected `Environment`, `EcsContainer` or `Ec2InstanceMetadata`",
        ),
        (source("credential_source = Environment"), "but AWS_ACCESS_KEY_ID is not set"),
        (source("credential_source = EcsContainer"), "AWS_CONTAINER_CREDENTIALS_FULL_URI is set"),
        (source(""), "config line 2 names a role, and the profile has none of `source_profile`"),
        (
            source("source_profile = a\ncredential_source = Environment"),
            "the profile has both of `source_profile`",
        ),
        (source("source_profile = a\n[profile a]\nregion = x"), "the profile `a`, which "),
        (source("mfa_serial = arn:aws:iam::1:mfa/x\nsource_profile = a"), "needs a person"),
        (source("web_identity_token_file = /nonexistent/token"), "/nonexistent/token does not exist"),
        ("[profile ecr]\nweb_identity_token_file = /x\n".to_owned(), "has no `role_arn`"),
        (
            "[profile ecr]\nsso_account_id = 1\nsso_role_name = x\n".to_owned(),
            "config line 2 configures IAM Identity Center",
        ),
        ("[profile ecr]\nsso_session = x\n".to_owned(), "IAM Identity Center (SSO), which needs a person"),
        ("[profile ecr]\nlogin_session = x\n".to_owned(), "a console login, which needs a person"),
        (
            "[profile ecr]\ncredential_process = /nonexistent/helper x\n".to_owned(),
            "the credential_process `/nonexistent/helper`",
        ),
        (format!("[profile ecr]\naws_access_key_id = {ID}\n"), "`aws_secret_access_key` is missing"),
        (
            format!("[profile ecr]\naws_access_key_id =\naws_secret_access_key = {SECRET}\n"),
            "`aws_access_key_id` is empty",
        ),
        (
            "[profile ecr]\naws_access_key_id =\naws_secret_access_key =\n".to_owned(),
            "`aws_access_key_id` is empty",
        ),
    ];
    for (config, said) in cases {
        profile(&node, "", &config);
        refused(&node, &[], &[said, "/.aws/config line "]);
    }
}

#[test]
fn a_source_that_is_configured_in_part_is_an_error() {
    let cases: [(&[(&str, &str)], &str); 9] = [
        (&[("AWS_ACCESS_KEY_ID", ID)], "AWS_ACCESS_KEY_ID is set, but AWS_SECRET_ACCESS_KEY is not"),
        (&[("AWS_SECRET_ACCESS_KEY", SECRET)], "AWS_SECRET_ACCESS_KEY is set, but AWS_ACCESS_KEY_ID is not"),
        (&[("AWS_SESSION_TOKEN", "session-token")], "AWS_SESSION_TOKEN is set, but AWS_ACCESS_KEY_ID with"),
        (&[("AWS_ROLE_ARN", ROLE)], "AWS_ROLE_ARN is set, but AWS_WEB_IDENTITY_TOKEN_FILE is not"),
        (
            &[("AWS_WEB_IDENTITY_TOKEN_FILE", "/x")],
            "AWS_WEB_IDENTITY_TOKEN_FILE is set, but AWS_ROLE_ARN is not",
        ),
        (
            &[("AWS_WEB_IDENTITY_TOKEN_FILE", "/nonexistent/token"), ("AWS_ROLE_ARN", ROLE)],
            "AWS_WEB_IDENTITY_TOKEN_FILE: the token file /nonexistent/token does not exist",
        ),
        (
            &[("AWS_CONTAINER_AUTHORIZATION_TOKEN", "the-token")],
            "AWS_CONTAINER_AUTHORIZATION_TOKEN is set, but AWS_CONTAINER_CREDENTIALS_FULL_URI is not",
        ),
        (
            &[("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/keys")],
            "/nonexistent/keys does not exist (AWS_SHARED_CREDENTIALS_FILE names it)",
        ),
        (
            &[("AWS_CONFIG_FILE", "/nonexistent/config")],
            "/nonexistent/config does not exist (AWS_CONFIG_FILE names it)",
        ),
    ];
    for (variables, said) in cases {
        let mut node = instance();
        for (name, value) in variables {
            node.set(name, value);
        }
        refused(&node, &[], &[said]);
    }
}

#[test]
fn a_container_address_that_is_none_is_refused() {
    for address in
        ["localhost:1", "127.0.0.1:1", "[::1]", "http://example.com/", "http://user:hunter2@127.0.0.1/"]
    {
        let mut node = instance();
        node.hide("hunter2");
        node.set("AWS_CONTAINER_CREDENTIALS_FULL_URI", address);
        refused(&node, &[], &["AWS_CONTAINER_CREDENTIALS_FULL_URI is "]);
    }
    let mut node = instance();
    node.set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "v2/credentials");
    refused(&node, &[], &["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI is no path"]);
    let mut node = instance();
    node.set("AWS_CONTAINER_CREDENTIALS_FULL_URI", &node.aws.url());
    node.set("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/nonexistent/token");
    refused(
        &node,
        &[],
        &["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE names /nonexistent/token, which does not exist"],
    );
}

#[test]
fn a_shared_file_that_cannot_be_read_is_never_ignored() {
    let node = instance();
    let path = node.path("home/.aws/credentials");
    node.write("home/.aws/credentials", &keys("default"));
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let auth_file = node.auth_file();
    let arguments = ["--once", "--auth-file", auth_file.to_str().unwrap()];
    let is_root = nix::unistd::geteuid().is_root();
    let output = if is_root {
        // Root without capabilities, as in a container.
        chown(&path, Some(1000), None).unwrap();
        let wrapper = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"];
        output(&mut node.command(&wrapper, &arguments))
    } else {
        std::fs::set_permissions(&path, Permissions::from_mode(0o000)).unwrap();
        output(&mut node.command(&[], &arguments))
    };
    let said = "/.aws/credentials cannot be read by this program, which runs as uid ";
    let run = node.checked(&output).expect(3, &[said]);
    if is_root {
        assert!(run.err.contains("the file belongs to uid 1000 and has mode 0600"), "{}", run.err);
    }
    assert_eq!(node.aws.calls(), []);
}

#[test]
fn a_shared_file_that_breaks_the_rules_is_named_with_line_and_reason() {
    let utf16: Vec<u8> =
        [0xFF, 0xFE].into_iter().chain(keys("default").encode_utf16().flat_map(u16::to_le_bytes)).collect();
    let latin1 = [keys("default").as_bytes(), b"# \xE9t\xE9\n"].concat();
    let bom = [b"\xEF\xBB\xBF", keys("default").as_bytes()].concat();
    let cases: [(Vec<u8>, &str); 7] = [
        (utf16, "line 1 is UTF-16 text"),
        (latin1, "line 4 is not UTF-8 text"),
        (bom, "line 1 starts with a byte order mark"),
        (keys("default").replace("\naws_", "\n  aws_").into_bytes(), "line 2 starts with a space"),
        (format!("{}oops\n", keys("default")).into_bytes(), "line 4 is neither a section nor a setting"),
        (keys("default").replace(']', "").into_bytes(), "line 1 starts a section and has no `]`"),
        (
            [keys("default"), keys("default")].concat().into_bytes(),
            "line 4 starts a section that stands further up",
        ),
    ];
    for name in ["credentials", "config"] {
        for (content, said) in &cases {
            let node = instance();
            let path = node.path("home/.aws").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            #[expect(clippy::disallowed_methods, reason = "test code")]
            std::fs::write(&path, content).unwrap();
            refused(&node, &[], &[&format!("/.aws/{name}: {said}")]);
        }
    }
}

#[test]
fn empty_means_unset_for_every_source() {
    // Variables.
    let mut node = Node::new();
    for name in ["REGION", "ROLE_ARN", "REGISTRY", "AWS_CREDENTIALS_DIR"] {
        node.set(&format!("ECR_NODE_AGENT_{name}"), "");
    }
    let empty = [
        "AWS_CA_BUNDLE",
        "AWS_SESSION_TOKEN",
        "AWS_PROFILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_ROLE_ARN",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONFIG_FILE",
        "AWS_ENDPOINT_URL_ECR",
        "AWS_ENDPOINT_URL_STS",
        "AWS_USE_FIPS_ENDPOINT",
        "HTTPS_PROXY",
        "HTTP_PROXY",
    ];
    for name in empty {
        node.set(name, "");
    }
    node.once(&[]).expect(0, &[]);
    node.set("AWS_REGION", "");
    node.once(&[]).expect(3, &["no AWS region"]);
    node.set("AWS_REGION", "eu west");
    node.once(&[]).expect(3, &["AWS_REGION names `eu west`, which is no AWS region"]);

    // Settings of a profile, beside a profile that is named by an empty variable.
    let mut node = instance();
    node.set("AWS_PROFILE", "");
    profile(
        &node,
        &format!("{}aws_session_token =\n", keys("default")),
        "[default]\nendpoint_url =\nrole_arn =\n",
    );
    node.once(&[]).expect(0, &[]);
    assert_eq!(node.aws.calls()[0].access_key, ID);
    node.unset("AWS_ENDPOINT_URL");
    node.set("AWS_ENDPOINT_URL_ECR", &node.aws.url());
    node.set("AWS_ENDPOINT_URL_STS", &node.aws.url());
    profile(
        &node,
        &keys("base"),
        &format!("[default]\nrole_arn = {ROLE}\nsource_profile = base\nendpoint_url =\n"),
    );
    node.once(&[]).expect(0, &[]);
    assert_eq!(node.aws.calls().last().unwrap().role.as_deref(), Some(ROLE));
}

#[test]
fn without_a_source_the_message_lists_what_was_looked_for() {
    let node = poor();
    let said = [
        "no credential source is configured, and AWS_EC2_METADATA_DISABLED switches off",
        "AWS_ACCESS_KEY_ID, credentials of the profile `default` in ",
        "/home/.aws/credentials and ",
        "/home/.aws/config, AWS_WEB_IDENTITY_TOKEN_FILE, AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "--aws-credentials-dir",
    ];
    refused(&node, &[], &said);

    let mut node = poor();
    node.unset("AWS_REGION");
    let said = [&said[..], &["and no AWS region", "give --region"]].concat();
    refused(&node, &[], &said);
    let mut node = Node::new();
    node.unset("AWS_REGION");
    refused(&node, &[], &["no AWS region: --region, AWS_REGION and `region` in the profile are not set"]);
}

#[test]
fn a_metadata_service_that_never_answers_is_given_up_within_five_seconds() {
    let mut node = instance();
    node.unset("AWS_REGION");
    node.aws.fail(Api::ImdsSession, Fault::Hang, Times::Always);
    let before = std::time::Instant::now();
    node.once(&["--timeout", "10m"])
        .expect(3, &["the instance metadata service: nothing answers at", "hop limit of 2", "hostNetwork"]);
    // It ended before its timeout.
    assert!(before.elapsed() < Duration::from_mins(5));
}

#[test]
fn an_error_of_the_metadata_service_is_shown() {
    let cases = [
        (Api::ImdsCredentials, Fault::NotFound, "this instance has no role", "give this node a role"),
        (Api::ImdsSession, Fault::Forbidden, "HTTP status 403", "--aws-credentials-dir"),
        (Api::ImdsCredentials, Fault::Garbage, "is no role's name", ""),
        (Api::ImdsCredentials, Fault::HugeBody, "the answer is too long", ""),
        (Api::ImdsCredentials, Fault::CutOff, "the answer broke off", ""),
        (
            Api::ImdsCredentials,
            Fault::error(200, "AssumeRoleUnauthorizedAccess", "no trust"),
            "is no role's name",
            "",
        ),
    ];
    for (api, fault, said, remedy) in cases {
        let node = instance();
        node.aws.fail(api, fault, Times::Always);
        let said = ["no other source is configured, and the instance metadata service", said, remedy];
        node.once_within(Duration::from_millis(400), 3, &said);
    }
}

#[test]
fn a_key_that_is_none_is_refused_before_aws_is_asked_and_never_shown() {
    let cases = [
        ("AKIA\nIOSFODNN7EXAMPLE", SECRET, "", "the access key id holds a space, a line break"),
        (ID, SECRET, "a\nb", "the session token holds a space, a line break"),
        (SECRET, ID, "", "perhaps the id and the secret are swapped"),
        ("wJalrXUtnFEMIxK7MDENGxbPxRfiCYEXAMPLEKEY", ID, "", "they are swapped"),
    ];
    for (id, secret, token, said) in cases {
        let mut node = instance();
        node.hide("wJalrXUtnFEMI");
        node.set("AWS_ACCESS_KEY_ID", id);
        node.set("AWS_SECRET_ACCESS_KEY", secret);
        node.set("AWS_SESSION_TOKEN", token);
        refused(&node, &["--log-level", "trace"], &[said]);
    }
    let mut node = instance();
    node.hide("wJalrXUtnFEMI");
    node.write("secret/aws_access_key_id", SECRET);
    node.write("secret/aws_secret_access_key", ID);
    let directory = node.path("secret");
    refused(&node, &["--aws-credentials-dir", directory.to_str().unwrap()], &["swapped"]);
}

#[test]
fn what_aws_repeats_is_shown_without_secrets() {
    let cases = [
        SECRET.to_owned(),
        SECRET[..20].to_owned(),
        SECRET.replace('/', "%2F"),
        format!("Credential={SECRET}/20261123/eu-west-1"),
    ];
    for repeated in cases {
        let mut node = Node::new();
        node.hide("%2FK7MDENG%2F");
        let fault = Fault::error(
            400,
            "InvalidSignatureException",
            &format!("no such credential: {repeated}\u{1b}[2J"),
        );
        node.aws.fail(Api::Ecr, fault, Times::Always);
        let run = node.once(&[]).expect(3, &["no such credential: "]);
        assert!(!run.err.contains('\u{1b}'), "{}", run.err);
    }
}

#[test]
fn sts_out_of_reach_is_named_with_its_host() {
    let mut node = Node::new();
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    node.set("AWS_ENDPOINT_URL_STS", &format!("http://{unused}"));
    node.set("ECR_NODE_AGENT_ROLE_ARN", ROLE);
    let said = format!("cannot reach STS in eu-west-1 ({unused}): Connection refused");
    node.once_within(Duration::from_secs(1), 4, &[&said]);
}

#[test]
fn a_proxy_that_fails_is_named_without_its_password() {
    let mut node = Node::with(Options { tls: Some(Vec::new()), ..Options::default() });
    node.hide("hunter2");
    node.write("ca.pem", node.aws.ca_pem());
    node.set("AWS_CA_BUNDLE", node.path("ca.pem").to_str().unwrap());
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    node.set("HTTPS_PROXY", &format!("http://user:hunter2@{unused}"));
    let said = format!("through the proxy {unused} (HTTPS_PROXY): Connection refused");
    node.once_within(Duration::from_secs(1), 4, &[&said]);

    // One that refuses the tunnel.
    let proxy = Proxy::start(node.aws.address(), Some(("user", "proxy-password"))).unwrap();
    let address = proxy.url().replace("http://", "");
    node.set("HTTPS_PROXY", &format!("http://user:hunter2@{address}"));
    let said = format!("through the proxy {address} (HTTPS_PROXY)");
    node.once_within(Duration::from_secs(1), 4, &[&said]);

    // One that is none.
    for value in ["\"http://host:1\"", "http://", "socks5://user:hunter2@host"] {
        node.set("HTTPS_PROXY", value);
        let run = node.once(&[]).expect(2, &["HTTPS_PROXY "]);
        assert!(!run.err.contains("region"), "{}", run.err);
    }
}

#[test]
fn a_fifo_blocks_nothing() {
    let fast = |node: &Node, arguments: &[&str], code: i32, said: &str| {
        let run = node.once(&[arguments, &["--timeout", "10m"]].concat()).expect(code, &[said]);
        assert_eq!(node.aws.count(Api::Ecr), 0, "{}", run.err);
    };
    let node = poor();
    fifo(&node.path("secret/aws_access_key_id"));
    let directory = node.path("secret");
    fast(&node, &["--aws-credentials-dir", directory.to_str().unwrap()], 3, "aws_access_key_id is a FIFO");

    let node = poor();
    fifo(&node.path("home/.aws/credentials"));
    fast(&node, &[], 3, "/.aws/credentials is a FIFO");

    let mut node = poor();
    let token = node.path("token");
    fifo(&token);
    node.set("AWS_ROLE_ARN", ROLE);
    node.set("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap());
    fast(&node, &[], 3, "is a FIFO and not a file");

    let mut node = poor();
    let token = node.path("token");
    fifo(&token);
    node.set("AWS_CONTAINER_CREDENTIALS_FULL_URI", &node.aws.url());
    node.set("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.to_str().unwrap());
    fast(&node, &[], 3, "is a FIFO and not a file");

    for variable in ["AWS_CA_BUNDLE", "SSL_CERT_FILE"] {
        let mut node = Node::new();
        fifo(&node.path("ca"));
        node.set(variable, node.path("ca").to_str().unwrap());
        fast(&node, &[], 2, &format!("{variable} names "));
    }
    let mut node = Node::new();
    fifo(&node.path("certificates/ca"));
    node.set("SSL_CERT_DIR", node.path("certificates").to_str().unwrap());
    node.once(&[]).expect(0, &[]);
}

/// A node with two access keys, of which AWS knows the second one only, and a wire between it and AWS.
fn rotating() -> (Node, Wire) {
    let access_keys = vec![("AKIANEWNEWNEWNEWNEW1".to_owned(), "the-new-secret-access-key".to_owned())];
    let mut node = Node::with(Options { access_keys, ..Options::default() }).without_keys();
    let wire = Wire::to(node.aws.port());
    node.set("AWS_ENDPOINT_URL", &wire.url().replace("https://", "http://"));
    (node, wire)
}

#[test]
fn credentials_that_rotate_during_an_attempt_are_used_at_once() {
    let new = "[default]\naws_access_key_id = AKIANEWNEWNEWNEWNEW1\naws_secret_access_key = the-new-secret-access-key\n";
    let (node, wire) = rotating();
    profile(&node, &keys("default"), "");
    wire.silence();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| node.once(&[]));
        while wire.taken() == 0 && !run.is_finished() {
            std::thread::sleep(Duration::from_millis(5));
        }
        profile(&node, new, "");
        wire.speak();
        // What was refused cannot get better: without the change there would be no second attempt.
        run.join().unwrap().expect(0, &["the credentials have changed meanwhile, and are used at once"]);
    });
    assert_eq!(node.aws.count(Api::Ecr), 2);

    // What stays as it is, is not tried again.
    let (node, _wire) = rotating();
    profile(&node, &keys("default"), "");
    node.once(&[]).expect(3, &["does not accept the credentials"]);
    assert_eq!(node.aws.count(Api::Ecr), 1);
}

#[test]
fn shared_files_are_watched_also_where_they_appear_later() {
    let node = poor();
    let agent = node.start(&[]);
    agent.wait_for("no credential source is configured", 1);
    // Neither the directory nor the file was there.
    profile(&node, &keys("default"), "");
    agent.wait_for("fetched an authorization token", 1);
    agent.stop().expect(0, &["refreshing now"]);
}

#[test]
fn a_process_ends_with_the_agent_and_the_agent_says_so() {
    let node = poor();
    let pids = node.path("pids");
    let script = format!("sh -c 'sleep 1000 & echo $! $$ > {}; wait'", pids.display());
    profile(&node, "", &format!("[default]\ncredential_process = {script}\n"));
    let agent = node.start(&[]);
    agent.wait("the process", || std::fs::read_to_string(&pids).is_ok_and(|text| text.ends_with('\n')));
    agent.stop().expect(0, &["killed a program with its child processes", "the credential_process `sh`"]);
    for pid in std::fs::read_to_string(&pids).unwrap().split_whitespace() {
        wait_until_gone(pid);
    }
}

#[test]
fn a_planted_source_does_not_reach_the_terminal() {
    let node = Node::new();
    node.once(&[]).expect(0, &[]);
    let mut document = node.document();
    document["ecr-node-agent"]["entries"][HOST]["source"] = "x\u{1b}[2J\u{202e}".into();
    node.write("kubelet/config.json", &document.to_string());
    let auth_file = node.auth_file();
    for output in ["text", "json"] {
        let run = node.run(&["status", "--output", output, "--auth-file", auth_file.to_str().unwrap()]);
        assert!(!run.out.contains('\u{1b}') && !run.err.contains('\u{1b}'), "{}", run.out);
        assert!(!run.out.contains('\u{202e}'), "{}", run.out);
        let image = format!("{HOST}/app");
        let auth_file = auth_file.to_str().unwrap();
        let run = node.run(&["explain", &image, "--output", output, "--auth-file", auth_file]);
        assert!(run.out.contains("202e") && run.out.contains(HOST), "{}", run.out);
        assert!(!run.out.contains('\u{1b}') && !run.out.contains('\u{202e}'), "{}", run.out);
    }
}

/// Answers every request on a loopback port with an error that repeats the `Authorization` header.
fn repeat_authorization(listener: &TcpListener) {
    while let Ok((mut stream, _)) = listener.accept() {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
        let head: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
        let sent = head.iter().find_map(|line| line.strip_prefix("authorization: ")).unwrap_or_default();
        let body = format!(r#"{{"kind":"Status","message":"nobody is called {sent}"}}"#);
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 400 Bad Request\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        );
        stream.write_all(answer.as_bytes()).ok();
    }
}

#[test]
fn an_api_server_that_repeats_a_short_token_does_not_reveal_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || repeat_authorization(&listener));
    let mut node = Node::new();
    node.hide("sh0rt-t0ken");
    node.write("token", "sh0rt-t0ken\n");
    let printed = r#"{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"sh0rt-t0ken"}}"#;
    node.write("printed", printed);
    let file = |name: &str| node.path(name).display().to_string();
    let users = [
        "{ token: sh0rt-t0ken }".to_owned(),
        format!("{{ tokenFile: {} }}", file("token")),
        format!(
            "{{ exec: {{ apiVersion: client.authentication.k8s.io/v1, command: cat, args: [{}] }} }}",
            file("printed")
        ),
    ];
    node.set("KUBECONFIG", &file("kubeconfig"));
    for user in users {
        let kubeconfig = format!(
            "clusters: [{{ name: c, cluster: {{ server: 'http://{address}' }} }}]\ncontexts: [{{ name: c, context: {{ cluster: c, \
             user: u }} }}]\ncurrent-context: c\nusers: [{{ name: u, user: {user} }}]\n"
        );
        node.write("kubeconfig", &kubeconfig);
        node.once(&["--pull-secret", "team/ecr-creds", "--timeout", "5s"])
            .expect(6, &["nobody is called Bearer …"]);
    }
}
