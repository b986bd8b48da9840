//! Sending: one granted page per frame, used again once the back end has answered.

use alloc::vec::Vec;

use xen_hal::{GrantTable, Lease, Result};
use xen_ring::{FrontRing, SharedMemoryExt};
use xen_sys::io::netif::{RSP_NULL, RSP_OKAY, TxRequest, TxResponse};
use xen_sys::{DomId, GrantRef};

use super::{Fault, MAX_FRAME, MIN_FRAME};

/// Frames in flight at most.
const MAX_IN_FLIGHT: usize = 128;

#[derive(Debug)]
struct Slot<G: GrantTable> {
    page: Lease<G>,
    in_flight: bool,
}

/// The front end's half of the transmit ring.
#[derive(Debug)]
pub struct TxQueue<G: GrantTable> {
    grants: G,
    peer: DomId,
    ring: FrontRing<Lease<G>, TxRequest, TxResponse>,
    slots: Vec<Slot<G>>,
    free: Vec<u16>,
    sent: u64,
    errors: u64,
}

impl<G: GrantTable> TxQueue<G> {
    /// An empty ring in a fresh page that is granted to `peer`.
    pub fn new(grants: G, peer: DomId) -> Result<Self> {
        let ring = FrontRing::new(Lease::fresh(&grants, peer)?)?;
        Ok(TxQueue {
            grants,
            peer,
            ring,
            slots: Vec::new(),
            free: Vec::new(),
            sent: 0,
            errors: 0,
        })
    }

    /// The ring's grant.
    pub fn ring_ref(&self) -> GrantRef {
        self.ring.memory().gref()
    }

    /// Frames sent, and frames that the back end reports as not sent.
    pub fn counts(&self) -> (u64, u64) {
        (self.sent, self.errors)
    }

    /// Whether a frame can be queued now; gets a page if need be.
    pub fn has_room(&mut self) -> bool {
        if self.ring.free() == 0 {
            return false;
        }
        if self.free.is_empty()
            && self.slots.len() < MAX_IN_FLIGHT
            && let Ok(page) = Lease::fresh(&self.grants, self.peer)
        {
            self.free.push(self.slots.len() as u16);
            self.slots.push(Slot {
                page,
                in_flight: false,
            });
        }
        !self.free.is_empty()
    }

    /// Queues a frame; false if there is no room or it is no frame.
    #[must_use]
    pub fn send(&mut self, frame: &[u8]) -> bool {
        if !(MIN_FRAME..=MAX_FRAME).contains(&frame.len()) || !self.has_room() {
            return false;
        }
        let Some(id) = self.free.pop() else {
            return false;
        };
        let slot = &mut self.slots[usize::from(id)];
        slot.page.write_bytes(0, frame);
        slot.in_flight = true;
        let request = TxRequest {
            gref: slot.page.gref(),
            offset: 0,
            flags: 0,
            id,
            size: frame.len() as u16,
        };
        let pushed = self.ring.push(request);
        assert!(pushed, "has_room found room in the ring");
        true
    }

    /// Sends a request as it stands: how tests are hostile to a back end. Its page is a slot's unless it names
    /// one; its id is replaced.
    #[must_use]
    pub fn raw(&mut self, mut request: TxRequest) -> bool {
        if !self.has_room() {
            return false;
        }
        let Some(id) = self.free.pop() else {
            return false;
        };
        let slot = &mut self.slots[usize::from(id)];
        slot.in_flight = true;
        if request.gref == GrantRef(0) {
            request.gref = slot.page.gref();
        }
        request.id = id;
        self.ring.push(request)
    }

    /// Shows the back end what was queued; true if it wants an event.
    #[must_use = "true means that the back end waits for an event"]
    pub fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// Takes all answers. After a fault the queue must be closed.
    pub fn poll(&mut self) -> Result<(), Fault> {
        loop {
            while let Some(response) = self.ring.pop().map_err(Fault::Ring)? {
                self.complete(response)?;
            }
            if !self.ring.wait_for_more() {
                return Ok(());
            }
        }
    }

    fn complete(&mut self, response: TxResponse) -> Result<(), Fault> {
        if response.status == RSP_NULL {
            // The answer to an extra slot, which only a raw request can have announced.
            return Ok(());
        }
        let slot = self
            .slots
            .get_mut(usize::from(response.id))
            .filter(|slot| slot.in_flight)
            .ok_or(Fault::UnknownId(response.id))?;
        slot.in_flight = false;
        self.free.push(response.id);
        match response.status {
            RSP_OKAY => self.sent += 1,
            _ => self.errors += 1,
        }
        Ok(())
    }

    /// How many frames are in flight.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}
