//! The block part of the handshake, and a connection's set-up.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use xen_backend::{DeviceId, Driver, Node, Site};
use xen_hal::{AccessMode, Error, EventChannels, ForeignGrants, Result};
use xen_sys::{DomId, Errno, GrantRef, Port};

use crate::disk::Disk;
use crate::queue::{DataMove, Progress, Queue};
use crate::request::Limits;
use crate::ring::{Protocol, Ring};
use crate::storage::{FileStorage, Identity, Storage};

/// What a front end has published about its ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingInfo {
    /// The front end's domain.
    pub dom: DomId,
    /// The page with the ring.
    pub gref: GrantRef,
    /// Its event channel.
    pub port: Port,
    /// The layout of its slots.
    pub protocol: Protocol,
}

/// Who serves rings: threads in the daemon, the test itself in a test.
pub trait Datapath {
    /// A ring being served; dropping it ends that, and nothing of it is left afterwards.
    type Connection;

    /// Starts to serve a ring. `name` is the device's, for messages.
    fn serve(
        &mut self,
        name: &str,
        ring: &RingInfo,
        storage: Arc<dyn Storage>,
        limits: Limits,
    ) -> Result<Self::Connection>;

    /// Why a connection stopped serving, if it did.
    fn failure(&self, connection: &Self::Connection) -> Option<Error>;
    /// Asks a connection to end; true once it has ([`Driver::stop`]).
    fn stop(&self, connection: &Self::Connection) -> bool {
        let _ = connection;
        true
    }
}

/// Opens the image of a disk.
pub type OpenImage = Box<dyn Fn(&Disk) -> io::Result<Arc<dyn Storage>>>;

/// An [`OpenImage`] for files and block devices.
pub fn open_file() -> OpenImage {
    Box::new(|disk| {
        let storage = FileStorage::open(&disk.path, disk.read_only)?;
        Ok(Arc::new(storage))
    })
}

/// Block devices on a [`xen_backend::Bus`].
pub struct BlockDriver<D> {
    datapath: D,
    open: OpenImage,
    /// What is open now: no image is written by one guest while another has it.
    in_use: HashMap<DeviceId, (Identity, bool)>,
}

/// A disk from state 2 on.
pub struct Vbd {
    disk: Disk,
    storage: Arc<dyn Storage>,
    limits: Limits,
}

impl<D: Datapath> BlockDriver<D> {
    /// A driver that opens images with `open` and has `datapath` serve them.
    pub fn new(datapath: D, open: OpenImage) -> Self {
        BlockDriver {
            datapath,
            open,
            in_use: HashMap::new(),
        }
    }

    fn refuse_sharing(&mut self, id: DeviceId, disk: &Disk, identity: Identity) -> Result<()> {
        let clash = self.in_use.iter().find(|(other, (theirs, writable))| {
            **other != id && *theirs == identity && (*writable || !disk.read_only)
        });
        match clash {
            Some((other, _)) if !disk.shared => Err(Error::System {
                op: "open",
                object: format!(
                    "{} (vbd/{other} has it open; mode w! allows that)",
                    disk.path.display()
                ),
                errno: Errno::EBUSY,
            }),
            _ => {
                self.in_use.insert(id, (identity, !disk.read_only));
                Ok(())
            }
        }
    }
}

impl<D: Datapath> Driver for BlockDriver<D> {
    const CLASS: &'static str = "vbd";
    type Device = Vbd;
    type Connection = D::Connection;

    fn open(&mut self, site: &Site<'_>) -> Result<(Vbd, Vec<Node>)> {
        let disk = Disk::read(site)?;
        let storage = (self.open)(&disk).map_err(|error| Error::System {
            op: "open",
            object: match error.raw_os_error() {
                Some(_) => disk.path.display().to_string(),
                None => format!("{} ({error})", disk.path.display()),
            },
            errno: Errno(error.raw_os_error().unwrap_or(Errno::EINVAL.0)),
        })?;
        if let Some(identity) = storage.identity() {
            self.refuse_sharing(site.id, &disk, identity)?;
        }
        let limits = Limits {
            sectors_512: storage.sectors_512(),
            read_only: disk.read_only,
            discard: disk.discard && storage.can_discard(),
        };
        let flag = |set: bool| u8::from(set).to_string();
        let mut nodes = vec![
            ("feature-flush-cache", flag(true)),
            ("feature-barrier", flag(false)),
            ("feature-persistent", flag(false)),
            ("feature-discard", flag(limits.discard)),
            // Xen's block script finds its work done and leaves the disk alone.
            ("physical-device", device_number(storage.identity())),
            ("physical-device-path", disk.path.display().to_string()),
            ("hotplug-status", "connected".to_string()),
        ];
        if limits.discard {
            nodes.push(("discard-granularity", "4096".to_string()));
            nodes.push(("discard-alignment", "0".to_string()));
            nodes.push(("discard-secure", flag(false)));
        }
        let device = Vbd {
            disk,
            storage,
            limits,
        };
        Ok((device, nodes))
    }

    fn connect(
        &mut self,
        site: &Site<'_>,
        device: &mut Vbd,
    ) -> Result<Option<(D::Connection, Vec<Node>)>> {
        let ring = ring_info(site)?;
        let name = format!("vbd/{}", site.id);
        let storage = device.storage.clone();
        let connection = self.datapath.serve(&name, &ring, storage, device.limits)?;
        let nodes = vec![
            ("sectors", device.limits.sectors_512.to_string()),
            ("sector-size", "512".to_string()),
            ("info", device.disk.info().to_string()),
        ];
        Ok(Some((connection, nodes)))
    }

    fn failure(&self, connection: &D::Connection) -> Option<Error> {
        self.datapath.failure(connection)
    }

    fn stop(&self, connection: &D::Connection) -> bool {
        self.datapath.stop(connection)
    }

    fn farewell(&self) -> Vec<Node> {
        // Xen's block script, when libxl has it remove a file, would look for the loop device that it
        // has not made, and fail; for what is neither file nor block device it has nothing to do.
        vec![("params", "/dev/null".to_string())]
    }

    fn close(&mut self, id: DeviceId, device: Vbd) {
        self.in_use.remove(&id);
        drop(device);
    }
}

/// Reads what the front end has published; what was not offered is refused rather than ignored.
fn ring_info(site: &Site<'_>) -> Result<RingInfo> {
    let queues = site.front_number::<u32>("multi-queue-num-queues")?;
    if queues.is_some_and(|queues| queues != 1) {
        return Err(site.guest(format!(
            "multi-queue-num-queues is {}, but one queue was offered",
            queues.unwrap_or(0)
        )));
    }
    let order = site.front_number::<u32>("ring-page-order")?.unwrap_or(0);
    if order != 0 {
        return Err(site.guest(format!(
            "ring-page-order is {order}, but one page was offered"
        )));
    }
    let protocol = match site.front("protocol")? {
        None => Protocol::Native,
        Some(text) => Protocol::parse(&text).ok_or_else(|| {
            site.guest(format!(
                "protocol is {text:?}, neither x86_64-abi nor x86_32-abi"
            ))
        })?,
    };
    Ok(RingInfo {
        dom: site.id.dom,
        gref: GrantRef(site.front_required("ring-ref")?),
        port: Port(site.front_required("event-channel")?),
        protocol,
    })
}

fn device_number(identity: Option<Identity>) -> String {
    match identity {
        Some(Identity::Block(major, minor)) => format!("{major:x}:{minor:x}"),
        // Serves as "somebody has seen to it"; no device has this number.
        _ => "0:0".to_string(),
    }
}

/// A ring with its event channel: all that serving it takes.
pub struct Served<G: ForeignGrants, E: EventChannels> {
    queue: Queue<G>,
    events: E,
    port: Port,
    masked: bool,
}

/// Requests carried out before whoever drives the queue has a say again.
const BUDGET: usize = 64;

impl<G: ForeignGrants, E: EventChannels> Served<G, E> {
    /// Maps the ring, binds the event channel and sends one event: those sent while nobody listened are lost.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        ring: &RingInfo,
        grants: G,
        events: E,
        data_move: DataMove,
        storage: Arc<dyn Storage>,
        limits: Limits,
        log: Arc<dyn Fn(&str) + Send + Sync>,
    ) -> Result<Self> {
        let memory = grants.map(ring.dom, &[ring.gref], AccessMode::ReadWrite)?;
        let attached = Ring::attach(memory, ring.protocol)?;
        let port = events.bind_interdomain(ring.dom, ring.port)?;
        events.notify(port)?;
        let queue = Queue::new(ring.dom, attached, grants, data_move, storage, limits, log);
        Ok(Served {
            queue,
            events,
            port,
            masked: false,
        })
    }

    /// Carries out what is there, up to a budget. On [`Progress::Idle`] the port is open again.
    pub fn work(&mut self) -> Result<Progress> {
        while self.events.next_pending()?.is_some() {
            self.masked = true;
        }
        let (events, port) = (&self.events, self.port);
        let progress = self.queue.run(BUDGET, || events.notify(port))?;
        // Opened only now: a guest's storm of events costs it its own turn (XSA-332).
        if progress == Progress::Idle && std::mem::take(&mut self.masked) {
            self.events.unmask(self.port)?;
        }
        Ok(progress)
    }

    /// The event channels, for waiting on their descriptor.
    pub fn events(&self) -> &E {
        &self.events
    }

    /// The queue.
    pub fn queue(&self) -> &Queue<G> {
        &self.queue
    }
}
