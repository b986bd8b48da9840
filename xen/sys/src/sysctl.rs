//! sysctl.h: control of the host. As with domctl.h, what varies by release is in xen-dom0's table.

use bitflags::bitflags;

use crate::domctl::Payload;
use crate::types::DomId;
use crate::{Plain, abi_consts, abi_structs};

abi_consts! {
    table CONSTANTS;
    READCONSOLE: u32 = 1, "XEN_SYSCTL_readconsole";
    PHYSINFO: u32 = 3, "XEN_SYSCTL_physinfo";
    SCHED_ID: u32 = 4, "XEN_SYSCTL_sched_id";
    GETDOMAININFOLIST: u32 = 6, "XEN_SYSCTL_getdomaininfolist";
    DEBUG_KEYS: u32 = 7, "XEN_SYSCTL_debug_keys";
    GETCPUINFO: u32 = 8, "XEN_SYSCTL_getcpuinfo";
    AVAILHEAP: u32 = 9, "XEN_SYSCTL_availheap";
    GET_CPU_POLICY: u32 = 29, "XEN_SYSCTL_get_cpu_policy";
    CPU_POLICY_RAW: u32 = 0, "XEN_SYSCTL_cpu_policy_raw";
    CPU_POLICY_HOST: u32 = 1, "XEN_SYSCTL_cpu_policy_host";
    CPU_POLICY_PV_MAX: u32 = 2, "XEN_SYSCTL_cpu_policy_pv_max";
    /// What a new PV guest gets.
    CPU_POLICY_PV_DEFAULT: u32 = 4, "XEN_SYSCTL_cpu_policy_pv_default";
    SCHEDULER_CREDIT: u32 = 5, "XEN_SCHEDULER_CREDIT";
    SCHEDULER_CREDIT2: u32 = 6, "XEN_SCHEDULER_CREDIT2";
    SCHEDULER_ARINC653: u32 = 7, "XEN_SCHEDULER_ARINC653";
    SCHEDULER_RTDS: u32 = 8, "XEN_SCHEDULER_RTDS";
    SCHEDULER_NULL: u32 = 9, "XEN_SCHEDULER_NULL";
}

bitflags! {
    /// `XEN_SYSCTL_PHYSCAP_*`: what the host can run.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HostCapabilities: u32 {
        /// HVM guests.
        const HVM = 1;
        /// PV guests.
        const PV = 1 << 1;
        /// Direct device access (an IOMMU).
        const DIRECTIO = 1 << 2;
        /// Hardware-assisted paging.
        const HAP = 1 << 3;
        /// Shadow paging.
        const SHADOW = 1 << 4;
        /// The IOMMU shares page tables with HAP.
        const IOMMU_HAP_PT_SHARE = 1 << 5;
        /// Processor trace.
        const VMTRACE = 1 << 6;
        /// Virtual PMU.
        const VPMU = 1 << 7;
        /// Grant tables of version 1.
        const GNTTAB_V1 = 1 << 8;
        /// Grant tables of version 2.
        const GNTTAB_V2 = 1 << 9;
        const _ = !0;
    }
}

abi_structs! {
    table LAYOUTS;

    /// The argument of every sysctl.
    Sysctl = "struct xen_sysctl", 136 {
        /// Which.
        cmd @ 0: u32 = "cmd",
        /// Must be the hypervisor's own, else EACCES.
        interface_version @ 4: u32 = "interface_version",
        /// One of the structures below.
        payload @ 8: Payload = "u",
    }

    /// Reads Xen's console ring.
    ReadConsole = "struct xen_sysctl_readconsole", 24 {
        /// In: 1 clears it.
        clear @ 0: u8 = "clear",
        /// In: 1 starts at `index`.
        incremental @ 1: u8 = "incremental",
        pad0 @ 2: [u8; 2],
        /// In and out: position.
        index @ 4: u32 = "index",
        /// Address.
        buffer @ 8: u64 = "buffer",
        /// In and out: bytes.
        count @ 16: u32 = "count",
        pad1 @ 20: u32,
    }

    /// Which scheduler is the default.
    SchedId = "struct xen_sysctl_sched_id", 4 {
        /// `XEN_SCHEDULER_*`.
        sched_id @ 0: u32 = "sched_id",
    }

    /// Lists domains.
    GetDomainInfoList = "struct xen_sysctl_getdomaininfolist", 24 {
        /// In: from this one on.
        first_domain @ 0: DomId = "first_domain",
        pad0 @ 2: u16,
        /// In: room in `buffer`.
        max_domains @ 4: u32 = "max_domains",
        /// Address of an array of getdomaininfo structures, whose size varies by release.
        buffer @ 8: u64 = "buffer",
        /// Out.
        num_domains @ 16: u32 = "num_domains",
        pad1 @ 20: u32,
    }

    /// Gets one of the host's CPU policies.
    CpuPolicy = "struct xen_sysctl_cpu_policy", 32 {
        /// In: `XEN_SYSCTL_cpu_policy_*`.
        index @ 0: u32 = "index",
        /// In and out: length of `leaves`.
        nr_leaves @ 4: u32 = "nr_leaves",
        /// In and out: length of `msrs`.
        nr_msrs @ 8: u32 = "nr_msrs",
        rsvd @ 12: u32 = "_rsvd",
        /// Address; 0 asks for the length.
        leaves @ 16: u64 = "leaves",
        /// Address; 0 asks for the length.
        msrs @ 24: u64 = "msrs",
    }

    /// Sends debug keys to Xen.
    DebugKeys = "struct xen_sysctl_debug_keys", 16 {
        /// Address.
        keys @ 0: u64 = "keys",
        /// How many.
        nr_keys @ 8: u32 = "nr_keys",
        pad0 @ 12: u32,
    }
}

impl Sysctl {
    /// An operation `cmd` with `payload` as its argument.
    pub fn new<T: Plain>(cmd: u32, interface_version: u32, payload: &T) -> Sysctl {
        Sysctl {
            cmd,
            interface_version,
            payload: Payload::of(payload),
        }
    }
}
