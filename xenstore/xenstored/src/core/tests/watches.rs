//! Watches: which events come, with which path, to whom.

use xen_sys::Errno;
use xs_wire::Request;

use super::*;
use crate::core::path::RELEASE_DOMAIN;

#[test]
fn what_fires() {
    let mut s = Store::new();
    for path in ["/", "/a", "/a/b", "/a/b/c", "/ab"] {
        s.watch(D0, path, path).unwrap();
        let first = format!("{path} {path}");
        assert_eq!(s.events(D0), [first], "at once, whether it exists or not");
    }
    // Each event as its path, then the watches that it came to.
    let expect = |s: &mut Store, path: &str, watches: &[&str]| {
        let expected: Vec<_> = watches.iter().map(|w| format!("{path} {w}")).collect();
        assert_eq!(s.events(D0), expected);
    };
    s.write(D0B, 0, "/a/b", "").unwrap();
    expect(&mut s, "/a/b", &["/a/b", "/a", "/"]);
    s.write(D0B, 0, "/a/b/c/d/e", "").unwrap();
    expect(&mut s, "/a/b/c/d/e", &["/a/b/c", "/a/b", "/a", "/"]);
    s.set_perms(D0B, 0, "/ab", "n0").unwrap_err();
    expect(&mut s, "", &[]);
    s.ok(D0B, 0, Request::Mkdir(b"/ab"));
    expect(&mut s, "/ab", &["/ab", "/"]);
    s.ok(D0B, 0, Request::Mkdir(b"/ab"));
    expect(&mut s, "", &[]); // nothing has changed
    s.set_perms(D0B, 0, "/ab", "r0").unwrap();
    expect(&mut s, "/ab", &["/ab", "/"]);
    // A watch below what is removed is told its own path.
    s.rm(D0B, 0, "/a").unwrap();
    let told = ["/a /a", "/a /", "/a/b /a/b", "/a/b/c /a/b/c"];
    assert_eq!(s.events(D0), told);
    s.rm(D0B, 0, "/a").unwrap();
    expect(&mut s, "", &[]);
}

#[test]
fn the_reply_comes_before_the_events() {
    let mut s = Store::new();
    let header = Header {
        op: Op::Watch.code(),
        req_id: 5,
        tx_id: 99,
        len: 0,
    };
    s.core.request(&mut s.world, D0, &header, b"/a\0t\0");
    let header = Header {
        op: Op::Write.code(),
        tx_id: 0,
        ..header
    };
    s.core.request(&mut s.world, D0, &header, b"/a\0v");
    let event = || Sent::Event("/a".into(), "t".into());
    let reply = |op| Sent::Reply(op, b"OK\0".to_vec());
    let expected = [reply(Op::Watch), event(), reply(Op::Write), event()];
    let sent: Vec<_> = s.world.sent.into_iter().map(|(_, sent)| sent).collect();
    assert_eq!(sent, expected);
}

#[test]
fn relative_paths() {
    let mut s = Store::new();
    let g = s.guest(7);
    s.watch(g, "a", "rel").unwrap();
    s.watch(g, "/local/domain/7/a", "abs").unwrap();
    s.watch(g, "/local/domain/7", "home").unwrap();
    s.events(g);
    s.write(D0, 0, "/local/domain/7/a/b", "").unwrap();
    assert_eq!(
        s.events(g),
        [
            "a/b rel",
            "/local/domain/7/a/b abs",
            "/local/domain/7/a/b home"
        ]
    );
    // On the socket a relative path is dom0's.
    s.watch(D0, "x", "t").unwrap();
    s.write(D0, 0, "x", "").unwrap();
    assert_eq!(s.events(D0), ["x t", "x t"]);
    assert_eq!(s.read(D0, 0, "/local/domain/0/x").as_deref(), Ok(""));
}

#[test]
fn names_and_duplicates() {
    use Errno as E;
    let mut s = Store::new();
    let g = s.guest(1);
    let long = "t".repeat(1022);
    let too_long = "t".repeat(1023);
    for (path, token, result) in [
        ("/a", "t", Ok(())),
        ("/a", "t", Err(E::EEXIST)),
        ("/a", "u", Ok(())),
        ("/a", "", Ok(())),
        ("/a", &long[..], Ok(())),
        ("/a", &too_long, Err(E::EINVAL)), // XSA-324
        ("/a/", "t", Err(E::EINVAL)),
        ("", "t", Err(E::EINVAL)),
        ("@releaseDomain", "t", Ok(())),
        ("@whatever", "t", Ok(())),
        ("@bad name", "t", Err(E::EINVAL)),
    ] {
        assert_eq!(s.watch(g, path, token), result, "{path} {token}");
    }
    s.watch(D0, "/a", "t").unwrap();
    for (conn, path, token, result) in [
        (g, "/a", "t", Ok(())),
        (g, "/a", "t", Err(E::ENOENT)),
        (D0, "/a", "u", Err(E::ENOENT)),
        (D0, "/b", "t", Err(E::ENOENT)),
        (D0, "/b/", "t", Err(E::ENOENT)),
        (D0, "/a", "t", Ok(())),
    ] {
        let request = Request::Unwatch(path.as_bytes(), token.as_bytes());
        assert_eq!(
            s.ask(conn, 0, request).map(drop),
            result,
            "{conn:?} {path} {token}"
        );
    }
    s.ok(g, 0, Request::ResetWatches);
    assert_eq!(s.core.watches.paths(), 0);
    assert_eq!(s.core.conns[&g].watch_count, 0);
}

#[test]
fn two_watches_with_one_token() {
    let mut s = Store::new();
    for path in ["/a", "/a/b"] {
        s.watch(D0, path, "same").unwrap();
    }
    s.watch(D0, "/", "other").unwrap();
    s.watch(D0B, "/a", "same").unwrap();
    for conn in [D0, D0B] {
        s.events(conn);
    }
    s.write(D0, 0, "/a/b", "").unwrap();
    assert_eq!(s.events(D0), ["/a/b same", "/a/b other"]);
    assert_eq!(s.events(D0B), ["/a/b same"]);
}

#[test]
fn depth() {
    let mut s = Store::new();
    s.ok(D0, 0, Request::Watch(b"/a", b"t", Some(1)));
    s.events(D0);
    for (path, fires) in [("/a", true), ("/a/b", true), ("/a/b/c", false)] {
        s.write(D0, 0, path, "").unwrap();
        assert_eq!(!s.events(D0).is_empty(), fires, "{path}");
    }
}

#[test]
fn nothing_is_told_of_what_cannot_be_read() {
    let mut s = Store::new();
    let g = s.guest(1);
    s.put("/open", "", "r0");
    s.put("/shut", "", "n0");
    s.put("/shut/window", "", "n0 r1");
    for path in ["/", "@releaseDomain", "@introduceDomain"] {
        s.watch(g, path, "t").unwrap();
    }
    s.events(g);
    let expect = |s: &mut Store, paths: &[&str]| {
        let paths: Vec<_> = paths.iter().map(|path| format!("{path} t")).collect();
        assert_eq!(s.events(g), paths);
    };
    s.write(D0, 0, "/shut", "1").unwrap();
    s.write(D0, 0, "/shut/x", "1").unwrap();
    s.rm(D0, 0, "/shut/x").unwrap();
    s.guest(9);
    expect(&mut s, &[]);
    s.write(D0, 0, "/open", "1").unwrap();
    s.write(D0, 0, "/shut/window", "1").unwrap();
    expect(&mut s, &["/open", "/shut/window"]);
    // One event when the right goes, then silence; one when it comes.
    s.set_perms(D0, 0, "/open", "n0").unwrap();
    expect(&mut s, &["/open"]);
    s.write(D0, 0, "/open", "2").unwrap();
    s.set_perms(D0, 0, "/open", "n0").unwrap();
    expect(&mut s, &[]);
    s.set_perms(D0, 0, "/open", "n0 r1").unwrap();
    expect(&mut s, &["/open"]);
    // What lies in a readable directory is no secret, if not its content.
    s.put("/open/x", "", "n0");
    s.events(g);
    s.write(D0, 0, "/open/x", "").unwrap();
    s.rm(D0, 0, "/open/x").unwrap();
    expect(&mut s, &["/open/x", "/open/x"]);
    // The same in a transaction.
    let tx = s.start(D0);
    s.write(D0, tx, "/shut", "3").unwrap();
    s.write(D0, tx, "/open", "3").unwrap();
    s.set_perms(D0, tx, "/open", "n0").unwrap();
    s.commit(D0, tx).unwrap();
    expect(&mut s, &["/open"]);
}

#[test]
fn special_names() {
    let mut s = Store::new();
    let g = s.guest(1);
    for conn in [D0, g] {
        s.watch(conn, RELEASE_DOMAIN, "r").unwrap();
        s.watch(conn, "@introduceDomain", "i").unwrap();
        s.events(conn);
    }
    s.world.domains.insert(2, DomainState::Running);
    s.ok(D0, 0, Request::Introduce(DomId(2), 1, Port(1)));
    s.ok(D0, 0, Request::Introduce(DomId(2), 1, Port(2)));
    assert_eq!(
        s.events(D0),
        ["@introduceDomain i"],
        "the second time it is known"
    );
    s.ok(D0, 0, Request::Release(DomId(2)));
    assert_eq!(s.events(D0), ["@releaseDomain r"]);
    assert_eq!(s.events(g), [""; 0]);
    s.set_perms(D0, 0, RELEASE_DOMAIN, "n0 r1").unwrap();
    s.ok(D0, 0, Request::Introduce(DomId(2), 1, Port(1)));
    s.ok(D0, 0, Request::Release(DomId(2)));
    assert_eq!(s.events(g), ["@releaseDomain r"]);
}

#[test]
fn a_transaction_tells_each_path_once_and_only_when_it_commits() {
    let mut s = Store::new();
    s.write(D0, 0, "/a/x/y", "").unwrap();
    s.watch(D0, "/a", "t").unwrap();
    s.watch(D0, "/a/x/y", "u").unwrap();
    s.events(D0);
    for commit in [false, true] {
        let tx = s.start(D0);
        s.write(D0, tx, "/a/1", "1").unwrap();
        s.write(D0, tx, "/a/2", "1").unwrap();
        s.write(D0, tx, "/a/1", "2").unwrap();
        s.rm(D0, tx, "/a/x").unwrap();
        s.write(D0B, 0, "/b", "").unwrap(); // so that it has to merge
        assert_eq!(s.events(D0), [""; 0]);
        s.ok(D0, tx, Request::TransactionEnd(commit));
        let expected = ["/a/1 t", "/a/2 t", "/a/x t", "/a/x/y u"];
        assert_eq!(s.events(D0), if commit { &expected[..] } else { &[] });
    }
}

#[test]
fn memory_stays_flat_over_resets() {
    let mut s = Store::new();
    let g = s.guest(1);
    for n in 0..1000 {
        for path in ["a", "b", "/c"] {
            s.watch(g, path, "t").unwrap();
        }
        let tx = s.start(g);
        s.write(g, tx, "x", "y").unwrap();
        s.ok(g, if n % 2 == 0 { tx } else { 0 }, Request::ResetWatches); // XSA-330, XSA-484
        assert_eq!(
            s.ask(g, tx, Request::TransactionEnd(true)).map(drop),
            Err(Errno::ENOENT)
        );
    }
    assert_eq!(s.core.watches.paths(), 0);
    s.check();
}
