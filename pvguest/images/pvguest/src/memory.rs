//! Which frames are free, and how much memory there is.

use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};

use xen_ring::SharedMemory;
use xen_sys::xen::{StartFlags, StartInfo};
use xen_sys::{Mfn, PAGE_SIZE, Pfn, Port};

use crate::heap;
use crate::paging::{self, pfn_of};
use crate::shared_info::Page;
use crate::single::Single;

unsafe extern "C" {
    static image_start: u8;
    static image_end: u8;
}

static TOTAL_PAGES: Single<u64> = Single::new();

/// How much memory the guest has and uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryInfo {
    /// All of it, as the builder told.
    pub total_kib: u64,
    /// What the heap can hand out in all.
    pub heap_kib: u64,
    /// What the heap has handed out.
    pub heap_used_kib: u64,
}

pub(crate) fn init(info: &StartInfo) {
    TOTAL_PAGES.set(info.nr_pages);
}

/// The first `count` of some frames, and the others.
pub(crate) fn split(free: Range<u64>, count: u64) -> (Range<u64>, Range<u64>) {
    let at = (free.start + count).min(free.end);
    (free.start..at, at..free.end)
}

/// The present figures.
pub fn info() -> MemoryInfo {
    let (total, used) = heap::usage();
    MemoryInfo {
        total_kib: TOTAL_PAGES.copied() * (PAGE_SIZE as u64 / 1024),
        heap_kib: total as u64 / 1024,
        heap_used_kib: used as u64 / 1024,
    }
}

/// The largest run of frames in which the builder placed nothing. Where it placed what differs between
/// builders, so every piece is looked at.
pub(crate) fn find_free(info: &StartInfo) -> Range<u64> {
    let bytes = |start: u64, len: u64| pfn_of(start).0..pfn_of(start + len + 4095).0;
    let frame = |mfn: Mfn, port: Port| match paging_pfn(mfn) {
        Some(Pfn(pfn)) if port.0 != 0 => pfn..pfn + 1,
        _ => 0..0,
    };
    let dom0 = StartFlags::from_bits_retain(info.flags).contains(StartFlags::INITDOMAIN);
    let console = if dom0 {
        0..0
    } else {
        frame(info.console_mfn, info.console_evtchn)
    };
    let image = (&raw const image_start).addr() as u64;
    let module = match (info.mod_len, info.flags & StartFlags::MOD_START_PFN.bits()) {
        (0, _) => 0..0,
        (len, 0) => bytes(info.mod_start, len),
        (len, _) => info.mod_start..info.mod_start + len.div_ceil(4096),
    };
    let mut used = [
        bytes(image, (&raw const image_end).addr() as u64 - image),
        bytes(info.mfn_list, info.nr_pages * 8),
        bytes((&raw const *info).addr() as u64, 4096),
        bytes(info.pt_base, info.nr_pt_frames * 4096),
        frame(info.store_mfn, info.store_evtchn),
        console,
        module,
        info.nr_pages..info.nr_pages,
    ];
    used.sort_unstable_by_key(|range| range.start);
    let (mut best, mut at) = (0..0, 0);
    for range in used {
        if range.start.saturating_sub(at) > best.end - best.start {
            best = at..range.start;
        }
        at = at.max(range.end);
    }
    best
}

fn paging_pfn(mfn: Mfn) -> Option<Pfn> {
    if mfn.0 == 0 {
        return None;
    }
    paging::pfn_of_mfn(mfn)
}

/// Where the top-level page table is mapped: for tests that show that it cannot be written.
pub fn page_table_address() -> u64 {
    paging::top_table()
}

#[unsafe(link_section = ".bss.pages")]
static WINDOW_PAGE: Page = Page::new();
static WINDOW_TAKEN: AtomicBool = AtomicBool::new(false);

/// One page of address space at which a test may map a grant. There is one at a time.
#[derive(Debug)]
pub struct Window(());

impl Window {
    /// The window, unless it is taken.
    pub fn take() -> Option<Window> {
        match WINDOW_TAKEN.swap(true, Ordering::Relaxed) {
            true => None,
            false => Some(Window(())),
        }
    }

    /// Its address.
    pub fn address(&self) -> u64 {
        WINDOW_PAGE.address()
    }

    /// What is mapped there; nothing is before the first and after the last mapping.
    pub fn memory(&self) -> WindowMemory<'_> {
        WindowMemory(self)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        WINDOW_TAKEN.store(false, Ordering::Relaxed);
    }
}

/// What is mapped at a [`Window`].
#[derive(Debug)]
pub struct WindowMemory<'a>(&'a Window);

// SAFETY: a page-aligned page of the image's place, to which no reference is made; access faults while
// nothing is mapped there, which ends the guest with a report.
unsafe impl SharedMemory for WindowMemory<'_> {
    fn base(&self) -> NonNull<u8> {
        NonNull::new(self.0.address() as *mut u8).expect("the image is not at 0")
    }

    fn len(&self) -> usize {
        PAGE_SIZE
    }
}
