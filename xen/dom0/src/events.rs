//! The evtchn device: event channels of this process.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use xen_hal::{Error, EventChannels, Result};
use xen_sys::xen::Virq;
use xen_sys::{DomId, Errno, Plain, Port};

use crate::abi::{self, EvtchnBindInterdomain};
use crate::device;

const EVTCHN: &str = "/dev/xen/evtchn";
/// Ports read from the kernel at once.
const BATCH: usize = 64;

/// This owner's event channels; all are closed when it is dropped. Its descriptor is readable when a
/// port has fired: take ports with [`next_pending`](EventChannels::next_pending) until there are none
/// before waiting on it.
#[derive(Debug)]
pub struct Events {
    evtchn: File,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Read from the kernel and not yet taken.
    pending: VecDeque<Port>,
    /// All ports of ours and their peers: after an overflow any of them may have fired.
    bound: BTreeMap<u32, DomId>,
}

impl State {
    /// Who is at the other end, for errors.
    fn peer(&self, port: Port) -> DomId {
        self.bound.get(&port.0).copied().unwrap_or(DomId::SELF)
    }
}

impl Events {
    /// Opens evtchn.
    pub fn open() -> Result<Events> {
        Ok(Events {
            evtchn: device::open(EVTCHN, libc::O_NONBLOCK)?,
            state: Mutex::default(),
        })
    }

    /// Goes on with the device that an earlier program in this process has opened, and with the ports that it has bound:
    /// each local one with the domain at its other end. Every port counts as fired. The device must not block.
    pub fn inherit(evtchn: OwnedFd, bound: impl IntoIterator<Item = (Port, DomId)>) -> Events {
        let bound: BTreeMap<u32, DomId> =
            bound.into_iter().map(|(port, dom)| (port.0, dom)).collect();
        let pending = bound.keys().copied().map(Port).collect();
        Events {
            evtchn: evtchn.into(),
            state: Mutex::new(State { pending, bound }),
        }
    }

    /// Binds a port to a virtual interrupt, such as [`Virq::DomExc`]. One process at a time can have a
    /// global one: EEXIST says that another has it.
    #[doc(alias = "EVTCHNOP_bind_virq")]
    pub fn bind_virq(&self, virq: Virq) -> Result<Port> {
        let mut argument = virq as u32;
        self.bind("EVTCHNOP_bind_virq", DomId::SELF, Port(0), |fd| {
            // SAFETY: the argument is the driver's one u32.
            unsafe { device::ioctl(fd, abi::EVTCHN_BIND_VIRQ, (&raw mut argument).cast()) }
        })
    }

    /// Allows nothing but channels with `dom` from now on, for good.
    pub fn restrict(&self, dom: DomId) -> Result<()> {
        let mut argument = dom.0;
        // SAFETY: the argument is the driver's one u16.
        unsafe {
            device::ioctl(
                self.as_fd(),
                abi::EVTCHN_RESTRICT_DOMID,
                (&raw mut argument).cast(),
            )
        }
        .map_err(|errno| failed("IOCTL_EVTCHN_RESTRICT_DOMID", dom, Port(0), errno))?;
        Ok(())
    }

    fn bind(
        &self,
        op: &'static str,
        dom: DomId,
        port: Port,
        call: impl FnOnce(BorrowedFd<'_>) -> Result<u32, Errno>,
    ) -> Result<Port> {
        let local = call(self.as_fd()).map_err(|errno| failed(op, dom, port, errno))?;
        self.state().bound.insert(local, dom);
        Ok(Port(local))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel's ring has overflowed: it is emptied, and every port counts as fired, because those
    /// that were lost stay masked until someone unmasks them.
    fn recover(&self, state: &mut State) -> Result<()> {
        // SAFETY: this ioctl takes no argument.
        unsafe { device::ioctl(self.as_fd(), abi::EVTCHN_RESET, std::ptr::null_mut()) }
            .map_err(|errno| failed("IOCTL_EVTCHN_RESET", DomId::SELF, Port(0), errno))?;
        state.pending = state.bound.keys().copied().map(Port).collect();
        Ok(())
    }
}

impl EventChannels for Events {
    fn alloc_unbound(&self, remote: DomId) -> Result<Port> {
        let mut argument = u32::from(remote.0);
        self.bind("EVTCHNOP_alloc_unbound", remote, Port(0), |fd| {
            // SAFETY: the argument is the driver's one u32.
            unsafe {
                device::ioctl(
                    fd,
                    abi::EVTCHN_BIND_UNBOUND_PORT,
                    (&raw mut argument).cast(),
                )
            }
        })
    }

    fn bind_interdomain(&self, remote: DomId, port: Port) -> Result<Port> {
        let mut argument = EvtchnBindInterdomain {
            remote_domain: remote.0.into(),
            remote_port: port,
        };
        self.bind("EVTCHNOP_bind_interdomain", remote, port, |fd| {
            // SAFETY: the argument is the driver's structure.
            unsafe { device::ioctl(fd, abi::EVTCHN_BIND_INTERDOMAIN, (&raw mut argument).cast()) }
        })
    }

    fn close(&self, port: Port) -> Result<()> {
        let mut state = self.state();
        let mut argument = port.0;
        // SAFETY: the argument is the driver's one u32.
        unsafe { device::ioctl(self.as_fd(), abi::EVTCHN_UNBIND, (&raw mut argument).cast()) }
            .map_err(|errno| failed("EVTCHNOP_close", state.peer(port), port, errno))?;
        state.bound.remove(&port.0);
        // A later owner of the number must not see this one's events.
        state.pending.retain(|&pending| pending != port);
        Ok(())
    }

    fn notify(&self, port: Port) -> Result<()> {
        let mut argument = port.0;
        // SAFETY: the argument is the driver's one u32.
        unsafe { device::ioctl(self.as_fd(), abi::EVTCHN_NOTIFY, (&raw mut argument).cast()) }
            .map(drop)
            .map_err(|errno| failed("EVTCHNOP_send", self.state().peer(port), port, errno))
    }

    fn next_pending(&self) -> Result<Option<Port>> {
        let mut state = self.state();
        if let Some(port) = state.pending.pop_front() {
            return Ok(Some(port));
        }
        let mut ports = [0u32; BATCH];
        let read = (&self.evtchn).read(ports.as_bytes_mut());
        match read.map_err(|error| device::errno(&error)) {
            Ok(len) => state
                .pending
                .extend(ports[..len / 4].iter().copied().map(Port)),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(Errno::EFBIG) => self.recover(&mut state)?,
            Err(errno) => return Err(device::system("read", EVTCHN, errno)),
        }
        Ok(state.pending.pop_front())
    }

    fn unmask(&self, port: Port) -> Result<()> {
        (&self.evtchn).write_all(port.as_bytes()).map_err(|error| {
            let peer = self.state().peer(port);
            failed("EVTCHNOP_unmask", peer, port, device::errno(&error))
        })
    }

    fn name(&self, port: Port) -> Option<[u8; 4]> {
        Some(port.0.to_ne_bytes())
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.evtchn.as_fd()
    }
}

fn failed(op: &'static str, dom: DomId, port: Port, errno: Errno) -> Error {
    Error::Event {
        op,
        dom,
        port,
        errno,
    }
}
