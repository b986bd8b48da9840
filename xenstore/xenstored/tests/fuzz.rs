//! Random and mutated input for everything that is fuzzed. `FUZZ_RUNS` says how many, `FUZZ_SEED` where to begin; a failure names its
//! seed. `cargo xtask fuzz` does the same with coverage, from the same beginnings: see `xenstore/fuzz`.

#[allow(dead_code)]
mod targets;

use targets::seeds;

fn number(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.parse().expect("a number"))
}

fn run(name: &str) {
    let target = targets::find(name).expect("a target");
    let first = number("FUZZ_SEED", 1);
    for seed in first..first + number("FUZZ_RUNS", 150) {
        let bytes = seeds::input(name, seed);
        let outcome = std::panic::catch_unwind(|| target(&bytes));
        assert!(outcome.is_ok(), "FUZZ_SEED={seed} FUZZ_RUNS=1 fails again");
    }
}

#[test]
fn sockets() {
    run("socket");
}

#[test]
fn rings() {
    run("ring");
}

#[test]
fn live_updates() {
    run("update");
}

#[test]
fn states() {
    run("state");
}
