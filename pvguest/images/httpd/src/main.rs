//! Serves the files of a tar archive on its disk over HTTP.
//!
//! Command line: `ip=ADDRESS/PREFIX` (needed), `gw=ADDRESS`, `port=N` (80), `write-mib=N` (1) and `seed=N`: how
//! much behind the archive is written and read back before serving, 0 for nothing.
#![no_std]
#![no_main]

extern crate alloc;

mod check;
mod connection;
mod files;

use alloc::vec::Vec;

use pvguest::net::{Ipv4Config, Network};
use pvguest::xen_hal::Clock;
use pvguest::{Exit, Guest, println};

use connection::Connection;
use files::Files;

pvguest::main!(main);

/// Clients served at the same time; one more is refused, there is no queue.
const CONNECTIONS: usize = 16;

fn main(mut guest: Guest) -> Exit {
    match serve(&mut guest) {
        Ok(exit) => exit,
        Err(why) => {
            println!("httpd: {why}");
            Exit::Crash
        }
    }
}

fn serve(guest: &mut Guest) -> Result<Exit, Failure> {
    let line = guest.command_line();
    let config = Ipv4Config::from_command_line(line).ok_or(Failure::Address)?;
    let port = line.parsed("port").unwrap_or(80);
    let mut files = Files::open(guest.open_disk(None)?)?;
    println!("httpd: {} files on the disk", files.count());
    let mib = line.parsed("write-mib").unwrap_or(1);
    let seed = line.parsed("seed").unwrap_or(guest.clock().now_ns());
    println!("httpd: disk ok, {}", check::run(&mut files, mib, seed)?);
    let mut network = guest.open_network(None, config)?;
    let mut connections: Vec<Connection> = (0..CONNECTIONS)
        .map(|_| Connection::new(&mut network, port))
        .collect();
    println!("httpd: http://{}:{port}/", config.address);
    loop {
        if let Some(request) = guest.shutdown_requested()? {
            println!("httpd: goodbye, {} requests served", files.served);
            return Ok(request.into());
        }
        if !network.is_up() {
            return Err(Failure::NetworkGone);
        }
        if !step(&mut network, &mut connections, &mut files) {
            let deadline = network.deadline_ns();
            guest.wait(deadline);
        }
    }
}

/// Moves everything on; whether there may be more to do at once.
fn step(network: &mut Network, connections: &mut [Connection], files: &mut Files) -> bool {
    let mut busy = network.poll();
    for connection in connections {
        busy |= connection.step(&mut network.sockets, files);
    }
    busy
}

/// Why the appliance ends.
enum Failure {
    /// No usable `ip=`.
    Address,
    /// A hypercall, the store, or a back end.
    Xen(pvguest::xen_hal::Error),
    /// The disk.
    Disk(&'static str, pvguest::pv_drivers::blk::BlkError),
    /// What was written does not read back the same.
    Mismatch(u64),
    /// The network's back end has gone.
    NetworkGone,
}

impl From<pvguest::xen_hal::Error> for Failure {
    fn from(error: pvguest::xen_hal::Error) -> Failure {
        Failure::Xen(error)
    }
}

impl core::fmt::Display for Failure {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Failure::Address => f.write_str("the command line needs ip=ADDRESS/PREFIX"),
            Failure::Xen(error) => error.fmt(f),
            Failure::Disk(what, error) => write!(f, "{what}: {error}"),
            Failure::Mismatch(sector) => {
                write!(
                    f,
                    "the disk does not hold what was written near sector {sector}"
                )
            }
            Failure::NetworkGone => f.write_str("the network's back end has gone"),
        }
    }
}
