//! The loop of an agent that is alone with its secrets: it watches them and the namespaces that they belong into, puts
//! back what is changed, and finds namespaces as they come.
//!
//! What a secret holds is not believed: it should be what this agent has published, and nothing else.

use super::{AT_ONCE, Done, LONGEST_ASKED_FOR, SecretDone, Target, count, tell};
use crate::docker_config::merge::Wanted;
use crate::pull_secret::api::{ApiError, Cluster, SeenNamespace};
use crate::pull_secret::names::{Name, Namespace, PullSecrets, SecretRef};
use crate::pull_secret::publish::{Effect, PublishOptions, Published, patch_service_account, publish};
use crate::pull_secret::reconcile::{Ownership, WriteReason};
use crate::pull_secret::watch::{Change, Interest, watch};
use crate::report::exit::chain;
use crate::report::metrics::Metrics;
use crate::time::clock;
use crate::time::timer::{Deadline, Now, Timer};
use crate::time::write_scheduler::{DriftEvent, WriteResult, WriteScheduler};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch as channel};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

/// So many changes wait for the loop; then the watches wait.
const CHANGES: usize = 256;

/// What failed is not tried again sooner.
const FAILED_PAUSE: Duration = Duration::from_secs(1);

/// Why the agent is not ready yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotReadyReason {
    /// There is no token to publish.
    Tokens,
    /// The namespaces have not all been listed.
    Namespaces,
    /// Not every secret has been tried once.
    Pass,
    /// Nothing.
    Nothing,
}

impl NotReadyReason {
    /// In words.
    #[must_use]
    pub fn in_words(self) -> Option<&'static str> {
        match self {
            Self::Tokens => Some("there is no token yet"),
            Self::Namespaces => Some("the API server has not told yet which namespaces there are"),
            Self::Pass => Some("not every pull secret has been tried yet"),
            Self::Nothing => None,
        }
    }
}

/// A secret's version, or none where there is no secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Version(Option<String>);

/// Something to keep.
#[derive(Default)]
struct Post {
    upkeep: WriteScheduler,
    working: bool,
    /// The server asks to be left alone until then.
    hold: Option<Deadline>,
    /// The version that we left or found good.
    left: Version,
    /// What the watch told last while we were at work.
    told: Option<Version>,
    /// Whether it was ever tried.
    tried: bool,
}

/// Runs until dropped.
///
/// # Errors
/// When there is no timer to wait with.
pub async fn run(
    secrets: PullSecrets,
    mut tokens: channel::Receiver<Arc<Wanted>>,
    lacking: channel::Sender<NotReadyReason>,
    metrics: Metrics,
) -> io::Result<()> {
    let timer = Timer::new()?;
    let cluster = Arc::new(Cluster::default());
    let (sender, mut changes) = mpsc::channel(CHANGES);
    let interests = interests(&secrets);
    let mut watches = JoinSet::new();
    for (number, interest) in interests.iter().enumerate() {
        watches.spawn(watch(Arc::clone(&cluster), number, interest.clone(), sender.clone()));
    }
    drop(sender);
    let mut keeper = Keeper::new(secrets, interests, metrics);
    let mut work: JoinSet<SecretDone> = JoinSet::new();
    loop {
        let now = clock::both();
        let wanted = Arc::clone(&tokens.borrow_and_update());
        keeper.start_what_is_due(&cluster, &wanted, &mut work, now);
        lacking.send_if_modified(|lacking| {
            let is = keeper.lacking(&wanted, now);
            std::mem::replace(lacking, is) != is
        });
        let next = keeper.next(&wanted, work.len(), now);
        tokio::select! {
            new = tokens.changed() => {
                if new.is_err() {
                    // The agent is gone, and so are we in a moment.
                    std::future::pending::<()>().await;
                }
                keeper.new_tokens();
            }
            Some((number, change)) = changes.recv() => keeper.changed(number, change, clock::both()),
            Some(done) = work.join_next() => if let Ok(done) = done {
                keeper.done(&done, clock::both());
            },
            ended = timer.wait(next) => ended?,
        }
    }
}

/// What to watch: the whole cluster only for what has to be found in it.
fn interests(secrets: &PullSecrets) -> Vec<Interest> {
    let mut interests = BTreeSet::new();
    let everywhere = !secrets.found.is_empty();
    let found: BTreeSet<&Name> = secrets.found.iter().map(|(_, name)| name).collect();
    interests.extend(found.iter().map(|name| Interest::Secrets(None, (*name).clone())));
    if everywhere {
        interests.insert(Interest::Namespaces(None));
    }
    for SecretRef { namespace, name } in &secrets.named {
        if !everywhere {
            interests.insert(Interest::Namespaces(Some(namespace.clone())));
        }
        if !found.contains(name) {
            interests.insert(Interest::Secrets(Some(namespace.clone()), name.clone()));
        }
    }
    for account in &secrets.service_accounts {
        if everywhere {
            interests.insert(Interest::ServiceAccounts(None, account.clone()));
        } else {
            let namespaces = secrets.named.iter().map(|secret| &secret.namespace);
            interests.extend(
                namespaces
                    .map(|namespace| Interest::ServiceAccounts(Some(namespace.clone()), account.clone())),
            );
        }
    }
    interests.into_iter().collect()
}

/// What one watch has told.
struct WatchState {
    interest: Interest,
    /// What a list that is under way has named, if one is.
    listed: Option<BTreeSet<Target>>,
    /// Whether a list has come to its end.
    whole: bool,
    failed: Option<String>,
}

struct Keeper {
    secrets: PullSecrets,
    metrics: Metrics,
    watches: Vec<WatchState>,
    posts: BTreeMap<Target, Post>,
    /// Namespaces on their way out, which take nothing new.
    terminating: BTreeSet<Namespace>,
    /// Namespaces that have secrets of ours, because they were found.
    found: BTreeSet<Namespace>,
    /// Whether every secret has been tried. From then on, a new namespace makes nobody wait for the agent.
    passed: bool,
}

impl Keeper {
    fn new(secrets: PullSecrets, interests: Vec<Interest>, metrics: Metrics) -> Self {
        let told = |interest| WatchState { interest, listed: None, whole: false, failed: None };
        let mut keeper = Self {
            metrics,
            watches: interests.into_iter().map(told).collect(),
            posts: BTreeMap::new(),
            terminating: BTreeSet::new(),
            found: BTreeSet::new(),
            passed: false,
            secrets,
        };
        let namespaces: BTreeSet<Namespace> =
            keeper.secrets.named.iter().map(|secret| secret.namespace.clone()).collect();
        for namespace in namespaces {
            let secrets = keeper.secrets.in_namespace(&namespace, &BTreeMap::new());
            let named = secrets.into_iter().filter(|secret| keeper.secrets.named.contains(secret));
            let named = named.collect();
            keeper.keep(&namespace, named);
        }
        keeper
    }

    /// Keeps these secrets in a namespace, and no others.
    fn keep(&mut self, namespace: &Namespace, secrets: BTreeSet<SecretRef>) {
        let accounts = if secrets.is_empty() { None } else { Some(&self.secrets.service_accounts) };
        let accounts = accounts.into_iter().flatten();
        let mut targets: BTreeSet<Target> =
            accounts.map(|account| Target::ServiceAccount(namespace.clone(), account.clone())).collect();
        targets.extend(secrets.into_iter().map(Target::Secret));
        let metrics = &self.metrics;
        self.posts.retain(|target, _| {
            let stays = target.namespace() != Some(namespace) || targets.contains(target);
            if let (false, Target::Secret(secret)) = (stays, target) {
                metrics.forget_secret(secret.namespace.as_str(), secret.name.as_str());
            }
            stays
        });
        for target in targets {
            let post = self.posts.entry(target).or_default();
            post.hold = None;
            post.upkeep.renew();
        }
    }

    /// The names of the secrets that are kept in a namespace.
    fn names(&self, namespace: &Namespace) -> BTreeSet<Name> {
        let secrets = self.posts.keys().filter_map(|target| match target {
            Target::Secret(secret) if secret.namespace == *namespace => Some(secret.name.clone()),
            _ => None,
        });
        secrets.collect()
    }

    fn lacking(&mut self, wanted: &Wanted, now: Now) -> NotReadyReason {
        let namespaces = |told: &WatchState| match told.interest {
            Interest::Namespaces(None) => !told.whole,
            // What is named is written all the same.
            Interest::Namespaces(Some(_)) => !told.whole && told.failed.is_none(),
            _ => false,
        };
        if wanted.entries.values().all(|entry| entry.expires_at <= now.wall) {
            NotReadyReason::Tokens
        } else if self.passed {
            NotReadyReason::Nothing
        } else if self.watches.iter().any(namespaces) {
            NotReadyReason::Namespaces
        } else if self.posts.iter().any(|(target, post)| !post.tried && self.may_write(target)) {
            NotReadyReason::Pass
        } else {
            self.passed = true;
            NotReadyReason::Nothing
        }
    }

    /// A namespace that is on its way out is left alone.
    fn may_write(&self, target: &Target) -> bool {
        target.namespace().is_none_or(|namespace| !self.terminating.contains(namespace))
    }

    fn new_tokens(&mut self) {
        for (target, post) in &mut self.posts {
            if let Target::Secret(_) = target {
                post.upkeep.renew();
            }
        }
    }

    /// When there is something to do.
    fn next(&self, wanted: &Wanted, working: usize, now: Now) -> Deadline {
        let mut next = now.after(Duration::from_hours(24));
        let ends = wanted.entries.values().map(|entry| entry.expires_at).filter(|end| *end > now.wall);
        if let Some(end) = ends.min() {
            next = next.earlier(now.until(end));
        }
        if wanted.entries.is_empty() && wanted.lapse.is_empty() || working >= AT_ONCE {
            return next;
        }
        for (_, post) in self.posts.iter().filter(|(target, post)| !post.working && self.may_write(target)) {
            if let Some(wish) = post.upkeep.next(now) {
                next = next.earlier(post.hold.map_or(wish, |hold| wish.later(hold)));
            }
        }
        next
    }

    fn start_what_is_due(
        &mut self,
        cluster: &Arc<Cluster>,
        wanted: &Arc<Wanted>,
        work: &mut JoinSet<SecretDone>,
        now: Now,
    ) {
        if wanted.entries.is_empty() && wanted.lapse.is_empty() {
            return;
        }
        let mut due = Vec::new();
        for (target, post) in &mut self.posts {
            if work.len() + due.len() >= AT_ONCE {
                break;
            }
            let held = post.hold.is_some_and(|hold| !now.is_past(hold));
            let out = target.namespace().is_some_and(|namespace| self.terminating.contains(namespace));
            if !post.working && !held && !out && post.upkeep.start(now) {
                post.working = true;
                post.hold = None;
                due.push(target.clone());
            }
        }
        for target in due {
            let (cluster, wanted) = (Arc::clone(cluster), Arc::clone(wanted));
            match &target {
                Target::Secret(secret) => {
                    let secret = secret.clone();
                    work.spawn(async move {
                        let manner =
                            PublishOptions { now: clock::now(), among: Ownership::Alone, dry_run: false };
                        let result = publish(&cluster, &secret, &wanted, manner).await.map(Done::Secret);
                        SecretDone { target, result }
                    });
                }
                Target::ServiceAccount(namespace, account) => {
                    let (namespace, account) = (namespace.clone(), account.clone());
                    let names = self.names(&namespace);
                    work.spawn(async move {
                        let patched =
                            patch_service_account(&cluster, &namespace, &account, &names, false).await;
                        SecretDone { target, result: patched.map(Done::Patched) }
                    });
                }
                Target::Namespaces | Target::Namespace(_) => {}
            }
        }
    }

    fn done(&mut self, done: &SecretDone, now: Now) {
        count(&self.metrics, done);
        // The namespace is gone meanwhile, and nobody asks any more.
        let Some(post) = self.posts.get_mut(&done.target) else { return };
        tell(&done.target, &done.result);
        post.working = false;
        post.tried = true;
        let came = match &done.result {
            Err(error) => {
                let asked_for = match error.api() {
                    // When it comes, the watch says so.
                    Some(ApiError::NoNamespace(_)) => Some(LONGEST_ASKED_FOR),
                    error => error.and_then(ApiError::retry_after),
                };
                // Whoever keeps changing what cannot be written is not answered each time.
                let pause = asked_for.unwrap_or_default().clamp(FAILED_PAUSE, LONGEST_ASKED_FOR);
                post.hold = Some(now.after(pause));
                WriteResult::Failed
            }
            // Whether that is a repair, the upkeep knows: it remembers why we looked.
            Ok(Done::Secret(Published { effect: Effect::Written(_), .. })) => WriteResult::Changed,
            Ok(Done::Patched(names)) if !names.is_empty() => WriteResult::Changed,
            Ok(_) => WriteResult::Unchanged,
        };
        if let Ok(Done::Secret(published)) = &done.result {
            post.left = Version(published.resource_version.clone());
        }
        let tell = post.upkeep.end(came, now, fastrand::f64());
        if let (DriftEvent::Repaired | DriftEvent::Fight, Ok(Done::Secret(published))) = (tell, &done.result)
        {
            // That it was changed is counted already.
            if !matches!(published.effect, Effect::Written(WriteReason::Changed)) {
                self.metrics.secret_repaired();
            }
        }
        match tell {
            DriftEvent::Fight => {
                warn!(object = %done.target, "another program keeps changing this; from now on it is repaired once a minute");
            }
            DriftEvent::Peace => info!(object = %done.target, "the other program has stopped"),
            DriftEvent::Nothing | DriftEvent::Repaired => {}
        }
        // What the watch told while we were at work was our own write, most likely.
        if let Some(told) = post.told.take()
            && told != post.left
        {
            post.upkeep.look(now);
        }
        self.metrics.secrets_failing(self.posts.values().filter(|post| post.upkeep.has_failed()).count());
    }

    /// A watch tells something.
    fn changed(&mut self, number: usize, change: Change, now: Now) {
        if let Change::Failed(error) = &change {
            self.watch_failed(number, error);
            return;
        }
        if let Some(told) = self.watches.get_mut(number)
            && told.failed.take().is_some()
        {
            info!("watched again: {}", in_words(&told.interest));
            // The server is back, and what failed need not wait any longer.
            for post in self.posts.values_mut().filter(|post| post.upkeep.has_failed()) {
                post.hold = None;
                post.upkeep.look(now);
            }
        }
        match change {
            Change::Begin => {
                if let Some(told) = self.watches.get_mut(number) {
                    told.listed = Some(BTreeSet::new());
                }
            }
            Change::End => self.listed(number, now),
            Change::Namespace(namespace) => {
                self.list(number, Target::Namespace(namespace.name.clone()));
                self.namespace(&namespace);
            }
            Change::NoNamespace(namespace) => self.no_namespace(&namespace),
            Change::Secret(secret, version) => {
                let target = Target::Secret(secret);
                self.list(number, target.clone());
                self.look(&target, Version(Some(version)), now);
            }
            Change::NoSecret(secret) => self.look(&Target::Secret(secret), Version(None), now),
            Change::ServiceAccount(namespace, account) => {
                if let Some(post) = self.posts.get_mut(&Target::ServiceAccount(namespace, account)) {
                    post.upkeep.look(now);
                }
            }
            Change::Failed(_) => {}
        }
    }

    fn watch_failed(&mut self, number: usize, error: &ApiError) {
        let Some(told) = self.watches.get_mut(number) else { return };
        let words = chain(error);
        // It is tried again and again, and told once.
        if told.failed.as_ref() != Some(&words) {
            error!(error = words, "cannot be watched, and is tried again: {}", in_words(&told.interest));
            told.failed = Some(words);
        }
    }

    fn list(&mut self, number: usize, target: Target) {
        if let Some(listed) = self.watches.get_mut(number).and_then(|told| told.listed.as_mut()) {
            listed.insert(target);
        }
    }

    /// A list is at its end: what it did not name is gone.
    fn listed(&mut self, number: usize, now: Now) {
        let Some(told) = self.watches.get_mut(number) else { return };
        told.whole = true;
        let listed = told.listed.take().unwrap_or_default();
        match told.interest.clone() {
            Interest::Namespaces(None) => {
                let gone =
                    |namespace: &&Namespace| !listed.contains(&Target::Namespace((*namespace).clone()));
                let gone: Vec<Namespace> =
                    self.found.iter().chain(&self.terminating).filter(gone).cloned().collect();
                for namespace in &gone {
                    self.no_namespace(namespace);
                }
            }
            Interest::Namespaces(Some(namespace)) => {
                if listed.is_empty() {
                    self.no_namespace(&namespace);
                }
            }
            Interest::Secrets(namespace, name) => {
                let is_its = |secret: &SecretRef| {
                    secret.name == name
                        && namespace.as_ref().is_none_or(|namespace| secret.namespace == *namespace)
                };
                let gone: Vec<Target> = self
                    .posts
                    .keys()
                    .filter(|target| matches!(target, Target::Secret(secret) if is_its(secret)))
                    .filter(|target| !listed.contains(target))
                    .cloned()
                    .collect();
                for target in &gone {
                    self.look(target, Version(None), now);
                }
            }
            Interest::ServiceAccounts(..) => {}
        }
    }

    fn namespace(&mut self, namespace: &SeenNamespace) {
        let name = &namespace.name;
        if namespace.terminating {
            self.terminating.insert(name.clone());
            return;
        }
        let was_going = self.terminating.remove(name);
        let secrets = self.secrets.in_namespace(name, &namespace.labels);
        let kept = self.names(name);
        let same = secrets.iter().map(|secret| &secret.name).eq(kept.iter());
        if secrets.is_empty() {
            self.found.remove(name);
        } else {
            self.found.insert(name.clone());
        }
        // A named one may have waited for its namespace.
        let waits = self
            .posts
            .iter()
            .any(|(target, post)| target.namespace() == Some(name) && post.upkeep.has_failed());
        if !same || was_going || waits {
            self.keep(name, secrets);
        }
    }

    fn no_namespace(&mut self, namespace: &Namespace) {
        self.terminating.remove(namespace);
        self.found.remove(namespace);
        let named: BTreeSet<SecretRef> =
            self.secrets.named.iter().filter(|secret| secret.namespace == *namespace).cloned().collect();
        // Those that are named wait for it; a try says that it is not there.
        self.keep(namespace, named);
        for (target, post) in &mut self.posts {
            if target.namespace() == Some(namespace) {
                post.left = Version(None);
            }
        }
    }

    /// The watch tells that a secret is there in this version, or not at all.
    fn look(&mut self, target: &Target, version: Version, now: Now) {
        let Some(post) = self.posts.get_mut(target) else { return };
        if post.working {
            post.told = Some(version);
        } else if version != post.left {
            post.upkeep.look(now);
        }
    }
}

fn in_words(interest: &Interest) -> String {
    match interest {
        Interest::Namespaces(None) => "namespaces".to_owned(),
        Interest::Namespaces(Some(namespace)) => format!("namespace {namespace}"),
        Interest::Secrets(None, name) => format!("secrets {name} in all namespaces"),
        Interest::Secrets(Some(namespace), name) => format!("secret {namespace}/{name}"),
        Interest::ServiceAccounts(None, name) => format!("service accounts {name} in all namespaces"),
        Interest::ServiceAccounts(Some(namespace), name) => format!("service account {namespace}/{name}"),
    }
}
