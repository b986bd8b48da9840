//! The block front end: a disk that the toolstack declared (`device/vbd/ID`).

mod buffers;
mod disk;
mod options;
mod queue;
mod ring;
mod transfer;

pub use buffers::{MAX_BYTES, MAX_INDIRECT};
pub use disk::Disk;
pub use options::{Options, Protocol};
pub use queue::{Fault, Queue, Ticket};
pub use transfer::{discard, flush, read, write};

pub use crate::xenbus::Phase;

/// What the back end says of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskInfo {
    /// The virtual device number, such as 51712 for xvda.
    pub handle: u16,
    /// Its size, always in units of 512 bytes.
    pub sectors_512: u64,
    /// The unit in which it can be read and written, in bytes.
    pub sector_size: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// A CD-ROM drive.
    pub cdrom: bool,
    /// The medium can be taken out.
    pub removable: bool,
    /// Flushes are offered.
    pub flush: bool,
    /// Barriers are offered.
    pub barrier: bool,
    /// Discards are offered.
    pub discard: bool,
    /// Most segments of a request with a page of segments; 0 if the back end does not take such.
    pub indirect: u16,
}

/// Why a request did not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlkError {
    /// Beyond the end of the disk.
    OutOfRange,
    /// Not a multiple of the sector size, nothing at all, or more than one request can carry.
    BadLength,
    /// The disk is read-only.
    ReadOnly,
    /// All slots are in use: take results, then try again.
    Busy,
    /// No page or grant is left.
    NoMemory,
    /// The back end does not offer or know the operation.
    Unsupported,
    /// The back end failed.
    Io,
    /// The result was taken already.
    Stale,
    /// The disk is not connected (yet, or any more).
    NotConnected,
    /// The back end broke the rules; the disk is not used any more.
    Broken,
    /// The owner gave up waiting.
    TimedOut,
}

impl core::fmt::Display for BlkError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            BlkError::OutOfRange => "beyond the end of the disk",
            BlkError::BadLength => "not a whole number of sectors, or too many",
            BlkError::ReadOnly => "the disk is read-only",
            BlkError::Busy => "all request slots are in use",
            BlkError::NoMemory => "no page or grant is left",
            BlkError::Unsupported => "the back end does not support the operation",
            BlkError::Io => "the back end reports an error",
            BlkError::Stale => "the result was taken already",
            BlkError::NotConnected => "the disk is not connected",
            BlkError::Broken => "the back end broke the protocol; the disk is not used any more",
            BlkError::TimedOut => "no answer in time",
        })
    }
}

impl core::error::Error for BlkError {}
