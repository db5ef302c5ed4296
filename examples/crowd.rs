//! What many agents without a leader cost one pull secret: `cargo run --release --example crowd`.
//!
//! A simulation by events, with the program's own rules: `time::schedule` says when an agent fetches a new token,
//! `pull_secret::schedule` says when it reads the secret, and `pull_secret::reconcile` what it does then, with the secret's version
//! as a precondition. There is no network and no clock, and each run gives the same figures. `tests/it/crowd.rs` asserts the
//! limits.
#![expect(clippy::print_stdout, reason = "it exists to print")]

use ecr_node_agent::docker_config::merge::{Wanted, WantedEntry};
use ecr_node_agent::pull_secret::names::{PullSecretArg, SecretRef};
use ecr_node_agent::pull_secret::reconcile::{
    Desired, Expirations, Ownership, Plan, PullSecret, next_look, plan,
};
use ecr_node_agent::pull_secret::schedule;
use ecr_node_agent::time::schedule::{Interval, Life};
use fastrand::Rng;
use jiff::{SignedDuration, Timestamp};
use secrecy::SecretString;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The life of ECR's tokens, in seconds.
pub const LIFE_S: f64 = 12.0 * HOUR_S;
const HOUR_S: f64 = 3600.0;
/// ECR's limit: it answers this many calls at once, and then this many a second.
const BURST: f64 = 200.0;
const RATE: f64 = 20.0;
/// When ECR stops answering, in a run with an outage.
const OUTAGE_S: f64 = 24.0 * HOUR_S;
const REGISTRY: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const INTERVAL: Interval =
    Interval { length: SignedDuration::from_hours(11), spread: SignedDuration::from_mins(30) };

/// How a run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// All agents start at the same time, and the secret does not exist.
    AtOnce,
    /// The agents' tokens are of all ages.
    Spread,
    /// As `Spread`, and after a day ECR hands out no more tokens.
    Outage,
    /// As `Spread`, and each agent that writes is then replaced by one with a token of any age.
    Unlucky,
}

/// What a run cost.
#[derive(Debug, Clone, Default)]
pub struct Cost {
    /// When the secret was written, in seconds after the start.
    pub writes: Vec<f64>,
    /// How many writes failed because another agent wrote at the same time.
    pub conflicts: usize,
    /// How often each agent read the secret in an hour, on average.
    pub reads: f64,
    /// For how many seconds the secret held no valid token although an agent had one.
    pub without_token: f64,
    /// The shortest time to the token's expiry at which it was replaced, in seconds.
    pub least_left: f64,
}

impl Cost {
    /// The largest number of writes within the life of a token, after `since` seconds.
    #[must_use]
    pub fn most(&self, since: f64) -> usize {
        let writes = || self.writes.iter().filter(|at| **at >= since);
        let within = |from: &f64| writes().filter(|at| **at >= *from && **at < *from + LIFE_S).count();
        writes().map(within).max().unwrap_or(0)
    }

    /// The average number of writes within the life of a token, without the first one.
    #[must_use]
    pub fn mean(&self, hours: f64) -> f64 {
        let later = self.writes.iter().filter(|at| **at >= LIFE_S).count();
        number(later) * 12.0 / (hours - 12.0)
    }
}

fn main() {
    const HOURS: f64 = 96.0;
    println!(
        "Writes in 12 hours: the average after the first 12 hours; the most; the most after the first 12 hours."
    );
    println!(" agents  start     mean  most  later  conflicts  reads/agent/h   least left  without token");
    for start in [Start::AtOnce, Start::Spread, Start::Outage, Start::Unlucky] {
        for agents in [1, 2, 10, 50, 1000, 20_000] {
            let cost = simulate(agents, start, HOURS, 1);
            println!(
                "{agents:7}  {:8}  {:4.2}  {:4}  {:5}  {:9}  {:13.2}  {:7.0} min  {:11.0} s",
                format!("{start:?}"),
                cost.mean(HOURS),
                cost.most(0.0),
                cost.most(LIFE_S),
                cost.conflicts,
                cost.reads,
                cost.least_left / 60.0,
                cost.without_token,
            );
        }
    }
}

/// What an agent does next. The number is that of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Fetch(usize),
    Read(usize),
    /// The write of a secret that was read with this version.
    Write(usize, u64),
}

struct Agent {
    wanted: Wanted,
    life: Life,
    /// When the tokens in the secret expire, as the agent read it last.
    expirations: Option<Expirations>,
    /// When it reads the secret next, in microseconds. A read that was planned for another time does not happen.
    next: u64,
}

impl Agent {
    fn new(fetched: f64, rng: &mut Rng) -> Self {
        let life = Life { fetched_at: at(0.0), expires_at: at(0.0) };
        let mut agent = Self { wanted: Wanted::default(), life, expirations: None, next: 0 };
        agent.fetch(fetched, rng);
        agent
    }

    fn fetch(&mut self, now: f64, rng: &mut Rng) {
        self.life = Life { fetched_at: at(now), expires_at: at(now + LIFE_S) };
        let entry = WantedEntry {
            auth: SecretString::from(format!("QVdTOm{}=", rng.alphanumeric())),
            expires_at: self.life.expires_at,
            fetched_at: self.life.fetched_at,
            source: "eu-west-1".to_owned(),
            default_registry: false,
        };
        self.wanted = Wanted { drop_others: true, ..Wanted::default() };
        self.wanted.entries.insert(REGISTRY.to_owned(), entry);
    }

    /// When it fetches its next token, in microseconds.
    fn next_fetch(&self, rng: &mut Rng) -> u64 {
        micros(since_start(self.life.due(INTERVAL, rng.f64())))
    }
}

struct Simulation {
    start: Start,
    rng: Rng,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    agents: Vec<Agent>,
    name: SecretRef,
    secret: Option<PullSecret>,
    /// How often the secret was written.
    version: u64,
    expirations: Expirations,
    reads: usize,
    cost: Cost,
}

/// Simulates a number of agents for some hours.
///
/// # Panics
/// When the program's rules contradict each other.
#[must_use]
pub fn simulate(agents: usize, start: Start, hours: f64, seed: u64) -> Cost {
    let mut simulation = Simulation::new(agents, start, seed);
    simulation.run(hours);
    let mut cost = simulation.cost;
    cost.reads = number(simulation.reads) / (number(agents) * hours);
    cost
}

impl Simulation {
    fn new(agents: usize, start: Start, seed: u64) -> Self {
        let Ok(PullSecretArg::Exactly(name)) = "team-a/ecr-creds".parse() else {
            unreachable!("it is the name of a secret")
        };
        let mut simulation = Self {
            start,
            rng: Rng::with_seed(seed),
            events: BinaryHeap::new(),
            agents: Vec::new(),
            name,
            secret: None,
            version: 0,
            expirations: Expirations::new(),
            reads: 0,
            cost: Cost { least_left: f64::INFINITY, ..Cost::default() },
        };
        for id in 0..agents {
            let rng = &mut simulation.rng;
            let queued = (number(id) - BURST).max(0.0) / RATE;
            let (fetched, begins) = match start {
                Start::AtOnce => (queued, queued),
                _ => (-rng.f64() * 11.0 * HOUR_S, rng.f64() * HOUR_S),
            };
            let mut agent = Agent::new(fetched, rng);
            let fetch = agent.next_fetch(rng);
            agent.next = micros(begins + schedule::first_look(rng.f64()).as_secs_f64());
            simulation.events.push(Reverse((fetch, Event::Fetch(id))));
            simulation.events.push(Reverse((agent.next, Event::Read(id))));
            simulation.agents.push(agent);
        }
        simulation
    }

    fn run(&mut self, hours: f64) {
        // In an outage, no agent has a valid token in the end.
        let end = if self.start == Start::Outage { OUTAGE_S + LIFE_S } else { f64::INFINITY };
        let mut before = 0.0;
        while let Some(Reverse((time, event))) = self.events.pop() {
            let now = seconds(time);
            if now > (hours * HOUR_S).min(end) {
                break;
            }
            self.count_time_without_token(before, now);
            before = now;
            match event {
                Event::Fetch(id) => self.fetch(id, now),
                Event::Read(id) if self.agents[id].next == time => self.read(id, now),
                Event::Read(_) => {}
                Event::Write(id, version) if version == self.version => self.write(id, now),
                Event::Write(id, _) => {
                    self.cost.conflicts += 1;
                    let delay = schedule::look_again(self.rng.f64()).as_secs_f64();
                    self.read_at(id, now + delay);
                }
            }
        }
    }

    /// When the first token in the secret expires, in seconds after the start.
    fn expires(&self) -> f64 {
        self.expirations.values().map(|end| since_start(*end)).fold(f64::INFINITY, f64::min)
    }

    /// Only the time has changed between two events.
    fn count_time_without_token(&mut self, before: f64, now: f64) {
        let expires = self.expires();
        if expires < now {
            let ends = self.agents.iter().map(|agent| since_start(agent.life.expires_at));
            let best = ends.fold(expires, f64::max);
            self.cost.without_token += (best.min(now) - expires.max(before)).max(0.0);
        }
    }

    fn fetch(&mut self, id: usize, now: f64) {
        if self.start == Start::Outage && now > OUTAGE_S {
            return;
        }
        let (agent, rng) = (&mut self.agents[id], &mut self.rng);
        agent.fetch(now, rng);
        self.events.push(Reverse((agent.next_fetch(rng), Event::Fetch(id))));
        if let Some(expirations) = &agent.expirations {
            let delay = next_look(expirations, &agent.wanted, at(now), [rng.f64(), rng.f64()]);
            let read = now + delay.as_secs_f64().max(1.0);
            if micros(read) < agent.next {
                self.read_at(id, read);
            }
        }
    }

    fn read(&mut self, id: usize, now: f64) {
        self.reads += 1;
        let life = self.agents[id].life;
        let is_due = |end: &Timestamp| schedule::due(*end, life).is_some_and(|due| due <= at(now));
        let is_due = self.expirations.values().all(is_due);
        // `plan` comes to the same result, and reads the whole secret, which takes its time: one read in 50 asks it.
        if !is_due && !self.reads.is_multiple_of(50) {
            return self.read_later(id, self.expirations.clone(), now);
        }
        let planned = self.plan(id, now);
        assert_eq!(is_due, matches!(planned, Plan::Create(_) | Plan::Apply(..)), "{planned:?}");
        match planned {
            Plan::Create(_) | Plan::Apply(..) => {
                let write = now + 0.01 + 0.09 * self.rng.f64();
                self.events.push(Reverse((micros(write), Event::Write(id, self.version))));
            }
            Plan::Leave(expirations) => self.read_later(id, expirations, now),
            other => unreachable!("only agents write the secret: {other:?}"),
        }
    }

    fn plan(&self, id: usize, now: f64) -> Plan {
        plan(&self.name, self.secret.as_ref(), &self.agents[id].wanted, Ownership::Many, at(now))
    }

    fn write(&mut self, id: usize, now: f64) {
        let (Plan::Create(Desired { object, expirations }) | Plan::Apply(Desired { object, expirations }, _)) =
            self.plan(id, now)
        else {
            unreachable!("the secret is as it was read")
        };
        if self.version > 0 {
            self.cost.least_left = self.cost.least_left.min(self.expires() - now);
        }
        self.secret = Some(object);
        self.version += 1;
        self.expirations.clone_from(&expirations);
        self.cost.writes.push(now);
        self.read_later(id, expirations, now);
        if self.start == Start::Unlucky {
            let (agent, rng) = (&mut self.agents[id], &mut self.rng);
            agent.fetch(now - rng.f64() * 11.0 * HOUR_S, rng);
            let fetch = agent.next_fetch(rng).max(micros(now));
            self.events.push(Reverse((fetch, Event::Fetch(id))));
        }
    }

    fn read_later(&mut self, id: usize, expirations: Expirations, now: f64) {
        let random = [self.rng.f64(), self.rng.f64()];
        let delay = next_look(&expirations, &self.agents[id].wanted, at(now), random);
        self.agents[id].expirations = Some(expirations);
        self.read_at(id, now + delay.as_secs_f64().max(1.0));
    }

    fn read_at(&mut self, id: usize, time: f64) {
        self.agents[id].next = micros(time);
        self.events.push(Reverse((micros(time), Event::Read(id))));
    }
}

fn at(seconds: f64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24) + SignedDuration::from_secs_f64(seconds)
}

fn since_start(time: Timestamp) -> f64 {
    time.duration_since(at(0.0)).as_secs_f64()
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// A time as a whole number, so that events can be ordered.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some days, in microseconds")]
fn micros(seconds: f64) -> u64 {
    (seconds.max(0.0) * 1e6) as u64
}

fn seconds(micros: u64) -> f64 {
    SignedDuration::from_micros(i64::try_from(micros).unwrap_or(i64::MAX)).as_secs_f64()
}
