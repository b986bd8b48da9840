//! The pages of one request slot: granted to the back end when first needed, kept for the next request.
//!
//! They hold nothing but this disk's data, so that a back end that keeps them mapped sees nothing it was not
//! given. That is also what `feature-persistent` asks for.

use alloc::vec::Vec;

use xen_hal::{GrantTable, Lease, Result};
use xen_ring::SharedMemoryExt;
use xen_sys::io::blkif::{MAX_SEGMENTS_PER_REQUEST, SECTOR_SIZE, SECTORS_PER_PAGE, Segment};
use xen_sys::{DomId, PAGE_SIZE};

/// Bytes in one request at most, if the back end does not offer more.
pub const MAX_BYTES: usize = MAX_SEGMENTS_PER_REQUEST * PAGE_SIZE;

/// Most segments of a request with a page of segments; a back end may offer more.
pub const MAX_INDIRECT: u16 = 32;

/// The granted pages of a request: eleven at most, or more and one that lists them.
#[derive(Debug)]
pub(super) struct Buffers<G: GrantTable> {
    pages: Vec<Lease<G>>,
    list: Option<Lease<G>>,
}

impl<G: GrantTable> Buffers<G> {
    pub(super) fn new() -> Self {
        Buffers {
            pages: Vec::new(),
            list: None,
        }
    }

    /// Makes sure that there are pages for `len` bytes, and one that lists them if they are too many for a slot.
    pub(super) fn reserve(&mut self, grants: &G, peer: DomId, len: usize) -> Result<()> {
        while self.pages.len() * PAGE_SIZE < len {
            self.pages.push(Lease::fresh(grants, peer)?);
        }
        if len > MAX_BYTES && self.list.is_none() {
            self.list = Some(Lease::fresh(grants, peer)?);
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
        let mut count = 0;
        for (to, segment) in segments.iter_mut().zip(self.each_segment(len)) {
            *to = segment;
            count += 1;
        }
        (segments, count)
    }

    /// Lists the segments that cover the first `len` bytes in the page for that; the page's grant, and how
    /// many they are.
    pub(super) fn list(&self, len: usize) -> Option<(xen_sys::GrantRef, u16)> {
        let list = self.list.as_ref()?;
        let mut count = 0;
        for segment in self.each_segment(len) {
            list.write(usize::from(count) * size_of::<Segment>(), segment);
            count += 1;
        }
        Some((list.gref(), count))
    }

    fn each_segment(&self, len: usize) -> impl Iterator<Item = Segment> + '_ {
        let sectors = len / SECTOR_SIZE;
        let firsts = (0..sectors).step_by(SECTORS_PER_PAGE.into());
        firsts.zip(&self.pages).map(move |(first, page)| Segment {
            gref: page.gref(),
            last_sect: (sectors - first).min(SECTORS_PER_PAGE.into()) as u8 - 1,
            ..<Segment as xen_sys::Plain>::ZERO
        })
    }

    /// The grants, for tests that send requests of their own making.
    pub(super) fn grefs(&self) -> impl Iterator<Item = xen_sys::GrantRef> + '_ {
        self.pages.iter().map(Lease::gref)
    }
}
