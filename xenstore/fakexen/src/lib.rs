//! Files and datagrams in the place of Xen: what a store daemon needs of it, on any machine. The same folder is
//! spoken by our daemon (`xenstored --fakexen DIR`) and, through a library that is loaded before Xen's own
//! (ci/storebench/preload.c), by the stock ones.
//!
//! The folder holds
//! - `dom.N`: `running`, `shutdown` or `dying`, and a number that tells this domain N from others (the stock daemons do
//!   not look at it); a domain without such a file does not exist;
//! - `ring.N`: the store page of domain N, 4 KiB, mapped shared; `ring.0` is dom0's kernel's;
//! - `port.0`: the kernel's port in digits;
//! - `evtchn.sock`: the daemon's datagram socket, where a port as 4 bytes little-endian is an event;
//! - `guest.N.sock`: the guest's datagram socket, where one byte is an event.
//!
//! Invariant: all that is `unsafe` is in `page.rs`.
//! Invariant: a full datagram queue loses no event: what waits there wakes the reader already.
#![deny(unsafe_code)]

mod daemon;
mod folder;
mod guest;
mod page;

pub use daemon::DaemonEnd;
pub use folder::{Folder, State};
pub use guest::GuestEnd;
pub use page::Page;

use xen_sys::{DomId, Port};

/// The daemon's port on which it is told that some domain has changed its state.
pub const VIRQ_DOM_EXC: Port = Port(1);

const FIRST_DOMAIN: u32 = 16;

/// The daemon's port for a domain's ring.
pub fn port_of(dom: DomId) -> Port {
    Port(FIRST_DOMAIN + u32::from(dom.0))
}

/// The domain at whose ring a port of the daemon's is.
pub fn domain_of(port: Port) -> Option<DomId> {
    let dom = port.0.checked_sub(FIRST_DOMAIN)?;
    u16::try_from(dom).ok().map(DomId)
}
