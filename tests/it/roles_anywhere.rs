//! IAM Roles Anywhere: a certificate becomes credentials, and each thing that can be wrong says what to do.

use crate::needs::{self, Need};
use crate::node::{HOST, Node, Run, output};
use ecr_emulator::{Api, Fault, Options, RolesAnywhere, Times};
use jiff::SignedDuration;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P384_SHA384, SignatureAlgorithm,
};
use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::process::Command;

const ANCHOR: &str =
    "arn:aws:rolesanywhere:eu-west-1:123456789012:trust-anchor/11111111-2222-3333-4444-555555555555";
const PROFILE: &str =
    "arn:aws:rolesanywhere:eu-west-1:123456789012:profile/66666666-7777-8888-9999-000000000000";
const ROLE: &str = "arn:aws:iam::123456789012:role/nodes";

/// A certificate authority.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// A root.
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = Self::params(name);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A CA below this one.
    fn below(&self, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = Self::params(name);
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params
    }

    /// A certificate as the kubelet's, and its key.
    fn issue(&self, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        self.issue_for(&rcgen::PKCS_ECDSA_P256_SHA256, change)
    }

    fn issue_for(
        &self,
        algorithm: &'static SignatureAlgorithm,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (String, String) {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, "system:node:node-1");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

fn known(authority: &Authority) -> RolesAnywhere {
    RolesAnywhere {
        trust_anchor: ANCHOR.to_owned(),
        certificates: authority.pem.clone(),
        profile: PROFILE.to_owned(),
        roles: vec![ROLE.to_owned()],
        accepts_session_name: false,
    }
}

/// A node outside of AWS: without keys, region and metadata service.
fn outside(options: Options) -> Node {
    let mut node = Node::with(options).without_keys();
    node.unset("AWS_REGION");
    node
}

fn anchored(authority: &Authority) -> Node {
    outside(Options { roles_anywhere: Some(known(authority)), ..Options::default() })
}

fn option(node: &Node) -> String {
    let pki = node.path("pki/kubelet-client-current.pem");
    format!("anchor={ANCHOR},profile={PROFILE},certificate={},role={ROLE}", pki.display())
}

/// The kubelet's file: the certificate, and then its key.
fn join(node: &Node, (certificate, key): &(String, String)) {
    node.write("pki/kubelet-client-current.pem", &format!("{certificate}{key}"));
}

fn once(node: &Node, more: &[&str]) -> Run {
    node.once(&[&["--roles-anywhere", &option(node)], more].concat())
}

#[test]
fn the_kubelets_certificate_becomes_a_token() {
    let authority = Authority::new("kubernetes");
    let mut node = anchored(&authority);
    join(&node, &authority.issue(|_| {}));
    let said =
        ["--roles-anywhere with the certificate ", "role arn:aws:sts::123456789012:assumed-role/nodes/"];
    once(&node, &[]).expect(0, &said);
    node.assert_latest_token(HOST);
    // The anchor's region is asked, where no other is configured.
    let calls: Vec<_> = node.aws.calls().into_iter().map(|call| (call.api, call.role)).collect();
    assert_eq!(calls, [(Api::RolesAnywhere, None), (Api::Ecr, Some(ROLE.to_owned()))]);
    assert_eq!(node.aws.calls()[1].region, "eu-west-1");

    // Other sources are configured, and are not asked.
    node.set("AWS_ACCESS_KEY_ID", "AKIAOTHEROTHEROTHER1");
    node.set("AWS_SECRET_ACCESS_KEY", "the-secret-of-another-source");
    node.set("AWS_REGION", "us-east-1");
    node.set("ECR_NODE_AGENT_ROLES_ANYWHERE", &option(&node));
    // An endpoint behind a gateway has a path, which is signed like the rest.
    node.set("AWS_ENDPOINT_URL_ROLESANYWHERE", &format!("{}/gateway/aws", node.aws.url()));
    let role = "arn:aws:iam::111111111111:role/pull";
    node.once(&["--role-arn", role]).expect(0, &[]);
    assert_eq!(node.aws.calls().last().unwrap().role.as_deref(), Some(role));
    assert_eq!(node.aws.calls().last().unwrap().region, "us-east-1");
}

#[test]
fn certificates_of_other_kinds_and_their_chains_are_taken() {
    let root = Authority::new("root");
    let below = root.below("below");
    let node = anchored(&root);
    let (certificate, key) = below.issue(|_| {});
    // The chain, with the root, which is not sent; key and certificate in two files.
    node.write("pki/chain.pem", &format!("{certificate}{}{}", below.pem, root.pem));
    node.write("pki/key.pem", &key);
    let option = format!(
        "anchor={ANCHOR},profile={PROFILE},certificate={},key={},role={ROLE}",
        node.path("pki/chain.pem").display(),
        node.path("pki/key.pem").display()
    );
    node.once(&["--roles-anywhere", &option]).expect(0, &[]);
    node.write("pki/chain.pem", &certificate);
    node.once(&["--roles-anywhere", &option])
        .expect(3, &["Untrusted signing certificate", "issued by `CN=below`"]);

    // Recorded RSA keys, of which rcgen makes none here: the signature is right, the anchor another one.
    let vectors: serde_json::Value =
        serde_json::from_str(include_str!("../vectors/rolesanywhere.json")).unwrap();
    for vector in vectors["vectors"].as_array().unwrap() {
        if !vector["name"].as_str().unwrap().starts_with("rsa") {
            continue;
        }
        let known = RolesAnywhere {
            certificates: vectors["trust_anchor_pem"].as_str().unwrap().to_owned(),
            ..known(&root)
        };
        let node = outside(Options { roles_anywhere: Some(known), ..Options::default() });
        let text = |name: &str| vector[name].as_str().unwrap().to_owned();
        join(&node, &(text("certificate_pem"), text("private_key_pem")));
        once(&node, &[]).expect(0, &[]);
    }
}

#[test]
fn what_is_wrong_with_the_files_is_said_before_aws_is_asked() {
    let authority = Authority::new("kubernetes");
    let year = |year| rcgen::date_time_ymd(year, 1, 1);
    let (good, other) = (authority.issue(|_| {}), authority.issue(|_| {}));
    let p384 = authority.issue_for(&PKCS_ECDSA_P384_SHA384, |_| {});
    let expired = authority.issue(|params| params.not_after = year(2020));
    let early = authority.issue(|params| params.not_before = year(2090));
    let text = |text: &str| (text.to_owned(), String::new());
    // What is wrong, whether another attempt may succeed, and what is said.
    let cases = [
        (None, true, "does not exist; the kubelet writes it when it has joined the cluster"),
        (Some(text("")), true, "the certificate file is empty or broken off: perhaps it is being written"),
        (Some(text(&good.0[..200])), true, "the certificate file is empty or broken off"),
        (Some(text("no certificate")), false, "holds no certificate in PEM form"),
        (Some(text(&good.0)), false, "holds no private key in PEM form"),
        (Some(p384), false, "expected ECDSA P-256, or RSA of 2048 to 4096 bits"),
        (Some((good.0.clone(), other.1)), true, "the private key is not that of the certificate"),
        (
            Some(expired),
            true,
            "the certificate expired at 2020-01-01T00:00:00Z, or this node's clock is wrong",
        ),
        (Some(early), true, "the certificate is not valid before 2090-01-01T00:00:00Z"),
    ];
    for (files, passing, said) in cases {
        let node = anchored(&authority);
        if let Some(files) = &files {
            join(&node, files);
        }
        let run = once(&node, &["--timeout", "1500ms"]);
        let run = run.expect(3, &["--roles-anywhere", "pki/kubelet-client-current.pem", said]);
        assert_eq!(node.aws.calls(), [], "{}", run.err);
        assert_eq!(run.err.contains("will try again"), passing, "{}", run.err);
    }
}

#[test]
fn a_certificate_that_may_not_be_read_is_said_so() {
    let authority = Authority::new("kubernetes");
    let node = anchored(&authority);
    join(&node, &authority.issue(|_| {}));
    let path = node.path("pki/kubelet-client-current.pem");
    std::fs::set_permissions(&path, Permissions::from_mode(0o000)).unwrap();
    let auth_file = node.auth_file();
    let option = option(&node);
    let arguments = ["--once", "--auth-file", auth_file.to_str().unwrap(), "--roles-anywhere", &option];
    let wrapper: &[&str] = if nix::unistd::geteuid().is_root() {
        chown(&path, Some(1000), None).unwrap();
        &["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]
    } else {
        &[]
    };
    let output = output(&mut node.command(wrapper, &arguments));
    let said = [
        "cannot be read by this program, which runs as uid ",
        "mount its directory into the agent's container",
    ];
    node.checked(&output).expect(3, &said);
}

/// What is different at AWS.
type Change = fn(&mut RolesAnywhere);
/// What is different in a certificate.
type Weaken = fn(&mut CertificateParams);

#[test]
fn each_refusal_of_aws_says_what_to_do() {
    let authority = Authority::new("kubernetes");
    let denied = |message: &str| Fault::error(403, "AccessDeniedException", message);
    let cases = [
        (denied("Invalid signature"), "a proxy on the way has changed the request"),
        (denied("Certificate revoked"), "the certificate is on a revocation list"),
        (
            denied("Unable to assume role for ARN"),
            "sts:AssumeRole, sts:TagSession and sts:SetSourceIdentity, with conditions that this certificate meets \
             (`O=system:nodes, CN=system:node:node-1`",
        ),
        (
            denied("Not authorized to set roleSessionName"),
            "set acceptRoleSessionName in the profile arn:aws:rolesanywhere:",
        ),
    ];
    for (fault, said) in cases {
        let node = anchored(&authority);
        join(&node, &authority.issue(|_| {}));
        node.aws.fail(Api::RolesAnywhere, fault, Times::Always);
        let run =
            once(&node, &["--timeout", "1h"]).expect(3, &["--roles-anywhere", "AccessDeniedException", said]);
        assert_eq!(node.aws.count(Api::Ecr), 0, "{}", run.err);
        assert_eq!(
            node.aws.count(Api::RolesAnywhere),
            1,
            "what cannot get better is not tried again: {}",
            run.err
        );
    }

    // The same, found by the emulator itself.
    let cases: [(Change, &str); 4] = [
        (|known| known.trust_anchor.push('0'), "Specified Trust Anchor wasn't found; check the trust anchor"),
        (|known| known.profile.push('0'), "Invalid or empty profile provided; check the trust anchor"),
        (|known| known.roles.clear(), "Requested Role isn't one of those listed in the Profile"),
        (
            |known| known.certificates = Authority::new("another").pem,
            "issued by `CN=kubernetes`: register that CA",
        ),
    ];
    for (change, said) in cases {
        let mut roles_anywhere = known(&authority);
        change(&mut roles_anywhere);
        let node = outside(Options { roles_anywhere: Some(roles_anywhere), ..Options::default() });
        join(&node, &authority.issue(|_| {}));
        once(&node, &[]).expect(3, &[said, ANCHOR]);
    }
    let cases: [(Weaken, &str); 2] = [
        (
            |params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment],
            "its key usage has no digitalSignature",
        ),
        (|params| params.distinguished_name = DistinguishedName::new(), "its subject is empty"),
    ];
    for (weaken, said) in cases {
        let node = anchored(&authority);
        join(&node, &authority.issue(weaken));
        once(&node, &[]).expect(3, &["Untrusted certificate. Insufficient certificate", said]);
    }
}

#[test]
fn what_may_pass_is_tried_again_as_for_sts() {
    let authority = Authority::new("kubernetes");
    for fault in [Fault::Throttle, Fault::InternalError, Fault::ServiceUnavailable, Fault::CutOff] {
        let node = anchored(&authority);
        join(&node, &authority.issue(|_| {}));
        node.aws.fail(Api::RolesAnywhere, fault.clone(), Times::First(1));
        once(&node, &[]).expect(0, &["will try again", "IAM Roles Anywhere"]);
        assert_eq!(node.aws.count(Api::RolesAnywhere), 2, "{fault:?}");
    }
    let mut node = anchored(&authority);
    join(&node, &authority.issue(|_| {}));
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    node.set("AWS_ENDPOINT_URL_ROLESANYWHERE", &format!("http://{unused}"));
    let said = format!("cannot reach IAM Roles Anywhere in eu-west-1 ({unused}): Connection refused");
    once(&node, &["--timeout", "1s"]).expect(3, &[&said]);

    // A wrong clock looks like a wrong signature: only the answer's date tells.
    for (offset, said) in [(30, "behind the server's"), (-30, "ahead of the server's")] {
        let options = Options {
            clock_offset: SignedDuration::from_mins(offset),
            roles_anywhere: Some(known(&authority)),
            ..Options::default()
        };
        let node = outside(options);
        join(&node, &authority.issue(|_| {}));
        let run =
            once(&node, &["--timeout", "2s"]).expect(3, &["AWS refuses the signature for its time", said]);
        assert!(run.err.contains("will try again"), "{}", run.err);
    }
}

#[test]
fn answers_that_hold_no_credentials_are_refused() {
    let authority = Authority::new("kubernetes");
    for fault in [Fault::EmptyData, Fault::Garbage, Fault::HugeBody] {
        let node = anchored(&authority);
        join(&node, &authority.issue(|_| {}));
        node.aws.fail(Api::RolesAnywhere, fault.clone(), Times::Always);
        once(&node, &[]).expect(3, &["--roles-anywhere", "the answer cannot be used"]);
    }
}

/// Replaces the kubelet's file as the kubelet does: a new dated file; the link is removed, and then renamed into place. Its
/// target is absolute.
fn rotate(node: &Node, name: &str, files: &(String, String)) {
    node.write(&format!("pki/{name}"), &format!("{}{}", files.0, files.1));
    let link = node.path("pki/kubelet-client-current.pem");
    // On the first boot there is none.
    std::fs::remove_file(&link).ok();
    let new = node.path("pki/kubelet-client-updated.pem");
    symlink(node.path("pki").join(name), &new).unwrap();
    std::fs::rename(new, link).unwrap();
}

#[test]
fn an_agent_waits_for_the_kubelet_to_join_and_follows_its_rotations() {
    let authority = Authority::new("kubernetes");
    let node = anchored(&authority);
    let option = option(&node);
    let agent = node.start(&["--roles-anywhere", &option]);
    agent.wait_for("the kubelet writes it when it has joined the cluster", 1);
    // Neither the directory nor the file was there.
    let first = authority.issue(|_| {});
    std::fs::create_dir(node.path("pki")).unwrap();
    rotate(&node, "first.pem", &first);
    agent.wait_for("fetched an authorization token", 1);

    // A certificate that is refused, and after it a good one: at once, and not at the end of a pause.
    let expired = authority.issue(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    rotate(&node, "second.pem", &expired);
    agent.signal(nix::sys::signal::Signal::SIGHUP);
    agent.wait_for("the certificate expired at", 1);
    rotate(&node, "third.pem", &authority.issue(|_| {}));
    agent.wait_for("fetched an authorization token", 2);
    agent.stop().expect(0, &[]);
}

#[test]
fn the_options_that_name_a_source_exclude_each_other() {
    let node = Node::new();
    let option = option(&node);
    node.once(&["--roles-anywhere", &option, "--aws-credentials-dir", "/x"])
        .expect(2, &["--aws-credentials-dir and --roles-anywhere are two credential sources"]);
    node.once(&["--roles-anywhere", "anchor=x"]).expect(2, &["`role=` is missing at the end"]);
}

/// AWS's own client is an independent check of the emulator.
#[test]
fn the_emulator_serves_the_signing_helper_of_aws() {
    if !needs::all_here(&[Need::SigningHelper]) {
        return;
    }
    let helper = needs::found("rolesanywhere-credential-helper").unwrap();
    let authority = Authority::new("kubernetes");
    let node = anchored(&authority);
    let (certificate, key) = authority.issue(|_| {});
    node.write("pki/certificate.pem", &certificate);
    node.write("pki/key.pem", &key);
    let path = |name: &str| node.path("pki").join(name).display().to_string();
    let credentials = |anchor: &str| {
        let mut command = Command::new(&helper);
        command.args(["credential-process", "--trust-anchor-arn", anchor, "--profile-arn", PROFILE]);
        command.args(["--role-arn", ROLE, "--endpoint", &node.aws.url(), "--region", "eu-west-1"]);
        command.args(["--certificate", &path("certificate.pem"), "--private-key", &path("key.pem")]);
        command.env_clear().env("HOME", node.path("home")).output().unwrap()
    };
    let output = credentials(ANCHOR);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(answer["AccessKeyId"].as_str().unwrap().starts_with("ASIA"), "{answer}");
    assert_eq!(node.aws.count(Api::RolesAnywhere), 1);
    let other = ANCHOR.replace("555555555555", "555555555556");
    assert!(!credentials(&other).status.success(), "another anchor was accepted");

    // And the other way round: the agent runs it as a `credential_process`.
    let config = format!(
        "[default]\nregion = eu-west-1\ncredential_process = {} credential-process --trust-anchor-arn {ANCHOR} --profile-arn \
         {PROFILE} --role-arn {ROLE} --endpoint {} --region eu-west-1 --certificate {} --private-key {}\n",
        helper.display(),
        node.aws.url(),
        path("certificate.pem"),
        path("key.pem")
    );
    node.write("home/.aws/config", &config);
    node.once(&[]).expect(0, &["the credential_process `"]);
}
