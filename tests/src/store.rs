//! What every store must do for its clients, whoever serves it and however they are connected.

use std::time::{Duration, Instant};

use xen_hal::{Access, Permission, Store, StoreError, StoreExt, WatchEvent};
use xen_sys::{DomId, Errno};

use crate::{OrStop, Outcome, Stop, demand, demand_eq};

/// How long a watch event may take.
const EVENT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest payload of a message (`XENSTORE_PAYLOAD_MAX`, io/xs_wire.h).
const PAYLOAD_MAX: usize = 4096;

/// Nodes, values, directories, transactions and watches, all below `root`, which must not exist and is
/// gone afterwards. `store` and `other` are two connections that may write there.
pub fn tree(store: &dyn Store, other: &dyn Store, root: &str) -> Outcome {
    nodes(store, root)?;
    values(store, other, root)?;
    removal(store, root)?;
    transactions(store, other, root)?;
    watches(store, other, root)?;
    store.rm(None, root).or_fail("remove the test's nodes")?;
    demand_eq!(
        errno(store.read(None, root)),
        Some(Errno::ENOENT),
        "{root} afterwards"
    );
    Ok(())
}

fn nodes(store: &dyn Store, root: &str) -> Outcome {
    let missing = format!("{root}/missing");
    for (what, found) in [
        ("read", errno(store.read(None, &missing))),
        ("list", errno(store.list(None, &missing))),
        ("permissions", errno(store.permissions(None, &missing))),
    ] {
        demand_eq!(found, Some(Errno::ENOENT), "{what} of a missing node");
    }
    // Parents come into being with their child.
    put(store, &format!("{root}/a/b/c"), b"deep")?;
    store.mkdir(None, &format!("{root}/a/d")).or_fail("mkdir")?;
    store
        .mkdir(None, &format!("{root}/a/b"))
        .or_fail("mkdir of what exists")?;
    demand_eq!(
        get(store, &format!("{root}/a"))?,
        b"",
        "the value of a parent"
    );
    demand_eq!(
        get(store, &format!("{root}/a/b/c"))?,
        b"deep",
        "the value after mkdir"
    );
    demand_eq!(
        children(store, &format!("{root}/a"))?,
        ["b", "d"],
        "the children"
    );
    demand_eq!(
        children(store, &format!("{root}/a/d"))?,
        [""; 0],
        "children of an empty node"
    );
    for bad in [
        format!("{root}//x"),
        format!("{root}/x/"),
        format!("{root}/x y"),
    ] {
        let found = errno(store.write(None, &bad, b""));
        demand_eq!(found, Some(Errno::EINVAL), "writing to the path {bad:?}");
    }
    Ok(())
}

fn values(store: &dyn Store, other: &dyn Store, root: &str) -> Outcome {
    let node = format!("{root}/value");
    let every_byte: Vec<u8> = (0..=255).collect();
    for value in [b"".as_slice(), b"text", b"with\0nul\0", &every_byte] {
        put(store, &node, value)?;
        demand_eq!(get(other, &node)?, value, "a value read by another client");
    }
    // Path, NUL and value must fit one message.
    let longest = vec![b'x'; PAYLOAD_MAX - node.len() - 1];
    match store.write(None, &node, &longest) {
        Ok(()) => demand_eq!(get(other, &node)?.len(), longest.len(), "the longest value"),
        // A daemon may have a lower quota for values.
        Err(error) => demand!(
            [Errno::E2BIG, Errno::ENOSPC].contains(&error.errno),
            "refusing the longest value: {error}"
        ),
    }
    let longer = vec![b'x'; PAYLOAD_MAX];
    let found = errno(store.write(None, &node, &longer));
    demand_eq!(found, Some(Errno::E2BIG), "a value that fits no message");
    Ok(())
}

fn removal(store: &dyn Store, root: &str) -> Outcome {
    put(store, &format!("{root}/gone/1/2/3"), b"x")?;
    store
        .rm(None, &format!("{root}/gone"))
        .or_fail("rm of a directory")?;
    let found = errno(store.read(None, &format!("{root}/gone/1/2/3")));
    demand_eq!(found, Some(Errno::ENOENT), "a node below a removed one");
    // The parent is there: nothing to remove is no error (docs/misc/xenstore.txt).
    store
        .rm(None, &format!("{root}/gone"))
        .or_fail("rm again, below a parent that exists")?;
    let found = errno(store.rm(None, &format!("{root}/never/x")));
    demand_eq!(
        found,
        Some(Errno::ENOENT),
        "rm where even the parent is missing"
    );
    // Whether the right or the path is looked at first is the daemon's choice.
    let root_removed = errno(store.rm(None, "/"));
    demand!(
        [Some(Errno::EINVAL), Some(Errno::EACCES)].contains(&root_removed),
        "rm of the root: {root_removed:?}"
    );
    Ok(())
}

fn transactions(store: &dyn Store, other: &dyn Store, root: &str) -> Outcome {
    let node = format!("{root}/tx");
    put(store, &node, b"0")?;
    // Nobody sees it before its end; an aborted one nobody ever sees.
    for (commit, expected) in [(false, b"0".as_slice()), (true, b"1")] {
        let tx = store.start().or_fail("start a transaction")?;
        store
            .write(Some(tx), &node, b"1")
            .or_fail("write in a transaction")?;
        let inside = store
            .read(Some(tx), &node)
            .or_fail("read in a transaction")?;
        demand_eq!(inside, b"1", "the value inside the transaction");
        demand_eq!(
            get(other, &node)?,
            b"0",
            "the value outside, before the end"
        );
        store.end(tx, commit).or_fail("end the transaction")?;
        demand_eq!(
            get(other, &node)?,
            expected,
            "the value after commit={commit}"
        );
    }
    // What was read has changed: the commit is refused and leaves nothing.
    let tx = store.start().or_fail("start a transaction")?;
    store
        .read(Some(tx), &node)
        .or_fail("read in a transaction")?;
    put(other, &node, b"between")?;
    store
        .write(Some(tx), &node, b"lost")
        .or_fail("write in a transaction")?;
    demand_eq!(
        errno(store.end(tx, true)),
        Some(Errno::EAGAIN),
        "a commit with a conflict"
    );
    demand_eq!(
        get(other, &node)?,
        b"between",
        "the value after the conflict"
    );
    demand_eq!(
        errno(store.end(tx, true)),
        Some(Errno::ENOENT),
        "ending it again"
    );
    // The closure form tries again until it succeeds.
    put(store, &node, b"5")?;
    let mut tries = 0;
    store
        .transaction(|store, tx| {
            tries += 1;
            let value: u32 = store.read_parsed(Some(tx), &node)?;
            if tries == 1 {
                other.write(None, &node, b"7")?;
            }
            store.write_display(Some(tx), &node, &(value + 1))
        })
        .or_fail("increment in a transaction")?;
    demand_eq!(
        (get(store, &node)?, tries),
        (b"8".to_vec(), 2),
        "value and tries after an increment"
    );
    // So does one that stumbles over what others have removed: C xenstored answers EIO to that.
    put(store, &format!("{node}/a/b"), b"1")?;
    let mut tries = 0;
    store
        .transaction::<(), StoreError>(|store, tx| {
            tries += 1;
            let below = format!("{node}/a/b");
            if store.read_optional(Some(tx), &below)?.is_none() {
                return Ok(());
            }
            if tries == 1 {
                other.rm(None, &below)?;
            }
            store.rm(Some(tx), &below)
        })
        .or_fail("remove in a transaction what another removes")?;
    demand_eq!(tries, 2, "tries of a removal beside another");
    Ok(())
}

fn watches(store: &dyn Store, other: &dyn Store, root: &str) -> Outcome {
    let dir = format!("{root}/watched");
    store.watch(&dir, "token").or_fail("watch")?;
    let result = watched(store, other, &dir);
    store.unwatch(&dir, "token").or_fail("unwatch")?;
    result?;
    // What was under way before the removal may still come; after that, silence.
    while store.next_event().or_fail("take events")?.is_some() {}
    put(other, &format!("{dir}/x"), b"unseen")?;
    get(store, &dir)?;
    let event = store.next_event().or_fail("take an event")?;
    demand!(event.is_none(), "an event after unwatch: {event:?}");
    let again = errno(store.unwatch(&dir, "token"));
    demand_eq!(again, Some(Errno::ENOENT), "unwatch of what is not watched");
    Ok(())
}

fn watched(store: &dyn Store, other: &dyn Store, dir: &str) -> Outcome {
    let expect = |path: &str, why: &str| expect_event(store, path, "token", why);
    expect(dir, "setting the watch")?;
    put(other, &format!("{dir}/x"), b"1")?;
    expect(&format!("{dir}/x"), "a write below")?;
    let tx = other.start().or_fail("start a transaction")?;
    other
        .write(Some(tx), &format!("{dir}/y"), b"1")
        .or_fail("write in a transaction")?;
    get(store, &format!("{dir}/x"))?;
    let early = store.next_event().or_fail("take an event")?;
    demand!(early.is_none(), "an event before the commit: {early:?}");
    other.end(tx, true).or_fail("commit")?;
    expect(&format!("{dir}/y"), "the commit")?;
    other.rm(None, &format!("{dir}/y")).or_fail("rm")?;
    expect(&format!("{dir}/y"), "a removal below")?;
    let twice = errno(store.watch(dir, "token"));
    demand_eq!(twice, Some(Errno::EEXIST), "the same watch twice");
    other.rm(None, dir).or_fail("rm")?;
    expect(dir, "the removal of the node itself")?;
    Ok(())
}

/// What `guest`, the connection of domain `dom`, may do with nodes that `dom0` made, all below
/// `/local/domain/<dom>/data` and `/local/domain/<dom>/xlrs-test`.
pub fn rights(dom0: &dyn Store, guest: &dyn Store, dom: DomId) -> Outcome {
    let home = format!("/local/domain/{dom}");
    let ours = format!("{home}/xlrs-test");
    // Below the guest's home, but dom0's own: mode of the first entry is for all who are not listed.
    let rows: [(&str, Vec<Permission>, bool, bool); 5] = [
        ("secret", vec![Permission::owner(DomId::DOM0)], false, false),
        (
            "read",
            vec![
                Permission::owner(DomId::DOM0),
                Permission::new(dom, Access::Read),
            ],
            true,
            false,
        ),
        (
            "write",
            vec![
                Permission::owner(DomId::DOM0),
                Permission::new(dom, Access::Write),
            ],
            false,
            true,
        ),
        (
            "both",
            vec![
                Permission::owner(DomId::DOM0),
                Permission::new(dom, Access::Both),
            ],
            true,
            true,
        ),
        ("own", vec![Permission::owner(dom)], true, true),
    ];
    for (name, permissions, reads, writes) in rows {
        let node = format!("{ours}/{name}");
        put(dom0, &node, b"before")?;
        dom0.set_permissions(None, &node, &permissions)
            .or_fail(format!("permit {node}"))?;
        let refused = |ok: bool| if ok { None } else { Some(Errno::EACCES) };
        demand_eq!(
            errno(guest.read(None, &node)),
            refused(reads),
            "the guest reads {name}"
        );
        demand_eq!(
            errno(guest.write(None, &node, b"after")),
            refused(writes),
            "the guest writes {name}"
        );
        let expected: &[u8] = if writes { b"after" } else { b"before" };
        demand_eq!(
            get(dom0, &node)?,
            expected,
            "the value of {name} afterwards"
        );
        if name != "own" {
            let open = [Permission::new(dom, Access::Both)];
            let found = errno(guest.set_permissions(None, &node, &open));
            demand_eq!(found, Some(Errno::EACCES), "the guest takes {name}");
        }
    }
    for outside in [
        "/xlrs-test-guest",
        "/local/domain/0/xlrs-test-guest",
        "/tool/xlrs-test-guest",
    ] {
        let found = errno(guest.write(None, outside, b"x"));
        demand_eq!(found, Some(Errno::EACCES), "the guest writes {outside}");
    }
    let own = format!("{ours}/own");
    guest
        .write(None, &format!("{own}/below"), b"1")
        .or_fail("the guest writes below its own node")?;
    let found = dom0
        .permissions(None, &format!("{own}/below"))
        .or_fail("read permissions")?;
    demand_eq!(
        found,
        [Permission::owner(dom)],
        "the permissions of a node that the guest made"
    );
    dom0.rm(None, &ours).or_fail("remove the test's nodes")?;
    Ok(())
}

/// The whole store as `path = value` lines, in order: what `xenstore-ls -f` shows.
pub fn dump(store: &dyn Store) -> Outcome<Vec<String>> {
    let mut lines = Vec::new();
    let mut paths = vec![String::new()];
    while let Some(path) = paths.pop() {
        let shown = if path.is_empty() { "/" } else { &path };
        let value = match store.read(None, shown) {
            Ok(value) => value,
            // Gone since its parent was listed.
            Err(error) if error.errno == Errno::ENOENT => continue,
            Err(error) => return Err(Stop::Broken(error.to_string())),
        };
        lines.push(format!("{shown} = {:?}", String::from_utf8_lossy(&value)));
        let names = match store.list(None, shown) {
            Ok(names) => names,
            Err(error) if error.errno == Errno::ENOENT => continue,
            Err(error) => return Err(Stop::Broken(error.to_string())),
        };
        paths.extend(names.iter().map(|name| format!("{path}/{name}")));
    }
    lines.sort();
    Ok(lines)
}

fn expect_event(store: &dyn Store, path: &str, token: &str, why: &str) -> Outcome {
    let deadline = Instant::now() + EVENT_TIMEOUT;
    loop {
        if let Some(event) = store.next_event().or_fail("take an event")? {
            let expected = WatchEvent {
                path: path.to_owned(),
                token: token.to_owned(),
            };
            demand_eq!(event, expected, "the event of {why}");
            return Ok(());
        }
        demand!(
            Instant::now() < deadline,
            "no event of {why} in {EVENT_TIMEOUT:?}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn put(store: &dyn Store, path: &str, value: &[u8]) -> Outcome {
    store.write(None, path, value).or_fail("write")
}

fn get(store: &dyn Store, path: &str) -> Outcome<Vec<u8>> {
    store.read(None, path).or_fail("read")
}

fn children(store: &dyn Store, path: &str) -> Outcome<Vec<String>> {
    let mut names = store.list(None, path).or_fail("list")?;
    names.sort();
    Ok(names)
}

fn errno<T>(result: Result<T, StoreError>) -> Option<Errno> {
    result.err().map(|error| error.errno)
}
