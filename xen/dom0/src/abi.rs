//! The ioctls of Linux's Xen device nodes (sys/privcmd.h, gntdev.h, evtchn.h, xenbus_dev.h of Xen's
//! headers, which mirror Linux's include/uapi/xen).

use xen_sys::grant_table::GrantStatus;
use xen_sys::{DomId, GrantRef, Port, abi_consts, abi_structs};

const fn ioc(group: u8, number: u8, size: usize) -> u64 {
    (size as u64) << 16 | (group as u64) << 8 | number as u64
}

abi_consts! {
    table CONSTANTS;
    PRIVCMD_HYPERCALL: u64 = ioc(b'P', 0, size_of::<PrivcmdHypercall>()), "IOCTL_PRIVCMD_HYPERCALL";
    PRIVCMD_MMAPBATCH_V2: u64 = ioc(b'P', 4, size_of::<PrivcmdMmapBatchV2>()), "IOCTL_PRIVCMD_MMAPBATCH_V2";
    PRIVCMD_MMAP_RESOURCE: u64 = ioc(b'P', 7, size_of::<PrivcmdMmapResource>()), "IOCTL_PRIVCMD_MMAP_RESOURCE";
    GNTDEV_MAP: u64 = ioc(b'G', 0, size_of::<GntdevMapOne>()), "IOCTL_GNTDEV_MAP_GRANT_REF";
    GNTDEV_UNMAP: u64 = ioc(b'G', 1, size_of::<GntdevUnmap>()), "IOCTL_GNTDEV_UNMAP_GRANT_REF";
    GNTDEV_COPY: u64 = ioc(b'G', 8, size_of::<GntdevCopy>()), "IOCTL_GNTDEV_GRANT_COPY";
    EVTCHN_BIND_VIRQ: u64 = ioc(b'E', 0, 4), "IOCTL_EVTCHN_BIND_VIRQ";
    EVTCHN_BIND_INTERDOMAIN: u64 = ioc(b'E', 1, size_of::<EvtchnBindInterdomain>()), "IOCTL_EVTCHN_BIND_INTERDOMAIN";
    EVTCHN_BIND_UNBOUND_PORT: u64 = ioc(b'E', 2, 4), "IOCTL_EVTCHN_BIND_UNBOUND_PORT";
    EVTCHN_UNBIND: u64 = ioc(b'E', 3, 4), "IOCTL_EVTCHN_UNBIND";
    EVTCHN_NOTIFY: u64 = ioc(b'E', 4, 4), "IOCTL_EVTCHN_NOTIFY";
    EVTCHN_RESET: u64 = ioc(b'E', 5, 0), "IOCTL_EVTCHN_RESET";
    EVTCHN_RESTRICT_DOMID: u64 = ioc(b'E', 6, 2), "IOCTL_EVTCHN_RESTRICT_DOMID";
    XENBUS_BACKEND_EVTCHN: u64 = ioc(b'B', 0, 0), "IOCTL_XENBUS_BACKEND_EVTCHN";
}

abi_structs! {
    table LAYOUTS;

    /// A hypercall.
    PrivcmdHypercall = "struct privcmd_hypercall", 48 {
        /// Number.
        op @ 0: u64 = "op",
        /// Arguments.
        arg @ 8: [u64; 5] = "arg",
    }

    /// Maps a list of foreign frames.
    PrivcmdMmapBatchV2 = "struct privcmd_mmapbatch_v2", 32 {
        /// How many.
        num @ 0: u32 = "num",
        /// Whose.
        dom @ 4: DomId = "dom",
        pad0 @ 6: u16,
        /// Address of the reserved pages.
        addr @ 8: u64 = "addr",
        /// Address of the frame numbers.
        arr @ 16: u64 = "arr",
        /// Address of an int per frame: 0 or a negative errno.
        err @ 24: u64 = "err",
    }

    /// Maps a resource's frames.
    PrivcmdMmapResource = "struct privcmd_mmap_resource", 32 {
        /// Whose.
        dom @ 0: DomId = "dom",
        pad0 @ 2: u16,
        /// `XENMEM_resource_*`.
        kind @ 4: u32 = "type",
        /// Which of that type.
        id @ 8: u32 = "id",
        /// First frame.
        idx @ 12: u32 = "idx",
        /// How many frames.
        num @ 16: u64 = "num",
        /// Address of the reserved pages.
        addr @ 24: u64 = "addr",
    }

    /// A grant of a domain.
    GntdevRef = "struct ioctl_gntdev_grant_ref", 8 {
        /// Granter.
        domid @ 0: u32 = "domid",
        /// Which.
        gref @ 4: GrantRef = "ref",
    }

    /// Reserves an index for mapping; `count` references follow, of which one is counted in the size.
    GntdevMapOne = "struct ioctl_gntdev_map_grant_ref", 24 {
        /// In.
        count @ 0: u32 = "count",
        pad @ 4: u32 = "pad",
        /// Out: the offset for mmap.
        index @ 8: u64 = "index",
        /// In: the first reference.
        first @ 16: GntdevRef = "refs[0]",
    }

    /// Gives up what [`GntdevMapOne`] reserved.
    GntdevUnmap = "struct ioctl_gntdev_unmap_grant_ref", 16 {
        /// From the map.
        index @ 0: u64 = "index",
        /// The same as in the map.
        count @ 8: u32 = "count",
        pad @ 12: u32 = "pad",
    }

    /// One piece of a copy.
    GntdevCopySegment = "struct ioctl_gntdev_grant_copy_segment", 24 {
        /// Address, or reference, offset and domain: see [`foreign`].
        source @ 0: u64 = "source",
        /// As source.
        dest @ 8: u64 = "dest",
        /// Bytes.
        len @ 16: u16 = "len",
        /// `GNTCOPY_*`.
        flags @ 18: u16 = "flags",
        /// Out.
        status @ 20: GrantStatus = "status",
        pad0 @ 22: u16,
    }

    /// A list of pieces to copy.
    GntdevCopy = "struct ioctl_gntdev_grant_copy", 16 {
        /// How many.
        count @ 0: u32 = "count",
        pad0 @ 4: u32,
        /// Address of [`GntdevCopySegment`]s.
        segments @ 8: u64 = "segments",
    }

    /// Binds to a peer's port.
    EvtchnBindInterdomain = "struct ioctl_evtchn_bind_interdomain", 8 {
        /// The peer.
        remote_domain @ 0: u32 = "remote_domain",
        /// Its port.
        remote_port @ 4: Port = "remote_port",
    }
}

/// The grant side of a [`GntdevCopySegment`]: `{ u32 ref; u16 offset; u16 domid; }`.
pub const fn foreign(gref: GrantRef, offset: u16, dom: DomId) -> u64 {
    gref.0 as u64 | (offset as u64) << 32 | (dom.0 as u64) << 48
}
