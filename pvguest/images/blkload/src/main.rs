//! A load on the disk, for benches. The command line says what: `op=read|write size=4096 depth=32
//! count=10000 order=random|sequential`. It tells the time it took and powers off.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec;
use alloc::vec::Vec;

use pvguest::pv_drivers::blk::{BlkError, Ticket};
use pvguest::xen_hal::Clock;
use pvguest::{Disk, Exit, Guest, PvClock, println};

pvguest::main!(main);

/// How long the whole may take.
const LIMIT_NS: u64 = 300_000_000_000;

fn main(guest: Guest) -> Exit {
    match run(&guest) {
        Ok((count, bytes, ns)) => println!("blkload: {count} requests {bytes} bytes {ns} ns"),
        Err(why) => println!("blkload: failed: {why}"),
    }
    Exit::Poweroff
}

fn run(guest: &Guest) -> Result<(u64, u64, u64), BlkError> {
    let line = guest.command_line();
    let load = Load {
        write: line.value("op") == Some("write"),
        size: line.parsed("size").unwrap_or(4096),
        depth: line.parsed("depth").unwrap_or(1),
        count: line.parsed("count").unwrap_or(1000),
        random: line.value("order") != Some("sequential"),
    };
    let mut disk = guest.open_disk(None).map_err(|_| BlkError::NotConnected)?;
    // The first round has pages granted and mapped.
    load.run(&mut disk, load.depth as u64 * 2)?;
    let begin = PvClock.now_ns();
    load.run(&mut disk, load.count)?;
    let ns = PvClock.now_ns() - begin;
    Ok((load.count, load.count * load.size as u64, ns))
}

struct Load {
    write: bool,
    size: usize,
    depth: usize,
    count: u64,
    random: bool,
}

impl Load {
    /// Transfers so many times `size` bytes, with `depth` of them in flight; each is cut into as many
    /// requests as it takes.
    fn run(&self, disk: &mut Disk, count: u64) -> Result<(), BlkError> {
        let places = disk.info().sectors_512 / (self.size as u64 / 512);
        let disk = disk.driver();
        let data = vec![0x5a; self.size];
        let piece = self.size.min(disk.max_bytes());
        let pieces = self.size.div_ceil(piece) as u64;
        let mut flying: Vec<Option<Ticket>> =
            (0..self.depth * pieces as usize).map(|_| None).collect();
        let deadline = PvClock.now_ns() + LIMIT_NS;
        let (mut begun, mut ended, mut dice) = (0, 0, 0x2545_f491_4f6c_dd1d_u64);
        let mut place = 0;
        while ended < count * pieces {
            let mut moved = false;
            for slot in &mut flying {
                if let Some(ticket) = *slot {
                    let Some(result) = disk.take(ticket, &mut []) else {
                        continue;
                    };
                    result?;
                    *slot = None;
                    ended += 1;
                    moved = true;
                }
                if begun < count * pieces {
                    if begun.is_multiple_of(pieces) {
                        dice ^= dice << 13;
                        dice ^= dice >> 7;
                        dice ^= dice << 17;
                        place = if self.random { dice } else { begun / pieces } % places;
                    }
                    let at = (begun % pieces) as usize * piece;
                    let part = at..(at + piece).min(self.size);
                    let sector = place * (self.size as u64 / 512) + (at / 512) as u64;
                    let ticket = match self.write {
                        true => disk.write(sector, &data[part]),
                        false => disk.read(sector, part.len()),
                    };
                    match ticket {
                        Ok(ticket) => *slot = Some(ticket),
                        Err(BlkError::Busy) => break,
                        Err(error) => return Err(error),
                    }
                    begun += 1;
                    moved = true;
                }
            }
            disk.poll();
            if !moved {
                if PvClock.now_ns() > deadline {
                    return Err(BlkError::TimedOut);
                }
                pvguest::wait(Some(deadline));
                disk.poll();
            }
        }
        Ok(())
    }
}
