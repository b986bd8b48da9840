//! The store's nouns: permissions, transactions, watch events, errors.

use alloc::string::String;
use core::fmt;

use xen_sys::{DomId, Errno};

/// What a domain may do with a node (docs/misc/xenstore.txt, GET_PERMS).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// `n`: nothing.
    None,
    /// `r`: read.
    Read,
    /// `w`: write.
    Write,
    /// `b`: both.
    Both,
}

impl Access {
    /// The letter on the wire.
    pub const fn letter(self) -> u8 {
        match self {
            Access::None => b'n',
            Access::Read => b'r',
            Access::Write => b'w',
            Access::Both => b'b',
        }
    }

    /// The right that a letter stands for.
    pub const fn from_letter(letter: u8) -> Option<Access> {
        match letter {
            b'n' => Some(Access::None),
            b'r' => Some(Access::Read),
            b'w' => Some(Access::Write),
            b'b' => Some(Access::Both),
            _ => None,
        }
    }

    /// Whether reading is allowed.
    pub const fn reads(self) -> bool {
        matches!(self, Access::Read | Access::Both)
    }

    /// Whether writing is allowed.
    pub const fn writes(self) -> bool {
        matches!(self, Access::Write | Access::Both)
    }
}

/// One entry of a node's permission list. In the first entry `dom` is the owner and `access` the right of
/// every domain that is not listed; so the first entry's access is almost always [`Access::None`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Permission {
    /// Whom it concerns.
    pub dom: DomId,
    /// What they may do.
    pub access: Access,
}

impl Permission {
    /// Makes an entry.
    pub const fn new(dom: DomId, access: Access) -> Self {
        Permission { dom, access }
    }

    /// The first entry of a list: `dom` owns the node and nobody else has a right by default.
    pub const fn owner(dom: DomId) -> Self {
        Permission {
            dom,
            access: Access::None,
        }
    }

    /// Parses a letter and a decimal domain number, such as `b"r7"`.
    pub fn parse(text: &[u8]) -> Option<Permission> {
        let (&letter, digits) = text.split_first()?;
        let digits = core::str::from_utf8(digits).ok()?;
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        Some(Permission {
            access: Access::from_letter(letter)?,
            dom: DomId(digits.parse().ok()?),
        })
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.access.letter() as char, self.dom)
    }
}

impl fmt::Debug for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An open transaction's number; 0 on the wire means none and is never a `TxId`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TxId(pub core::num::NonZeroU32);

/// A watch fired: the path that changed and the token of the watch. It says "look again": when a client was
/// slow, one event may stand for many, and one at the watch's own path for changes anywhere below.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WatchEvent {
    /// The changed path, relative if the watch was set on a relative path; or a special one (`@releaseDomain`).
    pub path: String,
    /// The token given with the watch.
    pub token: String,
}

/// A store request that did not work: which one, on what, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreError {
    /// The operation's name in the protocol, such as `"READ"`.
    pub op: &'static str,
    /// The path or other object.
    pub object: String,
    /// The daemon's answer, or the transport's error.
    pub errno: Errno,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "xenstore {} {}: {}", self.op, self.object, self.errno)
    }
}

impl core::error::Error for StoreError {}
