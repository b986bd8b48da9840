//! Waits for signals, the store, events and terminals; what it costs does not grow with their number.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use xen_backend::daemon;
use xen_sys::DomId;

use super::terminal::Terminal;

/// Most things that are told at once; the rest is told the next time.
const AT_ONCE: usize = 64;
const SIGNAL: u64 = 1 << 32;
const STORE: u64 = 2 << 32;
const PORT: u64 = 3 << 32;

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// A signal has come.
    Signal,
    /// The store has something to say.
    Store,
    /// Guests have sent events.
    Port,
    /// The terminal of the guest with this number can be read or written, or was hung up.
    Terminal(u16),
}

/// What is waited for.
pub struct Waiting {
    epoll: OwnedFd,
}

impl Waiting {
    /// Waits for these.
    pub fn new(
        signals: BorrowedFd<'_>,
        store: BorrowedFd<'_>,
        events: BorrowedFd<'_>,
    ) -> io::Result<Waiting> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        for (fd, what) in [(signals, SIGNAL), (store, STORE), (events, PORT)] {
            epoll::add(&epoll, fd, EventData::new_u64(what), EventFlags::IN)?;
        }
        Ok(Waiting { epoll })
    }

    /// Waits for something else of a terminal than before; for nothing, not even that it is hung up, if empty.
    pub fn for_terminal(
        &self,
        terminal: &Terminal,
        dom: DomId,
        before: EventFlags,
        now: EventFlags,
    ) {
        let data = EventData::new_u64(dom.0.into());
        let done = match (before.is_empty(), now.is_empty()) {
            _ if before == now => Ok(()),
            (true, _) => epoll::add(&self.epoll, terminal, data, now),
            (false, true) => epoll::delete(&self.epoll, terminal),
            (false, false) => epoll::modify(&self.epoll, terminal, data, now),
        };
        if let Err(error) = done {
            daemon::log(&format!("domain {dom}: wait for its terminal: {error}"));
        }
    }

    /// What has happened, after at most so long.
    pub fn wait(&self, limit: Option<&Timespec>) -> io::Result<Vec<Happened>> {
        let mut events = Vec::with_capacity(AT_ONCE);
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            limit,
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(events
            .iter()
            .map(|event| happened(event.data.u64()))
            .collect())
    }
}

fn happened(data: u64) -> Happened {
    match data {
        SIGNAL => Happened::Signal,
        STORE => Happened::Store,
        PORT => Happened::Port,
        number => Happened::Terminal(number as u16),
    }
}
