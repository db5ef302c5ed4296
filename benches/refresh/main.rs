//! What one refresh costs, against the steps of the `CronJob` that it replaces.
//!
//! Both sides ask the same emulator, by turns, in an environment that is the same and holds nothing else. Figures are
//! the kernel's own account of each run's whole process tree. No time is asserted: a target that is missed is said,
//! and the exit code stays 0. `README.md` beside this file has the commands, the rules and a table.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the table is what this program is for")]

mod cost;

use clap::Parser as _;
use cost::{Cost, at_most, median, spread};
use ecr_emulator::{Emulator, Options};
use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use tempfile::TempDir;

/// The targets: how many times less than the `CronJob`'s steps, and how much at most.
const WALL_TIMES: f64 = 40.0;
const CPU_TIMES: f64 = 50.0;
const PEAK_MIB: f64 = 12.0;
const SIZE_MB: f64 = 13.0;

const REGION: &str = "eu-west-1";
/// The registry that the emulator's answers name.
const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
/// What the `CronJob` does at each run, but for the last step: `kubectl apply` needs an API server.
const CRONJOB: &str = r#"
password=$(aws ecr get-login-password --region "$AWS_REGION")
kubectl create secret docker-registry ecr-creds --docker-server="$HOST" --docker-username=AWS \
    --docker-password="$password" --dry-run=client -o yaml >"$HOME/secret.yaml"
"#;
/// Where `benches/setup` puts the reference programs.
const TOOLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench-tools/bin");
/// Where distributions keep the certificates of all public authorities.
const SYSTEM_BUNDLES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
];

/// Measures one refresh of the agent against `aws ecr get-login-password` and `kubectl create secret`.
#[derive(Debug, clap::Parser)]
struct Arguments {
    /// How often to run the agent.
    #[arg(long, value_name = "N", default_value = "20", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// How often to run the `CronJob`'s steps.
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    reference_rounds: u32,
    /// The agent to measure. [default: the one that cargo has just built]
    #[arg(long, value_name = "PATH", default_value = env!("CARGO_BIN_EXE_ecr-node-agent"), hide_default_value = true)]
    agent: PathBuf,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
    /// Runs a command and prints what it cost; see [`Cost::of`].
    #[arg(long, hide = true, num_args = 1.., allow_hyphen_values = true, value_name = "COMMAND")]
    cost_of: Vec<OsString>,
}

/// The parts of the world that both sides share.
struct World {
    title: &'static str,
    aws: Emulator,
    /// What `AWS_CA_BUNDLE` names; without one, programs load what they load by themselves.
    bundle: Option<String>,
}

/// One side's way to do a refresh.
struct Side {
    command: Vec<OsString>,
    environment: BTreeMap<&'static str, OsString>,
    /// A file that each run writes, and a text that shows that it did its work.
    result: PathBuf,
    shows: &'static str,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    cost::measured_or(&arguments.cost_of, || run(&arguments))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let path = search_path()?;
    let reference = reference_programs(&path);
    match &reference {
        Ok(versions) => println!("CronJob's steps: {versions}."),
        Err(missing) => println!("Not found: {missing}; `benches/setup` installs it. The agent runs alone."),
    }
    let cores = std::thread::available_parallelism()?;
    let (ours, theirs) = (arguments.rounds, arguments.reference_rounds);
    println!("{cores} cores; {ours} runs of the agent, {theirs} of the steps; median (least to most).\n");

    let mut rows = vec![["", "agent", "CronJob's steps", "ratio", "target"].map(str::to_owned)];
    for world in worlds()? {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let agent = world.agent(&arguments.agent, &path, &home)?;
        let cronjob = world.cronjob(&path, &home)?;
        agent.check()?;
        if reference.is_ok() {
            cronjob.check()?;
        }
        let rounds = arguments.rounds.max(arguments.reference_rounds);
        for round in 0..rounds {
            // Spreads `n` runs evenly over all rounds, so that neither side has a quieter machine.
            let is_due = |n| (round + 1) * n / rounds > round * n / rounds;
            if is_due(arguments.rounds) {
                ours.push(agent.run()?);
            }
            if reference.is_ok() && is_due(arguments.reference_rounds) {
                theirs.push(cronjob.run()?);
            }
        }
        rows.extend(world_rows(world.title, &ours, &theirs));
    }
    let megabytes = f64::from(u32::try_from(fs::metadata(&arguments.agent)?.len())?) / 1e6;
    let size = format!("{megabytes:.2} MB");
    let target = at_most(SIZE_MB, "MB", megabytes);
    rows.push(["stripped binary", &size, "", "", &target].map(str::to_owned));
    print!("{}", table(&rows));
    Ok(())
}

/// `benches/setup`'s programs go before those of the caller's `PATH`.
fn search_path() -> Result<OsString, Box<dyn Error>> {
    #[expect(clippy::disallowed_methods, reason = "programs are found by it")]
    let path = std::env::var_os("PATH").unwrap_or_default();
    Ok(std::env::join_paths([PathBuf::from(TOOLS)].into_iter().chain(std::env::split_paths(&path)))?)
}

/// The versions of the reference programs, or the names of those that are not there.
fn reference_programs(path: &OsStr) -> Result<String, String> {
    let words = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).env_clear().env("PATH", path).output().ok()?;
        let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
        Some(text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    };
    let aws = words("aws", &["--version"]);
    // `Client Version: v1.35.2`, and more lines.
    let kubectl = words("kubectl", &["version", "--client"]).and_then(|words| words.into_iter().nth(2));
    match (aws, kubectl) {
        // `aws-cli/1.46.3 Python/3.11.7`, and the system's name.
        (Some(aws), Some(kubectl)) => Ok(format!("{}, kubectl {kubectl}", aws[..aws.len().min(2)].join(" "))),
        (None, Some(_)) => Err("aws".to_owned()),
        (Some(_), None) => Err("kubectl".to_owned()),
        (None, None) => Err("aws and kubectl".to_owned()),
    }
}

fn worlds() -> Result<Vec<World>, Box<dyn Error>> {
    let start = |title, tls| Emulator::start(Options { tls, ..Options::default() }).map(|aws| (title, aws));
    let (title, aws) = start("plain HTTP", None)?;
    let mut worlds = vec![World { title, aws, bundle: None }];

    let (title, aws) = start("TLS, one authority", Some(Vec::new()))?;
    let bundle = Some(aws.ca_pem().to_owned());
    worlds.push(World { title, aws, bundle });

    // As on a node, where the public authorities' certificates are loaded too.
    match SYSTEM_BUNDLES.iter().find_map(|path| fs::read_to_string(path).ok()) {
        Some(system) => {
            let (title, aws) = start("TLS, the system's authorities", Some(Vec::new()))?;
            let bundle = Some(format!("{system}\n{}", aws.ca_pem()));
            worlds.push(World { title, aws, bundle });
        }
        None => println!("Not found: the system's certificates. TLS is measured with one authority alone."),
    }
    Ok(worlds)
}

impl World {
    fn agent(&self, program: &Path, path: &OsStr, home: &TempDir) -> Result<Side, Box<dyn Error>> {
        let result = home.path().join("config.json");
        let options = ["--once", "--region", REGION, "--auth-file"].map(OsString::from);
        let command = [program.into()].into_iter().chain(options).chain([result.clone().into()]).collect();
        Ok(Side { command, environment: self.environment(path, home)?, result, shows: HOST })
    }

    fn cronjob(&self, path: &OsStr, home: &TempDir) -> Result<Side, Box<dyn Error>> {
        let result = home.path().join("secret.yaml");
        let command = ["sh", "-euc", CRONJOB].map(OsString::from).to_vec();
        let environment = self.environment(path, home)?;
        Ok(Side { command, environment, result, shows: ".dockerconfigjson: ey" })
    }

    fn environment(
        &self,
        path: &OsStr,
        home: &TempDir,
    ) -> Result<BTreeMap<&'static str, OsString>, Box<dyn Error>> {
        let variables = self.aws.environment().into_iter().map(|(name, value)| (name, value.into()));
        let mut environment: BTreeMap<&'static str, OsString> = variables.collect();
        environment.insert("PATH", path.to_owned());
        environment.insert("HOME", home.path().into());
        environment.insert("HOST", HOST.into());
        environment.insert("AWS_EC2_METADATA_DISABLED", "true".into());
        if let Some(bundle) = &self.bundle {
            let file = home.path().join("bundle.pem");
            #[expect(clippy::disallowed_methods, reason = "no file of a node's")]
            fs::write(&file, bundle)?;
            environment.insert("AWS_CA_BUNDLE", file.into());
        }
        Ok(environment)
    }
}

impl Side {
    /// One run that is not counted: it warms the caches, and shows that this side does its work.
    fn check(&self) -> Result<(), Box<dyn Error>> {
        self.run()?;
        if fs::read_to_string(&self.result)?.contains(self.shows) {
            return Ok(());
        }
        Err(format!("{} holds no `{}`", self.result.display(), self.shows).into())
    }

    fn run(&self) -> Result<Cost, Box<dyn Error>> {
        Cost::of(&self.command, &self.environment)
    }
}

/// The rows of one world: wall time, CPU time, memory.
fn world_rows(title: &str, ours: &[Cost], theirs: &[Cost]) -> [[String; 5]; 3] {
    let wall = |cost: &Cost| cost.wall.as_secs_f64() * 1e3;
    let cpu = |cost: &Cost| cost.cpu.as_secs_f64() * 1e3;
    let peak = |cost: &Cost| f64::from(cost.peak_kib) / 1024.0;
    [
        row(title, "wall time", "ms", ours, theirs, wall, Some(WALL_TIMES)),
        row(title, "CPU time", "ms", ours, theirs, cpu, Some(CPU_TIMES)),
        row(title, "peak memory", "MiB", ours, theirs, peak, None),
    ]
}

fn row(
    title: &str,
    what: &str,
    unit: &str,
    ours: &[Cost],
    theirs: &[Cost],
    figure: impl Fn(&Cost) -> f64,
    times: Option<f64>,
) -> [String; 5] {
    let figures = |costs: &[Cost]| -> Vec<f64> {
        let mut figures: Vec<f64> = costs.iter().map(&figure).collect();
        figures.sort_by(f64::total_cmp);
        figures
    };
    let (ours, theirs) = (figures(ours), figures(theirs));
    let ratio = median(&theirs).zip(median(&ours)).map(|(theirs, ours)| theirs / ours);
    let target = match (times, median(&ours)) {
        (Some(times), _) => ratio.map(|ratio| at_least(times, ratio)),
        (None, ours) => ours.map(|ours| at_most(PEAK_MIB, unit, ours)),
    };
    [
        format!("{title}: {what}"),
        spread(&ours, unit),
        spread(&theirs, unit),
        ratio.map(|ratio| format!("{ratio:.1}")).unwrap_or_default(),
        target.unwrap_or_default(),
    ]
}

fn at_least(target: f64, ratio: f64) -> String {
    format!("at least {target}: {}", if ratio >= target { "reached" } else { "missed" })
}

/// A Markdown table; the first row is its head.
fn table(rows: &[[String; 5]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..5).map(width).collect();
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let padded = |row: &[String; 5]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        line(cells.collect())
    };
    let rule = line(widths.iter().map(|width| "-".repeat(*width)).collect());
    let mut lines = rows.iter().map(padded);
    [lines.next().unwrap_or_default(), rule].into_iter().chain(lines).collect()
}
