//! Waits for sockets and events with epoll and lets the daemon work; only what is ready costs anything.

mod spin;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::net::SocketFlags;
use xen_hal::Error;
use xen_sys::Errno;

use crate::core::ConnId;
use crate::daemon::live::{Due, Handover};
use crate::daemon::world::StoreWorld;
use crate::daemon::{Daemon, log};
use spin::Spin;

/// What an epoll event is about, if it is no connection.
const LISTENER: u64 = 0;
const WORLD: u64 = u64::MAX;
const STOP: u64 = u64::MAX - 1;

/// Edge-triggered: the daemon remembers what is ready.
const INPUT: EventFlags = EventFlags::IN
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);

/// Connections accepted in one go.
const ACCEPTS: usize = 64;
const EVENTS: usize = 256;

/// Why serving has come to an end.
pub enum Ended {
    /// The daemon was told to stop.
    Stopped,
    /// Another program is to go on.
    Update(Handover),
}

/// The daemon and what it waits for.
pub struct Server<W> {
    daemon: Daemon<W>,
    epoll: OwnedFd,
    listener: OwnedFd,
    /// Whether no descriptor was left for another client: accepting goes on when one is closed.
    full: bool,
    /// How many connections there were when it became full.
    full_at: usize,
    spin: Spin,
}

impl<W: StoreWorld> Server<W> {
    /// Serves `daemon` and listens on `listener`, which must not block. `stop` becomes readable when it is to end.
    pub fn new(
        daemon: Daemon<W>,
        listener: OwnedFd,
        stop: BorrowedFd<'_>,
    ) -> Result<Server<W>, Error> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(failed)?;
        let add = |fd: BorrowedFd<'_>, data| {
            epoll::add(&epoll, fd, EventData::new_u64(data), EventFlags::IN).map_err(failed)
        };
        add(listener.as_fd(), LISTENER)?;
        add(stop, STOP)?;
        if let Some(fd) = daemon.world().event_fd() {
            add(fd, WORLD)?;
        }
        // Those that an earlier daemon had.
        for id in daemon.sockets() {
            if let Some(socket) = daemon.socket(id) {
                epoll::add(&epoll, socket, EventData::new_u64(id.0), INPUT).map_err(failed)?;
            }
        }
        Ok(Server {
            daemon,
            epoll,
            listener,
            full: false,
            full_at: 0,
            spin: Spin::default(),
        })
    }

    /// The daemon, while it does not run.
    pub fn daemon(&mut self) -> &mut Daemon<W> {
        &mut self.daemon
    }

    /// The socket that clients connect to.
    pub fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Serves until told to stop, or until another program is to go on.
    pub fn run(&mut self) -> Result<Ended, Error> {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            self.daemon.step()?;
            self.watch_blocked()?;
            if self.full && self.daemon.connections() < self.full_at {
                self.listen()?;
            }
            if self.daemon.is_updating()
                && let Due::Go(handover) = self.daemon.live_update()
            {
                return Ok(Ended::Update(handover));
            }
            self.wait(&mut events)?;
            for event in &events {
                let epoll::Event { flags, data } = *event;
                match data.u64() {
                    STOP => {
                        self.daemon.stop();
                        return Ok(Ended::Stopped);
                    }
                    WORLD => self.daemon.world_ready(),
                    LISTENER => self.accept()?,
                    conn => {
                        let end = EventFlags::HUP | EventFlags::ERR | EventFlags::RDHUP;
                        if flags.intersects(end) {
                            self.daemon.socket_ending(ConnId(conn));
                        } else {
                            self.daemon.socket_ready(
                                ConnId(conn),
                                flags.contains(EventFlags::IN),
                                flags.contains(EventFlags::OUT),
                            );
                        }
                    }
                }
            }
        }
    }

    /// Waits for descriptors. While clients wait for one's turn to end, it looks for a while before it sleeps.
    fn wait(&mut self, events: &mut Vec<epoll::Event>) -> Result<(), Error> {
        let patience = self.daemon.patience();
        if self.daemon.is_hurried() && self.spin.may_begin() {
            let start = Instant::now();
            loop {
                self.wait_for(Some(Duration::ZERO), events)?;
                let taken = start.elapsed();
                if !events.is_empty() || taken >= spin::MOST {
                    self.spin.ended(!events.is_empty());
                    break;
                }
            }
            if !events.is_empty() {
                return Ok(());
            }
        }
        self.wait_for(patience, events)
    }

    fn wait_for(
        &self,
        patience: Option<Duration>,
        events: &mut Vec<epoll::Event>,
    ) -> Result<(), Error> {
        let timeout = patience.map(|patience| rustix::event::Timespec {
            tv_sec: patience.as_secs() as i64,
            tv_nsec: patience.subsec_nanos().into(),
        });
        events.clear();
        let room = rustix::buffer::spare_capacity(events);
        match epoll::wait(&self.epoll, room, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    fn accept(&mut self) -> Result<(), Error> {
        for _ in 0..ACCEPTS {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match rustix::net::accept_with(&self.listener, flags) {
                Ok(socket) => self.add(socket)?,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
                Err(error) => {
                    let connections = self.daemon.connections();
                    log(&format!(
                        "cannot accept another client beside {connections} connections: {error}"
                    ));
                    epoll::delete(&self.epoll, &self.listener).map_err(failed)?;
                    (self.full, self.full_at) = (true, connections);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, socket: OwnedFd) -> Result<(), Error> {
        let id = self.daemon.add_socket(socket);
        if let Some(socket) = self.daemon.socket(id) {
            epoll::add(&self.epoll, socket, EventData::new_u64(id.0), INPUT).map_err(failed)?;
        }
        Ok(())
    }

    /// Few sockets are ever full; from then on they tell when they are no more. The daemon would be told of every reply
    /// that is taken otherwise.
    fn watch_blocked(&mut self) -> Result<(), Error> {
        for id in self.daemon.take_blocked() {
            if let Some(socket) = self.daemon.socket(id) {
                let data = EventData::new_u64(id.0);
                epoll::modify(&self.epoll, socket, data, INPUT | EventFlags::OUT)
                    .map_err(failed)?;
            }
        }
        Ok(())
    }

    fn listen(&mut self) -> Result<(), Error> {
        self.full = false;
        let data = EventData::new_u64(LISTENER);
        epoll::add(&self.epoll, &self.listener, data, EventFlags::IN).map_err(failed)
    }
}

fn failed(error: rustix::io::Errno) -> Error {
    Error::System {
        op: "epoll",
        object: "the daemon's descriptors".to_owned(),
        errno: Errno(
            io::Error::from(error)
                .raw_os_error()
                .unwrap_or(Errno::EIO.0),
        ),
    }
}
