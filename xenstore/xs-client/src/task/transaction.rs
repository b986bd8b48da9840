//! Asynchronous transactions as closures, tried again with a bound.

use std::time::Instant;

use xen_sys::Errno;
use xs_wire::call::parse_tx;
use xs_wire::{Request, StoreError, TxId};

use super::AsyncConnection;
use super::reactor::{Polled, Transport};
use super::shared::Parting;
use crate::connection::failed;
use crate::transaction::TransactionError;

/// An open transaction; dropped without an end, it is aborted.
#[derive(Debug)]
pub struct AsyncTransaction<T: Transport = Polled> {
    connection: AsyncConnection<T>,
    tx: TxId,
    ended: bool,
}

impl<T: Transport> AsyncTransaction<T> {
    /// Its number, for requests of the connection that shall be in it.
    pub fn id(&self) -> TxId {
        self.tx
    }

    /// A node's value.
    pub async fn read(&self, path: &str) -> Result<Vec<u8>, StoreError> {
        self.connection.read(Some(self.tx), path).await
    }

    /// A node's value, or `None` if there is no such node.
    pub async fn read_optional(&self, path: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.connection.read_optional(Some(self.tx), path).await
    }

    /// Writes a value, making the node and its parents if absent.
    pub async fn write(&self, path: &str, value: &[u8]) -> Result<(), StoreError> {
        self.connection.write(Some(self.tx), path, value).await
    }

    /// Removes a node and all below it.
    pub async fn rm(&self, path: &str) -> Result<(), StoreError> {
        self.connection.rm(Some(self.tx), path).await
    }

    /// The names of a node's children.
    pub async fn list(&self, path: &str) -> Result<Vec<String>, StoreError> {
        self.connection.list(Some(self.tx), path).await
    }

    /// Commits; EAGAIN if others changed what it depends on.
    pub async fn commit(mut self) -> Result<(), StoreError> {
        let request = Request::TransactionEnd(true);
        let ended = self.connection.exchange(Some(self.tx), &request).await;
        // Dropped before, an abort follows, which does nothing if the commit has happened.
        self.ended = true;
        ended.map(drop)
    }
}

impl<T: Transport> Drop for AsyncTransaction<T> {
    fn drop(&mut self) {
        if !self.ended {
            self.connection.shared.part(Parting::Abort(self.tx));
        }
    }
}

impl<T: Transport> AsyncConnection<T> {
    /// Starts a transaction.
    pub async fn start(&self) -> Result<AsyncTransaction<T>, StoreError> {
        let request = Request::TransactionStart;
        let body = self.exchange(None, &request).await?;
        let tx = parse_tx(&body).ok_or_else(|| failed(&request, Errno::EIO))?;
        Ok(AsyncTransaction {
            connection: self.clone(),
            tx,
            ended: false,
        })
    }

    /// Runs `body` in a transaction and commits it; again, at most so many times and without pauses (for
    /// there is no clock here), if others changed what it depends on. An error of `body` aborts it.
    pub async fn transaction<R, E>(
        &self,
        tries: u32,
        mut body: impl AsyncFnMut(&AsyncTransaction<T>) -> Result<R, E>,
    ) -> Result<R, TransactionError<E>> {
        let begun = Instant::now();
        let mut conflicts = 0;
        loop {
            let tx = self.start().await.map_err(TransactionError::Store)?;
            let value = body(&tx).await.map_err(TransactionError::Body)?;
            match tx.commit().await {
                Ok(()) => return Ok(value),
                Err(error) if error.errno == Errno::EAGAIN => conflicts += 1,
                Err(error) => return Err(TransactionError::Store(error)),
            }
            if conflicts >= tries {
                return Err(TransactionError::Conflicts {
                    tries: conflicts,
                    took: begun.elapsed(),
                });
            }
        }
    }
}
