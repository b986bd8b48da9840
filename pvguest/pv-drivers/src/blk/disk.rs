//! A disk's life: the handshake in the store, then the queue, then the end.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use xen_hal::{Error, EventChannels, GrantTable, Result, Store, XenbusState};
use xen_sys::io::blkif::{Request, SECTOR_SIZE, VDISK_CDROM, VDISK_READONLY, VDISK_REMOVABLE};
use xen_sys::{PAGE_SIZE, Port};

use super::options::{MAX_QUEUES, MAX_RING_ORDER};
use super::{BlkError, DiskInfo, MAX_BYTES, Options, Queue, Ticket};
use crate::xenbus::{Device, Phase};

/// A disk.
#[derive(Debug)]
pub struct Disk<G: GrantTable, E: EventChannels, S: Store> {
    device: Device<S>,
    grants: G,
    events: E,
    options: Options,
    phase: Phase,
    info: DiskInfo,
    /// What exists while rings and ports are published, one for each queue.
    links: Vec<Link<G>>,
    /// Which queue is to take the next request.
    next: usize,
    /// The owner has closed it: it does not connect again.
    ended: bool,
}

/// A ring and its event channel.
#[derive(Debug)]
struct Link<G: GrantTable> {
    queue: Queue<G>,
    port: Port,
}

/// Nodes that only some ways of using a disk have.
const NODES_OF_SOME: [&str; 2] = ["ring-page-order", "multi-queue-num-queues"];

impl<G: GrantTable, E: EventChannels, S: Store> Disk<G, E, S> {
    /// Opens `device/vbd/ID` and goes as far in the handshake as the back end is.
    pub fn open(grants: G, events: E, store: S, id: &str) -> Result<Self> {
        Self::open_with(grants, events, store, id, Options::default())
    }

    /// The same, to be used in this way.
    pub fn open_with(grants: G, events: E, store: S, id: &str, options: Options) -> Result<Self> {
        let mut disk = Disk {
            device: Device::open(store, "vbd", id)?,
            grants,
            events,
            options,
            phase: Phase::Waiting,
            info: DiskInfo::default(),
            links: Vec::new(),
            next: 0,
            ended: false,
        };
        // Handles above 16 bits (many-disk numbers) are not echoed in requests by anybody.
        disk.info.handle = id.parse::<u32>().map_or(0, |id| id as u16);
        disk.backend_changed()?;
        Ok(disk)
    }

    /// Lets go of it and connects anew, to use it in this way.
    pub fn reopen(&mut self, options: Options) -> Result<()> {
        self.let_go()?;
        self.device.withdraw(&NODES_OF_SOME)?;
        self.options = options;
        self.ended = false;
        self.phase = Phase::Reopening;
        self.backend_changed()
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

    /// Our first event channel, while there is one.
    pub fn port(&self) -> Option<Port> {
        self.links.first().map(|link| link.port)
    }

    /// How many queues it has now.
    pub fn queues(&self) -> usize {
        self.links.len()
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
                (Phase::Connected, X::Connected) => return self.look_at_size(),
                (
                    Phase::Waiting | Phase::Published | Phase::Connected,
                    X::Closing | X::Closed | X::Unknown,
                ) => return self.let_go(),
                // It has closed and is there again.
                (Phase::Closed, X::InitWait) if !self.ended => self.publish()?,
                (Phase::Reopening, X::InitWait) => self.publish()?,
                // It lets go of what was before, then it waits for us.
                (Phase::Reopening, X::Closed) => {
                    return self.device.set_state(X::Initialising);
                }
                _ => return Ok(()),
            }
        }
    }

    fn publish(&mut self) -> Result<()> {
        // Of an attempt that failed half-way.
        self.drop_links();
        let peer = self.device.peer();
        let offered = |name| Ok::<u32, Error>(self.device.published(name)?.unwrap_or(0));
        let mut options = self.options;
        options.queues = options
            .queues
            .min(offered("multi-queue-max-queues")?)
            .clamp(1, MAX_QUEUES);
        options.ring_order = options
            .ring_order
            .min(offered("max-ring-page-order")?)
            .min(MAX_RING_ORDER);
        let mut nodes: Vec<(String, String)> = Vec::new();
        let mut node = |name: &str, value: &dyn core::fmt::Display| {
            nodes.push((name.to_string(), value.to_string()));
        };
        for number in 0..options.queues {
            let queue = Queue::with(self.grants.clone(), peer, &options)?;
            let port = self.events.alloc_unbound(peer)?;
            // One queue's nodes stand in the device's own folder.
            let folder = match options.queues {
                1 => String::new(),
                _ => alloc::format!("queue-{number}/"),
            };
            for (page, gref) in queue.ring_refs().enumerate() {
                match options.ring_order {
                    0 => node(&alloc::format!("{folder}ring-ref"), &gref),
                    _ => node(&alloc::format!("{folder}ring-ref{page}"), &gref),
                }
            }
            node(&alloc::format!("{folder}event-channel"), &port);
            self.links.push(Link { queue, port });
        }
        if options.ring_order > 0 {
            node(NODES_OF_SOME[0], &options.ring_order);
        }
        if options.queues > 1 {
            node(NODES_OF_SOME[1], &options.queues);
        }
        node("protocol", &options.protocol.name());
        // Our pages stay granted from request to request: see buffers.rs.
        node("feature-persistent", &u8::from(options.persistent));
        let nodes: Vec<(&str, &dyn core::fmt::Display)> = nodes
            .iter()
            .map(|(name, value)| (name.as_str(), value as &dyn core::fmt::Display))
            .collect();
        self.device.publish(&nodes, XenbusState::Initialised)?;
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
        let bits = self.device.published::<u32>("info")?.unwrap_or(0);
        let indirect = self.device.published("feature-max-indirect-segments")?;
        self.info = DiskInfo {
            handle: self.info.handle,
            sectors_512: self.device.required("sectors")?,
            sector_size,
            read_only: bits & VDISK_READONLY != 0,
            cdrom: bits & VDISK_CDROM != 0,
            removable: bits & VDISK_REMOVABLE != 0,
            flush: self.device.offers("feature-flush-cache")?,
            barrier: self.device.offers("feature-barrier")?,
            discard: self.device.offers("feature-discard")?,
            indirect: indirect.unwrap_or(0).min(self.options.indirect),
        };
        self.tell_queues();
        self.device.set_state(XenbusState::Connected)?;
        self.phase = Phase::Connected;
        Ok(())
    }

    /// The back end writes its state again when the disk's size has changed.
    fn look_at_size(&mut self) -> Result<()> {
        let sectors_512 = self.device.required("sectors")?;
        if sectors_512 != self.info.sectors_512 {
            self.info.sectors_512 = sectors_512;
            self.tell_queues();
        }
        Ok(())
    }

    fn tell_queues(&mut self) {
        for link in &mut self.links {
            link.queue.set_info(self.info);
        }
    }

    /// Ends it from our side for good: nothing is granted or bound any more, and the back end is told.
    pub fn close(&mut self) -> Result<()> {
        self.ended = true;
        match self.phase {
            // Whose the nodes are now is not known: the toolstack may have made a disk anew.
            Phase::Closed => Ok(()),
            _ => self.let_go(),
        }
    }

    fn let_go(&mut self) -> Result<()> {
        self.drop_links();
        self.phase = Phase::Closed;
        self.device.set_state(XenbusState::Closed)
    }

    fn drop_links(&mut self) {
        for link in self.links.drain(..) {
            // A port that does not close is closed with the domain; nobody waits for it any more.
            let _ = self.events.close(link.port);
        }
    }

    fn break_up(&mut self, what: String) {
        self.drop_links();
        // Best effort: the store may be what is broken.
        let _ = self.device.report(&what);
        let _ = self.device.set_state(XenbusState::Closing);
        self.phase = Phase::Broken(what);
    }

    fn usable(&self) -> Result<(), BlkError> {
        match &self.phase {
            Phase::Connected if !self.links.is_empty() => Ok(()),
            Phase::Broken(_) => Err(BlkError::Broken),
            _ => Err(BlkError::NotConnected),
        }
    }

    /// Gives a request to the next queue that has room.
    fn submit(
        &mut self,
        mut send: impl FnMut(&mut Queue<G>) -> Result<Ticket, BlkError>,
    ) -> Result<Ticket, BlkError> {
        self.usable()?;
        let count = self.links.len();
        let mut result = Err(BlkError::Busy);
        for _ in 0..count {
            let at = self.next % count;
            self.next = (at + 1) % count;
            result = send(&mut self.links[at].queue).map(|ticket| ticket.of_queue(at));
            if result != Err(BlkError::Busy) {
                break;
            }
        }
        result
    }

    /// Most bytes in one request.
    pub fn max_bytes(&self) -> usize {
        self.links
            .first()
            .map_or(MAX_BYTES, |link| link.queue.max_bytes())
    }

    /// Queues a read; see [`Queue::read`].
    pub fn read(&mut self, sector: u64, len: usize) -> Result<Ticket, BlkError> {
        self.submit(|queue| queue.read(sector, len))
    }

    /// Queues a write; see [`Queue::write`].
    pub fn write(&mut self, sector: u64, data: &[u8]) -> Result<Ticket, BlkError> {
        self.submit(|queue| queue.write(sector, data))
    }

    /// Queues a flush; see [`Queue::flush`].
    pub fn flush(&mut self) -> Result<Ticket, BlkError> {
        self.submit(Queue::flush)
    }

    /// Queues a discard; see [`Queue::discard`].
    pub fn discard(&mut self, sector: u64, count: u64) -> Result<Ticket, BlkError> {
        self.submit(|queue| queue.discard(sector, count))
    }

    /// Queues a request as it stands; see [`Queue::raw`].
    pub fn raw(&mut self, request: Request, pages: usize) -> Result<Ticket, BlkError> {
        self.submit(|queue| queue.raw(request, pages))
    }

    /// Sends so many events for nothing, and tells of so many requests that are not there: how tests are
    /// hostile to a back end.
    pub fn attack(&mut self, events: u32, requests: u32) -> Result<(), BlkError> {
        self.usable()?;
        for link in &self.links {
            if requests > 0 {
                link.queue.run_ahead(requests);
            }
            for _ in 0..events {
                let _ = self.events.notify(link.port);
            }
        }
        Ok(())
    }

    /// Shows the back end what was queued and takes what it has answered.
    pub fn poll(&mut self) {
        let mut fault = None;
        for link in &mut self.links {
            if link.queue.publish() {
                // A port that cannot be sent to has lost its peer, which the store will tell.
                let _ = self.events.notify(link.port);
            }
            if let Err(found) = link.queue.poll() {
                fault = Some(found);
            }
        }
        if let Some(fault) = fault {
            self.break_up(fault.to_string());
        }
    }

    /// Takes a result; see [`Queue::take`].
    pub fn take(&mut self, ticket: Ticket, to: &mut [u8]) -> Option<Result<(), BlkError>> {
        if let Err(error) = self.usable() {
            return Some(Err(error));
        }
        match self.links.get_mut(ticket.queue()) {
            Some(link) => link.queue.take(ticket, to),
            None => Some(Err(BlkError::Stale)),
        }
    }
}

impl<G: GrantTable, E: EventChannels, S: Store> Drop for Disk<G, E, S> {
    fn drop(&mut self) {
        self.drop_links();
    }
}
