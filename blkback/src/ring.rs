//! The ring of a disk, in either of the two layouts that guests use.

use xen_ring::{BackRing, PeerError, SharedMemory};

use crate::request::{blkif_request, response};

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

/// A slot's bytes as the front end left them; an x86_32 slot is followed by zeros.
pub type SlotBytes = [u8; blkif_request::MAX];

/// The backend's half of a disk's ring.
#[derive(Debug)]
pub enum Ring<M> {
    /// See [`Protocol::Native`].
    Native(BackRing<M, SlotBytes, [u8; 16]>),
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
    /// Attaches to a front end's ring: at the first request that has no answer, or, if the account of the
    /// process before us is there, at the first that it has not taken.
    pub fn attach(memory: M, protocol: Protocol, taken: Option<u32>) -> Result<Self, PeerError> {
        Ok(match (protocol, taken) {
            (Protocol::Native, None) => Ring::Native(BackRing::attach(memory)?),
            (Protocol::X86_32, None) => Ring::X86_32(BackRing::attach(memory)?),
            (Protocol::Native, Some(at)) => Ring::Native(BackRing::resume(memory, at)?),
            (Protocol::X86_32, Some(at)) => Ring::X86_32(BackRing::resume(memory, at)?),
        })
    }

    /// The layout of its slots.
    pub fn protocol(&self) -> Protocol {
        match self {
            Ring::Native(_) => Protocol::Native,
            Ring::X86_32(_) => Protocol::X86_32,
        }
    }

    /// How many slots it has.
    pub fn capacity(&self) -> u32 {
        either!(self, ring => ring.capacity())
    }

    /// The index of the next request to take.
    pub fn next_request(&self) -> u32 {
        either!(self, ring => ring.next_index())
    }

    /// The index of the next response.
    pub fn next_response(&self) -> u32 {
        either!(self, ring => ring.next_response())
    }

    /// How many requests were taken and not answered.
    pub fn owed(&self) -> u32 {
        either!(self, ring => ring.owed())
    }

    /// How many requests wait to be taken.
    pub fn pending(&self) -> Result<u32, PeerError> {
        either!(self, ring => ring.pending())
    }

    /// Takes the next request, copied out once.
    pub fn pop(&mut self) -> Result<Option<SlotBytes>, PeerError> {
        match self {
            Ring::Native(ring) => ring.pop(),
            Ring::X86_32(ring) => Ok(ring.pop()?.map(|slot| {
                let mut whole = [0; blkif_request::MAX];
                whole[..blkif_request::X86_32].copy_from_slice(&slot);
                whole
            })),
        }
    }

    /// Puts an answer into the next slot; [`publish`](Self::publish) shows it.
    pub fn push(&mut self, id: u64, operation: u8, status: i16) {
        let bytes = response(id, operation, status);
        match self {
            Ring::Native(ring) => ring.push(bytes),
            Ring::X86_32(ring) => ring.push(std::array::from_fn(|n| bytes[n])),
        }
    }

    /// Shows the front end all answers; true if it wants an event.
    #[must_use = "true means that the front end waits for an event"]
    pub fn publish(&mut self) -> bool {
        either!(self, ring => ring.publish())
    }

    /// Asks for an event at the next request; true if one is there already.
    #[must_use = "true means that there is work: waiting now would lose an event"]
    pub fn wait_for_more(&mut self) -> bool {
        either!(self, ring => ring.wait_for_more())
    }
}
