//! Both ends of a byte ring against plain queues, any chunks, indices that wrap, and a hostile peer.

use std::collections::VecDeque;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::testing::Page;

/// A page whose streams are at any position.
fn page_at(layout: RingLayout, from_guest: u32, to_guest: u32) -> Page {
    let page = Page::new(4096);
    for (side, start) in [(layout.from_guest, from_guest), (layout.to_guest, to_guest)] {
        page.store_u32(side.cons, start, Ordering::Release);
        page.store_u32(side.prod, start, Ordering::Release);
    }
    page
}

fn layout() -> impl Strategy<Value = RingLayout> {
    prop::sample::select(&[CONSOLE, STORE][..])
}

fn start() -> impl Strategy<Value = u32> {
    prop_oneof![any::<u32>(), (u32::MAX - 3000)..=u32::MAX]
}

/// Who does it, whether it writes, how many bytes.
fn ops(count: usize) -> impl Strategy<Value = Vec<(bool, bool, usize)>> {
    let len = prop_oneof![0usize..20, 0usize..3000];
    prop::collection::vec((any::<bool>(), any::<bool>(), len), 0..count)
}

proptest! {
    #[test]
    fn both_streams_arrive_whole(layout in layout(), from in start(), to in start(), ops in ops(200)) {
        let page = page_at(layout, from, to);
        let mut guest = ByteRing::guest(page.clone(), layout);
        let mut daemon = ByteRing::daemon(page, layout);
        let (mut from_guest, mut to_guest) = (VecDeque::<u8>::new(), VecDeque::<u8>::new());
        let mut counter = 0u8;
        for (is_guest, writes, len) in ops {
            let (end, out, into, room, filled) = if is_guest {
                (&mut guest, &mut from_guest, &mut to_guest, layout.from_guest, layout.to_guest)
            } else {
                (&mut daemon, &mut to_guest, &mut from_guest, layout.to_guest, layout.from_guest)
            };
            prop_assert!(out.len() <= room.capacity as usize && into.len() <= filled.capacity as usize);
            if writes {
                let bytes: Vec<u8> = (0..len).map(|_| { counter = counter.wrapping_add(1); counter }).collect();
                let free = room.capacity as usize - out.len();
                prop_assert_eq!(end.writable().unwrap(), free);
                let written = end.write(&bytes).unwrap();
                prop_assert_eq!(written, len.min(free));
                out.extend(&bytes[..written]);
            } else {
                prop_assert_eq!(end.readable().unwrap(), into.len());
                let mut bytes = vec![0; len];
                let read = end.read(&mut bytes).unwrap();
                prop_assert_eq!(read, len.min(into.len()));
                prop_assert!(into.drain(..read).eq(bytes[..read].iter().copied()));
            }
        }
    }

    #[test]
    fn a_hostile_page_is_an_error_and_never_a_panic(
        layout in layout(),
        ops in ops(100),
        scribbles in prop::collection::vec((0usize..4, any::<u32>()), 100),
    ) {
        let page = page_at(layout, 0, 0);
        let mut guest = ByteRing::guest(page.clone(), layout);
        let mut daemon = ByteRing::daemon(page.clone(), layout);
        let fields = [
            layout.from_guest.cons,
            layout.from_guest.prod,
            layout.to_guest.cons,
            layout.to_guest.prod,
        ];
        for ((is_guest, writes, len), (field, value)) in ops.into_iter().zip(scribbles) {
            let old = page.load_u32(fields[field], Ordering::Relaxed);
            let value = if value & 1 == 0 { value } else { old.wrapping_add(value % 2100) };
            page.store_u32(fields[field], value, Ordering::Relaxed);
            let end = if is_guest { &mut guest } else { &mut daemon };
            let mut bytes = vec![0; len];
            let done = if writes { end.write(&bytes) } else { end.read(&mut bytes) };
            let side = if is_guest == writes { layout.from_guest } else { layout.to_guest };
            match done {
                Ok(done) => prop_assert!(done <= len && done <= side.capacity as usize),
                Err(PeerError::IndexOutOfRange { theirs, ours, capacity }) => {
                    prop_assert_eq!(capacity, side.capacity);
                    let ahead = if writes { ours.wrapping_sub(theirs) } else { theirs.wrapping_sub(ours) };
                    prop_assert!(ahead > capacity);
                }
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }
}
