//! A file's first page in our address space. This crate's `unsafe` is here.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use xen_ring::SharedMemory;
use xen_sys::PAGE_SIZE;

/// One page, shared with whoever maps the same file; unmapped when dropped.
#[derive(Debug)]
pub struct Page(NonNull<u8>);

impl Page {
    /// Maps the first page. EINVAL if the file is shorter: touching what is not there would kill the process.
    pub fn map(file: &File) -> io::Result<Page> {
        if file.metadata()?.len() < PAGE_SIZE as u64 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: a new mapping at an address of the kernel's choice takes nothing from anybody.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                PAGE_SIZE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Page(base))
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` mapped; nobody has a reference into it.
        let result = unsafe { munmap(self.0.as_ptr().cast(), PAGE_SIZE) };
        debug_assert_eq!(result, Ok(()), "munmap of our own mapping");
    }
}

// SAFETY: page-aligned and mapped for reading and writing from `map` to `drop`; no reference to it is ever made. By the
// folder's rules nobody shortens a ring's file, which would take the page away.
unsafe impl SharedMemory for Page {
    fn base(&self) -> NonNull<u8> {
        self.0
    }

    fn len(&self) -> usize {
        PAGE_SIZE
    }
}

// SAFETY: a mapping belongs to the process, not to a thread, and is accessed by volatile copies only.
unsafe impl Send for Page {}
