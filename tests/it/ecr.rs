//! Asking ECR: which call for which registry, and what becomes of each way in which AWS fails.

use crate::node::{HOST, Node};
use ecr_emulator::proxy::Proxy;
use ecr_emulator::{Api, Fault, Options, Times};
use jiff::SignedDuration;
use std::time::Duration;

const CHINA: &str = "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn";

#[test]
fn the_answer_names_the_default_registry() {
    let cases = [("eu-west-1", HOST), ("cn-north-1", CHINA)];
    for (region, host) in cases {
        let node = Node::new();
        node.once(&["--region", region]).expect(0, &[]);
        node.assert_latest_token(host);
        assert_eq!(node.aws.calls()[0].region, region);
    }
}

#[test]
fn one_call_for_each_pair_of_region_and_role_whatever_the_number_of_registries() {
    let node = Node::new();
    let role = "arn:aws:iam::111111111111:role/pull";
    let registries = [
        HOST.to_owned(),
        "210987654321.dkr.ecr.eu-west-1.amazonaws.com".to_owned(),
        "*.dkr.ecr.us-east-1.amazonaws.com".to_owned(),
        format!("111111111111.dkr.ecr.eu-west-1.amazonaws.com,role={role}"),
        "registry.corp.example,region=eu-west-1".to_owned(),
        "public.ecr.aws".to_owned(),
        "ecr-public.aws.com".to_owned(),
    ];
    let arguments: Vec<&str> = registries.iter().flat_map(|registry| ["--registry", registry]).collect();
    node.once(&arguments).expect(0, &[]);
    let mut calls: Vec<_> =
        node.aws.calls().into_iter().map(|call| (call.api, call.region, call.role)).collect();
    calls.sort_by_key(|call| format!("{call:?}"));
    let call = |api, region: &str, role: Option<&str>| (api, region.to_owned(), role.map(str::to_owned));
    let expected = [
        call(Api::AssumeRole, "eu-west-1", None),
        call(Api::Ecr, "eu-west-1", None),
        call(Api::Ecr, "eu-west-1", Some(role)),
        call(Api::Ecr, "us-east-1", None),
        call(Api::EcrPublic, "us-east-1", None),
    ];
    assert_eq!(calls, expected);

    // Each token stands under the keys of its own source and under no other.
    let document = node.document();
    let token_of =
        |key: &str| document["auths"][key]["auth"].as_str().unwrap_or_else(|| panic!("{key}")).to_owned();
    let keys = [
        (HOST, "eu-west-1", None),
        ("210987654321.dkr.ecr.eu-west-1.amazonaws.com", "eu-west-1", None),
        ("*.dkr.ecr.us-east-1.amazonaws.com", "us-east-1", None),
        ("111111111111.dkr.ecr.eu-west-1.amazonaws.com", "eu-west-1", Some(role)),
        ("registry.corp.example", "eu-west-1", None),
    ];
    for (key, region, role) in keys {
        let issued =
            node.aws.issued().into_iter().find(|issued| issued.token_base64 == token_of(key)).unwrap();
        assert_eq!((issued.region.as_str(), issued.role.as_deref()), (region, role), "{key}");
    }
    assert_eq!(token_of("public.ecr.aws"), token_of("ecr-public.aws.com"));
}

#[test]
fn the_call_goes_to_the_endpoint_that_matches_the_host() {
    let cases = [
        (HOST, "api.ecr.eu-west-1.amazonaws.com:443"),
        ("123456789012.dkr.ecr-fips.us-east-1.amazonaws.com", "api.ecr-fips.us-east-1.amazonaws.com:443"),
        ("123456789012.dkr-ecr.eu-west-1.on.aws", "ecr.eu-west-1.api.aws:443"),
        ("123456789012.dkr-ecr-fips.us-east-1.on.aws", "ecr-fips.us-east-1.api.aws:443"),
        (CHINA, "api.ecr.cn-north-1.amazonaws.com.cn:443"),
        ("public.ecr.aws", "api.ecr-public.us-east-1.amazonaws.com:443"),
    ];
    let (mut node, proxy) =
        Node::behind_a_proxy(&cases.map(|(_, endpoint)| endpoint.trim_end_matches(":443")));
    for (number, (host, endpoint)) in cases.iter().enumerate() {
        node.once(&["--registry", host]).expect(0, &[]);
        node.assert_latest_token(host);
        assert_eq!(proxy.requests()[number], *endpoint, "{host}");
    }

    // FIPS for the default registry, as the SDK's own variables say it.
    node.set("AWS_USE_FIPS_ENDPOINT", "true");
    node.once(&["--region", "us-east-1"]).expect(0, &[]);
    assert_eq!(proxy.requests().last().unwrap(), "api.ecr-fips.us-east-1.amazonaws.com:443");
}

#[test]
fn an_endpoint_of_the_users_own_is_asked_as_it_is() {
    let mut node = Node::new();
    node.unset("AWS_ENDPOINT_URL");
    node.set("AWS_ENDPOINT_URL_ECR", &node.aws.url());
    for host in
        ["123456789012.dkr.ecr-fips.us-east-1.amazonaws.com", "123456789012.dkr-ecr.eu-west-1.on.aws", HOST]
    {
        node.once(&["--registry", host]).expect(0, &[]);
        node.assert_latest_token(host);
    }
}

/// How an endpoint of the user's own may be configured.
#[derive(Debug, Clone, Copy)]
enum Configured {
    Variable,
    VariableOfService,
    Profile,
    ProfileOfService,
}

#[test]
fn an_endpoint_of_the_users_own_wins_over_the_switches_for_every_service() {
    use Configured::{Profile, ProfileOfService, Variable, VariableOfService};
    let role = "arn:aws:iam::111111111111:role/pull";
    let calls: [(&[&str], &[&str]); 3] = [
        (&[], &["ECR"]),
        (&["--registry", "public.ecr.aws"], &["ECR_PUBLIC"]),
        (&["--role-arn", role], &["STS", "ECR"]),
    ];
    let switches = [
        ("AWS_USE_FIPS_ENDPOINT", "use_fips_endpoint"),
        ("AWS_USE_DUALSTACK_ENDPOINT", "use_dualstack_endpoint"),
    ];
    for (arguments, services) in calls {
        for (variable, setting) in switches {
            for is_in_profile in [false, true] {
                for configured in [Variable, VariableOfService, Profile, ProfileOfService] {
                    let mut node = Node::new();
                    let url = node.aws.url();
                    let (mut profile, mut sections) = (vec!["[default]".to_owned()], Vec::new());
                    if !matches!(configured, Variable) {
                        node.unset("AWS_ENDPOINT_URL");
                    }
                    match configured {
                        Variable => {}
                        VariableOfService => {
                            for service in services {
                                node.set(&format!("AWS_ENDPOINT_URL_{service}"), &url);
                            }
                        }
                        Profile => profile.push(format!("endpoint_url = {url}")),
                        ProfileOfService => {
                            profile.push("services = local".to_owned());
                            sections.push("[services local]".to_owned());
                            for service in services {
                                let name = service.to_lowercase();
                                sections.push(format!("{name} =\n  endpoint_url = {url}"));
                            }
                        }
                    }
                    if is_in_profile {
                        profile.push(format!("{setting} = true"));
                    } else {
                        node.set(variable, "true");
                    }
                    node.write("home/.aws/config", &[profile, sections].concat().join("\n"));
                    let run = node.once(arguments);
                    assert_eq!(run.code, 0, "{services:?} {variable} {configured:?}: {}", run.err);
                }
            }
        }
    }
}

#[test]
fn a_switch_that_is_neither_on_nor_off_is_refused() {
    let mut node = Node::new();
    node.unset("AWS_ENDPOINT_URL");
    node.set("AWS_USE_FIPS_ENDPOINT", "yes");
    node.once(&[]).expect(3, &["AWS_USE_FIPS_ENDPOINT is `yes`: expected `true` or `false`"]);
    node.unset("AWS_USE_FIPS_ENDPOINT");
    node.write("home/.aws/config", "[default]\nuse_dualstack_endpoint = 1\n");
    node.once(&[]).expect(3, &["/.aws/config line 2 is `1`"]);
}

#[test]
fn sts_is_asked_in_the_nodes_own_region() {
    let node = Node::new();
    let role = "arn:aws:iam::111111111111:role/pull";
    // The first by name is another one, whose STS may be switched off.
    let far = "123456789012.dkr.ecr.ap-east-1.amazonaws.com";
    node.once(&["--registry", HOST, "--registry", far, "--role-arn", role]).expect(0, &[]);
    let roles = node.aws.calls().into_iter().filter(|call| call.api == Api::AssumeRole);
    assert_eq!(roles.map(|call| call.region).collect::<Vec<_>>(), ["eu-west-1", "eu-west-1"]);
}

#[test]
fn an_endpoint_that_is_no_url_is_refused() {
    for variable in ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_ECR", "AWS_ENDPOINT_URL_STS"] {
        for value in ["h h", "ftp://host", "https://", "https://user:hunter2@host"] {
            let mut node = Node::new();
            node.hide("hunter2");
            node.set(variable, value);
            node.once(&[]).expect(2, &[variable, "is no URL"]);
        }
    }
    let mut node = Node::new();
    node.unset("AWS_ENDPOINT_URL");
    node.hide("hunter2");
    node.write("home/.aws/config", "[default]\nendpoint_url = nowhere\n");
    node.once(&[]).expect(3, &["/.aws/config line 2 is `nowhere`, which is not a valid endpoint"]);
    node.write("home/.aws/config", "[default]\nendpoint_url = https://user:hunter2@host\n");
    node.once(&[]).expect(3, &["a URL with a user in it"]);
}

#[test]
fn a_private_ca_is_trusted_where_it_is_named_and_nowhere_else() {
    let mut node = Node::with(Options { tls: Some(Vec::new()), ..Options::default() });
    node.once_within(Duration::from_secs(5), 4, &["certificate is refused", "AWS_CA_BUNDLE"]);
    node.write("ca/ca.pem", node.aws.ca_pem());
    let (file, directory) = (node.path("ca/ca.pem"), node.path("ca"));
    for (variable, value) in
        [("AWS_CA_BUNDLE", &file), ("SSL_CERT_FILE", &file), ("SSL_CERT_DIR", &directory)]
    {
        node.set(variable, value.to_str().unwrap());
        node.once(&[]).expect(0, &[]);
        node.unset(variable);
    }
    node.write("ca/none.pem", "no certificate");
    let cases = [("ca/none.pem", "holds no certificate"), ("ca/missing.pem", "does not exist")];
    for (path, said) in cases {
        node.set("AWS_CA_BUNDLE", node.path(path).to_str().unwrap());
        node.once(&[]).expect(2, &["AWS_CA_BUNDLE names", said]);
    }
}

#[test]
fn proxies_are_used_as_the_environment_says_and_never_for_the_node_itself() {
    let mut node = Node::new();
    let proxy = Proxy::start(node.aws.address(), Some(("user", "proxy-password"))).unwrap();
    let with_password = proxy.url().replace("http://", "http://user:proxy-password@");
    node.set("HTTP_PROXY", &with_password);
    node.once(&[]).expect(0, &[]);
    assert_eq!(proxy.requests().len(), 1);

    node.set("NO_PROXY", "127.0.0.1");
    node.once(&[]).expect(0, &[]);
    assert_eq!(proxy.requests().len(), 1, "NO_PROXY was not heard");
    node.unset("NO_PROXY");

    node.set("HTTP_PROXY", &proxy.url().replace("http://", "http://user:wrong-password@"));
    let run = node.once(&["--timeout", "1s"]).expect(4, &[]);
    assert!(!run.err.contains("wrong-password"), "{}", run.err);

    // The metadata service is the node's own.
    let mut node = node.without_keys();
    node.set("AWS_EC2_METADATA_SERVICE_ENDPOINT", &node.aws.url());
    node.set("HTTP_PROXY", &with_password);
    node.unset("AWS_EC2_METADATA_DISABLED");
    node.once(&[]).expect(0, &[]);
    assert_eq!(proxy.requests().len(), 2);
}

#[test]
fn every_failure_has_its_exit_code_and_says_what_to_do() {
    let error = |code: &str, message: &str| Fault::error(400, code, message);
    let canonical = "The request signature we calculated does not match the signature you provided.\n\nThe Canonical \
                     String for this request should have been\n'x-amz-security-token:SECRETPASSWORD'";
    let cases = [
        // fault,                                  exit, said
        (Fault::access_denied(), 4, "the caller needs ecr:GetAuthorizationToken"),
        (
            error("UnrecognizedClientException", "The security token is invalid."),
            3,
            "does not accept the credentials",
        ),
        (
            error("ExpiredTokenException", "The security token is expired"),
            3,
            "does not accept the credentials",
        ),
        (error("InvalidSignatureException", canonical), 3, "does not match the signature you provided"),
        (error("InvalidParameterException", "no"), 4, "refused: InvalidParameterException: no"),
        (Fault::EmptyData, 4, "it holds no authorization data"),
        (Fault::NoToken, 4, "it holds no authorization token"),
        (Fault::NoExpiry, 4, "it does not say when the token expires"),
        (Fault::TokenNotBase64, 4, "the authorization token is not base64"),
        (Fault::TokenWithoutColon, 4, "not base64 of `user:password`"),
        (Fault::ExpiredToken, 4, "its token expired 1h ago"),
        (Fault::NoProxyEndpoint, 4, "it names no ECR registry of the region that was asked; give --registry"),
        (
            Fault::EvilProxyEndpoint("https://u:SECRETPASSWORD@evil.example".to_owned()),
            4,
            "it names no ECR registry",
        ),
        (
            Fault::EvilProxyEndpoint("https://evil.example/SECRETPASSWORD".to_owned()),
            4,
            "it names no ECR registry",
        ),
        (Fault::Garbage, 4, "the answer cannot be used: it cannot be read"),
        (Fault::HugeBody, 4, "the answer cannot be used: the one of ECR in eu-west-1 is too long"),
    ];
    for (fault, code, said) in cases {
        let node = Node::with_auth_file("{}");
        node.aws.fail(Api::Ecr, fault.clone(), Times::Always);
        // At once: what cannot get better is not tried again.
        let run = node.once(&["--timeout", "1h"]).expect(code, &[said]);
        assert_eq!(node.aws.count(Api::Ecr), 1, "{fault:?}: {}", run.err);
        let lines = run.err.lines().filter(|line| !line.contains("\"level\":\"INFO\""));
        let warnings = usize::from(matches!(fault, Fault::EvilProxyEndpoint(_)));
        assert!(lines.count() <= 1 + warnings, "one clear line: {}", run.err);
        assert_eq!(std::fs::read_to_string(node.auth_file()).unwrap(), "{}", "{fault:?}");
    }
}

#[test]
fn what_may_get_better_is_tried_again_until_it_does() {
    let faults = [
        Fault::InternalError,
        Fault::ServiceUnavailable,
        Fault::error(400, "ServerException", "try later"),
        Fault::error(400, "SomethingNew", "of which we know nothing"),
        Fault::error(400, "RequestExpired", "clock"),
        Fault::Reset,
        Fault::CutOff,
    ];
    for fault in faults {
        let node = Node::new();
        node.aws.fail(Api::Ecr, fault.clone(), Times::First(2));
        node.once(&[]).expect(0, &["will try again"]);
        assert_eq!(node.aws.count(Api::Ecr), 3, "{fault:?}");
        node.assert_latest_token(HOST);
    }
}

#[test]
fn a_throttled_run_gives_way_to_the_others_before_it_tries_again() {
    let node = Node::new();
    node.aws.fail(Api::Ecr, Fault::Throttle, Times::First(1));
    node.once(&[]).expect(0, &["throttled", "will try again"]);
    let calls = node.aws.calls();
    assert_eq!(calls.len(), 2);
    let waited = calls[1].at.duration_since(calls[0].at);
    // Another failure would be tried again within a second.
    assert!(waited >= SignedDuration::from_millis(2900), "{waited}");
    node.assert_latest_token(HOST);
}

#[test]
fn trying_ends_at_the_timeout_with_what_was_said_last() {
    let cases = [
        (Fault::Throttle, "throttled: ThrottlingException: Rate exceeded"),
        (Fault::ServiceUnavailable, "no answer: HTTP status 503 from ECR in eu-west-1"),
        (Fault::Hang, "no answer: ECR gave no token for "),
        (Fault::SlowDrip, "no answer: ECR gave no token for "),
    ];
    for (fault, said) in cases {
        let node = Node::new();
        node.aws.fail(Api::Ecr, fault.clone(), Times::Always);
        node.once_within(Duration::from_secs(2), 4, &[said]);
    }
    let mut node = Node::new();
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    node.set("AWS_ENDPOINT_URL_ECR", &format!("http://{unused}"));
    let said = format!("cannot reach ECR in eu-west-1 ({unused}): Connection refused");
    node.once_within(Duration::from_secs(1), 4, &[&said]);
}

#[test]
fn only_a_registry_of_ecr_is_written_without_being_named() {
    let hosts = [
        "https://ghcr.io",
        "https://localhost",
        "https://notproxy",
        "https://123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.example",
        "https://public.ecr.aws",
        // A registry of another region, whose token this is not.
        "https://123456789012.dkr.ecr.us-east-1.amazonaws.com",
    ];
    let foreign = r#"{"auths":{"ghcr.io":{"auth":"dXNlcjpwYXNz"}}}"#;
    for host in hosts {
        let node = Node::with_auth_file(foreign);
        node.aws.fail(Api::Ecr, Fault::EvilProxyEndpoint(host.to_owned()), Times::Always);
        let name = host.trim_start_matches("https://");
        node.once(&[]).expect(4, &[&format!("\"host\":\"{name}\""), "give --registry HOST,region=REGION"]);
        assert_eq!(std::fs::read_to_string(node.auth_file()).unwrap(), foreign, "{host}");
        // For a registry that was named it does not matter.
        node.once(&["--registry", "registry.corp.example,region=eu-west-1"]).expect(0, &[]);
        node.assert_latest_token("registry.corp.example");
    }
}

#[test]
fn an_expiry_is_kept_to_the_millisecond_and_not_beyond_a_tokens_life() {
    let node = Node::new();
    node.once(&[]).expect(0, &[]);
    let recorded = |node: &Node| -> jiff::Timestamp {
        let text = node.document()["ecr-node-agent"]["entries"][HOST]["expiresAt"].clone();
        text.as_str().unwrap().parse().unwrap()
    };
    assert_eq!(recorded(&node), node.aws.issued()[0].expires_at);

    for life in [SignedDuration::from_hours(24), SignedDuration::from_hours(24 * 365 * 100)] {
        let node = Node::with(Options { token_lifetime: life, ..Options::default() });
        node.once(&[]).expect(0, &["the answer names an expiry beyond a token's life of 12 hours"]);
        let left = recorded(&node).duration_since(node.aws.now());
        assert!(left <= SignedDuration::from_hours(12), "{left}");
    }
    let node = Node::with(Options { token_lifetime: SignedDuration::from_secs(5), ..Options::default() });
    node.once(&[]).expect(4, &["its token expires in"]);
    assert!(!node.auth_file().exists(), "a token with seconds to live is no success");
}

#[test]
fn a_signature_refused_for_its_time_says_how_far_the_clock_is_off() {
    for (offset, said) in [(30, "behind the server's"), (-30, "ahead of the server's")] {
        let node =
            Node::with(Options { clock_offset: SignedDuration::from_mins(offset), ..Options::default() });
        let run = node.once_within(Duration::from_secs(3), 4, &["refuses the signature for its time", said]);
        // The answer's date is in whole seconds, and the machine may be slow.
        let near = ["30m", "29m 5", "30m "].iter().any(|near| run.err.contains(&format!("clock is {near}")));
        assert!(near, "{}", run.err);
    }
    // At boot the clock is set a moment later.
    let node = Node::with(Options { clock_offset: SignedDuration::from_mins(30), ..Options::default() });
    std::thread::scope(|scope| {
        let run = scope.spawn(|| node.once(&[]));
        // The first request has been answered once there is a second one.
        while node.aws.count(Api::Ecr) < 2 && !run.is_finished() {
            std::thread::sleep(Duration::from_millis(5));
        }
        node.aws.set_clock_offset(SignedDuration::ZERO);
        run.join().unwrap().expect(0, &["refuses the signature for its time"]);
    });
}

#[test]
fn a_public_entry_that_cannot_be_renewed_goes_before_it_expires() {
    let public = "public.ecr.aws";
    let node = Node::with(Options { token_lifetime: SignedDuration::from_mins(9), ..Options::default() });
    node.once(&["--registry", public, "--registry", HOST]).expect(0, &[]);
    node.aws.fail(Api::EcrPublic, Fault::access_denied(), Times::Always);
    node.once(&["--registry", public, "--registry", HOST])
        .expect(4, &["removed", "ecr-public:GetAuthorizationToken"]);
    assert!(node.document()["auths"].get(public).is_none(), "an expired entry is worse than none");
    node.assert_latest_token(HOST);

    // While it is good it stays.
    let node = Node::new();
    node.once(&["--registry", public]).expect(0, &[]);
    node.aws.fail(Api::EcrPublic, Fault::access_denied(), Times::Always);
    node.once(&["--registry", public]).expect(4, &[]);
    node.assert_latest_token(public);
}

#[test]
fn no_log_level_shows_a_token() {
    // The harness looks through every stream of every run; this one says all that it can.
    let mut node = Node::new();
    for level in ["trace", "aws_smithy_runtime=trace,hyper=trace,ecr_node_agent=trace"] {
        for format in ["text", "json"] {
            node.once(&["--log-level", level, "--log-format", format]).expect(0, &[]);
        }
    }
    node.aws.fail(Api::Ecr, Fault::TokenWithoutColon, Times::Always);
    node.once(&["--log-level", "trace"]).expect(4, &[]);
    node.aws.fail(Api::Ecr, Fault::CutOff, Times::Always);
    node.set("ECR_NODE_AGENT_LOG_LEVEL", "trace");
    node.once_within(Duration::from_millis(200), 4, &[]);
}
