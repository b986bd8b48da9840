//! Live update: how long nobody is answered, and whether all is as it was.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use xen_sys::DomId;
use xs_wire::Op;

use super::memory::Forest;
use super::{LIMIT, Settings};
use crate::daemon::{Daemon, Kind, Place};
use crate::error::{Error, Result, fail};
use crate::guest::Guest;
use crate::plain::Plain;

/// Idle clients; with the one that asks and the one that measures there are 66 sockets.
const CLIENTS: usize = 64;
const GUESTS: u16 = 10;

/// How often a daemon is asked whether it has done it, if it does not say so itself.
const PAUSE: Duration = Duration::from_millis(50);

/// Each daemon to another of its kind.
pub fn same(place: &Place, kind: Kind, _: &Settings) -> Result<Vec<f64>> {
    let daemon = place.start(kind)?;
    let next = place.next(kind, daemon.folder())?;
    Ok(vec![stall(&daemon, &next, None)?])
}

/// From C xenstored to ours, and back to it.
pub fn with_c(place: &Place, kind: Kind, _: &Settings) -> Result<Vec<f64>> {
    if kind != Kind::Xlrs {
        return Ok(Vec::new());
    }
    let daemon = place.start(Kind::C)?;
    let folder = daemon.folder().path().display();
    let ours = format!("--no-fork --fakexen {folder} --socket {folder}/xenstored/socket");
    let program = place.next(Kind::Xlrs, daemon.folder())?;
    let mut crowd = Crowd::gather(&daemon)?;
    let from_c = crowd.stall(&daemon, &program, Some(&ours))?;
    let program = place.next(Kind::C, daemon.folder())?;
    let to_c = crowd.stall(&daemon, &program, Some("--no-fork"))?;
    Ok(vec![from_c, to_c])
}

fn stall(daemon: &Daemon, program: &Path, arguments: Option<&str>) -> Result<f64> {
    let mut crowd = Crowd::gather(daemon)?;
    crowd.stall(daemon, program, arguments)
}

/// Who must not notice anything.
struct Crowd {
    forest: Forest,
    clients: Vec<Plain>,
    guests: Vec<Guest>,
    admin: Plain,
}

fn own_path(number: usize) -> Vec<u8> {
    format!("/bench/client/{number}\0").into_bytes()
}

impl Crowd {
    fn gather(daemon: &Daemon) -> Result<Crowd> {
        let forest = Forest::new();
        forest.plant(daemon)?;
        let mut admin = Plain::connect(&daemon.socket())?;
        let mut guests = Vec::new();
        for number in 1..=GUESTS {
            let dom = DomId(number);
            guests.push(Guest::create(daemon.folder(), dom)?);
            let home = format!("/local/domain/{number}\0");
            admin.ask(Op::Mkdir, 0, &[home.as_bytes()])?;
            let owner = format!("n{number}\0");
            admin.ask(Op::SetPerms, 0, &[home.as_bytes(), owner.as_bytes()])?;
            let introduce = format!("{number}\0007\0001\0");
            admin.ask(Op::Introduce, 0, &[introduce.as_bytes()])?;
        }
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            let mut client = Plain::connect(&daemon.socket())?;
            let path = own_path(number);
            client.ask(Op::Write, 0, &[&path, number.to_string().as_bytes()])?;
            client.ask(Op::Watch, 0, &[&path, b"token\0"])?;
            client.event()?;
            clients.push(client);
        }
        let mut crowd = Crowd {
            forest,
            clients,
            guests,
            admin,
        };
        crowd.check(0)?;
        Ok(crowd)
    }

    /// The longest time, in milliseconds, between two answers while the daemon becomes another.
    fn stall(&mut self, daemon: &Daemon, program: &Path, arguments: Option<&str>) -> Result<f64> {
        let mut measuring = Plain::connect(&daemon.socket())?;
        let path = self.forest.paths[4711].clone();
        let done = AtomicBool::new(false);
        let longest = std::thread::scope(|scope| {
            let measure = scope.spawn(|| -> Result<Duration> {
                let mut longest = Duration::ZERO;
                let mut last = Instant::now();
                while !done.load(Ordering::Relaxed) {
                    measuring.ask(Op::Read, 0, &[&path])?;
                    let now = Instant::now();
                    longest = longest.max(now - last);
                    last = now;
                }
                Ok(longest)
            });
            let result = self.update(program, arguments);
            done.store(true, Ordering::Relaxed);
            let measured = measure.join();
            result?;
            measured.map_err(|_| Error("the measuring client panicked".into()))?
        })?;
        let round = self.clients.len();
        self.check(round)?;
        Ok(longest.as_secs_f64() * 1000.0)
    }

    fn update(&mut self, program: &Path, arguments: Option<&str>) -> Result<()> {
        let program = format!("{}\0", program.display());
        self.control(&[b"-f\0", program.as_bytes()])?;
        if let Some(arguments) = arguments {
            self.control(&[b"-c\0", format!("{arguments}\0").as_bytes()])?;
        }
        let deadline = Instant::now() + LIMIT;
        while self.control(&[b"-s\0", b"-t\0", b"60\0"])? == "BUSY" {
            if Instant::now() > deadline {
                return fail("the live update does not end");
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn control(&mut self, words: &[&[u8]]) -> Result<String> {
        let mut parts: Vec<&[u8]> = vec![b"live-update\0"];
        parts.extend(words);
        let said = self.admin.ask(Op::Control, 0, &parts)?;
        let said = String::from_utf8_lossy(&said);
        match said.trim_end_matches('\0') {
            // What oxenstored says for OK to a part that is not the last.
            "" | "OK" => Ok("OK".into()),
            "BUSY" => Ok("BUSY".into()),
            said => fail(format!("live-update {words:?}: {said}")),
        }
    }

    /// Whether everybody finds what is theirs.
    fn check(&mut self, round: usize) -> Result<()> {
        for (number, client) in self.clients.iter_mut().enumerate() {
            let path = own_path(number);
            expect(
                &client.ask(Op::Read, 0, &[&path])?,
                number.to_string().as_bytes(),
            )?;
            self.admin
                .ask(Op::Write, 0, &[&path, number.to_string().as_bytes()])?;
            client.event()?;
        }
        for guest in &mut self.guests {
            let data = format!("data\0{round}").into_bytes();
            guest.ask(Op::Write, &data)?;
            expect(
                &guest.ask(Op::Read, b"data\0")?,
                round.to_string().as_bytes(),
            )?;
        }
        for n in [0, 4711, 99_999] {
            let value = self.admin.ask(Op::Read, 0, &[&self.forest.paths[n]])?;
            expect(&value, format!("{n:016}").as_bytes())?;
        }
        Ok(())
    }
}

fn expect(found: &[u8], wanted: &[u8]) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    let [found, wanted] = [found, wanted].map(String::from_utf8_lossy);
    fail(format!("{found:?} where {wanted:?} should be"))
}
