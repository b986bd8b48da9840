//! The network part of the handshake.

use std::sync::Arc;

use xen_backend::{DeviceId, Driver, Node, Site};
use xen_hal::{Error, Result, XenbusState};
use xen_sys::{DomId, Errno, GrantRef, Port};

use crate::vif::Frames;

/// What a front end has published about its rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingInfo {
    /// The front end's domain.
    pub dom: DomId,
    /// The page with the transmit ring.
    pub tx: GrantRef,
    /// The page with the receive ring.
    pub rx: GrantRef,
    /// Its event channel or channels.
    pub ports: Ports,
}

/// Event channels of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// One for both rings.
    One(Port),
    /// One for each ring.
    Split {
        /// The transmit ring's.
        tx: Port,
        /// The receive ring's.
        rx: Port,
    },
}

/// The network device to make for an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// The bridge to put it on, if a script does not do that.
    pub bridge: Option<String>,
    /// Whether a hotplug script brings it up and puts it on its bridge.
    pub by_script: bool,
}

/// Who makes network devices and serves rings: TAP devices and threads in the daemon, the test itself in
/// a test.
pub trait Datapath {
    /// A network device of ours.
    type Link: Frames + 'static;
    /// A pair of rings being served; dropping it ends that, and nothing of it is left afterwards.
    type Connection;

    /// Makes the network device, or takes over the one that an earlier process has left.
    fn make(&mut self, plan: &Plan) -> Result<Self::Link>;
    /// Removes the network device.
    fn remove(&mut self, link: &Self::Link);
    /// Starts to serve rings. `name` is the interface's, for messages.
    fn serve(
        &mut self,
        name: &str,
        ring: &RingInfo,
        link: Arc<Self::Link>,
    ) -> Result<Self::Connection>;
    /// Why a connection stopped serving, if it did.
    fn failure(&self, connection: &Self::Connection) -> Option<Error>;
    /// Asks a connection to end; true once it has ([`Driver::stop`]).
    fn stop(&self, connection: &Self::Connection) -> bool {
        let _ = connection;
        true
    }
}

/// Network interfaces on a [`xen_backend::Bus`].
pub struct NetDriver<D> {
    datapath: D,
}

impl<D: Datapath> NetDriver<D> {
    /// A driver that has `datapath` make devices and serve rings.
    pub fn new(datapath: D) -> Self {
        NetDriver { datapath }
    }

    /// The data path.
    pub fn datapath(&self) -> &D {
        &self.datapath
    }
}

/// An interface from state 2 on.
pub struct Vif<L> {
    link: Arc<L>,
}

impl<D: Datapath> Driver for NetDriver<D> {
    const CLASS: &'static str = "vif";
    type Device = Vif<D::Link>;
    type Connection = D::Connection;

    fn open(&mut self, site: &Site<'_>) -> Result<(Self::Device, Vec<Node>)> {
        let plan = plan(site)?;
        let link = Arc::new(self.datapath.make(&plan)?);
        let flag = |set: bool| u8::from(set).to_string();
        let nodes = vec![
            ("feature-rx-copy", flag(true)),
            ("feature-rx-flip", flag(false)),
            ("feature-sg", flag(false)),
            ("feature-gso-tcpv4", flag(false)),
            ("feature-gso-tcpv6", flag(false)),
            ("feature-no-csum-offload", flag(true)),
            ("feature-ipv6-csum-offload", flag(false)),
            ("feature-split-event-channels", flag(true)),
            ("feature-multicast-control", flag(false)),
            ("feature-dynamic-multicast-control", flag(false)),
            ("feature-ctrl-ring", flag(false)),
        ];
        Ok((Vif { link }, nodes))
    }

    fn connect(
        &mut self,
        site: &Site<'_>,
        device: &mut Self::Device,
    ) -> Result<Option<(D::Connection, Vec<Node>)>> {
        // libxl writes "" in advance and its script "connected" when the device is on its bridge.
        match site.back("hotplug-status")?.as_deref() {
            None | Some("connected") => {}
            Some("error") => {
                let why = site.back("hotplug-error")?.unwrap_or_default();
                return Err(Error::System {
                    op: "run the hotplug script for",
                    object: format!("{} ({why})", site.back),
                    errno: Errno::EIO,
                });
            }
            Some(_) => return Ok(None),
        }
        let ring = ring_info(site)?;
        let name = format!("vif/{}", site.id);
        let connection = self.datapath.serve(&name, &ring, device.link.clone())?;
        Ok(Some((connection, Vec::new())))
    }

    fn failure(&self, connection: &D::Connection) -> Option<Error> {
        self.datapath.failure(connection)
    }

    fn stop(&self, connection: &D::Connection) -> bool {
        self.datapath.stop(connection)
    }

    fn close(&mut self, _: DeviceId, device: Self::Device) {
        self.datapath.remove(&device.link);
    }
}

/// Linux's limit for a device's name, without the NUL.
const MAX_NAME: usize = 15;

/// What the toolstack wants for an interface.
fn plan(site: &Site<'_>) -> Result<Plan> {
    // A script renames the device itself, from the name it expects to the one that was asked for.
    let by_script = site.back("hotplug-status")?.is_some();
    let usual = format!("vif{}.{}", site.id.dom, site.id.index);
    let wanted = site.back("vifname")?.filter(|name| !name.is_empty());
    let renamed = by_script && site.state != XenbusState::Initialising;
    let name = match wanted {
        Some(name) if !by_script || renamed => name,
        _ => usual,
    };
    let sound = |name: &str| {
        !name.is_empty()
            && name.len() <= MAX_NAME
            && !matches!(name, "." | "..")
            && name
                .bytes()
                .all(|b| b.is_ascii_graphic() && b != b'/' && b != b':' && b != b'%')
    };
    if !sound(&name) {
        return Err(Error::System {
            op: "make the network device",
            object: format!("{name:?} (a name has 1 to {MAX_NAME} plain characters)"),
            errno: Errno::EINVAL,
        });
    }
    Ok(Plan {
        name,
        bridge: site.back("bridge")?.filter(|name| !name.is_empty()),
        // After a restart nobody runs the script again.
        by_script: by_script && !renamed,
    })
}

/// Reads what the front end has published; what was not offered is refused rather than ignored.
fn ring_info(site: &Site<'_>) -> Result<RingInfo> {
    let queues = site.front_number::<u32>("multi-queue-num-queues")?;
    if let Some(queues) = queues.filter(|&queues| queues != 1) {
        return Err(site.guest(format!(
            "multi-queue-num-queues is {queues}, but one queue was offered"
        )));
    }
    if site.front_number::<u32>("request-rx-copy")? != Some(1) {
        return Err(site.guest("request-rx-copy is not 1: only copying is offered".to_string()));
    }
    if site.front_number::<u32>("feature-rx-notify")? != Some(1) {
        return Err(site.guest("feature-rx-notify is not 1".to_string()));
    }
    let port = |node: &str| site.front_number(node).map(|port| port.map(Port));
    let ports = match (port("event-channel-tx")?, port("event-channel-rx")?) {
        (Some(tx), Some(rx)) => Ports::Split { tx, rx },
        _ => Ports::One(Port(site.front_required("event-channel")?)),
    };
    Ok(RingInfo {
        dom: site.id.dom,
        tx: GrantRef(site.front_required("tx-ring-ref")?),
        rx: GrantRef(site.front_required("rx-ring-ref")?),
        ports,
    })
}
