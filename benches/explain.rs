//! What `explain` costs on a file of many entries.
//!
//! No time is asserted: a target that is missed is said, and the exit code stays 0.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the figures are what this program is for")]

#[path = "shared/cost.rs"]
mod cost;
#[path = "shared/table.rs"]
mod table;

use clap::Parser as _;
use cost::{Cost, Figures};
use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use table::{table, verdict};

/// The target.
const CPU_MS: f64 = 5.0;

/// Measures `ecr-node-agent explain` on a file of many entries.
#[derive(Debug, clap::Parser)]
struct Arguments {
    /// How often to run it.
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// How many entries the file has.
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    entries: u32,
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
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let file = folder.path().join("config.json");
    #[expect(clippy::disallowed_methods, reason = "no file of a node's")]
    std::fs::write(&file, document(arguments.entries)?)?;
    let options = ["explain", "--output", "json", "--kubelet-home", "", "--auth-file"].map(OsString::from);
    let image = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/app:1.4";
    let program = OsString::from(env!("CARGO_BIN_EXE_ecr-node-agent"));
    let command: Vec<_> =
        [program].into_iter().chain(options).chain([file.into_os_string(), image.into()]).collect();
    // Warms the caches, and shows that a credential is found: the exit code is 0.
    Cost::of(&command, &BTreeMap::new(), Path::new("/dev/null"), None)?;
    let costs = (0..arguments.rounds)
        .map(|_| Cost::of(&command, &BTreeMap::new(), Path::new("/dev/null"), None))
        .collect::<Result<Vec<_>, _>>()?;
    let cpu = Figures::cpu(&costs);
    println!("explain, {} entries, {} runs; median (least to most)\n", arguments.entries, arguments.rounds);
    let target = verdict(&format!("under {CPU_MS} ms"), cpu.median() < CPU_MS);
    let rows = [
        ["", "explain", "target"].map(str::to_owned),
        ["CPU time".to_owned(), cpu.text(), target],
        ["wall time".to_owned(), Figures::wall(&costs).text(), String::new()],
        ["peak memory".to_owned(), Figures::peak(&costs).text(), String::new()],
    ];
    print!("{}", table(&rows));
    Ok(())
}

/// A file as a busy node might have one: exact hosts, globs, paths, each with a token as long as ECR's.
fn document(entries: u32) -> Result<String, std::fmt::Error> {
    // Base64 of `AWS:` and 1,875 letters.
    let token = format!("QVdT{}", "OmFh".repeat(626));
    let mut text = String::from("{\"auths\":{");
    for number in 0..entries {
        let key = match number % 4 {
            0 if number == 0 => "123456789012.dkr.ecr.eu-west-1.amazonaws.com".to_owned(),
            0 => format!("{:012}.dkr.ecr.eu-west-1.amazonaws.com", 123_456_789_012 + u64::from(number)),
            1 => format!("*.dkr.ecr.eu-west-{number}.amazonaws.com"),
            2 => format!("123456789012.dkr.ecr.eu-west-1.amazonaws.com/team-{number}"),
            _ => format!("https://registry-{number}.example.com/v2/"),
        };
        let comma = if number == 0 { "" } else { "," };
        write!(text, "{comma}\"{key}\":{{\"auth\":\"{token}\"}}")?;
    }
    text.push_str("}}");
    Ok(text)
}
