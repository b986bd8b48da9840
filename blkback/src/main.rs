//! The command `blkback`: one daemon for all disks, a thread for each queue.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blkback::{
    BlockDriver, Connect, DataMove, Datapath, Engine, Link, Log, MappedFile, Progress, Storage,
    Threads, Uring, Woken, open_any,
};
use clap::{Parser, ValueEnum};
use rustix::fs::FlockOperation;
use xen_backend::daemon::{self, Common, Failure, Ready, Signals};
use xen_backend::{Bus, Stop, Wake, Worker, account};
use xen_dom0::{Events, Grants};
use xen_hal::{Error, Result};
use xen_sys::{DomId, Errno};
use xs_client::Connection;

/// Serves disk images and block devices to PV guests
#[derive(Parser)]
#[command(name = "blkback", version)]
struct Args {
    #[command(flatten)]
    common: Common,
    /// How data gets from and to a guest's pages
    #[arg(long, value_enum, default_value = "persistent")]
    data: Data,
    /// How the disk is reached
    #[arg(long, value_enum, default_value = "auto")]
    engine: Kind,
    /// Images may name backing files below this folder; may be given several times
    #[arg(long, value_name = "FOLDER")]
    backing: Vec<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Data {
    /// Pages stay mapped, if the guest agrees
    Persistent,
    /// Xen copies it
    Copy,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// io_uring if the kernel has it, else threads
    Auto,
    /// io_uring
    Uring,
    /// Threads that read and write
    Threads,
}

/// Where a toolstack sees that this daemon serves disks.
const NODE: &str = "/tool/xlrs/blkback";

/// How long requests that run may take when the daemon is told to end. What is left is on record.
const LAST_REQUESTS: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let args = Args::parse();
    daemon::run("blkback", &args.common, |ready| serve(&args, ready))
}

fn serve(args: &Args, mut ready: Ready) -> Result<(), Failure> {
    daemon::refuse_if_loaded("xen_blkback")?;
    let _lock = daemon::only_one("blkback")?;
    let signals = Signals::take()?;
    let store = Connection::from_env()?;
    let wake = Wake::new()?;
    // What every disk will need: better missed now than by the first guest.
    Events::open()?;
    std::fs::create_dir_all(account::FOLDER)
        .map_err(|error| format!("create {}: {error}", account::FOLDER))?;
    let queues = Queues {
        grants: Grants::open()?,
        data_move: match args.data {
            Data::Copy => DataMove::Copy,
            Data::Persistent => DataMove::Persistent,
        },
        kind: args.engine,
        wake: wake.clone(),
    };
    let driver =
        BlockDriver::new(queues, open_any(args.backing.clone())).in_background(wake.clone());
    let mut bus = Bus::new(driver, DomId::DOM0, daemon::log_device);
    let result = daemon::serve(&mut bus, &store, &signals, &wake, NODE, &mut ready);
    let ending: Vec<_> = bus.connections_mut().collect();
    let deadline = Instant::now() + LAST_REQUESTS;
    while !ending.iter().all(|(_, connection)| connection.end()) {
        if Instant::now() > deadline {
            daemon::log("ending with requests that still run; the next process goes on with them");
            drop(ready);
            std::process::exit(0);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    result
}

/// A thread for each queue, with an event channel descriptor of its own.
struct Queues {
    grants: Grants,
    data_move: DataMove,
    kind: Kind,
    wake: Wake,
}

/// A disk's threads.
struct Serving {
    workers: Vec<Worker>,
    /// The guest has let go: what is on record is of no use any more.
    forget: Arc<AtomicBool>,
}

impl Serving {
    /// Asks all threads to end; true once they have.
    fn end(&self) -> bool {
        // Each is to be asked, whatever the others say.
        let ended: Vec<bool> = self.workers.iter().map(Worker::stop).collect();
        ended.into_iter().all(|ended| ended)
    }
}

impl Datapath for Queues {
    type Connection = Serving;

    fn serve(&mut self, connect: &Connect, storage: Arc<dyn Storage>) -> Result<Serving> {
        let forget = Arc::new(AtomicBool::new(false));
        let mut links = Vec::new();
        for queue in 0..connect.rings.len() {
            let events = Events::open()?;
            events.restrict(connect.id.dom)?;
            links.push(Link::new(connect, queue, self.grants.clone(), events)?);
        }
        let device = format!("vbd/{}", connect.id);
        let log: Log = {
            let device = device.clone();
            Arc::new(move |line: &str| daemon::log_device(&format!("{device}: {line}")))
        };
        let mut serving = Serving {
            workers: Vec::new(),
            forget: forget.clone(),
        };
        for (queue, link) in links.into_iter().enumerate() {
            let run = Run {
                link,
                path: Path::new(account::FOLDER).join(account::file_name(connect.id, queue)),
                resume: connect.resume,
                storage: storage.clone(),
                data_move: self.data_move,
                kind: self.kind,
                forget: forget.clone(),
                log: log.clone(),
            };
            let name = format!("{device}-{queue}");
            let worker = Worker::spawn(name, &self.wake, move |stop| run.run(stop))?;
            serving.workers.push(worker);
        }
        Ok(serving)
    }

    fn failure(&self, serving: &Serving) -> Option<Error> {
        serving.workers.iter().find_map(Worker::failure)
    }

    fn stop(&self, serving: &Serving) -> bool {
        serving.forget.store(true, Ordering::Release);
        serving.end()
    }
}

/// What a queue's thread needs.
struct Run {
    link: Link<Grants, Events>,
    path: PathBuf,
    resume: bool,
    storage: Arc<dyn Storage>,
    data_move: DataMove,
    kind: Kind,
    forget: Arc<AtomicBool>,
    log: Log,
}

impl Run {
    fn run(self, stop: &Stop) -> Result<()> {
        let failed = |op, path: &Path, error: io::Error| Error::System {
            op,
            object: path.display().to_string(),
            errno: Errno(error.raw_os_error().unwrap_or(Errno::EIO.0)),
        };
        let Some(file) = lock(&self.path, stop).map_err(|e| failed("lock", &self.path, e))? else {
            return Ok(());
        };
        let size = self.link.journal_size();
        let memory = prepare(&file, size, self.resume)
            .map_err(|error| failed("prepare", &self.path, error))?;
        let engine = engine(
            self.kind,
            &self.storage,
            self.link.capacity(),
            &file,
            &self.log,
        )
        .map_err(|error| failed("set up requests of", &self.path, error))?;
        let mut served = self.link.serve(
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
            // Whoever connects next makes another.
            let _ = std::fs::remove_file(&self.path);
        }
        outcome
    }
}

/// What a queue has done, for the log.
fn summary(journal: &blkback::Journal) -> String {
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

/// Opens a journal's file and locks it. The process before us holds the lock until the last of its requests
/// has ended, even if it was killed: its io_uring keeps the file open. `None` if we are to end meanwhile.
fn lock(path: &Path, stop: &Stop) -> io::Result<Option<File>> {
    while !stop.requested() {
        let mut open = OpenOptions::new();
        let file = open
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // It may have been removed between the two steps.
            Ok(()) if path.exists() => return Ok(Some(file)),
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
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
    kind: Kind,
    storage: &Arc<dyn Storage>,
    jobs: usize,
    journal: &File,
    log: &Log,
) -> io::Result<Box<dyn Engine>> {
    if kind != Kind::Threads && storage.file().is_some() {
        match Uring::new(storage.clone(), jobs, Some(journal.as_fd())) {
            Ok(engine) => return Ok(Box::new(engine)),
            Err(error) if kind == Kind::Uring => return Err(error),
            Err(error) => log(&format!("no io_uring ({error}); threads instead")),
        }
    }
    Ok(Box::new(Threads::new(storage.clone())?))
}
