//! A guest that puts any bytes into its ring and its pages: each request gets one answer, or the device is closed.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

use blkback::DataMove;
use common::{Front, Guest, Host, page};
use libfuzzer_sys::fuzz_target;
use xen_hal::EventChannels;
use xen_ring::SharedMemoryExt;
use xen_sys::Plain;
use xen_sys::io::blkif;

/// Pages that the guest has granted: some of the numbers that it makes up are theirs.
const PAGES: usize = 4;

fuzz_target!(|data: &[u8]| {
    let Some((&how, mut rest)) = data.split_first() else {
        return;
    };
    let mode = if how & 1 == 1 { "r" } else { "w" };
    let data_move = if how & 2 == 2 {
        DataMove::Copy
    } else {
        DataMove::Persistent
    };
    let mut host = Host::new(data_move);
    let guest = Guest::new(&host, "/disk", mode);
    let mut front = guest.connect(&mut host);
    let pages: Vec<_> = (0..PAGES).map(|n| page(&guest, n as u8)).collect();
    let (mut sent, mut answered) = (0, 0);
    while let Some((&step, more)) = rest.split_first() {
        rest = more;
        match step % 8 {
            // A slot of any bytes; small numbers are grants that exist.
            0..=3 => {
                let mut request = blkif::Request::ZERO;
                let bytes = request.as_bytes_mut();
                let len = rest.len().min(bytes.len());
                bytes[..len].copy_from_slice(&rest[..len]);
                rest = &rest[len..];
                if step & 0x80 == 0 {
                    let known = usize::from(step >> 4) % PAGES;
                    for segment in &mut request.seg {
                        segment.gref = pages[known].gref();
                    }
                }
                if sent - answered < 32 {
                    front.send(&guest, request);
                    sent += 1;
                }
            }
            // What indirect requests and writes find in a page.
            4 => {
                let at = usize::from(step >> 3) % PAGES;
                let len = rest.len().min(64);
                pages[at].write_bytes(0, &rest[..len]);
                rest = &rest[len..];
            }
            // An event with nothing behind it.
            5 => guest.events.notify(front.port).unwrap(),
            // The daemon is killed.
            6 if step & 0x80 == 0 => host.restart(),
            _ => {
                host.settle();
                answered += answers(&mut front);
            }
        }
    }
    host.settle();
    answered += answers(&mut front);
    assert_eq!(sent, answered, "each request has one answer");
    drop(pages);
    guest.close(&mut host, Some(front));
    guest.remove(&mut host);
    drop(host.bus);
    host.world.assert_nothing_left();
});

fn answers(front: &mut Front) -> usize {
    std::iter::from_fn(|| front.receive()).count()
}
