//! Another domain's memory, by its grants: what a backend uses.

use xen_ring::SharedMemory;
use xen_sys::{DomId, GrantRef};

use crate::{AccessMode, Result};

/// Access to frames that other domains have granted to us.
pub trait ForeignGrants {
    /// Mapped frames; dropping it unmaps exactly those.
    type Mapping: SharedMemory;

    /// Maps `grefs` of `dom` one after another into contiguous memory: all of them or none, and the error
    /// names the first that failed (XSA-361).
    fn map(&self, dom: DomId, grefs: &[GrantRef], mode: AccessMode) -> Result<Self::Mapping>;

    /// Copies each piece, in order, writing its status (XSA-362). `Err` only if nothing could be tried.
    fn copy(&self, dom: DomId, pieces: &mut [GrantCopy<'_>]) -> Result<()>;
}

/// One piece of a grant copy. It may not cross the end of the granted page.
#[derive(Debug)]
pub struct GrantCopy<'a> {
    /// The other domain's grant.
    pub gref: GrantRef,
    /// Offset in the granted page, in bytes; offset + length is at most 4096.
    pub offset: u16,
    /// Our side, which also gives direction and length.
    pub local: CopyBuffer<'a>,
    /// `GNTST_*` (grant_table.h) after the copy: 0 is success.
    pub status: i16,
}

/// Our side of a grant copy.
#[derive(Debug)]
pub enum CopyBuffer<'a> {
    /// Filled from the grant.
    FromGrant(&'a mut [u8]),
    /// Written to the grant.
    ToGrant(&'a [u8]),
}

impl CopyBuffer<'_> {
    /// The length in bytes.
    pub fn len(&self) -> usize {
        match self {
            CopyBuffer::FromGrant(to) => to.len(),
            CopyBuffer::ToGrant(from) => from.len(),
        }
    }

    /// Whether nothing is to be copied.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
