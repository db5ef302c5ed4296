//! Runs a program for its output, such as a `credential_process` or a kubeconfig's `exec` command.
//!
//! The program gets a process group of its own. The whole group is killed when the program has ended, when its time is over,
//! or when the caller gives up: no child process lives on.

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use secrecy::zeroize::Zeroizing;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, sink};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use tracing::warn;

/// What a program may do.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How long it may run.
    pub time: Duration,
    /// How many bytes it may print on standard output. A program that prints more is killed.
    pub output: usize,
    /// How many bytes of its standard error are kept; `None` if its standard error goes to `/dev/null`.
    pub errors: Option<usize>,
}

/// A program that has ended.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed on standard output.
    pub output: Output,
    /// The start of what it printed on standard error.
    pub errors: Output,
}

/// What a program printed, which may hold secrets. Zeroed when dropped.
pub struct Output(Zeroizing<Vec<u8>>);

impl Output {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Output({} bytes)", self.0.len())
    }
}

/// Why a program gave no output.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It cannot be started.
    #[error("the program cannot be started: {0}")]
    Start(#[source] io::Error),
    /// It runs too long.
    #[error("it did not end within {} s, and was killed with its child processes", .0.as_secs())]
    TimedOut(Duration),
    /// It prints too much.
    #[error("it printed more than {} KiB, and was killed", .0 / 1024)]
    TooLong(usize),
    /// Its output cannot be read, or its end cannot be found out.
    #[error("its output cannot be read: {0}")]
    Output(#[source] io::Error),
}

/// Runs a program with nothing on its standard input. `name` is what the log calls the program if it has to be killed.
///
/// # Errors
/// When the program cannot be started, or breaks a limit. Its exit status decides nothing here.
pub async fn run(command: Command, name: &str, limits: Limits) -> Result<Ended, ProcessError> {
    timeout(limits.time, run_to_end(command, name, limits))
        .await
        .unwrap_or(Err(ProcessError::TimedOut(limits.time)))
}

async fn run_to_end(mut command: Command, name: &str, limits: Limits) -> Result<Ended, ProcessError> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command.stderr(limits.errors.map_or_else(Stdio::null, |_| Stdio::piped()));
    let child = command.process_group(0).kill_on_drop(true).spawn().map_err(ProcessError::Start)?;
    let mut running = Running { child, name };
    let (output, errors) = (running.child.stdout.take(), running.child.stderr.take());
    let (output, errors) =
        tokio::try_join!(read_all(output, limits.output), read_start(errors, limits.errors.unwrap_or(0)))?;
    running.has_exited().await.map_err(ProcessError::Output)?;
    // A child process that printed elsewhere may still run. Until the program is waited for, the kernel gives its number to
    // no other process.
    running.kill_group().ok();
    let status = running.child.wait().await.map_err(ProcessError::Output)?;
    Ok(Ended { status, output, errors })
}

/// Reads to the end, which must come before `most` bytes are exceeded.
async fn read_all(pipe: Option<impl AsyncRead + Unpin>, most: usize) -> Result<Output, ProcessError> {
    let mut kept = Zeroizing::new(Vec::with_capacity(most + 1));
    if let Some(pipe) = pipe {
        pipe.take(most as u64 + 1).read_to_end(&mut kept).await.map_err(ProcessError::Output)?;
    }
    if kept.len() > most { Err(ProcessError::TooLong(most)) } else { Ok(Output(kept)) }
}

/// Reads to the end, and keeps the first `most` bytes.
async fn read_start(pipe: Option<impl AsyncRead + Unpin>, most: usize) -> Result<Output, ProcessError> {
    let mut kept = Zeroizing::new(Vec::with_capacity(most + 1));
    if let Some(mut pipe) = pipe {
        (&mut pipe).take(most as u64).read_to_end(&mut kept).await.map_err(ProcessError::Output)?;
        tokio::io::copy(&mut pipe, &mut sink()).await.map_err(ProcessError::Output)?;
    }
    Ok(Output(kept))
}

/// A program that was not waited for yet. Its group is killed when this is dropped.
struct Running<'a> {
    child: Child,
    name: &'a str,
}

impl Running<'_> {
    /// The number of the program and of its group; `None` once the program was waited for, since the number may be another
    /// process's then.
    fn group(&self) -> Option<Pid> {
        self.child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw)
    }

    /// Waits until the program has exited, and leaves it to be waited for.
    async fn has_exited(&self) -> io::Result<()> {
        let Some(id) = self.group() else { return Ok(()) };
        // Before the first look, so that no exit is missed.
        let mut exits = signal(SignalKind::child())?;
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        while waitid(Id::Pid(id), flags)? == WaitStatus::StillAlive {
            exits.recv().await;
        }
        Ok(())
    }

    fn kill_group(&self) -> Result<(), Errno> {
        self.group().map_or(Ok(()), |group| killpg(group, Signal::SIGKILL))
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.group().is_none() {
            return;
        }
        match self.kill_group() {
            Ok(()) => warn!(program = self.name, "killed a program with its child processes"),
            Err(error) => {
                warn!(program = self.name, %error, "cannot kill a program that has not ended");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const LIMITS: Limits = Limits { time: Duration::from_mins(1), output: 100, errors: Some(4) };

    async fn shell(script: &str, limits: Limits) -> Result<Ended, ProcessError> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(command, "sh", limits).await
    }

    /// Waits until none of the processes whose numbers the file holds is left.
    async fn are_over(pids: &Path) {
        let pids = std::fs::read_to_string(pids).unwrap();
        assert!(!pids.trim().is_empty());
        for pid in pids.split_whitespace() {
            let is_over = || match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
                Ok(stat) => stat.contains(") Z "),
                Err(_) => true,
            };
            let wait = async {
                while !is_over() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(Duration::from_secs(30), wait).await.unwrap_or_else(|_| panic!("{pid} lives on"));
        }
    }

    #[tokio::test]
    async fn a_program_gives_its_output_and_the_start_of_its_errors() {
        let ended = shell("echo out; echo loud errors >&2; exit 3", LIMITS).await.unwrap();
        assert_eq!((ended.output.bytes(), ended.errors.bytes()), (&b"out\n"[..], &b"loud"[..]));
        assert_eq!(ended.status.code(), Some(3));
        assert_eq!(format!("{:?}", ended.output), "Output(4 bytes)");
        let silent = shell("echo loud errors >&2", Limits { errors: None, ..LIMITS }).await.unwrap();
        assert_eq!(silent.errors.bytes(), b"");
    }

    #[tokio::test]
    async fn a_program_that_breaks_a_limit_is_killed_at_once() {
        let long = shell("echo $$ >&2; exec yes", LIMITS).await.unwrap_err();
        assert!(matches!(long, ProcessError::TooLong(100)), "{long}");
        let quick = Limits { time: Duration::from_millis(300), ..LIMITS };
        let slow = shell("sleep 1000", quick).await.unwrap_err();
        assert!(matches!(slow, ProcessError::TimedOut(_)), "{slow}");
    }

    /// Not under qemu's user mode, which takes the start of a missing program for one that ends with code 127.
    #[tokio::test]
    async fn a_program_that_is_missing_is_not_started() {
        let missing = run(Command::new("/nonexistent/program"), "none", LIMITS).await.unwrap_err();
        assert!(matches!(missing, ProcessError::Start(_)), "{missing}");
    }

    #[tokio::test]
    async fn a_child_process_that_prints_elsewhere_ends_with_the_program() {
        let root = tempfile::tempdir().unwrap();
        for exit in [0, 3] {
            let pids = root.path().join(format!("pids-{exit}"));
            let script =
                format!("sleep 1000 >/dev/null 2>&1 & echo $! >{}; echo done; exit {exit}", pids.display());
            let ended = shell(&script, LIMITS).await.unwrap();
            assert_eq!((ended.status.code(), ended.output.bytes()), (Some(exit), &b"done\n"[..]));
            are_over(&pids).await;
        }
    }

    #[tokio::test]
    async fn a_program_that_closes_its_output_is_waited_for() {
        let ended = shell("echo out; exec >&- 2>&-; sleep 0.2; exit 5", LIMITS).await.unwrap();
        assert_eq!((ended.status.code(), ended.output.bytes()), (Some(5), &b"out\n"[..]));
    }

    #[tokio::test]
    async fn a_program_ends_with_its_caller_and_its_children_too() {
        let root = tempfile::tempdir().unwrap();
        let pids = root.path().join("pids");
        let script = format!("sleep 1000 & echo $! $$ > {}; wait", pids.display());
        let written = async {
            while !std::fs::read_to_string(&pids).is_ok_and(|text| text.ends_with('\n')) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            ended = shell(&script, LIMITS) => panic!("{ended:?}"),
            () = written => {}
        }
        are_over(&pids).await;
    }
}
