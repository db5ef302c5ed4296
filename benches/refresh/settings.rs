//! The settings in which the programs are measured: what they connect to, and whom they trust.
#![expect(unreachable_pub, reason = "a module of a program")]

use crate::authorities;
use crate::cluster::{self, Cluster, RbacRule};
use crate::programs::{
    AGENT, BASELINE, FLOOR, HELPER, PROVIDER, Program, ProgramResult, RENEW, STEPS, Tools,
};
use ecr_emulator::proxy::Proxy;
use ecr_emulator::{Emulator, Options};
use serde_json::json;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread::sleep;
use std::time::Duration;

pub const SYSTEM: &str = "TLS, the system's authorities";
const REGION: &str = "eu-west-1";
/// The registry that the emulator's answers name.
const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
/// What the kubelet sends to a credential provider.
const PROVIDER_REQUEST: &str = r#"{
    "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
    "kind": "CredentialProviderRequest",
    "image": "123456789012.dkr.ecr.eu-west-1.amazonaws.com/app:1"
}"#;
const SECRET: &str = "ecr-creds";
/// How many auth files the agent updates in turn: more than a benchmark has rounds.
const FILES: usize = 200;
/// How long a file must not have changed before the agent does not look for programs that write it.
const OLD: Duration = Duration::from_secs(61);
/// A uid that no user has. `k8s-ecr-login-renew` looks for its kubeconfig in the home directory that `/etc/passwd` names, and in
/// `HOME` only if its uid is not there.
const NOBODY: u32 = 65532;

/// One setting.
pub struct Setting {
    title: &'static str,
    aws: Emulator,
    /// What `AWS_CA_BUNDLE` names; empty over plain HTTP, where no program needs one.
    bundle: String,
    /// With an API server, the programs keep a pull secret there.
    cluster: Option<(Rc<Cluster>, Proxy)>,
}

/// The settings that this machine has all parts for.
pub fn all() -> Result<Vec<Setting>, Box<dyn Error>> {
    let tls = |names: &[&str]| Options {
        tls: Some(names.iter().map(ToString::to_string).collect()),
        ..Options::default()
    };
    let aws = Emulator::start(Options::default())?;
    let mut settings = vec![Setting { title: "plain HTTP", aws, bundle: String::new(), cluster: None }];

    let aws = Emulator::start(tls(&[]))?;
    let bundle = aws.ca_pem().to_owned();
    settings.push(Setting { title: "TLS, one authority", aws, bundle, cluster: None });

    // As on a node, where the certificates of all public authorities are read.
    let system = authorities::system();
    match &system {
        Some(system) => {
            let aws = Emulator::start(tls(&[]))?;
            let bundle = format!("{system}\n{}", aws.ca_pem());
            settings.push(Setting { title: SYSTEM, aws, bundle, cluster: None });
        }
        None => println!("Missing: the system's certificates. TLS is measured with one authority alone."),
    }
    if cluster::is_here() {
        // k8s-ecr-login-renew knows no variable for an endpoint, so all go there through a proxy.
        let aws = Emulator::start(tls(&["api.ecr.eu-west-1.amazonaws.com"]))?;
        let proxy = Proxy::start(aws.address(), None)?;
        let bundle = format!("{}\n{}", system.unwrap_or_default(), aws.ca_pem());
        let cluster = Some((Rc::new(Cluster::start()), proxy));
        settings.push(Setting { title: "a pull secret, the system's authorities", aws, bundle, cluster });
    } else {
        println!("Missing, built by `tests/kubernetes/build`: an API server. No pull secret is measured.");
    }
    Ok(settings)
}

impl Setting {
    pub fn title(&self) -> &'static str {
        self.title
    }

    pub fn programs(&self, tools: &Tools, folder: &Path) -> Result<Vec<Program>, Box<dyn Error>> {
        match &self.cluster {
            Some((cluster, proxy)) => self.keepers_of_a_secret(tools, folder, cluster, proxy),
            None => self.getters_of_a_token(tools, folder),
        }
    }

    /// The variables of all programs.
    fn environment(&self, folder: &Path) -> Result<BTreeMap<&'static str, OsString>, Box<dyn Error>> {
        let variables = self.aws.environment().into_iter().map(|(name, value)| (name, value.into()));
        let mut environment: BTreeMap<&'static str, OsString> = variables.collect();
        environment.insert("HOME", folder.into());
        environment.insert("HOST", HOST.into());
        environment.insert("AWS_EC2_METADATA_DISABLED", "true".into());
        if !self.bundle.is_empty() {
            let file = folder.join("bundle.pem");
            write(&file, &self.bundle)?;
            environment.insert("AWS_CA_BUNDLE", file.into());
        }
        Ok(environment)
    }

    fn getters_of_a_token(&self, tools: &Tools, folder: &Path) -> Result<Vec<Program>, Box<dyn Error>> {
        let environment = self.environment(folder)?;
        let mut programs = Vec::new();
        for name in [AGENT, BASELINE] {
            if let Some(path) = tools.path(name) {
                let file = folder.join(format!("{name}.json"));
                let text = file.to_str().unwrap_or_default().to_owned();
                let arguments = ["--once", "--region", REGION, "--auth-file", &text];
                let result = ProgramResult::File(file.clone(), HOST);
                let program = Program::new(name, path, &arguments, &environment, result);
                programs.push(program.with_preparation(old_file(file)));
            }
        }
        if let Some(path) = tools.path(FLOOR) {
            let file = folder.join("floor.json");
            let text = file.to_str().unwrap_or_default().to_owned();
            let result = ProgramResult::File(file, HOST);
            programs.push(Program::new(FLOOR, path, &[&text], &environment, result));
        }
        if let Some(path) = tools.path(HELPER) {
            let input = folder.join("helper.input");
            write(&input, HOST)?;
            let mut environment = environment.clone();
            // With its cache it would not ask ECR at all.
            environment.insert("AWS_ECR_DISABLE_CACHE", "true".into());
            let result = ProgramResult::Output("\"Username\":\"AWS\"");
            programs.push(Program::new(HELPER, path, &["get"], &environment, result).with_input(input));
        }
        if let Some(path) = tools.path(PROVIDER) {
            let input = folder.join("provider.input");
            write(&input, PROVIDER_REQUEST)?;
            let result = ProgramResult::Output("\"username\":\"AWS\"");
            programs.push(Program::new(PROVIDER, path, &[], &environment, result).with_input(input));
        }
        if tools.path(STEPS).is_some() {
            programs.push(Program::steps(&environment));
        }
        Ok(programs)
    }

    fn keepers_of_a_secret(
        &self,
        tools: &Tools,
        folder: &Path,
        cluster: &Rc<Cluster>,
        proxy: &Proxy,
    ) -> Result<Vec<Program>, Box<dyn Error>> {
        let mut environment = self.environment(folder)?;
        environment.remove("AWS_ENDPOINT_URL");
        environment.insert("HTTPS_PROXY", proxy.url().into());
        environment.insert("NO_PROXY", "127.0.0.1".into());
        environment.insert("DOCKER_SECRET_NAME", SECRET.into());
        let account = cluster.service_account();
        let verbs = "get,list,watch,create,patch,update,delete";
        account.may(RbacRule { namespace: None, verbs, resource: "secrets", name: None });
        fs::create_dir(folder.join(".kube"))?;
        let kubeconfig = folder.join(".kube/config");
        fs::copy(account.kubeconfig(), &kubeconfig)?;
        environment.insert("USER", "nobody".into());
        for path in [folder, &kubeconfig] {
            fs::set_permissions(path, Permissions::from_mode(0o755))?;
        }

        let mut programs = Vec::new();
        for name in [AGENT, BASELINE, RENEW] {
            let Some(path) = tools.path(name) else { continue };
            let namespace = cluster.namespace("kept");
            let secret = format!("/api/v1/namespaces/{namespace}/secrets/{SECRET}");
            let is_new = {
                let (cluster, secret) = (Rc::clone(cluster), secret.clone());
                move || cluster.api().get(&secret).unwrap()["data"][".dockerconfigjson"] != "e30="
            };
            // The programs find an old secret.
            let reset = {
                let (cluster, namespace) = (Rc::clone(cluster), namespace.clone());
                move || {
                    cluster.api().delete(&secret).ok();
                    let old = json!({
                        "metadata": { "name": SECRET }, "type": "kubernetes.io/dockerconfigjson",
                        "data": { ".dockerconfigjson": "e30=" },
                    });
                    cluster.api().create(&format!("/api/v1/namespaces/{namespace}/secrets"), &old).unwrap();
                }
            };
            let mut environment = environment.clone();
            environment.insert("TARGET_NAMESPACE", namespace.clone().into());
            let named = format!("{namespace}/{SECRET}");
            let arguments = ["--once", "--region", REGION, "--no-auth-file", "--pull-secret", &named];
            let arguments = if name == RENEW { &[] } else { &arguments[..] };
            let result = ProgramResult::Secret(Box::new(is_new));
            let program = Program::new(name, path, arguments, &environment, result).with_preparation(reset);
            programs.push(if name == RENEW { program.with_user(NOBODY) } else { program });
        }
        Ok(programs)
    }
}

/// Lets a path name another file before each run, one that was not changed for some time, as on a node: the agent waits for
/// the end of changes. Each file holds the entry of an earlier run, except before the first one.
fn old_file(path: PathBuf) -> impl Fn() {
    let number = Cell::new(0);
    move || {
        let file = |number: usize| path.with_extension(format!("{number}.json"));
        let current = number.replace(number.get() + 1);
        if current == 1 {
            for other in 1..FILES {
                fs::copy(file(0), file(other)).unwrap();
            }
            sleep(OLD);
        }
        fs::remove_file(&path).ok();
        symlink(file(current % FILES), &path).unwrap();
    }
}

#[expect(clippy::disallowed_methods, reason = "no file of a node's")]
fn write(file: &PathBuf, text: &str) -> Result<(), Box<dyn Error>> {
    Ok(fs::write(file, text)?)
}
