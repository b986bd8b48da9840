//! The network front end: raw Ethernet frames over an interface that the toolstack declared (`device/vif/ID`).
//!
//! One slot and one page per frame: no scatter-gather, no segmentation or checksum offload is offered.

mod interface;
mod rx;
mod tx;

pub use interface::{Interface, MacAddress};
pub use rx::RxQueue;
pub use tx::TxQueue;

pub use crate::xenbus::Phase;

/// Bytes of a frame's header; shorter frames are not delivered (XSA-522).
pub const MIN_FRAME: usize = 14;
/// Bytes of a frame that is sent at most: 1500 and the header.
pub const MAX_FRAME: usize = 1514;

/// What the back end did that it must not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A producer index out of range.
    Ring(xen_ring::PeerError),
    /// A response to a frame that is not in flight.
    UnknownId(u16),
}

impl core::fmt::Display for Fault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Fault::Ring(error) => error.fmt(f),
            Fault::UnknownId(id) => write!(f, "a response to frame {id}, which is not in flight"),
        }
    }
}

/// Frames counted since the interface was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames delivered to us.
    pub received: u64,
    /// Frames that the back end gave us with a nonsensical length, offset or form.
    pub rx_dropped: u64,
    /// Frames sent.
    pub sent: u64,
    /// Frames that the back end reports as not sent.
    pub tx_errors: u64,
}
