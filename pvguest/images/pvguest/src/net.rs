//! TCP/IP for appliances: smoltcp over the network front end.

use alloc::format;
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use core::str::FromStr;

use pv_drivers::cmdline::CommandLine;
use pv_drivers::net::{Counters, Interface, MAX_FRAME, Phase};
use pv_drivers::xenbus;
use smoltcp::iface::{Config, Interface as IpInterface, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};
use xen_hal::{Clock, Error, Result};
use xen_sys::DomId;

use crate::{Events, Grants, Guest, GuestStore, PvClock, events};

/// How long an interface may take to connect.
const CONNECT_NS: u64 = 20_000_000_000;

type Front = Interface<Grants, Events, GuestStore>;

/// An address with its network's prefix, and the way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Config {
    /// Our address.
    pub address: Ipv4Addr,
    /// Bits of the network.
    pub prefix: u8,
    /// The gateway, if any.
    pub gateway: Option<Ipv4Addr>,
}

impl Ipv4Config {
    /// From `ip=10.0.0.2/24 gw=10.0.0.1` on a command line; none if `ip` is missing or makes no sense.
    pub fn from_command_line(line: CommandLine<'_>) -> Option<Ipv4Config> {
        let (address, prefix) = line.value("ip")?.split_once('/')?;
        Some(Ipv4Config {
            address: Ipv4Addr::from_str(address).ok()?,
            prefix: prefix.parse().ok().filter(|prefix| *prefix <= 32)?,
            gateway: line.parsed("gw"),
        })
    }
}

/// A network: the interface, its IP layer, and the sockets on it.
pub struct Network {
    front: FrontDevice,
    ip: IpInterface,
    /// The sockets; smoltcp's own.
    pub sockets: SocketSet<'static>,
}

struct FrontDevice(Front);

impl Guest {
    /// Connects the interface `device/vif/ID` (without an id the first one) and gives it an address.
    pub fn open_network(&self, id: Option<&str>, config: Ipv4Config) -> Result<Network> {
        let store = self.store()?;
        let ids = xenbus::list(&store, "vif")?;
        let id = id.or(ids.first().map(|id| &**id)).ok_or(Error::Peer {
            dom: DomId::DOM0,
            what: "the toolstack has given this domain no network interface".into(),
        })?;
        let mut front = Front::open(self.grants()?, Events, store, id)?;
        let deadline = PvClock.now_ns() + CONNECT_NS;
        while front.phase().is_opening() && PvClock.now_ns() < deadline {
            events::wait(Some(deadline));
            follow(&mut front);
        }
        match front.phase() {
            Phase::Connected => Ok(Network::new(front, config)),
            phase => Err(Error::Peer {
                dom: DomId::DOM0,
                what: format!("the interface {id} does not connect: {phase:?}"),
            }),
        }
    }
}

impl Network {
    fn new(front: Front, config: Ipv4Config) -> Network {
        let mac = EthernetAddress(front.mac().0);
        let mut front = FrontDevice(front);
        let mut settings = Config::new(HardwareAddress::Ethernet(mac));
        // Port and sequence numbers: different in every guest and every run.
        settings.random_seed = PvClock.wall_ns() ^ u64::from(config.address.to_bits()) << 32;
        let mut ip = IpInterface::new(settings, &mut front, now());
        ip.update_ip_addrs(|addresses| {
            // There is room for at least one.
            let _ = addresses.push(IpCidr::new(config.address.into(), config.prefix));
        });
        if let Some(gateway) = config.gateway {
            // As above.
            let _ = ip.routes_mut().add_default_ipv4_route(gateway);
        }
        Network {
            front,
            ip,
            sockets: SocketSet::new(Vec::new()),
        }
    }

    /// Moves frames and lets the sockets go on. True if something has happened.
    pub fn poll(&mut self) -> bool {
        follow(&mut self.front.0);
        self.front.0.poll();
        let changed = self.ip.poll(now(), &mut self.front, &mut self.sockets);
        self.front.0.poll();
        changed == smoltcp::iface::PollResult::SocketStateChanged
    }

    /// Until when to wait at most before the next [`poll`](Self::poll), as an absolute time of the guest's clock.
    pub fn deadline_ns(&mut self) -> Option<u64> {
        let delay = self.ip.poll_delay(now(), &self.sockets)?;
        Some(PvClock.now_ns() + delay.micros() * 1000)
    }

    /// The IP layer, which some sockets need to open connections.
    pub fn parts(&mut self) -> (&mut IpInterface, &mut SocketSet<'static>) {
        (&mut self.ip, &mut self.sockets)
    }

    /// Whether frames can pass.
    pub fn is_up(&self) -> bool {
        *self.front.0.phase() == Phase::Connected
    }

    /// Frames that have passed.
    pub fn counters(&self) -> Counters {
        self.front.0.counters()
    }
}

fn now() -> Instant {
    Instant::from_micros((PvClock.now_ns() / 1000) as i64)
}

fn follow(front: &mut Front) {
    if GuestStore::get().and_then(|store| store.take_events(front.token())) == Ok(true)
        && let Err(error) = front.backend_changed()
    {
        log::error!("network: {error}");
    }
}

impl phy::Device for FrontDevice {
    type RxToken<'a> = RxFrame;
    type TxToken<'a> = TxFrame<'a>;

    fn receive(&mut self, _: Instant) -> Option<(RxFrame, TxFrame<'_>)> {
        // A frame is taken only if its answer can be sent.
        if !self.0.can_send() {
            return None;
        }
        let frame = self.0.receive()?;
        Some((RxFrame(frame), TxFrame(&mut self.0)))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxFrame<'_>> {
        self.0.can_send().then_some(TxFrame(&mut self.0))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MAX_FRAME;
        capabilities
    }
}

#[doc(hidden)]
pub struct RxFrame(Vec<u8>);

impl phy::RxToken for RxFrame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

#[doc(hidden)]
pub struct TxFrame<'a>(&'a mut Front);

impl phy::TxToken for TxFrame<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = [0; MAX_FRAME];
        let frame = &mut frame[..len.min(MAX_FRAME)];
        let result = f(frame);
        // There was room when the token was made. Ethernet's shortest frame is longer than ARP's.
        let _ = self.0.send(frame);
        result
    }
}
