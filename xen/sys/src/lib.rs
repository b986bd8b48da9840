//! Xen's public ABI, one module per public header.
//!
//! Invariant: definitions only. No I/O, no allocation, no hypercall is made here.
//! Invariant: every structure mirrors its C counterpart byte for byte; `const` assertions stand beside
//! it and a test compares every field with what a C compiler makes of the public headers.
#![no_std]

pub mod errno;
pub mod types;

pub use errno::Errno;
pub use types::{DomId, GrantRef, Mfn, Pfn, Port, VcpuId};
