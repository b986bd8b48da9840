//! xen.h: hypercall numbers, start_info, shared_info, page-table updates, virtual interrupts.

use bitflags::bitflags;

use crate::arch_x86::{ArchSharedInfo, ArchVcpuInfo};
use crate::types::{DomId, Mfn, Port};
use crate::{abi_consts, abi_structs};

/// Numbers of the hypercalls (`__HYPERVISOR_*`): the register rax, or the offset in the hypercall page / 32.
pub mod hypercall {
    use crate::abi_consts;

    abi_consts! {
        table CONSTANTS;
        SET_TRAP_TABLE: u64 = 0, "__HYPERVISOR_set_trap_table";
        MMU_UPDATE: u64 = 1, "__HYPERVISOR_mmu_update";
        SET_GDT: u64 = 2, "__HYPERVISOR_set_gdt";
        STACK_SWITCH: u64 = 3, "__HYPERVISOR_stack_switch";
        SET_CALLBACKS: u64 = 4, "__HYPERVISOR_set_callbacks";
        FPU_TASKSWITCH: u64 = 5, "__HYPERVISOR_fpu_taskswitch";
        PLATFORM_OP: u64 = 7, "__HYPERVISOR_platform_op";
        SET_DEBUGREG: u64 = 8, "__HYPERVISOR_set_debugreg";
        GET_DEBUGREG: u64 = 9, "__HYPERVISOR_get_debugreg";
        UPDATE_DESCRIPTOR: u64 = 10, "__HYPERVISOR_update_descriptor";
        MEMORY_OP: u64 = 12, "__HYPERVISOR_memory_op";
        MULTICALL: u64 = 13, "__HYPERVISOR_multicall";
        UPDATE_VA_MAPPING: u64 = 14, "__HYPERVISOR_update_va_mapping";
        SET_TIMER_OP: u64 = 15, "__HYPERVISOR_set_timer_op";
        XEN_VERSION: u64 = 17, "__HYPERVISOR_xen_version";
        CONSOLE_IO: u64 = 18, "__HYPERVISOR_console_io";
        GRANT_TABLE_OP: u64 = 20, "__HYPERVISOR_grant_table_op";
        VM_ASSIST: u64 = 21, "__HYPERVISOR_vm_assist";
        UPDATE_VA_MAPPING_OTHERDOMAIN: u64 = 22, "__HYPERVISOR_update_va_mapping_otherdomain";
        IRET: u64 = 23, "__HYPERVISOR_iret";
        VCPU_OP: u64 = 24, "__HYPERVISOR_vcpu_op";
        SET_SEGMENT_BASE: u64 = 25, "__HYPERVISOR_set_segment_base";
        MMUEXT_OP: u64 = 26, "__HYPERVISOR_mmuext_op";
        XSM_OP: u64 = 27, "__HYPERVISOR_xsm_op";
        SCHED_OP: u64 = 29, "__HYPERVISOR_sched_op";
        CALLBACK_OP: u64 = 30, "__HYPERVISOR_callback_op";
        EVENT_CHANNEL_OP: u64 = 32, "__HYPERVISOR_event_channel_op";
        PHYSDEV_OP: u64 = 33, "__HYPERVISOR_physdev_op";
        SYSCTL: u64 = 35, "__HYPERVISOR_sysctl";
        DOMCTL: u64 = 36, "__HYPERVISOR_domctl";
        HYPFS_OP: u64 = 42, "__HYPERVISOR_hypfs_op";
    }
}

/// The highest number of vCPUs that have their `vcpu_info` inside `shared_info` (`XEN_LEGACY_MAX_VCPUS`).
pub const LEGACY_MAX_VCPUS: usize = 32;
/// Space for the command line in [`StartInfo`], terminating NUL included (`MAX_GUEST_CMDLINE`).
pub const MAX_GUEST_CMDLINE: usize = 1024;
/// What [`StartInfo::magic`] begins with on x86_64; "xen-MAJOR.MINOR-x86_64" as libxc writes it.
pub const START_INFO_MAGIC_PREFIX: &[u8] = b"xen-";

abi_consts! {
    table CONSTANTS;
    /// Ordinary page-table update, in the two low bits of [`MmuUpdate::ptr`].
    MMU_NORMAL_PT_UPDATE: u64 = 0, "MMU_NORMAL_PT_UPDATE";
    /// Update of the machine-to-physical table: `ptr` is the machine address, `val` the pfn.
    MMU_MACHPHYS_UPDATE: u64 = 1, "MMU_MACHPHYS_UPDATE";
    /// As the ordinary update, but the accessed and dirty bits are kept.
    MMU_PT_UPDATE_PRESERVE_AD: u64 = 2, "MMU_PT_UPDATE_PRESERVE_AD";
    MMUEXT_PIN_L1_TABLE: u32 = 0, "MMUEXT_PIN_L1_TABLE";
    MMUEXT_PIN_L2_TABLE: u32 = 1, "MMUEXT_PIN_L2_TABLE";
    MMUEXT_PIN_L3_TABLE: u32 = 2, "MMUEXT_PIN_L3_TABLE";
    MMUEXT_PIN_L4_TABLE: u32 = 3, "MMUEXT_PIN_L4_TABLE";
    MMUEXT_UNPIN_TABLE: u32 = 4, "MMUEXT_UNPIN_TABLE";
    MMUEXT_NEW_BASEPTR: u32 = 5, "MMUEXT_NEW_BASEPTR";
    MMUEXT_TLB_FLUSH_LOCAL: u32 = 6, "MMUEXT_TLB_FLUSH_LOCAL";
    MMUEXT_INVLPG_LOCAL: u32 = 7, "MMUEXT_INVLPG_LOCAL";
    MMUEXT_TLB_FLUSH_MULTI: u32 = 8, "MMUEXT_TLB_FLUSH_MULTI";
    MMUEXT_INVLPG_MULTI: u32 = 9, "MMUEXT_INVLPG_MULTI";
    MMUEXT_TLB_FLUSH_ALL: u32 = 10, "MMUEXT_TLB_FLUSH_ALL";
    MMUEXT_INVLPG_ALL: u32 = 11, "MMUEXT_INVLPG_ALL";
    MMUEXT_FLUSH_CACHE: u32 = 12, "MMUEXT_FLUSH_CACHE";
    MMUEXT_SET_LDT: u32 = 13, "MMUEXT_SET_LDT";
    MMUEXT_NEW_USER_BASEPTR: u32 = 15, "MMUEXT_NEW_USER_BASEPTR";
    MMUEXT_CLEAR_PAGE: u32 = 16, "MMUEXT_CLEAR_PAGE";
    MMUEXT_COPY_PAGE: u32 = 17, "MMUEXT_COPY_PAGE";
    CONSOLEIO_WRITE: u32 = 0, "CONSOLEIO_write";
    CONSOLEIO_READ: u32 = 1, "CONSOLEIO_read";
    VMASST_CMD_ENABLE: u32 = 0, "VMASST_CMD_enable";
    VMASST_CMD_DISABLE: u32 = 1, "VMASST_CMD_disable";
    VMASST_TYPE_WRITABLE_PAGETABLES: u32 = 2, "VMASST_TYPE_writable_pagetables";
    VMASST_TYPE_ARCHITECTURAL_IOPL: u32 = 4, "VMASST_TYPE_architectural_iopl";
    VMASST_TYPE_RUNSTATE_UPDATE_FLAG: u32 = 5, "VMASST_TYPE_runstate_update_flag";
    VMASST_TYPE_M2P_STRICT: u32 = 32, "VMASST_TYPE_m2p_strict";
    /// `evtchn_pending` and time are stable across CPUs, in [`VcpuTimeInfo::flags`].
    PVCLOCK_TSC_STABLE_BIT: u8 = 1, "XEN_PVCLOCK_TSC_STABLE_BIT";
    /// The guest was stopped since the last look, in [`VcpuTimeInfo::flags`].
    PVCLOCK_GUEST_STOPPED: u8 = 2, "XEN_PVCLOCK_GUEST_STOPPED";
    DOMID_FIRST_RESERVED: u16 = 0x7ff0, "DOMID_FIRST_RESERVED";
    DOMID_SELF: u16 = 0x7ff0, "DOMID_SELF";
    DOMID_IO: u16 = 0x7ff1, "DOMID_IO";
    DOMID_XEN: u16 = 0x7ff2, "DOMID_XEN";
    DOMID_INVALID: u16 = 0x7ff4, "DOMID_INVALID";
}

macro_rules! virqs {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $c:literal;)*) => {
        /// A virtual interrupt's number (`VIRQ_*`, xen.h).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Virq { $($(#[$doc])* #[doc(alias = $c)] $name = $value,)* }

        /// The virtual interrupts, for the test that asks a C compiler.
        pub const VIRQ_CONSTANTS: &[crate::Constant] =
            &[$(crate::Constant { c: $c, value: $value },)*];
    };
}
virqs! {
    /// The vCPU's one-shot timer fired.
    Timer = 0, "VIRQ_TIMER";
    /// Xen asks for a debugging dump.
    Debug = 1, "VIRQ_DEBUG";
    /// Emergency console input (dom0).
    Console = 2, "VIRQ_CONSOLE";
    /// Some domain died or shut down (dom0); the store daemon's.
    DomExc = 3, "VIRQ_DOM_EXC";
    /// Trace buffer has records (dom0).
    Tbuf = 4, "VIRQ_TBUF";
    /// A domain was paused for debugging (dom0).
    Debugger = 6, "VIRQ_DEBUGGER";
    /// Xen's console ring has new text (dom0).
    ConRing = 8, "VIRQ_CON_RING";
    /// A physical CPU went on or off line (dom0).
    PcpuState = 9, "VIRQ_PCPU_STATE";
    /// Low memory (dom0).
    Enomem = 12, "VIRQ_ENOMEM";
}

bitflags! {
    /// `SIF_*`: what the guest is and how its module is given, in [`StartInfo::flags`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct StartFlags: u32 {
        /// `SIF_PRIVILEGED`.
        const PRIVILEGED = 1 << 0;
        /// `SIF_INITDOMAIN`: this is dom0.
        const INITDOMAIN = 1 << 1;
        /// `SIF_MULTIBOOT_MOD`: `mod_start` is a list of multiboot modules.
        const MULTIBOOT_MOD = 1 << 2;
        /// `SIF_MOD_START_PFN`: `mod_start` is a pfn, the module is not mapped.
        const MOD_START_PFN = 1 << 3;
        /// `SIF_VIRT_P2M_4TOOLS`: the tools understand a virtually mapped p2m.
        const VIRT_P2M_4TOOLS = 1 << 4;
        const _ = !0;
    }

    /// `UVMF_*`: what update_va_mapping flushes.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct VaFlush: u64 {
        /// `UVMF_TLB_FLUSH`: the whole TLB.
        const TLB_FLUSH = 1;
        /// `UVMF_INVLPG`: the one address.
        const INVLPG = 2;
        /// `UVMF_ALL`: on every CPU, not only on this one.
        const ALL = 4;
        const _ = !0;
    }
}

abi_structs! {
    table LAYOUTS;

    /// What the builder tells a PV guest; rsi points to it at the entry point.
    StartInfo = "struct start_info", 1168 {
        /// "xen-VERSION-x86_64", NUL padded.
        magic @ 0: [u8; 32] = "magic",
        /// Pages given to this domain.
        nr_pages @ 32: u64 = "nr_pages",
        /// Machine address (not frame) of shared_info.
        shared_info @ 40: u64 = "shared_info",
        /// See [`StartFlags`].
        flags @ 48: u32 = "flags",
        pad0 @ 52: u32,
        /// Machine frame of the store ring.
        store_mfn @ 56: Mfn = "store_mfn",
        /// The guest's port of the store's event channel.
        store_evtchn @ 64: Port = "store_evtchn",
        pad1 @ 68: u32,
        /// Machine frame of the console ring.
        console_mfn @ 72: Mfn = "console.domU.mfn",
        /// The guest's port of the console's event channel.
        console_evtchn @ 80: Port = "console.domU.evtchn",
        pad2 @ 84: u32,
        /// Virtual address of the page directory.
        pt_base @ 88: u64 = "pt_base",
        /// Number of bootstrap page-table frames.
        nr_pt_frames @ 96: u64 = "nr_pt_frames",
        /// Virtual address of the pfn-to-mfn list.
        mfn_list @ 104: u64 = "mfn_list",
        /// Virtual address (or pfn, see [`StartFlags::MOD_START_PFN`]) of the preloaded module.
        mod_start @ 112: u64 = "mod_start",
        /// The module's size in bytes.
        mod_len @ 120: u64 = "mod_len",
        /// NUL-terminated command line.
        cmd_line @ 128: [u8; 1024] = "cmd_line",
        /// First pfn of the pages that hold the pfn-to-mfn list, if it is not in the initial mapping.
        first_p2m_pfn @ 1152: u64 = "first_p2m_pfn",
        /// Their number.
        nr_p2m_frames @ 1160: u64 = "nr_p2m_frames",
    }

    /// A paravirtual clock: time = system_time + ((tsc - tsc_timestamp) << tsc_shift) * mul >> 32.
    VcpuTimeInfo = "struct vcpu_time_info", 32 {
        /// Odd while Xen writes the rest.
        version @ 0: u32 = "version",
        pad0 @ 4: u32 = "pad0",
        /// The TSC's value when the rest was written.
        tsc_timestamp @ 8: u64 = "tsc_timestamp",
        /// Nanoseconds since boot at that moment.
        system_time @ 16: u64 = "system_time",
        /// 32-bit fraction.
        tsc_to_system_mul @ 24: u32 = "tsc_to_system_mul",
        /// Left shift if positive, right if negative.
        tsc_shift @ 28: i8 = "tsc_shift",
        /// See [`PVCLOCK_TSC_STABLE_BIT`].
        flags @ 29: u8 = "flags",
        pad1 @ 30: [u8; 2] = "pad1",
    }

    /// Per-vCPU part of [`SharedInfo`].
    VcpuInfo = "struct vcpu_info", 64 {
        /// 1 if an event is pending.
        evtchn_upcall_pending @ 0: u8 = "evtchn_upcall_pending",
        /// 1 to block upcalls.
        evtchn_upcall_mask @ 1: u8 = "evtchn_upcall_mask",
        pad0 @ 2: [u8; 6],
        /// Which words of `evtchn_pending` are not zero.
        evtchn_pending_sel @ 8: u64 = "evtchn_pending_sel",
        /// CR2 of the last page fault.
        arch @ 16: ArchVcpuInfo = "arch",
        /// The clock.
        time @ 32: VcpuTimeInfo = "time",
    }

    /// The page that Xen and a guest share.
    SharedInfo = "struct shared_info", 3136 {
        /// vCPUs 0 to 31.
        vcpu_info @ 0: [VcpuInfo; 32] = "vcpu_info",
        /// One bit per port (2-level ABI, 4096 ports).
        evtchn_pending @ 2048: [u64; 64] = "evtchn_pending",
        /// One bit per port: set blocks it.
        evtchn_mask @ 2560: [u64; 64] = "evtchn_mask",
        /// Odd while Xen writes the wall clock.
        wc_version @ 3072: u32 = "wc_version",
        /// Seconds since 1970 at system time 0, low half.
        wc_sec @ 3076: u32 = "wc_sec",
        /// Nanoseconds.
        wc_nsec @ 3080: u32 = "wc_nsec",
        /// Seconds, high half.
        wc_sec_hi @ 3084: u32 = "wc_sec_hi",
        /// Where the p2m list is.
        arch @ 3088: ArchSharedInfo = "arch",
    }

    /// One page-table or machine-to-physical update.
    MmuUpdate = "struct mmu_update", 16 {
        /// Machine address of the entry, command in the low two bits.
        ptr @ 0: u64 = "ptr",
        /// New contents.
        val @ 8: u64 = "val",
    }

    /// One extended MMU operation (`MMUEXT_*`).
    MmuExtOp = "struct mmuext_op", 24 {
        /// `MMUEXT_*`.
        cmd @ 0: u32 = "cmd",
        pad0 @ 4: u32,
        /// A machine frame or a linear address.
        arg1 @ 8: u64 = "arg1",
        /// A number of entries, a source frame or a pointer to a CPU mask.
        arg2 @ 16: u64 = "arg2",
    }

    /// One call within a multicall.
    MulticallEntry = "struct multicall_entry", 64 {
        /// Hypercall number.
        op @ 0: u64 = "op",
        /// Its result, a negative errno as unsigned.
        result @ 8: u64 = "result",
        /// Its arguments.
        args @ 16: [u64; 6] = "args",
    }
}

impl MmuExtOp {
    /// Pins (or unpins) a page table, or loads it as the base pointer.
    pub const fn on_frame(cmd: u32, mfn: Mfn) -> MmuExtOp {
        MmuExtOp {
            cmd,
            pad0: 0,
            arg1: mfn.0,
            arg2: 0,
        }
    }
}

impl DomId {
    /// Memory that is I/O space (`DOMID_IO`).
    pub const IO: DomId = DomId(DOMID_IO);
    /// Xen itself (`DOMID_XEN`).
    pub const XEN: DomId = DomId(DOMID_XEN);
    /// No domain (`DOMID_INVALID`).
    pub const INVALID: DomId = DomId(DOMID_INVALID);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_domids_are_the_headers() {
        assert_eq!(DomId::SELF.0, DOMID_SELF);
        assert_eq!(DomId::FIRST_RESERVED.0, DOMID_FIRST_RESERVED);
    }
}
