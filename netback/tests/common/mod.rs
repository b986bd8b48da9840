//! One guest with one interface in a fake world; both its front end and the TAP device are moved by hand.
#![allow(dead_code)]

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use netback::{Frames, Inline, NetDriver, Plan, Progress};
use xen_backend::Bus;
use xen_backend::testing::MemoryStore;
use xen_fake::{Domain, Events, Foreign, Grants, World};
use xen_hal::{EventChannels, Lease, StoreExt};
use xen_ring::{FrontRing, SharedMemoryExt};
use xen_sys::io::netif::{RxRequest, RxResponse, TxRequest, TxResponse};
use xen_sys::{DomId, GrantRef, Port};

/// A TAP device in memory.
#[derive(Clone, Default)]
pub struct Wire(pub Arc<Mutex<WireState>>);

#[derive(Default)]
pub struct WireState {
    pub from_guest: Vec<Vec<u8>>,
    pub to_guest: VecDeque<Vec<u8>>,
    pub is_full: bool,
}

impl Frames for Wire {
    fn send(&self, frame: &[u8]) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if state.is_full {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        state.from_guest.push(frame.to_vec());
        Ok(())
    }

    fn receive(&self, to: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(frame) = self.0.lock().unwrap().to_guest.pop_front() else {
            return Ok(None);
        };
        let len = frame.len().min(to.len());
        to[..len].copy_from_slice(&frame[..len]);
        Ok(Some(len))
    }
}

pub struct Host {
    pub world: World,
    pub store: MemoryStore,
    pub bus: Bus<NetDriver<Inline<Foreign, Events, Wire>>>,
    pub wire: Wire,
    pub plans: Arc<Mutex<Vec<Plan>>>,
}

impl Host {
    pub fn new() -> Host {
        let world = World::new();
        let store = MemoryStore::new();
        let wire = Wire::default();
        let plans = Arc::new(Mutex::new(Vec::new()));
        let dom0 = world.dom0();
        let (link, seen) = (wire.clone(), plans.clone());
        let datapath = Inline::new(
            dom0.foreign(),
            move || dom0.events(),
            move |plan| {
                seen.lock().unwrap().push(plan.clone());
                Ok(link.clone())
            },
        );
        let mut bus = Bus::new(NetDriver::new(datapath), DomId::DOM0, |line| {
            eprintln!("{line}")
        });
        bus.start(&store).unwrap();
        Host {
            world,
            store,
            bus,
            wire,
            plans,
        }
    }

    /// Lets the backend do all it can. As in the daemon, an interface is only looked at when it has more
    /// to do, its event channel has fired, or frames are waiting that it waits for.
    pub fn settle(&mut self) {
        loop {
            let mut more = self.bus.step(&self.store).unwrap();
            for (_, connection) in self.bus.connections_mut() {
                let fired = connection.served().events().has_pending();
                let frames = !self.wire.0.lock().unwrap().to_guest.is_empty();
                let wanted = match connection.progress() {
                    Progress::More => true,
                    Progress::Idle => fired || frames,
                    Progress::IdleNoRoom => fired,
                };
                if wanted {
                    more |= connection.step();
                }
            }
            self.bus.check(&self.store).unwrap();
            if !more {
                return;
            }
        }
    }
}

pub struct Guest {
    pub domain: Domain,
    pub grants: Grants,
    pub events: Events,
    pub back: String,
    pub front: String,
}

/// A front end's two rings.
pub struct Front {
    pub tx: FrontRing<Lease<Grants>, TxRequest, TxResponse>,
    pub rx: FrontRing<Lease<Grants>, RxRequest, RxResponse>,
    pub tx_port: Port,
    pub rx_port: Port,
}

impl Guest {
    pub fn new(host: &Host, more: &[(&str, &str)]) -> Guest {
        let domain = host.world.create_domain();
        let id = domain.id();
        let back = format!("/local/domain/0/backend/vif/{id}/0");
        let front = format!("/local/domain/{id}/device/vif/0");
        host.store
            .fill(&front, &[("backend", back.as_str()), ("state", "1")]);
        host.store.fill(
            &back,
            &[
                ("frontend", front.as_str()),
                ("online", "1"),
                ("bridge", "xenbr0"),
                ("mac", "00:16:3e:00:00:01"),
            ],
        );
        host.store.fill(&back, more);
        host.store.fill(&back, &[("state", "1")]);
        Guest {
            grants: domain.grants(),
            events: domain.events(),
            domain,
            back,
            front,
        }
    }

    pub fn set(&self, host: &Host, node: &str, value: &str) {
        host.store.fill(&self.front, &[(node, value)]);
    }

    pub fn back_state(&self, host: &Host) -> String {
        host.store.text(&format!("{}/state", self.back))
    }

    /// Publishes rings and jumps to state 4, as Linux's front end does.
    pub fn offer(&self, host: &Host, split: bool) -> Front {
        let tx = Lease::fresh(&self.grants, DomId::DOM0).unwrap();
        let rx = Lease::fresh(&self.grants, DomId::DOM0).unwrap();
        self.set(host, "tx-ring-ref", &tx.gref().to_string());
        self.set(host, "rx-ring-ref", &rx.gref().to_string());
        let tx_port = self.events.alloc_unbound(DomId::DOM0).unwrap();
        let rx_port = if split {
            let rx_port = self.events.alloc_unbound(DomId::DOM0).unwrap();
            self.set(host, "event-channel-tx", &tx_port.to_string());
            self.set(host, "event-channel-rx", &rx_port.to_string());
            rx_port
        } else {
            self.set(host, "event-channel", &tx_port.to_string());
            tx_port
        };
        self.set(host, "request-rx-copy", "1");
        self.set(host, "feature-rx-notify", "1");
        let front = Front {
            tx: FrontRing::new(tx).unwrap(),
            rx: FrontRing::new(rx).unwrap(),
            tx_port,
            rx_port,
        };
        self.set(host, "state", "4");
        front
    }

    pub fn connect(&self, host: &mut Host) -> Front {
        host.settle();
        assert_eq!(self.back_state(host), "2");
        let front = self.offer(host, true);
        host.settle();
        assert_eq!(self.back_state(host), "4");
        front
    }

    pub fn page(&self, bytes: &[u8]) -> Lease<Grants> {
        let lease = Lease::fresh(&self.grants, DomId::DOM0).unwrap();
        lease.write_bytes(0, bytes);
        lease
    }

    pub fn close(&self, host: &mut Host, front: Front) {
        self.set(host, "state", "5");
        host.settle();
        drop(front);
        self.set(host, "state", "6");
        host.settle();
        assert_eq!(self.back_state(host), "6");
    }

    pub fn remove(self, host: &mut Host) {
        host.store.rm_if_present(None, &self.front).unwrap();
        host.store.rm_if_present(None, &self.back).unwrap();
        host.settle();
        assert_eq!(host.bus.counts().1, 0);
        drop(self.events);
        host.world.destroy_domain(self.domain.id());
    }
}

impl Front {
    /// Publishes slots in one go.
    pub fn send(&mut self, guest: &Guest, slots: &[TxRequest]) {
        for slot in slots {
            assert!(self.tx.push(*slot));
        }
        if self.tx.publish() {
            guest.events.notify(self.tx_port).unwrap();
        }
    }

    /// The statuses of all responses that are there.
    pub fn sent(&mut self) -> Vec<i16> {
        let mut statuses = Vec::new();
        while let Some(response) = self.tx.pop().unwrap() {
            statuses.push(response.status);
        }
        statuses
    }

    pub fn give_page(&mut self, guest: &Guest, id: u16, gref: GrantRef) {
        assert!(self.rx.push(RxRequest { id, pad: 0, gref }));
        if self.rx.publish() {
            guest.events.notify(self.rx_port).unwrap();
        }
    }
}

pub fn tx(gref: GrantRef, offset: u16, size: u16, flags: u16) -> TxRequest {
    TxRequest {
        gref,
        offset,
        flags,
        id: 5,
        size,
    }
}
