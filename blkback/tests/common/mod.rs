//! One guest with one disk in a fake world: its front end is moved by hand, byte by byte if need be.
#![allow(dead_code)]

use std::io;
use std::sync::{Arc, Mutex};

use blkback::{
    BlockDriver, DataMove, Identity, Inline, InlineConnection, Journals, Progress, Storage,
};
use xen_backend::Bus;
use xen_backend::testing::MemoryStore;
use xen_fake::{Call, Domain, Events, Faults, Foreign, Grants, World};
use xen_hal::{EventChannels, Lease, Store, StoreExt};
use xen_ring::{FrontRing, SharedMemoryExt};
use xen_sys::io::blkif;
use xen_sys::{DomId, GrantRef, Plain, Port};

pub const SECTORS: u64 = 2048;

/// A disk in memory, with faults on demand.
pub struct MemoryDisk {
    pub bytes: Arc<Mutex<Vec<u8>>>,
    pub faults: Faults,
    pub number: u64,
    pub sectors: u64,
    pub meanwhile: Meanwhile,
}

/// What happens once, while a request runs.
pub type Meanwhile = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

impl MemoryDisk {
    fn io(&self, call: &'static str) -> io::Result<std::sync::MutexGuard<'_, Vec<u8>>> {
        if let Some(happen) = self.meanwhile.lock().unwrap().take() {
            happen();
        }
        if self.faults.hit(Call::Other(call)) {
            return Err(io::Error::from_raw_os_error(5));
        }
        Ok(self.bytes.lock().unwrap())
    }
}

impl Storage for MemoryDisk {
    fn sectors_512(&self) -> u64 {
        self.sectors
    }
    fn can_discard(&self) -> bool {
        true
    }
    fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let at = offset as usize;
        to.copy_from_slice(&self.io("read")?[at..at + to.len()]);
        Ok(())
    }
    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        let at = offset as usize;
        self.io("write")?[at..at + from.len()].copy_from_slice(from);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        self.io("flush").map(drop)
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.io("discard")?[offset as usize..(offset + len) as usize].fill(0);
        Ok(())
    }
    fn identity(&self) -> Option<Identity> {
        Some(Identity::File(1, self.number))
    }
}

pub type TestBus = Bus<BlockDriver<Inline<Foreign, Events>>>;

/// dom0 with a store, a disk image and the backend.
pub struct Host {
    pub world: World,
    pub store: MemoryStore,
    pub disk: Arc<Mutex<Vec<u8>>>,
    pub bus: TestBus,
    pub log: Arc<Mutex<Vec<String>>>,
    pub meanwhile: Meanwhile,
    data_move: DataMove,
    journals: Journals,
}

impl Host {
    pub fn new(data_move: DataMove) -> Host {
        let world = World::new();
        let disk = Arc::new(Mutex::new(vec![0; SECTORS as usize * 512]));
        let log = Arc::new(Mutex::new(Vec::new()));
        let store = MemoryStore::new();
        let journals = Journals::default();
        let meanwhile = Meanwhile::default();
        let mut bus = make_bus(&world, &disk, &log, data_move, &journals, &meanwhile);
        bus.start(&store).unwrap();
        Host {
            meanwhile,
            world,
            store,
            disk,
            bus,
            log,
            data_move,
            journals,
        }
    }

    /// Kills the backend and starts another.
    pub fn restart(&mut self) {
        self.bus = make_bus(
            &self.world,
            &self.disk,
            &self.log,
            self.data_move,
            &self.journals,
            &self.meanwhile,
        );
        self.bus.start(&self.store).unwrap();
    }

    /// Lets the backend do all it can. As in the daemon, a ring is only looked at when it has more to do
    /// or its event channel has fired.
    pub fn settle(&mut self) {
        loop {
            let mut more = self.bus.step(&self.store).unwrap();
            for (_, connection) in self.bus.connections_mut() {
                more |= connection.step_if(|queue| {
                    let fired = queue.served().events().has_pending();
                    fired || queue.progress() == Progress::More
                });
            }
            self.bus.check(&self.store).unwrap();
            if !more {
                return;
            }
        }
    }

    pub fn connection(&mut self) -> &mut InlineConnection<Foreign, Events> {
        self.bus.connections_mut().next().expect("connected").1
    }
}

fn make_bus(
    world: &World,
    disk: &Arc<Mutex<Vec<u8>>>,
    log: &Arc<Mutex<Vec<String>>>,
    data_move: DataMove,
    journals: &Journals,
    meanwhile: &Meanwhile,
) -> TestBus {
    let (disk, faults) = (disk.clone(), world.faults());
    let meanwhile = meanwhile.clone();
    let dom0 = world.dom0();
    let datapath = Inline::new(dom0.foreign(), move || dom0.events(), data_move);
    // The last of what runs ends first.
    let datapath = datapath.with(journals.clone(), || Box::new(|count| count - 1));
    let driver = BlockDriver::new(
        datapath,
        Arc::new(move |config| {
            let name = config.path.to_str().unwrap();
            if name == "/missing" {
                return Err(io::Error::from_raw_os_error(2));
            }
            Ok(Arc::new(MemoryDisk {
                bytes: disk.clone(),
                faults: faults.clone(),
                number: name.len() as u64,
                sectors: if name == "/short" { 8 } else { SECTORS },
                meanwhile: meanwhile.clone(),
            }))
        }),
    );
    let log = log.clone();
    Bus::new(driver, DomId::DOM0, move |line| {
        log.lock().unwrap().push(line.to_string())
    })
}

/// A guest with a disk as a toolstack declares it.
pub struct Guest {
    pub domain: Domain,
    pub grants: Grants,
    pub events: Events,
    pub back: String,
    pub front: String,
}

impl Guest {
    pub fn new(host: &Host, params: &str, mode: &str) -> Guest {
        let domain = host.world.create_domain();
        let id = domain.id();
        let back = format!("/local/domain/0/backend/vbd/{id}/51712");
        let front = format!("/local/domain/{id}/device/vbd/51712");
        host.store.fill(
            &front,
            &[
                ("backend", back.as_str()),
                ("backend-id", "0"),
                ("state", "1"),
            ],
        );
        host.store.fill(
            &back,
            &[
                ("frontend", front.as_str()),
                ("frontend-id", &id.to_string()),
                ("online", "1"),
                ("params", params),
                ("mode", mode),
                ("type", "phy"),
                ("device-type", "disk"),
                ("state", "1"),
            ],
        );
        Guest {
            grants: domain.grants(),
            events: domain.events(),
            domain,
            back,
            front,
        }
    }

    pub fn set(&self, host: &Host, node: &str, value: &str) {
        host.store
            .write(None, &format!("{}/{node}", self.front), value.as_bytes())
            .unwrap();
    }

    pub fn back_state(&self, host: &Host) -> String {
        host.store.text(&format!("{}/state", self.back))
    }

    /// Publishes a ring and goes to state 3; returns the ring before the backend has looked.
    pub fn offer(&self, host: &Host) -> Front {
        let lease = Lease::fresh(&self.grants, DomId::DOM0).unwrap();
        let gref = lease.gref();
        let port = self.events.alloc_unbound(DomId::DOM0).unwrap();
        self.set(host, "ring-ref", &gref.to_string());
        self.set(host, "event-channel", &port.to_string());
        self.set(host, "protocol", "x86_64-abi");
        self.set(host, "feature-persistent", "1");
        let ring = FrontRing::new(lease).unwrap();
        self.set(host, "state", "3");
        Front { ring, port }
    }

    /// The whole handshake with so many queues.
    pub fn connect_queues(&self, host: &mut Host, count: usize) -> Vec<Front> {
        host.settle();
        assert_eq!(self.back_state(host), "2");
        self.set(host, "multi-queue-num-queues", &count.to_string());
        self.set(host, "feature-persistent", "1");
        let mut fronts = Vec::new();
        for queue in 0..count {
            let lease = Lease::fresh(&self.grants, DomId::DOM0).unwrap();
            let port = self.events.alloc_unbound(DomId::DOM0).unwrap();
            let gref = lease.gref().to_string();
            self.set(host, &format!("queue-{queue}/ring-ref"), &gref);
            let number = port.to_string();
            self.set(host, &format!("queue-{queue}/event-channel"), &number);
            let ring = FrontRing::new(lease).unwrap();
            fronts.push(Front { ring, port });
        }
        self.set(host, "state", "3");
        host.settle();
        assert_eq!(self.back_state(host), "4");
        self.set(host, "state", "4");
        host.settle();
        fronts
    }

    /// The whole handshake.
    pub fn connect(&self, host: &mut Host) -> Front {
        host.settle();
        assert_eq!(self.back_state(host), "2");
        let front = self.offer(host);
        host.settle();
        assert_eq!(self.back_state(host), "4");
        self.set(host, "state", "4");
        host.settle();
        front
    }

    /// Closes as Linux's front end does.
    pub fn close(&self, host: &mut Host, front: Option<Front>) {
        self.set(host, "state", "5");
        host.settle();
        assert_eq!(self.back_state(host), "5");
        drop(front);
        self.set(host, "state", "6");
        host.settle();
        assert_eq!(self.back_state(host), "6");
    }

    /// The toolstack forgets the device.
    pub fn remove(self, host: &mut Host) {
        host.store.rm_if_present(None, &self.front).unwrap();
        host.store.rm_if_present(None, &self.back).unwrap();
        host.settle();
        drop(self.events);
        host.world.destroy_domain(self.domain.id());
    }
}

/// A front end's ring.
pub struct Front {
    pub ring: FrontRing<Lease<Grants>, blkif::Request, [u8; 16]>,
    pub port: Port,
}

impl Front {
    pub fn send(&mut self, guest: &Guest, request: blkif::Request) {
        assert!(self.ring.push(request));
        if self.ring.publish() {
            guest.events.notify(self.port).unwrap();
        }
    }

    /// The next response: id, operation, status.
    pub fn receive(&mut self) -> Option<(u64, u8, i16)> {
        let bytes = self.ring.pop().unwrap()?;
        assert_eq!(
            [bytes[9], bytes[12], bytes[13], bytes[14], bytes[15]],
            [0; 5]
        );
        Some((
            u64::from_le_bytes(bytes[..8].try_into().unwrap()),
            bytes[8],
            i16::from_le_bytes([bytes[10], bytes[11]]),
        ))
    }

    /// Sends one request, lets the backend work, and returns the status.
    pub fn call(&mut self, host: &mut Host, guest: &Guest, request: blkif::Request) -> i16 {
        self.send(guest, request);
        host.settle();
        let (id, operation, status) = self.receive().expect("answered");
        let expected = match request.operation {
            blkif::OP_INDIRECT => request.nr_segments,
            other => other,
        };
        assert_eq!((id, operation), (request.id, expected));
        assert_eq!(self.receive(), None);
        status
    }
}

/// A request over whole pages or parts of them.
pub fn request(
    operation: u8,
    id: u64,
    sector: u64,
    segments: &[(GrantRef, u8, u8)],
) -> blkif::Request {
    let mut request = blkif::Request {
        operation,
        nr_segments: segments.len() as u8,
        id,
        sector_number: sector,
        ..blkif::Request::ZERO
    };
    for (n, &(gref, first_sect, last_sect)) in segments.iter().enumerate() {
        request.seg[n] = blkif::Segment {
            gref,
            first_sect,
            last_sect,
            ..blkif::Segment::ZERO
        };
    }
    request
}

/// A segment of an indirect request.
pub fn segment(gref: GrantRef, first_sect: u8, last_sect: u8) -> blkif::Segment {
    blkif::Segment {
        gref,
        first_sect,
        last_sect,
        ..blkif::Segment::ZERO
    }
}

/// Puts segments into a page of them.
pub fn write_segments(page: &Lease<Grants>, segments: &[blkif::Segment]) {
    for (n, &segment) in segments.iter().enumerate() {
        page.write(n * 8, segment);
    }
}

/// A request whose segments are in pages of their own; it lies over an ordinary one.
pub fn indirect(
    operation: u8,
    id: u64,
    sector: u64,
    count: u16,
    grefs: &[GrantRef],
) -> blkif::Request {
    let mut indirect = blkif::RequestIndirect {
        operation: blkif::OP_INDIRECT,
        indirect_op: operation,
        nr_segments: count,
        id,
        sector_number: sector,
        ..blkif::RequestIndirect::ZERO
    };
    for (to, &gref) in indirect.indirect_grefs.iter_mut().zip(grefs) {
        *to = gref;
    }
    let mut request = blkif::Request::ZERO;
    let bytes = indirect.as_bytes();
    request.as_bytes_mut()[..bytes.len()].copy_from_slice(bytes);
    request
}

/// A granted page filled with a byte.
pub fn page(guest: &Guest, fill: u8) -> Lease<Grants> {
    let lease = Lease::fresh(&guest.grants, DomId::DOM0).unwrap();
    lease.write_bytes(0, &[fill; 4096]);
    lease
}

pub fn content(page: &Lease<Grants>) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    page.read_bytes(0, &mut bytes);
    bytes
}
