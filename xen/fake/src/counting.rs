//! An allocator that counts what each thread holds, for tests of what something may hold at most.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// For `#[global_allocator]`. What one thread allocates and another frees is counted for both.
pub struct Counting;

thread_local! {
    static HELD: Cell<i64> = const { Cell::new(0) };
    static MOST: Cell<i64> = const { Cell::new(0) };
}

impl Counting {
    /// Bytes that this thread holds.
    pub fn held() -> i64 {
        HELD.get()
    }

    /// The most that it held since [`forget_most`](Self::forget_most).
    pub fn most() -> i64 {
        MOST.get()
    }

    /// The most that it held is what it holds now.
    pub fn forget_most() {
        MOST.set(HELD.get());
    }
}

fn count(bytes: i64) {
    // Not at the end of a thread, when it is gone.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        MOST.set(MOST.get().max(held.get()));
    });
}

// SAFETY: everything is done by the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller's promises are those of this call.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: the caller's promises are those of this call.
        unsafe { System.dealloc(at, layout) }
    }
}
