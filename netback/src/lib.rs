//! The network backend: TAP devices on a bridge for PV guests.
//!
//! `transmit` moves packets from a guest's ring to its TAP device, `receive` the other way; `packet`
//! decides which slots make a packet and whether it is allowed, `checksum` fills in what the guest left
//! out, `vif` joins both directions, `driver` is the handshake's network part.
//!
//! Invariant: a slot is copied out once and decided on as a copy; packets are copied out of and into the
//! guest's pages by Xen, so nothing of a guest is ever mapped but its rings.
//! Invariant: memory for each interface is fixed: packets wait in the TAP device's queue, which drops its
//! tail when the guest gives no room (XSA-392, XSA-424).
//! Invariant: no panic on a guest's input; what a guest does wrong ends its own interface at most.
//! Invariant: `unsafe` stands in `tap.rs` alone (ioctls on the TAP device and the bridge).
#![deny(unsafe_code)]

mod checksum;
mod driver;
mod inline;
mod packet;
mod receive;
pub mod tap;
mod transmit;
mod vif;

pub use checksum::{complete, internet_checksum};
pub use driver::{Datapath, NetDriver, Plan, Ports, RingInfo};
pub use inline::{Inline, InlineConnection};
pub use packet::{MAX_SLOTS, Packet, Refusal, Slot, gather};
pub use vif::{Frames, Progress, Served, Stats};
