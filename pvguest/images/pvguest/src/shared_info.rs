//! The page that we share with Xen: event bits, clock, fault address. Mapped over a page of our image.

use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use xen_sys::arch_x86::ArchVcpuInfo;
use xen_sys::xen::{SharedInfo, StartInfo, VcpuInfo, VcpuTimeInfo};

use crate::paging;

/// Words of 64 ports in the 2-level ABI.
pub(crate) const WORDS: usize = 64;

/// A page of the image whose place is given to another frame.
#[repr(C, align(4096))]
pub(crate) struct Page(pub(crate) UnsafeCell<[u8; 4096]>);

// SAFETY: it is only a place in the address space; access is through atomics or raw pointers.
unsafe impl Sync for Page {}

impl Page {
    pub(crate) const fn new() -> Self {
        Page(UnsafeCell::new([0; 4096]))
    }

    pub(crate) fn address(&self) -> u64 {
        self.0.get().addr() as u64
    }
}

#[unsafe(link_section = ".bss.pages")]
static PAGE: Page = Page::new();

/// Maps the page and makes sure that upcalls are masked.
pub(crate) fn init(info: &StartInfo) {
    let entry = info.shared_info | paging::WRITABLE;
    // SAFETY: the page of the image under PAGE is used for nothing.
    unsafe { paging::map(PAGE.address(), entry) };
    byte(offset_of!(VcpuInfo, evtchn_upcall_mask)).store(1, Ordering::SeqCst);
}

fn byte(offset: usize) -> &'static AtomicU8 {
    // SAFETY: within the page; shared_info stays mapped for ever; Xen writes concurrently, hence atomics.
    unsafe { AtomicU8::from_ptr(PAGE.0.get().cast::<u8>().add(offset)) }
}

fn word32(offset: usize) -> &'static AtomicU32 {
    debug_assert!(offset.is_multiple_of(4));
    // SAFETY: as in `byte`; aligned.
    unsafe { AtomicU32::from_ptr(PAGE.0.get().cast::<u8>().add(offset).cast()) }
}

fn word64(offset: usize) -> &'static AtomicU64 {
    debug_assert!(offset.is_multiple_of(8));
    // SAFETY: as in `byte`; aligned.
    unsafe { AtomicU64::from_ptr(PAGE.0.get().cast::<u8>().add(offset).cast()) }
}

/// The pending bits of ports `64 * index ..`.
pub(crate) fn pending(index: usize) -> &'static AtomicU64 {
    assert!(index < WORDS);
    word64(offset_of!(SharedInfo, evtchn_pending) + index * 8)
}

/// The mask bits of ports `64 * index ..`.
pub(crate) fn mask(index: usize) -> &'static AtomicU64 {
    assert!(index < WORDS);
    word64(offset_of!(SharedInfo, evtchn_mask) + index * 8)
}

/// The address of the last page fault.
pub(crate) fn fault_address() -> u64 {
    word64(offset_of!(VcpuInfo, arch) + offset_of!(ArchVcpuInfo, cr2)).load(Ordering::Relaxed)
}

/// A consistent copy of vCPU 0's clock parameters.
pub(crate) fn time() -> VcpuTimeInfo {
    const AT: usize = offset_of!(VcpuInfo, time);
    loop {
        let version = word32(AT).load(Ordering::Acquire);
        let scale = word32(AT + offset_of!(VcpuTimeInfo, tsc_shift)).load(Ordering::Acquire);
        let copy = VcpuTimeInfo {
            version,
            pad0: 0,
            tsc_timestamp: word64(AT + 8).load(Ordering::Acquire),
            system_time: word64(AT + 16).load(Ordering::Acquire),
            tsc_to_system_mul: word32(AT + 24).load(Ordering::Acquire),
            tsc_shift: scale as i8,
            flags: (scale >> 8) as u8,
            pad1: [0; 2],
        };
        if version.is_multiple_of(2) && word32(AT).load(Ordering::Acquire) == version {
            return copy;
        }
        core::hint::spin_loop();
    }
}

/// The wall clock at system time 0: seconds since 1970 and nanoseconds.
pub(crate) fn wall_clock() -> (u64, u32) {
    const VERSION: usize = offset_of!(SharedInfo, wc_version);
    loop {
        let version = word32(VERSION).load(Ordering::Acquire);
        let low = word32(offset_of!(SharedInfo, wc_sec)).load(Ordering::Acquire);
        let nsec = word32(offset_of!(SharedInfo, wc_nsec)).load(Ordering::Acquire);
        let high = word32(offset_of!(SharedInfo, wc_sec_hi)).load(Ordering::Acquire);
        if version.is_multiple_of(2) && word32(VERSION).load(Ordering::Acquire) == version {
            return (u64::from(high) << 32 | u64::from(low), nsec);
        }
        core::hint::spin_loop();
    }
}
