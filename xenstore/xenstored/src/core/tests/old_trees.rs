//! Transactions that have become old: what they see, what comes of them, and what they keep.

use super::super::old_trees::OldTrees;
use super::*;

/// A guest's transaction is old after a change of a node with so large a value, a client's of dom0 after four.
const LARGE: usize = 1500;

/// The bound as it is, and such as make most transactions old, or all that begin before a change.
pub fn bounds_of_age() -> Vec<OldTrees> {
    let tight = OldTrees::new(3000, 9000);
    vec![OldTrees::default(), tight, OldTrees::new(1, 1)]
}

fn store() -> Store {
    let mut s = Store::new();
    s.core.old_trees = OldTrees::new(LARGE as u64, 4 * LARGE as u64);
    s.put("/a", "1", "b0");
    s.put("/b", "1", "b0");
    s
}

/// Lets a guest's transactions, or all, become old.
fn pass(s: &mut Store, all: bool) {
    for _ in 0..if all { 4 } else { 1 } {
        s.write(D0B, 0, "/large", &"x".repeat(LARGE)).unwrap();
        s.write(D0B, 0, "/large", &"y".repeat(LARGE)).unwrap();
    }
}

/// How many trees the open transactions keep, beside the one that there is.
fn old_trees(s: &Store) -> usize {
    let now = s.core.tree().generation();
    let versions = s.core.export().versions;
    versions.iter().filter(|v| v.generation != now).count()
}

#[test]
fn an_idle_one_is_as_if_it_had_begun_later() {
    let mut s = store();
    let guest = s.guest(1);
    let (tx, dom0) = (s.start(guest), s.start(D0));
    s.write(D0B, 0, "/a", "2").unwrap();
    pass(&mut s, false);
    assert_eq!(s.read(guest, tx, "/a").unwrap(), "2");
    assert_eq!(s.read(D0, dom0, "/a").unwrap(), "1", "dom0's keep longer");
    s.commit(D0, dom0).unwrap();
    let dom0 = s.start(D0);
    s.write(D0B, 0, "/a", "3").unwrap();
    pass(&mut s, true);
    assert_eq!(s.read(D0, dom0, "/a").unwrap(), "3");
    s.check();
}

#[test]
fn one_whose_reads_hold_goes_on_and_commits() {
    for is_guest in [true, false] {
        let mut s = store();
        let conn = if is_guest { s.guest(1) } else { D0 };
        let tx = s.start(conn);
        assert_eq!(s.read(conn, tx, "/a").unwrap(), "1");
        s.write(conn, tx, "/b", "mine").unwrap();
        s.write(conn, tx, "/b/new", "mine too").unwrap();
        pass(&mut s, conn == D0);
        s.write(D0B, 0, "/c", "seen").unwrap();
        s.set_perms(D0B, 0, "/c", "r0").unwrap();
        pass(&mut s, conn == D0);
        s.check();
        assert_eq!(s.read(conn, tx, "/b").unwrap(), "mine");
        assert_eq!(s.read(conn, tx, "/b/new").unwrap(), "mine too");
        assert_eq!(s.read(conn, tx, "/c").unwrap(), "seen");
        s.check();
        s.commit(conn, tx).unwrap();
        assert_eq!(s.read(D0, 0, "/b").unwrap(), "mine");
        assert_eq!(s.read(D0, 0, "/b/new").unwrap(), "mine too");
        s.check();
    }
}

#[test]
fn one_whose_reads_do_not_hold_fails_at_its_end() {
    for (writes, commits) in [(true, true), (false, true), (true, false)] {
        let mut s = store();
        let guest = s.guest(1);
        let tx = s.start(guest);
        assert_eq!(s.read(guest, tx, "/a").unwrap(), "1");
        if writes {
            s.write(guest, tx, "/b", "mine").unwrap();
        }
        s.write(D0B, 0, "/a", "2").unwrap();
        pass(&mut s, false);
        // It is answered as before.
        assert_eq!(s.read(guest, tx, "/a").unwrap(), "2");
        s.write(guest, tx, "/a", "3").unwrap();
        assert_eq!(s.read(guest, tx, "/a").unwrap(), "3");
        s.check();
        match commits {
            true => assert_eq!(s.commit(guest, tx), Err(Errno::EAGAIN)),
            false => drop(s.ok(guest, tx, Request::TransactionEnd(false))),
        }
        assert_eq!(s.read(D0, 0, "/a").unwrap(), "2");
        assert_eq!(s.read(D0, 0, "/b").unwrap(), "1");
        // The retry goes well.
        let tx = s.start(guest);
        s.write(guest, tx, "/a", "3").unwrap();
        s.commit(guest, tx).unwrap();
    }
}

#[test]
fn one_that_may_not_do_any_more_what_it_did_fails() {
    let mut s = store();
    let guest = s.guest(1);
    let tx = s.start(guest);
    s.write(guest, tx, "/b", "mine").unwrap();
    s.set_perms(D0B, 0, "/b", "r0").unwrap();
    pass(&mut s, false);
    // The change is made on the newer tree when it is looked at.
    assert_eq!(s.read(guest, tx, "/b").unwrap(), "1");
    s.check();
    assert_eq!(s.commit(guest, tx), Err(Errno::EAGAIN));
    assert_eq!(s.read(D0, 0, "/b").unwrap(), "1");
}

#[test]
fn quotas_hold_for_one_that_has_gone_on() {
    let mut s = Store::with(Limits {
        nodes: 10,
        ..Limits::default()
    });
    s.core.old_trees = OldTrees::new(1, 1);
    let guest = s.guest(1);
    let tx = s.start(guest);
    for n in 0..6 {
        s.write(guest, tx, &format!("in/{n}"), "").unwrap();
    }
    for n in 0..6 {
        s.write(guest, 0, &format!("out/{n}"), "").unwrap();
    }
    s.list(guest, tx, "in").unwrap();
    assert_eq!(s.commit(guest, tx), Err(Errno::EAGAIN));
    assert_eq!(s.read(guest, 0, "in/1"), Err(Errno::ENOENT));
    s.check();
}

#[test]
fn what_was_seen_is_not_looked_at_for_ever() {
    let mut s = store();
    let guest = s.guest(1);
    let (idle, busy) = (s.start(guest), s.start(guest));
    assert_eq!(s.read(guest, busy, "/a").unwrap(), "1");
    for round in 0..8 {
        pass(&mut s, false);
        assert!(old_trees(&s) <= 1, "round {round}");
    }
    for _ in 0..8 {
        pass(&mut s, false);
    }
    s.check();
    assert_eq!(s.commit(guest, busy), Err(Errno::EAGAIN));
    s.write(guest, idle, "/a", "2").unwrap();
    s.commit(guest, idle).unwrap();
}

#[test]
fn all_guests_together_keep_only_the_last_trees() {
    let mut s = store();
    let guests: Vec<ConnId> = (1..6).map(|dom| s.guest(dom)).collect();
    for n in 0..50 {
        let guest = guests[n % guests.len()];
        s.start(guest);
        pass(&mut s, false);
        // Both changes replaced enough for a transaction to be old.
        assert!(old_trees(&s) <= 1, "{}", old_trees(&s));
    }
    assert_eq!(s.core.open_transactions(), 50);
}
