//! The command `netback`: one daemon for all network interfaces, a TAP device and a thread for each.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use netback::tap::{self, Tap};
use netback::{Datapath, NetDriver, Plan, Progress, RingInfo, Served};
use xen_backend::daemon::{self, Common, Failure, Ready, Signals};
use xen_backend::{Bus, Wake, Worker};
use xen_dom0::{Events, Grants};
use xen_hal::{Error, Result, Store, StoreExt};
use xen_sys::{DomId, Errno};
use xs_client::Connection;

/// Serves network interfaces to PV guests, as TAP devices on a bridge
#[derive(Parser)]
#[command(name = "netback", version)]
struct Args {
    #[command(flatten)]
    common: Common,
}

/// Where a toolstack sees that this daemon serves network interfaces.
const NODE: &str = "/tool/xlrs/netback";

fn main() -> ExitCode {
    let args = Args::parse();
    daemon::run("netback", &args.common, |ready| {
        serve(ready).map_err(xen_dom0::explained)
    })
}

fn serve(mut ready: Ready) -> Result<(), Failure> {
    daemon::refuse_if_loaded("xen_netback")?;
    let _lock = daemon::only_one("netback")?;
    let signals = Signals::take()?;
    let store = Connection::from_env()?;
    let wake = Wake::new()?;
    // What every interface will need: better missed now than by the first guest.
    Events::open()?;
    std::fs::File::open("/dev/net/tun")
        .map_err(|error| format!("cannot open /dev/net/tun: {error}; modprobe tun may help"))?;
    let threads = Threads {
        grants: Grants::open()?,
        wake: wake.clone(),
    };
    remove_leftovers(&store)?;
    let mut bus = Bus::new(NetDriver::new(threads), DomId::DOM0, daemon::log_device);
    daemon::serve(&mut bus, &store, &signals, &wake, NODE, &mut ready)?;
    Ok(())
}

/// Removes devices that an earlier process made for guests which have ended since.
fn remove_leftovers(store: &dyn Store) -> Result<(), Failure> {
    for (name, dom, index) in tap::leftovers() {
        let state = format!("/local/domain/0/backend/vif/{dom}/{index}/state");
        if store.read_optional(None, &state)?.is_some() {
            continue;
        }
        match Tap::open(&name).and_then(|tap| tap.remove()) {
            Ok(()) => daemon::log(&format!("{name}: removed, its guest has ended")),
            Err(error) => daemon::log(&format!("{name}: left over, and not removed: {error}")),
        }
    }
    Ok(())
}

/// A TAP device and a thread for each interface, with an event channel descriptor of its own.
struct Threads {
    grants: Grants,
    wake: Wake,
}

impl Datapath for Threads {
    type Link = Tap;
    type Connection = Worker;

    fn make(&mut self, plan: &Plan) -> Result<Tap> {
        let name = &plan.name;
        let tap = Tap::open(name).map_err(failed("make the TAP device", name))?;
        if !plan.by_script {
            let ready = || {
                if let Some(bridge) = &plan.bridge {
                    let what = format!("{name} to the bridge {bridge}");
                    tap::add_to_bridge(bridge, name).map_err(failed("add", &what))?;
                }
                tap::bring_up(name).map_err(failed("bring up", name))
            };
            if let Err(error) = ready() {
                self.remove(&tap);
                return Err(error);
            }
        }
        Ok(tap)
    }

    fn remove(&mut self, tap: &Tap) {
        if let Err(error) = tap.remove() {
            let name = tap.name().unwrap_or_default();
            daemon::log(&format!("cannot remove the TAP device {name}: {error}"));
        }
    }

    fn serve(&mut self, name: &str, ring: &RingInfo, tap: Arc<Tap>) -> Result<Worker> {
        let events = Events::open()?;
        let prefix = name.to_string();
        let log = Arc::new(move |line: &str| daemon::log_device(&format!("{prefix}: {line}")));
        let mut served = Served::new(ring, self.grants.clone(), events, tap.clone(), log)?;
        Worker::spawn(name.to_string(), &self.wake, move |stop| {
            while !stop.requested() {
                match served.work()? {
                    Progress::More => continue,
                    Progress::Idle => {
                        stop.wait(served.events().as_fd(), Some(tap.as_fd()))?;
                    }
                    // Frames wait in the TAP device until the guest has room.
                    Progress::IdleNoRoom => {
                        stop.wait(served.events().as_fd(), None)?;
                    }
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

fn failed(op: &'static str, object: &str) -> impl FnOnce(io::Error) -> Error {
    let object = object.to_string();
    move |error| Error::System {
        op,
        object,
        errno: Errno(error.raw_os_error().unwrap_or(Errno::EIO.0)),
    }
}
