//! Packets both ways through the rings in a fake world, from good and from hostile front ends.

mod common;

use common::{Guest, Host, tx};
use xen_fake::Call;
use xen_hal::EventChannels;
use xen_ring::SharedMemoryExt;
use xen_sys::GrantRef;

const MORE: u16 = 4;
const EXTRA: u16 = 8;

#[test]
fn a_guest_sends() {
    let mut host = Host::new();
    let guest = Guest::new(&host, &[]);
    let mut front = guest.connect(&mut host);
    let bytes: Vec<u8> = (0..4096).map(|n| n as u8).collect();
    let page = guest.page(&bytes);
    let gref = page.gref();
    front.send(&guest, &[tx(gref, 100, 60, 0), tx(gref, 0, 1514, 0)]);
    host.settle();
    assert_eq!(front.sent(), [0, 0]);
    // In three pieces of one packet.
    front.send(
        &guest,
        &[
            tx(gref, 10, 100, MORE),
            tx(gref, 4000, 96, MORE),
            tx(gref, 7, 1, 0),
        ],
    );
    host.settle();
    assert_eq!(front.sent(), [0, 0, 0]);
    {
        let state = host.wire.0.lock().unwrap();
        assert_eq!(state.from_guest[0], bytes[100..160]);
        assert_eq!(state.from_guest[1], bytes[..1514]);
        let joined = [&bytes[10..13], &bytes[4000..4096], &bytes[7..8]].concat();
        assert_eq!(state.from_guest[2], joined);
    }
    // Many rings full.
    for _ in 0..5 {
        front.send(&guest, &[tx(gref, 0, 1514, 0); 256]);
        host.settle();
        assert_eq!(front.sent(), [0; 256]);
    }
    assert_eq!(host.wire.0.lock().unwrap().from_guest.len(), 3 + 5 * 256);
    // A full TAP device loses packets, not the ring.
    host.wire.0.lock().unwrap().is_full = true;
    front.send(&guest, &[tx(gref, 0, 60, 0); 2]);
    host.settle();
    assert_eq!(front.sent(), [0, 0]);
    drop(page);
    guest.close(&mut host, front);
    guest.remove(&mut host);
    drop(host.bus);
    host.world.assert_nothing_left();
}

#[test]
fn blank_checksums_are_filled_in() {
    let mut host = Host::new();
    let guest = Guest::new(&host, &[]);
    let mut front = guest.connect(&mut host);
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0, 0, 30, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame.extend([10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2, 0, 10, 0xaa, 0xbb]);
    frame.extend(b"hi");
    let page = guest.page(&frame);
    for flags in [0, 1] {
        front.send(&guest, &[tx(page.gref(), 0, frame.len() as u16, flags)]);
    }
    host.settle();
    let state = host.wire.0.lock().unwrap();
    assert_eq!(state.from_guest[0], frame);
    assert_eq!(state.from_guest[1][40..42], [0x83, 0x6b]);
}

#[test]
fn bad_packets_get_errors_and_the_interface_lives() {
    let mut host = Host::new();
    let guest = Guest::new(&host, &[]);
    let mut front = guest.connect(&mut host);
    let page = guest.page(&[7; 4096]);
    let gref = page.gref();
    let good = tx(gref, 0, 60, 0);
    // The extra slots are read as extra information: a type in the first byte, "more" in the second.
    let gso = tx(GrantRef(1), 0, 0, 0);
    let gso_and_more = tx(GrantRef(0x101), 0, 0, 0);
    let mut long = vec![tx(gref, 0, 1000, MORE); 30];
    long.push(tx(gref, 0, 10, 0));
    let rows: Vec<(&str, Vec<_>, Vec<i16>)> = vec![
        ("nothing", vec![tx(gref, 0, 0, 0)], vec![-1]),
        ("13 bytes", vec![tx(gref, 0, 13, 0)], vec![-1]),
        ("over the page", vec![tx(gref, 4090, 60, 0)], vec![-1]),
        ("absurd offset", vec![tx(gref, 65535, 65535, 0)], vec![-1]),
        (
            "no such grant",
            vec![tx(GrantRef(5000), 0, 60, 0)],
            vec![-1],
        ),
        (
            "one bad grant of two",
            vec![tx(gref, 0, 60, MORE), tx(GrantRef(5000), 0, 20, 0)],
            vec![-1, -1],
        ),
        (
            "parts longer than the whole",
            vec![tx(gref, 0, 60, MORE), tx(gref, 0, 61, 0)],
            vec![-1, -1],
        ),
        (
            "empty parts",
            vec![
                tx(gref, 0, 60, MORE),
                tx(gref, 0, 0, MORE),
                tx(gref, 0, 0, 0),
            ],
            vec![0, 0, 0],
        ),
        ("31 slots", long, vec![-1; 31]),
        (
            "segmentation offload",
            vec![tx(gref, 0, 60, EXTRA), gso],
            vec![-1, 1],
        ),
        (
            "two extras",
            vec![tx(gref, 0, 60, EXTRA), gso_and_more, gso],
            vec![-1, 1, 1],
        ),
        (
            "extra, then more data",
            vec![tx(gref, 0, 60, EXTRA | MORE), gso, tx(gref, 0, 10, 0)],
            vec![-1, 1, -1],
        ),
        (
            "bad between good",
            vec![good, tx(gref, 0, 1, 0), good],
            vec![0, -1, 0],
        ),
    ];
    for (what, slots, statuses) in rows {
        front.send(&guest, &slots);
        host.settle();
        assert_eq!(front.sent(), statuses, "{what}");
        assert_eq!(guest.back_state(&host), "4", "{what}");
    }
    let state = host.wire.0.lock().unwrap();
    assert!(state.from_guest.iter().all(|frame| *frame == [7; 60]));
    assert_eq!(state.from_guest.len(), 3);
}

#[test]
fn broken_rings_end_their_interface_only() {
    type Breakage = fn(&mut common::Front, &Guest);
    let rows: [(&str, Breakage); 4] = [
        ("tx producer ahead", |front, guest| {
            front
                .tx
                .memory()
                .store_u32(0, 257, std::sync::atomic::Ordering::Release);
            guest.events.notify(front.tx_port).unwrap();
        }),
        ("rx producer ahead", |front, guest| {
            front
                .rx
                .memory()
                .store_u32(0, u32::MAX, std::sync::atomic::Ordering::Release);
            guest.events.notify(front.rx_port).unwrap();
        }),
        ("packet without an end", |front, guest| {
            front.send(guest, &[tx(GrantRef(9), 0, 60, MORE)]);
        }),
        ("extra without an end", |front, guest| {
            front.send(
                guest,
                &[tx(GrantRef(9), 0, 60, EXTRA), tx(GrantRef(0x101), 0, 0, 0)],
            );
        }),
    ];
    for (what, breakage) in rows {
        let mut host = Host::new();
        let good = Guest::new(&host, &[]);
        let mut good_front = good.connect(&mut host);
        let bad = Guest::new(&host, &[]);
        let mut front = bad.connect(&mut host);
        breakage(&mut front, &bad);
        host.settle();
        assert_eq!(bad.back_state(&host), "5", "{what}");
        let page = good.page(&[1; 64]);
        good_front.send(&good, &[tx(page.gref(), 0, 64, 0)]);
        host.settle();
        assert_eq!(good_front.sent(), [0], "{what}");
        bad.close(&mut host, front);
    }
}

#[test]
fn a_guest_receives() {
    let mut host = Host::new();
    let guest = Guest::new(&host, &[]);
    let mut front = guest.connect(&mut host);
    let frame = |n: usize| vec![n as u8; 60 + n];
    let pages: Vec<_> = (0..256).map(|_| guest.page(&[])).collect();
    for (n, page) in pages.iter().enumerate() {
        front.give_page(&guest, n as u16, page.gref());
    }
    host.settle();
    host.wire
        .0
        .lock()
        .unwrap()
        .to_guest
        .extend((0..300).map(frame));
    host.settle();
    // As many as there is room for, each in its request's slot; the others wait in the TAP device.
    for (n, page) in pages.iter().enumerate() {
        let response = front.rx.pop().unwrap().expect("received");
        assert_eq!(
            (response.id, response.offset, response.flags),
            (n as u16, 0, 0)
        );
        assert_eq!(response.status as usize, 60 + n);
        let mut bytes = vec![0; 60 + n];
        page.read_bytes(0, &mut bytes);
        assert_eq!(bytes, frame(n));
    }
    assert_eq!(front.rx.pop().unwrap(), None);
    assert_eq!(host.wire.0.lock().unwrap().to_guest.len(), 44);
    // One more page is enough for one more frame, and the guest is told.
    while let Some(port) = guest.events.next_pending().unwrap() {
        guest.events.unmask(port).unwrap();
    }
    assert!(!front.rx.wait_for_more());
    front.give_page(&guest, 0, pages[0].gref());
    host.settle();
    assert_eq!(front.rx.pop().unwrap().expect("received").status, 60 + 256);
    assert_eq!(guest.events.next_pending(), Ok(Some(front.rx_port)));
    assert_eq!(host.wire.0.lock().unwrap().to_guest.len(), 43);
}

#[test]
fn what_cannot_be_received_is_dropped() {
    let mut host = Host::new();
    let guest = Guest::new(&host, &[]);
    let mut front = guest.connect(&mut host);
    let page = guest.page(&[]);
    let mut serve = |front: &mut common::Front, gref, frames: &[usize]| {
        let all = frames.iter().map(|&len| vec![1; len]);
        host.wire.0.lock().unwrap().to_guest.extend(all);
        front.give_page(&guest, 0, gref);
        host.settle();
        front.rx.pop().unwrap().map(|response| response.status)
    };
    // Longer than a page: dropped without using the slot.
    assert_eq!(
        serve(&mut front, page.gref(), &[5000, 9000, 4096]),
        Some(4096)
    );
    // A bad grant loses the frame and returns the slot.
    assert_eq!(serve(&mut front, GrantRef(5000), &[60]), Some(-1));
    assert_eq!(serve(&mut front, page.gref(), &[61]), Some(61));
    host.world.faults().fail_nth(Call::Copy, 1);
    host.wire.0.lock().unwrap().to_guest.push_back(vec![1; 60]);
    front.give_page(&guest, 3, page.gref());
    host.settle();
    assert_eq!(front.rx.pop().unwrap().unwrap().status, -1);
    assert_eq!(guest.back_state(&host), "4");
}
