//! What the block back end keeps on record about its queues (blkback's `journal.rs`): counts, and what runs.

use std::fs::File;
use std::os::unix::fs::FileExt;

use blkback::Count;
use scenarios::{OrStop, Outcome};

/// A file for each queue, `DOMAIN-DISK-QUEUE`.
const FOLDER: &str = "/run/xlrs/blkback";
const TAKEN: u64 = 32;
const COUNTERS: u64 = 64;
const RECORDS: u64 = 256;
const RECORD: u64 = 128;
const RUNNING: u32 = 1;

/// The queues of a disk.
pub struct Queues(Vec<File>);

impl Queues {
    /// Those that are there now, in their order.
    pub fn of(dom: u16, disk: u32) -> Outcome<Queues> {
        let mut found = Vec::new();
        for (name, file) in files()? {
            let queue = name.strip_prefix(&format!("{dom}-{disk}-"));
            if let Some(queue) = queue.and_then(|queue| queue.parse::<u32>().ok()) {
                found.push((queue, file));
            }
        }
        found.sort_by_key(|(queue, _)| *queue);
        Ok(Queues(found.into_iter().map(|(_, file)| file).collect()))
    }

    /// A count of each queue.
    pub fn each(&self, count: Count) -> Outcome<Vec<u64>> {
        let read = |file: &File| {
            let mut bytes = [0; 8];
            let at = COUNTERS + 8 * count as u64;
            file.read_exact_at(&mut bytes, at)
                .or_broken("read a count")?;
            Ok(u64::from_le_bytes(bytes))
        };
        self.0.iter().map(read).collect()
    }

    /// A count of all queues.
    pub fn sum(&self, count: Count) -> Outcome<u64> {
        Ok(self.each(count)?.iter().sum())
    }

    /// How many slots each ring has.
    pub fn slots(&self) -> Outcome<Vec<u64>> {
        let length = |file: &File| {
            let length = file.metadata().or_broken("look at a journal")?.len();
            Ok((length - RECORDS) / RECORD)
        };
        self.0.iter().map(length).collect()
    }
}

/// What a moment found begun and not answered.
#[derive(Clone, Copy, Debug, Default)]
pub struct InFlight {
    /// Requests of all disks that run.
    pub running: usize,
    /// Requests that were answered while one that was taken before them still runs.
    pub overtakers: usize,
    /// Requests that were ever taken, modulo 2^32.
    pub taken: u32,
}

/// Looks at the accounts of all disks. What runs is exact for a back end that was just killed.
pub fn in_flight() -> Outcome<InFlight> {
    let mut found = InFlight::default();
    for (_, file) in files()? {
        let word = |at| {
            let mut bytes = [0; 4];
            let read = file.read_exact_at(&mut bytes, at);
            read.or_broken("read a journal")?;
            Ok::<u32, scenarios::Stop>(u32::from_le_bytes(bytes))
        };
        let length = file.metadata().or_broken("look at a journal")?.len();
        if length < RECORDS {
            // It is just being made.
            continue;
        }
        let (taken, mut running, mut oldest) = (word(TAKEN)?, 0, 0);
        for at in (RECORDS..length).step_by(RECORD as usize) {
            // How many requests were taken from this one on; none if it was not counted yet.
            let since = taken.wrapping_sub(word(at + 4)?);
            if word(at)? == RUNNING && (1..=1024).contains(&since) {
                running += 1;
                oldest = oldest.max(since as usize);
            }
        }
        found.taken = found.taken.wrapping_add(taken);
        found.running += running;
        found.overtakers += oldest - running;
    }
    Ok(found)
}

fn files() -> Outcome<Vec<(String, File)>> {
    let entries = std::fs::read_dir(FOLDER).or_broken(format!("read {FOLDER}"))?;
    let mut files = Vec::new();
    for entry in entries.flatten() {
        // One that has gone meanwhile is nobody's any more.
        if let (Some(name), Ok(file)) = (entry.file_name().to_str(), File::open(entry.path())) {
            files.push((name.to_owned(), file));
        }
    }
    Ok(files)
}
