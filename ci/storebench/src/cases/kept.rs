//! What it costs our daemon that another can go on where it was killed: beside a daemon for which that is not so, turn by
//! turn, so that both meet the same moods of the machine.

use std::time::{Duration, Instant};

use super::ops::{Mix, Ops, prepare};
use super::{LIMIT, Settings};
use crate::daemon::{Daemon, Kind, Ours, Place};
use crate::error::{Result, fail};
use crate::load::{Load, Script};

const CLIENTS: usize = 64;
/// Turns of each daemon.
const TURNS: u32 = 11;
/// Operations in a turn, at least.
const LEAST: u64 = 500;

/// The log of requests: WRITE, and transactions, beside a daemon that keeps nothing.
pub fn journal(place: &Place, kind: Kind, settings: &Settings) -> Result<Vec<f64>> {
    let mut values = Vec::new();
    for mix in [Mix::Write, Mix::Transaction] {
        let both = [Ours::WithoutState, Ours::Alone];
        values.extend(compare(place, kind, settings, mix, both)?);
    }
    Ok(values)
}

/// Clients' sockets that a keeper holds: READ beside a daemon without one.
pub fn keeper(place: &Place, kind: Kind, settings: &Settings) -> Result<Vec<f64>> {
    let both = [Ours::Alone, Ours::WithKeeper];
    compare(place, kind, settings, Mix::Read, both)
}

/// The second one's processor time for an operation in microseconds, and by how many percent that is more than the first
/// one's.
fn compare(
    place: &Place,
    kind: Kind,
    settings: &Settings,
    mix: Mix,
    both: [Ours; 2],
) -> Result<Vec<f64>> {
    if kind != Kind::Xlrs {
        return fail("only our daemon is run in several ways");
    }
    let mut first = Side::start(place, both[0], mix)?;
    let mut second = Side::start(place, both[1], mix)?;
    let time = settings.load / TURNS;
    for side in [&mut first, &mut second] {
        side.load.begin(&mut side.ops)?;
        side.load.go_on(&mut side.ops, time * 2)?;
    }
    let (mut costs, mut values) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let [a, b] = [first.turn(time)?, second.turn(time)?];
        costs.push(100.0 * (b / a - 1.0));
        values.push(b);
    }
    Ok(vec![median(values), median(costs)])
}

/// A daemon and its clients.
struct Side {
    daemon: Daemon,
    load: Load,
    ops: Ops,
}

impl Side {
    fn start(place: &Place, ours: Ours, mix: Mix) -> Result<Side> {
        let daemon = place.start_ours(ours)?;
        let (load, ops) = prepare(&daemon, CLIENTS, mix)?;
        Ok(Side { daemon, load, ops })
    }

    /// The daemon's processor time for an operation, in microseconds.
    fn turn(&mut self, time: Duration) -> Result<f64> {
        let (count, cpu) = (self.ops.count(), self.daemon.cpu_time()?);
        let start = Instant::now();
        let mut done = 0;
        // Somebody else may have the processors for longer than a turn.
        while done < LEAST {
            if start.elapsed() > LIMIT {
                return fail(format!("only {done} operations in {LIMIT:?}"));
            }
            self.load.go_on(&mut self.ops, time)?;
            done = self.ops.count() - count;
        }
        let taken = (self.daemon.cpu_time()? - cpu).as_secs_f64();
        Ok(taken * 1e6 / done as f64)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
