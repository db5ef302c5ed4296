//! Runs the command of a kubeconfig that prints a credential (`exec`).
//!
//! `kube` can run it, but waits for ever for a command that hangs, lets its children live on, and aborts the program where the
//! printed token cannot be a header.

use hyper::header::HeaderValue;
use jiff::Timestamp;
use kube::config::ExecConfig;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::json;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// How long the command may take.
const LIMIT: Duration = Duration::from_secs(15);
/// How many bytes of its output are read.
const LONGEST_OUTPUT: u64 = 1024 * 1024;

/// Why the command gave no credential. Its output and its arguments may hold a credential, and are not shown.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ExecError {
    #[error("it cannot be run: {0}")]
    Run(#[from] io::Error),
    #[error("it did not end within {} s, and was killed", LIMIT.as_secs())]
    Timeout,
    #[error("it ended with {0}")]
    Failed(ExitStatus),
    #[error("it printed no credential: {0}")]
    Output(&'static str),
}

/// A printed credential.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Credential {
    pub(super) token: Option<SecretString>,
    /// A client certificate, in PEM.
    pub(super) client_certificate_data: Option<String>,
    /// Its key, in PEM.
    pub(super) client_key_data: Option<SecretString>,
    /// When it expires; `None` if the command did not say.
    #[serde(rename = "expirationTimestamp")]
    pub(super) expires_at: Option<Timestamp>,
}

/// Runs the command. If the caller stops waiting, the command is killed.
pub(super) async fn run(exec: &ExecConfig) -> Result<Credential, ExecError> {
    let mut spec = json!({ "interactive": false });
    if let Some(cluster) = &exec.cluster {
        spec["cluster"] = json!(cluster);
    }
    let question = json!({ "apiVersion": exec.api_version, "kind": "ExecCredential", "spec": spec });
    let mut command = Command::new(exec.command.as_deref().unwrap_or_default());
    command.args(exec.args.iter().flatten()).env("KUBERNETES_EXEC_INFO", question.to_string());
    for variable in exec.env.iter().flatten() {
        if let (Some(name), Some(value)) = (variable.get("name"), variable.get("value")) {
            command.env(name, value);
        }
    }
    // Its standard error would bypass the redaction of the agent's own log.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let mut group = Group(command.spawn()?);
    let (output, status) = timeout(LIMIT, group.output()).await.map_err(|_| ExecError::Timeout)??;
    if status.success() { parse(&output).map_err(ExecError::Output) } else { Err(ExecError::Failed(status)) }
}

/// A running command and its children. They are killed when this is dropped before the command has ended.
struct Group(Child);

impl Group {
    async fn output(&mut self) -> io::Result<(Zeroizing<Vec<u8>>, ExitStatus)> {
        let mut output = Zeroizing::new(Vec::new());
        if let Some(stdout) = self.0.stdout.take() {
            stdout.take(LONGEST_OUTPUT).read_to_end(&mut output).await?;
        }
        Ok((output, self.0.wait().await?))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // There is no identifier once the command has ended and was waited for.
        if let Some(id) = self.0.id().and_then(|id| i32::try_from(id).ok()) {
            // Fails only if no process is left in the group.
            killpg(Pid::from_raw(id), Signal::SIGKILL).ok();
        }
    }
}

/// Whether an HTTP header can hold this token.
pub(super) fn is_token(token: &SecretString) -> bool {
    let token = token.expose_secret();
    !token.is_empty() && HeaderValue::from_str(token).is_ok()
}

fn parse(output: &[u8]) -> Result<Credential, &'static str> {
    #[derive(Deserialize)]
    struct Answer {
        status: Option<Credential>,
    }
    // JSON is YAML too.
    let answer: Answer = serde_saphyr::from_slice(output).map_err(|_| "it is not an ExecCredential")?;
    let credential = answer.status.ok_or("it has no `status`")?;
    match (&credential.token, &credential.client_certificate_data, &credential.client_key_data) {
        (_, Some(_), None) | (_, None, Some(_)) => Err("it has a certificate without a key, or a key alone"),
        (None, None, None) => Err("it has neither a token nor a certificate"),
        (Some(token), ..) if !is_token(token) => Err("its token is empty or contains invalid characters"),
        _ => Ok(credential),
    }
}
