//! What the block and the network backend share: the xenbus handshake, worker threads, daemon plumbing.
//!
//! Invariant: the handshake ([`Bus`]) does no I/O but through [`xen_hal::Store`] and the [`Driver`].
//! Invariant: whatever one device or its guest does wrong ends that device only.
//! Invariant: `unsafe` stands in `daemon.rs` alone (fork and signals).
#![deny(unsafe_code)]

pub mod account;
mod bus;
#[cfg(test)]
mod bus_tests;
pub mod daemon;
pub mod overlay;
mod quota;
mod site;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod worker;

pub use bus::{Bus, Change, Driver};
pub use site::{DeviceId, Node, Site};
pub use worker::{Stop, Wake, Worker};
