//! Attaches the user's terminal to a guest's console, that is to the terminal that the console daemon
//! (ours or the stock one) has made for it.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use xen_sys::DomId;

use crate::error::{Error, Kind, Result};
use crate::store::{StoreControl, text};
use crate::{interrupt, nodes};

/// How long the console daemon may take to make a terminal.
const TTY_TIMEOUT: Duration = Duration::from_secs(10);
/// Ctrl-] detaches.
const ESCAPE: u8 = 0x1d;

/// A guest's console, open.
#[derive(Debug)]
pub struct Session {
    terminal: File,
}

impl Session {
    /// Waits for the guest's terminal and opens it.
    ///
    /// # Errors
    /// The guest has no console, or no console daemon made a terminal in time.
    pub fn open(store: &impl StoreControl, dom: DomId) -> Result<Session> {
        let node = format!("{}/console/tty", nodes::home(dom));
        let path = wait_for_tty(store, dom, &node)?;
        let terminal = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
            .open(&path)
            .map_err(|e| Error::system("open the console", &path, &e))?;
        Ok(Session { terminal })
    }

    /// Carries bytes between the user and the guest until the user detaches or the guest ends.
    ///
    /// # Errors
    /// The terminals cannot be read or written.
    pub fn run(mut self) -> Result<()> {
        let input = io::stdin();
        let raw = RawMode::enter(input.as_fd())
            .map_err(|e| Error::system("set up", "the terminal", &e.into()))?;
        // The guest's end passes everything on as it is.
        if let Ok(mut mode) = tcgetattr(&self.terminal) {
            mode.make_raw();
            let _ = tcsetattr(&self.terminal, OptionalActions::Now, &mode);
        }
        let result = self.carry(input.as_fd());
        drop(raw);
        if io::stdout().is_terminal() {
            println!();
        }
        result.map_err(|e| Error::system("attach to", "the console", &e))
    }

    fn carry(&mut self, input: BorrowedFd<'_>) -> io::Result<()> {
        let mut output = io::stdout().lock();
        let mut buffer = [0; 4096];
        let mut to_guest: Vec<u8> = Vec::new();
        let mut input_open = true;
        let mut detach = false;
        loop {
            if !to_guest.is_empty() {
                match self.terminal.write(&to_guest) {
                    Ok(len) => drop(to_guest.drain(..len)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return ended(error),
                }
            }
            if detach && to_guest.is_empty() {
                return Ok(());
            }
            let mut flags = PollFlags::IN;
            if !to_guest.is_empty() {
                flags |= PollFlags::OUT;
            }
            // What the guest does not take stops the user, not this process' memory.
            let listen = input_open && !detach && to_guest.len() < buffer.len();
            let mut fds = vec![PollFd::new(&self.terminal, flags)];
            if listen {
                fds.push(PollFd::from_borrowed_fd(input, PollFlags::IN));
            }
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let guest_ready = !fds[0].revents().is_empty();
            let user_ready = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
            if guest_ready {
                match self.terminal.read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(len) => {
                        output.write_all(&buffer[..len])?;
                        output.flush()?;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return ended(error),
                }
            }
            if user_ready {
                match rustix::io::read(input, &mut buffer) {
                    Ok(0) => input_open = false,
                    Ok(len) => {
                        let end = buffer[..len].iter().position(|&b| b == ESCAPE);
                        detach = end.is_some();
                        to_guest.extend_from_slice(&buffer[..end.unwrap_or(len)]);
                    }
                    Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
}

/// The console daemon closes its end when the guest is gone: the kernel tells that as EIO.
fn ended(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::EIO) => Ok(()),
        _ => Err(error),
    }
}

fn wait_for_tty(store: &impl StoreControl, dom: DomId, node: &str) -> Result<String> {
    const TOKEN: &str = "xlrs-tty";
    let step = "wait for the console of domain";
    let run = || {
        let deadline = Instant::now() + TTY_TIMEOUT;
        store.watch(node, TOKEN)?;
        loop {
            match text(store, None, node)? {
                Some(path) if !path.is_empty() => return Ok(Some(path)),
                _ => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if store.wait_event(left)?.is_none() {
                return Ok(None);
            }
        }
    };
    let found = run();
    // Nothing hangs on it: the connection ends soon.
    let _ = store.unwatch(node, TOKEN);
    let found = found.map_err(Error::store(step, dom))?;
    if found.is_none() {
        interrupt::check()?;
    }
    found.ok_or_else(|| {
        let cause = format!("no console daemon has written {node} within 10 s");
        Error::new(step, dom, cause)
            .kind(Kind::TimedOut)
            .hint("`xlrs host status` tells whether the console daemon runs")
    })
}

/// The user's terminal passes every key on, until this is dropped.
struct RawMode<'a> {
    fd: BorrowedFd<'a>,
    before: Option<Termios>,
}

impl<'a> RawMode<'a> {
    fn enter(fd: BorrowedFd<'a>) -> rustix::io::Result<RawMode<'a>> {
        let before = if rustix::termios::isatty(fd) {
            let before = tcgetattr(fd)?;
            let mut raw = before.clone();
            raw.make_raw();
            tcsetattr(fd, OptionalActions::Now, &raw)?;
            Some(before)
        } else {
            None
        };
        Ok(RawMode { fd, before })
    }
}

impl Drop for RawMode<'_> {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // The process is about to end; there is nothing better to do.
            let _ = tcsetattr(self.fd, OptionalActions::Now, before);
        }
    }
}
