//! Who may do what: rows for C xenstored's rules.

use xen_sys::Errno;
use xs_wire::Request;

use super::*;

/// dom0's and three guests' view of a tree with all kinds of nodes.
fn store() -> (Store, [ConnId; 3]) {
    let mut s = Store::new();
    let guests = [s.guest(1), s.guest(2), s.guest(3)];
    for (path, perms) in [
        ("/n0", "n0"),
        ("/n0/r1", "n0 r1"),
        ("/r0", "r0"),
        ("/b0", "b0"),
        ("/n1", "n1 r2 w3"),
        ("/n1/n0", "n0"),
        ("/w0r1", "w0 r1"),
    ] {
        s.put(path, "v", perms);
    }
    (s, guests)
}

#[test]
fn reading() {
    use Errno as E;
    let (mut s, [g1, g2, g3]) = store();
    for (conn, path, result) in [
        (D0, "/n0", Ok(())),
        (D0, "/n1", Ok(())),
        (D0, "/nothing", Err(E::ENOENT)),
        (g1, "/", Err(E::EACCES)),
        (g1, "/n0", Err(E::EACCES)),
        (g1, "/n0/r1", Ok(())),
        (g1, "/n0/nothing", Err(E::EACCES)), // nobody learns what is in a foreign directory
        (g1, "/n0/r1/nothing", Err(E::ENOENT)),
        (g1, "/nothing", Err(E::EACCES)),
        (g2, "/n0/r1", Err(E::EACCES)),
        (g2, "/r0", Ok(())),
        (g2, "/r0/nothing", Err(E::ENOENT)),
        (g1, "/n1", Ok(())),
        (g2, "/n1", Ok(())),
        (g3, "/n1", Err(E::EACCES)),
        (g1, "/n1/n0", Err(E::EACCES)), // owning the directory gives no right on what is in it
        (g1, "/w0r1", Ok(())),
        (g2, "/w0r1", Err(E::EACCES)),
        (g1, "nothing", Err(E::ENOENT)),
        (g1, "/local/domain/1", Ok(())),
        (g1, "/local/domain/2", Err(E::EACCES)),
        (g1, "@releaseDomain", Err(E::EINVAL)),
        (g1, "/local/domain/", Err(E::EINVAL)), // XSA-481
    ] {
        let bytes = path.as_bytes();
        assert_eq!(
            s.read(conn, 0, path).map(drop),
            result,
            "{conn:?} READ {path}"
        );
        for request in [Request::Directory(bytes), Request::DirectoryPart(bytes, 0)] {
            assert_eq!(
                s.ask(conn, 0, request).map(drop),
                result,
                "{conn:?} DIRECTORY {path}"
            );
        }
        if !path.starts_with('@') {
            let got = s.ask(conn, 0, Request::GetPerms(bytes)).map(drop);
            assert_eq!(got, result, "{conn:?} GET_PERMS {path}");
        }
    }
}

#[test]
fn writing() {
    use Errno as E;
    for (dom, path, result) in [
        (0, "/n1", Ok(())),
        (1, "/n0", Err(E::EACCES)),
        (1, "/n0/new", Err(E::EACCES)),
        (1, "/n0/r1", Err(E::EACCES)),
        (1, "/n0/r1/new", Err(E::EACCES)),
        (1, "/b0", Ok(())),
        (1, "/b0/x/y/z", Ok(())),
        (2, "/n1", Err(E::EACCES)),
        (2, "/n1/new", Err(E::EACCES)),
        (3, "/n1", Ok(())),
        (3, "/n1/new", Ok(())),
        (1, "/n1/n0", Err(E::EACCES)),
        (1, "/n1/new", Ok(())),
        (2, "/w0r1", Ok(())),
        (1, "/w0r1", Err(E::EACCES)),
        (1, "data/x", Ok(())),
        (1, "/local/domain/2/x", Err(E::EACCES)),
        (1, "/", Err(E::EACCES)),
    ] {
        for mkdir in [false, true] {
            let (mut s, guests) = store();
            let conn = if dom == 0 { D0 } else { guests[dom - 1] };
            let bytes = path.as_bytes();
            let request = if mkdir {
                Request::Mkdir(bytes)
            } else {
                Request::Write(bytes, b"w")
            };
            assert_eq!(
                s.ask(conn, 0, request).map(drop),
                result,
                "{dom} {path} mkdir={mkdir}"
            );
            s.check();
        }
    }
}

#[test]
fn owners() {
    let (mut s, [g1, g2, g3]) = store();
    // A guest owns what it makes, everyone else's rights are inherited.
    s.write(g1, 0, "/b0/x/y", "1").unwrap();
    assert_eq!(s.perms(D0, "/b0/x").unwrap(), "b1");
    assert_eq!(s.perms(D0, "/b0/x/y").unwrap(), "b1");
    s.write(g3, 0, "/n1/new", "1").unwrap();
    assert_eq!(s.perms(D0, "/n1/new").unwrap(), "n3 r2 w3");
    assert_eq!(s.read(g1, 0, "/n1/new"), Err(Errno::EACCES));
    // What dom0 makes in a guest's directory is the guest's.
    s.write(D0, 0, "/local/domain/2/a", "1").unwrap();
    assert_eq!(s.perms(g2, "a").unwrap(), "n2");
    s.check();
}

#[test]
fn setting_permissions() {
    use Errno as E;
    let (mut s, [g1, g2, g3]) = store();
    for (conn, path, list, result) in [
        (g1, "/n1", "r1 w2", Ok(())),
        (g1, "/n1", "r2", Err(E::EPERM)), // giving a node away
        (g2, "/n1", "n2", Err(E::EACCES)),
        (g3, "/b0", "n3", Err(E::EACCES)), // writing is not owning
        (g1, "/n1", "n1 r77", Err(E::ENOENT)), // no such domain
        (D0, "/n1", "n77", Err(E::ENOENT)),
        (g1, "/n1", "n1 r2 r3 r0 r1", Ok(())),
        (g1, "/n1", "n1 r2 r3 r0 r1 r1", Err(E::ENOSPC)),
        (D0, "/n1", "n2 r1 r1 r1 r1 r1 r1", Ok(())),
        (D0, "/nothing", "n0", Err(E::ENOENT)),
        (g1, "nothing", "n1", Err(E::ENOENT)),
        (g1, "/", "n1", Err(E::EACCES)), // XSA-353
        (g1, "@releaseDomain", "n1", Err(E::EACCES)),
        (D0, "@releaseDomain", "n0 r1", Ok(())),
        (D0, "@introduceDomain", "r0", Ok(())),
        (D0, "@nothing", "n0", Err(E::EINVAL)),
    ] {
        assert_eq!(
            s.set_perms(conn, 0, path, list),
            result,
            "{conn:?} {path} {list}"
        );
        s.check();
    }
    assert_eq!(s.perms(D0, "/n1").unwrap(), "n2 r1 r1 r1 r1 r1 r1");
    assert_eq!(s.perms(D0, "@releaseDomain").unwrap(), "n0 r1");
    assert_eq!(s.perms(g1, "@releaseDomain"), Err(E::EACCES));
}

#[test]
fn removing() {
    use Errno as E;
    let (mut s, [g1, g2, _]) = store();
    s.put("/n0/own", "", "n1");
    s.write(D0, 0, "/n0/own/x/y", "").unwrap();
    for (conn, path, result) in [
        (D0, "/", Err(E::EINVAL)),
        (g1, "/", Err(E::EACCES)),
        (D0, "/n0/nothing", Ok(())), // absent, but its parent is there
        (D0, "/n0/nothing/below", Err(E::ENOENT)),
        (g1, "/n0", Err(E::EACCES)),
        (g1, "/n0/nothing", Err(E::EACCES)),
        (g2, "/n0/own", Err(E::EACCES)),
        (g1, "/n0/own", Ok(())), // its own node, under a directory that it cannot even read
        (g1, "/n0/own", Err(E::EACCES)),
        (g1, "nothing", Ok(())),
        (g1, "nothing/below", Err(E::ENOENT)),
    ] {
        assert_eq!(s.rm(conn, 0, path), result, "{conn:?} {path}");
        s.check();
    }
    assert_eq!(s.list(D0, 0, "/n0").unwrap(), "r1");
}

#[test]
fn a_target_s_rights() {
    let (mut s, [g1, g2, g3]) = store();
    let set = |dom, target| Request::SetTarget(DomId(dom), DomId(target));
    assert_eq!(s.ask(g1, 0, set(3, 1)).map(drop), Err(Errno::EACCES));
    assert_eq!(s.ask(D0, 0, set(3, 9)).map(drop), Err(Errno::ENOENT));
    assert_eq!(s.ask(D0, 0, set(3, 0)).map(drop), Err(Errno::EINVAL));
    assert_eq!(s.read(g3, 0, "/local/domain/1"), Err(Errno::EACCES));
    s.ok(D0, 0, set(3, 1));
    assert_eq!(s.read(g3, 0, "/local/domain/1").as_deref(), Ok(""));
    assert_eq!(s.read(g2, 0, "/local/domain/1"), Err(Errno::EACCES));
    s.world.domains.remove(&1);
    s.core.domains_changed(&mut s.world);
    assert_eq!(s.core.conns[&g3].actor.target, None);
}

#[test]
fn quotas() {
    let limits = Limits {
        nodes: 5,
        node_size: 100,
        watches: 2,
        transactions: 2,
        ..Limits::default()
    };
    let mut s = Store::with(limits);
    let g = s.guest(1); // owns its home
    let full = Err(Errno::ENOSPC);
    for (path, result) in [
        ("a", Ok(())),
        ("b/c/d/e", full), // would be six, and nothing of it is made
        ("b/c/d", Ok(())),
        ("f", full),
        ("a", Ok(())),
    ] {
        assert_eq!(s.write(g, 0, path, ""), result, "{path}");
        s.check();
    }
    assert_eq!(s.list(g, 0, "/local/domain/1").unwrap(), "a b");
    s.write(D0, 0, "/local/domain/1/x", "").unwrap();
    s.rm(g, 0, "b").unwrap();
    s.write(g, 0, "f", "").unwrap();
    // 24 + 8 + 67 is less than 100.
    assert_eq!(s.write(g, 0, "a", &"v".repeat(67)), Ok(()));
    assert_eq!(s.write(g, 0, "a", &"v".repeat(68)), full);
    assert_eq!(
        s.write(D0, 0, "/local/domain/1/a", &"v".repeat(3000)),
        Ok(())
    );
    // Names of children count: the home has "a", "f" and "x".
    s.rm(g, 0, "f").unwrap();
    assert_eq!(s.write(g, 0, &"n".repeat(63), ""), full);
    assert_eq!(s.write(g, 0, &"n".repeat(62), ""), Ok(()));
    for (path, result) in [("p", Ok(())), ("q", Ok(())), ("r", full)] {
        assert_eq!(s.watch(g, path, "t"), result);
    }
    s.ok(g, 0, Request::Unwatch(b"p", b"t"));
    assert_eq!(s.watch(g, "r", "t"), Ok(()));
    let tx = [s.start(g), s.start(g)];
    assert_eq!(s.ask(g, 0, Request::TransactionStart).map(drop), full);
    s.commit(g, tx[0]).unwrap();
    s.start(g);
    for n in 0..300 {
        s.watch(D0, &format!("/w{n}"), "t").unwrap();
        s.start(D0);
    }
}
