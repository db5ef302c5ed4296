//! What a pull secret should hold, what it holds, and what to do about it. Pure.
//!
//! The docker config in a pull secret holds the entries of our registries and nothing else. What the agents need to know of
//! these entries is in the secret's annotations, where everyone can read it.

use super::names::SecretRef;
use super::schedule;
use crate::docker_config::ledger::{Ledger, Record};
use crate::docker_config::merge::{Wanted, WantedEntry};
use crate::docker_config::{json, ledger, parse};
use crate::time::schedule::Life;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use secrecy::zeroize::{Zeroize as _, Zeroizing};
use secrecy::{ExposeSecret as _, SecretString};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::time::Duration;

/// The type of a pull secret. `kubernetes.io/dockercfg` is an older format.
pub const TYPE: &str = "kubernetes.io/dockerconfigjson";
/// The key of the docker config in the Secret's data.
pub const DATA_KEY: &str = ".dockerconfigjson";
/// The annotation that says when the first of the secret's tokens expires.
pub const EXPIRES_AT: &str = "ecr-node-agent/expires-at";
/// The annotation that says when the secret was written last.
pub const WRITTEN_AT: &str = "ecr-node-agent/written-at";
/// The annotation that holds the ledger: a record of each entry, with a digest that tells whether the entry was changed since.
pub const ENTRIES: &str = "ecr-node-agent/entries";

/// A Secret whose data is zeroed when it is dropped, and is not shown by `Debug`.
#[derive(Clone, Default)]
pub struct PullSecret(Secret);

impl From<Secret> for PullSecret {
    fn from(secret: Secret) -> Self {
        Self(secret)
    }
}

impl Deref for PullSecret {
    type Target = Secret;

    fn deref(&self) -> &Secret {
        &self.0
    }
}

impl Drop for PullSecret {
    fn drop(&mut self) {
        self.0.data.iter_mut().flat_map(BTreeMap::values_mut).for_each(|value| value.0.zeroize());
    }
}

impl fmt::Debug for PullSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PullSecret").field("name", &self.metadata.name).finish_non_exhaustive()
    }
}

impl PullSecret {
    fn annotation(&self, key: &str) -> Option<&String> {
        self.metadata.annotations.as_ref()?.get(key)
    }

    fn docker_config(&self) -> Option<&[u8]> {
        Some(&self.data.as_ref()?.get(DATA_KEY)?.0)
    }
}

/// Which other programs write the same secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// None. The secret must hold exactly what this agent publishes. A token that is in the secret is never adopted, since
    /// anyone with write access to the Secret could have put it there.
    Alone,
    /// Agents like this one. What one of them wrote stays while it is good.
    Many,
}

/// Why a secret cannot be written.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum Unfit {
    /// The API server allows no change of a Secret's type.
    #[error("has type {}, and a type cannot be changed", .0.escape_debug())]
    Type(String),
    /// The API server allows no change of an immutable Secret.
    #[error("is immutable")]
    Immutable,
}

/// When the token of each registry expires.
pub type Expirations = BTreeMap<String, Timestamp>;

/// A Secret to write.
#[derive(Debug)]
pub struct Desired {
    /// The object, with the preconditions of the write in its metadata.
    pub object: PullSecret,
    /// When its tokens expire.
    pub expirations: Expirations,
}

/// What to do with a secret.
#[derive(Debug)]
pub enum Plan {
    /// Nothing: the secret is good as it is, or there is no token to put into it.
    Leave(Expirations),
    /// Nothing now: another program changed the secret, but an agent has repaired it less than
    /// [`schedule::REPAIR_PAUSE`] ago.
    Postpone,
    /// Create the missing secret.
    Create(Desired),
    /// Apply changes to the secret.
    Apply(Desired, WriteReason),
    /// The secret cannot be written.
    Refuse(Unfit),
}

/// Why a secret is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteReason {
    /// The secret did not exist.
    Missing,
    /// A better token is available, or an entry has to go.
    New,
    /// Another program has changed what an agent wrote.
    Changed,
    /// No agent wrote the secret before. These keys, which are not our registries', are removed.
    TakenOver(Vec<String>),
}

/// An entry and its record.
#[derive(Clone)]
struct Entry {
    auth: SecretString,
    record: Record,
}

impl Entry {
    fn of(wanted: &WantedEntry) -> Self {
        Self { auth: wanted.auth.clone(), record: wanted.record() }
    }
}

/// What a secret holds now.
#[derive(Default)]
struct Current {
    /// The entries that agents wrote and that nobody has changed since.
    entries: BTreeMap<String, Entry>,
    /// The keys of all other entries.
    foreign: Vec<String>,
    /// Whether the secret holds nothing but `entries`, and its annotations are true.
    intact: bool,
}

impl Current {
    fn read(secret: &PullSecret, wanted: &Wanted, now: Timestamp) -> Self {
        let Some(Ok(parsed)) = secret.docker_config().map(parse::parse) else { return Self::default() };
        let document = &parsed.document;
        let ledger = secret.annotation(ENTRIES).and_then(|text| Ledger::from_json(text)).unwrap_or_default();
        let mut current = Self { intact: parsed.defects.is_empty(), ..Self::default() };
        for key in document.keys() {
            let record =
                ledger.entries.get(key).filter(|record| is_plausible(record, wanted.entries.get(key), now));
            match document.plain_auth(key).zip(record) {
                Some((auth, record)) if ledger::digest(auth.expose_secret()) == record.digest => {
                    current.entries.insert(key.to_owned(), Entry { auth, record: record.clone() });
                }
                _ => current.foreign.push(key.to_owned()),
            }
        }
        current.intact &= current.foreign.is_empty()
            && !document.has_other_fields()
            && document.ledger().is_none()
            && ledger.entries.len() == current.entries.len()
            && secret.annotation(EXPIRES_AT).cloned() == first_expiration(&current.entries);
        current
    }
}

/// Whether a token can be good for as long as its record claims. Where this node's clock is slow, the token that this agent
/// has fetched itself shows how long that can be.
fn is_plausible(record: &Record, ours: Option<&WantedEntry>, now: Timestamp) -> bool {
    record.is_believable(now) || ours.is_some_and(|ours| record.expires_at <= ours.expires_at)
}

fn first_expiration(entries: &BTreeMap<String, Entry>) -> Option<String> {
    entries.values().map(|entry| entry.record.expires_at).min().map(|first| first.to_string())
}

fn expirations(entries: &BTreeMap<String, Entry>) -> Expirations {
    entries.iter().map(|(key, entry)| (key.clone(), entry.record.expires_at)).collect()
}

/// Decides what to do with a secret.
#[must_use]
pub fn plan(
    name: &SecretRef,
    secret: Option<&PullSecret>,
    wanted: &Wanted,
    ownership: Ownership,
    now: Timestamp,
) -> Plan {
    let current = secret.map(|secret| Current::read(secret, wanted, now)).unwrap_or_default();
    let entries = desired_entries(&current, wanted, ownership, now);
    let Some(secret) = secret else {
        if entries.is_empty() {
            return Plan::Leave(Expirations::new());
        }
        return Plan::Create(desired(name, None, &entries, now));
    };
    // With nothing to put into it, it does not matter what the secret is.
    if current.entries.is_empty() && entries.is_empty() {
        return Plan::Leave(Expirations::new());
    }
    let kind = secret.type_.as_deref().unwrap_or_default();
    if kind != TYPE {
        return Plan::Refuse(Unfit::Type(kind.to_owned()));
    }
    let reason = match ownership {
        Ownership::Alone => reason_alone(secret, &current, &entries),
        Ownership::Many => reason_among_many(&current, wanted, &entries, now),
    };
    let reason = match reason {
        None => return Plan::Leave(expirations(&current.entries)),
        Some(_) if secret.immutable == Some(true) => return Plan::Refuse(Unfit::Immutable),
        // No agent has written this secret before.
        Some(WriteReason::Changed) if secret.annotation(ENTRIES).is_none() => {
            let removed = current.foreign.into_iter().filter(|key| !entries.contains_key(key));
            WriteReason::TakenOver(removed.collect())
        }
        Some(reason) => reason,
    };
    if ownership == Ownership::Many && reason == WriteReason::Changed && was_written_recently(secret, now) {
        return Plan::Postpone;
    }
    Plan::Apply(desired(name, Some(secret), &entries, now), reason)
}

/// The tokens that have not expired since they were handed to the caller.
fn unexpired(wanted: &Wanted, now: Timestamp) -> impl Iterator<Item = (&String, &WantedEntry)> {
    wanted.entries.iter().filter(move |(_, entry)| entry.expires_at > now)
}

/// The entries that the secret is to hold.
fn desired_entries(
    current: &Current,
    wanted: &Wanted,
    ownership: Ownership,
    now: Timestamp,
) -> BTreeMap<String, Entry> {
    let mut entries: BTreeMap<String, Entry> =
        unexpired(wanted, now).map(|(key, ours)| (key.clone(), Entry::of(ours))).collect();
    for (key, entry) in &current.entries {
        let stays = match (entries.get(key), wanted.lapse.get(key)) {
            (Some(ours), _) => ownership == Ownership::Many && ours.record.rank(now) < entry.record.rank(now),
            (None, Some(until)) => entry.record.expires_at > *until,
            (None, None) => {
                let is_kept = wanted.keep.contains(key) || wanted.entries.contains_key(key);
                // While a rollout changes the settings, agents with the old and the new ones do not remove each other's
                // registries: such an entry goes when it has expired.
                let is_good = ownership == Ownership::Many && entry.record.expires_at > now;
                is_kept || !wanted.drop_others || is_good
            }
        };
        if stays {
            entries.insert(key.clone(), entry.clone());
        }
    }
    entries
}

fn reason_alone(
    secret: &PullSecret,
    current: &Current,
    entries: &BTreeMap<String, Entry>,
) -> Option<WriteReason> {
    let records = |entries: &BTreeMap<String, Entry>| -> Vec<(String, Record)> {
        entries.iter().map(|(key, entry)| (key.clone(), entry.record.clone())).collect()
    };
    let same = secret.docker_config() == Some(docker_config(entries).as_slice());
    if same && current.intact && records(&current.entries) == records(entries) {
        return None;
    }
    // If the last write of an agent is intact, no other program was there: this write brings a new token.
    Some(if current.intact { WriteReason::New } else { WriteReason::Changed })
}

fn reason_among_many(
    current: &Current,
    wanted: &Wanted,
    entries: &BTreeMap<String, Entry>,
    now: Timestamp,
) -> Option<WriteReason> {
    if !current.intact {
        return Some(WriteReason::Changed);
    }
    let is_due = |(key, ours): (&String, &WantedEntry)| {
        current.entries.get(key).is_none_or(|entry| {
            let life = Life { fetched_at: ours.fetched_at, expires_at: ours.expires_at };
            schedule::due(entry.record.expires_at, life).is_some_and(|due| due <= now)
        })
    };
    let lapsed =
        current.entries.keys().any(|key| wanted.lapse.contains_key(key) && !entries.contains_key(key));
    (unexpired(wanted, now).any(is_due) || lapsed).then_some(WriteReason::New)
}

fn was_written_recently(secret: &PullSecret, now: Timestamp) -> bool {
    let written = secret.annotation(WRITTEN_AT).and_then(|text| text.parse::<Timestamp>().ok());
    // A time in the future is wrong, and must not keep the agents from repairing the secret.
    written.is_some_and(|written| written <= now && now.duration_since(written) < schedule::REPAIR_PAUSE)
}

/// The object to create, or to apply to the secret as it was read.
fn desired(
    name: &SecretRef,
    secret: Option<&PullSecret>,
    entries: &BTreeMap<String, Entry>,
    now: Timestamp,
) -> Desired {
    let records = entries.iter().map(|(key, entry)| (key.clone(), entry.record.clone()));
    let mut annotations = BTreeMap::from([
        (ENTRIES.to_owned(), Ledger::of(records.collect()).to_line()),
        (WRITTEN_AT.to_owned(), now.to_string()),
    ]);
    annotations.extend(first_expiration(entries).map(|first| (EXPIRES_AT.to_owned(), first)));
    let object = Secret {
        metadata: ObjectMeta {
            name: Some(name.name.to_string()),
            namespace: Some(name.namespace.to_string()),
            annotations: Some(annotations),
            uid: secret.and_then(|secret| secret.metadata.uid.clone()),
            resource_version: secret.and_then(|secret| secret.metadata.resource_version.clone()),
            ..ObjectMeta::default()
        },
        type_: Some(TYPE.to_owned()),
        data: Some(BTreeMap::from([(
            DATA_KEY.to_owned(),
            ByteString(std::mem::take(&mut docker_config(entries))),
        )])),
        ..Secret::default()
    };
    Desired { object: object.into(), expirations: expirations(entries) }
}

fn docker_config(entries: &BTreeMap<String, Entry>) -> Zeroizing<Vec<u8>> {
    let entries: Vec<(String, &str)> =
        entries.iter().map(|(key, entry)| (json::quoted(key), entry.auth.expose_secret())).collect();
    // Allocated once: a buffer that grows leaves copies of the tokens in memory. Base64 needs no escapes.
    let size = entries.iter().map(|(key, auth)| key.len() + auth.len() + 16).sum::<usize>() + 16;
    let mut text = Zeroizing::new(Vec::with_capacity(size));
    text.extend_from_slice(br#"{"auths":{"#);
    for (number, (key, auth)) in entries.iter().enumerate() {
        let comma = if number == 0 { "" } else { "," };
        for part in [comma, key, r#":{"auth":""#, auth, r#""}"#] {
            text.extend_from_slice(part.as_bytes());
        }
    }
    text.extend_from_slice(b"}}");
    text
}

/// How long until one of many agents reads a secret with these tokens again. `random` as for [`schedule::next_look`].
#[must_use]
pub fn next_look(expirations: &Expirations, wanted: &Wanted, now: Timestamp, random: [f64; 2]) -> Duration {
    let lapses = |(key, until): (&String, &Timestamp)| expirations.get(key).is_some_and(|end| end <= until);
    if wanted.lapse.iter().any(lapses) {
        return schedule::lapsing(random[1]);
    }
    let looks = wanted.entries.iter().map(|(key, ours)| {
        let life = Life { fetched_at: ours.fetched_at, expires_at: ours.expires_at };
        schedule::next_look(now, expirations.get(key).copied().unwrap_or(now), life, random)
    });
    looks.min().unwrap_or_else(|| schedule::next_look(now, Timestamp::MAX, NO_LIFE, random))
}

/// The life of a token that is never better than another one.
const NO_LIFE: Life = Life { fetched_at: Timestamp::MIN, expires_at: Timestamp::MIN };

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pull_secret::names::PullSecretArg;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use jiff::SignedDuration;
    use proptest::prelude::*;

    const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    const OTHER: &str = "123456789012.dkr.ecr.us-east-1.amazonaws.com";

    fn at(hours: i64) -> Timestamp {
        "2026-11-23T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_hours(hours)
    }

    /// A token that was fetched then and is good for 12 hours.
    fn entry(auth: &str, fetched: i64) -> WantedEntry {
        WantedEntry {
            auth: SecretString::from(auth),
            expires_at: at(fetched + 12),
            fetched_at: at(fetched),
            source: "eu-west-1".to_owned(),
            default_registry: false,
        }
    }

    fn wanted(entries: &[(&str, &str, i64)]) -> Wanted {
        let entries = entries.iter().map(|(key, auth, fetched)| ((*key).to_owned(), entry(auth, *fetched)));
        Wanted { entries: entries.collect(), drop_others: true, ..Wanted::default() }
    }

    fn plan(secret: Option<&PullSecret>, wanted: &Wanted, ownership: Ownership, now: Timestamp) -> Plan {
        let PullSecretArg::Exactly(name) = "team-a/ecr-creds".parse().unwrap() else { unreachable!() };
        super::plan(&name, secret, wanted, ownership, now)
    }

    fn annotations(secret: &mut PullSecret) -> &mut BTreeMap<String, String> {
        secret.0.metadata.annotations.get_or_insert_default()
    }

    fn set_config(secret: &mut PullSecret, config: &str) {
        let config = ByteString(config.as_bytes().to_vec());
        secret.0.data = Some(BTreeMap::from([(DATA_KEY.to_owned(), config)]));
    }

    /// The secret after a write that must happen, and why it happened.
    #[track_caller]
    fn written(
        secret: Option<&PullSecret>,
        wanted: &Wanted,
        ownership: Ownership,
        now: Timestamp,
    ) -> (PullSecret, WriteReason) {
        match plan(secret, wanted, ownership, now) {
            Plan::Create(desired) if secret.is_none() => (desired.object.clone(), WriteReason::Missing),
            Plan::Apply(desired, reason) if secret.is_some() => (desired.object.clone(), reason),
            other => panic!("{other:?}"),
        }
    }

    fn is_left(secret: &PullSecret, wanted: &Wanted, ownership: Ownership, now: Timestamp) -> bool {
        matches!(plan(Some(secret), wanted, ownership, now), Plan::Leave(_))
    }

    fn foreign(config: &str) -> PullSecret {
        let mut secret = PullSecret(Secret { type_: Some(TYPE.to_owned()), ..Secret::default() });
        set_config(&mut secret, config);
        secret
    }

    /// The entries that agents wrote: the key and the token of each.
    fn held(secret: &PullSecret, now: Timestamp) -> BTreeMap<String, String> {
        let entries = Current::read(secret, &Wanted::default(), now).entries;
        entries.into_iter().map(|(key, entry)| (key, entry.auth.expose_secret().to_owned())).collect()
    }

    #[test]
    fn a_written_secret_is_left_alone_and_says_when_it_expires() {
        for ownership in [Ownership::Alone, Ownership::Many] {
            let wanted = wanted(&[(HOST, "QVdTOmE=", 0), (OTHER, "QVdTOmI=", -1)]);
            let (secret, reason) = written(None, &wanted, ownership, at(0));
            assert_eq!(reason, WriteReason::Missing);
            assert_eq!(
                std::str::from_utf8(secret.docker_config().unwrap()).unwrap(),
                format!(r#"{{"auths":{{"{HOST}":{{"auth":"QVdTOmE="}},"{OTHER}":{{"auth":"QVdTOmI="}}}}}}"#)
            );
            assert_eq!(secret.annotation(EXPIRES_AT), Some(&at(11).to_string()));
            assert_eq!(secret.metadata.name.as_deref(), Some("ecr-creds"));
            assert_eq!(secret.metadata.namespace.as_deref(), Some("team-a"));
            let ends = Expirations::from([(HOST.to_owned(), at(12)), (OTHER.to_owned(), at(11))]);
            let Plan::Create(desired) = plan(None, &wanted, ownership, at(0)) else {
                panic!("{ownership:?}")
            };
            assert_eq!(desired.expirations, ends);
            let planned = plan(Some(&secret), &wanted, ownership, at(0));
            assert!(matches!(&planned, Plan::Leave(found) if *found == ends), "{planned:?}");
        }
    }

    #[test]
    fn an_entry_whose_token_another_program_has_changed_is_restored() {
        let ours = wanted(&[(HOST, "QVdTOmE=", 0)]);
        for ownership in [Ownership::Alone, Ownership::Many] {
            let (secret, _) = written(None, &ours, ownership, at(0));
            for config in [
                format!(r#"{{"auths":{{"{HOST}":{{"auth":"QVdTOmI="}}}}}}"#),
                format!(r#"{{"auths":{{"{HOST}":{{"username":"QVdTOmE="}}}}}}"#),
                format!(r#"{{"auths":{{"{HOST}":{{"auth":"QVdTOmE="}}}},"credsStore":"x"}}"#),
            ] {
                let mut changed = secret.clone();
                set_config(&mut changed, &config);
                let (repaired, reason) = written(Some(&changed), &ours, ownership, at(1));
                assert_eq!((reason, &repaired.data), (WriteReason::Changed, &secret.data), "{config}");
            }
        }
    }

    #[test]
    fn no_secret_is_created_without_a_good_token() {
        for ownership in [Ownership::Alone, Ownership::Many] {
            for wanted in [wanted(&[]), wanted(&[(HOST, "QVdTOmE=", -12)])] {
                let planned = plan(None, &wanted, ownership, at(0));
                assert!(matches!(planned, Plan::Leave(ends) if ends.is_empty()));
            }
        }
    }

    #[test]
    fn a_write_has_the_version_that_was_read_as_its_precondition() {
        let (mut secret, _) = written(None, &wanted(&[(HOST, "QVdTOmE=", 0)]), Ownership::Alone, at(0));
        assert_eq!((&secret.metadata.uid, &secret.metadata.resource_version), (&None, &None));
        secret.0.metadata.uid = Some("u".to_owned());
        secret.0.metadata.resource_version = Some("7".to_owned());
        let (next, _) = written(Some(&secret), &wanted(&[(HOST, "QVdTOmI=", 1)]), Ownership::Alone, at(1));
        assert_eq!(next.metadata.uid, secret.metadata.uid);
        assert_eq!(next.metadata.resource_version, secret.metadata.resource_version);
    }

    #[test]
    fn an_agent_that_is_alone_restores_what_it_published_and_adopts_nothing() {
        let old = wanted(&[(HOST, "QVdTOmE=", 0)]);
        let new = wanted(&[(HOST, "QVdTOmI=", 0)]);
        let (secret, _) = written(None, &old, Ownership::Alone, at(0));
        // Well-formed, but not the token of this agent: anyone who may write the Secret could have put it there.
        let (_, reason) = written(Some(&secret), &new, Ownership::Alone, at(0));
        assert_eq!(reason, WriteReason::New);
        let mut changed = secret.clone();
        set_config(&mut changed, r#"{"auths":{}}"#);
        let (repaired, reason) = written(Some(&changed), &old, Ownership::Alone, at(0));
        assert_eq!((reason, &repaired.data), (WriteReason::Changed, &secret.data));
        for annotation in [ENTRIES, EXPIRES_AT] {
            let mut changed = secret.clone();
            annotations(&mut changed).remove(annotation);
            assert!(!is_left(&changed, &old, Ownership::Alone, at(0)), "{annotation}");
        }
    }

    #[test]
    fn among_many_the_first_agent_writes_and_the_others_leave_the_secret_alone() {
        let first = wanted(&[(HOST, "QVdTOmE=", 0)]);
        let (secret, _) = written(None, &first, Ownership::Many, at(0));
        let cases = [
            // hour in which another agent fetched its token, hour now, whether it leaves the secret alone
            (0, 0, true),
            (8, 8, true), // a much better token, but the last part of the token's life has not begun
            (8, 10, false),
            (2, 10, true), // not much better, and there is time
            (2, 12, false),
            (-1, 11, true),
        ];
        for (fetched, now, left) in cases {
            let other = wanted(&[(HOST, "QVdTOmI=", fetched)]);
            let is = is_left(&secret, &other, Ownership::Many, at(now));
            assert_eq!(is, left, "fetched at {fetched}, now {now}");
        }
    }

    #[test]
    fn among_many_a_repair_is_made_once_in_five_minutes() {
        let ours = wanted(&[(HOST, "QVdTOmE=", 0)]);
        let (mut changed, _) = written(None, &ours, Ownership::Many, at(0));
        set_config(&mut changed, r#"{"auths":{"x":{"auth":"QVdTOmE="}}}"#);
        let minute = |minutes| at(0) + SignedDuration::from_mins(minutes);
        assert!(matches!(plan(Some(&changed), &ours, Ownership::Many, minute(4)), Plan::Postpone));
        let (_, reason) = written(Some(&changed), &ours, Ownership::Many, minute(5));
        assert_eq!(reason, WriteReason::Changed);
        // Nor does a clock that is slow keep an agent from repairing.
        let (_, reason) = written(Some(&changed), &ours, Ownership::Many, minute(-1));
        assert_eq!(reason, WriteReason::Changed);
    }

    #[test]
    fn agents_with_different_settings_do_not_remove_each_others_good_entries() {
        let old = wanted(&[(HOST, "QVdTOmE=", 0)]);
        let new = wanted(&[(OTHER, "QVdTOmI=", 1)]);
        let (secret, _) = written(None, &old, Ownership::Many, at(0));
        let (both, reason) = written(Some(&secret), &new, Ownership::Many, at(1));
        assert_eq!(reason, WriteReason::New);
        assert!(held(&both, at(1)).into_keys().eq([HOST, OTHER]));
        assert!(is_left(&both, &old, Ownership::Many, at(1)) && is_left(&both, &new, Ownership::Many, at(1)));
        // The next write after its expiry removes it.
        let (later, _) = written(Some(&both), &wanted(&[(OTHER, "QVdTOmM=", 12)]), Ownership::Many, at(12));
        assert!(held(&later, at(12)).into_keys().eq([OTHER]));
    }

    #[test]
    fn a_region_without_a_token_keeps_its_entry_and_does_not_delay_the_others() {
        for ownership in [Ownership::Alone, Ownership::Many] {
            let both = wanted(&[(HOST, "QVdTOmE=", 0), (OTHER, "QVdTOmI=", 0)]);
            let (secret, _) = written(None, &both, ownership, at(0));
            let mut half = wanted(&[(HOST, "QVdTOmM=", 10)]);
            half.keep.push(OTHER.to_owned());
            let (renewed, _) = written(Some(&secret), &half, ownership, at(10));
            assert!(held(&renewed, at(10)).into_values().eq(["QVdTOmM=", "QVdTOmI="]));
            assert!(is_left(&renewed, &half, ownership, at(10)));
        }
    }

    #[test]
    fn an_entry_that_cannot_be_renewed_lapses() {
        let public = "public.ecr.aws";
        for ownership in [Ownership::Alone, Ownership::Many] {
            let both = wanted(&[(HOST, "QVdTOmE=", 0), (public, "QVdTOmI=", -10)]);
            let (secret, _) = written(None, &both, ownership, at(0));
            let mut without = wanted(&[(HOST, "QVdTOmE=", 0)]);
            without.lapse.insert(public.to_owned(), at(1));
            assert!(is_left(&secret, &without, ownership, at(0)), "it is good for longer");
            without.lapse.insert(public.to_owned(), at(2));
            let (after, reason) = written(Some(&secret), &without, ownership, at(0));
            assert_eq!(reason, WriteReason::New);
            assert!(!held(&after, at(0)).contains_key(public));
        }
    }

    #[test]
    fn a_node_reads_a_secret_soon_that_holds_an_entry_which_has_to_go() {
        let public = "public.ecr.aws";
        let ends = Expirations::from([(public.to_owned(), at(1))]);
        let mut wanted = wanted(&[]);
        let look = |wanted: &Wanted| next_look(&ends, wanted, at(0), [1.0, 1.0]);
        assert_eq!(look(&wanted), Duration::from_hours(1));
        wanted.lapse.insert(public.to_owned(), at(1));
        assert_eq!(look(&wanted), Duration::from_mins(5));
    }

    #[test]
    fn a_secret_that_was_made_by_hand_is_taken_over() {
        let ours = wanted(&[(HOST, "QVdTOmE=", 0)]);
        let by_kubectl = format!(
            r#"{{"auths":{{"{HOST}":{{"username":"AWS","password":"p","auth":"QVdTOnA="}},"other.example":{{"auth":"QVdTOnA="}}}}}}"#
        );
        for ownership in [Ownership::Alone, Ownership::Many] {
            let (_, reason) = written(Some(&foreign(&by_kubectl)), &ours, ownership, at(0));
            assert_eq!(reason, WriteReason::TakenOver(vec!["other.example".to_owned()]));
            for broken in ["", "{", "[]", r#"{"auths":1}"#] {
                let (after, reason) = written(Some(&foreign(broken)), &ours, ownership, at(0));
                assert_eq!(reason, WriteReason::TakenOver(Vec::new()), "{broken}");
                assert!(is_left(&after, &ours, ownership, at(0)), "{broken}");
            }
        }
    }

    #[test]
    fn a_secret_that_cannot_be_changed_is_refused() {
        let ours = wanted(&[(HOST, "QVdTOmE=", 0)]);
        let mut opaque = foreign("{}");
        opaque.0.type_ = Some("Opaque".to_owned());
        let mut immutable = foreign("{}");
        immutable.0.immutable = Some(true);
        for ownership in [Ownership::Alone, Ownership::Many] {
            let planned = plan(Some(&opaque), &ours, ownership, at(0));
            assert!(matches!(planned, Plan::Refuse(Unfit::Type(kind)) if kind == "Opaque"));
            let planned = plan(Some(&immutable), &ours, ownership, at(0));
            assert!(matches!(planned, Plan::Refuse(Unfit::Immutable)));
            let (mut secret, _) = written(None, &ours, ownership, at(0));
            secret.0.immutable = Some(true);
            assert!(is_left(&secret, &ours, ownership, at(0)), "there is nothing to change in it");
        }
    }

    /// The secret with a ledger that claims another expiry for its entries, and annotations that agree with that.
    fn claiming(secret: &PullSecret, expires_at: Timestamp) -> PullSecret {
        let mut secret = secret.clone();
        let mut ledger = Ledger::from_json(&annotations(&mut secret)[ENTRIES]).unwrap();
        ledger.entries.values_mut().for_each(|record| record.expires_at = expires_at);
        annotations(&mut secret).insert(ENTRIES.to_owned(), ledger.to_line());
        annotations(&mut secret).insert(EXPIRES_AT.to_owned(), expires_at.to_string());
        secret
    }

    #[test]
    fn an_expiry_beyond_a_tokens_life_is_not_believed() {
        let ours = wanted(&[(HOST, "QVdTOmI=", 0)]);
        let (planted, _) = written(None, &wanted(&[(HOST, "QVdTOmE=", 0)]), Ownership::Many, at(0));
        let now = at(0) + SignedDuration::from_mins(5);
        let cases = [
            // minutes after now at which the token is said to expire, whether that is believed
            (12 * 60, true),
            (12 * 60 + 15, true), // this node's clock may be behind
            (12 * 60 + 16, false),
            (24 * 365 * 60, false),
        ];
        for (minutes, believed) in cases {
            let planted = claiming(&planted, now + SignedDuration::from_mins(minutes));
            let left = is_left(&planted, &ours, Ownership::Many, now);
            assert_eq!(left, believed, "{minutes} minutes");
            if !left {
                let (repaired, reason) = written(Some(&planted), &ours, Ownership::Many, now);
                assert_eq!(reason, WriteReason::Changed);
                assert!(held(&repaired, now).into_values().eq(["QVdTOmI="]));
            }
        }
        // Nor does an agent with a slow clock repair what it has just written.
        let slow = at(-2);
        let (secret, _) = written(None, &ours, Ownership::Many, slow);
        assert!(is_left(&secret, &ours, Ownership::Many, slow));
    }

    #[test]
    fn the_buffer_of_a_docker_config_is_allocated_once() {
        let ours = wanted(&[(HOST, &"QVdT".repeat(1000), 0), (OTHER, &"QVdT".repeat(600), 0)]);
        let entries = ours.entries.iter().map(|(key, ours)| (key.clone(), Entry::of(ours))).collect();
        let text = docker_config(&entries);
        assert!(text.capacity() - text.len() < 100, "{} for {}", text.capacity(), text.len());
    }

    #[test]
    fn debug_shows_no_token() {
        let ours = wanted(&[(HOST, "QVdTOmE=", 0)]);
        let plan = plan(None, &ours, Ownership::Many, at(0));
        let secret = foreign("QVdTOmE=");
        let shown = format!("{plan:?}{secret:?}");
        assert!(!shown.contains("QVdTOmE") && !shown.contains("81, 86, 100"), "{shown}");
        assert!(shown.contains("ecr-creds"), "{shown}");
    }

    /// The repair of a secret that another program has damaged, by agents in some order.
    fn repaired_by(agents: &[&Wanted], now: Timestamp) -> PullSecret {
        let mut secret = foreign(r#"{"auths":{"x":{"auth":"QVdTOmE="}}}"#);
        for agent in agents {
            if let Plan::Apply(desired, _) = plan(Some(&secret), agent, Ownership::Many, now) {
                secret = desired.object.clone();
                // As if each repair was long ago, and the next one found the secret damaged again.
                annotations(&mut secret).insert(WRITTEN_AT.to_owned(), at(-1).to_string());
                annotations(&mut secret).remove(EXPIRES_AT);
            }
        }
        secret
    }

    proptest! {
        #[test]
        fn a_second_look_finds_nothing_to_do(
            ours in prop::collection::btree_map("[a-c]", (-12_i64..30, "QVdTOm[EIMQU]="), 0..3),
            theirs in prop::collection::btree_map("[a-c]", (-12_i64..1, "QVdTOm[EIMQU]="), 0..3),
            now in 0_i64..30,
            drop_others: bool,
        ) {
            let entries = |of: &BTreeMap<String, (i64, String)>| {
                // No token comes from the future.
                of.iter().map(|(key, (fetched, auth))| (key.clone(), entry(auth, (*fetched).min(now)))).collect()
            };
            let [ours, theirs] =
                [ours, theirs].map(|of| Wanted { entries: entries(&of), drop_others, ..Wanted::default() });
            for ownership in [Ownership::Alone, Ownership::Many] {
                let before = match plan(None, &theirs, ownership, at(0)) {
                    Plan::Create(desired) => Some(desired.object.clone()),
                    _ => None,
                };
                let after = match plan(before.as_ref(), &ours, ownership, at(now)) {
                    Plan::Create(desired) | Plan::Apply(desired, _) => desired.object.clone(),
                    _ => continue,
                };
                prop_assert!(is_left(&after, &ours, ownership, at(now)));
                if ownership == Ownership::Many {
                    let end = |secret: &PullSecret, key: &String| {
                        let entries = Current::read(secret, &theirs, at(now)).entries;
                        entries.get(key).map(|entry| entry.record.expires_at)
                    };
                    for key in theirs.entries.keys() {
                        let was = before.as_ref().and_then(|secret| end(secret, key));
                        let was = was.filter(|was| *was > at(now));
                        prop_assert!(was <= end(&after, key), "no token is replaced by a worse one");
                    }
                }
            }
        }

        #[test]
        fn agents_that_fetched_in_the_same_second_agree_on_one_token(
            auths in prop::collection::btree_set("[a-z]{4}".prop_map(|password| STANDARD.encode(format!("AWS:{password}"))), 2..6),
            turns in prop::collection::vec(0_usize..6, 0..12),
        ) {
            let agents: Vec<Wanted> = auths.iter().map(|auth| wanted(&[(HOST, auth, 0)])).collect();
            let all: Vec<&Wanted> = agents.iter().collect();
            let best = agents
                .iter()
                .max_by(|a, b| {
                    let [a, b] = [a, b].map(|agent| agent.entries[HOST].record());
                    a.rank(at(0)).cmp(&b.rank(at(0)))
                })
                .unwrap();
            let best = best.entries[HOST].auth.expose_secret();
            let turns: Vec<&Wanted> = turns.iter().filter_map(|turn| agents.get(*turn)).collect();
            let order: Vec<&Wanted> = turns.into_iter().chain(all).collect();
            prop_assert!(held(&repaired_by(&order, at(0)), at(0)).values().eq([best]));
        }
    }
}
