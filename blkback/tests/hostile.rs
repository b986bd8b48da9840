//! Hostile and careless front ends: each ends its own request or its own device, and nothing else.

mod common;

use blkback::DataMove;
use common::{Guest, Host, page, request};
use xen_hal::{EventChannels, Store};
use xen_ring::SharedMemoryExt;
use xen_sys::GrantRef;
use xen_sys::io::blkif::{self, OP_READ, OP_WRITE};

/// Both a victim and an attacker connected to one backend.
fn two_guests() -> (Host, Guest, common::Front, Guest, common::Front) {
    let mut host = Host::new(DataMove::Copy);
    let good = Guest::new(&host, "/disk", "w");
    let good_front = good.connect(&mut host);
    let bad = Guest::new(&host, "/other-disk", "w");
    let bad_front = bad.connect(&mut host);
    (host, good, good_front, bad, bad_front)
}

#[test]
fn bad_requests_get_errors_and_the_device_lives() {
    let (mut host, good, mut good_front, bad, mut front) = two_guests();
    let page = page(&bad, 1);
    let theirs = common::page(&good, 2);
    let ok = (page.gref(), 0, 7);
    let rows: Vec<(&str, blkif::Request, i16)> = vec![
        ("no segments", request(OP_READ, 1, 0, &[]), -1),
        (
            "12 segments",
            blkif::Request {
                nr_segments: 12,
                ..request(OP_READ, 2, 0, &[ok; 11])
            },
            -1,
        ),
        (
            "255 segments",
            blkif::Request {
                nr_segments: 255,
                ..request(OP_WRITE, 3, 0, &[ok; 11])
            },
            -1,
        ),
        (
            "last_sect 8",
            request(OP_READ, 4, 0, &[(page.gref(), 0, 8)]),
            -1,
        ),
        (
            "first > last",
            request(OP_WRITE, 5, 0, &[(page.gref(), 4, 3)]),
            -1,
        ),
        (
            "past the end",
            request(OP_READ, 6, common::SECTORS - 7, &[ok]),
            -1,
        ),
        (
            "sector overflow",
            request(OP_WRITE, 7, u64::MAX - 1, &[ok]),
            -1,
        ),
        (
            "byte overflow",
            request(OP_READ, 8, u64::MAX / 512 + 1, &[ok]),
            -1,
        ),
        (
            "no such grant",
            request(OP_WRITE, 9, 0, &[(GrantRef(4000), 0, 7)]),
            -1,
        ),
        (
            "absurd grant",
            request(OP_READ, 10, 0, &[(GrantRef(u32::MAX), 0, 7)]),
            -1,
        ),
        (
            "another's grant",
            request(
                OP_READ,
                11,
                0,
                &[(theirs.gref(), 0, 7), (GrantRef(4001), 0, 7)],
            ),
            -1,
        ),
        ("barrier", request(blkif::OP_WRITE_BARRIER, 12, 0, &[ok]), 0),
        ("operation 4", request(4, 14, 0, &[ok]), -2),
        ("operation 255", request(255, 15, 0, &[ok]), -2),
        ("good after all", request(OP_WRITE, 16, 0, &[ok]), 0),
    ];
    for (what, request, status) in rows {
        assert_eq!(front.call(&mut host, &bad, request), status, "{what}");
    }
    let segments = [(theirs.gref(), 0, 7)];
    assert_eq!(
        good_front.call(&mut host, &good, request(OP_WRITE, 1, 0, &segments)),
        0
    );
    assert_eq!(bad.back_state(&host), "4");
}

#[test]
fn bad_indirect_requests_get_errors_and_the_device_lives() {
    for data_move in [DataMove::Copy, DataMove::Persistent] {
        let mut host = Host::new(data_move);
        let guest = Guest::new(&host, "/disk", "w");
        let mut front = guest.connect(&mut host);
        let (page, list) = (page(&guest, 7), page(&guest, 0));
        let ok = common::segment(page.gref(), 0, 7);
        common::write_segments(&list, &[ok; 256]);
        let sound = common::indirect(OP_WRITE, 1, 0, 256, &[list.gref()]);
        assert_eq!(front.call(&mut host, &guest, sound), 0);
        let bad = common::segment(page.gref(), 3, 8);
        let none = common::segment(GrantRef(4000), 0, 7);
        let rows = [
            ("no segments", 0, list.gref(), ok, -1),
            ("257 segments", 257, list.gref(), ok, -1),
            ("65535 segments", 65535, list.gref(), ok, -1),
            ("no such page of segments", 1, GrantRef(4000), ok, -1),
            (
                "a page of segments out of range",
                1,
                GrantRef(u32::MAX),
                ok,
                -1,
            ),
            ("last_sect 8", 255, list.gref(), bad, -1),
            ("no such page", 255, list.gref(), none, -1),
            ("good after all", 255, list.gref(), ok, 0),
        ];
        for (what, count, gref, last, status) in rows {
            let mut segments = [ok; 256];
            segments[254] = last;
            common::write_segments(&list, &segments);
            for operation in [OP_READ, OP_WRITE] {
                let request = common::indirect(operation, 2, 0, count, &[gref]);
                assert_eq!(front.call(&mut host, &guest, request), status, "{what}");
            }
        }
        for operation in [2, 3, 5, 6, 255] {
            let request = common::indirect(operation, 3, 0, 1, &[list.gref()]);
            assert_eq!(front.call(&mut host, &guest, request), -1, "{operation}");
        }
        assert_eq!(guest.back_state(&host), "4");
    }
}

#[test]
fn a_read_only_disk_is_not_written() {
    let mut host = Host::new(DataMove::Copy);
    let guest = Guest::new(&host, "/disk", "r");
    let mut front = guest.connect(&mut host);
    assert_eq!(host.store.text(&format!("{}/info", guest.back)), "4");
    let page = page(&guest, 1);
    for (operation, status) in [
        (OP_WRITE, -1),
        (blkif::OP_FLUSH_DISKCACHE, -1),
        (blkif::OP_WRITE_BARRIER, -1),
        (OP_READ, 0),
    ] {
        let request = request(operation, 1, 0, &[(page.gref(), 0, 7)]);
        assert_eq!(front.call(&mut host, &guest, request), status);
    }
    assert!(host.disk.lock().unwrap().iter().all(|&byte| byte == 0));
}

#[test]
fn a_producer_that_runs_ahead_ends_its_device_only() {
    for ahead in [33, 1000, u32::MAX / 2, u32::MAX] {
        let (mut host, good, mut good_front, bad, front) = two_guests();
        front
            .ring
            .memory()
            .store_u32(0, ahead, std::sync::atomic::Ordering::Release);
        bad.events.notify(front.port).unwrap();
        host.settle();
        assert_eq!(bad.back_state(&host), "5", "{ahead}");
        let error = format!(
            "/local/domain/0/error/backend/vbd/{}/51712/error",
            bad.domain.id()
        );
        assert!(
            host.store.text(&error).contains("ring index"),
            "{}",
            host.store.text(&error)
        );
        let page = page(&good, 2);
        let segments = [(page.gref(), 0, 7)];
        assert_eq!(
            good_front.call(&mut host, &good, request(OP_WRITE, 1, 0, &segments)),
            0
        );
        // It closes, and may then start over.
        bad.close(&mut host, Some(front));
        bad.set(&host, "state", "1");
        let front = bad.connect(&mut host);
        bad.close(&mut host, Some(front));
        bad.remove(&mut host);
        // Of the message nothing is left, not even the empty directories above it.
        assert_eq!(
            host.store.list(None, "/local/domain/0").unwrap(),
            ["backend"]
        );
        drop((page, good_front, good.events, host.bus));
        host.world.destroy_domain(good.domain.id());
        host.world.assert_nothing_left();
    }
}

#[test]
fn nonsense_in_the_store_ends_the_device_with_a_message() {
    let rows = [
        ("ring-ref", "-1", "ring-ref"),
        ("ring-ref", "4294967296", "ring-ref"),
        ("ring-ref", "9999", "grant 9999"),
        ("ring-ref", "", "ring-ref"),
        ("event-channel", "77", "EVTCHNOP_bind_interdomain"),
        ("event-channel", "x", "event-channel"),
        ("protocol", "arm-abi", "protocol"),
        ("multi-queue-num-queues", "0", "multi-queue"),
        ("multi-queue-num-queues", "9", "multi-queue"),
        ("multi-queue-num-queues", "8", "queue-0/ring-ref"),
        ("multi-queue-num-queues", "many", "multi-queue"),
        ("ring-page-order", "5", "ring-page-order"),
        ("ring-page-order", "4", "ring-ref0"),
        ("ring-page-order", "4294967295", "ring-page-order"),
        ("protocol", &"x".repeat(4096), "4096 bytes"),
    ];
    for (node, value, message) in rows {
        let mut host = Host::new(DataMove::Copy);
        let guest = Guest::new(&host, "/disk", "w");
        host.settle();
        let front = guest.offer(&host);
        guest.set(&host, node, value);
        host.settle();
        assert_eq!(guest.back_state(&host), "5", "{node}={value}");
        let error = format!(
            "/local/domain/0/error/backend/vbd/{}/51712/error",
            guest.domain.id()
        );
        let text = host.store.text(&error);
        assert!(text.contains(message), "{node}={value:.20}: {text}");
        drop(front);
        guest.close(&mut host, None);
        guest.remove(&mut host);
        drop(host.bus);
        host.world.assert_nothing_left();
    }
}

#[test]
fn states_in_any_order_leave_nothing_behind() {
    // XSA-350, XSA-349: fast and senseless changes of state, with events coalesced or not.
    for seed in 0..200 {
        let mut dice = xen_fake::Schedule::new(seed);
        let mut host = Host::new(DataMove::Copy);
        let guest = Guest::new(&host, "/disk", "w");
        let mut fronts = Vec::new();
        for _ in 0..30 {
            match dice.pick(10) {
                0 => fronts.push(guest.offer(&host)),
                n => guest.set(&host, "state", &n.to_string()),
            }
            if dice.chance(1, 2) {
                host.settle();
            }
        }
        host.settle();
        guest.set(&host, "state", "6");
        host.settle();
        assert_eq!(guest.back_state(&host), "6", "seed {seed}");
        drop(fronts);
        guest.remove(&mut host);
        assert_eq!(host.bus.counts(), (0, 0));
        // Those on vbd and vbd3.
        assert_eq!(host.store.watches(), 2, "seed {seed}");
        drop(host.bus);
        host.world.assert_nothing_left();
    }
}

#[test]
fn disks_that_cannot_be_opened() {
    let rows = [
        ("/missing", "w", "ENOENT"),
        ("/disk", "w", "has it open"),
        ("/disk", "r", "has it open"),
        ("/disk", "x", "neither r nor w"),
        ("qed:/image", "w", "no file in a known format"),
    ];
    for (params, mode, message) in rows {
        let mut host = Host::new(DataMove::Copy);
        let first = Guest::new(&host, "/disk", "w");
        first.connect(&mut host);
        let guest = Guest::new(&host, params, mode);
        host.settle();
        assert_eq!(guest.back_state(&host), "5", "{params}");
        let error = format!(
            "/local/domain/0/error/backend/vbd/{}/51712/error",
            guest.domain.id()
        );
        let text = host.store.text(&error);
        assert!(text.contains(message), "{params}: {text}");
        // What a toolstack does to get rid of it.
        host.store
            .write(None, &format!("{}/online", guest.back), b"0")
            .unwrap();
        host.settle();
        assert_eq!(guest.back_state(&host), "6");
    }
}

#[test]
fn a_destroyed_guest_is_let_go() {
    let mut host = Host::new(DataMove::Copy);
    let guest = Guest::new(&host, "/disk", "w");
    let front = guest.connect(&mut host);
    assert_eq!(host.bus.counts(), (1, 1));
    // libxl: the front end's nodes go, the backend is told to close and waited for.
    host.store.rm(None, &guest.front).unwrap();
    host.store
        .write(None, &format!("{}/online", guest.back), b"0")
        .unwrap();
    host.store
        .write(None, &format!("{}/state", guest.back), b"5")
        .unwrap();
    host.settle();
    assert_eq!(guest.back_state(&host), "6");
    assert_eq!(
        host.store.text(&format!("{}/params", guest.back)),
        "/dev/null"
    );
    assert_eq!(host.bus.counts(), (1, 0));
    assert_eq!(host.world.mappings(), 0);
    drop(front);
    guest.remove(&mut host);
    assert_eq!(host.bus.counts(), (0, 0));
    // Nothing was written into the removed directory.
    assert_eq!(
        host.store
            .list(None, "/local/domain/0/backend/vbd/1")
            .unwrap_or_default(),
        Vec::<String>::new()
    );
}
