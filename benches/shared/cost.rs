//! What one run of a program costs, as the kernel accounts for its whole process tree.
#![expect(unreachable_pub, reason = "a module of several programs")]

use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// What one run cost.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// From the start of the program to its end.
    pub wall: Duration,
    /// User and system time of every process of the run.
    pub cpu: Duration,
    /// The peak memory of the largest process (`VmHWM`).
    pub peak_kib: u32,
}

impl Cost {
    /// Runs a command below a process of its own: this program again, which does nothing else.
    ///
    /// The kernel adds up the finished children of a process, and starts a program's peak memory at that of the process
    /// that it was forked from. So the process that measures must be young and small. `user` is the uid of both; `None` for
    /// this process's.
    pub fn of(
        command: &[OsString],
        environment: &BTreeMap<&'static str, OsString>,
        input: &Path,
        user: Option<u32>,
    ) -> Result<Self, Box<dyn Error>> {
        let mut child = Command::new(std::env::current_exe()?);
        child.arg("--cost-of").args(command).env_clear().envs(environment).stdin(File::open(input)?);
        if let Some(user) = user {
            child.uid(user);
        }
        let output = child.output()?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            return Err(text(&output.stderr).into());
        }
        Self::from_line(&text(&output.stdout))
            .ok_or_else(|| "the measuring process printed no figures".into())
    }

    /// The other end of [`Cost::of`].
    pub fn measure(program: &OsStr, arguments: &[OsString]) -> Result<Self, Box<dyn Error>> {
        let start = Instant::now();
        let status = Command::new(program).args(arguments).stdout(Stdio::null()).status()?;
        let wall = start.elapsed();
        if !status.success() {
            return Err(format!("{} failed: {status}", program.display()).into());
        }
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        Ok(Self { wall, cpu: cpu(&usage)?, peak_kib: u32::try_from(usage.max_rss())? })
    }

    pub fn to_line(self) -> String {
        format!("{} {} {}", self.wall.as_micros(), self.cpu.as_micros(), self.peak_kib)
    }

    fn from_line(line: &str) -> Option<Self> {
        let mut numbers = line.split_whitespace().map(str::parse);
        let mut next = || numbers.next()?.ok();
        let (wall, cpu, peak_kib) = (next()?, next()?, next()?);
        let microseconds = |number: u32| Duration::from_micros(number.into());
        Some(Self { wall: microseconds(wall), cpu: microseconds(cpu), peak_kib })
    }
}

fn cpu(usage: &Usage) -> Result<Duration, std::num::TryFromIntError> {
    let microseconds = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    u64::try_from(microseconds).map(Duration::from_micros)
}

/// Runs the benchmark, or measures the command that it calls itself with; see [`Cost::of`].
pub fn measured_or(cost_of: &[OsString], benchmark: impl FnOnce() -> Result<(), Box<dyn Error>>) -> ExitCode {
    let done = match cost_of {
        [] => benchmark(),
        [program, rest @ ..] => Cost::measure(program, rest).map(|cost| println!("{}", cost.to_line())),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The figures of one kind of several runs, sorted.
#[derive(Debug, Clone)]
pub struct Figures {
    sorted: Vec<f64>,
    unit: &'static str,
}

impl Figures {
    pub fn wall(costs: &[Cost]) -> Self {
        Self::new(costs, "ms", |cost| cost.wall.as_secs_f64() * 1e3)
    }

    pub fn cpu(costs: &[Cost]) -> Self {
        Self::new(costs, "ms", |cost| cost.cpu.as_secs_f64() * 1e3)
    }

    pub fn peak(costs: &[Cost]) -> Self {
        Self::new(costs, "MiB", |cost| f64::from(cost.peak_kib) / 1024.0)
    }

    fn new(costs: &[Cost], unit: &'static str, figure: fn(&Cost) -> f64) -> Self {
        let mut sorted: Vec<f64> = costs.iter().map(figure).collect();
        sorted.sort_by(f64::total_cmp);
        Self { sorted, unit }
    }

    /// Not a number if there are no figures.
    pub fn median(&self) -> f64 {
        self.sorted.get(self.sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// The median, and in brackets the least and the most.
    pub fn text(&self) -> String {
        let (Some(least), Some(most)) = (self.sorted.first(), self.sorted.last()) else {
            return String::new();
        };
        let digits = if self.median() < 20.0 { 2 } else { 0 };
        format!("{:.digits$} {} ({least:.digits$} to {most:.digits$})", self.median(), self.unit)
    }
}
