//! A client that connects again when the daemon has been restarted without keeping connections.

use std::collections::HashMap;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use xen_hal::StoreLink;
use xen_sys::Errno;
use xs_wire::call::{self, Exchange};
use xs_wire::{Op, Request, StoreError, TxId, WatchEvent};

use crate::connection::{Connection, event_error, failed};
use crate::open::OpenError;

/// How long a daemon may take to come back, unless [`Reconnecting::open`] is told otherwise.
pub const DEFAULT_PATIENCE: Duration = Duration::from_secs(10);
/// The pause between two attempts to connect, at first and at most.
const PAUSES: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(200)];

/// A [`Connection`] that is made again when the daemon goes away and comes back.
///
/// - Watches are set again; each then has one event at once, so what happened meanwhile is looked at.
/// - A request outside a transaction is made again: it may be done twice, which changes nothing but that a
///   removal may find nothing to remove (ENOENT).
/// - Requests in a transaction fail with EAGAIN, so that [`transaction`](crate::transaction) tries again;
///   a commit whose reply is missing fails with ENOTCONN, for nobody knows whether it happened.
/// - Its descriptor stays the same and can be polled.
#[derive(Debug)]
pub struct Reconnecting {
    path: Option<PathBuf>,
    patience: Duration,
    current: Mutex<Current>,
    /// Stands for the connection's descriptor, which changes.
    epoll: OwnedFd,
}

#[derive(Debug)]
struct Current {
    connection: Arc<Connection>,
    /// How often it was made again.
    renewals: u64,
    /// The open transactions by the numbers that we have given them: another connection's daemon may give
    /// the same number to another transaction.
    transactions: HashMap<TxId, TxId>,
    last_tx: u32,
}

impl Reconnecting {
    /// Connects to the path in `XENSTORED_PATH`, else to the usual ones.
    pub fn from_env() -> Result<Reconnecting, OpenError> {
        Self::new(None, DEFAULT_PATIENCE)
    }

    /// Connects to this socket or device. When the connection is lost, requests wait so long for another.
    pub fn open(path: impl Into<PathBuf>, patience: Duration) -> Result<Reconnecting, OpenError> {
        Self::new(Some(path.into()), patience)
    }

    fn new(path: Option<PathBuf>, patience: Duration) -> Result<Reconnecting, OpenError> {
        let connection = connect(path.as_ref())?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .and_then(|epoll| follow(&epoll, &connection).map(|()| epoll))
            .map_err(|error| OpenError {
                tried: vec![(PathBuf::from("epoll"), io::Error::from(error))],
            })?;
        Ok(Reconnecting {
            path,
            patience,
            current: Mutex::new(Current {
                connection: Arc::new(connection),
                renewals: 0,
                transactions: HashMap::new(),
                last_tx: 0,
            }),
            epoll,
        })
    }

    /// How often the connection was made again. Who sees it grow knows that open transactions are gone.
    pub fn renewals(&self) -> u64 {
        self.current().renewals
    }

    /// Whether a watch event waits already; if not, poll the descriptor for input.
    pub fn has_event(&self) -> bool {
        self.connection().has_event()
    }

    /// Waits for the next watch event, at most `timeout`; `None` if none came.
    pub fn wait_event(&self, timeout: Option<Duration>) -> Result<Option<WatchEvent>, StoreError> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let connection = self.connection();
            match connection.wait_event(left) {
                Err(error) if error.errno == Errno::ENOTCONN => self.renew(&connection, error)?,
                result => return result,
            }
        }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connection(&self) -> Arc<Connection> {
        Arc::clone(&self.current().connection)
    }

    /// Makes another connection in place of `lost`, unless another thread has; `why` if none can be made.
    fn renew(&self, lost: &Arc<Connection>, why: StoreError) -> Result<(), StoreError> {
        let mut current = self.current();
        if !Arc::ptr_eq(&current.connection, lost) {
            return Ok(());
        }
        let watches = lost.watches();
        let deadline = Instant::now() + self.patience;
        let mut pause = PAUSES[0];
        loop {
            // A daemon that ends again while the watches are set is waited for like one that is absent.
            if let Ok(connection) = connect(self.path.as_ref())
                && set_again(&connection, &watches)?
            {
                follow(&self.epoll, &connection).map_err(|error| event_error(error.into()))?;
                current.connection = Arc::new(connection);
                current.renewals += 1;
                current.transactions.clear();
                return Ok(());
            }
            if Instant::now() + pause > deadline {
                return Err(why);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSES[1]);
        }
    }
}

fn connect(path: Option<&PathBuf>) -> Result<Connection, OpenError> {
    path.map_or_else(Connection::from_env, |path| Connection::open(path))
}

fn follow(epoll: &OwnedFd, connection: &Connection) -> rustix::io::Result<()> {
    let data = epoll::EventData::new_u64(0);
    // The one before goes from the set when it is closed.
    epoll::add(epoll, connection, data, epoll::EventFlags::IN)
}

/// Sets these watches (token and path); false if the connection is lost meanwhile.
fn set_again(connection: &Connection, watches: &[(String, String)]) -> Result<bool, StoreError> {
    for (token, path) in watches {
        match call::watch(connection, path, token) {
            Err(_) if connection.is_lost() => return Ok(false),
            Err(error) => return Err(error),
            Ok(()) => {}
        }
    }
    Ok(true)
}

impl Exchange for Reconnecting {
    fn exchange(&self, tx: Option<TxId>, request: &Request<'_>) -> Result<Vec<u8>, StoreError> {
        match tx {
            Some(tx) => self.exchange_in(tx, request),
            None => loop {
                let connection = self.connection();
                match connection.exchange(None, request) {
                    Err(error) if connection.is_lost() => self.renew(&connection, error)?,
                    Ok(body) if request.op() == Op::TransactionStart => {
                        if let Some(body) = self.opened(&connection, &body) {
                            return Ok(body);
                        }
                    }
                    result => return result,
                }
            },
        }
    }
}

impl Reconnecting {
    /// Gives a transaction a number of ours; `None` if its connection is not the current one any more.
    fn opened(&self, connection: &Arc<Connection>, body: &[u8]) -> Option<Vec<u8>> {
        let Some(theirs) = call::parse_tx(body) else {
            // The caller will say that it makes no sense.
            return Some(body.to_vec());
        };
        let mut current = self.current();
        if !Arc::ptr_eq(&current.connection, connection) {
            return None;
        }
        let ours = loop {
            current.last_tx = current.last_tx.wrapping_add(1);
            if let Some(number) = NonZeroU32::new(current.last_tx)
                && !current.transactions.contains_key(&TxId(number))
            {
                break TxId(number);
            }
        };
        current.transactions.insert(ours, theirs);
        Some(format!("{}\0", ours.0).into_bytes())
    }

    /// A request in a transaction; EAGAIN if the transaction has gone with its connection.
    fn exchange_in(&self, tx: TxId, request: &Request<'_>) -> Result<Vec<u8>, StoreError> {
        let gone = failed(request, Errno::EAGAIN);
        let mut current = self.current();
        let connection = Arc::clone(&current.connection);
        let theirs = match request.op() {
            Op::TransactionEnd => current.transactions.remove(&tx),
            _ => current.transactions.get(&tx).copied(),
        };
        drop(current);
        let Some(theirs) = theirs else {
            return Err(gone);
        };
        match connection.exchange(Some(theirs), request) {
            Err(error) if connection.is_lost() => {
                self.renew(&connection, error.clone())?;
                Err(match request {
                    // It may have happened or not.
                    Request::TransactionEnd(true) => error,
                    _ => gone,
                })
            }
            result => result,
        }
    }
}

impl StoreLink for Reconnecting {
    fn take_event(&self) -> Result<Option<WatchEvent>, StoreError> {
        let connection = self.connection();
        match connection.take_event() {
            Err(error) if connection.is_lost() => {
                self.renew(&connection, error)?;
                self.connection().take_event()
            }
            result => result,
        }
    }
}

impl AsFd for Reconnecting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
