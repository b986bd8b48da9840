//! The guest's grant table, version 1, and the pages that are granted by it.

use alloc::alloc::{Layout, alloc};
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, Ordering};

use xen_hal::{AccessMode, Error, GrantTable, Result};
use xen_ring::{SharedMemory, SharedMemoryExt};
use xen_sys::grant_table::{EntryV1, GNTTAB_NR_RESERVED_ENTRIES, GrantFlags, V1_ENTRIES_PER_PAGE};
use xen_sys::{DomId, GrantRef, PAGE_SHIFT, PAGE_SIZE};

use crate::shared_info::Page;
use crate::single::Single;
use crate::{hypercall, paging};

/// Frames of the table at most: 2048 grants, 16 KiB of the image's place.
const MAX_FRAMES: usize = 4;

#[unsafe(link_section = ".bss.pages")]
static TABLE: [Page; MAX_FRAMES] = [const { Page::new() }; MAX_FRAMES];
static STATE: Single<State> = Single::new();

struct State {
    /// Entries that can be used.
    free: Vec<GrantRef>,
    /// Pages that came back.
    pages: Vec<NonNull<u8>>,
    /// Grants that would not end, with their pages.
    quarantine: Vec<(GrantRef, NonNull<u8>)>,
}

/// The guest's grant table. Every value is the same table.
#[derive(Clone, Copy, Debug)]
pub struct Grants(());

/// A page that may be granted; it goes back to the pool when dropped.
#[derive(Debug)]
pub struct GrantPage(NonNull<u8>);

// SAFETY: a whole page of the heap, owned by this value until it is dropped; no reference to it is made.
unsafe impl SharedMemory for GrantPage {
    fn base(&self) -> NonNull<u8> {
        self.0
    }

    fn len(&self) -> usize {
        PAGE_SIZE
    }
}

impl Drop for GrantPage {
    fn drop(&mut self) {
        STATE.get().pages.push(self.0);
    }
}

impl Grants {
    /// The table, set up at first use.
    pub fn get() -> Result<Grants> {
        if STATE.try_get().is_none() {
            set_up()?;
        }
        Ok(Grants(()))
    }

    /// How many entries are free, and how many pages are in quarantine.
    pub fn counts(&self) -> (usize, usize) {
        let state = STATE.get();
        (state.free.len(), state.quarantine.len())
    }

    fn entry(gref: GrantRef) -> *mut EntryV1 {
        assert!((gref.0 as usize) < MAX_FRAMES * V1_ENTRIES_PER_PAGE);
        let table = TABLE[0].address() as *mut EntryV1;
        // SAFETY: within the table's pages, by the assertion.
        unsafe { table.add(gref.0 as usize) }
    }

    fn flags(gref: GrantRef) -> &'static AtomicU16 {
        let entry = Self::entry(gref);
        // SAFETY: mapped for ever, aligned; Xen changes it concurrently, hence an atomic.
        unsafe { AtomicU16::from_ptr(&raw mut (*entry).flags) }
    }

    /// Whether the peer has it mapped, for reading or writing.
    pub fn is_in_use(&self, gref: GrantRef) -> bool {
        let used = (GrantFlags::READING | GrantFlags::WRITING).bits();
        Self::flags(gref).load(Ordering::SeqCst) & used != 0
    }
}

fn set_up() -> Result<()> {
    let failed = |op, errno| Error::Hypercall {
        op,
        dom: DomId::SELF,
        errno,
    };
    let (_, max) =
        hypercall::grant_table_size().map_err(|errno| failed("GNTTABOP_query_size", errno))?;
    let count = (max as usize).min(MAX_FRAMES);
    let mut frames = [0; MAX_FRAMES];
    let status = hypercall::grant_table_setup(&mut frames[..count])
        .map_err(|errno| failed("GNTTABOP_setup_table", errno))?;
    if !status.is_okay() || count == 0 {
        return Err(Error::NoGrants);
    }
    for (page, mfn) in TABLE.iter().zip(&frames[..count]) {
        // SAFETY: the page of the image is only a place for the table.
        unsafe { paging::map(page.address(), mfn << PAGE_SHIFT | paging::WRITABLE) };
    }
    let entries = (count * V1_ENTRIES_PER_PAGE) as u32;
    STATE.set(State {
        free: (GNTTAB_NR_RESERVED_ENTRIES..entries)
            .rev()
            .map(GrantRef)
            .collect(),
        pages: Vec::new(),
        quarantine: Vec::new(),
    });
    Ok(())
}

/// Takes pages from the heap. They never go back there.
fn fresh_pages(count: usize) -> Result<NonNull<u8>> {
    let layout = Layout::from_size_align(count * PAGE_SIZE, PAGE_SIZE);
    let layout = layout.map_err(|_| Error::NoGrants)?;
    if layout.size() == 0 {
        return Err(Error::NoGrants);
    }
    // SAFETY: the size is not 0.
    NonNull::new(unsafe { alloc(layout) }).ok_or(Error::NoGrants)
}

impl State {
    /// Takes pages that follow one another out of those that came back.
    fn take_run(&mut self, count: usize) -> Option<NonNull<u8>> {
        self.pages.sort_unstable();
        let follows = |pages: &[NonNull<u8>]| {
            pages
                .windows(2)
                .all(|two| two[0].addr().get() + PAGE_SIZE == two[1].addr().get())
        };
        let at = self.pages.windows(count.max(1)).position(follows)?;
        self.pages.drain(at..at + count).next()
    }

    /// Tries again to end the grants that would not end.
    fn release_quarantine(&mut self) {
        let mut at = 0;
        while at < self.quarantine.len() {
            let (gref, page) = self.quarantine[at];
            if revoke(gref) {
                self.quarantine.swap_remove(at);
                self.free.push(gref);
                self.pages.push(page);
            } else {
                at += 1;
            }
        }
    }
}

/// Clears an entry unless the peer uses it.
fn revoke(gref: GrantRef) -> bool {
    let flags = Grants::flags(gref);
    let used = (GrantFlags::READING | GrantFlags::WRITING).bits();
    let mut old = flags.load(Ordering::SeqCst);
    loop {
        if old & used != 0 {
            return false;
        }
        match flags.compare_exchange(old, 0, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => return true,
            Err(now) => old = now,
        }
    }
}

impl GrantTable for Grants {
    type Page = GrantPage;

    fn alloc_page(&self) -> Result<GrantPage> {
        let mut state = STATE.get();
        state.release_quarantine();
        let page = match state.pages.pop() {
            Some(page) => page,
            None => fresh_pages(1)?,
        };
        drop(state);
        let page = GrantPage(page);
        page.zero();
        Ok(page)
    }

    fn alloc_run(&self, count: usize) -> Result<Vec<GrantPage>> {
        let mut state = STATE.get();
        state.release_quarantine();
        let first = match state.take_run(count) {
            Some(page) => page,
            None => fresh_pages(count)?,
        };
        drop(state);
        // SAFETY: within the run of `count` pages.
        let page = |n| GrantPage(unsafe { first.add(n * PAGE_SIZE) });
        let pages: Vec<GrantPage> = (0..count).map(page).collect();
        pages.iter().for_each(GrantPage::zero);
        Ok(pages)
    }

    fn grant(&self, peer: DomId, page: &GrantPage, mode: AccessMode) -> Result<GrantRef> {
        let mut state = STATE.get();
        state.release_quarantine();
        let gref = state.free.pop().ok_or(Error::NoGrants)?;
        let mfn = paging::mfn_of(paging::pfn_of(page.0.addr().get() as u64));
        let entry = Self::entry(gref);
        let mut flags = GrantFlags::PERMIT_ACCESS;
        if mode == AccessMode::ReadOnly {
            flags |= GrantFlags::READONLY;
        }
        // SAFETY: a free entry (flags 0) is looked at by nobody else.
        unsafe {
            (&raw mut (*entry).domid).write_volatile(peer);
            (&raw mut (*entry).frame).write_volatile(mfn.0 as u32);
        }
        // Release: Xen sees domain and frame before the permission.
        Self::flags(gref).store(flags.bits(), Ordering::Release);
        Ok(gref)
    }

    fn end(&self, gref: GrantRef) -> Result<()> {
        if !revoke(gref) {
            return Err(Error::GrantInUse { gref });
        }
        STATE.get().free.push(gref);
        Ok(())
    }

    fn quarantine(&self, gref: GrantRef, page: GrantPage) {
        let at = page.0;
        // The page stays with the grant, not with the pool.
        core::mem::forget(page);
        STATE.get().quarantine.push((gref, at));
    }
}
