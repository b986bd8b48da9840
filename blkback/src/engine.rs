//! Who carries jobs out: the contract, and an engine that does each on the spot.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::memory::Piece;
use crate::storage::Storage;

/// Something to do with the disk, checked and with its memory at hand.
#[derive(Debug)]
pub struct Job {
    /// Whose it is.
    pub token: u16,
    /// What to do.
    pub work: Work,
    /// Where on the disk, in bytes.
    pub offset: u64,
    /// From or to where; empty unless it is a transfer. Kept by the engine until the job has ended.
    pub data: Vec<Piece>,
}

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// From disk to memory.
    Read,
    /// From memory to disk.
    Write,
    /// Everything written so far is made to last.
    Flush,
    /// So many bytes are not needed any more.
    Discard(u64),
}

/// A job that has ended.
#[derive(Debug)]
pub struct Done {
    /// The job, with its memory.
    pub job: Job,
    /// How it went.
    pub result: io::Result<()>,
}

/// An event channel to wait for.
#[derive(Clone, Copy, Debug)]
pub struct Listen<'a> {
    /// Its descriptor.
    pub fd: BorrowedFd<'a>,
    /// The port, as it is written to and read from the descriptor, if that is to be done on the way
    /// ([`Engine::merges`]).
    pub port: Option<[u8; 4]>,
    /// It is to be unmasked first; only with a port.
    pub masked: bool,
}

impl<'a> Listen<'a> {
    /// Waits for the descriptor alone.
    pub fn to(fd: BorrowedFd<'a>) -> Listen<'a> {
        Listen {
            fd,
            port: None,
            masked: false,
        }
    }
}

/// What happened while an engine waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Woken {
    /// The event channel has fired: it can be read.
    pub event: bool,
    /// It was read already.
    pub taken: bool,
}

/// Jobs begun at a time, at most.
pub const MAX_BATCH: usize = 64;

/// Carries out jobs, several at a time and in any order. Dropping it waits for those that are running: the
/// memory they use is the guest's.
pub trait Engine {
    /// Takes a job. It may begin at once or with [`kick`](Self::kick).
    fn start(&mut self, job: Job);
    /// Begins everything taken.
    fn kick(&mut self) -> io::Result<()>;
    /// The next job that has ended, if any.
    fn finished(&mut self) -> Option<Done>;
    /// How many jobs are best begun at a time: many where each is done on the spot, few where a device
    /// could begin with the first meanwhile.
    fn batch(&self) -> usize {
        MAX_BATCH
    }
    /// Whether a job may have ended, as far as can be told without a system call.
    fn ready(&mut self) -> bool {
        false
    }
    /// Waits until a job has ended, one of the descriptors can be read, or the time is over.
    fn wait(
        &mut self,
        event: Listen<'_>,
        stop: BorrowedFd<'_>,
        timeout: Option<Duration>,
    ) -> io::Result<Woken>;
    /// Whether a wait unmasks and reads the event channel in the same call.
    fn merges(&self) -> bool {
        false
    }
    /// How many system calls it has made.
    fn calls(&self) -> u64;
}

/// Carries a job out with the calls of a [`Storage`], and waits for its end.
pub fn perform(storage: &dyn Storage, job: &Job) -> io::Result<()> {
    match job.work {
        Work::Read => storage.read_pieces(job.offset, &job.data),
        Work::Write => storage.write_pieces(job.offset, &job.data),
        Work::Flush => storage.flush(),
        Work::Discard(len) => storage.discard(job.offset, len),
    }
}

/// Chooses which of so many jobs is next.
pub type Order = Box<dyn FnMut(usize) -> usize + Send>;

/// An engine without threads or a kernel's help: each job is done when its end is asked for, in the order
/// that a test wishes.
pub struct Direct {
    storage: Arc<dyn Storage>,
    jobs: Vec<Job>,
    order: Order,
    /// Jobs that end before the next kick.
    allowed: usize,
}

/// Jobs that end at each kick, so that others are in flight.
const AT_A_KICK: usize = 3;

impl Direct {
    /// An engine on a storage.
    pub fn new(storage: Arc<dyn Storage>, order: Order) -> Direct {
        Direct {
            storage,
            jobs: Vec::new(),
            order,
            allowed: 0,
        }
    }
}

impl Engine for Direct {
    fn start(&mut self, job: Job) {
        self.jobs.push(job);
    }

    fn kick(&mut self) -> io::Result<()> {
        self.allowed = AT_A_KICK;
        Ok(())
    }

    fn finished(&mut self) -> Option<Done> {
        if self.jobs.is_empty() || self.allowed == 0 {
            return None;
        }
        self.allowed -= 1;
        let next = (self.order)(self.jobs.len()) % self.jobs.len();
        let job = self.jobs.remove(next);
        let result = perform(&*self.storage, &job);
        Some(Done { job, result })
    }

    fn wait(
        &mut self,
        event: Listen<'_>,
        stop: BorrowedFd<'_>,
        timeout: Option<Duration>,
    ) -> io::Result<Woken> {
        wait_for([event.fd, stop, stop], timeout).map(|[event, ..]| Woken {
            event,
            taken: false,
        })
    }

    fn calls(&self) -> u64 {
        0
    }
}

/// Waits until one of the descriptors can be read or the time is over; says which can.
pub fn wait_for(fds: [BorrowedFd<'_>; 3], timeout: Option<Duration>) -> io::Result<[bool; 3]> {
    let mut fds = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    let timeout = timeout.map(|time| Timespec {
        tv_sec: time.as_secs() as i64,
        tv_nsec: time.subsec_nanos().into(),
    });
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) => Ok(fds.map(|fd| !fd.revents().is_empty())),
        Err(rustix::io::Errno::INTR) => Ok([false; 3]),
        Err(error) => Err(error.into()),
    }
}
