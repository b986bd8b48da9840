//! The block back end is killed under load, and nobody notices.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use scenarios::block::BlockGuest;
use scenarios::{OrStop, Outcome, Stop, demand};
use xen_fake::Schedule;

use crate::real::driver::Driver;
use crate::real::host::Host;
use crate::real::snapshot::leaves_nothing;

/// Kills that count: with a request in flight.
const KILLS: usize = 100;
/// Where the back end has its account of what runs, and how it stands in it (blkback's `journal.rs`).
const JOURNALS: &str = "/run/xlrs/blkback";
const RECORDS: u64 = 256;
const RECORD: u64 = 128;
const RUNNING: u32 = 1;

/// Writes that follow each other on the same sectors, each verified, while the back end is killed at random
/// moments: no error and no wrong byte.
pub fn kills(host: &Host) -> Outcome {
    let image = host.zero_file("disk.img", 16)?;
    leaves_nothing(host, || {
        let driver = Driver::create(host, "survivor", |config| config.disk(&image))?;
        host.step(format!("{KILLS} kills under load"));
        let over = AtomicBool::new(false);
        let (killed, rounds) = std::thread::scope(|scope| {
            let killer = scope.spawn(|| {
                let killed = kill_often(&over);
                over.store(true, Ordering::Release);
                killed
            });
            let rounds = load(&driver, &over);
            over.store(true, Ordering::Release);
            let killed = killer
                .join()
                .unwrap_or_else(|_| Err(Stop::Broken("the killer panicked".into())));
            (killed, rounds)
        });
        let rounds = rounds?;
        let (all, in_flight, most) = killed?;
        host.step(format!(
            "{all} kills, {in_flight} of them with requests in flight, up to {most}; \
             {rounds} rounds were verified"
        ));
        demand!(in_flight >= KILLS, "only {in_flight} kills counted");
        driver.fill_and_check(99, 0, 4096)?;
        driver.shutdown()
    })
}

/// Writes and verifies until it is over; how often.
fn load(driver: &Driver<'_>, over: &AtomicBool) -> Outcome<u64> {
    let mut disk = driver.disk();
    let mut round = 0;
    while !over.load(Ordering::Acquire) || round < 3 {
        round += 1;
        // Overlaps what the rounds before wrote: a write that is run again after it was acknowledged shows.
        let first = round % 5 * 64;
        disk.fill(round, first, 8192)?;
        demand!(
            disk.holds(round, first, 8192)?,
            "round {round}: what was written reads back differently"
        );
    }
    Ok(round)
}

/// Kills the back end at random moments until enough kills had a request in flight. How many there were,
/// how many counted, and the most requests in flight.
fn kill_often(over: &AtomicBool) -> Outcome<(usize, usize, usize)> {
    let mut dice = Schedule::new(0x6b69_6c6c);
    let (mut all, mut counted, mut most) = (0, 0, 0);
    while counted < KILLS && !over.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_micros(20_000 + dice.pick(150_000) as u64));
        let (pid, words) = backend()?;
        kill_process(pid, Signal::KILL).or_broken("kill the back end")?;
        all += 1;
        let running = in_flight()?;
        counted += usize::from(running > 0);
        most = most.max(running);
        demand!(all < 20 * KILLS, "of {all} kills only {counted} counted");
        let deadline = Instant::now() + Duration::from_secs(10);
        // The store's node stays when the process is killed; the daemon waits for its predecessor's end.
        loop {
            let started = Command::new(&words[0]).args(&words[1..]).status();
            match started {
                Ok(status) if status.success() => break,
                _ if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
                other => return Err(Stop::Failed(format!("{}: {other:?}", words.join(" ")))),
            }
        }
    }
    Ok((all, counted, most))
}

/// The back end's process and its command line.
fn backend() -> Outcome<(Pid, Vec<String>)> {
    let processes = std::fs::read_dir("/proc").or_broken("read /proc")?;
    for entry in processes.flatten() {
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<String> = line
            .split(|&byte| byte == 0)
            .filter(|word| !word.is_empty())
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        let is_it = words
            .first()
            .is_some_and(|first| Path::new(first).ends_with("blkback"));
        if let (true, Some(pid)) = (is_it, Pid::from_raw(number)) {
            return Ok((pid, words));
        }
    }
    Err(Stop::Failed("no back end is running".into()))
}

/// How many requests the back end that was killed had begun and not answered.
fn in_flight() -> Outcome<usize> {
    let files = std::fs::read_dir(JOURNALS).or_broken(format!("read {JOURNALS}"))?;
    let mut running = 0;
    for entry in files.flatten() {
        let file = std::fs::File::open(entry.path()).or_broken("open a journal")?;
        let length = file.metadata().or_broken("look at a journal")?.len();
        for at in (RECORDS..length).step_by(RECORD as usize) {
            let mut state = [0; 4];
            file.read_exact_at(&mut state, at)
                .or_broken("read a journal")?;
            running += usize::from(u32::from_le_bytes(state) == RUNNING);
        }
    }
    Ok(running)
}
