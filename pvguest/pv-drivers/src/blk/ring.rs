//! The front end's half of a block ring, in either of the two layouts.

use xen_ring::{FrontRing, PeerError, SharedMemory};
use xen_sys::Plain;
use xen_sys::io::blkif::{Request, Response};

use super::Protocol;

/// Bytes of a request and of a response as 32-bit guests have them: without the padding before 64-bit
/// numbers.
const REQUEST_32: usize = 108;
const RESPONSE_32: usize = 12;
/// Where that padding is in a request.
const PADDING: core::ops::Range<usize> = 4..8;

#[derive(Debug)]
pub(super) enum Ring<M> {
    X86_64(FrontRing<M, Request, Response>),
    X86_32(FrontRing<M, [u8; REQUEST_32], [u8; RESPONSE_32]>),
}

macro_rules! either {
    ($ring:expr, $inner:ident => $body:expr) => {
        match $ring {
            Ring::X86_64($inner) => $body,
            Ring::X86_32($inner) => $body,
        }
    };
}

impl<M: SharedMemory> Ring<M> {
    pub(super) fn new(memory: M, protocol: Protocol) -> Result<Self, PeerError> {
        Ok(match protocol {
            Protocol::X86_64 => Ring::X86_64(FrontRing::new(memory)?),
            Protocol::X86_32 => Ring::X86_32(FrontRing::new(memory)?),
        })
    }

    pub(super) fn capacity(&self) -> u32 {
        either!(self, ring => ring.capacity())
    }

    pub(super) fn free(&self) -> u32 {
        either!(self, ring => ring.free())
    }

    pub(super) fn memory(&self) -> &M {
        either!(self, ring => ring.memory())
    }

    #[must_use]
    pub(super) fn push(&mut self, request: Request) -> bool {
        match self {
            Ring::X86_64(ring) => ring.push(request),
            Ring::X86_32(ring) => {
                let (bytes, mut slot) = (request.as_bytes(), [0; REQUEST_32]);
                slot[..PADDING.start].copy_from_slice(&bytes[..PADDING.start]);
                slot[PADDING.start..].copy_from_slice(&bytes[PADDING.end..]);
                ring.push(slot)
            }
        }
    }

    pub(super) fn pop(&mut self) -> Result<Option<Response>, PeerError> {
        match self {
            Ring::X86_64(ring) => ring.pop(),
            Ring::X86_32(ring) => Ok(ring.pop()?.map(|slot| {
                let mut response = Response::ZERO;
                response.as_bytes_mut()[..RESPONSE_32].copy_from_slice(&slot);
                response
            })),
        }
    }

    #[must_use]
    pub(super) fn publish(&mut self) -> bool {
        either!(self, ring => ring.publish())
    }

    #[must_use]
    pub(super) fn wait_for_more(&mut self) -> bool {
        either!(self, ring => ring.wait_for_more())
    }
}
