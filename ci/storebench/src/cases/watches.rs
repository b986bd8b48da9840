//! Watches that have nothing to do with what changes.

use std::time::{Duration, Instant};

use xs_wire::Op;

use super::{LIMIT, Settings};
use crate::daemon::{Daemon, Kind, Place};
use crate::error::Result;
use crate::load::{Bulk, Load};
use crate::plain::Plain;

/// Connections, and the watches of each.
const WATCHERS: usize = 20;
const WATCHES: usize = 1000;

const PATH: &[u8] = b"/local/domain/0/backend/vif/1/0/state\0";

pub fn unrelated(place: &Place, kind: Kind, settings: &Settings) -> Result<Vec<f64>> {
    let daemon = place.start(kind)?;
    let without = events(&daemon, settings.load)?;
    let mut load = Load::connect(&daemon, WATCHERS)?;
    let watches = (0..WATCHERS * WATCHES).map(|n| {
        let path = format!("/local/domain/{}/device/vif/{n}/state", n % 997);
        let body = format!("{path}\0token{n}\0").into_bytes();
        (Op::Watch, body)
    });
    load.finish(&mut Bulk::new(watches, 8), LIMIT)?;
    let with = events(&daemon, settings.load)?;
    Ok(vec![with, 100.0 * with / without])
}

/// A client writes, another waits for the event: so many times a second.
fn events(daemon: &Daemon, time: Duration) -> Result<f64> {
    let mut writer = Plain::connect(&daemon.socket())?;
    let mut watcher = Plain::connect(&daemon.socket())?;
    writer.ask(Op::Write, 0, &[PATH, b"0"])?;
    watcher.ask(Op::Watch, 0, &[PATH, b"token\0"])?;
    watcher.event()?;
    let mut turns = |time: Duration| -> Result<f64> {
        let start = Instant::now();
        let mut count = 0.0;
        while start.elapsed() < time {
            writer.ask(Op::Write, 0, &[PATH, b"1"])?;
            watcher.event()?;
            count += 1.0;
        }
        Ok(count / start.elapsed().as_secs_f64())
    };
    turns(time / 5)?;
    turns(time)
}
