//! CPUs, schedulers, pools, topology and settings, by hypercall.

use xen_hal::{
    Affinity, CpuMap, CpuPlace, CpuPool, HostControl, NumaNode, Placement, PoolSettings, Result,
    Scheduler, Share, Timed, Trigger, VcpuInfo,
};
use xen_sys::domctl::{self, GetVcpuInfo, SetTimeOffset};
use xen_sys::hypfs::{self, HypfsEntry};
use xen_sys::memory::{ForeignMemoryMap, MemoryMap, XENMEM_SET_MEMORY_MAP};
use xen_sys::schedule::{
    self, Bitmap, CpuPoolOp, CpuTopo, CpuTopoInfo, DomSchedulerOp, MemInfo, NodeAffinity, NumaInfo,
    PciDevice, PciTopoInfo, PoolCredit, PoolSchedulerOp, SchedCredit, SchedParamVcpu, SchedRtds,
    SendTrigger, VcpuAffinity,
};
use xen_sys::sysctl::{self, DebugKeys};
use xen_sys::xen::hypercall;
use xen_sys::{DomId, Errno, Plain, VcpuId};

use crate::buffer::Buffer;
use crate::hypervisor::{Hypervisor, failed};

/// Most CPUs, nodes or devices that are believed.
const MAX_ITEMS: u32 = 1 << 16;
/// Bits of a map: more than any Xen has CPUs. Xen fills in what it has and the rest with zero.
const MAP_BITS: u32 = 4096;
const MAP_BYTES: usize = MAP_BITS as usize / 8;
/// Longest setting that is written.
const MAX_VALUE: usize = 1024;

fn bitmap(buffer: &Buffer<'_>, at: usize) -> Bitmap {
    Bitmap {
        bitmap: buffer.address(at),
        nr_bits: MAP_BITS,
        pad0: 0,
    }
}

fn map_at(buffer: &Buffer<'_>, at: usize) -> CpuMap {
    CpuMap::from_bytes(&buffer.bytes()[at..at + MAP_BYTES], MAP_BITS)
}

fn timed(rtds: SchedRtds) -> Timed {
    Timed {
        period_us: rtds.period,
        budget_us: rtds.budget,
        extra_time: rtds.flags & schedule::SCHEDRT_EXTRA != 0,
    }
}

fn raw_timed(timed: Timed) -> SchedRtds {
    SchedRtds {
        period: timed.period_us,
        budget: timed.budget_us,
        flags: u32::from(timed.extra_time) * schedule::SCHEDRT_EXTRA,
    }
}

impl Placement for Hypervisor {
    #[doc(alias = "XEN_DOMCTL_getvcpuinfo")]
    fn vcpu_info(&self, dom: DomId, vcpu: VcpuId) -> Result<Option<VcpuInfo>> {
        let argument = GetVcpuInfo {
            vcpu,
            ..Plain::ZERO
        };
        let op = "XEN_DOMCTL_getvcpuinfo";
        match self.domctl(op, domctl::GETVCPUINFO, dom, &argument) {
            Ok(payload) => {
                let raw: GetVcpuInfo = payload.get();
                Ok(Some(VcpuInfo {
                    online: raw.online != 0,
                    blocked: raw.blocked != 0,
                    running: raw.running != 0,
                    cpu_time_ns: raw.cpu_time,
                    cpu: raw.cpu,
                }))
            }
            Err(xen_hal::Error::Hypercall {
                errno: Errno::ESRCH | Errno::EINVAL | Errno::ENOENT,
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    #[doc(alias = "XEN_DOMCTL_getvcpuaffinity")]
    fn affinity(&self, dom: DomId, vcpu: VcpuId) -> Result<Affinity> {
        let buffer = self.buffer(2 * MAP_BYTES)?;
        let argument = VcpuAffinity {
            vcpu: vcpu.0,
            flags: schedule::VCPUAFFINITY_HARD | schedule::VCPUAFFINITY_SOFT,
            hard: bitmap(&buffer, 0),
            soft: bitmap(&buffer, MAP_BYTES),
        };
        let op = "XEN_DOMCTL_getvcpuaffinity";
        self.domctl(op, domctl::GETVCPUAFFINITY, dom, &argument)?;
        Ok(Affinity {
            hard: map_at(&buffer, 0),
            soft: map_at(&buffer, MAP_BYTES),
        })
    }

    #[doc(alias = "XEN_DOMCTL_setvcpuaffinity")]
    fn set_affinity(
        &self,
        dom: DomId,
        vcpu: VcpuId,
        hard: Option<&CpuMap>,
        soft: Option<&CpuMap>,
        force: bool,
    ) -> Result<()> {
        let mut buffer = self.buffer(2 * MAP_BYTES)?;
        let mut flags = 0;
        if force {
            flags |= schedule::VCPUAFFINITY_FORCE;
        }
        for (map, at, flag) in [
            (hard, 0, schedule::VCPUAFFINITY_HARD),
            (soft, MAP_BYTES, schedule::VCPUAFFINITY_SOFT),
        ] {
            if let Some(map) = map {
                buffer.bytes_mut()[at..at + MAP_BYTES].copy_from_slice(&map.to_bytes(MAP_BITS));
                flags |= flag;
            }
        }
        let argument = VcpuAffinity {
            vcpu: vcpu.0,
            flags,
            hard: bitmap(&buffer, 0),
            soft: bitmap(&buffer, MAP_BYTES),
        };
        let op = "XEN_DOMCTL_setvcpuaffinity";
        self.domctl(op, domctl::SETVCPUAFFINITY, dom, &argument)
            .map(drop)
    }

    #[doc(alias = "XEN_DOMCTL_scheduler_op")]
    fn share(&self, dom: DomId, scheduler: Scheduler) -> Result<Share> {
        let answer = self.dom_scheduler(dom, scheduler, schedule::DOM_GETINFO, &0u8)?;
        Ok(match scheduler {
            Scheduler::Rtds => Share::Timed(timed(first(answer.parameters.as_bytes()))),
            _ => {
                let credit: SchedCredit = first(answer.parameters.as_bytes());
                Share::Weighted {
                    weight: credit.weight,
                    cap: credit.cap,
                }
            }
        })
    }

    fn set_share(&self, dom: DomId, scheduler: Scheduler, share: Share) -> Result<()> {
        let cmd = schedule::DOM_PUTINFO;
        match share {
            Share::Weighted { weight, cap } => {
                self.dom_scheduler(dom, scheduler, cmd, &SchedCredit { weight, cap })
            }
            Share::Timed(share) => self.dom_scheduler(dom, scheduler, cmd, &raw_timed(share)),
        }
        .map(drop)
    }

    #[doc(alias = "XEN_SYSCTL_cpupool_op")]
    fn pools(&self) -> Result<Vec<CpuPool>> {
        let mut pools = Vec::new();
        let mut next = 0;
        loop {
            let buffer = self.buffer(MAP_BYTES)?;
            let argument = CpuPoolOp {
                op: schedule::POOL_INFO,
                cpupool_id: next,
                cpumap: bitmap(&buffer, 0),
                ..Plain::ZERO
            };
            let op = "XEN_SYSCTL_CPUPOOL_OP_INFO";
            let answer = match self.sysctl(op, schedule::CPUPOOL_OP, &argument) {
                Ok(payload) => payload.get::<CpuPoolOp>(),
                // There is none at or above this number.
                Err(xen_hal::Error::Hypercall {
                    errno: Errno::ENOENT,
                    ..
                }) => return Ok(pools),
                Err(error) => return Err(error),
            };
            pools.push(CpuPool {
                id: answer.cpupool_id,
                scheduler: Scheduler::from_code(answer.sched_id),
                domains: answer.n_dom,
                cpus: map_at(&buffer, 0),
            });
            match answer.cpupool_id.checked_add(1) {
                Some(number) if number > next => next = number,
                _ => return Ok(pools),
            }
        }
    }

    fn move_to_pool(&self, dom: DomId, pool: u32) -> Result<()> {
        self.pool_op(
            "XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN",
            schedule::POOL_MOVEDOMAIN,
            pool,
            0,
            dom,
        )
    }

    #[doc(alias = "XENMEM_set_memory_map")]
    fn set_memory_map(&self, dom: DomId, kib: u64) -> Result<()> {
        const OP: &str = "XENMEM_set_memory_map";
        const LIST: usize = size_of::<ForeignMemoryMap>();
        /// `E820_RAM`.
        const RAM: u32 = 1;
        let mut buffer = self.buffer(LIST + 20)?;
        // One entry: address, length, kind.
        buffer.put(LIST, &0u64);
        buffer.put(LIST + 8, &kib.saturating_mul(1024));
        buffer.put(LIST + 16, &RAM);
        let argument = ForeignMemoryMap {
            domid: dom,
            map: MemoryMap {
                nr_entries: 1,
                buffer: buffer.address(LIST),
                ..Plain::ZERO
            },
            ..Plain::ZERO
        };
        buffer.put(0, &argument);
        let args = [XENMEM_SET_MEMORY_MAP.into(), buffer.address(0), 0, 0, 0];
        self.call(hypercall::MEMORY_OP, args, &mut buffer)
            .map(drop)
            .map_err(|errno| failed(OP, dom, errno))
    }

    fn set_time_offset(&self, dom: DomId, seconds: i64) -> Result<()> {
        let argument = SetTimeOffset {
            time_offset_seconds: seconds,
        };
        let op = "XEN_DOMCTL_settimeoffset";
        self.domctl(op, domctl::SETTIMEOFFSET, dom, &argument)
            .map(drop)
    }

    fn set_uuid(&self, dom: DomId, uuid: &[u8; 16]) -> Result<()> {
        let op = "XEN_DOMCTL_setdomainhandle";
        self.domctl(op, domctl::SETDOMAINHANDLE, dom, uuid)
            .map(drop)
    }

    #[doc(alias = "XEN_SYSCTL_cputopoinfo")]
    fn topology(&self) -> Result<Vec<Option<CpuPlace>>> {
        const OP: &str = "XEN_SYSCTL_cputopoinfo";
        const SIZE: usize = size_of::<CpuTopo>();
        let wanted: CpuTopoInfo = self
            .sysctl(OP, schedule::CPUTOPOINFO, &CpuTopoInfo::ZERO)?
            .get();
        let count = wanted.num_cpus.min(MAX_ITEMS);
        let buffer = self.buffer(count as usize * SIZE)?;
        let argument = CpuTopoInfo {
            num_cpus: count,
            cputopo: buffer.address(0),
            ..Plain::ZERO
        };
        let answer: CpuTopoInfo = self.sysctl(OP, schedule::CPUTOPOINFO, &argument)?.get();
        let place = |index: u32| {
            let raw: CpuTopo = buffer.get(index as usize * SIZE);
            (raw.core != schedule::INVALID_CORE).then_some(CpuPlace {
                core: raw.core,
                socket: raw.socket,
                node: raw.node,
            })
        };
        Ok((0..answer.num_cpus.min(count)).map(place).collect())
    }
}

impl HostControl for Hypervisor {
    fn node_affinity(&self, dom: DomId) -> Result<CpuMap> {
        let buffer = self.buffer(MAP_BYTES)?;
        let argument = NodeAffinity {
            nodemap: bitmap(&buffer, 0),
        };
        let op = "XEN_DOMCTL_getnodeaffinity";
        self.domctl(op, schedule::GETNODEAFFINITY, dom, &argument)?;
        Ok(map_at(&buffer, 0))
    }

    fn vcpu_shares(&self, dom: DomId, vcpus: &[VcpuId]) -> Result<Vec<Timed>> {
        let raw = |vcpu: &VcpuId| SchedParamVcpu {
            rtds: Plain::ZERO,
            vcpuid: vcpu.0,
        };
        let list: Vec<_> = vcpus.iter().map(raw).collect();
        let list = self.vcpu_scheduler(dom, schedule::DOM_GETVCPUINFO, &list)?;
        Ok(list.into_iter().map(|raw| timed(raw.rtds)).collect())
    }

    fn set_vcpu_shares(&self, dom: DomId, shares: &[(VcpuId, Timed)]) -> Result<()> {
        let raw = |(vcpu, share): &(VcpuId, Timed)| SchedParamVcpu {
            rtds: raw_timed(*share),
            vcpuid: vcpu.0,
        };
        let list: Vec<_> = shares.iter().map(raw).collect();
        self.vcpu_scheduler(dom, schedule::DOM_PUTVCPUINFO, &list)
            .map(drop)
    }

    #[doc(alias = "XEN_SYSCTL_scheduler_op")]
    fn pool_settings(&self, pool: u32, scheduler: Scheduler) -> Result<PoolSettings> {
        self.pool_scheduler(pool, scheduler, schedule::SCHED_GETINFO, [0; 4])
    }

    fn set_pool_settings(
        &self,
        pool: u32,
        scheduler: Scheduler,
        settings: PoolSettings,
    ) -> Result<PoolSettings> {
        let parameters = match scheduler {
            Scheduler::Credit => [
                settings.time_slice_ms,
                settings.rate_limit_us,
                settings.migration_delay_us,
                0,
            ],
            _ => [settings.rate_limit_us, 0, 0, 0],
        };
        self.pool_scheduler(pool, scheduler, schedule::SCHED_PUTINFO, parameters)
    }

    fn free_cpus(&self) -> Result<CpuMap> {
        let buffer = self.buffer(MAP_BYTES)?;
        let argument = CpuPoolOp {
            op: schedule::POOL_FREEINFO,
            cpumap: bitmap(&buffer, 0),
            ..Plain::ZERO
        };
        let op = "XEN_SYSCTL_CPUPOOL_OP_FREEINFO";
        self.sysctl(op, schedule::CPUPOOL_OP, &argument)?;
        Ok(map_at(&buffer, 0))
    }

    fn create_pool(&self, scheduler: Scheduler) -> Result<u32> {
        let argument = CpuPoolOp {
            op: schedule::POOL_CREATE,
            cpupool_id: schedule::POOL_ANY,
            sched_id: scheduler.code(),
            ..Plain::ZERO
        };
        let op = "XEN_SYSCTL_CPUPOOL_OP_CREATE";
        let answer = self.sysctl(op, schedule::CPUPOOL_OP, &argument)?;
        Ok(answer.get::<CpuPoolOp>().cpupool_id)
    }

    fn destroy_pool(&self, pool: u32) -> Result<()> {
        self.pool_op(
            "XEN_SYSCTL_CPUPOOL_OP_DESTROY",
            schedule::POOL_DESTROY,
            pool,
            0,
            DomId::DOM0,
        )
    }

    fn add_cpu(&self, pool: u32, cpu: u32) -> Result<()> {
        self.pool_op(
            "XEN_SYSCTL_CPUPOOL_OP_ADDCPU",
            schedule::POOL_ADDCPU,
            pool,
            cpu,
            DomId::DOM0,
        )
    }

    fn remove_cpu(&self, pool: u32, cpu: u32) -> Result<()> {
        self.pool_op(
            "XEN_SYSCTL_CPUPOOL_OP_RMCPU",
            schedule::POOL_RMCPU,
            pool,
            cpu,
            DomId::DOM0,
        )
    }

    #[doc(alias = "XEN_SYSCTL_numainfo")]
    fn numa(&self) -> Result<Vec<Option<NumaNode>>> {
        const OP: &str = "XEN_SYSCTL_numainfo";
        const MAX_NODES: u32 = 1024;
        const SIZE: usize = size_of::<MemInfo>();
        let wanted: NumaInfo = self.sysctl(OP, schedule::NUMAINFO, &NumaInfo::ZERO)?.get();
        let count = wanted.num_nodes.min(MAX_NODES) as usize;
        let memory = self.buffer(count * SIZE)?;
        let distances = self.buffer(count * count * 4)?;
        let argument = NumaInfo {
            num_nodes: count as u32,
            meminfo: memory.address(0),
            distance: distances.address(0),
            ..Plain::ZERO
        };
        let answer: NumaInfo = self.sysctl(OP, schedule::NUMAINFO, &argument)?.get();
        let count = (answer.num_nodes as usize).min(count);
        let node = |index: usize| {
            let raw: MemInfo = memory.get(index * SIZE);
            let row = (0..count).map(|to| distances.get(4 * (index * count + to)));
            (raw.memsize != schedule::INVALID_MEM).then(|| NumaNode {
                bytes: raw.memsize,
                free_bytes: raw.memfree,
                distances: row.collect(),
            })
        };
        Ok((0..count).map(node).collect())
    }

    #[doc(alias = "XEN_SYSCTL_pcitopoinfo")]
    fn pci_nodes(&self, devices: &[(u16, u8, u8)]) -> Result<Vec<Option<u32>>> {
        const OP: &str = "XEN_SYSCTL_pcitopoinfo";
        const DEVICE: usize = size_of::<PciDevice>();
        let mut nodes = Vec::new();
        // Xen does part of a long list at a time.
        while nodes.len() < devices.len() {
            let rest = &devices[nodes.len()..];
            let rest = &rest[..rest.len().min(MAX_ITEMS as usize)];
            let mut list = self.buffer(rest.len() * (DEVICE + 4))?;
            for (index, (segment, bus, devfn)) in rest.iter().enumerate() {
                let [low, high] = segment.to_le_bytes();
                list.put(index * DEVICE, &[low, high, *bus, *devfn]);
            }
            let argument = PciTopoInfo {
                num_devs: rest.len() as u32,
                devs: list.address(0),
                nodes: list.address(rest.len() * DEVICE),
                ..Plain::ZERO
            };
            let answer: PciTopoInfo = self.sysctl(OP, schedule::PCITOPOINFO, &argument)?.get();
            let done = (answer.num_devs as usize).min(rest.len());
            if done == 0 {
                return Err(failed(OP, DomId::SELF, Errno::ENODEV));
            }
            for index in 0..done {
                let node: u32 = list.get(rest.len() * DEVICE + 4 * index);
                // XEN_INVALID_NODE_ID and XEN_INVALID_DEV.
                nodes.push((node < schedule::INVALID_NODE - 1).then_some(node));
            }
        }
        Ok(nodes)
    }

    #[doc(alias = "XEN_SYSCTL_debug_keys")]
    fn debug_keys(&self, keys: &[u8]) -> Result<()> {
        let mut buffer = self.buffer(keys.len())?;
        buffer.bytes_mut()[..keys.len()].copy_from_slice(keys);
        let argument = DebugKeys {
            keys: buffer.address(0),
            nr_keys: keys.len() as u32,
            ..Plain::ZERO
        };
        self.sysctl("XEN_SYSCTL_debug_keys", sysctl::DEBUG_KEYS, &argument)
            .map(drop)
    }

    #[doc(alias = "XEN_DOMCTL_sendtrigger")]
    fn trigger(&self, dom: DomId, vcpu: VcpuId, trigger: Trigger) -> Result<()> {
        let trigger = match trigger {
            Trigger::Nmi => schedule::TRIGGER_NMI,
            Trigger::Reset => schedule::TRIGGER_RESET,
            Trigger::Init => schedule::TRIGGER_INIT,
            Trigger::Power => schedule::TRIGGER_POWER,
            Trigger::Sleep => schedule::TRIGGER_SLEEP,
        };
        let argument = SendTrigger {
            trigger,
            vcpu: vcpu.0,
        };
        let op = "XEN_DOMCTL_sendtrigger";
        self.domctl(op, domctl::SENDTRIGGER, dom, &argument)
            .map(drop)
    }

    fn set_parameter(&self, name: &str, value: &str) -> Result<()> {
        const OP: &str = "XEN_HYPFS_OP_write_contents";
        let wrong = || failed(OP, DomId::SELF, Errno::EINVAL);
        let path = format!("/params/{name}");
        if path.len() >= hypfs::HYPFS_MAX_PATHLEN || path.contains('\0') || value.len() > MAX_VALUE
        {
            return Err(wrong());
        }
        let entry = self.hypfs_entry(&path)?;
        let content = match entry.kind {
            hypfs::HYPFS_TYPE_BOOL => vec![u8::from(truth(value).ok_or_else(wrong)?)],
            hypfs::HYPFS_TYPE_UINT | hypfs::HYPFS_TYPE_INT => {
                let number: i64 = value.parse().map_err(|_| wrong())?;
                let len = entry.content_len as usize;
                let bytes = number.to_le_bytes();
                bytes.get(..len).ok_or_else(wrong)?.to_vec()
            }
            hypfs::HYPFS_TYPE_STRING => [value.as_bytes(), b"\0"].concat(),
            _ => return Err(wrong()),
        };
        if content.len() > entry.max_write_len as usize {
            let errno = match entry.max_write_len {
                0 => Errno::EACCES,
                _ => Errno::E2BIG,
            };
            return Err(failed(OP, DomId::SELF, errno));
        }
        let at = path.len() + 1;
        let mut buffer = self.buffer(at + content.len())?;
        buffer.bytes_mut()[..path.len()].copy_from_slice(path.as_bytes());
        buffer.bytes_mut()[at..at + content.len()].copy_from_slice(&content);
        let args = [
            hypfs::HYPFS_OP_WRITE_CONTENTS,
            buffer.address(0),
            at as u64,
            buffer.address(at),
            content.len() as u64,
        ];
        self.call(hypercall::HYPFS_OP, args, &mut buffer)
            .map(drop)
            .map_err(|errno| failed(OP, DomId::SELF, errno))
    }
}

impl Hypervisor {
    fn dom_scheduler<T: Plain>(
        &self,
        dom: DomId,
        scheduler: Scheduler,
        cmd: u32,
        parameters: &T,
    ) -> Result<DomSchedulerOp> {
        let mut argument = DomSchedulerOp {
            sched_id: scheduler.code(),
            cmd,
            parameters: [0; 2],
        };
        let bytes = parameters.as_bytes();
        argument.parameters.as_bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        let op = "XEN_DOMCTL_scheduler_op";
        Ok(self.domctl(op, domctl::SCHEDULER_OP, dom, &argument)?.get())
    }

    /// Asks for or sets all of a list, of which Xen may do part at a time.
    fn vcpu_scheduler(
        &self,
        dom: DomId,
        cmd: u32,
        list: &[SchedParamVcpu],
    ) -> Result<Vec<SchedParamVcpu>> {
        const SIZE: usize = size_of::<SchedParamVcpu>();
        let mut out = Vec::new();
        while out.len() < list.len() {
            let rest = &list[out.len()..];
            let mut buffer = self.buffer(rest.len() * SIZE)?;
            for (index, item) in rest.iter().enumerate() {
                buffer.put(index * SIZE, item);
            }
            let parameters = [buffer.address(0), rest.len() as u64];
            let answer = self.dom_scheduler(dom, Scheduler::Rtds, cmd, &parameters)?;
            let done = (answer.parameters[1] as u32 as usize).min(rest.len());
            if done == 0 {
                return Err(failed("XEN_DOMCTL_scheduler_op", dom, Errno::EINVAL));
            }
            out.extend((0..done).map(|index| buffer.get::<SchedParamVcpu>(index * SIZE)));
        }
        Ok(out)
    }

    fn pool_scheduler(
        &self,
        pool: u32,
        scheduler: Scheduler,
        cmd: u32,
        parameters: [u32; 4],
    ) -> Result<PoolSettings> {
        let argument = PoolSchedulerOp {
            cpupool_id: pool,
            sched_id: scheduler.code(),
            cmd,
            pad0: 0,
            parameters: first(parameters.as_bytes()),
        };
        let op = "XEN_SYSCTL_scheduler_op";
        let payload = self.sysctl(op, schedule::SCHEDULER_OP, &argument)?;
        let answer: PoolSchedulerOp = payload.get();
        let raw: PoolCredit = first(answer.parameters.as_bytes());
        Ok(match scheduler {
            Scheduler::Credit => PoolSettings {
                time_slice_ms: raw.tslice_ms,
                rate_limit_us: raw.ratelimit_us,
                migration_delay_us: raw.vcpu_migr_delay_us,
            },
            // Here it comes first.
            _ => PoolSettings {
                time_slice_ms: 0,
                rate_limit_us: raw.tslice_ms,
                migration_delay_us: 0,
            },
        })
    }

    fn pool_op(
        &self,
        name: &'static str,
        op: u32,
        cpupool_id: u32,
        cpu: u32,
        dom: DomId,
    ) -> Result<()> {
        let argument = CpuPoolOp {
            op,
            cpupool_id,
            cpu,
            domid: dom.0.into(),
            ..Plain::ZERO
        };
        self.sysctl(name, schedule::CPUPOOL_OP, &argument).map(drop)
    }

    fn hypfs_entry(&self, path: &str) -> Result<HypfsEntry> {
        const OP: &str = "XEN_HYPFS_OP_read";
        const ROOM: usize = 4096;
        let at = path.len() + 1;
        let mut buffer = self.buffer(at + ROOM)?;
        buffer.bytes_mut()[..path.len()].copy_from_slice(path.as_bytes());
        let args = [
            hypfs::HYPFS_OP_READ,
            buffer.address(0),
            at as u64,
            buffer.address(at),
            ROOM as u64,
        ];
        self.call(hypercall::HYPFS_OP, args, &mut buffer)
            .map_err(|errno| failed(OP, DomId::SELF, errno))?;
        Ok(buffer.get(at))
    }
}

/// The structure at the front of what Xen has written, which is long enough by its layout.
fn first<T: Plain>(bytes: &[u8]) -> T {
    T::from_prefix(bytes).unwrap_or(T::ZERO)
}

fn truth(word: &str) -> Option<bool> {
    match word {
        "yes" | "on" | "true" | "enable" | "1" => Some(true),
        "no" | "off" | "false" | "disable" | "0" => Some(false),
        _ => None,
    }
}
