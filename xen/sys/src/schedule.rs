//! domctl.h and sysctl.h: where vCPUs run, how schedulers share the CPUs, cpupools, topology, debug keys
//! and triggers. All of it is the same in 4.14 to 4.22.

use crate::{abi_consts, abi_structs};

abi_consts! {
    table CONSTANTS;
    SETNODEAFFINITY: u32 = 68, "XEN_DOMCTL_setnodeaffinity";
    GETNODEAFFINITY: u32 = 69, "XEN_DOMCTL_getnodeaffinity";
    VCPUAFFINITY_HARD: u32 = 1, "XEN_VCPUAFFINITY_HARD";
    VCPUAFFINITY_SOFT: u32 = 2, "XEN_VCPUAFFINITY_SOFT";
    /// Undoes what the guest's kernel has pinned with SCHEDOP_pin_override.
    VCPUAFFINITY_FORCE: u32 = 4, "XEN_VCPUAFFINITY_FORCE";
    DOM_PUTINFO: u32 = 0, "XEN_DOMCTL_SCHEDOP_putinfo";
    DOM_GETINFO: u32 = 1, "XEN_DOMCTL_SCHEDOP_getinfo";
    DOM_PUTVCPUINFO: u32 = 2, "XEN_DOMCTL_SCHEDOP_putvcpuinfo";
    DOM_GETVCPUINFO: u32 = 3, "XEN_DOMCTL_SCHEDOP_getvcpuinfo";
    SCHEDRT_EXTRA: u32 = 1, "XEN_DOMCTL_SCHEDRT_extra";
    TRIGGER_NMI: u32 = 0, "XEN_DOMCTL_SENDTRIGGER_NMI";
    TRIGGER_RESET: u32 = 1, "XEN_DOMCTL_SENDTRIGGER_RESET";
    TRIGGER_INIT: u32 = 2, "XEN_DOMCTL_SENDTRIGGER_INIT";
    TRIGGER_POWER: u32 = 3, "XEN_DOMCTL_SENDTRIGGER_POWER";
    TRIGGER_SLEEP: u32 = 4, "XEN_DOMCTL_SENDTRIGGER_SLEEP";
    CPUTOPOINFO: u32 = 16, "XEN_SYSCTL_cputopoinfo";
    NUMAINFO: u32 = 17, "XEN_SYSCTL_numainfo";
    CPUPOOL_OP: u32 = 18, "XEN_SYSCTL_cpupool_op";
    SCHEDULER_OP: u32 = 19, "XEN_SYSCTL_scheduler_op";
    PCITOPOINFO: u32 = 22, "XEN_SYSCTL_pcitopoinfo";
    /// A CPU that is not there, in [`CpuTopo`].
    INVALID_CORE: u32 = !0, "XEN_INVALID_CORE_ID";
    /// A node that is not known.
    INVALID_NODE: u32 = !0, "XEN_INVALID_NODE_ID";
    /// A memory size that is not known, in [`MemInfo`].
    INVALID_MEM: u64 = 0xffff_ffff, "XEN_INVALID_MEM_SZ";
    POOL_CREATE: u32 = 1, "XEN_SYSCTL_CPUPOOL_OP_CREATE";
    POOL_DESTROY: u32 = 2, "XEN_SYSCTL_CPUPOOL_OP_DESTROY";
    POOL_INFO: u32 = 3, "XEN_SYSCTL_CPUPOOL_OP_INFO";
    POOL_ADDCPU: u32 = 4, "XEN_SYSCTL_CPUPOOL_OP_ADDCPU";
    POOL_RMCPU: u32 = 5, "XEN_SYSCTL_CPUPOOL_OP_RMCPU";
    POOL_MOVEDOMAIN: u32 = 6, "XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN";
    POOL_FREEINFO: u32 = 7, "XEN_SYSCTL_CPUPOOL_OP_FREEINFO";
    /// Any pool, or any CPU.
    POOL_ANY: u32 = !0, "XEN_SYSCTL_CPUPOOL_PAR_ANY";
    SCHED_PUTINFO: u32 = 0, "XEN_SYSCTL_SCHEDOP_putinfo";
    SCHED_GETINFO: u32 = 1, "XEN_SYSCTL_SCHEDOP_getinfo";
}

abi_structs! {
    table LAYOUTS;

    /// A set of CPUs or nodes.
    Bitmap = "struct xenctl_bitmap", 16 {
        /// Address of the bits, lowest first.
        bitmap @ 0: u64 = "bitmap",
        /// How many there are.
        nr_bits @ 8: u32 = "nr_bits",
        pad0 @ 12: u32,
    }

    /// Where a vCPU may run.
    VcpuAffinity = "struct xen_domctl_vcpuaffinity", 40 {
        /// Which.
        vcpu @ 0: u32 = "vcpu",
        /// `XEN_VCPUAFFINITY_*`.
        flags @ 4: u32 = "flags",
        /// Where it may run.
        hard @ 8: Bitmap = "cpumap_hard",
        /// Where it runs best.
        soft @ 24: Bitmap = "cpumap_soft",
    }

    /// The nodes that a domain's memory comes from.
    NodeAffinity = "struct xen_domctl_nodeaffinity", 16 {
        /// Bits.
        nodemap @ 0: Bitmap = "nodemap",
    }

    /// A domain's share under credit and credit2.
    SchedCredit = "struct xen_domctl_sched_credit", 4 {
        /// Relative to others'; 0 as an argument leaves it.
        weight @ 0: u16 = "weight",
        /// Per cent of one CPU; all ones as an argument leaves it.
        cap @ 2: u16 = "cap",
    }

    /// A vCPU's share under RTDS.
    SchedRtds = "struct xen_domctl_sched_rtds", 12 {
        /// Microseconds.
        period @ 0: u32 = "period",
        /// Microseconds.
        budget @ 4: u32 = "budget",
        /// `XEN_DOMCTL_SCHEDRT_*`.
        flags @ 8: u32 = "flags",
    }

    /// A vCPU's share.
    SchedParamVcpu = "struct xen_domctl_schedparam_vcpu", 16 {
        /// [`SchedRtds`], or another scheduler's.
        rtds @ 0: SchedRtds = "u.rtds",
        /// Which.
        vcpuid @ 12: u32 = "vcpuid",
    }

    /// Gets or sets a domain's share.
    DomSchedulerOp = "struct xen_domctl_scheduler_op", 24 {
        /// `XEN_SCHEDULER_*`, the one that the domain's pool has.
        sched_id @ 0: u32 = "sched_id",
        /// `XEN_DOMCTL_SCHEDOP_*`.
        cmd @ 4: u32 = "cmd",
        /// [`SchedCredit`], [`SchedRtds`], or an address of [`SchedParamVcpu`]s and their number.
        parameters @ 8: [u64; 2] = "u",
    }

    /// Sends a domain a signal that hardware would.
    SendTrigger = "struct xen_domctl_sendtrigger", 8 {
        /// `XEN_DOMCTL_SENDTRIGGER_*`.
        trigger @ 0: u32 = "trigger",
        /// Which vCPU gets it.
        vcpu @ 4: u32 = "vcpu",
    }

    /// Where a CPU is.
    CpuTopo = "struct xen_sysctl_cputopo", 12 {
        /// Its core, or [`INVALID_CORE`].
        core @ 0: u32 = "core",
        /// Its socket.
        socket @ 4: u32 = "socket",
        /// Its node.
        node @ 8: u32 = "node",
    }

    /// Where the CPUs are.
    CpuTopoInfo = "struct xen_sysctl_cputopoinfo", 16 {
        /// In and out: how many.
        num_cpus @ 0: u32 = "num_cpus",
        pad0 @ 4: u32,
        /// Address of [`CpuTopo`]s; 0 asks for the number.
        cputopo @ 8: u64 = "cputopo",
    }

    /// A node's memory in bytes.
    MemInfo = "struct xen_sysctl_meminfo", 16 {
        /// All, or [`INVALID_MEM`].
        memsize @ 0: u64 = "memsize",
        /// Free.
        memfree @ 8: u64 = "memfree",
    }

    /// The nodes.
    NumaInfo = "struct xen_sysctl_numainfo", 24 {
        /// In and out: how many.
        num_nodes @ 0: u32 = "num_nodes",
        pad0 @ 4: u32,
        /// Address of [`MemInfo`]s.
        meminfo @ 8: u64 = "meminfo",
        /// Address of u32s, a row for each node.
        distance @ 16: u64 = "distance",
    }

    /// The nodes of PCI devices.
    PciTopoInfo = "struct xen_sysctl_pcitopoinfo", 24 {
        /// In and out: how many.
        num_devs @ 0: u32 = "num_devs",
        pad0 @ 4: u32,
        /// Address of [`PciDevice`]s.
        devs @ 8: u64 = "devs",
        /// Address of u32s.
        nodes @ 16: u64 = "nodes",
    }

    /// Does something to a pool.
    CpuPoolOp = "struct xen_sysctl_cpupool_op", 40 {
        /// `XEN_SYSCTL_CPUPOOL_OP_*`.
        op @ 0: u32 = "op",
        /// In and out: which.
        cpupool_id @ 4: u32 = "cpupool_id",
        /// `XEN_SCHEDULER_*`.
        sched_id @ 8: u32 = "sched_id",
        /// The domain that is moved.
        domid @ 12: u32 = "domid",
        /// The CPU that is added or removed.
        cpu @ 16: u32 = "cpu",
        /// Out: domains in it.
        n_dom @ 20: u32 = "n_dom",
        /// Out: its CPUs.
        cpumap @ 24: Bitmap = "cpumap",
    }

    /// A pool's settings under credit.
    PoolCredit = "struct xen_sysctl_credit_schedule", 12 {
        /// Milliseconds.
        tslice_ms @ 0: u32 = "tslice_ms",
        /// Microseconds.
        ratelimit_us @ 4: u32 = "ratelimit_us",
        /// Microseconds.
        vcpu_migr_delay_us @ 8: u32 = "vcpu_migr_delay_us",
    }

    /// Gets or sets a pool's settings.
    PoolSchedulerOp = "struct xen_sysctl_scheduler_op", 32 {
        /// Which.
        cpupool_id @ 0: u32 = "cpupool_id",
        /// `XEN_SCHEDULER_*`.
        sched_id @ 4: u32 = "sched_id",
        /// `XEN_SYSCTL_SCHEDOP_*`.
        cmd @ 8: u32 = "cmd",
        pad0 @ 12: u32,
        /// [`PoolCredit`]; under credit2 its rate limit comes first and alone.
        parameters @ 16: [u64; 2] = "u",
    }
}

/// A PCI device, as [`PciTopoInfo`] wants it.
pub type PciDevice = [u8; 4];
