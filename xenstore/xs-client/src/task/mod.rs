//! The asynchronous connection, for any executor: each task that waits moves the bytes of all.

mod reactor;
mod shared;
mod stream;
mod transaction;

use std::io;
use std::path::Path;
use std::sync::Arc;

use xen_sys::DomId;
use xs_wire::call::Listing;
use xs_wire::{Permission, Request, StoreError, TxId, parse_permissions, split_word};

use crate::connection::{Connection, failed};
use crate::open::OpenError;
use crate::transaction::optional;
use shared::Shared;

pub use reactor::{Polled, Transport};
pub use stream::WatchStream;
pub use transaction::AsyncTransaction;

/// A connection whose operations are futures, without a runtime of its own. Every clone is the same one;
/// the requests of all tasks are in flight side by side. A future that is dropped gives its request up, so
/// a runtime's timeout can bound any of them.
#[derive(Debug)]
pub struct AsyncConnection<T: Transport = Polled> {
    shared: Arc<Shared<T>>,
}

impl<T: Transport> Clone for AsyncConnection<T> {
    fn clone(&self) -> Self {
        AsyncConnection {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl AsyncConnection {
    /// Connects to the path in `XENSTORED_PATH`, else to the usual ones.
    pub fn from_env() -> Result<AsyncConnection, OpenError> {
        Self::over(Connection::from_env()?, Path::new("the store"))
    }

    /// Connects to this socket or device.
    pub fn open(path: &Path) -> Result<AsyncConnection, OpenError> {
        Self::over(Connection::open(path)?, path)
    }

    fn over(connection: Connection, path: &Path) -> Result<AsyncConnection, OpenError> {
        let polled = Polled::new(connection.into_fd());
        polled
            .map(Self::with)
            .map_err(|error: io::Error| OpenError {
                tried: vec![(path.to_owned(), error)],
            })
    }
}

impl<T: Transport> AsyncConnection<T> {
    /// A connection over a runtime's transport.
    pub fn with(transport: T) -> AsyncConnection<T> {
        AsyncConnection {
            shared: Arc::new(Shared::new(transport)),
        }
    }

    /// Whether the daemon has ended the connection: every request fails now.
    pub fn is_lost(&self) -> bool {
        self.shared.is_lost()
    }

    /// The reply's payload. The request is sent when the future is first polled.
    pub async fn exchange(
        &self,
        tx: Option<TxId>,
        request: &Request<'_>,
    ) -> Result<Vec<u8>, StoreError> {
        let reply = self.shared.exchange(tx, request).await;
        reply.map_err(|errno| failed(request, errno))
    }

    /// A node's value.
    pub async fn read(&self, tx: Option<TxId>, path: &str) -> Result<Vec<u8>, StoreError> {
        self.exchange(tx, &Request::Read(path.as_bytes())).await
    }

    /// A node's value, or `None` if there is no such node.
    pub async fn read_optional(
        &self,
        tx: Option<TxId>,
        path: &str,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        optional(self.read(tx, path).await)
    }

    /// Writes a value, making the node and its parents if absent.
    pub async fn write(
        &self,
        tx: Option<TxId>,
        path: &str,
        value: &[u8],
    ) -> Result<(), StoreError> {
        let request = Request::Write(path.as_bytes(), value);
        self.exchange(tx, &request).await.map(drop)
    }

    /// Makes an empty node and its parents if absent.
    pub async fn mkdir(&self, tx: Option<TxId>, path: &str) -> Result<(), StoreError> {
        let request = Request::Mkdir(path.as_bytes());
        self.exchange(tx, &request).await.map(drop)
    }

    /// Removes a node and all below it.
    pub async fn rm(&self, tx: Option<TxId>, path: &str) -> Result<(), StoreError> {
        let request = Request::Rm(path.as_bytes());
        self.exchange(tx, &request).await.map(drop)
    }

    /// The names of a node's children, however many.
    pub async fn list(&self, tx: Option<TxId>, path: &str) -> Result<Vec<String>, StoreError> {
        let mut listing = Listing::new(path);
        loop {
            let reply = self.exchange(tx, &listing.request()).await;
            if let Some(names) = listing.take(reply)? {
                return Ok(names);
            }
        }
    }

    /// A node's permissions; the first entry names the owner.
    pub async fn permissions(
        &self,
        tx: Option<TxId>,
        path: &str,
    ) -> Result<Vec<Permission>, StoreError> {
        let request = Request::GetPerms(path.as_bytes());
        let body = self.exchange(tx, &request).await?;
        parse_permissions(&body).ok_or_else(|| failed(&request, xen_sys::Errno::EIO))
    }

    /// Replaces a node's permissions.
    pub async fn set_permissions(
        &self,
        tx: Option<TxId>,
        path: &str,
        list: &[Permission],
    ) -> Result<(), StoreError> {
        let request = Request::SetPerms(path.as_bytes(), list.to_vec());
        self.exchange(tx, &request).await.map(drop)
    }

    /// A domain's home directory.
    pub async fn domain_path(&self, dom: DomId) -> Result<String, StoreError> {
        let request = Request::GetDomainPath(dom);
        let body = self.exchange(None, &request).await?;
        split_word(&body)
            .and_then(|(path, _)| std::str::from_utf8(path).ok())
            .map(String::from)
            .ok_or_else(|| failed(&request, xen_sys::Errno::EIO))
    }

    /// Watches a path and all below it: a stream of what changes, beginning with one event at once.
    pub async fn subscribe(&self, path: &str) -> Result<WatchStream<T>, StoreError> {
        WatchStream::set(self, path).await
    }
}
