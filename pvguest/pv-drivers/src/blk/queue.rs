//! The block ring: requests in, responses out, and private state that says what is in flight.
//!
//! Nothing here knows the store or event channels; the owner notifies and waits.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use xen_hal::{GrantTable, LeaseRun, Result};
use xen_ring::SharedMemoryExt;
use xen_sys::io::blkif::{
    MAX_SEGMENTS_PER_REQUEST, OP_DISCARD, OP_FLUSH_DISKCACHE, OP_INDIRECT, OP_READ, OP_WRITE,
    RSP_EOPNOTSUPP, RSP_OKAY, Request, RequestDiscard, RequestIndirect, Response, SECTOR_SIZE,
    Segment,
};
use xen_sys::io::ring::REQ_PROD;
use xen_sys::{DomId, GrantRef, PAGE_SIZE, Plain};

use super::buffers::{Buffers, MAX_BYTES};
use super::ring::Ring;
use super::{BlkError, DiskInfo, Options};

/// A request that was submitted and whose end is not yet taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the slot is free again only when its result is taken"]
pub struct Ticket {
    queue: u8,
    slot: u16,
    generation: u32,
}

impl Ticket {
    /// The same for a disk with several queues.
    pub(super) fn of_queue(self, queue: usize) -> Ticket {
        Ticket {
            queue: queue as u8,
            ..self
        }
    }

    /// Whose it is.
    pub(super) fn queue(self) -> usize {
        self.queue.into()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    InFlight,
    Done(Result<(), BlkError>),
}

#[derive(Debug)]
struct Slot<G: GrantTable> {
    state: State,
    op: u8,
    len: usize,
    generation: u32,
    buffers: Buffers<G>,
}

/// What the back end did that it must not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A producer index out of range.
    Ring(xen_ring::PeerError),
    /// A response to a request that is not in flight.
    UnknownId(u64),
    /// A response that names another operation than the request.
    WrongOperation {
        /// The request.
        id: u64,
        /// What the response says.
        operation: u8,
    },
}

impl core::fmt::Display for Fault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Fault::Ring(error) => error.fmt(f),
            Fault::UnknownId(id) => write!(f, "a response to request {id}, which is not in flight"),
            Fault::WrongOperation { id, operation } => {
                write!(
                    f,
                    "the response to request {id} is for operation {operation}"
                )
            }
        }
    }
}

/// The front end's half of a block ring with its buffers.
#[derive(Debug)]
pub struct Queue<G: GrantTable> {
    grants: G,
    peer: DomId,
    ring: Ring<LeaseRun<G>>,
    slots: Vec<Slot<G>>,
    info: DiskInfo,
}

impl<G: GrantTable> Queue<G> {
    /// An empty ring in a fresh page that is granted to `peer`.
    pub fn new(grants: G, peer: DomId) -> Result<Self> {
        Self::with(grants, peer, &Options::default())
    }

    /// An empty ring of this layout and length.
    pub fn with(grants: G, peer: DomId, options: &Options) -> Result<Self> {
        let memory = LeaseRun::fresh(&grants, peer, 1 << options.ring_order)?;
        let ring = Ring::new(memory, options.protocol)?;
        let count = ring.capacity();
        let slots = (0..count)
            .map(|_| Slot {
                state: State::Free,
                op: 0,
                len: 0,
                generation: 0,
                buffers: Buffers::new(),
            })
            .collect();
        Ok(Queue {
            grants,
            peer,
            ring,
            slots,
            info: DiskInfo::default(),
        })
    }

    /// The grants of the ring's pages.
    pub fn ring_refs(&self) -> impl Iterator<Item = GrantRef> + '_ {
        self.ring.memory().grefs()
    }

    /// Sets what requests are checked against.
    pub fn set_info(&mut self, info: DiskInfo) {
        self.info = info;
    }

    /// Queues a read of `len` bytes from `sector` (of 512 bytes) on.
    pub fn read(&mut self, sector: u64, len: usize) -> Result<Ticket, BlkError> {
        self.check(sector, len)?;
        let slot = self.reserve(len)?;
        Ok(self.submit(slot, OP_READ, sector, len))
    }

    /// Queues a write from `sector` (of 512 bytes) on.
    pub fn write(&mut self, sector: u64, data: &[u8]) -> Result<Ticket, BlkError> {
        if self.info.read_only {
            return Err(BlkError::ReadOnly);
        }
        self.check(sector, data.len())?;
        let slot = self.reserve(data.len())?;
        self.slots[slot].buffers.fill(data);
        Ok(self.submit(slot, OP_WRITE, sector, data.len()))
    }

    /// Queues a flush: what was written before it was submitted is on the disk when it ends.
    pub fn flush(&mut self) -> Result<Ticket, BlkError> {
        if !self.info.flush {
            return Err(BlkError::Unsupported);
        }
        let slot = self.reserve(0)?;
        Ok(self.submit(slot, OP_FLUSH_DISKCACHE, 0, 0))
    }

    /// Queues a discard of `count` sectors: what stands there is not needed any more.
    pub fn discard(&mut self, sector: u64, count: u64) -> Result<Ticket, BlkError> {
        if !self.info.discard {
            return Err(BlkError::Unsupported);
        }
        match sector.checked_add(count) {
            Some(end) if end <= self.info.sectors_512 => {}
            _ => return Err(BlkError::OutOfRange),
        }
        let slot = self.reserve(0)?;
        let discard = RequestDiscard {
            operation: OP_DISCARD,
            handle: self.info.handle,
            id: slot as u64,
            sector_number: sector,
            nr_sectors: count,
            ..RequestDiscard::ZERO
        };
        Ok(self.push(slot, OP_DISCARD, overlaid(discard.as_bytes()), 0))
    }

    /// Shows the back end what was queued; true if it wants an event.
    #[must_use = "true means that the back end waits for an event"]
    pub fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// Takes all responses. After a fault the queue must be closed.
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

    /// The result of a request once it has ended; the data of a read goes to `to`, as much as both have.
    /// `None` while it is in flight. A ticket whose result was taken is [`BlkError::Stale`].
    pub fn take(&mut self, ticket: Ticket, to: &mut [u8]) -> Option<Result<(), BlkError>> {
        let slot = &mut self.slots[usize::from(ticket.slot)];
        if slot.generation != ticket.generation {
            return Some(Err(BlkError::Stale));
        }
        match slot.state {
            State::Free => Some(Err(BlkError::Stale)),
            State::InFlight => None,
            State::Done(result) => {
                if result.is_ok() && slot.op == OP_READ {
                    let len = slot.len.min(to.len());
                    slot.buffers.copy_to(&mut to[..len]);
                }
                slot.state = State::Free;
                Some(result)
            }
        }
    }

    /// How many requests are in flight.
    pub fn in_flight(&self) -> usize {
        self.slots
            .iter()
            .filter(|slot| slot.state == State::InFlight)
            .count()
    }

    /// Sends a request as it stands, unchecked, with a slot's id and grants filled in where the request has
    /// zeroes: how tests are hostile to a back end. The response's status is the result.
    pub fn raw(&mut self, mut request: Request, pages: usize) -> Result<Ticket, BlkError> {
        let slot = self.reserve(pages.min(MAX_SEGMENTS_PER_REQUEST) * PAGE_SIZE)?;
        let grefs = self.slots[slot].buffers.grefs();
        for (segment, gref) in request.seg.iter_mut().zip(grefs) {
            if segment.gref == GrantRef(0) {
                segment.gref = gref;
            }
        }
        request.id = slot as u64;
        // The answer names what an indirect request is to do.
        let op = match request.operation {
            OP_INDIRECT => request.nr_segments,
            other => other,
        };
        Ok(self.push(slot, op, request, 0))
    }

    /// Tells the back end of so many requests that are not there: how tests are hostile to it.
    pub fn run_ahead(&self, count: u32) {
        let memory = self.ring.memory();
        let next = memory.load_u32(REQ_PROD, Ordering::Acquire);
        memory.store_u32(REQ_PROD, next.wrapping_add(count), Ordering::Release);
    }

    /// Most bytes in one request.
    pub fn max_bytes(&self) -> usize {
        MAX_BYTES.max(usize::from(self.info.indirect) * PAGE_SIZE)
    }

    fn check(&self, sector: u64, len: usize) -> Result<(), BlkError> {
        let unit = u64::from(self.info.sector_size.max(SECTOR_SIZE as u32));
        if len == 0 || len > self.max_bytes() || !(len as u64).is_multiple_of(unit) {
            return Err(BlkError::BadLength);
        }
        if !sector.is_multiple_of(unit / SECTOR_SIZE as u64) {
            return Err(BlkError::BadLength);
        }
        match sector.checked_add((len / SECTOR_SIZE) as u64) {
            Some(end) if end <= self.info.sectors_512 => Ok(()),
            _ => Err(BlkError::OutOfRange),
        }
    }

    /// A free slot with pages for `len` bytes.
    fn reserve(&mut self, len: usize) -> Result<usize, BlkError> {
        let free = |slot: &Slot<G>| slot.state == State::Free;
        let slot = self
            .slots
            .iter()
            .position(free)
            .filter(|_| self.ring.free() > 0)
            .ok_or(BlkError::Busy)?;
        let reserved = self.slots[slot]
            .buffers
            .reserve(&self.grants, self.peer, len);
        reserved.map_err(|_| BlkError::NoMemory)?;
        Ok(slot)
    }

    fn submit(&mut self, slot: usize, op: u8, sector: u64, len: usize) -> Ticket {
        let buffers = &self.slots[slot].buffers;
        let request = match buffers.list(len).filter(|_| len > MAX_BYTES) {
            Some((gref, nr_segments)) => {
                let mut indirect = RequestIndirect {
                    operation: OP_INDIRECT,
                    indirect_op: op,
                    nr_segments,
                    handle: self.info.handle,
                    id: slot as u64,
                    sector_number: sector,
                    ..RequestIndirect::ZERO
                };
                indirect.indirect_grefs[0] = gref;
                overlaid(indirect.as_bytes())
            }
            None => {
                let (seg, nr_segments): ([Segment; MAX_SEGMENTS_PER_REQUEST], u8) =
                    buffers.segments(len);
                Request {
                    operation: op,
                    nr_segments,
                    handle: self.info.handle,
                    id: slot as u64,
                    sector_number: sector,
                    seg,
                    ..Request::ZERO
                }
            }
        };
        self.push(slot, op, request, len)
    }

    /// Puts a request into the ring; `op` is what its answer will name.
    fn push(&mut self, index: usize, op: u8, request: Request, len: usize) -> Ticket {
        let pushed = self.ring.push(request);
        assert!(pushed, "reserve found room in the ring");
        let slot = &mut self.slots[index];
        slot.state = State::InFlight;
        slot.op = op;
        slot.len = len;
        slot.generation = slot.generation.wrapping_add(1);
        Ticket {
            queue: 0,
            slot: index as u16,
            generation: slot.generation,
        }
    }

    fn complete(&mut self, response: Response) -> Result<(), Fault> {
        let slot = usize::try_from(response.id)
            .ok()
            .and_then(|id| self.slots.get_mut(id))
            .filter(|slot| slot.state == State::InFlight)
            .ok_or(Fault::UnknownId(response.id))?;
        if response.operation != slot.op {
            return Err(Fault::WrongOperation {
                id: response.id,
                operation: response.operation,
            });
        }
        slot.state = State::Done(match response.status {
            RSP_OKAY => Ok(()),
            RSP_EOPNOTSUPP => Err(BlkError::Unsupported),
            _ => Err(BlkError::Io),
        });
        Ok(())
    }
}

/// A request over which another kind lies.
fn overlaid(bytes: &[u8]) -> Request {
    let mut request = Request::ZERO;
    request.as_bytes_mut()[..bytes.len()].copy_from_slice(bytes);
    request
}
