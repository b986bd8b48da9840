//! Domain control: what a toolstack asks of the hypervisor.

use alloc::string::String;
use alloc::vec::Vec;

use xen_ring::SharedMemory;
use xen_sys::{DomId, GrantRef, Mfn, Pfn, Port, VcpuId};

use crate::Result;

/// The hypervisor's control interface.
pub trait DomainControl {
    /// Frames of another domain, mapped; dropping it unmaps them.
    type Mapping: SharedMemory;

    /// What the host is.
    fn host(&self) -> Result<HostInfo>;
    /// Takes up to `max_bytes` of the hypervisor's log, oldest first; `clear` empties it.
    fn console_log(&self, max_bytes: usize, clear: bool) -> Result<Vec<u8>>;

    /// Makes a domain, paused and empty (`XEN_DOMCTL_createdomain`). `None` as the wanted number lets Xen choose.
    fn create(&self, wanted: Option<DomId>, spec: &CreateDomain) -> Result<DomId>;
    /// Destroys a domain; returns when its memory is free (`XEN_DOMCTL_destroydomain`, which may ask to be repeated).
    fn destroy(&self, dom: DomId) -> Result<()>;
    /// Stops its vCPUs (`XEN_DOMCTL_pausedomain`); counted.
    fn pause(&self, dom: DomId) -> Result<()>;
    /// Undoes one pause (`XEN_DOMCTL_unpausedomain`).
    fn unpause(&self, dom: DomId) -> Result<()>;
    /// Declares a domain shut down for `reason` (`SCHEDOP_remote_shutdown`).
    fn remote_shutdown(&self, dom: DomId, reason: ShutdownReason) -> Result<()>;
    /// One domain's state, `None` if there is no such domain (the echoed number is checked).
    fn info(&self, dom: DomId) -> Result<Option<DomainInfo>>;
    /// All domains' states.
    fn list(&self) -> Result<Vec<DomainInfo>>;
    /// The states of the domains from this number on.
    fn list_from(&self, first: DomId) -> Result<Vec<DomainInfo>> {
        let mut list = self.list()?;
        list.retain(|info| info.dom.0 >= first.0);
        Ok(list)
    }

    /// Sets the number of vCPUs (`XEN_DOMCTL_max_vcpus`).
    fn set_max_vcpus(&self, dom: DomId, count: u32) -> Result<()>;
    /// Sets the memory limit (`XEN_DOMCTL_max_mem`).
    fn set_max_mem(&self, dom: DomId, kib: u64) -> Result<()>;
    /// Sets the guest's word size, 64 here (`XEN_DOMCTL_set_address_size`).
    fn set_address_size(&self, dom: DomId, bits: u32) -> Result<()>;
    /// Reserves free memory for the domain, so that populating cannot fail half way (`XENMEM_claim_pages`); 0 ends the claim.
    fn claim_pages(&self, dom: DomId, pages: u64) -> Result<()>;
    /// Gives the domain the frames `first .. first + count` in extents of `1 << order` frames as far as
    /// possible (`XENMEM_populate_physmap`); returns the machine frame of each.
    fn populate(&self, dom: DomId, first: Pfn, count: u64, order: u32) -> Result<Vec<Mfn>>;
    /// Maps frames of the domain one after another (`IOCTL_PRIVCMD_MMAPBATCH_V2`): all or an error.
    fn map_frames(&self, dom: DomId, frames: &[Mfn]) -> Result<Self::Mapping>;
    /// Pins the top-level page table (`MMUEXT_PIN_L4_TABLE`), which makes Xen check it and all below.
    fn pin_l4(&self, dom: DomId, table: Mfn) -> Result<()>;
    /// Fills in the hypercall page (`XEN_DOMCTL_hypercall_init`).
    fn hypercall_init(&self, dom: DomId, page: Mfn) -> Result<()>;
    /// Sets how the time-stamp counter behaves: 0 default, 1 always emulate, 2 never (`XEN_DOMCTL_settscinfo`).
    fn set_tsc_mode(&self, dom: DomId, mode: u32) -> Result<()>;
    /// Gives the domain the host's default CPU policy for PV guests.
    fn set_default_cpu_policy(&self, dom: DomId) -> Result<()>;
    /// Sets a vCPU's first state (`XEN_DOMCTL_setvcpucontext`).
    fn start_vcpu(&self, dom: DomId, vcpu: VcpuId, start: &VcpuStart) -> Result<()>;
    /// Makes an event channel of `dom`'s that `remote` may bind (`EVTCHNOP_alloc_unbound`).
    fn alloc_unbound(&self, dom: DomId, remote: DomId) -> Result<Port>;
    /// Writes entries into the domain's grant table: `(entry, whom, frame)`, read-write.
    fn seed_grants(&self, dom: DomId, grants: &[(GrantRef, DomId, Mfn)]) -> Result<()>;
}

/// What a new domain is given (`struct xen_domctl_createdomain`, domctl.h).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateDomain {
    /// The domain's UUID.
    pub uuid: [u8; 16],
    /// Most vCPUs it may ever have.
    pub max_vcpus: u32,
    /// Highest event channel port, -1 or more: -1 leaves it to Xen.
    pub max_event_channels: i32,
    /// Frames of the grant table, -1 leaves it to Xen.
    pub max_grant_frames: i32,
    /// Frames of the maptrack table, -1 leaves it to Xen.
    pub max_maptrack_frames: i32,
    /// Highest grant table version, 1 or 2.
    pub max_grant_version: u8,
    /// The cpupool it runs in.
    pub cpupool: u32,
}

/// State bits of a domain (`XEN_DOMINF_*`, domctl.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DomainFlags {
    /// Being torn down.
    pub dying: bool,
    /// Has called SCHEDOP_shutdown, or was shut down.
    pub shutdown: bool,
    /// Paused by the toolstack.
    pub paused: bool,
    /// No vCPU is runnable.
    pub blocked: bool,
    /// A vCPU is running.
    pub running: bool,
    /// Uses hardware virtualisation.
    pub hvm: bool,
}

/// A domain's state (`struct xen_domctl_getdomaininfo`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainInfo {
    /// Its number.
    pub dom: DomId,
    /// Its state bits.
    pub flags: DomainFlags,
    /// Why it shut down, if it did.
    pub shutdown_reason: Option<ShutdownReason>,
    /// Current memory, in pages.
    pub total_pages: u64,
    /// Memory claimed but not yet allocated, in pages.
    pub outstanding_pages: u64,
    /// Memory limit, in pages.
    pub max_pages: u64,
    /// The frame of the shared info page.
    pub shared_info_frame: Mfn,
    /// CPU time used, in ns.
    pub cpu_time_ns: u64,
    /// vCPUs that are online.
    pub online_vcpus: u32,
    /// Highest vCPU number.
    pub max_vcpu_id: u32,
    /// Its UUID.
    pub uuid: [u8; 16],
    /// Its security label.
    pub ssidref: u32,
    /// The cpupool it is in.
    pub cpupool: u32,
}

/// Why a domain has shut down (`SHUTDOWN_*`, sched.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownReason {
    /// `SHUTDOWN_poweroff`
    Poweroff,
    /// `SHUTDOWN_reboot`
    Reboot,
    /// `SHUTDOWN_suspend`
    Suspend,
    /// `SHUTDOWN_crash`
    Crash,
    /// `SHUTDOWN_watchdog`
    Watchdog,
    /// `SHUTDOWN_soft_reset`
    SoftReset,
    /// A reason this program does not know.
    Other(u8),
}

impl ShutdownReason {
    /// The reason with this number.
    pub const fn from_code(code: u8) -> ShutdownReason {
        match code {
            0 => ShutdownReason::Poweroff,
            1 => ShutdownReason::Reboot,
            2 => ShutdownReason::Suspend,
            3 => ShutdownReason::Crash,
            4 => ShutdownReason::Watchdog,
            5 => ShutdownReason::SoftReset,
            other => ShutdownReason::Other(other),
        }
    }

    /// The reason's number.
    pub const fn code(self) -> u8 {
        match self {
            ShutdownReason::Poweroff => 0,
            ShutdownReason::Reboot => 1,
            ShutdownReason::Suspend => 2,
            ShutdownReason::Crash => 3,
            ShutdownReason::Watchdog => 4,
            ShutdownReason::SoftReset => 5,
            ShutdownReason::Other(code) => code,
        }
    }
}

/// A 64-bit PV vCPU's first state; the rest of the context is the flat PV default (interrupts on, kernel mode).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuStart {
    /// Where it starts, a guest virtual address.
    pub rip: u64,
    /// Its stack.
    pub rsp: u64,
    /// Address of start_info.
    pub rsi: u64,
    /// The top-level page table.
    pub l4: Mfn,
}

/// Xen's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XenVersion {
    /// Major, such as 4.
    pub major: u16,
    /// Minor, such as 17.
    pub minor: u16,
}

/// What `info` shows of the host, from XENVER_*, `XEN_SYSCTL_physinfo` and friends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostInfo {
    /// The version.
    pub version: XenVersion,
    /// The rest of the version, such as `".5"`.
    pub extra_version: String,
    /// Such as `"xen-3.0-x86_64 hvm-3.0-x86_32 …"`.
    pub capabilities: String,
    /// The commit it was built from.
    pub changeset: String,
    /// Its boot command line.
    pub command_line: String,
    /// Compiler, by whom, on what domain, date.
    pub compiled: [String; 4],
    /// Build id, in hex, empty if there is none.
    pub build_id: String,
    /// The scheduler's name, such as `"credit2"`.
    pub scheduler: String,
    /// `virt_start=0x…`
    pub platform_parameters: String,
    /// CPUs online.
    pub cpus: u32,
    /// Highest CPU number.
    pub max_cpu_id: u32,
    /// NUMA nodes.
    pub nodes: u32,
    /// Cores a socket.
    pub cores_per_socket: u32,
    /// Threads a core.
    pub threads_per_core: u32,
    /// CPU frequency.
    pub cpu_khz: u32,
    /// CPUID feature words.
    pub hw_cap: [u32; 8],
    /// `XEN_SYSCTL_PHYSCAP_*` bits.
    pub physcap: u32,
    /// Pages in all.
    pub total_pages: u64,
    /// Pages free.
    pub free_pages: u64,
    /// Pages being scrubbed.
    pub scrub_pages: u64,
    /// Pages claimed but not allocated.
    pub outstanding_pages: u64,
}
