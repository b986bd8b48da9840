//! A store that was exported and imported goes on as if nothing had been.

use std::time::Duration;

use proptest::prelude::*;
use xs_wire::Request;

use super::super::state::State;
use super::old_trees::bounds_of_age;
use super::*;

const CLIENTS: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    /// A request in the client's n-th open transaction, if it has so many, else outside.
    Ask(usize, &'static str, Vec<u8>, Option<usize>),
    Start(usize),
    End(usize, usize, bool),
    Quota(Option<u16>, u32),
    Target(u16, u16),
    Shutdown(u16),
    Die(u16),
    Born(u16),
    /// Its number is another domain's from now on, which nobody has told.
    Replace(u16, u64),
    Detach,
    Pass(u64),
}

/// Requests by a short name.
fn request(name: &str, body: &[u8]) -> (Op, Vec<u8>) {
    let path = PATHS[usize::from(body[0]) % PATHS.len()].as_bytes();
    let list = LISTS[usize::from(body[1]) % LISTS.len()];
    let list = list
        .split(' ')
        .map(|word| Permission::parse(word.as_bytes()).unwrap());
    let token = &TOKENS[usize::from(body[1]) % TOKENS.len()];
    let depth = [None, Some(0), Some(1)][usize::from(body[1]) % 3];
    let request = match name {
        "read" => Request::Read(path),
        "list" => Request::Directory(path),
        "part" => Request::DirectoryPart(path, 0),
        "perms" => Request::GetPerms(path),
        "write" => Request::Write(path, &body[1..]),
        "mkdir" => Request::Mkdir(path),
        "rm" => Request::Rm(path),
        "set-perms" => Request::SetPerms(path, list.collect()),
        "watch" => Request::Watch(path, token.as_bytes(), depth),
        "unwatch" => Request::Unwatch(path, token.as_bytes()),
        "reset" => Request::ResetWatches,
        _ => unreachable!("{name}"),
    };
    let mut encoded = Vec::new();
    request.encode(&mut encoded).unwrap();
    (request.op(), encoded)
}

const PATHS: [&str; 16] = [
    "/a",
    "/a/b",
    "/a/c",
    "/a/b/d",
    "/e",
    "/e/f",
    "/e/f/g",
    "/b0",
    "/b0/x",
    "/b0/x/y",
    "rel",
    "rel/x",
    "/b0/z",
    "/a/b/d/e",
    "@releaseDomain",
    "@releaseDomain/1",
];
const LISTS: [&str; 7] = ["n0", "b0", "r0 b1", "n1", "w1 r2", "n2 b1", "n0 n3"];
const TOKENS: [&str; 3] = ["one", "two", ""];

fn step() -> impl Strategy<Value = Step> {
    let names = &[
        "read",
        "read",
        "list",
        "part",
        "perms",
        "write",
        "write",
        "write",
        "mkdir",
        "rm",
        "set-perms",
        "watch",
        "watch",
        "unwatch",
        "reset",
    ];
    let name = proptest::sample::select(&names[..]);
    let body = proptest::collection::vec(any::<u8>(), 2..4);
    let client = || 0..CLIENTS;
    let dom = || 1u16..4;
    prop_oneof![
        30 => (client(), name, body, proptest::option::weighted(0.7, 0usize..3))
            .prop_map(|(who, name, body, tx)| Step::Ask(who, name, body, tx)),
        8 => client().prop_map(Step::Start),
        5 => (client(), 0usize..3, any::<bool>()).prop_map(|(who, n, commit)| Step::End(who, n, commit)),
        1 => (proptest::option::of(dom()), 0u32..12).prop_map(|(dom, value)| Step::Quota(dom, value)),
        1 => (dom(), dom()).prop_map(|(dom, target)| Step::Target(dom, target)),
        1 => dom().prop_map(Step::Shutdown),
        1 => dom().prop_map(Step::Die),
        1 => dom().prop_map(Step::Born),
        1 => (dom(), 1u64..4).prop_map(|(dom, identity)| Step::Replace(dom, identity)),
        1 => Just(Step::Detach),
        2 => (0u64..4).prop_map(Step::Pass),
    ]
}

/// Two clients of dom0's and two guests, beside a tree with something for each.
fn store() -> (Store, [ConnId; CLIENTS]) {
    let mut s = Store::new();
    let conns = [D0, D0B, s.guest(1), s.guest(2)];
    s.put("/b0", "", "b0");
    s.put("/a", "", "r0 b1");
    (s, conns)
}

/// Does a step; all that is sent because of it, by connection.
fn run(s: &mut Store, conns: &[ConnId], step: &Step) -> Vec<(ConnId, Sent)> {
    let tx = |s: &Store, who: usize, n: usize| {
        let client = s.core.conns.get(&conns[who])?;
        let mut open: Vec<u32> = client.transactions.keys().copied().collect();
        open.sort_unstable();
        open.get(n).copied()
    };
    let send = |s: &mut Store, conn, op: Op, tx_id, body: &[u8]| {
        let len = body.len() as u32;
        let header = Header {
            op: op.code(),
            req_id: 9,
            tx_id,
            len,
        };
        s.core.request(&mut s.world, conn, &header, body);
    };
    let ask = |s: &mut Store, request: Request<'_>| {
        let mut body = Vec::new();
        request.encode(&mut body).unwrap();
        send(s, D0B, request.op(), 0, &body);
    };
    match step {
        Step::Ask(who, name, body, n) => {
            let tx = n.and_then(|n| tx(s, *who, n)).unwrap_or(0);
            let (op, body) = request(name, body);
            send(s, conns[*who], op, tx, &body);
        }
        Step::Start(who) => send(s, conns[*who], Op::TransactionStart, 0, b"\0"),
        Step::End(who, n, commit) => {
            let tx = tx(s, *who, *n).unwrap_or(77);
            let body = if *commit { b"T\0" } else { b"F\0" };
            send(s, conns[*who], Op::TransactionEnd, tx, body);
        }
        Step::Quota(dom, value) => {
            ask(s, Request::SetQuota(dom.map(DomId), b"nodes", *value));
        }
        Step::Target(dom, target) => ask(s, Request::SetTarget(DomId(*dom), DomId(*target))),
        Step::Shutdown(dom) => {
            s.world.domains.insert(*dom, DomainState::Shutdown);
            s.core.domains_changed(&mut s.world);
        }
        Step::Die(dom) => {
            s.world.domains.remove(dom);
            s.core.domains_changed(&mut s.world);
        }
        Step::Born(dom) => {
            s.world.domains.insert(*dom, DomainState::Running);
            ask(s, Request::Introduce(DomId(*dom), 7, Port(5)));
        }
        Step::Replace(dom, identity) => {
            s.world.identities.insert(*dom, *identity);
        }
        Step::Detach => s.core.detach(D0),
        Step::Pass(ms) => {
            let now = s.core.turns.now() + Duration::from_millis(*ms);
            s.core.pass_time(&mut s.world, now);
        }
    }
    let mut sent = std::mem::take(&mut s.world.sent);
    sent.sort_by_key(|(conn, _)| *conn);
    sent
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]
    #[test]
    fn goes_on_as_before(
        old in proptest::sample::select(bounds_of_age()),
        before in proptest::collection::vec(step(), 0..80),
        after in proptest::collection::vec(step(), 0..60),
    ) {
        let (mut s, conns) = store();
        s.core.old_trees = old;
        for step in &before {
            run(&mut s, &conns, step);
        }
        let state = s.core.export();
        let bytes = state.encode();
        let read = State::decode(&bytes).unwrap();
        prop_assert_eq!(&read, &state);
        let mut new = Store { core: Core::import(read), world: s.world.clone() };
        new.core.old_trees = old;
        prop_assert_eq!(new.core.export(), state.clone());
        for step in &after {
            let answers = run(&mut s, &conns, step);
            prop_assert_eq!(run(&mut new, &conns, step), answers, "{:?}", step);
        }
        prop_assert_eq!(new.core.export(), s.core.export());
        new.check_counts();
        // Nor did the state change with the store that it was taken from.
        let third = Core::import(state.clone());
        prop_assert_eq!(third.export(), state);
    }
}

proptest! {
    /// Whatever the bytes, there is a state that can be gone on from, or an error.
    #[test]
    fn broken_bytes_are_an_error(
        steps in proptest::collection::vec(step(), 0..40),
        changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..6),
        cut in any::<u16>(),
    ) {
        let (mut s, conns) = store();
        for step in &steps {
            run(&mut s, &conns, step);
        }
        let bytes = s.core.export().encode();
        prop_assert!(State::decode(&bytes[..usize::from(cut) % bytes.len()]).is_err());
        let mut changed = bytes.clone();
        for (at, byte) in changes {
            let at = usize::from(at) % changed.len();
            changed[at] = byte;
        }
        if let Ok(state) = State::decode(&changed) {
            // The world of the tests insists on knowing whom it is asked to part with, once.
            let of_domains = state.domains.iter().filter_map(|domain| Some((domain.conn?.0, domain.who.dom.0)));
            s.world.connected = of_domains.clone().map(|(conn, dom)| (conn, (dom, 0))).collect();
            prop_assume!(of_domains.count() == s.world.connected.len());
            s.core = Core::import(state);
            for step in &steps {
                run(&mut s, &conns, step);
            }
        }
    }
}

#[test]
fn what_old_transactions_see_is_told_once() {
    let mut s = Store::new();
    for n in 0..50 {
        s.put(&format!("/many/{n}"), "x", "n0");
    }
    for n in 0..20 {
        s.start(D0);
        s.start(D0);
        s.put(&format!("/many/{n}"), "y", "n0");
        s.put(&format!("/new/{n}"), "y", "n0");
    }
    let state = s.core.export();
    assert_eq!(state.versions.len(), 20);
    let deltas: usize = state.versions.iter().map(|v| v.undo.len()).sum();
    assert!(deltas <= 20 * 4, "{deltas}");
    let transactions = state.versions.iter().map(|v| v.transactions.len());
    assert_eq!(transactions.sum::<usize>(), 40);
}
