//! A `credential_process`: a program that prints credentials.
//!
//! As by the AWS CLI, its command line is split into words and started without a shell. It ends with its attempt.

use super::source::Process;
use super::{Obtained, answer};
use crate::ecr::refusal::Refusal;
use crate::process::{self, Limits};
use crate::report::redact::{redact, remember};
use secrecy::ExposeSecret as _;
use std::process::ExitStatus;
use std::time::Duration;
use tokio::process::Command;

/// The time is less than an attempt has, so that the message names the program. Credentials are 2 KB.
const LIMITS: Limits = Limits { time: Duration::from_secs(20), output: 64 * 1024, errors: Some(16 * 1024) };
/// The longest error that is shown.
const LONGEST_ERROR: usize = 300;
/// The longest program name that is shown.
const LONGEST: usize = 200;

/// Why a process gave no credentials.
#[derive(Debug, thiserror::Error)]
enum ProcessError {
    #[error("its command line has a quote that is not closed, or no word")]
    CommandLine,
    #[error(transparent)]
    Run(#[from] process::ProcessError),
    #[error("it failed ({status}){}{said}", if said.is_empty() { "" } else { ": " })]
    Failed { status: ExitStatus, said: String },
    #[error("it printed version `{0}` of the format, and only version 1 is known")]
    Version(String),
    #[error("its output {0}")]
    Answer(#[from] answer::AnswerError),
}

impl ProcessError {
    /// Whether another run may succeed.
    fn is_passing(&self) -> bool {
        self.has_timed_out() || matches!(self, Self::Failed { .. })
    }

    fn has_timed_out(&self) -> bool {
        matches!(self, Self::Run(process::ProcessError::TimedOut(_)))
    }
}

/// Runs the program.
///
/// # Errors
/// When it cannot be started, fails, takes too long, or prints no credentials.
pub async fn run(process: &Process) -> Result<Obtained, Refusal> {
    let words = words(process.command.expose_secret());
    // Arguments are not shown: they may be secrets.
    let program = words.first().map(|word| redact(word, LONGEST)).unwrap_or_default();
    let source = format!("the credential_process `{program}` ({})", process.origin);
    let failed = |error: ProcessError| {
        let needs_shell = words.iter().any(|word| is_for_a_shell(word));
        let is_too_long = matches!(error, ProcessError::Run(process::ProcessError::TooLong(_)));
        let hint = if needs_shell && !is_too_long && !error.has_timed_out() {
            "; it is started without a shell, as by the AWS CLI: for `|`, `>`, `;`, `&`, `$`, `~` or a variable before \
             the program, write `sh -c '...'`, which needs a shell in the agent's image"
        } else {
            ""
        };
        Refusal::NoCredentials { reason: format!("{source}: {error}{hint}"), passing: error.is_passing() }
    };
    let credentials = output_of(&words, &source).await.and_then(|output| {
        let output = output.bytes();
        let version = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(output);
        match version.ok().and_then(|json| json.get("Version").map(ToString::to_string)) {
            Some(version) if version != "1" => Err(ProcessError::Version(redact(&version, LONGEST))),
            None if !output.is_empty() && answer::parse(output).is_ok() => {
                Err(ProcessError::Version(String::new()))
            }
            _ => Ok(answer::parse(output)?),
        }
    });
    Ok(Obtained { credentials: credentials.map_err(failed)?, source: source.clone(), role: None })
}

/// The words of a command line. Values of options that look secret are remembered.
fn words(command: &str) -> Vec<String> {
    let words = shlex::split(command).unwrap_or_default();
    let is_secret = |name: &str| {
        let name = name.to_ascii_lowercase();
        name.starts_with('-') && ["pass", "secret", "token", "pin"].iter().any(|word| name.contains(word))
    };
    for pair in words.windows(2) {
        if is_secret(&pair[0]) {
            remember(&pair[1]);
        }
    }
    for (name, value) in words.iter().filter_map(|word| word.split_once('=')) {
        if is_secret(name) {
            remember(value);
        }
    }
    words
}

/// Whether a shell would do something with this word.
fn is_for_a_shell(word: &str) -> bool {
    word.starts_with('~') || word.contains(['|', '>', '<', ';', '&', '$', '`'])
}

async fn output_of(words: &[String], name: &str) -> Result<process::Output, ProcessError> {
    let (program, arguments) = words.split_first().ok_or(ProcessError::CommandLine)?;
    let mut command = Command::new(program);
    command.args(arguments);
    let ended = process::run(command, name, LIMITS).await?;
    match ended.status {
        status if status.success() => Ok(ended.output),
        status => Err(ProcessError::Failed { status, said: first_line(ended.errors.bytes()) }),
    }
}

/// The first line that is not empty. The program may print secrets that are not known here.
fn first_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    redact(text.trim_start().lines().next().unwrap_or_default(), LONGEST_ERROR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_split_as_by_a_shell_and_started_without_one() {
        let cases = [
            ("a b", vec!["a", "b"]),
            (r#"/bin/a "b c" 'd "e"' f\ g"#, vec!["/bin/a", "b c", "d \"e\"", "f g"]),
            ("a | b > c", vec!["a", "|", "b", ">", "c"]),
            ("a 'b", vec![]),
            ("", vec![]),
        ];
        for (command, expected) in cases {
            assert_eq!(words(command), expected, "{command}");
        }
        for word in ["|", "2>/dev/null", "~/bin/a", "$HOME/a", "a;b"] {
            assert!(is_for_a_shell(word), "{word}");
        }
        assert!(!is_for_a_shell("--profile-arn"));
        words("helper --password hunter2-of-helper --api-token=token-of-helper --role arn:aws:iam::1:role/x");
        assert_eq!(
            redact("hunter2-of-helper, token-of-helper, arn:aws:iam::1:role/x", 100),
            "…, …, arn:aws:iam::1:role/x"
        );
    }

    /// A script that prints, and its arguments.
    fn process(command: &str) -> Process {
        Process { origin: "config line 2".to_owned(), command: command.into() }
    }

    async fn reason(command: &str) -> (String, bool) {
        match run(&process(command)).await {
            Err(Refusal::NoCredentials { reason, passing }) => (reason, passing),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn credentials_are_printed() {
        let json = r#"{"Version":1,"AccessKeyId":"AKIAIOSFODNN7EXAMPLE","SecretAccessKey":"secret-of-process","Expiration":"2026-11-24 11:00:00 UTC"}"#;
        let obtained = run(&process(&format!("echo '{json}'"))).await.unwrap();
        assert_eq!(obtained.credentials.access_key_id(), "AKIAIOSFODNN7EXAMPLE");
        assert_eq!(
            obtained.to_string(),
            "the credential_process `echo` (config line 2), access key AKIAIOSFODNN7EXAMPLE"
        );
    }

    #[tokio::test]
    async fn a_process_that_fails_is_named_and_its_arguments_are_not() {
        let cases = [
            (
                "sh -c 'printf \"\\n\\n  no such certificate\\nmore\" >&2; exit 3'",
                "(exit status: 3): no such certificate",
                true,
            ),
            ("cat /nonexistent | jq .", "started without a shell", true),
            ("echo '{\"Version\":2}'", "version `2`", false),
            ("echo '{\"AccessKeyId\":\"A\",\"SecretAccessKey\":\"S\"}'", "version ``", false),
            ("echo s3cret-output", "its output is not a JSON object", false),
            ("yes s3cret-output", "more than 64 KiB", false),
            ("true", "its output is not a JSON object", false),
            ("sh -c 'kill -9 $$'", "(signal: 9 (SIGKILL))", true),
            ("a 'b", "a quote that is not closed", false),
        ];
        for (command, expected, passing) in cases {
            assert_fails(command, expected, passing).await;
        }
    }

    /// Not under qemu's user mode, which takes the start of a missing program for one that ends with code 127.
    #[tokio::test]
    async fn a_process_that_is_missing_is_named() {
        let command = "/nonexistent/helper --secret s3cret-argument";
        assert_fails(command, "cannot be started: No such file", false).await;
    }

    async fn assert_fails(command: &str, expected: &str, passing: bool) {
        let (reason, found) = reason(command).await;
        assert!(reason.contains(expected) && !reason.contains("s3cret"), "{command}: {reason}");
        assert_eq!(found, passing, "{reason}");
        assert!(reason.contains("config line 2"), "{reason}");
    }
}
