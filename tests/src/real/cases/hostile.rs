//! Guests that break the rules: each harms itself at most.

use std::time::Duration;

use rustix::process::Pid;
use scenarios::block::{BlockGuest, out_of_range};
use scenarios::{OrStop, Outcome, demand};

use crate::real::backend;
use crate::real::cases::http;
use crate::real::driver::Driver;
use crate::real::host::Host;
use crate::real::snapshot::leaves_nothing;

/// Block requests that must be answered by an error, as the appliance's `disk raw` takes them.
const BAD_REQUESTS: [&str; 22] = [
    "op=0 nr=0",
    "op=0 nr=12",
    "op=1 nr=255",
    "op=0 last=8",
    "op=1 last=255",
    "op=1 first=4 last=3",
    "op=0 first=200 last=100",
    "op=0 sector=32768",
    "op=1 sector=32767",
    "op=1 sector=18446744073709551608",
    "op=0 sector=36028797018963968",
    "op=1 gref=400",
    "op=0 gref=4294967295",
    "op=77",
    // Indirect: with more segments than were offered, and for something else.
    "op=6 nr=0",
    "op=6 nr=1",
    "op=6 nr=5",
    // Discards: gref, first and last lie where their length is.
    "op=5 sector=32768 gref=1",
    "op=5 sector=32767 gref=2",
    "op=5 sector=8 gref=4294967295 first=255 last=255",
    "op=5 sector=18446744073709551615 gref=1",
    "op=5 nr=1 gref=8",
];

/// Nodes that make no sense, as the guest's own.
const BAD_NODES: [(&str, &str); 9] = [
    ("ring-ref", "4000"),
    ("ring-ref", "-1"),
    ("event-channel", "1023"),
    ("event-channel", "x"),
    ("protocol", "arm-abi"),
    ("multi-queue-num-queues", "0"),
    ("multi-queue-num-queues", "9"),
    ("multi-queue-num-queues", "many"),
    ("ring-page-order", "5"),
];

/// How long a back end may take to end a disk.
const ENDED_TIMEOUT: Duration = Duration::from_secs(20);

/// Packets that must be refused, as the appliance's `net raw` takes them.
const BAD_PACKETS: [&str; 7] = [
    "size=0",
    "size=60 offset=4090",
    "size=5000",
    "size=65535 offset=65535",
    "size=60 gref=400",
    "size=60 gref=4294967295",
    "size=60 flags=65535",
];

/// How long the back end may take to answer a bad packet.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Malformed block requests: errors for them, and both their sender's disk and another's go on.
pub fn block(host: &Host) -> Outcome {
    let images = [
        host.zero_file("good.img", 16)?,
        host.zero_file("bad.img", 16)?,
    ];
    leaves_nothing(host, || {
        let good = Driver::create(host, "good", |config| config.disk(&images[0]))?;
        let bad = Driver::create(host, "bad", |config| config.disk(&images[1]))?;
        good.fill_and_check(1, 0, 64)?;
        bad.fill_and_check(2, 0, 64)?;
        let taken = Taken::now()?;
        let right = bad.command("disk raw op=0 sector=8")?;
        demand!(right.is_ok(), "a request that keeps the rules: {right:?}");
        host.step("requests that break the rules");
        for request in BAD_REQUESTS {
            let answer = bad.command(&format!("disk raw {request}"))?;
            demand!(answer.is_err(), "{request} was answered by {answer:?}");
        }
        host.step("what was there before is there, and both disks go on");
        let whole = "what stood on the disk has changed";
        demand!(bad.disk().holds(2, 0, 64)?, "{whole} (the sender's)");
        demand!(good.disk().holds(1, 0, 64)?, "{whole} (the other's)");
        bad.fill_and_check(3, 64, 64)?;
        good.fill_and_check(4, 64, 64)?;
        let mut image = std::fs::File::open(&images[1]).or_broken("open the image")?;
        out_of_range(&mut bad.disk(), &mut image)?;
        host.step("events for nothing");
        let stormed = bad.command("disk attack events=100000")?;
        demand!(stormed.is_ok(), "{stormed:?}");
        good.fill_and_check(5, 64, 64)?;
        bad.fill_and_check(6, 64, 64)?;
        disks_that_end(host, &good, &bad)?;
        as_much_as_possible(host, &bad)?;
        taken.stays_bounded(host)?;
        all_daemons_run(host)?;
        bad.shutdown()?;
        good.shutdown()
    })
}

/// What a back end cannot go on with ends the disk of the guest that did it, which may connect again.
fn disks_that_end(host: &Host, good: &Driver<'_>, bad: &Driver<'_>) -> Outcome {
    let ended = |what: &str| -> Outcome {
        host.wait_for(&format!("the disk ends: {what}"), ENDED_TIMEOUT, || {
            let state = bad.command("disk state")?;
            Ok((state == Ok("Closed".into())).then_some(()))
        })?;
        good.fill_and_check(7, 64, 64)?;
        let again = bad.command("disk open")?;
        demand!(again.is_ok(), "after {what}: {again:?}");
        bad.fill_and_check(8, 64, 64)
    };
    host.step("requests that are not there");
    for count in [33, 1000, u32::MAX / 2] {
        let what = format!("disk attack requests={count} events=1");
        let sent = bad.command(&what)?;
        demand!(sent.is_ok(), "{sent:?}");
        ended(&what)?;
    }
    host.step("the ring's own page as data");
    let ring = bad.command("store read device/vbd/51712/ring-ref")?;
    let ring = ring.map_err(scenarios::Stop::Failed)?;
    // What is read from the disk is taken for indices, by the one or the other; the guest may have seen the
    // answer before.
    let answer = bad.command(&format!("disk raw op=0 gref={ring} nr=1"))?;
    host.step(format!("answered by {answer:?}"));
    good.fill_and_check(9, 64, 64)?;
    let again = bad.command("disk open")?;
    demand!(again.is_ok(), "{again:?}");
    bad.fill_and_check(9, 64, 64)?;
    host.step("nodes that make no sense");
    for (node, value) in BAD_NODES {
        let path = format!("device/vbd/51712/{node}");
        for line in [
            "store write device/vbd/51712/state 1",
            &format!("store write {path} {value}"),
            "store write device/vbd/51712/state 3",
        ] {
            let done = bad.command(line)?;
            demand!(done.is_ok(), "{line}: {done:?}");
            // The back end is to see the states one by one.
            std::thread::sleep(Duration::from_millis(50));
        }
        ended(&format!("{node} is {value}"))?;
    }
    host.step("states and nodes written without end");
    for node in ["state", "ring-ref"] {
        let line = format!("store flood device/vbd/51712/{node} 2000");
        let done = bad.command(&line)?;
        demand!(done.is_ok(), "{line}: {done:?}");
        good.fill_and_check(10, 64, 64)?;
    }
    let again = bad.command("disk open")?;
    demand!(again.is_ok(), "{again:?}");
    bad.fill_and_check(11, 64, 64)
}

/// All queues, the largest rings, and data that goes through the back end's own memory.
fn as_much_as_possible(host: &Host, bad: &Driver<'_>) -> Outcome {
    host.step("as much at a time as there is");
    let opened = bad.command("disk open queues=8 order=4 indirect=256 persistent=0")?;
    demand!(opened == Ok("8".into()), "{opened:?}");
    let mixed = bad.command("disk mix 12 8192 16384 11 64 64")?;
    demand!(mixed == Ok(String::new()), "{mixed:?}");
    let again = bad.command("disk open")?;
    demand!(again.is_ok(), "{again:?}");
    bad.fill_and_check(13, 64, 64)
}

/// What both processes of the back end have.
struct Taken([(&'static str, Pid, usize); 2]);

/// The most that either may take under attack.
const MOST_KIB: u64 = 64 << 10;

impl Taken {
    fn now() -> Outcome<Taken> {
        let of = |name| -> Outcome<_> {
            let (pid, _) = backend::part(name)?;
            backend::forget_peak(pid)?;
            Ok((name, pid, backend::descriptors(pid)?))
        };
        Ok(Taken([of(backend::BROKER)?, of(backend::WORKER)?]))
    }

    /// Memory had a bound all the time; descriptors are as they were.
    fn stays_bounded(&self, host: &Host) -> Outcome {
        for &(name, pid, before) in &self.0 {
            let most = backend::memory_kib(pid, "VmHWM")?;
            let own = backend::memory_kib(pid, "RssAnon")?;
            host.step(format!(
                "{name} had at most {most} KiB, {own} of its own now"
            ));
            demand!(
                most < MOST_KIB,
                "{name} had {most} KiB, and {MOST_KIB} is the most"
            );
            host.wait_for(&format!("{name} has let go"), ENDED_TIMEOUT, || {
                Ok((backend::descriptors(pid)? == before).then_some(()))
            })?;
        }
        Ok(())
    }
}

/// Malformed packets: their sender's interface may end, another's goes on.
pub fn net(host: &Host) -> Outcome {
    let bridge = host.bridge()?;
    leaves_nothing(host, || {
        let server = http::Server::create(host)?;
        server.check()?;
        for packet in BAD_PACKETS {
            // A new guest each time: the one before may have lost its interface.
            let bad = Driver::create(host, "bad", |config| config.vif_number(bridge, 2))?;
            let info = bad.command("net info")?;
            demand!(info.is_ok(), "the network of the sender: {info:?}");
            host.step(format!("a packet that breaks the rules: {packet}"));
            let sent = bad.command(&format!("net raw {packet}"))?;
            demand!(sent.is_ok(), "the packet was not sent: {sent:?}");
            // Whether the interface survives is its own affair.
            host.wait_for("the packet is refused", REFUSAL_TIMEOUT, || refused(&bad))?;
            server.check()?;
            bad.destroy()?;
        }
        all_daemons_run(host)?;
        server.shutdown()
    })
}

/// Whether the back end has answered a packet with an error or has ended the interface.
fn refused(driver: &Driver<'_>) -> Outcome<Option<()>> {
    let info = match driver.command("net info")? {
        Ok(info) => info,
        Err(_) => return Ok(Some(())),
    };
    // MAC STATE RECEIVED DROPPED SENT ERRORS
    let ended = !info.contains("Connected");
    let errors = info
        .split_whitespace()
        .last()
        .is_some_and(|errors| errors != "0");
    Ok((ended || errors).then_some(()))
}

fn all_daemons_run(host: &Host) -> Outcome {
    let status = host.run(&["xlrs", "host", "status"])?.succeeded()?;
    demand!(
        !status.stdout.contains("stopped"),
        "a daemon has ended: {}",
        status.stdout
    );
    Ok(())
}
