//! Scenarios: one function each, run on the fake and on real Xen.
//!
//! The functions here are written against small traits; the worlds they run in are given to them: the
//! tests of this crate run them in one process on `xen-fake`, the program `scenarios` runs them in the
//! lab's dom0.
//!
//! Invariant: a scenario that passes has shown something; what cannot be run is skipped with its reason.
#![forbid(unsafe_code)]

pub mod block;
pub mod fake;
pub mod store;
pub mod store_tools;
mod verdict;

pub use verdict::{OrStop, Outcome, Stop};
