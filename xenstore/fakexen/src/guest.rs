//! A guest's end of its ring and event channel.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;

use xen_ring::{ByteRing, PeerError, STORE};
use xen_sys::{DomId, Port};

use crate::{Folder, Page, VIRQ_DOM_EXC, port_of};

/// A guest that exists, with a cleared ring. Dropping it leaves its files.
#[derive(Debug)]
pub struct GuestEnd {
    folder: Folder,
    dom: DomId,
    socket: UnixDatagram,
    ring: ByteRing<Page>,
}

impl GuestEnd {
    /// Makes the guest's ring and socket. It does not exist before [`Folder::set_state`] says so, and is not
    /// served before it is introduced.
    pub fn create(folder: &Folder, dom: DomId) -> io::Result<GuestEnd> {
        folder.clear_ring(dom)?;
        let path = folder.guest_socket(dom);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixDatagram::bind(path)?;
        socket.set_nonblocking(true)?;
        let ring = ByteRing::guest(folder.map_ring(dom)?, STORE);
        Ok(GuestEnd {
            folder: folder.clone(),
            dom,
            socket,
            ring,
        })
    }

    /// Its number.
    pub fn dom(&self) -> DomId {
        self.dom
    }

    /// Writes what fits of `bytes` and tells the daemon; returns how many bytes.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.ring.write(bytes).map_err(broken)?;
        if len > 0 {
            self.notify(port_of(self.dom))?;
        }
        Ok(len)
    }

    /// Reads what is there, up to `to.len()` bytes, and tells the daemon; returns how many bytes.
    pub fn receive(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let mut events = [0; 8];
        // Before the ring is looked at, so that a later event is not lost.
        while self.socket.recv(&mut events).is_ok() {}
        let len = self.ring.read(to).map_err(broken)?;
        if len > 0 {
            self.notify(port_of(self.dom))?;
        }
        Ok(len)
    }

    /// Tells the daemon that some domain has changed its state.
    pub fn tell_daemon(&self) -> io::Result<()> {
        self.notify(VIRQ_DOM_EXC)
    }

    fn notify(&self, port: Port) -> io::Result<()> {
        let path = self.folder.daemon_socket();
        // The queue is short, and a full one may be full of others' events: wait.
        loop {
            match self.socket.send_to(&port.0.to_le_bytes(), &path) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::yield_now();
                }
                // No daemon just now: the event is lost, as one to an unbound port is.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                    ) =>
                {
                    return Ok(());
                }
                result => return result.map(drop),
            }
        }
    }
}

impl AsFd for GuestEnd {
    /// Readable when the daemon has sent an event.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn broken(error: PeerError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
