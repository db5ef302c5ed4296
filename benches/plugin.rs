//! What one call of the kubelet's plugin costs, beside AWS's plugin.
//!
//! No time is asserted: a target that is missed is printed, and the exit code stays 0.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the figures are what this program is for")]

#[path = "shared/authorities.rs"]
mod authorities;
#[path = "shared/cost.rs"]
mod cost;
#[path = "shared/table.rs"]
mod table;

use clap::Parser as _;
use cost::{Cost, Figures};
use ecr_emulator::{Emulator, Options};
use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
/// Where `benches/setup` puts AWS's plugin.
const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench-tools/bin/ecr-credential-provider");

/// Measures `ecr-node-agent credential-provider`, cold (it asks ECR) and warm (an agent's file has a token).
#[derive(Debug, clap::Parser)]
struct Arguments {
    /// How often to run each.
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// AWS's plugin.
    #[arg(long, value_name = "PATH", default_value = PEER)]
    peer: PathBuf,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
    /// Runs a command and prints what it cost; see [`Cost::of`].
    #[arg(long, hide = true, num_args = 1.., allow_hyphen_values = true, value_name = "COMMAND")]
    cost_of: Vec<OsString>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    cost::measured_or(&arguments.cost_of, || run(&arguments))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    if !arguments.peer.is_file() {
        let path = arguments.peer.display();
        return Err(format!("{path} is missing: `benches/setup` installs it").into());
    }
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let aws = Emulator::start(Options { tls: Some(Vec::new()), ..Options::default() })?;
    let request = folder.path().join("request.json");
    let environment = environment(&aws, folder.path())?;
    let agent = Path::new(env!("CARGO_BIN_EXE_ecr-node-agent"));
    let file = folder.path().join("config.json");
    let once = Command::new(agent)
        .args(["--once", "--auth-file"])
        .arg(&file)
        .env_clear()
        .envs(&environment)
        .output()?;
    if !once.status.success() {
        return Err(String::from_utf8_lossy(&once.stderr).into());
    }
    let provider = |file: &Path| {
        let options = ["credential-provider", "--auth-file"].map(OsString::from);
        [agent.as_os_str().to_owned()].into_iter().chain(options).chain([file.into()]).collect()
    };
    let programs = [
        ("this plugin, cold", provider(&folder.path().join("none.json"))),
        ("this plugin, warm", provider(&file)),
        ("`ecr-credential-provider`", vec![arguments.peer.clone().into_os_string()]),
    ];
    let mut costs = programs.each_ref().map(|_| Vec::new());
    // The first run of each warms the caches, and is not counted. They take turns, so that none has a quieter machine.
    for round in 0..=arguments.rounds {
        for ((_, command), costs) in programs.iter().zip(&mut costs) {
            let cost = Cost::of(command, &environment, &request, None)?;
            if round > 0 {
                costs.push(cost);
            }
        }
    }
    println!("{} runs each; median (least to most)\n", arguments.rounds);
    let mut rows = vec![["", "wall time", "CPU time", "peak memory"].map(str::to_owned)];
    let mut walls = Vec::new();
    for ((title, _), costs) in programs.iter().zip(&costs) {
        let wall = Figures::wall(costs);
        rows.push([
            (*title).to_owned(),
            wall.text(),
            Figures::cpu(costs).text(),
            Figures::peak(costs).text(),
        ]);
        walls.push(wall.median());
    }
    print!("{}", table::table(&rows));
    let (cold, warm) = (walls[2] / walls[0], walls[2] / walls[1]);
    println!("\ncold: {cold:.1} times as fast; {}", table::verdict("not slower", cold >= 1.0));
    println!("warm: {warm:.1} times as fast; {}", table::verdict("at least 3 times", warm >= 3.0));
    Ok(())
}

/// The variables of all programs: keys, the emulator, and the system's authorities with that of the emulator, as on a node.
fn environment(aws: &Emulator, folder: &Path) -> Result<BTreeMap<&'static str, OsString>, Box<dyn Error>> {
    let request = format!(
        r#"{{"kind":"CredentialProviderRequest","apiVersion":"credentialprovider.kubelet.k8s.io/v1","image":"{HOST}/app"}}"#
    );
    let bundle = authorities::system().unwrap_or_default() + aws.ca_pem();
    for (name, text) in [("request.json", request), ("bundle.pem", bundle)] {
        #[expect(clippy::disallowed_methods, reason = "no file of a node's")]
        std::fs::write(folder.join(name), text)?;
    }
    let mut environment: BTreeMap<_, _> =
        aws.environment().into_iter().map(|(name, value)| (name, OsString::from(value))).collect();
    environment.insert("AWS_CA_BUNDLE", folder.join("bundle.pem").into());
    environment.insert("AWS_EC2_METADATA_DISABLED", "true".into());
    Ok(environment)
}
