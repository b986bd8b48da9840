//! The block part of the handshake.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use xen_backend::{Change, DeviceId, Driver, Node, Site, Wake};
use xen_hal::{Error, Result, XenbusState};
use xen_sys::{Errno, GrantRef, PAGE_SIZE, Port};

use crate::disk::Disk;
use crate::in_use::InUse;
use crate::next::{Next, Opened, Opener, Opening};
use crate::request::{Limits, MAX_INDIRECT};
use crate::ring::Protocol;
use crate::served::{Connect, RingInfo};
use crate::sizes::Sizes;
use crate::storage::{FileStorage, Identity, Storage};

/// Who serves rings: threads in the daemon, the test itself in a test.
pub trait Datapath {
    /// A device being served; dropping it ends that, and nothing of it is left afterwards.
    type Connection;

    /// Starts to serve a device's rings.
    fn serve(&mut self, connect: &Connect, storage: Arc<dyn Storage>) -> Result<Self::Connection>;

    /// Why a connection stopped serving, if it did.
    fn failure(&self, connection: &Self::Connection) -> Option<Error>;
    /// Whoever serves them has ended ([`Driver::over`]).
    fn over(&self) -> bool {
        false
    }

    /// Asks a connection to end; true once it has ([`Driver::stop`]).
    fn stop(&self, connection: &Self::Connection) -> bool {
        let _ = connection;
        true
    }

    /// The same if another goes on with what it has in flight ([`Driver::pause`]).
    fn pause(&self, connection: &Self::Connection) -> bool {
        self.stop(connection)
    }
}

/// Opens the image of a disk.
pub type OpenImage = Arc<dyn Fn(&Disk) -> io::Result<Arc<dyn Storage>> + Send + Sync>;

/// An [`OpenImage`] for raw files and block devices.
pub fn open_file() -> OpenImage {
    Arc::new(|disk| {
        let storage = FileStorage::open(&disk.path, disk.read_only, disk.cache)?;
        Ok(Arc::new(storage))
    })
}

/// Block devices on a [`xen_backend::Bus`].
pub struct BlockDriver<D> {
    datapath: D,
    pub(crate) opener: Opener,
    opening: HashMap<DeviceId, Opening>,
    /// What is open now.
    pub(crate) in_use: InUse,
    /// Sees images that become longer.
    pub(crate) sizes: Option<Sizes>,
}

/// A disk from state 2 on.
pub struct Vbd {
    pub(crate) disk: Disk,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) limits: Limits,
    /// What was published.
    pub(crate) sectors_512: u64,
    /// The image that is to follow.
    pub(crate) next: Option<Next>,
}

/// Most queues of a disk.
pub const MAX_QUEUES: u32 = xen_backend::account::MAX_QUEUES as u32;
/// Largest ring: 2 to this power pages.
pub const MAX_RING_ORDER: u32 = 4;

impl<D: Datapath> BlockDriver<D> {
    /// A driver that opens images with `open` and has `datapath` serve them.
    pub fn new(datapath: D, open: OpenImage) -> Self {
        BlockDriver {
            datapath,
            opener: Opener::new(open),
            opening: HashMap::new(),
            in_use: InUse::default(),
            sizes: None,
        }
    }

    /// The same, with images opened, and their sizes watched, in the background.
    pub fn in_background(self, wake: Wake) -> Self {
        BlockDriver {
            sizes: Some(Sizes::watched(wake.clone())),
            opener: self.opener.in_background(wake),
            ..self
        }
    }

    /// Who serves the rings.
    pub fn datapath(&self) -> &D {
        &self.datapath
    }

    /// The image that a thread has opened, or one opened now.
    fn image(&mut self, id: DeviceId, disk: &Disk) -> Opened {
        let opening = self.opening.remove(&id).filter(|o| o.disk == *disk);
        let outcome = opening.and_then(|opening| opening.take());
        outcome.unwrap_or_else(|| self.opener.open(disk))
    }
}

impl Vbd {
    /// Where its data is, for Xen's block script, which finds its work done and leaves the disk alone, and for the
    /// toolstack.
    pub(crate) fn place(&self) -> [Node; 2] {
        [
            ("physical-device", device_number(self.storage.identity())),
            ("physical-device-path", self.disk.path.display().to_string()),
        ]
    }
}

impl<D: Datapath> Driver for BlockDriver<D> {
    const CLASS: &'static str = "vbd";
    // libxl's from 4.19 on, of disks with backendtype=tap.
    const ALSO: &'static [&'static str] = &["vbd3"];
    type Device = Vbd;
    type Connection = D::Connection;

    fn prepare(&mut self, site: &Site<'_>) -> Result<bool> {
        if !self.opener.is_in_background() {
            return Ok(true);
        }
        let disk = Disk::read(site)?;
        if let Some(opening) = self.opening.get(&site.id).filter(|o| o.disk == disk) {
            return Ok(opening.is_done());
        }
        let opening = self.opener.begin(site.id, disk)?;
        self.opening.insert(site.id, opening);
        Ok(false)
    }

    fn cancel(&mut self, id: DeviceId) {
        self.opening.remove(&id);
    }

    fn open(&mut self, site: &Site<'_>) -> Result<(Vbd, Vec<Node>)> {
        let disk = Disk::read(site)?;
        let storage = self.image(site.id, &disk).map_err(|error| Error::System {
            op: "open",
            object: match error.raw_os_error() {
                Some(_) => disk.path.display().to_string(),
                None => format!("{} ({error})", disk.path.display()),
            },
            errno: Errno(error.raw_os_error().unwrap_or(Errno::EINVAL.0)),
        })?;
        self.in_use.enter(site.id, &disk, &*storage)?;
        let limits = Limits {
            sectors_512: storage.sectors_512(),
            sector_size: storage.sector_size(),
            read_only: disk.read_only,
            discard: disk.discard && storage.can_discard(),
            indirect: MAX_INDIRECT,
        };
        let flag = |set: bool| u8::from(set).to_string();
        let mut nodes = vec![
            ("feature-flush-cache", flag(true)),
            ("feature-barrier", flag(true)),
            ("feature-persistent", flag(true)),
            ("feature-max-indirect-segments", limits.indirect.to_string()),
            ("max-ring-page-order", MAX_RING_ORDER.to_string()),
            ("multi-queue-max-queues", MAX_QUEUES.to_string()),
            ("feature-discard", flag(limits.discard)),
            ("hotplug-status", "connected".to_string()),
        ];
        if limits.discard {
            let granularity = storage.discard_unit();
            nodes.push(("discard-granularity", granularity.to_string()));
            nodes.push(("discard-alignment", "0".to_string()));
            nodes.push(("discard-secure", flag(false)));
        }
        if let Some(sizes) = &self.sizes {
            sizes.watch(site.id, &storage);
        }
        let device = Vbd {
            disk,
            sectors_512: limits.sectors_512,
            storage,
            limits,
            next: None,
        };
        nodes.extend(device.place());
        Ok((device, nodes))
    }

    fn connect(
        &mut self,
        site: &Site<'_>,
        device: &mut Vbd,
    ) -> Result<Option<(D::Connection, Vec<Node>)>> {
        let Some(mut nodes) = self.follow(site.id, device)? else {
            return Ok(None);
        };
        let front = site.front("state")?.unwrap_or_default();
        let connected = XenbusState::Connected;
        let connect = Connect {
            id: site.id,
            protocol: protocol(site)?,
            persistent: site.front_number::<u32>("feature-persistent")? == Some(1),
            rings: rings(site)?,
            limits: device.limits,
            allowance: device.disk.allowance,
            // Both were connected when the process before us went.
            resume: site.state == connected && XenbusState::parse(front.as_bytes()) == connected,
        };
        let connection = self.datapath.serve(&connect, device.storage.clone())?;
        device.sectors_512 = device.storage.sectors_512();
        nodes.extend([
            ("sectors", device.sectors_512.to_string()),
            ("sector-size", device.limits.sector_size.to_string()),
            (
                "physical-sector-size",
                device.limits.sector_size.to_string(),
            ),
            ("info", device.disk.info().to_string()),
        ]);
        Ok(Some((connection, nodes)))
    }

    fn changed(&mut self, site: &Site<'_>, device: &mut Vbd) -> Result<Change> {
        let mut change = Change::default();
        // The farewell of a device that is about to go is no occasion.
        if site.state != XenbusState::Connected {
            return Ok(change);
        }
        self.look_ahead(site, device, &mut change)?;
        // A medium whose size cannot be told any more keeps the one it had.
        if device.storage.refresh().is_err() {
            return Ok(change);
        }
        let sectors = device.storage.sectors_512();
        if sectors != device.sectors_512 {
            device.sectors_512 = sectors;
            change.nodes.push(("sectors", sectors.to_string()));
            change.tell_front = true;
        }
        Ok(change)
    }

    fn noticed(&mut self) -> Vec<DeviceId> {
        let mut noticed = self.opener.noticed();
        noticed.extend(self.sizes.iter().flat_map(Sizes::take));
        noticed
    }

    fn failure(&self, connection: &D::Connection) -> Option<Error> {
        self.datapath.failure(connection)
    }

    fn stop(&self, connection: &D::Connection) -> bool {
        self.datapath.stop(connection)
    }

    fn pause(&self, connection: &D::Connection) -> bool {
        self.datapath.pause(connection)
    }

    fn over(&self) -> bool {
        self.datapath.over()
    }

    fn farewell(&self) -> Vec<Node> {
        // Xen's block script, when libxl has it remove a file, would look for the loop device that it
        // has not made, and fail; for what is neither file nor block device it has nothing to do.
        vec![("params", "/dev/null".to_string())]
    }

    fn close(&mut self, id: DeviceId, device: Vbd) {
        self.in_use.leave(id);
        drop(device);
    }
}

fn protocol(site: &Site<'_>) -> Result<Protocol> {
    match site.front("protocol")? {
        None => Ok(Protocol::Native),
        Some(text) => Protocol::parse(&text).ok_or_else(|| {
            site.guest(format!(
                "protocol is {text:?}, neither x86_64-abi nor x86_32-abi"
            ))
        }),
    }
}

/// Reads what the front end has published about its rings; what was not offered is refused rather than
/// ignored.
fn rings(site: &Site<'_>) -> Result<Vec<RingInfo>> {
    let queues = site.front_number::<u32>("multi-queue-num-queues")?;
    let count = queues.unwrap_or(1);
    if !(1..=MAX_QUEUES).contains(&count) {
        return Err(site.guest(format!(
            "multi-queue-num-queues is {count}, but 1 to {MAX_QUEUES} were offered"
        )));
    }
    let order = site.front_number::<u32>("ring-page-order")?;
    if order.is_some_and(|order| order > MAX_RING_ORDER) {
        return Err(site.guest(format!(
            "ring-page-order is {}, but up to {MAX_RING_ORDER} was offered",
            order.unwrap_or(0)
        )));
    }
    (0..count)
        .map(|queue| {
            // One queue's nodes stand in the device's own folder.
            let folder = match count {
                1 => String::new(),
                _ => format!("queue-{queue}/"),
            };
            ring(site, &folder, order)
        })
        .collect()
}

fn ring(site: &Site<'_>, folder: &str, order: Option<u32>) -> Result<RingInfo> {
    let pages = 1u32 << order.unwrap_or(0);
    let mut grefs = Vec::with_capacity(pages as usize);
    for page in 0..pages {
        let numbered = format!("{folder}ring-ref{page}");
        let node = match (order, pages) {
            (None, _) => format!("{folder}ring-ref"),
            // Either name will do for a single page.
            (Some(_), 1) if site.front(&numbered)?.is_none() => format!("{folder}ring-ref"),
            _ => numbered,
        };
        grefs.push(GrantRef(site.front_required(&node)?));
    }
    debug_assert!(grefs.len() * PAGE_SIZE <= PAGE_SIZE << MAX_RING_ORDER);
    Ok(RingInfo {
        grefs,
        port: Port(site.front_required(&format!("{folder}event-channel"))?),
    })
}

fn device_number(identity: Option<Identity>) -> String {
    match identity {
        Some(Identity::Block(major, minor)) => format!("{major:x}:{minor:x}"),
        // Serves as "somebody has seen to it"; no device has this number.
        _ => "0:0".to_string(),
    }
}
