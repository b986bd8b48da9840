//! Both directions of a connected network interface.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use xen_hal::{AccessMode, EventChannels, ForeignGrants, Result};
use xen_ring::BackRing;
use xen_sys::{GrantRef, Port};

use crate::driver::{Ports, RingInfo};
use crate::receive::{self, Ended, Receive};
use crate::transmit::{self, Transmit};

/// Where frames go to and come from: a TAP device. Neither call waits.
pub trait Frames: Send + Sync {
    /// Sends one Ethernet frame.
    fn send(&self, frame: &[u8]) -> io::Result<()>;
    /// Takes the next frame; its length, cut off at `to.len()`. `None` if none is waiting.
    fn receive(&self, to: &mut [u8]) -> io::Result<Option<usize>>;
}

/// Counts since the interface was connected. "tx" is from the guest, as the guest calls it.
#[derive(Debug, Default)]
pub struct Stats {
    /// Packets from the guest.
    pub tx_packets: AtomicU64,
    /// Their bytes.
    pub tx_bytes: AtomicU64,
    /// Packets from the guest that were refused or could not be copied.
    pub tx_errors: AtomicU64,
    /// Packets from the guest that the TAP device did not take.
    pub tx_dropped: AtomicU64,
    /// Packets to the guest.
    pub rx_packets: AtomicU64,
    /// Their bytes.
    pub rx_bytes: AtomicU64,
    /// Packets to the guest that could not be copied.
    pub rx_errors: AtomicU64,
    /// Packets to the guest that are longer than a slot takes.
    pub rx_dropped: AtomicU64,
}

/// Messages about a guest's bad packets, only the first of which reach the log.
pub(crate) struct Complaints {
    log: Arc<dyn Fn(&str) + Send + Sync>,
    made: u32,
}

const MAX_LOGGED: u32 = 10;

impl Complaints {
    pub(crate) fn add(&mut self, what: impl FnOnce() -> String) {
        if self.made < MAX_LOGGED {
            self.made += 1;
            (self.log)(&what());
            if self.made == MAX_LOGGED {
                (self.log)("further bad packets are only counted");
            }
        }
    }
}

/// What to wait for after a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing: run again.
    More,
    /// An event, or a frame.
    Idle,
    /// An event: the guest has no room for a frame.
    IdleNoRoom,
}

/// A connected interface: both rings and their event channel.
pub struct Served<G: ForeignGrants, E: EventChannels> {
    transmit: Transmit<G::Mapping>,
    receive: Receive<G::Mapping>,
    grants: G,
    events: E,
    tx_port: Port,
    rx_port: Port,
    masked: Vec<Port>,
    frames: Arc<dyn Frames>,
    stats: Arc<Stats>,
    complaints: Complaints,
}

impl<G: ForeignGrants, E: EventChannels> Served<G, E> {
    /// Maps both rings, binds the event channel and sends one event: those sent while nobody listened are
    /// lost.
    pub fn new(
        ring: &RingInfo,
        grants: G,
        events: E,
        frames: Arc<dyn Frames>,
        log: Arc<dyn Fn(&str) + Send + Sync>,
    ) -> Result<Self> {
        let map = |gref: GrantRef| grants.map(ring.dom, &[gref], AccessMode::ReadWrite);
        let transmit = Transmit {
            dom: ring.dom,
            ring: BackRing::attach(map(ring.tx)?)?,
            buffer: transmit::buffer(),
        };
        let receive = Receive {
            dom: ring.dom,
            ring: BackRing::attach(map(ring.rx)?)?,
            buffer: receive::buffer(),
        };
        let (tx_port, rx_port) = match ring.ports {
            Ports::One(port) => {
                let port = events.bind_interdomain(ring.dom, port)?;
                (port, port)
            }
            Ports::Split { tx, rx } => (
                events.bind_interdomain(ring.dom, tx)?,
                events.bind_interdomain(ring.dom, rx)?,
            ),
        };
        events.notify(tx_port)?;
        if rx_port != tx_port {
            events.notify(rx_port)?;
        }
        Ok(Served {
            transmit,
            receive,
            grants,
            events,
            tx_port,
            rx_port,
            masked: Vec::new(),
            frames,
            stats: Arc::default(),
            complaints: Complaints { log, made: 0 },
        })
    }

    /// Moves up to a batch of packets each way. Ports are open again when it returns anything but
    /// [`Progress::More`].
    pub fn work(&mut self) -> Result<Progress> {
        while let Some(port) = self.events.next_pending()? {
            self.masked.push(port);
        }
        let (events, tx_port, rx_port) = (&self.events, self.tx_port, self.rx_port);
        let more_tx = self.transmit.run(
            &self.grants,
            &*self.frames,
            &self.stats,
            &mut self.complaints,
            &mut || events.notify(tx_port),
        )?;
        let ended = self
            .receive
            .run(&self.grants, &*self.frames, &self.stats, &mut || {
                events.notify(rx_port)
            })?;
        if more_tx || ended == Ended::Batch {
            return Ok(Progress::More);
        }
        // Opened only now: a guest's storm of events costs it its own turn (XSA-332).
        for port in self.masked.drain(..) {
            self.events.unmask(port)?;
        }
        Ok(match ended {
            Ended::NoRoom => Progress::IdleNoRoom,
            _ => Progress::Idle,
        })
    }

    /// The event channels, for waiting on their descriptor.
    pub fn events(&self) -> &E {
        &self.events
    }

    /// Counts, for reading from anywhere.
    pub fn stats(&self) -> Arc<Stats> {
        self.stats.clone()
    }
}
