//! What a front end asks its back end for; it gets no more than is offered.

use xen_sys::io::protocols;

use super::MAX_INDIRECT;

/// Whose C compiler laid the ring's slots out (io/protocols.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// That of 64-bit guests.
    X86_64,
    /// That of 32-bit guests: 64-bit numbers aligned to 4 bytes.
    X86_32,
}

impl Protocol {
    /// Its name in the store.
    pub const fn name(self) -> &'static str {
        match self {
            Protocol::X86_64 => protocols::X86_64,
            Protocol::X86_32 => protocols::X86_32,
        }
    }
}

/// Most queues of a disk.
pub(super) const MAX_QUEUES: u32 = 8;
/// Largest ring: 2 to this power pages.
pub(super) const MAX_RING_ORDER: u32 = 4;

/// How a disk is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The layout of the slots.
    pub protocol: Protocol,
    /// Most queues.
    pub queues: u32,
    /// Each ring has 2 to this power pages at most.
    pub ring_order: u32,
    /// Most segments of a request with a page of segments.
    pub indirect: u16,
    /// The same pages are used again and again, and may stay mapped.
    pub persistent: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            protocol: Protocol::X86_64,
            queues: 1,
            ring_order: 0,
            indirect: MAX_INDIRECT,
            persistent: true,
        }
    }
}
