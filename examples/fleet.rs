//! What a whole fleet of these agents does to ECR's throttle: `cargo run --release --example fleet [CHARTS.svg]`.
//!
//! A simulation by events, over the program's own [`ecr_node_agent::time::schedule`] and nothing else of it: no network, no
//! clock, the same figures on every run. What they mean is written down in `docs/fleet.md`.
#![expect(clippy::print_stdout, reason = "it exists to print")]

use ecr_node_agent::time::retry::before_deadline;
use ecr_node_agent::time::schedule::{Interval, Life, exponential_delay, throttled_delay};
use fastrand::Rng;
use jiff::{SignedDuration, Timestamp};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::ops::Range;
use std::process::ExitCode;
use std::time::Duration;

/// What ECR documents for `GetAuthorizationToken`, for each account and region.
const BURST: f64 = 200.0;
const PER_SECOND: f64 = 20.0;

const INTERVAL: Interval =
    Interval { length: SignedDuration::from_hours(11), spread: SignedDuration::from_mins(30) };
const TOKEN_LIFE: SignedDuration = SignedDuration::from_hours(12);

// One history for every fleet, in hours since its rollout.
const STEADY_END: u64 = 72;
/// In the middle of the seventh round of refreshes, so that most of the nodes are left behind.
const OUTAGE: Range<u64> = 74..76;
/// The first round of refreshes. Were the rollout's crowd as dense by then as it was served, it would be the worst.
const WORST_OUTAGE: Range<u64> = 10..12;
const RESTART: u64 = 96;
const END: u64 = 120;

const SIZES: [u32; 8] = [300, 1_000, 3_000, 6_000, 10_000, 30_000, 100_000, 200_000];
const TIMES_THE_BEST: f64 = 1.25;

fn main() -> ExitCode {
    let mut missed = 0;
    println!("Rollout: every node starts within 3 s, with no token. Worst of the seeds.");
    missed += rollouts(&SIZES, 3, false);
    println!("\nRollout: the same, the starts spread over 60 s.");
    missed += rollouts(&SIZES, 60, false);
    println!(
        "\nRollout: within 3 s, were being throttled a failure like any other. No target, a comparison."
    );
    rollouts(&[1_000, 10_000, 100_000], 3, true);
    println!("\n`--once`, started within 3 s, each node gives up after 60 s. No target. Worst of ten seeds.");
    once(&[300, 1_000, 1_300, 2_000, 10_000]);
    println!(
        "\nOutages of 2 hours that begin at each hour from 62 to 72. No target. With the rule, and without it."
    );
    outages(&[1_000, 10_000, 100_000]);

    let mut charts = Vec::new();
    for nodes in [1_000, 10_000, 100_000] {
        println!("\n{nodes} nodes, {END} hours");
        let fleet = Fleet::new(nodes, 3, u64::from(nodes)).run(hours(END));
        missed += report(&fleet);
        charts.extend(draw(&fleet));
    }
    for nodes in [1_000, 10_000, 100_000] {
        println!("\n{nodes} nodes, the outage from hour {} to {}", WORST_OUTAGE.start, WORST_OUTAGE.end);
        let mut fleet = Fleet::new(nodes, 3, u64::from(nodes));
        fleet.outage = WORST_OUTAGE;
        missed += report(&fleet.run(hours(END)));
    }
    match missed {
        0 => println!("\nEvery target was reached."),
        _ => println!("\nTargets missed: {missed}."),
    }
    if let Some(path) = std::env::args_os().nth(1) {
        match File::create(&path).and_then(|mut file| file.write_all(svg(&charts).as_bytes())) {
            Ok(()) => println!("The charts are in {}.", path.display()),
            Err(error) => {
                println!("cannot write {}: {error}", path.display());
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

// ---- the world --------------------------------------------------------------------------------------------------

/// A token bucket. A call that it refuses costs it nothing.
struct Bucket {
    permits: f64,
    at: Duration,
}

impl Bucket {
    fn full() -> Self {
        Self { permits: BURST, at: Duration::ZERO }
    }

    fn fill(&mut self, now: Duration) {
        let more = now.saturating_sub(self.at).as_secs_f64() * PER_SECOND;
        self.permits = (self.permits + more).min(BURST);
        self.at = self.at.max(now);
    }

    fn take(&mut self, now: Duration) -> bool {
        self.fill(now);
        let some = self.permits >= 1.0;
        if some {
            self.permits -= 1.0;
        }
        some
    }

    /// As [`Self::take`], but by somebody who stands in a queue: when it is their turn.
    fn wait(&mut self, now: Duration) -> Duration {
        self.fill(now.max(self.at));
        let short = (1.0 - self.permits).max(0.0) / PER_SECOND;
        let turn = self.at + Duration::from_secs_f64(short);
        self.fill(turn);
        self.permits -= 1.0;
        turn
    }
}

/// A node, as far as the throttle is concerned.
#[derive(Clone, Default)]
struct Node {
    life: Option<Life>,
    /// The end of `life`, since the simulation's start.
    valid_until: Duration,
    /// Tries since the last success that were throttled or failed.
    failures: u32,
    /// Since the last success: the first throttled try without a valid token.
    first_throttled: Option<Duration>,
    /// Since the last success: what was left of the token at the first try that ECR could have served.
    left_at_first: Option<Duration>,
    /// The last try was throttled.
    throttled: bool,
    /// Failed in the outage, and not served since.
    behind: bool,
}

/// What happened in a part of the history.
#[derive(Clone, Default)]
struct Count {
    /// Nodes that have called at least once, and when first.
    first_calls: Vec<Duration>,
    served: u32,
    throttled: u32,
    last_served: Duration,
    /// When those were served who once had a token, but no valid one any more.
    served_without: Vec<Duration>,
    /// Tokens that ended after their node was throttled, and the most that one of them had left at that first try.
    lost_by_crowding: u32,
    most_lost: Duration,
    /// First calls of those whose token had ended before.
    lost_by_outage: Vec<Duration>,
    /// The least that a token had left to live when it was replaced.
    least_left: Option<Duration>,
}

struct Fleet {
    nodes: Vec<Node>,
    start_within: u64,
    /// Being throttled is a failure like any other: what the rule is compared with.
    plain: bool,
    /// Whoever was throttled draws the next refresh from a wider part of the interval, as the agent does.
    thinned: bool,
    /// When ECR is away, in hours.
    outage: Range<u64>,
    rng: Rng,
    bucket: Bucket,
    queue: BinaryHeap<Reverse<(Duration, usize)>>,
    /// Rollout, steady state, after the outage (those it left behind only), after the restart.
    counts: [Count; 4],
    /// For each second: calls served, throttled, failed; and the change in nodes without a valid token.
    served: Vec<f64>,
    refused: Vec<f64>,
    without: Vec<f64>,
    waiting: u32,
    /// First calls since the outage, of whomever, and whether it had left them behind.
    crowd: Vec<(Duration, bool)>,
}

impl Fleet {
    fn new(nodes: u32, start_within: u64, seed: u64) -> Self {
        let mut fleet = Self {
            nodes: vec![Node::default(); index(u64::from(nodes))],
            start_within,
            plain: false,
            thinned: true,
            outage: OUTAGE,
            rng: Rng::with_seed(seed),
            bucket: Bucket::full(),
            queue: BinaryHeap::new(),
            counts: std::array::from_fn(|_| Count::default()),
            served: Vec::new(),
            refused: Vec::new(),
            without: Vec::new(),
            waiting: nodes,
            crowd: Vec::new(),
        };
        for node in 0..fleet.nodes.len() {
            let start = fleet.soon(Duration::ZERO);
            fleet.queue.push(Reverse((start, node)));
        }
        fleet
    }

    fn soon(&mut self, after: Duration) -> Duration {
        after + Duration::from_secs(self.start_within).mul_f64(self.rng.f64())
    }

    /// Until every node has had its first token.
    fn roll_out(mut self) -> Self {
        while self.waiting > 0 && self.step(Duration::MAX) {}
        self
    }

    fn run(mut self, end: Duration) -> Self {
        while self.step(hours(RESTART)) {}
        self.restart();
        while self.step(end) {}
        for node in std::mem::take(&mut self.nodes) {
            self.gap(&node, end);
            self.nodes.push(node);
        }
        self
    }

    /// All agents start anew and find the files that the old ones left.
    fn restart(&mut self) {
        self.queue.clear();
        for number in 0..self.nodes.len() {
            let start = self.soon(hours(RESTART));
            let random = self.rng.f64();
            let node = &mut self.nodes[number];
            node.failures = 0;
            node.throttled = false;
            (node.first_throttled, node.left_at_first) = (None, None);
            let good = node.life.filter(|life| life.is_good(timestamp(start)));
            let due = good.map_or(start, |life| since_start(life.due(INTERVAL, random)).max(start));
            self.queue.push(Reverse((due, number)));
        }
    }

    /// The next call, if there is one before `end`.
    fn step(&mut self, end: Duration) -> bool {
        let Some(Reverse((now, number))) = self.queue.peek().copied().filter(|next| next.0.0 < end) else {
            return false;
        };
        self.queue.pop();
        let mut node = std::mem::take(&mut self.nodes[number]);
        let next = self.call(&mut node, now);
        self.nodes[number] = node;
        self.queue.push(Reverse((next, number)));
        true
    }

    /// One call to ECR; returns when the node calls next.
    fn call(&mut self, node: &mut Node, now: Duration) -> Duration {
        let random = self.rng.f64();
        if (hours(self.outage.start)..hours(self.outage.end)).contains(&now) {
            node.failures += 1;
            node.throttled = false;
            node.behind = true;
            node.left_at_first = None;
            add(&mut self.refused, now, 1.0);
            return now + retry_delay(node.failures, random);
        }
        let part = match () {
            () if node.behind => 2,
            () if now >= hours(RESTART) => 3,
            () if node.life.is_none() => 0,
            () => 1,
        };
        let left = node.valid_until.saturating_sub(now);
        let count = &mut self.counts[part];
        if node.left_at_first.is_none() {
            count.first_calls.push(now);
            if now >= hours(self.outage.end) {
                self.crowd.push((now, node.behind));
            }
            if node.behind && left.is_zero() {
                count.lost_by_outage.push(now);
            }
        }
        let left_at_first = *node.left_at_first.get_or_insert(left);
        if !self.bucket.take(now) {
            node.failures += 1;
            node.throttled = true;
            count.throttled += 1;
            add(&mut self.refused, now, 1.0);
            let first = if left.is_zero() { *node.first_throttled.get_or_insert(now) } else { now };
            if self.plain {
                return now + retry_delay(node.failures, random);
            }
            return now + throttled_delay(now.saturating_sub(first), left, random);
        }
        count.served += 1;
        count.last_served = now;
        match node.life {
            None => self.waiting -= 1,
            Some(_) if left.is_zero() => {
                count.served_without.push(now);
                if !left_at_first.is_zero() {
                    count.lost_by_crowding += 1;
                    count.most_lost = count.most_lost.max(left_at_first);
                }
            }
            Some(_) => count.least_left = Some(count.least_left.map_or(left, |least| least.min(left))),
        }
        add(&mut self.served, now, 1.0);
        self.gap(node, now);
        let fetched_at = timestamp(now);
        let life = Life { fetched_at, expires_at: fetched_at + TOKEN_LIFE };
        let interval = if node.throttled && self.thinned { INTERVAL.after_a_crowd() } else { INTERVAL };
        *node = Node { life: Some(life), valid_until: since_start(life.expires_at), ..Node::default() };
        since_start(life.due(interval, random))
    }

    /// When a queue that loses no permit, and that cannot tell those whom the outage left behind from those who have
    /// become due since, would have served them all: when it is empty for the first time after the last of them came.
    fn best_after_outage(&self) -> Duration {
        let last = self.crowd.iter().rposition(|call| call.1).unwrap_or_default();
        let mut bucket = Bucket::full();
        let mut best = hours(self.outage.end);
        for (number, &(call, _)) in self.crowd.iter().enumerate() {
            let turn = bucket.wait(call);
            if number > last && turn == call {
                break;
            }
            best = turn;
        }
        best
    }

    /// The node had no valid token between the end of its last one and now.
    fn gap(&mut self, node: &Node, now: Duration) {
        if node.valid_until < now {
            add(&mut self.without, node.valid_until, 1.0);
            add(&mut self.without, now, -1.0);
        }
    }
}

impl Count {
    fn best(&self) -> Duration {
        best(&self.first_calls)
    }

    fn wasted(&self) -> f64 {
        f64::from(self.throttled) / f64::from(self.served.max(1))
    }
}

/// When the last of these callers would have been served by a queue that knows all who wait and loses no permit.
fn best(calls: &[Duration]) -> Duration {
    let mut bucket = Bucket::full();
    calls.iter().map(|&call| bucket.wait(call)).max().unwrap_or_default()
}

// ---- what is told -----------------------------------------------------------------------------------------------

fn rollouts(sizes: &[u32], start_within: u64, plain: bool) -> u32 {
    println!("    nodes      best s    ours s   ratio  target          wasted a node  target");
    let mut missed = 0;
    for &nodes in sizes {
        let seeds = if nodes > 30_000 { 5 } else { 10 };
        let runs = (0..seeds).map(|seed| {
            let mut fleet = Fleet::new(nodes, start_within, seed);
            fleet.plain = plain;
            let [count, ..] = fleet.roll_out().counts;
            (count.best().as_secs_f64(), count.last_served.as_secs_f64(), count.wasted())
        });
        let (best, ours, wasted) = runs.fold((0.0_f64, 0.0_f64, 0.0_f64), |worst, run| {
            let slower = if run.1 * worst.0 >= worst.1 * run.0 { run } else { worst };
            (slower.0, slower.1, worst.2.max(run.2))
        });
        let in_time = verdict(ours <= best * TIMES_THE_BEST, nodes, &mut missed);
        let few = wasted_verdict(wasted, nodes, &mut missed);
        println!(
            "{nodes:>9} {best:>11.0} {ours:>9.0} {:>7.3}  1.25 {in_time:<13} {wasted:>10.2}  {few}",
            ours / best
        );
    }
    missed
}

/// What `--once` comes to, where a whole fleet boots with it.
fn once(sizes: &[u32]) {
    println!(
        "    nodes    served  wasted a node    were being throttled a failure like any other:  served  wasted"
    );
    for &nodes in sizes {
        let worst = |plain: bool| {
            let runs = (0..10).map(|seed| once_each(nodes, plain, seed));
            runs.fold((u32::MAX, 0), |worst, run| (worst.0.min(run.0), worst.1.max(run.1)))
        };
        let [ours, plain] = [false, true].map(worst);
        let wasted = |calls: u32| f64::from(calls) / f64::from(nodes);
        println!(
            "{nodes:>9} {:>9} {:>14.2} {:>55} {:>7.2}",
            ours.0,
            wasted(ours.1),
            plain.0,
            wasted(plain.1)
        );
    }
}

/// How many are served, and how many calls are wasted.
fn once_each(nodes: u32, plain: bool, seed: u64) -> (u32, u32) {
    const TIMEOUT: Duration = Duration::from_mins(1);
    let mut fleet = Fleet::new(nodes, 3, seed);
    let mut ends: Vec<Duration> = vec![Duration::ZERO; fleet.nodes.len()];
    fleet.queue.iter().for_each(|Reverse((start, number))| ends[*number] = *start + TIMEOUT);
    let (mut served, mut wasted) = (0, 0);
    while let Some(Reverse((now, number))) = fleet.queue.pop() {
        if fleet.bucket.take(now) {
            served += 1;
            continue;
        }
        wasted += 1;
        let random = fleet.rng.f64();
        let node = &mut fleet.nodes[number];
        node.failures += 1;
        let remaining = ends[number].saturating_sub(now);
        let since_first = now.saturating_sub(*node.first_throttled.get_or_insert(now));
        let delay = if plain {
            Some(retry_delay(node.failures, random)).filter(|delay| *delay < remaining)
        } else {
            before_deadline(throttled_delay(since_first, Duration::ZERO, random), remaining, random)
        };
        fleet.queue.extend(delay.map(|delay| Reverse((now + delay, number))));
    }
    (served, wasted)
}

/// The delay after other failures than throttling.
fn retry_delay(failures: u32, random: f64) -> Duration {
    exponential_delay(Duration::from_secs(1), Duration::from_mins(5), failures, random)
}

/// What an outage costs, whenever it begins, with crowds thinned out and without.
fn outages(sizes: &[u32]) {
    println!(
        "    nodes            lost to crowding: mean, most    lost to the outage: mean, most    wasted, most"
    );
    for (&nodes, thinned) in sizes.iter().flat_map(|nodes| [(nodes, true), (nodes, false)]) {
        let starts = 62..73;
        let runs = starts.clone().map(|start| {
            let mut fleet = Fleet::new(nodes, 3, u64::from(nodes));
            (fleet.outage, fleet.thinned) = (start..start + 2, thinned);
            let fleet = fleet.run(hours(RESTART));
            let crowding: u32 = fleet.counts.iter().map(|count| count.lost_by_crowding).sum();
            let [_, _, outage, _] = &fleet.counts;
            (f64::from(crowding), whole(outage.lost_by_outage.len()), outage.wasted())
        });
        let runs: Vec<(f64, f64, f64)> = runs.collect();
        let of = |part: fn(&(f64, f64, f64)) -> f64| {
            let (sum, most) = runs.iter().map(part).fold((0.0, 0.0_f64), |so, it| (so.0 + it, so.1.max(it)));
            (sum / whole(runs.len()), most)
        };
        let (crowding, outage, wasted) = (of(|run| run.0), of(|run| run.1), of(|run| run.2).1);
        println!(
            "{nodes:>9} {:<8} {:>22.0} {:>7.0} {:>25.0} {:>7.0} {wasted:>14.2}",
            if thinned { "with" } else { "without" },
            crowding.0,
            crowding.1,
            outage.0,
            outage.1
        );
    }
}

fn whole(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

/// Targets are named for three sizes; the others are there to show what is between them.
fn verdict(reached: bool, nodes: u32, missed: &mut u32) -> &'static str {
    match (reached, matches!(nodes, 1_000 | 10_000 | 100_000)) {
        (true, _) => "reached",
        (false, true) => {
            *missed += 1;
            "MISSED"
        }
        (false, false) => "(missed)",
    }
}

fn wasted_verdict(wasted: f64, nodes: u32, missed: &mut u32) -> String {
    match nodes {
        10_000 => format!("5 {}", verdict(wasted <= 5.0, nodes, missed)),
        100_000 => format!("10 {}", verdict(wasted <= 10.0, nodes, missed)),
        _ => String::from("-"),
    }
}

fn report(fleet: &Fleet) -> u32 {
    let nodes = u32::try_from(fleet.nodes.len()).unwrap_or(u32::MAX);
    let [rollout, steady, outage, restart] = &fleet.counts;
    let mut missed = 0;
    println!(
        "  all are served after          nodes    best s    ours s   ratio  target 1.25  wasted a node  target"
    );
    let parts = [
        ("rollout", rollout, rollout.served, [rollout.best(), rollout.last_served], 0),
        ("outage", outage, outage.served, [fleet.best_after_outage(), outage.last_served], fleet.outage.end),
    ];
    for (name, count, served, times, from) in parts {
        let in_time = timely(times, from, nodes, &mut missed);
        let few = wasted_verdict(count.wasted(), nodes, &mut missed);
        println!("  {name:<26} {served:>8} {in_time} {:>14.2}  {few}", count.wasted());
    }
    if let (Some(most), Some(last)) =
        (outage.served_without.get(outage.served_without.len() * 9 / 10), outage.served_without.last())
    {
        let [best, most, last] = [best(&outage.lost_by_outage), *most, *last]
            .map(|at| at.saturating_sub(hours(fleet.outage.end)).as_secs_f64());
        println!(
            "  outage, without a token    {:>8} {best:>9.0} {last:>9.0}          9 of 10 after {most:.0} s",
            outage.served_without.len()
        );
    }
    println!("  tokens are replaced in      refreshes  wasted each  lost to crowding  least left, min");
    for (name, count) in
        [("steady state", steady), ("after the outage", outage), ("after the restart", restart)]
    {
        let least = count.least_left.map_or(0.0, |left| left.as_secs_f64() / 60.0);
        println!(
            "  {name:<26} {:>10} {:>12.2} {:>17} {least:>16.1}",
            count.served,
            count.wasted(),
            count.lost_by_crowding
        );
    }
    let lost: u32 = fleet.counts.iter().map(|count| count.lost_by_crowding).sum();
    let most = fleet.counts.iter().map(|count| count.most_lost).max().unwrap_or_default();
    println!("  lost to our own crowding: {lost}, target 0: {}", verdict(lost == 0, nodes, &mut missed));
    if lost > 0 {
        println!("  none of these had more than {:.0} s left at its first try", most.as_secs_f64().ceil());
    }
    println!(
        "  lost to the outage itself, before the node could learn of its end: {}",
        outage.lost_by_outage.len()
    );
    missed
}

/// `[best, ours]`, as a part of a row.
fn timely(times: [Duration; 2], from: u64, nodes: u32, missed: &mut u32) -> String {
    let [best, ours] = times.map(|at| at.saturating_sub(hours(from)).as_secs_f64());
    let ratio = if best > 0.0 { ours / best } else { 1.0 };
    format!("{best:>9.0} {ours:>9.0} {ratio:>7.3}  {:<11}", verdict(ratio <= TIMES_THE_BEST, nodes, missed))
}

/// A line over time, as a chart shows it.
struct Chart {
    title: String,
    /// One value a column.
    values: Vec<f64>,
    /// Where the columns begin and end, in hours.
    hours: [f64; 2],
    logarithmic: bool,
}

const COLUMNS: usize = 96;
const ROWS: u32 = 6;

fn draw(fleet: &Fleet) -> Vec<Chart> {
    let nodes = fleet.nodes.len();
    let mut level = 0.0;
    let without: Vec<f64> = fleet
        .without
        .iter()
        .map(|change| {
            level += change;
            level
        })
        .collect();
    let first = fleet.counts[0].last_served.as_secs();
    let outage = fleet.outage.start * 3600;
    let parts = [
        ("rollout", 0..first + first / 10 + 10),
        ("three days", 0..STEADY_END * 3600),
        ("outage", outage - 600..outage + 3 * 3600),
        ("restart", RESTART * 3600 - 600..END * 3600),
    ];
    let mut charts = Vec::new();
    for (part, seconds) in parts {
        let lines = [
            ("calls served a second", &fleet.served, false),
            ("calls throttled or failed a second", &fleet.refused, true),
            ("nodes without a valid token", &without, false),
        ];
        for (what, line, logarithmic) in lines {
            let chart = Chart {
                title: format!("{nodes} nodes, {part}: {what}"),
                values: columns(line, &seconds),
                hours: [seconds.start, seconds.end].map(|at| Duration::from_secs(at).as_secs_f64() / 3600.0),
                logarithmic,
            };
            if chart.top() > 0.0 {
                chart.print();
                charts.push(chart);
            }
        }
    }
    charts
}

/// The mean of each column's seconds.
fn columns(line: &[f64], seconds: &Range<u64>) -> Vec<f64> {
    let [start, end] = [seconds.start, seconds.end].map(index);
    let border = |column: usize| start + (end - start) * column / COLUMNS;
    let mean = |column: usize| {
        let from = border(column);
        let length = (border(column + 1) - from).max(1);
        let sum: f64 = line.iter().skip(from).take(length).sum();
        sum / f64::from(u32::try_from(length).unwrap_or(u32::MAX))
    };
    (0..COLUMNS).map(mean).collect()
}

impl Chart {
    fn top(&self) -> f64 {
        self.values.iter().copied().fold(0.0, f64::max)
    }

    /// From 0 to 1. The logarithmic ones begin at a hundredth.
    fn height(&self, value: f64) -> f64 {
        let top = self.top();
        if self.logarithmic {
            ((value.max(0.01) / 0.01).ln() / (top.max(0.02) / 0.01).ln()).clamp(0.0, 1.0)
        } else {
            value / top
        }
    }

    fn print(&self) {
        let scale = if self.logarithmic { " (logarithmic)" } else { "" };
        println!("\n  {}{scale}, at most {:.1}", self.title, self.top());
        for row in (0..ROWS).rev() {
            let bar: String = self.values.iter().map(|&value| block(self.height(value), row)).collect();
            println!("  |{bar}");
        }
        let [from, to] = self.hours;
        println!("  +{}", "-".repeat(COLUMNS));
        println!("   {:<86}{:>8.2} h", format!("{from:.2} h"), to);
    }
}

fn block(height: f64, row: u32) -> char {
    let full = height * f64::from(ROWS) - f64::from(row);
    let steps = [(1.0, '█'), (0.75, '▆'), (0.5, '▄'), (0.25, '▂'), (0.02, '▁')];
    steps.iter().find(|step| full >= step.0).map_or(' ', |step| step.1)
}

fn svg(charts: &[Chart]) -> String {
    const WIDTH: f64 = 420.0;
    const HEIGHT: f64 = 150.0;
    let mut panels = String::new();
    let (mut x, mut y) = (0.0, 0.0);
    for chart in charts {
        let [from, to] = chart.hours;
        let step = (WIDTH - 20.0) / f64::from(u32::try_from(COLUMNS).unwrap_or(1));
        let mut points = String::new();
        let mut at = 0.0;
        for &value in &chart.values {
            // Writing to a `String` cannot fail.
            let _infallible = write!(points, "{at:.1},{:.1} ", 90.0 * (1.0 - chart.height(value)));
            at += step;
        }
        let scale = if chart.logarithmic { ", logarithmic" } else { "" };
        let _infallible = writeln!(
            panels,
            "<g transform='translate({:.0},{:.0})'><text y='-6'>{}</text>\
             <path d='M0,0V90H{:.0}' class='axis'/><polyline points='{points}'/>\
             <text y='106'>{from:.2} h to {to:.2} h, at most {:.1}{scale}</text></g>",
            x + 10.0,
            y + 25.0,
            chart.title,
            WIDTH - 20.0,
            chart.top()
        );
        x += WIDTH;
        if x >= 3.0 * WIDTH {
            (x, y) = (0.0, y + HEIGHT);
        }
    }
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {:.0} {:.0}' font-family='sans-serif' font-size='11'>\n\
         <style>polyline{{fill:none;stroke:#1f6feb;stroke-width:1.2}}.axis{{fill:none;stroke:#888}}</style>\n\
         <rect width='100%' height='100%' fill='#fff'/>\n{panels}</svg>\n",
        3.0 * WIDTH,
        y + HEIGHT
    )
}

// ---- time -------------------------------------------------------------------------------------------------------

fn hours(hours: u64) -> Duration {
    Duration::from_hours(hours)
}

/// The simulation begins at the epoch.
fn timestamp(since_start: Duration) -> Timestamp {
    Timestamp::UNIX_EPOCH + since_start
}

fn since_start(at: Timestamp) -> Duration {
    at.duration_since(Timestamp::UNIX_EPOCH).try_into().unwrap_or_default()
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn add(line: &mut Vec<f64>, at: Duration, change: f64) {
    let second = index(at.as_secs());
    if line.len() <= second {
        line.resize(second + 1, 0.0);
    }
    line[second] += change;
}
