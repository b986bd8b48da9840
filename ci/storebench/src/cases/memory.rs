//! What a node costs in memory.

use xs_wire::{Header, Op};

use super::{LIMIT, Settings};
use crate::daemon::{Daemon, Kind, Place};
use crate::error::{Result, fail};
use crate::load::{Bulk, Load, Out, Script};
use crate::plain::refused;

const DIRECTORIES: usize = 1000;
const PER_DIRECTORY: usize = 100;
const WRITERS: usize = 8;

/// Nodes below directories.
pub struct Forest {
    /// Of the nodes that have values, each with its NUL.
    pub paths: Vec<Vec<u8>>,
}

impl Forest {
    /// 100 000 nodes below 1000 directories.
    pub fn new() -> Forest {
        let path = |n: usize| {
            let (directory, node) = (n / PER_DIRECTORY, n % PER_DIRECTORY);
            format!("/bench/forest/{directory}/node{node}\0").into_bytes()
        };
        let paths = (0..DIRECTORIES * PER_DIRECTORY).map(path).collect();
        Forest { paths }
    }

    /// Writes them all.
    pub fn plant(&self, daemon: &Daemon) -> Result<()> {
        let writes = self.paths.iter().enumerate().map(|(n, path)| {
            let value = format!("{n:016}");
            (Op::Write, [path, value.as_bytes()].concat())
        });
        Load::connect(daemon, 4)?.finish(&mut Bulk::new(writes, 16), LIMIT)
    }
}

pub fn per_node(place: &Place, kind: Kind, settings: &Settings) -> Result<Vec<f64>> {
    let forest = Forest::new();
    let nodes = (forest.paths.len() + DIRECTORIES) as f64;
    let daemon = place.start(kind)?;
    let before = daemon.resident_bytes()?;
    let per_node = |daemon: &Daemon| {
        let now = daemon.resident_bytes()?;
        Ok(now.saturating_sub(before) as f64 / nodes)
    };
    forest.plant(&daemon)?;
    let built = per_node(&daemon)?;
    let mut churn = Churn {
        paths: &forest.paths,
        random: Random::new(),
        done: 0,
    };
    let mut load = Load::connect(&daemon, WRITERS)?;
    load.begin(&mut churn)?;
    load.go_on(&mut churn, settings.churn)?;
    drop(load);
    Ok(vec![built, per_node(&daemon)?])
}

/// Random values of 16 bytes, written to random nodes.
struct Churn<'a> {
    paths: &'a [Vec<u8>],
    random: Random,
    done: u64,
}

impl Churn<'_> {
    fn next(&mut self, out: &mut Out<'_>) {
        let value = format!("{:016x}", self.random.next());
        let path = self.random.pick(self.paths);
        out.request(Op::Write, 0, &[path, value.as_bytes()]);
    }
}

impl Script for Churn<'_> {
    fn begin(&mut self, _: usize, out: &mut Out<'_>) -> Result<()> {
        for _ in 0..4 {
            self.next(out);
        }
        Ok(())
    }

    fn message(&mut self, _: usize, header: &Header, body: &[u8], out: &mut Out<'_>) -> Result<()> {
        if header.op == Op::Error.code() {
            return fail(refused(Op::Write, &[], body));
        }
        self.done += 1;
        self.next(out);
        Ok(())
    }

    fn count(&self) -> u64 {
        self.done
    }
}

/// Numbers that look random and are the same each time (xorshift).
pub struct Random(u64);

impl Random {
    /// At the beginning.
    pub fn new() -> Random {
        Random(0x9e37_79b9_7f4a_7c15)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Any of these.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[(self.next() >> 11) as usize % from.len()]
    }
}
