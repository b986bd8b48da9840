//! The block back end is killed under load, in either of its two parts, and nobody notices.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use scenarios::block::BlockGuest;
use scenarios::{OrStop, Outcome, Stop, demand};
use xen_fake::Schedule;

use crate::real::backend;
use crate::real::driver::Driver;
use crate::real::host::Host;
use crate::real::journals::in_flight;
use crate::real::snapshot::leaves_nothing;

/// Kills that count: with a request in flight.
const KILLS: usize = 100;
/// Kills after which what is to be shown was not shown. On one processor threads rarely overtake each other.
const MOST_KILLS: usize = 12 * KILLS;
/// How long it may take until the back end serves its guest again, on a machine with much to do.
const UP_AGAIN: Duration = Duration::from_secs(20);
const THREADS: &str = "--engine=threads";

/// Writes that follow each other on the same sectors, each verified, while the back end is killed at random
/// moments: no error and no wrong byte.
pub fn kills(host: &Host) -> Outcome {
    let image = host.zero_file("disk.img", 16)?;
    leaves_nothing(host, || {
        let driver = Driver::create(host, "survivor", |config| config.disk(&image))?;
        host.step(format!("{KILLS} kills under load"));
        let (killed, rounds) = beside_load(&driver, kill_often)?;
        host.step(format!("{killed:?}; {rounds} rounds were verified"));
        demand!(
            killed.counted >= KILLS,
            "only {} kills counted",
            killed.counted
        );
        demand!(killed.overtakers > 0, "all requests were answered in order");
        without_threads()?;
        driver.fill_and_check(99, 0, 4096)?;
        driver.shutdown()
    })
}

/// Does something while the guest writes and verifies; what came of it, and how often the guest did. Either ends when
/// the other fails.
pub fn beside_load<T: Send>(
    driver: &Driver<'_>,
    act: impl FnOnce(&AtomicBool) -> Outcome<T> + Send,
) -> Outcome<(T, u64)> {
    let over = AtomicBool::new(false);
    let (done, rounds) = std::thread::scope(|scope| {
        let beside = scope.spawn(|| {
            let done = act(&over);
            over.store(true, Ordering::Release);
            done
        });
        let rounds = load(driver, &over);
        over.store(true, Ordering::Release);
        let done = beside
            .join()
            .unwrap_or_else(|_| Err(Stop::Broken("the other thread panicked".into())));
        (done, rounds)
    });
    let rounds = rounds?;
    Ok((done?, rounds))
}

/// Writes and verifies until it is over; how often.
fn load(driver: &Driver<'_>, over: &AtomicBool) -> Outcome<u64> {
    let mut disk = driver.disk();
    // What is read all the time while other sectors are written.
    const STEADY: (u64, u64, u64) = (7777, 20_000, 4096);
    let (seed, at, count) = STEADY;
    disk.fill(seed, at, count)?;
    let mut round = 0;
    while !over.load(Ordering::Acquire) || round < 3 {
        round += 1;
        // Overlaps what the rounds before wrote: a write that is run again after it was acknowledged shows.
        let first = round % 5 * 64;
        let line = format!("disk mix {round} {first} 8192 {seed} {at} {count}");
        let mixed = driver.command(&line)?;
        demand!(mixed == Ok(String::new()), "{line}: {mixed:?}");
        demand!(
            disk.holds(round, first, 8192)?,
            "round {round}: what was written reads back differently"
        );
    }
    Ok(round)
}

/// What the kills met.
#[derive(Debug, Default)]
struct Killed {
    kills: usize,
    /// Those of the worker alone.
    workers: usize,
    /// Those with a request in flight.
    counted: usize,
    /// Most requests in flight.
    most: usize,
    /// Requests that had been answered before one that was taken earlier.
    overtakers: usize,
}

/// Kills the back end at random moments until enough kills had a request in flight, and some request had overtaken
/// another.
fn kill_often(over: &AtomicBool) -> Outcome<Killed> {
    let mut dice = Schedule::new(0x6b69_6c6c);
    let mut met = Killed::default();
    let mut taken = in_flight()?.taken;
    let enough = |met: &Killed| met.counted >= KILLS && met.overtakers > 0;
    while !enough(&met) && !over.load(Ordering::Acquire) {
        wait_for_progress(taken, over)?;
        std::thread::sleep(Duration::from_micros(20_000 + dice.pick(150_000) as u64));
        // Who opens the files, and the other part with it; or only who moves the data, which the first starts
        // again.
        let whole = dice.pick(3) > 0;
        let part = if whole {
            backend::BROKER
        } else {
            backend::WORKER
        };
        let (pid, mut words) = backend::part(part)?;
        kill_process(pid, Signal::KILL).or_broken("kill the back end")?;
        let found = in_flight()?;
        taken = found.taken;
        met.kills += 1;
        met.workers += usize::from(!whole);
        met.counted += usize::from(found.running > 0);
        met.most = met.most.max(found.running);
        met.overtakers += found.overtakers;
        demand!(met.kills < MOST_KILLS, "not shown by then: {met:?}");
        if whole {
            // Its threads finish in any order; the other engine does what is in memory on the spot.
            words.retain(|word| word != THREADS);
            words.extend((dice.pick(4) > 0).then(|| THREADS.to_string()));
            backend::start(&words)?;
        }
    }
    Ok(met)
}

/// Waits until the back end has taken more requests than before its last end: killed again and again on its way
/// up, it would show nothing.
fn wait_for_progress(before: u32, over: &AtomicBool) -> Outcome {
    let start = Instant::now();
    while in_flight()?.taken == before && !over.load(Ordering::Acquire) {
        demand!(
            start.elapsed() < UP_AGAIN,
            "the back end has taken no request for {UP_AGAIN:?}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Leaves the back end with the engine that it had before the kills.
fn without_threads() -> Outcome {
    let (pid, mut words) = backend::part(backend::BROKER)?;
    if words.iter().any(|word| word == THREADS) {
        kill_process(pid, Signal::KILL).or_broken("kill the back end")?;
        words.retain(|word| word != THREADS);
        backend::start(&words)?;
    }
    Ok(())
}
