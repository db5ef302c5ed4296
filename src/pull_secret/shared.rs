//! The loop of one agent among many: looks now and then, and writes what nobody else has written.

use super::{AT_ONCE, Done, SecretDone, Target, count, tell};
use crate::docker_config::merge::Wanted;
use crate::pull_secret::api::{ApiError, Cluster};
use crate::pull_secret::names::SecretRef;
use crate::pull_secret::publish::{Effect, PublishOptions, Published, PullSecretError, publish};
use crate::pull_secret::reconcile::{Expirations, Ownership, next_look};
use crate::pull_secret::schedule;
use crate::report::metrics::Metrics;
use crate::time::clock;
use crate::time::retry::Backoff;
use crate::time::timer::{Deadline, Now, Timer};
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::debug;

/// Looks that follow each other are never closer than this, whatever the clocks say.
const PAUSE: Duration = Duration::from_secs(1);

/// A secret, and when it is looked at next.
struct Post {
    secret: SecretRef,
    next: Deadline,
    looking: bool,
    backoff: Backoff,
    /// What was in it at the last look.
    ends: Option<Expirations>,
}

/// Runs until dropped.
///
/// # Errors
/// When there is no timer to wait with.
pub async fn run(
    secrets: BTreeSet<SecretRef>,
    mut tokens: watch::Receiver<Arc<Wanted>>,
    metrics: Metrics,
) -> io::Result<()> {
    let timer = Timer::new()?;
    let cluster = Arc::new(Cluster::default());
    let now = clock::both();
    let mut posts: Vec<Post> = secrets.into_iter().map(|secret| Post::new(secret, now)).collect();
    let mut looks: JoinSet<(usize, SecretDone)> = JoinSet::new();
    loop {
        let now = clock::both();
        let wanted = Arc::clone(&tokens.borrow_and_update());
        let idle = wanted.entries.is_empty() && wanted.lapse.is_empty();
        for (number, post) in posts.iter_mut().enumerate() {
            let free = looks.len() < AT_ONCE && !post.looking && !idle;
            if free && now.is_past(post.next) {
                post.looking = true;
                let (cluster, wanted, secret) =
                    (Arc::clone(&cluster), Arc::clone(&wanted), post.secret.clone());
                looks.spawn(async move {
                    let manner = PublishOptions { now: clock::now(), among: Ownership::Many, dry_run: false };
                    let result = publish(&cluster, &secret, &wanted, manner).await.map(Done::Secret);
                    (number, SecretDone { target: Target::Secret(secret), result })
                });
            }
        }
        let mut next = now.after(Duration::from_hours(24));
        for post in posts.iter().filter(|post| !post.looking && !idle) {
            next = next.earlier(post.next);
        }
        tokio::select! {
            changed = tokens.changed() => {
                if changed.is_err() {
                    // The agent is gone, and so are we in a moment.
                    std::future::pending::<()>().await;
                }
                let (now, wanted) = (clock::both(), tokens.borrow().clone());
                for post in &mut posts {
                    post.new_tokens(&wanted, now);
                }
            }
            Some(look) = looks.join_next() => if let Ok((number, done)) = look
                && let Some(post) = posts.get_mut(number)
            {
                tell(&done.target, &done.result);
                count(&metrics, &done);
                post.take(done, &tokens.borrow().clone(), clock::both());
                metrics.secrets_failing(posts.iter().filter(|post| post.backoff.failures() > 0).count());
            },
            ended = timer.wait(next) => ended?,
        }
    }
}

impl Post {
    fn new(secret: SecretRef, now: Now) -> Self {
        let next = now.after(schedule::first_look(fastrand::f64()));
        Self { secret, next, looking: false, backoff: Backoff::default(), ends: None }
    }

    /// There are new tokens: the secret may be due for one of them.
    fn new_tokens(&mut self, wanted: &Wanted, now: Now) {
        if let Some(ends) = self.ends.as_ref().filter(|_| self.backoff.failures() == 0) {
            let look = next_look(ends, wanted, now.wall, chances());
            self.next = self.next.earlier(now.after(look.max(PAUSE)));
        }
    }

    fn take(&mut self, done: SecretDone, wanted: &Wanted, now: Now) {
        self.looking = false;
        let wait = match done.result {
            Ok(Done::Secret(Published { effect: Effect::Overtaken, .. })) => {
                schedule::look_again(fastrand::f64())
            }
            Ok(Done::Secret(Published { effect: Effect::PutOff, .. })) => {
                let pause = Duration::try_from(schedule::REPAIR_PAUSE).unwrap_or_default();
                pause.mul_f64(1.0 + fastrand::f64())
            }
            Ok(Done::Secret(Published { ends, .. })) => {
                let wait = next_look(&ends, wanted, now.wall, chances());
                self.ends = Some(ends);
                wait
            }
            Ok(Done::Patched(_)) => PAUSE,
            Err(error) => {
                self.next = now.after(self.after(&error, now).max(PAUSE));
                debug!(secret = %self.secret, failures = self.backoff.failures(), "will try again");
                return;
            }
        };
        self.backoff.reset();
        self.next = now.after(wait.max(PAUSE));
    }

    fn after(&mut self, error: &PullSecretError, now: Now) -> Duration {
        let delay = self.backoff.failed(error.retry(), now.boot, Duration::ZERO, fastrand::f64());
        // A kubeconfig that is not there yet costs nobody but this node a look.
        if error.is_passing() || matches!(error.api(), Some(ApiError::Config(_))) {
            delay
        } else {
            schedule::after_refusal(self.backoff.failures(), fastrand::f64())
        }
    }
}

fn chances() -> [f64; 2] {
    [fastrand::f64(), fastrand::f64()]
}
