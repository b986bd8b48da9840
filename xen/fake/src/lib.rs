//! Domains, grants, events and a clock in one process, with a seeded schedule and faults on demand.
//!
//! ```
//! use xen_fake::World;
//! use xen_hal::{AccessMode, EventChannels, ForeignGrants, Lease};
//!
//! let world = World::new();
//! let (dom0, guest) = (world.dom0(), world.create_domain());
//! let lease = Lease::fresh(&guest.grants(), dom0.id()).unwrap();
//! let mapping = dom0.foreign().map(guest.id(), &[lease.gref()], AccessMode::ReadWrite).unwrap();
//! let (front, back) = (guest.events(), dom0.events());
//! let port = front.alloc_unbound(dom0.id()).unwrap();
//! let bound = back.bind_interdomain(guest.id(), port).unwrap();
//! back.notify(bound).unwrap();
//! assert_eq!(front.next_pending(), Ok(Some(port)));
//! drop((mapping, lease, front, back));
//! world.assert_nothing_left();
//! ```
//!
//! Invariant: what Xen refuses is refused here, with Xen's status; what a test must not be able to do on
//! real Xen, such as freeing a granted page, is recorded and fails [`World::assert_nothing_left`].
//! Invariant: everything is `Send` and `Sync`; nothing blocks; the same seed gives the same run.
#![deny(unsafe_code)]

mod clock;
mod control;
mod counting;
mod events;
mod faults;
mod foreign;
mod grants;
mod memory;
mod placement;
mod schedule;
mod tables;
mod world;

pub use clock::FakeClock;
pub use control::{Control, FrameMapping};
pub use counting::Counting;
pub use events::Events;
pub use faults::{Call, Faults};
pub use foreign::{Foreign, Mapping};
pub use grants::{Grants, Page};
pub use schedule::{Actor, Schedule, Step, Stuck};
pub use world::{Domain, World};
