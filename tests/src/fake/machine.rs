//! The host and its guests: what a toolstack would have set up, without a toolstack.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use blkback::{BlockDriver, DataMove, Disk, Identity, Inline, Journals, Order, Storage};
use pv_drivers::store::{StoreClient, Wire};
use xen_backend::Bus;
use xen_fake::{Call, Domain, Events, Faults, Foreign, Page, Schedule, World};
use xen_hal::{Access, EventChannels, Permission, Result, Store, StoreError, StoreExt};
use xen_sys::{DomId, Port};

use super::{DaemonClient, StoreServer};
use crate::Outcome;
use crate::block::Backing;

/// How often a guest's wait for the store may see nothing happen before its request is given up.
const IDLE_WAITS: usize = 8;

/// A host: world, store and block backend.
pub struct Machine {
    /// The world; its faults hit store ring, grants, events and images alike.
    pub world: World,
    /// The store's daemon.
    pub server: StoreServer,
    /// A client of it for the test.
    pub store: DaemonClient,
    images: Images,
    /// Where files are that may be images, too.
    folders: Vec<PathBuf>,
    data_move: DataMove,
    journals: Journals,
    backend: Option<(DaemonClient, BlockBus)>,
}

type BlockBus = Bus<BlockDriver<Inline<Foreign, Events>>>;
type Images = Arc<Mutex<HashMap<String, MemoryImage>>>;

impl Machine {
    /// A host without guests. `data_move` says how the block backend reaches guests' pages.
    pub fn new(data_move: DataMove) -> Result<Machine> {
        let world = World::new();
        let server = StoreServer::new(&world)?;
        let store = server.client();
        for (node, value) in [("domid", "0"), ("name", "Domain-0")] {
            store.write(None, &format!("/local/domain/0/{node}"), value.as_bytes())?;
        }
        let mut machine = Machine {
            images: Images::default(),
            folders: Vec::new(),
            world,
            server,
            store,
            data_move,
            journals: Journals::default(),
            backend: None,
        };
        machine.start_backend()?;
        Ok(machine)
    }

    /// The same with images in files of a folder.
    ///
    /// # Errors
    /// The store's.
    pub fn with_files(data_move: DataMove, folder: PathBuf) -> Result<Machine> {
        let mut machine = Machine::new(data_move)?;
        machine.folders.push(folder);
        machine.start_backend()?;
        Ok(machine)
    }

    /// Starts the block backend; one that runs is killed first, with nothing closed down in order.
    pub fn start_backend(&mut self) -> Result<(), StoreError> {
        self.backend = None;
        let (images, dom0) = (self.images.clone(), self.world.dom0());
        let datapath = Inline::new(dom0.foreign(), move || dom0.events(), self.data_move);
        // Jobs end in any order, but in the same one in each run.
        let mut seed = 0;
        let order = move || -> Order {
            seed += 1;
            let mut dice = Schedule::new(seed);
            Box::new(move |count| dice.pick(count))
        };
        let datapath = datapath.with(self.journals.clone(), order);
        let files = blkback::open_any(self.folders.clone());
        let open = move |disk: &Disk| -> io::Result<Arc<dyn Storage>> {
            let images = images.lock().unwrap_or_else(PoisonError::into_inner);
            match images.get(&*disk.path.to_string_lossy()) {
                Some(image) => Ok(Arc::new(image.clone())),
                None => files(disk),
            }
        };
        let driver = BlockDriver::new(datapath, Arc::new(open));
        let mut bus = Bus::new(driver, DomId::DOM0, |_line| {});
        let client = self.server.client();
        bus.start(&client)?;
        self.backend = Some((client, bus));
        Ok(())
    }

    /// Lets the block backend take a step; true if it did something.
    pub fn step_backend(&mut self) -> Result<bool, StoreError> {
        let Some((client, bus)) = &mut self.backend else {
            return Ok(false);
        };
        let mut busy = bus.step(client)?;
        for (_, connection) in bus.connections_mut() {
            busy |= connection.step();
        }
        bus.check(client)?;
        Ok(busy)
    }

    /// Makes an image of zeros that a disk can be backed by.
    pub fn make_image(&self, path: &str, bytes: usize) -> MemoryImage {
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        let image = MemoryImage {
            bytes: Arc::new(Mutex::new(vec![0; bytes])),
            number: images.len() as u64,
            faults: self.world.faults(),
        };
        images.insert(path.to_owned(), image.clone());
        image
    }

    /// Makes a guest and connects it to the store.
    pub fn create_guest(&self, name: &str) -> Result<FakeGuest, StoreError> {
        let domain = self.world.create_domain();
        let dom = domain.id();
        let home = format!("/local/domain/{dom}");
        let guest_reads = [
            Permission::owner(DomId::DOM0),
            Permission::new(dom, Access::Read),
        ];
        self.store.mkdir(None, &home)?;
        self.store.set_permissions(None, &home, &guest_reads)?;
        for (node, value) in [("name", name), ("domid", &dom.to_string())] {
            self.store
                .write(None, &format!("{home}/{node}"), value.as_bytes())?;
        }
        for own in ["data", "control/shutdown"] {
            let path = format!("{home}/{own}");
            self.store.mkdir(None, &path)?;
            self.store
                .set_permissions(None, &path, &[Permission::owner(dom)])?;
        }
        self.store.introduce(dom, domain.store_port())?;
        let wire = GuestWire::new(&domain, &self.server);
        Ok(FakeGuest {
            store: StoreClient::new(domain.store_page(), wire),
            domain,
        })
    }

    /// Declares a disk of the guest's, as libxl does: device 51712 is xvda.
    pub fn add_disk(&self, guest: &FakeGuest, image: &str, mode: &str) -> Result<(), StoreError> {
        let dom = guest.domain.id();
        let front = format!("/local/domain/{dom}/device/vbd/51712");
        let back = format!("/local/domain/0/backend/vbd/{dom}/51712");
        let front_rights = [
            Permission::owner(dom),
            Permission::new(DomId::DOM0, Access::Read),
        ];
        let back_rights = [
            Permission::owner(DomId::DOM0),
            Permission::new(dom, Access::Read),
        ];
        self.declare(
            &front,
            &front_rights,
            &[
                ("backend", back.as_str()),
                ("backend-id", "0"),
                ("virtual-device", "51712"),
                ("device-type", "disk"),
                ("protocol", "x86_64-abi"),
                ("state", "1"),
            ],
        )?;
        self.declare(
            &back,
            &back_rights,
            &[
                ("frontend", front.as_str()),
                ("frontend-id", &dom.to_string()),
                ("params", image),
                ("mode", mode),
                ("type", "phy"),
                ("dev", "xvda"),
                ("device-type", "disk"),
                ("online", "1"),
                ("state", "1"),
            ],
        )
    }

    /// Destroys a guest and removes what the store has of it, as a toolstack does.
    pub fn destroy_guest(&self, guest: FakeGuest) -> Result<(), StoreError> {
        let dom = guest.domain.id();
        drop(guest);
        self.world.destroy_domain(dom);
        for path in [
            format!("/local/domain/{dom}"),
            format!("/local/domain/0/backend/vbd/{dom}"),
        ] {
            self.store.rm_if_present(None, &path)?;
        }
        Ok(())
    }

    /// Ends the daemons and demands that nobody has left anything behind. Guests must be gone.
    #[track_caller]
    pub fn finish(self) {
        let Machine {
            world,
            server,
            store,
            backend,
            ..
        } = self;
        drop((backend, store, server));
        world.assert_nothing_left();
    }

    fn declare(
        &self,
        base: &str,
        rights: &[Permission],
        nodes: &[(&str, &str)],
    ) -> Result<(), StoreError> {
        self.store.mkdir(None, base)?;
        self.store.set_permissions(None, base, rights)?;
        for (node, value) in nodes {
            self.store
                .write(None, &format!("{base}/{node}"), value.as_bytes())?;
        }
        Ok(())
    }
}

/// A guest with its connection to the store.
pub struct FakeGuest {
    /// The domain.
    pub domain: Domain,
    /// The driver's store client on the guest's ring.
    pub store: StoreClient<Page, GuestWire>,
}

/// How a guest waits for the store: by letting its daemon run.
pub struct GuestWire {
    events: Events,
    port: Port,
    server: StoreServer,
}

impl GuestWire {
    fn new(domain: &Domain, server: &StoreServer) -> GuestWire {
        let events = domain.events();
        events
            .adopt(domain.store_port())
            .expect("a new domain's store port");
        GuestWire {
            events,
            port: domain.store_port(),
            server: server.clone(),
        }
    }
}

impl Wire for GuestWire {
    fn notify(&self) {
        // A lost event is made up for by the daemon's next look at the ring.
        let _ = self.events.notify(self.port);
    }

    fn wait(&self) -> bool {
        for _ in 0..IDLE_WAITS {
            if let Ok(Some(port)) = self.events.next_pending() {
                return self.events.unmask(port).is_ok();
            }
            self.server.step();
        }
        false
    }
}

/// A disk's content in memory. Every clone is the same disk.
#[derive(Clone)]
pub struct MemoryImage {
    bytes: Arc<Mutex<Vec<u8>>>,
    number: u64,
    faults: Faults,
}

impl MemoryImage {
    /// Lets `body` look at the content.
    pub fn with<T>(&self, body: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        body(&mut self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn io<T>(&self, call: &'static str, body: impl FnOnce(&mut Vec<u8>) -> T) -> io::Result<T> {
        if self.faults.hit(Call::Other(call)) {
            return Err(io::Error::other(format!("{call} was told to fail")));
        }
        Ok(self.with(body))
    }
}

impl Storage for MemoryImage {
    fn sectors_512(&self) -> u64 {
        self.with(|bytes| bytes.len() as u64 / 512)
    }

    fn can_discard(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let at = offset as usize;
        self.io("image read", |bytes| {
            to.copy_from_slice(&bytes[at..at + to.len()])
        })
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        let at = offset as usize;
        self.io("image write", |bytes| {
            bytes[at..at + from.len()].copy_from_slice(from)
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.io("image flush", |_| ())
    }

    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn identity(&self) -> Option<Identity> {
        Some(Identity::File(1, self.number))
    }
}

impl Backing for MemoryImage {
    fn read_at(&mut self, offset: u64, to: &mut [u8]) -> Outcome {
        let at = offset as usize;
        self.with(|bytes| to.copy_from_slice(&bytes[at..at + to.len()]));
        Ok(())
    }

    fn length(&mut self) -> Outcome<u64> {
        Ok(self.with(|bytes| bytes.len() as u64))
    }
}
