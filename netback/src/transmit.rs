//! From the guest's transmit ring to its TAP device.

use std::sync::atomic::Ordering;

use xen_hal::{CopyBuffer, Error, ForeignGrants, GrantCopy, Result};
use xen_ring::BackRing;
use xen_sys::io::netif::{self, TxResponse};
use xen_sys::{DomId, Plain};

use crate::checksum;
use crate::packet::{self, Content, GatherError, Packet, Slot, SlotBytes};
use crate::vif::{Complaints, Frames, Stats};

/// The guest's transmit ring and what it takes to empty it.
pub(crate) struct Transmit<M> {
    pub(crate) dom: DomId,
    pub(crate) ring: BackRing<M, SlotBytes, TxResponse>,
    /// Packets of one batch, one after another.
    pub(crate) buffer: Box<[u8]>,
}

/// Bytes of packets copied with one hypercall, at most; one packet of the largest size always fits.
pub(crate) const BATCH_BYTES: usize = 128 * 1024;
/// Packets copied with one hypercall, at most.
const BATCH_PACKETS: usize = 64;

impl<M: xen_ring::SharedMemory> Transmit<M> {
    /// Sends what is in the ring, up to one batch. True if there may be more; false means that the front
    /// end will send an event with its next packet.
    pub(crate) fn run<G: ForeignGrants>(
        &mut self,
        grants: &G,
        frames: &dyn Frames,
        stats: &Stats,
        complaints: &mut Complaints,
        notify: &mut dyn FnMut() -> Result<()>,
    ) -> Result<bool> {
        let packets = self.take_batch()?;
        if packets.is_empty() {
            return Ok(self.ring.wait_for_more());
        }
        let outcome = copy_all(self.dom, grants, &packets, &mut self.buffer)?;
        let mut rest = &mut self.buffer[..];
        for (packet, copied) in packets.iter().zip(outcome) {
            let status = match (&packet.content, copied) {
                (Err(refusal), _) => {
                    complaints.add(|| format!("refused: {refusal}"));
                    stats.tx_errors.fetch_add(1, Ordering::Relaxed);
                    netif::RSP_ERROR
                }
                (Ok(content), copied) => {
                    let (frame, more) = rest.split_at_mut(content.len);
                    rest = more;
                    if copied == 0 {
                        send(frame, content, frames, stats);
                        netif::RSP_OKAY
                    } else {
                        complaints.add(|| format!("a packet's grant: GNTST status {copied}"));
                        stats.tx_errors.fetch_add(1, Ordering::Relaxed);
                        netif::RSP_ERROR
                    }
                }
            };
            for slot in &packet.slots {
                self.ring.push(match *slot {
                    Slot::Request(id) => TxResponse { id, status },
                    Slot::Extra => TxResponse {
                        id: 0,
                        status: netif::RSP_NULL,
                    },
                });
            }
        }
        if self.ring.publish() {
            notify()?;
        }
        Ok(true)
    }

    fn take_batch(&mut self) -> Result<Vec<Packet>> {
        let mut packets = Vec::new();
        let mut room = BATCH_BYTES;
        while packets.len() < BATCH_PACKETS && room >= netif::MAX_TX_SIZE {
            let packet = packet::gather(|| self.ring.pop()).map_err(|error| match error {
                GatherError::Ring(error) => Error::Ring(error),
                GatherError::Unfinished => Error::Peer {
                    dom: self.dom,
                    what: "the last packet in the transmit ring has no end".to_string(),
                },
            })?;
            let Some(packet) = packet else { break };
            room -= packet.content.as_ref().map_or(0, |content| content.len);
            packets.push(packet);
        }
        Ok(packets)
    }
}

/// Copies the packets one after another into `buffer`; for each packet the first status that is not 0.
fn copy_all<G: ForeignGrants>(
    dom: DomId,
    grants: &G,
    packets: &[Packet],
    buffer: &mut [u8],
) -> Result<Vec<i16>> {
    let mut copies = Vec::new();
    let mut rest = buffer;
    for content in packets
        .iter()
        .filter_map(|packet| packet.content.as_ref().ok())
    {
        for piece in &content.pieces {
            let (to, more) = rest.split_at_mut(usize::from(piece.len));
            rest = more;
            copies.push(GrantCopy {
                gref: piece.gref,
                offset: piece.offset,
                local: CopyBuffer::FromGrant(to),
                status: 0,
            });
        }
    }
    if !copies.is_empty() {
        grants.copy(dom, &mut copies)?;
    }
    let mut statuses = copies.iter().map(|copy| copy.status);
    let outcome = packets.iter().map(|packet| {
        let pieces = packet.content.as_ref().map_or(0, |c| c.pieces.len());
        // All of the packet's statuses are taken, whatever the first bad one is.
        let mut first_bad = 0;
        for status in statuses.by_ref().take(pieces) {
            if first_bad == 0 {
                first_bad = status;
            }
        }
        first_bad
    });
    Ok(outcome.collect())
}

fn send(frame: &mut [u8], content: &Content, frames: &dyn Frames, stats: &Stats) {
    // Without a checksum to fill in, the frame is what the guest made of it.
    let _ = content.checksum_blank && checksum::complete(frame);
    match frames.send(frame) {
        Ok(()) => {
            stats.tx_packets.fetch_add(1, Ordering::Relaxed);
            stats
                .tx_bytes
                .fetch_add(frame.len() as u64, Ordering::Relaxed);
        }
        // A network may lose packets: the device is down, or its queue is full.
        Err(_) => {
            stats.tx_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// An empty transmit ring's buffer.
pub(crate) fn buffer() -> Box<[u8]> {
    vec![0; BATCH_BYTES].into_boxed_slice()
}

const _: () = assert!(size_of::<SlotBytes>() >= size_of::<netif::Extra>());
const _: () = {
    const fn plain<T: Plain>() {}
    plain::<SlotBytes>();
};
