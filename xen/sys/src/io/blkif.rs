//! io/blkif.h: block requests and responses.

use crate::types::GrantRef;
use crate::{abi_consts, abi_structs};

/// Bytes per sector in the protocol, whatever the disk's own.
pub const SECTOR_SIZE: usize = 512;
/// Sectors in a page.
pub const SECTORS_PER_PAGE: u8 = 8;

abi_consts! {
    table CONSTANTS;
    OP_READ: u8 = 0, "BLKIF_OP_READ";
    OP_WRITE: u8 = 1, "BLKIF_OP_WRITE";
    OP_WRITE_BARRIER: u8 = 2, "BLKIF_OP_WRITE_BARRIER";
    OP_FLUSH_DISKCACHE: u8 = 3, "BLKIF_OP_FLUSH_DISKCACHE";
    OP_DISCARD: u8 = 5, "BLKIF_OP_DISCARD";
    OP_INDIRECT: u8 = 6, "BLKIF_OP_INDIRECT";
    MAX_SEGMENTS_PER_REQUEST: usize = 11, "BLKIF_MAX_SEGMENTS_PER_REQUEST";
    MAX_INDIRECT_PAGES_PER_REQUEST: usize = 8, "BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST";
    DISCARD_SECURE: u8 = 1, "BLKIF_DISCARD_SECURE";
    RSP_EOPNOTSUPP: i16 = -2, "BLKIF_RSP_EOPNOTSUPP";
    RSP_ERROR: i16 = -1, "BLKIF_RSP_ERROR";
    RSP_OKAY: i16 = 0, "BLKIF_RSP_OKAY";
    VDISK_CDROM: u32 = 1, "VDISK_CDROM";
    VDISK_REMOVABLE: u32 = 2, "VDISK_REMOVABLE";
    VDISK_READONLY: u32 = 4, "VDISK_READONLY";
}

abi_structs! {
    table LAYOUTS;

    /// Part of one page.
    Segment = "struct blkif_request_segment", 8 {
        /// The page.
        gref @ 0: GrantRef = "gref",
        /// First sector in the page, 0 to 7.
        first_sect @ 4: u8 = "first_sect",
        /// Last sector in the page, inclusive.
        last_sect @ 5: u8 = "last_sect",
        pad0 @ 6: u16,
    }

    /// A read, write, flush or barrier.
    Request = "struct blkif_request", 112 {
        /// `BLKIF_OP_*`.
        operation @ 0: u8 = "operation",
        /// Number of segments, 0 to 11.
        nr_segments @ 1: u8 = "nr_segments",
        /// Virtual device number.
        handle @ 2: u16 = "handle",
        pad0 @ 4: u32,
        /// Echoed in the response.
        id @ 8: u64 = "id",
        /// First sector, of 512 bytes.
        sector_number @ 16: u64 = "sector_number",
        /// Segments.
        seg @ 24: [Segment; 11] = "seg",
    }

    /// A discard: lies over a [`Request`].
    RequestDiscard = "struct blkif_request_discard", 32 {
        /// [`OP_DISCARD`].
        operation @ 0: u8 = "operation",
        /// [`DISCARD_SECURE`] or 0.
        flag @ 1: u8 = "flag",
        /// Virtual device number.
        handle @ 2: u16 = "handle",
        pad0 @ 4: u32,
        /// Echoed in the response.
        id @ 8: u64 = "id",
        /// First sector.
        sector_number @ 16: u64 = "sector_number",
        /// How many.
        nr_sectors @ 24: u64 = "nr_sectors",
    }

    /// A read or write whose segments are in pages of their own: lies over a [`Request`].
    RequestIndirect = "struct blkif_request_indirect", 64 {
        /// [`OP_INDIRECT`].
        operation @ 0: u8 = "operation",
        /// What to do.
        indirect_op @ 1: u8 = "indirect_op",
        /// Number of segments.
        nr_segments @ 2: u16 = "nr_segments",
        pad0 @ 4: u32,
        /// Echoed in the response.
        id @ 8: u64 = "id",
        /// First sector.
        sector_number @ 16: u64 = "sector_number",
        /// Virtual device number.
        handle @ 24: u16 = "handle",
        pad1 @ 26: u16,
        /// Pages of segments, 512 each.
        indirect_grefs @ 28: [GrantRef; 8] = "indirect_grefs",
        pad2 @ 60: u32,
    }

    /// The answer to any of them.
    Response = "struct blkif_response", 16 {
        /// The request's.
        id @ 0: u64 = "id",
        /// The request's.
        operation @ 8: u8 = "operation",
        pad0 @ 9: u8,
        /// `BLKIF_RSP_*`.
        status @ 10: i16 = "status",
        pad1 @ 12: u32,
    }
}
