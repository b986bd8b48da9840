//! Xen's numbers as types, so that a port is never taken for a grant reference.

use core::fmt;

/// Declares a transparent number type that converts only when asked to.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident($repr:ty)) => {
        $(#[$doc])*
        #[repr(transparent)]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub $repr);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A domain's number (`domid_t`, xen.h).
    DomId(u16)
}
number! {
    /// An index into a domain's grant table (`grant_ref_t`, grant_table.h).
    GrantRef(u32)
}
number! {
    /// An event channel's local port (`evtchn_port_t`, event_channel.h).
    Port(u32)
}
number! {
    /// A guest's own ("pseudo-physical") frame number, in units of 4 KiB (`xen_pfn_t`, arch-x86/xen.h).
    Pfn(u64)
}
number! {
    /// A machine frame number, in units of 4 KiB (`xen_pfn_t`, arch-x86/xen.h).
    Mfn(u64)
}
number! {
    /// A virtual CPU's number within its domain.
    VcpuId(u32)
}

impl DomId {
    /// The privileged domain that runs the toolstack and, here, the backends.
    pub const DOM0: DomId = DomId(0);
    /// The calling domain (`DOMID_SELF`, xen.h).
    pub const SELF: DomId = DomId(0x7ff0);
    /// The first number that is no ordinary domain (`DOMID_FIRST_RESERVED`, xen.h).
    pub const FIRST_RESERVED: DomId = DomId(0x7ff0);

    /// Whether this can name an ordinary domain, dom0 included.
    pub const fn is_ordinary(self) -> bool {
        self.0 < Self::FIRST_RESERVED.0
    }
}

/// A page's size in bytes on x86, for frames, grants and rings alike.
pub const PAGE_SIZE: usize = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
