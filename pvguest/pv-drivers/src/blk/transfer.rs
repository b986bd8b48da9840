//! Whole transfers of any length over a disk: cut into requests, as many in flight as there are slots.

use alloc::collections::VecDeque;
use core::ops::Range;

use xen_hal::{EventChannels, GrantTable, Store};
use xen_sys::io::blkif::SECTOR_SIZE;

use super::{BlkError, Disk, Ticket};

/// Reads `to.len()` bytes from `sector` (of 512 bytes) on. `wait` waits for an event (and may follow the
/// back end's state); false gives up.
pub fn read<G: GrantTable, E: EventChannels, S: Store>(
    disk: &mut Disk<G, E, S>,
    sector: u64,
    to: &mut [u8],
    wait: Wait<'_, Disk<G, E, S>>,
) -> Result<(), BlkError> {
    let len = to.len();
    pipeline(
        disk,
        len,
        &mut |disk, piece| disk.read(sector_at(sector, &piece), piece.len()),
        &mut |disk, ticket, piece| disk.take(ticket, &mut to[piece]),
        wait,
    )
}

/// Writes `from` from `sector` (of 512 bytes) on. `wait` waits for an event (and may follow the
/// back end's state); false gives up.
pub fn write<G: GrantTable, E: EventChannels, S: Store>(
    disk: &mut Disk<G, E, S>,
    sector: u64,
    from: &[u8],
    wait: Wait<'_, Disk<G, E, S>>,
) -> Result<(), BlkError> {
    pipeline(
        disk,
        from.len(),
        &mut |disk, piece| disk.write(sector_at(sector, &piece), &from[piece]),
        &mut |disk, ticket, _| disk.take(ticket, &mut []),
        wait,
    )
}

/// Waits until everything written before is on the disk.
pub fn flush<G: GrantTable, E: EventChannels, S: Store>(
    disk: &mut Disk<G, E, S>,
    wait: Wait<'_, Disk<G, E, S>>,
) -> Result<(), BlkError> {
    let ticket = disk.flush()?;
    await_result(disk, &mut |disk| disk.take(ticket, &mut []), wait)
}

/// Tells the back end that `count` sectors (of 512 bytes) from `sector` on are not needed any more.
pub fn discard<G: GrantTable, E: EventChannels, S: Store>(
    disk: &mut Disk<G, E, S>,
    sector: u64,
    count: u64,
    wait: Wait<'_, Disk<G, E, S>>,
) -> Result<(), BlkError> {
    let ticket = disk.discard(sector, count)?;
    await_result(disk, &mut |disk| disk.take(ticket, &mut []), wait)
}

fn sector_at(first: u64, piece: &Range<usize>) -> u64 {
    first.saturating_add((piece.start / SECTOR_SIZE) as u64)
}

type Wait<'a, D> = &'a mut dyn FnMut(&mut D) -> bool;
type Submit<'a, D> = &'a mut dyn FnMut(&mut D, Range<usize>) -> Result<Ticket, BlkError>;
type Poll<'a, D> = &'a mut dyn FnMut(&mut D) -> Option<Result<(), BlkError>>;
type Take<'a, D> = &'a mut dyn FnMut(&mut D, Ticket, Range<usize>) -> Option<Result<(), BlkError>>;

/// Submits pieces in order, takes results in order. After an error nothing more is submitted, but what is in
/// flight is waited for: its slots come back.
fn pipeline<G: GrantTable, E: EventChannels, S: Store>(
    disk: &mut Disk<G, E, S>,
    len: usize,
    submit: Submit<'_, Disk<G, E, S>>,
    take: Take<'_, Disk<G, E, S>>,
    wait: Wait<'_, Disk<G, E, S>>,
) -> Result<(), BlkError> {
    let mut waiting: VecDeque<(Ticket, Range<usize>)> = VecDeque::new();
    let (mut next, mut outcome) = (0, Ok(()));
    loop {
        while next < len && outcome.is_ok() {
            let piece = next..(next + disk.max_bytes()).min(len);
            match submit(disk, piece.clone()) {
                Ok(ticket) => {
                    next = piece.end;
                    waiting.push_back((ticket, piece));
                }
                Err(BlkError::Busy | BlkError::NoMemory) if !waiting.is_empty() => break,
                Err(error) => outcome = Err(error),
            }
        }
        let Some((ticket, piece)) = waiting.pop_front() else {
            return outcome;
        };
        let mut result = |disk: &mut Disk<G, E, S>| take(disk, ticket, piece.clone());
        match await_result(disk, &mut result, wait) {
            Err(BlkError::TimedOut) => return Err(BlkError::TimedOut),
            result => outcome = outcome.and(result),
        }
    }
}

fn await_result<G: GrantTable, E: EventChannels, S: Store>(
    disk: &mut Disk<G, E, S>,
    take: Poll<'_, Disk<G, E, S>>,
    wait: Wait<'_, Disk<G, E, S>>,
) -> Result<(), BlkError> {
    loop {
        disk.poll();
        if let Some(result) = take(disk) {
            return result;
        }
        if !wait(disk) {
            return Err(BlkError::TimedOut);
        }
    }
}
