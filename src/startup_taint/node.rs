//! The requests that remove the startup taint from a node.
//!
//! They need one permission, to patch the node: a patch without changes answers with the node.

use crate::pull_secret::api::request;
use crate::pull_secret::connection::client_of_pod;
use crate::pull_secret::error::ApiError;
use crate::pull_secret::names::Name;
use crate::time::retry::Retry;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::ApiResource;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::task::JoinError;
use tokio::time::timeout;

/// The key of the taint, whatever its value and effect.
pub const TAINT: &str = "ecr-node-agent/not-ready";
/// The agent's name in the node's `managedFields`.
const FIELD_MANAGER: &str = "ecr-node-agent";
/// How long both requests together may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Why the taint could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// There is no node of this name.
    #[error("there is no node {0}")]
    NotFound(Name),
    /// The API server refused, or could not be reached.
    #[error("cannot patch node {node}")]
    Patch {
        /// The node.
        node: Name,
        /// What the API server or the connection said.
        #[source]
        source: ApiError,
    },
    /// An error in this program.
    #[error("an error in this program")]
    Panicked(#[source] JoinError),
    /// The API server did not answer.
    #[error("the API server did not answer within {} s", LIMIT.as_secs())]
    TooSlow,
}

impl NodeError {
    /// What it says about the next attempt.
    pub(super) fn retry(&self) -> Retry {
        match self {
            Self::Patch { source, .. } => source.retry_after().map_or(Retry::Later, Retry::After),
            Self::NotFound(_) | Self::Panicked(_) | Self::TooSlow => Retry::Later,
        }
    }
}

/// What a removal found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// The node had the taint.
    Removed,
    /// The node did not have the taint.
    NotThere,
}

/// The agent's own node.
#[derive(Debug, Clone)]
pub struct OwnNode {
    name: Name,
    /// Dynamic, so that a field of a taint that this program does not know is not lost.
    api: Api<DynamicObject>,
}

impl OwnNode {
    /// The node of this name, by the service account of this pod. The first request connects.
    #[must_use]
    pub fn new(name: Name) -> Self {
        Self { name, api: Api::all_with(client_of_pod(), &ApiResource::erase::<Node>(&())) }
    }

    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Whether the node has the taint.
    ///
    /// # Errors
    /// When that is not known.
    pub async fn has_taint(&self) -> Result<bool, NodeError> {
        let look = async { Ok(without_taint(&self.look().await?.data).is_some()) };
        timeout(LIMIT, look).await.unwrap_or(Err(NodeError::TooSlow))
    }

    /// Removes the taint. All other taints stay.
    ///
    /// # Errors
    /// When the node is as it was, or when that is not known.
    pub async fn remove_taint(&self) -> Result<Removal, NodeError> {
        timeout(LIMIT, self.attempt()).await.unwrap_or(Err(NodeError::TooSlow))
    }

    async fn attempt(&self) -> Result<Removal, NodeError> {
        let found = self.look().await?;
        let Some(rest) = without_taint(&found.data) else { return Ok(Removal::NotThere) };
        // The version makes it a conflict if another client has changed the taints meanwhile.
        let version = found.metadata.resource_version;
        let changes = json!({ "metadata": { "resourceVersion": version }, "spec": { "taints": rest } });
        self.patch(&changes, false).await?;
        Ok(Removal::Removed)
    }

    async fn look(&self) -> Result<DynamicObject, NodeError> {
        self.patch(&json!({}), true).await
    }

    async fn patch(&self, changes: &Value, dry_run: bool) -> Result<DynamicObject, NodeError> {
        let name = self.name.as_str();
        let field_manager = Some(FIELD_MANAGER.to_owned());
        let params = PatchParams { field_manager, dry_run, ..PatchParams::default() };
        let patched = self.api.patch(name, &params, &Patch::Merge(changes)).await;
        // The server's own text is kept: it says whether a right is missing or the policy has refused.
        patched.map_err(|error| match error {
            kube::Error::Api(status) if status.code == 404 => NodeError::NotFound(self.name.clone()),
            error => NodeError::Patch {
                node: self.name.clone(),
                source: ApiError::of(&error, &request("patch", "nodes", None, Some(name))),
            },
        })
    }
}

/// The other taints of a node; `None` if it does not have ours.
fn without_taint(node: &Value) -> Option<Vec<&Value>> {
    let taints = node["spec"]["taints"].as_array()?;
    let rest: Vec<_> = taints.iter().filter(|taint| taint["key"] != TAINT).collect();
    (rest.len() < taints.len()).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_api_server_says_how_long_to_wait() {
        let failed = |source| NodeError::Patch { node: "node-1".parse().unwrap(), source };
        let pause = Duration::from_secs(7);
        let busy = |pause| failed(ApiError::Busy("429: too many".to_owned(), pause));
        assert_eq!(busy(Some(pause)).retry(), Retry::After(pause));
        assert_eq!(busy(None).retry(), Retry::Later);
        assert_eq!(failed(ApiError::Conflict).retry(), Retry::Later);
    }

    #[test]
    fn only_the_taint_of_this_key_goes() {
        let ours = json!({ "key": TAINT, "effect": "NoSchedule" });
        let twice = json!({ "key": TAINT, "effect": "NoExecute", "value": "x" });
        let other = json!({ "key": "node.kubernetes.io/not-ready", "effect": "NoExecute", "later": 1 });
        let similar = json!({ "key": "ecr-node-agent/not-ready-yet", "effect": "NoSchedule" });
        let node = |taints: &[&Value]| json!({ "spec": { "taints": taints } });
        assert_eq!(without_taint(&json!({})), None);
        assert_eq!(without_taint(&node(&[])), None);
        assert_eq!(without_taint(&node(&[&other, &similar])), None);
        assert_eq!(without_taint(&node(&[&ours])), Some(vec![]));
        assert_eq!(without_taint(&node(&[&other, &ours, &similar, &twice])), Some(vec![&other, &similar]));
    }
}
