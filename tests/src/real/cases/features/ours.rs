//! Every feature with our front end: one guest that is told which to use.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use blkback::Count;
use scenarios::block::BlockGuest;
use scenarios::{OrStop, Outcome, Stop, demand, demand_eq};
use xen_hal::Store;

use super::{Disk, loop_4k, room_kib};
use crate::real::driver::Driver;
use crate::real::host::Host;
use crate::real::snapshot::leaves_nothing;

const GUEST: &str = "features";
/// How long a change may take to be seen on the other side.
const SEEN: Duration = Duration::from_secs(20);

/// A feature: its name, the disk that shows it, the disk's description, and the check.
type Feature = (
    &'static str,
    &'static str,
    &'static str,
    fn(&Scene<'_, '_>, &Disk) -> Outcome,
);

const FEATURES: [Feature; 18] = [
    ("protocol-native", "xvdb", "access=rw", protocol_native),
    ("protocol-x86_32", "xvdb", "access=rw", protocol_x86_32),
    ("flush", "xvdb", "access=rw", flush),
    ("barrier", "xvdb", "access=rw", barrier),
    ("persistent-grants", "xvdb", "access=rw", persistent),
    ("indirect-256", "xvdb", "access=rw", indirect),
    ("statistics", "xvdb", "access=rw", statistics),
    ("queues-8", "xvdb", "access=rw", queues),
    ("ring-order-4", "xvdb", "access=rw", ring_order),
    ("reconnect", "xvdb", "access=rw", reconnect),
    ("discard", "xvdd", "access=rw,discard", discard),
    ("no-discard", "xvde", "access=rw,no-discard", no_discard),
    ("sectors-4k", "xvdf", "access=rw", sectors_4k),
    ("read-only", "xvdg", "access=ro", read_only),
    ("cdrom", "xvdh", "devtype=cdrom,access=ro", cdrom),
    ("resize", "xvdi", "access=rw", resize),
    ("detach-attach", "xvdj", "access=rw", detach_attach),
    (
        "limits",
        "xvdk",
        "access=rw,max-iops=40,max-bytes-per-second=4M",
        limits,
    ),
];

/// What the checks work with.
struct Scene<'s, 'g> {
    host: &'g Host,
    guest: &'s Driver<'g>,
}

/// All features, one after another.
pub fn all(host: &Host) -> Outcome {
    leaves_nothing(host, || {
        let guest = Driver::create(host, GUEST, |config| config)?;
        let scene = Scene {
            host,
            guest: &guest,
        };
        let device = loop_4k(host)?;
        let mut disk: Option<Disk> = None;
        for (name, vdev, more, check) in FEATURES {
            host.step(format!("feature {name}"));
            let before = disk.take_if(|disk| disk.vdev != vdev);
            if disk.is_none() {
                let image = match vdev {
                    "xvdf" => PathBuf::from(&device),
                    _ => host.zero_file(&format!("{vdev}.img"), 8)?,
                };
                let (guest, dom) = (GUEST.to_owned(), scene.guest.dom());
                let next = Disk {
                    guest,
                    dom,
                    vdev,
                    image,
                };
                next.attach(host, more)?;
                scene.use_disk(&next)?;
                disk = Some(next);
            }
            if let Some(before) = before {
                before.detach(host)?;
            }
            let disk = disk.as_ref().or_broken("no disk")?;
            check(&scene, disk).map_err(|stop| guest.with_console(stop))?;
        }
        guest.shutdown()?;
        host.run(&["losetup", "-d", &device])?.succeeded()?;
        Ok(())
    })
}

impl Scene<'_, '_> {
    /// Has the guest do something that must work.
    fn demand(&self, line: &str) -> Outcome<String> {
        let answer = self.guest.command(line)?;
        answer.map_err(|error| Stop::Failed(format!("{line}: {error}")))
    }

    fn use_disk(&self, disk: &Disk) -> Outcome {
        self.demand(&format!("disk use {}", disk.number()))?;
        Ok(())
    }

    /// Writes through the disk, and reads the same there and in the image.
    fn works(&self, disk: &Disk, seed: u64) -> Outcome {
        self.guest.fill_and_check(seed, 8, 4096)?;
        let bytes = std::fs::read(&disk.image).or_broken("read the image")?;
        let part = bytes.get(8 * 512..(8 + 4096) * 512);
        let part = part.or_fail("the image is too short")?;
        demand!(
            pv_drivers::pattern::matches(seed, 8, part),
            "what the guest wrote is not in {}",
            disk.image.display()
        );
        Ok(())
    }

    /// What the guest knows of its disk.
    fn info(&self) -> Outcome<Vec<String>> {
        let said = self.demand("disk info")?;
        Ok(said.split_whitespace().map(String::from).collect())
    }

    fn demand_info(&self, word: &str) -> Outcome {
        let info = self.info()?;
        demand!(
            info.iter().any(|found| found == word),
            "no {word}: {info:?}"
        );
        Ok(())
    }

    fn demand_refused(&self, line: &str) -> Outcome {
        let answer = self.guest.command(line)?;
        demand!(answer.is_err(), "{line} was answered by {answer:?}");
        Ok(())
    }
}

fn protocol_native(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    disk.demand_node(scene.host, &disk.front("protocol"), "x86_64-abi")?;
    scene.works(disk, 1)
}

fn protocol_x86_32(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    scene.demand("disk open protocol=x86_32 indirect=0")?;
    disk.demand_node(scene.host, &disk.front("protocol"), "x86_32-abi")?;
    scene.works(disk, 2)?;
    // Requests with a page of segments lie otherwise, too.
    scene.demand("disk open protocol=x86_32 indirect=32")?;
    scene.works(disk, 3)?;
    scene.demand("disk flush")?;
    scene.demand("disk open")?;
    disk.demand_node(scene.host, &disk.front("protocol"), "x86_64-abi")?;
    demand!(
        scene.guest.disk().holds(3, 8, 4096)?,
        "what was written by one protocol reads differently by the other"
    );
    Ok(())
}

/// One command makes the back end flush at least once.
fn flushes(scene: &Scene<'_, '_>, disk: &Disk, line: &str) -> Outcome {
    disk.flushes(line, || scene.demand(line))
}

fn flush(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    scene.demand_info("flush")?;
    flushes(scene, disk, "disk flush")
}

fn barrier(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    scene.demand_info("barrier")?;
    scene.works(disk, 4)?;
    flushes(scene, disk, "disk raw op=2 nr=0")?;
    // With data: it is there, and lasts.
    flushes(scene, disk, "disk raw op=2 nr=1 sector=8")?;
    let bytes = std::fs::read(&disk.image).or_broken("read the image")?;
    demand!(
        !pv_drivers::pattern::matches(4, 8, &bytes[8 * 512..16 * 512]),
        "a barrier with data wrote nothing"
    );
    Ok(())
}

fn persistent(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    scene.works(disk, 5)?;
    let calls = |queues: &crate::real::journals::Queues| -> Outcome<(u64, u64)> {
        Ok((queues.sum(Count::Mapped)?, queues.sum(Count::DataCalls)?))
    };
    let queues = disk.queues()?;
    let (mapped, before) = calls(&queues)?;
    scene.works(disk, 6)?;
    let after = calls(&queues)?.1;
    demand!(
        mapped > 0 && after == before,
        "{mapped} pages stay mapped; {} hypercalls for data the second time",
        after - before
    );
    scene.demand("disk open persistent=0")?;
    scene.works(disk, 7)?;
    let (mapped, after) = calls(&disk.queues()?)?;
    demand!(
        mapped == 0 && after > 0,
        "{mapped} pages stay mapped, {after} hypercalls for data, of a guest that has not agreed"
    );
    Ok(())
}

fn indirect(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    scene.demand("disk open indirect=256")?;
    let queues = disk.queues()?;
    let (done, written) = (queues.sum(Count::Done)?, queues.sum(Count::WrittenBytes)?);
    scene.demand("disk fill 8 0 16384")?;
    let done = queues.sum(Count::Done)? - done;
    let written = queues.sum(Count::WrittenBytes)? - written;
    // 8 MiB in requests of 1 MiB, and a flush.
    demand_eq!((done, written), (9, 8 << 20), "requests and bytes");
    demand!(
        scene.guest.disk().holds(8, 0, 16384)?,
        "it reads differently"
    );
    scene.works(disk, 9)
}

/// What `block-list --stats` says a disk has done since the last time.
fn counted(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome<BTreeMap<String, u64>> {
    let words = ["block-list", "--stats", "--json", GUEST];
    let said = scene.host.toolstack(&words)?.stdout;
    let rows: Vec<serde_json::Value> = serde_json::from_str(&said).or_fail("read its JSON")?;
    let row = rows.iter().find(|row| row["number"] == disk.number());
    let queues = row.and_then(|row| row["queues"].as_array());
    let queues = queues.or_fail(format!("no queues of {}: {said}", disk.vdev))?;
    let mut sums = BTreeMap::new();
    for (name, value) in queues
        .iter()
        .filter_map(serde_json::Value::as_object)
        .flatten()
    {
        let value = value.as_u64().or_fail(format!("{name} is {value}"))?;
        *sums.entry(name.clone()).or_default() += value;
    }
    Ok(sums)
}

fn statistics(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    scene.demand("disk open indirect=256")?;
    let before = counted(scene, disk)?;
    // 8 MiB in requests of 1 MiB, and a flush; 2 MiB are read again; and what nobody can read.
    scene.demand("disk fill 31 0 16384")?;
    scene.demand("disk check 31 0 4096")?;
    scene.demand_refused("disk raw op=0 sector=999999")?;
    let after = counted(scene, disk)?;
    for (name, more) in [
        ("requests", 8 + 1 + 2),
        ("written_bytes", 8 << 20),
        ("read_bytes", 2 << 20),
        ("flushes", 1),
        ("errors", 1),
        ("replayed", 0),
    ] {
        let count =
            |of: &BTreeMap<String, u64>| of.get(name).copied().or_fail(format!("no {name}"));
        let (before, after) = (count(&before)?, count(&after)?);
        demand_eq!(after - before, more, "{name}");
    }
    demand_eq!(after.get("in_flight").copied(), Some(0), "in_flight");
    let shown = scene
        .host
        .toolstack(&["block-list", "--stats", GUEST])?
        .stdout;
    let number = disk.number().to_string();
    let words = |line: &str| {
        line.split_whitespace()
            .map(String::from)
            .collect::<Vec<_>>()
    };
    let names = words(shown.lines().next().unwrap_or_default());
    let row = shown
        .lines()
        .map(words)
        .find(|row| row.first() == Some(&number));
    let row = row.or_fail(format!("no line of {number}: {shown}"))?;
    for name in ["requests", "written_bytes", "read_bytes"] {
        let place = names.iter().position(|column| column == name);
        let value = place.and_then(|place| row.get(place)?.parse().ok());
        demand_eq!(value, after.get(name).copied(), "{name} in the table");
    }
    Ok(())
}

fn queues(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    demand_eq!(scene.demand("disk open queues=8")?, "8", "queues");
    disk.demand_node(scene.host, &disk.front("multi-queue-num-queues"), "8")?;
    scene.works(disk, 10)?;
    let done = disk.queues()?.each(Count::Done)?;
    demand!(
        done.len() == 8 && done.iter().all(|&done| done > 0),
        "requests of each queue: {done:?}"
    );
    Ok(())
}

fn ring_order(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    scene.demand("disk open order=4 queues=2 indirect=0")?;
    disk.demand_node(scene.host, &disk.front("ring-page-order"), "4")?;
    let queues = disk.queues()?;
    demand_eq!(queues.slots()?, [512, 512], "slots in each ring");
    // Round the whole ring, and with it through all of its 16 pages.
    for seed in 11..24 {
        scene.works(disk, seed)?;
    }
    let done = queues.each(Count::Done)?;
    demand!(done.iter().all(|&done| done > 512), "requests: {done:?}");
    scene.demand("disk open")?;
    scene.works(disk, 24)
}

fn discard(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    scene.demand_info("discard")?;
    scene.demand("disk fill 1 0 16384")?;
    let before = room_kib(&disk.image)?;
    scene.demand("disk discard 0 16384")?;
    let after = room_kib(&disk.image)?;
    demand!(
        before >= 8192 && after == 0,
        "the image takes {before} KiB before and {after} KiB after it was discarded"
    );
    scene.demand_refused("disk discard 16380 8")?;
    scene.works(disk, 2)
}

fn no_discard(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    let info = scene.info()?;
    demand!(
        !info.iter().any(|word| word == "discard"),
        "offered: {info:?}"
    );
    scene.works(disk, 1)?;
    // Sent all the same, with 8 sectors as its length.
    scene.demand_refused("disk raw op=5 nr=0 sector=8 gref=8")?;
    demand!(scene.guest.disk().holds(1, 8, 4096)?, "it was discarded");
    Ok(())
}

fn sectors_4k(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    let info = scene.info()?;
    demand!(info[..2] == ["16384", "4096"], "the guest sees {info:?}");
    scene.works(disk, 1)?;
    scene.demand_refused("disk fill 1 1 8")?;
    // Past our front end's own check.
    scene.demand_refused("disk raw op=1 sector=8 first=0 last=0")?;
    scene.demand_refused("disk raw op=1 sector=9")?;
    demand!(scene.guest.disk().holds(1, 8, 4096)?, "it was written");
    scene.demand("disk raw op=1 sector=8")?;
    Ok(())
}

fn read_only(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    disk.demand_node(scene.host, &disk.back("info"), "4")?;
    scene.demand_info("ro")?;
    scene.demand_refused("disk fill 1 0 8")?;
    for op in ["op=1", "op=2", "op=2 nr=0", "op=5 nr=0 gref=8"] {
        scene.demand_refused(&format!("disk raw {op}"))?;
    }
    scene.demand("disk raw op=0")?;
    demand_eq!(room_kib(&disk.image)?, 0, "KiB that the image takes");
    Ok(())
}

fn cdrom(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    disk.demand_node(scene.host, &disk.back("info"), "7")?;
    for word in ["cdrom", "removable", "ro"] {
        scene.demand_info(word)?;
    }
    Ok(())
}

fn resize(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    scene.works(disk, 1)?;
    let sees = |sectors: u64| {
        let what = format!("the guest sees {sectors} sectors");
        scene.host.wait_for(&what, SEEN, || {
            Ok((scene.guest.disk().sectors_512()? == sectors).then_some(()))
        })
    };
    sees(16384)?;
    scene.demand_refused("disk fill 2 20000 8")?;
    // By the command, which makes the image longer, too.
    let resize = |size| {
        let host = scene.host;
        host.run_toolstack(&["block-resize", GUEST, disk.vdev, size])
    };
    resize("16M")?.succeeded()?;
    sees(32768)?;
    scene.guest.fill_and_check(2, 20000, 8)?;
    // By itself.
    let image = std::fs::File::options().write(true).open(&disk.image);
    image
        .and_then(|file| file.set_len(24 << 20))
        .or_broken("make the image longer")?;
    sees(49152)?;
    scene.guest.fill_and_check(3, 49144, 8)?;
    demand!(
        scene.guest.disk().holds(1, 8, 4096)?,
        "it reads differently"
    );
    let smaller = resize("8M")?;
    demand!(
        smaller.status != 0 && smaller.stderr.contains("would be lost"),
        "a smaller disk: {smaller}"
    );
    Ok(())
}

fn detach_attach(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    scene.works(disk, 1)?;
    disk.detach(scene.host)?;
    demand_eq!(scene.demand("disk state")?, "Closed", "the disk's phase");
    demand!(
        disk.queues()?.slots()?.is_empty(),
        "its account is still there"
    );
    // The guest does nothing about it: its front end sees that there is a disk again.
    disk.attach(scene.host, "access=rw")?;
    scene.host.wait_for("the disk is connected", SEEN, || {
        let state = scene.demand("disk state")?;
        Ok((state == "Connected").then_some(()))
    })?;
    demand!(
        scene.guest.disk().holds(1, 8, 4096)?,
        "it reads differently"
    );
    scene.works(disk, 2)
}

/// The front end starts over (as another kernel after kexec), in order and without a word.
fn reconnect(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    scene.works(disk, 1)?;
    for _ in 0..10 {
        scene.demand("disk open")?;
        demand!(
            scene.guest.disk().holds(1, 8, 4096)?,
            "it reads differently"
        );
    }
    let done = disk.queues()?.sum(Count::Done)?;
    demand!(done < 100, "an old account goes on: {done} requests");
    // The back end's end, as far as the store shows it: the front end lets go, then connects again.
    let store = scene.host.store()?;
    let state = disk.back("state");
    store.write(None, &state, b"5").or_broken("write")?;
    scene.host.wait_for("the front end lets go", SEEN, || {
        let front = crate::real::guest::read_node(&store, &disk.front("state"))?;
        Ok((front == "6").then_some(()))
    })?;
    let front = disk.front("state");
    store.write(None, &front, b"1").or_broken("write")?;
    scene.host.wait_for("the disk is connected", SEEN, || {
        let phase = scene.demand("disk state")?;
        Ok((phase == "Connected").then_some(()))
    })?;
    demand!(
        scene.guest.disk().holds(1, 8, 4096)?,
        "it reads differently"
    );
    scene.works(disk, 2)
}

/// A tenth of a second's worth may be used at once, and the last request's is not waited for.
fn limits(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    disk.demand_node(scene.host, &disk.back("max-iops"), "40")?;
    // 8 MiB in 8 requests: their bytes take two seconds. 1 MiB in 24: their number takes more than half of one.
    for (options, line, least_ms) in [
        ("indirect=256", "disk fill 41 0 16384", 1600),
        ("indirect=0", "disk fill 42 0 2048", 450),
    ] {
        scene.demand(&format!("disk open {options}"))?;
        let begun = Instant::now();
        scene.demand(line)?;
        let took = begun.elapsed();
        demand!(
            took >= Duration::from_millis(least_ms),
            "{line} took {took:?}, less than {least_ms} ms"
        );
    }
    demand!(
        scene.guest.disk().holds(42, 0, 2048)?,
        "it reads differently"
    );
    Ok(())
}
