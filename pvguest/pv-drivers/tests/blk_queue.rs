//! The block queue against back ends, decent and hostile, on the fake.

use proptest::prelude::*;
use pv_drivers::blk::{BlkError, DiskInfo, Fault, MAX_BYTES, Queue, Ticket};
use xen_fake::{Call, Domain, Grants, Mapping, World};
use xen_hal::{AccessMode, ForeignGrants};
use xen_ring::{BackRing, PeerError, SharedMemoryExt};
use xen_sys::DomId;
use xen_sys::Plain;
use xen_sys::io::blkif::{OP_FLUSH_DISKCACHE, OP_READ, OP_WRITE, Request, Response};
use xen_sys::io::ring::RSP_PROD;

const SECTORS: u64 = 1000;

fn info() -> DiskInfo {
    DiskInfo {
        handle: 51712,
        sectors_512: SECTORS,
        sector_size: 512,
        read_only: false,
        flush: true,
        ..DiskInfo::default()
    }
}

struct Pair {
    world: World,
    guest: Domain,
    queue: Queue<Grants>,
    back: BackRing<Mapping, Request, Response>,
}

fn pair() -> Pair {
    let world = World::new();
    let guest = world.create_domain();
    let mut queue = Queue::new(guest.grants(), DomId::DOM0).unwrap();
    queue.set_info(info());
    let page = world
        .dom0()
        .foreign()
        .map(
            guest.id(),
            &[queue.ring_refs().next().unwrap()],
            AccessMode::ReadWrite,
        )
        .unwrap();
    let back = BackRing::attach(page).unwrap();
    Pair {
        world,
        guest,
        queue,
        back,
    }
}

fn response(id: u64, operation: u8, status: i16) -> Response {
    Response {
        id,
        operation,
        status,
        ..Response::ZERO
    }
}

impl Pair {
    /// Makes the back end answer, rightly or not.
    fn answer(&mut self, response: Response) {
        self.back.push(response);
        let _ = self.back.publish();
    }

    fn pop(&mut self) -> Request {
        let _ = self.queue.publish();
        self.back.pop().unwrap().expect("a request")
    }

    /// Serves one request from a disk of memory, as a decent back end does.
    fn serve(&mut self, disk: &mut [u8]) {
        let request = self.pop();
        let mut at = request.sector_number as usize * 512;
        for segment in &request.seg[..request.nr_segments.into()] {
            let page = self.world.dom0().foreign();
            let page = page
                .map(self.guest.id(), &[segment.gref], AccessMode::ReadWrite)
                .unwrap();
            let first = usize::from(segment.first_sect) * 512;
            let len = (usize::from(segment.last_sect) + 1) * 512 - first;
            match request.operation {
                OP_READ => page.write_bytes(first, &disk[at..at + len]),
                _ => page.read_bytes(first, &mut disk[at..at + len]),
            }
            at += len;
        }
        self.answer(response(request.id, request.operation, 0));
    }

    fn end(self) {
        let Pair {
            world,
            guest,
            queue,
            back,
        } = self;
        drop((back, queue));
        drop(guest);
        world.assert_nothing_left();
    }
}

#[test]
fn what_is_written_is_read() {
    let mut pair = pair();
    let mut disk = vec![0; SECTORS as usize * 512];
    let mut want = vec![0; disk.len()];
    for (sector, len) in [
        (0, 512),
        (7, 4096),
        (9, MAX_BYTES),
        (912, MAX_BYTES),
        (999, 512),
    ] {
        let data: Vec<u8> = (0..len).map(|at| (at * 7 + sector) as u8).collect();
        want[sector * 512..sector * 512 + len].copy_from_slice(&data);
        let ticket = pair.queue.write(sector as u64, &data).unwrap();
        assert_eq!(pair.queue.take(ticket, &mut []), None);
        pair.serve(&mut disk);
        pair.queue.poll().unwrap();
        assert_eq!(pair.queue.take(ticket, &mut []), Some(Ok(())));
        let ticket = pair.queue.read(sector as u64, len).unwrap();
        pair.serve(&mut disk);
        pair.queue.poll().unwrap();
        let mut got = vec![0; len];
        assert_eq!(pair.queue.take(ticket, &mut got), Some(Ok(())));
        assert_eq!(got, data);
        assert_eq!(
            pair.queue.take(ticket, &mut got),
            Some(Err(BlkError::Stale))
        );
    }
    assert_eq!(disk, want);
    pair.end();
}

#[test]
fn requests_are_checked() {
    use BlkError::*;
    let big = MAX_BYTES + 512;
    for (sector, len, sector_size, expected) in [
        (0, 512, 512, None),
        (999, 512, 512, None),
        (1000, 512, 512, Some(OutOfRange)),
        (999, 1024, 512, Some(OutOfRange)),
        (u64::MAX, 512, 512, Some(OutOfRange)),
        (u64::MAX - 7, 4096, 512, Some(OutOfRange)),
        (0, 0, 512, Some(BadLength)),
        (0, 511, 512, Some(BadLength)),
        (0, big, 512, Some(BadLength)),
        (0, 512, 4096, Some(BadLength)),
        (1, 4096, 4096, Some(BadLength)),
        (8, 4096, 4096, None),
    ] {
        let mut pair = pair();
        pair.queue.set_info(DiskInfo {
            sector_size,
            ..info()
        });
        let data = vec![0; len];
        assert_eq!(
            pair.queue.write(sector, &data).err(),
            expected,
            "{sector} {len}"
        );
        assert_eq!(
            pair.queue.read(sector, len).err(),
            expected,
            "{sector} {len}"
        );
        pair.end();
    }
    let mut pair = pair();
    pair.queue.set_info(DiskInfo {
        read_only: true,
        flush: false,
        ..info()
    });
    assert_eq!(pair.queue.write(0, &[0; 512]).err(), Some(ReadOnly));
    assert_eq!(pair.queue.flush().err(), Some(Unsupported));
    pair.end();
}

#[test]
fn a_full_ring_is_busy_and_then_not() {
    let mut pair = pair();
    let tickets: Vec<Ticket> = (0..32).map(|n| pair.queue.read(n, 512).unwrap()).collect();
    assert_eq!(pair.queue.read(0, 512).err(), Some(BlkError::Busy));
    // Answered in another order than asked.
    let mut requests: Vec<Request> = (0..32).map(|_| pair.pop()).collect();
    requests.reverse();
    for request in requests {
        pair.answer(response(request.id, OP_READ, 0));
    }
    pair.queue.poll().unwrap();
    // Done but not taken: still busy.
    assert_eq!(pair.queue.read(0, 512).err(), Some(BlkError::Busy));
    assert_eq!(pair.queue.take(tickets[5], &mut []), Some(Ok(())));
    let again = pair.queue.read(0, 512).unwrap();
    assert_eq!(
        pair.queue.take(tickets[5], &mut []),
        Some(Err(BlkError::Stale))
    );
    assert_eq!(pair.queue.take(again, &mut []), None);
    pair.end();
}

#[test]
fn statuses() {
    for (status, expected) in [
        (0, Ok(())),
        (-1, Err(BlkError::Io)),
        (-2, Err(BlkError::Unsupported)),
        (1, Err(BlkError::Io)),
        (i16::MIN, Err(BlkError::Io)),
    ] {
        let mut pair = pair();
        let ticket = pair.queue.flush().unwrap();
        let request = pair.pop();
        assert_eq!(
            (request.operation, request.nr_segments),
            (OP_FLUSH_DISKCACHE, 0)
        );
        pair.answer(response(request.id, OP_FLUSH_DISKCACHE, status));
        pair.queue.poll().unwrap();
        assert_eq!(pair.queue.take(ticket, &mut []), Some(expected), "{status}");
        pair.end();
    }
}

/// XSA-155, XSA-376: the device is broken, the guest lives, nothing is lost.
#[test]
fn wrong_answers_break_the_device_only() {
    for (id, operation, expected) in [
        (1, OP_READ, Fault::UnknownId(1)),
        (31, OP_READ, Fault::UnknownId(31)),
        (32, OP_READ, Fault::UnknownId(32)),
        (u64::MAX, OP_READ, Fault::UnknownId(u64::MAX)),
        (1 << 32, OP_READ, Fault::UnknownId(1 << 32)),
        (
            0,
            OP_WRITE,
            Fault::WrongOperation {
                id: 0,
                operation: OP_WRITE,
            },
        ),
        (
            0,
            0xff,
            Fault::WrongOperation {
                id: 0,
                operation: 0xff,
            },
        ),
    ] {
        let mut pair = pair();
        let ticket = pair.queue.read(0, 512).unwrap();
        pair.pop();
        pair.answer(response(id, operation, 0));
        assert_eq!(pair.queue.poll(), Err(expected));
        assert_eq!(pair.queue.take(ticket, &mut []), None);
        pair.end();
    }
}

#[test]
fn a_repeated_answer_is_a_fault() {
    let mut pair = pair();
    let tickets = [
        pair.queue.read(0, 512).unwrap(),
        pair.queue.read(1, 512).unwrap(),
    ];
    let first = pair.pop();
    pair.pop();
    pair.answer(response(first.id, OP_READ, 0));
    pair.answer(response(first.id, OP_READ, 0));
    assert_eq!(pair.queue.poll(), Err(Fault::UnknownId(first.id)));
    // What was answered before the fault is still right.
    assert_eq!(pair.queue.take(tickets[0], &mut []), Some(Ok(())));
    assert_eq!(pair.queue.take(tickets[1], &mut []), None);
    pair.end();
}

#[test]
fn a_producer_that_jumps_is_a_fault() {
    for jump in [2, 33, 0x8000_0000, u32::MAX] {
        let mut pair = pair();
        let _ticket = pair.queue.read(0, 512).unwrap();
        pair.pop();
        let order = std::sync::atomic::Ordering::SeqCst;
        pair.back.memory().store_u32(RSP_PROD, jump, order);
        let fault = pair.queue.poll().unwrap_err();
        let expected = PeerError::IndexOutOfRange {
            theirs: jump,
            ours: 0,
            capacity: 1,
        };
        assert_eq!(fault, Fault::Ring(expected));
        pair.end();
    }
}

/// XSA-396: what the back end still maps when the queue ends is not used again before it lets go.
#[test]
fn pages_that_are_kept_mapped_are_quarantined() {
    let mut pair = pair();
    let ticket = pair.queue.write(0, &[1; 4096]).unwrap();
    let request = pair.pop();
    let foreign = pair.world.dom0().foreign();
    let kept = foreign
        .map(
            pair.guest.id(),
            &[request.seg[0].gref],
            AccessMode::ReadWrite,
        )
        .unwrap();
    pair.answer(response(request.id, OP_WRITE, 0));
    pair.queue.poll().unwrap();
    assert_eq!(pair.queue.take(ticket, &mut []), Some(Ok(())));
    let Pair {
        world,
        guest,
        queue,
        back,
    } = pair;
    drop((queue, back));
    let left = world.leftovers();
    assert!(
        left.iter().any(|what| what.contains("quarantine")),
        "{left:?}"
    );
    drop(kept);
    // The next page taken looks at the quarantine.
    drop(xen_hal::GrantTable::alloc_page(&guest.grants()).unwrap());
    world.assert_nothing_left();
}

#[test]
fn no_page_is_an_error_that_passes() {
    for call in [Call::AllocPage, Call::Grant] {
        for nth in 1..=11 {
            let mut pair = pair();
            pair.world.faults().fail_nth(call, nth);
            assert_eq!(
                pair.queue.read(0, MAX_BYTES).err(),
                Some(BlkError::NoMemory)
            );
            let ticket = pair.queue.read(0, MAX_BYTES).unwrap();
            let request = pair.pop();
            assert_eq!(request.nr_segments, 11);
            pair.answer(response(request.id, OP_READ, 0));
            pair.queue.poll().unwrap();
            assert_eq!(pair.queue.take(ticket, &mut []), Some(Ok(())));
            pair.end();
        }
    }
}

proptest! {
    /// Whatever the back end writes into the ring: no panic, and every page comes back.
    #[test]
    fn any_ring_content(
        writes in proptest::collection::vec((0u32..1024, any::<u32>()), 0..64),
        prod in prop_oneof![0u32..40, any::<u32>()],
    ) {
        let mut pair = pair();
        let tickets: Vec<Ticket> = (0..20).map(|n| pair.queue.read(n, 4096).unwrap()).collect();
        let _ = pair.queue.publish();
        let order = std::sync::atomic::Ordering::SeqCst;
        for (word, value) in writes {
            pair.back.memory().store_u32(word as usize * 4, value, order);
        }
        pair.back.memory().store_u32(RSP_PROD, prod, order);
        let fault = pair.queue.poll().is_err();
        let done = tickets
            .iter()
            .filter(|ticket| pair.queue.take(**ticket, &mut [0; 4096]).is_some())
            .count();
        prop_assert!(fault || done == prod as usize);
        pair.end();
    }
}
