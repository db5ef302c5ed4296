//! Every source of AWS credentials, through the program; and what is said where there are none.

use crate::node::{HOST, Node};
use ecr_emulator::{Api, Fault, Times};
use std::os::unix::fs::symlink;
use std::time::Duration;

const ID: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

/// A node without any credentials.
fn poor() -> Node {
    Node::new().without_keys()
}

/// A node with the metadata service.
fn instance() -> Node {
    let mut node = poor();
    node.set("AWS_EC2_METADATA_SERVICE_ENDPOINT", &node.aws.url());
    node.unset("AWS_EC2_METADATA_DISABLED");
    node
}

fn profile(node: &mut Node, credentials: &str, config: &str) {
    node.write("home/.aws/credentials", credentials);
    node.write("home/.aws/config", config);
}

#[test]
fn environment_variables() {
    let node = Node::new();
    node.once(&[]).expect(0, &[]);
    assert_eq!(node.aws.calls()[0].access_key, ID);
}

#[test]
fn shared_profile() {
    let mut node = poor();
    node.unset("AWS_REGION");
    let keys = format!("[default]\naws_access_key_id = {ID}\naws_secret_access_key = {SECRET}\n");
    profile(&mut node, &keys, "[default]\nregion = eu-central-1\n[profile other]\nregion = us-west-2\n");
    node.once(&[]).expect(0, &[]);
    assert_eq!(node.aws.calls()[0].region, "eu-central-1");
    // A profile of another name, at other places.
    let (keys, config) = (node.path("home/.aws/credentials"), node.path("home/.aws/config"));
    node.write(
        "home/.aws/credentials",
        &format!("[other]\naws_access_key_id={ID}\naws_secret_access_key={SECRET}\n"),
    );
    node.set("HOME", "/nonexistent");
    node.set("AWS_SHARED_CREDENTIALS_FILE", keys.to_str().unwrap());
    node.set("AWS_CONFIG_FILE", config.to_str().unwrap());
    node.set("AWS_PROFILE", "other");
    node.once(&[]).expect(0, &[]);
    assert_eq!(node.aws.calls()[1].region, "us-west-2");
}

#[test]
fn profile_with_a_role_and_with_a_process() {
    let mut node = poor();
    let keys = format!("[base]\naws_access_key_id = {ID}\naws_secret_access_key = {SECRET}\n");
    let role = "arn:aws:iam::111111111111:role/from-profile";
    let config = format!("[default]\nregion = eu-west-1\nrole_arn = {role}\nsource_profile = base\n");
    profile(&mut node, &keys, &config);
    node.once(&[]).expect(0, &[]);
    assert_eq!(node.aws.calls().last().unwrap().role.as_deref(), Some(role));

    let answer = format!("{{\"Version\":1,\"AccessKeyId\":\"{ID}\",\"SecretAccessKey\":\"{SECRET}\"}}");
    node.write("answer.json", &answer);
    let process = format!("cat {}", node.path("answer.json").display());
    profile(&mut node, "", &format!("[default]\nregion = eu-west-1\ncredential_process = {process}\n"));
    node.once(&[]).expect(0, &[]);
    assert_eq!(node.aws.calls().last().unwrap().access_key, ID);
}

#[test]
fn web_identity() {
    let mut node = poor();
    let role = "arn:aws:iam::111111111111:role/irsa";
    node.write("token", "emulated.web.identity");
    node.set("AWS_ROLE_ARN", role);
    node.set("AWS_WEB_IDENTITY_TOKEN_FILE", node.path("token").to_str().unwrap());
    node.once(&[]).expect(0, &[]);
    assert_eq!(node.aws.calls()[0].api, Api::WebIdentity);
    assert_eq!(node.aws.calls()[1].role.as_deref(), Some(role));

    node.write("token", "somebody.elses.identity");
    node.once(&[]).expect(3, &["does not accept the credentials: InvalidIdentityToken"]);
    let denied = Fault::error(403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity");
    node.aws.fail(Api::WebIdentity, denied, Times::Always);
    node.once(&[]).expect(4, &["access denied", "trust policy must allow this service account"]);
    node.aws.fail(Api::WebIdentity, Fault::Throttle, Times::First(1));
    node.write("token", "emulated.web.identity");
    node.once(&[]).expect(0, &["throttled", "will try again"]);
    // A source that is there and fails ends the search: the next one could be somebody else.
    node.set("AWS_WEB_IDENTITY_TOKEN_FILE", "/nonexistent/token");
    node.once(&[]).expect(3, &["web identity (IRSA): the file in AWS_WEB_IDENTITY_TOKEN_FILE: No such file"]);
}

#[test]
fn container_credentials() {
    let mut node = poor();
    node.set("AWS_CONTAINER_CREDENTIALS_FULL_URI", &format!("{}/v1/credentials", node.aws.url()));
    node.write("token", "emulated-container-authorization");
    node.set("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", node.path("token").to_str().unwrap());
    node.once(&[]).expect(0, &[]);
    assert_eq!(node.aws.count(Api::Container), 1);
    node.aws.fail(Api::Container, Fault::CutOff, Times::Always);
    node.once_within(Duration::from_secs(2), 3, &["container credentials"]);
    node.aws.fail(Api::Container, Fault::Hang, Times::Always);
    node.once(&["--timeout", "200ms"])
        .expect(3, &["the source that was asked did not answer within --timeout"]);
    node.aws.fail(Api::Container, Fault::Forbidden, Times::Always);
    node.once(&[]).expect(3, &["container credentials", "403"]);
    node.aws.fail(Api::Container, Fault::InternalError, Times::First(4));
    node.once(&[]).expect(0, &["will try again"]);
}

#[test]
fn instance_metadata() {
    let mut node = instance();
    node.unset("AWS_REGION");
    node.once(&[]).expect(0, &[]);
    node.assert_latest_token(HOST);
    assert_eq!(node.aws.count(Api::ImdsRegion), 1);
    assert_eq!(node.aws.count(Api::ImdsCredentials), 2);

    // It is not up yet: so it is, a moment later.
    node.aws.fail(Api::ImdsSession, Fault::ServiceUnavailable, Times::First(2));
    node.once(&[]).expect(0, &["will try again"]);
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

    node.write("secret/aws_session_token", "not-the-session\n");
    node.once(&option).expect(3, &["does not accept the credentials"]);
    node.write("secret/..1/aws_secret_access_key", " \n");
    node.once(&option).expect(3, &["aws_secret_access_key` is missing or empty"]);
    std::fs::remove_file(node.path("secret/aws_access_key_id")).unwrap();
    node.once(&option).expect(3, &["aws_access_key_id` is missing or empty"]);
    // No other source is asked when one was named.
    let node = Node::new();
    node.once(&["--aws-credentials-dir", "/nonexistent"]).expect(3, &["/nonexistent"]);
    assert_eq!(node.aws.calls(), []);
}

#[test]
fn a_role_on_top_of_any_source() {
    let node = Node::new();
    let role = "arn:aws:iam::111111111111:role/pull";
    node.once(&["--role-arn", role]).expect(0, &[]);
    assert_eq!(node.aws.calls()[1].role.as_deref(), Some(role));
    assert_eq!(node.document()["ecr-node-agent"]["entries"][HOST]["source"], format!("eu-west-1 as {role}"));

    let node = instance();
    node.once(&["--role-arn", role]).expect(0, &[]);
    assert_eq!(node.aws.calls().last().unwrap().role.as_deref(), Some(role));

    let denied = Fault::error(403, "AccessDenied", "User: u is not authorized to perform: sts:AssumeRole");
    node.aws.fail(Api::AssumeRole, denied, Times::Always);
    node.once(&["--role-arn", role]).expect(4, &["access denied", &format!("sts:AssumeRole on {role}")]);
    node.aws.fail(Api::AssumeRole, Fault::EmptyData, Times::Always);
    node.once(&["--role-arn", role]).expect(4, &["no credentials for the role"]);
}

#[test]
fn without_credentials_every_source_says_why() {
    let node = poor();
    let sources = [
        "environment variables: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not both set",
        "shared profile: ",
        "web identity (IRSA): AWS_WEB_IDENTITY_TOKEN_FILE is not set",
        "container credentials (EKS Pod Identity, ECS): AWS_CONTAINER_CREDENTIALS_FULL_URI is not set",
        "instance metadata: switched off by AWS_EC2_METADATA_DISABLED",
        "--aws-credentials-dir",
    ];
    let run = node.once(&[]).expect(3, &sources);
    assert_eq!(run.err.lines().count(), 1, "{}", run.err);
    assert_eq!(node.aws.calls(), []);

    let mut node = poor();
    node.unset("AWS_REGION");
    node.once(&[]).expect(3, &[&sources[..], &["and no AWS region", "--region"]].concat());
    let mut node = Node::new();
    node.unset("AWS_REGION");
    node.once(&[]).expect(3, &["no AWS region: give --region, set AWS_REGION"]);
}

#[test]
fn a_metadata_service_that_never_answers_is_given_up_within_five_seconds() {
    let mut node = instance();
    node.unset("AWS_REGION");
    node.aws.fail(Api::ImdsSession, Fault::Hang, Times::Always);
    let before = std::time::Instant::now();
    node.once(&["--timeout", "10m"])
        .expect(3, &["instance metadata: nothing answers there", "hop limit of 2", "hostNetwork"]);
    // The default timeout is a minute and this one ten: whatever the machine is busy with, it ended of itself.
    assert!(before.elapsed() < Duration::from_mins(1));
}

#[test]
fn what_the_metadata_service_says_is_told() {
    let cases = [
        (Api::ImdsCredentials, Fault::NotFound, "this instance has no role", "give this node a role"),
        (Api::ImdsSession, Fault::Forbidden, "instance metadata", "--aws-credentials-dir"),
        (Api::ImdsCredentials, Fault::Garbage, "instance metadata", ""),
        (Api::ImdsCredentials, Fault::HugeBody, "instance metadata", ""),
        (Api::ImdsCredentials, Fault::CutOff, "instance metadata", ""),
    ];
    for (api, fault, said, remedy) in cases {
        let node = instance();
        node.aws.fail(api, fault, Times::Always);
        node.once_within(Duration::from_millis(400), 3, &[said, remedy]);
    }
}

#[test]
fn keys_that_fit_no_request_are_refused() {
    let mut node = Node::new();
    node.set("AWS_ACCESS_KEY_ID", "AKIA\nIOSFODNN7EXAMPLE");
    node.once(&[]).expect(3, &["the access key id holds a space, a line break"]);
    let mut node = Node::new();
    node.set("AWS_SESSION_TOKEN", "a\nb");
    node.once(&[]).expect(3, &["the session token holds a space, a line break"]);
    let node = poor();
    node.write("secret/aws_access_key_id", "AKIA IOSFODNN7EXAMPLE");
    node.write("secret/aws_secret_access_key", SECRET);
    let directory = node.path("secret");
    node.once(&["--aws-credentials-dir", directory.to_str().unwrap()])
        .expect(3, &["the access key id holds"]);
}

#[test]
fn an_empty_variable_is_an_unset_one() {
    let mut node = Node::new();
    for name in ["REGION", "ROLE_ARN", "REGISTRY", "AWS_CREDENTIALS_DIR"] {
        node.set(&format!("ECR_NODE_AGENT_{name}"), "");
    }
    node.set("AWS_CA_BUNDLE", "");
    node.once(&[]).expect(0, &[]);
    node.set("AWS_REGION", "");
    node.once(&[]).expect(3, &["no AWS region"]);
    node.set("AWS_REGION", "eu west");
    node.once(&[]).expect(3, &["`eu west` is no AWS region"]);
}
