//! A store client for dom0: the daemon's unix socket, or /dev/xen/xenbus.
//!
//! - [`Connection`] blocks and may be shared between threads. It implements [`xen_hal::Store`]; its
//!   descriptor can be polled.
//! - [`AsyncConnection`] has futures and streams for any executor.
//! - [`Reconnecting`] connects again after the daemon came back.
//! - [`transaction`] runs a closure until it commits, with a bound.
//!
//! ```no_run
//! use std::time::Duration;
//! use xs_client::{Connection, Retry, Store, StoreError, transaction};
//!
//! let store = Connection::from_env()?;
//! let name = store.read(None, "/local/domain/0/name")?;
//! let count = transaction(&store, &Retry::default(), |tx| {
//!     let count = tx.read_optional("/tool/count")?.map_or(0, |value| value.len());
//!     tx.write("/tool/count", "x".repeat(count + 1).as_bytes())?;
//!     Ok::<_, StoreError>(count + 1)
//! })?;
//! let watch = store.subscribe("/local/domain")?;
//! if let Some(event) = watch.next_timeout(Duration::from_secs(1))? {
//!     println!("look again at {}", event.path);
//! }
//! for event in watch {
//!     println!("{} changed", event?.path);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use xs_client::AsyncConnection;
//!
//! let store = AsyncConnection::from_env()?;
//! let name = store.read(None, "/local/domain/0/name").await?;
//! let mut guests = store.subscribe("/local/domain").await?;
//! while let Some(event) = guests.next_event().await {
//!     println!("{} changed", event?.path);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Invariant: every wait of a blocking call has a bound, except for events when none is asked for.
//! Invariant: no connection is made and nothing is opened before it is asked for.
#![forbid(unsafe_code)]

mod connection;
mod open;
mod reconnect;
mod task;
mod transaction;
mod void;
mod watch;

pub use connection::{Connection, DEFAULT_TIMEOUT, InFlight, Turns};
pub use open::{DEVICE, OLD_DEVICE, OpenError, PATH_VARIABLE, SOCKET};
pub use reconnect::{DEFAULT_PATIENCE, Reconnecting};
pub use task::{AsyncConnection, AsyncTransaction, Polled, Transport, WatchStream};
pub use transaction::{Retry, Transaction, TransactionError, transaction};
pub use watch::Watch;

/// What its calls are made of, so that a user needs no other crate.
pub use xen_hal::{Store, StoreExt};
pub use xen_sys::{DomId, Errno};
pub use xs_wire::{Access, Permission, StoreError, TxId, WatchEvent};
