//! The `disk` commands.

use alloc::format;
use alloc::string::{String, ToString};
use core::str::SplitWhitespace;

use xen_hal::{EventChannels, GrantTable, Store};
use xen_sys::io::blkif::{MAX_SEGMENTS_PER_REQUEST, Request, SECTOR_SIZE};
use xen_sys::{GrantRef, Plain};

use super::{Answer, Interpreter, World, WorldDisk, parse};
use crate::blk::{self, Disk, Options, Phase, Protocol};
use crate::cmdline::CommandLine;
use crate::{pattern, xenbus};

/// Bytes that one transfer of `disk fill` and `disk check` moves.
const CHUNK: usize = 1024 * 1024;

impl<W: World> Interpreter<W> {
    pub(super) fn disk_command(&mut self, mut words: SplitWhitespace<'_>, line: &str) -> Answer {
        let verb = words.next().unwrap_or("");
        match verb {
            "use" => return self.use_disk(&parse::<String>(&mut words, "ID")?),
            "open" => return self.reopen_disk(CommandLine::new(line)),
            "state" => {
                let phase = self.disk.as_ref().map(Disk::phase);
                return Ok(phase.map_or_else(|| "None".to_string(), |phase| format!("{phase:?}")));
            }
            _ => {}
        }
        self.open_disk()?;
        let (Some(disk), world) = (&mut self.disk, &self.world) else {
            return Err("no disk".to_string());
        };
        let wait = &mut |disk: &mut WorldDisk<W>| {
            let go_on = world.wait();
            follow_disk(world, disk);
            go_on
        };
        let info = disk.info();
        match verb {
            "size" => Ok(info.sectors_512.to_string()),
            "info" => {
                let mut text = format!(
                    "{} {} {} {}",
                    info.sectors_512,
                    info.sector_size,
                    if info.read_only { "ro" } else { "rw" },
                    if info.flush { "flush" } else { "noflush" }
                );
                for (word, is) in [
                    ("barrier", info.barrier),
                    ("discard", info.discard),
                    ("cdrom", info.cdrom),
                    ("removable", info.removable),
                ] {
                    if is {
                        text.push(' ');
                        text.push_str(word);
                    }
                }
                Ok(text)
            }
            "fill" => {
                let range = Range::parse(&mut words, info.sectors_512)?;
                range.each(|first, data| {
                    pattern::fill(range.seed, first, data);
                    blk::write(disk, first, data, wait).map_err(|error| error.to_string())
                })?;
                if info.flush {
                    blk::flush(disk, wait).map_err(|error| error.to_string())?;
                }
                Ok(String::new())
            }
            "check" => {
                let range = Range::parse(&mut words, info.sectors_512)?;
                let mut same = true;
                range.each(|first, data| {
                    blk::read(disk, first, data, wait).map_err(|error| error.to_string())?;
                    same &= pattern::matches(range.seed, first, data);
                    Ok(())
                })?;
                Ok(if same { "same" } else { "different" }.to_string())
            }
            "mix" => super::mix::mix(disk, &mut words, wait),
            "flush" => blk::flush(disk, wait)
                .map(|()| String::new())
                .map_err(|error| error.to_string()),
            "discard" => {
                let (first, count) = (parse(&mut words, "FIRST")?, parse(&mut words, "COUNT")?);
                blk::discard(disk, first, count, wait)
                    .map(|()| String::new())
                    .map_err(|error| error.to_string())
            }
            "attack" => {
                let line = CommandLine::new(line);
                let count = |key| line.parsed(key).unwrap_or(0);
                disk.attack(count("events"), count("requests"))
                    .map(|()| String::new())
                    .map_err(|error| error.to_string())
            }
            "raw" => raw_disk(disk, CommandLine::new(line), wait),
            other => Err(format!("unknown disk command {other:?}")),
        }
    }

    /// Closes the disk that is in use and takes another.
    fn use_disk(&mut self, id: &str) -> Answer {
        let text = |error: xen_hal::Error| error.to_string();
        let again = |disk: &&WorldDisk<W>| {
            let same = disk.token().strip_prefix("vbd/") == Some(id);
            same && (disk.phase().is_opening() || *disk.phase() == Phase::Connected)
        };
        if self.disk.as_ref().filter(again).is_some() {
            return self.open_disk().map(|()| String::new());
        }
        if let Some(mut disk) = self.disk.take() {
            disk.close().map_err(text)?;
        }
        let (store, grants) = (self.world.store(), self.world.grants());
        let (store, grants) = (store.map_err(text)?, grants.map_err(text)?);
        let disk = Disk::open(grants, self.world.events(), store, id).map_err(text)?;
        self.disk = Some(disk);
        self.open_disk()?;
        Ok(String::new())
    }

    /// Connects the disk again, to be used in another way.
    fn reopen_disk(&mut self, line: CommandLine<'_>) -> Answer {
        let usual = Options::default();
        let options = Options {
            protocol: match line.value("protocol") {
                Some("x86_32") => Protocol::X86_32,
                _ => Protocol::X86_64,
            },
            queues: line.parsed("queues").unwrap_or(usual.queues),
            ring_order: line.parsed("order").unwrap_or(usual.ring_order),
            indirect: line.parsed("indirect").unwrap_or(usual.indirect),
            persistent: line.parsed::<u8>("persistent") != Some(0),
        };
        if self.disk.is_none() {
            self.open_disk()?;
        }
        // Connected or not: one that has ended may be opened again.
        let disk = self.disk.as_mut().ok_or("no disk")?;
        disk.reopen(options).map_err(|error| error.to_string())?;
        self.open_disk()?;
        let queues = self.disk.as_ref().map_or(0, Disk::queues);
        Ok(queues.to_string())
    }

    fn open_disk(&mut self) -> Result<(), String> {
        let text = |error: xen_hal::Error| error.to_string();
        if self.disk.is_none() {
            let store = self.world.store().map_err(text)?;
            let ids = xenbus::list(&store, "vbd").map_err(text)?;
            let id = ids.first().ok_or("no disk")?;
            let grants = self.world.grants().map_err(text)?;
            let disk = Disk::open(grants, self.world.events(), store, id).map_err(text)?;
            self.disk = Some(disk);
        }
        if let Some(disk) = &mut self.disk {
            while disk.phase().is_opening() {
                if !self.world.wait() {
                    return Err(format!("the disk is still {:?}", disk.phase()));
                }
                follow_disk(&self.world, disk);
            }
            match disk.phase() {
                Phase::Connected => {}
                Phase::Broken(why) => return Err(format!("the disk is broken: {why}")),
                phase => return Err(format!("the disk is {phase:?}")),
            }
        }
        Ok(())
    }
}

pub(super) fn follow_disk<W: World>(world: &W, disk: &mut WorldDisk<W>) {
    if world.take_events(disk.token()).unwrap_or(false) {
        // The store's failure shows in the next command that needs the store.
        let _ = disk.backend_changed();
    }
}

/// Sends a request of the tester's making and waits for its answer.
fn raw_disk<G: GrantTable, E: EventChannels, S: Store>(
    disk: &mut Disk<G, E, S>,
    line: CommandLine<'_>,
    wait: &mut dyn FnMut(&mut Disk<G, E, S>) -> bool,
) -> Answer {
    let byte = |key, default| line.parsed::<u8>(key).unwrap_or(default);
    let mut request = Request {
        operation: byte("op", 0),
        nr_segments: byte("nr", 1),
        handle: disk.info().handle,
        sector_number: line.parsed("sector").unwrap_or(0),
        ..Request::ZERO
    };
    for segment in &mut request.seg {
        segment.gref = GrantRef(line.parsed("gref").unwrap_or(0));
        segment.first_sect = byte("first", 0);
        segment.last_sect = byte("last", 7);
    }
    let pages = line.parsed("pages").unwrap_or(MAX_SEGMENTS_PER_REQUEST);
    let ticket = disk
        .raw(request, pages)
        .map_err(|error| error.to_string())?;
    loop {
        disk.poll();
        if let Some(result) = disk.take(ticket, &mut []) {
            return result
                .map(|()| String::new())
                .map_err(|error| error.to_string());
        }
        if !wait(disk) {
            return Err("no answer in time".to_string());
        }
    }
}

/// A run of sectors and a seed.
#[derive(Clone, Copy)]
pub(super) struct Range {
    pub(super) seed: u64,
    pub(super) first: u64,
    pub(super) count: u64,
}

impl Range {
    pub(super) fn parse(words: &mut SplitWhitespace<'_>, sectors: u64) -> Result<Range, String> {
        let range = Range {
            seed: parse(words, "SEED")?,
            first: parse(words, "FIRST")?,
            count: parse(words, "COUNT")?,
        };
        match range.first.checked_add(range.count) {
            Some(end) if end <= sectors => Ok(range),
            _ => Err(blk::BlkError::OutOfRange.to_string()),
        }
    }

    /// Calls `work` with the first sector of each chunk and a buffer of the chunk's length.
    fn each(
        self,
        mut work: impl FnMut(u64, &mut [u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut buffer = alloc::vec![0; CHUNK];
        let mut done = 0;
        while done < self.count {
            let sectors = (self.count - done).min((CHUNK / SECTOR_SIZE) as u64);
            let data = &mut buffer[..sectors as usize * SECTOR_SIZE];
            work(self.first + done, data)?;
            done += sectors;
        }
        Ok(())
    }
}
