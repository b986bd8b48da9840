//! The block backend: disk images and block devices for PV guests.
//!
//! The parts, in the order a request meets them: `ring` takes a slot out, `journal` records it, `request`
//! turns its bytes into a checked request or a refusal, `pool` has the guest's pages mapped, an `engine`
//! (`uring`, `threads`) moves the data between them and `storage`, `queue` sees to all that and answers.
//! `disk` reads what the toolstack wrote, `driver` is the handshake's block part, `next` has a running disk go on with
//! another image, and `served` is a ring with
//! its event channel.
//!
//! Invariant: a slot, and a page of segments, is copied out once and decided on as a copy (XSA-155); every
//! popped request gets exactly one response, zeroed before it is filled (XSA-216).
//! Invariant: what runs is on record in a file that outlives the process (see `journal`), so one that is
//! killed is followed by one that goes on.
//! Invariant: memory that a job uses stays where it is until the job has ended: jobs own it.
//! Invariant: no panic on a guest's input; what a guest does wrong ends its own device at most.
//! Invariant: `unsafe` stands in `memory`, `aio`, `lane`, `uring` and `storage` alone.
#![deny(unsafe_code)]

mod aio;
mod disk;
mod driver;
mod engine;
mod format;
mod in_use;
mod inline;
mod journal;
mod lane;
mod memory;
mod next;
mod pool;
mod queue;
mod rate;
mod request;
mod ring;
mod served;
mod sizes;
mod storage;
mod threads;
mod uring;
mod uring_setup;

pub use disk::{Disk, Format, params_path};
pub use driver::{BlockDriver, Datapath, MAX_QUEUES, MAX_RING_ORDER, OpenImage, open_file};
pub use engine::{Direct, Done, Engine, Job, Listen, Order, Woken, Work};
pub use format::{OtherFiles, Policy, identity, open_any, open_disk, open_given};
pub use inline::{Inline, InlineConnection, InlineQueue, Journals};
pub use journal::Journal;
pub use memory::{Buffer, MappedFile, Memory, Piece};
pub use queue::{DataMove, Log, Progress, Queue};
pub use rate::Allowance;
pub use request::{
    Indirect, Limits, MAX_INDIRECT, Op, RawRequest, Refusal, Request, Segment, blkif_request,
    response,
};
pub use ring::{Protocol, Ring, SlotBytes};
pub use served::{Connect, Link, RingInfo, Served};
pub use storage::{Cache, FileStorage, Identity, Storage};
pub use threads::Threads;
pub use uring::Uring;
pub use xen_backend::account::Count;
