//! All connections and their buffers: the core's [`Host`].

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;

use xen_hal::Error;
use xen_sys::{DomId, Errno, Port};
use xs_wire::{Header, Op};

use super::output::Output;
use super::ring::Ring;
use super::world::StoreWorld;
use crate::core::{ConnId, ConnMap, DomainReport, Event, Host, Identity};

/// Events that wait for a dom0 connection: beyond so many bytes it is closed.
const MAX_WAITING_DOM0: usize = 64 << 20;

/// Where a connection's bytes come from and go to.
#[derive(Debug)]
pub enum Transport {
    /// A unix socket, which does not block.
    Socket(OwnedFd),
    /// A domain's ring.
    Ring(Ring),
}

/// One connection.
#[derive(Debug)]
pub struct Conn {
    /// Its transport.
    pub transport: Transport,
    /// Bytes received and not yet taken up.
    pub input: Vec<u8>,
    /// Bytes and events to send.
    pub output: Output,
    /// Whether more may be had from the transport.
    pub readable: bool,
    /// Whether the transport may take more.
    pub writable: bool,
    /// Whether the client will send no more; it is answered what it has sent before.
    pub ended: bool,
    /// Whether the peer has sent its last, which may not be read yet.
    pub ending: bool,
    /// Whether its socket is watched for room.
    pub tells_room: bool,
    /// Whether its peer broke a rule: nothing is taken from it or sent to it until it begins afresh.
    pub failed: bool,
    /// How often it did.
    pub faults: u32,
    /// Whether it stands in the list of connections to serve, or is being served.
    queued: bool,
}

impl Conn {
    /// What has come and what waits to be sent is forgotten; a new start, for a failed connection as well.
    pub fn begin(&mut self) {
        self.input = Vec::new();
        self.output = Output::default();
        (self.readable, self.writable) = (true, true);
        self.failed = false;
    }
}

/// All connections.
pub struct Io<W> {
    /// The world under them.
    pub world: W,
    /// The connections.
    pub conns: ConnMap<Conn>,
    /// Those that have something to do, in the order in which they are served.
    pub ready: VecDeque<ConnId>,
    /// Those that are to be cut off.
    pub doomed: Vec<ConnId>,
    /// Sockets that were found full for the first time.
    pub blocked: Vec<ConnId>,
    by_port: HashMap<Port, ConnId>,
    last_id: u64,
    max_waiting_guest: usize,
}

impl<W: StoreWorld> Io<W> {
    /// No connections yet.
    pub fn new(world: W, max_waiting_guest: usize) -> Self {
        Io {
            world,
            conns: ConnMap::default(),
            ready: VecDeque::new(),
            doomed: Vec::new(),
            blocked: Vec::new(),
            by_port: HashMap::new(),
            last_id: 0,
            max_waiting_guest,
        }
    }

    /// Adds a connection.
    pub fn add(&mut self, transport: Transport) -> ConnId {
        self.last_id += 1;
        let id = ConnId(self.last_id);
        if let Transport::Ring(ring) = &transport {
            self.by_port.insert(ring.port, id);
        }
        let conn = Conn {
            transport,
            input: Vec::new(),
            output: Output::default(),
            readable: true,
            writable: true,
            ended: false,
            ending: false,
            tells_room: false,
            failed: false,
            faults: 0,
            queued: false,
        };
        self.conns.insert(id, conn);
        id
    }

    /// Maps a ring and binds its port.
    pub fn add_ring(&mut self, dom: DomId, remote: Port, features: u32) -> Result<ConnId, Error> {
        let memory = self.world.map_ring(dom)?;
        let port = self.world.bind(dom, remote)?;
        let id = self.add(Transport::Ring(Ring::new(memory, dom, port, features)));
        // Requests may lie there already, and the peer may wait for a sign of us.
        self.wake(id);
        self.world.notify(port);
        Ok(id)
    }

    /// Takes a connection away.
    pub fn remove(&mut self, id: ConnId) -> Option<Conn> {
        let conn = self.conns.remove(&id)?;
        if let Transport::Ring(ring) = &conn.transport {
            self.by_port.remove(&ring.port);
            self.world.unbind(ring.port);
        }
        Some(conn)
    }

    /// Lets a connection be served.
    pub fn wake(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(&id)
            && !conn.queued
        {
            conn.queued = true;
            self.ready.push_back(id);
        }
    }

    /// The next connection to serve; it is not woken before [`served`](Self::served).
    pub fn next_ready(&mut self) -> Option<ConnId> {
        loop {
            let id = self.ready.pop_front()?;
            if self.conns.contains_key(&id) {
                return Some(id);
            }
        }
    }

    /// A connection had its turn; it gets another if it has more to do.
    pub fn served(&mut self, id: ConnId, more: bool) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.queued = more;
            if more {
                self.ready.push_back(id);
            }
        }
    }

    /// The connection whose ring has this port.
    pub fn by_port(&self, port: Port) -> Option<ConnId> {
        self.by_port.get(&port).copied()
    }
}

impl<W: StoreWorld> Host for Io<W> {
    fn domain_identity(&mut self, dom: DomId) -> Option<Identity> {
        self.world.identity(dom)
    }

    fn domain_states(&mut self) -> Option<Vec<DomainReport>> {
        match self.world.domains() {
            Ok(states) => Some(states),
            Err(error) => {
                self.log(&format!("cannot list domains: {error}"));
                None
            }
        }
    }

    fn connect(
        &mut self,
        dom: DomId,
        _frame: u64,
        port: Port,
        features: u32,
    ) -> Result<ConnId, Errno> {
        self.add_ring(dom, port, features).map_err(|error| {
            self.log(&format!("cannot introduce domain {dom}: {error}"));
            Errno::EINVAL
        })
    }

    fn rebind(&mut self, id: ConnId, dom: DomId, remote: Port) -> Result<(), Errno> {
        let conn = self.conns.get_mut(&id).ok_or(Errno::ENOTCONN)?;
        let Transport::Ring(ring) = &mut conn.transport else {
            return Err(Errno::EINVAL);
        };
        self.by_port.remove(&ring.port);
        self.world.unbind(ring.port);
        let bound = self.world.bind(dom, remote);
        let port = bound.map_err(|_| Errno::EINVAL)?;
        ring.rebind(port);
        conn.begin();
        self.by_port.insert(port, id);
        self.wake(id);
        self.world.notify(port);
        Ok(())
    }

    fn disconnect(&mut self, id: ConnId) {
        self.remove(id);
    }

    fn reply(&mut self, id: ConnId, op: Op, request: &Header, body: &[u8]) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.output.reply(op, request, body);
            self.wake(id);
        }
    }

    fn event(&mut self, id: ConnId, event: Event) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let most = match &conn.transport {
            Transport::Ring(ring) if ring.dom != DomId::DOM0 => self.max_waiting_guest,
            _ => MAX_WAITING_DOM0,
        };
        if conn.failed {
            return;
        }
        if conn.output.waiting_size() >= most {
            if !self.doomed.contains(&id) {
                self.doomed.push(id);
            }
            return;
        }
        conn.output.event(event);
        self.wake(id);
    }

    fn log(&mut self, line: &str) {
        log(line);
    }
}

/// Writes a line to the daemon's log, which is the standard error.
pub fn log(line: &str) {
    // A client's text must not forge lines.
    let line: String = line
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    eprintln!("xenstored: {line}");
}
