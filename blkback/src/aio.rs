//! Many transfers by one system call that does them on the spot: `io_submit` on a file that goes through the
//! page cache. io_uring would hand each to a kernel thread, if it is a write or the file lies in memory.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};

/// Transfers begun at once, at most.
pub const BATCH: usize = 64;

/// A context of Linux's asynchronous I/O.
pub struct Aio {
    /// Its name, which is where the kernel has put what has ended.
    context: usize,
    calls: u64,
}

/// Something to read or to write.
#[derive(Clone, Copy, Default)]
pub struct Order<'a> {
    /// It is to be written.
    pub write: bool,
    /// From or to where.
    pub vectors: &'a [libc::iovec],
    /// Where in the file.
    pub offset: u64,
    /// Whose it is.
    pub token: u16,
}

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

/// `struct aio_ring`, in front of its events: words of 32 bits.
const NUMBER: usize = 1;
const HEAD: usize = 2;
const TAIL: usize = 3;
const MAGIC: usize = 4;
const INCOMPATIBLE: usize = 6;
const LENGTH: usize = 7;
/// `AIO_RING_MAGIC`
const IS_RING: u32 = 0xa10a_10a1;

/// `IOCB_CMD_PREADV`
const PREADV: u16 = 7;
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

    /// Carries out up to [`BATCH`] orders and gives each one's result as the system calls `preadv` and
    /// `pwritev` would. What the kernel did not take has none.
    ///
    /// # Safety
    /// The vectors name memory that may be read, or written to, until this returns.
    pub unsafe fn run(
        &mut self,
        fd: BorrowedFd<'_>,
        orders: &[Order<'_>],
    ) -> io::Result<Vec<(u16, i64)>> {
        let mut blocks = [Iocb::default(); BATCH];
        let orders = &orders[..orders.len().min(BATCH)];
        for (block, order) in blocks.iter_mut().zip(orders) {
            *block = Iocb {
                data: order.token.into(),
                opcode: if order.write { PWRITEV } else { PREADV },
                fd: fd.as_raw_fd() as u32,
                buffer: order.vectors.as_ptr().expose_provenance() as u64,
                length: order.vectors.len() as u64,
                offset: order.offset as i64,
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
            let at_hand = self.take(&mut events[ended..taken]);
            ended += at_hand;
            if at_hand > 0 {
                continue;
            }
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

    /// Takes what has ended from the ring that the kernel shares with us, without a call; how many it was.
    fn take(&self, to: &mut [Event]) -> usize {
        let base = std::ptr::with_exposed_provenance_mut::<u32>(self.context);
        let word = |n: usize| {
            // SAFETY: the context's name is the address of its ring, which is mapped until it is destroyed
            // and begins with eight aligned words; an atomic tolerates the kernel's writes.
            unsafe { AtomicU32::from_ptr(base.add(n)) }
        };
        let read = |n| word(n).load(Ordering::Acquire);
        // A kernel that has another ring is asked by a call.
        let known = read(MAGIC) == IS_RING && read(INCOMPATIBLE) == 0 && read(LENGTH) == 32;
        let (number, mut head) = (read(NUMBER), read(HEAD));
        if !known || head >= number {
            return 0;
        }
        let mut count = 0;
        while count < to.len() && head != read(TAIL) {
            // SAFETY: the ring has `number` events behind its eight words, and the head is one's number; the
            // kernel writes none between head and tail.
            to[count] = unsafe {
                base.add(8)
                    .cast::<Event>()
                    .add(head as usize)
                    .read_volatile()
            };
            head = (head + 1) % number;
            count += 1;
        }
        word(HEAD).store(head, Ordering::Release);
        count
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
    fn transfers_are_done_when_it_returns() {
        let path = std::env::temp_dir().join(format!("blkback-aio-{}", std::process::id()));
        let mut options = std::fs::File::options();
        options.read(true).write(true).create_new(true);
        let file = options.open(&path).unwrap();
        let data: Vec<[u8; 512]> = (0..BATCH).map(|n| [n as u8; 512]).collect();
        let mut back = vec![[0xff_u8; 512]; BATCH];
        let written = data.iter().map(|block| block.as_ptr().cast_mut());
        let written: Vec<libc::iovec> = written.map(vector).collect();
        let read = back.iter_mut().map(|block| block.as_mut_ptr());
        let read: Vec<libc::iovec> = read.map(vector).collect();
        let order = |n: usize, write| Order {
            write,
            vectors: if write { &written[n..=n] } else { &read[n..=n] },
            offset: 512 * n as u64,
            token: n as u16,
        };
        let expected: Vec<(u16, i64)> = (0..BATCH).map(|n| (n as u16, 512)).collect();
        let mut aio = Aio::new().unwrap();
        for (write, calls) in [(true, 1), (false, 2)] {
            let orders: Vec<Order<'_>> = (0..BATCH).rev().map(|n| order(n, write)).collect();
            // SAFETY: `data` and `back` live on.
            let mut results = unsafe { aio.run(file.as_fd(), &orders) }.unwrap();
            results.sort_unstable();
            assert_eq!((&results, aio.calls()), (&expected, calls));
        }
        assert_eq!(std::fs::read(&path).unwrap(), data.concat());
        let closed = std::fs::File::open(&path).unwrap();
        // SAFETY: as above.
        let refused = unsafe { aio.run(closed.as_fd(), &[order(0, true)]) };
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EBADF));
        std::fs::remove_file(path).unwrap();
        assert!(back == data);
    }

    fn vector(base: *mut u8) -> libc::iovec {
        libc::iovec {
            iov_base: base.cast(),
            iov_len: 512,
        }
    }
}
