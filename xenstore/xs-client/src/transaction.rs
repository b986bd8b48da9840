//! Transactions as closures, tried again when others were faster, with a bound.

use std::cell::Cell;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use xen_sys::Errno;
use xs_wire::call::{self, Exchange};
use xs_wire::{Permission, Request, StoreError, TxId};

/// How often a transaction is tried, and how long it waits in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Most tries; at least one is made.
    pub tries: u32,
    /// The pause after the second conflict; after each further one it is twice as long. After the first
    /// there is none: our daemon lets those who conflicted take turns.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
}

impl Default for Retry {
    /// 100 tries, pauses from 1 to 50 ms.
    fn default() -> Self {
        Retry {
            tries: 100,
            first_pause: Duration::from_millis(1),
            longest_pause: Duration::from_millis(50),
        }
    }
}

impl Retry {
    /// The pause after so many conflicts: a random half to whole, so that two do not meet again.
    fn pause(&self, conflicts: u32) -> Duration {
        let Some(doublings) = conflicts.checked_sub(2) else {
            return Duration::ZERO;
        };
        let factor = 1u32.checked_shl(doublings).unwrap_or(u32::MAX);
        let whole = self.first_pause.saturating_mul(factor);
        let half = whole.min(self.longest_pause) / 2;
        let part = RandomState::new().hash_one(conflicts) % 1000;
        half + half * part as u32 / 1000
    }
}

/// A transaction that did not commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransactionError<E> {
    /// Others changed what it depends on, every time.
    Conflicts {
        /// How often it was tried.
        tries: u32,
        /// How long that took.
        took: Duration,
    },
    /// It could not be started or ended.
    Store(StoreError),
    /// The closure's own error; the transaction was aborted.
    Body(E),
}

impl<E: fmt::Display> fmt::Display for TransactionError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TransactionError::Conflicts { tries, took } => write!(
                f,
                "xenstore TRANSACTION_END: others changed the same nodes in each of {tries} tries, in {} ms",
                took.as_millis()
            ),
            TransactionError::Store(error) => error.fmt(f),
            TransactionError::Body(error) => error.fmt(f),
        }
    }
}

impl<E: std::error::Error> std::error::Error for TransactionError<E> {}

impl From<TransactionError<StoreError>> for StoreError {
    fn from(error: TransactionError<StoreError>) -> StoreError {
        match error {
            TransactionError::Conflicts { tries, .. } => StoreError {
                op: "TRANSACTION_END",
                object: format!("after {tries} tries"),
                errno: Errno::EAGAIN,
            },
            TransactionError::Store(error) | TransactionError::Body(error) => error,
        }
    }
}

/// An open transaction: what is read and written through it happens at one moment, or not at all.
#[derive(Debug)]
pub struct Transaction<'c, X: Exchange + ?Sized> {
    link: &'c X,
    tx: TxId,
    /// A request in it failed with EAGAIN: the connection that it was open on has gone.
    gone: Cell<bool>,
}

/// Requests through it are in the transaction.
impl<X: Exchange + ?Sized> Exchange for Transaction<'_, X> {
    fn exchange(&self, _: Option<TxId>, request: &Request<'_>) -> Result<Vec<u8>, StoreError> {
        let reply = self.link.exchange(Some(self.tx), request);
        if matches!(&reply, Err(error) if error.errno == Errno::EAGAIN) {
            self.gone.set(true);
        }
        reply
    }
}

impl<X: Exchange + ?Sized> Transaction<'_, X> {
    /// Its number.
    pub fn id(&self) -> TxId {
        self.tx
    }

    /// A node's value.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, StoreError> {
        call::read(self, None, path)
    }

    /// A node's value, or `None` if there is no such node.
    pub fn read_optional(&self, path: &str) -> Result<Option<Vec<u8>>, StoreError> {
        optional(self.read(path))
    }

    /// Writes a value, making the node and its parents if absent.
    pub fn write(&self, path: &str, value: &[u8]) -> Result<(), StoreError> {
        call::write(self, None, path, value)
    }

    /// Makes an empty node and its parents if absent.
    pub fn mkdir(&self, path: &str) -> Result<(), StoreError> {
        call::mkdir(self, None, path)
    }

    /// Removes a node and all below it.
    pub fn rm(&self, path: &str) -> Result<(), StoreError> {
        call::rm(self, None, path)
    }

    /// The names of a node's children.
    pub fn list(&self, path: &str) -> Result<Vec<String>, StoreError> {
        call::list(self, None, path)
    }

    /// A node's permissions.
    pub fn permissions(&self, path: &str) -> Result<Vec<Permission>, StoreError> {
        call::permissions(self, None, path)
    }

    /// Replaces a node's permissions.
    pub fn set_permissions(&self, path: &str, list: &[Permission]) -> Result<(), StoreError> {
        call::set_permissions(self, None, path, list)
    }
}

pub(crate) fn optional(result: Result<Vec<u8>, StoreError>) -> Result<Option<Vec<u8>>, StoreError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.errno == Errno::ENOENT => Ok(None),
        Err(error) => Err(error),
    }
}

/// Runs `body` in a transaction and commits it; again, as `retry` says, if others changed what it depends
/// on. An error of `body` aborts it and is returned.
pub fn transaction<X: Exchange + ?Sized, T, E>(
    link: &X,
    retry: &Retry,
    mut body: impl FnMut(&Transaction<'_, X>) -> Result<T, E>,
) -> Result<T, TransactionError<E>> {
    let begun = Instant::now();
    let mut conflicts = 0;
    loop {
        let tx = call::start(link).map_err(TransactionError::Store)?;
        let open = Transaction {
            link,
            tx,
            gone: Cell::new(false),
        };
        let done = match body(&open) {
            Ok(value) => call::end(link, tx, true).map(|()| value),
            Err(error) => {
                // The body's error is the one that tells something, unless it is a conflict.
                let ended = call::end(link, tx, false);
                let conflict = matches!(&ended, Err(error) if error.errno == Errno::EAGAIN);
                if !open.gone.get() && !conflict {
                    return Err(TransactionError::Body(error));
                }
                Err(ended.err().unwrap_or(StoreError {
                    op: "TRANSACTION_END",
                    object: String::new(),
                    errno: Errno::EAGAIN,
                }))
            }
        };
        match done {
            Ok(value) => return Ok(value),
            Err(error) if error.errno == Errno::EAGAIN => conflicts += 1,
            Err(error) => return Err(TransactionError::Store(error)),
        }
        if conflicts >= retry.tries {
            return Err(TransactionError::Conflicts {
                tries: conflicts,
                took: begun.elapsed(),
            });
        }
        std::thread::sleep(retry.pause(conflicts));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_bounded() {
        let retry = Retry::default();
        for (conflicts, least, most) in [
            (1, 0, 0),
            (2, 500, 1000),
            (4, 2000, 4000),
            (60, 25000, 50000),
        ] {
            let pause = retry.pause(conflicts).as_micros();
            assert!((least..=most).contains(&pause), "{conflicts}: {pause} us");
        }
    }
}
