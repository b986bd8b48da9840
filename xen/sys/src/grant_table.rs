//! grant_table.h: pages that a domain lends to another.

use core::fmt;

use bitflags::bitflags;

use crate::types::{DomId, GrantRef};
use crate::{abi_consts, abi_structs};

/// Grant entries of version 1 in one page.
pub const V1_ENTRIES_PER_PAGE: usize = 512;

abi_consts! {
    table CONSTANTS;
    GNTTABOP_MAP_GRANT_REF: u32 = 0, "GNTTABOP_map_grant_ref";
    GNTTABOP_UNMAP_GRANT_REF: u32 = 1, "GNTTABOP_unmap_grant_ref";
    GNTTABOP_SETUP_TABLE: u32 = 2, "GNTTABOP_setup_table";
    GNTTABOP_DUMP_TABLE: u32 = 3, "GNTTABOP_dump_table";
    GNTTABOP_TRANSFER: u32 = 4, "GNTTABOP_transfer";
    GNTTABOP_COPY: u32 = 5, "GNTTABOP_copy";
    GNTTABOP_QUERY_SIZE: u32 = 6, "GNTTABOP_query_size";
    GNTTABOP_UNMAP_AND_REPLACE: u32 = 7, "GNTTABOP_unmap_and_replace";
    GNTTABOP_SET_VERSION: u32 = 8, "GNTTABOP_set_version";
    GNTTABOP_GET_STATUS_FRAMES: u32 = 9, "GNTTABOP_get_status_frames";
    GNTTABOP_GET_VERSION: u32 = 10, "GNTTABOP_get_version";
    /// The lowest grant references are the tools'.
    GNTTAB_NR_RESERVED_ENTRIES: u32 = 8, "GNTTAB_NR_RESERVED_ENTRIES";
    /// Grant of the console page.
    GNTTAB_RESERVED_CONSOLE: u32 = 0, "GNTTAB_RESERVED_CONSOLE";
    /// Grant of the store page.
    GNTTAB_RESERVED_XENSTORE: u32 = 1, "GNTTAB_RESERVED_XENSTORE";
    /// In [`Copy::flags`]: the source is a grant reference.
    GNTCOPY_SOURCE_GREF: u16 = 1, "GNTCOPY_source_gref";
    /// In [`Copy::flags`]: the destination is a grant reference.
    GNTCOPY_DEST_GREF: u16 = 2, "GNTCOPY_dest_gref";
}

bitflags! {
    /// `GTF_*`: flags of a grant entry.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct GrantFlags: u16 {
        /// `GTF_permit_access`: the peer may map and copy.
        const PERMIT_ACCESS = 1;
        /// `GTF_accept_transfer`: the peer may give a page.
        const ACCEPT_TRANSFER = 2;
        /// `GTF_readonly`.
        const READONLY = 1 << 2;
        /// `GTF_reading`: set by Xen while mapped.
        const READING = 1 << 3;
        /// `GTF_writing`: set by Xen while mapped writable.
        const WRITING = 1 << 4;
        const _ = !0;
    }

    /// `GNTMAP_*`: how to map a grant.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MapFlags: u32 {
        /// `GNTMAP_device_map`: for I/O devices.
        const DEVICE_MAP = 1;
        /// `GNTMAP_host_map`: for the CPU.
        const HOST_MAP = 1 << 1;
        /// `GNTMAP_readonly`.
        const READONLY = 1 << 2;
        /// `GNTMAP_application_map`: for user space too.
        const APPLICATION_MAP = 1 << 3;
        /// `GNTMAP_contains_pte`: `host_addr` is the machine address of the entry to update.
        const CONTAINS_PTE = 1 << 4;
        const _ = !0;
    }
}

/// `GNTST_*`: the result of one grant operation. 0 is success.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct GrantStatus(pub i16);

impl GrantStatus {
    /// Done.
    pub const OKAY: GrantStatus = GrantStatus(0);
    /// General undefined error.
    pub const GENERAL_ERROR: GrantStatus = GrantStatus(-1);
    /// No such domain.
    pub const BAD_DOMAIN: GrantStatus = GrantStatus(-2);
    /// No such grant.
    pub const BAD_GNTREF: GrantStatus = GrantStatus(-3);
    /// No such mapping.
    pub const BAD_HANDLE: GrantStatus = GrantStatus(-4);
    /// The granter does not permit it.
    pub const PERMISSION_DENIED: GrantStatus = GrantStatus(-8);
    /// A page that may not be granted.
    pub const BAD_PAGE: GrantStatus = GrantStatus(-9);
    /// The copy crosses a page.
    pub const BAD_COPY_ARG: GrantStatus = GrantStatus(-10);
    /// The page is paged out: try again.
    pub const EAGAIN: GrantStatus = GrantStatus(-12);
    /// Out of maptrack entries.
    pub const NO_SPACE: GrantStatus = GrantStatus(-13);

    /// Whether the operation was done.
    pub const fn is_okay(self) -> bool {
        self.0 == 0
    }

    /// The C name after `GNTST_`.
    pub const fn name(self) -> &'static str {
        match self.0 {
            0 => "okay",
            -1 => "general_error",
            -2 => "bad_domain",
            -3 => "bad_gntref",
            -4 => "bad_handle",
            -5 => "bad_virt_addr",
            -6 => "bad_dev_addr",
            -7 => "no_device_space",
            -8 => "permission_denied",
            -9 => "bad_page",
            -10 => "bad_copy_arg",
            -11 => "address_too_big",
            -12 => "eagain",
            -13 => "no_space",
            _ => "unknown",
        }
    }
}

impl fmt::Display for GrantStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GNTST_{} ({})", self.name(), self.0)
    }
}

impl fmt::Debug for GrantStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// SAFETY: a transparent wrapper of an integer.
unsafe impl crate::Plain for GrantStatus {}

abi_structs! {
    table LAYOUTS;

    /// One entry of a version 1 grant table. Write `frame` and `domid` first, `flags` last.
    EntryV1 = "struct grant_entry_v1", 8 {
        /// [`GrantFlags`]; shared with Xen, so change it by compare-and-swap only.
        flags @ 0: u16 = "flags",
        /// Who may use it.
        domid @ 2: DomId = "domid",
        /// Machine frame (PV), 32 bits: below 16 TiB.
        frame @ 4: u32 = "frame",
    }

    /// Maps one grant.
    MapGrantRef = "struct gnttab_map_grant_ref", 32 {
        /// In: address, or see [`MapFlags::CONTAINS_PTE`].
        host_addr @ 0: u64 = "host_addr",
        /// In: [`MapFlags`].
        flags @ 8: u32 = "flags",
        /// In.
        gref @ 12: GrantRef = "ref",
        /// In: the granter.
        dom @ 16: DomId = "dom",
        /// Out.
        status @ 18: GrantStatus = "status",
        /// Out: names the mapping for the unmap.
        handle @ 20: u32 = "handle",
        /// Out: machine address.
        dev_bus_addr @ 24: u64 = "dev_bus_addr",
    }

    /// Unmaps one grant.
    UnmapGrantRef = "struct gnttab_unmap_grant_ref", 24 {
        /// In.
        host_addr @ 0: u64 = "host_addr",
        /// In: or 0.
        dev_bus_addr @ 8: u64 = "dev_bus_addr",
        /// In.
        handle @ 16: u32 = "handle",
        /// Out.
        status @ 20: GrantStatus = "status",
        pad0 @ 22: u16,
    }

    /// Grows the grant table to `nr_frames` and lists its frames.
    SetupTable = "struct gnttab_setup_table", 24 {
        /// In.
        dom @ 0: DomId = "dom",
        pad0 @ 2: u16,
        /// In.
        nr_frames @ 4: u32 = "nr_frames",
        /// Out.
        status @ 8: GrantStatus = "status",
        pad1 @ 10: [u16; 3],
        /// In: address of an array of frame numbers.
        frame_list @ 16: u64 = "frame_list",
    }

    /// One end of a copy.
    CopyPtr = "struct gnttab_copy_ptr", 16 {
        /// A grant reference (low half) or a frame number of `domid`.
        ref_or_frame @ 0: u64 = "u",
        /// Whose.
        domid @ 8: DomId = "domid",
        /// Offset in the page.
        offset @ 10: u16 = "offset",
        pad0 @ 12: u32,
    }

    /// Copies up to a page.
    Copy = "struct gnttab_copy", 40 {
        /// In.
        source @ 0: CopyPtr = "source",
        /// In.
        dest @ 16: CopyPtr = "dest",
        /// In: bytes.
        len @ 32: u16 = "len",
        /// In: `GNTCOPY_*`.
        flags @ 34: u16 = "flags",
        /// Out.
        status @ 36: GrantStatus = "status",
        pad0 @ 38: u16,
    }

    /// Asks how big the table is.
    QuerySize = "struct gnttab_query_size", 16 {
        /// In.
        dom @ 0: DomId = "dom",
        pad0 @ 2: u16,
        /// Out.
        nr_frames @ 4: u32 = "nr_frames",
        /// Out.
        max_nr_frames @ 8: u32 = "max_nr_frames",
        /// Out.
        status @ 12: GrantStatus = "status",
        pad1 @ 14: u16,
    }
}
