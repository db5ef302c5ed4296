//! Any number of agents keep a pull secret together, and write it no more often than one agent does.

#[path = "../../examples/crowd.rs"]
#[expect(dead_code, reason = "it is an example, with a `main` of its own")]
mod example;

use example::{LIFE_S, Start, simulate};

/// One of these writes in 12 hours may be the first one, by a token of any age.
const MOST_WRITES: usize = 3;

#[test]
fn writes_do_not_grow_with_the_number_of_agents_and_the_secret_always_holds_a_token() {
    let cases = [(1, 96.0), (2, 96.0), (10, 96.0), (50, 96.0), (1000, 48.0), (20_000, 26.0)];
    for (agents, hours) in cases {
        for start in [Start::AtOnce, Start::Spread] {
            // The runs with many agents take long, and differ little by the seed.
            for seed in 0..if agents > 100 { 1 } else { 8 } {
                let cost = simulate(agents, start, hours, seed);
                let case = format!("{agents} agents, {start:?}, seed {seed}: {cost:?}");
                assert!(cost.mean(hours) < 2.0 && cost.most(LIFE_S) < MOST_WRITES, "{case}");
                assert!(cost.most(0.0) <= MOST_WRITES, "{case}");
                assert!(cost.reads < 2.0, "{case}");
                assert!(cost.without_token == 0.0 && cost.least_left > 600.0, "{case}");
            }
        }
    }
}

#[test]
fn the_secret_holds_a_token_as_long_as_any_agent_has_one() {
    for start in [Start::Outage, Start::Unlucky] {
        for agents in [2, 10, 50] {
            for seed in 0..8 {
                let cost = simulate(agents, start, 72.0, seed);
                assert!(cost.without_token < 60.0, "{agents} agents, {start:?}, seed {seed}: {cost:?}");
                assert!(cost.reads < 2.0, "{agents} agents, {start:?}, seed {seed}: {cost:?}");
            }
        }
    }
}
