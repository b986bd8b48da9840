//! All connections and their buffers: the core's [`Host`].

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};

use xen_hal::Error;
use xen_sys::{DomId, Errno, Port};
use xs_wire::{Header, Op};

use super::live::{self, Session};
use super::output::{Added, Output, Seconds, event_size};
use super::ring::{Ring, RingFault};
use super::trace::{self, Trace};
use super::world::StoreWorld;
use crate::core::control::TraceCommand;
use crate::core::{Buffered, ConnId, ConnMap, DomainReport, Event, Host, Identity};
use crate::journal::conns::{Saved, What};
use crate::journal::{Journal, count};
use crate::manager::Manager;

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
    /// How many such bytes are elsewhere, while they are taken up.
    pub taken_out: usize,
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
    /// The rule that its peer broke: nothing is taken from it or sent to it until it begins afresh.
    pub failed: Option<RingFault>,
    /// How often it did.
    pub faults: u32,
    /// Events that were queued for it.
    pub events: u64,
    /// Whether its next request waits until a live update has come to an end.
    pub held: bool,
    /// Whether it goes on with the daemon after us: a ring, or a socket that somebody keeps. What of its bytes was taken and
    /// given is told to the journal only then.
    pub kept: bool,
    /// At what the socket's [`count`] stands, if it is kept.
    pub count: u32,
    /// Whether it stands in the list of connections to serve, or is being served.
    queued: bool,
}

impl Conn {
    /// Whose it is.
    pub fn dom(&self) -> u16 {
        match &self.transport {
            Transport::Socket(_) => 0,
            Transport::Ring(ring) => ring.dom.0,
        }
    }

    /// What is kept for it, in bytes.
    pub fn held(&self) -> usize {
        self.input.len() + self.taken_out + self.output.held()
    }

    /// From now on it is to go on with the daemon after us.
    pub fn keep(&mut self) {
        if let Transport::Socket(fd) = &self.transport {
            match count::begin(fd.as_fd()) {
                Ok(count) => self.count = count,
                Err(error) => {
                    log(&format!(
                        "cannot count what a client sends: {error}; its connection will be lost when this daemon ends"
                    ));
                    return;
                }
            }
        }
        self.kept = true;
    }

    /// What has come and what waits to be sent is forgotten; a new start, for a failed connection as well.
    pub fn begin(&mut self) {
        self.input = Vec::new();
        self.output = Output::default();
        (self.readable, self.writable) = (true, true);
        self.failed = None;
    }

    /// Whether another of its requests may be taken up.
    pub fn is_heard(&self) -> bool {
        self.output.has_room() && !self.held
    }

    /// What a new daemon must know of it.
    pub fn what(&self) -> What {
        match &self.transport {
            Transport::Socket(_) => What::Socket,
            Transport::Ring(ring) => What::Ring(ring.at(self.failed)),
        }
    }
}

/// All connections.
pub struct Io<W> {
    /// The world under them.
    pub world: W,
    /// What happens is told here.
    pub journal: Journal,
    /// The access log.
    pub trace: Trace,
    /// Who keeps sockets for the daemon after us.
    pub manager: Option<Manager>,
    /// The connections.
    pub conns: ConnMap<Conn>,
    /// Those that have something to do, in the order in which they are served.
    pub ready: VecDeque<ConnId>,
    /// Those that are to be cut off.
    pub doomed: Vec<ConnId>,
    /// Sockets that were found full for the first time.
    pub blocked: Vec<ConnId>,
    /// A live update that a client is preparing.
    pub session: Option<Session>,
    /// Connections whose requests wait until a live update has come to an end.
    pub held: Vec<ConnId>,
    by_port: HashMap<Port, ConnId>,
    last_id: u64,
    /// The time, as far as it matters for events that wait.
    pub clock: Seconds,
}

impl<W: StoreWorld> Io<W> {
    /// No connections yet.
    pub fn new(world: W) -> Self {
        Io {
            world,
            journal: Journal::none(),
            trace: Trace::default(),
            manager: None,
            conns: ConnMap::default(),
            ready: VecDeque::new(),
            doomed: Vec::new(),
            blocked: Vec::new(),
            session: None,
            held: Vec::new(),
            by_port: HashMap::new(),
            last_id: 0,
            clock: 0,
        }
    }

    /// Adds a connection.
    pub fn add(&mut self, transport: Transport) -> ConnId {
        let id = ConnId(self.last_id + 1);
        self.add_as(id, transport);
        if let Some(conn) = self.conns.get(&id) {
            self.journal.opened(id, conn.what(), conn.count);
        }
        id
    }

    /// The last number given to a connection.
    pub fn last_id(&self) -> u64 {
        self.last_id
    }

    /// Numbers after this one were not given yet.
    pub fn set_last_id(&mut self, last_id: u64) {
        self.last_id = self.last_id.max(last_id);
    }

    /// Lets the socket of the connection that is added next be kept.
    pub fn keep(&mut self, socket: &OwnedFd) {
        let id = ConnId(self.last_id + 1);
        if let Some(manager) = &mut self.manager {
            manager.keep_connection(id, socket.as_fd());
        }
    }

    /// Whether anybody keeps sockets for the daemon after us.
    pub fn keeps_sockets(&self) -> bool {
        self.manager.as_ref().is_some_and(Manager::keeps)
    }

    /// The socket of a connection need not be kept any longer.
    pub fn forget(&mut self, id: ConnId) {
        if let Some(manager) = &mut self.manager {
            manager.forget_connection(id);
        }
    }

    /// Adds a connection of this number.
    pub fn add_as(&mut self, id: ConnId, transport: Transport) {
        self.last_id = self.last_id.max(id.0);
        if let Transport::Ring(ring) = &transport {
            self.by_port.insert(ring.port, id);
        }
        let kept = matches!(transport, Transport::Ring(_)) || self.keeps_sockets();
        let mut conn = Conn {
            transport,
            kept: false,
            count: 0,
            input: Vec::new(),
            taken_out: 0,
            output: Output::default(),
            readable: true,
            writable: true,
            ended: false,
            ending: false,
            tells_room: false,
            failed: None,
            faults: 0,
            events: 0,
            held: false,
            queued: false,
        };
        if kept {
            conn.keep();
        }
        self.trace.connection(id, conn.dom(), "opened");
        self.conns.insert(id, conn);
    }

    /// Lets the journal's log of connections begin anew, and with the store's `state` that of the store too.
    pub fn save(&mut self, state: Option<&[u8]>) {
        let all = self.conns.iter().map(|(id, conn)| {
            let saved = Saved {
                what: conn.what(),
                count: conn.count,
                input: &conn.input,
                output: conn.output.bytes(),
                waiting: conn.output.waiting(),
            };
            (*id, saved)
        });
        match state {
            Some(state) => self.journal.save(state, self.last_id, all),
            None => self.journal.save_conns(self.last_id, all),
        }
    }

    /// A live update has come to nothing: requests that waited for it are taken up.
    pub fn go_on(&mut self) {
        self.session = None;
        for id in std::mem::take(&mut self.held) {
            if let Some(conn) = self.conns.get_mut(&id) {
                conn.held = false;
            }
            self.wake(id);
        }
    }

    /// Maps a ring and binds its port.
    pub fn add_ring(&mut self, dom: DomId, remote: Port, features: u32) -> Result<ConnId, Error> {
        let memory = self.world.map_ring(dom)?;
        let port = self.world.bind(dom, remote)?;
        let id = self.add(Transport::Ring(Ring::new(
            memory, dom, remote, port, features,
        )));
        // Requests may lie there already, and the peer may wait for a sign of us.
        self.wake(id);
        self.world.notify(port);
        Ok(id)
    }

    /// Takes a connection away.
    pub fn remove(&mut self, id: ConnId) -> Option<Conn> {
        let conn = self.conns.remove(&id)?;
        self.trace.connection(id, conn.dom(), "closed");
        self.journal.closed(id);
        if self
            .session
            .as_ref()
            .is_some_and(|session| session.conn == id)
        {
            self.go_on();
        }
        if let Transport::Ring(ring) = &conn.transport {
            self.by_port.remove(&ring.port);
            self.world.unbind(ring.port);
        }
        Some(conn)
    }

    /// A connection's transport may be read or written.
    #[inline]
    pub fn ready(&mut self, id: ConnId, readable: bool, writable: bool) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.readable |= readable;
            conn.writable |= writable;
            if !std::mem::replace(&mut conn.queued, true) {
                self.ready.push_back(id);
            }
        }
    }

    /// Lets a connection be served.
    pub fn wake(&mut self, id: ConnId) {
        self.ready(id, false, false);
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

    fn bind_anew(&mut self, id: ConnId, dom: DomId, remote: Port) -> Result<(), Errno> {
        let conn = self.conns.get_mut(&id).ok_or(Errno::ENOTCONN)?;
        let Transport::Ring(ring) = &mut conn.transport else {
            return Err(Errno::EINVAL);
        };
        self.by_port.remove(&ring.port);
        self.world.unbind(ring.port);
        let bound = self.world.bind(dom, remote);
        let port = bound.map_err(|_| Errno::EINVAL)?;
        ring.rebind(remote, port);
        conn.begin();
        self.journal.rebound(id, conn.what());
        self.by_port.insert(port, id);
        self.wake(id);
        self.world.notify(port);
        Ok(())
    }

    /// The connection whose ring has this port.
    pub fn by_port(&self, port: Port) -> Option<ConnId> {
        self.by_port.get(&port).copied()
    }
}

impl<W: StoreWorld> Host for Io<W> {
    fn domain_identity(&mut self, dom: DomId) -> Option<Identity> {
        let identity = self.world.identity(dom);
        self.journal.answers.identity(identity);
        identity
    }

    fn domain_states(&mut self) -> Option<Vec<DomainReport>> {
        let states = match self.world.domains() {
            Ok(states) => Some(states),
            Err(error) => {
                self.log(&format!("cannot list domains: {error}"));
                None
            }
        };
        self.journal.answers.states(states.as_deref());
        states
    }

    fn connect(
        &mut self,
        dom: DomId,
        _frame: u64,
        port: Port,
        features: u32,
    ) -> Result<ConnId, Errno> {
        let result = self.add_ring(dom, port, features).map_err(|error| {
            self.log(&format!("cannot introduce domain {dom}: {error}"));
            Errno::EINVAL
        });
        self.journal.answers.connected(result);
        result
    }

    fn rebind(&mut self, id: ConnId, dom: DomId, remote: Port) -> Result<(), Errno> {
        let result = self.bind_anew(id, dom, remote);
        self.journal.answers.rebound(result);
        result
    }

    fn disconnect(&mut self, id: ConnId) {
        self.remove(id);
    }

    fn reply(&mut self, id: ConnId, op: Op, request: &Header, body: &[u8]) {
        self.journal.answers.count();
        if self.trace.is_on() {
            self.trace.reply(id, op, request, body);
        }
        if let Some(conn) = self.conns.get_mut(&id) {
            let bytes = conn.output.reply(op, request, body);
            if conn.kept {
                self.journal.output(id, bytes);
            }
            if !std::mem::replace(&mut conn.queued, true) {
                self.ready.push_back(id);
            }
        }
    }

    fn event(&mut self, id: ConnId, event: Event, most: usize) {
        self.journal.answers.count();
        let now = self.clock;
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        if conn.failed.is_some() {
            return;
        }
        if conn.held() + event_size(&event) > most {
            if !self.doomed.contains(&id) {
                self.doomed.push(id);
            }
            return;
        }
        conn.events += 1;
        if self.trace.is_on() {
            self.trace.event(id, &event);
        }
        match conn.output.event(event, now) {
            _ if !conn.kept => {}
            Added::Bytes(bytes) => self.journal.output(id, bytes),
            Added::Waiting(event) => self.journal.waiting(id, event),
            Added::Nothing => {}
        }
        self.wake(id);
    }

    fn live_update(
        &mut self,
        conn: ConnId,
        request: &Header,
        words: &[&[u8]],
    ) -> Result<Option<String>, Errno> {
        let started = self.session.as_ref().and_then(|session| {
            let start = session.start.as_ref()?;
            Some((session.conn, start.header))
        });
        let done = live::control(&mut self.session, conn, request, words);
        if self.session.is_none() {
            if let Some((starter, header)) = started {
                self.reply(
                    starter,
                    Op::Control,
                    &header,
                    b"Cancellation was requested\0",
                );
            }
            self.go_on();
        }
        done
    }

    fn waiting_bytes(&mut self, id: ConnId) -> usize {
        let bytes = self.conns.get(&id).map_or(0, Conn::held);
        self.journal.answers.waiting(bytes);
        bytes
    }

    fn buffered(&self, id: ConnId) -> Buffered {
        self.conns
            .get(&id)
            .map_or(Buffered::default(), |conn| Buffered {
                bytes: conn.held(),
                replies: conn.output.replies(),
                events: conn.events,
            })
    }

    fn trace(&mut self, command: TraceCommand<'_>) -> Result<String, Errno> {
        self.trace.command(command)
    }

    fn write_report(&mut self, path: &str, text: &str) -> Result<(), Errno> {
        use std::io::Write;
        let file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(trace::absolute(path));
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|error| Errno(error.raw_os_error().unwrap_or(Errno::EIO.0)))
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
