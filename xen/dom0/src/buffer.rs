//! Memory that Xen can read and write during a hypercall: owned here, cleared before it is given back.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use xen_hal::Result;
use xen_sys::{Errno, PAGE_SIZE, Plain};

use crate::{device, place};

/// The size that nearly all buffers have: what a vCPU's registers need. These are kept for the next hypercall; to map
/// one and to unmap it takes longer than most hypercalls.
const USUAL: usize = 2 * PAGE_SIZE;
/// How many of the usual size are kept.
const KEPT: usize = 4;

/// Where buffers come from: pages of /dev/xen/hypercall, which the kernel never moves, or, where that
/// node is missing (Linux before 4.18), locked anonymous pages.
#[derive(Debug)]
pub struct Buffers {
    node: Option<File>,
    kept: Mutex<Vec<Pages>>,
}

/// A zeroed piece of memory for one hypercall.
#[derive(Debug)]
pub struct Buffer<'a> {
    owner: &'a Buffers,
    /// How much of the pages it takes.
    len: usize,
    pages: Option<Pages>,
}

#[derive(Debug)]
struct Pages {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the pages belong to the process and are only reached through their one owner.
unsafe impl Send for Pages {}

impl Buffers {
    /// A source of buffers that uses `node` if it is there.
    pub fn new(node: Option<File>) -> Self {
        Buffers {
            node,
            kept: Mutex::new(Vec::new()),
        }
    }

    /// A zeroed buffer of at least `len` bytes.
    pub fn take(&self, len: usize) -> Result<Buffer<'_>, Errno> {
        let len = len.max(1).next_multiple_of(8);
        let pages = if len <= USUAL {
            self.kept
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop()
        } else {
            None
        };
        let pages = match pages {
            Some(pages) => pages,
            None => Pages::map(
                self.node.as_ref(),
                len.next_multiple_of(PAGE_SIZE).max(USUAL),
            )?,
        };
        Ok(Buffer {
            owner: self,
            len,
            pages: Some(pages),
        })
    }
}

impl Buffer<'_> {
    /// The address of the byte at `offset`, for Xen.
    pub fn address(&self, offset: usize) -> u64 {
        let pages = self.pages();
        assert!(offset <= self.len);
        (pages.base.as_ptr().expose_provenance() + offset) as u64
    }

    /// All bytes. Xen touches them only during a hypercall, which borrows the buffer exclusively.
    pub fn bytes(&self) -> &[u8] {
        let pages = self.pages();
        // SAFETY: mapped and initialised by the kernel for at least `len` bytes while `pages` lives;
        // nobody writes to them while this borrow lasts.
        unsafe { std::slice::from_raw_parts(pages.base.as_ptr(), self.len) }
    }

    /// All bytes, for filling them in.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let pages = self.pages();
        // SAFETY: as in `bytes`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(pages.base.as_ptr(), self.len) }
    }

    /// Writes a value at `offset`.
    pub fn put<T: Plain>(&mut self, offset: usize, value: &T) {
        self.bytes_mut()[offset..offset + size_of::<T>()].copy_from_slice(value.as_bytes());
    }

    /// Reads the value at `offset`.
    pub fn get<T: Plain>(&self, offset: usize) -> T {
        T::from_prefix(&self.bytes()[offset..]).expect("the buffer was made large enough")
    }

    fn pages(&self) -> &Pages {
        self.pages
            .as_ref()
            .expect("a buffer has its pages until dropped")
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        self.bytes_mut().fill(0);
        let Some(pages) = self.pages.take() else {
            return;
        };
        let mut kept = self
            .owner
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if pages.len == USUAL && kept.len() < KEPT {
            kept.push(pages);
        }
    }
}

impl Pages {
    fn map(node: Option<&File>, len: usize) -> Result<Pages, Errno> {
        let (flags, fd) = match node {
            Some(node) => (libc::MAP_SHARED, node.as_raw_fd()),
            None => (
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_LOCKED | libc::MAP_POPULATE,
                -1,
            ),
        };
        // SAFETY: a new mapping where the kernel has room takes nothing from anybody: the address is a wish.
        let base = unsafe {
            libc::mmap(
                place::near(len),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(device::last_errno());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or(Errno::EFAULT)?;
        let pages = Pages { base, len };
        if node.is_none() {
            // A child process must not turn the pages copy-on-write under a hypercall.
            // SAFETY: the range is the mapping just made.
            if unsafe { libc::madvise(base.as_ptr().cast(), len, libc::MADV_DONTFORK) } != 0 {
                return Err(device::last_errno());
            }
        }
        for offset in (0..len).step_by(PAGE_SIZE) {
            // SAFETY: within the mapping; a write makes the kernel provide the page.
            unsafe { base.as_ptr().add(offset).write_volatile(0) };
        }
        Ok(pages)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` mapped; the buffer that lent references into it is gone.
        let result = unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert_eq!(result, 0, "munmap of our own mapping");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_zeroed() {
        let buffers = Buffers::new(None);
        let first = {
            let mut buffer = buffers.take(100).unwrap();
            buffer.bytes_mut().fill(0xa5);
            buffer.address(0)
        };
        let buffer = buffers.take(100).unwrap();
        assert_eq!(buffer.address(0), first, "the page is used again");
        assert!(buffer.bytes().iter().all(|&byte| byte == 0));
    }

    #[test]
    fn values_keep_their_place() {
        let buffers = Buffers::new(None);
        let mut buffer = buffers.take(PAGE_SIZE + 1).unwrap();
        assert_eq!(buffer.bytes().len(), PAGE_SIZE + 8);
        buffer.put(4090, &0x0123_4567_89ab_cdefu64);
        assert_eq!(buffer.get::<u64>(4090), 0x0123_4567_89ab_cdef);
        assert_eq!(buffer.get::<u32>(4094), 0x0123_4567);
    }
}
