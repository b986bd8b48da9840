//! Transactions: what merges, what conflicts, and that nothing half done is seen.

use xen_sys::Errno;
use xs_wire::Request;

use super::*;

/// What is done in a transaction or beside it.
#[derive(Clone, Copy, Debug)]
enum Do {
    Read(&'static str),
    List(&'static str),
    Perms(&'static str),
    Write(&'static str, &'static str),
    Mkdir(&'static str),
    Rm(&'static str),
    SetPerms(&'static str, &'static str),
}
use Do::*;

fn run(s: &mut Store, conn: ConnId, tx: u32, what: Do) {
    let bytes = |path: &'static str| path.as_bytes();
    // Some are to fail; what they saw counts all the same.
    let _ = match what {
        Read(path) => s.ask(conn, tx, Request::Read(bytes(path))),
        List(path) => s.ask(conn, tx, Request::Directory(bytes(path))),
        Perms(path) => s.ask(conn, tx, Request::GetPerms(bytes(path))),
        Write(path, value) => s.ask(conn, tx, Request::Write(bytes(path), value.as_bytes())),
        Mkdir(path) => s.ask(conn, tx, Request::Mkdir(bytes(path))),
        Rm(path) => s.ask(conn, tx, Request::Rm(bytes(path))),
        SetPerms(path, list) => s.set_perms(conn, tx, path, list).map(|()| Vec::new()),
    };
}

fn store() -> Store {
    let mut s = Store::new();
    for path in ["/a", "/b", "/d/x", "/d/y"] {
        s.write(D0, 0, path, "old").unwrap();
    }
    s
}

/// Runs `inside` in a transaction while `beside` is done without; whether it commits. `/done` is written
/// in the transaction, so that it has something to commit.
fn commits(inside: &[Do], beside: &[Do]) -> bool {
    let mut s = store();
    let tx = s.start(D0);
    for what in inside {
        run(&mut s, D0, tx, *what);
    }
    run(&mut s, D0, tx, Write("/done", "1"));
    for what in beside {
        run(&mut s, D0B, 0, *what);
    }
    let result = s.commit(D0, tx);
    let done = s.read(D0B, 0, "/done").is_ok();
    assert_eq!(done, result.is_ok(), "all or nothing");
    assert!(matches!(result, Ok(()) | Err(Errno::EAGAIN)));
    s.check();
    result.is_ok()
}

#[test]
fn what_merges_and_what_conflicts() {
    for (inside, beside, merges) in [
        (&[Read("/a")][..], &[][..], true),
        (&[Read("/a")], &[Write("/b", "1")], true),
        (&[Read("/a")], &[Write("/a", "1")], false),
        (&[Read("/a")], &[Write("/a", "1"), Write("/a", "old")], true), // the same value again
        (&[Read("/a")], &[SetPerms("/a", "r0")], true),
        (&[Read("/a")], &[Write("/a/below", "1")], true),
        (&[Read("/a")], &[Rm("/a")], false),
        (&[Read("/none")], &[Write("/none", "1")], false), // absent reads count
        (&[Read("/none")], &[Write("/other", "1")], true),
        (&[Read("/none/x")], &[Write("/none/x", "1")], false),
        (&[Read("/none/x")], &[Write("/none/y", "1")], true),
        (&[List("/d")], &[Write("/d/z", "1")], false), // listings count
        (&[List("/d")], &[Rm("/d/x")], false),
        (&[List("/d")], &[Write("/d/x", "1")], true),
        (&[List("/d")], &[Write("/d/z", "1"), Rm("/d/z")], true),
        (&[List("/none")], &[Mkdir("/none")], false),
        (&[Perms("/a")], &[SetPerms("/a", "r0")], false),
        (&[Perms("/a")], &[Write("/a", "1")], true),
        (&[Write("/a", "1")], &[Write("/b", "1")], true),
        (&[Write("/a", "1")], &[Write("/a", "2")], true), // nothing was read: the later commit counts
        (&[Write("/a", "1")], &[Rm("/a")], false),
        (&[Write("/a", "1"), Read("/a")], &[Write("/b", "1")], true),
        (&[Write("/d/1", "")], &[Write("/d/2", "")], true), // siblings
        (&[Mkdir("/d/1")], &[Mkdir("/d/2")], true),
        (&[Mkdir("/d/1")], &[Mkdir("/d/1")], true), // the answer is the same
        (&[Mkdir("/n")], &[Write("/n/1", "")], true),
        (&[Write("/n", "1")], &[Write("/n", "2")], true),
        (&[Write("/n", "1"), Read("/n")], &[Write("/n", "2")], false),
        (&[Mkdir("/n"), Read("/n")], &[Mkdir("/n")], false),
        (&[Mkdir("/n"), List("/n")], &[Write("/n/1", "")], false),
        // What a toolstack does, in a directory that both make.
        (
            &[Rm("/n/1"), Mkdir("/n/1"), SetPerms("/n/1", "n0")],
            &[Write("/n/2", "")],
            false,
        ),
        (
            &[
                Mkdir("/n/1"),
                Rm("/n/3"),
                Mkdir("/n/3"),
                SetPerms("/n/3", "r0"),
            ],
            &[Write("/n/2", "")],
            true,
        ),
        // What is inherited is seen with the permissions.
        (
            &[Mkdir("/n/1"), Perms("/n/1")],
            &[Write("/n", ""), SetPerms("/n", "r0")],
            false,
        ),
        (
            &[Mkdir("/n/1"), Perms("/n/1")],
            &[SetPerms("/", "r0")],
            false,
        ),
        (
            &[Rm("/d"), Mkdir("/d"), Perms("/d")],
            &[SetPerms("/", "r0")],
            false,
        ),
        (&[Mkdir("/n/1"), Rm("/n/2")], &[Write("/n/2", "")], false),
        (&[Write("/n/1", "")], &[Write("/n/2", "")], true), // in a directory that both make
        (&[Write("/d/1", "")], &[Rm("/d")], false),
        (&[Rm("/a")], &[Write("/b", "1")], true),
        (&[Rm("/a")], &[Rm("/a")], false),
        (&[Rm("/d")], &[Write("/d/z", "1")], true), // as if removed after
        (&[Rm("/none")], &[Write("/none", "")], false),
        (&[SetPerms("/a", "r0")], &[Write("/a", "1")], true),
        (&[SetPerms("/a", "r0")], &[Rm("/a")], false),
    ] {
        assert_eq!(
            commits(inside, beside),
            merges,
            "{inside:?} beside {beside:?}"
        );
    }
}

#[test]
fn merging_keeps_both_sides() {
    let mut s = store();
    let tx = s.start(D0);
    s.write(D0, tx, "/d/mine", "1").unwrap();
    s.write(D0, tx, "/a", "2").unwrap();
    s.set_perms(D0, tx, "/b", "r0").unwrap();
    s.rm(D0, tx, "/d/x").unwrap();
    s.write(D0B, 0, "/d/theirs", "1").unwrap();
    s.write(D0B, 0, "/b", "3").unwrap();
    assert_eq!(
        s.read(D0, tx, "/b").as_deref(),
        Ok("old"),
        "it sees its own copy"
    );
    assert_eq!(s.list(D0, tx, "/d").as_deref(), Ok("mine y"));
    s.write(D0B, 0, "/other", "").unwrap();
    // What it read has changed meanwhile, so it may not commit; once more, without reading.
    assert_eq!(s.commit(D0, tx), Err(Errno::EAGAIN));
    let tx = s.start(D0);
    s.write(D0, tx, "/d/mine", "1").unwrap();
    s.write(D0, tx, "/a", "2").unwrap();
    s.set_perms(D0, tx, "/b", "r0").unwrap();
    s.rm(D0, tx, "/d/x").unwrap();
    s.write(D0B, 0, "/d/more", "1").unwrap();
    s.write(D0B, 0, "/b", "4").unwrap();
    s.commit(D0, tx).unwrap();
    assert_eq!(s.list(D0, 0, "/d").as_deref(), Ok("mine more theirs y"));
    assert_eq!(s.read(D0, 0, "/a").as_deref(), Ok("2"));
    assert_eq!(s.read(D0, 0, "/b").as_deref(), Ok("4"));
    assert_eq!(s.perms(D0, "/b").as_deref(), Ok("r0"));
}

/// Found in oxenstored: each reads that the other's flag is absent and sets its own; both commit.
#[test]
fn write_skew_on_absent_reads() {
    let mut s = Store::new();
    let (a, b) = (s.start(D0), s.start(D0B));
    assert_eq!(s.read(D0, a, "/x/flag"), Err(Errno::ENOENT));
    assert_eq!(s.read(D0B, b, "/y/flag"), Err(Errno::ENOENT));
    s.write(D0, a, "/y/flag", "a").unwrap();
    s.write(D0B, b, "/x/flag", "b").unwrap();
    assert_eq!(s.commit(D0, a), Ok(()));
    assert_eq!(s.commit(D0B, b), Err(Errno::EAGAIN));
    assert_eq!(s.list(D0, 0, "/").as_deref(), Ok("tool y"));
}

#[test]
fn reading_only_never_conflicts() {
    let mut s = store();
    let tx = s.start(D0);
    assert_eq!(s.read(D0, tx, "/a").as_deref(), Ok("old"));
    s.write(D0B, 0, "/a", "new").unwrap();
    s.write(D0B, 0, "/b", "new").unwrap();
    assert_eq!(
        s.read(D0, tx, "/b").as_deref(),
        Ok("old"),
        "one state of the store"
    );
    assert_eq!(s.commit(D0, tx), Ok(()));
}

#[test]
fn isolation_and_abort() {
    let mut s = store();
    let tx = s.start(D0);
    s.write(D0, tx, "/a", "new").unwrap();
    s.rm(D0, tx, "/d").unwrap();
    assert_eq!(s.read(D0, 0, "/a").as_deref(), Ok("old"));
    assert_eq!(s.list(D0B, 0, "/d").as_deref(), Ok("x y"));
    s.ok(D0, tx, Request::TransactionEnd(false));
    assert_eq!(s.read(D0, 0, "/a").as_deref(), Ok("old"));
    s.check();
}

#[test]
fn numbers() {
    use Errno as E;
    let mut s = store();
    let tx = s.start(D0);
    assert_eq!(
        s.ask(D0, tx, Request::TransactionStart).map(drop),
        Err(E::EBUSY)
    );
    for (conn, tx) in [(D0, tx + 1), (D0B, tx), (D0, u32::MAX)] {
        assert_eq!(s.read(conn, tx, "/a"), Err(E::ENOENT));
        assert_eq!(s.write(conn, tx, "/a", ""), Err(E::ENOENT));
        assert_eq!(s.commit(conn, tx), Err(E::ENOENT));
    }
    assert_eq!(s.commit(D0, 0), Err(E::ENOENT));
    assert_eq!(s.commit(D0, tx), Ok(()));
    assert_eq!(s.commit(D0, tx), Err(E::ENOENT));
    let tx = s.start(D0);
    s.core.detach(D0);
    s.core.attach_dom0(D0);
    assert_eq!(s.commit(D0, tx), Err(E::ENOENT), "gone with its connection");
}

#[test]
fn a_guest_s_transaction() {
    use Errno as E;
    let limits = Limits {
        nodes: 4,
        transaction_nodes: 8,
        ..Limits::default()
    };
    let mut s = Store::with(limits);
    let g = s.guest(1);
    // The quota counts in the transaction, beside it, and again when it commits.
    let tx = s.start(g);
    for (path, result) in [
        ("a", Ok(())),
        ("b", Ok(())),
        ("c", Ok(())),
        ("d", Err(E::ENOSPC)),
    ] {
        assert_eq!(s.write(g, tx, path, ""), result, "{path}");
    }
    s.write(g, 0, "e", "").unwrap();
    assert_eq!(
        s.commit(g, tx),
        Err(E::EAGAIN),
        "there is room for one of them only"
    );
    s.check();
    // Made and removed within: nothing is left, and nothing is counted (XSA-421).
    let tx = s.start(g);
    s.write(g, tx, "x/y", "").unwrap();
    s.rm(g, tx, "x").unwrap();
    s.commit(g, tx).unwrap();
    s.check();
    assert_eq!(s.list(g, 0, "/local/domain/1").as_deref(), Ok("e"));
    // It cannot look at more than so much.
    let tx = s.start(g);
    let results: Vec<_> = (0..20)
        .map(|n| s.read(g, tx, &format!("none{n}")))
        .collect();
    assert_eq!(results[0], Err(E::ENOENT));
    assert_eq!(results[19], Err(E::ENOSPC));
    // Rights that go while it is open.
    s.put("/b0", "", "b0");
    let tx = s.start(g);
    s.write(g, tx, "/b0", "mine").unwrap();
    s.set_perms(D0, 0, "/b0", "n0").unwrap();
    assert_eq!(s.commit(g, tx), Err(E::EAGAIN));
    assert_eq!(s.read(D0, 0, "/b0").as_deref(), Ok(""));
}
