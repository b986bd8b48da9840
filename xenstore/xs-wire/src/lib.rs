//! The xenstore protocol: a sans-IO codec and client for no_std.
//!
//! Invariant: does no I/O and never panics on input; what a peer says is bounded before it is kept.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod types;

pub use types::{Access, Permission, StoreError, TxId, WatchEvent};
