//! Runs the command of a kubeconfig that prints a credential (`exec`).
//!
//! `kube` can run it, but waits for ever for a command that hangs, lets its children live on, and aborts the program where the
//! printed token cannot be a header.

use crate::process::{self, Limits, ProcessError};
use crate::report::redact::{redact, remember, remember_private_key};
use hyper::header::HeaderValue;
use jiff::Timestamp;
use kube::config::ExecConfig;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::json;
use std::process::ExitStatus;
use std::time::Duration;
use tokio::process::Command;

/// Its standard error would bypass the redaction of the agent's own log.
const LIMITS: Limits = Limits { time: Duration::from_secs(15), output: 1024 * 1024, errors: None };
/// The longest name of a command that is shown.
const LONGEST_NAME: usize = 200;

/// Why the command gave no credential. Its output and its arguments may hold a credential, and are not shown.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ExecError {
    #[error(transparent)]
    Run(#[from] ProcessError),
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
    let program = exec.command.as_deref().unwrap_or_default();
    let mut command = Command::new(program);
    command.args(exec.args.iter().flatten()).env("KUBERNETES_EXEC_INFO", question.to_string());
    for variable in exec.env.iter().flatten() {
        if let (Some(name), Some(value)) = (variable.get("name"), variable.get("value")) {
            command.env(name, value);
        }
    }
    let ended = process::run(command, &redact(program, LONGEST_NAME), LIMITS).await?;
    match ended.status {
        status if status.success() => parse(ended.output.bytes()).map_err(ExecError::Output),
        status => Err(ExecError::Failed(status)),
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
    // The API server may repeat the token that it was sent.
    credential.token.iter().for_each(|token| remember(token.expose_secret()));
    credential.client_key_data.iter().for_each(|key| remember_private_key(key.expose_secret()));
    match (&credential.token, &credential.client_certificate_data, &credential.client_key_data) {
        (_, Some(_), None) | (_, None, Some(_)) => Err("it has a certificate without a key, or a key alone"),
        (None, None, None) => Err("it has neither a token nor a certificate"),
        (Some(token), ..) if !is_token(token) => Err("its token is empty or contains invalid characters"),
        _ => Ok(credential),
    }
}
