//! What the loop needs of the world under it: rings, events, the states of domains.

use std::os::fd::BorrowedFd;

use xen_hal::{AccessMode, Error, EventChannels, ForeignGrants, Result};
use xen_ring::SharedMemory;
use xen_sys::{DomId, Errno, GrantRef, Port};

use super::log;
use crate::core::{DomainReport, Identity};

/// The grant of every domain's store ring (`GNTTAB_RESERVED_XENSTORE`, grant_table.h).
pub const STORE_GRANT: GrantRef = GrantRef(1);

/// A mapped ring; dropping it unmaps it.
pub type RingMemory = Box<dyn SharedMemory>;

/// Something has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorldEvent {
    /// A port has fired.
    Port(Port),
    /// Some domain has died or shut down.
    DomainsChanged,
}

/// The world that the daemon serves.
pub trait StoreWorld {
    /// Our own kernel's ring and its port, if it has one.
    fn own_ring(&mut self) -> Result<Option<(RingMemory, Port)>>;
    /// Maps a domain's ring.
    fn map_ring(&mut self, dom: DomId) -> Result<RingMemory>;
    /// Binds a domain's port; events that it sent before are lost.
    fn bind(&mut self, dom: DomId, port: Port) -> Result<Port>;
    /// Closes a local port.
    fn unbind(&mut self, port: Port);
    /// The port of a domain's that one of ours is bound to, if that can be found out.
    fn peer_port(&mut self, _port: Port, _dom: DomId) -> Option<Port> {
        None
    }
    /// Sends an event.
    fn notify(&mut self, port: Port);
    /// Takes what has happened next, without waiting. A port may fire again at once.
    fn next_event(&mut self) -> Result<Option<WorldEvent>>;
    /// Before another daemon goes on in this process: gives up what that takes for itself again. Ports of domains stay.
    fn hand_over(&mut self) {}
    /// There was no other daemon after all.
    fn take_back(&mut self) -> Result<()> {
        Ok(())
    }
    /// Readable when something has happened, and inherited by a daemon that goes on in this process; `None` if the caller must ask.
    fn event_fd(&self) -> Option<BorrowedFd<'_>>;
    /// All domains.
    fn domains(&mut self) -> Result<Vec<DomainReport>>;
    /// Which domain has this number; `None` if none has.
    fn identity(&mut self, dom: DomId) -> Option<Identity>;
}

/// No Xen at all: sockets only, and every domain number may stand in permissions.
#[derive(Debug)]
pub struct NoWorld;

impl StoreWorld for NoWorld {
    fn own_ring(&mut self) -> Result<Option<(RingMemory, Port)>> {
        Ok(None)
    }

    fn map_ring(&mut self, dom: DomId) -> Result<RingMemory> {
        Err(Error::Hypercall {
            op: "GNTTABOP_map_grant_ref",
            dom,
            errno: Errno::ENOSYS,
        })
    }

    fn bind(&mut self, dom: DomId, port: Port) -> Result<Port> {
        Err(Error::Event {
            op: "EVTCHNOP_bind_interdomain",
            dom,
            port,
            errno: Errno::ENOSYS,
        })
    }

    fn unbind(&mut self, _: Port) {}

    fn notify(&mut self, _: Port) {}

    fn next_event(&mut self) -> Result<Option<WorldEvent>> {
        Ok(None)
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn domains(&mut self) -> Result<Vec<DomainReport>> {
        Ok(Vec::new())
    }

    fn identity(&mut self, _: DomId) -> Option<Identity> {
        Some(Identity::UNKNOWN)
    }
}

/// Which domains there are, and how they are.
pub trait DomainList {
    /// All of them.
    fn list(&mut self) -> Result<Vec<DomainReport>>;

    /// The port of a domain's that one of ours is bound to, if that can be found out.
    fn peer_port(&mut self, _port: Port, _dom: DomId) -> Option<Port> {
        None
    }

    /// Which of them has this number; `None` if none has.
    fn identity(&mut self, dom: DomId) -> Option<Identity> {
        let list = self.list().ok()?;
        let known = list.iter().find(|known| known.dom == dom);
        known.map(|known| known.identity)
    }
}

/// A world made of event channels, grants and a list of domains: dom0's device nodes, or a fake.
pub struct HalWorld<E, F, D> {
    events: E,
    grants: F,
    domains: D,
    own: Option<(RingMemory, Port)>,
    virq: Option<Port>,
    bind_virq: Option<fn(&E) -> Result<Port>>,
    fd: fn(&E) -> Option<BorrowedFd<'_>>,
}

impl<E: EventChannels, F: ForeignGrants, D: DomainList> HalWorld<E, F, D> {
    /// A world of these parts: `own` is our kernel's ring and port, `virq` the local port on which the deaths of
    /// domains are told, `fd` what to poll for events.
    pub fn new(
        events: E,
        grants: F,
        domains: D,
        own: Option<(RingMemory, Port)>,
        virq: Option<Port>,
        fd: fn(&E) -> Option<BorrowedFd<'_>>,
    ) -> Self {
        HalWorld {
            events,
            grants,
            domains,
            own,
            virq,
            bind_virq: None,
            fd,
        }
    }

    /// How the port on which deaths are told is bound anew.
    pub fn bind_virq_by(mut self, bind: fn(&E) -> Result<Port>) -> Self {
        self.bind_virq = Some(bind);
        self
    }
}

impl<E, F, D> StoreWorld for HalWorld<E, F, D>
where
    E: EventChannels,
    F: ForeignGrants<Mapping: 'static>,
    D: DomainList,
{
    fn own_ring(&mut self) -> Result<Option<(RingMemory, Port)>> {
        Ok(self.own.take())
    }

    fn map_ring(&mut self, dom: DomId) -> Result<RingMemory> {
        let mapping = self
            .grants
            .map(dom, &[STORE_GRANT], AccessMode::ReadWrite)?;
        Ok(Box::new(mapping))
    }

    fn bind(&mut self, dom: DomId, port: Port) -> Result<Port> {
        self.events.bind_interdomain(dom, port)
    }

    fn unbind(&mut self, port: Port) {
        // The peer may be gone, and the port with it.
        let _ = self.events.close(port);
    }

    fn notify(&mut self, port: Port) {
        // As above: nobody is left to be told.
        let _ = self.events.notify(port);
    }

    fn next_event(&mut self) -> Result<Option<WorldEvent>> {
        let Some(port) = self.events.next_pending()? else {
            return Ok(None);
        };
        // Before its work is done, so that nothing is missed; the loop takes a bounded number at a time.
        if let Err(error) = self.events.unmask(port) {
            log(&format!("port {port} will not fire again: {error}"));
        }
        Ok(Some(if Some(port) == self.virq {
            WorldEvent::DomainsChanged
        } else {
            WorldEvent::Port(port)
        }))
    }

    fn hand_over(&mut self) {
        if let Some(port) = self.virq.take() {
            self.unbind(port);
        }
    }

    fn take_back(&mut self) -> Result<()> {
        if let Some(bind) = self.bind_virq {
            self.virq = Some(bind(&self.events)?);
        }
        Ok(())
    }

    fn peer_port(&mut self, port: Port, dom: DomId) -> Option<Port> {
        self.domains.peer_port(port, dom)
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        (self.fd)(&self.events)
    }

    fn domains(&mut self) -> Result<Vec<DomainReport>> {
        self.domains.list()
    }

    fn identity(&mut self, dom: DomId) -> Option<Identity> {
        self.domains.identity(dom)
    }
}
