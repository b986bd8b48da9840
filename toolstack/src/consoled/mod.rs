//! The console daemon: a terminal and a log file for each guest, in place of xenconsoled.
//!
//! It finds guests by @introduceDomain and by the nodes that the toolstack writes, maps the console ring
//! by grant 0, and writes where its terminal is to `console/tty`.

mod line;
mod log;
mod terminal;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use xen_backend::daemon::{self, Failure, Ready, Signals};
use xen_hal::{
    AccessMode, DomainControl, EventChannels, ForeignGrants, Store, StoreError, StoreExt,
};
use xen_ring::{ByteRing, CONSOLE};
use xen_sys::{DomId, GrantRef, Port};

use crate::nodes;
use crate::store::text;

pub use line::{Line, Moved};
pub use log::LogFile;
pub use terminal::Terminal;

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
/// How often it is looked at whether they have.
const LAST_WORDS_STEP_NS: i64 = 10_000_000;

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
    let mut daemon = Daemon {
        world,
        log_folder,
        guests: BTreeMap::new(),
        endings: Vec::new(),
    };
    let store = world.store();
    store.watch("@introduceDomain", INTRODUCED)?;
    store.watch("@releaseDomain", RELEASED)?;
    daemon.look_around()?;
    store.write_display(None, NODE, &std::process::id())?;
    ready.announce()?;
    loop {
        while let Some(event) = store.next_event()? {
            daemon.on_watch(&event.token)?;
        }
        let busy = daemon.carry();
        if daemon.wait(signals.as_fd(), busy)? {
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
    guests: BTreeMap<u16, Guest<'a, W>>,
    endings: Vec<Ending>,
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
}

impl<'a, W: World> Daemon<'a, W> {
    fn on_watch(&mut self, token: &str) -> Result<(), Failure> {
        if let Some(number) = token.strip_prefix(GUEST_TOKEN) {
            let number = number.parse()?;
            if let Some(guest) = self.guests.get_mut(&number) {
                guest.try_open(self.world, self.log_folder.as_deref());
            }
            return Ok(());
        }
        self.look_around()
    }

    /// Compares what Xen says with what is known: takes new guests on, lets go of those that ended.
    fn look_around(&mut self) -> Result<(), Failure> {
        let list = self.world.control().list()?;
        let store = self.world.store();
        let endings = &mut self.endings;
        self.guests.retain(|number, guest| {
            let there = list
                .iter()
                .any(|info| info.dom.0 == *number && info.uuid == guest.uuid && !info.flags.dying);
            if !there {
                endings.extend(guest.close(store));
            }
            there
        });
        for info in &list {
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

    /// Moves what can be moved without waiting; says whether there is more.
    fn carry(&mut self) -> bool {
        let mut busy = false;
        for guest in self.guests.values_mut() {
            let Some(open) = &mut guest.open else {
                continue;
            };
            match open.carry() {
                Ok(more) => busy |= more,
                Err(error) => {
                    daemon::log(&format!(
                        "domain {}: {error}; its console is closed",
                        guest.dom
                    ));
                    let ending = guest.close(self.world.store());
                    self.endings.extend(ending);
                    guest.broken = true;
                }
            }
        }
        busy
    }

    /// Waits for anything to happen; `true` if the daemon shall end.
    fn wait(&mut self, signals: BorrowedFd<'_>, busy: bool) -> Result<bool, Failure> {
        let events = self.world.events();
        let mut fds = vec![
            PollFd::from_borrowed_fd(signals, PollFlags::IN),
            PollFd::new(self.world.store(), PollFlags::IN),
            PollFd::new(events, PollFlags::IN),
        ];
        for open in self.guests.values().filter_map(|guest| guest.open.as_ref()) {
            let flags = open.wanted();
            if !flags.is_empty() {
                fds.push(PollFd::new(&open.terminal, flags));
            }
        }
        self.endings.retain_mut(Ending::goes_on);
        let time = |tv_nsec| rustix::event::Timespec { tv_sec: 0, tv_nsec };
        let limit = match (busy, self.endings.is_empty()) {
            (true, _) => Some(time(0)),
            (false, false) => Some(time(LAST_WORDS_STEP_NS)),
            (false, true) => None,
        };
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(format!("poll: {error}").into()),
        }
        if !fds[0].revents().is_empty() {
            return Ok(true);
        }
        while let Some(port) = events.next_pending()? {
            let open = self.guests.values_mut().filter_map(|g| g.open.as_mut());
            for open in open {
                open.masked |= open.port == port;
            }
        }
        Ok(false)
    }
}

impl<'a, W: World> Guest<'a, W> {
    fn try_open(&mut self, world: &'a W, log_folder: Option<&std::path::Path>) {
        if self.open.is_some() || self.broken {
            return;
        }
        match self.open(world, log_folder) {
            Ok(open) => self.open = open,
            Err(error) => {
                daemon::log(&format!("domain {}: no console: {error}", self.dom));
                self.broken = true;
            }
        }
    }

    /// Opens the console if the toolstack has declared it.
    fn open(
        &self,
        world: &'a W,
        log_folder: Option<&std::path::Path>,
    ) -> Result<Option<Open<'a, W>>, Failure> {
        let (store, dom) = (world.store(), self.dom);
        let node = |key: &str| text(store, None, &format!("{}/console/{key}", nodes::home(dom)));
        let Some(port) = node("port")?.and_then(|port| port.parse().ok()).map(Port) else {
            return Ok(None);
        };
        if node("type")?.is_some_and(|kind| kind != "xenconsoled") {
            return Ok(None);
        }
        let name = crate::store::name_of(store, dom)?;
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

    fn wanted(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        if self.line.room_for_guest().is_ok_and(|room| room > 0) {
            flags |= PollFlags::IN;
        }
        if !self.line.for_user().is_empty() {
            flags |= PollFlags::OUT;
        }
        flags
    }
}
