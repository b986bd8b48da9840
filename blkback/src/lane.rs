//! Transfers done on the spot, by the thread's own system call, where that is cheaper than io_uring: a read whose
//! data is in memory, writes to the page cache, which Linux 6.1 begins for nobody without waiting, and reads of a
//! file that lies in memory, if io_uring wakes a kernel thread for them.
//!
//! A write may still wait, for a disk's metadata or because too much is dirty. That holds up this queue
//! alone, and if it does, writes go through io_uring for a while.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat, fstatfs};

use crate::aio::{Aio, BATCH, Order};
use crate::engine::{Job, Work};

/// See the module.
pub struct Lane {
    /// A file that lies in memory.
    memory: bool,
    /// The page cache has the data, or will.
    cached: bool,
    /// A single read may be tried.
    reads: bool,
    /// Reads may be done in batches.
    batches: bool,
    /// Writes may be done.
    writes: bool,
    /// So many batches of writes more go elsewhere.
    closed: u32,
    aio: Option<Aio>,
    vectors: Vec<libc::iovec>,
    calls: u64,
}

// SAFETY: the vectors are used within a call only.
unsafe impl Send for Lane {}

/// A batch that takes longer than this waited for a disk.
const SLOW: Duration = Duration::from_millis(4);
/// Batches that go elsewhere after one that was slow.
const CLOSED: u32 = 256;

/// `TMPFS_MAGIC` and `RAMFS_MAGIC`.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

impl Lane {
    /// What can be done on the spot with this file.
    pub fn new(fd: BorrowedFd<'_>) -> io::Result<Lane> {
        let kind = FileType::from_raw_mode(fstat(fd)?.st_mode);
        let regular = kind == FileType::RegularFile;
        let memory = regular && IN_MEMORY.contains(&(fstatfs(fd)?.f_type as u64));
        let cached = memory || !fcntl_getfl(fd)?.contains(OFlags::DIRECT);
        Ok(Lane {
            memory,
            cached,
            reads: cached,
            batches: false,
            writes: cached && regular,
            closed: 0,
            aio: None,
            vectors: Vec::new(),
            calls: 0,
        })
    }

    /// Whether transfers go to the page cache, or to memory.
    pub fn is_cached(&self) -> bool {
        self.cached
    }

    /// Reads, if the data is at hand: what the system call said.
    pub fn read(&mut self, fd: BorrowedFd<'_>, job: &Job) -> Option<i64> {
        if !self.reads || job.work != Work::Read {
            return None;
        }
        let flags = if self.memory { 0 } else { libc::RWF_NOWAIT };
        let vectors = vectors(&mut self.vectors, std::slice::from_ref(job));
        self.calls += 1;
        // Not by libc, which makes a point of it that a thread could be cancelled in this call.
        // SAFETY: the vectors name the pieces' memory, which the job keeps; it is shared memory, of which
        // nobody has a reference.
        let read = unsafe {
            libc::syscall(
                libc::SYS_preadv2,
                fd.as_raw_fd(),
                vectors.as_ptr(),
                vectors.len(),
                job.offset,
                // The offset's upper half, where words are of 32 bits.
                0usize,
                flags,
            )
        };
        match read {
            // Not in memory, or the file system cannot tell.
            -1 => {
                self.reads = io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN);
                None
            }
            read => Some(read),
        }
    }

    /// A read by io_uring was not done on the spot. Of a file in memory, the kernel then does none so (Linux 6.1
    /// does, 6.18 has a thread do each): they are done here from now on.
    pub fn was_put_off(&mut self) {
        self.batches = self.memory;
    }

    /// Puts those that may be given to [`carry_out`](Self::carry_out) now in front, and says how many.
    pub fn choose(&mut self, jobs: &mut [Job]) -> usize {
        let mut writes = self.writes;
        if writes && jobs.iter().any(|job| job.work == Work::Write) {
            writes = self.closed == 0;
            self.closed = self.closed.saturating_sub(1);
        }
        let here = |job: &Job| match job.work {
            Work::Read => self.batches,
            Work::Write => writes,
            Work::Flush | Work::Discard(_) => false,
        };
        if !jobs.is_sorted_by_key(|job| !here(job)) {
            jobs.sort_by_key(|job| !here(job));
        }
        jobs.partition_point(here)
    }

    /// Reads and writes, and tells of each, by its place among the jobs, what the system call said.
    pub fn carry_out(
        &mut self,
        fd: BorrowedFd<'_>,
        jobs: &[Job],
        mut ended: impl FnMut(usize, i64),
    ) {
        let begun = (!self.memory).then(Instant::now);
        match jobs {
            [job] => ended(0, self.one(fd, job)),
            jobs => {
                for (n, batch) in jobs.chunks(BATCH).enumerate() {
                    self.batch(fd, batch, &mut |place, result| {
                        ended(n * BATCH + place, result)
                    });
                }
            }
        }
        if begun.is_some_and(|then| then.elapsed() > SLOW) {
            self.closed = CLOSED;
        }
    }

    fn one(&mut self, fd: BorrowedFd<'_>, job: &Job) -> i64 {
        let vectors = vectors(&mut self.vectors, std::slice::from_ref(job));
        self.calls += 1;
        let (fd, count) = (fd.as_raw_fd(), vectors.len() as i32);
        let (first, offset) = (vectors.as_ptr(), job.offset as i64);
        // SAFETY: as above.
        let moved = unsafe {
            match job.work {
                Work::Read => libc::preadv(fd, first, count, offset),
                _ => libc::pwritev(fd, first, count, offset),
            }
        };
        match moved {
            -1 => -i64::from(
                io::Error::last_os_error()
                    .raw_os_error()
                    .unwrap_or(libc::EIO),
            ),
            moved => moved as i64,
        }
    }

    fn batch(&mut self, fd: BorrowedFd<'_>, jobs: &[Job], ended: &mut impl FnMut(usize, i64)) {
        if self.aio.is_none() {
            self.calls += 1;
            self.aio = Aio::new().ok();
        }
        let Some(aio) = &mut self.aio else {
            // The host gives no more of them.
            for (place, job) in jobs.iter().enumerate() {
                ended(place, self.one(fd, job));
            }
            return;
        };
        let mut rest = vectors(&mut self.vectors, jobs);
        let mut orders = [Order::default(); BATCH];
        for (place, (order, job)) in orders.iter_mut().zip(jobs).enumerate() {
            let (own, others) = rest.split_at(job.data.len());
            *order = Order {
                write: job.work == Work::Write,
                vectors: own,
                offset: job.offset,
                token: place as u16,
            };
            rest = others;
        }
        // SAFETY: as above; the jobs are kept until this returns.
        let results = unsafe { aio.run(fd, &orders[..jobs.len()]) };
        let results = results.unwrap_or_default();
        let taken = results.len();
        for (place, result) in results {
            ended(place.into(), result);
        }
        // What was not taken says why when it is done by itself.
        for (place, job) in jobs.iter().enumerate().skip(taken) {
            ended(place, self.one(fd, job));
        }
    }

    /// How many system calls it has made.
    pub fn calls(&self) -> u64 {
        self.calls + self.aio.as_ref().map_or(0, Aio::calls)
    }
}

/// The memory of all jobs, one after another.
fn vectors<'a>(into: &'a mut Vec<libc::iovec>, jobs: &[Job]) -> &'a [libc::iovec] {
    into.clear();
    into.extend(
        jobs.iter()
            .flat_map(|job| &job.data)
            .map(|piece| piece.iovec()),
    );
    into
}
