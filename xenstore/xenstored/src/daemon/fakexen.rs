//! The world of a folder of files: the crate fakexen's, for running the daemon itself on any machine.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use fakexen::{DaemonEnd, Folder, State, VIRQ_DOM_EXC, port_of};
use xen_hal::{Error, Result};
use xen_sys::{DomId, Errno, Port};

use super::world::{RingMemory, StoreWorld, WorldEvent};
use crate::core::{DomainReport, DomainState, Identity};

/// A folder as a world.
#[derive(Debug)]
pub struct FakexenWorld {
    end: DaemonEnd,
}

/// Becomes the daemon of a folder, which must exist. In a live update its socket is inherited.
pub fn open(folder: &Path, inherited: Option<OwnedFd>) -> Result<FakexenWorld> {
    let folder = Folder::new(folder);
    let path = folder.daemon_socket();
    let end = match inherited {
        None => DaemonEnd::open(folder),
        Some(socket) => DaemonEnd::inherit(folder, socket),
    };
    let end = end.map_err(|error| system("bind", &path, error))?;
    Ok(FakexenWorld { end })
}

impl StoreWorld for FakexenWorld {
    fn own_ring(&mut self) -> Result<Option<(RingMemory, Port)>> {
        let memory = self.map_ring(DomId::DOM0)?;
        Ok(Some((memory, port_of(DomId::DOM0))))
    }

    fn map_ring(&mut self, dom: DomId) -> Result<RingMemory> {
        let page = self.end.folder().map_ring(dom);
        let page = page.map_err(|error| system("map the ring in", self.end.folder().path(), error));
        Ok(Box::new(page?))
    }

    fn bind(&mut self, dom: DomId, _remote: Port) -> Result<Port> {
        Ok(port_of(dom))
    }

    fn unbind(&mut self, _: Port) {}

    fn peer_port(&mut self, _: Port, _: DomId) -> Option<Port> {
        // A guest has one port and is told by its number.
        Some(Port(1))
    }

    fn notify(&mut self, port: Port) {
        self.end.notify(port);
    }

    fn next_event(&mut self) -> Result<Option<WorldEvent>> {
        let path = self.end.folder().path();
        let next = self.end.next_event();
        let next = next.map_err(|error| system("receive an event in", path, error))?;
        Ok(next.map(|port| match port {
            VIRQ_DOM_EXC => WorldEvent::DomainsChanged,
            port => WorldEvent::Port(port),
        }))
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.end.as_fd())
    }

    fn domains(&mut self) -> Result<Vec<DomainReport>> {
        let states = self.end.folder().states();
        let path = self.end.folder().path();
        let states = states.map_err(|error| system("list", path, error))?;
        let state = |state| match state {
            State::Running => DomainState::Running,
            State::Shutdown => DomainState::Shutdown,
            State::Dying => DomainState::Dying,
        };
        let report = |(dom, now)| DomainReport {
            dom,
            identity: Identity(self.end.folder().identity(dom)),
            state: state(now),
        };
        Ok(states.into_iter().map(report).collect())
    }

    fn identity(&mut self, dom: DomId) -> Option<Identity> {
        let folder = self.end.folder();
        folder.state(dom)?;
        Some(Identity(folder.identity(dom)))
    }
}

fn system(op: &'static str, path: &Path, error: io::Error) -> Error {
    Error::System {
        op,
        object: path.display().to_string(),
        errno: Errno(error.raw_os_error().unwrap_or(Errno::EIO.0)),
    }
}
