//! Both halves of a ring against a model, any interleaving, indices that wrap, and a hostile peer.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::testing::Page;

type Request = [u32; 5];
type Response = u64;
type Front = FrontRing<Page, Request, Response>;
type Back = BackRing<Page, Request, Response>;

/// A ring whose indices are all at `start`, as after many requests.
fn ring_at(pages: usize, start: u32) -> (Front, Back) {
    let page = Page::new(pages * 4096);
    let mut front = Front::new(page.clone()).unwrap();
    let index = Wrapping(start);
    front.req_prod_private = index;
    front.req_prod_published = index;
    front.rsp_cons = index;
    for (field, value) in [
        (REQ_PROD, start),
        (RSP_PROD, start),
        (REQ_EVENT, start.wrapping_add(1)),
        (RSP_EVENT, start.wrapping_add(1)),
    ] {
        page.store_u32(field, value, Ordering::Release);
    }
    (front, Back::attach(page).unwrap())
}

#[derive(Clone, Copy, Debug)]
enum Op {
    FrontPush,
    FrontPublish,
    FrontPop,
    FrontSleep,
    BackPop,
    BackPush,
    BackPublish,
    BackSleep,
}

fn op() -> impl Strategy<Value = Op> {
    prop::sample::select(
        &[
            Op::FrontPush,
            Op::FrontPush,
            Op::FrontPublish,
            Op::FrontPop,
            Op::FrontSleep,
            Op::BackPop,
            Op::BackPush,
            Op::BackPublish,
            Op::BackSleep,
        ][..],
    )
}

/// Indices around the wrap as often as any.
fn start() -> impl Strategy<Value = u32> {
    prop_oneof![any::<u32>(), (u32::MAX - 100)..=u32::MAX, 0u32..100]
}

proptest! {
    #[test]
    fn nothing_is_lost_reordered_or_left_asleep(
        pages in 1usize..=2,
        start in start(),
        ops in prop::collection::vec(op(), 0..1200),
    ) {
        let (mut front, mut back) = ring_at(pages, start);
        let capacity = front.capacity();
        prop_assert_eq!(capacity, back.capacity());
        // Where each request is on its round trip.
        let mut pushed = VecDeque::new();
        let mut on_way = VecDeque::new();
        let mut owed = VecDeque::new();
        let mut answered = VecDeque::new();
        let mut coming = VecDeque::new();
        let (mut front_asleep, mut back_asleep) = (false, false);
        let mut next = 0u32;
        for op in ops {
            match op {
                Op::FrontPush => {
                    let used = pushed.len() + on_way.len() + owed.len() + answered.len() + coming.len();
                    prop_assert_eq!(front.free() as usize, capacity as usize - used);
                    prop_assert_eq!(front.next_index(), start.wrapping_add(next));
                    if front.push([next, !next, 3, 4, 5]) {
                        pushed.push_back(next);
                        next += 1;
                    } else {
                        prop_assert_eq!(used as u32, capacity);
                    }
                }
                Op::FrontPublish => {
                    let news = !pushed.is_empty();
                    let notify = front.publish();
                    on_way.append(&mut pushed);
                    prop_assert!(!(news && back_asleep) || notify, "the back end sleeps on");
                    prop_assert!(news || !notify, "an event for nothing");
                    back_asleep &= !notify;
                }
                Op::FrontPop => {
                    let expected = coming.pop_front().map(u64::from);
                    prop_assert_eq!(front.pop().unwrap(), expected);
                }
                Op::FrontSleep => {
                    let more = front.wait_for_more();
                    prop_assert_eq!(more, !coming.is_empty());
                    front_asleep |= !more;
                }
                Op::BackPop => {
                    prop_assert_eq!(back.pending().unwrap() as usize, on_way.len());
                    let expected = on_way.pop_front();
                    let popped = back.pop().unwrap();
                    prop_assert_eq!(popped, expected.map(|id: u32| [id, !id, 3, 4, 5]));
                    owed.extend(expected);
                }
                Op::BackPush => {
                    prop_assert_eq!(back.owed() as usize, owed.len());
                    if let Some(id) = owed.pop_front() {
                        back.push(id.into());
                        answered.push_back(id);
                    }
                }
                Op::BackPublish => {
                    let news = !answered.is_empty();
                    let notify = back.publish();
                    coming.append(&mut answered);
                    prop_assert!(!(news && front_asleep) || notify, "the front end sleeps on");
                    prop_assert!(news || !notify, "an event for nothing");
                    front_asleep &= !notify;
                }
                Op::BackSleep => {
                    let more = back.wait_for_more();
                    prop_assert_eq!(more, !on_way.is_empty());
                    back_asleep |= !more;
                }
            }
        }
    }

    #[test]
    fn a_hostile_page_is_an_error_and_never_a_panic(
        start in start(),
        ops in prop::collection::vec((op(), prop::option::of((0usize..4, any::<u32>()))), 0..400),
    ) {
        let (mut front, mut back) = ring_at(1, start);
        let page = back.memory().clone();
        for (op, scribble) in ops {
            if let Some((word, value)) = scribble {
                // Small steps find more than any value does.
                let old = page.load_u32(word * 4, Ordering::Relaxed);
                let value = if value & 1 == 0 { value } else { old.wrapping_add(value % 256).wrapping_sub(100) };
                page.store_u32(word * 4, value, Ordering::Relaxed);
            }
            match op {
                Op::FrontPush => drop(front.push([0; 5])),
                Op::FrontPublish => drop(front.publish()),
                Op::FrontPop => {
                    let before = front.free();
                    if let Ok(Some(_)) = front.pop() {
                        prop_assert_eq!(front.free(), before + 1, "an answer to nothing");
                    }
                }
                Op::FrontSleep => drop(front.wait_for_more()),
                Op::BackPop => drop(back.pop()),
                Op::BackPush if back.owed() > 0 => back.push(7),
                Op::BackPush => {}
                Op::BackPublish => drop(back.publish()),
                Op::BackSleep => drop(back.wait_for_more()),
            }
            prop_assert!(front.free() <= front.capacity());
            prop_assert!(back.owed() <= back.capacity());
            if let Ok(pending) = back.pending() {
                prop_assert!(pending + back.owed() <= back.capacity());
            }
        }
    }

    #[test]
    fn attaching_to_any_page_is_checked(rsp_prod: u32, ahead: u32) {
        let page = Page::new(4096);
        page.store_u32(RSP_PROD, rsp_prod, Ordering::Relaxed);
        page.store_u32(REQ_PROD, rsp_prod.wrapping_add(ahead), Ordering::Relaxed);
        match Back::attach(page) {
            Ok(back) => prop_assert_eq!(back.pending().unwrap(), ahead),
            Err(error) => {
                prop_assert!(ahead > 128, "{error}");
            }
        }
    }
}

#[test]
fn the_size_is_a_power_of_two_of_slots() {
    type Ring<const REQ: usize, const RSP: usize> = SlotRing<Page, [u8; REQ], [u8; RSP]>;
    // (bytes, slots): blkif, netif's two, from io/ring.h's __RING_SIZE.
    for (slots, expected) in [
        (Ring::<112, 16>::slots_in(4096), 32),
        (Ring::<112, 16>::slots_in(16 * 4096), 512),
        (Ring::<12, 4>::slots_in(4096), 256),
        (Ring::<8, 8>::slots_in(4096), 256),
        (Ring::<112, 16>::slots_in(64 + 112), 1),
        (Ring::<112, 16>::slots_in(64 + 111), 0),
        (Ring::<112, 16>::slots_in(0), 0),
    ] {
        assert_eq!(slots, expected);
    }
    assert_eq!(
        Front::new(Page::new(64)).unwrap_err(),
        PeerError::BadSize { len: 64 }
    );
}

#[test]
fn a_new_ring_leaks_nothing() {
    let page = Page::new(4096);
    page.write_bytes(0, &[0xa5; 4096]);
    Front::new(page.clone()).unwrap();
    let mut bytes = [0; 4096];
    page.read_bytes(0, &mut bytes);
    assert!(bytes[16..].iter().all(|&byte| byte == 0));
}

#[test]
#[should_panic(expected = "a response without a request")]
fn a_response_too_many_is_our_own_bug() {
    ring_at(1, 0).1.push(0);
}

/// Two threads that sleep whenever the ring says they may: a lost event would leave both asleep.
#[test]
fn two_threads_never_sleep_for_good() {
    const TOTAL: u64 = 50_000;
    let (mut front, mut back) = ring_at(1, u32::MAX - 20);
    let (front_event, back_event) = (AtomicBool::new(false), AtomicBool::new(false));
    let done = AtomicU64::new(0);
    let wait = |event: &AtomicBool, who: &str| {
        for _ in 0..1_000_000 {
            if event.swap(false, Ordering::AcqRel) {
                return;
            }
            thread::yield_now();
        }
        // Another second, in case the machine is busy.
        thread::sleep(Duration::from_secs(1));
        assert!(event.swap(false, Ordering::AcqRel), "{who} sleeps for good");
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            while done.load(Ordering::Acquire) < TOTAL {
                while let Some([id, ..]) = back.pop().unwrap() {
                    back.push(id.into());
                    if back.publish() {
                        front_event.store(true, Ordering::Release);
                    }
                }
                if !back.wait_for_more() {
                    wait(&back_event, "the back end");
                }
            }
        });
        let (mut next, mut answered) = (0u64, 0);
        while answered < TOTAL {
            while next < TOTAL && front.push([next as u32, 0, 0, 0, 0]) {
                next += 1;
                if next % 3 == 0 && front.publish() {
                    back_event.store(true, Ordering::Release);
                }
            }
            if front.publish() {
                back_event.store(true, Ordering::Release);
            }
            let before = answered;
            while let Some(id) = front.pop().unwrap() {
                assert_eq!(id, answered);
                answered += 1;
            }
            if answered == before && !front.wait_for_more() {
                wait(&front_event, "the front end");
            }
        }
        done.store(TOTAL, Ordering::Release);
        back_event.store(true, Ordering::Release);
    });
}
