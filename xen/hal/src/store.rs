//! The store, as its clients see it.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::str::FromStr;

use xen_sys::Errno;
use xs_wire::call::{self, Exchange};
use xs_wire::{Permission, Request, StoreError, TxId, WatchEvent};

/// How often a transaction is tried again before it is given up with EAGAIN.
pub const MAX_RETRIES: usize = 100;

/// A blocking connection to the store. Paths are absolute, or relative to the caller's
/// `/local/domain/<own domid>`. `tx` is the transaction to work in, if any.
pub trait Store {
    /// A node's value.
    fn read(&self, tx: Option<TxId>, path: &str) -> Result<Vec<u8>, StoreError>;
    /// Writes a value, making the node and its parents if absent.
    fn write(&self, tx: Option<TxId>, path: &str, value: &[u8]) -> Result<(), StoreError>;
    /// Makes an empty node (and its parents) if absent.
    fn mkdir(&self, tx: Option<TxId>, path: &str) -> Result<(), StoreError>;
    /// Removes a node and all below it.
    fn rm(&self, tx: Option<TxId>, path: &str) -> Result<(), StoreError>;
    /// The names of a node's children.
    fn list(&self, tx: Option<TxId>, path: &str) -> Result<Vec<String>, StoreError>;
    /// A node's permissions; the first entry names the owner.
    fn permissions(&self, tx: Option<TxId>, path: &str) -> Result<Vec<Permission>, StoreError>;
    /// Replaces a node's permissions.
    fn set_permissions(
        &self,
        tx: Option<TxId>,
        path: &str,
        list: &[Permission],
    ) -> Result<(), StoreError>;
    /// Starts a transaction.
    fn start(&self) -> Result<TxId, StoreError>;
    /// Ends a transaction. A commit that conflicts is `EAGAIN`; so is the end of one in which something has failed
    /// because of a conflict.
    fn end(&self, tx: TxId, commit: bool) -> Result<(), StoreError>;
    /// Sets a watch on a path and all below it; it fires once at once.
    fn watch(&self, path: &str, token: &str) -> Result<(), StoreError>;
    /// Removes a watch.
    fn unwatch(&self, path: &str, token: &str) -> Result<(), StoreError>;
    /// Takes the next watch event that has arrived, without waiting.
    fn next_event(&self) -> Result<Option<WatchEvent>, StoreError>;

    /// Does several things in order; what fails does not stop what stands behind it. A world may send all
    /// requests before it waits for the first reply.
    fn batch(&self, tx: Option<TxId>, ops: &[StoreOp<'_>]) -> Vec<Result<Vec<u8>, StoreError>> {
        let one = |op: &StoreOp<'_>| {
            match *op {
                StoreOp::Read(path) => return self.read(tx, path),
                StoreOp::Write(path, value) => self.write(tx, path, value),
                StoreOp::Mkdir(path) => self.mkdir(tx, path),
                StoreOp::Rm(path) => self.rm(tx, path),
                StoreOp::SetPermissions(path, list) => self.set_permissions(tx, path, list),
            }
            .map(|()| Vec::new())
        };
        ops.iter().map(one).collect()
    }
}

/// One thing of a [batch](Store::batch).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreOp<'a> {
    /// A node's value is the result.
    Read(&'a str),
    /// Writes a value, making the node and its parents if absent.
    Write(&'a str, &'a [u8]),
    /// Makes an empty node (and its parents) if absent.
    Mkdir(&'a str),
    /// Removes a node and all below it.
    Rm(&'a str),
    /// Replaces a node's permissions.
    SetPermissions(&'a str, &'a [Permission]),
}

/// A connection to a store daemon: it carries requests and brings events. That makes it a [`Store`].
pub trait StoreLink: Exchange {
    /// Takes the next watch event that has arrived, without waiting.
    fn take_event(&self) -> Result<Option<WatchEvent>, StoreError>;

    /// Sends all requests and brings all replies; here one after the other.
    fn exchange_all(
        &self,
        tx: Option<TxId>,
        requests: &[Request<'_>],
    ) -> Vec<Result<Vec<u8>, StoreError>> {
        let one = |request| self.exchange(tx, request);
        requests.iter().map(one).collect()
    }
}

impl<L: StoreLink + ?Sized> StoreLink for &L {
    fn take_event(&self) -> Result<Option<WatchEvent>, StoreError> {
        (**self).take_event()
    }

    fn exchange_all(
        &self,
        tx: Option<TxId>,
        requests: &[Request<'_>],
    ) -> Vec<Result<Vec<u8>, StoreError>> {
        (**self).exchange_all(tx, requests)
    }
}

impl<L: StoreLink + ?Sized> Store for L {
    fn read(&self, tx: Option<TxId>, path: &str) -> Result<Vec<u8>, StoreError> {
        call::read(self, tx, path)
    }

    fn write(&self, tx: Option<TxId>, path: &str, value: &[u8]) -> Result<(), StoreError> {
        call::write(self, tx, path, value)
    }

    fn mkdir(&self, tx: Option<TxId>, path: &str) -> Result<(), StoreError> {
        call::mkdir(self, tx, path)
    }

    fn rm(&self, tx: Option<TxId>, path: &str) -> Result<(), StoreError> {
        call::rm(self, tx, path)
    }

    fn list(&self, tx: Option<TxId>, path: &str) -> Result<Vec<String>, StoreError> {
        call::list(self, tx, path)
    }

    fn permissions(&self, tx: Option<TxId>, path: &str) -> Result<Vec<Permission>, StoreError> {
        call::permissions(self, tx, path)
    }

    fn set_permissions(
        &self,
        tx: Option<TxId>,
        path: &str,
        list: &[Permission],
    ) -> Result<(), StoreError> {
        call::set_permissions(self, tx, path, list)
    }

    fn start(&self) -> Result<TxId, StoreError> {
        call::start(self)
    }

    fn end(&self, tx: TxId, commit: bool) -> Result<(), StoreError> {
        call::end(self, tx, commit)
    }

    fn watch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        call::watch(self, path, token)
    }

    fn unwatch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        call::unwatch(self, path, token)
    }

    fn next_event(&self) -> Result<Option<WatchEvent>, StoreError> {
        self.take_event()
    }

    fn batch(&self, tx: Option<TxId>, ops: &[StoreOp<'_>]) -> Vec<Result<Vec<u8>, StoreError>> {
        let requests: Vec<_> = ops.iter().map(StoreOp::request).collect();
        self.exchange_all(tx, &requests)
    }
}

impl<'a> StoreOp<'a> {
    /// The request that does it.
    pub fn request(&self) -> Request<'a> {
        match *self {
            StoreOp::Read(path) => Request::Read(path.as_bytes()),
            StoreOp::Write(path, value) => Request::Write(path.as_bytes(), value),
            StoreOp::Mkdir(path) => Request::Mkdir(path.as_bytes()),
            StoreOp::Rm(path) => Request::Rm(path.as_bytes()),
            StoreOp::SetPermissions(path, list) => {
                Request::SetPerms(path.as_bytes(), list.to_vec())
            }
        }
    }
}

/// What is built from [`Store`]'s operations.
pub trait StoreExt: Store {
    /// A node's value, or `None` if there is no such node.
    fn read_optional(&self, tx: Option<TxId>, path: &str) -> Result<Option<Vec<u8>>, StoreError> {
        match self.read(tx, path) {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.errno == Errno::ENOENT => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A node's value parsed as text; EINVAL if it is none or does not parse.
    fn read_parsed<T: FromStr>(&self, tx: Option<TxId>, path: &str) -> Result<T, StoreError> {
        let value = self.read(tx, path)?;
        core::str::from_utf8(&value)
            .ok()
            .and_then(|text| text.trim_end_matches('\0').parse().ok())
            .ok_or_else(|| StoreError {
                op: "READ",
                object: path.to_string(),
                errno: Errno::EINVAL,
            })
    }

    /// Writes something's text.
    fn write_display(
        &self,
        tx: Option<TxId>,
        path: &str,
        value: &dyn core::fmt::Display,
    ) -> Result<(), StoreError> {
        self.write(tx, path, value.to_string().as_bytes())
    }

    /// Removes a node if it is there.
    fn rm_if_present(&self, tx: Option<TxId>, path: &str) -> Result<(), StoreError> {
        match self.rm(tx, path) {
            Err(error) if error.errno != Errno::ENOENT => Err(error),
            _ => Ok(()),
        }
    }

    /// Runs `body` in a transaction and commits it; again on a conflict, at most [`MAX_RETRIES`] times.
    /// Another error of `body` aborts the transaction and is returned.
    fn transaction<T, E: From<StoreError>>(
        &self,
        mut body: impl FnMut(&Self, TxId) -> Result<T, E>,
    ) -> Result<T, E> {
        for _ in 1..MAX_RETRIES {
            if let Ok(value) = self.try_transaction(&mut body)? {
                return Ok(value);
            }
        }
        self.try_transaction(&mut body)?
    }

    /// One try: what became of it, or within that the error that a conflict ended it with.
    #[doc(hidden)]
    fn try_transaction<T, E: From<StoreError>>(
        &self,
        body: &mut impl FnMut(&Self, TxId) -> Result<T, E>,
    ) -> Result<Result<T, E>, E> {
        let tx = self.start()?;
        let done = body(self, tx);
        let ended = self.end(tx, done.is_ok());
        let conflict = matches!(&ended, Err(error) if error.errno == Errno::EAGAIN);
        match (done, ended) {
            // The body's error is the one that tells something.
            (Err(error), _) if conflict => Ok(Err(error)),
            (Err(error), _) => Err(error),
            (Ok(_), Err(error)) if conflict => Ok(Err(error.into())),
            (Ok(_), Err(error)) => Err(error.into()),
            (Ok(value), Ok(())) => Ok(Ok(value)),
        }
    }
}

impl<S: Store + ?Sized> StoreExt for S {}
