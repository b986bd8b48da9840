//! The boot contract of a PV guest on x86_64, written once for the builder and for the guest: what a
//! kernel image asks for, where everything lies when the guest starts, and what start_info says.
//!
//! Invariant: no I/O, no unsafe; every result is a pure function of its arguments.
//! Invariant: never panics on an image, whatever its bytes; offsets and sizes are checked before use.
//! Invariant: what is allocated is bounded by the image's and the guest's size, not by numbers in the image.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod bytes;
mod bzimage;
mod elf;
mod error;
mod image;
mod notes;
mod plan;
mod start_info;
mod tables;

#[cfg(test)]
pub(crate) mod testing;

pub use bytes::Source;
pub use bzimage::{Compression, Container, identify};
pub use elf::{Elf, Segment};
pub use error::LayoutError;
pub use image::{LoadSegment, PvImage};
pub use notes::XenNotes;
pub use plan::{BootPlan, Initrd, P2mPlace, Region};
pub use start_info::{CMDLINE_MAX, CMDLINE_OFFSET, START_INFO_SIZE, StartInfo};
pub use tables::{Mapping, PageTables, TableRun};

/// Largest kernel image that is looked at, unpacked: 512 MiB, far above any PV kernel.
pub const MAX_IMAGE_BYTES: u64 = 512 << 20;
