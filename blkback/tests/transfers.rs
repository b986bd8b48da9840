//! Reads, writes and flushes through a ring in a fake world, with faults at every call.

mod common;

use blkback::DataMove;
use common::{Guest, Host, content, page, request};
use xen_fake::Call;
use xen_sys::io::blkif::{self, OP_DISCARD, OP_FLUSH_DISKCACHE, OP_READ, OP_WRITE};

#[test]
fn what_is_written_is_read_back() {
    for data_move in [DataMove::Copy, DataMove::Persistent] {
        let mut host = Host::new(data_move);
        let guest = Guest::new(&host, "/disk", "w");
        let mut front = guest.connect(&mut host);
        assert_eq!(host.store.text(&format!("{}/sectors", guest.back)), "2048");
        assert_eq!(host.store.text(&format!("{}/info", guest.back)), "0");

        let pages: Vec<_> = (1..=11).map(|fill| page(&guest, fill)).collect();
        let all: Vec<_> = pages.iter().map(|page| (page.gref(), 0, 7)).collect();
        let parts: Vec<_> = pages.iter().map(|page| (page.gref(), 2, 5)).collect();
        assert_eq!(
            front.call(&mut host, &guest, request(OP_WRITE, 1, 8, &all)),
            0
        );
        assert_eq!(
            front.call(&mut host, &guest, request(OP_FLUSH_DISKCACHE, 2, 0, &[])),
            0
        );
        {
            let disk = host.disk.lock().unwrap();
            assert!(disk[..4096].iter().all(|&byte| byte == 0));
            for (n, chunk) in disk[4096..4096 * 12].chunks(4096).enumerate() {
                assert!(chunk.iter().all(|&byte| byte == n as u8 + 1));
            }
        }
        // Read into the middle of the pages: 11 x 2048 bytes from sector 8 on.
        assert_eq!(
            front.call(&mut host, &guest, request(OP_READ, 3, 8, &parts)),
            0
        );
        let first = content(&pages[0]);
        assert!(first[..1024].iter().all(|&byte| byte == 1));
        let third = content(&pages[2]);
        assert!(
            third[..1024]
                .iter()
                .chain(&third[3072..])
                .all(|&byte| byte == 3)
        );
        assert!(third[1024..3072].iter().all(|&byte| byte == 2));

        let mut discard = request(OP_DISCARD, 4, 8, &[]);
        discard.seg[0].gref.0 = 8;
        assert_eq!(front.call(&mut host, &guest, discard), 0);
        assert!(
            host.disk.lock().unwrap()[4096..8192]
                .iter()
                .all(|&byte| byte == 0)
        );

        drop(pages);
        guest.close(&mut host, Some(front));
        guest.remove(&mut host);
        drop(host.bus);
        host.world.assert_nothing_left();
    }
}

#[test]
fn many_requests_in_flight_are_answered_in_any_order() {
    let mut host = Host::new(DataMove::Copy);
    let guest = Guest::new(&host, "/disk", "w");
    let mut front = guest.connect(&mut host);
    let page = page(&guest, 7);
    for round in 0..10 {
        for n in 0..32 {
            let id = round * 32 + n;
            front.send(&guest, request(OP_WRITE, id, id, &[(page.gref(), 0, 0)]));
        }
        host.settle();
        let mut order: Vec<u64> = (0..32)
            .map(|_| front.receive().expect("answered"))
            .map(|(id, operation, status)| {
                assert_eq!((operation, status), (OP_WRITE, 0));
                id - round * 32
            })
            .collect();
        assert_ne!(order[0], 0, "the first is not the first to end");
        order.sort_unstable();
        assert_eq!(order, (0..32).collect::<Vec<u64>>());
    }
    assert_eq!(
        host.disk
            .lock()
            .unwrap()
            .iter()
            .filter(|&&byte| byte == 7)
            .count(),
        320 * 512
    );
}

#[test]
fn a_failing_call_fails_one_request() {
    use Call::{Copy, Other};
    let kinds = [
        (DataMove::Copy, Copy, OP_WRITE),
        (DataMove::Copy, Copy, OP_READ),
        (DataMove::Copy, Other("read"), OP_READ),
        (DataMove::Copy, Other("write"), OP_WRITE),
        (DataMove::Copy, Other("flush"), OP_FLUSH_DISKCACHE),
    ];
    for (data_move, call, operation) in kinds {
        let mut host = Host::new(data_move);
        let guest = Guest::new(&host, "/disk", "w");
        let mut front = guest.connect(&mut host);
        let page = page(&guest, 1);
        let segments = [(page.gref(), 0, 7)];
        let segments = if operation == OP_FLUSH_DISKCACHE {
            &segments[..0]
        } else {
            &segments
        };
        host.world.faults().fail_nth(call, 1);
        assert_eq!(
            front.call(&mut host, &guest, request(operation, 1, 0, segments)),
            -1,
            "{call:?}"
        );
        assert!(!host.world.faults().clear(), "{call:?} was never made");
        assert_eq!(
            front.call(&mut host, &guest, request(operation, 2, 0, segments)),
            0,
            "{call:?}"
        );
    }
}

#[test]
fn a_killed_backend_is_followed_by_one_that_goes_on() {
    let mut host = Host::new(DataMove::Copy);
    let guest = Guest::new(&host, "/disk", "w");
    let mut front = guest.connect(&mut host);
    let page = page(&guest, 9);
    for round in 0..5 {
        // Sent while nobody listens: the event is lost.
        drop(std::mem::replace(
            &mut host.bus,
            Host::new(DataMove::Copy).bus,
        ));
        for n in 0..6 {
            let request = request(OP_WRITE, n, round * 6 + n, &[(page.gref(), 0, 0)]);
            assert!(front.ring.push(request));
            let _ = front.ring.publish();
        }
        host.restart();
        host.settle();
        assert_eq!(guest.back_state(&host), "4");
        let mut ids: Vec<u64> = (0..6)
            .map(|_| front.receive().expect("answered"))
            .map(|(id, operation, status)| {
                assert_eq!((operation, status), (OP_WRITE, 0), "round {round}");
                id
            })
            .collect();
        ids.sort_unstable();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5], "round {round}");
    }
    assert!(
        host.log
            .lock()
            .unwrap()
            .iter()
            .any(|line| line.contains("again to a running guest"))
    );
    guest.close(&mut host, Some(front));
}

#[test]
fn queues_work_side_by_side_and_survive_a_kill() {
    let mut host = Host::new(DataMove::Persistent);
    let guest = Guest::new(&host, "/disk", "w");
    let mut fronts = guest.connect_queues(&mut host, 8);
    let pages: Vec<_> = (1..=8).map(|fill| page(&guest, fill)).collect();
    for round in 0..3u64 {
        for (n, (front, page)) in fronts.iter_mut().zip(&pages).enumerate() {
            for k in 0..20 {
                let sector = n as u64 * 64 + k + round;
                let request = request(OP_WRITE, k, sector, &[(page.gref(), 0, 0)]);
                front.send(&guest, request);
            }
        }
        if round == 1 {
            host.restart();
        }
        host.settle();
        for front in &mut fronts {
            let mut ids: Vec<u64> = (0..20)
                .map(|_| front.receive().expect("answered"))
                .map(|(id, _, status)| {
                    assert_eq!(status, 0);
                    id
                })
                .collect();
            ids.sort_unstable();
            assert_eq!(ids, (0..20).collect::<Vec<u64>>(), "each of them once");
        }
    }
    let disk = host.disk.lock().unwrap();
    for n in 0..8 {
        let part = &disk[n * 64 * 512..][..22 * 512];
        assert!(part.iter().all(|&byte| byte == n as u8 + 1));
    }
}

#[test]
fn a_barrier_comes_after_what_was_before_it_and_before_what_is_after() {
    let mut host = Host::new(DataMove::Copy);
    let guest = Guest::new(&host, "/disk", "w");
    let mut front = guest.connect(&mut host);
    let pages: Vec<_> = (1..=3).map(|fill| page(&guest, fill)).collect();
    // All on the same sector: the order shows in what is there, and in the order of the answers.
    for id in 0..10 {
        let first = request(OP_WRITE, id, 0, &[(pages[0].gref(), 0, 0)]);
        front.send(&guest, first);
    }
    let barrier = request(blkif::OP_WRITE_BARRIER, 10, 0, &[(pages[1].gref(), 0, 0)]);
    front.send(&guest, barrier);
    for id in 11..20 {
        let after = request(OP_WRITE, id, 1, &[(pages[2].gref(), 0, 0)]);
        front.send(&guest, after);
    }
    host.settle();
    let ids: Vec<u64> = (0..20).map(|_| front.receive().unwrap().0).collect();
    assert_eq!(ids.iter().position(|&id| id == 10), Some(10), "{ids:?}");
    assert!(ids[..10].iter().all(|&id| id < 10), "{ids:?}");
    assert_eq!(host.disk.lock().unwrap()[0], 2);
}
