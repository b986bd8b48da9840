//! io/protocols.h: names of the ABI that a front end's rings have, the node `protocol`.

/// `XEN_IO_PROTO_ABI_X86_64`.
pub const X86_64: &str = "x86_64-abi";
/// `XEN_IO_PROTO_ABI_X86_32`: blkif's requests are packed differently.
pub const X86_32: &str = "x86_32-abi";
