//! Page tables of a PV guest: read through our own map, changed by hypercalls.
//!
//! The builder maps frame N at VIRT_BASE + N * 4096, but only up to a little beyond what it placed; the
//! rest is mapped here when the heap needs it. Page tables themselves are mapped read-only: Xen insists.

use core::ops::Range;

use xen_sys::arch_x86::MACH2PHYS_VIRT_START;
use xen_sys::xen::{MmuUpdate, StartInfo};
use xen_sys::{Mfn, PAGE_SHIFT, Pfn};

use crate::hypercall;
use crate::single::Single;

/// Flags of a page table entry: present, accessible to the guest (which runs in ring 3).
pub(crate) const READABLE: u64 = 1 | 1 << 2;
/// And writable, with the accessed and dirty bits set beforehand.
pub(crate) const WRITABLE: u64 = READABLE | 1 << 1 | 1 << 5 | 1 << 6;
const PRESENT: u64 = 1;
const TABLE: u64 = READABLE | 1 << 1 | 1 << 5;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
const PAGE: u64 = 1 << PAGE_SHIFT;
/// Bytes that one level-1 table maps.
const L1_SPAN: u64 = 512 * PAGE;
/// Most entries changed by one hypercall.
const BATCH: usize = 64;

unsafe extern "C" {
    static GUEST_VIRT_BASE: u8;
}

#[derive(Clone, Copy)]
struct Tables {
    /// Address of the top-level table.
    l4: u64,
    /// Address of the list of machine frames.
    p2m: u64,
    pages: u64,
}

static TABLES: Single<Tables> = Single::new();

/// Where frame 0 is mapped.
pub(crate) fn virt_base() -> u64 {
    (&raw const GUEST_VIRT_BASE).addr() as u64
}

/// Remembers where the tables are.
pub(crate) fn init(info: &StartInfo) {
    TABLES.set(Tables {
        l4: info.pt_base,
        p2m: info.mfn_list,
        pages: info.nr_pages,
    });
}

/// Where the top-level table is mapped.
pub(crate) fn top_table() -> u64 {
    TABLES.copied().l4
}

/// The address at which a frame of ours is mapped.
pub(crate) fn address_of(pfn: Pfn) -> u64 {
    virt_base() + (pfn.0 << PAGE_SHIFT)
}

/// The frame under an address of the map of all memory.
pub(crate) fn pfn_of(address: u64) -> Pfn {
    Pfn((address - virt_base()) >> PAGE_SHIFT)
}

/// The machine frame of a frame of ours.
pub(crate) fn mfn_of(pfn: Pfn) -> Mfn {
    let tables = TABLES.copied();
    assert!(pfn.0 < tables.pages, "frame {pfn} of {}", tables.pages);
    // SAFETY: the builder maps a list of `nr_pages` entries there; memory::find_free keeps it.
    Mfn(unsafe { (tables.p2m as *const u64).add(pfn.0 as usize).read() })
}

/// Our frame that is the machine frame `mfn`; none if it is not ours.
pub(crate) fn pfn_of_mfn(mfn: Mfn) -> Option<Pfn> {
    // SAFETY: Xen maps the table read-only over the whole machine; frame numbers come from Xen or the
    // builder. An entry may be anything, so it is checked against our own list.
    let pfn = Pfn(unsafe {
        (MACH2PHYS_VIRT_START as *const u64)
            .add(mfn.0 as usize)
            .read()
    });
    (pfn.0 < TABLES.copied().pages && mfn_of(pfn) == mfn).then_some(pfn)
}

/// How many page tables [`map_next`] takes at most until all memory is mapped.
pub(crate) fn tables_needed(info: &StartInfo) -> u64 {
    // Each level has at most one table in so many of the level below, and one for the part that is left.
    let spans = info.nr_pages.div_ceil(512) + 1;
    spans + spans.div_ceil(512) + 1
}

/// Maps, as far as the builder has not, those of the frames that one level-1 table holds, taking page tables
/// from the front of `tables`. Tells the first frame that has not been looked at.
pub(crate) fn map_next(frames: &Range<u64>, tables: &mut Range<u64>) -> u64 {
    let (start, end) = (address_of(Pfn(frames.start)), address_of(Pfn(frames.end)));
    let end = ((start / L1_SPAN + 1) * L1_SPAN).min(end);
    if start < end {
        map_span(start, end, tables);
    }
    pfn_of(end).0
}

/// Maps the unmapped frames in a range within one level-1 table.
fn map_span(start: u64, end: u64, free: &mut Range<u64>) {
    let mut table = TABLES.copied().l4;
    for level in [4, 3] {
        table = match table_at(entry(table, start, level)) {
            Some(next) => next,
            None => {
                let fresh = empty_table(free);
                install(table, start, level, fresh);
                address_of(fresh)
            }
        };
    }
    match table_at(entry(table, start, 2)) {
        Some(l1) => fill(l1, start, end),
        None => {
            let fresh = take(free);
            let l1 = address_of(fresh);
            for index in 0..512 {
                let address = (start & !(L1_SPAN - 1)) + index * PAGE;
                let mapped = (start..end).contains(&address);
                let value = if mapped { mapping(address) } else { 0 };
                // SAFETY: a fresh page of ours, mapped writable and used by nobody else.
                unsafe { (l1 as *mut u64).add(index as usize).write(value) };
            }
            install(table, start, 2, fresh);
        }
    }
}

/// Fills the empty entries of a level-1 table that is in use.
fn fill(l1: u64, start: u64, end: u64) {
    let mut updates = [MmuUpdate { ptr: 0, val: 0 }; BATCH];
    let mut count = 0;
    let base = machine_address(l1);
    let mut at = start;
    while at < end {
        if entry(l1, at, 1) & PRESENT == 0 {
            updates[count] = MmuUpdate {
                ptr: base + (at >> PAGE_SHIFT & 511) * 8,
                val: mapping(at),
            };
            count += 1;
        }
        at += PAGE;
        if count == BATCH || at == end && count > 0 {
            // SAFETY: the entries were empty: nothing relies on them.
            let done = unsafe { hypercall::mmu_update(&updates[..count]) };
            done.expect("mapping our own memory");
            count = 0;
        }
    }
}

/// The entry that maps our own frame at its place.
fn mapping(address: u64) -> u64 {
    mfn_of(pfn_of(address)).0 << PAGE_SHIFT | WRITABLE
}

/// The entry for `address` in a table of `level`.
fn entry(table: u64, address: u64, level: u32) -> u64 {
    let index = address >> (PAGE_SHIFT + 9 * (level - 1)) & 511;
    // SAFETY: page tables of ours are mapped, read-only, in the map of all memory.
    unsafe { (table as *const u64).add(index as usize).read_volatile() }
}

/// Where the table that an entry points to is mapped.
fn table_at(entry: u64) -> Option<u64> {
    if entry & PRESENT == 0 {
        return None;
    }
    let pfn =
        pfn_of_mfn(Mfn((entry & FRAME) >> PAGE_SHIFT)).expect("page tables are our own frames");
    Some(address_of(pfn))
}

fn machine_address(table: u64) -> u64 {
    mfn_of(pfn_of(table)).0 << PAGE_SHIFT
}

/// Hooks a filled table into the table above it.
fn install(above: u64, address: u64, level: u32, table: Pfn) {
    let frame = mfn_of(table).0 << PAGE_SHIFT;
    let index = address >> (PAGE_SHIFT + 9 * (level - 1)) & 511;
    let update = MmuUpdate {
        ptr: machine_address(above) + index * 8,
        val: frame | TABLE,
    };
    // SAFETY: the fresh table is written no more, and the entry above it was empty.
    unsafe {
        hypercall::update_va_mapping(address_of(table), frame | READABLE)
            .expect("making a page table read-only");
        hypercall::mmu_update(&[update]).expect("adding a page table");
    }
}

fn take(free: &mut Range<u64>) -> Pfn {
    let pfn = Pfn(free.next().expect("memory for page tables"));
    assert!(is_mapped(address_of(pfn)), "the builder mapped too little");
    pfn
}

fn empty_table(free: &mut Range<u64>) -> Pfn {
    let pfn = take(free);
    // SAFETY: a fresh page of ours, mapped writable and used by nobody else.
    unsafe { (address_of(pfn) as *mut u64).write_bytes(0, 512) };
    pfn
}

/// Whether something is mapped at an address.
pub(crate) fn is_mapped(address: u64) -> bool {
    let mut table = TABLES.copied().l4;
    for level in [4, 3, 2] {
        match table_at(entry(table, address, level)) {
            Some(next) => table = next,
            None => return false,
        }
    }
    entry(table, address, 1) & PRESENT != 0
}

/// Gives a page of the image to another frame.
///
/// # Safety
/// Nothing may use what was mapped at `address`.
pub(crate) unsafe fn map(address: u64, entry: u64) {
    // SAFETY: by the caller's contract.
    unsafe { hypercall::update_va_mapping(address, entry) }.expect("mapping a page");
}

/// Takes a page of the image away: touching it faults from now on. The page must be used by nobody.
pub(crate) fn unmap(address: u64) {
    // SAFETY: callers name the guard page, which nothing uses.
    unsafe { hypercall::update_va_mapping(address, 0) }.expect("unmapping a page");
}
