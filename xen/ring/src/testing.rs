//! A page that two ends share, for tests.

use core::cell::UnsafeCell;
use core::ptr::NonNull;
use std::boxed::Box;
use std::sync::Arc;
use std::vec;

use crate::SharedMemory;

/// Memory whose clones are the same memory.
#[derive(Clone, Debug)]
pub struct Page(Arc<Words>);

#[derive(Debug)]
struct Words(Box<[UnsafeCell<u64>]>);

// SAFETY: the words are only reached through `SharedMemory`, with volatile and atomic accesses.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Page {
    /// `len` zero bytes, a multiple of 8.
    pub fn new(len: usize) -> Page {
        assert!(len.is_multiple_of(8));
        let words = vec![0u64; len / 8].into_iter().map(UnsafeCell::new);
        Page(Arc::new(Words(words.collect())))
    }
}

// SAFETY: the words are 8-aligned, live as long as any clone, and no reference to them is made.
unsafe impl SharedMemory for Page {
    fn base(&self) -> NonNull<u8> {
        let words: *const [UnsafeCell<u64>] = &*self.0.0;
        NonNull::new(UnsafeCell::raw_get(words as *const UnsafeCell<u64>).cast())
            .expect("a box's address is not null")
    }

    fn len(&self) -> usize {
        self.0.0.len() * 8
    }
}
