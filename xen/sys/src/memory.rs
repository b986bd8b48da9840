//! memory.h: a domain's memory.

use crate::types::DomId;
use crate::{abi_consts, abi_structs};

abi_consts! {
    table CONSTANTS;
    XENMEM_INCREASE_RESERVATION: u32 = 0, "XENMEM_increase_reservation";
    XENMEM_DECREASE_RESERVATION: u32 = 1, "XENMEM_decrease_reservation";
    XENMEM_MAXIMUM_RAM_PAGE: u32 = 2, "XENMEM_maximum_ram_page";
    XENMEM_CURRENT_RESERVATION: u32 = 3, "XENMEM_current_reservation";
    XENMEM_MAXIMUM_RESERVATION: u32 = 4, "XENMEM_maximum_reservation";
    XENMEM_MACHPHYS_MFN_LIST: u32 = 5, "XENMEM_machphys_mfn_list";
    XENMEM_POPULATE_PHYSMAP: u32 = 6, "XENMEM_populate_physmap";
    XENMEM_ADD_TO_PHYSMAP: u32 = 7, "XENMEM_add_to_physmap";
    XENMEM_MEMORY_MAP: u32 = 9, "XENMEM_memory_map";
    XENMEM_MACHINE_MEMORY_MAP: u32 = 10, "XENMEM_machine_memory_map";
    XENMEM_EXCHANGE: u32 = 11, "XENMEM_exchange";
    XENMEM_MACHPHYS_MAPPING: u32 = 12, "XENMEM_machphys_mapping";
    XENMEM_SET_MEMORY_MAP: u32 = 13, "XENMEM_set_memory_map";
    XENMEM_MAXIMUM_GPFN: u32 = 14, "XENMEM_maximum_gpfn";
    XENMEM_CLAIM_PAGES: u32 = 24, "XENMEM_claim_pages";
    XENMEM_ACQUIRE_RESOURCE: u32 = 28, "XENMEM_acquire_resource";
    /// In [`AcquireResource::kind`]: frames of the grant table.
    RESOURCE_GRANT_TABLE: u16 = 1, "XENMEM_resource_grant_table";
    /// In [`AcquireResource::id`]: the entries (not the status frames of version 2).
    RESOURCE_GRANT_TABLE_ID_SHARED: u32 = 0, "XENMEM_resource_grant_table_id_shared";
}

abi_structs! {
    table LAYOUTS;

    /// Extents of memory to give to or take from a domain.
    MemoryReservation = "struct xen_memory_reservation", 32 {
        /// Address of an array of frame numbers, one per extent.
        extent_start @ 0: u64 = "extent_start",
        /// Its length.
        nr_extents @ 8: u64 = "nr_extents",
        /// log2 of the pages per extent.
        extent_order @ 16: u32 = "extent_order",
        /// `XENMEMF_*`; bits 0-7 bound the address width, 0 = none.
        mem_flags @ 20: u32 = "mem_flags",
        /// Whose.
        domid @ 24: DomId = "domid",
        pad0 @ 26: [u16; 3],
    }

    /// Exchanges extents.
    MemoryExchange = "struct xen_memory_exchange", 72 {
        /// What is given up.
        input @ 0: MemoryReservation = "in",
        /// What is received.
        output @ 32: MemoryReservation = "out",
        /// Out: how many were exchanged.
        nr_exchanged @ 64: u64 = "nr_exchanged",
    }

    /// Where the machine-to-physical table is mapped for the caller.
    MachphysMapping = "struct xen_machphys_mapping", 24 {
        /// First address.
        v_start @ 0: u64 = "v_start",
        /// First address after it.
        v_end @ 8: u64 = "v_end",
        /// Highest valid index.
        max_mfn @ 16: u64 = "max_mfn",
    }

    /// The frames that hold the machine-to-physical table.
    MachphysMfnList = "struct xen_machphys_mfn_list", 24 {
        /// In: length of the array.
        max_extents @ 0: u32 = "max_extents",
        pad0 @ 4: u32,
        /// In: address of an array of frame numbers, one per 2 MiB.
        extent_start @ 8: u64 = "extent_start",
        /// Out.
        nr_extents @ 16: u32 = "nr_extents",
        pad1 @ 20: u32,
    }

    /// A guest's memory map in E820 form.
    MemoryMap = "struct xen_memory_map", 16 {
        /// In and out: entries of 20 bytes.
        nr_entries @ 0: u32 = "nr_entries",
        pad0 @ 4: u32,
        /// Address.
        buffer @ 8: u64 = "buffer",
    }

    /// The map of another domain.
    ForeignMemoryMap = "struct xen_foreign_memory_map", 24 {
        /// Whose.
        domid @ 0: DomId = "domid",
        pad0 @ 2: [u16; 3],
        /// Its entries.
        map @ 8: MemoryMap = "map",
    }

    /// Maps frames that are not a domain's memory.
    AcquireResource = "struct xen_mem_acquire_resource", 32 {
        /// In.
        domid @ 0: DomId = "domid",
        /// In: `XENMEM_resource_*`.
        kind @ 2: u16 = "type",
        /// In.
        id @ 4: u32 = "id",
        /// In and out.
        nr_frames @ 8: u32 = "nr_frames",
        pad @ 12: u32 = "pad",
        /// In: index of the first frame.
        frame @ 16: u64 = "frame",
        /// In: address of an array of frame numbers.
        frame_list @ 24: u64 = "frame_list",
    }
}
