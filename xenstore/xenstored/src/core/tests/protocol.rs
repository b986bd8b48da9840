//! Requests as bytes: what is malformed, unknown, too big; and any bytes at all.

use proptest::prelude::*;
use xen_sys::Errno;
use xs_wire::Request;

use super::*;

fn error(s: &mut Store, op: u32, body: &[u8]) -> Option<Errno> {
    match s.raw(D0, op, 0, body) {
        (Op::Error, body) => Some(xs_wire::parse_error(&body)),
        _ => None,
    }
}

#[test]
fn operations() {
    let mut s = Store::new();
    for (op, body, expected) in [
        (20, &b"\0"[..], Some(Errno::ENOSYS)),       // RESTRICT
        (15, b"a\0b\0", Some(Errno::ENOSYS)),        // WATCH_EVENT
        (16, b"EIO\0", Some(Errno::ENOSYS)),         // ERROR
        (24, b"1\0", Some(Errno::EINVAL)),           // SET_FEATURE without a value
        (25, b"1\0nodes\0x\0", Some(Errno::EINVAL)), // GET_QUOTA of three words
        (26, b"nodes\0-1\0", Some(Errno::EINVAL)),   // SET_QUOTA
        (999, b"", Some(Errno::ENOSYS)),
        (2, b"", Some(Errno::EINVAL)),
        (2, b"/tool", Some(Errno::EINVAL)), // not terminated
        (2, b"/tool\0", None),
        (6, b"", None),
        (6, b"\0", None),
        (21, b"", None),
        (11, b"/tool", Some(Errno::EINVAL)),
        (0, b"nonsense\0", Some(Errno::EINVAL)),
        (0, b"help\0", None),
    ] {
        assert_eq!(error(&mut s, op, body), expected, "{op} {body:?}");
    }
}

#[test]
fn long_listings() {
    let mut s = Store::new();
    let mut names: Vec<String> = (0..1000).map(|n| format!("child-{n}")).collect();
    for name in &names {
        s.write(D0, 0, &format!("/big/{name}"), "").unwrap();
    }
    names.sort();
    assert_eq!(s.list(D0, 0, "/big"), Err(Errno::E2BIG));
    let mut whole = Vec::new();
    let mut generation = None;
    loop {
        let request = Request::DirectoryPart(b"/big", whole.len() as u64);
        let body = s.ok(D0, 0, request);
        assert!(body.len() <= 4096);
        let (now, piece) = xs_wire::split_word(&body).unwrap();
        assert_eq!(*generation.get_or_insert(now.to_vec()), now);
        if let Some(piece) = piece.strip_suffix(b"\0\0") {
            whole.extend_from_slice(piece);
            break;
        }
        whole.extend_from_slice(piece);
    }
    let expected = names.join("\0");
    assert_eq!(String::from_utf8(whole).unwrap(), expected);
    s.write(D0, 0, "/big/one-more", "").unwrap();
    let body = s.ok(D0, 0, Request::DirectoryPart(b"/big", 0));
    assert_ne!(
        xs_wire::split_word(&body).unwrap().0,
        &generation.unwrap()[..]
    );
    assert_eq!(
        s.ok(D0, 0, Request::DirectoryPart(b"/tool/xenstored", 0)),
        b"0\0\0"
    );
    assert!(
        s.ok(D0, 0, Request::DirectoryPart(b"/big", u64::MAX))
            .ends_with(b"\0\0")
    );
}

#[test]
fn the_largest_value() {
    let mut s = Store::new();
    let value = "v".repeat(4096 - 3);
    s.write(D0, 0, "/a", &value).unwrap();
    assert_eq!(s.read(D0, 0, "/a").unwrap(), value);
}

proptest! {
    /// Whatever a guest sends gets exactly one reply, nothing panics, the counts are right.
    #[test]
    fn any_requests(requests in proptest::collection::vec(
        (0u32..28, 0u32..4, proptest::collection::vec(
            prop_oneof![Just(0u8), Just(b'/'), Just(b'a'), Just(b'@'), Just(b'1'), Just(b'n'), Just(b'T'), any::<u8>()], 0..12)),
        0..60,
    )) {
        let mut s = Store::new();
        let g = s.guest(1);
        s.put("/a", "", "b0");
        for (op, tx, body) in requests {
            s.raw(g, op, tx, &body);
            // dom0 may release the guest, which then gets no replies any more.
            s.raw(D0, if op == Op::Release.code() { 1 } else { op }, tx, &body);
        }
        s.check();
    }
}
