//! Domains as toolstacks create them: one after the other, and many at once.

use std::time::{Duration, Instant};

use xen_sys::DomId;
use xs_wire::{Header, Op};

use super::ops::parse_tx;
use super::{LIMIT, Settings};
use crate::daemon::{Daemon, Kind, Place};
use crate::error::{Result, fail};
use crate::guest::Guest;
use crate::load::{Load, Out, Script};
use crate::plain::{Plain, refused};

const DOMAINS: u16 = 1000;
/// So many creations before the 10th and the 1000th, and these, are averaged.
const WINDOW: u16 = 10;
const TOOLSTACKS: u16 = 16;
const EACH: u16 = 25;

pub fn thousand(place: &Place, kind: Kind, _: &Settings) -> Result<Vec<f64>> {
    let daemon = place.start(kind)?;
    let mut host = Host::new(&daemon)?;
    let mut windows = Vec::new();
    for (from, to) in [
        (1, 5),
        (6, 5 + WINDOW),
        (6 + WINDOW, DOMAINS - WINDOW),
        (DOMAINS - WINDOW + 1, DOMAINS),
    ] {
        let before = daemon.cpu_time()?;
        for dom in from..=to {
            host.create(DomId(dom))?;
        }
        let taken = daemon.cpu_time()? - before;
        windows.push(taken.as_secs_f64() * 1e3 / f64::from(to - from + 1));
    }
    let (early, late) = (windows[1], windows[3]);
    Ok(vec![early, late, late / early])
}

/// dom0: a toolstack, a backend that watches its devices, and a console daemon that watches for domains.
struct Host<'a> {
    daemon: &'a Daemon,
    toolstack: Plain,
    backend: Plain,
    console: Plain,
    guests: Vec<Guest>,
}

impl Host<'_> {
    fn new(daemon: &Daemon) -> Result<Host<'_>> {
        boot(daemon)?;
        let connect = || Plain::connect(&daemon.socket());
        let mut host = Host {
            daemon,
            toolstack: connect()?,
            backend: connect()?,
            console: connect()?,
            guests: Vec::new(),
        };
        for path in ["backend/vbd", "backend/vif"] {
            host.backend.watch(path)?;
        }
        for path in ["@introduceDomain", "@releaseDomain"] {
            host.console.watch(path)?;
        }
        Ok(host)
    }

    fn create(&mut self, dom: DomId) -> Result<()> {
        let mut guest = Guest::create(self.daemon.folder(), dom)?;
        let tx = parse_tx(&self.toolstack.ask(Op::TransactionStart, 0, &[b"\0"])?)?;
        for (op, body) in nodes(dom) {
            self.toolstack.ask(op, tx, &[&body])?;
        }
        self.toolstack.ask(Op::TransactionEnd, tx, &[b"T\0"])?;
        let words = format!("{dom}\x001\x001\0");
        self.toolstack.ask(Op::Introduce, 0, &[words.as_bytes()])?;
        // The console daemon and the backend take up what has come to them.
        self.console.ask(Op::GetDomainPath, 0, &[b"0\0"])?;
        for device in ["vbd/51712", "vif/0"] {
            let front = format!("/local/domain/{dom}/device/{device}/state");
            self.backend.watch(&front)?;
        }
        for path in ["control/shutdown", "memory/target", "cpu", "console"] {
            let body = format!("{path}\0{path}\0");
            guest.ask(Op::Watch, body.as_bytes())?;
        }
        guest.ask(Op::Directory, b"device\0")?;
        for device in ["vbd/51712", "vif/0"] {
            for name in ["backend", "backend-id", "state"] {
                let path = format!("device/{device}/{name}\0");
                guest.ask(Op::Read, path.as_bytes())?;
            }
            for (name, value) in [("ring-ref", "8"), ("event-channel", "5"), ("state", "4")] {
                let body = format!("device/{device}/{name}\0{value}");
                guest.ask(Op::Write, body.as_bytes())?;
            }
            let kind = &device[..3];
            let number = &device[4..];
            let body = format!("backend/{kind}/{dom}/{number}/state\x004");
            self.backend.ask(Op::Write, 0, &[body.as_bytes()])?;
        }
        self.guests.push(guest);
        Ok(())
    }
}

/// What a host writes for dom0 when it boots.
fn boot(daemon: &Daemon) -> Result<()> {
    let mut init = Plain::connect(&daemon.socket())?;
    for body in [
        "/local/domain/0/name\0Domain-0",
        "/local/domain/0/domid\x000",
    ] {
        init.ask(Op::Write, 0, &[body.as_bytes()])?;
    }
    Ok(())
}

impl Plain {
    fn watch(&mut self, path: &str) -> Result<()> {
        let body = format!("{path}\0{path}\0");
        self.ask(Op::Watch, 0, &[body.as_bytes()]).map(drop)
    }
}

/// What a toolstack writes for a domain with one disk and one network interface.
fn nodes(dom: DomId) -> Vec<(Op, Vec<u8>)> {
    let mut all = Vec::new();
    let home = format!("/local/domain/{dom}");
    let write = |path: String, value: &str| (Op::Write, format!("{path}\0{value}").into_bytes());
    let directory = |path: &str, permissions: &str| {
        let make = (Op::Mkdir, format!("{path}\0").into_bytes());
        let set = (Op::SetPerms, format!("{path}\0{permissions}").into_bytes());
        [make, set]
    };
    let readable = format!("n0\0r{dom}\0");
    let owned = format!("n{dom}\0");
    all.extend(directory(&home, &readable));
    for (name, value) in [
        ("vm", "/vm/b1c0ffee-0000-4000-8000-000000000000"),
        ("name", "a-guest-with-a-name"),
        ("domid", "7"),
        ("memory/static-max", "131072"),
        ("memory/target", "131072"),
        ("cpu/0/availability", "online"),
        ("store/port", "1"),
        ("store/ring-ref", "70000"),
        ("console/port", "2"),
        ("console/ring-ref", "70001"),
    ] {
        all.push(write(format!("{home}/{name}"), value));
    }
    for name in ["control", "data", "device"] {
        all.extend(directory(&format!("{home}/{name}"), &owned));
    }
    for (kind, number) in [("vbd", 51712), ("vif", 0)] {
        let front = format!("{home}/device/{kind}/{number}");
        let back = format!("/local/domain/0/backend/{kind}/{dom}/{number}");
        all.extend(directory(&front, &format!("n{dom}\0r0\0")));
        all.extend(directory(&back, &readable));
        for (name, value) in [
            ("backend", back.as_str()),
            ("backend-id", "0"),
            ("state", "1"),
            ("handle", "0"),
        ] {
            all.push(write(format!("{front}/{name}"), value));
        }
        for (name, value) in [
            ("frontend", front.as_str()),
            ("frontend-id", "7"),
            ("online", "1"),
            ("state", "1"),
            ("params", "/dev/vg/disk"),
        ] {
            all.push(write(format!("{back}/{name}"), value));
        }
    }
    all
}

pub fn toolstacks(place: &Place, kind: Kind, _: &Settings) -> Result<Vec<f64>> {
    let daemon = place.start(kind)?;
    for dom in 1..=TOOLSTACKS * EACH {
        let state = daemon
            .folder()
            .set_state(DomId(dom), fakexen::State::Running);
        state.map_err(|e| crate::error::Error(format!("making a domain: {e}")))?;
    }
    boot(&daemon)?;
    let mut load = Load::connect(&daemon, TOOLSTACKS.into())?;
    let mut script = Toolstacks::default();
    script
        .clients
        .resize_with(TOOLSTACKS.into(), Toolstack::default);
    let start = Instant::now();
    load.finish(&mut script, LIMIT)?;
    let taken: Duration = start.elapsed();
    Ok(vec![taken.as_secs_f64(), script.retries as f64])
}

#[derive(Default)]
struct Toolstacks {
    clients: Vec<Toolstack>,
    done: u64,
    retries: u64,
}

#[derive(Default)]
struct Toolstack {
    /// Domains that it has created.
    created: u16,
    tx: u32,
    nodes: Vec<(Op, Vec<u8>)>,
    at: usize,
}

impl Toolstacks {
    fn next(&mut self, client: usize, out: &mut Out<'_>) {
        let toolstack = &mut self.clients[client];
        match toolstack.nodes.get(toolstack.at) {
            Some((op, body)) => out.request(*op, toolstack.tx, &[body]),
            None => out.request(Op::TransactionEnd, toolstack.tx, &[b"T\0"]),
        }
        toolstack.at += 1;
    }
}

impl Script for Toolstacks {
    fn begin(&mut self, client: usize, out: &mut Out<'_>) -> Result<()> {
        let toolstack = &mut self.clients[client];
        if toolstack.created < EACH {
            let dom = client as u16 * EACH + toolstack.created + 1;
            toolstack.nodes = nodes(DomId(dom));
            toolstack.at = 0;
            out.request(Op::TransactionStart, 0, &[b"\0"]);
        }
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
                self.clients[client].tx = parse_tx(body)?;
                self.next(client, out);
            }
            Some(Op::TransactionEnd) => {
                self.clients[client].created += 1;
                self.done += 1;
                self.begin(client, out)?;
            }
            Some(Op::Error) if body == b"EAGAIN\0" => {
                self.retries += 1;
                self.begin(client, out)?;
            }
            Some(Op::Error) => {
                let toolstack = &self.clients[client];
                let last = toolstack.nodes.get(toolstack.at.saturating_sub(1));
                let (op, about) = last.map_or((Op::Error, &[][..]), |(op, b)| (*op, b));
                return fail(refused(op, &[about], body));
            }
            _ => self.next(client, out),
        }
        Ok(())
    }

    fn count(&self) -> u64 {
        self.done
    }

    fn is_done(&self) -> bool {
        self.done == u64::from(TOOLSTACKS * EACH)
    }
}
