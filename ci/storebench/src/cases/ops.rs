//! READ, WRITE and transactions on nodes of each client's own.

use std::time::Duration;

use xs_wire::{Header, Op};

use super::memory::{Forest, Random};
use super::{LIMIT, Settings};
use crate::daemon::{Daemon, Kind, Place};
use crate::error::{Context, Result, fail};
use crate::load::{Bulk, Load, Measured, Out, Script};
use crate::plain::{Plain, refused};

/// Nodes that each client has.
const NODES: usize = 16;
const VALUE: [u8; 16] = *b"0123456789abcdef";
const IDLE: usize = 4000;
const WINDOW: usize = 16;

/// What each client does over and over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// A READ.
    Read,
    /// A WRITE.
    Write,
    /// Start, READ, WRITE, commit.
    Transaction,
}

pub fn read(place: &Place, kind: Kind, settings: &Settings) -> Result<Vec<f64>> {
    by_clients(place, kind, settings, Mix::Read)
}

pub fn write(place: &Place, kind: Kind, settings: &Settings) -> Result<Vec<f64>> {
    by_clients(place, kind, settings, Mix::Write)
}

pub fn transaction(place: &Place, kind: Kind, settings: &Settings) -> Result<Vec<f64>> {
    by_clients(place, kind, settings, Mix::Transaction)
}

/// Rates with 1, 8 and 64 clients, and the processor time with 64.
fn by_clients(place: &Place, kind: Kind, settings: &Settings, mix: Mix) -> Result<Vec<f64>> {
    let daemon = place.start(kind)?;
    let mut values = Vec::new();
    for clients in [1, 8, 64] {
        let measured = measure(&daemon, clients, mix, settings.load)?;
        values.push(measured.rate);
        if clients == 64 {
            values.push(measured.cpu_us);
        }
    }
    Ok(values)
}

pub fn big(place: &Place, kind: Kind, settings: &Settings) -> Result<Vec<f64>> {
    let daemon = place.start(kind)?;
    let forest = Forest::new();
    forest.plant(&daemon)?;
    let mut load = Load::connect(&daemon, 8)?;
    let mut random = Random::new();
    let reads = std::iter::repeat_with(|| (Op::Read, random.pick(&forest.paths).clone()));
    let reads = load.measure(&daemon, &mut Bulk::new(reads, WINDOW), settings.load)?;
    drop(load);
    let transactions = measure(&daemon, 64, Mix::Transaction, settings.load)?;
    Ok(vec![
        reads.rate,
        reads.cpu_us,
        transactions.rate,
        transactions.cpu_us,
    ])
}

pub fn idle(place: &Place, kind: Kind, settings: &Settings) -> Result<Vec<f64>> {
    let daemon = place.start(kind)?;
    let without = measure(&daemon, 8, Mix::Read, settings.load)?.rate;
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        idle.push(Plain::connect(&daemon.socket())?);
    }
    // The last one is served, so all are accepted.
    if let Some(last) = idle.last_mut() {
        last.ask(Op::Directory, 0, &[b"/\0"])?;
    }
    let with = measure(&daemon, 8, Mix::Read, settings.load)?.rate;
    Ok(vec![with, 100.0 * with / without])
}

fn measure(daemon: &Daemon, clients: usize, mix: Mix, time: Duration) -> Result<Measured> {
    let (mut load, mut ops) = prepare(daemon, clients, mix)?;
    load.measure(daemon, &mut ops, time)
}

/// Clients that are connected and have their nodes.
pub fn prepare(daemon: &Daemon, clients: usize, mix: Mix) -> Result<(Load, Ops)> {
    let ops = Ops::new(clients, mix);
    let mut load = Load::connect(daemon, clients)?;
    let writes = ops.paths.iter().flatten().map(|path| {
        let body = [&path[..], &VALUE].concat();
        (Op::Write, body)
    });
    let writes: Vec<_> = writes.collect();
    load.finish(&mut Bulk::new(writes.into_iter(), 4), LIMIT)?;
    Ok((load, ops))
}

/// Clients that each do the same over and over, on nodes of their own.
pub struct Ops {
    mix: Mix,
    /// By client; each with its NUL.
    paths: Vec<Vec<Vec<u8>>>,
    clients: Vec<State>,
    done: u64,
}

/// Where a client stands.
#[derive(Clone, Default)]
struct State {
    turn: u64,
    tx: u32,
}

impl Ops {
    fn new(clients: usize, mix: Mix) -> Ops {
        let path = |client, node| {
            let dom = client + 1;
            format!("/local/domain/{dom}/device/vif/{node}/state\0").into_bytes()
        };
        let paths = (0..clients).map(|c| (0..NODES).map(|n| path(c, n)).collect());
        Ops {
            mix,
            paths: paths.collect(),
            clients: vec![State::default(); clients],
            done: 0,
        }
    }

    fn path(&self, client: usize) -> &[u8] {
        let turn = self.clients[client].turn as usize;
        &self.paths[client][turn % NODES]
    }

    fn write(&self, client: usize, tx: u32, out: &mut Out<'_>) {
        let turn = self.clients[client].turn;
        let value: [[u8; 8]; 2] = [turn.to_le_bytes(), turn.to_be_bytes()];
        out.request(Op::Write, tx, &[self.path(client), value.as_flattened()]);
    }

    /// Begins a turn.
    fn next(&self, client: usize, out: &mut Out<'_>) {
        match self.mix {
            Mix::Read => out.request(Op::Read, 0, &[self.path(client)]),
            Mix::Write => self.write(client, 0, out),
            Mix::Transaction => out.request(Op::TransactionStart, 0, &[b"\0"]),
        }
    }
}

impl Script for Ops {
    fn begin(&mut self, client: usize, out: &mut Out<'_>) -> Result<()> {
        self.next(client, out);
        Ok(())
    }

    fn message(
        &mut self,
        client: usize,
        header: &Header,
        body: &[u8],
        out: &mut Out<'_>,
    ) -> Result<()> {
        let in_transaction = self.mix == Mix::Transaction;
        match Op::from_code(header.op) {
            Some(Op::TransactionStart) => {
                let tx = parse_tx(body)?;
                self.clients[client].tx = tx;
                out.request(Op::Read, tx, &[self.path(client)]);
                return Ok(());
            }
            Some(Op::Read) if in_transaction => {
                self.write(client, self.clients[client].tx, out);
                return Ok(());
            }
            Some(Op::Write) if in_transaction => {
                out.request(Op::TransactionEnd, self.clients[client].tx, &[b"T\0"]);
                return Ok(());
            }
            // A commit that conflicts is no commit.
            Some(Op::Error) if in_transaction && body == b"EAGAIN\0" => {}
            Some(Op::Error) => {
                return fail(refused(Op::Error, &[self.path(client)], body));
            }
            _ => self.done += 1,
        }
        self.clients[client].turn += 1;
        self.next(client, out);
        Ok(())
    }

    fn count(&self) -> u64 {
        self.done
    }
}

/// A transaction's number from the reply to its start.
pub fn parse_tx(body: &[u8]) -> Result<u32> {
    let text = String::from_utf8_lossy(body);
    let text = text.trim_end_matches('\0');
    text.parse()
        .context(|| format!("the number of a transaction, {text:?}"))
}
