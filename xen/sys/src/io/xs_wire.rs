//! io/xs_wire.h: the store's page and message header.

use crate::{abi_consts, abi_structs};

abi_consts! {
    table CONSTANTS;
    CONTROL: u32 = 0, "XS_CONTROL";
    DIRECTORY: u32 = 1, "XS_DIRECTORY";
    READ: u32 = 2, "XS_READ";
    GET_PERMS: u32 = 3, "XS_GET_PERMS";
    WATCH: u32 = 4, "XS_WATCH";
    UNWATCH: u32 = 5, "XS_UNWATCH";
    TRANSACTION_START: u32 = 6, "XS_TRANSACTION_START";
    TRANSACTION_END: u32 = 7, "XS_TRANSACTION_END";
    INTRODUCE: u32 = 8, "XS_INTRODUCE";
    RELEASE: u32 = 9, "XS_RELEASE";
    GET_DOMAIN_PATH: u32 = 10, "XS_GET_DOMAIN_PATH";
    WRITE: u32 = 11, "XS_WRITE";
    MKDIR: u32 = 12, "XS_MKDIR";
    RM: u32 = 13, "XS_RM";
    SET_PERMS: u32 = 14, "XS_SET_PERMS";
    WATCH_EVENT: u32 = 15, "XS_WATCH_EVENT";
    ERROR: u32 = 16, "XS_ERROR";
    IS_DOMAIN_INTRODUCED: u32 = 17, "XS_IS_DOMAIN_INTRODUCED";
    RESUME: u32 = 18, "XS_RESUME";
    SET_TARGET: u32 = 19, "XS_SET_TARGET";
    RESET_WATCHES: u32 = 21, "XS_RESET_WATCHES";
    DIRECTORY_PART: u32 = 22, "XS_DIRECTORY_PART";
    /// Longest payload in bytes.
    PAYLOAD_MAX: u32 = 4096, "XENSTORE_PAYLOAD_MAX";
    /// Longest absolute path in bytes.
    ABS_PATH_MAX: u32 = 3072, "XENSTORE_ABS_PATH_MAX";
    /// Longest relative path in bytes.
    REL_PATH_MAX: u32 = 2048, "XENSTORE_REL_PATH_MAX";
    /// Bytes per direction.
    RING_SIZE: u32 = 1024, "XENSTORE_RING_SIZE";
    /// In [`StorePage::server_features`]: the daemon handles a reconnect.
    SERVER_FEATURE_RECONNECTION: u32 = 1, "XENSTORE_SERVER_FEATURE_RECONNECTION";
    /// In [`StorePage::server_features`]: the daemon fills in `error`.
    SERVER_FEATURE_ERROR: u32 = 2, "XENSTORE_SERVER_FEATURE_ERROR";
    /// In [`StorePage::connection`]: in use.
    CONNECTED: u32 = 0, "XENSTORE_CONNECTED";
    /// In [`StorePage::connection`]: being set up anew.
    RECONNECT: u32 = 1, "XENSTORE_RECONNECT";
    ERROR_NONE: u32 = 0, "XENSTORE_ERROR_NONE";
    ERROR_COMM: u32 = 1, "XENSTORE_ERROR_COMM";
    ERROR_RINGIDX: u32 = 2, "XENSTORE_ERROR_RINGIDX";
    ERROR_PROTO: u32 = 3, "XENSTORE_ERROR_PROTO";
}

abi_structs! {
    table LAYOUTS;

    /// What every message begins with.
    MessageHeader = "struct xsd_sockmsg", 16 {
        /// `XS_*`.
        kind @ 0: u32 = "type",
        /// Echoed in the answer.
        req_id @ 4: u32 = "req_id",
        /// Transaction, 0 = none.
        tx_id @ 8: u32 = "tx_id",
        /// Bytes that follow.
        len @ 12: u32 = "len",
    }

    /// A guest's store page.
    StorePage = "struct xenstore_domain_interface", 2076 {
        /// Requests of the guest.
        req @ 0: [u8; 1024] = "req",
        /// Answers and watch events.
        rsp @ 1024: [u8; 1024] = "rsp",
        /// Daemon's position in `req`.
        req_cons @ 2048: u32 = "req_cons",
        /// Guest's position in `req`.
        req_prod @ 2052: u32 = "req_prod",
        /// Guest's position in `rsp`.
        rsp_cons @ 2056: u32 = "rsp_cons",
        /// Daemon's position in `rsp`.
        rsp_prod @ 2060: u32 = "rsp_prod",
        /// What the daemon can do.
        server_features @ 2064: u32 = "server_features",
        /// [`CONNECTED`] or [`RECONNECT`].
        connection @ 2068: u32 = "connection",
        /// `XENSTORE_ERROR_*`.
        error @ 2072: u32 = "error",
    }
}
