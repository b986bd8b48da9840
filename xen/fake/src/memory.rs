//! The pages of all fake domains, in one memory file: a page can be mapped a second time elsewhere, next
//! to others, and read-only, as the hypervisor does it. All of this crate's `unsafe` is here.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::ffi::c_void;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use xen_ring::{SharedMemory, SharedMemoryExt};
use xen_sys::types::PAGE_SIZE;

/// Most pages that all domains of a world can have at a time; memory is used only for those touched.
const ARENA_PAGES: usize = 65_536;

/// The memory file, mapped once in whole.
pub(crate) struct Arena {
    file: OwnedFd,
    base: NonNull<u8>,
    free: Mutex<FreePages>,
}

struct FreePages {
    never_used: usize,
    returned: BTreeSet<usize>,
}

// SAFETY: `base` points to a mapping that only `drop` ends; all access to it is by volatile or atomic
// operations, and who owns which page is kept under the mutex.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    pub(crate) fn new() -> Arc<Arena> {
        let len = ARENA_PAGES * PAGE_SIZE;
        let file = memfd_create("xen-fake", MemfdFlags::CLOEXEC).expect("memfd_create");
        ftruncate(&file, len as u64).expect("size the fake domains' memory");
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                &file,
                0,
            )
        }
        .expect("map the fake domains' memory");
        Arc::new(Arena {
            file,
            base: NonNull::new(base.cast()).expect("mmap gives no null"),
            free: Mutex::new(FreePages {
                never_used: 0,
                returned: BTreeSet::new(),
            }),
        })
    }

    /// Takes a zeroed page, if one is left.
    pub(crate) fn alloc(self: &Arc<Self>) -> Option<Arc<Slot>> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let (index, used) = match free.returned.pop_first() {
            Some(index) => (index, true),
            None if free.never_used < ARENA_PAGES => {
                free.never_used += 1;
                (free.never_used - 1, false)
            }
            None => return None,
        };
        drop(free);
        let slot = Slot {
            arena: self.clone(),
            index,
        };
        // What was never used is zero, and takes no memory yet.
        if used {
            slot.zero();
        }
        Some(Arc::new(slot))
    }

    /// Takes so many zeroed pages in a row, of those that were never used.
    pub(crate) fn alloc_run(self: &Arc<Self>, count: usize) -> Option<Vec<Arc<Slot>>> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let first = free.never_used;
        if count > ARENA_PAGES - first {
            return None;
        }
        free.never_used += count;
        let slot = |index| {
            Arc::new(Slot {
                arena: self.clone(),
                index,
            })
        };
        Some((first..first + count).map(slot).collect())
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: made by `new` with this length; every slot and mapping holds the arena, so none is left.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), ARENA_PAGES * PAGE_SIZE) };
    }
}

/// One page of the arena; it is free for others when the last holder (owner, grant, mapping) lets go.
pub(crate) struct Slot {
    arena: Arc<Arena>,
    index: usize,
}

impl Slot {
    /// Its place in the memory file.
    pub(crate) fn index(&self) -> usize {
        self.index
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut free = self
            .arena
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        free.returned.insert(self.index);
    }
}

// SAFETY: the page lies in the arena's mapping, which the slot keeps; no other slot has its index, and
// nobody makes a reference to it.
unsafe impl SharedMemory for Slot {
    fn base(&self) -> NonNull<u8> {
        // SAFETY: the index is below ARENA_PAGES, so the page is within the mapping.
        unsafe { self.arena.base.add(self.index * PAGE_SIZE) }
    }

    fn len(&self) -> usize {
        PAGE_SIZE
    }
}

/// Pages mapped one after another at an address of their own. Writing to a read-only one is SIGSEGV, as
/// it is in dom0.
pub(crate) struct View {
    base: NonNull<u8>,
    len: usize,
    pages: Vec<Arc<Slot>>,
}

// SAFETY: the mapping belongs to this value alone and is touched by volatile or atomic operations only.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    pub(crate) fn new(pages: Vec<Arc<Slot>>, writable: bool) -> rustix::io::Result<View> {
        let len = pages.len() * PAGE_SIZE;
        if len == 0 {
            return Ok(View {
                base: NonNull::<u64>::dangling().cast(),
                len,
                pages,
            });
        }
        let access = if writable {
            ProtFlags::READ | ProtFlags::WRITE
        } else {
            ProtFlags::READ
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::empty(),
                MapFlags::PRIVATE,
            )
        }?;
        let view = View {
            base: NonNull::new(base.cast()).expect("mmap gives no null"),
            len,
            pages,
        };
        let mut at = 0;
        for run in view
            .pages
            .chunk_by(|page, next| page.index + 1 == next.index)
        {
            // SAFETY: replaces a part of the range reserved above, which nobody has seen yet.
            unsafe {
                mmap(
                    view.base.as_ptr().add(at).cast::<c_void>(),
                    run.len() * PAGE_SIZE,
                    access,
                    MapFlags::SHARED | MapFlags::FIXED,
                    &run[0].arena.file,
                    (run[0].index * PAGE_SIZE) as u64,
                )
            }?;
            at += run.len() * PAGE_SIZE;
        }
        Ok(view)
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the range was reserved by `new` and no reference into it outlives this value.
            let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        }
    }
}

// SAFETY: the range is mapped from `new` until `drop`, page-aligned, and nobody makes a reference to it.
unsafe impl SharedMemory for View {
    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn len(&self) -> usize {
        self.len
    }
}

/// Implements [`SharedMemory`] for a type by one of its fields that already does.
macro_rules! memory_of {
    ($name:ty, $field:ident) => {
        // SAFETY: the field keeps the contract and lives as long as the value that holds it.
        unsafe impl SharedMemory for $name {
            fn base(&self) -> NonNull<u8> {
                self.$field.base()
            }

            fn len(&self) -> usize {
                self.$field.len()
            }
        }
    };
}

memory_of!(crate::Page, slot);
memory_of!(crate::Mapping, view);
memory_of!(crate::FrameMapping, view);
