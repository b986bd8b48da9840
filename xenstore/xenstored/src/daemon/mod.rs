//! The loop's body: takes bytes from transports, gives requests to the core, sends what comes of them.
//!
//! Invariant: one connection's peer can end that connection only; a request is taken up only while little waits to be
//! sent to its sender, and every connection with work is served in turn.

pub mod dom0;
pub mod fakexen;
mod io;
pub mod live;
mod output;
mod resume;
mod ring;
mod trace;
pub mod world;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno as OsErrno;
use rustix::net::{self, RecvFlags, SendFlags};
use xen_hal::Error;
use xen_sys::{DomId, Errno};
use xs_wire::{Frame, Header, Op};

pub use io::{Transport, log};
pub use output::Output;

use crate::core::control::TraceCommand;
use crate::core::limits::Limits;
use crate::core::settings::FEATURES;
use crate::core::{ConnId, Core};
use crate::journal::RECEIVE_MAX;
use crate::journal::conns::What;
use crate::manager::{Manager, hang_up};
use io::Io;
use ring::{Ring, RingFault};
use world::{StoreWorld, WorldEvent};

/// Events of the world taken in one step: a peer that fires without pause gets no more than its turn.
const EVENTS_PER_STEP: usize = 256;
/// Requests of one connection carried out in one turn.
const REQUESTS_PER_TURN: usize = 64;
/// How often the time is looked at while transactions wait for others.
const TICK: Duration = Duration::from_millis(1);
/// How often it is looked for events that have waited for too long.
const EXPIRY_TICK: Duration = Duration::from_secs(1);
/// Connections that are listened to before the first of them is answered.
const GROUP: usize = 32;

/// The core and its connections.
pub struct Daemon<W> {
    core: Core,
    io: Io<W>,
    /// Whether the world may have events; asked each time if it cannot tell.
    world_ready: bool,
    /// What is read from a transport.
    buffer: Vec<u8>,
    /// Connections that have had the first half of their turn, and whether bytes were moved.
    served: Vec<(ConnId, bool)>,
    /// The time that the core was told before this daemon began, and when that was.
    time_before: Duration,
    started: Instant,
    /// How long events wait for a guest before they are forgotten, in whole seconds; for ever if 0.
    event_timeout: u32,
}

/// What ended a connection.
enum End {
    /// The client has closed it.
    Closed,
    /// The peer broke a rule.
    Fault(RingFault, String),
}

impl<W: StoreWorld> Daemon<W> {
    /// A daemon with an empty store.
    pub fn new(world: W, limits: Limits) -> Daemon<W> {
        Daemon::with(Core::new(limits), world)
    }

    /// A daemon that goes on with this store.
    fn with(core: Core, world: W) -> Daemon<W> {
        Daemon {
            core,
            io: Io::new(world),
            world_ready: true,
            buffer: Vec::new(),
            served: Vec::new(),
            time_before: Duration::ZERO,
            started: Instant::now(),
            event_timeout: 0,
        }
    }

    /// Switches the access log on, to this file (as `CONTROL logfile`), or one of its kinds on or off.
    ///
    /// # Errors
    /// The file cannot be opened, or there is no such kind.
    pub fn trace(&mut self, command: TraceCommand<'_>) -> Result<(), Errno> {
        self.io.trace.command(command).map(drop)
    }

    /// Sets how long events wait for a guest before they are forgotten, in whole seconds; for ever if 0.
    pub fn set_event_timeout(&mut self, seconds: u32) {
        self.event_timeout = seconds;
    }

    /// Connects our own kernel, and tells it that the store is there. `false` if it has no ring.
    pub fn connect_kernel(&mut self) -> Result<bool, Error> {
        let Some((memory, remote)) = self.io.world.own_ring()? else {
            return Ok(false);
        };
        let port = self.io.world.bind(DomId::DOM0, remote)?;
        let ring = Ring::new(memory, DomId::DOM0, remote, port, FEATURES);
        let id = self.attach(Transport::Ring(ring));
        self.io.wake(id);
        // Linux takes the first event on its port as the sign that a daemon is up.
        self.io.world.notify(port);
        Ok(true)
    }

    /// Adds a socket client, which is dom0's.
    pub fn add_socket(&mut self, socket: OwnedFd) -> ConnId {
        self.io.keep(&socket);
        self.attach(Transport::Socket(socket))
    }

    fn attach(&mut self, transport: Transport) -> ConnId {
        let id = self.io.add(transport);
        self.core.attach_dom0(id);
        self.io.journal.attached(id);
        self.io.journal.commit();
        id
    }

    /// The world under the daemon.
    pub fn world(&self) -> &W {
        &self.io.world
    }

    /// The store.
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// The descriptor of a connection, if it is a socket's.
    pub fn socket(&self, id: ConnId) -> Option<&OwnedFd> {
        match &self.io.conns.get(&id)?.transport {
            Transport::Socket(fd) => Some(fd),
            Transport::Ring(_) => None,
        }
    }

    /// The service manager.
    pub fn manager(&self) -> Option<&Manager> {
        self.io.manager.as_ref()
    }

    /// Lets the service manager keep the socket that is listened on.
    pub fn keep_listener(&mut self, socket: BorrowedFd<'_>) {
        if let Some(manager) = &mut self.io.manager {
            manager.keep_listener(socket);
        }
    }

    /// No more is done: a daemon that is started later goes on from here, with a socket of its own.
    pub fn stop(&mut self) {
        self.save();
        if let Some(manager) = &mut self.io.manager {
            manager.forget_listener();
        }
    }

    /// The connections that are sockets.
    pub fn sockets(&self) -> Vec<ConnId> {
        let sockets = self.io.conns.iter();
        let sockets = sockets.filter(|(_, conn)| matches!(conn.transport, Transport::Socket(_)));
        sockets.map(|(id, _)| *id).collect()
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.io.conns.len()
    }

    /// Tells that a socket may be read or written.
    pub fn socket_ready(&mut self, id: ConnId, readable: bool, writable: bool) {
        self.io.ready(id, readable, writable);
    }

    /// Tells that a socket's peer has sent its last.
    pub fn socket_ending(&mut self, id: ConnId) {
        if let Some(conn) = self.io.conns.get_mut(&id) {
            conn.ending = true;
        }
        self.socket_ready(id, true, true);
    }

    /// Tells that the world's descriptor is readable.
    pub fn world_ready(&mut self) {
        self.world_ready = true;
    }

    /// The sockets that could not take all there was for them: [`socket_ready`](Self::socket_ready) is to be called
    /// when they are writable. Those told before are left out.
    pub fn take_blocked(&mut self) -> Vec<ConnId> {
        std::mem::take(&mut self.io.blocked)
    }

    /// Whether there is work left that no descriptor will tell about.
    pub fn has_work(&self) -> bool {
        !self.io.ready.is_empty() || self.world_ready
    }

    /// Whether there is nothing to do, but clients wait for what another will soon do.
    pub fn is_hurried(&self) -> bool {
        !self.has_work() && self.core.is_waited_for()
    }

    /// How long to wait for descriptors at most; for ever if `None`.
    pub fn patience(&self) -> Option<Duration> {
        if self.has_work() {
            Some(Duration::ZERO)
        } else if self.core.is_waited_for() || self.is_updating() {
            Some(TICK)
        } else {
            let waits = |conn: &io::Conn| conn.output.has_events();
            let expires = self.event_timeout > 0 && self.io.conns.values().any(waits);
            expires.then_some(EXPIRY_TICK)
        }
    }

    /// Forgets the events that have waited for guests for too long.
    fn expire_events(&mut self) {
        let now = self.started.elapsed().as_secs() as u32;
        if self.event_timeout == 0 || now == self.io.clock {
            return;
        }
        self.io.clock = now;
        let before = now.saturating_sub(self.event_timeout);
        for (id, conn) in self.io.conns.iter_mut() {
            let Transport::Ring(ring) = &conn.transport else {
                continue;
            };
            if ring.dom == DomId::DOM0 {
                continue;
            }
            let dropped = conn.output.expire(before);
            if dropped == 0 {
                continue;
            }
            self.io.journal.dropped(*id, dropped);
            self.io.journal.commit();
            conn.faults = conn.faults.saturating_add(1);
            if conn.faults.is_power_of_two() {
                let dom = ring.dom;
                log(&format!(
                    "domain {dom} does not take its events: old ones are forgotten"
                ));
            }
        }
    }

    /// Whether a request waits until a live update has come to an end: a transaction that the new program could not take
    /// over is not begun. Who has one open already may need another to end it.
    fn holds(&mut self, id: ConnId, header: &Header) -> bool {
        let session = self.io.session.as_ref();
        let waits = session.is_some_and(|session| session.start.is_some() && !session.ours);
        let begins = header.op == Op::TransactionStart.code() && self.core.transactions_of(id) == 0;
        if waits
            && begins
            && let Some(conn) = self.io.conns.get_mut(&id)
        {
            conn.held = true;
            self.io.held.push(id);
            return true;
        }
        false
    }

    /// Takes what has happened in the world, then serves each connection that has something to do once.
    /// Returns whether there was anything to do.
    pub fn step(&mut self) -> Result<bool, Error> {
        self.keep_journal_short();
        let mut busy = self.take_events()?;
        self.expire_events();
        if self.core.is_waited_for() {
            let now = self.time_before + self.started.elapsed();
            self.io.journal.begin(ConnId(0));
            self.core.pass_time(&mut self.io, now);
            self.io.journal.time(now);
            self.io.journal.commit();
        }
        // Those that are woken meanwhile have their turn in this step too, once.
        for _ in 0..2 {
            busy |= !self.io.ready.is_empty();
            self.serve_ready();
        }
        for id in std::mem::take(&mut self.io.doomed) {
            let why = "does not take its events".to_owned();
            self.end(id, End::Fault(RingFault::Communication, why));
        }
        self.io.trace.flush();
        Ok(busy)
    }

    /// Takes some of what has happened in the world; whether anything has.
    fn take_events(&mut self) -> Result<bool, Error> {
        if !self.world_ready && self.io.world.event_fd().is_some() {
            return Ok(false);
        }
        for taken in 0..EVENTS_PER_STEP {
            match self.io.world.next_event()? {
                None => {
                    self.world_ready = false;
                    return Ok(taken > 0);
                }
                Some(WorldEvent::DomainsChanged) => self.look_at_domains(),
                Some(WorldEvent::Port(port)) => {
                    if let Some(id) = self.io.by_port(port) {
                        self.io.ready(id, true, true);
                    }
                }
            }
        }
        Ok(true)
    }

    fn look_at_domains(&mut self) {
        self.io.journal.begin(ConnId(0));
        self.core.domains_changed(&mut self.io);
        self.io.journal.domains();
        self.io.journal.commit();
    }

    /// Gives each connection that has something to do its turn, and sends what comes of it after half of them, or some,
    /// have had theirs: a client that works faster than this daemon then finds several replies instead of waiting for
    /// each, and one on another processor has something to do meanwhile.
    fn serve_ready(&mut self) {
        let mut served = std::mem::take(&mut self.served);
        let mut left = self.io.ready.len();
        let group = (left / 2).clamp(1, GROUP);
        while left > 0 {
            let group = left.min(group);
            left -= group;
            for _ in 0..group {
                let Some(id) = self.io.next_ready() else {
                    break;
                };
                match self.listen(id) {
                    Ok(moved) => served.push((id, moved)),
                    Err(end) => self.end(id, end),
                }
            }
            for (id, moved) in served.drain(..) {
                match self.answer(id, moved) {
                    Ok(more) => self.io.served(id, more),
                    Err(end) => self.end(id, end),
                }
            }
        }
        self.served = served;
    }

    /// The first half of a connection's turn: sends what waits, carries out some requests. Whether any bytes were sent or
    /// taken.
    fn listen(&mut self, id: ConnId) -> Result<bool, End> {
        let Some(conn) = self.io.conns.get(&id) else {
            return Ok(false);
        };
        let (has_output, has_input) = (!conn.output.is_empty(), !conn.input.is_empty());
        if matches!(conn.transport, Transport::Ring(_)) && self.is_reconnected(id) {
            return Ok(true);
        }
        let moved = has_output && self.flush(id)?;
        Ok(self.take_requests(id, has_input)? | moved)
    }

    /// Whether the peer of a ring has asked for a fresh start, which it has then. Nothing is done for a failed one that has
    /// not: its ring is as if it were empty.
    fn is_reconnected(&mut self, id: ConnId) -> bool {
        let Some(conn) = self.io.conns.get_mut(&id) else {
            return false;
        };
        let Transport::Ring(ring) = &mut conn.transport else {
            return false;
        };
        // dom0's socket clients may let any number of replies wait.
        let most = self.core.most_outstanding(id);
        conn.output.set_most_replies(most);
        let wanted = ring.wants_reconnect();
        if wanted {
            // First the journal: a new daemon finds the wish in the page, or all done.
            self.io.journal.rebound(id, What::Ring(ring.at_fresh()));
            self.core.restart(id);
            self.io.trace.connection(id, ring.dom.0, "afresh");
            self.io.journal.restarted(id);
            self.io.journal.commit();
            ring.reconnect();
            conn.begin();
        } else if conn.failed.is_some() {
            (conn.readable, conn.writable) = (false, false);
        }
        wanted
    }

    /// The second half: sends what has come of it. Whether it has more to do.
    fn answer(&mut self, id: ConnId, moved: bool) -> Result<bool, End> {
        let moved = self.flush(id)? | moved;
        let Some(conn) = self.io.conns.get(&id) else {
            return Ok(false);
        };
        if moved && let Transport::Ring(ring) = &conn.transport {
            self.io.world.notify(ring.port);
        }
        let more_input = conn.readable || has_message(&conn.input);
        let more_output = conn.writable && !conn.output.is_empty();
        if conn.ended && !has_message(&conn.input) && conn.output.is_empty() {
            return Err(End::Closed);
        }
        Ok(more_output || more_input && conn.is_heard())
    }

    /// Reads and carries out requests, those that were kept first if there are any; whether any bytes were taken from the
    /// transport.
    fn take_requests(&mut self, id: ConnId, has_kept: bool) -> Result<bool, End> {
        // Taken out, so that requests may be carried out from where they were read to.
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = self.take_requests_by(&mut buffer, id, has_kept);
        self.buffer = buffer;
        result
    }

    fn take_requests_by(
        &mut self,
        buffer: &mut Vec<u8>,
        id: ConnId,
        mut has_kept: bool,
    ) -> Result<bool, End> {
        let mut moved = false;
        let mut left = REQUESTS_PER_TURN;
        loop {
            if has_kept {
                self.carry_out_kept(id, &mut left)?;
            }
            let Some(conn) = self.io.conns.get_mut(&id) else {
                return Ok(moved);
            };
            if left == 0 || !conn.readable || !conn.is_heard() {
                return Ok(moved);
            }
            buffer.clear();
            let len = match &mut conn.transport {
                Transport::Ring(ring) => ring
                    .receive(buffer)
                    .map_err(|error| End::Fault(RingFault::Index, error.to_string()))?,
                Transport::Socket(fd) => match conn
                    .kept
                    .then(|| {
                        let journal = &mut self.io.journal;
                        journal.receive(fd.as_fd(), id, &mut conn.count, buffer)
                    })
                    .flatten()
                    .unwrap_or_else(|| receive(fd, buffer))
                {
                    Ok(0) => {
                        conn.ended = true;
                        0
                    }
                    Ok(len) => {
                        // Less than there was room for: epoll tells when more comes. Of the end it may have told.
                        conn.readable = len >= RECEIVE_MAX || conn.ending;
                        len
                    }
                    Err(OsErrno::AGAIN | OsErrno::INTR) => 0,
                    Err(_) => return Err(End::Closed),
                },
            };
            if len == 0 {
                conn.readable = false;
            }
            moved |= len > 0;
            let (used, result) = match conn.input.is_empty() {
                true => self.carry_out(id, buffer, &mut left),
                false => (0, Ok(())),
            };
            let mut is_readable = false;
            if let Some(conn) = self.io.conns.get_mut(&id) {
                if used < len {
                    conn.input.extend_from_slice(&buffer[used..]);
                    if conn.kept {
                        self.io.journal.more(id, &buffer[used..]);
                        self.io.journal.commit();
                    }
                }
                if let Transport::Ring(ring) = &mut conn.transport
                    && len > 0
                {
                    ring.take(len);
                }
                (is_readable, has_kept) = (conn.readable, !conn.input.is_empty());
            }
            result?;
            if !is_readable && !has_kept {
                return Ok(moved);
            }
        }
    }

    /// Carries out requests that were kept until there was room for their replies.
    fn carry_out_kept(&mut self, id: ConnId, left: &mut usize) -> Result<(), End> {
        let Some(conn) = self.io.conns.get_mut(&id) else {
            return Ok(());
        };
        if conn.input.is_empty() {
            return Ok(());
        }
        // Taken out, so that the core may queue output to the connection, or end it.
        let mut input = std::mem::take(&mut conn.input);
        conn.taken_out = input.len();
        let (used, result) = self.carry_out(id, &input, left);
        input.drain(..used);
        if input.is_empty() {
            input.shrink_to(RECEIVE_MAX);
        }
        if let Some(conn) = self.io.conns.get_mut(&id) {
            conn.input = input;
            conn.taken_out = 0;
        }
        result
    }

    /// Carries out up to `left` of the requests that have come in whole; returns how many bytes they took.
    fn carry_out(
        &mut self,
        id: ConnId,
        input: &[u8],
        left: &mut usize,
    ) -> (usize, Result<(), End>) {
        let mut used = 0;
        while *left > 0 && used < input.len() {
            let conn = self.io.conns.get(&id);
            let Some(conn) = conn.filter(|conn| conn.is_heard()) else {
                break;
            };
            let kept = conn.kept;
            match xs_wire::peek(&input[used..]) {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    let Frame { header, body } = &frame;
                    if self.io.session.is_some() && self.holds(id, header) {
                        break;
                    }
                    self.io.journal.begin(id);
                    if self.io.trace.is_on() {
                        let dom = self.io.conns.get(&id).map_or(0, io::Conn::dom);
                        self.io.trace.request(id, dom, header, body);
                    }
                    self.core.request(&mut self.io, id, header, body);
                    // All that it has done counts from here on, and nothing before.
                    if kept {
                        self.io.journal.done(id, frame.size());
                    }
                    self.io.journal.request(id, header, body);
                    self.io.journal.commit();
                    used += frame.size();
                    *left -= 1;
                }
                Err(error) => {
                    let why = format!("sent {error}");
                    return (used, Err(End::Fault(RingFault::Protocol, why)));
                }
            }
        }
        (used, Ok(()))
    }

    /// Sends what the transport takes; whether any bytes were sent.
    fn flush(&mut self, id: ConnId) -> Result<bool, End> {
        let Some(conn) = self.io.conns.get_mut(&id) else {
            return Ok(false);
        };
        let mut moved = false;
        let journal = &mut self.io.journal;
        while conn.writable {
            let events = conn.output.fill();
            if events > 0 && conn.kept {
                journal.moved(id, events);
                journal.commit();
            }
            let bytes = conn.output.bytes();
            if bytes.is_empty() {
                break;
            }
            let len = match &mut conn.transport {
                Transport::Ring(ring) => {
                    let sent = ring.send(bytes);
                    let len =
                        sent.map_err(|error| End::Fault(RingFault::Index, error.to_string()))?;
                    journal.given(id, len);
                    journal.commit();
                    len
                }
                Transport::Socket(fd) => {
                    let kept = conn.kept.then(|| journal.send(fd.as_fd(), id, bytes));
                    match kept
                        .flatten()
                        .unwrap_or_else(|| net::send(&*fd, bytes, SendFlags::NOSIGNAL))
                    {
                        Ok(len) => len,
                        Err(OsErrno::AGAIN | OsErrno::INTR) => 0,
                        Err(_) => return Err(End::Closed),
                    }
                }
            };
            if len < bytes.len() {
                conn.writable = false;
                if matches!(conn.transport, Transport::Socket(_)) && !conn.tells_room {
                    conn.tells_room = true;
                    self.io.blocked.push(id);
                }
            }
            conn.output.sent(len);
            moved |= len > 0;
        }
        Ok(moved)
    }

    /// Ends a connection, for whatever reason. A ring whose peer broke a rule stays, so that the peer may begin afresh.
    fn end(&mut self, id: ConnId, end: End) {
        let Some(conn) = self.io.conns.get_mut(&id) else {
            return;
        };
        if let End::Fault(fault, why) = end {
            let who = match &conn.transport {
                Transport::Socket(_) => "a socket client".to_owned(),
                Transport::Ring(ring) => format!("domain {}", ring.dom),
            };
            conn.faults = conn.faults.saturating_add(1);
            // A guest that does it over and over does not fill the log.
            if conn.faults.is_power_of_two() {
                let line = format!("{who} {why}: its connection is ended");
                log(&line);
            }
            conn.failed = Some(fault);
            let what = conn.what();
            if let Transport::Ring(ring) = &mut conn.transport {
                self.io.journal.rebound(id, what);
                self.core.restart(id);
                self.io.journal.restarted(id);
                self.io.journal.commit();
                ring.fail(fault);
                let port = ring.port;
                conn.begin();
                conn.failed = Some(fault);
                self.io.world.notify(port);
                self.io.served(id, false);
                return;
            }
        }
        self.core.detach(id);
        self.io.journal.detached(id);
        let conn = self.io.remove(id);
        self.io.journal.commit();
        // It is closed for its peer when that counts.
        if let Some(Transport::Socket(fd)) = conn.map(|conn| conn.transport) {
            hang_up(&fd);
            self.io.forget(id);
        }
    }
}

fn has_message(input: &[u8]) -> bool {
    !matches!(xs_wire::peek(input), Ok(None))
}

/// Reads up to [`RECEIVE_MAX`] bytes into an empty buffer.
fn receive(fd: &OwnedFd, to: &mut Vec<u8>) -> Result<usize, OsErrno> {
    to.reserve_exact(RECEIVE_MAX);
    let room = rustix::buffer::spare_capacity(to);
    let (len, _) = net::recv(fd, room, RecvFlags::empty())?;
    Ok(len)
}
