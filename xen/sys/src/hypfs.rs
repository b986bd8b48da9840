//! hypfs.h: the hypervisor's settings as a tree of files.

use crate::{abi_consts, abi_structs};

abi_consts! {
    table CONSTANTS;
    HYPFS_TYPE_DIR: u8 = 0, "XEN_HYPFS_TYPE_DIR";
    HYPFS_TYPE_BLOB: u8 = 1, "XEN_HYPFS_TYPE_BLOB";
    HYPFS_TYPE_STRING: u8 = 2, "XEN_HYPFS_TYPE_STRING";
    HYPFS_TYPE_UINT: u8 = 3, "XEN_HYPFS_TYPE_UINT";
    HYPFS_TYPE_INT: u8 = 4, "XEN_HYPFS_TYPE_INT";
    HYPFS_TYPE_BOOL: u8 = 5, "XEN_HYPFS_TYPE_BOOL";
    /// Arguments: path, its length with NUL, buffer, its length.
    HYPFS_OP_READ: u64 = 1, "XEN_HYPFS_OP_read";
    /// Arguments: path, its length with NUL, content, its length.
    HYPFS_OP_WRITE_CONTENTS: u64 = 2, "XEN_HYPFS_OP_write_contents";
    HYPFS_MAX_PATHLEN: usize = 1024, "XEN_HYPFS_MAX_PATHLEN";
}

abi_structs! {
    table LAYOUTS;

    /// What is known of an entry; its content follows.
    HypfsEntry = "struct xen_hypfs_direntry", 12 {
        /// `XEN_HYPFS_TYPE_*`.
        kind @ 0: u8 = "type",
        /// `XEN_HYPFS_ENC_*`.
        encoding @ 1: u8 = "encoding",
        pad @ 2: u16 = "pad",
        /// Bytes.
        content_len @ 4: u32 = "content_len",
        /// Most bytes that may be written, 0 if none.
        max_write_len @ 8: u32 = "max_write_len",
    }
}
