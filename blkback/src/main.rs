//! The command `blkback`: one daemon for all disks, a thread for each.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;

use blkback::{
    BlockDriver, DataMove, Datapath, Limits, Progress, RingInfo, Served, Storage, open_file,
};
use clap::{Parser, ValueEnum};
use xen_backend::daemon::{self, Common, Failure, Ready, Signals};
use xen_backend::{Bus, Wake, Worker};
use xen_dom0::{Events, Grants};
use xen_hal::{Error, Result};
use xen_sys::DomId;
use xs_client::Connection;

/// Serves disk images and block devices to PV guests
#[derive(Parser)]
#[command(name = "blkback", version)]
struct Args {
    #[command(flatten)]
    common: Common,
    /// How data gets from and to a guest's pages
    #[arg(long, value_enum, default_value = "copy")]
    data: Data,
}

#[derive(Clone, Copy, ValueEnum)]
enum Data {
    /// Xen copies it
    Copy,
    /// The pages are mapped and the processor copies it
    Map,
}

/// Where a toolstack sees that this daemon serves disks.
const NODE: &str = "/tool/xlrs/blkback";

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
    let threads = Threads {
        grants: Grants::open()?,
        data_move: match args.data {
            Data::Copy => DataMove::Copy,
            Data::Map => DataMove::Map,
        },
        wake: wake.clone(),
    };
    let driver = BlockDriver::new(threads, open_file());
    let mut bus = Bus::new(driver, DomId::DOM0, daemon::log_device);
    daemon::serve(&mut bus, &store, &signals, &wake, NODE, &mut ready)
}

/// A thread for each ring, with an event channel descriptor of its own.
struct Threads {
    grants: Grants,
    data_move: DataMove,
    wake: Wake,
}

impl Datapath for Threads {
    type Connection = Worker;

    fn serve(
        &mut self,
        name: &str,
        ring: &RingInfo,
        storage: Arc<dyn Storage>,
        limits: Limits,
    ) -> Result<Worker> {
        let events = Events::open()?;
        let prefix = name.to_string();
        let log = Arc::new(move |line: &str| daemon::log_device(&format!("{prefix}: {line}")));
        let mut served = Served::new(
            ring,
            self.grants.clone(),
            events,
            self.data_move,
            storage,
            limits,
            log,
        )?;
        Worker::spawn(name.to_string(), &self.wake, move |stop| {
            while !stop.requested() {
                if served.work()? == Progress::Idle {
                    stop.wait(served.events().as_fd(), None)?;
                }
            }
            Ok(())
        })
    }

    fn failure(&self, worker: &Worker) -> Option<Error> {
        worker.failure()
    }

    fn stop(&self, worker: &Worker) -> bool {
        worker.stop()
    }
}
