//! The store daemon: a pure core and the loop around it.
//!
//! - [`core`]: tree, permissions, quotas, transactions, watches, domains; requests in, replies and events out.
//! - [`daemon`]: connections, their buffers and turns, over any world of rings and events.
//! - [`journal`]: everything that a daemon is, at every instant, for the one that comes after it.
//! - [`manager`]: who starts us again and keeps descriptors meanwhile; [`keeper`] is one.
//! - [`server`]: epoll; [`options`] and [`os`]: what makes it a daemon of the host.
//!
//! How it works, and where it differs from C xenstored and why, is told in `xenstore/README.md`.
//!
//! Invariant: [`core`] does no I/O; what it needs of the world it asks of [`core::Host`].
//! Invariant: `unsafe` stands in `os.rs` (fork and signals) and `journal/map.rs` (a mapped file) alone.
//! Invariant: nothing a guest does ends the daemon or another connection.
#![deny(unsafe_code)]

pub mod core;
pub mod daemon;
pub mod handover;
pub mod journal;
pub mod keeper;
pub mod manager;
pub mod options;
pub mod os;
pub mod server;
