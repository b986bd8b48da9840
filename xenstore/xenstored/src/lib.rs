//! The store daemon: a pure core and the loop around it.
//!
//! - [`core`]: tree, permissions, quotas, transactions, watches, domains; requests in, replies and events out.
//! - [`daemon`]: connections, their buffers and turns, over any world of rings and events.
//! - [`server`]: epoll; [`options`] and [`os`]: what makes it a daemon of the host.
//!
//! How it works, and where it differs from C xenstored and why, is told in `xenstore/README.md`.
//!
//! Invariant: [`core`] does no I/O; what it needs of the world it asks of [`core::Host`].
//! Invariant: `unsafe` stands in `os.rs` alone (fork and signals).
//! Invariant: nothing a guest does ends the daemon or another connection.
#![deny(unsafe_code)]

pub mod core;
pub mod daemon;
pub mod options;
pub mod os;
pub mod server;
