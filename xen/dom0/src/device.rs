//! Opening a device node and calling its ioctls.

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use xen_hal::{Error, Result};
use xen_sys::Errno;

/// Opens a device node for reading and writing, not inherited by child processes.
pub fn open(path: &'static str, flags: i32) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)
        .map_err(|error| system("open", path, errno(&error)))
}

/// Calls an ioctl.
///
/// # Safety
/// `argument` must be what `request` expects: valid for reads and writes of its structure, whose
/// addresses in turn must be valid for what the driver does with them.
pub unsafe fn ioctl(fd: BorrowedFd<'_>, request: u64, argument: *mut c_void) -> Result<u32, Errno> {
    // SAFETY: the descriptor is open while it is borrowed; the rest is the caller's promise.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, argument) };
    u32::try_from(result).map_err(|_| last_errno())
}

/// The error number of the last system call.
pub fn last_errno() -> Errno {
    errno(&io::Error::last_os_error())
}

/// The error number of an I/O error; EIO if it is none of the system's.
pub fn errno(error: &io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(Errno::EIO.0))
}

/// An error about a thing of the operating system.
pub fn system(op: &'static str, object: &str, errno: Errno) -> Error {
    Error::System {
        op,
        object: object.to_owned(),
        errno,
    }
}
