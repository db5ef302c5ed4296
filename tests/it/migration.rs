//! Moving over from the `CronJob`, and back: the commands of `docs/migrate-from-cronjob.md`, against a real API server.
//!
//! Nothing there runs the pods of a `CronJob` or of a Deployment. What they would run, the test runs, with their rights.

use crate::beside::Over;
use crate::cluster::{Api, Cluster, RbacRule, shared};
use crate::needs::{Need, all_here, tell};
use crate::node::{HOST, Node, Running};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

const NAME: &str = "ecr-creds";

/// The page, with a namespace of this test's own.
struct Guide(String);

impl Guide {
    fn read(namespace: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/migrate-from-cronjob.md");
        Self(fs::read_to_string(path).unwrap().replace("team-a", namespace))
    }

    /// The manifest of the `CronJob`.
    fn manifest(&self) -> &str {
        let blocks = self.0.split("```yaml\n").skip(1).map(|block| block.split("```").next().unwrap());
        blocks.into_iter().find(|block| block.contains("kind: CronJob")).unwrap()
    }

    /// What is told to be done for the pull secret between two texts: each command whole.
    fn commands(&self, from: &str, to: &str) -> Vec<String> {
        let way = self.0.split("\n## ").find(|section| section.starts_with("To the pull secret")).unwrap();
        let part = &way[way.find(from).unwrap_or_else(|| panic!("`{from}` is not in the page"))..];
        let part = &part[..part.find(to).unwrap_or_else(|| panic!("`{to}` does not follow `{from}`"))];
        let blocks = part.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap());
        let lines = blocks.collect::<String>().replace("\\\n", " ");
        lines.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }
}

/// What commands run with: `kubectl`, and an `aws` that hands out this password.
struct Shell {
    folder: PathBuf,
    kubeconfig: PathBuf,
}

impl Shell {
    fn new(node: &Node, name: &str, kubeconfig: PathBuf) -> Self {
        let folder = node.path(name);
        fs::create_dir(&folder).unwrap();
        let kubernetes = concat!(env!("CARGO_TARGET_TMPDIR"), "/../kubernetes/kubectl");
        symlink(kubernetes, folder.join("kubectl")).unwrap();
        #[expect(clippy::disallowed_methods, reason = "test code")]
        fs::write(folder.join("aws"), "#!/bin/sh\necho of-the-cronjob\n").unwrap();
        fs::set_permissions(folder.join("aws"), fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder, kubeconfig }
    }

    fn run(&self, script: &str) -> Output {
        Command::new("sh")
            .args(["-ec", script])
            .env_clear()
            .env("PATH", format!("{}:/usr/bin:/bin", self.folder.display()))
            .env("HOME", &self.folder)
            .env("KUBECONFIG", &self.kubeconfig)
            .output()
            .unwrap()
    }

    #[track_caller]
    fn succeed(&self, script: &str) -> String {
        let output = self.run(script);
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// The secret's UID and the credential in it, where it is one that a kubelet can use.
fn held(api: &Api, namespace: &str) -> Option<(String, String)> {
    let secret = api.get(&format!("/api/v1/namespaces/{namespace}/secrets/{NAME}")).ok()?;
    if secret["type"] != "kubernetes.io/dockerconfigjson" {
        return None;
    }
    let config = STANDARD.decode(secret["data"][".dockerconfigjson"].as_str()?).ok()?;
    let config: Value = serde_json::from_slice(&config).ok()?;
    let auth = config["auths"][HOST]["auth"].as_str()?.to_owned();
    Some((secret["metadata"]["uid"].as_str()?.to_owned(), auth))
}

/// Looks at the secret all the while that something happens, and says how often it was missing or no use.
fn gaps(cluster: &Cluster, namespace: &str, meanwhile: impl FnOnce()) -> usize {
    let over = Over::default();
    let (looking, looked) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let end = over.guard();
        let over = &over;
        let watch = scope.spawn(move || {
            let api = Api::new(&cluster.admin());
            let (mut gaps, mut looks) = (0, 0);
            // A slow machine may be busy with the other thing; then some looks come after it.
            while !over.is_set() || looks < 10 {
                gaps += usize::from(held(&api, namespace).is_none());
                looks += 1;
                looking.send(()).ok();
            }
            gaps
        });
        looked.recv().unwrap();
        meanwhile();
        drop(end);
        watch.join().unwrap()
    })
}

struct World {
    cluster: &'static Cluster,
    namespace: String,
    node: Node,
    guide: Guide,
    administrator: Shell,
    cronjob: Shell,
    script: String,
}

impl World {
    /// A namespace whose `CronJob` has run once. `None` where there is no API server.
    fn new() -> Option<Self> {
        if !all_here(&[Need::ApiServer]) {
            return None;
        }
        let cluster = shared();
        let namespace = cluster.namespace("migrates");
        let guide = Guide::read(&namespace);
        cluster.kubectl_with(&["apply", "--filename=-"], guide.manifest());

        let mut node = Node::new();
        let account = cluster.service_account();
        for (verbs, resource, name) in
            [("get,list,watch,patch", "secrets", Some(NAME)), ("create", "secrets", None)]
        {
            account.may(RbacRule { namespace: Some(&namespace), verbs, resource, name });
        }
        account.may(RbacRule {
            namespace: None,
            verbs: "list,watch",
            resource: "namespaces",
            name: Some(&namespace),
        });
        node.set("KUBECONFIG", account.kubeconfig().to_str().unwrap());

        let administrator = Shell::new(&node, "administrator", cluster.admin());
        let refresher = "ecr-creds-refresh";
        let token = cluster.kubectl(&["create", "token", refresher, "--namespace", &namespace]);
        let kubeconfig = cluster.kubeconfig_at(&namespace, &cluster.url(), &json!({ "token": token.trim() }));
        let cronjob = Shell::new(&node, "cronjob", kubeconfig);
        let path = "jsonpath={.spec.jobTemplate.spec.template.spec.containers[0].args[0]}";
        let script =
            cluster.kubectl(&["get", "cronjob", refresher, "--namespace", &namespace, "--output", path]);
        let world = Self { cluster, namespace, node, guide, administrator, cronjob, script };
        // Its role is known to the API server a moment later.
        let start = Instant::now();
        while !world.cronjob.run(&world.script).status.success() {
            assert!(start.elapsed().as_secs() < 60, "the CronJob's own script fails");
        }
        assert!(world.is_the_cronjobs(), "{:?}", world.held());
        Some(world)
    }

    fn held(&self) -> Option<(String, String)> {
        held(self.cluster.api(), &self.namespace)
    }

    fn is_the_cronjobs(&self) -> bool {
        self.held().is_some_and(|(_, auth)| auth == STANDARD.encode("AWS:of-the-cronjob"))
    }

    /// Whether it holds the latest token that ECR handed to the agent.
    fn is_the_agents(&self) -> bool {
        let token = self.node.aws.issued().last().map(|issued| issued.token_base64.clone());
        token.is_some() && self.held().map(|(_, auth)| auth) == token
    }

    /// The Deployment, and its first secret.
    fn deploy(&self) -> Running<'_> {
        let secret = format!("{}/{NAME}", self.namespace);
        let agent = self.node.launch(&[], &["--no-auth-file", "--pull-secret", &secret]);
        agent.wait("the agent to take the secret over", || self.is_the_agents());
        agent
    }

    /// Does what the page says, but for what takes helm, jq or a controller.
    fn follow(&self, from: &str, to: &str) -> String {
        let commands = self.guide.commands(from, to);
        let not_here = |line: &String| {
            ["helm ", " jq ", "scale deployment", " wait "].iter().any(|it| line.contains(it))
        };
        let (left_out, done): (Vec<String>, Vec<String>) = commands.into_iter().partition(not_here);
        assert!(!done.is_empty(), "between `{from}` and `{to}` there is nothing to do");
        tell(&format!("from `{from}`: {} commands run, {} not", done.len(), left_out.len()));
        done.iter().map(|command| self.administrator.succeed(command)).collect()
    }
}

#[test]
fn the_pull_secret_moves_over_in_place_and_back() {
    let Some(world) = World::new() else { return };
    let (uid, _) = world.held().unwrap();
    assert!(world.follow("1. See", "2. Install").contains("kubernetes.io/dockerconfigjson"));

    // The agent takes it over in place: the same object, never missing.
    let mut agent = None;
    let gaps_of_ours = gaps(world.cluster, &world.namespace, || agent = Some(world.deploy()));
    assert_eq!(gaps_of_ours, 0);
    let said = world.follow("3. See", "4. Stop");
    assert!(said.contains(&uid) && said.contains("20"), "{said}");

    // The `CronJob`, in between: it loses against the agent, or its secret does not last.
    let agent = agent.unwrap();
    for _ in 0..3 {
        let job = world.cronjob.run(&world.script);
        let start = Instant::now();
        let said = String::from_utf8_lossy(&job.stderr);
        assert!(job.status.success() || said.contains("already exists"), "{said}");
        agent.wait("the agent to put its own back", || world.is_the_agents());
        tell(&format!("the job: {}, and {:?} later the secret was the agent's", job.status, start.elapsed()));
    }

    // Back: what the CronJob writes then stays.
    world.follow("4. Stop", "5. Delete");
    let (uid, _) = world.held().unwrap();
    agent.stop().expect(0, &[]);
    assert_eq!(world.held().map(|(uid, _)| uid), Some(uid));
    world.follow("### Back", "helm uninstall");
    world.cronjob.succeed(&world.script);
    assert!(world.is_the_cronjobs());

    // Forward again, to the end.
    let (uid, _) = world.held().unwrap();
    let gaps_of_ours = gaps(world.cluster, &world.namespace, || {
        let agent = world.deploy();
        world.follow("4. Stop", "5. Delete");
        world.follow("5. Delete", "### Back");
        agent.stop().expect(0, &[]);
    });
    assert_eq!(gaps_of_ours, 0);
    assert!(world.is_the_agents());
    assert_eq!(world.held().map(|(uid, _)| uid), Some(uid));
    let kinds = "cronjobs,roles,rolebindings,serviceaccounts";
    let left = world.cluster.kubectl(&["get", kinds, "--namespace", &world.namespace, "--output", "name"]);
    assert!(!left.contains("ecr-creds-refresh"), "{left}");
}
