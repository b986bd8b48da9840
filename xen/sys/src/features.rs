//! features.h: bits of XENVER_get_features and of the FEATURES notes.

use crate::abi_consts;

abi_consts! {
    table CONSTANTS;
    WRITABLE_PAGE_TABLES: u32 = 0, "XENFEAT_writable_page_tables";
    WRITABLE_DESCRIPTOR_TABLES: u32 = 1, "XENFEAT_writable_descriptor_tables";
    AUTO_TRANSLATED_PHYSMAP: u32 = 2, "XENFEAT_auto_translated_physmap";
    SUPERVISOR_MODE_KERNEL: u32 = 3, "XENFEAT_supervisor_mode_kernel";
    PAE_PGDIR_ABOVE_4GB: u32 = 4, "XENFEAT_pae_pgdir_above_4gb";
    MMU_PT_UPDATE_PRESERVE_AD: u32 = 5, "XENFEAT_mmu_pt_update_preserve_ad";
    GNTTAB_MAP_AVAIL_BITS: u32 = 7, "XENFEAT_gnttab_map_avail_bits";
    DOM0: u32 = 11, "XENFEAT_dom0";
    LINUX_RSDP_UNRESTRICTED: u32 = 15, "XENFEAT_linux_rsdp_unrestricted";
}

/// The names that a FEATURES note (a string) uses for the bits that a PV guest may ask for.
pub const NAMES: &[(&str, u32)] = &[
    ("writable_page_tables", WRITABLE_PAGE_TABLES),
    ("writable_descriptor_tables", WRITABLE_DESCRIPTOR_TABLES),
    ("auto_translated_physmap", AUTO_TRANSLATED_PHYSMAP),
    ("supervisor_mode_kernel", SUPERVISOR_MODE_KERNEL),
    ("pae_pgdir_above_4gb", PAE_PGDIR_ABOVE_4GB),
    ("dom0", DOM0),
];
