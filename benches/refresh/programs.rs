//! The programs that are measured.
#![expect(unreachable_pub, reason = "a module of a program")]

use crate::cost::Cost;
use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub const AGENT: &str = "ecr-node-agent";
pub const BASELINE: &str = "baseline";
pub const FLOOR: &str = "refresh-floor";
pub const HELPER: &str = "docker-credential-ecr-login";
pub const PROVIDER: &str = "ecr-credential-provider";
pub const RENEW: &str = "k8s-ecr-login-renew";
pub const STEPS: &str = "steps";
/// In the order of the tables.
pub const ALL: [&str; 7] = [AGENT, BASELINE, FLOOR, HELPER, PROVIDER, RENEW, STEPS];

/// Where `benches/setup` puts programs.
const TOOLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench-tools/bin");
/// What the `CronJob` does at each run. The last step, `kubectl apply`, is left out: it needs an API server.
const CRONJOB: &str = r#"
password=$(aws ecr get-login-password --region "$AWS_REGION")
kubectl create secret docker-registry ecr-creds --docker-server="$HOST" --docker-username=AWS \
    --docker-password="$password" --dry-run=client -o yaml
"#;

/// The programs that are there.
pub struct Tools {
    paths: BTreeMap<&'static str, PathBuf>,
    titles: BTreeMap<&'static str, String>,
}

impl Tools {
    /// Builds the floor, and looks for what `benches/setup` installs.
    pub fn find(agent: &Path, baseline: Option<&Path>) -> Result<Self, Box<dyn Error>> {
        let mut tools = Self { paths: BTreeMap::new(), titles: BTreeMap::new() };
        tools.add(AGENT, agent.to_owned(), "this agent".to_owned());
        if let Some(baseline) = baseline {
            tools.add(BASELINE, baseline.to_owned(), "the agent of `--baseline`".to_owned());
        }
        tools.add(FLOOR, build_floor()?, "floor: the least possible".to_owned());
        let folder = Path::new(TOOLS);
        let mut missing = Vec::new();
        for name in [HELPER, PROVIDER, RENEW] {
            match fs::read_to_string(folder.join(format!("{name}.version"))) {
                Ok(version) => {
                    tools.add(name, folder.join(name), format!("`{name}` {}", version.trim()));
                }
                Err(_) => missing.push(name),
            }
        }
        match (version("aws", &["--version"], 0), version("kubectl", &["version", "--client"], 2)) {
            (Some(aws), Some(kubectl)) => {
                tools.add(STEPS, "sh".into(), format!("steps of the CronJob: {aws}, kubectl {kubectl}"));
            }
            _ => missing.push("the CronJob's aws and kubectl"),
        }
        if !missing.is_empty() {
            println!("Missing, installed by `benches/setup`: {}.", missing.join(", "));
        }
        Ok(tools)
    }

    fn add(&mut self, name: &'static str, path: PathBuf, title: String) {
        self.paths.insert(name, path);
        self.titles.insert(name, title);
    }

    pub fn title(&self, name: &str) -> String {
        self.titles.get(name).cloned().unwrap_or_default()
    }

    pub fn path(&self, name: &str) -> Option<&Path> {
        self.paths.get(name).map(PathBuf::as_path)
    }
}

/// The word of a program's output that names its version; `None` if it cannot run.
fn version(program: &str, arguments: &[&str], word: usize) -> Option<String> {
    let output = Command::new(Path::new(TOOLS).join(program)).args(arguments).env_clear().output().ok()?;
    let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    text.split_whitespace().nth(word).map(str::to_owned)
}

/// Compiles `benches/floor` with the profile of a release.
fn build_floor() -> Result<PathBuf, Box<dyn Error>> {
    let arguments = ["build", "--quiet", "--release", "--locked", "--package", FLOOR];
    let status =
        Command::new(env!("CARGO")).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).status()?;
    let folder = Path::new(env!("CARGO_BIN_EXE_ecr-node-agent")).parent();
    match folder {
        Some(folder) if status.success() => Ok(folder.join(FLOOR)),
        _ => Err("the floor cannot be built".into()),
    }
}

/// A program with all that one run of it needs.
pub struct Program {
    pub name: &'static str,
    command: Vec<OsString>,
    environment: BTreeMap<&'static str, OsString>,
    /// What it reads from standard input.
    input: PathBuf,
    /// The uid that it runs as; `None` for that of the benchmark.
    user: Option<u32>,
    /// What its run leaves behind.
    result: ProgramResult,
    /// Makes ready for the next run. It is not measured.
    prepare: Option<Box<dyn Fn()>>,
}

/// Where a program's result is, and a text in it.
pub enum ProgramResult {
    Output(&'static str),
    File(PathBuf, &'static str),
    /// A question to the API server.
    Secret(Box<dyn Fn() -> bool>),
}

impl Program {
    pub fn new(
        name: &'static str,
        path: &Path,
        arguments: &[&str],
        environment: &BTreeMap<&'static str, OsString>,
        result: ProgramResult,
    ) -> Self {
        let arguments = arguments.iter().map(OsString::from);
        let command = [path.as_os_str().to_owned()].into_iter().chain(arguments).collect();
        Self {
            name,
            command,
            environment: environment.clone(),
            input: "/dev/null".into(),
            user: None,
            result,
            prepare: None,
        }
    }

    /// The `CronJob`'s steps.
    pub fn steps(environment: &BTreeMap<&'static str, OsString>) -> Self {
        let mut environment = environment.clone();
        environment.insert("PATH", format!("{TOOLS}:/usr/bin:/bin").into());
        let result = ProgramResult::Output(".dockerconfigjson: ey");
        Self::new(STEPS, Path::new("/bin/sh"), &["-euc", CRONJOB], &environment, result)
    }

    pub fn with_input(self, input: PathBuf) -> Self {
        Self { input, ..self }
    }

    pub fn with_user(self, user: u32) -> Self {
        Self { user: Some(user), ..self }
    }

    pub fn with_preparation(self, prepare: impl Fn() + 'static) -> Self {
        Self { prepare: Some(Box::new(prepare)), ..self }
    }

    /// Runs it once, which warms the caches, and sees that it does its work.
    pub fn check(&self) -> Result<(), Box<dyn Error>> {
        self.prepare();
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).env_clear().envs(&self.environment);
        if let Some(user) = self.user {
            command.uid(user);
        }
        let output = command.stdin(Stdio::from(fs::File::open(&self.input)?)).output()?;
        let does_its_work = output.status.success()
            && match &self.result {
                ProgramResult::Output(text) => String::from_utf8_lossy(&output.stdout).contains(text),
                ProgramResult::File(path, text) => fs::read_to_string(path)?.contains(text),
                ProgramResult::Secret(is_new) => is_new(),
            };
        if does_its_work {
            return Ok(());
        }
        let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        Err(format!("{} does not do its work: {}: {out}{err}", self.name, output.status).into())
    }

    pub fn run(&self) -> Result<Cost, Box<dyn Error>> {
        self.prepare();
        Cost::of(&self.command, &self.environment, &self.input, self.user)
    }

    fn prepare(&self) {
        if let Some(prepare) = &self.prepare {
            prepare();
        }
    }
}
