//! What stands in a stream. Byte strings are without the NUL that ends some of them in the stream.

pub use xs_wire::Access;

use xen_sys::{DomId, Port};

/// The kinds of records.
pub mod kind {
    /// The last record.
    pub const END: u32 = 0;
    /// Descriptors of the daemon's own.
    pub const GLOBAL: u32 = 1;
    /// A connection.
    pub const CONNECTION: u32 = 2;
    /// A watch.
    pub const WATCH: u32 = 3;
    /// An open transaction.
    pub const TRANSACTION: u32 = 4;
    /// A node.
    pub const NODE: u32 = 5;
    /// Quotas that hold for all.
    pub const GLOBAL_QUOTA: u32 = 6;
    /// What belongs to a domain.
    pub const DOMAIN: u32 = 7;
    /// A watch with a depth, from version 2 on.
    pub const WATCH_EXTENDED: u32 = 8;
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// The last one.
    End,
    /// Descriptors; -1 for none.
    Global {
        /// The socket that clients connect to.
        socket: i32,
        /// The event channels' device.
        evtchn: i32,
    },
    /// A connection.
    Connection(Connection<'a>),
    /// A watch.
    Watch(Watch<'a>),
    /// An open transaction.
    Transaction {
        /// Whose it is.
        conn: u32,
        /// Its number.
        id: u32,
    },
    /// A node or a special name.
    Node(Node<'a>),
    /// Quotas that hold for all: those per domain, and those of the daemon as a whole.
    GlobalQuota(Quotas<'a>),
    /// What belongs to a domain.
    Domain(DomainData<'a>),
    /// Something else.
    Unknown {
        /// Its kind.
        kind: u32,
        /// Its body, with padding.
        body: &'a [u8],
    },
}

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection<'a> {
    /// Its number in this stream; not 0.
    pub id: u32,
    /// Its other end.
    pub peer: Peer,
    /// Bytes taken from it and not carried out.
    pub input: &'a [u8],
    /// Bytes still to be sent, in whole messages but for the first.
    pub output: &'a [u8],
    /// How many of these are the rest of a message of which some was sent.
    pub partial: usize,
    /// Its domain's unique id, if told.
    pub unique_id: Option<u64>,
}

/// What is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A socket, by its descriptor.
    Socket(i32),
    /// A domain's ring.
    Ring {
        /// The domain.
        dom: DomId,
        /// Whose rights it has as well.
        target: Option<DomId>,
        /// The daemon's own port.
        port: Port,
    },
}

/// A watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch<'a> {
    /// Whose it is.
    pub conn: u32,
    /// Its path as the client gave it, relative or not.
    pub path: &'a [u8],
    /// Its token.
    pub token: &'a [u8],
    /// How many levels below count; all if `None`.
    pub depth: Option<u16>,
}

/// A node, in the tree or as an open transaction has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node<'a> {
    /// Whose transaction sees it so; 0 for the tree.
    pub conn: u32,
    /// Which transaction.
    pub transaction: u32,
    /// 1 if the transaction has read it, 2 if written.
    pub access: u16,
    /// Its absolute path, or a special name.
    pub path: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
    /// Its permissions, four bytes each.
    pub(crate) permissions: &'a [u8],
    pub(crate) big_endian: bool,
}

/// One entry of a node's permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permission {
    /// The domain.
    pub dom: DomId,
    /// What it may do.
    pub access: Access,
    /// Whether the domain is gone, and a later one of its number has no part in this.
    pub stale: bool,
}

impl Node<'_> {
    /// Its permissions, the owner's first.
    pub fn permissions(&self) -> impl ExactSizeIterator<Item = Permission> {
        let big_endian = self.big_endian;
        self.permissions.chunks_exact(4).map(move |entry| {
            let dom = [entry[2], entry[3]];
            let number = if big_endian {
                u16::from_be_bytes(dom)
            } else {
                u16::from_le_bytes(dom)
            };
            Permission {
                dom: DomId(number),
                access: match entry[0] {
                    b'r' => Access::Read,
                    b'w' => Access::Write,
                    b'b' => Access::Both,
                    _ => Access::None,
                },
                stale: entry[1] & crate::STALE != 0,
            }
        })
    }
}

/// Some quotas with their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas<'a> {
    /// Four bytes each.
    pub(crate) values: &'a [u8],
    /// As many names, each with a NUL at its end.
    pub(crate) names: &'a [u8],
    pub(crate) big_endian: bool,
}

/// One quota; 0 means that there is no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// Its value.
    pub value: u32,
}

impl<'a> Quotas<'a> {
    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = Quota<'a>> {
        let big_endian = self.big_endian;
        let values = self.values.as_chunks::<4>().0.iter();
        let names = self.names.split(|byte| *byte == 0);
        values.zip(names).map(move |(value, name)| Quota {
            name,
            value: if big_endian {
                u32::from_be_bytes(*value)
            } else {
                u32::from_le_bytes(*value)
            },
        })
    }
}

/// What belongs to a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainData<'a> {
    /// Which.
    pub dom: DomId,
    /// The features that its ring shows; not told in version 1.
    pub features: Option<u32>,
    /// Its own quotas.
    pub quotas: Quotas<'a>,
}
