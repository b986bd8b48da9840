//! Every feature with Linux's front end: one Debian guest with a disk for each.

use std::path::PathBuf;
use std::time::Duration;

use blkback::Count;
use scenarios::{OrStop, Outcome, demand, demand_eq};
use xen_hal::{Permission, Store};

use super::{Disk, loop_4k, room_kib};
use crate::real::guest::read_node;
use crate::real::host::Host;
use crate::real::linux::Linux;
use crate::real::snapshot::leaves_nothing;

/// How the driver is told to work, first: a queue for each processor, and pages that stay mapped. It takes
/// pages for all segments of all slots then, so that not all can be had at once.
const MANY_QUEUES: &str = "modprobe xen-blkfront max_queues=8 max_indirect_segments=32";
/// The next time: the longest requests and the largest rings.
const LARGE_RINGS: &str = "modprobe xen-blkfront max_queues=2 max_ring_page_order=4 \
                           max_indirect_segments=256 feature_persistent=0";
/// How long a change may take to be seen on the other side.
const SEEN: Duration = Duration::from_secs(20);
const GUEST: &str = "features";

type Check = fn(&Scene<'_, '_>, &Disk) -> Outcome;

/// What is shown by one disk, before and after its front end has started over.
const WITH_MANY_QUEUES: [(&str, Check); 4] = [
    ("protocol-native", protocol_native),
    ("flush", flush),
    ("persistent-grants", persistent),
    ("queues-8", queues),
];
const WITH_LARGE_RINGS: [(&str, Check); 2] =
    [("indirect-256", indirect), ("ring-order-4", ring_order)];

/// What is shown by a disk of its own: the feature, the disk, its description, the check.
const WITH_ITS_OWN: [(&str, &str, &str, Check); 7] = [
    ("discard", "xvdd", "access=rw,discard", discard),
    ("no-discard", "xvde", "access=rw,no-discard", no_discard),
    ("sectors-4k", "xvdf", "access=rw", sectors_4k),
    ("read-only", "xvdg", "access=ro", read_only),
    ("cdrom", "xvdh", "devtype=cdrom,access=ro", cdrom),
    ("resize", "xvdi", "access=rw", resize),
    ("detach-attach", "xvdj", "access=rw", detach_attach),
];

/// What the checks work with.
struct Scene<'s, 'g> {
    host: &'g Host,
    guest: &'s Linux<'g>,
}

/// All features, one after another.
pub fn all(host: &Host) -> Outcome {
    leaves_nothing(host, || {
        let guest = Linux::boot(host, GUEST, 256, |config| config.line("vcpus = 8"))?;
        let scene = Scene {
            host,
            guest: &guest,
        };
        // The disks come while there is no driver: what one of them is not to be offered is taken out.
        guest.demand("rmmod xen_blkfront")?;
        let device = loop_4k(host)?;
        let image = |vdev: &str| match vdev {
            "xvdf" => Ok(PathBuf::from(&device)),
            _ => host.zero_file(&format!("{vdev}.img"), 8),
        };
        let disk = |vdev| -> Outcome<Disk> {
            Ok(Disk {
                guest: GUEST.to_owned(),
                dom: guest.dom(),
                vdev,
                image: image(vdev)?,
            })
        };
        let [most, barrier] = [disk("xvdb")?, disk("xvdc")?];
        most.attach(host, "access=rw")?;
        barrier.attach(host, "access=rw")?;
        let flush = barrier.back("feature-flush-cache");
        let store = host.store()?;
        store.write(None, &flush, b"0").or_broken("write")?;
        guest.demand(MANY_QUEUES)?;
        for disk in [&most, &barrier] {
            scene.wait_block(disk.vdev, true)?;
        }
        for (name, check) in WITH_MANY_QUEUES {
            host.step(format!("feature {name}"));
            check(&scene, &most)?;
        }
        host.step("feature barrier");
        only_barrier(&scene, &barrier)?;
        host.step("feature reconnect");
        let again = [most, barrier];
        reconnect(&scene, &again)?;
        for (name, check) in WITH_LARGE_RINGS {
            host.step(format!("feature {name}"));
            check(&scene, &again[0])?;
        }
        for (name, vdev, more, check) in WITH_ITS_OWN {
            host.step(format!("feature {name}"));
            let disk = disk(vdev)?;
            disk.attach(host, more)?;
            scene.wait_block(vdev, true)?;
            check(&scene, &disk)?;
            // With rings so large each takes a good part of the guest's memory.
            disk.detach(host)?;
        }
        guest.destroy()?;
        host.run(&["losetup", "-d", &device])?.succeeded()?;
        Ok(())
    })
}

impl Scene<'_, '_> {
    fn wait_block(&self, vdev: &str, there: bool) -> Outcome {
        let what = format!("/dev/{vdev} {}", if there { "comes" } else { "goes" });
        let test = format!("[ -b /dev/{vdev} ]");
        self.host.wait_for(&what, SEEN, || {
            Ok(((self.guest.run(&test)?.0 == 0) == there).then_some(()))
        })
    }

    /// What the driver said about a disk when it connected.
    fn driver_says(&self, disk: &Disk) -> Outcome<String> {
        let grep = format!("dmesg | grep 'blkfront: {}:' | tail -n 1", disk.vdev);
        self.guest.demand(&grep)
    }

    fn demand_said(&self, disk: &Disk, words: &str) -> Outcome {
        let said = self.driver_says(disk)?;
        demand!(
            said.contains(words),
            "the driver does not say {words:?}: {said}"
        );
        Ok(())
    }

    /// A number below /sys/block/DISK.
    fn sys(&self, disk: &Disk, node: &str) -> Outcome<u64> {
        let said = self
            .guest
            .demand(&format!("cat /sys/block/{}/{node}", disk.vdev))?;
        // What the kernel still says comes before it.
        let last = said.lines().last().unwrap_or_default();
        last.trim()
            .parse()
            .or_fail(format!("{node} of {} is {said:?}", disk.vdev))
    }

    fn checksum(&self, disk: &Disk, kib: u64) -> Outcome<String> {
        let line = format!(
            "dd if=/dev/{} bs=1k count={kib} 2>/dev/null | md5sum",
            disk.vdev
        );
        Ok(self.guest.demand(&line)?.trim().to_owned())
    }

    /// Random bytes for the first KiB of a disk, the same there and in its image.
    fn scribble(&self, disk: &Disk, kib: u64) -> Outcome {
        self.guest.demand(&format!(
            "dd if=/dev/urandom of=/dev/{} bs=1k count={kib} conv=fsync 2>/dev/null",
            disk.vdev
        ))?;
        self.same(disk, kib)
    }

    /// The first KiB of a disk and of its image are the same, and not all zero.
    fn same(&self, disk: &Disk, kib: u64) -> Outcome {
        self.guest.demand("echo 3 > /proc/sys/vm/drop_caches")?;
        let image = disk.image.display();
        let line = format!("dd if={image} bs=1k count={kib} 2>/dev/null | md5sum");
        let there = self.host.run(&["sh", "-c", &line])?.succeeded()?.stdout;
        let here = self.checksum(disk, kib)?;
        demand_eq!(here, there.trim(), "the sum in the guest and of the image");
        let zero = format!("dd if=/dev/zero bs=1k count={kib} 2>/dev/null | md5sum");
        let zero = self.host.run(&["sh", "-c", &zero])?.succeeded()?.stdout;
        demand!(here != zero.trim(), "{} is all zero", disk.vdev);
        Ok(())
    }
}

fn protocol_native(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    disk.demand_node(scene.host, &disk.front("protocol"), "x86_64-abi")?;
    scene.scribble(disk, 1024)
}

fn flush(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    scene.demand_said(disk, "flush diskcache: enabled")?;
    counts_flush(scene, disk)
}

/// A write that is synced makes the back end flush.
fn counts_flush(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    disk.flushes("fsync", || scene.scribble(disk, 4))
}

fn only_barrier(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    // It was offered barriers alone, so that every flush of its file systems is one.
    scene.demand_said(disk, "barrier: enabled")?;
    counts_flush(scene, disk)
}

fn persistent(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    scene.demand_said(disk, "persistent grants: enabled")?;
    disk.demand_node(scene.host, &disk.front("feature-persistent"), "1")?;
    let queues = disk.queues()?;
    let read = "taskset -c 0 dd if=/dev/xvdb of=/dev/null bs=64k count=64 iflag=direct";
    scene.guest.demand(read)?;
    let (mapped, before) = (queues.sum(Count::Mapped)?, queues.sum(Count::DataCalls)?);
    demand!(mapped > 0, "no page stays mapped");
    let done = queues.sum(Count::Done)?;
    scene.guest.demand(read)?;
    let (more, calls) = (
        queues.sum(Count::Done)? - done,
        queues.sum(Count::DataCalls)? - before,
    );
    demand!(
        more >= 16 && calls == 0,
        "{more} requests took {calls} hypercalls for their data, although pages stay mapped"
    );
    Ok(())
}

fn indirect(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    scene.demand_said(disk, "indirect descriptors: enabled")?;
    demand_eq!(scene.sys(disk, "queue/max_segments")?, 256, "segments");
    let queues = disk.queues()?;
    let counts =
        || -> Outcome<(u64, u64)> { Ok((queues.sum(Count::Done)?, queues.sum(Count::ReadBytes)?)) };
    let before = counts()?;
    scene
        .guest
        .demand("dd if=/dev/xvdb of=/dev/null bs=1M count=8 iflag=direct")?;
    let after = counts()?;
    let each = (after.1 - before.1) / (after.0 - before.0).max(1);
    demand!(
        each > 512 << 10,
        "a request carries {each} bytes; 11 segments have room for 45056"
    );
    Ok(())
}

fn queues(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    disk.demand_node(scene.host, &disk.front("multi-queue-num-queues"), "8")?;
    let queues = disk.queues()?;
    let before = queues.each(Count::Done)?;
    scene.guest.demand(
        "for cpu in 0 1 2 3 4 5 6 7; do taskset -c $cpu \
         dd if=/dev/xvdb of=/dev/null bs=4k count=4 iflag=direct 2>/dev/null || exit 1; done",
    )?;
    let after = queues.each(Count::Done)?;
    demand_eq!(after.len(), 8, "queues");
    let idle = before
        .iter()
        .zip(&after)
        .any(|(before, after)| before == after);
    demand!(!idle, "a queue was not used: {before:?}, then {after:?}");
    Ok(())
}

fn ring_order(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    disk.demand_node(scene.host, &disk.front("ring-page-order"), "4")?;
    let queues = disk.queues()?;
    demand_eq!(queues.slots()?, [512, 512], "slots in each ring");
    // Round the whole ring, and with it through all of its 16 pages: in pieces of 4 KiB.
    let before = queues.each(Count::Done)?;
    scene.guest.demand(
        "echo 4 > /sys/block/xvdb/queue/max_sectors_kb && \
         taskset -c 0 dd if=/dev/xvdb of=/dev/null bs=1M count=4 iflag=direct",
    )?;
    let after = queues.each(Count::Done)?;
    let most = before
        .iter()
        .zip(&after)
        .map(|(before, after)| after - before);
    let most = most.max().unwrap_or(0);
    demand!(most > 512, "at most {most} requests went through a ring");
    scene.same(disk, 1024)
}

fn discard(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    disk.demand_node(scene.host, &disk.back("feature-discard"), "1")?;
    let most = scene.sys(disk, "queue/discard_max_bytes")?;
    demand!(most > 0, "the guest does not see that it may discard");
    scene.scribble(disk, 4096)?;
    let before = room_kib(&disk.image)?;
    scene.guest.demand("blkdiscard /dev/xvdd")?;
    let after = room_kib(&disk.image)?;
    demand!(
        before >= 4096 && after == 0,
        "the image takes {before} KiB before and {after} KiB after it was discarded"
    );
    Ok(())
}

fn no_discard(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    disk.demand_node(scene.host, &disk.back("discard-enable"), "0")?;
    disk.demand_node(scene.host, &disk.back("feature-discard"), "0")?;
    demand_eq!(scene.sys(disk, "queue/discard_max_bytes")?, 0, "bytes");
    scene.scribble(disk, 4096)?;
    let before = room_kib(&disk.image)?;
    let (status, said) = scene.guest.run("blkdiscard /dev/xvde")?;
    demand!(status != 0, "it was discarded all the same: {said}");
    demand_eq!(room_kib(&disk.image)?, before, "KiB that the image takes");
    scene.same(disk, 4096)
}

fn sectors_4k(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    disk.demand_node(scene.host, &disk.back("sector-size"), "4096")?;
    // In units of 512 bytes all the same.
    disk.demand_node(scene.host, &disk.back("sectors"), "16384")?;
    demand_eq!(scene.sys(disk, "queue/logical_block_size")?, 4096, "bytes");
    demand_eq!(scene.sys(disk, "size")?, 16384, "sectors");
    // Linux sends no smaller ones; that they would be refused is shown with our front end.
    scene
        .guest
        .demand("dd if=/dev/zero of=/dev/xvdf count=1 oflag=direct bs=4096")?;
    scene.scribble(disk, 512)
}

fn read_only(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    disk.demand_node(scene.host, &disk.back("info"), "4")?;
    demand_eq!(scene.sys(disk, "ro")?, 1, "ro");
    let (status, said) = scene
        .guest
        .run("dd if=/dev/urandom of=/dev/xvdg bs=4k count=1")?;
    demand!(status != 0, "it was written: {said}");
    demand_eq!(room_kib(&disk.image)?, 0, "KiB that the image takes");
    Ok(())
}

fn cdrom(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    // A CD-ROM drive, its medium removable, not to be written.
    disk.demand_node(scene.host, &disk.back("info"), "7")?;
    demand_eq!(scene.sys(disk, "removable")?, 1, "removable");
    demand_eq!(scene.sys(disk, "ro")?, 1, "ro");
    Ok(())
}

fn resize(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    scene.scribble(disk, 1024)?;
    demand_eq!(scene.sys(disk, "size")?, 16384, "sectors");
    let sees = |sectors| {
        let what = format!("the guest sees {sectors} sectors");
        scene.host.wait_for(&what, SEEN, || {
            Ok((scene.sys(disk, "size")? == sectors).then_some(()))
        })
    };
    // By the command, which makes the image longer, too.
    scene
        .host
        .toolstack(&["block-resize", GUEST, disk.vdev, "16M"])?;
    sees(32768)?;
    // By itself.
    let image = disk.image.display().to_string();
    scene
        .host
        .run(&["truncate", "-s", "24M", &image])?
        .succeeded()?;
    sees(49152)?;
    scene
        .guest
        .demand("dd if=/dev/urandom of=/dev/xvdi bs=1M seek=20 count=4 conv=fsync 2>/dev/null")?;
    scene.same(disk, 24 << 10)
}

fn detach_attach(scene: &Scene<'_, '_>, disk: &Disk) -> Outcome {
    scene.scribble(disk, 1024)?;
    disk.detach(scene.host)?;
    scene.wait_block(disk.vdev, false)?;
    demand!(
        disk.queues()?.slots()?.is_empty(),
        "its account is still there"
    );
    disk.attach(scene.host, "access=rw")?;
    scene.wait_block(disk.vdev, true)?;
    scene.same(disk, 1024)?;
    scene.scribble(disk, 1024)
}

/// The guest's driver goes and comes, as with another kernel (kexec) or after a boot loader's; the new one
/// does not use the same pages again. Linux remembers for good that a device was closed, so it is made to
/// forget it: its nodes go, and are there again. The back end's stay.
fn reconnect(scene: &Scene<'_, '_>, disks: &[Disk]) -> Outcome {
    let (host, guest) = (scene.host, scene.guest);
    let store = host.store()?;
    let mut nodes = Vec::new();
    for disk in disks {
        let front = disk.front("");
        let front = front.trim_end_matches('/').to_owned();
        let mut kept = Vec::new();
        for name in ["backend", "backend-id", "virtual-device", "device-type"] {
            kept.push((name, read_node(&store, &disk.front(name))?));
        }
        kept.push(("state", "1".to_owned()));
        store.rm(None, &front).or_broken("remove")?;
        host.wait_for("the back end closes", SEEN, || {
            let state = read_node(&store, &disk.back("state"))?;
            Ok((state == "6").then_some(()))
        })?;
        demand!(
            disk.queues()?.slots()?.is_empty(),
            "its account is still there"
        );
        scene.wait_block(disk.vdev, false)?;
        nodes.push((front, kept));
    }
    guest.demand("rmmod xen_blkfront")?;
    for (front, kept) in nodes {
        let owner = format!("n{}", guest.dom());
        let rights = [owner.as_str(), "r0"].map(|word| Permission::parse(word.as_bytes()));
        let rights: Option<Vec<_>> = rights.into_iter().collect();
        let rights = rights.or_broken("permissions")?;
        store.mkdir(None, &front).or_broken("make")?;
        store
            .set_permissions(None, &front, &rights)
            .or_broken("permit")?;
        for (name, value) in kept {
            let path = format!("{front}/{name}");
            store
                .write(None, &path, value.as_bytes())
                .or_broken("write")?;
        }
    }
    // A driver that finds its back end still closed gives up.
    for disk in disks {
        host.wait_for("the back end waits for the next one", SEEN, || {
            let state = read_node(&store, &disk.back("state"))?;
            Ok((state == "2").then_some(()))
        })?;
    }
    guest.demand(LARGE_RINGS)?;
    for disk in disks {
        scene.wait_block(disk.vdev, true)?;
    }
    let disk = &disks[0];
    scene.demand_said(disk, "persistent grants: disabled")?;
    scene.same(disk, 1024)?;
    scene.scribble(disk, 2048)?;
    let queues = disk.queues()?;
    let (mapped, calls) = (queues.sum(Count::Mapped)?, queues.sum(Count::DataCalls)?);
    demand!(
        mapped == 0 && calls > 0,
        "{mapped} pages stay mapped, {calls} hypercalls for data, of a guest that has not agreed"
    );
    Ok(())
}
