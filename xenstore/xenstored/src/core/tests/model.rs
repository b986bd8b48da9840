//! The core against a simple model: paths to (value, permissions), rules written out anew.

use std::collections::BTreeMap;

use proptest::prelude::*;
use xen_sys::Errno;
use xs_wire::{Access, Permission, Request};

use super::*;

type Nodes = BTreeMap<String, (Vec<u8>, Vec<Permission>)>;

#[derive(Clone, Debug)]
enum Act {
    Read(u16, &'static str),
    List(u16, &'static str),
    Write(u16, &'static str, u8),
    Mkdir(u16, &'static str),
    Rm(u16, &'static str),
    SetPerms(u16, &'static str, Vec<(u16, Access)>),
}

fn act() -> impl Strategy<Value = Act> {
    let who = || 0u16..3;
    let path = || {
        proptest::sample::select(
            &[
                "/",
                "/a",
                "/a/b",
                "/a/b/c",
                "/a/d",
                "/e",
                "/e/f/g",
                "/local/domain/1",
                "/local/domain/1/x",
                "/local/domain/2/y/z",
            ][..],
        )
    };
    let access = prop_oneof![
        Just(Access::None),
        Just(Access::Read),
        Just(Access::Write),
        Just(Access::Both)
    ];
    let list = proptest::collection::vec((who(), access), 1..4);
    prop_oneof![
        1 => (who(), path()).prop_map(|(w, p)| Act::Read(w, p)),
        1 => (who(), path()).prop_map(|(w, p)| Act::List(w, p)),
        3 => (who(), path(), any::<u8>()).prop_map(|(w, p, v)| Act::Write(w, p, v)),
        1 => (who(), path()).prop_map(|(w, p)| Act::Mkdir(w, p)),
        1 => (who(), path()).prop_map(|(w, p)| Act::Rm(w, p)),
        2 => (who(), path(), list).prop_map(|(w, p, l)| Act::SetPerms(w, p, l)),
    ]
}

fn parent(path: &str) -> String {
    match path.rfind('/') {
        Some(0) | None => "/".into(),
        Some(at) => path[..at].into(),
    }
}

/// Read and write rights.
fn rights(who: u16, list: &[Permission]) -> (bool, bool) {
    if who == 0 || list[0].dom.0 == who {
        return (true, true);
    }
    let entry = list[1..].iter().find(|entry| entry.dom.0 == who);
    let access = entry.unwrap_or(&list[0]).access;
    (access.reads(), access.writes())
}

/// The node's entry, or why there is none for `who`.
fn find(nodes: &Nodes, who: u16, path: &str, write: bool) -> Result<(), Errno> {
    let mut nearest = path.to_owned();
    while !nodes.contains_key(&nearest) {
        nearest = parent(&nearest);
    }
    let (reads, writes) = rights(who, &nodes[&nearest].1);
    match (if write { writes } else { reads }, nearest == path) {
        (true, true) => Ok(()),
        (true, false) => Err(Errno::ENOENT),
        _ => Err(Errno::EACCES),
    }
}

fn create(nodes: &mut Nodes, who: u16, path: &str, value: &[u8]) {
    let above = parent(path);
    if !nodes.contains_key(&above) {
        create(nodes, who, &above, b"");
    }
    let mut list = nodes[&above].1.clone();
    if who != 0 {
        list[0].dom = DomId(who);
    }
    nodes.insert(path.into(), (value.to_vec(), list));
}

fn expect(nodes: &mut Nodes, act: &Act) -> Result<Vec<u8>, Errno> {
    let done = || Ok(b"OK\0".to_vec());
    match act {
        Act::Read(who, path) => {
            find(nodes, *who, path, false)?;
            Ok(nodes[*path].0.clone())
        }
        Act::List(who, path) => {
            find(nodes, *who, path, false)?;
            let mut names = Vec::new();
            for key in nodes
                .keys()
                .filter(|key| *key != "/" && parent(key) == **path)
            {
                names.extend_from_slice(&key.as_bytes()[key.rfind('/').unwrap() + 1..]);
                names.push(0);
            }
            Ok(names)
        }
        Act::Write(who, path, value) => {
            match find(nodes, *who, path, true) {
                Ok(()) => nodes.get_mut(*path).unwrap().0 = vec![*value],
                Err(Errno::ENOENT) => create(nodes, *who, path, &[*value]),
                Err(error) => return Err(error),
            }
            done()
        }
        Act::Mkdir(who, path) => match find(nodes, *who, path, true) {
            Err(Errno::ENOENT) => {
                create(nodes, *who, path, b"");
                done()
            }
            other => other.and_then(|()| done()),
        },
        Act::Rm(who, path) => match find(nodes, *who, path, true) {
            Ok(()) if *path == "/" => Err(Errno::EINVAL),
            Ok(()) => {
                let below = format!("{path}/");
                nodes.retain(|key, _| key != path && !key.starts_with(&below));
                done()
            }
            Err(Errno::ENOENT) if nodes.contains_key(&parent(path)) => done(),
            Err(error) => Err(error),
        },
        Act::SetPerms(who, path, list) => {
            let owner = nodes.get(*path).map(|node| node.1[0].dom.0);
            find(nodes, *who, path, true)?;
            if *who != 0 && owner != Some(*who) {
                return Err(Errno::EACCES);
            }
            if *who != 0 && list[0].0 != *who {
                return Err(Errno::EPERM);
            }
            let list = list
                .iter()
                .map(|(dom, access)| Permission::new(DomId(*dom), *access));
            nodes.get_mut(*path).unwrap().1 = list.collect();
            done()
        }
    }
}

fn request(act: &Act) -> (u16, Request<'static>, [u8; 1]) {
    match act {
        Act::Read(who, path) => (*who, Request::Read(path.as_bytes()), [0]),
        Act::List(who, path) => (*who, Request::Directory(path.as_bytes()), [0]),
        Act::Write(who, path, value) => (*who, Request::Write(path.as_bytes(), b""), [*value]),
        Act::Mkdir(who, path) => (*who, Request::Mkdir(path.as_bytes()), [0]),
        Act::Rm(who, path) => (*who, Request::Rm(path.as_bytes()), [0]),
        Act::SetPerms(who, path, list) => {
            let list = list
                .iter()
                .map(|(dom, access)| Permission::new(DomId(*dom), *access));
            (
                *who,
                Request::SetPerms(path.as_bytes(), list.collect()),
                [0],
            )
        }
    }
}

proptest! {
    /// Every act has the result of the model, whether done directly or in a transaction that is then committed
    /// beside changes elsewhere; at the end the trees are equal.
    #[test]
    fn like_the_model(acts in proptest::collection::vec((act(), any::<bool>()), 0..40)) {
        let mut s = Store::new();
        let conns = [D0, s.guest(1), s.guest(2)];
        let mut nodes = Nodes::new();
        s.core.tree().walk(&mut |path, node, _| {
            nodes.insert(path.into(), (node.value().to_vec(), node.acl().permissions(|_| true)));
            true
        });
        for (n, (act, in_transaction)) in acts.iter().enumerate() {
            let (who, mut request, value) = request(act);
            if let Request::Write(path, _) = request {
                request = Request::Write(path, &value);
            }
            let conn = conns[usize::from(who)];
            let got = if *in_transaction {
                let tx = s.start(conn);
                let got = s.ask(conn, tx, request);
                s.write(D0B, 0, "/elsewhere", &n.to_string()).unwrap();
                prop_assert_eq!(s.commit(conn, tx), Ok(()));
                s.rm(D0B, 0, "/elsewhere").unwrap();
                got
            } else {
                s.ask(conn, 0, request)
            };
            prop_assert_eq!(got, expect(&mut nodes, act), "{:?}", act);
        }
        let mut found = Nodes::new();
        s.core.tree().walk(&mut |path, node, _| {
            found.insert(path.into(), (node.value().to_vec(), node.acl().permissions(|_| true)));
            true
        });
        prop_assert_eq!(found, nodes);
        s.check();
    }
}
