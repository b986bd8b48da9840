//! Pages of somebody else's in our address space.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use xen_hal::Result;
use xen_ring::SharedMemory;
use xen_sys::{Errno, PAGE_SIZE};

use crate::{device, place};

/// Mapped pages, unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread, and is accessed by volatile copies only.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared access through `SharedMemoryExt` tolerates concurrent writers by design.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `pages` pages of a device node, or reserves them there for a later ioctl.
    pub fn new(
        fd: BorrowedFd<'_>,
        pages: usize,
        offset: u64,
        writable: bool,
    ) -> Result<Mapping, Errno> {
        let len = pages
            .checked_mul(PAGE_SIZE)
            .filter(|&len| len > 0)
            .ok_or(Errno::EINVAL)?;
        let protection = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EINVAL)?;
        // SAFETY: a new mapping where the kernel has room takes nothing from anybody: the address is a wish.
        let base = unsafe {
            libc::mmap(
                place::near(len),
                len,
                protection,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                offset,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(device::last_errno());
        }
        let base = NonNull::new(base.cast()).ok_or(Errno::EFAULT)?;
        Ok(Mapping { base, len })
    }

    /// The first address, for an ioctl.
    pub fn address(&self) -> u64 {
        self.base.as_ptr().expose_provenance() as u64
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly what `new` mapped; nobody has a reference into it.
        let result = unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert_eq!(result, 0, "munmap of our own mapping");
    }
}

// SAFETY: page-aligned, mapped for reading (and writing, unless its maker asked for read-only, which
// its documentation says) from `new` to `drop`; no reference to it is ever made.
unsafe impl SharedMemory for Mapping {
    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn len(&self) -> usize {
        self.len
    }
}

/// Frames of another domain, mapped with privcmd; dropping it unmaps them.
#[derive(Debug)]
pub struct ForeignMapping(pub(crate) Mapping);

// SAFETY: forwards to a mapping, which keeps the contract.
unsafe impl SharedMemory for ForeignMapping {
    fn base(&self) -> NonNull<u8> {
        self.0.base()
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}
