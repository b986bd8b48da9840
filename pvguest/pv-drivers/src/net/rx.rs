//! Receiving: pages offered to the back end, frames copied out of them.

use alloc::vec::Vec;

use xen_hal::{GrantTable, Lease, Result};
use xen_ring::{FrontRing, SharedMemoryExt};
use xen_sys::io::netif::{RxFlags, RxRequest, RxResponse};
use xen_sys::{DomId, GrantRef, PAGE_SIZE};

use super::{Fault, MIN_FRAME};

/// Pages offered at a time.
const BUFFERS: usize = 128;

/// The front end's half of the receive ring.
#[derive(Debug)]
pub struct RxQueue<G: GrantTable> {
    ring: FrontRing<Lease<G>, RxRequest, RxResponse>,
    buffers: Vec<Lease<G>>,
    /// Which buffer lies in which slot of the ring. The answer to a request comes in the request's slot;
    /// its id is an echo that nobody else looks at either.
    in_slot: Vec<Option<u16>>,
    next_response: u32,
    skipping: Skip,
    dropped: u64,
}

/// What the frame before leaves to be passed over.
#[derive(Clone, Copy, Debug, Default)]
struct Skip {
    /// More of a frame that was dropped follows.
    fragments: bool,
    /// The next slot is extra information, no response.
    extra: bool,
}

impl<G: GrantTable> RxQueue<G> {
    /// An empty ring and its pages, granted to `peer`.
    pub fn new(grants: &G, peer: DomId) -> Result<Self> {
        let ring = FrontRing::new(Lease::fresh(grants, peer)?)?;
        let slots = ring.capacity() as usize;
        let mut queue = RxQueue {
            ring,
            buffers: Vec::new(),
            in_slot: alloc::vec![None; slots],
            next_response: 0,
            skipping: Skip::default(),
            dropped: 0,
        };
        for _ in 0..BUFFERS.min(slots) {
            queue.buffers.push(Lease::fresh(grants, peer)?);
            queue.offer((queue.buffers.len() - 1) as u16);
        }
        Ok(queue)
    }

    /// The ring's grant.
    pub fn ring_ref(&self) -> GrantRef {
        self.ring.memory().gref()
    }

    /// How many frames were dropped because they made no sense.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Shows the back end the pages offered; true if it wants an event.
    #[must_use = "true means that the back end waits for an event"]
    pub fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// Takes the next frame; its page is offered again at once.
    pub fn receive(&mut self) -> Result<Option<Vec<u8>>, Fault> {
        loop {
            match self.ring.pop().map_err(Fault::Ring)? {
                Some(response) => {
                    if let Some(frame) = self.take(response)? {
                        return Ok(Some(frame));
                    }
                }
                None if !self.ring.wait_for_more() => return Ok(None),
                None => {}
            }
        }
    }

    fn take(&mut self, response: RxResponse) -> Result<Option<Vec<u8>>, Fault> {
        let slot = self.next_response as usize % self.in_slot.len();
        self.next_response = self.next_response.wrapping_add(1);
        // FrontRing gives no more responses than there were requests.
        let buffer = self.in_slot[slot]
            .take()
            .ok_or(Fault::UnknownId(response.id))?;
        let frame = self.frame(response, buffer);
        self.offer(buffer);
        Ok(frame)
    }

    /// The frame that a response describes, if it describes one that we can take.
    fn frame(&mut self, response: RxResponse, buffer: u16) -> Option<Vec<u8>> {
        if self.skipping.extra {
            // An extra slot: its second byte says whether another one follows.
            self.skipping.extra = response.id.to_le_bytes()[1] & 1 != 0;
            return None;
        }
        let flags = RxFlags::from_bits_retain(response.flags);
        let continued = self.skipping.fragments;
        self.skipping = Skip {
            fragments: flags.contains(RxFlags::MORE_DATA),
            extra: flags.contains(RxFlags::EXTRA_INFO),
        };
        if continued {
            return None;
        }
        let offset = usize::from(response.offset);
        let len = usize::try_from(response.status).unwrap_or(0);
        if len < MIN_FRAME || offset + len > PAGE_SIZE || self.skipping.fragments {
            self.dropped += 1;
            return None;
        }
        let mut frame = alloc::vec![0; len];
        self.buffers[usize::from(buffer)].read_bytes(offset, &mut frame);
        Some(frame)
    }

    fn offer(&mut self, buffer: u16) {
        let slot = self.ring.next_index() as usize % self.in_slot.len();
        let request = RxRequest {
            id: buffer,
            pad: 0,
            gref: self.buffers[usize::from(buffer)].gref(),
        };
        // There are no more buffers than slots, and each is in at most one of them.
        if self.ring.push(request) {
            self.in_slot[slot] = Some(buffer);
        }
    }
}
