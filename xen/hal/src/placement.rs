//! Where guests run and how they share the host's CPUs: affinity, schedulers, cpupools, topology; and the
//! few other things that only an administrator asks of the hypervisor.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use xen_sys::{DomId, Mfn, Pfn, VcpuId};

use crate::{DomainControl, Result};

/// A set of CPUs, or of nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuMap {
    words: Vec<u64>,
}

impl CpuMap {
    /// The empty set.
    pub const fn new() -> CpuMap {
        CpuMap { words: Vec::new() }
    }

    /// The set of the first `count`.
    pub fn first(count: u32) -> CpuMap {
        (0..count).collect()
    }

    /// The set whose bits these bytes are, lowest first; no more than `count` of them.
    pub fn from_bytes(bytes: &[u8], count: u32) -> CpuMap {
        let set = |cpu: &u32| {
            let byte = bytes.get(*cpu as usize / 8);
            byte.is_some_and(|byte| byte >> (cpu % 8) & 1 == 1)
        };
        (0..count).filter(set).collect()
    }

    /// The bits of the first `count` as bytes, lowest first.
    pub fn to_bytes(&self, count: u32) -> Vec<u8> {
        let mut bytes = alloc::vec![0; (count as usize).div_ceil(8)];
        for cpu in self.iter().take_while(|cpu| *cpu < count) {
            bytes[cpu as usize / 8] |= 1 << (cpu % 8);
        }
        bytes
    }

    /// Adds one.
    pub fn insert(&mut self, cpu: u32) {
        let word = cpu as usize / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (cpu % 64);
    }

    /// Takes one out.
    pub fn remove(&mut self, cpu: u32) {
        if let Some(word) = self.words.get_mut(cpu as usize / 64) {
            *word &= !(1 << (cpu % 64));
        }
    }

    /// Whether it is in the set.
    pub fn contains(&self, cpu: u32) -> bool {
        let word = self.words.get(cpu as usize / 64);
        word.is_some_and(|word| word >> (cpu % 64) & 1 == 1)
    }

    /// All that are in the set, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.words.len() as u32 * 64).filter(|cpu| self.contains(*cpu))
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// The set as xl shows it on a host of `count`: ranges, `all` or `none`.
    pub fn shown(&self, count: u32) -> String {
        use core::fmt::Write;
        let members: Vec<u32> = self.iter().take_while(|cpu| *cpu < count).collect();
        if members.is_empty() {
            return "none".into();
        }
        if members.len() as u32 == count {
            return "all".into();
        }
        let mut out = String::new();
        for run in members.chunk_by(|a, b| a + 1 == *b) {
            let comma = if out.is_empty() { "" } else { "," };
            // Writing to a string does not fail.
            let _ = match run {
                [one] => write!(out, "{comma}{one}"),
                _ => write!(out, "{comma}{}-{}", run[0], run[run.len() - 1]),
            };
        }
        out
    }
}

impl FromIterator<u32> for CpuMap {
    fn from_iter<I: IntoIterator<Item = u32>>(cpus: I) -> CpuMap {
        let mut map = CpuMap::new();
        cpus.into_iter().for_each(|cpu| map.insert(cpu));
        map
    }
}

/// A vCPU's state (`struct xen_domctl_getvcpuinfo`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuInfo {
    /// It is up.
    pub online: bool,
    /// It waits for an event.
    pub blocked: bool,
    /// It is on a CPU now.
    pub running: bool,
    /// CPU time used, in ns.
    pub cpu_time_ns: u64,
    /// The CPU it is or was on.
    pub cpu: u32,
}

/// Where a vCPU may run, and where it runs best.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// Where it may run.
    pub hard: CpuMap,
    /// Where it runs best.
    pub soft: CpuMap,
}

/// A scheduler (`XEN_SCHEDULER_*`, domctl.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheduler {
    /// Credit.
    Credit,
    /// Credit2, the default.
    Credit2,
    /// Of avionics.
    Arinc653,
    /// Real-time deferrable server.
    Rtds,
    /// One vCPU a CPU.
    Null,
    /// One that this program does not know.
    Other(u32),
}

impl Scheduler {
    const NAMES: [(Scheduler, u32, &'static str); 5] = [
        (Scheduler::Credit, 5, "credit"),
        (Scheduler::Credit2, 6, "credit2"),
        (Scheduler::Arinc653, 7, "arinc653"),
        (Scheduler::Rtds, 8, "rtds"),
        (Scheduler::Null, 9, "null"),
    ];

    /// The scheduler with this number.
    pub fn from_code(code: u32) -> Scheduler {
        let known = Self::NAMES.iter().find(|(_, number, _)| *number == code);
        known.map_or(Scheduler::Other(code), |(scheduler, ..)| *scheduler)
    }

    /// The scheduler of this name.
    pub fn named(name: &str) -> Option<Scheduler> {
        let known = Self::NAMES.iter().find(|(.., known)| *known == name);
        known.map(|(scheduler, ..)| *scheduler)
    }

    /// Its number.
    pub fn code(self) -> u32 {
        match self {
            Scheduler::Other(code) => code,
            known => Self::entry(known).1,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Scheduler::Other(_) => "unknown",
            known => Self::entry(known).2,
        }
    }

    fn entry(self) -> &'static (Scheduler, u32, &'static str) {
        let found = Self::NAMES
            .iter()
            .find(|(scheduler, ..)| *scheduler == self);
        found.unwrap_or(&Self::NAMES[1])
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A domain's share of the CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Under credit and credit2.
    Weighted {
        /// Relative to others'.
        weight: u16,
        /// Per cent of one CPU, 0 for no limit.
        cap: u16,
    },
    /// Under RTDS.
    Timed(Timed),
}

/// A vCPU's share under RTDS: so much in each period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timed {
    /// In µs.
    pub period_us: u32,
    /// In µs.
    pub budget_us: u32,
    /// It may have what others leave.
    pub extra_time: bool,
}

/// A pool's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSettings {
    /// Length of a time slice, in ms; credit only.
    pub time_slice_ms: u32,
    /// How long a vCPU runs at least, in µs.
    pub rate_limit_us: u32,
    /// How long a vCPU is taken to be at home on its CPU, in µs; credit only.
    pub migration_delay_us: u32,
}

/// A cpupool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuPool {
    /// Its number.
    pub id: u32,
    /// Its scheduler.
    pub scheduler: Scheduler,
    /// How many domains are in it.
    pub domains: u32,
    /// Its CPUs.
    pub cpus: CpuMap,
}

/// Where a CPU is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuPlace {
    /// Its core.
    pub core: u32,
    /// Its socket.
    pub socket: u32,
    /// Its node.
    pub node: u32,
}

/// A node of a host whose memory is not the same everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NumaNode {
    /// Its memory, in bytes.
    pub bytes: u64,
    /// What is free of it, in bytes.
    pub free_bytes: u64,
    /// How far the nodes are, this one included.
    pub distances: Vec<u32>,
}

/// A signal that hardware would send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// A non-maskable interrupt.
    Nmi,
    /// Reset; HVM only.
    Reset,
    /// INIT.
    Init,
    /// The power button; HVM only.
    Power,
    /// The sleep button; HVM only.
    Sleep,
}

/// Where a guest's vCPUs run.
pub trait Placement: DomainControl {
    /// A vCPU's state, `None` if there is none of this number (`XEN_DOMCTL_getvcpuinfo`).
    fn vcpu_info(&self, dom: DomId, vcpu: VcpuId) -> Result<Option<VcpuInfo>>;
    /// Where a vCPU may run (`XEN_DOMCTL_getvcpuaffinity`).
    fn affinity(&self, dom: DomId, vcpu: VcpuId) -> Result<Affinity>;
    /// Sets where a vCPU may run; `None` leaves it. `force` overrides what the guest's kernel has pinned.
    /// (`XEN_DOMCTL_setvcpuaffinity`)
    fn set_affinity(
        &self,
        dom: DomId,
        vcpu: VcpuId,
        hard: Option<&CpuMap>,
        soft: Option<&CpuMap>,
        force: bool,
    ) -> Result<()>;
    /// A domain's share (`XEN_DOMCTL_scheduler_op`).
    fn share(&self, dom: DomId, scheduler: Scheduler) -> Result<Share>;
    /// Sets a domain's share, for RTDS that of all its vCPUs.
    fn set_share(&self, dom: DomId, scheduler: Scheduler, share: Share) -> Result<()>;
    /// All pools (`XEN_SYSCTL_cpupool_op`).
    fn pools(&self) -> Result<Vec<CpuPool>>;
    /// Moves a domain into a pool.
    fn move_to_pool(&self, dom: DomId, pool: u32) -> Result<()>;
    /// Tells the domain's kernel that it may have memory from 0 to here (`XENMEM_set_memory_map`).
    fn set_memory_map(&self, dom: DomId, kib: u64) -> Result<()>;
    /// Sets how far the domain's clock is ahead of UTC (`XEN_DOMCTL_settimeoffset`).
    fn set_time_offset(&self, dom: DomId, seconds: i64) -> Result<()>;
    /// Gives the domain another UUID (`XEN_DOMCTL_setdomainhandle`).
    fn set_uuid(&self, dom: DomId, uuid: &[u8; 16]) -> Result<()>;
    /// Where each CPU is; `None` for one that is not there (`XEN_SYSCTL_cputopoinfo`).
    fn topology(&self) -> Result<Vec<Option<CpuPlace>>>;
}

/// A guest as a file of it needs it.
pub trait Inspect: DomainControl {
    /// All frames of a domain with the numbers that it has for them, by the machine's own table. What a
    /// number is is up to the guest: there may be wrong and equal ones.
    fn guest_frames(&self, dom: DomId) -> Result<Vec<(Pfn, Mfn)>>;
    /// Appends the content of these frames; what cannot be read is zero.
    fn copy_frames(&self, dom: DomId, frames: &[Mfn], out: &mut Vec<u8>) -> Result<()>;
    /// A vCPU's registers, `struct vcpu_guest_context` as bytes (`XEN_DOMCTL_getvcpucontext`).
    fn vcpu_context(&self, dom: DomId, vcpu: VcpuId) -> Result<Vec<u8>>;
}

/// What only an administrator asks for.
pub trait HostControl: Placement {
    /// The nodes that a domain's memory comes from (`XEN_DOMCTL_getnodeaffinity`).
    fn node_affinity(&self, dom: DomId) -> Result<CpuMap>;
    /// The shares of some vCPUs; RTDS only.
    fn vcpu_shares(&self, dom: DomId, vcpus: &[VcpuId]) -> Result<Vec<Timed>>;
    /// Sets the shares of some vCPUs; RTDS only.
    fn set_vcpu_shares(&self, dom: DomId, shares: &[(VcpuId, Timed)]) -> Result<()>;
    /// A pool's settings (`XEN_SYSCTL_scheduler_op`).
    fn pool_settings(&self, pool: u32, scheduler: Scheduler) -> Result<PoolSettings>;
    /// Changes them; gives them as they are now.
    fn set_pool_settings(
        &self,
        pool: u32,
        scheduler: Scheduler,
        settings: PoolSettings,
    ) -> Result<PoolSettings>;

    /// CPUs in no pool.
    fn free_cpus(&self) -> Result<CpuMap>;
    /// Makes an empty pool; returns its number.
    fn create_pool(&self, scheduler: Scheduler) -> Result<u32>;
    /// Removes a pool, which must have neither domains nor CPUs.
    fn destroy_pool(&self, pool: u32) -> Result<()>;
    /// Puts a free CPU into a pool.
    fn add_cpu(&self, pool: u32, cpu: u32) -> Result<()>;
    /// Takes a CPU out of a pool.
    fn remove_cpu(&self, pool: u32, cpu: u32) -> Result<()>;

    /// The nodes; `None` for one that is not there (`XEN_SYSCTL_numainfo`).
    fn numa(&self) -> Result<Vec<Option<NumaNode>>>;
    /// The node of each PCI device, given as (segment, bus, devfn); `None` where it is not known
    /// (`XEN_SYSCTL_pcitopoinfo`).
    fn pci_nodes(&self, devices: &[(u16, u8, u8)]) -> Result<Vec<Option<u32>>>;

    /// Presses keys on the hypervisor's console (`XEN_SYSCTL_debug_keys`).
    fn debug_keys(&self, keys: &[u8]) -> Result<()>;
    /// Sends a vCPU a signal (`XEN_DOMCTL_sendtrigger`).
    fn trigger(&self, dom: DomId, vcpu: VcpuId, trigger: Trigger) -> Result<()>;
    /// Changes a setting of the hypervisor at run time (`__HYPERVISOR_hypfs_op`); the value as on Xen's
    /// command line.
    fn set_parameter(&self, name: &str, value: &str) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn maps_are_shown_as_xl_does() {
        for (cpus, count, shown) in [
            (vec![], 4, "none"),
            (vec![0, 1, 2, 3], 4, "all"),
            (vec![0], 1, "all"),
            (vec![0], 4, "0"),
            (vec![0, 1], 4, "0-1"),
            (vec![1, 2, 3], 4, "1-3"),
            (vec![0, 2, 3, 5], 8, "0,2-3,5"),
            (vec![63, 64, 65, 130], 131, "63-65,130"),
            (vec![0, 1, 2, 3, 9], 4, "all"),
        ] {
            let map: CpuMap = cpus.iter().copied().collect();
            assert_eq!(map.shown(count), shown, "{cpus:?} of {count}");
            assert_eq!(map.count() as usize, cpus.len());
        }
    }

    #[test]
    fn maps_go_through_bytes() {
        let map: CpuMap = [0, 7, 8, 70].into_iter().collect();
        let bytes = map.to_bytes(71);
        assert_eq!(bytes, [0x81, 1, 0, 0, 0, 0, 0, 0, 0x40]);
        assert_eq!(CpuMap::from_bytes(&bytes, 71), map);
        assert_eq!(CpuMap::from_bytes(&bytes, 8).count(), 2);
        assert_eq!(CpuMap::from_bytes(&[0xff], 64), CpuMap::first(8));
    }

    #[test]
    fn schedulers_have_names() {
        for code in 5..10 {
            let scheduler = Scheduler::from_code(code);
            assert_eq!(scheduler.code(), code);
            assert_eq!(Scheduler::named(scheduler.name()), Some(scheduler));
        }
        assert_eq!(Scheduler::from_code(4).name(), "unknown");
        assert_eq!(Scheduler::from_code(4).code(), 4);
    }
}
