//! The command `blkback`: one daemon for all disks. A broker, which runs as root and opens what is to be opened, and
//! a worker, which has no rights and does the rest.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use blkback::BlockDriver;
use clap::{Parser, ValueEnum};
use xen_backend::daemon::{self, Common, Ending, Failure, Ready, Signals};
use xen_backend::{Bus, Wake, account};
use xen_sys::DomId;
use xs_client::Connection;

mod broker;
mod jail;
mod messages;
mod worker;

use broker::{Broker, Link, Remotely, User};

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
    /// Serve only disks that are declared as this. As vbd3, of a stock xl's `backendtype=tap`, the kernel's xen-blkback
    /// may serve the others
    #[arg(long, value_enum)]
    only: Option<Class>,
    /// The user, by name or number, that serves disks; never root
    #[arg(long, value_name = "NAME", default_value = "xlrs")]
    user: String,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
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

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Class {
    Vbd,
    Vbd3,
}

impl Class {
    fn name(self) -> &'static str {
        match self {
            Class::Vbd => "vbd",
            Class::Vbd3 => "vbd3",
        }
    }
}

/// Where a toolstack sees that this daemon serves disks; and that it serves those alone of which the kernel's back
/// end knows nothing, so that others are not left to it.
const NODE: &str = "/tool/xlrs/blkback";
const NODE_VBD3: &str = "/tool/xlrs/blkback-vbd3";

/// The worker's root folder, in which nothing is.
const EMPTY: &str = "/run/xlrs/empty";

/// How the worker is called, with its user and group.
const WORKER: &str = "--worker";

/// How long requests that run may take when the daemon is told to end. What is left is on record.
const LAST_REQUESTS: Duration = Duration::from_secs(3);

/// A worker that lived no longer than this is followed by another a little later, and by the next later still.
const SHORT_LIFE: Duration = Duration::from_secs(1);
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    if let [_, first, uid, gid] = words.as_slice()
        && first == WORKER
    {
        return match work(uid, gid) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                daemon::log(&format!("worker: {error}"));
                ExitCode::FAILURE
            }
        };
    }
    let args = Args::parse();
    daemon::run("blkback", &args.common, |ready| {
        serve(&args, ready).map_err(xen_dom0::explained)
    })
}

/// The worker: its standard input is the way to the broker.
fn work(uid: &str, gid: &str) -> Result<(), Failure> {
    rustix::thread::set_name(c"blkback-worker")?;
    jail::enter(Path::new(EMPTY), uid.parse()?, gid.parse()?)?;
    worker::run(io::stdin())
}

fn serve(args: &Args, mut ready: Ready) -> Result<(), Failure> {
    if args.only != Some(Class::Vbd3) {
        daemon::refuse_if_loaded("xen_blkback")
            .map_err(|error| format!("{error}; or serve vbd3 alone beside it (--only vbd3)"))?;
    }
    let user = User::find(&args.user)?;
    let _lock = daemon::only_one("blkback")?;
    let signals = Signals::take()?;
    for folder in [account::FOLDER, EMPTY] {
        std::fs::create_dir_all(folder).map_err(|error| format!("create {folder}: {error}"))?;
    }
    let mut pause = SHORTEST_PAUSE;
    loop {
        let begun = Instant::now();
        match serve_once(args, user, &signals, &mut ready)? {
            Ending::Asked => return Ok(()),
            Ending::Over => daemon::log("the worker has ended: another goes on with all disks"),
        }
        pause = match begun.elapsed() < SHORT_LIFE {
            true => (2 * pause).min(SHORT_LIFE),
            false => SHORTEST_PAUSE,
        };
        std::thread::sleep(pause);
    }
}

/// Serves with one worker, until it or the daemon ends.
fn serve_once(
    args: &Args,
    user: User,
    signals: &Signals,
    ready: &mut Ready,
) -> Result<Ending, Failure> {
    let store = Connection::from_env()?;
    let wake = Wake::new()?;
    // What every disk will need: better missed now than by the first guest.
    xen_dom0::Events::open()?;
    xen_dom0::Grants::open()?;
    let (ours, theirs) = messages::pair()?;
    let link = Link::new(ours, wake.clone());
    let worker = start_worker(user, theirs)?;
    watch(worker, link.clone())?;
    let broker = Broker {
        link: link.clone(),
        keep_mapped: args.data == Data::Persistent,
        engine: match args.engine {
            Kind::Auto => "auto",
            Kind::Uring => "uring",
            Kind::Threads => "threads",
        }
        .to_string(),
    };
    let open = broker::open_images(link.clone(), args.backing.clone());
    let driver = BlockDriver::new(broker, open).in_background(wake.clone());
    let mut bus = Bus::new(driver, DomId::DOM0, daemon::log_device);
    if let Some(class) = args.only {
        bus = bus.only(class.name());
    }
    let node = match args.only {
        Some(Class::Vbd3) => NODE_VBD3,
        _ => NODE,
    };
    let result = daemon::serve(&mut bus, &store, signals, &wake, node, ready);
    if !matches!(result, Ok(Ending::Over)) {
        let ending: Vec<(_, &mut Remotely)> = bus.connections_mut().collect();
        let deadline = Instant::now() + LAST_REQUESTS;
        while !link.is_over() && !ending.iter().all(|(_, connection)| connection.stop(false)) {
            if Instant::now() > deadline {
                daemon::log(
                    "ending with requests that still run; the next process goes on with them",
                );
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    result
}

/// Starts the worker from the very program that runs, even if its file was replaced.
fn start_worker(user: User, control: OwnedFd) -> io::Result<Child> {
    Command::new("/proc/self/exe")
        .arg0("blkback-worker")
        .arg(WORKER)
        .args([user.uid.to_string(), user.gid.to_string()])
        .env_clear()
        .stdin(Stdio::from(control))
        .stdout(Stdio::null())
        .spawn()
}

/// Tells the main loop when the worker has ended.
fn watch(mut worker: Child, link: Link) -> io::Result<()> {
    let thread = std::thread::Builder::new().name("worker".into());
    thread.spawn(move || {
        let _ = worker.wait();
        link.end();
    })?;
    Ok(())
}
