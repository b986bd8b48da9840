//! The part without rights: reads images, takes guests' rings apart and moves the data, with the descriptors that
//! the broker hands to it and no others. A thread for each device talks with the broker, one for each queue works.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use blkback::{
    Connect, DataMove, Engine, Journal, Link, Log, MappedFile, OtherFiles, Progress, Storage,
    Threads, Uring, Woken, open_given,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::FlockOperation;
use rustix::net::RecvFlags;
use xen_backend::daemon::{self, Failure};
use xen_backend::{Stop, Wake, Worker};
use xen_dom0::{Events, Grants};
use xen_hal::{Error, Result};
use xen_sys::Errno;

use crate::messages::{self, Medium, Message, Serve};

/// Serves what comes on `control` until its other end is closed.
pub fn run(control: impl AsFd) -> std::result::Result<(), Failure> {
    while let Some((message, fds)) = messages::receive(&control, RecvFlags::empty())? {
        let (Message::Device, Some(conversation)) = (&message, fds.into_iter().next()) else {
            return Err(format!("the broker said {message:?}").into());
        };
        let thread = std::thread::Builder::new().name("device".into());
        // If there are no more threads, the broker finds the conversation closed and starts over.
        thread.spawn(move || converse(&conversation))?;
    }
    Ok(())
}

/// A device's conversation, to its end. A panic ends the device, not the others.
fn converse(socket: &OwnedFd) {
    let result = catch_unwind(AssertUnwindSafe(|| serve_device(socket)));
    let (errno, why) = match result {
        Ok(Ok(())) => return,
        Ok(Err(error)) => (error.raw_os_error(), error.to_string()),
        Err(_) => (None, "a bug: the thread panicked".to_string()),
    };
    let errno = errno.unwrap_or(Errno::EIO.0);
    daemon::log_device(&format!("worker: {why}"));
    let _ = messages::send(socket, &Message::Failed { errno, why }, &[]);
    // Closed only when the broker has: a closed conversation says that all of us have ended.
    while matches!(
        messages::receive(socket, RecvFlags::empty()),
        Ok(Some(_)) | Err(_)
    ) {
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn serve_device(socket: &OwnedFd) -> io::Result<()> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_string());
    let Some((message, fds)) = messages::receive(socket, RecvFlags::empty())? else {
        return Ok(());
    };
    let mut fds = fds.into_iter();
    let (
        Message::Open {
            path,
            format,
            read_only,
            direct,
        },
        Some(file),
        Some(broker),
    ) = (message, fds.next(), fds.next())
    else {
        return Err(bad("the broker named no disk"));
    };
    let disk = messages::disk(path, &format, read_only).ok_or_else(|| bad("unknown format"))?;
    let others = Asked(socket);
    let storage = match open_given(&disk, file.into(), direct, &others) {
        Ok(storage) => storage,
        Err(error) => return messages::send(socket, &messages::refused(&error), &[]),
    };
    let medium = Medium {
        sectors_512: storage.sectors_512(),
        sector_size: storage.sector_size(),
        can_discard: storage.can_discard(),
        discard_unit: storage.discard_unit(),
    };
    messages::send(socket, &Message::Opened(medium), &[])?;
    Device {
        socket,
        broker,
        storage,
        wake: Wake::new()?,
        serving: None,
    }
    .run()
}

/// Other files are opened by the broker, if it likes.
struct Asked<'a>(&'a OwnedFd);

impl OtherFiles for Asked<'_> {
    fn open(
        &self,
        image: &Path,
        name: &str,
        role: &str,
        read_only: bool,
    ) -> io::Result<(File, PathBuf)> {
        let ask = Message::Need {
            image: image.into(),
            name: name.into(),
            role: role.into(),
            read_only,
        };
        messages::send(self.0, &ask, &[])?;
        match messages::receive(self.0, RecvFlags::empty())? {
            Some((Message::File { path }, fds)) if fds.len() == 1 => {
                let file = fds.into_iter().next().expect("one");
                Ok((file.into(), path))
            }
            Some((Message::Refused { errno, why }, _)) => Err(match errno {
                Some(errno) => io::Error::from_raw_os_error(errno),
                None => io::Error::new(io::ErrorKind::PermissionDenied, why),
            }),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// An open disk.
struct Device<'a> {
    socket: &'a OwnedFd,
    /// Wakes the broker's main loop.
    broker: OwnedFd,
    storage: Arc<dyn Storage>,
    /// Its queues' threads tell of their end by it.
    wake: Wake,
    serving: Option<Serving>,
}

/// Its queues' threads.
struct Serving {
    workers: Vec<Worker>,
    /// The guest has let go: what is on record is of no use any more.
    forget: Arc<AtomicBool>,
    stopping: bool,
    failed: bool,
}

impl Serving {
    /// Asks all threads to end; true once they have.
    fn end(&self) -> bool {
        // Each is to be asked, whatever the others say.
        let ended: Vec<bool> = self.workers.iter().map(Worker::stop).collect();
        ended.into_iter().all(|ended| ended)
    }
}

impl Device<'_> {
    fn run(mut self) -> io::Result<()> {
        loop {
            let mut fds = [
                PollFd::new(self.socket, PollFlags::IN),
                PollFd::new(&self.wake, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            if !fds[0].revents().is_empty() {
                match messages::receive(self.socket, RecvFlags::empty())? {
                    // The threads that are left end when they are dropped.
                    None => return Ok(()),
                    Some((message, fds)) => self.obey(message, fds)?,
                }
            }
            self.wake.clear();
            self.look()?;
        }
    }

    fn say(&self, message: &Message) -> io::Result<()> {
        messages::send(self.socket, message, &[])?;
        // It can only fail with a counter at its limit, and then it is readable anyway.
        let _ = rustix::io::write(&self.broker, &1u64.to_ne_bytes());
        Ok(())
    }

    fn obey(&mut self, message: Message, fds: Vec<OwnedFd>) -> io::Result<()> {
        match message {
            Message::Serve(serve) => {
                // What was served before has stopped, or the broker would not ask.
                self.serving = None;
                let forget = Arc::new(AtomicBool::new(false));
                let started = start(&serve, fds, &self.storage, &forget, &self.wake);
                let mut serving = Serving {
                    workers: Vec::new(),
                    forget,
                    stopping: false,
                    failed: false,
                };
                match started {
                    Ok(workers) => serving.workers = workers,
                    Err(error) => {
                        serving.failed = true;
                        self.say(&failed(&error))?;
                    }
                }
                self.serving = Some(serving);
            }
            Message::Refresh => {
                // A medium whose size cannot be told any more keeps the one it had.
                let _ = self.storage.refresh();
                let sectors_512 = self.storage.sectors_512();
                self.say(&Message::Size { sectors_512 })?;
            }
            Message::Stop { forget } => match &mut self.serving {
                Some(serving) => {
                    serving.forget.fetch_or(forget, Ordering::AcqRel);
                    serving.stopping = true;
                }
                None => self.say(&Message::Stopped)?,
            },
            other => {
                let what = format!("the broker said {other:?}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
        }
        Ok(())
    }

    /// Tells the broker of threads that have failed or ended.
    fn look(&mut self) -> io::Result<()> {
        let Some(serving) = &mut self.serving else {
            return Ok(());
        };
        let failure = serving.workers.iter().find_map(Worker::failure);
        if let Some(error) = failure.filter(|_| !serving.failed) {
            serving.failed = true;
            self.say(&failed(&error))?;
        }
        if self.serving.as_ref().is_some_and(|s| s.stopping && s.end()) {
            self.serving = None;
            self.say(&Message::Stopped)?;
        }
        Ok(())
    }
}

fn failed(error: &Error) -> Message {
    Message::Failed {
        errno: match error {
            Error::System { errno, .. } | Error::Event { errno, .. } => errno.0,
            _ => Errno::EIO.0,
        },
        why: error.to_string(),
    }
}

/// Starts the queues' threads with the descriptors that came along.
fn start(
    serve: &Serve,
    fds: Vec<OwnedFd>,
    storage: &Arc<dyn Storage>,
    forget: &Arc<AtomicBool>,
    wake: &Wake,
) -> Result<Vec<Worker>> {
    let connect = serve.connect();
    let mut fds = fds.into_iter();
    let missing = || Error::System {
        op: "take over",
        object: "descriptors that did not come along".into(),
        errno: Errno::EINVAL,
    };
    let grants = Grants::inherit(fds.next().ok_or_else(missing)?);
    let device = format!("vbd/{}", connect.id);
    let log: Log = {
        let device = device.clone();
        Arc::new(move |line: &str| daemon::log_device(&format!("{device}: {line}")))
    };
    let mut workers = Vec::new();
    for queue in 0..connect.rings.len() {
        let (Some(events), Some(journal)) = (fds.next(), fds.next()) else {
            return Err(missing());
        };
        let run = Run {
            connect: connect.clone(),
            queue,
            grants: grants.clone(),
            events: Events::inherit(events, []),
            journal: journal.into(),
            storage: storage.clone(),
            data_move: match serve.keep_mapped {
                true => DataMove::Persistent,
                false => DataMove::Copy,
            },
            engine: serve.engine.clone(),
            forget: forget.clone(),
            log: log.clone(),
        };
        let name = format!("{device}-{queue}");
        workers.push(Worker::spawn(name, wake, move |stop| run.run(stop))?);
    }
    Ok(workers)
}

/// What a queue's thread needs.
struct Run {
    connect: Connect,
    queue: usize,
    grants: Grants,
    events: Events,
    journal: File,
    storage: Arc<dyn Storage>,
    data_move: DataMove,
    engine: String,
    forget: Arc<AtomicBool>,
    log: Log,
}

impl Run {
    fn run(self, stop: &Stop) -> Result<()> {
        let failed = |op| {
            move |error: io::Error| Error::System {
                op,
                object: "the account of a queue".into(),
                errno: Errno(error.raw_os_error().unwrap_or(Errno::EIO.0)),
            }
        };
        if !lock(&self.journal, stop).map_err(failed("lock"))? {
            return Ok(());
        }
        let resume = self.connect.resume;
        let link = Link::new(&self.connect, self.queue, self.grants, self.events)?;
        let size = link.journal_size();
        let memory = prepare(&self.journal, size, resume).map_err(failed("prepare"))?;
        let engine = engine(
            &self.engine,
            &self.storage,
            link.capacity(),
            &self.journal,
            &self.log,
        )
        .map_err(failed("set up requests on"))?;
        let mut served = link.serve(
            Arc::new(memory),
            engine,
            self.data_move,
            self.storage,
            self.log.clone(),
        )?;
        let mut woken = Woken {
            event: true,
            taken: false,
        };
        let mut outcome = Ok(());
        while !stop.requested() {
            match served.work(woken) {
                Ok(Progress::More) => woken = Woken::default(),
                Ok(Progress::Idle) => match served.wait(stop.as_fd()) {
                    Ok(what) => woken = what,
                    Err(error) => outcome = Err(error),
                },
                Err(error) => outcome = Err(error),
            }
            if outcome.is_err() {
                break;
            }
        }
        if outcome.is_ok() {
            outcome = served.finish();
        }
        (self.log)(&summary(served.queue().journal()));
        if self.forget.load(Ordering::Acquire) || outcome.is_err() {
            served.queue().journal().forget();
        }
        outcome
    }
}

/// What a queue has done, for the log.
fn summary(journal: &Journal) -> String {
    use blkback::Count::*;
    let count = |count| journal.count(count);
    format!(
        "{} requests, {} errors, {} bytes read, {} written, {} flushes, {} system calls, \
         {} data hypercalls, {} events, {} replayed",
        count(Done),
        count(Errors),
        count(ReadBytes),
        count(WrittenBytes),
        count(Flushes),
        count(Calls),
        count(DataCalls),
        count(Events),
        count(Replayed)
    )
}

/// Locks a journal; false if we are to end before. The process before us holds the lock until the last of its
/// requests has ended, even if it was killed: its io_uring keeps the file open.
fn lock(file: &File, stop: &Stop) -> io::Result<bool> {
    while !stop.requested() {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

fn prepare(file: &File, size: usize, resume: bool) -> io::Result<MappedFile> {
    if !resume {
        file.set_len(0)?;
    }
    file.set_len(size as u64)?;
    MappedFile::new(file, size)
}

/// The best engine that disk and kernel allow.
fn engine(
    name: &str,
    storage: &Arc<dyn Storage>,
    jobs: usize,
    journal: &impl AsFd,
    log: &Log,
) -> io::Result<Box<dyn Engine>> {
    if name != "threads" && storage.file().is_some() {
        let held: BorrowedFd<'_> = journal.as_fd();
        match Uring::new(storage.clone(), jobs, Some(held)) {
            Ok(engine) => return Ok(Box::new(engine)),
            Err(error) if name == "uring" => return Err(error),
            Err(error) => log(&format!("no io_uring ({error}); threads instead")),
        }
    }
    Ok(Box::new(Threads::new(storage.clone())?))
}
