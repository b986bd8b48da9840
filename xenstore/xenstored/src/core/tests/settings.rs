//! Quotas and features as dom0 sets them, and watches on single domains.

use xen_sys::Errno;
use xs_wire::Request;

use super::*;

fn text(s: &mut Store, request: Request<'_>) -> Result<String, Errno> {
    let body = s.ask(D0, 0, request)?;
    let body = body.strip_suffix(b"\0").expect("a terminated answer");
    Ok(String::from_utf8(body.to_vec()).unwrap())
}

#[test]
fn quotas_are_set_for_all_and_for_one() {
    let mut s = Store::new();
    let g = s.guest(1);
    let other = s.guest(2);
    let names = text(&mut s, Request::GetQuota(None, None)).unwrap();
    for name in names.split(' ') {
        let known = text(&mut s, Request::GetQuota(None, Some(name.as_bytes()))).unwrap();
        let default = Limits::default().quota(name).unwrap();
        assert_eq!(known, default.to_string(), "{name}");
    }
    let (one, nine) = (Some(DomId(1)), Some(DomId(9)));
    for (request, result) in [
        (Request::SetQuota(one, b"nodes", 3), Ok("OK")),
        (Request::SetQuota(None, b"watches", 1), Ok("OK")),
        (Request::SetQuota(None, b"nodes", 5), Ok("OK")),
        (Request::SetQuota(one, b"transactions", 1), Ok("OK")),
        (Request::SetQuota(None, b"memories", 5), Err(Errno::EINVAL)),
        (Request::SetQuota(nine, b"nodes", 5), Err(Errno::ENOENT)),
        (
            Request::SetQuota(Some(DomId(0)), b"nodes", 5),
            Err(Errno::EINVAL),
        ),
        (Request::GetQuota(None, Some(b"x")), Err(Errno::EINVAL)),
        (Request::GetQuota(None, Some(b"\xff")), Err(Errno::EINVAL)),
        (Request::GetQuota(nine, Some(b"nodes")), Err(Errno::ENOENT)),
        (Request::GetQuota(one, Some(b"nodes")), Ok("3")),
        (Request::GetQuota(one, Some(b"watches")), Ok("1")),
        (Request::GetQuota(Some(DomId(2)), Some(b"nodes")), Ok("5")),
        (Request::GetQuota(None, Some(b"nodes")), Ok("5")),
    ] {
        let shown = format!("{request:?}");
        let got = text(&mut s, request);
        assert_eq!(got.as_deref(), result.as_ref().copied(), "{shown}");
    }
    // What they have of is one node each, their homes.
    for (conn, most) in [(g, 2), (other, 4)] {
        for n in 0..most {
            s.write(conn, 0, &format!("{n}"), "").unwrap();
        }
        assert_eq!(s.write(conn, 0, "more", ""), Err(Errno::ENOSPC));
        let tx = s.start(conn);
        assert_eq!(s.write(conn, tx, "more", ""), Err(Errno::ENOSPC));
        s.watch(conn, "x", "t").unwrap();
        assert_eq!(s.watch(conn, "y", "t"), Err(Errno::ENOSPC));
        let second = s.ask(conn, 0, Request::TransactionStart).map(drop);
        assert_eq!(second.is_err(), conn == g);
    }
    s.write(D0, 0, "/tool/x", "dom0 has no quota").unwrap();
    // The next domain of that number has nobody's own quotas.
    s.world.domains.remove(&1);
    s.core.domains_changed(&mut s.world);
    s.guest(1);
    let nodes = text(&mut s, Request::GetQuota(one, Some(b"nodes")));
    assert_eq!(nodes.as_deref(), Ok("5"));
}

#[test]
fn features() {
    let mut s = Store::new();
    let g = s.guest(1);
    s.world.domains.insert(2, DomainState::Running);
    let dom = |n| DomId(n);
    for (request, result) in [
        (Request::GetFeature(None), Ok("15")),
        (Request::GetFeature(Some(dom(0))), Ok("15")),
        (Request::GetFeature(Some(dom(1))), Ok("15")),
        (Request::GetFeature(Some(dom(2))), Ok("15")),
        (Request::GetFeature(Some(dom(9))), Err(Errno::ENOENT)),
        (Request::SetFeature(dom(1), 2), Err(Errno::EBUSY)), // introduced
        (Request::SetFeature(dom(2), 16), Err(Errno::EINVAL)),
        (Request::SetFeature(dom(0), 2), Err(Errno::EINVAL)),
        (Request::SetFeature(dom(9), 2), Err(Errno::ENOENT)),
        (Request::SetFeature(dom(2), 2), Ok("OK")),
        (Request::GetFeature(Some(dom(2))), Ok("2")),
    ] {
        let shown = format!("{request:?}");
        let got = text(&mut s, request);
        assert_eq!(got.as_deref(), result.as_ref().copied(), "{shown}");
    }
    let later = s.guest(2);
    assert_eq!([g.0, later.0].map(|conn| s.world.features[&conn]), [15, 2]);
    // A guest may ask for its own, and has no more than these.
    let mine = Request::GetFeature(None);
    assert_eq!(s.ok(later, 0, mine), b"2\0");
    for (conn, depth, any) in [(g, Ok(()), "n1 r32757"), (later, Err(Errno::EINVAL), "n2")] {
        let deep = Request::Watch(b"x", b"t", Some(1));
        assert_eq!(s.ask(conn, 0, deep).map(drop), depth);
        s.write(conn, 0, "x", "").unwrap();
        let dom = any.as_bytes()[1] as char;
        s.set_perms(conn, 0, "x", &format!("n{dom} r32757"))
            .unwrap();
        assert_eq!(s.perms(conn, "x").as_deref(), Ok(any));
    }
    assert_eq!(s.read(later, 0, "/local/domain/1/x").as_deref(), Ok(""));
    assert_eq!(s.read(g, 0, "/local/domain/2/x"), Err(Errno::EACCES));
    assert_eq!(s.set_perms(D0, 0, "/tool", "n32757"), Err(Errno::EINVAL));
}

#[test]
fn guests_may_not() {
    let mut s = Store::new();
    let g = s.guest(1);
    for request in [
        Request::GetFeature(Some(DomId(1))),
        Request::SetFeature(DomId(1), 0),
        Request::GetQuota(None, None),
        Request::SetQuota(Some(DomId(1)), b"nodes", 9999),
    ] {
        assert_eq!(s.ask(g, 0, request).map(drop), Err(Errno::EACCES));
    }
}

#[test]
fn watches_on_domains() {
    let mut s = Store::new();
    let g = s.guest(7);
    for (path, depth) in [
        ("@releaseDomain", None),
        ("@releaseDomain/1", None),
        ("@introduceDomain/2", None),
        ("/", Some(1)),
    ] {
        s.ok(D0, 0, Request::Watch(path.as_bytes(), b"t", depth));
    }
    for (token, depth) in [(b"0", None), (b"1", Some(1))] {
        s.ok(D0B, 0, Request::Watch(b"@releaseDomain", token, depth));
    }
    s.watch(g, "@releaseDomain/1", "g").unwrap();
    s.guest(1);
    s.world.domains.insert(2, DomainState::Running);
    s.ok(D0, 0, Request::Introduce(DomId(2), 1, Port(1)));
    assert_eq!(s.events(D0), ["@introduceDomain t", "@introduceDomain/2 t"]);
    let all = ["@releaseDomain t", "@releaseDomain/1 t"];
    // Shut down, then released, then dead together.
    s.events(D0B);
    s.world.domains.insert(1, DomainState::Shutdown);
    s.core.domains_changed(&mut s.world);
    assert_eq!(s.events(D0), all);
    assert_eq!(s.events(D0B), ["@releaseDomain 0", "@releaseDomain/1 1"]);
    s.ok(D0, 0, Request::Release(DomId(1)));
    assert_eq!(s.events(D0), all);
    s.guest(1);
    s.guest(3);
    s.world.domains.remove(&1);
    s.world.domains.remove(&3);
    s.core.domains_changed(&mut s.world);
    let mut events = s.events(D0);
    events.retain(|event| event.starts_with('@'));
    assert_eq!(events, all);
    assert_eq!(
        s.events(D0B),
        [
            "@releaseDomain 0",
            "@releaseDomain/1 1",
            "@releaseDomain/3 1"
        ]
    );
    assert!(s.events(g).iter().all(|e| e == "@releaseDomain/1 g"));
    assert_eq!(s.events(g), [""; 0], "it may not read @releaseDomain");
}

/// A guest may be told of one domain and of no other.
#[test]
fn permissions_of_a_single_domain_s_end() {
    let mut s = Store::new();
    let g = s.guest(7);
    s.guest(1);
    s.guest(2);
    let all = "@releaseDomain";
    let one = "@releaseDomain/1";
    assert_eq!(s.perms(D0, one).as_deref(), Ok("n0"), "as for all");
    s.set_perms(D0, 0, one, "n0 r7").unwrap();
    s.set_perms(D0, 0, "@introduceDomain/1", "n0 b2").unwrap();
    for (path, list) in [
        (one, Ok("n0 r7")),
        (all, Ok("n0")),
        ("@releaseDomain/2", Ok("n0")),
        ("@introduceDomain/1", Ok("n0 b2")),
        ("@introduceDomain", Ok("n0")),
        ("@releaseDomain/0", Ok("n0")),
        ("@releaseDomain/9", Err(Errno::ENOENT)),
        ("@releaseDomain/01", Err(Errno::EINVAL)),
        ("@releaseDomain/", Err(Errno::EINVAL)),
        ("@releaseDomainx", Err(Errno::EINVAL)),
        ("@other", Err(Errno::EINVAL)),
    ] {
        assert_eq!(s.perms(D0, path).as_deref(), list.as_deref(), "{path}");
        if list.is_err() {
            assert!(s.set_perms(D0, 0, path, "n0").is_err());
        }
    }
    assert_eq!(s.set_perms(g, 0, one, "n7"), Err(Errno::EACCES));
    assert_eq!(s.perms(g, one), Err(Errno::EACCES));
    for path in [all, one, "@releaseDomain/2"] {
        s.watch(g, path, "t").unwrap();
    }
    s.ok(g, 0, Request::Watch(all.as_bytes(), b"deep", Some(1)));
    s.events(g);
    let told = ["@releaseDomain/1 t", "@releaseDomain/1 deep"];
    for (dom, state, told) in [
        (1, DomainState::Shutdown, &told[..]),
        (2, DomainState::Shutdown, &[]),
        (2, DomainState::Dying, &[]),
        (1, DomainState::Dying, &told[..]),
    ] {
        s.world.domains.insert(dom, state);
        s.core.domains_changed(&mut s.world);
        assert_eq!(s.events(g), told, "{dom} {state:?}");
    }
    // The next of that number is not its business, by RELEASE neither.
    s.guest(1);
    s.ok(D0, 0, Request::Release(DomId(1)));
    assert_eq!(s.events(g), [""; 0]);
    s.guest(1);
    s.set_perms(D0, 0, one, "n0 r7").unwrap();
    s.ok(D0, 0, Request::Release(DomId(1)));
    assert_eq!(s.events(g), told);
    assert!(s.core.departed.is_empty());
}
