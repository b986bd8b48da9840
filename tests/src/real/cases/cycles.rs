//! A disk comes and goes many times, and nothing of it stays: neither in dom0 nor in the guest.

use std::time::{Duration, Instant};

use rustix::process::Pid;
use scenarios::block::BlockGuest;
use scenarios::{OrStop, Outcome, Stop, demand, demand_eq};

use crate::real::backend;
use crate::real::driver::Driver;
use crate::real::host::Host;
use crate::real::snapshot::leaves_nothing;

const CYCLES: u64 = 100;
/// Before anything is counted: what is made once and kept is there then.
const WARM_UP: u64 = 5;
const SEEN: Duration = Duration::from_secs(20);
/// Kept memory that may be found afterwards: an allocator's, not a leak of a page a cycle.
const ROOM_KIB: u64 = 256;
/// Memory of a process that is its own.
const OWN: &str = "RssAnon";

/// What a process of the back end holds, counted.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    threads: usize,
    /// Ranges of guests' pages that are mapped.
    mappings: usize,
    /// Accounts of queues.
    journals: usize,
}

/// 100 attachments and detachments, with data written and read in between.
pub fn all(host: &Host) -> Outcome {
    let image = host.zero_file("disk.img", 8)?.display().to_string();
    leaves_nothing(host, || {
        let guest = Driver::create(host, "cycles", |config| config)?;
        let (broker, _) = backend::part(backend::BROKER)?;
        let (worker, _) = backend::part(backend::WORKER)?;
        let held = || -> Outcome<[Held; 2]> { Ok([Held::by(broker)?, Held::by(worker)?]) };
        let before = held()?;
        for n in 0..WARM_UP {
            cycle(host, &guest, &image, n)?;
        }
        let kib = || -> Outcome<[u64; 3]> {
            Ok([
                backend::memory_kib(broker, OWN)?,
                backend::memory_kib(worker, OWN)?,
                guest_kib(&guest)?,
            ])
        };
        let memory = kib()?;
        for n in 0..CYCLES {
            cycle(host, &guest, &image, n)?;
        }
        host.step(format!("{CYCLES} cycles; the back end held {before:?}"));
        // Who looks at the sizes of images ends a while after the last one has gone.
        let deadline = Instant::now() + SEEN;
        while held()? != before && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(100));
        }
        demand_eq!(held()?, before, "what broker and worker hold");
        let now = kib()?;
        host.step(format!(
            "KiB of broker, worker and guest: {memory:?}, now {now:?}"
        ));
        for (before, now) in memory.iter().zip(now) {
            demand!(
                now <= before + ROOM_KIB,
                "of {before} KiB there are {now} KiB after {CYCLES} cycles"
            );
        }
        guest.shutdown()
    })
}

fn cycle(host: &Host, guest: &Driver<'_>, image: &str, n: u64) -> Outcome {
    let spec = format!("{image},raw,xvdb,w");
    host.toolstack(&["block-attach", "cycles", &spec])?;
    // Now and then with several queues and pages, that more can be left behind.
    let lines = ["disk use 51728", "disk open queues=2 order=1"];
    for line in &lines[..1 + usize::from(n.is_multiple_of(5))] {
        let answer = guest.command(line)?;
        answer.map_err(|error| Stop::Failed(format!("cycle {n}: {line}: {error}")))?;
    }
    let mut disk = guest.disk();
    disk.fill(n, 0, 128)?;
    demand!(disk.holds(n, 0, 128)?, "cycle {n}: it reads differently");
    host.toolstack(&["block-detach", "cycles", "xvdb"])?;
    host.wait_for("the front end has let go", SEEN, || {
        let state = guest.command("disk state")?;
        Ok((state == Ok("Closed".into())).then_some(()))
    })
}

impl Held {
    fn by(pid: Pid) -> Outcome<Held> {
        let folder = format!("/proc/{}", pid.as_raw_nonzero());
        let count = |path: &str| -> Outcome<usize> {
            let entries = std::fs::read_dir(path).or_broken(format!("read {path}"))?;
            Ok(entries.count())
        };
        let maps = format!("{folder}/maps");
        let maps = std::fs::read_to_string(&maps).or_broken(format!("read {maps}"))?;
        Ok(Held {
            descriptors: backend::descriptors(pid)?,
            threads: count(&format!("{folder}/task"))?,
            mappings: maps.matches("gntdev").count(),
            journals: count("/run/xlrs/blkback")?,
        })
    }
}

/// What the guest's heap has handed out.
fn guest_kib(guest: &Driver<'_>) -> Outcome<u64> {
    let said = guest.command("memory")?.map_err(Stop::Failed)?;
    let used = said.split_whitespace().nth(2).and_then(|n| n.parse().ok());
    used.or_fail(format!("memory is {said:?}"))
}
