//! What a pull secret should hold, what one holds, and what has to be done about it.
//!
//! Pure. The decision is a value ([`Plan`]). The docker config in the secret holds the entries of our registries and
//! nothing else; what we need to know of them stands in the secret's annotations, so that everybody can read it.

use super::schedule;
use crate::docker_config::ledger::{Ledger, Record};
use crate::docker_config::merge::{Wanted, WantedEntry};
use crate::docker_config::{document, json, ledger};
use crate::time::schedule::Life;
use jiff::Timestamp;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret as _, SecretString};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// The type of a pull secret. The older `kubernetes.io/dockercfg` is another.
pub const TYPE: &str = "kubernetes.io/dockerconfigjson";
/// Under this key of its data stands the docker config.
pub const DATA_KEY: &str = ".dockerconfigjson";
/// Until when the first of its tokens is good.
pub const EXPIRES_AT: &str = "ecr-node-agent/expires-at";
/// When it was written last.
pub const WRITTEN_AT: &str = "ecr-node-agent/written-at";
/// What the document remembers in an auth file, in the same form: for each registry until when its token is good, and a
/// digest that tells whether it is still the one that was written.
pub const ENTRIES: &str = "ecr-node-agent/entries";

/// A Secret, as far as it matters here.
#[derive(Clone, Default)]
pub struct Seen {
    /// The object, whatever its name.
    pub uid: String,
    /// Its version.
    pub resource_version: String,
    /// Its type.
    pub kind: String,
    /// Nobody can change it.
    pub immutable: bool,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// The docker config in it.
    pub config: Option<Zeroizing<Vec<u8>>>,
    /// Whether our field manager is among those that set the docker config.
    pub ours: bool,
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The docker config is the one thing that is not to be seen.
        f.debug_struct("Seen").field("uid", &self.uid).field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// Who else writes the same secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// Nobody: it should hold just what we publish. No token of the secret's is ever taken for ours, since whoever may
    /// write a Secret could have put it there.
    Alone,
    /// Agents like this one: what one of them wrote stays while it is good, and nobody hurries.
    Many,
}

/// Why a secret cannot be written.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum Unfit {
    /// The type of a Secret is for good.
    #[error("has type {}, and a type cannot be changed", .0.escape_debug())]
    Type(String),
    /// So is this mark.
    #[error("is immutable")]
    Immutable,
}

/// What has to happen to a secret.
#[derive(Debug)]
pub enum Plan {
    /// Nothing: it is good as it is.
    Keep(Expirations),
    /// Nothing now, although somebody else has changed it: it was repaired a short while ago.
    PutOff,
    /// Create it, or change what is there.
    Write(Content, WriteReason),
}

/// Why a secret is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteReason {
    /// It was not there.
    Missing,
    /// It is time, or there is something new.
    New,
    /// What we wrote has been changed.
    Changed,
    /// It was somebody else's. What it held besides our registries' entries goes: these keys.
    TakenOver(Vec<String>),
}

/// What a secret is to hold.
pub struct Content {
    /// The docker config.
    pub config: Zeroizing<String>,
    /// The annotations.
    pub annotations: BTreeMap<&'static str, String>,
    /// Until when its tokens are good.
    pub ends: Expirations,
}

/// Until when the token of each registry is good.
pub type Expirations = BTreeMap<String, Timestamp>;

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Content").field("ends", &self.ends).finish_non_exhaustive()
    }
}

/// An entry, and what is known of it.
#[derive(Clone)]
struct Entry {
    auth: SecretString,
    record: Record,
}

/// What a secret holds that the agents have put there.
#[derive(Default)]
struct Standing {
    entries: BTreeMap<String, Entry>,
    /// What else is in it.
    foreign: Vec<String>,
    /// Whether there is nothing else in it, and the annotations say what is true.
    tidy: bool,
}

impl Standing {
    fn read(seen: &Seen) -> Self {
        let Some(config) = &seen.config else { return Self::default() };
        let Ok(parsed) = document::parse(config) else { return Self::default() };
        let document = &parsed.document;
        let ledger =
            seen.annotations.get(ENTRIES).and_then(|text| Ledger::from_json(text)).unwrap_or_default();
        let mut standing = Self { tidy: parsed.spoilt.is_empty(), ..Self::default() };
        for key in document.keys() {
            let auth = document.plain_auth(key);
            let record = ledger.entries.get(key);
            match auth.zip(record) {
                Some((auth, record)) if ledger::digest(auth.expose_secret()) == record.digest => {
                    standing.entries.insert(key.to_owned(), Entry { auth, record: record.clone() });
                }
                _ => standing.foreign.push(key.to_owned()),
            }
        }
        standing.tidy &= standing.foreign.is_empty()
            && !document.has_other_fields()
            && document.ledger().is_none()
            && ledger.entries.len() == standing.entries.len()
            && seen.annotations.get(EXPIRES_AT).map(String::as_str)
                == first_end(&standing.entries).as_deref();
        standing
    }
}

fn first_end(entries: &BTreeMap<String, Entry>) -> Option<String> {
    ends(entries).values().min().map(ToString::to_string)
}

fn ends(entries: &BTreeMap<String, Entry>) -> Expirations {
    entries.iter().map(|(key, entry)| (key.clone(), entry.record.expires_at)).collect()
}

/// Plans what has to happen to a secret, so that it holds what is wanted.
///
/// # Errors
/// When it can hold no such thing.
pub fn plan(seen: Option<&Seen>, wanted: &Wanted, among: Ownership, now: Timestamp) -> Result<Plan, Unfit> {
    // It may have been a while since they were handed to us.
    let good = wanted.entries.iter().filter(|(_, entry)| entry.expires_at > now);
    let good = good.map(|(key, entry)| (key.clone(), entry.clone())).collect();
    let ended =
        wanted.entries.iter().filter(|(_, entry)| entry.expires_at <= now).map(|(key, _)| key.clone());
    let keep = wanted.keep.iter().cloned().chain(ended).collect();
    let wanted =
        &Wanted { entries: good, keep, lapse: wanted.lapse.clone(), drop_others: wanted.drop_others };
    let standing = seen.map(Standing::read).unwrap_or_default();
    let entries = entries(&standing, wanted, among, now);
    let Some(seen) = seen else {
        return Ok(if entries.is_empty() {
            Plan::Keep(Expirations::new())
        } else {
            Plan::Write(content(&entries, now), WriteReason::Missing)
        });
    };
    // Without anything to put in, nobody is told that it could not be put in.
    if wanted.entries.is_empty() && standing.entries.is_empty() {
        return Ok(Plan::Keep(Expirations::new()));
    }
    if seen.kind != TYPE {
        return Err(Unfit::Type(seen.kind.clone()));
    }
    let because = match among {
        Ownership::Alone => because_alone(seen, &standing, &entries),
        Ownership::Many => because_among_many(&standing, wanted, &entries, now),
    };
    let Some(because) = because else { return Ok(Plan::Keep(ends(&standing.entries))) };
    if seen.immutable {
        return Err(Unfit::Immutable);
    }
    let because = match because {
        // Nothing in it tells of us: this is the first time.
        WriteReason::Changed if !seen.annotations.contains_key(ENTRIES) => WriteReason::TakenOver(
            standing.foreign.iter().filter(|key| !entries.contains_key(*key)).cloned().collect(),
        ),
        other => other,
    };
    if among == Ownership::Many && because == WriteReason::Changed && was_written_lately(seen, now) {
        return Ok(Plan::PutOff);
    }
    Ok(Plan::Write(content(&entries, now), because))
}

/// The entries that the secret is to hold.
fn entries(
    standing: &Standing,
    wanted: &Wanted,
    among: Ownership,
    now: Timestamp,
) -> BTreeMap<String, Entry> {
    let stays = |key: &String, entry: &Entry| match (wanted.entries.get(key), wanted.lapse.get(key)) {
        (Some(ours), _) => among == Ownership::Many && entry.record.expires_at > ours.expires_at,
        (_, Some(until)) => entry.record.expires_at > *until,
        // Of agents with other settings than ours, as while new ones are rolled out, neither takes out what the other
        // has put in: it goes when it has ended.
        (None, None) => {
            wanted.keep.contains(key)
                || !wanted.drop_others
                || (among == Ownership::Many && entry.record.expires_at > now)
        }
    };
    let stay = standing.entries.iter().filter(|(key, entry)| stays(key, entry));
    let mut entries: BTreeMap<String, Entry> =
        stay.map(|(key, entry)| (key.clone(), entry.clone())).collect();
    for (key, entry) in &wanted.entries {
        entries.entry(key.clone()).or_insert_with(|| ours(entry));
    }
    entries
}

fn ours(entry: &WantedEntry) -> Entry {
    Entry { auth: entry.auth.clone(), record: entry.record() }
}

fn because_alone(seen: &Seen, standing: &Standing, entries: &BTreeMap<String, Entry>) -> Option<WriteReason> {
    let records = |entries: &BTreeMap<String, Entry>| -> Vec<(String, Record)> {
        entries.iter().map(|(key, entry)| (key.clone(), entry.record.clone())).collect()
    };
    let text = config(entries);
    let same = seen.config.as_ref().is_some_and(|config| config.as_slice() == text.as_bytes());
    if same && standing.tidy && records(&standing.entries) == records(entries) {
        return None;
    }
    // What we wrote last is whole, and something newer is to be written: no one else was there.
    Some(if standing.tidy { WriteReason::New } else { WriteReason::Changed })
}

fn because_among_many(
    standing: &Standing,
    wanted: &Wanted,
    entries: &BTreeMap<String, Entry>,
    now: Timestamp,
) -> Option<WriteReason> {
    if !standing.tidy {
        return Some(WriteReason::Changed);
    }
    let is_due = |key: &String, ours: &WantedEntry| {
        // What is not there is as good as ended.
        standing.entries.get(key).is_none_or(|entry| {
            let life = Life { fetched_at: ours.fetched_at, expires_at: ours.expires_at };
            schedule::due(entry.record.expires_at, life).is_some_and(|due| due <= now)
        })
    };
    let due = wanted.entries.iter().any(|(key, ours)| is_due(key, ours));
    let lapsed =
        standing.entries.keys().any(|key| wanted.lapse.contains_key(key) && !entries.contains_key(key));
    (due || lapsed).then_some(WriteReason::New)
}

fn was_written_lately(seen: &Seen, now: Timestamp) -> bool {
    let written = seen.annotations.get(WRITTEN_AT).and_then(|text| text.parse::<Timestamp>().ok());
    // One from the future was written by another clock, or by nobody who means well.
    written.is_some_and(|written| written <= now && now.duration_since(written) < schedule::REPAIR_PAUSE)
}

fn content(entries: &BTreeMap<String, Entry>, now: Timestamp) -> Content {
    let records = entries.iter().map(|(key, entry)| (key.clone(), entry.record.clone()));
    let ledger = Ledger::of(records.collect());
    let mut annotations = BTreeMap::from([(ENTRIES, ledger.to_line()), (WRITTEN_AT, now.to_string())]);
    if let Some(end) = first_end(entries) {
        annotations.insert(EXPIRES_AT, end);
    }
    Content { config: config(entries), annotations, ends: ends(entries) }
}

fn config(entries: &BTreeMap<String, Entry>) -> Zeroizing<String> {
    // Base64 needs no escapes. Sized up front: a text that grows leaves copies behind, which nobody would zero.
    let keys: Vec<(String, &SecretString)> =
        entries.iter().map(|(key, entry)| (json::quoted(key), &entry.auth)).collect();
    let size = keys.iter().map(|(key, auth)| key.len() + auth.expose_secret().len() + 16).sum::<usize>() + 16;
    let mut text = Zeroizing::new(String::with_capacity(size));
    text.push_str(r#"{"auths":{"#);
    for (number, (key, auth)) in keys.iter().enumerate() {
        text.push_str(if number == 0 { "" } else { "," });
        text.push_str(key);
        text.push_str(r#":{"auth":""#);
        text.push_str(auth.expose_secret());
        text.push_str(r#""}"#);
    }
    text.push_str("}}");
    text
}

/// When an agent among many looks next at a secret with these tokens in it. `chance` as for [`schedule::next_look`].
#[must_use]
pub fn next_look(ends: &Expirations, wanted: &Wanted, now: Timestamp, chance: [f64; 2]) -> Duration {
    let lapses = |(key, until): (&String, &Timestamp)| ends.get(key).is_some_and(|end| end <= until);
    if wanted.lapse.iter().any(lapses) {
        return schedule::lapsing(chance[1]);
    }
    let looks = wanted.entries.iter().map(|(key, ours)| {
        let life = Life { fetched_at: ours.fetched_at, expires_at: ours.expires_at };
        schedule::next_look(now, ends.get(key).copied().unwrap_or(now), life, chance)
    });
    looks.min().unwrap_or_else(|| schedule::next_look(now, Timestamp::MAX, NO_LIFE, chance))
}

/// A token that is better than none.
const NO_LIFE: Life = Life { fetched_at: Timestamp::MIN, expires_at: Timestamp::MIN };

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;
    use proptest::prelude::*;

    const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    const OTHER: &str = "123456789012.dkr.ecr.us-east-1.amazonaws.com";

    fn at(hours: i64) -> Timestamp {
        "2026-11-23T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_hours(hours)
    }

    /// A token of 12 hours, fetched then.
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

    /// The secret after a write.
    fn applied(before: Option<&Seen>, content: &Content) -> Seen {
        let mut seen = before.cloned().unwrap_or_default();
        TYPE.clone_into(&mut seen.kind);
        seen.config = Some(Zeroizing::new(content.config.as_bytes().to_vec()));
        let set = content.annotations.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
        seen.annotations.extend(set);
        seen
    }

    fn written(
        seen: Option<&Seen>,
        wanted: &Wanted,
        among: Ownership,
        now: Timestamp,
    ) -> (Seen, WriteReason) {
        match plan(seen, wanted, among, now) {
            Ok(Plan::Write(content, because)) => (applied(seen, &content), because),
            other => panic!("{other:?}"),
        }
    }

    fn is_kept(seen: &Seen, wanted: &Wanted, among: Ownership, now: Timestamp) -> bool {
        matches!(plan(Some(seen), wanted, among, now), Ok(Plan::Keep(_)))
    }

    fn foreign(config: &str) -> Seen {
        let config = Some(Zeroizing::new(config.as_bytes().to_vec()));
        Seen { kind: TYPE.to_owned(), config, ..Seen::default() }
    }

    #[test]
    fn what_was_written_is_left_alone_and_says_until_when() {
        for among in [Ownership::Alone, Ownership::Many] {
            let wanted = wanted(&[(HOST, "QVdTOmE=", 0), (OTHER, "QVdTOmI=", -1)]);
            let (seen, because) = written(None, &wanted, among, at(0));
            assert_eq!(because, WriteReason::Missing);
            assert_eq!(
                std::str::from_utf8(seen.config.as_ref().unwrap()).unwrap(),
                format!(r#"{{"auths":{{"{HOST}":{{"auth":"QVdTOmE="}},"{OTHER}":{{"auth":"QVdTOmI="}}}}}}"#)
            );
            assert_eq!(seen.annotations[EXPIRES_AT], at(11).to_string());
            assert!(is_kept(&seen, &wanted, among, at(0)), "{among:?}");
        }
    }

    #[test]
    fn nothing_is_created_without_a_token_that_is_good() {
        for among in [Ownership::Alone, Ownership::Many] {
            for wanted in [wanted(&[]), wanted(&[(HOST, "QVdTOmE=", -12)])] {
                assert!(matches!(plan(None, &wanted, among, at(0)), Ok(Plan::Keep(ends)) if ends.is_empty()));
            }
        }
    }

    #[test]
    fn who_is_alone_puts_back_what_it_published_and_takes_nothing_over() {
        let old = wanted(&[(HOST, "QVdTOmE=", 0)]);
        let new = wanted(&[(HOST, "QVdTOmI=", 0)]);
        let (seen, _) = written(None, &old, Ownership::Alone, at(0));
        // Well made, but not ours: whoever may write the Secret could have planted it.
        let (_, because) = written(Some(&seen), &new, Ownership::Alone, at(0));
        assert_eq!(because, WriteReason::New);
        let mut changed = seen.clone();
        changed.config = Some(Zeroizing::new(br#"{"auths":{}}"#.to_vec()));
        let (repaired, because) = written(Some(&changed), &old, Ownership::Alone, at(0));
        assert_eq!((because, &repaired.config), (WriteReason::Changed, &seen.config));
        for annotation in [ENTRIES, EXPIRES_AT] {
            let mut changed = seen.clone();
            changed.annotations.remove(annotation);
            assert!(!is_kept(&changed, &old, Ownership::Alone, at(0)), "{annotation}");
        }
    }

    #[test]
    fn among_many_the_first_one_writes_and_the_others_leave_it_alone() {
        let first = wanted(&[(HOST, "QVdTOmE=", 0)]);
        let (seen, _) = written(None, &first, Ownership::Many, at(0));
        let cases = [
            // another agent's token was fetched at, it is now, kept
            (0, 0, true),
            (8, 8, true), // much better, but the last part has not begun
            (8, 10, false),
            (2, 10, true), // not much better, and there is time
            (2, 12, false),
            (-1, 11, true),
        ];
        for (fetched, now, kept) in cases {
            let other = wanted(&[(HOST, "QVdTOmI=", fetched)]);
            assert_eq!(
                is_kept(&seen, &other, Ownership::Many, at(now)),
                kept,
                "fetched at {fetched}, now {now}"
            );
        }
    }

    #[test]
    fn among_many_a_repair_is_made_once_in_five_minutes() {
        let ours = wanted(&[(HOST, "QVdTOmE=", 0)]);
        let (seen, _) = written(None, &ours, Ownership::Many, at(0));
        let mut changed = seen.clone();
        changed.config = Some(Zeroizing::new(br#"{"auths":{"x":{"auth":"QVdTOmE="}}}"#.to_vec()));
        let minute = |minutes| at(0) + SignedDuration::from_mins(minutes);
        assert!(matches!(plan(Some(&changed), &ours, Ownership::Many, minute(4)), Ok(Plan::PutOff)));
        let (_, because) = written(Some(&changed), &ours, Ownership::Many, minute(5));
        assert_eq!(because, WriteReason::Changed);
        // A clock that is behind holds nothing up.
        let (_, because) = written(Some(&changed), &ours, Ownership::Many, minute(-1));
        assert_eq!(because, WriteReason::Changed);
    }

    #[test]
    fn agents_with_other_settings_do_not_take_out_what_is_good() {
        let old = wanted(&[(HOST, "QVdTOmE=", 0)]);
        let new = wanted(&[(OTHER, "QVdTOmI=", 1)]);
        let (seen, _) = written(None, &old, Ownership::Many, at(0));
        let (both, because) = written(Some(&seen), &new, Ownership::Many, at(1));
        assert_eq!(because, WriteReason::New);
        let keys = |seen: &Seen| Standing::read(seen).entries.into_keys().collect::<Vec<_>>();
        assert_eq!(keys(&both), [HOST, OTHER]);
        assert!(is_kept(&both, &old, Ownership::Many, at(1)) && is_kept(&both, &new, Ownership::Many, at(1)));
        // Once it has ended, the next write leaves it out.
        let (later, _) = written(Some(&both), &wanted(&[(OTHER, "QVdTOmM=", 12)]), Ownership::Many, at(12));
        assert_eq!(keys(&later), [OTHER]);
    }

    #[test]
    fn a_region_without_a_token_keeps_what_is_there_and_holds_no_other_up() {
        for among in [Ownership::Alone, Ownership::Many] {
            let (seen, _) =
                written(None, &wanted(&[(HOST, "QVdTOmE=", 0), (OTHER, "QVdTOmI=", 0)]), among, at(0));
            let mut half = wanted(&[(HOST, "QVdTOmM=", 10)]);
            half.keep.push(OTHER.to_owned());
            let (renewed, _) = written(Some(&seen), &half, among, at(10));
            let standing = Standing::read(&renewed);
            let auth = |key: &str| standing.entries[key].auth.expose_secret().to_owned();
            assert_eq!((auth(HOST).as_str(), auth(OTHER).as_str()), ("QVdTOmM=", "QVdTOmI="));
            assert!(is_kept(&renewed, &half, among, at(10)));
        }
    }

    #[test]
    fn what_cannot_be_renewed_lapses() {
        let public = "public.ecr.aws";
        for among in [Ownership::Alone, Ownership::Many] {
            let (seen, _) =
                written(None, &wanted(&[(HOST, "QVdTOmE=", 0), (public, "QVdTOmI=", -10)]), among, at(0));
            let mut without = wanted(&[(HOST, "QVdTOmE=", 0)]);
            without.lapse.insert(public.to_owned(), at(1));
            assert!(is_kept(&seen, &without, among, at(0)), "it is good for longer");
            without.lapse.insert(public.to_owned(), at(2));
            let (after, because) = written(Some(&seen), &without, among, at(0));
            assert_eq!(because, WriteReason::New);
            assert!(!Standing::read(&after).entries.contains_key(public));
        }
    }

    #[test]
    fn a_node_looks_in_time_at_what_has_to_go() {
        let public = "public.ecr.aws";
        let ends = Expirations::from([(public.to_owned(), at(1))]);
        let mut wanted = wanted(&[]);
        let look = |wanted: &Wanted| next_look(&ends, wanted, at(0), [1.0, 1.0]);
        assert_eq!(look(&wanted), Duration::from_hours(1));
        wanted.lapse.insert(public.to_owned(), at(1));
        assert_eq!(look(&wanted), Duration::from_mins(5));
    }

    #[test]
    fn a_secret_made_by_hand_is_taken_over() {
        let ours = wanted(&[(HOST, "QVdTOmE=", 0)]);
        let by_kubectl = format!(
            r#"{{"auths":{{"{HOST}":{{"username":"AWS","password":"p","auth":"QVdTOnA="}},"other.example":{{"auth":"QVdTOnA="}}}}}}"#
        );
        for among in [Ownership::Alone, Ownership::Many] {
            let (_, because) = written(Some(&foreign(&by_kubectl)), &ours, among, at(0));
            assert_eq!(because, WriteReason::TakenOver(vec!["other.example".to_owned()]));
        }
        for broken in ["", "{", "[]", r#"{"auths":1}"#] {
            for among in [Ownership::Alone, Ownership::Many] {
                let (after, because) = written(Some(&foreign(broken)), &ours, among, at(0));
                assert_eq!(because, WriteReason::TakenOver(Vec::new()), "{broken}");
                assert!(is_kept(&after, &ours, among, at(0)), "{broken}");
            }
        }
    }

    #[test]
    fn what_cannot_be_changed_is_said() {
        let ours = wanted(&[(HOST, "QVdTOmE=", 0)]);
        let opaque = Seen { kind: "Opaque".to_owned(), ..foreign("{}") };
        let immutable = Seen { immutable: true, ..foreign("{}") };
        for among in [Ownership::Alone, Ownership::Many] {
            let error = plan(Some(&opaque), &ours, among, at(0)).unwrap_err();
            assert_eq!(error, Unfit::Type("Opaque".to_owned()));
            assert_eq!(plan(Some(&immutable), &ours, among, at(0)).unwrap_err(), Unfit::Immutable);
            let (seen, _) = written(None, &ours, among, at(0));
            assert!(is_kept(&Seen { immutable: true, ..seen }, &ours, among, at(0)), "it is as it should be");
        }
    }

    #[test]
    fn debug_shows_no_token() {
        let ours = wanted(&[(HOST, "QVdTOmE=", 0)]);
        let plan = plan(None, &ours, Ownership::Many, at(0));
        let seen = foreign("QVdTOmE=");
        assert!(!format!("{plan:?}{seen:?}").contains("QVdTOmE"));
    }

    proptest! {
        #[test]
        fn a_second_look_finds_nothing_to_do(
            ours in prop::collection::btree_map("[a-c]", (0_i64..24, "QVdTOm[EIMQU]="), 0..3),
            theirs in prop::collection::btree_map("[a-c]", (0_i64..24, "QVdTOm[EIMQU]="), 0..3),
            now in 0_i64..30,
            drop_others: bool,
        ) {
            let entries = |of: &BTreeMap<String, (i64, String)>| {
                of.iter().map(|(key, (fetched, auth))| (key.clone(), entry(auth, *fetched))).collect()
            };
            let [ours, theirs] =
                [ours, theirs].map(|of| Wanted { entries: entries(&of), drop_others, ..Wanted::default() });
            for among in [Ownership::Alone, Ownership::Many] {
                let before = match plan(None, &theirs, among, at(0)) {
                    Ok(Plan::Write(content, _)) => Some(applied(None, &content)),
                    _ => None,
                };
                if let Ok(Plan::Write(content, _)) = plan(before.as_ref(), &ours, among, at(now)) {
                    let after = applied(before.as_ref(), &content);
                    prop_assert!(is_kept(&after, &ours, among, at(now)));
                    if among == Ownership::Many {
                        let end = |seen: &Seen, key: &String| Standing::read(seen).entries.get(key).map(|e| e.record.expires_at);
                        for key in theirs.entries.keys() {
                            let was = before.as_ref().and_then(|seen| end(seen, key)).filter(|was| *was > at(now));
                            prop_assert!(was <= end(&after, key), "no token is replaced by a worse one");
                        }
                    }
                }
            }
        }
    }
}
