//! A pseudo-terminal whose other end users attach to.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

/// Our end of a pseudo-terminal, and the users' end, kept open so that the line does not hang up when a
/// user leaves.
#[derive(Debug)]
pub struct Terminal {
    ours: File,
    users: File,
    path: String,
}

impl Terminal {
    /// Makes one, in raw mode.
    ///
    /// # Errors
    /// The kernel has no more, or /dev/pts is not mounted.
    pub fn new() -> io::Result<Terminal> {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let path = ptsname(&ours, Vec::new())?
            .into_string()
            .map_err(io::Error::other)?;
        let users = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(&path)?;
        let mut mode = tcgetattr(&users)?;
        mode.make_raw();
        tcsetattr(&users, OptionalActions::Now, &mode)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok(Terminal {
            ours: ours.into(),
            users,
            path,
        })
    }

    /// The users' end.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Reads what users have typed, without waiting.
    pub fn read(&mut self, to: &mut [u8]) -> usize {
        // Nothing there, or nobody: both are no input.
        self.ours.read(to).unwrap_or(0)
    }

    /// Whether users have not yet read all that was written.
    pub fn unread(&self) -> bool {
        rustix::io::ioctl_fionread(&self.users).is_ok_and(|len| len > 0)
    }

    /// Writes what users shall see, as far as the terminal takes it.
    pub fn write(&mut self, from: &[u8]) -> usize {
        if from.is_empty() {
            return 0;
        }
        self.ours.write(from).unwrap_or(0)
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ours.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_end_writes_the_other_reads() {
        let mut terminal = Terminal::new().unwrap();
        let mut user = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(terminal.path())
            .unwrap();
        assert_eq!(
            terminal.read(&mut [0; 16]),
            0,
            "nothing typed yet, and no wait"
        );
        assert_eq!(terminal.write(b"login: \n"), 8);
        // The kernel carries bytes over in its own time.
        let soon = |mut is: Box<dyn FnMut() -> bool + '_>| {
            (0..1000).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                is()
            })
        };
        assert!(soon(Box::new(|| terminal.unread())));
        let mut seen = [0; 8];
        user.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"login: \n", "raw: no carriage return is added");
        assert!(!terminal.unread());
        user.write_all(b"\x03").unwrap();
        let mut typed = [0; 4];
        assert!(soon(Box::new(|| terminal.read(&mut typed) == 1)));
        assert_eq!(typed[0], 3, "raw: no signal is made of it");
        // A user who does not read stops the writer without blocking it.
        let written: usize = (0..100).map(|_| terminal.write(&[b'x'; 1024])).sum();
        assert!(written < 100 * 1024);
    }
}
