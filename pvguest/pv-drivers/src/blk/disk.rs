//! A disk's life: the handshake in the store, then the queue, then the end.

use alloc::string::{String, ToString};

use xen_hal::{Error, EventChannels, GrantTable, Result, Store, XenbusState};
use xen_sys::io::blkif::{Request, SECTOR_SIZE, VDISK_READONLY};
use xen_sys::io::protocols;
use xen_sys::{PAGE_SIZE, Port};

use super::{BlkError, DiskInfo, MAX_BYTES, MAX_INDIRECT, Queue, Ticket};
use crate::xenbus::{Device, Phase};

/// A disk.
#[derive(Debug)]
pub struct Disk<G: GrantTable, E: EventChannels, S: Store> {
    device: Device<S>,
    grants: G,
    events: E,
    phase: Phase,
    info: DiskInfo,
    link: Option<Link<G>>,
}

/// What exists while ring and port are published.
#[derive(Debug)]
struct Link<G: GrantTable> {
    queue: Queue<G>,
    port: Port,
}

impl<G: GrantTable, E: EventChannels, S: Store> Disk<G, E, S> {
    /// Opens `device/vbd/ID` and goes as far in the handshake as the back end is.
    pub fn open(grants: G, events: E, store: S, id: &str) -> Result<Self> {
        let mut disk = Disk {
            device: Device::open(store, "vbd", id)?,
            grants,
            events,
            phase: Phase::Waiting,
            info: DiskInfo::default(),
            link: None,
        };
        // Handles above 16 bits (many-disk numbers) are not echoed in requests by anybody.
        disk.info.handle = id.parse::<u32>().map_or(0, |id| id as u16);
        disk.backend_changed()?;
        Ok(disk)
    }

    /// The token of the watch on the back end's state: its events mean [`backend_changed`](Self::backend_changed).
    pub fn token(&self) -> &str {
        self.device.token()
    }

    /// Where it is in its life.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// What the back end says of it, once connected.
    pub fn info(&self) -> DiskInfo {
        self.info
    }

    /// Our event channel, while there is one.
    pub fn port(&self) -> Option<Port> {
        self.link.as_ref().map(|link| link.port)
    }

    /// Goes on with the handshake. An error of the peer makes the disk broken and is not returned.
    pub fn backend_changed(&mut self) -> Result<()> {
        match self.follow() {
            Err(Error::Peer { what, .. }) => {
                self.break_up(what);
                Ok(())
            }
            result => result,
        }
    }

    fn follow(&mut self) -> Result<()> {
        use XenbusState as X;
        loop {
            match (&self.phase, self.device.backend_state()?) {
                (Phase::Waiting, X::InitWait | X::Initialised | X::Connected) => self.publish()?,
                (Phase::Published, X::Connected) => self.connect()?,
                (
                    Phase::Waiting | Phase::Published | Phase::Connected,
                    X::Closing | X::Closed | X::Unknown,
                ) => return self.close(),
                _ => return Ok(()),
            }
        }
    }

    fn publish(&mut self) -> Result<()> {
        // Of an attempt that failed half-way.
        self.drop_link();
        let peer = self.device.peer();
        let queue = Queue::new(self.grants.clone(), peer)?;
        let port = self.events.alloc_unbound(peer)?;
        let ring_ref = queue.ring_ref();
        self.link = Some(Link { queue, port });
        self.device.publish(
            &[
                ("ring-ref", &ring_ref),
                ("event-channel", &port),
                ("protocol", &protocols::X86_64),
                // Our pages stay granted from request to request: see buffers.rs.
                ("feature-persistent", &1),
            ],
            XenbusState::Initialised,
        )?;
        self.phase = Phase::Published;
        Ok(())
    }

    fn connect(&mut self) -> Result<()> {
        let sector_size = self.device.published("sector-size")?;
        let sector_size: u32 = sector_size.unwrap_or(SECTOR_SIZE as u32);
        let fits = (SECTOR_SIZE as u32..=PAGE_SIZE as u32).contains(&sector_size);
        if !sector_size.is_power_of_two() || !fits {
            return Err(Error::Peer {
                dom: self.device.peer(),
                what: alloc::format!("sector-size {sector_size}"),
            });
        }
        self.info.sectors_512 = self.device.required("sectors")?;
        self.info.sector_size = sector_size;
        let bits = self.device.published::<u32>("info")?.unwrap_or(0);
        self.info.read_only = bits & VDISK_READONLY != 0;
        self.info.flush = self.device.offers("feature-flush-cache")?;
        let indirect = self.device.published("feature-max-indirect-segments")?;
        self.info.indirect = indirect.unwrap_or(0).min(MAX_INDIRECT);
        if let Some(link) = &mut self.link {
            link.queue.set_info(self.info);
        }
        self.device.set_state(XenbusState::Connected)?;
        self.phase = Phase::Connected;
        Ok(())
    }

    /// Ends it from our side: nothing is granted or bound any more, and the back end is told.
    pub fn close(&mut self) -> Result<()> {
        self.drop_link();
        self.phase = Phase::Closed;
        self.device.set_state(XenbusState::Closed)
    }

    fn drop_link(&mut self) {
        if let Some(link) = self.link.take() {
            // A port that does not close is closed with the domain; nobody waits for it any more.
            let _ = self.events.close(link.port);
        }
    }

    fn break_up(&mut self, what: String) {
        self.drop_link();
        // Best effort: the store may be what is broken.
        let _ = self.device.report(&what);
        let _ = self.device.set_state(XenbusState::Closing);
        self.phase = Phase::Broken(what);
    }

    fn queue(&mut self) -> Result<&mut Queue<G>, BlkError> {
        match (&self.phase, &mut self.link) {
            (Phase::Connected, Some(link)) => Ok(&mut link.queue),
            (Phase::Broken(_), _) => Err(BlkError::Broken),
            _ => Err(BlkError::NotConnected),
        }
    }

    /// Most bytes in one request.
    pub fn max_bytes(&self) -> usize {
        self.link
            .as_ref()
            .map_or(MAX_BYTES, |link| link.queue.max_bytes())
    }

    /// Queues a read; see [`Queue::read`].
    pub fn read(&mut self, sector: u64, len: usize) -> Result<Ticket, BlkError> {
        self.queue()?.read(sector, len)
    }

    /// Queues a write; see [`Queue::write`].
    pub fn write(&mut self, sector: u64, data: &[u8]) -> Result<Ticket, BlkError> {
        self.queue()?.write(sector, data)
    }

    /// Queues a flush; see [`Queue::flush`].
    pub fn flush(&mut self) -> Result<Ticket, BlkError> {
        self.queue()?.flush()
    }

    /// Queues a request as it stands; see [`Queue::raw`].
    pub fn raw(&mut self, request: Request, pages: usize) -> Result<Ticket, BlkError> {
        self.queue()?.raw(request, pages)
    }

    /// Shows the back end what was queued and takes what it has answered.
    pub fn poll(&mut self) {
        let Some(link) = &mut self.link else { return };
        if link.queue.publish() {
            // A port that cannot be sent to has lost its peer, which the store will tell.
            let _ = self.events.notify(link.port);
        }
        if let Err(fault) = link.queue.poll() {
            self.break_up(fault.to_string());
        }
    }

    /// Takes a result; see [`Queue::take`].
    pub fn take(&mut self, ticket: Ticket, to: &mut [u8]) -> Option<Result<(), BlkError>> {
        match self.queue() {
            Ok(queue) => queue.take(ticket, to),
            Err(error) => Some(Err(error)),
        }
    }
}

impl<G: GrantTable, E: EventChannels, S: Store> Drop for Disk<G, E, S> {
    fn drop(&mut self) {
        self.drop_link();
    }
}
