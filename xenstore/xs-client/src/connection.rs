//! A blocking connection: one request at a time, watch events kept aside.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xen_hal::StoreLink;
use xen_sys::{DomId, Errno, Port};
use xs_wire::call::{self, Exchange};
use xs_wire::{Client, MAX_PENDING, Request, RequestId, StoreError, TxId, WatchEvent};

use crate::open::{self, OpenError};

/// Most requests sent before the first reply is waited for; fewer than a connection may have open.
const BATCH: usize = 128;
const _: () = assert!(BATCH < MAX_PENDING);
/// How long a request waits for its reply unless [`Connection::set_timeout`] says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to the store daemon, by its socket or by the kernel. May be shared between threads; each
/// request excludes the others while it waits for its reply.
#[derive(Debug)]
pub struct Connection {
    fd: OwnedFd,
    /// Whether requests may be sent before the replies to those before them have come: not through the
    /// kernel's device, which takes one message a write.
    pipelines: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    client: Client,
    timeout: Duration,
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
            pipelines: rustix::net::sockopt::socket_type(&fd).is_ok(),
            fd,
            state: Mutex::new(State {
                client: Client::new(),
                timeout: DEFAULT_TIMEOUT,
            }),
        }
    }

    /// Sets how long a request may wait for its reply before it fails with ETIMEDOUT.
    pub fn set_timeout(&self, timeout: Duration) {
        self.state().timeout = timeout;
    }

    /// Waits for the next watch event, at most `timeout`; `None` if none came. Without a timeout it waits
    /// for good.
    pub fn wait_event(&self, timeout: Option<Duration>) -> Result<Option<WatchEvent>, StoreError> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            if let Some(event) = self.take_event()? {
                return Ok(Some(event));
            }
            // The lock is free while waiting, so that another thread can make requests.
            if !wait(self.fd.as_fd(), PollFlags::IN, deadline).map_err(event_error)? {
                return Ok(None);
            }
        }
    }

    /// Whether a watch event waits already; if not, poll the descriptor for input.
    pub fn has_event(&self) -> bool {
        self.state().client.has_event()
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

    fn flush(&self, client: &mut Client, deadline: Option<Instant>) -> io::Result<()> {
        while !client.output().is_empty() {
            match rustix::io::write(&self.fd, client.output()) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(len) => client.sent(len),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    // The daemon may wait for us to read before it reads on.
                    let flags = PollFlags::IN | PollFlags::OUT;
                    if !wait(self.fd.as_fd(), flags, deadline)? {
                        return Err(ErrorKind::TimedOut.into());
                    }
                    self.receive(client)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Takes all that has come, without waiting.
    fn receive(&self, client: &mut Client) -> io::Result<()> {
        let mut bytes = [0; 8192];
        loop {
            match rustix::io::read(&self.fd, &mut bytes[..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(len) => {
                    client.feed(&bytes[..len]).map_err(io::Error::other)?;
                    if len < bytes.len() {
                        return Ok(());
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Connection {
    /// Sends what is queued, then waits for the reply to `id`.
    fn reply(
        &self,
        client: &mut Client,
        id: RequestId,
        deadline: Option<Instant>,
    ) -> io::Result<Result<Vec<u8>, Errno>> {
        self.flush(client, deadline)?;
        loop {
            if let Some(reply) = client.take_reply(id) {
                return Ok(reply);
            }
            if !wait(self.fd.as_fd(), PollFlags::IN, deadline)? {
                return Err(ErrorKind::TimedOut.into());
            }
            self.receive(client)?;
        }
    }

    /// Sends all requests, then waits for the replies.
    fn pipeline(
        &self,
        tx: Option<TxId>,
        requests: &[Request<'_>],
    ) -> Vec<Result<Vec<u8>, StoreError>> {
        let mut state = self.state();
        let deadline = Instant::now().checked_add(state.timeout);
        let client = &mut state.client;
        let ids: Vec<_> = requests
            .iter()
            .map(|request| client.request(tx, request))
            .collect();
        ids.into_iter()
            .zip(requests)
            .map(|(id, request)| {
                let id = id.map_err(|errno| failed(request, errno))?;
                match self.reply(client, id, deadline) {
                    Ok(reply) => reply.map_err(|errno| failed(request, errno)),
                    Err(error) => {
                        client.forget(id);
                        Err(failed(request, errno_of(&error)))
                    }
                }
            })
            .collect()
    }
}

fn failed(request: &Request<'_>, errno: Errno) -> StoreError {
    StoreError {
        op: request.op().name(),
        object: request.object(),
        errno,
    }
}

impl Exchange for Connection {
    fn exchange(&self, tx: Option<TxId>, request: &Request<'_>) -> Result<Vec<u8>, StoreError> {
        let mut state = self.state();
        let deadline = Instant::now().checked_add(state.timeout);
        let client = &mut state.client;
        let id = client
            .request(tx, request)
            .map_err(|errno| failed(request, errno))?;
        match self.reply(client, id, deadline) {
            Ok(reply) => reply.map_err(|errno| failed(request, errno)),
            Err(error) => {
                client.forget(id);
                Err(failed(request, errno_of(&error)))
            }
        }
    }
}

impl StoreLink for Connection {
    fn take_event(&self) -> Result<Option<WatchEvent>, StoreError> {
        let client = &mut self.state().client;
        if !client.has_event() {
            self.receive(client).map_err(event_error)?;
        }
        Ok(client.next_event())
    }

    fn exchange_all(
        &self,
        tx: Option<TxId>,
        requests: &[Request<'_>],
    ) -> Vec<Result<Vec<u8>, StoreError>> {
        let at_once = if self.pipelines { BATCH } else { 1 };
        requests
            .chunks(at_once)
            .flat_map(|requests| self.pipeline(tx, requests))
            .collect()
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

fn errno_of(error: &io::Error) -> Errno {
    match (error.raw_os_error(), error.kind()) {
        (Some(number), _) => Errno(number),
        (None, ErrorKind::TimedOut) => Errno::ETIMEDOUT,
        // The daemon closed the connection.
        (None, ErrorKind::UnexpectedEof | ErrorKind::WriteZero) => Errno::ENOTCONN,
        (None, _) => Errno::EIO,
    }
}

fn event_error(error: io::Error) -> StoreError {
    StoreError {
        op: "WATCH_EVENT",
        object: String::new(),
        errno: errno_of(&error),
    }
}
