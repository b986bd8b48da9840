//! The stream in which a store daemon hands its state to the next: docs/designs/xenstore-migration.md, versions 1 and 2,
//! as C xenstored reads and writes it.
//!
//! - [`Record`]: what stands in it. [`Writer`] makes a stream, [`Reader`] goes through one.
//!
//! Records of kinds that are not known here come out as [`Record::Unknown`]: C daemons skip such, so that ours may add
//! what theirs has no words for.
//!
//! Invariant: does no I/O; reading allocates nothing, and no bytes make it panic.
//! Invariant: a length is never trusted beyond the bytes that are there.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod read;
mod record;
mod write;

#[cfg(test)]
mod tests;

pub use read::{Error, Reader};
pub use record::{
    Access, Connection, DomainData, Node, Peer, Permission, Quota, Quotas, Record, Watch, kind,
};
pub use write::Writer;

/// The first bytes of a stream.
pub const IDENT: &[u8; 8] = b"xenstore";

/// The newest version that is known here.
pub const NEWEST: u32 = 2;

/// In the header's flags: numbers are big-endian.
const BIG_ENDIAN: u32 = 1;

/// Bytes of a stream's header, and of a record's.
const STREAM_HEADER: usize = 16;
const RECORD_HEADER: usize = 8;

/// `fields` of a connection: its domain's unique id follows.
const HAS_UNIQUE_ID: u16 = 1;

/// The depth of a watch that counts all levels.
const ANY_DEPTH: u16 = 0xffff;

/// `flags` of a permission: the domain that it names is gone.
const STALE: u8 = 1;
