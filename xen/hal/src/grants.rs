//! Our own memory, granted to a peer: what a front end uses.

use alloc::vec::Vec;
use core::fmt;
use core::ptr::NonNull;

use xen_ring::SharedMemory;
use xen_sys::{DomId, GrantRef};

use crate::Result;

/// What the peer may do with a granted frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessMode {
    /// Only read (`GTF_readonly`).
    ReadOnly,
    /// Read and write.
    ReadWrite,
}

/// A domain's grant table and the pages that may be granted by it. Cheap to clone: every clone is the
/// same table.
pub trait GrantTable: Clone {
    /// One page of this domain, used for nothing else, so that granting it leaks nothing (XSA-403).
    type Page: SharedMemory;

    /// Takes a zeroed page.
    fn alloc_page(&self) -> Result<Self::Page>;

    /// Takes so many zeroed pages that follow one another where this program sees them.
    fn alloc_run(&self, count: usize) -> Result<Vec<Self::Page>>;

    /// Grants the page to `peer`.
    fn grant(&self, peer: DomId, page: &Self::Page, mode: AccessMode) -> Result<GrantRef>;

    /// Revokes a grant; [`Error::GrantInUse`](crate::Error::GrantInUse) while the peer has it mapped.
    fn end(&self, gref: GrantRef) -> Result<()>;

    /// Takes a page whose grant could not be ended: it is not used again until a later attempt to
    /// revoke the grant succeeds (XSA-396).
    fn quarantine(&self, gref: GrantRef, page: Self::Page);
}

/// A page of ours while a peer may use it. The page comes back only once the grant has ended.
pub struct Lease<G: GrantTable> {
    table: G,
    gref: GrantRef,
    page: Option<G::Page>,
}

impl<G: GrantTable> Lease<G> {
    /// Grants `page` to `peer`; the page comes back with the error if that fails.
    pub fn new(
        table: &G,
        peer: DomId,
        page: G::Page,
        mode: AccessMode,
    ) -> Result<Self, (crate::Error, G::Page)> {
        match table.grant(peer, &page, mode) {
            Ok(gref) => Ok(Lease {
                table: table.clone(),
                gref,
                page: Some(page),
            }),
            Err(error) => Err((error, page)),
        }
    }

    /// Takes a fresh page and grants it read-write.
    pub fn fresh(table: &G, peer: DomId) -> Result<Self> {
        let page = table.alloc_page()?;
        Self::new(table, peer, page, AccessMode::ReadWrite).map_err(|(error, _)| error)
    }

    /// What the peer is told.
    pub fn gref(&self) -> GrantRef {
        self.gref
    }

    /// The page's content.
    pub fn page(&self) -> &G::Page {
        self.page
            .as_ref()
            .expect("a lease has its page until it ends")
    }

    /// Ends the grant and gives the page back; the lease stays if the peer still uses it.
    pub fn end(mut self) -> Result<G::Page, Self> {
        if self.table.end(self.gref).is_err() {
            return Err(self);
        }
        Ok(self
            .page
            .take()
            .expect("a lease has its page until it ends"))
    }
}

impl<G: GrantTable> Drop for Lease<G> {
    fn drop(&mut self) {
        if let Some(page) = self.page.take()
            && self.table.end(self.gref).is_err()
        {
            self.table.quarantine(self.gref, page);
        }
    }
}

impl<G: GrantTable> fmt::Debug for Lease<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({})", self.gref)
    }
}

#[allow(unsafe_code)]
// SAFETY: the page keeps the contract and stays in the lease until the lease is consumed.
unsafe impl<G: GrantTable> SharedMemory for Lease<G> {
    fn base(&self) -> NonNull<u8> {
        self.page().base()
    }

    fn len(&self) -> usize {
        self.page().len()
    }
}

/// Pages that follow one another, each with a grant of its own: the memory of a ring of several pages.
pub struct LeaseRun<G: GrantTable> {
    leases: Vec<Lease<G>>,
    len: usize,
}

impl<G: GrantTable> LeaseRun<G> {
    /// Takes so many fresh pages, at least one, and grants them read-write.
    pub fn fresh(table: &G, peer: DomId, count: usize) -> Result<Self> {
        let mut leases: Vec<Lease<G>> = Vec::with_capacity(count);
        let mut len = 0;
        for page in table.alloc_run(count)? {
            if let Some(first) = leases.first() {
                let next = first.base().addr().get() + len;
                assert_eq!(
                    page.base().addr().get(),
                    next,
                    "the pages of a run follow one another"
                );
            }
            len += page.len();
            let lease = Lease::new(table, peer, page, AccessMode::ReadWrite);
            leases.push(lease.map_err(|(error, _)| error)?);
        }
        assert!(!leases.is_empty(), "a run has a page at least");
        Ok(LeaseRun { leases, len })
    }

    /// What the peer is told, page by page.
    pub fn grefs(&self) -> impl Iterator<Item = GrantRef> + '_ {
        self.leases.iter().map(Lease::gref)
    }
}

impl<G: GrantTable> fmt::Debug for LeaseRun<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.leases).finish()
    }
}

#[allow(unsafe_code)]
// SAFETY: each page keeps the contract, they follow one another as `fresh` has seen, and all stay until the
// run is dropped.
unsafe impl<G: GrantTable> SharedMemory for LeaseRun<G> {
    fn base(&self) -> NonNull<u8> {
        self.leases[0].base()
    }

    fn len(&self) -> usize {
        self.len
    }
}
