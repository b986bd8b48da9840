//! Front-end drivers of a PV guest, written against xen-hal's traits and tested on the host: console, store,
//! block, network.
//!
//! A driver never waits: its owner calls `poll` when an event has come, and waits in between.
//!
//! Invariant: no panic, no unbounded memory and no hang on anything that a back end or daemon does. What it
//! must not do makes the device broken; the guest lives on.
//! Invariant: a request's id is the index of its slot in private state, never an address.
//! Invariant: a page that a peer may still use is not reused: leases end, or the page is quarantined.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod blk;
pub mod cmdline;
pub mod commands;
mod console;
pub mod control;
pub mod http;
pub mod lines;
pub mod net;
pub mod pattern;
pub mod store;
pub mod tar;
pub mod xenbus;

pub use console::Console;
