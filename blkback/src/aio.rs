//! Many writes by one system call that does them on the spot: `io_submit` on a file that goes through the
//! page cache. io_uring would hand each to a kernel thread.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Writes begun at once, at most.
pub const BATCH: usize = 64;

/// A context of Linux's asynchronous I/O.
pub struct Aio {
    context: usize,
    calls: u64,
}

/// Something to write: the vectors, where in the file, and whose it is.
pub type Order<'a> = (&'a [libc::iovec], u64, u16);

/// `struct iocb` of linux/aio_abi.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    length: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_fd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

const _: () = assert!(size_of::<Iocb>() == 64 && size_of::<Event>() == 32);

/// `IOCB_CMD_PWRITEV`
const PWRITEV: u16 = 8;

impl Aio {
    /// A new one. The kernel gives out a bounded number of them.
    pub fn new() -> io::Result<Aio> {
        let mut context = 0usize;
        // SAFETY: the kernel writes the one word.
        let result = unsafe { libc::syscall(libc::SYS_io_setup, BATCH, &raw mut context) };
        match result {
            0 => Ok(Aio { context, calls: 0 }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Carries out up to [`BATCH`] writes and gives each one's result as the system call `pwritev` would.
    /// What the kernel did not take has none.
    ///
    /// # Safety
    /// The vectors name memory that may be read until this returns.
    pub unsafe fn write(
        &mut self,
        fd: BorrowedFd<'_>,
        orders: &[Order<'_>],
    ) -> io::Result<Vec<(u16, i64)>> {
        let mut blocks = [Iocb::default(); BATCH];
        let orders = &orders[..orders.len().min(BATCH)];
        for (block, &(vectors, offset, token)) in blocks.iter_mut().zip(orders) {
            *block = Iocb {
                data: token.into(),
                opcode: PWRITEV,
                fd: fd.as_raw_fd() as u32,
                buffer: vectors.as_ptr().expose_provenance() as u64,
                length: vectors.len() as u64,
                offset: offset as i64,
                ..Iocb::default()
            };
        }
        let pointers: [*const Iocb; BATCH] = std::array::from_fn(|n| &raw const blocks[n]);
        self.calls += 1;
        // SAFETY: as many blocks as orders, whose memory may be read for as long as we wait, which is until
        // each of them has ended.
        let taken = unsafe {
            libc::syscall(
                libc::SYS_io_submit,
                self.context,
                orders.len(),
                pointers.as_ptr(),
            )
        };
        let Ok(taken) = usize::try_from(taken) else {
            return Err(io::Error::last_os_error());
        };
        let mut events = [Event::default(); BATCH];
        let mut ended = 0;
        while ended < taken {
            self.calls += 1;
            let room = &mut events[ended..taken];
            // SAFETY: the kernel fills at most as many events as there is room for.
            let more = unsafe {
                libc::syscall(
                    libc::SYS_io_getevents,
                    self.context,
                    room.len(),
                    room.len(),
                    room.as_mut_ptr(),
                    std::ptr::null_mut::<libc::timespec>(),
                )
            };
            match usize::try_from(more) {
                Ok(more) => ended += more,
                Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                // The orders' memory must not be given back while they may run.
                Err(_) => panic!("io_getevents: {}", io::Error::last_os_error()),
            }
        }
        let events = events[..taken].iter();
        Ok(events.map(|e| (e.data as u16, e.result)).collect())
    }

    /// How many system calls it has made.
    pub fn calls(&self) -> u64 {
        self.calls
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        // SAFETY: our own context; nothing runs in it.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn writes_are_done_when_it_returns() {
        let path = std::env::temp_dir().join(format!("blkback-aio-{}", std::process::id()));
        let file = std::fs::File::create_new(&path).unwrap();
        let data: Vec<[u8; 512]> = (0..BATCH).map(|n| [n as u8; 512]).collect();
        let vectors: Vec<libc::iovec> = data
            .iter()
            .map(|block| libc::iovec {
                iov_base: block.as_ptr().cast_mut().cast(),
                iov_len: block.len(),
            })
            .collect();
        let order = |n: usize| (&vectors[n..=n], 512 * n as u64, n as u16);
        let orders: Vec<Order<'_>> = (0..BATCH).rev().map(order).collect();
        let mut aio = Aio::new().unwrap();
        // SAFETY: `data` lives on.
        let mut results = unsafe { aio.write(file.as_fd(), &orders) }.unwrap();
        results.sort_unstable();
        let expected: Vec<(u16, i64)> = (0..BATCH).map(|n| (n as u16, 512)).collect();
        assert_eq!((results, aio.calls()), (expected, 2));
        assert_eq!(std::fs::read(&path).unwrap(), data.concat());
        let closed = std::fs::File::open(&path).unwrap();
        // SAFETY: as above.
        let refused = unsafe { aio.write(closed.as_fd(), &orders[..1]) };
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EBADF));
        std::fs::remove_file(path).unwrap();
    }
}
