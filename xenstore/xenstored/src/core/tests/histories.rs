//! Serialisability: whatever is interleaved, the transactions that committed answer the same when they are run one
//! after the other in the order of their commits, and lead to the same tree.

use proptest::prelude::*;
use xen_sys::Errno;
use xs_wire::Request;

use super::old_trees::bounds_of_age;
use super::turns::start_at_last;
use super::*;

const CLIENTS: usize = 4;

#[derive(Clone, Debug)]
enum Act {
    Read(&'static str),
    List(&'static str),
    Perms(&'static str),
    Write(&'static str, u8),
    Mkdir(&'static str),
    Rm(&'static str),
    SetPerms(&'static str, &'static str),
}

#[derive(Clone, Debug)]
enum Step {
    Start,
    Act(Act),
    End,
}

type Answer = Result<Vec<u8>, Errno>;

fn act() -> impl Strategy<Value = Act> {
    let path = || {
        let paths = &[
            "/a", "/a/b", "/a/c", "/a/b/d", "/e", "/e/f", "/e/f/g", "/b0", "/b0/x", "/b0/x/y",
        ];
        proptest::sample::select(&paths[..])
    };
    let list = proptest::sample::select(&["n0", "b0", "r0 b1", "n1", "w1 r2", "n2 b1"][..]);
    prop_oneof![
        3 => path().prop_map(Act::Read),
        2 => path().prop_map(Act::List),
        1 => path().prop_map(Act::Perms),
        4 => (path(), 0u8..3).prop_map(|(path, value)| Act::Write(path, value)),
        2 => path().prop_map(Act::Mkdir),
        2 => path().prop_map(Act::Rm),
        1 => (path(), list).prop_map(|(path, list)| Act::SetPerms(path, list)),
    ]
}

fn step() -> impl Strategy<Value = (usize, Step)> {
    let step = prop_oneof![
        2 => Just(Step::Start),
        8 => act().prop_map(Step::Act),
        2 => Just(Step::End),
    ];
    (0..CLIENTS, step)
}

/// Two clients of dom0's and two guests, beside a tree with something for each.
fn store() -> (Store, [ConnId; CLIENTS]) {
    let mut s = Store::new();
    let conns = [D0, D0B, s.guest(1), s.guest(2)];
    s.put("/b0", "", "b0");
    s.put("/a", "", "r0 b1");
    (s, conns)
}

fn run(s: &mut Store, conn: ConnId, tx: u32, act: &Act) -> Answer {
    match act {
        Act::Read(path) => s.ask(conn, tx, Request::Read(path.as_bytes())),
        Act::List(path) => s.ask(conn, tx, Request::Directory(path.as_bytes())),
        Act::Perms(path) => s.ask(conn, tx, Request::GetPerms(path.as_bytes())),
        Act::Write(path, value) => s.ask(conn, tx, Request::Write(path.as_bytes(), &[*value])),
        Act::Mkdir(path) => s.ask(conn, tx, Request::Mkdir(path.as_bytes())),
        Act::Rm(path) => s.ask(conn, tx, Request::Rm(path.as_bytes())),
        Act::SetPerms(path, list) => s.set_perms(conn, tx, path, list).map(|()| Vec::new()),
    }
}

fn changes(act: &Act, answer: &Answer) -> bool {
    let reads = matches!(act, Act::Read(_) | Act::List(_) | Act::Perms(_));
    !reads && answer.is_ok()
}

fn dump(s: &Store) -> Vec<(String, Vec<u8>, String)> {
    let mut all = Vec::new();
    s.core.tree().walk(&mut |path, node, _| {
        let list = format!("{:?}", node.acl().permissions(|_| true));
        all.push((path.to_owned(), node.value().to_vec(), list));
        true
    });
    all
}

/// What a client did as one: acts with their answers.
#[derive(Clone, Debug, Default)]
struct Whole {
    client: usize,
    acts: Vec<(Act, Answer)>,
    /// How many had committed when it started.
    since: usize,
}

/// Runs these one after the other; which of them has another answer than it had, if one has.
fn replay(wholes: &[Whole]) -> Result<Store, String> {
    let (mut s, conns) = store();
    for whole in wholes {
        for (act, answer) in &whole.acts {
            let again = run(&mut s, conns[whole.client], 0, act);
            if &again != answer {
                return Err(format!("{again:?} to {act:?} of {whole:?}"));
            }
        }
    }
    Ok(s)
}

/// How many histories are tried, each of up to 80 steps and about 8 transactions: `HISTORIES` says it.
fn histories() -> u32 {
    let text = std::env::var("HISTORIES").ok();
    text.map_or(256, |text| text.parse().expect("HISTORIES is a number"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: histories(), ..ProptestConfig::default() })]
    #[test]
    fn every_history_is_serialisable(
        old in proptest::sample::select(bounds_of_age()),
        steps in proptest::collection::vec(step(), 0..80),
    ) {
        let (mut s, conns) = store();
        s.core.old_trees = old;
        let mut open: [Option<(u32, Whole)>; CLIENTS] = Default::default();
        let mut serial: Vec<Whole> = Vec::new();
        let mut readers: Vec<(Whole, usize)> = Vec::new();
        for (client, step) in steps {
            let conn = conns[client];
            match step {
                Step::Start if open[client].is_none() => {
                    let whole = Whole { client, acts: Vec::new(), since: serial.len() };
                    open[client] = Some((start_at_last(&mut s, conn), whole));
                }
                Step::Act(act) => match &mut open[client] {
                    Some((tx, whole)) => {
                        let answer = run(&mut s, conn, *tx, &act);
                        whole.acts.push((act, answer));
                    }
                    None => {
                        let answer = run(&mut s, conn, 0, &act);
                        serial.push(Whole { client, acts: vec![(act, answer)], since: 0 });
                    }
                },
                Step::End => if let Some((tx, whole)) = open[client].take() {
                    let writes = whole.acts.iter().any(|(act, answer)| changes(act, answer));
                    match s.commit(conn, tx) {
                        Ok(()) if writes => serial.push(whole),
                        Ok(()) => readers.push((whole, serial.len())),
                        Err(errno) => prop_assert_eq!(errno, Errno::EAGAIN),
                    }
                },
                Step::Start => {}
            }
        }
        s.check();
        prop_assert_eq!(dump(&replay(&serial).unwrap()), dump(&s));
        // Who has only read saw the state of its start, or a later one if it went on from that.
        for (reader, until) in readers {
            let saw = |count: usize| {
                let mut before = serial[..count].to_vec();
                before.push(reader.clone());
                replay(&before).is_ok()
            };
            let mut may_be = reader.since..=if old.guests < 1 << 20 { until } else { reader.since };
            prop_assert!(may_be.any(saw), "{:?}", reader);
        }
    }
}
