//! From a guest's TAP device to its receive ring.

use std::sync::atomic::Ordering;

use xen_hal::{CopyBuffer, Error, ForeignGrants, GrantCopy, Result};
use xen_ring::{BackRing, SharedMemory};
use xen_sys::io::netif::{self, RxRequest, RxResponse};
use xen_sys::types::PAGE_SIZE;
use xen_sys::{DomId, Errno};

use crate::vif::{Frames, Stats};

/// The guest's receive ring and what it takes to fill it.
pub(crate) struct Receive<M> {
    pub(crate) dom: DomId,
    pub(crate) ring: BackRing<M, RxRequest, RxResponse>,
    /// Frames of one batch, a slot of [`FRAME`] bytes each.
    pub(crate) buffer: Box<[u8]>,
}

/// Frames copied with one hypercall, at most.
const BATCH: usize = 64;
/// Room for a frame: one byte more than fits into a page, so that a longer one is noticed.
const FRAME: usize = PAGE_SIZE + 1;

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// A whole batch was moved.
    Batch,
    /// No frame is waiting.
    NoFrames,
    /// The guest has no room; it will send an event when it has. Frames wait in the TAP device, which
    /// drops the last ones when its queue is full.
    NoRoom,
}

impl<M: SharedMemory> Receive<M> {
    /// Moves up to one batch of frames to the guest.
    pub(crate) fn run<G: ForeignGrants>(
        &mut self,
        grants: &G,
        frames: &dyn Frames,
        stats: &Stats,
        notify: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Ended> {
        let mut room = self.ring.pending()? as usize;
        if room == 0 {
            if !self.ring.wait_for_more() {
                return Ok(Ended::NoRoom);
            }
            room = self.ring.pending()? as usize;
        }
        let (lens, drained) = self.take_frames(room.min(BATCH), frames, stats)?;
        let mut requests = Vec::with_capacity(lens.len());
        while requests.len() < lens.len() {
            match self.ring.pop()? {
                Some(request) => requests.push(request),
                None => break,
            }
        }
        let slots = self.buffer.chunks_exact(FRAME);
        let mut copies: Vec<GrantCopy<'_>> = requests
            .iter()
            .zip(slots.zip(&lens))
            .map(|(request, (slot, &len))| GrantCopy {
                gref: request.gref,
                offset: 0,
                local: CopyBuffer::ToGrant(&slot[..len]),
                status: 0,
            })
            .collect();
        if !copies.is_empty() {
            grants.copy(self.dom, &mut copies)?;
        }
        // Each response goes into its request's own slot: Linux's front end does not look at the id.
        for (request, copy) in requests.iter().zip(&copies) {
            let len = copy.local.len();
            let status = if copy.status == 0 {
                stats.rx_packets.fetch_add(1, Ordering::Relaxed);
                stats.rx_bytes.fetch_add(len as u64, Ordering::Relaxed);
                len as i16
            } else {
                stats.rx_errors.fetch_add(1, Ordering::Relaxed);
                netif::RSP_ERROR
            };
            self.ring.push(RxResponse {
                id: request.id,
                offset: 0,
                flags: 0,
                status,
            });
        }
        if self.ring.publish() {
            notify()?;
        }
        Ok(if drained {
            Ended::NoFrames
        } else {
            Ended::Batch
        })
    }

    /// Reads up to `most` frames; their lengths, and whether no more are waiting.
    fn take_frames(
        &mut self,
        most: usize,
        frames: &dyn Frames,
        stats: &Stats,
    ) -> Result<(Vec<usize>, bool)> {
        let mut lens = Vec::with_capacity(most);
        let mut slots = self.buffer.chunks_exact_mut(FRAME);
        let mut slot = slots.next();
        let mut tries = 0;
        while lens.len() < most && tries < 2 * BATCH {
            let Some(to) = slot.as_deref_mut() else { break };
            tries += 1;
            match frames.receive(to) {
                Ok(Some(len)) if len <= PAGE_SIZE => {
                    lens.push(len);
                    slot = slots.next();
                }
                // Longer than a slot takes: many slots for a packet were not agreed on.
                Ok(Some(_)) => {
                    stats.rx_dropped.fetch_add(1, Ordering::Relaxed);
                }
                Ok(None) => return Ok((lens, true)),
                Err(error) => {
                    return Err(Error::System {
                        op: "read from",
                        object: "the TAP device".to_string(),
                        errno: Errno(error.raw_os_error().unwrap_or(Errno::EIO.0)),
                    });
                }
            }
        }
        Ok((lens, false))
    }
}

/// A receive ring's buffer.
pub(crate) fn buffer() -> Box<[u8]> {
    vec![0; BATCH * FRAME].into_boxed_slice()
}
