//! Shared pages and rings: front and back halves, byte rings for console and store.
//!
//! Invariant: memory that a peer can write is never behind a reference; it is read and written through
//! [`SharedMemory`], each value once, and decisions are taken on the copy (XSA-155).
//! Invariant: no index, length or id of a peer is trusted; a producer more than one ring ahead is
//! [`PeerError`], never a panic (XSA-39).
//! Invariant: all that is `unsafe` about rings is in `shared.rs`.
#![no_std]

extern crate alloc;

#[cfg(test)]
extern crate std;

mod bytes;
mod shared;
mod slots;
#[cfg(test)]
mod testing;

pub use bytes::{ByteRing, CONSOLE, Direction, RingLayout, STORE};
pub use shared::{RingEntry, SharedMemory, SharedMemoryExt};
pub use slots::{BackRing, FrontRing, SlotRing};

/// What a peer did to a ring that it must not do. The ring is unusable from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerError {
    /// The peer's producer or consumer index is further from ours than the ring is long.
    IndexOutOfRange {
        /// The index as read from the shared page.
        theirs: u32,
        /// Our own index at that time.
        ours: u32,
        /// The ring's capacity, in entries or bytes.
        capacity: u32,
    },
    /// The memory is too small for the ring: not even one slot fits.
    BadSize {
        /// The memory's length in bytes.
        len: usize,
    },
}

impl core::fmt::Display for PeerError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            PeerError::IndexOutOfRange {
                theirs,
                ours,
                capacity,
            } => write!(
                f,
                "the peer's ring index {theirs} is more than {capacity} away from ours ({ours})"
            ),
            PeerError::BadSize { len } => write!(f, "{len} bytes cannot hold this ring"),
        }
    }
}

impl core::error::Error for PeerError {}
