//! Contention: all clients change one node.

use xs_wire::{Header, Op};

use super::Settings;
use super::ops::parse_tx;
use crate::daemon::{Kind, Place};
use crate::error::{Result, fail};
use crate::load::{Load, Out, Script};
use crate::plain::{Plain, refused};

const CLIENTS: usize = 64;
const PATH: &[u8] = b"/bench/counter\0";

pub fn counter(place: &Place, kind: Kind, settings: &Settings) -> Result<Vec<f64>> {
    let daemon = place.start(kind)?;
    let mut plain = Plain::connect(&daemon.socket())?;
    plain.ask(Op::Write, 0, &[PATH, b"0"])?;
    let mut load = Load::connect(&daemon, CLIENTS)?;
    let mut script = Adders {
        tx: [0; CLIENTS],
        commits: [0; CLIENTS],
    };
    load.begin(&mut script)?;
    load.go_on(&mut script, settings.load / 5)?;
    let before = script.commits;
    let start = std::time::Instant::now();
    // Long enough for each client to have had many turns.
    load.go_on(&mut script, settings.load * 4)?;
    let seconds = start.elapsed().as_secs_f64();
    drop(load);
    // What was committed is there: to the last of it.
    let value = plain.ask(Op::Read, 0, &[PATH])?;
    let value: u64 = number(&value)?;
    let known: u64 = script.commits.iter().sum();
    // Each connection may have had one commit on the way.
    if value < known || value > known + CLIENTS as u64 {
        return fail(format!("{known} commits made the counter {value}"));
    }
    let mut turns = [0; CLIENTS];
    for (turns, (now, before)) in turns.iter_mut().zip(script.commits.iter().zip(before)) {
        *turns = now - before;
    }
    let all = turns.iter().sum::<u64>() as f64;
    let least = turns.iter().min().copied().unwrap_or(0) as f64;
    Ok(vec![all / seconds, least * CLIENTS as f64 / all.max(1.0)])
}

struct Adders {
    tx: [u32; CLIENTS],
    commits: [u64; CLIENTS],
}

impl Script for Adders {
    fn begin(&mut self, _: usize, out: &mut Out<'_>) -> Result<()> {
        out.request(Op::TransactionStart, 0, &[b"\0"]);
        Ok(())
    }

    fn message(
        &mut self,
        client: usize,
        header: &Header,
        body: &[u8],
        out: &mut Out<'_>,
    ) -> Result<()> {
        match Op::from_code(header.op) {
            Some(Op::TransactionStart) => {
                self.tx[client] = parse_tx(body)?;
                out.request(Op::Read, self.tx[client], &[PATH]);
            }
            Some(Op::Read) => {
                let value = (number(body)? + 1).to_string();
                out.request(Op::Write, self.tx[client], &[PATH, value.as_bytes()]);
            }
            Some(Op::Write) => out.request(Op::TransactionEnd, self.tx[client], &[b"T\0"]),
            Some(Op::TransactionEnd) => {
                self.commits[client] += 1;
                self.begin(client, out)?;
            }
            _ if body == b"EAGAIN\0" => self.begin(client, out)?,
            _ => return fail(refused(Op::Error, &[PATH], body)),
        }
        Ok(())
    }

    fn count(&self) -> u64 {
        self.commits.iter().sum()
    }
}

fn number(body: &[u8]) -> Result<u64> {
    let text = String::from_utf8_lossy(body);
    match text.parse() {
        Ok(number) => Ok(number),
        Err(_) => fail(format!("the counter reads {text:?}")),
    }
}
