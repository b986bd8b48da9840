//! Known attacks of front ends, by the name they have elsewhere; blkback/README.md has the whole list.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use blkback::{Count, DataMove};
use common::{Front, Guest, Host, content, page, request};
use xen_fake::Mapping;
use xen_hal::{AccessMode, EventChannels, ForeignGrants, Store};
use xen_ring::SharedMemoryExt;
use xen_sys::GrantRef;
use xen_sys::io::blkif::{self, OP_DISCARD, OP_READ, OP_WRITE};

/// One guest with a disk, connected.
fn connected(data_move: DataMove) -> (Host, Guest, Front) {
    let mut host = Host::new(data_move);
    let guest = Guest::new(&host, "/disk", "w");
    let front = guest.connect(&mut host);
    (host, guest, front)
}

/// Nothing is left of it once it has gone.
fn end(mut host: Host, guest: Guest, front: Front) {
    guest.close(&mut host, Some(front));
    guest.remove(&mut host);
    drop(host.bus);
    host.world.assert_nothing_left();
}

/// Another processor changes slots, and a page of segments, all the time. Whatever is seen of them is one
/// consistent copy: refused or carried out, on this disk.
#[test]
fn xsa_155_slots_that_change_while_they_are_looked_at() {
    for data_move in [DataMove::Copy, DataMove::Persistent] {
        let (mut host, guest, mut front) = connected(data_move);
        let (data, list) = (page(&guest, 7), page(&guest, 0));
        common::write_segments(&list, &[common::segment(data.gref(), 0, 7); 256]);
        // The pages once more, for the other processor.
        let foreign = host.world.dom0().foreign();
        let shared = |gref| {
            let dom = guest.domain.id();
            foreign.map(dom, &[gref], AccessMode::ReadWrite).unwrap()
        };
        let (ring, segments) = (shared(front.ring.memory().gref()), shared(list.gref()));
        let over = AtomicBool::new(false);
        let (done, refused) = std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0u32.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let flip = |memory: &Mapping, at, values: [u32; 4]| {
                        memory.store_u32(at, values[n as usize % 4], Ordering::Relaxed);
                    };
                    // Slots begin at 64: operation and number of segments, then the first sector.
                    let slot = 64 + 112 * (n as usize / 7 % 32);
                    flip(
                        &ring,
                        slot,
                        [0x0100_0106, 0xffff_0106, 0x0000_0101, 0x0000_0c01],
                    );
                    flip(&ring, slot + 20, [0, u32::MAX, 0, 1]);
                    let segment = 4 + 8 * (n as usize / 7 % 256);
                    flip(&segments, segment, [0x700, 0xff00, 0x0007, 0x700]);
                }
            });
            let mut counts = (0, 0);
            for id in 0..1500 {
                let indirect = common::indirect(OP_WRITE, id, 0, 256, &[list.gref()]);
                let direct = request(OP_WRITE, id, 0, &[(data.gref(), 0, 7); 11]);
                front.send(&guest, if id % 2 == 0 { indirect } else { direct });
                host.settle();
                match front.receive().expect("answered").2 {
                    0 => counts.0 += 1,
                    _ => counts.1 += 1,
                }
            }
            over.store(true, Ordering::Relaxed);
            counts
        });
        drop((ring, segments));
        assert!(
            done > 0 && done + refused == 1500,
            "{done} done, {refused} refused"
        );
        assert_eq!(guest.back_state(&host), "4");
        let disk = host.disk.lock().unwrap();
        assert!(disk.iter().all(|&byte| byte == 7 || byte == 0));
        drop(disk);
        drop((data, list));
        end(host, guest, front);
    }
}

/// An answer's bytes are all set, whatever stood in the slot before.
#[test]
fn xsa_216_answers_show_nothing_else() {
    let (mut host, guest, mut front) = connected(DataMove::Copy);
    for id in 0..64 {
        let mut request = request(OP_READ, id, 0, &[]);
        // A slot full of ones, but for the operation and the number.
        request.nr_segments = 255;
        request.handle = 0xffff;
        request.pad0 = u32::MAX;
        request.sector_number = u64::MAX;
        for segment in &mut request.seg {
            *segment = common::segment(GrantRef(u32::MAX), 255, 255);
        }
        front.send(&guest, request);
        host.settle();
        // `receive` looks at each byte between and behind the fields.
        assert_eq!(front.receive(), Some((id, OP_READ, blkif::RSP_ERROR)));
    }
    end(host, guest, front);
}

/// Data goes through the page cache unless the toolstack says that direct access is safe.
#[test]
fn xsa_229_no_direct_access_by_default() {
    for (node, expected) in [
        (None, blkback::Cache::Page),
        (Some("0"), blkback::Cache::Page),
        (Some("1"), blkback::Cache::Direct),
    ] {
        let host = Host::new(DataMove::Copy);
        let guest = Guest::new(&host, "/disk", "w");
        if let Some(value) = node {
            let path = format!("{}/direct-io-safe", guest.back);
            host.store.write(None, &path, value.as_bytes()).unwrap();
        }
        let site = xen_backend::Site {
            store: &host.store,
            id: xen_backend::DeviceId {
                dom: guest.domain.id(),
                index: 51712,
            },
            back: &guest.back,
            front: &guest.front,
            state: xen_hal::XenbusState::Initialising,
        };
        let disk = blkback::Disk::read(&site).unwrap();
        assert_eq!(disk.cache, expected, "{node:?}");
    }
}

/// Any number of events costs one look each time the port is open, and nobody else anything.
#[test]
fn xsa_332_a_storm_of_events() {
    let mut host = Host::new(DataMove::Copy);
    let good = Guest::new(&host, "/disk", "w");
    let mut good_front = good.connect(&mut host);
    let bad = Guest::new(&host, "/other-disk", "w");
    let bad_front = bad.connect(&mut host);
    let data = page(&good, 3);
    for id in 0..50 {
        for _ in 0..1000 {
            bad.events.notify(bad_front.port).unwrap();
        }
        let write = request(OP_WRITE, id, 0, &[(data.gref(), 0, 7)]);
        assert_eq!(good_front.call(&mut host, &good, write), 0);
    }
    let bad_id = bad.domain.id();
    let (_, connection) = host
        .bus
        .connections_mut()
        .find(|(id, _)| id.dom == bad_id)
        .unwrap();
    let calls = std::cell::Cell::new(0);
    connection.step_if(|queue| {
        calls.set(queue.served().queue().journal().count(Count::Calls));
        false
    });
    let calls = calls.get();
    assert!(calls <= 50 * 4, "50 000 events cost {calls} system calls");
}

/// Grants of a request that are not there: an error, and those that were there are let go.
#[test]
fn xsa_361_some_of_the_grants_cannot_be_used() {
    for data_move in [DataMove::Copy, DataMove::Persistent] {
        let (mut host, guest, mut front) = connected(data_move);
        let data = page(&guest, 9);
        for bad in 0..11 {
            let mut segments = [(data.gref(), 0, 7); 11];
            segments[bad].0 = GrantRef(4000);
            for operation in [OP_READ, OP_WRITE] {
                let request = request(operation, bad as u64, 0, &segments);
                assert_eq!(front.call(&mut host, &guest, request), blkif::RSP_ERROR);
            }
        }
        let good = request(OP_WRITE, 1, 0, &[(data.gref(), 0, 7); 11]);
        assert_eq!(front.call(&mut host, &guest, good), 0);
        drop(data);
        end(host, guest, front);
    }
}

/// The same page again and again in one request, and the ring's own page as data: what a guest does to its
/// own memory ends its own disk at most.
#[test]
fn grants_that_overlap() {
    for data_move in [DataMove::Copy, DataMove::Persistent] {
        let mut host = Host::new(data_move);
        let good = Guest::new(&host, "/disk", "w");
        let mut good_front = good.connect(&mut host);
        let guest = Guest::new(&host, "/other-disk", "w");
        let mut front = guest.connect(&mut host);
        host.disk.lock().unwrap().fill(0xee);
        let data = page(&guest, 5);
        let same = [(data.gref(), 0, 7); 11];
        assert_eq!(
            front.call(&mut host, &guest, request(OP_READ, 1, 0, &same)),
            0
        );
        assert!(content(&data).iter().all(|&byte| byte == 0xee));
        let list = common::indirect(OP_READ, 2, 0, 256, &[data.gref()]);
        common::write_segments(&data, &[common::segment(data.gref(), 0, 7); 256]);
        // The page of segments is overwritten by what it asked for.
        assert_eq!(front.call(&mut host, &guest, list), 0);
        let ring = front.ring.memory().gref();
        front.send(&guest, request(OP_READ, 3, 0, &[(ring, 0, 7)]));
        host.settle();
        guest.events.notify(front.port).unwrap();
        host.settle();
        assert_eq!(guest.back_state(&host), "5", "its indices are nonsense");
        let theirs = page(&good, 6);
        let write = request(OP_WRITE, 1, 0, &[(theirs.gref(), 0, 7)]);
        assert_eq!(good_front.call(&mut host, &good, write), 0);
        drop((data, theirs));
    }
}

/// The guest takes a grant back while its request runs.
#[test]
fn a_grant_that_is_revoked_meanwhile() {
    for (data_move, statuses) in [
        // Copied at the end of a read, when it is gone; a write has copied at its beginning.
        (DataMove::Copy, [(OP_READ, -1), (OP_WRITE, 0)]),
        // Mapped: it cannot be taken back, and the guest's page waits for that.
        (DataMove::Persistent, [(OP_READ, 0), (OP_WRITE, 0)]),
    ] {
        for (operation, status) in statuses {
            let (mut host, guest, mut front) = connected(data_move);
            let data = page(&guest, 1);
            let gref = data.gref();
            *host.meanwhile.lock().unwrap() = Some(Box::new(move || drop(data)));
            let request = request(operation, 1, 0, &[(gref, 0, 7)]);
            assert_eq!(
                front.call(&mut host, &guest, request),
                status,
                "{data_move:?}"
            );
            assert!(host.meanwhile.lock().unwrap().is_none(), "it was revoked");
            assert_eq!(guest.back_state(&host), "4");
            guest.close(&mut host, Some(front));
            // The next page taken frees what waited.
            drop(page(&guest, 0));
            guest.remove(&mut host);
            drop(host.bus);
            host.world.assert_nothing_left();
        }
    }
}

/// Discards beyond the end, around the end of 64 bits, and of a kind that was not offered.
#[test]
fn discards_that_wrap_around() {
    let (mut host, guest, mut front) = connected(DataMove::Copy);
    host.disk.lock().unwrap().fill(1);
    let sectors = common::SECTORS;
    for (sector, count, flag, status) in [
        (sectors, 1, 0, -1),
        (sectors - 1, 2, 0, -1),
        (8, u64::MAX, 0, -1),
        (8, u64::MAX - 7, 0, -1),
        (u64::MAX, 1, 0, -1),
        (1 << 55, 1 << 55, 0, -1),
        (0, 8, blkif::DISCARD_SECURE, -2),
        (0, 0, 0, 0),
        (sectors, 0, 0, 0),
    ] {
        let mut discard = request(OP_DISCARD, 1, sector, &[]);
        discard.nr_segments = flag;
        discard.seg[0].gref = GrantRef(count as u32);
        let high = ((count >> 32) as u32).to_le_bytes();
        discard.seg[0].first_sect = high[0];
        discard.seg[0].last_sect = high[1];
        discard.seg[0].pad0 = u16::from_le_bytes([high[2], high[3]]);
        assert_eq!(
            front.call(&mut host, &guest, discard),
            status,
            "{sector}+{count}"
        );
    }
    assert!(host.disk.lock().unwrap().iter().all(|&byte| byte == 1));
    end(host, guest, front);
}
