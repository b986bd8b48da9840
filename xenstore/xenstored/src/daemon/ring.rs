//! A guest's ring as a transport: what the peer does wrong ends this connection only.

use std::fmt;
use std::sync::atomic::{Ordering, fence};

use xen_ring::{ByteRing, PeerError, STORE, SharedMemoryExt};
use xen_sys::{DomId, Port};

use super::world::RingMemory;
use crate::core::settings;
use crate::journal::conns::RingAt;
use crate::journal::fault_point;

/// `server_features` in the ring's page (io/xs_wire.h).
const FEATURES: usize = 2064;
/// `connection`.
const CONNECTION: usize = 2068;
/// `error`.
const ERROR: usize = 2072;

/// In `connection`: the peer asks for a fresh start.
const RECONNECT: u32 = 1;

/// Why a ring is not served any more (`XENSTORE_ERROR_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RingFault {
    /// The guest does not take its events.
    Communication = 1,
    /// An index is out of range.
    Index = 2,
    /// A message is too long.
    Protocol = 3,
}

impl RingFault {
    /// The fault of this number.
    pub fn from_code(code: u8) -> Option<RingFault> {
        let all = [
            RingFault::Communication,
            RingFault::Index,
            RingFault::Protocol,
        ];
        all.into_iter().find(|fault| *fault as u8 == code)
    }
}

/// A domain's ring and the port that goes with it.
pub struct Ring {
    ring: ByteRing<RingMemory>,
    /// Whose it is.
    pub dom: DomId,
    /// Our port.
    pub port: Port,
    /// Its owner's port.
    pub remote: Port,
    features: u32,
    /// Up to where its input was taken, and up to where output was put on it, whatever its owner makes of the page.
    taken: u32,
    given: u32,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ring(domain {}, port {})", self.dom, self.port)
    }
}

impl Ring {
    /// Takes a ring into use, with these features.
    pub fn new(memory: RingMemory, dom: DomId, remote: Port, port: Port, features: u32) -> Ring {
        memory.store_u32(FEATURES, features, Ordering::Relaxed);
        memory.store_u32(ERROR, 0, Ordering::Relaxed);
        memory.store_u32(CONNECTION, 0, Ordering::Release);
        let ring = ByteRing::daemon(memory, STORE);
        let (taken, given) = ring.positions();
        Ring {
            ring,
            dom,
            port,
            remote,
            features,
            taken,
            given,
        }
    }

    /// Takes a ring into use again that an earlier daemon served until it was killed. `kept` bytes are still to be put on
    /// it as far as was known; returns how many of them lie there already, or `None` if its owner has meddled with it.
    pub fn resume(
        memory: RingMemory,
        at: &RingAt,
        port: Port,
        kept: usize,
    ) -> (Ring, Option<usize>) {
        let mut ring = Ring {
            ring: ByteRing::daemon(memory, STORE),
            dom: at.dom,
            port,
            remote: at.remote,
            features: at.features,
            taken: at.taken,
            given: at.given,
        };
        if at.fault != 0 {
            ring.set_error(at.fault.into());
            return (ring, Some(0));
        }
        if ring.wants_reconnect() {
            return (ring, Some(0));
        }
        let (_, given) = ring.ring.positions();
        let more = given.wrapping_sub(at.given) as usize;
        if more > kept {
            return (ring, None);
        }
        // What was taken may not have been told any more, so that the requests lie there still.
        ring.ring.advance(at.taken);
        ring.given = given;
        (ring, Some(more))
    }

    /// What a new daemon must know of it; `fault` is why it is not served, if it is not.
    pub fn at(&self, fault: Option<RingFault>) -> RingAt {
        RingAt {
            kernel: self.dom == DomId::DOM0,
            dom: self.dom,
            remote: self.remote,
            features: self.features,
            taken: self.taken,
            given: self.given,
            fault: fault.map_or(0, |fault| fault as u8),
        }
    }

    /// As [`at`](Self::at), once it has begun afresh.
    pub fn at_fresh(&self) -> RingAt {
        RingAt {
            taken: 0,
            given: 0,
            ..self.at(None)
        }
    }

    /// Goes on with a ring that another daemon in this process has served until now. Where it stands is what that one
    /// has told, or, if it told nothing, what the page says.
    pub fn go_on(memory: RingMemory, at: &RingAt, port: Port, told: bool) -> Ring {
        let ring = ByteRing::daemon(memory, STORE);
        let (taken, given) = match told {
            true => (at.taken, at.given),
            false => ring.positions(),
        };
        Ring {
            ring,
            dom: at.dom,
            port,
            remote: at.remote,
            features: at.features,
            taken,
            given,
        }
    }

    /// Whether the peer wants to begin afresh.
    pub fn wants_reconnect(&self) -> bool {
        let state = self.ring.memory().load_u32(CONNECTION, Ordering::Acquire);
        self.features & settings::RECONNECTION != 0 && state == RECONNECT
    }

    /// Empties both streams, whatever their indices say, and tells the peer that it may begin.
    pub fn reconnect(&mut self) {
        let memory = self.ring.memory();
        for side in [STORE.from_guest, STORE.to_guest] {
            memory.store_u32(side.cons, 0, Ordering::Relaxed);
            memory.store_u32(side.prod, 0, Ordering::Relaxed);
        }
        memory.store_u32(ERROR, 0, Ordering::Relaxed);
        memory.store_u32(CONNECTION, 0, Ordering::Release);
        (self.taken, self.given) = (0, 0);
    }

    /// Goes on at another port, whatever was wrong before.
    pub fn rebind(&mut self, remote: Port, port: Port) {
        (self.remote, self.port) = (remote, port);
        (self.taken, self.given) = self.ring.positions();
        self.ring.memory().store_u32(ERROR, 0, Ordering::Release);
    }

    /// Appends a copy of what the peer has written, which stays there until it is [taken](Self::take); returns how many
    /// bytes.
    pub fn receive(&mut self, to: &mut Vec<u8>) -> Result<usize, PeerError> {
        let mut bytes = [0; STORE.from_guest.capacity as usize];
        let len = self.ring.peek(&mut bytes)?;
        to.extend_from_slice(&bytes[..len]);
        Ok(len)
    }

    /// Gives the peer the room of so many bytes of its input.
    pub fn take(&mut self, len: usize) {
        self.taken = self.taken.wrapping_add(len as u32);
        self.ring.advance(self.taken);
        fault_point();
    }

    /// Writes what fits; returns how many bytes. If not all did, the peer tells when it has made room.
    pub fn send(&mut self, bytes: &[u8]) -> Result<usize, PeerError> {
        let mut sent = 0;
        while sent < bytes.len() {
            let len = self.ring.write(&bytes[sent..])?;
            // The peer tells only if it saw a full ring, so look for room again after it could see ours.
            fence(Ordering::SeqCst);
            if len == 0 {
                break;
            }
            sent += len;
            self.given = self.given.wrapping_add(len as u32);
            fault_point();
        }
        Ok(sent)
    }

    /// Tells the peer why it is not served any more.
    pub fn fail(&mut self, fault: RingFault) {
        self.set_error(fault as u32);
    }

    fn set_error(&mut self, error: u32) {
        if self.features & settings::ERROR != 0 {
            self.ring
                .memory()
                .store_u32(ERROR, error, Ordering::Release);
        }
    }
}
