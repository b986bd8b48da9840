//! The console daemon: a terminal and a log file for each guest, in place of xenconsoled.
//!
//! It finds guests by @introduceDomain and by the nodes that the toolstack writes, maps the console ring
//! by grant 0, and writes where its terminal is to `console/tty`.

mod line;
mod log;
mod terminal;
mod waiting;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::EventFlags;
use xen_backend::daemon::{self, Failure, Ready, Signals};
use xen_hal::{
    AccessMode, DomainControl, DomainInfo, EventChannels, ForeignGrants, Store, StoreError,
    StoreExt,
};
use xen_ring::{ByteRing, CONSOLE};
use xen_sys::{DomId, GrantRef, Port};

use crate::nodes;
use crate::store::texts;

pub use line::{Line, Moved};
pub use log::LogFile;
pub use terminal::Terminal;
use waiting::{Happened, Waiting};

/// Where a toolstack sees that this daemon runs.
pub const NODE: &str = "/tool/xlrs/console";
/// Every PV guest grants its console ring by this entry.
const CONSOLE_GRANT: GrantRef = GrantRef(0);
const INTRODUCED: &str = "introduced";
const RELEASED: &str = "released";
/// Tokens of watches on a guest's console directory begin with this, the guest's number follows.
const GUEST_TOKEN: &str = "guest-";

/// How long a user may take to read what a guest said before it ended.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long the kernel may take to carry them over, when it does not yet show that they wait.
const CARRY_OVER: Duration = Duration::from_millis(50);
/// How long news of new guests may wait, so that their creation is not held up by a terminal and a log: what a guest
/// says meanwhile waits in its ring.
const NEWS_DELAY: Duration = Duration::from_millis(5);
/// How often it is looked at whether they have.
const LAST_WORDS_STEP: Duration = Duration::from_millis(10);

/// What the daemon needs of its world.
pub trait World {
    /// The hypervisor.
    type Control: DomainControl;
    /// Granted frames.
    type Grants: ForeignGrants;
    /// Event channels, of which a descriptor can be polled.
    type Events: EventChannels + AsFd;
    /// The store, of which a descriptor can be polled.
    type Store: Store + AsFd;
    /// The hypervisor.
    fn control(&self) -> &Self::Control;
    /// Granted frames.
    fn grants(&self) -> &Self::Grants;
    /// Event channels.
    fn events(&self) -> &Self::Events;
    /// The store.
    fn store(&self) -> &Self::Store;
}

/// Serves until a signal asks for an end.
///
/// # Errors
/// The store or the hypervisor cannot be reached any more.
pub fn serve<W: World>(
    world: &W,
    log_folder: Option<PathBuf>,
    signals: &Signals,
    mut ready: Ready,
) -> Result<(), Failure> {
    let store = world.store();
    let mut daemon = Daemon {
        world,
        log_folder,
        waiting: Waiting::new(signals.as_fd(), store.as_fd(), world.events().as_fd())?,
        guests: BTreeMap::new(),
        ports: HashMap::new(),
        due: BTreeSet::new(),
        endings: Vec::new(),
        news_due: None,
    };
    store.watch("@introduceDomain", INTRODUCED)?;
    store.watch("@releaseDomain", RELEASED)?;
    daemon.look_around(DomId::DOM0)?;
    store.write_display(None, NODE, &std::process::id())?;
    ready.announce()?;
    loop {
        // This first: the watches that it sets fire while their replies are read.
        daemon.hear_news()?;
        while let Some(event) = store.next_event()? {
            daemon.on_watch(&event.token)?;
        }
        daemon.carry();
        if daemon.wait()? {
            break;
        }
    }
    for guest in daemon.guests.values() {
        guest.forget_terminal(store);
    }
    store.rm_if_present(None, NODE)?;
    Ok(())
}

struct Daemon<'a, W: World> {
    world: &'a W,
    log_folder: Option<PathBuf>,
    waiting: Waiting,
    guests: BTreeMap<u16, Guest<'a, W>>,
    /// Whose port it is.
    ports: HashMap<u32, u16>,
    /// Guests of which something can be moved: only these are looked at.
    due: BTreeSet<u16>,
    endings: Vec<Ending>,
    /// When it is looked for new guests.
    news_due: Option<Instant>,
}

/// The terminal of a guest that has ended, until its users have read the rest.
struct Ending {
    terminal: Terminal,
    rest: Vec<u8>,
    since: Instant,
}

impl Ending {
    /// Whether somebody may still want to read.
    fn goes_on(&mut self) -> bool {
        let written = self.terminal.write(&self.rest);
        self.rest.drain(..written);
        let unread = !self.rest.is_empty() || self.terminal.unread();
        let limit = if unread { LAST_WORDS } else { CARRY_OVER };
        self.since.elapsed() < limit
    }
}

/// A guest that exists; its console may not be there yet.
struct Guest<'a, W: World> {
    dom: DomId,
    uuid: [u8; 16],
    open: Option<Open<'a, W>>,
    /// The ring broke: it is not opened again.
    broken: bool,
}

/// A console in use.
struct Open<'a, W: World> {
    events: &'a W::Events,
    port: Port,
    masked: bool,
    line: Line<<W::Grants as ForeignGrants>::Mapping>,
    terminal: Terminal,
    log: Option<LogFile>,
    /// What of the terminal is waited for now.
    waits_for: EventFlags,
}

impl<'a, W: World> Daemon<'a, W> {
    fn on_watch(&mut self, token: &str) -> Result<(), Failure> {
        if let Some(number) = token.strip_prefix(GUEST_TOKEN) {
            let number = number.parse()?;
            if let Some(guest) = self.guests.get_mut(&number)
                && let Some(port) = guest.try_open(self.world, self.log_folder.as_deref())
            {
                self.ports.insert(port.0, number);
                self.due.insert(number);
            }
            return Ok(());
        }
        if token == INTRODUCED {
            self.news_due = self
                .news_due
                .or_else(|| Instant::now().checked_add(NEWS_DELAY));
            return Ok(());
        }
        self.look_around(DomId::DOM0)
    }

    /// Looks for new guests if it is time to.
    fn hear_news(&mut self) -> Result<(), Failure> {
        if self.news_due.is_none_or(|due| due > Instant::now()) {
            return Ok(());
        }
        self.news_due = None;
        // Xen counts upwards, so that a new guest is most likely behind those that are known.
        match self.guests.last_key_value() {
            Some((last, _)) => self.look_for_new(DomId(last.saturating_add(1))),
            None => self.look_around(DomId::DOM0),
        }
    }

    fn look_for_new(&mut self, first: DomId) -> Result<(), Failure> {
        match self.world.control().list_from(first)? {
            list if list.is_empty() => self.look_around(DomId::DOM0),
            list => self.take_on(&list),
        }
    }

    /// Compares what Xen says with what is known: takes new guests on, lets go of those that ended.
    fn look_around(&mut self, first: DomId) -> Result<(), Failure> {
        let list = self.world.control().list_from(first)?;
        let there: HashMap<u16, [u8; 16]> = list
            .iter()
            .filter(|info| !info.flags.dying)
            .map(|info| (info.dom.0, info.uuid))
            .collect();
        let gone = self
            .guests
            .iter()
            .filter(|(number, guest)| there.get(number) != Some(&guest.uuid));
        let gone: Vec<u16> = gone.map(|(number, _)| *number).collect();
        for number in gone {
            if let Some(mut guest) = self.guests.remove(&number) {
                self.close(&mut guest);
            }
        }
        self.take_on(&list)
    }

    fn close(&mut self, guest: &mut Guest<'a, W>) {
        if let Some(open) = &guest.open {
            self.ports.remove(&open.port.0);
            self.waiting.for_terminal(
                &open.terminal,
                guest.dom,
                open.waits_for,
                EventFlags::empty(),
            );
        }
        self.due.remove(&guest.dom.0);
        self.endings.extend(guest.close(self.world.store()));
    }

    fn take_on(&mut self, list: &[DomainInfo]) -> Result<(), Failure> {
        let store = self.world.store();
        for info in list {
            let dom = info.dom;
            if dom == DomId::DOM0 || info.flags.dying || self.guests.contains_key(&dom.0) {
                continue;
            }
            self.guests.insert(
                dom.0,
                Guest {
                    dom,
                    uuid: info.uuid,
                    open: None,
                    broken: false,
                },
            );
            // It fires at once, and the guest is opened then if its nodes are there.
            let path = format!("{}/console", nodes::home(dom));
            store.watch(&path, &format!("{GUEST_TOKEN}{dom}"))?;
        }
        Ok(())
    }

    /// Moves what can be moved without waiting.
    fn carry(&mut self) {
        for number in std::mem::take(&mut self.due) {
            let Some(guest) = self.guests.get_mut(&number) else {
                continue;
            };
            let Some(open) = &mut guest.open else {
                continue;
            };
            match open.carry() {
                Ok(more) => {
                    if more {
                        self.due.insert(number);
                    }
                    let wanted = open.wanted();
                    self.waiting
                        .for_terminal(&open.terminal, guest.dom, open.waits_for, wanted);
                    open.waits_for = wanted;
                }
                Err(error) => {
                    daemon::log(&format!(
                        "domain {}: {error}; its console is closed",
                        guest.dom
                    ));
                    if let Some(mut guest) = self.guests.remove(&number) {
                        self.close(&mut guest);
                        guest.broken = true;
                        self.guests.insert(number, guest);
                    }
                }
            }
        }
    }

    /// Waits for anything to happen; `true` if the daemon shall end.
    fn wait(&mut self) -> Result<bool, Failure> {
        self.endings.retain_mut(Ending::goes_on);
        let until = |due: Instant| due.saturating_duration_since(Instant::now());
        let waits = [
            (!self.due.is_empty()).then_some(Duration::ZERO),
            (!self.endings.is_empty()).then_some(LAST_WORDS_STEP),
            self.news_due.map(until),
        ];
        let limit = waits.into_iter().flatten().min().map(|wait| Timespec {
            tv_sec: 0,
            tv_nsec: wait.subsec_nanos().into(),
        });
        for happened in self.waiting.wait(limit.as_ref())? {
            match happened {
                Happened::Signal => return Ok(true),
                // It is read before all else.
                Happened::Store => {}
                Happened::Port => self.take_ports()?,
                Happened::Terminal(number) => {
                    self.due.insert(number);
                }
            }
        }
        Ok(false)
    }

    fn take_ports(&mut self) -> Result<(), Failure> {
        while let Some(port) = self.world.events().next_pending()? {
            let number = self.ports.get(&port.0).copied();
            let guest = number.and_then(|number| self.guests.get_mut(&number));
            if let Some(open) = guest.and_then(|guest| guest.open.as_mut()) {
                open.masked = true;
                self.due.extend(number);
            }
        }
        Ok(())
    }
}

impl<'a, W: World> Guest<'a, W> {
    /// Opens the console if there is something to open; its port then.
    fn try_open(&mut self, world: &'a W, log_folder: Option<&std::path::Path>) -> Option<Port> {
        if self.open.is_some() || self.broken {
            return None;
        }
        match self.open(world, log_folder) {
            Ok(open) => self.open = open,
            Err(error) => {
                daemon::log(&format!("domain {}: no console: {error}", self.dom));
                self.broken = true;
            }
        }
        self.open.as_ref().map(|open| open.port)
    }

    /// Opens the console if the toolstack has declared it.
    fn open(
        &self,
        world: &'a W,
        log_folder: Option<&std::path::Path>,
    ) -> Result<Option<Open<'a, W>>, Failure> {
        let (store, dom) = (world.store(), self.dom);
        let home = nodes::home(dom);
        let paths = ["console/port", "console/type", "name"].map(|key| format!("{home}/{key}"));
        let [port, kind, name]: [Option<String>; 3] =
            texts(store, None, &paths)?.try_into().unwrap_or_default();
        let Some(port) = port.and_then(|port| port.parse().ok()).map(Port) else {
            return Ok(None);
        };
        if kind.is_some_and(|kind| kind != "xenconsoled") {
            return Ok(None);
        }
        let memory = world
            .grants()
            .map(dom, &[CONSOLE_GRANT], AccessMode::ReadWrite)?;
        let events = world.events();
        let terminal = Terminal::new()?;
        let port = events.bind_interdomain(dom, port)?;
        let name = name.unwrap_or_else(|| format!("domain-{dom}"));
        let log = log_folder.map(|folder| LogFile::open(folder, &name));
        let log = log.transpose().unwrap_or_else(|error| {
            daemon::log(&format!("domain {dom}: no log file: {error}"));
            None
        });
        let tty = format!("{}/console/tty", nodes::home(dom));
        let open = Open {
            events,
            port,
            // Events sent before are lost: look at once, and say that we are here.
            masked: true,
            line: Line::new(ByteRing::daemon(memory, CONSOLE)),
            log,
            terminal,
            waits_for: EventFlags::empty(),
        };
        store.write(None, &tty, open.terminal.path().as_bytes())?;
        events.notify(port)?;
        Ok(Some(open))
    }

    /// Lets go of the guest; its terminal stays for what it said last.
    fn close(&mut self, store: &W::Store) -> Option<Ending> {
        // The nodes are gone with the guest in most cases; the watch is not.
        let path = format!("{}/console", nodes::home(self.dom));
        let _ = store.unwatch(&path, &format!("{GUEST_TOKEN}{}", self.dom));
        let mut open = self.open.take()?;
        let _ = open.carry();
        let _ = open.events.close(open.port);
        Some(Ending {
            rest: open.line.into_rest(),
            terminal: open.terminal,
            since: Instant::now(),
        })
    }

    /// The terminal goes with the process: nobody shall be led to it.
    fn forget_terminal(&self, store: &W::Store) {
        if self.open.is_some() {
            let tty = format!("{}/console/tty", nodes::home(self.dom));
            let there = |error: &StoreError| error.errno != xen_sys::Errno::ENOENT;
            if let Err(error) = store.write(None, &tty, b"")
                && there(&error)
            {
                daemon::log(&format!("domain {}: {error}", self.dom));
            }
        }
    }
}

impl<W: World> Open<'_, W> {
    /// Moves what can be moved; says whether there is more.
    fn carry(&mut self) -> Result<bool, Failure> {
        let mut input = [0; 1024];
        let room = self.line.room_for_guest()?;
        let from_user = if room == 0 {
            0
        } else {
            self.terminal.read(&mut input[..room.min(1024)])
        };
        let log = &mut self.log;
        let moved = self.line.carry(&input[..from_user], |bytes| {
            if let Some(log) = log {
                log.write(bytes);
            }
        })?;
        let written = self.terminal.write(self.line.for_user());
        self.line.user_took(written);
        if moved.notify {
            self.events.notify(self.port)?;
        }
        if self.masked && !moved.more {
            self.events.unmask(self.port)?;
            self.masked = false;
            // What came between the last look and now has sent no event.
            return Ok(self.line.guest_waits()?);
        }
        Ok(moved.more)
    }

    fn wanted(&self) -> EventFlags {
        let mut flags = EventFlags::empty();
        if self.line.room_for_guest().is_ok_and(|room| room > 0) {
            flags |= EventFlags::IN;
        }
        if !self.line.for_user().is_empty() {
            flags |= EventFlags::OUT;
        }
        flags
    }
}
