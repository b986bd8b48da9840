//! The pages of one request slot: granted to the back end when first needed, kept for the next request.
//!
//! They hold nothing but this disk's data, so that a back end that keeps them mapped sees nothing it was not
//! given. That is also what `feature-persistent` asks for.

use alloc::vec::Vec;

use xen_hal::{GrantTable, Lease, Result};
use xen_ring::SharedMemoryExt;
use xen_sys::io::blkif::{MAX_SEGMENTS_PER_REQUEST, SECTOR_SIZE, SECTORS_PER_PAGE, Segment};
use xen_sys::{DomId, PAGE_SIZE};

/// Bytes in one request at most.
pub const MAX_BYTES: usize = MAX_SEGMENTS_PER_REQUEST * PAGE_SIZE;

/// Up to eleven granted pages.
#[derive(Debug)]
pub(super) struct Buffers<G: GrantTable> {
    pages: Vec<Lease<G>>,
}

impl<G: GrantTable> Buffers<G> {
    pub(super) fn new() -> Self {
        Buffers { pages: Vec::new() }
    }

    /// Makes sure that there are pages for `len` bytes, at most [`MAX_BYTES`].
    pub(super) fn reserve(&mut self, grants: &G, peer: DomId, len: usize) -> Result<()> {
        while self.pages.len() * PAGE_SIZE < len {
            self.pages.push(Lease::fresh(grants, peer)?);
        }
        Ok(())
    }

    /// Copies the data of a write into the pages.
    pub(super) fn fill(&self, data: &[u8]) {
        for (page, piece) in self.pages.iter().zip(data.chunks(PAGE_SIZE)) {
            page.write_bytes(0, piece);
        }
    }

    /// Copies the data of a read out of the pages.
    pub(super) fn copy_to(&self, data: &mut [u8]) {
        for (page, piece) in self.pages.iter().zip(data.chunks_mut(PAGE_SIZE)) {
            page.read_bytes(0, piece);
        }
    }

    /// The segments that cover the first `len` bytes, a multiple of 512, and how many they are.
    pub(super) fn segments(&self, len: usize) -> ([Segment; MAX_SEGMENTS_PER_REQUEST], u8) {
        let mut segments = [<Segment as xen_sys::Plain>::ZERO; MAX_SEGMENTS_PER_REQUEST];
        let mut sectors = len / SECTOR_SIZE;
        let mut count = 0;
        for (segment, page) in segments.iter_mut().zip(&self.pages) {
            if sectors == 0 {
                break;
            }
            let here = sectors.min(SECTORS_PER_PAGE.into());
            segment.gref = page.gref();
            segment.last_sect = here as u8 - 1;
            sectors -= here;
            count += 1;
        }
        (segments, count)
    }

    /// The grants, for tests that send requests of their own making.
    pub(super) fn grefs(&self) -> impl Iterator<Item = xen_sys::GrantRef> + '_ {
        self.pages.iter().map(Lease::gref)
    }
}
