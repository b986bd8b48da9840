//! The heap: all memory that the builder left free. It begins with what the builder has mapped and grows by
//! 2 MiB: mapping costs Xen a look at each page, which a guest that needs little memory never waits for.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ops::Range;
use core::ptr::NonNull;

use linked_list_allocator::Heap;
use xen_sys::{PAGE_SHIFT, Pfn};

use crate::paging;

struct GuestHeap(UnsafeCell<Memory>);

struct Memory {
    heap: Heap,
    /// Frames behind the heap that it has not grown into yet.
    rest: Range<u64>,
    /// Frames for the page tables that this takes.
    tables: Range<u64>,
}

// SAFETY: one vCPU, upcalls masked, and neither the panic nor the exception path allocates: calls never overlap.
unsafe impl Sync for GuestHeap {}

#[global_allocator]
static HEAP: GuestHeap = GuestHeap(UnsafeCell::new(Memory {
    heap: Heap::empty(),
    rest: 0..0,
    tables: 0..0,
}));

/// Gives the heap its frames, and others for page tables. Called once, during boot.
pub(crate) fn init(free: Range<u64>, tables: Range<u64>) {
    let start = paging::address_of(Pfn(free.start)) as *mut u8;
    // SAFETY: nobody else uses HEAP during the call.
    let memory = unsafe { &mut *HEAP.0.get() };
    (memory.rest, memory.tables) = (free, tables);
    let len = memory.map_more();
    // SAFETY: the frames are mapped, ours, and in no other use.
    unsafe { memory.heap.init(start, len) };
}

/// Bytes in all and bytes handed out.
pub(crate) fn usage() -> (usize, usize) {
    // SAFETY: nobody changes HEAP during the call.
    let memory = unsafe { &*HEAP.0.get() };
    let rest = ((memory.rest.end - memory.rest.start) << PAGE_SHIFT) as usize;
    (memory.heap.size() + rest, memory.heap.used())
}

impl Memory {
    /// Maps the next frames; how many bytes that are, 0 at the end of all memory.
    fn map_more(&mut self) -> usize {
        let mapped = paging::map_next(&self.rest, &mut self.tables);
        let len = (mapped - self.rest.start) << PAGE_SHIFT;
        self.rest.start = mapped;
        len as usize
    }

    fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        loop {
            if let Ok(at) = self.heap.allocate_first_fit(layout) {
                return Some(at);
            }
            match self.map_more() {
                0 => return None,
                // SAFETY: the frames follow those that the heap has, are mapped, ours, and in no other use.
                len => unsafe { self.heap.extend(len) },
            }
        }
    }
}

// SAFETY: the crate's heap keeps the contract; exclusive access is argued at `Sync`.
unsafe impl GlobalAlloc for GuestHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: see `Sync`.
        let memory = unsafe { &mut *self.0.get() };
        memory
            .allocate(layout)
            .map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: see `Sync`; `at` came from `alloc` with the same layout, by GlobalAlloc's contract.
        unsafe {
            let memory = &mut *self.0.get();
            memory.heap.deallocate(NonNull::new_unchecked(at), layout);
        }
    }
}
