//! The only crate that opens /dev/xen/*: hypercalls, grants, events and store rings of a Linux dom0.
//!
//! Invariant: hypercalls are typed and synchronous. Their buffers are owned by this crate, zeroed when
//! given back, and no address of a caller's is ever passed to Xen.
//! Invariant: a hypervisor whose interface is not in the table of versions is refused, not guessed at.
//! Invariant: what is dropped is gone: mappings are unmapped, ports closed, buffers cleared.

mod abi;
mod buffer;
mod clock;
mod device;
mod domains;
mod events;
mod grants;
mod host;
mod hypervisor;
mod identity;
mod inspect;
mod mapping;
mod place;
mod placement;
mod preflight;
mod seeds;
mod storenode;
mod versions;

pub use clock::MonotonicClock;
pub use events::Events;
pub use grants::{GrantMapping, Grants};
pub use hypervisor::Hypervisor;
pub use mapping::ForeignMapping;
pub use preflight::{NotReady, explained, preflight};
pub use storenode::StoreNode;
pub use versions::{RELEASES, Release};

/// The ioctls that [`Grants`] and [`Events`] need once their devices are open, for a filter of system calls.
pub const DATA_PATH_IOCTLS: [u64; 7] = [
    abi::GNTDEV_MAP,
    abi::GNTDEV_UNMAP,
    abi::GNTDEV_COPY,
    abi::EVTCHN_BIND_INTERDOMAIN,
    abi::EVTCHN_UNBIND,
    abi::EVTCHN_NOTIFY,
    abi::EVTCHN_RESET,
];

#[doc(hidden)]
pub use abi::{CONSTANTS, LAYOUTS};
