//! The memory that data moves through: the guest's mapped pages, and buffers of our own.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use xen_ring::{SharedMemory, SharedMemoryExt};
use xen_sys::PAGE_SIZE;

/// Memory that stays where it is while somebody holds it.
pub type Memory = Arc<dyn SharedMemory + Send + Sync>;

/// Part of a piece of memory, in range by construction.
#[derive(Clone)]
pub struct Piece {
    memory: Memory,
    offset: usize,
    len: usize,
}

impl Piece {
    /// `len` bytes of `memory` from `offset` on, which must lie in it.
    pub fn new(memory: Memory, offset: usize, len: usize) -> Piece {
        assert!(
            offset
                .checked_add(len)
                .is_some_and(|end| end <= memory.len())
        );
        Piece {
            memory,
            offset,
            len,
        }
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What follows its first `skip` bytes, if there is anything.
    pub fn after(&self, skip: usize) -> Option<Piece> {
        (skip < self.len).then(|| Piece {
            memory: self.memory.clone(),
            offset: self.offset + skip,
            len: self.len - skip,
        })
    }

    /// For a system call that reads or writes the memory while the piece is kept.
    pub fn iovec(&self) -> libc::iovec {
        libc::iovec {
            // SAFETY: the offset is within the memory by construction.
            iov_base: unsafe { self.memory.base().as_ptr().add(self.offset) }.cast(),
            iov_len: self.len,
        }
    }

    /// Copies it out.
    pub fn read(&self, to: &mut [u8]) {
        self.memory.read_bytes(self.offset, &mut to[..self.len]);
    }

    /// Copies `from` in.
    pub fn write(&self, from: &[u8]) {
        self.memory.write_bytes(self.offset, &from[..self.len]);
    }
}

impl std::fmt::Debug for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Piece({} bytes)", self.len)
    }
}

/// Bytes of all pieces.
pub fn total(pieces: &[Piece]) -> usize {
    pieces.iter().map(Piece::len).sum()
}

/// Copies the pieces, one after another, into `to`.
pub fn gather(pieces: &[Piece], to: &mut [u8]) {
    let mut at = 0;
    for piece in pieces {
        piece.read(&mut to[at..at + piece.len]);
        at += piece.len;
    }
}

/// Copies `from` into the pieces, one after another.
pub fn scatter(from: &[u8], pieces: &[Piece]) {
    let mut at = 0;
    for piece in pieces {
        piece.write(&from[at..at + piece.len]);
        at += piece.len;
    }
}

/// Whole pages of our own, aligned for any device.
#[derive(Debug)]
pub struct Buffer {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory belongs to this value alone; shared access is by volatile copies.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// How much memory it is.
    pub fn len_bytes(&self) -> usize {
        self.len
    }

    /// Zeroed memory for `len` bytes.
    pub fn new(len: usize) -> Buffer {
        let len = len.max(1).next_multiple_of(PAGE_SIZE);
        let layout = Buffer::layout(len);
        // SAFETY: the layout has a size above zero.
        let base = unsafe { alloc_zeroed(layout) };
        let base = NonNull::new(base).unwrap_or_else(|| handle_alloc_error(layout));
        Buffer { base, len }
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, PAGE_SIZE).expect("a request's length is bounded")
    }

    /// The bytes, while nobody else holds the buffer.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: allocated and initialised with this length; `&mut self` says that it is ours alone: no
        // piece of it exists, for those hold the buffer in an Arc.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout.
        unsafe { dealloc(self.base.as_ptr(), Buffer::layout(self.len)) };
    }
}

// SAFETY: page-aligned, valid until dropped; references are made only while it is ours alone.
unsafe impl SharedMemory for Buffer {
    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn len(&self) -> usize {
        self.len
    }
}

/// A file mapped whole: what is stored there outlives the process, even one that is killed.
#[derive(Debug)]
pub struct MappedFile {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process; access is by volatile copies and atomics.
unsafe impl Send for MappedFile {}
// SAFETY: as above.
unsafe impl Sync for MappedFile {}

impl MappedFile {
    /// Maps the first `len` bytes of a file, which must have them.
    pub fn new(file: &File, len: usize) -> io::Result<MappedFile> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice takes nothing from anybody.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                protection,
                MapFlags::SHARED,
                file.as_fd(),
                0,
            )
        }?;
        Ok(MappedFile {
            base: NonNull::new(base.cast()).expect("mmap gives no null"),
            len,
        })
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        // SAFETY: what `new` mapped; nobody has a reference into it.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

// SAFETY: mapped for reading and writing until dropped, page-aligned; no reference to it is made. Only this
// process, which holds the file's lock, changes its length.
unsafe impl SharedMemory for MappedFile {
    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn len(&self) -> usize {
        self.len
    }
}
