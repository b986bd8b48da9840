//! The line between a guest's console ring and its user: bounded both ways, whatever the guest does.

use std::collections::VecDeque;

use xen_ring::{ByteRing, PeerError, SharedMemory};

/// Output that is kept for a user who does not read; older output is dropped (the log file has it).
const BACKLOG: usize = 64 << 10;
/// Most bytes that are taken from a guest before others have their turn.
const BUDGET: usize = 8 << 10;

/// A guest's console ring and what waits for its user.
#[derive(Debug)]
pub struct Line<M> {
    ring: ByteRing<M>,
    backlog: VecDeque<u8>,
}

/// What a turn has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The guest wants an event.
    pub notify: bool,
    /// The guest has more to say.
    pub more: bool,
}

impl<M: SharedMemory> Line<M> {
    /// A line on the daemon's end of a ring.
    pub fn new(ring: ByteRing<M>) -> Self {
        Line {
            ring,
            backlog: VecDeque::new(),
        }
    }

    /// How many bytes the guest can be sent.
    ///
    /// # Errors
    /// The guest has broken its ring.
    pub fn room_for_guest(&self) -> Result<usize, PeerError> {
        self.ring.writable()
    }

    /// Whether the guest has said something that was not taken yet.
    ///
    /// # Errors
    /// The guest has broken its ring.
    pub fn guest_waits(&self) -> Result<bool, PeerError> {
        Ok(self.ring.readable()? > 0)
    }

    /// Sends `to_guest`, of which no more than [`room_for_guest`](Self::room_for_guest) is taken, and
    /// takes what the guest says, showing each piece to `log`.
    ///
    /// # Errors
    /// The guest has broken its ring.
    pub fn carry(
        &mut self,
        to_guest: &[u8],
        mut log: impl FnMut(&[u8]),
    ) -> Result<Moved, PeerError> {
        let mut notify = self.ring.write(to_guest)? > 0;
        let mut piece = [0; 2048];
        let mut taken = 0;
        while taken < BUDGET {
            let len = self.ring.read(&mut piece)?;
            if len == 0 {
                break;
            }
            taken += len;
            notify = true;
            log(&piece[..len]);
            self.keep(&piece[..len]);
        }
        Ok(Moved {
            notify,
            more: self.ring.readable()? > 0,
        })
    }

    fn keep(&mut self, bytes: &[u8]) {
        let excess = (self.backlog.len() + bytes.len()).saturating_sub(BACKLOG);
        self.backlog.drain(..excess.min(self.backlog.len()));
        self.backlog.extend(bytes);
    }

    /// What waits for the user, or the first part of it.
    pub fn for_user(&self) -> &[u8] {
        self.backlog.as_slices().0
    }

    /// All that waits for the user, when the line ends.
    pub fn into_rest(self) -> Vec<u8> {
        self.backlog.into()
    }

    /// The user has taken so many bytes.
    pub fn user_took(&mut self, len: usize) {
        self.backlog.drain(..len.min(self.backlog.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use xen_fake::World;
    use xen_ring::{CONSOLE, SharedMemoryExt};

    /// Both ends of one console page.
    fn pair() -> (ByteRing<xen_fake::Page>, Line<xen_fake::Page>) {
        let guest = World::new().create_domain();
        let line = Line::new(ByteRing::daemon(guest.console_page(), CONSOLE));
        (ByteRing::guest(guest.console_page(), CONSOLE), line)
    }

    #[test]
    fn bytes_go_both_ways() {
        let (mut guest, mut line) = pair();
        guest.write(b"login: ").unwrap();
        let mut logged = Vec::new();
        let moved = line.carry(b"root\r", |bytes| logged.extend(bytes)).unwrap();
        assert_eq!(
            moved,
            Moved {
                notify: true,
                more: false
            }
        );
        assert_eq!(
            (logged.as_slice(), line.for_user()),
            (&b"login: "[..], &b"login: "[..])
        );
        line.user_took(4);
        assert_eq!(line.for_user(), b"n: ");
        let mut got = [0; 16];
        let len = guest.read(&mut got).unwrap();
        assert_eq!(&got[..len], b"root\r");
        let quiet = line.carry(b"", |_| panic!("nothing was said")).unwrap();
        assert_eq!(
            quiet,
            Moved {
                notify: false,
                more: false
            }
        );
    }

    #[test]
    fn a_user_who_does_not_read_costs_a_bounded_amount() {
        let (mut guest, mut line) = pair();
        let mut logged = 0;
        for round in 0..200u32 {
            let text = [b'a' + (round % 26) as u8; 2000];
            assert_eq!(guest.write(&text).unwrap(), 2000);
            line.carry(b"", |bytes| logged += bytes.len()).unwrap();
        }
        assert_eq!(logged, 200 * 2000, "the log has all of it");
        assert_eq!(line.backlog.len(), BACKLOG);
        assert_eq!(
            line.backlog.back(),
            Some(&(b'a' + 199 % 26)),
            "the newest is kept"
        );
    }

    proptest! {
        #[test]
        fn wild_indices_are_errors_not_panics(words in proptest::array::uniform4(any::<u32>())) {
            let guest = World::new().create_domain();
            let page = guest.console_page();
            for (offset, word) in [3072, 3076, 3080, 3084].into_iter().zip(words) {
                page.store_u32(offset, word, std::sync::atomic::Ordering::Relaxed);
            }
            let mut line = Line::new(ByteRing::daemon(guest.console_page(), CONSOLE));
            let _ = line.room_for_guest();
            let _ = line.carry(b"input", |_| {});
            prop_assert!(line.backlog.len() <= BACKLOG);
        }
    }
}
