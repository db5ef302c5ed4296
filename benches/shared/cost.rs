//! What a run of a program costs, by the kernel's own account of its whole process tree.
#![expect(unreachable_pub, reason = "a module of two binaries")]

use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// What one run cost.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// From its start to its end.
    pub wall: Duration,
    /// User and system time of every process of the run.
    pub cpu: Duration,
    /// The most memory that one process of the run held at once (`VmHWM`).
    pub peak_kib: u32,
}

impl Cost {
    /// Runs a command in a child of its own, which is this program again with nothing but that to do.
    ///
    /// The kernel counts finished children of a process together, and starts a program's peak memory at that of the
    /// process that it was forked from. So whoever measures must be young and small, and the emulator is neither.
    pub fn of(
        command: &[OsString],
        environment: &BTreeMap<&'static str, OsString>,
    ) -> Result<Self, Box<dyn Error>> {
        let mut child = Command::new(std::env::current_exe()?);
        child.arg("--cost-of").args(command).env_clear().envs(environment).stdin(Stdio::null());
        let output = child.output()?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            return Err(text(&output.stderr).into());
        }
        Self::from_line(&text(&output.stdout)).ok_or_else(|| "the measuring child said nothing".into())
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

/// The middle of sorted figures.
pub fn median(sorted: &[f64]) -> Option<f64> {
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

pub fn spread(sorted: &[f64], unit: &str) -> String {
    match (median(sorted), sorted.first(), sorted.last()) {
        (Some(median), Some(least), Some(most)) => {
            let digits = usize::from(median < 100.0);
            format!("{median:.digits$} {unit} ({least:.digits$} to {most:.digits$})")
        }
        _ => String::new(),
    }
}

pub fn at_most(target: f64, unit: &str, figure: f64) -> String {
    format!("under {target} {unit}: {}", if figure < target { "reached" } else { "missed" })
}
