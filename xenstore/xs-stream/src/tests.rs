//! What is written is read again; what is not a stream is an error.

use alloc::vec::Vec;

use proptest::prelude::*;
use xen_sys::{DomId, Port};

use crate::*;

fn text() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(1u8.., 1..40)
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..60)
}

#[derive(Clone, Debug)]
enum Item {
    Global(i32, i32),
    Ring(u32, u16, Option<u16>, u32, Option<u64>, Vec<u8>, Vec<u8>),
    Socket(u32, i32, Vec<u8>, Vec<u8>, usize),
    Watch(u32, Vec<u8>, Vec<u8>, Option<u16>),
    Transaction(u32, u32),
    Node(Vec<u8>, Vec<u8>, Vec<(u16, u8, bool)>),
    GlobalQuota(Vec<(Vec<u8>, u32)>),
    Domain(u16, u32, Vec<(Vec<u8>, u32)>),
    Unknown(u32, Vec<u8>),
}

fn item() -> impl Strategy<Value = Item> {
    let quotas = || proptest::collection::vec((text(), any::<u32>()), 0..4);
    let entries = proptest::collection::vec((0u16..0x7ff0, 0u8..4, any::<bool>()), 1..4);
    let target = proptest::option::of(0u16..0x7ff0);
    let depth = proptest::option::of(0u16..0xffff);
    prop_oneof![
        (any::<i32>(), any::<i32>()).prop_map(|(a, b)| Item::Global(a, b)),
        (
            1u32..,
            0u16..0x7ff0,
            target,
            any::<u32>(),
            any::<Option<u64>>(),
            bytes(),
            bytes()
        )
            .prop_map(|(id, dom, target, port, unique, input, output)| {
                Item::Ring(id, dom, target, port, unique, input, output)
            }),
        (1u32.., any::<i32>(), bytes(), bytes(), 0usize..60).prop_map(
            |(id, fd, input, output, partial)| {
                let partial = partial.min(output.len());
                Item::Socket(id, fd, input, output, partial)
            }
        ),
        (any::<u32>(), text(), text(), depth).prop_map(|(c, p, t, d)| Item::Watch(c, p, t, d)),
        (any::<u32>(), any::<u32>()).prop_map(|(c, t)| Item::Transaction(c, t)),
        (text(), bytes(), entries).prop_map(|(p, v, e)| Item::Node(p, v, e)),
        quotas().prop_map(Item::GlobalQuota),
        (0u16..0x7ff0, any::<u32>(), quotas()).prop_map(|(d, f, q)| Item::Domain(d, f, q)),
        (9u32.., bytes()).prop_map(|(kind, body)| Item::Unknown(kind, body)),
    ]
}

fn quota_list(list: &[(Vec<u8>, u32)]) -> Vec<Quota<'_>> {
    list.iter()
        .map(|(name, value)| Quota {
            name,
            value: *value,
        })
        .collect()
}

fn permissions(list: &[(u16, u8, bool)]) -> Vec<Permission> {
    let access = [Access::None, Access::Read, Access::Write, Access::Both];
    let entry = |(dom, n, stale): &(u16, u8, bool)| Permission {
        dom: DomId(*dom),
        access: access[usize::from(*n)],
        stale: *stale,
    };
    list.iter().map(entry).collect()
}

fn connection(item: &Item) -> Option<Connection<'_>> {
    Some(match item {
        Item::Ring(id, dom, target, port, unique_id, input, output) => Connection {
            id: *id,
            peer: Peer::Ring {
                dom: DomId(*dom),
                target: target.map(DomId),
                port: Port(*port),
            },
            input,
            output,
            partial: output.len() / 2,
            unique_id: *unique_id,
        },
        Item::Socket(id, fd, input, output, partial) => Connection {
            id: *id,
            peer: Peer::Socket(*fd),
            input,
            output,
            partial: *partial,
            unique_id: None,
        },
        _ => return None,
    })
}

fn write(version: u32, items: &[Item]) -> Vec<u8> {
    let mut to = Writer::new(version);
    for item in items {
        match item {
            Item::Global(socket, evtchn) => to.global(*socket, *evtchn),
            Item::Ring(..) | Item::Socket(..) => to.connection(&connection(item).unwrap()),
            Item::Watch(conn, path, token, depth) => to.watch(&Watch {
                conn: *conn,
                path,
                token,
                depth: *depth,
            }),
            Item::Transaction(conn, id) => to.transaction(*conn, *id),
            Item::Node(path, value, list) => to.node(path, value, permissions(list).into_iter()),
            Item::GlobalQuota(list) => to.global_quota(&quota_list(list)),
            Item::Domain(dom, features, list) => {
                to.domain(DomId(*dom), *features, &quota_list(list));
            }
            Item::Unknown(kind, body) => to.unknown(*kind, body),
        }
    }
    to.finish()
}

/// Goes through a stream to its end or the first error.
fn read_all(bytes: &[u8]) -> Result<Vec<Record<'_>>, Error> {
    let mut reader = Reader::new(bytes)?;
    let mut all = Vec::new();
    while let Some(record) = reader.next_record()? {
        if let Record::Node(node) = &record {
            node.permissions().for_each(drop);
        }
        if let Record::GlobalQuota(quotas) | Record::Domain(DomainData { quotas, .. }) = &record {
            quotas.iter().for_each(drop);
        }
        all.push(record);
    }
    Ok(all)
}

proptest! {
    #[test]
    fn what_is_written_is_read(version in 1u32..=2, items in proptest::collection::vec(item(), 0..12)) {
        let stream = write(version, &items);
        prop_assert_eq!(stream.len() % 8, 0);
        let records = read_all(&stream).unwrap();
        prop_assert_eq!(records.len(), items.len() + 1);
        prop_assert_eq!(records.last(), Some(&Record::End));
        for (item, record) in items.iter().zip(&records) {
            match (item, record) {
                (Item::Global(s, e), Record::Global { socket, evtchn }) => {
                    prop_assert_eq!((s, e), (socket, evtchn));
                }
                (Item::Ring(..) | Item::Socket(..), Record::Connection(read)) => {
                    let mut wanted = connection(item).unwrap();
                    wanted.unique_id = wanted.unique_id.filter(|_| version >= 2);
                    prop_assert_eq!(&wanted, read);
                }
                (Item::Watch(conn, path, token, depth), Record::Watch(watch)) => {
                    let depth = depth.filter(|_| version >= 2);
                    let wanted = Watch { conn: *conn, path, token, depth };
                    prop_assert_eq!(&wanted, watch);
                }
                (Item::Transaction(c, t), Record::Transaction { conn, id }) => {
                    prop_assert_eq!((c, t), (conn, id));
                }
                (Item::Node(path, value, list), Record::Node(node)) => {
                    prop_assert_eq!((&path[..], &value[..]), (node.path, node.value));
                    prop_assert_eq!(permissions(list), node.permissions().collect::<Vec<_>>());
                }
                (Item::GlobalQuota(list), Record::GlobalQuota(quotas)) => {
                    prop_assert_eq!(quota_list(list), quotas.iter().collect::<Vec<_>>());
                }
                (Item::Domain(dom, features, list), Record::Domain(data)) => {
                    prop_assert_eq!(*dom, data.dom.0);
                    prop_assert_eq!((version >= 2).then_some(*features), data.features);
                    prop_assert_eq!(quota_list(list), data.quotas.iter().collect::<Vec<_>>());
                }
                (Item::Unknown(kind, body), Record::Unknown { kind: read, body: padded }) => {
                    prop_assert_eq!(kind, read);
                    prop_assert_eq!(&padded[..body.len()], &body[..]);
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }

    #[test]
    fn a_cut_stream_is_an_error(items in proptest::collection::vec(item(), 0..6), cut in any::<u16>()) {
        let stream = write(2, &items);
        let cut = usize::from(cut) % stream.len();
        prop_assert!(read_all(&stream[..cut]).is_err());
    }

    #[test]
    fn no_bytes_make_it_panic(
        items in proptest::collection::vec(item(), 0..6),
        changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..8),
        big_endian in any::<bool>(),
    ) {
        let mut stream = write(2, &items);
        stream[15] = big_endian.into();
        for (at, byte) in changes {
            let at = usize::from(at) % stream.len();
            stream[at] = byte;
        }
        if let Err(error) = read_all(&stream) {
            prop_assert!(error.at <= stream.len());
        }
    }
}

#[test]
fn headers() {
    let good = Writer::new(1).finish();
    assert_eq!(read_all(&good).unwrap(), [Record::End]);
    for (at, byte, what) in [
        (0, b'y', "\"xenstore\""),
        (11, 3, "version"),
        (11, 0, "version"),
        (15, 2, "flags"),
    ] {
        let mut bad = good.clone();
        bad[at] = byte;
        let error = read_all(&bad).unwrap_err();
        assert!(error.what.contains(what), "{error}");
    }
}

/// As C of 4.17 writes it on a little-endian machine, byte for byte.
#[test]
fn a_stream_of_c() {
    let mut stream = b"xenstore\0\0\0\x01\0\0\0\0".to_vec();
    let mut add = |kind: u32, body: &[u8]| {
        stream.extend(kind.to_le_bytes());
        stream.extend((body.len() as u32).to_le_bytes());
        stream.extend_from_slice(body);
    };
    add(1, b"\x05\0\0\0\xff\xff\xff\xff");
    add(
        2,
        b"\x01\0\0\0\0\0\0\0\x07\0\xf4\x7f\x17\0\0\0\x02\0\0\0\x03\0\0\0abxyz\0\0\0",
    );
    add(3, b"\x01\0\0\0\x03\0\x02\0ab\0t\0\0\0\0");
    add(
        5,
        b"\0\0\0\0\0\0\0\0\x03\0\x01\0\0\0\x02\0n\0\0\0r\x01\x07\0/a\0v\0\0\0\0",
    );
    add(0, b"");
    let records = read_all(&stream).unwrap();
    let socket = 5;
    assert_eq!(records[0], Record::Global { socket, evtchn: -1 });
    let ring = Connection {
        id: 1,
        peer: Peer::Ring {
            dom: DomId(7),
            target: None,
            port: Port(0x17),
        },
        input: b"ab",
        output: b"xyz",
        partial: 0,
        unique_id: None,
    };
    assert_eq!(records[1], Record::Connection(ring));
    let watch = Watch {
        conn: 1,
        path: b"ab",
        token: b"t",
        depth: None,
    };
    assert_eq!(records[2], Record::Watch(watch));
    let Record::Node(node) = records[3] else {
        panic!("{:?}", records[3]);
    };
    assert_eq!((node.path, node.value), (&b"/a"[..], &b"v"[..]));
    let stale: Vec<_> = node.permissions().map(|entry| entry.stale).collect();
    assert_eq!(stale, [false, true]);
}
