//! Finds the store: which paths are tried, in what order, and what is said when none works.

use std::env;
use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use xen_hal::Error;
use xen_sys::{DomId, Errno};

use crate::connection::{Connection, DEFAULT_TIMEOUT};

/// Environment variable that names the one path to use (libxenstore's).
pub const PATH_VARIABLE: &str = "XENSTORED_PATH";
/// The daemon's socket.
pub const SOCKET: &str = "/run/xenstored/socket";
/// The kernel's connection to the daemon.
pub const DEVICE: &str = "/dev/xen/xenbus";
/// Where the kernel's connection was before Linux 3.
pub const OLD_DEVICE: &str = "/proc/xen/xenbus";

/// How long the kernel's device may take to show that a daemon is behind it.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// No daemon could be reached.
#[derive(Debug)]
pub struct OpenError {
    /// What was tried, in order, and how each failed.
    pub tried: Vec<(PathBuf, io::Error)>,
}

impl OpenError {
    /// The error number that tells most: that of the first path which exists, else of the first tried.
    pub fn errno(&self) -> Errno {
        let telling = self
            .tried
            .iter()
            .find(|(_, error)| error.kind() != io::ErrorKind::NotFound)
            .or(self.tried.first());
        Errno(
            telling
                .and_then(|(_, error)| error.raw_os_error())
                .unwrap_or(Errno::EIO.0),
        )
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no store daemon can be reached; tried ")?;
        for (n, (path, error)) in self.tried.iter().enumerate() {
            let comma = if n > 0 { ", " } else { "" };
            write!(f, "{comma}{} ({error})", path.display())?;
        }
        let denied =
            |(_, error): &(PathBuf, io::Error)| error.kind() == io::ErrorKind::PermissionDenied;
        if self.tried.iter().any(denied) {
            write!(f, "; only root may use the store: try sudo")
        } else {
            write!(f, "; `xlrs host start` starts a daemon")
        }
    }
}

impl std::error::Error for OpenError {}

impl From<OpenError> for Error {
    fn from(error: OpenError) -> Error {
        Error::System {
            op: "connect to the store",
            object: error.to_string(),
            errno: error.errno(),
        }
    }
}

/// Opens the path that [`PATH_VARIABLE`] names, else the first of the usual ones that works.
pub(crate) fn from_env() -> Result<Connection, OpenError> {
    let paths = match env::var_os(PATH_VARIABLE) {
        Some(path) => vec![PathBuf::from(path)],
        None => [SOCKET, DEVICE, OLD_DEVICE].map(PathBuf::from).to_vec(),
    };
    let mut tried = Vec::new();
    for path in paths {
        match open(&path).map(Connection::new).and_then(probe) {
            Ok(connection) => return Ok(connection),
            Err(error) => tried.push((path, error)),
        }
    }
    Err(OpenError { tried })
}

/// The kernel's device opens even while no daemon runs, and then never answers: ask it something.
fn probe(connection: Connection) -> io::Result<Connection> {
    if is_socket(connection.as_fd()) {
        return Ok(connection);
    }
    connection.set_timeout(PROBE_TIMEOUT);
    let answer = connection.domain_path(DomId::DOM0);
    connection.set_timeout(DEFAULT_TIMEOUT);
    match answer {
        Err(error) if error.errno == Errno::ETIMEDOUT => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "no daemon answers through it",
        )),
        _ => Ok(connection),
    }
}

/// Whether this is a socket and not the kernel's device.
pub(crate) fn is_socket(fd: BorrowedFd<'_>) -> bool {
    rustix::net::sockopt::socket_type(fd).is_ok()
}

/// Opens a socket or device; the descriptor does not block.
pub(crate) fn open(path: &Path) -> io::Result<OwnedFd> {
    if std::fs::metadata(path)?.file_type().is_socket() {
        let stream = UnixStream::connect(path)?;
        stream.set_nonblocking(true)?;
        return Ok(stream.into());
    }
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags.bits() as i32)
        .open(path)?;
    Ok(file.into())
}
