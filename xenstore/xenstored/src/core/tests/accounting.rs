//! What is counted is what is there, whatever was asked for, and nothing is left when a domain goes.

use proptest::prelude::*;
use xen_sys::Errno;
use xs_wire::Request;

use super::*;
use crate::core::limits::Limits;

fn memory(s: &Store, dom: u16) -> u32 {
    let usage = s.core.usage(&s.world, DomId(dom));
    usage.map_or(0, |usage| usage.get("memory"))
}

#[derive(Clone, Debug)]
enum Act {
    Write(&'static str, usize),
    Mkdir(&'static str),
    Rm(&'static str),
    Read(&'static str),
    Perms(&'static str, &'static str),
    Watch(&'static str, usize),
    Unwatch(&'static str, usize),
    Start,
    End(bool),
    Reset,
    Restart,
    Rebirth,
    Quota(u32),
    Waiting(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let path = || {
        let paths = &[
            "a",
            "a/b",
            "a/b/c/d/e",
            "x",
            "x/y",
            "/b0",
            "/b0/p",
            "/b0/p/q",
            "/b0/r",
            "/shared",
            "/",
        ];
        proptest::sample::select(&paths[..])
    };
    let list = proptest::sample::select(
        &[
            "n1",
            "n2",
            "n1 r2 b0",
            "n2 b1 r1 r2 r1",
            "n0",
            "b1",
            "b2 b1",
        ][..],
    );
    prop_oneof![
        8 => (path(), 0usize..3000).prop_map(|(p, len)| Act::Write(p, len)),
        2 => path().prop_map(Act::Mkdir),
        3 => path().prop_map(Act::Rm),
        3 => path().prop_map(Act::Read),
        3 => (path(), list).prop_map(|(p, l)| Act::Perms(p, l)),
        3 => (path(), 0usize..1200).prop_map(|(p, len)| Act::Watch(p, len)),
        2 => (path(), 0usize..1200).prop_map(|(p, len)| Act::Unwatch(p, len)),
        4 => Just(Act::Start),
        4 => any::<bool>().prop_map(Act::End),
        1 => Just(Act::Reset),
        1 => Just(Act::Restart),
        1 => Just(Act::Rebirth),
        1 => (3000u32..40_000).prop_map(Act::Quota),
        1 => (0usize..3000).prop_map(Act::Waiting),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn all_is_counted(acts in proptest::collection::vec((0usize..3, any::<bool>(), act()), 0..120)) {
        let mut s = Store::with(Limits { memory: 30_000, ..Limits::default() });
        let mut conns = [D0, s.guest(1), s.guest(2)];
        s.put("/b0", "", "b0");
        s.put("/shared", "", "n1 b2");
        let mut open: [Vec<u32>; 3] = Default::default();
        for (who, in_transaction, act) in acts {
            let conn = conns[who];
            let tx = if in_transaction { open[who].last().copied().unwrap_or(0) } else { 0 };
            let before = memory(&s, who as u16);
            let (mut grows, mut result) = (true, Ok(()));
            match act {
                Act::Write(path, len) => result = s.write(conn, tx, path, &"v".repeat(len)),
                Act::Mkdir(path) => result = s.ask(conn, tx, Request::Mkdir(path.as_bytes())).map(drop),
                Act::Rm(path) => result = s.rm(conn, tx, path),
                Act::Read(path) => result = s.read(conn, tx, path).map(drop),
                Act::Perms(path, list) => result = s.set_perms(conn, tx, path, list),
                Act::Watch(path, len) => {
                    let token = "t".repeat(len);
                    result = s.watch(conn, path, &token);
                }
                Act::Unwatch(path, len) => {
                    let token = "t".repeat(len);
                    result = s.ask(conn, 0, Request::Unwatch(path.as_bytes(), token.as_bytes())).map(drop);
                }
                Act::Start => {
                    // The retry of one that conflicted may wait for its turn.
                    if s.core.turns.involves(conn) || s.core.conns[&conn].contends.is_some() {
                        s.core.restart(conn);
                        open[who].clear();
                    }
                    match s.ask(conn, 0, Request::TransactionStart) {
                        Ok(body) => open[who].push(xs_wire::call::parse_tx(&body).unwrap().0.get()),
                        Err(errno) => result = Err(errno),
                    }
                }
                Act::End(commit) => if let Some(tx) = open[who].pop() {
                    result = s.ask(conn, tx, Request::TransactionEnd(commit)).map(drop);
                },
                Act::Reset => {
                    s.ok(conn, 0, Request::ResetWatches);
                    open[who].clear();
                }
                Act::Restart => {
                    s.core.restart(conn);
                    open[who].clear();
                }
                Act::Rebirth => if who > 0 {
                    let dom = who as u16;
                    s.world.domains.remove(&dom);
                    s.world.buffered.clear();
                    s.core.domains_changed(&mut s.world);
                    prop_assert_eq!(memory(&s, dom), 0);
                    let kept: Vec<u32> = s.core.owned.domains().filter(|d| d.dom.0 == dom).map(|d| d.life).collect();
                    prop_assert_eq!(kept, Vec::<u32>::new());
                    conns[who] = s.guest(dom);
                    open[who].clear();
                },
                Act::Quota(bytes) => {
                    s.ok(D0, 0, Request::SetQuota(None, b"memory", bytes));
                    grows = false;
                }
                Act::Waiting(bytes) => {
                    s.world.buffered.insert(conn.0, Buffered { bytes, ..Buffered::default() });
                    grows = false;
                }
            }
            if let Err(errno) = s.core.check_counts() {
                prop_assert!(false, "{}", errno);
            }
            // What was refused has not grown, and nobody grows beyond the quota by what it asked for itself.
            let after = memory(&s, who as u16);
            if who > 0 && grows {
                if result.is_err() && result != Err(Errno::ENOENT) && result != Err(Errno::EACCES) {
                    prop_assert!(after <= before + 12_000, "{before} {after} {result:?}");
                }
                let most = s.core.limits().memory;
                prop_assert!(after <= before || after <= most, "{before} {after} of {most}");
            }
            s.world.sent.clear();
        }
        // All go: nothing is left of any.
        for dom in [1, 2] {
            s.world.domains.remove(&dom);
        }
        s.core.domains_changed(&mut s.world);
        prop_assert_eq!(&s.core.owned, &Owned::default());
        let guests = s.core.conns.values().filter(|client| !client.actor.is_privileged());
        prop_assert_eq!(guests.count(), 0);
        prop_assert_eq!(s.core.check_counts(), Ok(()));
    }
}

#[test]
fn memory_is_refused_and_given_back() {
    let mut s = Store::with(Limits {
        memory: 20_000,
        memory_soft: 10_000,
        ..Limits::default()
    });
    let g = s.guest(1);
    let start = memory(&s, 1);
    let mut written = 0;
    let error = loop {
        match s.write(g, 0, &format!("n{written}"), &"v".repeat(1000)) {
            Ok(()) => written += 1,
            Err(errno) => break errno,
        }
    };
    assert_eq!((error, written), (Errno::ENOMEM, 15));
    assert!(memory(&s, 1) <= 20_000);
    assert_eq!(
        s.world.logged.len(),
        1,
        "the soft quota is told of once: {:?}",
        s.world.logged
    );
    // It may look, remove and shrink, but not grow by other means.
    s.read(g, 0, "n1").unwrap();
    s.write(g, 0, "n1", "").unwrap();
    s.write(g, 0, "n1", &"v".repeat(900)).unwrap();
    let long = "t".repeat(1000);
    assert_eq!(s.watch(g, "x", &long), Err(Errno::ENOMEM));
    assert_eq!(s.set_perms(g, 0, "n2", "n1 r1 r1 r1 r1").err(), None);
    s.rm(g, 0, "n1").unwrap();
    s.watch(g, "x", &long).unwrap();
    // dom0 is not bound, and its own nodes are not counted.
    s.write(D0, 0, "/local/domain/1/n3", &"v".repeat(1900))
        .unwrap();
    for n in 0..written {
        let _ = s.rm(g, 0, &format!("n{n}"));
    }
    s.ok(g, 0, Request::Unwatch(b"x", long.as_bytes()));
    assert_eq!(memory(&s, 1), start);
    // What waits at its ring counts.
    let waiting = Buffered {
        bytes: 19_900,
        ..Buffered::default()
    };
    s.world.buffered.insert(g.0, waiting);
    assert_eq!(
        s.ask(g, 0, Request::TransactionStart).err(),
        Some(Errno::ENOMEM)
    );
    s.world.buffered.clear();
    let tx = s.start(g);
    assert!(s.write(g, tx, "a", &"v".repeat(1900)).is_ok());
    s.commit(g, tx).unwrap();
    assert_eq!(s.core.check_counts(), Ok(()));
}

/// A guest that was given the root and dies: its other nodes go, the root is dom0's again.
#[test]
fn the_owner_of_the_root_dies() {
    let mut s = Store::new();
    s.guest(1);
    s.put("/theirs", "", "n1");
    s.put("/", "", "n1");
    s.world.domains.remove(&1);
    s.core.domains_changed(&mut s.world);
    assert_eq!(s.perms(D0, "/").as_deref(), Ok("n0"));
    assert_eq!(s.read(D0, 0, "/theirs"), Err(Errno::ENOENT));
    assert_eq!(s.core.check_counts(), Ok(()));
}

/// A node that a transaction gives to a domain is not left with it when the domain has died before the commit.
#[test]
fn given_to_one_that_dies() {
    let mut s = Store::new();
    s.world.domains.insert(1, DomainState::Running);
    let tx = s.start(D0);
    s.write(D0, tx, "/x", "").unwrap();
    s.set_perms(D0, tx, "/x", "n1").unwrap();
    s.world.domains.remove(&1);
    s.core.domains_changed(&mut s.world);
    assert_eq!(s.commit(D0, tx), Err(Errno::EAGAIN));
    assert_eq!(s.core.owned, Owned::default());
}

/// Another's node cannot be made to take more than its owner may have.
#[test]
fn a_guest_cannot_use_up_another_s_memory_beyond_its_quota() {
    let mut s = Store::with(Limits {
        memory: 20_000,
        ..Limits::default()
    });
    let victim = s.guest(1);
    let g = s.guest(2);
    for n in 0..40 {
        let path = format!("n{n}");
        s.write(victim, 0, &path, "").unwrap();
        s.set_perms(victim, 0, &path, "b1").unwrap();
    }
    let mut results =
        (0..40).map(|n| s.write(g, 0, &format!("/local/domain/1/n{n}"), &"v".repeat(1900)));
    assert!(results.any(|result| result == Err(Errno::ENOMEM)));
    assert!(memory(&s, 1) <= 20_000);
    s.rm(victim, 0, "n0").unwrap();
}
