//! Pull secrets, against a real API server, with agents that have the documented rights and no others.

mod crowd;
mod deployment;
mod kubeconfig;
mod outages;
mod refusals;
mod rights;
mod writes;

use crate::cluster::{Account, Cluster, RbacRule, Refused, Request, shared};
use crate::needs::{Need, all_here};
use crate::node::{Node, Run, Running};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ecr_emulator::Options;
use serde_json::{Value, json};

const NAME: &str = "ecr-creds";
const TYPE: &str = "kubernetes.io/dockerconfigjson";

/// A node, a namespace, and a service account that may keep the pull secret there, as on a node.
struct World<'a> {
    node: Node,
    cluster: &'a Cluster,
    account: Account<'a>,
    namespace: String,
    token: String,
}

impl World<'static> {
    /// `None` if there is no API server.
    fn new() -> Option<Self> {
        Self::with(Options::default())
    }

    fn with(options: Options) -> Option<Self> {
        let world = Self::bare(options)?;
        world.grant(&node_rights(&world.namespace));
        Some(world)
    }

    /// A world whose account has no rights yet.
    fn bare(options: Options) -> Option<Self> {
        all_here(&[Need::ApiServer]).then(|| Self::on(shared(), options))
    }

    /// A world whose account may do what a Deployment does in namespaces that a pattern or a label finds.
    fn deployed() -> Option<Self> {
        let world = Self::bare(Options::default())?;
        world.grant(&deployment_rights());
        Some(world)
    }
}

impl<'a> World<'a> {
    /// A world in this cluster, whose account has no rights yet.
    fn on(cluster: &'a Cluster, options: Options) -> Self {
        let namespace = cluster.namespace("team");
        let account = cluster.service_account();
        let token = account.token();
        let mut node = Node::with(options);
        // No part of the token may be shown either.
        token.split('.').for_each(|part| node.hide(part));
        node.set("KUBECONFIG", account.kubeconfig_with(&token).to_str().unwrap());
        Self { node, cluster, account, namespace, token }
    }

    fn grant(&self, rules: &[RbacRule<'_>]) {
        for rule in rules {
            self.account.may(*rule);
        }
    }

    /// The secret as the argument of `--pull-secret`.
    fn named(&self) -> String {
        format!("{}/{NAME}", self.namespace)
    }

    fn path(&self) -> String {
        path(&self.namespace)
    }

    /// The secret; `None` if it does not exist.
    fn secret(&self) -> Option<Value> {
        secret(self.cluster, &self.namespace)
    }

    /// Creates the secret as the administrator, before the agent does.
    fn put(&self, secret: &Value) -> Value {
        let path = format!("/api/v1/namespaces/{}/secrets", self.namespace);
        let mut secret = secret.clone();
        secret["metadata"]["name"] = json!(NAME);
        self.cluster.api().create(&path, &secret).unwrap()
    }

    /// Runs `--once` on the node's auth file and the secret, with more arguments.
    fn once(&self, more: &[&str]) -> Run {
        self.node.once(&[&["--pull-secret", &self.named()], more].concat())
    }

    /// Starts the agent of a node.
    fn start(&self, more: &[&str]) -> Running<'_> {
        self.node.start(&[&["--pull-secret", &self.named()], more].concat())
    }

    /// Fails unless the secret holds ECR's latest token, for this host and no other.
    #[track_caller]
    fn assert_latest(&self, host: &str) -> Value {
        let secret = self.secret().expect("the secret does not exist");
        let token = self.node.aws.issued().last().expect("no token was issued").token_base64.clone();
        assert_eq!(config(&secret), json!({ "auths": { host: { "auth": token } } }));
        secret
    }

    /// The agent's requests to the API server.
    fn requests(&self) -> Vec<Request> {
        requests(self.cluster, &self.account)
    }
}

/// The documented rights of a node for one secret.
fn node_rights(namespace: &str) -> Vec<RbacRule<'_>> {
    vec![
        RbacRule { namespace: Some(namespace), verbs: "get,patch", resource: "secrets", name: Some(NAME) },
        RbacRule { namespace: Some(namespace), verbs: "create", resource: "secrets", name: None },
    ]
}

/// The documented rights of a Deployment for namespaces that a pattern or a label finds.
fn deployment_rights() -> Vec<RbacRule<'static>> {
    vec![
        RbacRule { namespace: None, verbs: "list,watch", resource: "namespaces", name: None },
        RbacRule { namespace: None, verbs: "get,list,watch,patch", resource: "secrets", name: Some(NAME) },
        RbacRule { namespace: None, verbs: "create", resource: "secrets", name: None },
    ]
}

fn path(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/secrets/{NAME}")
}

fn secret(cluster: &Cluster, namespace: &str) -> Option<Value> {
    match cluster.api().get(&path(namespace)) {
        Ok(secret) => Some(secret),
        Err(Refused(404, ..)) => None,
        Err(refused) => panic!("{refused:?}"),
    }
}

/// The requests of an account.
fn requests(cluster: &Cluster, account: &Account<'_>) -> Vec<Request> {
    let user = account.user();
    cluster.requests().into_iter().filter(|request| request.user == user).collect()
}

/// The docker config in a secret.
#[track_caller]
fn config(secret: &Value) -> Value {
    let data = secret["data"][".dockerconfigjson"].as_str().expect("no docker config is in the secret");
    serde_json::from_slice(&STANDARD.decode(data).unwrap()).unwrap()
}

/// The UID and the version of an object: both stay the same while no program writes it.
fn version(secret: &Value) -> (String, String) {
    let text = |name: &str| secret["metadata"][name].as_str().unwrap().to_owned();
    (text("uid"), text("resourceVersion"))
}

/// The data of a secret with the docker config of another program.
fn foreign_data() -> Value {
    let config = "{\"auths\":{\"registry.example.com\":{\"auth\":\"dXNlcjpwYXNz\"}}}";
    json!({ ".dockerconfigjson": STANDARD.encode(config) })
}
