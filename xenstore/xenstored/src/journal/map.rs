//! A file in our address space that outlives the process, and socket calls whose outcome the kernel itself keeps: of
//! sending in that file, of receiving in the socket.
//! The journal's `unsafe` stands here.
//!
//! What is stored in a shared mapping belongs to the file from that instruction on, however the process ends.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

const PAGE: usize = 4096;
/// The socket option of this name (asm-generic/socket.h).
const SO_PEEK_OFF: libc::c_int = 42;

/// What `msg_len` holds while the kernel has not said how much it moved.
pub const UNKNOWN: u32 = u32::MAX;
/// Bytes that a message header for [`Map::send`] takes; `msg_len` is the u32 at [`MSG_LEN`].
pub const MESSAGE: usize = size_of::<libc::mmsghdr>() + size_of::<libc::iovec>();
/// Where `msg_len` lies in it.
pub const MSG_LEN: usize = std::mem::offset_of!(libc::mmsghdr, msg_len);

/// A mapped file. Every access is checked against its length; what is touched must have been
/// [allocated](Self::allocate) before.
#[derive(Debug)]
pub struct Map {
    base: NonNull<u8>,
    len: usize,
    file: File,
}

impl Map {
    /// Maps the first `len` bytes of a file that is as long at least.
    pub fn new(file: File, len: usize) -> io::Result<Map> {
        if file.metadata()?.len() < len as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice takes nothing from anybody.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
                &file,
                0,
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Map { base, len, file })
    }

    /// Makes memory for a piece of the file; touching a piece without would kill the process when memory is short.
    pub fn allocate(&self, at: usize, len: usize) -> io::Result<()> {
        rustix::fs::fallocate(&self.file, FallocateFlags::empty(), at as u64, len as u64)?;
        Ok(())
    }

    /// Gives the memory of a piece back; it reads as zeros from now on.
    pub fn punch(&self, at: usize, len: usize) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(
            &self.file, flags, at as u64, len as u64,
        )?)
    }

    /// Takes a piece that has memory into ours in one go, instead of page by page when it is touched.
    pub fn prepare(&self, at: usize, len: usize) {
        if at > self.len || len > self.len - at || !at.is_multiple_of(PAGE) {
            return;
        }
        // A kernel before 5.14 does not know how; the piece is touched as it is then.
        // SAFETY: within the mapping, as just looked at; what the pages hold stays.
        let _ = unsafe {
            let from = self.base.as_ptr().add(at).cast();
            madvise(from, len, Advice::LinuxPopulateWrite)
        };
    }

    /// Takes whole pages out of our memory, not out of the file.
    pub fn forget(&self, at: usize, len: usize) {
        let from = at.next_multiple_of(PAGE);
        let to = (at + len) / PAGE * PAGE;
        if to > self.len || from >= to {
            return;
        }
        // SAFETY: within the mapping, as just looked at; a shared mapping's pages keep what they hold, and come back when
        // they are touched.
        let result = unsafe {
            madvise(
                self.base.as_ptr().add(from).cast(),
                to - from,
                Advice::LinuxDontNeed,
            )
        };
        debug_assert_eq!(result, Ok(()), "our own mapping");
    }

    /// Stores bytes.
    #[inline]
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(
            at <= self.len && bytes.len() <= self.len - at,
            "outside the state file"
        );
        // SAFETY: within the mapping, as just looked at; `bytes` cannot overlap it, as no reference into it is ever made.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.as_ptr().add(at), bytes.len());
        }
    }

    /// Loads bytes.
    pub fn read(&self, at: usize, to: &mut [u8]) {
        assert!(
            at <= self.len && to.len() <= self.len - at,
            "outside the state file"
        );
        // SAFETY: as for `write`.
        unsafe {
            std::ptr::copy_nonoverlapping(self.base.as_ptr().add(at), to.as_mut_ptr(), to.len());
        }
    }

    /// Loads bytes to the end of a list.
    pub fn read_more(&self, at: usize, len: usize, to: &mut Vec<u8>) {
        assert!(
            at <= self.len && len <= self.len - at,
            "outside the state file"
        );
        to.reserve(len);
        // SAFETY: within the mapping, as just looked at, and within the list's room, which begins behind what it has and
        // is filled by this.
        unsafe {
            let end = to.as_mut_ptr().add(to.len());
            std::ptr::copy_nonoverlapping(self.base.as_ptr().add(at), end, len);
            to.set_len(to.len() + len);
        }
    }

    /// A 64-bit word that is stored and loaded as a whole. All that was stored before a store lies in the file when the
    /// word does.
    #[inline]
    pub fn word(&self, at: usize) -> &AtomicU64 {
        assert!(
            at.is_multiple_of(8) && at + 8 <= self.len,
            "outside the state file"
        );
        // SAFETY: within the mapping and aligned, as just looked at; the mapping lives as long as `self`, and an atomic
        // may be changed by whoever maps the file.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(at).cast()) }
    }

    /// Receives up to `room` bytes to `at`.
    pub fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        at: usize,
        room: usize,
    ) -> Result<usize, Errno> {
        assert!(
            at <= self.len && room <= self.len - at,
            "outside the state file"
        );
        // SAFETY: within the mapping, as just looked at; the kernel writes there, and nobody has a reference to it.
        let len = unsafe {
            let to = self.base.as_ptr().add(at).cast();
            libc::recv(socket.as_raw_fd(), to, room, libc::MSG_DONTWAIT)
        };
        usize::try_from(len).map_err(|_| last_error())
    }

    /// Sends bytes. How many is told by the result and by `msg_len` of the header at `header`, which the kernel stores
    /// before this process can be killed: it is [`UNKNOWN`] if and only if nothing was sent.
    pub fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        header: usize,
        bytes: &[u8],
    ) -> Result<usize, Errno> {
        let message = self.message(header, bytes.as_ptr().cast_mut(), bytes.len());
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: `message` is one header in our mapping; the kernel reads `bytes`, which are borrowed until it returns.
        let done = unsafe { libc::sendmmsg(socket.as_raw_fd(), message, 1, flags as _) };
        if done != 1 {
            return Err(last_error());
        }
        let mut len = [0; 4];
        self.read(header + MSG_LEN, &mut len);
        Ok(u32::from_le_bytes(len) as usize)
    }

    fn message(&mut self, header: usize, buffer: *mut u8, len: usize) -> *mut libc::mmsghdr {
        assert!(header.is_multiple_of(8) && header + MESSAGE <= self.len);
        // SAFETY: within the mapping and aligned, as just looked at.
        let (message, iovec) = unsafe {
            let message = self.base.as_ptr().add(header).cast::<libc::mmsghdr>();
            (message, message.add(1).cast::<libc::iovec>())
        };
        // SAFETY: plain values of C, all of whose bits may be zero.
        let mut value = unsafe { std::mem::zeroed::<libc::mmsghdr>() };
        value.msg_hdr.msg_iov = iovec;
        value.msg_hdr.msg_iovlen = 1;
        value.msg_len = UNKNOWN;
        let piece = libc::iovec {
            iov_base: buffer.cast(),
            iov_len: len,
        };
        // SAFETY: both lie in the mapping and are aligned; nobody has a reference to them.
        unsafe {
            iovec.write(piece);
            message.write(value);
        }
        message
    }
}

/// The kernel's count at a socket ([`super::count`]); negative if there is none.
pub fn count(socket: BorrowedFd<'_>) -> Result<i32, Errno> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: both pointers are to values of ours of the type that this option has.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEEK_OFF,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    if done == 0 {
        Ok(value)
    } else {
        Err(last_error())
    }
}

/// Sets the kernel's count.
pub fn set_count(socket: BorrowedFd<'_>, value: i32) -> Result<(), Errno> {
    // SAFETY: the kernel reads a value of ours of the type that this option has.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEEK_OFF,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(last_error()) }
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped; nobody has a reference into it.
        let result = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert_eq!(result, Ok(()), "munmap of our own mapping");
    }
}

// SAFETY: a mapping belongs to the process, not to a thread.
unsafe impl Send for Map {}
