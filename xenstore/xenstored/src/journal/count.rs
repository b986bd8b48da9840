//! How much a killed daemon has received on a socket: the kernel counts.
//!
//! A `recv` that was under way has taken an unknown number of bytes, which lie in the state file. Each socket has an offset
//! for peeking (`SO_PEEK_OFF`), which nobody uses here, and which the kernel moves back by what is received, so that it goes
//! on pointing at the same byte. It is set far ahead; by how much it has come nearer is what was received. It stays with the
//! socket, whoever keeps that, and costs nothing.
//!
//! Invariant: the count at a socket is what the log says, less what the call under way has received; or it was just set
//! anew.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::file::BUFFER;
use super::map;

/// What the count begins at: small in daemons that are built for tests, so that it is often set anew.
const START: u32 = if cfg!(debug_assertions) {
    1 << 16
} else {
    1 << 30
};
/// It is set anew before it becomes less.
const LEAST: u32 = START / 2;

const _: () = assert!(LEAST as usize > BUFFER);

/// The count at a socket, which begins now if there is none.
///
/// # Errors
/// The kernel does not count at this socket.
pub fn begin(socket: BorrowedFd<'_>) -> Result<u32, Errno> {
    match read(socket)? {
        // A daemon that kept nothing does not look how far it comes.
        None | Some(0) => set(socket),
        Some(count) => Ok(count),
    }
}

/// Sets the count anew, if it is time to.
///
/// # Errors
/// As for [`begin`].
pub fn renew(socket: BorrowedFd<'_>, count: u32) -> Result<Option<u32>, Errno> {
    (count < LEAST).then(|| set(socket)).transpose()
}

/// How many bytes were received since the count was `known`; `None` if it cannot have been.
pub fn received(socket: BorrowedFd<'_>, known: u32) -> Option<usize> {
    between(known, read(socket).ok()??)
}

fn between(known: u32, now: u32) -> Option<usize> {
    if now == START && known < LEAST {
        // It was set anew, and the daemon was killed before it wrote that down.
        return Some(0);
    }
    let received = known.checked_sub(now)? as usize;
    (received <= BUFFER).then_some(received)
}

fn read(socket: BorrowedFd<'_>) -> Result<Option<u32>, Errno> {
    map::count(socket).map(|count| u32::try_from(count).ok())
}

fn set(socket: BorrowedFd<'_>) -> Result<u32, Errno> {
    map::set_count(socket, START as i32)?;
    Ok(START)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_kernel_counts_what_is_received() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        assert_eq!(read(ours.as_fd()), Ok(None));
        let start = begin(ours.as_fd()).unwrap();
        theirs.write_all(&[7; 1000]).unwrap();
        theirs.write_all(&[8; 1000]).unwrap();
        assert_eq!(received(ours.as_fd(), start), Some(0));
        // Parts of messages, and of two at once.
        let mut known = start;
        for len in [1, 998, 2, 999] {
            ours.read_exact(&mut vec![0; len]).unwrap();
            assert_eq!(received(ours.as_fd(), known), Some(len));
            known -= len as u32;
        }
        assert_eq!(begin(ours.as_fd()), Ok(start - 2000));
        // What we send is not counted.
        ours.write_all(b"x").unwrap();
        assert_eq!(received(ours.as_fd(), known), Some(0));
        assert_eq!(renew(ours.as_fd(), LEAST), Ok(None));
        assert_eq!(renew(ours.as_fd(), LEAST - 1), Ok(Some(START)));
        assert_eq!(received(ours.as_fd(), LEAST - 1), Some(0));
        assert_eq!(received(ours.as_fd(), START), Some(0));
    }

    #[test]
    fn counts_that_cannot_be() {
        let buffer = BUFFER as u32;
        for (known, now, received) in [
            (START, START, Some(0)),
            (START, START - 1, Some(1)),
            (START, START - buffer, Some(BUFFER)),
            (START, START - buffer - 1, None),
            (START - 1, START, None),
            (LEAST - 1, START, Some(0)),
            (LEAST, START, None),
            (LEAST - 1, LEAST, None),
            (5, 0, Some(5)),
        ] {
            assert_eq!(between(known, now), received, "{known} {now}");
        }
    }
}
