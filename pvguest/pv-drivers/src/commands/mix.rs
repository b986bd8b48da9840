//! `disk mix`: long writes and short reads in flight together, so that a back end ends them in another order.

use alloc::collections::VecDeque;
use alloc::string::{String, ToString};
use alloc::vec;
use core::str::SplitWhitespace;

use xen_hal::{EventChannels, GrantTable, Store};
use xen_sys::io::blkif::SECTOR_SIZE;

use super::Answer;
use super::disk::Range;
use crate::blk::{BlkError, Disk, Ticket};
use crate::pattern;

/// Sectors of a write and of a read.
const WRITE: u64 = 88;
const READ: u64 = 8;

/// Writes the one range's pattern, flushes, and meanwhile reads the other's again and again, which must be
/// there.
pub(super) fn mix<G: GrantTable, E: EventChannels, S: Store>(
    disk: &mut Disk<G, E, S>,
    words: &mut SplitWhitespace<'_>,
    wait: &mut dyn FnMut(&mut Disk<G, E, S>) -> bool,
) -> Answer {
    let sectors = disk.info().sectors_512;
    let (write, read) = (Range::parse(words, sectors)?, Range::parse(words, sectors)?);
    let text = |error: BlkError| error.to_string();
    let mut flying: VecDeque<(Ticket, Option<u64>)> = VecDeque::new();
    let mut buffer = vec![0; WRITE as usize * SECTOR_SIZE];
    let (mut written, mut reads, mut flushed) = (0, 0, false);
    loop {
        // As many as there is room for: a write, then reads.
        while !flushed {
            let turn = reads % 5;
            let submitted = if turn == 0 && written == write.count {
                flushed = true;
                disk.flush().map(|ticket| (ticket, None))
            } else if turn == 0 {
                let count = WRITE.min(write.count - written);
                let data = &mut buffer[..count as usize * SECTOR_SIZE];
                pattern::fill(write.seed, write.first + written, data);
                let ticket = disk.write(write.first + written, data);
                ticket.map(|ticket| {
                    written += count;
                    (ticket, None)
                })
            } else {
                let places = (read.count / READ).max(1);
                let sector = read.first + reads * 7 % places * READ;
                let ticket = disk.read(sector, READ as usize * SECTOR_SIZE);
                ticket.map(|ticket| (ticket, Some(sector)))
            };
            match submitted {
                Ok(submitted) => {
                    flying.push_back(submitted);
                    reads += 1;
                }
                Err(BlkError::Busy | BlkError::NoMemory) if !flying.is_empty() => {
                    flushed = false;
                    break;
                }
                Err(error) => return Err(text(error)),
            }
        }
        let Some((ticket, sector)) = flying.pop_front() else {
            return Ok(String::new());
        };
        let mut data = [0; READ as usize * SECTOR_SIZE];
        let result = loop {
            disk.poll();
            if let Some(result) = disk.take(ticket, &mut data) {
                break result;
            }
            if !wait(disk) {
                return Err(text(BlkError::TimedOut));
            }
        };
        result.map_err(text)?;
        if let Some(sector) = sector
            && !pattern::matches(read.seed, sector, &data)
        {
            return Ok("different".to_string());
        }
    }
}
