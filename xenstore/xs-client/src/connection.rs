//! A blocking connection: requests of several threads at once, watch events kept aside.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xen_hal::StoreLink;
use xen_sys::{DomId, Errno, Port};
use xs_wire::call::{self, Exchange};
use xs_wire::{Client, MAX_PENDING, Request, RequestId, StoreError, TxId, WatchEvent};

use crate::open::{self, OpenError};
use crate::void::Void;
use crate::watch::{self, Watch};

/// Most requests of one batch that are sent before the first reply is waited for; fewer than a connection
/// may have open.
const BATCH: usize = 128;
const _: () = assert!(BATCH < MAX_PENDING);
/// The socket's other end was closed with bytes of ours unread (asm-generic/errno.h).
const ECONNRESET: Errno = Errno(104);
/// How long a request waits for its reply unless [`Connection::set_timeout`] says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to the store daemon, by its socket or by the kernel. May be shared between threads: their
/// requests are in flight side by side.
#[derive(Debug)]
pub struct Connection {
    fd: OwnedFd,
    /// Whether one write may hold several messages: not the kernel's device, which takes one a write.
    is_socket: bool,
    state: Mutex<State>,
    /// Something has come, or the thread that reads has ended its turn.
    changed: Condvar,
    next_watch: AtomicU64,
    waits: AtomicU64,
    transactions: AtomicU64,
}

/// What a connection has cost in turns of client and daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turns {
    /// How often something was waited for before it went on: a reply, the replies to requests that were sent
    /// together, an event that came.
    pub waits: u64,
    /// How many transactions were begun, those that had to be done again included.
    pub transactions: u64,
}

#[derive(Debug)]
struct State {
    client: Client,
    timeout: Duration,
    /// A thread waits for the descriptor and will take what comes, for all.
    reading: bool,
    /// How many threads wait for that one.
    waiting: usize,
    /// Why the connection is of no use any more.
    lost: Option<Errno>,
    /// Open transactions that cannot come to a good end.
    void: Void,
}

impl Connection {
    /// Connects to the path in `XENSTORED_PATH`, else to the usual ones.
    pub fn from_env() -> Result<Connection, OpenError> {
        open::from_env()
    }

    /// Connects to this socket or device.
    pub fn open(path: &Path) -> Result<Connection, OpenError> {
        open::open(path).map(Self::new).map_err(|error| OpenError {
            tried: vec![(path.to_owned(), error)],
        })
    }

    pub(crate) fn new(fd: OwnedFd) -> Connection {
        Connection {
            is_socket: open::is_socket(fd.as_fd()),
            fd,
            state: Mutex::new(State {
                client: Client::new(),
                timeout: DEFAULT_TIMEOUT,
                reading: false,
                waiting: 0,
                lost: None,
                void: Void::default(),
            }),
            changed: Condvar::new(),
            next_watch: AtomicU64::new(0),
            waits: AtomicU64::new(0),
            transactions: AtomicU64::new(0),
        }
    }

    /// The descriptor of a connection on which nothing is under way.
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Sets how long a request may wait for its reply before it fails with ETIMEDOUT.
    pub fn set_timeout(&self, timeout: Duration) {
        self.state().timeout = timeout;
    }

    /// Whether the daemon has ended the connection, or broken the protocol: every request fails now, with
    /// ENOTCONN or EIO.
    pub fn is_lost(&self) -> bool {
        self.state().lost.is_some()
    }

    /// Waits for the next watch event, at most `timeout`; `None` if none came. Without a timeout it waits
    /// for good. Events of [`subscribe`](Self::subscribe) are not among them.
    pub fn wait_event(&self, timeout: Option<Duration>) -> Result<Option<WatchEvent>, StoreError> {
        self.wait_event_if(timeout, watch::is_foreign)
    }

    pub(crate) fn wait_event_if(
        &self,
        timeout: Option<Duration>,
        wanted: impl Fn(&WatchEvent) -> bool,
    ) -> Result<Option<WatchEvent>, StoreError> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = self.state();
        if let Some(event) = state.client.next_event_if(&wanted) {
            return Ok(Some(event));
        }
        let waited = self.wait_until(state, deadline, |client| client.next_event_if(&wanted));
        let event = waited.map_err(event_error)?;
        if event.is_some() {
            self.count(&[]);
        }
        Ok(event)
    }

    pub(crate) fn take_event_if(
        &self,
        wanted: impl Fn(&WatchEvent) -> bool,
    ) -> Result<Option<WatchEvent>, StoreError> {
        let mut state = self.state();
        if let Some(event) = state.client.next_event_if(&wanted) {
            return Ok(Some(event));
        }
        // Else the thread that reads would wait for what we have taken away.
        if !state.reading {
            self.receive(&mut state).map_err(event_error)?;
        }
        Ok(state.client.next_event_if(&wanted))
    }

    /// Whether a watch event waits already; if not, poll the descriptor for input.
    pub fn has_event(&self) -> bool {
        self.state().client.has_event_if(watch::is_foreign)
    }

    /// Watches a path and all below it: an iterator over what changes, beginning with one event at once.
    pub fn subscribe(&self, path: &str) -> Result<Watch<'_>, StoreError> {
        let number = self.next_watch.fetch_add(1, Ordering::Relaxed);
        Watch::set(self, path, number)
    }

    /// Sends a request without waiting for the reply, so that many are in flight at once. EBUSY if
    /// [`MAX_PENDING`] are.
    pub fn submit(
        &self,
        tx: Option<TxId>,
        request: &Request<'_>,
    ) -> Result<InFlight<'_>, StoreError> {
        let mut state = self.state();
        let id = state.client.request(tx, request);
        let id = id.map_err(|errno| failed(request, errno))?;
        let in_flight = InFlight {
            connection: self,
            id,
            op: request.op().name(),
            object: request.object(),
        };
        let sent = self.send(&mut state);
        drop(state);
        sent.map_err(|error| in_flight.error(errno_of(&error)))?;
        Ok(in_flight)
    }

    /// What all requests of this thread and others have cost so far. Requests that were
    /// [submitted](Self::submit) are not among them.
    pub fn turns(&self) -> Turns {
        Turns {
            waits: self.waits.load(Ordering::Relaxed),
            transactions: self.transactions.load(Ordering::Relaxed),
        }
    }

    fn count(&self, requests: &[Request<'_>]) {
        let begun = requests
            .iter()
            .filter(|request| matches!(request, Request::TransactionStart));
        self.waits.fetch_add(1, Ordering::Relaxed);
        self.transactions
            .fetch_add(begun.count() as u64, Ordering::Relaxed);
    }

    /// The watches that are set: token and path.
    pub fn watches(&self) -> Vec<(String, String)> {
        let state = self.state();
        let watches = state.client.watches();
        watches
            .map(|(token, path)| (token.to_owned(), path.to_owned()))
            .collect()
    }

    /// Connects a domain's ring to the daemon: the ring's machine frame and the domain's port.
    pub fn introduce(&self, dom: DomId, frame: u64, port: Port) -> Result<(), StoreError> {
        call::introduce(self, dom, frame, port)
    }

    /// Makes the daemon forget a domain.
    pub fn release(&self, dom: DomId) -> Result<(), StoreError> {
        call::release(self, dom)
    }

    /// Tells the daemon that a domain runs again after it had shut down.
    pub fn resume(&self, dom: DomId) -> Result<(), StoreError> {
        call::resume(self, dom)
    }

    /// Gives `dom` the rights of `target`.
    pub fn set_target(&self, dom: DomId, target: DomId) -> Result<(), StoreError> {
        call::set_target(self, dom, target)
    }

    /// A domain's home directory.
    pub fn domain_path(&self, dom: DomId) -> Result<String, StoreError> {
        call::domain_path(self, dom)
    }

    /// Whether a domain is connected.
    pub fn is_introduced(&self, dom: DomId) -> Result<bool, StoreError> {
        call::is_introduced(self, dom)
    }

    /// Removes all watches and transactions of this connection.
    pub fn reset_watches(&self) -> Result<(), StoreError> {
        call::reset_watches(self)
    }

    /// Gives the daemon a command; returns its text.
    pub fn control(&self, command: &[&str]) -> Result<String, StoreError> {
        call::control(self, command)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves no half-done state behind: bytes were either fed or not.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Moving bytes. One thread at a time waits for the descriptor and takes what comes for all; the others
/// wait for it.
impl Connection {
    /// Waits until there is what `ready` looks for; `None` once the deadline has passed.
    fn wait_until<'c, T>(
        &'c self,
        mut state: MutexGuard<'c, State>,
        deadline: Option<Instant>,
        mut ready: impl FnMut(&mut Client) -> Option<T>,
    ) -> io::Result<Option<T>> {
        loop {
            if let Some(value) = ready(&mut state.client) {
                return Ok(Some(value));
            }
            self.send(&mut state)?;
            // The device waits for an answer, not for room.
            let unsent = self.is_socket && !state.client.output().is_empty();
            if state.reading && !unsent {
                let Some(left) = left_until(deadline) else {
                    return Ok(None);
                };
                state.waiting += 1;
                state = self
                    .changed
                    .wait_timeout(state, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
                state.waiting -= 1;
                continue;
            }
            // Who reads for all does not wait for room to write: each does so for what it sends.
            let reads = !state.reading;
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, reads);
            flags.set(PollFlags::OUT, unsent);
            state.reading = true;
            drop(state);
            let waited = wait(self.fd.as_fd(), flags, deadline);
            state = self.state();
            if reads {
                state.reading = false;
                let received = match &waited {
                    Ok(true) => self.receive(&mut state),
                    _ => Ok(()),
                };
                if state.waiting > 0 {
                    self.changed.notify_all();
                }
                received?;
            }
            if !waited? {
                // It may have come at the last moment.
                return Ok(ready(&mut state.client));
            }
        }
    }

    /// Sends what waits, as far as there is room.
    fn send(&self, state: &mut State) -> io::Result<()> {
        if let Some(errno) = state.lost {
            return Err(io::Error::from_raw_os_error(errno.0));
        }
        let client = &mut state.client;
        loop {
            let bytes = match self.is_socket {
                true => client.output(),
                false => client.output_message(),
            };
            if bytes.is_empty() {
                return Ok(());
            }
            match rustix::io::write(&self.fd, bytes) {
                Ok(0) => return Err(self.lose(state, ErrorKind::WriteZero.into())),
                Ok(len) => client.sent(len),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => {
                    // The daemon may have said something before it ended: that comes first.
                    let _ = self.receive(state);
                    return Err(self.lose(state, error.into()));
                }
            }
        }
    }

    /// Takes all that has come, without waiting.
    fn receive(&self, state: &mut State) -> io::Result<()> {
        if let Some(errno) = state.lost {
            return Err(io::Error::from_raw_os_error(errno.0));
        }
        let mut bytes = [0; 8192];
        loop {
            match rustix::io::read(&self.fd, &mut bytes[..]) {
                Ok(0) => return Err(self.lose(state, ErrorKind::UnexpectedEof.into())),
                Ok(len) => {
                    if let Err(error) = state.client.feed(&bytes[..len]) {
                        return Err(self.lose(state, io::Error::other(error)));
                    }
                    if len < bytes.len() {
                        return Ok(());
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(self.lose(state, error.into())),
            }
        }
    }

    fn lose(&self, state: &mut State, error: io::Error) -> io::Error {
        let errno = *state.lost.get_or_insert(errno_of(&error));
        if state.waiting > 0 {
            self.changed.notify_all();
        }
        io::Error::from_raw_os_error(errno.0)
    }

    fn reply<'c>(
        &'c self,
        state: MutexGuard<'c, State>,
        id: RequestId,
        deadline: Option<Instant>,
    ) -> Result<Vec<u8>, Errno> {
        match self.wait_until(state, deadline, |client| client.take_reply(id)) {
            Ok(Some(reply)) => reply,
            Ok(None) => {
                self.state().client.forget(id);
                Err(Errno::ETIMEDOUT)
            }
            Err(error) => {
                let client = &mut self.state().client;
                // It may have come before the end.
                client.take_reply(id).unwrap_or_else(|| {
                    client.forget(id);
                    Err(errno_of(&error))
                })
            }
        }
    }
}

/// A request whose reply has not been taken.
#[derive(Debug)]
#[must_use = "dropped, the reply is not looked at"]
pub struct InFlight<'c> {
    connection: &'c Connection,
    id: RequestId,
    op: &'static str,
    object: String,
}

impl InFlight<'_> {
    /// Waits for the reply, as long as the connection's requests do.
    pub fn wait(self) -> Result<Vec<u8>, StoreError> {
        let state = self.connection.state();
        let deadline = Instant::now().checked_add(state.timeout);
        let reply = self.connection.reply(state, self.id, deadline);
        reply.map_err(|errno| self.error(errno))
    }

    fn error(&self, errno: Errno) -> StoreError {
        StoreError {
            op: self.op,
            object: self.object.clone(),
            errno,
        }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        // Does nothing if the reply was taken: numbers are not used again so soon.
        self.connection.state().client.forget(self.id);
    }
}

pub(crate) fn failed(request: &Request<'_>, errno: Errno) -> StoreError {
    StoreError {
        op: request.op().name(),
        object: request.object(),
        errno,
    }
}

impl Connection {
    /// Waits for the reply to a request that may have been sent.
    fn answer(
        &self,
        state: MutexGuard<'_, State>,
        tx: Option<TxId>,
        request: &Request<'_>,
        id: Result<RequestId, Errno>,
        deadline: Option<Instant>,
    ) -> Result<Vec<u8>, StoreError> {
        let mut reply = id.and_then(|id| self.reply(state, id, deadline));
        if let Some(tx) = tx {
            reply = self.state().void.judge(tx, request, reply);
        }
        reply.map_err(|errno| failed(request, errno))
    }
}

impl Exchange for Connection {
    fn exchange(&self, tx: Option<TxId>, request: &Request<'_>) -> Result<Vec<u8>, StoreError> {
        self.count(std::slice::from_ref(request));
        let mut state = self.state();
        let deadline = Instant::now().checked_add(state.timeout);
        let id = state.client.request(tx, request);
        self.answer(state, tx, request, id, deadline)
    }
}

impl StoreLink for Connection {
    fn take_event(&self) -> Result<Option<WatchEvent>, StoreError> {
        self.take_event_if(watch::is_foreign)
    }

    fn exchange_all(
        &self,
        tx: Option<TxId>,
        requests: &[Request<'_>],
    ) -> Vec<Result<Vec<u8>, StoreError>> {
        let mut results = Vec::with_capacity(requests.len());
        for requests in requests.chunks(BATCH) {
            self.count(requests);
            let mut state = self.state();
            let deadline = Instant::now().checked_add(state.timeout);
            let client = &mut state.client;
            let ids: Vec<_> = requests
                .iter()
                .map(|request| client.request(tx, request))
                .collect();
            drop(state);
            results.extend(
                ids.into_iter()
                    .zip(requests)
                    .map(|(id, request)| self.answer(self.state(), tx, request, id, deadline)),
            );
        }
        results
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// The time that is left, without a deadline a long one; `None` once there is none left.
fn left_until(deadline: Option<Instant>) -> Option<Duration> {
    match deadline {
        None => Some(Duration::from_secs(3600)),
        Some(deadline) => deadline
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero()),
    }
}

/// Waits until the descriptor is ready; `false` once the deadline has passed.
fn wait(fd: BorrowedFd<'_>, flags: PollFlags, deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        match poll(&mut [PollFd::from_borrowed_fd(fd, flags)], left.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The error number of a request that the transport has failed: ENOTCONN if the daemon has gone.
pub(crate) fn errno_of(error: &io::Error) -> Errno {
    match (error.raw_os_error().map(Errno), error.kind()) {
        (Some(Errno::EPIPE | ECONNRESET), _) => Errno::ENOTCONN,
        (Some(errno), _) => errno,
        (None, ErrorKind::TimedOut) => Errno::ETIMEDOUT,
        (None, ErrorKind::UnexpectedEof | ErrorKind::WriteZero) => Errno::ENOTCONN,
        (None, _) => Errno::EIO,
    }
}

pub(crate) fn event_error(error: io::Error) -> StoreError {
    StoreError {
        op: "WATCH_EVENT",
        object: String::new(),
        errno: errno_of(&error),
    }
}
