//! version.h: what hypervisor this is.

use crate::{abi_consts, abi_structs};

/// Length of `xen_extraversion_t`.
pub const EXTRAVERSION_LEN: usize = 16;
/// Length of `xen_capabilities_info_t`.
pub const CAPABILITIES_LEN: usize = 1024;
/// Length of `xen_changeset_info_t`.
pub const CHANGESET_LEN: usize = 64;
/// Length of `xen_commandline_t`.
pub const COMMANDLINE_LEN: usize = 1024;

abi_consts! {
    table CONSTANTS;
    /// Returns major << 16 | minor.
    XENVER_VERSION: u32 = 0, "XENVER_version";
    XENVER_EXTRAVERSION: u32 = 1, "XENVER_extraversion";
    XENVER_COMPILE_INFO: u32 = 2, "XENVER_compile_info";
    XENVER_CAPABILITIES: u32 = 3, "XENVER_capabilities";
    XENVER_CHANGESET: u32 = 4, "XENVER_changeset";
    XENVER_PLATFORM_PARAMETERS: u32 = 5, "XENVER_platform_parameters";
    XENVER_GET_FEATURES: u32 = 6, "XENVER_get_features";
    XENVER_PAGESIZE: u32 = 7, "XENVER_pagesize";
    XENVER_GUEST_HANDLE: u32 = 8, "XENVER_guest_handle";
    XENVER_COMMANDLINE: u32 = 9, "XENVER_commandline";
    XENVER_BUILD_ID: u32 = 10, "XENVER_build_id";
}

abi_structs! {
    table LAYOUTS;

    /// Who compiled Xen with what; NUL-terminated strings.
    CompileInfo = "struct xen_compile_info", 144 {
        /// Compiler's version line.
        compiler @ 0: [u8; 64] = "compiler",
        /// User.
        compile_by @ 64: [u8; 16] = "compile_by",
        /// Host's domain.
        compile_domain @ 80: [u8; 32] = "compile_domain",
        /// Date.
        compile_date @ 112: [u8; 32] = "compile_date",
    }

    /// Where Xen's part of the address space begins.
    PlatformParameters = "struct xen_platform_parameters", 8 {
        /// Address.
        virt_start @ 0: u64 = "virt_start",
    }

    /// 32 bits of [`features`](crate::features).
    FeatureInfo = "struct xen_feature_info", 8 {
        /// In: which 32.
        submap_idx @ 0: u32 = "submap_idx",
        /// Out.
        submap @ 4: u32 = "submap",
    }
}
