//! Turns: under contention everybody gets on, and who does not play by them holds up nobody for long.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestRng;
use xen_sys::Errno;
use xs_wire::Request;

use super::super::turns::{PENALTY, TURN};
use super::*;

/// Sends TRANSACTION_START; its number if it is answered at once.
fn start(s: &mut Store, conn: ConnId) -> Option<u32> {
    let header = Header {
        op: Op::TransactionStart.code(),
        req_id: 77,
        tx_id: 0,
        len: 1,
    };
    s.core.request(&mut s.world, conn, &header, b"\0");
    started(s, conn)
}

/// As [`start`]; those who have the turn that it waits for lose it.
pub fn start_at_last(s: &mut Store, conn: ConnId) -> u32 {
    let mut tx = start(s, conn);
    while tx.is_none() {
        let now = s.core.turns.now();
        pass(s, now);
        pass(s, now + TURN);
        tx = started(s, conn);
    }
    tx.unwrap()
}

/// The number of the transaction whose start was answered by now.
fn started(s: &mut Store, conn: ConnId) -> Option<u32> {
    let is_start = |(to, sent): &(ConnId, Sent)| {
        *to == conn && matches!(sent, Sent::Reply(Op::TransactionStart, _))
    };
    let at = s.world.sent.iter().position(is_start)?;
    match s.world.sent.remove(at).1 {
        Sent::Reply(_, body) => Some(xs_wire::call::parse_tx(&body).unwrap().0.get()),
        Sent::Event(..) => unreachable!(),
    }
}

/// Adds one to a node in a transaction that is open.
fn add(s: &mut Store, conn: ConnId, tx: u32, path: &str) {
    let value: u64 = s.read(conn, tx, path).unwrap().parse().unwrap();
    s.write(conn, tx, path, &(value + 1).to_string()).unwrap();
}

/// A transaction of `conn` at `path` fails because of dom0's plain write.
fn conflict(s: &mut Store, conn: ConnId, path: &str) {
    let tx = start(s, conn).expect("no turn to wait for");
    add(s, conn, tx, path);
    add(s, D0, 0, path);
    assert_eq!(s.commit(conn, tx), Err(Errno::EAGAIN));
}

fn pass(s: &mut Store, now: Duration) {
    s.core.pass_time(&mut s.world, now);
}

fn sockets(s: &mut Store, count: u64) -> Vec<ConnId> {
    let ids: Vec<_> = (0..count).map(|n| ConnId(1000 + n)).collect();
    for id in &ids {
        s.core.attach_dom0(*id);
    }
    ids
}

#[test]
fn all_of_many_get_their_commits() {
    const CLIENTS: u64 = 64;
    const STEPS: usize = 60_000;
    let mut s = Store::new();
    s.put("/counter", "0", "n0");
    let clients = sockets(&mut s, CLIENTS);
    #[derive(Clone, Copy)]
    enum At {
        Start,
        Wait,
        Add(u32),
        End(u32),
    }
    let mut at: BTreeMap<ConnId, At> = clients.iter().map(|c| (*c, At::Start)).collect();
    let mut commits: BTreeMap<ConnId, u64> = clients.iter().map(|c| (*c, 0)).collect();
    let mut again = 0;
    let mut rng = TestRng::deterministic_rng(prop::test_runner::RngAlgorithm::ChaCha);
    for _ in 0..STEPS {
        // Those who wait have nothing to do; each of the others is as likely to be next.
        let able: Vec<ConnId> = at
            .iter()
            .filter(|(_, at)| !matches!(at, At::Wait))
            .map(|(c, _)| *c)
            .collect();
        let conn = able[rng.next_u32() as usize % able.len()];
        let next = match at[&conn] {
            At::Start => start(&mut s, conn).map_or(At::Wait, At::Add),
            At::Add(tx) => {
                add(&mut s, conn, tx, "/counter");
                At::End(tx)
            }
            At::End(tx) => {
                match s.commit(conn, tx) {
                    Ok(()) => *commits.get_mut(&conn).unwrap() += 1,
                    Err(errno) => {
                        assert_eq!(errno, Errno::EAGAIN);
                        again += 1;
                    }
                }
                At::Start
            }
            At::Wait => unreachable!(),
        };
        at.insert(conn, next);
        for conn in &clients {
            if let At::Wait = at[conn]
                && let Some(tx) = started(&mut s, *conn)
            {
                at.insert(*conn, At::Add(tx));
            }
        }
    }
    let sum: u64 = commits.values().sum();
    let least = commits.values().min().unwrap();
    assert_eq!(s.read(D0, 0, "/counter").unwrap(), sum.to_string());
    assert!(sum as usize > STEPS / 4, "{sum} commits");
    assert!(least * 2 >= sum / CLIENTS, "{least} of {sum}");
    assert!(again <= 3 * CLIENTS, "{again} conflicts, {sum} commits");
    assert!(s.core.is_waited_for());
    for conn in &clients {
        s.core.detach(*conn);
    }
    pass(&mut s, Duration::ZERO);
    assert_eq!(s.core.turns.sizes(), (0, 0, 0));
    assert!(!s.core.is_waited_for());
}

#[test]
fn who_waits_and_who_does_not() {
    let mut s = Store::new();
    s.put("/a", "0", "n0");
    s.put("/b", "0", "n0");
    let c = sockets(&mut s, 4);
    for (conn, path) in [(c[0], "/a"), (c[1], "/a"), (c[2], "/b")] {
        conflict(&mut s, conn, path);
    }
    let holder = start(&mut s, c[0]).unwrap();
    assert_eq!(
        start(&mut s, c[1]),
        None,
        "the retry at the same node waits"
    );
    let other = start(&mut s, c[2]).expect("at another node it does not");
    let fresh = start(&mut s, c[3]).expect("who did not conflict does not");
    let second = start(&mut s, c[1]).expect("a further transaction does not");
    s.write(c[1], 0, "/c", "plain").unwrap();
    for (conn, tx) in [(c[2], other), (c[3], fresh), (c[1], second)] {
        assert_eq!(s.commit(conn, tx), Ok(()));
        assert_eq!(started(&mut s, c[1]), None);
    }
    // An abort ends a turn as well.
    s.ask(c[0], holder, Request::TransactionEnd(false)).unwrap();
    let tx = started(&mut s, c[1]).expect("its turn has come");
    add(&mut s, c[1], tx, "/a");
    assert_eq!(s.commit(c[1], tx), Ok(()));
    assert_eq!(s.core.turns.sizes(), (0, 0, 0));
}

#[test]
fn a_turn_sees_what_the_one_before_has_done() {
    let mut s = Store::new();
    s.put("/a", "0", "n0");
    let c = sockets(&mut s, 2);
    conflict(&mut s, c[0], "/a");
    conflict(&mut s, c[1], "/a");
    let first = start(&mut s, c[0]).unwrap();
    assert_eq!(start(&mut s, c[1]), None);
    add(&mut s, c[0], first, "/a");
    assert_eq!(s.commit(c[0], first), Ok(()));
    // Others wait, so that it lines up again; the turn is free when they are done.
    let second = started(&mut s, c[1]).unwrap();
    assert_eq!(start(&mut s, c[0]), None);
    add(&mut s, c[1], second, "/a");
    assert_eq!(s.commit(c[1], second), Ok(()));
    let third = started(&mut s, c[0]).unwrap();
    add(&mut s, c[0], third, "/a");
    assert_eq!(s.commit(c[0], third), Ok(()));
    assert_eq!(s.read(D0, 0, "/a").as_deref(), Ok("5"));
    assert_eq!(start(&mut s, c[0]).map(drop), Some(()), "nobody waits");
}

#[test]
fn a_holder_that_never_ends_loses_its_turn() {
    let mut s = Store::new();
    let evil = s.guest(1);
    let other = s.guest(2);
    s.put("/a", "0", "b0");
    let c = sockets(&mut s, 2);
    for conn in [evil, other, c[0], c[1]] {
        conflict(&mut s, conn, "/a");
    }
    let held = start(&mut s, evil).unwrap();
    for conn in [other, c[0], c[1]] {
        assert_eq!(start(&mut s, conn), None);
    }
    let t0 = Duration::from_secs(5);
    pass(&mut s, t0);
    pass(&mut s, t0 + TURN - Duration::from_nanos(1));
    assert!(
        [other, c[0], c[1]]
            .iter()
            .all(|conn| started(&mut s, *conn).is_none())
    );
    let t1 = t0 + TURN;
    pass(&mut s, t1);
    // dom0's come before a guest's, whoever was there first, each in the order of its coming.
    for conn in [c[0], c[1], other] {
        let tx = started(&mut s, conn).expect("its turn");
        add(&mut s, conn, tx, "/a");
        assert_eq!(s.commit(conn, tx), Ok(()));
    }
    // Its transaction is open, and right or refused as any other.
    assert_eq!(s.read(evil, held, "/a").as_deref(), Ok("4"));
    s.write(evil, held, "/a", "9").unwrap();
    assert_eq!(s.commit(evil, held), Err(Errno::EAGAIN));
    // For a while it gets no turn that could hold up others.
    let again = start(&mut s, evil).unwrap();
    conflict(&mut s, c[0], "/a");
    assert!(start(&mut s, c[0]).is_some(), "no turn is taken");
    add(&mut s, evil, again, "/a");
    s.write(D0, 0, "/a", "0").unwrap();
    assert_eq!(s.commit(evil, again), Err(Errno::EAGAIN));
    pass(&mut s, t1 + PENALTY);
    assert_eq!(start(&mut s, evil), None, "now it lines up like everybody");
}

#[test]
fn connections_that_end() {
    for case in ["holder", "waiting", "reset", "death", "reintroduced"] {
        let mut s = Store::new();
        let g = s.guest(1);
        s.put("/a", "0", "b0");
        let c = sockets(&mut s, 2);
        for conn in [g, c[0], c[1]] {
            conflict(&mut s, conn, "/a");
        }
        let first = if case == "waiting" { c[0] } else { g };
        let tx = start(&mut s, first).unwrap();
        for conn in [g, c[0], c[1]] {
            if conn != first {
                assert_eq!(start(&mut s, conn), None);
            }
        }
        match case {
            "holder" => s.core.detach(g),
            "reset" => drop(s.ok(g, 0, Request::ResetWatches)),
            "death" => {
                s.world.domains.remove(&1);
                s.core.domains_changed(&mut s.world);
            }
            "reintroduced" => drop(s.ok(D0, 0, Request::Introduce(DomId(1), 1, Port(6)))),
            _ => {
                s.core.detach(g);
                s.core.detach(c[1]);
                assert_eq!(s.commit(c[0], tx), Ok(()));
            }
        }
        pass(&mut s, Duration::ZERO);
        if case == "waiting" {
            assert!(s.world.sent.iter().all(|(to, _)| *to != g && *to != c[1]));
        } else {
            for conn in [c[0], c[1]] {
                let tx = started(&mut s, conn).expect(case);
                assert_eq!(s.commit(conn, tx), Ok(()));
            }
        }
        pass(&mut s, Duration::ZERO);
        assert_eq!(s.core.turns.sizes(), (0, 0, 0), "{case}");
    }
}

#[test]
fn a_start_that_waits_counts_for_the_quota() {
    let mut s = Store::new();
    let g = s.guest(1);
    s.put("/a", "0", "b0");
    let c = sockets(&mut s, 1);
    conflict(&mut s, c[0], "/a");
    conflict(&mut s, g, "/a");
    let holder = start(&mut s, c[0]).unwrap();
    assert_eq!(start(&mut s, g), None);
    let most = Limits::default().transactions;
    for _ in 1..most {
        s.start(g);
    }
    let more = s.ask(g, 0, Request::TransactionStart).map(drop);
    assert_eq!(more, Err(Errno::ENOSPC));
    assert_eq!(s.commit(c[0], holder), Ok(()));
    assert!(started(&mut s, g).is_some());
    let more = s.ask(g, 0, Request::TransactionStart).map(drop);
    assert_eq!(more, Err(Errno::ENOSPC));
}
