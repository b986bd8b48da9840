//! The network queues against back ends, decent and hostile, on the fake.

use std::sync::atomic::Ordering;

use proptest::prelude::*;
use pv_drivers::net::{Fault, MAX_FRAME, RxQueue, TxQueue};
use xen_fake::{Domain, Grants, Mapping, World};
use xen_hal::{AccessMode, ForeignGrants};
use xen_ring::{BackRing, SharedMemoryExt};
use xen_sys::io::netif::{RxFlags, RxRequest, RxResponse, TxRequest, TxResponse};
use xen_sys::io::ring::RSP_PROD;
use xen_sys::{DomId, GrantRef};

struct Pair<Q, Req, Rsp> {
    world: World,
    guest: Domain,
    queue: Q,
    back: BackRing<Mapping, Req, Rsp>,
}

fn map(world: &World, guest: &Domain, gref: GrantRef) -> Mapping {
    let foreign = world.dom0().foreign();
    foreign
        .map(guest.id(), &[gref], AccessMode::ReadWrite)
        .unwrap()
}

fn rx() -> Pair<RxQueue<Grants>, RxRequest, RxResponse> {
    let world = World::new();
    let guest = world.create_domain();
    let mut queue = RxQueue::new(&guest.grants(), DomId::DOM0).unwrap();
    let _ = queue.publish();
    let back = BackRing::attach(map(&world, &guest, queue.ring_ref())).unwrap();
    Pair {
        world,
        guest,
        queue,
        back,
    }
}

fn tx() -> Pair<TxQueue<Grants>, TxRequest, TxResponse> {
    let world = World::new();
    let guest = world.create_domain();
    let queue = TxQueue::new(guest.grants(), DomId::DOM0).unwrap();
    let back = BackRing::attach(map(&world, &guest, queue.ring_ref())).unwrap();
    Pair {
        world,
        guest,
        queue,
        back,
    }
}

impl<Q, Req: xen_ring::RingEntry, Rsp: xen_ring::RingEntry> Pair<Q, Req, Rsp> {
    fn end(self) {
        let Pair {
            world,
            guest,
            queue,
            back,
        } = self;
        drop((back, queue, guest));
        world.assert_nothing_left();
    }
}

impl Pair<RxQueue<Grants>, RxRequest, RxResponse> {
    /// Puts `len` times `fill` at `offset` of the next page and answers with `status` and `flags`.
    fn deliver(&mut self, fill: u8, offset: u16, status: i16, flags: RxFlags) {
        let request = self.back.pop().unwrap().expect("a page is offered");
        let page = map(&self.world, &self.guest, request.gref);
        let len = (status.max(0) as usize).min(4096 - usize::from(offset).min(4096));
        page.write_bytes(usize::from(offset).min(4096), &vec![fill; len]);
        let flags = flags.bits();
        self.back.push(RxResponse {
            id: request.id,
            offset,
            flags,
            status,
        });
        let _ = self.back.publish();
    }
}

#[test]
fn frames_arrive_for_ever() {
    let mut pair = rx();
    for round in 0..1000u16 {
        let len = 14 + round % 1500;
        pair.deliver(round as u8, round % 7, len as i16, RxFlags::empty());
        let frame = pair.queue.receive().unwrap().expect("a frame");
        assert_eq!(frame, vec![round as u8; len.into()]);
        assert_eq!(pair.queue.receive(), Ok(None));
        let _ = pair.queue.publish();
    }
    assert_eq!(pair.queue.dropped(), 0);
    pair.end();
}

/// The answer lies in its request's slot; the id in it is not looked at.
#[test]
fn the_id_of_a_received_frame_does_not_matter() {
    let mut pair = rx();
    for id in [0, 5, 128, 255, 256, u16::MAX] {
        let request = pair.back.pop().unwrap().unwrap();
        let page = map(&pair.world, &pair.guest, request.gref);
        page.write_bytes(0, &[id as u8; 60]);
        pair.back.push(RxResponse {
            id,
            offset: 0,
            flags: 0,
            status: 60,
        });
        let _ = pair.back.publish();
        assert_eq!(pair.queue.receive().unwrap().unwrap(), [id as u8; 60]);
    }
    pair.end();
}

/// XSA-522 and its like: what makes no sense is dropped, and the next frame arrives.
#[test]
fn nonsense_is_dropped() {
    for (offset, status) in [
        (0, 0),
        (0, 13),
        (0, -1),
        (0, i16::MIN),
        (0, 4097),
        (0, i16::MAX),
        (4095, 14),
        (4096, 14),
        (u16::MAX, 14),
        (u16::MAX, i16::MAX),
    ] {
        let mut pair = rx();
        pair.deliver(1, offset, status, RxFlags::empty());
        assert_eq!(pair.queue.receive(), Ok(None), "{offset} {status}");
        assert_eq!(pair.queue.dropped(), 1);
        pair.deliver(2, 4096 - 14, 14, RxFlags::empty());
        assert_eq!(pair.queue.receive().unwrap().unwrap(), [2; 14]);
        pair.end();
    }
}

#[test]
fn a_frame_of_several_slots_is_dropped_whole() {
    let mut pair = rx();
    pair.deliver(1, 0, 1000, RxFlags::MORE_DATA);
    pair.deliver(1, 0, 1000, RxFlags::MORE_DATA);
    pair.deliver(1, 0, 1000, RxFlags::empty());
    pair.deliver(2, 0, 100, RxFlags::empty());
    assert_eq!(pair.queue.receive().unwrap().unwrap(), [2; 100]);
    assert_eq!(pair.queue.dropped(), 1);
    pair.end();
}

#[test]
fn frames_are_sent_and_their_pages_used_again() {
    let mut pair = tx();
    for round in 0..600usize {
        let len = 14 + round % (MAX_FRAME - 13);
        assert!(pair.queue.send(&vec![round as u8; len]));
        let _ = pair.queue.publish();
        let request = pair.back.pop().unwrap().unwrap();
        assert_eq!(
            (usize::from(request.size), request.offset, request.flags),
            (len, 0, 0)
        );
        let mut got = vec![0; len];
        map(&pair.world, &pair.guest, request.gref).read_bytes(0, &mut got);
        assert_eq!(got, vec![round as u8; len]);
        let status = if round % 3 == 0 { -1 } else { 0 };
        pair.back.push(TxResponse {
            id: request.id,
            status,
        });
        let _ = pair.back.publish();
        pair.queue.poll().unwrap();
    }
    assert_eq!(pair.queue.counts(), (400, 200));
    assert!(!pair.queue.send(&[0; 13]) && !pair.queue.send(&[0; MAX_FRAME + 1]));
    pair.end();
}

#[test]
fn a_back_end_that_does_not_answer_stops_the_sender_only() {
    let mut pair = tx();
    let mut sent = 0;
    while pair.queue.send(&[0; 60]) {
        sent += 1;
        assert!(sent <= 256);
    }
    assert_eq!(pair.queue.in_flight(), sent);
    assert!(!pair.queue.has_room());
    let _ = pair.queue.publish();
    let request = pair.back.pop().unwrap().unwrap();
    pair.back.push(TxResponse {
        id: request.id,
        status: 0,
    });
    let _ = pair.back.publish();
    pair.queue.poll().unwrap();
    assert!(pair.queue.send(&[0; 60]) && !pair.queue.send(&[0; 60]));
    pair.end();
}

#[test]
fn wrong_answers_to_frames_are_faults() {
    for (ids, expected) in [
        (&[1][..], Fault::UnknownId(1)),
        (&[u16::MAX], Fault::UnknownId(u16::MAX)),
        (&[0, 0], Fault::UnknownId(0)),
    ] {
        let mut pair = tx();
        assert!(pair.queue.send(&[0; 60]));
        let second = ids.len() == 2;
        assert!(!second || pair.queue.send(&[0; 60]));
        let _ = pair.queue.publish();
        for id in ids {
            pair.back.pop().unwrap().unwrap();
            pair.back.push(TxResponse { id: *id, status: 0 });
        }
        let _ = pair.back.publish();
        // The second frame has id 1; its page is another.
        assert_eq!(pair.queue.poll(), Err(expected));
        pair.end();
    }
}

proptest! {
    /// Whatever the back end writes into the rings: no panic, and every page comes back.
    #[test]
    fn any_ring_content(
        writes in proptest::collection::vec((0u32..1024, any::<u32>()), 0..200),
        prod in prop_oneof![0u32..300, any::<u32>()],
    ) {
        let (mut rx, mut tx) = (rx(), tx());
        for _ in 0..20 {
            prop_assert!(tx.queue.send(&[0; 60]));
        }
        let _ = tx.queue.publish();
        for (word, value) in writes {
            rx.back.memory().store_u32(word as usize * 4, value, Ordering::SeqCst);
            tx.back.memory().store_u32(word as usize * 4, value, Ordering::SeqCst);
        }
        for memory in [rx.back.memory(), tx.back.memory()] {
            memory.store_u32(RSP_PROD, prod, Ordering::SeqCst);
        }
        for _ in 0..400 {
            match rx.queue.receive() {
                Ok(Some(frame)) => prop_assert!((14..=4096).contains(&frame.len())),
                _ => break,
            }
        }
        let _ = tx.queue.poll();
        rx.end();
        tx.end();
    }
}
