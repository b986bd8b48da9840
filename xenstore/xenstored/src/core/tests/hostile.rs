//! The hostile catalogue: one test for each attack, by the number of its advisory (XSA), on the core; what needs a
//! ring is in `tests/rings.rs`.

use xen_sys::Errno as E;
use xs_wire::Request;

use super::*;

fn die(s: &mut Store, dom: u16) {
    s.world.domains.remove(&dom);
    s.core.domains_changed(&mut s.world);
}

fn memory(s: &Store, dom: u16) -> u32 {
    let usage = s.core.usage(&s.world, DomId(dom));
    usage.map_or(0, |usage| usage.get("memory"))
}

/// Watches and special watches tell nothing that may not be read; a transaction's number on WATCH means nothing; what could
/// not be made is not counted.
#[test]
fn xsa_115_watches_leak() {
    let mut s = Store::new();
    let (g, other) = (s.guest(1), s.guest(2));
    s.guest(3);
    s.put("/secret", "", "n0 r2");
    for path in ["/", "/secret", "@releaseDomain", "@introduceDomain"] {
        s.watch(g, path, "t").unwrap();
        s.watch(other, path, "t").unwrap();
    }
    s.ok(g, 12_345, Request::Watch(b"/secret/x", b"t", None));
    s.events(g);
    s.events(other);
    s.write(D0, 0, "/secret/below", "").unwrap();
    s.write(D0, 0, "/secret", "x").unwrap();
    s.rm(D0, 0, "/secret").unwrap();
    die(&mut s, 3);
    assert_eq!(s.events(g), [""; 0]);
    assert!(s.events(other).contains(&"/secret/below t".to_owned()));
    let before = memory(&s, 1);
    assert_eq!(s.write(g, 0, "/forbidden/a/b", ""), Err(E::EACCES));
    assert_eq!(s.write(g, 0, "x", &"v".repeat(4000)), Err(E::ENOSPC));
    assert_eq!(memory(&s, 1), before);
    s.check();
}

#[test]
fn xsa_206_a_storm_of_writes() {
    let mut s = Store::new();
    let g = s.guest(1);
    let tx = s.start(D0);
    s.read(D0, tx, "/tool").unwrap();
    s.write(D0, tx, "/mine", "1").unwrap();
    for n in 0..20_000 {
        s.write(g, 0, "x", &n.to_string()).unwrap();
    }
    // The victim's transaction is not starved by what it does not depend on.
    assert_eq!(s.commit(D0, tx), Ok(()));
}

#[test]
fn xsa_233_425_a_stub_domain_goes_before_or_after_its_target() {
    for order in [[1, 2], [2, 1]] {
        let mut s = Store::new();
        let (stub, _target) = (s.guest(1), s.guest(2));
        s.ok(D0, 0, Request::SetTarget(DomId(1), DomId(2)));
        s.write(stub, 0, "/local/domain/2/device", "x").unwrap();
        s.watch(stub, "/local/domain/2", "t").unwrap();
        let tx = s.start(stub);
        s.write(stub, tx, "/local/domain/2/y", "").unwrap();
        for dom in order {
            die(&mut s, dom);
            if dom == 2 && order[0] == 2 {
                // The next of that number is not its target.
                s.guest(2);
                assert_eq!(s.write(stub, 0, "/local/domain/2/z", ""), Err(E::EACCES));
            }
        }
        die(&mut s, 2);
        s.check();
        assert_eq!(s.core.owned, Owned::default());
    }
}

#[test]
fn xsa_272_the_quota_comes_before_the_effect() {
    let limits = Limits {
        nodes: 3,
        ..Limits::default()
    };
    let mut s = Store::with(limits);
    let g = s.guest(1);
    s.watch(D0, "/local/domain/1", "t").unwrap();
    s.events(D0);
    assert_eq!(s.write(g, 0, "a/b/c", "x"), Err(E::ENOSPC));
    assert_eq!(s.ask(g, 0, Request::Mkdir(b"a/b/c")).err(), Some(E::ENOSPC));
    assert_eq!(
        s.list(g, 0, "/local/domain/1").as_deref(),
        Ok(""),
        "not even the parents"
    );
    assert_eq!(s.events(D0), [""; 0]);
    s.check();
}

#[test]
fn xsa_322_417_419_483_a_number_is_used_again() {
    let mut s = Store::new();
    s.put("/b0", "", "b0");
    let g = s.guest(1);
    s.put("/allowed", "secret", "n0 r1");
    s.put("/given", "", "n1");
    for n in 0..300 {
        s.write(g, 0, &format!("/b0/{n}"), "").unwrap();
    }
    die(&mut s, 1);
    assert_eq!(s.list(D0, 0, "/b0").as_deref(), Ok(""), "wherever they are");
    assert_eq!(s.read(D0, 0, "/given"), Err(E::ENOENT));
    let g = s.guest(1);
    assert_eq!(s.read(g, 0, "/allowed"), Err(E::EACCES));
    for n in 0..300 {
        s.write(g, 0, &format!("/b0/{n}"), "").unwrap();
    }
    s.check();
}

#[test]
fn xsa_323_a_long_relative_path() {
    let mut s = Store::new();
    let g = s.guest(1);
    for (len, result) in [
        (2048, Ok(())),
        (2049, Err(E::EINVAL)),
        (3072, Err(E::EINVAL)),
        (4000, Err(E::EINVAL)),
    ] {
        let path = "a/".repeat(len / 2) + if len % 2 == 1 { "a" } else { "" };
        let path = path
            .strip_suffix('/')
            .map_or(path.clone(), |p| format!("{p}b"));
        let got = s.ask(g, 0, Request::Watch(path.as_bytes(), b"t", None));
        assert_eq!(got.map(drop), result, "{len}");
    }
    let absolute = format!("/{}", "a".repeat(3072));
    assert_eq!(s.read(D0, 0, &absolute), Err(E::EINVAL));
}

#[test]
fn xsa_324_a_huge_token() {
    let mut s = Store::new();
    let g = s.guest(1);
    let path = format!("/{}", "p".repeat(2999));
    for len in [1023, 2000, 4000] {
        let token = "t".repeat(len);
        let got = s.raw(g, Op::Watch.code(), 0, format!("x\0{token}\0").as_bytes());
        assert_eq!(got.0, Op::Error, "{len}");
    }
    s.watch(D0, &path, &"t".repeat(1022)).unwrap();
    assert!(s.events(D0)[0].len() + 2 <= 4096);
}

#[test]
fn xsa_325_to_misbehave_then_die() {
    let mut s = Store::new();
    let g = s.guest(1);
    s.watch(D0, "@releaseDomain", "t").unwrap();
    s.events(D0);
    s.core.restart(g); // as the daemon does with a broken ring
    die(&mut s, 1);
    assert_eq!(s.events(D0), ["@releaseDomain t"]);
}

#[test]
fn xsa_326_memory_is_bounded_whatever_is_asked() {
    let mut s = Store::new();
    let g = s.guest(1);
    s.put("/b0", "", "b0");
    let long = "p".repeat(1800);
    let token = "t".repeat(1000);
    for n in 0..400 {
        let _ = s.write(g, 0, &format!("n{n}"), &"v".repeat(1900));
        let _ = s.watch(g, &format!("{long}{n}"), &token);
        if s.core.conns[&g].transactions.len() < 10 {
            let _ = s.ask(g, 0, Request::TransactionStart);
        }
        let open: Vec<u32> = s.core.conns[&g].transactions.keys().copied().collect();
        for tx in open {
            let _ = s.write(g, tx, &format!("/b0/{long}/{n}"), &"v".repeat(1900));
            let _ = s.read(g, tx, &format!("/none/{long}/{n}"));
            let _ = s.rm(g, tx, &format!("n{n}"));
        }
        s.world.sent.clear();
    }
    let most = Limits::default().memory;
    assert!(memory(&s, 1) <= most, "{}", memory(&s, 1));
    assert!(memory(&s, 1) > most / 2, "the attack was one");
    s.check();
    let other = s.guest(2);
    s.write(other, 0, "x", "others go on").unwrap();
}

#[test]
fn xsa_330_512_484_resetting_watches() {
    let mut s = Store::new();
    let g = s.guest(1);
    let before = memory(&s, 1);
    for n in 0..2000 {
        for m in 0..5 {
            s.watch(g, &format!("{n}/{m}"), "t").unwrap();
        }
        let tx = s.start(g);
        // Inside a transaction as well: it is gone with the others.
        s.ok(g, tx, Request::ResetWatches);
        assert_eq!(s.commit(g, tx), Err(E::ENOENT));
        s.world.sent.clear();
        assert_eq!(memory(&s, 1), before);
    }
    assert_eq!(s.core.watches.paths(), 0);
    s.check();
}

#[test]
fn xsa_352_353_giving_away_and_the_root() {
    let mut s = Store::new();
    let (g, _) = (s.guest(1), s.guest(2));
    s.write(g, 0, "x", "").unwrap();
    for list in ["n2", "n0", "b2 b1"] {
        assert_eq!(s.set_perms(g, 0, "x", list), Err(E::EPERM));
    }
    assert_eq!(s.write(g, 0, "/", ""), Err(E::EACCES));
    assert_eq!(s.rm(g, 0, "/"), Err(E::EACCES));
    assert_eq!(s.set_perms(g, 0, "/", "n1"), Err(E::EACCES));
    assert_eq!(s.perms(g, "/"), Err(E::EACCES));
    assert_eq!(s.rm(D0, 0, "/"), Err(E::EINVAL));
}

#[test]
fn xsa_414_415_421_half_made_things() {
    let limits = Limits {
        nodes: 10,
        ..Limits::default()
    };
    let mut s = Store::with(limits);
    let g = s.guest(1);
    for n in 0..100 {
        // Made and removed within a transaction, and one that fails in the middle.
        let tx = s.start(g);
        s.write(g, tx, &format!("a{n}/b/c"), "x").unwrap();
        s.rm(g, tx, &format!("a{n}")).unwrap();
        assert_eq!(s.write(g, tx, "1/2/3/4/5/6/7/8/9/10", ""), Err(E::ENOSPC));
        s.commit(g, tx).unwrap();
        assert_eq!(s.write(g, 0, "1/2/3/4/5/6/7/8/9/10", ""), Err(E::ENOSPC));
    }
    assert_eq!(s.list(g, 0, "/local/domain/1").as_deref(), Ok(""));
    let usage = s.core.usage(&s.world, DomId(1)).unwrap();
    assert_eq!(usage.get("nodes"), 1);
    s.check();
}

#[test]
fn xsa_418_a_deep_tree() {
    let mut s = Store::new();
    let g = s.guest(1);
    let deep = vec!["d"; 990].join("/");
    s.write(g, 0, &deep, "x").unwrap();
    let tx = s.start(g);
    s.read(g, tx, &deep).unwrap();
    s.rm(g, tx, "d").unwrap();
    s.commit(g, tx).unwrap();
    s.write(g, 0, &deep, "x").unwrap();
    die(&mut s, 1);
    s.check();
}

#[test]
fn xsa_440_conflicts_over_and_over() {
    let mut s = Store::new();
    let (g, other) = (s.guest(1), s.guest(2));
    s.put("/b0", "", "b0");
    for n in 0..300 {
        let tx = super::turns::start_at_last(&mut s, g);
        s.list(g, tx, "/b0").unwrap();
        s.write(g, tx, &format!("/b0/{n}"), "").unwrap();
        s.write(other, 0, &format!("/b0/o{n}"), "").unwrap();
        assert_eq!(s.commit(g, tx), Err(E::EAGAIN));
    }
    s.check();
}

#[test]
fn xsa_481_a_path_that_ends_in_a_slash() {
    let mut s = Store::new();
    let g = s.guest(1);
    for path in ["/local/domain/", "//", "/a//b", "a/", ""] {
        for conn in [g, D0] {
            assert_eq!(s.read(conn, 0, path), Err(E::EINVAL), "{path}");
            assert_eq!(s.write(conn, 0, path, ""), Err(E::EINVAL), "{path}");
        }
    }
}

/// Found by running the four: both of two transactions that each read what the other makes were committed.
#[test]
fn write_skew_on_absent_reads() {
    let mut s = Store::new();
    let (a, b) = (s.start(D0), s.start(D0B));
    assert_eq!(s.read(D0, a, "/x/flag"), Err(E::ENOENT));
    assert_eq!(s.read(D0B, b, "/y/flag"), Err(E::ENOENT));
    s.write(D0, a, "/y/flag", "1").unwrap();
    s.write(D0B, b, "/x/flag", "1").unwrap();
    assert_eq!(s.commit(D0, a), Ok(()));
    assert_eq!(s.commit(D0B, b), Err(E::EAGAIN));
}

/// Found by running the four: idle transactions of guests slowed plain writes. Nothing here waits for them: a write
/// is carried out when it comes, whatever is open.
#[test]
fn idle_transactions_hold_up_nobody() {
    let mut s = Store::new();
    for dom in 1..=8 {
        let g = s.guest(dom);
        for _ in 0..9 {
            s.start(g);
        }
    }
    let g = s.guest(9);
    for n in 0..2000 {
        s.write(g, 0, "x", &n.to_string()).unwrap();
    }
    assert!(!s.core.is_waited_for());
}
