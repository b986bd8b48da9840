//! The store daemon is killed and replaced by another while guests come and go.

use std::collections::VecDeque;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use scenarios::{OrStop, Outcome, Stop, demand};
use xen_hal::Store;
use xs_client::Connection;

use crate::real::driver::Driver;
use crate::real::host::Host;
use crate::real::snapshot::leaves_nothing;

/// Guests created and destroyed.
const GUESTS: usize = 50;
/// How many of them live at a time.
const ALIVE: usize = 4;
/// One in so many has a disk, whose back end learns of it by a watch.
const DISKS: usize = 5;
/// How often the daemon is killed, and how often it is updated.
const UPHEAVALS: usize = 10;
/// The longest time between two of them.
const PAUSE: Duration = Duration::from_millis(3000);
/// How long a daemon may take to be there again.
const REBIRTH: Duration = Duration::from_secs(20);

const PID_FILE: &str = "/run/xlrs/xenstored.pid";
const PROGRAM: &str = "/lab/bin/xenstored";
const ROOT: &str = "/xlrs-upheaval";

/// Ten deaths and ten updates, fifty guests: nothing is lost and nothing is left.
pub fn all(host: &Host) -> Outcome {
    let image = host.zero_file("disk.img", 16)?;
    leaves_nothing(host, || {
        let witness = Driver::create(host, "witness", |config| config)?;
        let calm = AtomicBool::new(false);
        let (counted, guests) = std::thread::scope(|scope| {
            let upheavals = scope.spawn(|| {
                let counted = upheavals(host, &calm);
                calm.store(true, Ordering::Release);
                counted
            });
            let guests = guests(host, &image, &calm);
            // Whoever fails does not keep the other at it.
            calm.store(true, Ordering::Release);
            let panicked = |_| Err(Stop::Broken("the thread of upheavals panicked".into()));
            (upheavals.join().unwrap_or_else(panicked), guests)
        });
        let guests = guests?;
        let Upheavals { killed, updated } = counted?;
        host.step(format!(
            "{guests} guests created and destroyed, the daemon killed {killed} times and updated {updated} times"
        ));
        demand!(
            (killed, updated) == (UPHEAVALS, UPHEAVALS),
            "only {killed} deaths and {updated} updates"
        );
        host.step("the guest that saw it all still writes, and hears its watch");
        let home = format!("/local/domain/{}", witness.dom());
        witness
            .store()
            .write(None, &format!("{home}/data/seen"), b"all")
            .or_fail("a guest's write after all that")?;
        witness.shutdown()?;
        host.store()?
            .rm(None, ROOT)
            .or_fail("remove what was written")
    })
}

/// Creates guests, talks to each, and destroys the oldest, until there were enough and all is calm.
fn guests(host: &Host, image: &Path, calm: &AtomicBool) -> Outcome<usize> {
    let mut alive: VecDeque<(Driver<'_>, bool)> = VecDeque::new();
    let mut made = 0;
    while made < GUESTS || !calm.load(Ordering::Acquire) {
        let has_disk = made % DISKS == 0;
        if has_disk {
            // One image, one user.
            while let Some(at) = alive.iter().position(|(_, has_disk)| *has_disk) {
                end(alive.remove(at))?;
            }
        }
        let driver = Driver::create(host, &format!("upheaval-{made}"), |config| {
            let config = config.line("on_poweroff = \"destroy\"");
            if has_disk { config.disk(image) } else { config }
        })?;
        if has_disk {
            driver.fill_and_check(made as u64, 0, 64)?;
        }
        alive.push_back((driver, has_disk));
        made += 1;
        if alive.len() >= ALIVE {
            end(alive.pop_front())?;
        }
    }
    while !alive.is_empty() {
        end(alive.pop_front())?;
    }
    Ok(made)
}

/// Every other way, as the guest's number has it: a shutdown goes through the guest's own watch.
fn end(guest: Option<(Driver<'_>, bool)>) -> Outcome {
    let Some((driver, _)) = guest else {
        return Ok(());
    };
    driver.ping()?;
    match driver.dom() % 2 {
        0 => driver.shutdown(),
        _ => driver.destroy(),
    }
}

/// What has happened to the daemon.
struct Upheavals {
    killed: usize,
    updated: usize,
}

/// Kills and updates the daemon in turn, at moments that nobody chooses, and looks each time whether it has lost
/// anything.
fn upheavals(host: &Host, calm: &AtomicBool) -> Outcome<Upheavals> {
    let old = host.store()?;
    let bell = format!("{ROOT}/bell");
    old.watch(&bell, "bell").or_fail("watch")?;
    let mut done = Upheavals {
        killed: 0,
        updated: 0,
    };
    let mut seed = u64::from(std::process::id());
    for n in 0..2 * UPHEAVALS {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
        std::thread::sleep(PAUSE.mul_f64((seed >> 40) as f64 / (1 << 24) as f64));
        if calm.load(Ordering::Acquire) {
            break;
        }
        // Acknowledged just before, by a client whose connection goes on.
        let kept = format!("{ROOT}/kept/{n}");
        old.write(None, &kept, n.to_string().as_bytes())
            .or_fail("a write before the upheaval")?;
        if n % 2 == 0 {
            kill(host)?;
            done.killed += 1;
        } else {
            update(host)?;
            done.updated += 1;
        }
        look(&old, &bell, n)?;
    }
    Ok(done)
}

/// Ends the daemon by a signal that it cannot catch, and waits for the next.
fn kill(host: &Host) -> Outcome {
    let before = daemon()?;
    host.step(format!("kill -9 {before}"));
    let killed = Command::new("kill").args(["-9", &before]).status();
    demand!(
        killed.or_broken("run kill")?.success(),
        "process {before} cannot be killed"
    );
    host.wait_for("another daemon is there", REBIRTH, || {
        // While one is starting, the file may be empty.
        let now = std::fs::read_to_string(PID_FILE).unwrap_or_default();
        let now = now.trim();
        Ok((!now.is_empty() && now != before).then_some(()))
    })
}

/// Has the daemon become a new one: the same process.
fn update(host: &Host) -> Outcome {
    let before = daemon()?;
    host.step(format!("live update of {before}"));
    // Not by the host's own runner, whose output files are those of the thread that creates guests.
    let output = Command::new("xenstore-control")
        .args(["live-update", PROGRAM])
        .output()
        .or_broken("run xenstore-control")?;
    demand!(
        output.status.success(),
        "the live update ended with {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let after = daemon()?;
    demand!(
        after == before,
        "process {before} became process {after} by a live update"
    );
    Ok(())
}

fn daemon() -> Outcome<String> {
    let pid = std::fs::read_to_string(PID_FILE).or_broken(format!("read {PID_FILE}"))?;
    Ok(pid.trim().to_owned())
}

/// The connection made before all upheavals reads all that it has ever written, and hears its watch.
fn look(old: &Connection, bell: &str, n: usize) -> Outcome {
    for n in 0..=n {
        let kept = format!("{ROOT}/kept/{n}");
        let value = old.read(None, &kept).or_fail(format!("read {kept}"))?;
        demand!(
            value == n.to_string().as_bytes(),
            "{kept} is {:?}",
            String::from_utf8_lossy(&value)
        );
    }
    let token = n.to_string();
    let other = Connection::from_env().or_fail("a new connection to the store")?;
    other
        .write(None, bell, token.as_bytes())
        .or_fail(format!("write {bell}"))?;
    // Events of earlier rings may still wait.
    let deadline = Instant::now() + REBIRTH;
    while Instant::now() < deadline {
        let event = old.next_event().or_fail("wait for an event")?;
        let heard = event.is_some_and(|event| event.path == bell);
        if heard && old.read(None, bell).or_fail("read the bell")? == token.as_bytes() {
            return Ok(());
        }
    }
    Err(Stop::Failed(format!(
        "the watch on {bell} did not fire after upheaval {n}"
    )))
}
