//! Secrets that cannot be written, and what the agent says then. The auth file is written all the same, and before them.

use super::{NAME, TYPE, World, foreign_data, version};
use crate::cluster::{Api, RbacRule};
use crate::node::{HOST, Run};
use ecr_emulator::Options;
use serde_json::{Value, json};

impl World<'_> {
    /// A run that must end with exit code 6, with the auth file written and the secret unchanged.
    #[track_caller]
    fn refused(&self, messages: &[&str]) -> Run {
        let before = self.secret().as_ref().map(version);
        let run = self.once(&["--timeout", "3s"]).expect(6, messages);
        self.node.assert_latest_token(HOST);
        assert_eq!(self.secret().as_ref().map(version), before);
        run
    }
}

#[test]
fn a_secret_of_another_type_is_left_alone() {
    let Some(world) = World::new() else { return };
    for (kind, data) in [
        ("Opaque", json!({ "password": "aHVudGVyMg==" })),
        ("kubernetes.io/dockercfg", json!({ ".dockercfg": "e30=" })),
        ("kubernetes.io/basic-auth", json!({ "username": "YQ==", "password": "aHVudGVyMg==" })),
    ] {
        world.put(&json!({ "type": kind, "data": data }));
        let object = format!("secret {}", world.named());
        let why = format!("has type {kind}, and a type cannot be changed");
        let fix = format!("kubectl delete secret {NAME} -n {}", world.namespace);
        let run = world.refused(&[&object, &why, &fix]);
        assert!(!run.err.contains("aHVudGVyMg"), "the content of another program's secret is shown");
        world.cluster.api().delete(&world.path()).unwrap();
    }
}

#[test]
fn an_immutable_secret_is_left_alone() {
    let Some(world) = World::new() else { return };
    world.put(&json!({ "type": TYPE, "data": foreign_data(), "immutable": true }));
    world.refused(&["is immutable", NAME, &world.namespace]);
}

#[test]
fn a_missing_namespace_is_an_error() {
    let Some(world) = World::new() else { return };
    // The API server checks rights before it looks for the namespace, so this needs a right in all namespaces.
    world.account.may(RbacRule {
        namespace: None,
        verbs: "get,patch,create",
        resource: "secrets",
        name: None,
    });
    let missing = crate::cluster::unique("missing");
    let run = world.node.once(&["--pull-secret", &format!("{missing}/{NAME}"), "--timeout", "3s"]);
    run.expect(6, &[&format!("there is no namespace {missing}")]);
    world.node.assert_latest_token(HOST);
}

#[test]
fn a_namespace_that_is_being_terminated_is_an_error() {
    let Some(world) = World::new() else { return };
    // No controller removes the namespace's finalizer.
    world.cluster.api().delete(&format!("/api/v1/namespaces/{}", world.namespace)).unwrap();
    world.refused(&[&format!("namespace {} is being terminated", world.namespace)]);
}

/// The rights of an account, whether the secret exists, and the question that `kubectl auth can-i` answers with no.
type Denied = (&'static [&'static str], bool, &'static str);

#[test]
fn a_missing_right_is_named_as_kubectl_asks_for_it() {
    let cases: [Denied; 3] = [
        (&["patch", "create"], false, "get secrets/ecr-creds"),
        (&["get", "patch"], false, "create secrets"),
        (&["get", "create"], true, "patch secrets/ecr-creds"),
    ];
    for (given, there, question) in cases {
        let Some(world) = World::bare(Options::default()) else { return };
        let right =
            |verbs| RbacRule { namespace: Some(&world.namespace), verbs, resource: "secrets", name: None };
        world.grant(&given.iter().map(|verb| right(verb)).collect::<Vec<_>>());
        if there {
            world.put(&json!({ "type": TYPE, "data": foreign_data() }));
        }
        let command = format!("kubectl auth can-i {question} -n {}", world.namespace);
        world.refused(&[&command]);
        // The command agrees, and with that right the agent succeeds.
        let words: Vec<&str> = question.split(' ').collect();
        assert_eq!(world.can_i(&words), "no", "{question}");
        world.account.may(right(words[0]));
        assert_eq!(world.can_i(&words), "yes", "{question}");
        world.once(&[]).expect(0, &[]);
        world.assert_latest(HOST);
    }
}

impl World<'_> {
    /// What `kubectl auth can-i` answers to the agent's account.
    fn can_i(&self, question: &[&str]) -> String {
        let kubeconfig = self.account.kubeconfig_with(&self.token);
        let arguments = [&["auth", "can-i"], question, &["--namespace", &self.namespace]].concat();
        let output = self.cluster.run(&kubeconfig, &arguments, "");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

/// An admission policy that denies all changes of a resource in the namespace of a world.
struct Policy(String);

impl Policy {
    const PLACE: &str = "/apis/admissionregistration.k8s.io/v1";

    fn start(world: &World<'_>, resource: &str, reason: &str) -> Self {
        let name = crate::cluster::unique("denied");
        let policy = json!({
            "metadata": { "name": name },
            "spec": {
                "matchConstraints": {
                    "resourceRules": [{
                        "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"],
                        "resources": [resource],
                    }],
                    "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": world.namespace } },
                },
                "validations": [{ "expression": "false", "message": "ask team-b first", "reason": reason }],
            },
        });
        let binding = json!({
            "metadata": { "name": name },
            "spec": { "policyName": name, "validationActions": ["Deny"] },
        });
        let api = world.cluster.api();
        api.create(&format!("{}/validatingadmissionpolicies", Self::PLACE), &policy).unwrap();
        api.create(&format!("{}/validatingadmissionpolicybindings", Self::PLACE), &binding).unwrap();
        Self(name)
    }

    /// Waits until the API server applies the policy: until a probe is denied.
    fn wait(&self, world: &World<'_>, is_allowed: impl Fn(&Api) -> bool) {
        let start = std::time::Instant::now();
        while is_allowed(world.cluster.api()) {
            assert!(start.elapsed().as_secs() < 60, "policy {} does not hold", self.0);
        }
    }

    fn stop(&self, world: &World<'_>) {
        let api = world.cluster.api();
        api.delete(&format!("{}/validatingadmissionpolicybindings/{}", Self::PLACE, self.0)).unwrap();
        api.delete(&format!("{}/validatingadmissionpolicies/{}", Self::PLACE, self.0)).unwrap();
    }
}

#[test]
fn the_message_of_an_admission_policy_is_passed_on() {
    let Some(world) = World::new() else { return };
    let policy = Policy::start(&world, "secrets", "Forbidden");
    let probe = format!("/api/v1/namespaces/{}/secrets?dryRun=All", world.namespace);
    policy.wait(&world, |api| api.create(&probe, &json!({ "metadata": { "name": "probe" } })).is_ok());
    let run = world.refused(&["ask team-b first"]);
    assert!(!run.err.contains("can-i"), "no right is missing: {}", run.err);
    policy.stop(&world);
}

#[test]
fn the_reason_why_a_service_account_cannot_be_patched_is_passed_on() {
    let Some(world) = World::new() else { return };
    let accounts = format!("/api/v1/namespaces/{}/serviceaccounts", world.namespace);
    let account = json!({ "metadata": { "name": "default" } });
    world.cluster.api().create(&accounts, &account).unwrap();
    world.account.may(RbacRule {
        namespace: Some(&world.namespace),
        verbs: "get,patch",
        resource: "serviceaccounts",
        name: Some("default"),
    });
    // `Invalid` comes with code 422.
    let policy = Policy::start(&world, "serviceaccounts", "Invalid");
    let probe = json!({ "metadata": { "annotations": { "probe": "yes" } } });
    policy.wait(&world, |api| api.patch(&format!("{accounts}/default?dryRun=All"), &probe).is_ok());
    let run = world.once(&["--patch-service-account", "default", "--timeout", "3s"]);
    run.expect(6, &["ask team-b first", "service account"]);
    world.assert_latest(HOST);
    policy.stop(&world);
}

#[test]
fn an_exceeded_quota_is_an_error() {
    let Some(world) = World::new() else { return };
    let path = format!("/api/v1/namespaces/{}/resourcequotas", world.namespace);
    let api = world.cluster.api();
    let hard = json!({ "count/secrets": "0" });
    api.create(&path, &json!({ "metadata": { "name": "none" }, "spec": { "hard": hard } })).unwrap();
    // Usually a controller does this.
    let status = json!({ "status": { "hard": hard, "used": hard } });
    api.patch(&format!("{path}/none/status"), &status).unwrap();
    let start = std::time::Instant::now();
    let probe = format!("/api/v1/namespaces/{}/secrets?dryRun=All", world.namespace);
    while api.create(&probe, &json!({ "metadata": { "name": "probe" } })).is_ok() {
        assert!(start.elapsed().as_secs() < 60, "the quota does not hold");
    }
    let run = world.refused(&["exceeded quota"]);
    assert!(!run.err.contains("can-i"), "no right is missing: {}", run.err);
}

/// A kubeconfig that does not work: its server and its user, and the message that it leads to.
type Broken = (&'static str, fn(&World<'_>) -> (String, Value), &'static str);

#[test]
fn a_kubeconfig_that_does_not_work_is_an_error() {
    let cases: [Broken; 3] = [
        (
            "a made-up token",
            |world| (world.cluster.url(), json!({ "token": "made.up.token" })),
            "Unauthorized",
        ),
        (
            "no such file",
            |world| (world.cluster.url(), json!({ "tokenFile": world.node.path("absent") })),
            "absent",
        ),
        // The emulated AWS speaks no TLS.
        (
            "another server",
            |world| (format!("https://127.0.0.1:{}", world.node.aws.port()), json!({ "token": "a.b.c" })),
            "the API server cannot be reached",
        ),
    ];
    for (what, user, message) in cases {
        let Some(mut world) = World::new() else { return };
        let (url, user) = user(&world);
        let kubeconfig = world.cluster.kubeconfig_at(&crate::cluster::unique("broken"), &url, &user);
        world.node.set("KUBECONFIG", kubeconfig.to_str().unwrap());
        let run = world.refused(&[message]);
        assert!(!run.err.contains("made.up.token"), "{what}: a token is shown");
    }
}

#[test]
fn without_an_api_server_the_auth_file_is_written() {
    let Some(mut world) = World::new() else { return };
    world.node.unset("KUBECONFIG");
    world.refused(&["KUBECONFIG"]);
    world.node.set("KUBECONFIG", world.node.path("absent").to_str().unwrap());
    world.refused(&["absent"]);
}

#[test]
fn no_part_of_a_damaged_kubeconfig_is_shown() {
    let Some(mut world) = World::new() else { return };
    let kubeconfig = |user: &str| {
        format!(
            "clusters:\n- name: c\n  cluster: {{ server: \"https://127.0.0.1:1\" }}\ncontexts:\n- name: c\n  \
             context: {{ cluster: c, user: u }}\ncurrent-context: c\nusers:\n- name: u\n  user:\n    {user}\n"
        )
    };
    let exec = |command: &str| {
        let api = "client.authentication.k8s.io/v1";
        kubeconfig(&format!("exec: {{ apiVersion: {api}, command: sh, args: [\"-c\", \"{command}\"] }}"))
    };
    let cases = [
        (kubeconfig("token: SECRETPASSWORD\n   bad: ["), "/kubeconfig: line "),
        (kubeconfig("token: [SECRETPASSWORD]"), "/kubeconfig: line 11 cannot be parsed"),
        (kubeconfig("SECRETPASSWORD"), "/kubeconfig: line "),
        (
            kubeconfig("token: \"SECRETPASSWORD\\nand more\""),
            "the token is empty or contains invalid characters",
        ),
        (
            kubeconfig("client-certificate-data: SECRETPASSWORD\n    client-key-data: SECRETPASSWORD"),
            "client",
        ),
        (
            kubeconfig("auth-provider: { name: gcp, config: { access-token: SECRETPASSWORD } }"),
            "has an `auth-provider`",
        ),
        (
            exec("echo SECRETPASSWORD | tee /dev/stderr; exit 3"),
            "command `sh` failed: it ended with exit status: 3",
        ),
        (exec("echo SECRETPASSWORD"), "command `sh` failed: it printed no credential"),
    ];
    for (text, message) in cases {
        world.node.write("kubeconfig", &text);
        world.node.set("KUBECONFIG", world.node.path("kubeconfig").to_str().unwrap());
        // A run that shows `SECRETPASSWORD` fails, at any level of the log.
        let run = world.once(&["--timeout", "1s", "--log-level", "trace"]).expect(6, &[message]);
        assert!(!run.err.contains("panicked"), "{}", run.err);
    }
}

#[test]
fn a_certificate_of_another_authority_is_refused() {
    let Some(mut world) = World::new() else { return };
    let kubeconfig = std::fs::read_to_string(world.account.kubeconfig_with(&world.token)).unwrap();
    let mut kubeconfig: Value = serde_json::from_str(&kubeconfig).unwrap();
    kubeconfig["clusters"][0]["cluster"].as_object_mut().unwrap().remove("certificate-authority");
    world.node.write("kubeconfig", &kubeconfig.to_string());
    world.node.set("KUBECONFIG", world.node.path("kubeconfig").to_str().unwrap());
    world.refused(&["certificate"]);
}

#[test]
fn invalid_names_and_contradicting_options_are_usage_errors() {
    let node = crate::node::Node::new();
    let cases: [(&[&str], &str); 12] = [
        (&["--pull-secret", "ecr-creds"], "NAMESPACE/NAME"),
        (&["--pull-secret", "Team/ecr-creds"], "Team"),
        (&["--pull-secret", "team/ecr_creds"], "ecr_creds"),
        (&["--pull-secret", "team/a/b"], "team/a/b"),
        (&["--pull-secret", "team/a", "--pull-secret", "team/a"], "twice"),
        (&["--pull-secret", "team-*/ecr-creds"], "--no-auth-file"),
        (&["--no-auth-file"], "--pull-secret"),
        (&["--no-auth-file", "--auth-file", "/tmp/x", "--pull-secret", "team/a"], "--auth-file"),
        (&["--no-auth-file", "--pull-secret-selector", "ecr=yes"], "--pull-secret-name"),
        (&["--no-auth-file", "--pull-secret-name", "a", "--pull-secret", "team/a"], "--pull-secret-selector"),
        (&["--once", "--patch-service-account", "default"], "--pull-secret"),
        (&["--pull-secret", "team/a", "--patch-service-account", "default"], "--no-auth-file"),
    ];
    for (arguments, message) in cases {
        node.run(arguments).expect(2, &[message]);
    }
}
