//! Options that contradict each other, or that cannot work.

use super::aws::VariableError;
use crate::time::cron::ParseScheduleError;
use std::path::PathBuf;

/// Options that contradict each other, or that cannot work. A message names options; whoever prints it names the variable
/// instead where the value came from there.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum UsageError {
    #[error(transparent)]
    Variable(#[from] VariableError),
    #[error("--aws-credentials-dir and --roles-anywhere are two credential sources: give one of them")]
    TwoCredentialSources,
    #[error(
        "{option} takes one value; repeat the option for more, or separate them by spaces in its variable"
    )]
    OneValue { option: &'static str },
    #[error("--schedule: {0}")]
    Schedule(ParseScheduleError),
    #[error("--interval 0s would ask ECR without end")]
    NoInterval,
    #[error("{option} {} is relative: give an absolute path", path.display())]
    Relative { option: &'static str, path: PathBuf },
    #[error("--auth-file {} is given twice", path.display())]
    SameAuthFile { path: PathBuf },
    #[error("--registry {key} is given twice")]
    SameRegistry { key: String },
    #[error("--no-auth-file and --auth-file contradict each other")]
    AuthFileAndNone,
    #[error(
        "--no-auth-file without a pull secret leaves nothing to do: give --pull-secret, or --pull-secret-selector"
    )]
    NothingToKeep,
    #[error(
        "--startup-taint-node needs an auth file: without one, the kubelet's credentials do not depend on the agent"
    )]
    TaintWithoutFiles,
    #[error("--pull-secret {secret} is given twice")]
    SamePullSecret { secret: String },
    #[error("--pull-secret-selector and --pull-secret-name belong together")]
    SelectorAndName,
    #[error(
        "{option} finds its namespaces by listing and watching all of them, which a whole fleet of nodes must not do: use \
         it with --no-auth-file, in one Deployment, or with --once"
    )]
    NotOnNodes { option: &'static str },
    #[error("--patch-service-account needs a --pull-secret to add")]
    NoPullSecretToAdd,
    #[error(
        "status reads auth files, and with --no-auth-file there are none; `kubectl get secret NAME -o yaml` shows until when \
         a pull secret is valid, as ecr-node-agent/expires-at"
    )]
    StatusWithoutFiles,
}
