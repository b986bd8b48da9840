//! What the `driver` appliance understands: one command a line, one answer a line. Written against traits,
//! so that the same commands run in the guest and in one process on the host.
//!
//! ```text
//! ping                              ok
//! memory                            ok TOTAL HEAP USED   (KiB)
//! disk size                         ok SECTORS
//! disk info                         ok SECTORS SECTOR_SIZE rw|ro flush|noflush
//! disk fill SEED FIRST COUNT        ok                   (writes the pattern, then flushes)
//! disk check SEED FIRST COUNT       ok same | ok different
//! disk flush                        ok
//! disk raw op= nr= sector= first= last= gref= pages=      ok | error ...  (a request as it stands)
//! net info                          ok MAC STATE RECEIVED DROPPED SENT ERRORS
//! net send COUNT SIZE               ok                   (broadcast frames of type 0x88b5)
//! net raw size= offset= flags= gref=                      ok
//! store read PATH                   ok VALUE
//! store write PATH VALUE            ok
//! store list PATH                   ok NAME NAME ...
//! store rm PATH                     ok
//! store chmod PATH n0 r7 ...        ok                   (permissions as xenstore-chmod has them)
//! poweroff, reboot, crash, fault    (no answer; the guest ends)
//! ```
//! Anything that does not work is answered by `error REASON`.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::str::{FromStr, SplitWhitespace};

use xen_hal::{EventChannels, GrantTable, Permission, Store};
use xen_sys::GrantRef;
use xen_sys::Plain;
use xen_sys::io::blkif::{MAX_SEGMENTS_PER_REQUEST, Request, SECTOR_SIZE};
use xen_sys::io::netif::TxRequest;

use crate::blk::{self, Disk};
use crate::cmdline::CommandLine;
use crate::net::{self, Interface};
use crate::{pattern, xenbus};

/// Bytes that one transfer of `disk fill` and `disk check` moves.
const CHUNK: usize = 256 * 1024;
/// Frames that `net send` sends at most.
const MAX_FRAMES: u64 = 1 << 20;

/// What the interpreter needs of the world it runs in.
pub trait World {
    /// The grant table.
    type Grants: GrantTable;
    /// The event channels.
    type Events: EventChannels;
    /// The store.
    type Store: Store;

    /// The grant table.
    fn grants(&self) -> xen_hal::Result<Self::Grants>;
    /// The event channels.
    fn events(&self) -> Self::Events;
    /// The store.
    fn store(&self) -> xen_hal::Result<Self::Store>;
    /// Takes the watch events with this token; whether there was one.
    fn take_events(&self, token: &str) -> xen_hal::Result<bool>;
    /// Waits for an event, or returns at once if a watch event has come since the last wait; false when it has waited too long altogether for one command.
    fn wait(&self) -> bool;
    /// Memory: all, the heap's, what the heap has handed out, in KiB.
    fn memory_kib(&self) -> [u64; 3];
}

/// How a line was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done; what there is to say.
    Ok(String),
    /// Not done, and why.
    Error(String),
    /// The guest is to end.
    End(End),
}

/// How the guest is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// `poweroff`
    Poweroff,
    /// `reboot`
    Reboot,
    /// `crash`: by a panic.
    Crash,
    /// `fault`: by an exception.
    Fault,
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reply::Ok(text) if text.is_empty() => write!(f, "ok"),
            Reply::Ok(text) => write!(f, "ok {text}"),
            Reply::Error(why) => write!(f, "error {why}"),
            Reply::End(end) => write!(f, "{end:?}"),
        }
    }
}

type Answer = Result<String, String>;
type WorldDisk<W> = Disk<<W as World>::Grants, <W as World>::Events, <W as World>::Store>;
type WorldInterface<W> = Interface<<W as World>::Grants, <W as World>::Events, <W as World>::Store>;

/// Runs commands. Devices are opened when first named.
pub struct Interpreter<W: World> {
    world: W,
    disk: Option<WorldDisk<W>>,
    interface: Option<WorldInterface<W>>,
}

impl<W: World> Interpreter<W> {
    /// An interpreter without any device open.
    pub fn new(world: W) -> Self {
        Interpreter {
            world,
            disk: None,
            interface: None,
        }
    }

    /// Runs one line.
    pub fn run(&mut self, line: &str) -> Reply {
        let mut words = line.split_whitespace();
        let answer = match words.next().unwrap_or("") {
            "ping" => Ok(String::new()),
            "memory" => {
                let [total, heap, used] = self.world.memory_kib();
                Ok(format!("{total} {heap} {used}"))
            }
            "disk" => self.disk_command(words, line),
            "net" => self.net_command(words, line),
            "store" => self.store_command(words),
            "poweroff" => return Reply::End(End::Poweroff),
            "reboot" => return Reply::End(End::Reboot),
            "crash" => return Reply::End(End::Crash),
            "fault" => return Reply::End(End::Fault),
            other => Err(format!("unknown command {other:?}")),
        };
        match answer {
            Ok(text) => Reply::Ok(text),
            Err(why) => Reply::Error(why),
        }
    }

    /// Looks after the open devices; to be called after every wait.
    pub fn poll(&mut self) {
        if let Some(disk) = &mut self.disk {
            follow_disk(&self.world, disk);
            disk.poll();
        }
        if let Some(interface) = &mut self.interface {
            follow_interface(&self.world, interface);
            interface.poll();
            while interface.receive().is_some() {}
            interface.poll();
        }
    }

    fn disk_command(&mut self, mut words: SplitWhitespace<'_>, line: &str) -> Answer {
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
        match words.next().unwrap_or("") {
            "size" => Ok(info.sectors_512.to_string()),
            "info" => Ok(format!(
                "{} {} {} {}",
                info.sectors_512,
                info.sector_size,
                if info.read_only { "ro" } else { "rw" },
                if info.flush { "flush" } else { "noflush" }
            )),
            "fill" => {
                let range = Range::parse(words, info.sectors_512)?;
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
                let range = Range::parse(words, info.sectors_512)?;
                let mut same = true;
                range.each(|first, data| {
                    blk::read(disk, first, data, wait).map_err(|error| error.to_string())?;
                    same &= pattern::matches(range.seed, first, data);
                    Ok(())
                })?;
                Ok(if same { "same" } else { "different" }.to_string())
            }
            "flush" => blk::flush(disk, wait)
                .map(|()| String::new())
                .map_err(|error| error.to_string()),
            "raw" => raw_disk(disk, CommandLine::new(line), wait),
            other => Err(format!("unknown disk command {other:?}")),
        }
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
            while matches!(disk.phase(), blk::Phase::Waiting | blk::Phase::Published) {
                if !self.world.wait() {
                    return Err(format!("the disk is still {:?}", disk.phase()));
                }
                follow_disk(&self.world, disk);
            }
            match disk.phase() {
                blk::Phase::Connected => {}
                blk::Phase::Broken(why) => return Err(format!("the disk is broken: {why}")),
                phase => return Err(format!("the disk is {phase:?}")),
            }
        }
        Ok(())
    }

    fn net_command(&mut self, mut words: SplitWhitespace<'_>, line: &str) -> Answer {
        self.open_interface()?;
        let (Some(interface), world) = (&mut self.interface, &self.world) else {
            return Err("no interface".to_string());
        };
        match words.next().unwrap_or("") {
            "info" => {
                let c = interface.counters();
                Ok(format!(
                    "{} {:?} {} {} {} {}",
                    interface.mac(),
                    interface.phase(),
                    c.received,
                    c.rx_dropped,
                    c.sent,
                    c.tx_errors
                ))
            }
            "send" => {
                let count: u64 = parse(&mut words, "COUNT")?;
                let size: usize = parse(&mut words, "SIZE")?;
                if !(net::MIN_FRAME..=net::MAX_FRAME).contains(&size) || count > MAX_FRAMES {
                    return Err(format!("{count} frames of {size} bytes: out of range"));
                }
                let mut frame = alloc::vec![0xff; size];
                frame[6..12].copy_from_slice(&interface.mac().0);
                frame[12..14].copy_from_slice(&[0x88, 0xb5]);
                for _ in 0..count {
                    while !interface.send(&frame) {
                        interface.poll();
                        if interface.phase() != &net::Phase::Connected || !world.wait() {
                            return Err(format!("not sent: {:?}", interface.phase()));
                        }
                        follow_interface(world, interface);
                    }
                }
                interface.poll();
                Ok(String::new())
            }
            "raw" => {
                let line = CommandLine::new(line);
                let number = |key| line.parsed::<u16>(key).unwrap_or(0);
                let request = TxRequest {
                    gref: GrantRef(line.parsed("gref").unwrap_or(0)),
                    offset: number("offset"),
                    flags: number("flags"),
                    id: 0,
                    size: number("size"),
                };
                if !interface.raw(request) {
                    return Err("no room".to_string());
                }
                interface.poll();
                Ok(String::new())
            }
            other => Err(format!("unknown net command {other:?}")),
        }
    }

    fn open_interface(&mut self) -> Result<(), String> {
        let text = |error: xen_hal::Error| error.to_string();
        if self.interface.is_none() {
            let store = self.world.store().map_err(text)?;
            let ids = xenbus::list(&store, "vif").map_err(text)?;
            let id = ids.first().ok_or("no interface")?;
            let grants = self.world.grants().map_err(text)?;
            let interface =
                Interface::open(grants, self.world.events(), store, id).map_err(text)?;
            self.interface = Some(interface);
        }
        if let Some(interface) = &mut self.interface {
            while matches!(
                interface.phase(),
                net::Phase::Waiting | net::Phase::Published
            ) {
                if !self.world.wait() {
                    return Err(format!("the interface is still {:?}", interface.phase()));
                }
                follow_interface(&self.world, interface);
            }
        }
        Ok(())
    }

    fn store_command(&mut self, mut words: SplitWhitespace<'_>) -> Answer {
        let text = |error: xen_hal::StoreError| error.to_string();
        let store = self.world.store().map_err(|error| error.to_string())?;
        let verb = words.next().unwrap_or("");
        let path: String = parse(&mut words, "PATH")?;
        match verb {
            "read" => {
                let value = store.read(None, &path).map_err(text)?;
                Ok(String::from_utf8_lossy(&value).into_owned())
            }
            "write" => {
                let value: String = parse(&mut words, "VALUE")?;
                store.write(None, &path, value.as_bytes()).map_err(text)?;
                Ok(String::new())
            }
            "list" => Ok(store.list(None, &path).map_err(text)?.join(" ")),
            "rm" => store.rm(None, &path).map(|()| String::new()).map_err(text),
            "chmod" => {
                let entry = |word: &str| {
                    let permission = Permission::parse(word.as_bytes());
                    permission.ok_or_else(|| format!("{word:?} is no permission"))
                };
                let list = words.map(entry).collect::<Result<Vec<_>, _>>()?;
                let done = store.set_permissions(None, &path, &list);
                done.map(|()| String::new()).map_err(text)
            }
            other => Err(format!("unknown store command {other:?}")),
        }
    }
}

fn follow_disk<W: World>(world: &W, disk: &mut WorldDisk<W>) {
    if world.take_events(disk.token()).unwrap_or(false) {
        // The store's failure shows in the next command that needs the store.
        let _ = disk.backend_changed();
    }
}

fn follow_interface<W: World>(world: &W, interface: &mut WorldInterface<W>) {
    if world.take_events(interface.token()).unwrap_or(false) {
        // As above.
        let _ = interface.backend_changed();
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
struct Range {
    seed: u64,
    first: u64,
    count: u64,
}

impl Range {
    fn parse(mut words: SplitWhitespace<'_>, sectors: u64) -> Result<Range, String> {
        let range = Range {
            seed: parse(&mut words, "SEED")?,
            first: parse(&mut words, "FIRST")?,
            count: parse(&mut words, "COUNT")?,
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

fn parse<T: FromStr>(words: &mut SplitWhitespace<'_>, what: &str) -> Result<T, String> {
    let word = words.next().ok_or_else(|| format!("{what} is missing"))?;
    word.parse()
        .map_err(|_| format!("{word:?} makes no sense as {what}"))
}
