//! The gntdev device: other domains' granted frames, mapped or copied.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use xen_hal::{AccessMode, CopyBuffer, Error, ForeignGrants, GrantCopy, Result};
use xen_ring::SharedMemory;
use xen_sys::grant_table::{GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GrantStatus};
use xen_sys::{DomId, Errno, GrantRef, PAGE_SIZE, Plain};

use crate::abi::{self, GntdevCopy, GntdevCopySegment, GntdevMapOne, GntdevRef, GntdevUnmap};
use crate::device;
use crate::mapping::Mapping;

const GNTDEV: &str = "/dev/xen/gntdev";
/// Most grants in one mapping: a bound on the request, far above any ring's need.
const MAX_MAP: usize = 4096;

/// Access to frames that other domains have granted to this one.
#[derive(Clone, Debug)]
pub struct Grants {
    gntdev: Arc<File>,
}

/// Granted frames, mapped; dropping it unmaps exactly those. A mapping made with
/// [`AccessMode::ReadOnly`] may only be read: a write is our own bug and ends in SIGSEGV.
#[derive(Debug)]
pub struct GrantMapping {
    // Dropped in this order: first the pages, then the index that gntdev knows them by.
    mapping: Mapping,
    _index: Index,
}

/// Grants that gntdev has taken note of, not necessarily mapped yet.
#[derive(Debug)]
struct Index {
    gntdev: Arc<File>,
    index: u64,
    count: u32,
}

impl Grants {
    /// Opens gntdev.
    pub fn open() -> Result<Grants> {
        Ok(Grants {
            gntdev: Arc::new(device::open(GNTDEV, 0)?),
        })
    }

    /// Goes on with gntdev as somebody else has opened it.
    pub fn inherit(gntdev: OwnedFd) -> Grants {
        Grants {
            gntdev: Arc::new(gntdev.into()),
        }
    }

    fn reserve(&self, dom: DomId, grefs: &[GrantRef]) -> Result<Index> {
        let count = grefs.len() as u32;
        let mut request = Vec::with_capacity(size_of::<GntdevMapOne>() / 8 + grefs.len());
        // The structure's head (count, pad, index), then the references; u64 for its alignment.
        request.extend([u64::from(count), 0]);
        request.extend(grefs.iter().map(|&gref| {
            let reference = GntdevRef {
                domid: dom.0.into(),
                gref,
            };
            u64::from_prefix(reference.as_bytes()).expect("8 bytes")
        }));
        // SAFETY: the request holds `count` references behind its head, as the driver expects; it reads
        // those and writes the head.
        unsafe {
            device::ioctl(
                self.gntdev.as_fd(),
                abi::GNTDEV_MAP,
                request.as_mut_ptr().cast(),
            )
        }
        .map_err(|errno| device::system("IOCTL_GNTDEV_MAP_GRANT_REF", GNTDEV, errno))?;
        Ok(Index {
            gntdev: Arc::clone(&self.gntdev),
            index: request[1],
            count,
        })
    }

    fn try_map(
        &self,
        dom: DomId,
        grefs: &[GrantRef],
        mode: AccessMode,
    ) -> Result<Result<GrantMapping, Errno>> {
        let index = self.reserve(dom, grefs)?;
        let writable = mode == AccessMode::ReadWrite;
        let mapping = Mapping::new(self.gntdev.as_fd(), grefs.len(), index.index, writable);
        Ok(mapping.map(|mapping| GrantMapping {
            mapping,
            _index: index,
        }))
    }

    /// Finds out which of `grefs` cannot be mapped and why: Linux tells neither.
    fn explain(&self, dom: DomId, grefs: &[GrantRef], mode: AccessMode, errno: Errno) -> Error {
        for &gref in grefs {
            if matches!(self.try_map(dom, &[gref], mode), Ok(Err(_))) {
                let mut byte = [0];
                let mut probe = [GrantCopy {
                    gref,
                    offset: 0,
                    local: CopyBuffer::FromGrant(&mut byte),
                    status: 0,
                }];
                let status = match self.copy(dom, &mut probe) {
                    // It can be read, so mapping it for writing is what was refused.
                    Ok(()) if probe[0].status == 0 => GrantStatus::GENERAL_ERROR.0,
                    Ok(()) => probe[0].status,
                    Err(_) => GrantStatus::GENERAL_ERROR.0,
                };
                return Error::MapGrant { dom, gref, status };
            }
        }
        device::system("mmap", GNTDEV, errno)
    }
}

impl AsFd for Grants {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.gntdev.as_fd()
    }
}

impl ForeignGrants for Grants {
    type Mapping = GrantMapping;

    fn map(&self, dom: DomId, grefs: &[GrantRef], mode: AccessMode) -> Result<GrantMapping> {
        if grefs.is_empty() || grefs.len() > MAX_MAP {
            return Err(device::system("mmap", GNTDEV, Errno::EINVAL));
        }
        self.try_map(dom, grefs, mode)?
            .map_err(|errno| self.explain(dom, grefs, mode, errno))
    }

    fn copy(&self, dom: DomId, pieces: &mut [GrantCopy<'_>]) -> Result<()> {
        let mut segments = Vec::with_capacity(pieces.len());
        let mut places = Vec::with_capacity(pieces.len());
        for (place, piece) in pieces.iter_mut().enumerate() {
            let len = piece.local.len();
            if usize::from(piece.offset) + len > PAGE_SIZE {
                piece.status = GrantStatus::BAD_COPY_ARG.0;
                continue;
            }
            piece.status = GrantStatus::OKAY.0;
            if len == 0 {
                continue;
            }
            let theirs = abi::foreign(piece.gref, piece.offset, dom);
            let (source, dest, flags) = match &mut piece.local {
                CopyBuffer::FromGrant(to) => {
                    let ours = to.as_mut_ptr().expose_provenance() as u64;
                    (theirs, ours, GNTCOPY_SOURCE_GREF)
                }
                CopyBuffer::ToGrant(from) => {
                    let ours = from.as_ptr().expose_provenance() as u64;
                    (ours, theirs, GNTCOPY_DEST_GREF)
                }
            };
            segments.push(GntdevCopySegment {
                source,
                dest,
                // At most a page, by the check above.
                len: len as u16,
                flags,
                ..Plain::ZERO
            });
            places.push(place);
        }
        if segments.is_empty() {
            return Ok(());
        }
        let mut request = GntdevCopy {
            count: segments.len() as u32,
            segments: segments.as_mut_ptr().expose_provenance() as u64,
            ..Plain::ZERO
        };
        // SAFETY: the request names `count` segments; each names a local buffer that is borrowed (for
        // writing if it is a destination) for longer than the call, with its own length.
        unsafe {
            device::ioctl(
                self.gntdev.as_fd(),
                abi::GNTDEV_COPY,
                (&raw mut request).cast(),
            )
        }
        .map_err(|errno| device::system("IOCTL_GNTDEV_GRANT_COPY", GNTDEV, errno))?;
        for (segment, place) in segments.iter().zip(places) {
            pieces[place].status = segment.status.0;
        }
        Ok(())
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        let mut request = GntdevUnmap {
            index: self.index,
            count: self.count,
            ..Plain::ZERO
        };
        // SAFETY: the request is valid for the call and names what `reserve` got.
        let result = unsafe {
            device::ioctl(
                self.gntdev.as_fd(),
                abi::GNTDEV_UNMAP,
                (&raw mut request).cast(),
            )
        };
        debug_assert!(result.is_ok(), "unmap of our own grants: {result:?}");
    }
}

// SAFETY: page-aligned and mapped until dropped; writable unless made read-only, as documented.
unsafe impl SharedMemory for GrantMapping {
    fn base(&self) -> NonNull<u8> {
        self.mapping.base()
    }

    fn len(&self) -> usize {
        self.mapping.len()
    }
}
