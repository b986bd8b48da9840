//! The heap: all memory that the builder left free.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ops::Range;
use core::ptr::NonNull;

use linked_list_allocator::Heap;
use xen_sys::{PAGE_SHIFT, Pfn};

use crate::paging;

struct GuestHeap(UnsafeCell<Heap>);

// SAFETY: one vCPU, upcalls masked, and neither the panic nor the exception path allocates: calls never overlap.
unsafe impl Sync for GuestHeap {}

#[global_allocator]
static HEAP: GuestHeap = GuestHeap(UnsafeCell::new(Heap::empty()));

/// Gives the heap its frames. Called once, during boot.
pub(crate) fn init(free: Range<u64>) {
    let start = paging::address_of(Pfn(free.start)) as *mut u8;
    let len = ((free.end - free.start) << PAGE_SHIFT) as usize;
    // SAFETY: nobody else uses HEAP during the call; the frames are mapped, ours, and in no other use.
    unsafe { (*HEAP.0.get()).init(start, len) };
}

/// Bytes in all and bytes handed out.
pub(crate) fn usage() -> (usize, usize) {
    // SAFETY: nobody changes HEAP during the call.
    let heap = unsafe { &*HEAP.0.get() };
    (heap.size(), heap.used())
}

// SAFETY: the crate's heap keeps the contract; exclusive access is argued at `Sync`.
unsafe impl GlobalAlloc for GuestHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: see `Sync`.
        let heap = unsafe { &mut *self.0.get() };
        heap.allocate_first_fit(layout)
            .map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: see `Sync`; `at` came from `alloc` with the same layout, by GlobalAlloc's contract.
        unsafe { (*self.0.get()).deallocate(NonNull::new_unchecked(at), layout) }
    }
}
