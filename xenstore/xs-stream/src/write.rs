//! Makes a stream. Its numbers are little-endian.

use alloc::vec::Vec;

use xen_sys::DomId;

use crate::record::{Access, Connection, Peer, Permission, Quota, Watch, kind};
use crate::{HAS_UNIQUE_ID, IDENT, RECORD_HEADER, STALE};

/// A stream that is being made.
#[derive(Clone, Debug)]
pub struct Writer {
    bytes: Vec<u8>,
    version: u32,
    /// Where the open record begins.
    record: usize,
}

impl Writer {
    /// Begins a stream of version 1 or 2.
    pub fn new(version: u32) -> Writer {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(IDENT);
        bytes.extend_from_slice(&version.to_be_bytes());
        bytes.extend_from_slice(&0u32.to_be_bytes());
        Writer {
            bytes,
            version,
            record: 0,
        }
    }

    /// Ends the stream; these are its bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.begin(kind::END);
        self.end();
        self.bytes
    }

    /// The daemon's own descriptors.
    pub fn global(&mut self, socket: i32, evtchn: i32) {
        self.begin(kind::GLOBAL);
        self.u32(socket as u32);
        self.u32(evtchn as u32);
        self.end();
    }

    /// A connection. At most 65535 bytes of input can be told, and as many of a partial response.
    pub fn connection(&mut self, connection: &Connection<'_>) {
        self.begin(kind::CONNECTION);
        self.u32(connection.id);
        let unique_id = connection.unique_id.filter(|_| self.version >= 2);
        let fields = if unique_id.is_some() {
            HAS_UNIQUE_ID
        } else {
            0
        };
        match connection.peer {
            Peer::Ring { dom, target, port } => {
                self.u16(0);
                self.u16(fields);
                self.u16(dom.0);
                self.u16(target.unwrap_or(DomId::INVALID).0);
                self.u32(port.0);
            }
            Peer::Socket(fd) => {
                self.u16(1);
                self.u16(fields);
                self.u32(fd as u32);
                self.u32(0);
            }
        }
        self.u16(connection.input.len() as u16);
        self.u16(connection.partial as u16);
        self.u32(connection.output.len() as u32);
        self.bytes.extend_from_slice(connection.input);
        self.bytes.extend_from_slice(connection.output);
        if let Some(id) = unique_id {
            self.align();
            self.bytes.extend_from_slice(&id.to_le_bytes());
        }
        self.end();
    }

    /// A watch; its depth is told from version 2 on.
    pub fn watch(&mut self, watch: &Watch<'_>) {
        let depth = watch.depth.filter(|_| self.version >= 2);
        self.begin(if depth.is_some() {
            kind::WATCH_EXTENDED
        } else {
            kind::WATCH
        });
        self.u32(watch.conn);
        self.u16(watch.path.len() as u16 + 1);
        self.u16(watch.token.len() as u16 + 1);
        if let Some(depth) = depth {
            self.u16(depth);
            self.u16(0);
        }
        self.text(watch.path);
        self.text(watch.token);
        self.end();
    }

    /// An open transaction.
    pub fn transaction(&mut self, conn: u32, id: u32) {
        self.begin(kind::TRANSACTION);
        self.u32(conn);
        self.u32(id);
        self.end();
    }

    /// A node of the tree, which must come after the one above it, or a special name.
    pub fn node(
        &mut self,
        path: &[u8],
        value: &[u8],
        permissions: impl ExactSizeIterator<Item = Permission>,
    ) {
        self.begin(kind::NODE);
        self.u32(0);
        self.u32(0);
        self.u16(path.len() as u16 + 1);
        self.u16(value.len() as u16);
        self.u16(0);
        self.u16(permissions.len() as u16);
        for permission in permissions {
            let letter = match permission.access {
                Access::None => b'n',
                Access::Read => b'r',
                Access::Write => b'w',
                Access::Both => b'b',
            };
            let flags = if permission.stale { STALE } else { 0 };
            self.bytes.extend_from_slice(&[letter, flags]);
            self.u16(permission.dom.0);
        }
        self.text(path);
        self.bytes.extend_from_slice(value);
        self.end();
    }

    /// Quotas that hold for each domain that has none of its own.
    pub fn global_quota(&mut self, quotas: &[Quota<'_>]) {
        self.begin(kind::GLOBAL_QUOTA);
        self.u16(quotas.len() as u16);
        self.u16(0);
        self.quotas(quotas);
        self.end();
    }

    /// What belongs to a domain; its features are told from version 2 on.
    pub fn domain(&mut self, dom: DomId, features: u32, quotas: &[Quota<'_>]) {
        self.begin(kind::DOMAIN);
        self.u16(dom.0);
        self.u16(quotas.len() as u16);
        self.u32(if self.version >= 2 { features } else { 0 });
        self.quotas(quotas);
        self.end();
    }

    /// A record of another kind.
    pub fn unknown(&mut self, kind: u32, body: &[u8]) {
        self.begin(kind);
        self.bytes.extend_from_slice(body);
        self.end();
    }

    fn quotas(&mut self, quotas: &[Quota<'_>]) {
        for quota in quotas {
            self.u32(quota.value);
        }
        for quota in quotas {
            self.text(quota.name);
        }
    }

    fn begin(&mut self, kind: u32) {
        self.record = self.bytes.len();
        self.u32(kind);
        self.u32(0);
    }

    /// Pads the record and fills in its length.
    fn end(&mut self) {
        self.align();
        let len = (self.bytes.len() - self.record - RECORD_HEADER) as u32;
        self.bytes[self.record + 4..][..4].copy_from_slice(&len.to_le_bytes());
    }

    fn align(&mut self) {
        // All before the record is aligned.
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }

    fn text(&mut self, text: &[u8]) {
        self.bytes.extend_from_slice(text);
        self.bytes.push(0);
    }

    fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }
}
