//! The contracts between logic and the world it runs in: grants, events, store, domain control, clock.
//!
//! Logic (drivers, backends, the store's core, the toolstack's library) is written against these traits
//! and never names a world; the worlds are dom0's device nodes (`xen-dom0`), the guest kernel
//! (`pvguest`) and the one-process fake (`xen-fake`).
//!
//! Invariant: no trait blocks, except [`Store`], whose requests wait for their answer.
//! Invariant: methods take `&self`; a world that needs mutation keeps it inside.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

mod clock;
mod domains;
mod error;
mod events;
mod foreign;
mod grants;
mod placement;
mod store;
mod xenbus;

pub use clock::Clock;
pub use domains::{
    CreateDomain, DomainControl, DomainFlags, DomainInfo, HostInfo, ShutdownReason, VcpuStart,
    XenVersion,
};
pub use error::{Error, Result};
pub use events::EventChannels;
pub use foreign::{CopyBuffer, ForeignGrants, GrantCopy};
pub use grants::{AccessMode, GrantTable, Lease, LeaseRun};
pub use placement::{
    Affinity, CpuMap, CpuPlace, CpuPool, HostControl, Inspect, NumaNode, Placement, PoolSettings,
    Scheduler, Share, Timed, Trigger, VcpuInfo,
};
pub use store::{MAX_RETRIES, Store, StoreExt, StoreLink, StoreOp};
pub use xenbus::XenbusState;
pub use xs_wire::{Access, Permission, StoreError, TxId, WatchEvent};
