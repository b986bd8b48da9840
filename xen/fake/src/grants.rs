//! A domain's own side of grants: pages and the table, for front ends.

use std::sync::Arc;

use xen_hal::{AccessMode, Error, GrantTable, Result};
use xen_sys::{DomId, GrantRef};

use crate::Call;
use crate::memory::Slot;
use crate::world::{Shared, State};

/// Entries that Xen keeps for the toolstack (`GNTTAB_NR_RESERVED_ENTRIES`, grant_table.h).
const RESERVED: usize = 8;
/// Version 1 entries in a frame of the table.
const PER_FRAME: usize = 512;
/// Xen's default size of a table: 64 frames.
const DEFAULT_ENTRIES: usize = 64 * PER_FRAME;

/// A domain's grant table. Every clone is the same table.
#[derive(Clone)]
pub struct Grants {
    pub(crate) world: Arc<Shared>,
    pub(crate) dom: DomId,
}

/// A page of a fake domain. Dropping it while it is granted is a bug that the world remembers.
pub struct Page {
    pub(crate) slot: Arc<Slot>,
    /// Whose page count it is on; `None` for the pages that the toolstack made.
    owner: Option<(Arc<Shared>, DomId)>,
}

pub(crate) struct TableState {
    entries: Vec<Option<GrantState>>,
    free: Vec<u32>,
    pub(crate) max_entries: usize,
    pub(crate) quarantine: Vec<(GrantRef, Arc<Slot>)>,
}

pub(crate) struct GrantState {
    pub(crate) peer: DomId,
    pub(crate) slot: Arc<Slot>,
    pub(crate) mode: AccessMode,
    pub(crate) mapped: usize,
}

impl TableState {
    pub(crate) fn new() -> Self {
        TableState {
            entries: (0..RESERVED).map(|_| None).collect(),
            free: Vec::new(),
            max_entries: DEFAULT_ENTRIES,
            quarantine: Vec::new(),
        }
    }

    /// Fills a reserved entry, as a toolstack does.
    pub(crate) fn seed(&mut self, gref: GrantRef, peer: DomId, slot: Arc<Slot>) {
        self.entries[gref.0 as usize] = Some(GrantState {
            peer,
            slot,
            mode: AccessMode::ReadWrite,
            mapped: 0,
        });
    }

    /// Whether the toolstack may fill this entry.
    pub(crate) fn is_reserved(&self, gref: GrantRef) -> bool {
        (gref.0 as usize) < RESERVED
    }

    pub(crate) fn get(&self, gref: GrantRef) -> Option<&GrantState> {
        self.entries.get(gref.0 as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, gref: GrantRef) -> Option<&mut GrantState> {
        self.entries.get_mut(gref.0 as usize)?.as_mut()
    }

    /// How many entries the frames hold that the table has now: references beyond are `GNTST_bad_gntref`.
    pub(crate) fn size(&self) -> usize {
        self.entries.len().next_multiple_of(PER_FRAME)
    }

    /// The grants that the domain made itself.
    pub(crate) fn active(&self) -> impl Iterator<Item = (GrantRef, &GrantState)> {
        let entries = self.entries.iter().enumerate().skip(RESERVED);
        entries.filter_map(|(at, entry)| Some((GrantRef(at as u32), entry.as_ref()?)))
    }

    fn insert(&mut self, grant: GrantState) -> Option<GrantRef> {
        let gref = match self.free.pop() {
            Some(gref) => gref,
            None if self.entries.len() < self.max_entries => {
                self.entries.push(None);
                (self.entries.len() - 1) as u32
            }
            None => return None,
        };
        self.entries[gref as usize] = Some(grant);
        Some(GrantRef(gref))
    }

    /// Ends a grant, unless it is mapped.
    fn end(&mut self, dom: DomId, gref: GrantRef) -> Result<()> {
        let entry = self.entries.get_mut(gref.0 as usize).map(Option::take);
        match entry.flatten() {
            None => panic!("domain {dom} ends grant {gref}, which is not active"),
            Some(grant) if grant.mapped > 0 => {
                self.entries[gref.0 as usize] = Some(grant);
                Err(Error::GrantInUse { gref })
            }
            Some(_) => {
                self.free.push(gref.0);
                Ok(())
            }
        }
    }
}

impl State {
    /// Tries again to end the grants of quarantined pages.
    fn sweep_quarantine(&mut self, dom: DomId) {
        let Some(domain) = self.domains.get_mut(&dom.0) else {
            return;
        };
        for (gref, slot) in std::mem::take(&mut domain.table.quarantine) {
            match domain.table.end(dom, gref) {
                Ok(()) => domain.pages -= 1,
                Err(_) => domain.table.quarantine.push((gref, slot)),
            }
        }
    }
}

impl GrantTable for Grants {
    type Page = Page;

    fn alloc_page(&self) -> Result<Page> {
        let mut state = self.world.lock();
        state.sweep_quarantine(self.dom);
        if self.world.faults.hit(Call::AllocPage) {
            return Err(Error::NoGrants);
        }
        let domain = state.domains.get_mut(&self.dom.0).ok_or(Error::NoGrants)?;
        if domain.pages >= domain.max_pages {
            return Err(Error::NoGrants);
        }
        let slot = self.world.arena.alloc().ok_or(Error::NoGrants)?;
        domain.pages += 1;
        Ok(Page {
            slot,
            owner: Some((self.world.clone(), self.dom)),
        })
    }

    fn alloc_run(&self, count: usize) -> Result<Vec<Page>> {
        let mut state = self.world.lock();
        state.sweep_quarantine(self.dom);
        if self.world.faults.hit(Call::AllocPage) {
            return Err(Error::NoGrants);
        }
        let domain = state.domains.get_mut(&self.dom.0).ok_or(Error::NoGrants)?;
        if domain.pages + count > domain.max_pages {
            return Err(Error::NoGrants);
        }
        let slots = self.world.arena.alloc_run(count).ok_or(Error::NoGrants)?;
        domain.pages += count;
        let page = |slot| Page {
            slot,
            owner: Some((self.world.clone(), self.dom)),
        };
        Ok(slots.into_iter().map(page).collect())
    }

    fn grant(&self, peer: DomId, page: &Page, mode: AccessMode) -> Result<GrantRef> {
        if let Some((_, owner)) = &page.owner {
            assert_eq!(*owner, self.dom, "a page of another domain is granted");
        }
        let mut state = self.world.lock();
        state.sweep_quarantine(self.dom);
        if self.world.faults.hit(Call::Grant) {
            return Err(Error::NoGrants);
        }
        let domain = state.domains.get_mut(&self.dom.0).ok_or(Error::NoGrants)?;
        let grant = GrantState {
            peer: resolve(peer, self.dom),
            slot: page.slot.clone(),
            mode,
            mapped: 0,
        };
        domain.table.insert(grant).ok_or(Error::NoGrants)
    }

    fn end(&self, gref: GrantRef) -> Result<()> {
        let mut state = self.world.lock();
        if self.world.faults.hit(Call::EndGrant) {
            return Err(Error::GrantInUse { gref });
        }
        match state.domains.get_mut(&self.dom.0) {
            Some(domain) => domain.table.end(self.dom, gref),
            // The domain is gone, and its grants with it.
            None => Ok(()),
        }
    }

    fn quarantine(&self, gref: GrantRef, page: Page) {
        let mut state = self.world.lock();
        if let Some(domain) = state.domains.get_mut(&self.dom.0) {
            let slot = page.slot.clone();
            domain.table.quarantine.push((gref, slot));
            // Still on the domain's count, no longer in the program's hands.
            domain.pages += 1;
        }
        drop(state);
        page.forget_grants();
    }
}

impl Page {
    /// A page that the toolstack made, whose end nobody counts.
    pub(crate) fn borrowed(slot: Arc<Slot>) -> Page {
        Page { slot, owner: None }
    }

    /// Drops the page without looking for grants of it.
    fn forget_grants(mut self) {
        if let Some((world, dom)) = self.owner.take()
            && let Some(domain) = world.lock().domains.get_mut(&dom.0)
        {
            domain.pages -= 1;
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let Some((world, dom)) = self.owner.take() else {
            return;
        };
        let mut state = world.lock();
        let Some(domain) = state.domains.get_mut(&dom.0) else {
            return;
        };
        domain.pages -= 1;
        let granted = domain
            .table
            .active()
            .find(|(_, grant)| Arc::ptr_eq(&grant.slot, &self.slot));
        if let Some((gref, grant)) = granted {
            let what = format!(
                "domain {dom} freed a page while {gref} grants it to domain {}",
                grant.peer
            );
            state.violations.push(what);
        }
    }
}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Page")
    }
}

/// `DOMID_SELF` means the caller.
pub(crate) fn resolve(dom: DomId, caller: DomId) -> DomId {
    if dom == DomId::SELF { caller } else { dom }
}
