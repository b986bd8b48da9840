//! A connection in the log: what it is, what of its input is kept, what of its output is still to be sent.

use std::collections::VecDeque;

use xen_sys::{DomId, Port};

use super::PIECE;
use super::record::Kind;
use crate::core::Event;

/// What a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A unix socket.
    Socket,
    /// A domain's ring.
    Ring(RingAt),
}

/// A ring, and where it stands. Positions are those of the page: they count bytes and wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAt {
    /// Whether it is our own kernel's.
    pub kernel: bool,
    /// Whose it is.
    pub dom: DomId,
    /// Its owner's port.
    pub remote: Port,
    /// The features it was shown.
    pub features: u32,
    /// Up to where its input is carried out or kept in memory (`req_cons`).
    pub taken: u32,
    /// Where the first byte of the output that is kept goes (`rsp_prod`).
    pub given: u32,
    /// Why it is not served any more (`XENSTORE_ERROR_*`); 0 if it is.
    pub fault: u8,
}

/// Bytes of [`What::encode`].
const WHAT: usize = 24;

impl What {
    /// How many bytes it is.
    pub const SIZE: usize = WHAT;

    /// It as bytes.
    pub fn encode(&self) -> [u8; WHAT] {
        let mut bytes = [0; WHAT];
        if let What::Ring(ring) = self {
            bytes[0] = if ring.kernel { 2 } else { 1 };
            bytes[1] = ring.fault;
            bytes[2..4].copy_from_slice(&ring.dom.0.to_le_bytes());
            let words = [ring.remote.0, ring.features, ring.taken, ring.given];
            for (to, word) in bytes[4..].chunks_exact_mut(4).zip(words) {
                to.copy_from_slice(&word.to_le_bytes());
            }
        }
        bytes
    }

    /// What these bytes say; `None` if nothing.
    pub fn decode(bytes: &[u8]) -> Option<What> {
        let bytes: &[u8; WHAT] = bytes.try_into().ok()?;
        let number = |at: usize| -> Option<u32> {
            Some(u32::from_le_bytes(bytes[at..at + 4].try_into().ok()?))
        };
        let kernel = match bytes[0] {
            0 => return Some(What::Socket),
            1 => false,
            2 => true,
            _ => return None,
        };
        Some(What::Ring(RingAt {
            kernel,
            dom: DomId(u16::from_le_bytes([bytes[2], bytes[3]])),
            remote: Port(number(4)?),
            features: number(8)?,
            taken: number(12)?,
            given: number(16)?,
            fault: bytes[1],
        }))
    }
}

/// A connection as it is.
#[derive(Debug)]
pub struct Saved<'a> {
    /// What it is.
    pub what: What,
    /// A socket's [`count`](super::count).
    pub count: u32,
    /// Input that was taken and not carried out.
    pub input: &'a [u8],
    /// Bytes to send.
    pub output: &'a [u8],
    /// Events to send after them.
    pub waiting: &'a VecDeque<Event>,
}

type Write<'w> = &'w mut dyn FnMut(Kind, u32, [&[u8]; 2]);

impl Saved<'_> {
    pub(super) fn write(&self, write: Write<'_>) {
        write(Kind::Open, self.count, [&self.what.encode(), &[]]);
        if !self.input.is_empty() {
            write(Kind::Kept, 0, [self.input, &[]]);
        }
        for piece in self.output.chunks(PIECE) {
            write(Kind::Output, 0, [piece, &[]]);
        }
        for event in self.waiting {
            write_event(event, write);
        }
    }
}

pub(super) fn write_event(event: &Event, write: Write<'_>) {
    // Paths are of at most 3072 bytes.
    let aux = (event.skip as u32) << 16 | event.path.len() as u32;
    write(Kind::Waiting, aux, [event.path.as_bytes(), &event.token]);
}

pub(super) fn read_event(aux: u32, payload: &[u8]) -> Option<Event> {
    let (skip, len) = ((aux >> 16) as usize, (aux & 0xffff) as usize);
    let (path, token) = payload.split_at_checked(len)?;
    let path = str::from_utf8(path).ok()?;
    path.get(skip..)?;
    Some(Event {
        path: path.into(),
        skip,
        token: token.into(),
    })
}
