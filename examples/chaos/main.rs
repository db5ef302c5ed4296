//! Chaos: real agents keep several auth files, while other programs write these files in every way that programs do.
//!
//! `cargo run --release --example chaos -- [SECONDS [SEED [soak]]]`. One thread for each file edits it as another program does. One thread
//! kills, freezes, restarts and doubles the agents, fills a disk, and makes ECR fail. One thread for each file reads it all the time. The
//! program checks these promises:
//!
//! - A reader never sees a torn file from the agent.
//! - No entry of another program is lost, and none that its owner has removed comes back.
//! - While ECR answers, every file holds a good token again after each edit.
//! - The writes of one agent come to rest.
//! - No secret is in the agents' output, and no agent panics.
//! - With `soak`, one agent lives through all of it, and its memory and its open files do not grow.
//!
//! The seed decides what happens, in which order. The machine decides when.
#![expect(clippy::print_stdout, reason = "it exists to print")]
#![expect(clippy::disallowed_methods, reason = "it writes files as other programs do")]
#![expect(clippy::unwrap_used, reason = "a failure here is a fault of the machine or of this program")]
#![expect(unreachable_pub, reason = "modules of one program")]

mod agents;
mod files;
mod writers;

use agents::{Agents, Usage};
use ecr_emulator::{Api, Emulator, Fault, Options, Times};
use files::{File, Reader};
use jiff::SignedDuration;
use std::error::Error;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a token is valid: a short time, so that refreshes happen beside everything else.
const TOKEN: SignedDuration = SignedDuration::from_secs(90);
/// Set where this program runs in a mount namespace of its own.
const IN_NAMESPACE: &str = "CHAOS_IN_NAMESPACE";

fn main() -> ExitCode {
    // Chaos starts itself as the agent, so that only one program has to be built.
    if std::env::var_os("CHAOS_AGENT").is_some() {
        return ecr_node_agent::main();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize| arguments.get(index).map(|argument| argument.parse::<u64>()).transpose();
    let is_soak = arguments.get(2).map(|argument| argument == "soak");
    let (Ok(seconds), Ok(seed), None | Some(true), ..=3) = (number(0), number(1), is_soak, arguments.len())
    else {
        println!("usage: chaos [SECONDS [SEED [soak]]]");
        return ExitCode::from(2);
    };
    if nix::unistd::geteuid().is_root() && std::env::var_os(IN_NAMESPACE).is_none() {
        let error = in_namespace();
        println!("chaos runs without a small disk: {error}");
    }
    let (seconds, seed) = (seconds.unwrap_or(120), seed.unwrap_or(1));
    match run(Duration::from_secs(seconds), seed, is_soak.is_some()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(broken) => {
            println!("{broken} promises were broken");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("chaos could not run: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts this program again in a mount namespace of its own. Returns only if that fails.
fn in_namespace() -> std::io::Error {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return error,
    };
    let mut command = Command::new("unshare");
    command.arg("--mount").arg(program).args(std::env::args_os().skip(1)).env(IN_NAMESPACE, "1").exec()
}

/// Returns how many promises were broken.
fn run(duration: Duration, seed: u64, is_soak: bool) -> Result<usize, Box<dyn Error>> {
    let aws = Emulator::start(Options { token_lifetime: TOKEN, ..Options::default() })?;
    let root = tempfile::tempdir()?;
    let files = files::make(root.path())?;
    println!(
        "seed {seed}, {} s, {} auth files below {}",
        duration.as_secs(),
        files.len(),
        root.path().display()
    );
    let agents = Agents::new(&aws, root.path(), &files);
    agents.start(0, 0)?;

    let stop = Arc::new(AtomicBool::new(false));
    let end = Instant::now() + duration;
    thread::scope(|scope| {
        let readers: Vec<_> = files
            .iter()
            .map(|file| {
                let stop = Arc::clone(&stop);
                scope.spawn(move || Reader::default().read(file, &stop))
            })
            .collect();
        let editors: Vec<_> = files
            .iter()
            .enumerate()
            .map(|(number, file)| {
                let mut rng = fastrand::Rng::with_seed(seed.wrapping_mul(31).wrapping_add(number as u64));
                let (aws, agents) = (&aws, &agents);
                scope.spawn(move || edit(file, aws, agents, &mut rng, end))
            })
            .collect();
        let mut rng = fastrand::Rng::with_seed(seed);
        let usages = disturb(&aws, &agents, &files, &mut rng, end, is_soak);
        for editor in editors {
            editor.join().map_err(|_| "an editor panicked")?;
        }
        // One agent remains, and ECR answers.
        aws.heal();
        let grown = if is_soak { growth(&usages) } else { None };
        agents.restart_quietly()?;
        for file in &files {
            file.wait_until_good(&aws, Duration::from_mins(2));
        }
        thread::sleep(Duration::from_secs(2));
        for file in &files {
            file.check_rest(Duration::from_secs(5), TOKEN);
        }
        stop.store(true, Ordering::Relaxed);
        for (file, reader) in files.iter().zip(readers) {
            let reads = reader.join().map_err(|_| "a reader panicked")?;
            println!("{}: {reads} reads, {}", file.name(), file.counts());
        }
        agents.stop_all();
        let shown = agents.broken(&aws);
        println!("{}; {} tokens issued", agents.counts(), aws.issued().len());
        let broken: Vec<String> = files.iter().flat_map(File::broken).chain(shown).chain(grown).collect();
        for promise in &broken {
            println!("BROKEN: {promise}");
        }
        if !broken.is_empty() {
            // The small disk ends with this program.
            Command::new("cp")
                .arg("-a")
                .arg(root.path().join("real"))
                .arg(root.path().join("real-copy"))
                .status()?;
            println!("the files and the agents' log stay in {}", root.keep().display());
        }
        Ok(broken.len())
    })
}

/// Edits one file again and again as another program, and checks after each edit that nothing is lost.
fn edit(file: &File, aws: &Emulator, agents: &Agents, rng: &mut fastrand::Rng, end: Instant) {
    while Instant::now() < end {
        file.edit(rng);
        // Mostly one edit at a time, sometimes several in a row.
        if rng.u8(..) < 200 {
            if agents.can_refresh() {
                file.wait_until_good(aws, Duration::from_secs(100));
            }
            thread::sleep(Duration::from_millis(rng.u64(0..1500)));
        }
    }
}

/// How much memory and how many open files an agent has after a while, in comparison with its beginning. Returns what is wrong.
fn growth(usages: &[Usage]) -> Option<String> {
    // The first eighth is not counted: then the agent makes for the first time what it keeps.
    let eighth = usages.len() / 8;
    let median = |usages: &[Usage], of: fn(&Usage) -> u64| {
        let mut values: Vec<u64> = usages.iter().map(of).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    let (early, late) = (&usages[eighth..eighth * 2], &usages[usages.len() - eighth..]);
    let both = |of| (median(early, of), median(late, of));
    let (memory, files) = (both(|usage| usage.anonymous_kib), both(|usage| usage.files));
    println!(
        "one agent: {} KiB of memory early, {} KiB late; {} open files early, {} late",
        memory.0, memory.1, files.0, files.1
    );
    // Medians of a busy process: what leaks grows with every edit.
    (memory.1 > memory.0 + 1024 || files.1 > files.0 + 2).then(|| "an agent grows".to_owned())
}

/// Kills, stops, restarts and doubles the agents, fills disks, and makes ECR fail. In a soak the first agent stays. Returns
/// what the first agent used each time.
fn disturb(
    aws: &Emulator,
    agents: &Agents,
    files: &[File],
    rng: &mut fastrand::Rng,
    end: Instant,
    is_soak: bool,
) -> Vec<Usage> {
    let mut usages = Vec::new();
    while Instant::now() < end {
        thread::sleep(Duration::from_millis(rng.u64(200..4000)));
        usages.extend(agents.usage());
        match rng.u8(0..10) {
            0 | 1 | 4 | 5 if is_soak => agents.hang_up(),
            0 | 1 => agents.kill_and_restart(rng),
            2 => agents.freeze(Duration::from_millis(rng.u64(50..1500))),
            3 => agents.hang_up(),
            4 => agents.restart_with_other_options(rng),
            5 => agents.double(rng),
            6 => agents.once(rng),
            7 => {
                let fault = match rng.u8(0..4) {
                    0 => Fault::Throttle,
                    1 => Fault::InternalError,
                    2 => Fault::access_denied(),
                    _ => Fault::Hang,
                };
                agents.without_ecr(|| {
                    aws.fail(Api::Ecr, fault, Times::Always);
                    agents.hang_up();
                    thread::sleep(Duration::from_millis(rng.u64(100..3000)));
                    aws.heal();
                });
            }
            _ => {
                let time = Duration::from_millis(rng.u64(100..3000));
                for file in files {
                    file.fill_disk(time);
                }
            }
        }
    }
    usages
}
