//! The daemon's end of all event channels.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use rustix::net::{RecvFlags, recv, sockopt};
use xen_sys::Port;

use crate::{Folder, domain_of};

/// Room for events that wait, in bytes; the stock daemons' library asks for the same.
const RECEIVE_BUFFER: usize = 4 << 20;

/// A store daemon in a folder. Its sockets do not block.
#[derive(Debug)]
pub struct DaemonEnd {
    folder: Folder,
    socket: UnixDatagram,
    sender: UnixDatagram,
}

impl DaemonEnd {
    /// Becomes the folder's daemon, whether there was one before or not.
    pub fn open(folder: Folder) -> io::Result<DaemonEnd> {
        let path = folder.daemon_socket();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixDatagram::bind(path)?;
        sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER)?;
        DaemonEnd::inherit(folder, socket.into())
    }

    /// Goes on in the place of the folder's daemon, from which the socket for its events is inherited.
    pub fn inherit(folder: Folder, socket: OwnedFd) -> io::Result<DaemonEnd> {
        let socket = UnixDatagram::from(socket);
        socket.set_nonblocking(true)?;
        let sender = UnixDatagram::unbound()?;
        sender.set_nonblocking(true)?;
        Ok(DaemonEnd {
            folder,
            socket,
            sender,
        })
    }

    /// The folder.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Sends an event to the domain at one of the daemon's ports, if anybody listens there.
    pub fn notify(&self, port: Port) {
        if let Some(dom) = domain_of(port) {
            // No guest, or one that is woken already.
            let _ = self.sender.send_to(&[1], self.folder.guest_socket(dom));
        }
    }

    /// The port of the next event, without waiting.
    pub fn next_event(&self) -> io::Result<Option<Port>> {
        loop {
            let mut bytes = [0; 4];
            match recv(&self.socket, &mut bytes, RecvFlags::DONTWAIT) {
                Ok((4, 4)) => return Ok(Some(Port(u32::from_le_bytes(bytes)))),
                // Nothing that means anything.
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for DaemonEnd {
    /// Readable when there is an event.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
