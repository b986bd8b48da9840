//! The store daemon: a pure core and the loop around it.
#![forbid(unsafe_code)]

pub mod core;
