//! Brings one pull secret, or one service account, to what it should be. All modes of the program use this.
//!
//! A secret is created once and then changed in place, so that it exists at all times, and a kubelet that remembers a secret
//! by its UID keeps recognizing it. Only [`remove`] deletes a secret.

use super::api::{checked, request};
use super::error::ApiError;
use super::names::{Name, Namespace, SecretRef};
use super::reconcile::{self, DATA_KEY, Expirations, Ownership, Plan, PullSecret, Unfit, WriteReason};
use crate::docker_config::merge::Wanted;
use crate::time::retry::Retry;
use jiff::Timestamp;
use k8s_openapi::api::authorization::v1::ResourceAttributes;
use k8s_openapi::api::core::v1::{LocalObjectReference, Secret, ServiceAccount};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::json;
use std::collections::BTreeSet;

/// The agents' name in `managedFields`.
const FIELD_MANAGER: &str = "ecr-node-agent";
/// How often a write is attempted again because another program changed the object at the same time.
const CONFLICTS: usize = 5;

/// How to publish.
#[derive(Debug, Clone, Copy)]
pub struct PublishOptions {
    /// The time.
    pub now: Timestamp,
    /// Which other programs write the same secrets.
    pub ownership: Ownership,
    /// Change nothing; the API server says whether it would accept the change.
    pub dry_run: bool,
}

/// What happened to a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// What was done.
    pub effect: Effect,
    /// When its tokens expire; empty if that is not known.
    pub ends: Expirations,
    /// Its version now; `None` if it does not exist, or if that is not known.
    pub resource_version: Option<String>,
}

/// What was done to a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: it is good as it is, or does not exist and need not.
    Unchanged,
    /// It was not deleted: another field manager has set its content.
    NotOurs,
    /// Nothing yet: another program has changed it again, shortly after a repair.
    PutOff,
    /// Nothing: another agent wrote it at the same time.
    Overtaken,
    /// It was written.
    Written(WriteReason),
    /// It was deleted.
    Deleted,
}

impl Effect {
    fn with(self, ends: Expirations, resource_version: Option<String>) -> Published {
        Published { effect: self, ends, resource_version }
    }
}

/// Why a pull secret or a service account is not as it should be.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PullSecretError {
    /// What is there cannot be a pull secret.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// A request failed.
    #[error(transparent)]
    Api(#[from] ApiError),
}

impl PullSecretError {
    /// What this error says about the next attempt.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Api(ApiError::Busy(_, Some(pause))) => Retry::After(*pause),
            Self::Api(error) if error.is_temporary() => Retry::Later,
            _ => Retry::Useless,
        }
    }
}

/// Publishes to one secret: reads it, decides, and writes it if it must.
///
/// # Errors
/// When the secret is not as it should be.
pub async fn publish(
    client: &Client,
    secret: &SecretRef,
    wanted: &Wanted,
    options: PublishOptions,
) -> Result<Published, PullSecretError> {
    let PublishOptions { now, ownership, dry_run } = options;
    let api: Api<Secret> = Api::namespaced(client.clone(), secret.namespace.as_str());
    let mut conflicts = 0;
    loop {
        let read = api.get_opt(secret.name.as_str()).await;
        let read = checked(client, read, of_secret("get", secret)).await?.map(PullSecret::from);
        let version = read.as_ref().and_then(|read| read.metadata.resource_version.clone());
        let (desired, reason, written) = match reconcile::plan(secret, read.as_ref(), wanted, ownership, now)
        {
            Plan::Leave(ends) => return Ok(Effect::Unchanged.with(ends, version)),
            Plan::Postpone => return Ok(Effect::PutOff.with(Expirations::new(), version)),
            Plan::Refuse(why) => return Err(why.into()),
            Plan::Create(desired) => {
                let params = PostParams { dry_run, field_manager: Some(FIELD_MANAGER.to_owned()) };
                let created = api.create(&params, &desired.object).await;
                (desired, WriteReason::Missing, checked(client, created, of_secret("create", secret)).await)
            }
            // A server-side apply: it touches only the fields of `desired`.
            Plan::Apply(desired, reason) => {
                let params = PatchParams { dry_run, ..PatchParams::apply(FIELD_MANAGER).force() };
                let patch = Patch::Apply(&*desired.object);
                let applied = api.patch(secret.name.as_str(), &params, &patch).await;
                (desired, reason, checked(client, applied, of_secret("patch", secret)).await)
            }
        };
        match written.map(PullSecret::from) {
            Ok(written) => {
                let version = written.metadata.resource_version.clone();
                return Ok(Effect::Written(reason).with(desired.expirations, version));
            }
            // It was another agent, most likely. If it was not, the next look repairs the secret.
            Err(ApiError::Conflict) if ownership == Ownership::Many => {
                return Ok(Effect::Overtaken.with(Expirations::new(), None));
            }
            Err(ApiError::Conflict) if conflicts < CONFLICTS => conflicts += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

fn of_secret(verb: &str, secret: &SecretRef) -> ResourceAttributes {
    request(verb, "secrets", Some(secret.namespace.as_str()), Some(secret.name.as_str()))
}

/// Adds the names of secrets to the end of a service account's pull secrets, where they are missing, and returns the names
/// that it added. A service account that does not exist is left alone.
///
/// # Errors
/// When the service account is not as it should be.
pub async fn patch_service_account(
    client: &Client,
    namespace: &Namespace,
    name: &Name,
    secrets: &BTreeSet<Name>,
    dry_run: bool,
) -> Result<Vec<Name>, PullSecretError> {
    let of_account = |verb| request(verb, "serviceaccounts", Some(namespace.as_str()), Some(name.as_str()));
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace.as_str());
    let mut conflicts = 0;
    loop {
        let read = api.get_opt(name.as_str()).await;
        let Some(account) = checked(client, read, of_account("get")).await? else { return Ok(Vec::new()) };
        let mut listed = account.image_pull_secrets.unwrap_or_default();
        let is_missing = |secret: &&Name| !listed.iter().any(|listed| listed.name == secret.as_str());
        let missing: Vec<Name> = secrets.iter().filter(is_missing).cloned().collect();
        if missing.is_empty() {
            return Ok(missing);
        }
        listed.extend(missing.iter().map(|name| LocalObjectReference { name: name.to_string() }));
        // With the version that was read as a precondition, no other program's change is lost.
        let version = account.metadata.resource_version;
        let patch = json!({ "metadata": { "resourceVersion": version }, "imagePullSecrets": listed });
        let params = PatchParams { dry_run, ..PatchParams::apply(FIELD_MANAGER) };
        let patched = api.patch(name.as_str(), &params, &Patch::Merge(patch)).await;
        match checked(client, patched, of_account("patch")).await {
            Ok(_) => return Ok(missing),
            Err(ApiError::Conflict) if conflicts < CONFLICTS => conflicts += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Deletes a secret, if the agents' field manager has set its content.
///
/// # Errors
/// When the secret cannot be read or deleted.
pub async fn remove(
    client: &Client,
    secret: &SecretRef,
    dry_run: bool,
) -> Result<Published, PullSecretError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), secret.namespace.as_str());
    let done = |effect: Effect| Ok(effect.with(Expirations::new(), None));
    let mut conflicts = 0;
    loop {
        let read = api.get_opt(secret.name.as_str()).await;
        let read = checked(client, read, of_secret("get", secret)).await?.map(PullSecret::from);
        let Some(read) = read else { return done(Effect::Unchanged) };
        if !is_ours(&read) {
            return done(Effect::NotOurs);
        }
        let (uid, resource_version) = (read.metadata.uid.clone(), read.metadata.resource_version.clone());
        let params = DeleteParams::default().preconditions(Preconditions { uid, resource_version });
        let deleted = api.delete(secret.name.as_str(), &DeleteParams { dry_run, ..params }).await;
        let deleted = deleted.map(|deleted| deleted.map_left(PullSecret::from));
        match checked(client, deleted, of_secret("delete", secret)).await {
            Ok(_) => return done(Effect::Deleted),
            Err(ApiError::Conflict) if conflicts < CONFLICTS => conflicts += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether the agents' field manager is among those that have set the docker config.
fn is_ours(secret: &PullSecret) -> bool {
    let path = format!("/f:data/f:{DATA_KEY}");
    secret.metadata.managed_fields.iter().flatten().any(|fields| {
        let sets = fields.fields_v1.as_ref().is_some_and(|fields| fields.0.pointer(&path).is_some());
        fields.manager.as_deref() == Some(FIELD_MANAGER) && sets
    })
}
