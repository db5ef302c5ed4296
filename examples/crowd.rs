//! What many agents without a leader cost one pull secret: `cargo run --release --example crowd`.
//!
//! A simulation by events, over the program's own rules and nothing else of it: an agent's token is renewed as `schedule`
//! says, it looks when `when` says, and does what `content` plans for the secret as it stands then, with its version as a
//! precondition. No network, no clock, the same figures on every run; `tests/it/crowd.rs` holds them to their bounds.
#![expect(clippy::print_stdout, reason = "it exists to print")]

use ecr_node_agent::docker_config::merge::{Wanted, WantedEntry};
use ecr_node_agent::pull_secret::reconcile::{Expirations, Ownership, Plan, Seen, TYPE, next_look, plan};
use ecr_node_agent::pull_secret::schedule;
use ecr_node_agent::time::schedule::{Interval, Life};
use fastrand::Rng;
use jiff::{SignedDuration, Timestamp};
use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// ECR's, in seconds.
pub const LIFE_S: f64 = 12.0 * 3600.0;
const HOUR_S: f64 = 3600.0;
/// ECR's throttle: so many are served at once, and so many a second from then on.
const BURST: f64 = 200.0;
const RATE: f64 = 20.0;
const KEY: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

/// How the agents' tokens are old when it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// All agents are rolled out at once, and there is no secret yet.
    AtOnce,
    /// Agents of all ages.
    Spread,
    /// As `Spread`, and after a day ECR hands out no more tokens.
    Outage,
    /// As `Spread`, and whoever wrote last is replaced by another one of any age.
    Unlucky,
}

/// What it came to.
#[derive(Debug, Clone, Default)]
pub struct Cost {
    /// When the secret was written, in seconds.
    pub writes: Vec<f64>,
    /// Writes that another agent had made needless.
    pub conflicts: usize,
    /// Looks of each agent in an hour, in the mean.
    pub looks: f64,
    /// For how long the secret held a token that had ended, or was missing, while an agent had a better one, in seconds.
    pub lacked: f64,
    /// The least that was left of the token in place when it was replaced, in seconds.
    pub closest: f64,
}

impl Cost {
    /// The most writes within a token's life, from `since` on.
    #[must_use]
    pub fn most(&self, since: f64) -> usize {
        let writes = || self.writes.iter().filter(|at| **at >= since);
        let within = |from: &f64| writes().filter(|at| **at >= *from && **at < *from + LIFE_S).count();
        writes().map(within).max().unwrap_or(0)
    }

    /// Writes in a token's life, in the mean over all but the first one.
    #[must_use]
    pub fn mean(&self, hours: f64) -> f64 {
        let later = self.writes.iter().filter(|at| **at >= LIFE_S).count();
        f64::from(u32::try_from(later).unwrap_or(u32::MAX)) * 12.0 / (hours - 12.0)
    }
}

fn main() {
    const HOURS: f64 = 96.0;
    println!(
        "Writes in 12 hours: in the mean after the first 12, the most in any, the most in any after the first 12."
    );
    println!(" agents  start     mean  most  later  conflicts  looks/agent/h  closest call  lacked");
    for start in [Start::AtOnce, Start::Spread, Start::Outage, Start::Unlucky] {
        for agents in [1, 2, 10, 50, 1000, 20_000] {
            let cost = simulate(agents, start, HOURS, 1);
            println!(
                "{agents:7}  {:8}  {:4.2}  {:4}  {:5}  {:9}  {:13.2}  {:8.0} min  {:4.0} s",
                format!("{start:?}"),
                cost.mean(HOURS),
                cost.most(0.0),
                cost.most(LIFE_S),
                cost.conflicts,
                cost.looks,
                cost.closest / 60.0,
                cost.lacked,
            );
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Refresh(usize),
    Look(usize),
    /// With the version that was seen.
    Write(usize, u64),
}

struct Agent {
    wanted: Wanted,
    life: Life,
    ends: Option<Expirations>,
    /// The look that counts: an earlier one may have been planned before.
    next: u64,
}

fn at(seconds: f64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24) + SignedDuration::from_secs_f64(seconds)
}

fn since_start(time: Timestamp) -> f64 {
    time.duration_since(at(0.0)).as_secs_f64()
}

/// In microseconds, so that events can be ordered.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some days, in microseconds")]
fn micros(seconds: f64) -> u64 {
    (seconds.max(0.0) * 1e6) as u64
}

fn seconds(micros: u64) -> f64 {
    SignedDuration::from_micros(i64::try_from(micros).unwrap_or(i64::MAX)).as_secs_f64()
}

impl Agent {
    fn new(fetched: f64, rng: &mut Rng) -> Self {
        let mut agent = Self {
            wanted: Wanted::default(),
            life: Life { fetched_at: at(0.0), expires_at: at(0.0) },
            ends: None,
            next: 0,
        };
        agent.fetch(fetched, rng);
        agent
    }

    /// Takes a new token.
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
        self.wanted.entries.insert(KEY.to_owned(), entry);
    }
}

/// Simulates so many agents for so many hours.
///
/// # Panics
/// When the program's rules do not agree with each other.
#[must_use]
pub fn simulate(agents: usize, start: Start, hours: f64, seed: u64) -> Cost {
    let mut rng = Rng::with_seed(seed);
    let interval = Interval { length: SignedDuration::from_hours(11), spread: SignedDuration::from_mins(30) };
    let mut events: BinaryHeap<Reverse<(u64, Event)>> = BinaryHeap::new();
    let mut crowd = Vec::new();
    for number in 0..agents {
        let queued = (f64::from(u32::try_from(number).unwrap_or(u32::MAX)) - BURST).max(0.0) / RATE;
        let (fetched, begins) = match start {
            Start::AtOnce => (queued, queued),
            _ => (-rng.f64() * 11.0 * HOUR_S, rng.f64() * HOUR_S),
        };
        let agent = Agent::new(fetched, &mut rng);
        let due = since_start(agent.life.due(interval, rng.f64()));
        events.push(Reverse((micros(due), Event::Refresh(number))));
        let first = micros(begins + schedule::first_look(rng.f64()).as_secs_f64());
        events.push(Reverse((first, Event::Look(number))));
        crowd.push(Agent { next: first, ..agent });
    }
    let mut secret: Option<Seen> = None;
    let (mut version, mut in_place, mut looks) = (0_u64, f64::NEG_INFINITY, 0_u32);
    let mut ends = Expirations::new();
    let mut cost = Cost { closest: f64::INFINITY, ..Cost::default() };
    let mut before = 0.0;
    while let Some(Reverse((time, event))) = events.pop() {
        let now = seconds(time);
        // In the end all tokens have ended, and nobody has a better one.
        let ended = start == Start::Outage && now > 24.0 * HOUR_S + LIFE_S;
        if now > hours * HOUR_S || ended {
            break;
        }
        // Between two events nothing changes but the time. Only then is it asked who has a better one.
        if in_place < now && version > 0 {
            let best = crowd.iter().map(|agent| since_start(agent.life.expires_at)).fold(in_place, f64::max);
            cost.lacked += (best.min(now) - in_place.max(before)).max(0.0);
        }
        before = now;
        match event {
            Event::Refresh(number) => {
                let ended = start == Start::Outage && now > 24.0 * HOUR_S;
                if !ended {
                    let agent = &mut crowd[number];
                    agent.fetch(now, &mut rng);
                    let due = since_start(agent.life.due(interval, rng.f64()));
                    events.push(Reverse((micros(due), Event::Refresh(number))));
                    if let Some(ends) = &agent.ends {
                        let look = next_look(ends, &agent.wanted, at(now), [rng.f64(), rng.f64()]);
                        let look = micros(now + look.as_secs_f64().max(1.0));
                        if look < agent.next {
                            agent.next = look;
                            events.push(Reverse((look, Event::Look(number))));
                        }
                    }
                }
            }
            Event::Look(number) if crowd[number].next == time => {
                looks += 1;
                let agent = &mut crowd[number];
                // What `plan` asks, too. It reads the whole secret besides, which takes its time: at one look in 50.
                let is_due = ends
                    .values()
                    .all(|end| schedule::due(*end, agent.life).is_some_and(|due| due <= at(now)));
                if !is_due && !looks.is_multiple_of(50) {
                    look_later(agent, number, ends.clone(), now, &mut rng, &mut events);
                    continue;
                }
                let planned = plan(secret.as_ref(), &agent.wanted, Ownership::Many, at(now));
                assert_eq!(is_due, matches!(planned, Ok(Plan::Write(..))), "{planned:?}");
                match planned {
                    Ok(Plan::Write(..)) => {
                        let write = now + 0.01 + 0.09 * rng.f64();
                        events.push(Reverse((micros(write), Event::Write(number, version))));
                    }
                    Ok(Plan::Keep(ends)) => look_later(agent, number, ends, now, &mut rng, &mut events),
                    other => unreachable!("nobody else writes: {other:?}"),
                }
            }
            // One that was planned before an earlier one.
            Event::Look(_) => {}
            Event::Write(number, read) if read == version => {
                let agent = &mut crowd[number];
                let Ok(Plan::Write(content, _)) =
                    plan(secret.as_ref(), &agent.wanted, Ownership::Many, at(now))
                else {
                    unreachable!("it was so a moment ago");
                };
                let mut next = secret.take().unwrap_or_default();
                TYPE.clone_into(&mut next.kind);
                next.config = Some(Zeroizing::new(content.config.as_bytes().to_vec()));
                let set = content.annotations.iter();
                next.annotations.extend(set.map(|(key, value)| ((*key).to_owned(), value.clone())));
                secret = Some(next);
                version += 1;
                if version > 1 {
                    cost.closest = cost.closest.min(in_place - now);
                }
                ends.clone_from(&content.ends);
                in_place = content.ends.values().map(|end| since_start(*end)).fold(f64::INFINITY, f64::min);
                cost.writes.push(now);
                look_later(agent, number, content.ends, now, &mut rng, &mut events);
                if start == Start::Unlucky {
                    // Another node, somewhere in its token's life.
                    let fetched = now - rng.f64() * 11.0 * HOUR_S;
                    agent.fetch(fetched, &mut rng);
                    let due = since_start(agent.life.due(interval, rng.f64())).max(now);
                    events.push(Reverse((micros(due), Event::Refresh(number))));
                }
            }
            Event::Write(number, _) => {
                cost.conflicts += 1;
                let look = micros(now + schedule::look_again(rng.f64()).as_secs_f64());
                crowd[number].next = look;
                events.push(Reverse((look, Event::Look(number))));
            }
        }
    }
    let agent_hours = f64::from(u32::try_from(agents).unwrap_or(u32::MAX)) * hours;
    cost.looks = f64::from(looks) / agent_hours;
    cost
}

fn look_later(
    agent: &mut Agent,
    number: usize,
    ends: Expirations,
    now: f64,
    rng: &mut Rng,
    events: &mut BinaryHeap<Reverse<(u64, Event)>>,
) {
    let look = next_look(&ends, &agent.wanted, at(now), [rng.f64(), rng.f64()]);
    agent.ends = Some(ends);
    agent.next = micros(now + look.as_secs_f64().max(1.0));
    events.push(Reverse((agent.next, Event::Look(number))));
}
