//! An engine on io_uring, for plain files and block devices: one system call starts a batch of jobs, and the
//! data goes straight between the file and the guest's pages. What is cheaper without it goes by the `lane`.
//!
//! The event channel is served by the ring too: one call unmasks it, waits, and reads what has fired.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};

use crate::engine::{Done, Engine, Job, Listen, MAX_BATCH, Woken, Work, perform};
use crate::lane::Lane;
use crate::memory::total;
use crate::storage::Storage;
use crate::uring_setup;

/// See the module.
pub struct Uring {
    ring: IoUring,
    storage: Arc<dyn Storage>,
    /// By token.
    running: Vec<Option<Running>>,
    count: usize,
    /// Reads among them.
    reads: usize,
    done: VecDeque<Done>,
    /// Taken and not begun.
    fresh: Vec<Job>,
    lane: Lane,
    /// Entries that the kernel has not been shown.
    queued: usize,
    event: Armed,
    stop: Armed,
    /// The kernel can be asked to say nothing of what went well, which merging takes.
    merges: bool,
    channel: Box<Channel>,
    /// The unmasking has not ended yet.
    unmasking: bool,
    /// It failed: no event would come any more.
    deaf: Option<i32>,
    calls: u64,
}

/// What the kernel reads and writes while it serves the event channel.
#[derive(Default)]
struct Channel {
    unmask: [u8; 4],
    fired: [u8; 32],
}

/// A job with what the kernel reads while it runs.
struct Running {
    job: Job,
    /// Read by the kernel, not by us.
    _iovecs: Vec<libc::iovec>,
}

// SAFETY: the addresses are those of the job's pieces, which are Send themselves.
unsafe impl Send for Running {}

/// A descriptor that is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Armed {
    #[default]
    No,
    Yes,
    /// And the kernel reads it then.
    Merged,
    Fired,
    /// And it was read.
    Taken,
}

/// Places in the table of registered files.
const IMAGE: types::Fixed = types::Fixed(0);

/// Names of entries that are no jobs.
const EVENT: u64 = u64::MAX;
const STOP: u64 = u64::MAX - 1;
const UNMASK: u64 = u64::MAX - 2;
/// The poll before the event channel is read.
const POLL: u64 = u64::MAX - 3;
const CANCEL: u64 = u64::MAX - 4;

impl Uring {
    /// An engine for up to `jobs` jobs at a time on the file behind `storage`. `held` stays open, by the
    /// kernel's own hand, until the last of them has ended, even if the process is killed. An error says that the kernel has no
    /// io_uring, forbids it, or lacks a part of it. To be made by the thread that uses it.
    pub fn new(
        storage: Arc<dyn Storage>,
        jobs: usize,
        held: Option<BorrowedFd<'_>>,
    ) -> io::Result<Uring> {
        let file = storage.file().ok_or(io::ErrorKind::Unsupported)?;
        let mut files = vec![file.as_raw_fd()];
        files.extend(held.map(|fd| fd.as_raw_fd()));
        let ring = uring_setup::ring(jobs, &files)?;
        if !ring.params().is_feature_ext_arg() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Uring {
            lane: Lane::new(file)?,
            merges: ring.params().is_feature_skip_cqe_on_success(),
            channel: Box::default(),
            unmasking: false,
            deaf: None,
            fresh: Vec::new(),
            ring,
            storage,
            running: (0..jobs).map(|_| None).collect(),
            count: 0,
            reads: 0,
            done: VecDeque::new(),
            queued: 0,
            event: Armed::No,
            stop: Armed::No,
            calls: 0,
        })
    }

    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        // SAFETY: what the entry names lives until its completion is taken: a job and its vectors stay in
        // `running`, polls name nothing but a descriptor, and `drop` waits for those that use the channel.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.submit(0, None)?;
        }
        self.queued += 1;
        Ok(())
    }

    /// Shows the kernel what is queued and waits for `want` completions.
    fn submit(&mut self, want: usize, timeout: Option<Duration>) -> io::Result<()> {
        self.calls += 1;
        self.queued = 0;
        let result = match timeout {
            Some(time) => {
                let time = types::Timespec::from(time);
                let args = types::SubmitArgs::new().timespec(&time);
                self.ring.submitter().submit_with_args(want, &args)
            }
            None => self.ring.submit_and_wait(want),
        };
        match result.map_err(|error| (error.raw_os_error(), error)) {
            Ok(_) | Err((Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN), _)) => {
                Ok(())
            }
            Err((_, error)) => Err(error),
        }
    }

    fn begin(&mut self, job: Job) -> io::Result<()> {
        let (token, work) = (job.token, job.work);
        let place = usize::from(token);
        assert!(self.running[place].is_none(), "a token names one job");
        let one;
        let mut iovecs: Vec<libc::iovec> = Vec::new();
        let vectors = match job.data.as_slice() {
            [piece] => {
                one = [piece.iovec()];
                one.as_slice()
            }
            pieces => {
                iovecs.extend(pieces.iter().map(|piece| piece.iovec()));
                iovecs.as_slice()
            }
        };
        let entry = match (job.work, vectors) {
            (Work::Read, [one]) => {
                opcode::Read::new(IMAGE, one.iov_base.cast(), one.iov_len as u32)
                    .offset(job.offset)
                    .build()
            }
            (Work::Write, [one]) => {
                opcode::Write::new(IMAGE, one.iov_base.cast(), one.iov_len as u32)
                    .offset(job.offset)
                    .build()
            }
            (Work::Read, many) => opcode::Readv::new(IMAGE, many.as_ptr(), many.len() as u32)
                .offset(job.offset)
                .build(),
            (Work::Write, many) => opcode::Writev::new(IMAGE, many.as_ptr(), many.len() as u32)
                .offset(job.offset)
                .build(),
            (Work::Flush, _) => opcode::Fsync::new(IMAGE)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            (Work::Discard(len), _) => opcode::Fallocate::new(IMAGE, len)
                .offset(job.offset)
                .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
                .build(),
        };
        self.running[place] = Some(Running {
            job,
            _iovecs: iovecs,
        });
        self.count += 1;
        self.reads += usize::from(work == Work::Read);
        self.push(entry.user_data(token.into()))
    }

    /// Takes all completions.
    fn drain(&mut self) {
        loop {
            let next = self.ring.completion().next();
            let Some(entry) = next else { return };
            match entry.user_data() {
                EVENT => self.event = self.fired(entry.result()),
                // Of a chain whose beginning has failed, this is all that is told.
                POLL if self.event == Armed::Merged => {
                    self.event = match -entry.result() {
                        libc::ECANCELED => Armed::No,
                        _ => Armed::Fired,
                    };
                }
                STOP => self.stop = Armed::Fired,
                UNMASK => {
                    self.unmasking = false;
                    self.deaf = Some(-entry.result()).filter(|errno| *errno > 0);
                }
                token => {
                    let place = self.running.get_mut(token as usize);
                    let Some(running) = place.and_then(Option::take) else {
                        continue;
                    };
                    self.count -= 1;
                    let job = running.job;
                    self.reads -= usize::from(job.work == Work::Read);
                    let result = self.outcome(&job, entry.result());
                    self.done.push_back(Done { job, result });
                }
            }
        }
    }

    /// What has become of the event channel's chain.
    fn fired(&self, result: i32) -> Armed {
        match (self.event, result) {
            (Armed::Merged, 1..) => Armed::Taken,
            (Armed::Merged, errno) if errno == -libc::EAGAIN => Armed::No,
            // Whoever reads it then learns what is wrong.
            _ => Armed::Fired,
        }
    }

    fn outcome(&mut self, job: &Job, result: i32) -> io::Result<()> {
        let done = match (job.work, -result) {
            (_, libc::EAGAIN | libc::EINTR) => 0,
            // A hint, and the storage's own call knows what else may be said to it.
            (Work::Discard(_), error) if error > 0 => 0,
            (_, error) if error > 0 => return Err(io::Error::from_raw_os_error(error)),
            (Work::Flush | Work::Discard(_), _) => return Ok(()),
            (Work::Read | Work::Write, _) => result as usize,
        };
        if done > 0 && done == total(&job.data) {
            return Ok(());
        }
        // A rest, which is rare: done on the spot.
        self.calls += 1;
        let mut skip = done;
        let mut rest = Vec::new();
        for piece in &job.data {
            rest.extend(piece.after(skip.min(piece.len())));
            skip = skip.saturating_sub(piece.len());
        }
        let rest = Job {
            token: job.token,
            work: job.work,
            offset: job.offset + done as u64,
            data: rest,
        };
        perform(&*self.storage, &rest)
    }

    /// Begins what was taken, on the spot or by the ring.
    fn begin_fresh(&mut self) -> io::Result<()> {
        let storage = self.storage.clone();
        let Some(fd) = storage.file().filter(|_| !self.fresh.is_empty()) else {
            return Ok(());
        };
        let mut jobs = std::mem::take(&mut self.fresh);
        if let ([job], 0) = (jobs.as_slice(), self.queued)
            && let Some(result) = self.lane.read(fd, job)
        {
            self.end(jobs.remove(0), result);
        }
        let here = self.lane.choose(&mut jobs).min(MAX_BATCH);
        if here > 0 {
            let mut results = [0i64; MAX_BATCH];
            let told = |place: usize, result| results[place] = result;
            self.lane.carry_out(fd, &jobs[..here], told);
            for (job, result) in jobs.drain(..here).zip(results) {
                self.end(job, result);
            }
        }
        for job in jobs.drain(..) {
            self.begin(job)?;
        }
        // Its memory is of use again.
        self.fresh = jobs;
        Ok(())
    }

    fn end(&mut self, job: Job, result: i64) {
        let result = self.outcome(&job, result as i32);
        self.done.push_back(Done { job, result });
    }

    /// Sees to it that the descriptors are waited for; how many completions come at once from that.
    fn listen(&mut self, event: Listen<'_>, stop: BorrowedFd<'_>) -> io::Result<usize> {
        let poll = |fd: BorrowedFd<'_>| {
            opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), libc::POLLIN as u32).build()
        };
        if self.stop == Armed::No {
            self.stop = Armed::Yes;
            self.push(poll(stop).user_data(STOP))?;
        }
        let Some(port) = event.port.filter(|_| self.merges) else {
            if self.event == Armed::No {
                self.event = Armed::Yes;
                self.push(poll(event.fd).user_data(EVENT))?;
            }
            return Ok(0);
        };
        let fd = types::Fd(event.fd.as_raw_fd());
        if self.event == Armed::No {
            self.event = Armed::Merged;
            let (to, len) = (self.channel.fired.as_mut_ptr(), self.channel.fired.len());
            let poll = poll(event.fd)
                .user_data(POLL)
                .flags(squeue::Flags::IO_LINK | squeue::Flags::SKIP_SUCCESS);
            let read = opcode::Read::new(fd, to, len as u32).build();
            self.make_room(2)?;
            self.push(poll)?;
            self.push(read.user_data(EVENT))?;
        }
        if !event.masked {
            return Ok(0);
        }
        self.channel.unmask = port;
        self.unmasking = true;
        let (from, len) = (self.channel.unmask.as_ptr(), port.len());
        let write = opcode::Write::new(fd, from, len as u32).build();
        self.push(write.user_data(UNMASK))?;
        Ok(1)
    }

    /// What follows goes to the kernel in one piece.
    fn make_room(&mut self, entries: usize) -> io::Result<()> {
        let queue = self.ring.submission();
        if queue.capacity() - queue.len() < entries {
            drop(queue);
            self.submit(0, None)?;
        }
        Ok(())
    }
}

/// Begun at a time where the page cache has no part: a device is not to wait for the last of many.
const AT_A_DEVICE: usize = 8;

impl Engine for Uring {
    fn start(&mut self, job: Job) {
        self.fresh.push(job);
    }

    fn kick(&mut self) -> io::Result<()> {
        self.begin_fresh()?;
        if self.queued == 0 {
            return Ok(());
        }
        self.submit(0, None)?;
        self.drain();
        if self.reads > 0 {
            self.lane.was_put_off();
        }
        Ok(())
    }

    fn finished(&mut self) -> Option<Done> {
        if self.done.is_empty() {
            // The kernel puts off what has ended until it is asked; a failure shows with the next order.
            if self.count > 0 && self.ring.submission().taskrun() {
                let _ = self.submit(0, None);
            }
            self.drain();
        }
        self.done.pop_front()
    }

    fn batch(&self) -> usize {
        match self.lane.is_cached() {
            true => MAX_BATCH,
            false => AT_A_DEVICE,
        }
    }

    fn ready(&mut self) -> bool {
        let ended =
            |ring: &mut IoUring| ring.submission().taskrun() || !ring.completion().is_empty();
        !self.done.is_empty() || self.count > 0 && ended(&mut self.ring)
    }

    fn wait(
        &mut self,
        event: Listen<'_>,
        stop: BorrowedFd<'_>,
        timeout: Option<Duration>,
    ) -> io::Result<Woken> {
        self.begin_fresh()?;
        let more = self.listen(event, stop)?;
        self.drain();
        let fired = |armed| matches!(armed, Armed::Fired | Armed::Taken);
        let at_once = fired(self.event) || fired(self.stop) || !self.done.is_empty();
        if !at_once || self.queued > 0 {
            let want = if at_once { 0 } else { 1 + more };
            self.submit(want, timeout)?;
            self.drain();
        }
        if let Some(errno) = self.deaf {
            return Err(io::Error::from_raw_os_error(errno));
        }
        if self.stop == Armed::Fired {
            self.stop = Armed::No;
        }
        let armed = self.event;
        if fired(armed) {
            self.event = Armed::No;
        }
        Ok(Woken {
            event: fired(armed),
            taken: armed == Armed::Taken,
        })
    }

    fn merges(&self) -> bool {
        self.merges
    }

    fn calls(&self) -> u64 {
        self.calls + self.lane.calls()
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        let mut usable = true;
        if self.event == Armed::Merged {
            let cancel = opcode::AsyncCancel::new(POLL).build();
            usable = self.push(cancel.user_data(CANCEL)).is_ok();
        }
        let busy = |ring: &Uring| ring.count > 0 || ring.unmasking || ring.event == Armed::Merged;
        while usable && busy(self) {
            self.drain();
            usable = !busy(self) || self.submit(1, None).is_ok();
        }
        if !usable {
            // Whether they run is not known any more: their memory must stay.
            std::mem::forget(std::mem::take(&mut self.running));
            Box::leak(std::mem::take(&mut self.channel));
        }
    }
}
