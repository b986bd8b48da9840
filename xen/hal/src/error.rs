//! What can go wrong between logic and its world: what was tried, on whom, and why it failed.

use alloc::string::String;
use core::fmt;

use xen_ring::PeerError;
use xen_sys::{DomId, Errno, GrantRef, Port};
use xs_wire::StoreError;

/// The result of an operation of this crate's traits.
pub type Result<T, E = Error> = core::result::Result<T, E>;

/// An operation on Xen, the store or a peer that did not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// Mapping a granted frame failed. `status` is Xen's `GNTST_*` (grant_table.h), negative.
    MapGrant {
        /// The granting domain.
        dom: DomId,
        /// The first grant that could not be mapped.
        gref: GrantRef,
        /// `GNTST_*`.
        status: i16,
    },
    /// Copying from or to a granted frame failed.
    CopyGrant {
        /// The granting domain.
        dom: DomId,
        /// The grant.
        gref: GrantRef,
        /// `GNTST_*`.
        status: i16,
    },
    /// The peer still uses a grant that was to end.
    GrantInUse {
        /// The grant.
        gref: GrantRef,
    },
    /// No free entry is left in the grant table, or no free page.
    NoGrants,
    /// An event channel operation failed.
    Event {
        /// The operation's name in event_channel.h, such as `"EVTCHNOP_bind_interdomain"`.
        op: &'static str,
        /// The other domain.
        dom: DomId,
        /// The port concerned, 0 if none yet.
        port: Port,
        /// Why.
        errno: Errno,
    },
    /// A hypercall, or the device node that carries it, failed.
    Hypercall {
        /// Its name, such as `"XEN_DOMCTL_createdomain"`.
        op: &'static str,
        /// The domain concerned.
        dom: DomId,
        /// Why.
        errno: Errno,
    },
    /// A file, device node or other thing of the operating system failed.
    System {
        /// What was tried, such as `"open"`.
        op: &'static str,
        /// On what: a path or name.
        object: String,
        /// Why.
        errno: Errno,
    },
    /// This hypervisor's interface version is not in the table.
    UnknownVersion {
        /// Major and minor, as `XENVER_version` gives them.
        major: u16,
        /// See above.
        minor: u16,
    },
    /// The store refused a request or could not be reached.
    Store(StoreError),
    /// A peer broke the rules of a ring.
    Ring(PeerError),
    /// A peer said something in the store that makes no sense.
    Peer {
        /// The peer.
        dom: DomId,
        /// What is wrong, naming the node and the value.
        what: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::MapGrant { dom, gref, status } => {
                write!(f, "map grant {gref} of domain {dom}: GNTST {status}")
            }
            Error::CopyGrant { dom, gref, status } => {
                write!(f, "copy grant {gref} of domain {dom}: GNTST {status}")
            }
            Error::GrantInUse { gref } => write!(f, "end grant {gref}: the peer still uses it"),
            Error::NoGrants => write!(f, "no free grant entry or page is left"),
            Error::Event {
                op,
                dom,
                port,
                errno,
            } => write!(f, "{op} (domain {dom}, port {port}): {errno}"),
            // About the host, and not about a domain.
            Error::Hypercall {
                op,
                dom: DomId::SELF,
                errno,
            } => write!(f, "{op}: {errno}"),
            Error::Hypercall { op, dom, errno } => write!(f, "{op} (domain {dom}): {errno}"),
            Error::System { op, object, errno } => write!(f, "{op} {object}: {errno}"),
            Error::UnknownVersion { major, minor } => {
                write!(
                    f,
                    "Xen {major}.{minor}: its control interface is not known to this program"
                )
            }
            Error::Store(error) => error.fmt(f),
            Error::Ring(error) => error.fmt(f),
            Error::Peer { dom, what } => write!(f, "domain {dom}: {what}"),
        }
    }
}

impl core::error::Error for Error {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Error::Store(error) => Some(error),
            Error::Ring(error) => Some(error),
            _ => None,
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Error::Store(error)
    }
}

impl From<PeerError> for Error {
    fn from(error: PeerError) -> Self {
        Error::Ring(error)
    }
}
