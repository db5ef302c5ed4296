//! What one refresh costs, compared with other programs that get a token from ECR, and with the least that it can cost.
//!
//! All programs ask the same emulator, in shuffled order, in an environment that holds nothing else. Figures are the kernel's
//! own account of each run's whole process tree. No time is asserted: the table names a target that is missed, and the exit
//! code stays 0. `../README.md` has the rules and a table.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark prints its figures, and the test cluster panics"
)]

#[path = "../shared/authorities.rs"]
mod authorities;
#[path = "../../tests/it/cluster.rs"]
#[expect(dead_code, unreachable_pub, reason = "shared with the tests")]
mod cluster;
#[path = "../shared/cost.rs"]
mod cost;
mod programs;
mod settings;
#[path = "../shared/table.rs"]
mod table;

use clap::Parser as _;
use cost::{Cost, Figures};
use programs::{AGENT, FLOOR, HELPER, Program, RENEW, STEPS, Tools};
use settings::{SYSTEM, Setting};
use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use table::{table, verdict};

/// Measures one refresh of the agent, and the same job done by other programs.
#[derive(Debug, clap::Parser)]
struct Arguments {
    /// How often to run each program.
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// How often to run the steps of the `CronJob`, which take much longer.
    #[arg(long, value_name = "N", default_value = "10", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    steps_rounds: u32,
    /// The agent to measure. [default: the one that cargo has just built]
    #[arg(long, value_name = "PATH", default_value = env!("CARGO_BIN_EXE_ecr-node-agent"), hide_default_value = true)]
    agent: PathBuf,
    /// Another agent to measure beside it, such as an older one.
    #[arg(long, value_name = "PATH")]
    baseline: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
    /// Runs a command and prints what it cost; see [`Cost::of`].
    #[arg(long, hide = true, num_args = 1.., allow_hyphen_values = true, value_name = "COMMAND")]
    cost_of: Vec<OsString>,
}

/// The runs of each program in one setting.
type Runs = BTreeMap<&'static str, Vec<Cost>>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    cost::measured_or(&arguments.cost_of, || run(&arguments))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let tools = Tools::find(&arguments.agent, arguments.baseline.as_deref())?;
    let (rounds, steps_rounds) = (arguments.rounds, arguments.steps_rounds);
    println!(
        "{} cores; {rounds} runs of each program, {steps_rounds} of the CronJob's steps, in shuffled order.",
        std::thread::available_parallelism()?
    );
    println!("Median (least to most); a ratio is how many times as much as the agent a program costs.");

    let mut targets = vec![["target", "figure", ""].map(str::to_owned)];
    for setting in settings::all()? {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let mut programs = setting.programs(&tools, folder.path())?;
        // One that cannot do its work here is left out, such as one that needs root.
        programs.retain(|program| program.check().inspect_err(|error| eprintln!("{error}")).is_ok());
        let runs = measure(&programs, arguments)?;
        println!("\n**{}**\n\n{}", setting.title(), program_table(&tools, &runs));
        targets.extend(target_rows(&setting, &runs));
    }
    let megabytes = f64::from(u32::try_from(fs::metadata(&arguments.agent)?.len())?) / 1e6;
    let is_small = megabytes < 8.5;
    targets.push(["binary".to_owned(), format!("{megabytes:.2} MB"), verdict("under 8.5 MB", is_small)]);
    println!("\n{}", table(&targets));
    Ok(())
}

/// Measures all programs, in rounds.
fn measure(programs: &[Program], arguments: &Arguments) -> Result<Runs, Box<dyn Error>> {
    let mut runs = Runs::new();
    let (rounds, steps_rounds) = (arguments.rounds.max(arguments.steps_rounds), arguments.steps_rounds);
    for round in 0..rounds {
        // Distributes `count` runs evenly over all rounds, so that no program has a quieter machine.
        let is_due = |count: u32| (round + 1) * count / rounds > round * count / rounds;
        let count = |program: &Program| if program.name == STEPS { steps_rounds } else { arguments.rounds };
        let mut due: Vec<&Program> = programs.iter().filter(|program| is_due(count(program))).collect();
        fastrand::shuffle(&mut due);
        for program in due {
            runs.entry(program.name).or_default().push(program.run()?);
        }
    }
    Ok(runs)
}

fn program_table(tools: &Tools, runs: &Runs) -> String {
    let head = ["", "wall time", "ratio", "CPU time", "ratio", "peak memory", "ratio"].map(str::to_owned);
    let figures = |name: &str| {
        runs.get(name).map(|costs| [Figures::wall(costs), Figures::cpu(costs), Figures::peak(costs)])
    };
    let Some(agent) = figures(AGENT) else { return String::new() };
    let row = |name: &'static str| {
        let [wall, cpu, peak] = figures(name)?;
        let ratio = |of: &Figures, index: usize| format!("{:.2}", of.median() / agent[index].median());
        let (wall_ratio, cpu_ratio, peak_ratio) = (ratio(&wall, 0), ratio(&cpu, 1), ratio(&peak, 2));
        Some([tools.title(name), wall.text(), wall_ratio, cpu.text(), cpu_ratio, peak.text(), peak_ratio])
    };
    let rows: Vec<_> = [head].into_iter().chain(programs::ALL.into_iter().filter_map(row)).collect();
    table(&rows)
}

/// What is demanded of the agent in this setting, as far as the programs to compare it with are there.
fn target_rows(setting: &Setting, runs: &Runs) -> Vec<[String; 3]> {
    type Figure = fn(&[Cost]) -> Figures;
    let ratio = |other: &str, figure: Figure| {
        let (agent, other) = (figure(runs.get(AGENT)?).median(), figure(runs.get(other)?).median());
        Some(other / agent)
    };
    let mut rows = Vec::new();
    let mut row = |what: &str, figure: Option<f64>, target: &str, is_reached: fn(f64) -> bool| {
        if let Some(figure) = figure {
            let title = format!("{}: {what}", setting.title());
            rows.push([title, format!("{figure:.2}"), verdict(target, is_reached(figure))]);
        }
    };
    row("wall time, helper to agent", ratio(HELPER, Figures::wall), "at least 1", |ratio| ratio >= 1.0);
    if setting.title() == SYSTEM {
        let floor = |figure| ratio(FLOOR, figure).map(|ratio| 1.0 / ratio);
        row("wall time, agent to floor", floor(Figures::wall), "at most 1.4", |ratio| ratio <= 1.4);
        row("CPU time, agent to floor", floor(Figures::cpu), "at most 1.4", |ratio| ratio <= 1.4);
        row("CPU time, helper to agent", ratio(HELPER, Figures::cpu), "at least 2.5", |ratio| ratio >= 2.5);
    }
    row("wall time, steps to agent", ratio(STEPS, Figures::wall), "at least 40", |ratio| ratio >= 40.0);
    row("CPU time, steps to agent", ratio(STEPS, Figures::cpu), "at least 50", |ratio| ratio >= 50.0);
    row("CPU time, k8s-ecr-login-renew to agent", ratio(RENEW, Figures::cpu), "at least 3", |ratio| {
        ratio >= 3.0
    });
    let peak = runs.get(AGENT).map(|costs| Figures::peak(costs).median());
    row("peak memory, in MiB", peak, "under 10", |peak| peak < 10.0);
    rows
}
