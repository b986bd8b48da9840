//! Disks for appliances: the block front end with operations that wait for their end.

use alloc::format;

use pv_drivers::blk::{self, BlkError, DiskInfo, Phase};
use pv_drivers::xenbus;
use xen_hal::{Clock, Error, Result};
use xen_sys::DomId;

use crate::{Events, Grants, Guest, GuestStore, PvClock, events};

/// How long a disk may take to connect.
const CONNECT_NS: u64 = 20_000_000_000;
/// How long the back end may take for one request.
const REQUEST_NS: u64 = 120_000_000_000;

type Inner = blk::Disk<Grants, Events, GuestStore>;

/// A connected disk.
///
/// Its operations wait, and waiting takes the events of all devices: an appliance that also serves others
/// looks at them again before it waits itself.
#[derive(Debug)]
pub struct Disk(Inner);

impl Guest {
    /// Connects the disk `device/vbd/ID`; without an id the first one.
    pub fn open_disk(&self, id: Option<&str>) -> Result<Disk> {
        let store = self.store()?;
        let ids = xenbus::list(&store, "vbd")?;
        let id = id.or(ids.first().map(|id| &**id)).ok_or(Error::Peer {
            dom: DomId::DOM0,
            what: "the toolstack has given this domain no disk".into(),
        })?;
        let mut disk = Inner::open(self.grants()?, Events, store, id)?;
        let deadline = PvClock.now_ns() + CONNECT_NS;
        while disk.phase().is_opening() && PvClock.now_ns() < deadline {
            events::wait(Some(deadline));
            follow(&mut disk);
        }
        match disk.phase() {
            Phase::Connected => Ok(Disk(disk)),
            phase => Err(Error::Peer {
                dom: DomId::DOM0,
                what: format!("the disk {id} does not connect: {phase:?}"),
            }),
        }
    }
}

impl Disk {
    /// What the back end says of it.
    pub fn info(&self) -> DiskInfo {
        self.0.info()
    }

    /// The front end itself, for who keeps several requests in flight: it is told of events by
    /// [`wait`](crate::wait).
    pub fn driver(&mut self) -> &mut blk::Disk<Grants, Events, GuestStore> {
        &mut self.0
    }

    /// Reads `to.len()` bytes from `sector` (of 512 bytes) on.
    pub fn read(&mut self, sector: u64, to: &mut [u8]) -> Result<(), BlkError> {
        blk::read(&mut self.0, sector, to, &mut waiter())
    }

    /// Writes from `sector` (of 512 bytes) on.
    pub fn write(&mut self, sector: u64, from: &[u8]) -> Result<(), BlkError> {
        blk::write(&mut self.0, sector, from, &mut waiter())
    }

    /// Waits until everything written is on the disk; no more than that if the back end offers no flush.
    pub fn flush(&mut self) -> Result<(), BlkError> {
        match self.info().flush {
            true => blk::flush(&mut self.0, &mut waiter()),
            false => Ok(()),
        }
    }
}

fn follow(disk: &mut Inner) {
    if GuestStore::get().and_then(|store| store.take_events(disk.token())) == Ok(true)
        && let Err(error) = disk.backend_changed()
    {
        log::error!("disk: {error}");
    }
}

/// Waits for an event and follows the back end; gives up when a transfer takes too long altogether.
fn waiter() -> impl FnMut(&mut Inner) -> bool {
    let deadline = PvClock.now_ns() + REQUEST_NS;
    move |disk| {
        events::wait(Some(deadline));
        follow(disk);
        PvClock.now_ns() < deadline
    }
}
