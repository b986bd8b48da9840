//! domctl.h: control of domains. The header's interface version changes with most releases; what is the
//! same in all of 4.14 to 4.22 is here, the rest is in xen-dom0's table of versions.

use bitflags::bitflags;

use crate::types::{DomId, VcpuId};
use crate::{Plain, abi_consts, abi_structs};

/// Size of [`Domctl::payload`].
pub const PAYLOAD: usize = 128;

abi_consts! {
    table CONSTANTS;
    CREATEDOMAIN: u32 = 1, "XEN_DOMCTL_createdomain";
    DESTROYDOMAIN: u32 = 2, "XEN_DOMCTL_destroydomain";
    PAUSEDOMAIN: u32 = 3, "XEN_DOMCTL_pausedomain";
    UNPAUSEDOMAIN: u32 = 4, "XEN_DOMCTL_unpausedomain";
    GETDOMAININFO: u32 = 5, "XEN_DOMCTL_getdomaininfo";
    SETVCPUAFFINITY: u32 = 9, "XEN_DOMCTL_setvcpuaffinity";
    MAX_MEM: u32 = 11, "XEN_DOMCTL_max_mem";
    SETVCPUCONTEXT: u32 = 12, "XEN_DOMCTL_setvcpucontext";
    GETVCPUCONTEXT: u32 = 13, "XEN_DOMCTL_getvcpucontext";
    GETVCPUINFO: u32 = 14, "XEN_DOMCTL_getvcpuinfo";
    MAX_VCPUS: u32 = 15, "XEN_DOMCTL_max_vcpus";
    SCHEDULER_OP: u32 = 16, "XEN_DOMCTL_scheduler_op";
    SETDOMAINHANDLE: u32 = 17, "XEN_DOMCTL_setdomainhandle";
    HYPERCALL_INIT: u32 = 22, "XEN_DOMCTL_hypercall_init";
    SETTIMEOFFSET: u32 = 24, "XEN_DOMCTL_settimeoffset";
    GETVCPUAFFINITY: u32 = 25, "XEN_DOMCTL_getvcpuaffinity";
    RESUMEDOMAIN: u32 = 27, "XEN_DOMCTL_resumedomain";
    SENDTRIGGER: u32 = 28, "XEN_DOMCTL_sendtrigger";
    SET_ADDRESS_SIZE: u32 = 35, "XEN_DOMCTL_set_address_size";
    GET_ADDRESS_SIZE: u32 = 36, "XEN_DOMCTL_get_address_size";
    SETTSCINFO: u32 = 60, "XEN_DOMCTL_settscinfo";
    GETTSCINFO: u32 = 59, "XEN_DOMCTL_gettscinfo";
    GETPAGEFRAMEINFO3: u32 = 61, "XEN_DOMCTL_getpageframeinfo3";
    /// In an answer to [`GETPAGEFRAMEINFO3`]: no frame of the domain's.
    PFINFO_XTAB: u32 = 0xf000_0000, "XEN_DOMCTL_PFINFO_XTAB";
    GET_CPU_POLICY: u32 = 82, "XEN_DOMCTL_get_cpu_policy";
    SET_CPU_POLICY: u32 = 83, "XEN_DOMCTL_set_cpu_policy";
}

/// `XEN_DOMCTL_get_domain_state`, since 4.21: stable, its interface version is 0.
pub const GET_DOMAIN_STATE: u32 = 90;

bitflags! {
    /// `XEN_DOMINF_*`: a domain's state in [`DomainInfo::flags`]. Bits 16 to 23 hold the shutdown reason.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DomainFlags: u32 {
        /// `XEN_DOMINF_dying`: being torn down.
        const DYING = 1;
        /// `XEN_DOMINF_hvm_guest`.
        const HVM_GUEST = 1 << 1;
        /// `XEN_DOMINF_shutdown`: stopped by itself; see the reason.
        const SHUTDOWN = 1 << 2;
        /// `XEN_DOMINF_paused`: stopped by the tools.
        const PAUSED = 1 << 3;
        /// `XEN_DOMINF_blocked`: waits for an event.
        const BLOCKED = 1 << 4;
        /// `XEN_DOMINF_running`: on a CPU now.
        const RUNNING = 1 << 5;
        /// `XEN_DOMINF_debugged`.
        const DEBUGGED = 1 << 6;
        /// `XEN_DOMINF_xs_domain`: hosts the store.
        const XS_DOMAIN = 1 << 7;
        const _ = !0;
    }
}

impl DomainFlags {
    /// `SHUTDOWN_*` (sched.h) if the domain is shut down.
    pub const fn shutdown_reason(self) -> Option<u32> {
        if self.contains(DomainFlags::SHUTDOWN) {
            Some((self.bits() >> 16) & 0xff)
        } else {
            None
        }
    }
}

abi_structs! {
    table LAYOUTS;

    /// The argument of every domctl.
    Domctl = "struct xen_domctl", 144 {
        /// Which.
        cmd @ 0: u32 = "cmd",
        /// Must be the hypervisor's own, else EACCES.
        interface_version @ 4: u32 = "interface_version",
        /// Whom.
        domain @ 8: DomId = "domain",
        pad0 @ 10: [u16; 3] = "_pad",
        /// One of the structures below.
        payload @ 16: Payload = "u",
    }

    /// What all releases of `getdomaininfo` begin with; 8 (4.14, 4.15) or 16 bytes of no interest follow.
    DomainInfo = "struct domaininfo_prefix", 96 {
        /// Echo; up to 4.17 the first domain at or above the asked one.
        domain @ 0: DomId,
        pad1 @ 2: u16,
        /// [`DomainFlags`].
        flags @ 4: u32,
        /// Pages owned.
        tot_pages @ 8: u64,
        /// Limit on `tot_pages`.
        max_pages @ 16: u64,
        /// Pages claimed but not yet populated.
        outstanding_pages @ 24: u64,
        /// Shared pages (HVM).
        shr_pages @ 32: u64,
        /// Paged-out pages (HVM).
        paged_pages @ 40: u64,
        /// Machine frame of shared_info.
        shared_info_frame @ 48: u64,
        /// Nanoseconds on all vCPUs.
        cpu_time @ 56: u64,
        /// vCPUs that are up.
        nr_online_vcpus @ 64: u32,
        /// Highest vCPU number.
        max_vcpu_id @ 68: u32,
        /// Security label.
        ssidref @ 72: u32,
        /// UUID.
        handle @ 76: [u8; 16],
        /// CPU pool.
        cpupool @ 92: u32,
    }

    /// `createdomain` up to `max_maptrack_frames`: the same in all releases.
    CreateDomainPrefix = "struct createdomain_prefix", 44 {
        /// Security label.
        ssidref @ 0: u32,
        /// UUID.
        handle @ 4: [u8; 16],
        /// `XEN_DOMCTL_CDF_*`; 0 is a plain PV domain.
        flags @ 20: u32,
        /// `XEN_DOMCTL_IOMMU_*`.
        iommu_opts @ 24: u32,
        /// How many vCPUs.
        max_vcpus @ 28: u32,
        /// The highest event channel port.
        max_evtchn_port @ 32: u32,
        /// Limit, -1 = Xen's default.
        max_grant_frames @ 36: i32,
        /// Limit, -1 = Xen's default.
        max_maptrack_frames @ 40: i32,
    }

    /// Sets the limit on a domain's memory.
    MaxMem = "struct xen_domctl_max_mem", 8 {
        /// KiB.
        max_memkb @ 0: u64 = "max_memkb",
    }

    /// Sets or gets a vCPU's registers.
    VcpuContext = "struct xen_domctl_vcpucontext", 16 {
        /// Which.
        vcpu @ 0: VcpuId = "vcpu",
        pad0 @ 4: u32,
        /// Address of a [`VcpuGuestContext`](crate::arch_x86::VcpuGuestContext).
        ctxt @ 8: u64 = "ctxt",
    }

    /// A vCPU's state.
    GetVcpuInfo = "struct xen_domctl_getvcpuinfo", 24 {
        /// In.
        vcpu @ 0: VcpuId = "vcpu",
        /// Up.
        online @ 4: u8 = "online",
        /// Waits for an event.
        blocked @ 5: u8 = "blocked",
        /// On a CPU.
        running @ 6: u8 = "running",
        pad0 @ 7: u8,
        /// Nanoseconds.
        cpu_time @ 8: u64 = "cpu_time",
        /// The physical CPU.
        cpu @ 16: u32 = "cpu",
        pad1 @ 20: u32,
    }

    /// Sets the number of vCPUs.
    MaxVcpus = "struct xen_domctl_max_vcpus", 4 {
        /// Number.
        max @ 0: u32 = "max",
    }

    /// Fills in a hypercall page.
    HypercallInit = "struct xen_domctl_hypercall_init", 8 {
        /// Frame: of the domain's own numbering, for PV the machine's.
        gmfn @ 0: u64 = "gmfn",
    }

    /// 32 or 64 bits.
    AddressSize = "struct xen_domctl_address_size", 4 {
        /// Bits.
        size @ 0: u32 = "size",
    }

    /// How the guest sees the TSC.
    TscInfo = "struct xen_domctl_tsc_info", 24 {
        /// 0 default, 1 always emulate, 2 never.
        tsc_mode @ 0: u32 = "tsc_mode",
        /// Frequency.
        gtsc_khz @ 4: u32 = "gtsc_khz",
        /// Counts migrations.
        incarnation @ 8: u32 = "incarnation",
        pad @ 12: u32 = "pad",
        /// Nanoseconds.
        elapsed_nsec @ 16: u64 = "elapsed_nsec",
    }

    /// Seconds of offset from UTC.
    SetTimeOffset = "struct xen_domctl_settimeoffset", 8 {
        /// Seconds.
        time_offset_seconds @ 0: i64 = "time_offset_seconds",
    }

    /// Gets or sets a domain's CPU policy.
    CpuPolicy = "struct xen_domctl_cpu_policy", 40 {
        /// In and out: length of `leaves`.
        nr_leaves @ 0: u32 = "nr_leaves",
        /// In and out: length of `msrs`.
        nr_msrs @ 4: u32 = "nr_msrs",
        /// Address of [`CpuidLeaf`](crate::arch_x86::CpuidLeaf)s.
        leaves @ 8: u64 = "leaves",
        /// Address of [`MsrEntry`](crate::arch_x86::MsrEntry)s.
        msrs @ 16: u64 = "msrs",
        /// Out: the leaf that was refused, or all ones.
        err_leaf @ 24: u32 = "err_leaf",
        /// Out: its subleaf.
        err_subleaf @ 28: u32 = "err_subleaf",
        /// Out: the MSR that was refused.
        err_msr @ 32: u32 = "err_msr",
        pad0 @ 36: u32,
    }

    /// Types of frames.
    GetPageFrameInfo3 = "struct xen_domctl_getpageframeinfo3", 16 {
        /// In.
        num @ 0: u64 = "num",
        /// Address of an array of frame numbers; types are written to their top bits.
        array @ 8: u64 = "array",
    }
}

/// The union of a [`Domctl`], 8-aligned as in C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Payload(pub [u8; PAYLOAD]);

// SAFETY: an array of bytes, whose length is a multiple of the alignment: no padding.
unsafe impl Plain for Payload {}
const _: () = assert!(size_of::<Payload>() == PAYLOAD);

impl Payload {
    /// `value` at the front, zero after it.
    pub fn of<T: Plain>(value: &T) -> Payload {
        let mut payload = Payload::ZERO;
        payload.0[..size_of::<T>()].copy_from_slice(value.as_bytes());
        payload
    }

    /// The structure at the front.
    pub fn get<T: Plain>(&self) -> T {
        const { assert!(size_of::<T>() <= PAYLOAD) };
        T::from_prefix(&self.0).expect("fits by the assertion")
    }
}

impl Domctl {
    /// An operation `cmd` on `domain` with `payload` as its argument.
    pub fn new<T: Plain>(cmd: u32, interface_version: u32, domain: DomId, payload: &T) -> Domctl {
        Domctl {
            cmd,
            interface_version,
            domain,
            pad0: [0; 3],
            payload: Payload::of(payload),
        }
    }
}
