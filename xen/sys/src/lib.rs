//! Xen's public ABI, one module per public header.
//!
//! Invariant: definitions only. No I/O, no allocation, no hypercall is made here.
//! Invariant: every structure mirrors its C counterpart byte for byte; `const` assertions stand beside
//! it and a test compares every field with what a C compiler makes of the public headers.
#![no_std]

pub mod arch_x86;
pub mod domctl;
pub mod elfnote;
pub mod errno;
pub mod event_channel;
pub mod features;
pub mod grant_table;
pub mod hypfs;
pub mod io;
pub mod memory;
mod plain;
pub mod sched;
pub mod schedule;
pub mod sysctl;
pub mod types;
pub mod vcpu;
pub mod version;
pub mod xen;

pub use errno::Errno;
pub use plain::{Constant, Field, Layout, Plain};
pub use types::{DomId, GrantRef, Mfn, PAGE_SHIFT, PAGE_SIZE, Pfn, Port, VcpuId};

/// Every structure declared in this crate.
pub const LAYOUTS: &[&[Layout]] = &[
    arch_x86::LAYOUTS,
    domctl::LAYOUTS,
    event_channel::LAYOUTS,
    grant_table::LAYOUTS,
    hypfs::LAYOUTS,
    io::blkif::LAYOUTS,
    io::console::LAYOUTS,
    io::netif::LAYOUTS,
    io::xs_wire::LAYOUTS,
    memory::LAYOUTS,
    sched::LAYOUTS,
    schedule::LAYOUTS,
    sysctl::LAYOUTS,
    vcpu::LAYOUTS,
    version::LAYOUTS,
    xen::LAYOUTS,
];

/// Every numeric constant declared in this crate.
pub const CONSTANTS: &[&[Constant]] = &[
    arch_x86::CONSTANTS,
    domctl::CONSTANTS,
    elfnote::CONSTANTS,
    errno::CONSTANTS,
    event_channel::CONSTANTS,
    features::CONSTANTS,
    grant_table::CONSTANTS,
    hypfs::CONSTANTS,
    io::blkif::CONSTANTS,
    io::netif::CONSTANTS,
    io::xenbus::CONSTANTS,
    io::xs_wire::CONSTANTS,
    memory::CONSTANTS,
    sched::CONSTANTS,
    schedule::CONSTANTS,
    sysctl::CONSTANTS,
    vcpu::CONSTANTS,
    version::CONSTANTS,
    xen::CONSTANTS,
    xen::VIRQ_CONSTANTS,
    xen::hypercall::CONSTANTS,
];
