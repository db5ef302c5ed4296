//! The agent of a node, one of many that keep the same secrets: it reads each secret now and then, at random times, and writes
//! what no other agent has written.

use super::connection;
use super::error::ApiError;
use super::names::SecretRef;
use super::publish::{Effect, PublishOptions, Published, PullSecretError, publish};
use super::reconcile::{Expirations, Ownership, next_look};
use super::record::{Done, SecretDone, Target};
use super::schedule;
use crate::docker_config::merge::Wanted;
use crate::report::metrics::Metrics;
use crate::time::clock;
use crate::time::retry::{Backoff, Retry};
use crate::time::timer::{Deadline, Now, Timer};
use kube::Client;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How many secrets are read at the same time.
const CONCURRENCY: usize = 16;
/// The shortest time between two looks at a secret.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// A secret, and when it is read next.
struct SecretState {
    secret: SecretRef,
    next: Deadline,
    is_running: bool,
    backoff: Backoff,
    /// Refusals in a row.
    refusals: u32,
    /// When its tokens expire, as it was read last; `None` before the first success.
    expirations: Option<Expirations>,
}

/// Keeps the secrets until it is dropped.
///
/// # Errors
/// When the system gives no timer.
pub async fn run(
    secrets: BTreeSet<SecretRef>,
    mut tokens: watch::Receiver<Arc<Wanted>>,
    metrics: Metrics,
) -> io::Result<()> {
    let timer = Timer::new()?;
    let client = connection::client();
    let now = clock::both();
    let mut secrets: Vec<SecretState> =
        secrets.into_iter().map(|secret| SecretState::new(secret, now)).collect();
    let mut looks: JoinSet<(usize, SecretDone)> = JoinSet::new();
    loop {
        let now = clock::both();
        let wanted = Arc::clone(&tokens.borrow_and_update());
        let has_work = !wanted.entries.is_empty() || !wanted.lapse.is_empty();
        let mut next = now.after(Duration::from_hours(24));
        for (number, state) in
            secrets.iter_mut().enumerate().filter(|(_, state)| has_work && !state.is_running)
        {
            if looks.len() < CONCURRENCY && now.is_past(state.next) {
                state.is_running = true;
                let (client, wanted, secret) = (client.clone(), Arc::clone(&wanted), state.secret.clone());
                looks.spawn(async move { (number, look(&client, secret, &wanted).await) });
            } else if looks.len() < CONCURRENCY {
                next = next.earlier(state.next);
            }
        }
        tokio::select! {
            changed = tokens.changed() => {
                if changed.is_err() {
                    // The agent is about to end, and this with it.
                    std::future::pending::<()>().await;
                }
                let (now, wanted) = (clock::both(), Arc::clone(&tokens.borrow()));
                for state in &mut secrets {
                    state.new_tokens(&wanted, now);
                }
            }
            Some(Ok((number, done))) = looks.join_next() => if let Some(state) = secrets.get_mut(number) {
                done.log();
                done.count(&metrics);
                state.finish(done.result, &tokens.borrow(), clock::both());
                metrics.secrets_failing(secrets.iter().filter(|state| state.backoff.failures() > 0).count());
            },
            ended = timer.wait(next) => ended?,
        }
    }
}

async fn look(client: &Client, secret: SecretRef, wanted: &Wanted) -> SecretDone {
    let options = PublishOptions { now: clock::now(), ownership: Ownership::Many, dry_run: false };
    let result = publish(client, &secret, wanted, options).await.map(Done::Secret);
    SecretDone { target: Target::Secret(secret), result }
}

impl SecretState {
    fn new(secret: SecretRef, now: Now) -> Self {
        let next = now.after(schedule::first_look(fastrand::f64()));
        Self { secret, next, is_running: false, backoff: Backoff::default(), refusals: 0, expirations: None }
    }

    /// There are new tokens: the secret may be due for one of them.
    fn new_tokens(&mut self, wanted: &Wanted, now: Now) {
        if let Some(expirations) = self.expirations.as_ref().filter(|_| self.backoff.failures() == 0) {
            let look = next_look(expirations, wanted, now.wall, random_pair());
            self.next = self.next.earlier(now.after(look.max(SHORTEST_PAUSE)));
        }
    }

    /// A look has ended: plans the next one.
    fn finish(&mut self, result: Result<Done, PullSecretError>, wanted: &Wanted, now: Now) {
        self.is_running = false;
        let delay = match result {
            Err(error) => self.failed(&error, now),
            Ok(done) => {
                self.backoff.reset();
                self.refusals = 0;
                match done {
                    Done::Secret(Published { effect: Effect::Overtaken, .. }) => {
                        schedule::look_again(fastrand::f64())
                    }
                    Done::Secret(Published { effect: Effect::PutOff, .. }) => {
                        schedule::after_postponing(fastrand::f64())
                    }
                    Done::Secret(Published { ends, .. }) => {
                        let delay = next_look(&ends, wanted, now.wall, random_pair());
                        self.expirations = Some(ends);
                        delay
                    }
                    Done::Patched(_) => SHORTEST_PAUSE,
                }
            }
        };
        self.next = now.after(delay.max(SHORTEST_PAUSE));
    }

    fn failed(&mut self, error: &PullSecretError, now: Now) -> Duration {
        let retry = error.retry();
        let delay = self.backoff.failed(retry, now.boot, Duration::ZERO, fastrand::f64());
        // A kubeconfig that is missing concerns this node alone. All other lasting errors are those of the whole fleet. An API
        // server that starts refuses everything for a moment: so the first refusal is followed by a short delay.
        if retry == Retry::Useless && !matches!(error, PullSecretError::Api(ApiError::Config(_))) {
            self.refusals += 1;
            return schedule::after_refusal(self.refusals, fastrand::f64());
        }
        self.refusals = 0;
        delay
    }
}

fn random_pair() -> [f64; 2] {
    [fastrand::f64(), fastrand::f64()]
}
