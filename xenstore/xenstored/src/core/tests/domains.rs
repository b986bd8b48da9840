//! Domains: introduced, released, dead, and reborn with the same number.

use xen_sys::Errno;
use xs_wire::Request;

use super::*;

#[test]
fn who_may_ask() {
    let mut s = Store::new();
    let g = s.guest(1);
    let dom = DomId(1);
    for request in [
        Request::Introduce(dom, 1, Port(1)),
        Request::Release(dom),
        Request::Resume(dom),
        Request::IsDomainIntroduced(dom),
        Request::SetTarget(dom, dom),
        Request::Control(vec![b"check"]),
    ] {
        assert_eq!(s.ask(g, 0, request).map(drop), Err(Errno::EACCES));
    }
    assert_eq!(
        s.ok(g, 0, Request::GetDomainPath(DomId(9))),
        b"/local/domain/9\0"
    );
}

#[test]
fn introducing() {
    use Errno as E;
    let mut s = Store::new();
    s.world.domains.insert(1, DomainState::Running);
    for (dom, port, result) in [
        (9, 1, Err(E::ENOENT)),
        (0, 1, Err(E::EINVAL)),
        (1, 0, Err(E::EINVAL)),
        (0x7ff0, 1, Err(E::EINVAL)),
        (1, 5, Ok(())),
    ] {
        let request = Request::Introduce(DomId(dom), 1, Port(port));
        assert_eq!(s.ask(D0, 0, request).map(drop), result, "{dom} {port}");
    }
    for (dom, introduced) in [(0, "T\0"), (1, "T\0"), (2, "F\0")] {
        let answer = s.ok(D0, 0, Request::IsDomainIntroduced(DomId(dom)));
        assert_eq!(answer, introduced.as_bytes());
    }
    s.world.domains.insert(2, DomainState::Running);
    s.world.refuse_connect = true;
    s.watch(D0, "@introduceDomain", "t").unwrap();
    s.events(D0);
    let request = Request::Introduce(DomId(2), 1, Port(1));
    assert_eq!(s.ask(D0, 0, request).map(drop), Err(E::EINVAL));
    assert_eq!(s.events(D0), [""; 0]);
    assert_eq!(
        s.ask(D0, 0, Request::Release(DomId(2))).map(drop),
        Err(E::ENOENT)
    );
    assert_eq!(
        s.ask(D0, 0, Request::Resume(DomId(2))).map(drop),
        Err(E::ENOENT)
    );
    // Again, with another port: the connection begins afresh.
    s.world.refuse_connect = false;
    let conn = ConnId(*s.world.connected.keys().next().unwrap());
    s.watch(conn, "x", "t").unwrap();
    s.ok(D0, 0, Request::Introduce(DomId(1), 1, Port(6)));
    assert_eq!(s.world.connected[&conn.0], (1, 6));
    assert_eq!(s.core.conns[&conn].watch_count, 0);
}

#[test]
fn shutdown_and_death_are_told_once() {
    let mut s = Store::new();
    s.guest(1);
    s.guest(2);
    s.watch(D0, "@releaseDomain", "t").unwrap();
    s.events(D0);
    let mut step = |states: &[(u16, DomainState)], told: usize, connected: usize| {
        for (dom, state) in states {
            s.world.domains.insert(*dom, *state);
        }
        s.core.domains_changed(&mut s.world);
        assert_eq!(s.events(D0).len(), told, "{states:?}");
        assert_eq!(s.world.connected.len(), connected, "{states:?}");
    };
    use DomainState::*;
    step(&[], 0, 2);
    step(&[(1, Shutdown)], 1, 2);
    step(&[], 0, 2);
    step(&[(1, Running)], 0, 2);
    step(&[(1, Shutdown)], 1, 2);
    step(&[(1, Dying), (2, Dying)], 1, 0);
    step(&[], 0, 0);
    // A domain that was never introduced is nobody's business.
    s.world.domains.insert(3, Running);
    s.put("/x", "", "n3");
    s.world.domains.remove(&3);
    s.core.domains_changed(&mut s.world);
    assert_eq!(s.events(D0).len(), 0);
    assert!(s.read(D0, 0, "/x").is_err(), "but its nodes go");
}

#[test]
fn what_the_dead_leave() {
    let mut s = Store::new();
    let g = s.guest(1);
    let other = s.guest(2);
    s.write(g, 0, "data/x", "").unwrap();
    s.put("/open", "", "b0");
    s.write(g, 0, "/open/theirs/below", "").unwrap();
    s.put("/shared", "v", "n2 b1");
    s.put("/kept", "v", "n0 r1 r2");
    s.watch(g, "data", "t").unwrap();
    let tx = s.start(g);
    s.write(g, tx, "late", "").unwrap();
    s.watch(D0, "/open", "w").unwrap();
    s.watch(D0, "@releaseDomain", "r").unwrap();
    s.events(D0);
    s.world.domains.remove(&1);
    s.core.domains_changed(&mut s.world);
    assert_eq!(s.events(D0), ["/open/theirs w", "@releaseDomain r"]);
    assert_eq!(s.list(D0, 0, "/local/domain").as_deref(), Ok("2"));
    assert_eq!(
        s.list(D0, 0, "/open").as_deref(),
        Ok(""),
        "outside its home as well (XSA-419)"
    );
    assert_eq!(
        s.perms(D0, "/shared").as_deref(),
        Ok("n2"),
        "its rights are gone"
    );
    assert_eq!(s.perms(D0, "/kept").as_deref(), Ok("n0 r2"));
    s.check();
    // The next domain of that number inherits nothing (XSA-322) and starts at zero (XSA-483).
    let again = s.guest(1);
    assert_ne!(again, g);
    assert_eq!(s.read(again, 0, "/shared"), Err(Errno::EACCES));
    assert_eq!(s.read(again, 0, "/kept"), Err(Errno::EACCES));
    assert_eq!(s.read(other, 0, "/kept").as_deref(), Ok("v"));
    assert_eq!(
        s.core.owned.of_domain(s.core.conns[&again].actor.who).nodes,
        1
    );
    s.check();
}

#[test]
fn a_broken_connection_still_has_its_release_told() {
    let mut s = Store::new();
    let g = s.guest(1);
    s.watch(g, "x", "t").unwrap();
    s.watch(D0, "@releaseDomain", "t").unwrap();
    s.events(D0);
    s.core.detach(g); // it misbehaved (XSA-325)
    s.world.connected.clear();
    assert_eq!(s.core.watches.paths(), 1);
    assert_eq!(s.ok(D0, 0, Request::IsDomainIntroduced(DomId(1))), b"T\0");
    s.write(D0, 0, "/local/domain/1/x", "").unwrap();
    s.world.domains.remove(&1);
    s.core.domains_changed(&mut s.world);
    assert_eq!(s.events(D0), ["@releaseDomain t"]);
    assert_eq!(s.list(D0, 0, "/local/domain").as_deref(), Ok(""));
}

#[test]
fn a_thousand_lives_leave_nothing() {
    let mut s = Store::new();
    s.put("/b0", "", "b0");
    let nodes = s.core.tree().count();
    for n in 0..1000 {
        let dom = n % 7 + 1;
        let g = s.guest(dom);
        s.write(g, 0, "a/b/c", "x").unwrap();
        s.write(g, 0, &format!("/b0/{dom}"), "x").unwrap();
        s.watch(g, "a", "t").unwrap();
        let tx = s.start(g);
        s.write(g, tx, "y", "x").unwrap();
        s.world.domains.remove(&dom);
        s.core.domains_changed(&mut s.world);
        s.world.sent.clear();
    }
    s.rm(D0, 0, "/local").unwrap();
    s.check();
    assert_eq!(s.core.tree().count(), nodes);
    assert_eq!(s.core.owned, Owned::default());
    assert_eq!(
        (
            s.core.domains.len(),
            s.core.conns.len(),
            s.core.watches.paths()
        ),
        (0, 2, 0)
    );
}

/// Dead and reborn before anybody looked: another domain all the same, by whatever means it is first heard of.
#[test]
fn reborn_between_two_looks() {
    for way in ["virq", "introduce", "permission", "unknown"] {
        let mut s = Store::new();
        s.world.identities.insert(1, 11);
        let old = s.guest(1);
        s.write(old, 0, "theirs", "x").unwrap();
        s.put("/kept", "v", "n0 r1");
        s.watch(old, "theirs", "t").unwrap();
        s.watch(D0, "@releaseDomain", "r").unwrap();
        s.watch(D0, "@introduceDomain", "i").unwrap();
        s.events(D0);
        s.world.identities.insert(1, 12);
        let expected: &[&str] = match way {
            "virq" => {
                s.core.domains_changed(&mut s.world);
                &["@releaseDomain r"]
            }
            "introduce" => {
                s.ok(D0, 0, Request::Introduce(DomId(1), 7, Port(9)));
                &["@releaseDomain r", "@introduceDomain i"]
            }
            "permission" => {
                s.write(D0, 0, "/new", "").unwrap();
                s.set_perms(D0, 0, "/new", "n1").unwrap();
                &["@releaseDomain r"]
            }
            _ => {
                // A world that cannot tell: it is taken for the same.
                s.world.identities.insert(1, 0);
                s.core.domains_changed(&mut s.world);
                s.ok(D0, 0, Request::Introduce(DomId(1), 7, Port(9)));
                &[]
            }
        };
        assert_eq!(s.events(D0), expected, "{way}");
        if way == "unknown" {
            assert_eq!(s.read(old, 0, "theirs").as_deref(), Ok("x"));
            continue;
        }
        assert_eq!(s.read(D0, 0, "/local/domain/1/theirs"), Err(Errno::ENOENT));
        assert_eq!(s.core.watches.on("/local/domain/1/theirs").count(), 0);
        let conns = s.world.connected.clone();
        assert!(!conns.contains_key(&old.0), "{way}: the old ring is let go");
        let new = match way {
            "introduce" => ConnId(*conns.keys().next().unwrap()),
            _ => s.guest(1),
        };
        assert_eq!(s.read(new, 0, "/kept"), Err(Errno::EACCES), "{way}");
        if way == "permission" {
            assert_eq!(s.perms(D0, "/new").as_deref(), Ok("n1"));
            assert_eq!(s.read(new, 0, "/new").as_deref(), Ok(""));
        }
        s.check();
    }
}
