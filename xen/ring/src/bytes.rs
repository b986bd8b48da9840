//! Byte rings: the console's (io/console.h) and the store's (io/xs_wire.h). Two streams in one page,
//! each a power-of-two buffer with free-running consumer and producer indices.

use core::mem::offset_of;
use core::num::Wrapping;
use core::sync::atomic::{Ordering, fence};

use xen_sys::io::console::ConsolePage;
use xen_sys::io::xs_wire::StorePage;

use crate::{PeerError, SharedMemory, SharedMemoryExt};

/// Where one stream lies in the page. All in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direction {
    /// Offset of the buffer.
    pub buffer: usize,
    /// Length of the buffer, a power of two.
    pub capacity: u32,
    /// Offset of the u32 consumer index.
    pub cons: usize,
    /// Offset of the u32 producer index.
    pub prod: usize,
}

/// Where the two streams of a page lie, as the guest sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLayout {
    /// From the guest to the daemon.
    pub from_guest: Direction,
    /// From the daemon to the guest.
    pub to_guest: Direction,
}

/// The console's page; "in" is input to the guest.
pub const CONSOLE: RingLayout = RingLayout {
    from_guest: Direction {
        buffer: offset_of!(ConsolePage, output),
        capacity: 2048,
        cons: offset_of!(ConsolePage, out_cons),
        prod: offset_of!(ConsolePage, out_prod),
    },
    to_guest: Direction {
        buffer: offset_of!(ConsolePage, input),
        capacity: 1024,
        cons: offset_of!(ConsolePage, in_cons),
        prod: offset_of!(ConsolePage, in_prod),
    },
};

/// The store's page.
pub const STORE: RingLayout = RingLayout {
    from_guest: Direction {
        buffer: offset_of!(StorePage, req),
        capacity: 1024,
        cons: offset_of!(StorePage, req_cons),
        prod: offset_of!(StorePage, req_prod),
    },
    to_guest: Direction {
        buffer: offset_of!(StorePage, rsp),
        capacity: 1024,
        cons: offset_of!(StorePage, rsp_cons),
        prod: offset_of!(StorePage, rsp_prod),
    },
};

/// One end of a pair of byte streams in a shared page.
#[derive(Debug)]
pub struct ByteRing<M> {
    memory: M,
    read: Direction,
    write: Direction,
}

impl<M: SharedMemory> ByteRing<M> {
    /// The guest's end.
    pub fn guest(memory: M, layout: RingLayout) -> Self {
        ByteRing {
            memory,
            read: layout.to_guest,
            write: layout.from_guest,
        }
    }

    /// The daemon's end.
    pub fn daemon(memory: M, layout: RingLayout) -> Self {
        ByteRing {
            memory,
            read: layout.from_guest,
            write: layout.to_guest,
        }
    }

    fn indices(&self, side: Direction) -> Result<(Wrapping<u32>, Wrapping<u32>), PeerError> {
        let cons = self.memory.load_u32(side.cons, Ordering::Acquire);
        let prod = self.memory.load_u32(side.prod, Ordering::Acquire);
        if prod.wrapping_sub(cons) > side.capacity {
            let (theirs, ours) = if side == self.read {
                (prod, cons)
            } else {
                (cons, prod)
            };
            return Err(PeerError::IndexOutOfRange {
                theirs,
                ours,
                capacity: side.capacity,
            });
        }
        Ok((Wrapping(cons), Wrapping(prod)))
    }

    /// How many bytes can be read now.
    pub fn readable(&self) -> Result<usize, PeerError> {
        self.indices(self.read)
            .map(|(cons, prod)| (prod - cons).0 as usize)
    }

    /// How many bytes can be written now.
    pub fn writable(&self) -> Result<usize, PeerError> {
        self.indices(self.write)
            .map(|(cons, prod)| self.write.capacity as usize - (prod - cons).0 as usize)
    }

    /// Reads up to `to.len()` bytes; returns how many. The peer wants an event if that is not 0.
    pub fn read(&mut self, to: &mut [u8]) -> Result<usize, PeerError> {
        let (len, next) = self.copy_out(to)?;
        self.memory
            .store_u32(self.read.cons, next.0, Ordering::Release);
        Ok(len)
    }

    /// Copies up to `to.len()` bytes and leaves them in the ring; returns how many. The peer may change them until they
    /// are taken with [`advance`](Self::advance): decide on the copy.
    pub fn peek(&self, to: &mut [u8]) -> Result<usize, PeerError> {
        self.copy_out(to).map(|(len, _)| len)
    }

    /// Gives the peer the room of bytes that were copied out before: sets the consumer index, which is the caller's to
    /// count. The peer wants an event.
    pub fn advance(&mut self, cons: u32) {
        self.memory
            .store_u32(self.read.cons, cons, Ordering::Release);
    }

    /// Where reading (consumer index) and writing (producer index) stand, as the page says.
    pub fn positions(&self) -> (u32, u32) {
        (
            self.memory.load_u32(self.read.cons, Ordering::Acquire),
            self.memory.load_u32(self.write.prod, Ordering::Acquire),
        )
    }

    fn copy_out(&self, to: &mut [u8]) -> Result<(usize, Wrapping<u32>), PeerError> {
        let side = self.read;
        let (cons, prod) = self.indices(side)?;
        let len = to.len().min((prod - cons).0 as usize);
        let (first, second) = to[..len].split_at_mut(Self::up_to_end(side, cons, len));
        self.memory
            .read_bytes(side.buffer + Self::place(side, cons), first);
        self.memory.read_bytes(side.buffer, second);
        // The reads above must be done before the peer may overwrite the bytes.
        fence(Ordering::SeqCst);
        Ok((len, cons + Wrapping(len as u32)))
    }

    /// Writes as much of `from` as fits; returns how many bytes. The peer wants an event if that is not 0.
    pub fn write(&mut self, from: &[u8]) -> Result<usize, PeerError> {
        let side = self.write;
        let (cons, prod) = self.indices(side)?;
        let room = side.capacity as usize - (prod - cons).0 as usize;
        let len = from.len().min(room);
        let (first, second) = from[..len].split_at(Self::up_to_end(side, prod, len));
        // The consumer index was read with acquire order: the bytes it passed are free.
        self.memory
            .write_bytes(side.buffer + Self::place(side, prod), first);
        self.memory.write_bytes(side.buffer, second);
        self.memory.store_u32(
            side.prod,
            (prod + Wrapping(len as u32)).0,
            Ordering::Release,
        );
        Ok(len)
    }

    /// The memory under the ring.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Gives the memory back.
    pub fn into_memory(self) -> M {
        self.memory
    }

    fn place(side: Direction, index: Wrapping<u32>) -> usize {
        (index.0 & (side.capacity - 1)) as usize
    }

    fn up_to_end(side: Direction, index: Wrapping<u32>, len: usize) -> usize {
        len.min(side.capacity as usize - Self::place(side, index))
    }
}

#[cfg(test)]
mod tests;
