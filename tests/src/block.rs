//! What a guest's disk must do: what is written stands in the backing store, and nothing else.

use std::fs::File;
use std::os::unix::fs::FileExt;

use pv_drivers::pattern;

use crate::{OrStop, Outcome, demand, demand_eq};

/// A disk as a guest uses it. Sectors are of 512 bytes.
pub trait BlockGuest {
    /// The disk's length in sectors.
    fn sectors_512(&mut self) -> Outcome<u64>;
    /// Writes the [`pattern`] of `seed`, whose offset 0 is the disk's beginning, to `count` sectors from `first` on, and flushes.
    fn fill(&mut self, seed: u64, first: u64, count: u64) -> Outcome;
    /// Reads `count` sectors from `first` on; false if they are not the [`pattern`] of `seed`.
    fn holds(&mut self, seed: u64, first: u64, count: u64) -> Outcome<bool>;
    /// Tries to read or write `count` sectors from `first` on, which go beyond the disk's end; the error
    /// it got, `None` if it got none.
    fn beyond(&mut self, write: bool, first: u64, count: u64) -> Outcome<Option<String>>;
}

/// What the disk's sectors are kept in.
pub trait Backing {
    /// Reads from `offset` on, in bytes.
    fn read_at(&mut self, offset: u64, to: &mut [u8]) -> Outcome;
    /// The length in bytes.
    fn length(&mut self) -> Outcome<u64>;
}

/// Writes `mib` MiB through the guest's disk; they read back the same there, and stand at the same place
/// in what backs it; everything else in there is as it was before, which is all zero.
pub fn round_trip(
    guest: &mut dyn BlockGuest,
    backing: &mut dyn Backing,
    seed: u64,
    mib: u64,
) -> Outcome {
    let sectors = guest.sectors_512()?;
    demand_eq!(
        sectors * 512,
        backing.length()?,
        "the disk's length in bytes"
    );
    // Neither at the beginning nor to the end, and on no page boundary.
    let (first, count) = (7, mib * 2048);
    demand!(
        first + count < sectors,
        "a disk of {sectors} sectors is too short for {mib} MiB"
    );
    guest.fill(seed, first, count)?;
    demand!(
        guest.holds(seed, first, count)?,
        "what the guest wrote reads back differently"
    );
    demand!(
        !guest.holds(seed + 1, first, count)?,
        "the guest's check of the content cannot fail"
    );
    let mut buffer = vec![0; 64 * 512];
    let mut at = 0;
    while at < sectors {
        let len = (sectors - at).min(64);
        let piece = &mut buffer[..len as usize * 512];
        backing.read_at(at * 512, piece)?;
        for (sector, found) in (at..).zip(piece.chunks(512)) {
            let written = (first..first + count).contains(&sector);
            let right = if written {
                pattern::matches(seed, sector, found)
            } else {
                found.iter().all(|&b| b == 0)
            };
            demand!(
                right,
                "sector {sector} of what backs the disk is wrong (written: {written})"
            );
        }
        at += len;
    }
    Ok(())
}

/// Requests that go beyond the disk's end are refused and harm nothing.
pub fn out_of_range(guest: &mut dyn BlockGuest, backing: &mut dyn Backing) -> Outcome {
    let sectors = guest.sectors_512()?;
    for (first, count) in [
        (sectors, 8),
        (sectors - 1, 8),
        (u64::MAX - 7, 8),
        (u64::MAX / 512, 8),
    ] {
        for write in [false, true] {
            let what = if write { "writing" } else { "reading" };
            let error = guest.beyond(write, first, count)?;
            demand!(
                error.is_some(),
                "{what} {count} sectors at {first} of {sectors} was not refused"
            );
        }
    }
    demand_eq!(
        backing.length()?,
        sectors * 512,
        "the length of what backs the disk"
    );
    // It goes on as before.
    guest.fill(1, 0, 8)?;
    demand!(
        guest.holds(1, 0, 8)?,
        "the disk works no more after refused requests"
    );
    Ok(())
}

impl Backing for File {
    fn read_at(&mut self, offset: u64, to: &mut [u8]) -> Outcome {
        self.read_exact_at(to, offset).or_broken("read the image")
    }

    fn length(&mut self) -> Outcome<u64> {
        Ok(self.metadata().or_broken("look at the image")?.len())
    }
}
