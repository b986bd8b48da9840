//! The service manager, or whoever speaks its protocol (sd_notify): is told that we serve, and keeps descriptors for
//! the daemon that comes after us.
//!
//! A descriptor is kept under a name: [`LISTENER`], or `conn-` with the connection's number. The manager hands those it
//! keeps to the next daemon from descriptor 3 on (`LISTEN_FDS`, `LISTEN_FDNAMES`).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::core::ConnId;
use crate::daemon::log;

/// The environment variable that names the manager's socket.
pub const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
/// Under which name the socket is kept that we listen on.
pub const LISTENER: &str = "socket";
const CONNECTION: &str = "conn-";
/// The manager's queue is short; a manager that stands still so long is not waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// The manager, as a daemon sees it.
#[derive(Debug)]
pub struct Manager {
    socket: UnixDatagram,
    /// Whether it keeps descriptors.
    keeps: bool,
}

impl Manager {
    /// The one that the environment names, if any. It keeps descriptors if `keeps` is set: a manager that was not asked to
    /// would close them.
    ///
    /// # Errors
    /// It is not there.
    pub fn from_environment(keeps: bool) -> io::Result<Option<Manager>> {
        match std::env::var_os(NOTIFY_SOCKET) {
            Some(name) if !name.is_empty() => Manager::connect(&name, keeps).map(Some),
            _ => Ok(None),
        }
    }

    fn connect(name: &OsStr, keeps: bool) -> io::Result<Manager> {
        let socket = UnixDatagram::unbound()?;
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(name)?,
        };
        socket.connect_addr(&address)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Manager { socket, keeps })
    }

    /// Whether it keeps descriptors.
    pub fn keeps(&self) -> bool {
        self.keeps
    }

    /// Says something.
    pub fn say(&self, message: &str) -> io::Result<()> {
        self.socket.send(message.as_bytes()).map(drop)
    }

    /// Lets it keep the socket that we listen on.
    pub fn keep_listener(&mut self, fd: BorrowedFd<'_>) {
        self.keep(LISTENER, fd);
    }

    /// Lets it keep a connection's socket.
    pub fn keep_connection(&mut self, conn: ConnId, fd: BorrowedFd<'_>) {
        if self.keeps {
            self.keep(&format!("{CONNECTION}{}", conn.0), fd);
        }
    }

    /// It need not keep a connection's socket any longer.
    pub fn forget_connection(&mut self, conn: ConnId) {
        if self.keeps {
            self.forget(&format!("{CONNECTION}{}", conn.0));
        }
    }

    /// Nor the one that we listen on.
    pub fn forget_listener(&mut self) {
        self.forget(LISTENER);
    }

    fn forget(&mut self, name: &str) {
        if self.keeps {
            let result = self.say(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"));
            self.look_at(result);
        }
    }

    fn keep(&mut self, name: &str, fd: BorrowedFd<'_>) {
        if !self.keeps {
            return;
        }
        let message = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}\n");
        let fds = [fd];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let text = [IoSlice::new(message.as_bytes())];
        let result = sendmsg(&self.socket, &text, &mut control, SendFlags::NOSIGNAL);
        self.look_at(result.map(drop).map_err(Into::into));
    }

    fn look_at(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            log(&format!(
                "the service manager keeps no connections any more: {error}; they will be lost when this daemon ends"
            ));
            self.keeps = false;
        }
    }
}

/// Descriptors that an earlier daemon gave away to be kept.
#[derive(Debug, Default)]
pub struct Kept {
    /// The socket to listen on.
    pub listener: Option<OwnedFd>,
    /// Those of connections.
    pub connections: BTreeMap<ConnId, OwnedFd>,
}

impl Kept {
    /// Sorts descriptors by their names; those of other names are closed.
    pub fn new(fds: impl Iterator<Item = (String, OwnedFd)>) -> Kept {
        let mut kept = Kept::default();
        for (name, fd) in fds {
            // The manager may have made them block, or leak into what we start.
            let ready = rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)
                .and_then(|()| rustix::fs::fcntl_setfl(&fd, rustix::fs::OFlags::NONBLOCK));
            if ready.is_err() {
                continue;
            }
            if name == LISTENER {
                kept.listener = Some(fd);
            } else if let Some(number) = name.strip_prefix(CONNECTION)
                && let Ok(number) = number.parse()
            {
                kept.connections.insert(ConnId(number), fd);
            }
        }
        kept
    }
}

/// Ends a connection for its peer, whoever else has its descriptor.
pub fn hang_up(fd: &OwnedFd) {
    // It may be over already.
    let _ = rustix::net::shutdown(fd.as_fd(), rustix::net::Shutdown::Both);
}
