//! Where fuzzing begins: input that is nearly right, made from a number.

use xen_sys::{DomId, Port};
use xenstored::core::ConnId;
use xs_stream::{Access, Connection, Peer, Permission, Quota, Watch, Writer};
use xs_wire::{Header, Op};

/// A small generator of numbers (xorshift64*): a seed replays a failure.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, most: usize) -> usize {
        (self.next() >> 33) as usize % most
    }

    fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }
}

const WORDS: [&str; 28] = [
    "/",
    "a",
    "a/b",
    "a/b/c",
    "/local",
    "/local/domain/1",
    "/local/domain/1/x",
    "/tool",
    "@releaseDomain",
    "@releaseDomain/1",
    "@introduceDomain",
    "token",
    "0",
    "1",
    "2",
    "7",
    "32757",
    "n0",
    "n1",
    "b1",
    "r0",
    "T",
    "F",
    "nodes",
    "memory",
    "check",
    "quota",
    "99999999999",
];

/// A message that could be one.
fn message(random: &mut Random) -> Vec<u8> {
    let mut body = Vec::new();
    for _ in 0..random.below(5) {
        body.extend_from_slice(random.pick(&WORDS).as_bytes());
        if random.below(20) > 0 {
            body.push(0);
        }
    }
    if random.below(8) == 0 {
        let len = random.below(4200);
        body.extend((0..len).map(|n| n as u8));
    }
    let op = match random.below(12) {
        0 => random.below(40) as u32,
        _ => Op::ALL[random.below(Op::ALL.len())].code(),
    };
    let len = match random.below(200) {
        0 => random.next() as u32,
        _ => body.len() as u32,
    };
    let header = Header {
        op,
        req_id: random.next() as u32,
        tx_id: random.below(6) as u32,
        len,
    };
    [&header.encode()[..], &body].concat()
}

/// Some dozens of messages, behind a byte that says what a guest does.
fn messages(random: &mut Random) -> Vec<u8> {
    let mut bytes = vec![random.next() as u8];
    for _ in 0..random.below(60) {
        bytes.extend(message(random));
    }
    bytes
}

/// A stream as C xenstored writes it.
fn stream(random: &mut Random) -> Vec<u8> {
    let mut to = Writer::new(1 + random.below(2) as u32);
    to.global(3, 4);
    let conns = random.below(5) as u32;
    for id in 1..=conns {
        let (input, output) = (message(random), message(random));
        let peer = match random.below(2) {
            0 => Peer::Socket(5 + id as i32),
            _ => Peer::Ring {
                dom: DomId(id as u16),
                target: (random.below(3) == 0).then_some(DomId(1)),
                port: Port(random.below(3) as u32),
            },
        };
        to.connection(&Connection {
            id,
            peer,
            input: &input[..random.below(input.len())],
            output: &output,
            partial: random.below(2) * output.len(),
            unique_id: (random.below(2) == 0).then_some(7),
        });
        for _ in 0..random.below(4) {
            to.watch(&Watch {
                conn: id,
                path: random.pick(&WORDS).as_bytes(),
                token: random.pick(&WORDS).as_bytes(),
                depth: (random.below(2) == 0).then_some(1),
            });
        }
        to.transaction(id, 1);
    }
    let acl = |random: &mut Random| {
        let entry = |_| Permission {
            dom: DomId(random.below(5) as u16),
            access: Access::Both,
            stale: random.below(4) == 0,
        };
        (0..2).map(entry).collect::<Vec<_>>()
    };
    for path in [
        "@releaseDomain",
        "/",
        "/a",
        "/a/b",
        "/local",
        "/local/domain",
        "/a/b/c",
    ] {
        to.node(
            path.as_bytes(),
            random.pick(&WORDS).as_bytes(),
            acl(random).into_iter(),
        );
    }
    let quotas = [
        Quota {
            name: b"nodes",
            value: random.below(99) as u32,
        },
        Quota {
            name: b"other",
            value: 0,
        },
    ];
    to.global_quota(&quotas);
    for dom in 0..conns {
        to.domain(DomId(dom as u16), random.below(16) as u32, &quotas);
    }
    to.finish()
}

/// A whole store as bytes, with whatever random requests have led to.
fn state(random: &mut Random) -> Vec<u8> {
    let mut core = super::core();
    for _ in 0..random.below(80) {
        let message = message(random);
        let (header, body) = message.split_first_chunk().expect("a header");
        let mut header = Header::decode(header);
        header.len = body.len() as u32;
        let conn = ConnId(1 + random.below(4) as u64);
        core.request(&mut super::Mute, conn, &header, body);
    }
    core.export().encode()
}

/// The input of this number for a target.
pub fn input(target: &str, seed: u64) -> Vec<u8> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut bytes = match target {
        "update" => stream(&mut random),
        "state" => state(&mut random),
        _ => messages(&mut random),
    };
    // Now and then some bytes are others.
    if random.below(3) == 0 {
        for _ in 0..random.below(8) {
            let at = random.below(bytes.len());
            bytes[at] = random.next() as u8;
        }
    }
    bytes
}

/// Writes some inputs into the folder that `FUZZ_SEEDS` names, if it does.
pub fn write(target: &str) {
    let Some(folder) = std::env::var_os("FUZZ_SEEDS") else {
        return;
    };
    let folder = std::path::Path::new(&folder);
    for seed in 1..=200 {
        let file = folder.join(format!("seed-{seed}"));
        std::fs::write(file, input(target, seed)).expect("the folder can be written");
    }
}
