//! The toolstack: configuration, builder, domains, devices, console daemon, supervisor.
//!
//! Invariant: reading a configuration and planning a guest opens nothing of Xen.
//! Invariant: whatever a failed step has made is removed before its error is returned.
//! Invariant: every wait has a bound and says who was late; no process is forked to create a guest.
#![deny(unsafe_code)]

pub mod attach;
pub mod backends;
pub mod build;
pub mod claims;
pub mod config;
pub mod console;
pub mod consoled;
pub mod create;
pub mod destroy;
pub mod dump;
mod error;
pub mod host;
pub mod hotplug;
pub mod image;
pub mod index;
pub mod interrupt;
pub mod lock;
pub mod memory;
pub mod nodes;
pub mod os;
pub mod paths;
pub mod placement;
pub mod pool;
pub mod power;
pub mod prepare;
pub mod rename;
pub mod resize;
pub mod retrieve;
pub mod snapshot;
pub mod storage;
pub mod store;
pub mod supervise;
pub mod times;
pub mod underway;
pub mod userdata;
pub mod uuid;

pub use error::{Error, Kind, Result};
