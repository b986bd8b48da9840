//! The ring of a disk, in either of the two layouts that guests use.

use xen_ring::{BackRing, PeerError, SharedMemory};

use crate::request::{RawRequest, blkif_request, response};

/// Whose C compiler laid the ring's slots out (io/protocols.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `x86_64-abi`, also what an absent node means, as for Linux.
    Native,
    /// `x86_32-abi`: 64-bit numbers aligned to 4 bytes.
    X86_32,
}

impl Protocol {
    /// The protocol that a front end's `protocol` node names.
    pub fn parse(text: &str) -> Option<Protocol> {
        match text {
            "x86_64-abi" => Some(Protocol::Native),
            "x86_32-abi" => Some(Protocol::X86_32),
            _ => None,
        }
    }
}

/// The backend's half of a disk's ring.
#[derive(Debug)]
pub enum Ring<M> {
    /// See [`Protocol::Native`].
    Native(BackRing<M, [u8; blkif_request::MAX], [u8; 16]>),
    /// See [`Protocol::X86_32`].
    X86_32(BackRing<M, [u8; blkif_request::X86_32], [u8; 12]>),
}

macro_rules! either {
    ($ring:expr, $inner:ident => $body:expr) => {
        match $ring {
            Ring::Native($inner) => $body,
            Ring::X86_32($inner) => $body,
        }
    };
}

impl<M: SharedMemory> Ring<M> {
    /// Attaches to a front end's ring at the first request that has no answer.
    pub fn attach(memory: M, protocol: Protocol) -> Result<Self, PeerError> {
        Ok(match protocol {
            Protocol::Native => Ring::Native(BackRing::attach(memory)?),
            Protocol::X86_32 => Ring::X86_32(BackRing::attach(memory)?),
        })
    }

    /// Takes the next request.
    pub fn pop(&mut self) -> Result<Option<RawRequest>, PeerError> {
        Ok(match self {
            Ring::Native(ring) => ring
                .pop()?
                .map(|slot| RawRequest::decode(&slot, Protocol::Native)),
            Ring::X86_32(ring) => ring.pop()?.map(|slot| {
                let mut whole = [0; blkif_request::MAX];
                whole[..blkif_request::X86_32].copy_from_slice(&slot);
                RawRequest::decode(&whole, Protocol::X86_32)
            }),
        })
    }

    /// Answers the oldest unanswered request and publishes the answer; true if the front end wants an event.
    #[must_use = "true means that the front end waits for an event"]
    pub fn answer(&mut self, request: &RawRequest, status: i16) -> bool {
        let bytes = response(request.id, request.operation, status);
        match self {
            Ring::Native(ring) => {
                ring.push(bytes);
                ring.publish()
            }
            Ring::X86_32(ring) => {
                ring.push(std::array::from_fn(|n| bytes[n]));
                ring.publish()
            }
        }
    }

    /// Asks for an event at the next request; true if one is there already.
    #[must_use = "true means that there is work: waiting now would lose an event"]
    pub fn wait_for_more(&mut self) -> bool {
        either!(self, ring => ring.wait_for_more())
    }
}
