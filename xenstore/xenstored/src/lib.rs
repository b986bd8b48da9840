//! The store daemon: a pure core and the loop around it.
#![deny(unsafe_code)]

pub mod core;
pub mod daemon;
pub mod options;
pub mod os;
pub mod server;
