//! io/netif.h: network requests and responses.

use bitflags::bitflags;

use crate::types::GrantRef;
use crate::{abi_consts, abi_structs};

abi_consts! {
    table CONSTANTS;
    /// Slots per packet that every back end takes.
    NR_SLOTS_MIN: usize = 18, "XEN_NETIF_NR_SLOTS_MIN";
    /// Largest packet in bytes.
    MAX_TX_SIZE: usize = 0xffff, "XEN_NETIF_MAX_TX_SIZE";
    EXTRA_TYPE_NONE: u8 = 0, "XEN_NETIF_EXTRA_TYPE_NONE";
    EXTRA_TYPE_GSO: u8 = 1, "XEN_NETIF_EXTRA_TYPE_GSO";
    EXTRA_TYPE_MCAST_ADD: u8 = 2, "XEN_NETIF_EXTRA_TYPE_MCAST_ADD";
    EXTRA_TYPE_MCAST_DEL: u8 = 3, "XEN_NETIF_EXTRA_TYPE_MCAST_DEL";
    EXTRA_TYPE_HASH: u8 = 4, "XEN_NETIF_EXTRA_TYPE_HASH";
    /// First number that is no type.
    EXTRA_TYPE_MAX: u8 = 5, "XEN_NETIF_EXTRA_TYPE_MAX";
    /// In [`Extra::flags`]: another one follows.
    EXTRA_FLAG_MORE: u8 = 1, "XEN_NETIF_EXTRA_FLAG_MORE";
    GSO_TYPE_NONE: u8 = 0, "XEN_NETIF_GSO_TYPE_NONE";
    GSO_TYPE_TCPV4: u8 = 1, "XEN_NETIF_GSO_TYPE_TCPV4";
    GSO_TYPE_TCPV6: u8 = 2, "XEN_NETIF_GSO_TYPE_TCPV6";
    RSP_DROPPED: i16 = -2, "NETIF_RSP_DROPPED";
    RSP_ERROR: i16 = -1, "NETIF_RSP_ERROR";
    RSP_OKAY: i16 = 0, "NETIF_RSP_OKAY";
    /// The answer to a slot that was no request but an [`Extra`].
    RSP_NULL: i16 = 1, "NETIF_RSP_NULL";
}

bitflags! {
    /// `NETTXF_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TxFlags: u16 {
        /// `NETTXF_csum_blank`: the checksum field is not filled in.
        const CSUM_BLANK = 1;
        /// `NETTXF_data_validated`: the checksum is known to be right.
        const DATA_VALIDATED = 2;
        /// `NETTXF_more_data`: the packet goes on in the next request.
        const MORE_DATA = 4;
        /// `NETTXF_extra_info`: the next slot is an [`Extra`].
        const EXTRA_INFO = 8;
        const _ = !0;
    }

    /// `NETRXF_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RxFlags: u16 {
        /// `NETRXF_data_validated`: the checksum is known to be right.
        const DATA_VALIDATED = 1;
        /// `NETRXF_csum_blank`: the checksum field is not filled in.
        const CSUM_BLANK = 2;
        /// `NETRXF_more_data`: the packet goes on in the next response.
        const MORE_DATA = 4;
        /// `NETRXF_extra_info`: the next slot is an [`Extra`].
        const EXTRA_INFO = 8;
        /// `NETRXF_gso_prefix`.
        const GSO_PREFIX = 16;
        const _ = !0;
    }
}

abi_structs! {
    table LAYOUTS;

    /// A packet (or its first part) to send.
    TxRequest = "struct netif_tx_request", 12 {
        /// The page.
        gref @ 0: GrantRef = "gref",
        /// Offset in the page.
        offset @ 4: u16 = "offset",
        /// [`TxFlags`].
        flags @ 6: u16 = "flags",
        /// Echoed in the response.
        id @ 8: u16 = "id",
        /// Bytes: of the whole packet in the first request, of the part in the others.
        size @ 10: u16 = "size",
    }

    /// What was sent.
    TxResponse = "struct netif_tx_response", 4 {
        /// The request's.
        id @ 0: u16 = "id",
        /// `NETIF_RSP_*`.
        status @ 2: i16 = "status",
    }

    /// A page for a packet to come.
    RxRequest = "struct netif_rx_request", 8 {
        /// Echoed in the response, which uses the same slot.
        id @ 0: u16 = "id",
        pad @ 2: u16 = "pad",
        /// The page.
        gref @ 4: GrantRef = "gref",
    }

    /// A packet (or part of one) received.
    RxResponse = "struct netif_rx_response", 8 {
        /// The request's.
        id @ 0: u16 = "id",
        /// Offset in the page.
        offset @ 2: u16 = "offset",
        /// [`RxFlags`].
        flags @ 4: u16 = "flags",
        /// Bytes, or negative `NETIF_RSP_*`.
        status @ 6: i16 = "status",
    }

    /// More about a packet, in the slot of a request or response.
    Extra = "struct netif_extra_info", 8 {
        /// `XEN_NETIF_EXTRA_TYPE_*`.
        kind @ 0: u8 = "type",
        /// [`EXTRA_FLAG_MORE`] or 0.
        flags @ 1: u8 = "flags",
        /// Meaning depends on `kind`; for GSO the size in bytes first, then the GSO type.
        data @ 2: [u16; 3] = "u",
    }
}
