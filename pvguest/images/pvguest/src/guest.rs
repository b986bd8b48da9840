//! The appliance's handle to its world.

use alloc::string::String;

use pv_drivers::cmdline::CommandLine;
use xen_hal::{Result, Store, StoreError, StoreExt};
use xen_sys::DomId;

use crate::{Console, Events, Exit, Grants, GuestStore, PvClock};
use crate::{events, hypercall, memory, start_info};

pub use crate::memory::MemoryInfo;
pub use pv_drivers::control::ShutdownRequest;

/// Token of the watch on `control/shutdown`.
const SHUTDOWN_TOKEN: &str = "pvguest-shutdown";

/// The guest: what an appliance's `main` is given.
#[derive(Debug)]
pub struct Guest {
    watching_shutdown: bool,
}

impl Guest {
    pub(crate) fn new() -> Guest {
        Guest {
            watching_shutdown: false,
        }
    }

    /// The command line, parsed.
    pub fn command_line(&self) -> CommandLine<'static> {
        CommandLine::new(start_info::command_line())
    }

    /// Xen's version: major, minor.
    pub fn xen_version(&self) -> (u16, u16) {
        hypercall::xen_version()
    }

    /// Whether this guest runs as dom0, directly on Xen.
    pub fn is_dom0(&self) -> bool {
        start_info::is_dom0()
    }

    /// This domain's number, as the store tells it.
    pub fn domid(&self) -> Result<DomId> {
        if self.is_dom0() {
            return Ok(DomId::DOM0);
        }
        Ok(DomId(self.store()?.read_parsed(None, "domid")?))
    }

    /// This domain's name, as the store tells it.
    pub fn name(&self) -> Result<String> {
        Ok(self.store()?.read_parsed(None, "name")?)
    }

    /// How much memory there is.
    pub fn memory(&self) -> MemoryInfo {
        memory::info()
    }

    /// The clock.
    pub fn clock(&self) -> PvClock {
        PvClock
    }

    /// The console.
    pub fn console(&self) -> Console {
        Console
    }

    /// The event channels.
    pub fn events(&self) -> Events {
        Events
    }

    /// The store. ENOTCONN without one (as dom0).
    pub fn store(&self) -> Result<GuestStore, StoreError> {
        GuestStore::get()
    }

    /// The grant table.
    pub fn grants(&self) -> Result<Grants> {
        Grants::get()
    }

    /// Waits for an event (device, store, console) or until `deadline_ns`, an absolute time of
    /// [`clock`](Self::clock). Look at every device before waiting again: an event is reported once.
    pub fn wait(&self, deadline_ns: Option<u64>) {
        events::wait(deadline_ns);
    }

    /// Whether the toolstack has asked us to stop. A request is acknowledged and reported once.
    pub fn shutdown_requested(&mut self) -> Result<Option<ShutdownRequest>> {
        let store = self.store()?;
        if !self.watching_shutdown {
            pv_drivers::control::announce(&store);
            store.watch(pv_drivers::control::SHUTDOWN_NODE, SHUTDOWN_TOKEN)?;
            self.watching_shutdown = true;
        }
        if !store.take_events(SHUTDOWN_TOKEN)? {
            return Ok(None);
        }
        Ok(pv_drivers::control::take_shutdown(&store)?)
    }

    /// Waits until the toolstack asks us to stop; without a store, for ever.
    pub fn wait_for_shutdown(&mut self) -> Exit {
        loop {
            match self.shutdown_requested() {
                Ok(Some(request)) => return request.into(),
                Ok(None) => self.wait(None),
                Err(error) => {
                    log::error!("waiting for control/shutdown: {error}");
                    return Exit::Crash;
                }
            }
        }
    }
}

impl From<ShutdownRequest> for Exit {
    fn from(request: ShutdownRequest) -> Exit {
        match request {
            ShutdownRequest::Poweroff => Exit::Poweroff,
            ShutdownRequest::Reboot => Exit::Reboot,
        }
    }
}
