//! Memory that a peer may change at any moment, and the only ways to touch it.

use core::mem::{MaybeUninit, size_of};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

/// An owned piece of memory that somebody else may read and write concurrently: a granted page of our
/// own, or the mapping of a peer's. Dropping the owner gives the memory back.
///
/// # Safety
/// `base()` must be aligned to 8 bytes, valid for reads and writes of `len()` bytes and keep both
/// values until the owner is dropped; no Rust reference to that memory may exist meanwhile.
pub unsafe trait SharedMemory {
    /// The first byte.
    fn base(&self) -> NonNull<u8>;
    /// The length in bytes.
    fn len(&self) -> usize;
    /// Whether there is no memory at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

// SAFETY: the box hands on what its content promises, and moving the box moves none of that memory.
unsafe impl<M: SharedMemory + ?Sized> SharedMemory for alloc::boxed::Box<M> {
    fn base(&self) -> NonNull<u8> {
        (**self).base()
    }

    fn len(&self) -> usize {
        (**self).len()
    }
}

/// Types that may be copied out of and into shared memory.
///
/// # Safety
/// Every bit pattern must be a valid value and the type must have no padding bytes (else a write would
/// leak our memory to the peer, XSA-216).
pub unsafe trait RingEntry: Copy + 'static {}

// SAFETY: plain values take every bit pattern and have no padding; that is what the trait says.
unsafe impl<T: xen_sys::Plain> RingEntry for T {}

/// Checked access to shared memory. Offsets are in bytes; an offset out of range is our own bug and
/// panics, so whatever a peer says must be checked before it becomes an offset.
pub trait SharedMemoryExt: SharedMemory {
    /// Loads the 4-aligned u32 at `offset`.
    fn load_u32(&self, offset: usize, order: Ordering) -> u32 {
        self.atomic_u32(offset).load(order)
    }

    /// Stores to the 4-aligned u32 at `offset`.
    fn store_u32(&self, offset: usize, value: u32, order: Ordering) {
        self.atomic_u32(offset).store(value, order);
    }

    /// The 4-aligned u32 at `offset`, as an atomic: the one kind of reference that may see a peer's write.
    fn atomic_u32(&self, offset: usize) -> &AtomicU32 {
        assert!(
            offset.is_multiple_of(4) && offset.checked_add(4).is_some_and(|end| end <= self.len())
        );
        // SAFETY: in range and aligned by the assertion (base is 8-aligned); an atomic tolerates
        // concurrent writers; the memory lives as long as `self`.
        unsafe { AtomicU32::from_ptr(self.base().as_ptr().add(offset).cast()) }
    }

    /// Copies one entry out, once.
    fn read<T: RingEntry>(&self, offset: usize) -> T {
        self.check(offset, size_of::<T>());
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: source is in range by the check, destination is a whole T; the copy is volatile
        // byte by byte, so it happens exactly once whatever the optimiser thinks.
        unsafe {
            copy_out(
                self.base().as_ptr().add(offset),
                value.as_mut_ptr().cast(),
                size_of::<T>(),
            );
            value.assume_init()
        }
    }

    /// Copies one entry in.
    fn write<T: RingEntry>(&self, offset: usize, value: T) {
        self.check(offset, size_of::<T>());
        // SAFETY: destination is in range by the check; T has no padding, so every byte is initialised.
        unsafe {
            copy_in(
                (&raw const value).cast(),
                self.base().as_ptr().add(offset),
                size_of::<T>(),
            );
        }
    }

    /// Copies `to.len()` bytes out.
    fn read_bytes(&self, offset: usize, to: &mut [u8]) {
        self.check(offset, to.len());
        // SAFETY: source is in range by the check; `to` is ours alone.
        unsafe { copy_out(self.base().as_ptr().add(offset), to.as_mut_ptr(), to.len()) }
    }

    /// Copies `from` in.
    fn write_bytes(&self, offset: usize, from: &[u8]) {
        self.check(offset, from.len());
        // SAFETY: destination is in range by the check.
        unsafe { copy_in(from.as_ptr(), self.base().as_ptr().add(offset), from.len()) }
    }

    /// Sets all bytes to zero.
    fn zero(&self) {
        // SAFETY: the whole region is valid for writes by the trait's contract.
        unsafe { self.base().as_ptr().write_bytes(0, self.len()) }
    }

    /// Sets `len` bytes to zero.
    fn zero_bytes(&self, offset: usize, len: usize) {
        self.check(offset, len);
        // SAFETY: destination is in range by the check.
        unsafe { self.base().as_ptr().add(offset).write_bytes(0, len) }
    }

    #[doc(hidden)]
    fn check(&self, offset: usize, len: usize) {
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.len());
        assert!(
            fits,
            "shared memory: {len} bytes at {offset} of {}",
            self.len()
        );
    }
}

impl<M: SharedMemory + ?Sized> SharedMemoryExt for M {}

/// Copies with volatile reads, in words where both ends allow it.
///
/// # Safety
/// `from` valid for `len` reads, `to` valid for `len` writes, not overlapping.
unsafe fn copy_out(from: *const u8, to: *mut u8, len: usize) {
    let mut at = 0;
    if from.addr().is_multiple_of(8) {
        while at + 8 <= len {
            // SAFETY: within both ranges by the caller's contract; `from` is aligned.
            unsafe {
                to.add(at)
                    .cast::<u64>()
                    .write_unaligned(from.add(at).cast::<u64>().read_volatile())
            };
            at += 8;
        }
    }
    while at < len {
        // SAFETY: within both ranges by the caller's contract.
        unsafe { to.add(at).write(from.add(at).read_volatile()) };
        at += 1;
    }
}

/// Copies with volatile writes, in words where both ends allow it.
///
/// # Safety
/// `from` valid for `len` reads, `to` valid for `len` writes, not overlapping.
unsafe fn copy_in(from: *const u8, to: *mut u8, len: usize) {
    let mut at = 0;
    if to.addr().is_multiple_of(8) {
        // A cache line at a time: whole guests are written by this.
        while at + 64 <= len {
            for word in (at..at + 64).step_by(8) {
                // SAFETY: within both ranges by the caller's contract; `to` is aligned.
                unsafe {
                    to.add(word)
                        .cast::<u64>()
                        .write_volatile(from.add(word).cast::<u64>().read_unaligned())
                };
            }
            at += 64;
        }
        while at + 8 <= len {
            // SAFETY: within both ranges by the caller's contract; `to` is aligned.
            unsafe {
                to.add(at)
                    .cast::<u64>()
                    .write_volatile(from.add(at).cast::<u64>().read_unaligned())
            };
            at += 8;
        }
    }
    while at < len {
        // SAFETY: within both ranges by the caller's contract.
        unsafe { to.add(at).write_volatile(from.add(at).read()) };
        at += 1;
    }
}

#[cfg(test)]
mod tests;
