//! Request/response rings of io/ring.h: a header of four indices and a power-of-two number of slots,
//! each holding a request on its way to the back end or a response on its way to the front end.
//!
//! Layout of the shared page: `req_prod` @0, `req_event` @4, `rsp_prod` @8, `rsp_event` @12, padding up
//! to 64, slots from 64.

use core::marker::PhantomData;
use core::mem::size_of;
use core::num::Wrapping;
use core::sync::atomic::{Ordering, fence};

use crate::{PeerError, RingEntry, SharedMemory, SharedMemoryExt};

const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;
const SLOTS: usize = 64;

/// What both halves share: the memory and the slots' shape.
#[derive(Debug)]
pub struct SlotRing<M, Req, Rsp> {
    memory: M,
    count: u32,
    shape: PhantomData<fn() -> (Req, Rsp)>,
}

impl<M: SharedMemory, Req: RingEntry, Rsp: RingEntry> SlotRing<M, Req, Rsp> {
    const SLOT: usize = if size_of::<Req>() > size_of::<Rsp>() {
        size_of::<Req>()
    } else {
        size_of::<Rsp>()
    };

    /// How many slots fit into `len` bytes: the largest power of two (`__RING_SIZE`, io/ring.h).
    pub const fn slots_in(len: usize) -> u32 {
        if len < SLOTS + Self::SLOT {
            return 0;
        }
        let fit = (len - SLOTS) / Self::SLOT;
        1 << (usize::BITS - 1 - fit.leading_zeros())
    }

    fn new(memory: M) -> Result<Self, PeerError> {
        let len = memory.len();
        match Self::slots_in(len) {
            0 => Err(PeerError::BadSize { len }),
            count => Ok(SlotRing {
                memory,
                count,
                shape: PhantomData,
            }),
        }
    }

    fn offset(&self, index: Wrapping<u32>) -> usize {
        SLOTS + (index.0 & (self.count - 1)) as usize * Self::SLOT
    }

    fn load(&self, field: usize) -> Wrapping<u32> {
        Wrapping(self.memory.load_u32(field, Ordering::Acquire))
    }

    /// Publishes our producer index and tells whether the peer asked for an event in what is new.
    fn publish(&self, prod: usize, event: usize, old: Wrapping<u32>, new: Wrapping<u32>) -> bool {
        if old == new {
            return false;
        }
        self.memory.store_u32(prod, new.0, Ordering::Release);
        fence(Ordering::SeqCst);
        let asked = self.load(event);
        new - asked < new - old
    }
}

/// The front end's half: makes requests, takes responses.
#[derive(Debug)]
pub struct FrontRing<M, Req, Rsp> {
    ring: SlotRing<M, Req, Rsp>,
    req_prod_private: Wrapping<u32>,
    req_prod_published: Wrapping<u32>,
    rsp_cons: Wrapping<u32>,
}

impl<M: SharedMemory, Req: RingEntry, Rsp: RingEntry> FrontRing<M, Req, Rsp> {
    /// Makes an empty ring in `memory`, which is cleared first: nothing of ours leaks to the peer (XSA-403).
    pub fn new(memory: M) -> Result<Self, PeerError> {
        memory.zero();
        let ring = SlotRing::new(memory)?;
        ring.memory.store_u32(REQ_EVENT, 1, Ordering::Release);
        ring.memory.store_u32(RSP_EVENT, 1, Ordering::Release);
        let zero = Wrapping(0);
        Ok(FrontRing {
            ring,
            req_prod_private: zero,
            req_prod_published: zero,
            rsp_cons: zero,
        })
    }

    /// How many slots the ring has.
    pub fn capacity(&self) -> u32 {
        self.ring.count
    }

    /// How many more requests fit.
    pub fn free(&self) -> u32 {
        self.ring.count - (self.req_prod_private - self.rsp_cons).0
    }

    /// The index that the next request will have, for peers that answer in the same slot.
    pub fn next_index(&self) -> u32 {
        self.req_prod_private.0
    }

    /// Puts a request into the next slot; false if the ring is full. The peer sees it after [`publish`](Self::publish).
    #[must_use]
    pub fn push(&mut self, request: Req) -> bool {
        if self.free() == 0 {
            return false;
        }
        self.ring
            .memory
            .write(self.ring.offset(self.req_prod_private), request);
        self.req_prod_private += 1;
        true
    }

    /// Shows the peer all pushed requests; true if the peer wants an event.
    #[must_use = "true means that the peer waits for an event"]
    pub fn publish(&mut self) -> bool {
        let old = core::mem::replace(&mut self.req_prod_published, self.req_prod_private);
        self.ring
            .publish(REQ_PROD, REQ_EVENT, old, self.req_prod_private)
    }

    /// Takes the next response, copied out once.
    pub fn pop(&mut self) -> Result<Option<Rsp>, PeerError> {
        let prod = self.ring.load(RSP_PROD);
        let ready = prod - self.rsp_cons;
        if ready > self.req_prod_published - self.rsp_cons {
            return Err(PeerError::IndexOutOfRange {
                theirs: prod.0,
                ours: self.rsp_cons.0,
                capacity: (self.req_prod_published - self.rsp_cons).0,
            });
        }
        if ready.0 == 0 {
            return Ok(None);
        }
        let response = self.ring.memory.read(self.ring.offset(self.rsp_cons));
        self.rsp_cons += 1;
        Ok(Some(response))
    }

    /// Asks for an event at the next response; true if one has come meanwhile (then pop again before waiting).
    #[must_use = "true means that there is work: waiting now would lose an event"]
    pub fn wait_for_more(&mut self) -> bool {
        self.ring.memory.store_u32(
            RSP_EVENT,
            (self.rsp_cons + Wrapping(1)).0,
            Ordering::Release,
        );
        fence(Ordering::SeqCst);
        self.ring.load(RSP_PROD) != self.rsp_cons
    }

    /// The memory, for granting it.
    pub fn memory(&self) -> &M {
        &self.ring.memory
    }

    /// Gives the memory back.
    pub fn into_memory(self) -> M {
        self.ring.memory
    }
}

/// The back end's half: takes requests, makes responses.
#[derive(Debug)]
pub struct BackRing<M, Req, Rsp> {
    ring: SlotRing<M, Req, Rsp>,
    req_cons: Wrapping<u32>,
    rsp_prod_private: Wrapping<u32>,
    rsp_prod_published: Wrapping<u32>,
}

impl<M: SharedMemory, Req: RingEntry, Rsp: RingEntry> BackRing<M, Req, Rsp> {
    /// Attaches to a ring that the front end made, going on where the last back end stopped answering:
    /// requests from `rsp_prod` on are taken (again).
    pub fn attach(memory: M) -> Result<Self, PeerError> {
        let ring = SlotRing::new(memory)?;
        let rsp_prod = ring.load(RSP_PROD);
        let back = BackRing {
            ring,
            req_cons: rsp_prod,
            rsp_prod_private: rsp_prod,
            rsp_prod_published: rsp_prod,
        };
        back.pending()?;
        Ok(back)
    }

    /// Attaches to a ring whose last back end kept account of what it took: requests before `req_cons` are
    /// known and are owed an answer unless they have one, those from there on are still to be popped.
    pub fn resume(memory: M, req_cons: u32) -> Result<Self, PeerError> {
        let mut back = Self::attach(memory)?;
        let req_cons = Wrapping(req_cons);
        let owed = req_cons - back.rsp_prod_private;
        let published = back.ring.load(REQ_PROD) - back.rsp_prod_private;
        if owed > published {
            return Err(PeerError::IndexOutOfRange {
                theirs: back.rsp_prod_private.0,
                ours: req_cons.0,
                capacity: back.ring.count,
            });
        }
        back.req_cons = req_cons;
        Ok(back)
    }

    /// The index that the next response will have.
    pub fn next_response(&self) -> u32 {
        self.rsp_prod_private.0
    }

    /// How many slots the ring has.
    pub fn capacity(&self) -> u32 {
        self.ring.count
    }

    /// How many published requests have not been popped.
    pub fn pending(&self) -> Result<u32, PeerError> {
        let prod = self.ring.load(REQ_PROD);
        let ready = prod - self.req_cons;
        // A request may not overwrite a slot whose answer is still owed.
        let room = Wrapping(self.ring.count) - (self.req_cons - self.rsp_prod_private);
        if ready > room {
            return Err(PeerError::IndexOutOfRange {
                theirs: prod.0,
                ours: self.req_cons.0,
                capacity: self.ring.count,
            });
        }
        Ok(ready.0)
    }

    /// Takes the next request, copied out once.
    pub fn pop(&mut self) -> Result<Option<Req>, PeerError> {
        if self.pending()? == 0 {
            return Ok(None);
        }
        let request = self.ring.memory.read(self.ring.offset(self.req_cons));
        self.req_cons += 1;
        Ok(Some(request))
    }

    /// The index of the next request to pop, for protocols that answer in the request's own slot.
    pub fn next_index(&self) -> u32 {
        self.req_cons.0
    }

    /// How many popped requests are not yet answered.
    pub fn owed(&self) -> u32 {
        (self.req_cons - self.rsp_prod_private).0
    }

    /// Puts a response into the next slot. Every popped request is owed exactly one; a response more
    /// than that is our own bug and panics.
    pub fn push(&mut self, response: Rsp) {
        assert!(self.owed() > 0, "a response without a request");
        self.ring
            .memory
            .write(self.ring.offset(self.rsp_prod_private), response);
        self.rsp_prod_private += 1;
    }

    /// Shows the peer all pushed responses; true if the peer wants an event.
    #[must_use = "true means that the peer waits for an event"]
    pub fn publish(&mut self) -> bool {
        let old = core::mem::replace(&mut self.rsp_prod_published, self.rsp_prod_private);
        self.ring
            .publish(RSP_PROD, RSP_EVENT, old, self.rsp_prod_private)
    }

    /// Asks for an event at the next request; true if one has come meanwhile (then pop again before waiting).
    #[must_use = "true means that there is work: waiting now would lose an event"]
    pub fn wait_for_more(&mut self) -> bool {
        self.ring.memory.store_u32(
            REQ_EVENT,
            (self.req_cons + Wrapping(1)).0,
            Ordering::Release,
        );
        fence(Ordering::SeqCst);
        self.ring.load(REQ_PROD) != self.req_cons
    }

    /// The memory under the ring.
    pub fn memory(&self) -> &M {
        &self.ring.memory
    }

    /// Gives the memory back.
    pub fn into_memory(self) -> M {
        self.ring.memory
    }
}

#[cfg(test)]
mod tests;
