//! The world of a real dom0: xen-dom0's device nodes.

use std::os::fd::{AsFd, OwnedFd};

use xen_dom0::{Events, Grants, Hypervisor, StoreNode};
use xen_hal::{DomainControl, DomainInfo, Result};
use xen_sys::xen::Virq;
use xen_sys::{DomId, Port};

use super::world::{DomainList, HalWorld};
use crate::core::{DomainReport, DomainState, Identity};

impl DomainList for Hypervisor {
    fn list(&mut self) -> Result<Vec<DomainReport>> {
        let mut reports = Vec::new();
        for info in DomainControl::list(self)? {
            // It may have gone since it was listed.
            if let Some(identity) = self.identity_of(&info)? {
                reports.push(DomainReport {
                    dom: info.dom,
                    identity: Identity(identity),
                    state: state(&info),
                });
            }
        }
        Ok(reports)
    }

    fn peer_port(&mut self, port: Port, dom: DomId) -> Option<Port> {
        let (peer, remote) = self.peer_of(port).ok()??;
        (peer == dom).then_some(remote)
    }

    fn identity(&mut self, dom: DomId) -> Option<Identity> {
        let info = self.info(dom).ok()??;
        self.identity_of(&info).ok()?.map(Identity)
    }
}

fn state(info: &DomainInfo) -> DomainState {
    if info.flags.dying {
        DomainState::Dying
    } else if info.flags.shutdown {
        DomainState::Shutdown
    } else {
        DomainState::Running
    }
}

/// dom0's world.
pub type Dom0World = HalWorld<Events, Grants, Hypervisor>;

/// Opens the device nodes, takes the virtual interrupt that tells of dying domains, maps the kernel's ring. In a live
/// update the event channels are inherited, with these ports.
pub fn open(inherited: Option<OwnedFd>, ports: &[(Port, DomId)]) -> Result<Dom0World> {
    let hypervisor = Hypervisor::open()?;
    let grants = Grants::open()?;
    let events = match inherited {
        None => Events::open()?,
        Some(fd) => Events::inherit(fd, ports.iter().copied()),
    };
    let bind: fn(&Events) -> Result<Port> = |events| events.bind_virq(Virq::DomExc);
    let virq = bind(&events)?;
    let node = StoreNode::open()?;
    let world = HalWorld::new(
        events,
        grants,
        hypervisor,
        Some((Box::new(node.page), node.port)),
        Some(virq),
        |events| Some(events.as_fd()),
    );
    Ok(world.bind_virq_by(bind))
}
