//! Random and mutated requests, over a socket and a ring. `FUZZ_RUNS` says how many (each of some dozens of messages),
//! `FUZZ_SEED` where to begin; a failure names its seed. cargo-fuzz does the same with coverage: see `xenstore/fuzz`.

mod targets;

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

fn input(random: &mut Random) -> Vec<u8> {
    let mut bytes = vec![random.next() as u8];
    for _ in 0..random.below(60) {
        bytes.extend(message(random));
    }
    // Now and then some bytes are others.
    if random.below(3) == 0 {
        for _ in 0..random.below(8) {
            let at = random.below(bytes.len());
            bytes[at] = random.next() as u8;
        }
    }
    bytes
}

fn number(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.parse().expect("a number"))
}

fn run(target: fn(&[u8])) {
    let first = number("FUZZ_SEED", 1);
    for seed in first..first + number("FUZZ_RUNS", 150) {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let bytes = input(&mut random);
        let outcome = std::panic::catch_unwind(|| target(&bytes));
        assert!(outcome.is_ok(), "FUZZ_SEED={seed} FUZZ_RUNS=1 fails again");
    }
}

#[test]
fn sockets() {
    run(targets::socket);
}

#[test]
fn rings() {
    run(targets::ring);
}
