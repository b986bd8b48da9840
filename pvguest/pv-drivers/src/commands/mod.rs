//! What the `driver` appliance understands: one command a line, one answer a line. Written against traits,
//! so that the same commands run in the guest and in one process on the host.
//!
//! ```text
//! ping                              ok
//! memory                            ok TOTAL HEAP USED   (KiB)
//! disk size                         ok SECTORS
//! disk info                         ok SECTORS SECTOR_SIZE rw|ro flush|noflush WORD ...
//! disk use ID                       ok                   (from now on this one; the one before is closed)
//! disk open protocol= queues= order= indirect= persistent=    ok QUEUES   (connects again, in this way)
//! disk state                        ok PHASE
//! disk discard FIRST COUNT          ok
//! disk fill SEED FIRST COUNT        ok                   (writes the pattern, then flushes)
//! disk check SEED FIRST COUNT       ok same | ok different
//! disk mix SEED FIRST COUNT SEED FIRST COUNT    ok | ok different   (writes the one while it reads the other)
//! disk flush                        ok
//! disk raw op= nr= sector= first= last= gref= pages=      ok | error ...  (a request as it stands)
//! disk attack events= requests=     ok                   (events for nothing, requests that are not there)
//! net info                          ok MAC STATE RECEIVED DROPPED SENT ERRORS
//! net send COUNT SIZE               ok                   (broadcast frames of type 0x88b5)
//! net raw size= offset= flags= gref=                      ok
//! store read PATH                   ok VALUE
//! store write PATH VALUE            ok
//! store flood PATH COUNT            ok                   (writes there so often)
//! store list PATH                   ok NAME NAME ...
//! store rm PATH                     ok
//! store chmod PATH n0 r7 ...        ok                   (permissions as xenstore-chmod has them)
//! poweroff, reboot, crash, fault    (no answer; the guest ends)
//! ```
//! Anything that does not work is answered by `error REASON`.

mod disk;
mod mix;
mod net;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::str::{FromStr, SplitWhitespace};

use xen_hal::{EventChannels, GrantTable, Permission, Store, StoreExt};

use crate::blk::Disk;
use crate::net::Interface;

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
            disk::follow_disk(&self.world, disk);
            disk.poll();
        }
        if let Some(interface) = &mut self.interface {
            net::follow_interface(&self.world, interface);
            interface.poll();
            while interface.receive().is_some() {}
            interface.poll();
        }
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
            "flood" => {
                let count: u32 = parse(&mut words, "COUNT")?;
                for n in 0..count {
                    store.write_display(None, &path, &n).map_err(text)?;
                }
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

fn parse<T: FromStr>(words: &mut SplitWhitespace<'_>, what: &str) -> Result<T, String> {
    let word = words.next().ok_or_else(|| format!("{what} is missing"))?;
    word.parse()
        .map_err(|_| format!("{word:?} makes no sense as {what}"))
}
