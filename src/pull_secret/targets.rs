//! What the Deployment knows of each secret and service account that it keeps: when it is due, and what failed.
//!
//! It makes no requests. A namespace that is gone takes everything about it along: a late result for one of its targets is
//! dropped.

use super::names::{Namespace, SecretRef};
use super::publish::{Effect, Published, PullSecretError};
use super::reconcile::WriteReason;
use super::record::{Done, SecretDone, Target};
use crate::docker_config::merge::Wanted;
use crate::report::metrics::Metrics;
use crate::time::timer::{Deadline, Now};
use crate::time::write_scheduler::{DriftEvent, WriteResult, WriteScheduler};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

/// A target that failed is not tried sooner, however often it changes.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// No `Retry-After` is obeyed for longer.
const LONGEST_PAUSE: Duration = Duration::from_mins(5);

/// The version of an object; `None` if it does not exist.
pub(super) type Version = Option<String>;

/// A secret or a service account.
#[derive(Default)]
struct TargetState {
    scheduler: WriteScheduler,
    /// The tokens of the last attempt; `None` before the first one.
    tokens: Option<Arc<Wanted>>,
    /// The version that the last attempt left, or started with if it failed.
    version: Version,
    /// The version that the watch has seen last; `None` if it has not said.
    seen: Option<Version>,
    /// Until when the target is left alone after a failure.
    pause: Option<Deadline>,
}

impl TargetState {
    /// How long to wait before the next attempt; `None` if there is nothing to do.
    fn next(&self, now: Now) -> Option<Duration> {
        let due = self.scheduler.next(now)?;
        let due = self.pause.map_or(due, |pause| due.later(pause));
        Some(if now.is_past(due) { Duration::ZERO } else { due.boot.saturating_sub(now.boot) })
    }
}

/// A namespace, and its targets.
#[derive(Default)]
struct NamespaceState {
    /// Tells a namespace from an earlier one of the same name; `None` if it does not exist.
    uid: Option<String>,
    /// One or a few: a map would take ten times as much memory.
    targets: Vec<(Target, TargetState)>,
}

impl NamespaceState {
    fn target(&mut self, target: &Target) -> Option<&mut TargetState> {
        self.targets.iter_mut().find(|(it, _)| it == target).map(|(_, state)| state)
    }
}

/// All targets, by namespace.
pub(super) struct Targets {
    metrics: Metrics,
    namespaces: BTreeMap<Namespace, NamespaceState>,
    /// Targets whose last attempt failed.
    failing: BTreeSet<Target>,
}

impl Targets {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self { metrics, namespaces: BTreeMap::new(), failing: BTreeSet::new() }
    }

    /// The namespaces that have targets.
    pub(super) fn namespaces(&self) -> Vec<Namespace> {
        self.namespaces.keys().cloned().collect()
    }

    /// Keeps these targets in a namespace, and forgets all others that it had.
    pub(super) fn set(&mut self, namespace: &Namespace, uid: Option<&String>, targets: &BTreeSet<Target>) {
        let known = self.namespaces.get(namespace).and_then(|known| known.uid.as_ref());
        if targets.is_empty() || known.is_some_and(|known| Some(known) != uid) {
            self.forget(namespace);
        }
        if targets.is_empty() {
            return;
        }
        let state = self.namespaces.entry(namespace.clone()).or_default();
        let mut before = std::mem::take(&mut state.targets);
        if state.uid.is_none() && uid.is_some() {
            state.uid = uid.cloned();
            // What has failed may have waited for the namespace.
            for (_, state) in before.iter_mut().filter(|(target, _)| self.failing.contains(target)) {
                *state = TargetState::default();
            }
        }
        state.targets.reserve_exact(targets.len());
        for target in targets {
            let place = before.iter().position(|(it, _)| it == target);
            let kept = place.map(|place| before.swap_remove(place));
            state.targets.push(kept.unwrap_or_else(|| (target.clone(), TargetState::default())));
        }
        for (target, _) in before {
            forget(&self.metrics, &mut self.failing, &target);
        }
    }

    /// Forgets a namespace that is gone, or is being terminated.
    pub(super) fn forget(&mut self, namespace: &Namespace) {
        let state = self.namespaces.remove(namespace);
        for (target, _) in state.iter().flat_map(|state| &state.targets) {
            forget(&self.metrics, &mut self.failing, target);
        }
    }

    /// The watch of a target has seen this version of it.
    pub(super) fn seen(&mut self, target: &Target, version: Version) {
        let namespace = target.namespace().and_then(|namespace| self.namespaces.get_mut(namespace));
        if let Some(state) = namespace.and_then(|namespace| namespace.target(target)) {
            state.seen = Some(version);
        }
    }

    /// Whether a target is to be reconciled now: after no time. `None` if there is nothing to do.
    pub(super) fn start(
        &mut self,
        namespace: &Namespace,
        target: &Target,
        wanted: &Arc<Wanted>,
        now: Now,
    ) -> Option<Duration> {
        let state = self.namespaces.get_mut(namespace)?.target(target)?;
        let is_new = state.tokens.as_ref().is_none_or(|tokens| !Arc::ptr_eq(tokens, wanted));
        // A service account holds no token.
        if state.tokens.is_none() || (is_new && matches!(target, Target::Secret(_))) {
            state.scheduler.renew();
        }
        state.tokens = Some(Arc::clone(wanted));
        if let Some(seen) = state.seen.as_ref().filter(|seen| **seen != state.version) {
            state.scheduler.look(now);
            state.version.clone_from(seen);
        }
        let delay = state.next(now)?;
        if delay.is_zero() {
            state.scheduler.start(now);
        }
        Some(delay)
    }

    /// Records what happened to a target of a namespace with this UID, and returns how long to wait before the next attempt.
    pub(super) fn finish(
        &mut self,
        namespace: &Namespace,
        uid: Option<&String>,
        done: &SecretDone,
        now: Now,
        random: f64,
    ) -> Option<Duration> {
        let of = self.namespaces.get_mut(namespace).filter(|of| of.uid.as_ref() == uid)?;
        let state = of.target(&done.target)?;
        done.log();
        done.count(&self.metrics);
        let result = match &done.result {
            Err(_) => WriteResult::Failed,
            // Whether this is a repair, the scheduler knows: it remembers why the target was due.
            Ok(Done::Secret(Published { effect: Effect::Written(_), .. })) => WriteResult::Changed,
            Ok(Done::Patched(added)) if !added.is_empty() => WriteResult::Changed,
            Ok(_) => WriteResult::Unchanged,
        };
        state.pause = done.result.as_ref().err().map(|error| {
            let asked = if let PullSecretError::Api(error) = error { error.retry_after() } else { None };
            now.after(asked.unwrap_or_default().clamp(SHORTEST_PAUSE, LONGEST_PAUSE))
        });
        if let Ok(Done::Secret(published)) = &done.result {
            state.version.clone_from(&published.resource_version);
        }
        let drift = state.scheduler.end(result, now, random);
        let next = state.next(now);
        self.report(done, drift);
        if done.result.is_err() {
            self.failing.insert(done.target.clone());
        } else {
            self.failing.remove(&done.target);
        }
        self.metrics.secrets_failing(self.failing.len());
        next
    }

    fn report(&self, done: &SecretDone, drift: DriftEvent) {
        let object = &done.target;
        if let (DriftEvent::Repaired | DriftEvent::Fight, Ok(Done::Secret(published))) = (drift, &done.result)
            // A secret that was changed is counted with the write itself.
            && published.effect != Effect::Written(WriteReason::Changed)
        {
            self.metrics.secret_repaired();
        }
        match drift {
            DriftEvent::Fight => {
                warn!(%object, "another program keeps changing this object; from now on it is restored once a minute");
            }
            DriftEvent::Peace => info!(%object, "the other program has stopped changing this object"),
            DriftEvent::Nothing | DriftEvent::Repaired | DriftEvent::LongWait => {}
        }
    }
}

fn forget(metrics: &Metrics, failing: &mut BTreeSet<Target>, target: &Target) {
    if let Target::Secret(SecretRef { namespace, name }) = target {
        metrics.forget_secret(namespace.as_str(), name.as_str());
    }
    failing.remove(target);
    metrics.secrets_failing(failing.len());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pull_secret::error::ApiError;
    use crate::pull_secret::names::PullSecretArg;
    use jiff::{SignedDuration, Timestamp};

    const NAMESPACE: &str = "team-a";

    fn secret() -> Target {
        let PullSecretArg::Exactly(secret) = format!("{NAMESPACE}/ecr-creds").parse().unwrap() else {
            unreachable!()
        };
        Target::Secret(secret)
    }

    fn at(seconds: u64) -> Now {
        let wall = Timestamp::UNIX_EPOCH + SignedDuration::try_from(Duration::from_secs(seconds)).unwrap();
        Now { wall, boot: Duration::from_secs(seconds) }
    }

    fn failed(error: ApiError) -> SecretDone {
        SecretDone { target: secret(), result: Err(error.into()) }
    }

    fn done(effect: Effect, version: &str) -> SecretDone {
        let ends = BTreeMap::from([("registry.example".to_owned(), Timestamp::UNIX_EPOCH)]);
        let published = Published { effect, ends, resource_version: Some(version.to_owned()) };
        SecretDone { target: secret(), result: Ok(Done::Secret(published)) }
    }

    /// One namespace with one secret, and tokens.
    struct World {
        targets: Targets,
        metrics: Metrics,
        wanted: Arc<Wanted>,
    }

    impl World {
        fn new() -> Self {
            let metrics = Metrics::new().unwrap();
            let mut world = Self { targets: Targets::new(metrics.clone()), metrics, wanted: Arc::default() };
            world.set("1");
            world
        }

        fn set(&mut self, uid: &str) {
            let all = BTreeSet::from([secret()]);
            self.targets.set(&NAMESPACE.parse().unwrap(), Some(&uid.to_owned()), &all);
        }

        fn start(&mut self, seconds: u64) -> Option<u64> {
            let namespace = NAMESPACE.parse().unwrap();
            let delay = self.targets.start(&namespace, &secret(), &self.wanted, at(seconds));
            delay.map(|delay| delay.as_secs())
        }

        fn finish(&mut self, uid: &str, done: &SecretDone, seconds: u64) -> Option<u64> {
            let namespace = NAMESPACE.parse().unwrap();
            let next = self.targets.finish(&namespace, Some(&uid.to_owned()), done, at(seconds), 1.0);
            next.map(|delay| delay.as_secs())
        }

        fn seen(&mut self, version: Option<&str>) {
            self.targets.seen(&secret(), version.map(str::to_owned));
        }

        fn shows(&self, line: &str) -> bool {
            self.metrics.text().lines().any(|it| it == line)
        }
    }

    #[test]
    fn a_secret_is_due_for_new_tokens_and_for_versions_of_other_programs() {
        let mut world = World::new();
        assert_eq!(world.start(0), Some(0));
        assert_eq!(world.start(0), None, "it is being reconciled");
        assert_eq!(world.finish("1", &done(Effect::Written(WriteReason::Missing), "5"), 0), None);
        world.seen(Some("5"));
        assert_eq!(world.start(1), None, "this is the agent's own write");
        for (seen, effect, left) in [
            (Some("6"), Effect::Written(WriteReason::Changed), "7"),
            (None, Effect::Written(WriteReason::Missing), "8"),
            (Some("9"), Effect::Unchanged, "9"),
        ] {
            world.seen(seen);
            assert_eq!(world.start(2), Some(0), "{seen:?}");
            assert_eq!(world.start(2), None, "{seen:?}");
            world.finish("1", &done(effect, left), 2);
        }
        assert!(world.shows("ecr_node_agent_pull_secret_repairs_total 2"), "{}", world.metrics.text());
        world.wanted = Arc::default();
        assert_eq!(world.start(3), Some(0), "there are new tokens");
    }

    #[test]
    fn events_of_the_namespace_do_not_shorten_the_delay_of_a_failed_secret() {
        let mut world = World::new();
        world.seen(Some("5"));
        assert_eq!(world.start(0), Some(0));
        assert_eq!(world.finish("1", &failed(ApiError::Refused("no".to_owned())), 0), Some(1));
        assert_eq!(world.start(1), Some(0));
        assert_eq!(world.finish("1", &failed(ApiError::Refused("no".to_owned())), 1), Some(2));
        world.set("1");
        world.seen(Some("5"));
        assert_eq!(world.start(1), Some(2));
        // A change of the secret itself may have solved it.
        world.seen(Some("6"));
        assert_eq!(world.start(2), Some(0));
    }

    #[test]
    fn no_event_shortens_the_time_that_the_api_server_asks_for() {
        let mut world = World::new();
        assert_eq!(world.start(0), Some(0));
        let busy = failed(ApiError::Busy("429".to_owned(), Some(Duration::from_secs(30))));
        assert_eq!(world.finish("1", &busy, 0), Some(30));
        world.set("1");
        world.seen(Some("6"));
        world.wanted = Arc::default();
        assert_eq!(world.start(1), Some(29));
        assert_eq!(world.start(30), Some(0));
        let for_ever = failed(ApiError::Busy("429".to_owned(), Some(Duration::MAX)));
        assert_eq!(world.finish("1", &for_ever, 30), Some(300));
    }

    #[test]
    fn a_namespace_that_is_gone_takes_its_metrics_along_and_a_late_result_does_not_bring_them_back() {
        for is_created_again in [false, true] {
            let mut world = World::new();
            world.start(0);
            world.finish("1", &failed(ApiError::Conflict), 0);
            assert!(world.shows("ecr_node_agent_pull_secret_failing 1"));
            assert_eq!(world.start(10), Some(0));
            world.targets.forget(&NAMESPACE.parse().unwrap());
            if is_created_again {
                world.set("2");
            }
            let late = done(Effect::Written(WriteReason::Missing), "5");
            assert_eq!(world.finish("1", &late, 10), None);
            let text = world.metrics.text();
            assert!(
                !text.contains(NAMESPACE) && world.shows("ecr_node_agent_pull_secret_failing 0"),
                "{text}"
            );
            assert_eq!(world.start(10), is_created_again.then_some(0));
        }
    }

    #[test]
    fn a_namespace_with_another_uid_starts_anew() {
        let mut world = World::new();
        world.start(0);
        world.finish("1", &done(Effect::Written(WriteReason::Missing), "5"), 0);
        assert!(world.metrics.text().contains(NAMESPACE));
        world.set("2");
        assert!(!world.metrics.text().contains(NAMESPACE));
        assert_eq!(world.start(1), Some(0));
    }

    #[test]
    fn a_secret_that_waited_for_its_namespace_is_tried_when_it_comes() {
        let mut world = World::new();
        let namespace = NAMESPACE.parse().unwrap();
        world.targets.forget(&namespace);
        world.targets.set(&namespace, None, &BTreeSet::from([secret()]));
        assert_eq!(world.start(0), Some(0));
        let missing = failed(ApiError::NoNamespace(NAMESPACE.to_owned()));
        world.targets.finish(&namespace, None, &missing, at(0), 1.0);
        assert_eq!(world.start(0), Some(1));
        world.set("1");
        assert_eq!(world.start(0), Some(0));
    }

    #[test]
    fn a_secret_that_no_longer_matches_is_forgotten() {
        let mut world = World::new();
        world.start(0);
        world.finish("1", &failed(ApiError::Conflict), 0);
        world.targets.set(&NAMESPACE.parse().unwrap(), Some(&"1".to_owned()), &BTreeSet::new());
        assert!(!world.metrics.text().contains(NAMESPACE));
        assert!(world.shows("ecr_node_agent_pull_secret_failing 0"));
        assert!(world.targets.namespaces().is_empty());
    }
}
