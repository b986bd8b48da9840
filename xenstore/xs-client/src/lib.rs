//! A store client for dom0: the daemon's unix socket, or /dev/xen/xenbus.
//!
//! [`Connection`] implements [`xen_hal::Store`]; its descriptor can be polled, and
//! [`Connection::wait_event`] waits for a watch event with a bound.
//!
//! ```no_run
//! use std::time::Duration;
//! use xen_hal::{Store, StoreExt};
//! use xs_client::Connection;
//!
//! let store = Connection::from_env()?;
//! store.watch("/local/domain/0/name", "name")?;
//! store.transaction(|store, tx| store.write(Some(tx), "/local/domain/0/name", b"Domain-0"))?;
//! let event = store.wait_event(Some(Duration::from_secs(1)))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Invariant: every wait has a bound, except [`Connection::wait_event`] without a timeout.
//! Invariant: no connection is made and nothing is opened before it is asked for.
#![forbid(unsafe_code)]

mod connection;
mod open;
mod reconnect;
mod transaction;
mod watch;

pub use connection::{Connection, DEFAULT_TIMEOUT, InFlight};
pub use open::{DEVICE, OLD_DEVICE, OpenError, PATH_VARIABLE, SOCKET};
pub use reconnect::{DEFAULT_PATIENCE, Reconnecting};
pub use transaction::{Retry, Transaction, TransactionError, transaction};
pub use watch::Watch;
