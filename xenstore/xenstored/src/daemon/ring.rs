//! A guest's ring as a transport: what the peer does wrong ends this connection only.

use std::fmt;
use std::sync::atomic::{Ordering, fence};

use xen_ring::{ByteRing, PeerError, STORE, SharedMemoryExt};
use xen_sys::{DomId, Port};

use super::world::RingMemory;
use crate::core::settings;

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

/// A domain's ring and the port that goes with it.
pub struct Ring {
    ring: ByteRing<RingMemory>,
    /// Whose it is.
    pub dom: DomId,
    /// Our port.
    pub port: Port,
    features: u32,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ring(domain {}, port {})", self.dom, self.port)
    }
}

impl Ring {
    /// Takes a ring into use, with these features.
    pub fn new(memory: RingMemory, dom: DomId, port: Port, features: u32) -> Ring {
        memory.store_u32(FEATURES, features, Ordering::Relaxed);
        memory.store_u32(ERROR, 0, Ordering::Relaxed);
        memory.store_u32(CONNECTION, 0, Ordering::Release);
        Ring {
            ring: ByteRing::daemon(memory, STORE),
            dom,
            port,
            features,
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
    }

    /// Goes on at another port, whatever was wrong before.
    pub fn rebind(&mut self, port: Port) {
        self.port = port;
        self.ring.memory().store_u32(ERROR, 0, Ordering::Release);
    }

    /// Appends what the peer has written; returns how many bytes.
    pub fn receive(&mut self, to: &mut Vec<u8>) -> Result<usize, PeerError> {
        let mut bytes = [0; STORE.from_guest.capacity as usize];
        let len = self.ring.read(&mut bytes)?;
        to.extend_from_slice(&bytes[..len]);
        Ok(len)
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
        }
        Ok(sent)
    }

    /// Tells the peer why it is not served any more.
    pub fn fail(&mut self, fault: RingFault) {
        if self.features & settings::ERROR == 0 {
            return;
        }
        self.ring
            .memory()
            .store_u32(ERROR, fault as u32, Ordering::Release);
    }
}
