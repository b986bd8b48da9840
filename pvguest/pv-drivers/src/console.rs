//! The console's front end: two byte streams in a page (io/console.h).

use xen_ring::{ByteRing, CONSOLE, SharedMemory};

/// The guest's end of a console ring. Whoever moves bytes notifies the daemon afterwards.
#[derive(Debug)]
pub struct Console<M> {
    ring: ByteRing<M>,
    broken: bool,
    dropped: u64,
}

impl<M: SharedMemory> Console<M> {
    /// The guest's end of the ring in `page`.
    pub fn new(page: M) -> Self {
        Console {
            ring: ByteRing::guest(page, CONSOLE),
            broken: false,
            dropped: 0,
        }
    }

    /// Writes as much as fits; how many bytes. A broken console takes nothing.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        self.attempt(|ring| ring.write(bytes))
    }

    /// Takes what has been typed; how many bytes.
    pub fn read(&mut self, to: &mut [u8]) -> usize {
        self.attempt(|ring| ring.read(to))
    }

    /// Whether something has been typed.
    pub fn has_input(&self) -> bool {
        !self.broken && self.ring.readable().is_ok_and(|len| len > 0)
    }

    /// Whether the daemon has not yet taken all that was written.
    pub fn has_output(&self) -> bool {
        let capacity = CONSOLE.from_guest.capacity as usize;
        !self.broken && self.ring.writable().is_ok_and(|room| room < capacity)
    }

    /// Whether the daemon has broken the ring; it is not used any more.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Counts bytes that the owner gave up writing.
    pub fn drop_bytes(&mut self, count: usize) {
        self.dropped += count as u64;
    }

    /// How many bytes were given up.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn attempt(
        &mut self,
        io: impl FnOnce(&mut ByteRing<M>) -> Result<usize, xen_ring::PeerError>,
    ) -> usize {
        if self.broken {
            return 0;
        }
        io(&mut self.ring).unwrap_or_else(|_| {
            self.broken = true;
            0
        })
    }
}
