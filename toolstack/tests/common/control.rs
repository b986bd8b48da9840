//! A hypervisor that keeps books: domains, their frames, what was mapped, what was pinned.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ptr::NonNull;
use std::rc::Rc;

use xen_hal::{
    Affinity, CpuMap, CpuPlace, CpuPool, CreateDomain, DomainControl, DomainFlags, DomainInfo,
    Error, HostInfo, Placement, Result, Scheduler, Share, ShutdownReason, Timed, VcpuInfo,
    VcpuStart, XenVersion,
};
use xen_ring::SharedMemory;
use xen_sys::{DomId, Errno, GrantRef, Mfn, Pfn, Port, VcpuId};

use super::Faults;

/// Pages that the host has.
const HOST_PAGES: u64 = 65_536;

type Frames = Rc<RefCell<HashMap<u64, Vec<u8>>>>;

/// The hypervisor.
pub struct FakeXen {
    pub faults: Faults,
    domains: RefCell<BTreeMap<u16, Domain>>,
    frames: Frames,
    next_frame: RefCell<u64>,
    next_dom: RefCell<u16>,
}

/// What is known of a domain.
#[derive(Clone, Debug, Default)]
pub struct Domain {
    pub uuid: [u8; 16],
    /// The machine frame of each page.
    pub p2m: Vec<u64>,
    pub shared_info: u64,
    pub ports: u32,
    pub claimed: u64,
    pub pauses: u32,
    pub pinned: Option<u64>,
    pub hypercall_page: Option<u64>,
    pub start: Option<VcpuStart>,
    pub grants: Vec<(GrantRef, DomId, Mfn)>,
    pub shutdown: Option<ShutdownReason>,
    /// What was asked for of each vCPU: where it may run, where it runs best.
    pub affinity: BTreeMap<u32, (Option<CpuMap>, Option<CpuMap>)>,
    pub share: Option<Share>,
    pub pool: u32,
    /// What its kernel was told of the memory that it may have.
    pub map_kib: Option<u64>,
}

/// Frames as they are mapped; what was written shows in the domain once it is dropped.
pub struct Mapping {
    frames: Frames,
    numbers: Vec<u64>,
    memory: Vec<u64>,
}

// SAFETY: the vector is never resized, is 8-aligned, and no reference to it is made while it is mapped.
unsafe impl SharedMemory for Mapping {
    fn base(&self) -> NonNull<u8> {
        NonNull::new(self.memory.as_ptr().cast_mut().cast()).unwrap()
    }

    fn len(&self) -> usize {
        self.memory.len() * 8
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let mut frames = self.frames.borrow_mut();
        for (number, words) in self.numbers.iter().zip(self.memory.chunks_exact(512)) {
            let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            frames.insert(*number, bytes);
        }
    }
}

impl FakeXen {
    pub fn new(faults: Faults) -> FakeXen {
        FakeXen {
            faults,
            domains: RefCell::default(),
            frames: Frames::default(),
            next_frame: RefCell::new(0x1000),
            next_dom: RefCell::new(1),
        }
    }

    /// The numbers of all domains.
    pub fn domains(&self) -> Vec<u16> {
        self.domains.borrow().keys().copied().collect()
    }

    /// Puts a domain there that somebody else has made.
    pub fn adopt(&self, dom: u16, uuid: [u8; 16]) {
        let domain = Domain {
            uuid,
            pauses: 1,
            ..Domain::default()
        };
        self.domains.borrow_mut().insert(dom, domain);
        *self.next_dom.borrow_mut() = dom + 1;
    }

    /// A copy of what is known of a domain.
    pub fn domain(&self, dom: DomId) -> Domain {
        self.domains.borrow()[&dom.0].clone()
    }

    /// A frame's bytes.
    pub fn frame(&self, mfn: u64) -> Vec<u8> {
        let frames = self.frames.borrow();
        frames.get(&mfn).cloned().unwrap_or_else(|| vec![0; 4096])
    }

    /// The u64 at a frame's offset.
    pub fn word(&self, mfn: u64, offset: usize) -> u64 {
        u64::from_le_bytes(self.frame(mfn)[offset..offset + 8].try_into().unwrap())
    }

    /// The machine frame that a domain's page tables map an address to.
    pub fn walk(&self, dom: DomId, address: u64) -> Option<u64> {
        let mut table = self.domain(dom).pinned?;
        for level in (1..=4).rev() {
            let index = (address >> (3 + 9 * level)) & 511;
            let entry = self.word(table, index as usize * 8);
            if entry & 1 == 0 {
                return None;
            }
            table = (entry >> 12) & ((1 << 40) - 1);
        }
        Some(table)
    }

    fn with<T>(
        &self,
        op: &'static str,
        dom: DomId,
        act: impl FnOnce(&mut Domain) -> T,
    ) -> Result<T> {
        let failed = |errno| Error::Hypercall { op, dom, errno };
        if self.faults.hit() {
            return Err(failed(Errno::EIO));
        }
        match self.domains.borrow_mut().get_mut(&dom.0) {
            Some(domain) => Ok(act(domain)),
            None => Err(failed(Errno::ESRCH)),
        }
    }

    fn take_frame(&self) -> u64 {
        let mut next = self.next_frame.borrow_mut();
        *next += 3;
        *next
    }

    fn used(&self) -> u64 {
        let domains = self.domains.borrow();
        domains
            .values()
            .map(|d| d.p2m.len() as u64 + d.claimed)
            .sum()
    }
}

impl DomainControl for FakeXen {
    type Mapping = Mapping;

    fn host(&self) -> Result<HostInfo> {
        Ok(HostInfo {
            version: XenVersion {
                major: 4,
                minor: 17,
            },
            extra_version: String::new(),
            capabilities: String::new(),
            changeset: String::new(),
            command_line: String::new(),
            compiled: Default::default(),
            build_id: String::new(),
            scheduler: String::new(),
            platform_parameters: String::new(),
            cpus: 1,
            max_cpu_id: 0,
            nodes: 1,
            cores_per_socket: 1,
            threads_per_core: 1,
            cpu_khz: 1,
            hw_cap: [0; 8],
            physcap: 0,
            total_pages: HOST_PAGES,
            free_pages: HOST_PAGES - self.used(),
            scrub_pages: 0,
            outstanding_pages: 0,
        })
    }

    fn console_log(&self, _: usize, _: bool) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn create(&self, _: Option<DomId>, spec: &CreateDomain) -> Result<DomId> {
        let dom = DomId(*self.next_dom.borrow());
        if self.faults.hit() {
            let op = "XEN_DOMCTL_createdomain";
            return Err(Error::Hypercall {
                op,
                dom,
                errno: Errno::EIO,
            });
        }
        *self.next_dom.borrow_mut() += 1;
        let domain = Domain {
            uuid: spec.uuid,
            shared_info: self.take_frame(),
            pauses: 1,
            ..Domain::default()
        };
        self.domains.borrow_mut().insert(dom.0, domain);
        Ok(dom)
    }

    fn destroy(&self, dom: DomId) -> Result<()> {
        self.with("XEN_DOMCTL_destroydomain", dom, |_| ())?;
        self.domains.borrow_mut().remove(&dom.0);
        Ok(())
    }

    fn pause(&self, dom: DomId) -> Result<()> {
        self.with("XEN_DOMCTL_pausedomain", dom, |d| d.pauses += 1)
    }

    fn unpause(&self, dom: DomId) -> Result<()> {
        self.with("XEN_DOMCTL_unpausedomain", dom, |d| d.pauses -= 1)
    }

    fn remote_shutdown(&self, dom: DomId, reason: ShutdownReason) -> Result<()> {
        self.with("SCHEDOP_remote_shutdown", dom, |d| {
            d.shutdown = Some(reason)
        })
    }

    fn info(&self, dom: DomId) -> Result<Option<DomainInfo>> {
        if self.faults.hit() {
            let op = "XEN_DOMCTL_getdomaininfo";
            return Err(Error::Hypercall {
                op,
                dom,
                errno: Errno::EIO,
            });
        }
        Ok(self.list()?.into_iter().find(|info| info.dom == dom))
    }

    fn list(&self) -> Result<Vec<DomainInfo>> {
        let domains = self.domains.borrow();
        let info = |(dom, domain): (&u16, &Domain)| DomainInfo {
            dom: DomId(*dom),
            flags: DomainFlags {
                paused: domain.pauses > 0,
                shutdown: domain.shutdown.is_some(),
                ..DomainFlags::default()
            },
            shutdown_reason: domain.shutdown,
            total_pages: domain.p2m.len() as u64,
            outstanding_pages: domain.claimed,
            max_pages: 0,
            shared_info_frame: Mfn(domain.shared_info),
            cpu_time_ns: 0,
            online_vcpus: 1,
            max_vcpu_id: 0,
            uuid: domain.uuid,
            ssidref: 0,
            cpupool: domain.pool,
        };
        Ok(domains.iter().map(info).collect())
    }

    fn set_max_vcpus(&self, dom: DomId, _: u32) -> Result<()> {
        self.with("XEN_DOMCTL_max_vcpus", dom, |_| ())
    }

    fn set_max_mem(&self, dom: DomId, _: u64) -> Result<()> {
        self.with("XEN_DOMCTL_max_mem", dom, |_| ())
    }

    fn set_address_size(&self, dom: DomId, _: u32) -> Result<()> {
        self.with("XEN_DOMCTL_set_address_size", dom, |_| ())
    }

    fn claim_pages(&self, dom: DomId, pages: u64) -> Result<()> {
        let free = HOST_PAGES - self.used();
        self.with("XENMEM_claim_pages", dom, |d| {
            if pages > free {
                return Err(Error::Hypercall {
                    op: "XENMEM_claim_pages",
                    dom,
                    errno: Errno::ENOMEM,
                });
            }
            d.claimed = pages;
            Ok(())
        })?
    }

    fn populate(&self, dom: DomId, first: Pfn, count: u64, _: u32) -> Result<Vec<Mfn>> {
        let frames: Vec<u64> = (0..count).map(|_| self.take_frame()).collect();
        self.with("XENMEM_populate_physmap", dom, |d| {
            assert_eq!(first.0, d.p2m.len() as u64);
            assert_eq!(d.claimed, count, "claimed before");
            d.claimed = 0;
            d.p2m = frames.clone();
        })?;
        Ok(frames.into_iter().map(Mfn).collect())
    }

    fn map_frames(&self, dom: DomId, frames: &[Mfn]) -> Result<Mapping> {
        self.with("IOCTL_PRIVCMD_MMAPBATCH_V2", dom, |d| {
            for frame in frames {
                assert!(d.p2m.contains(&frame.0) || frame.0 == d.shared_info);
            }
        })?;
        let numbers: Vec<u64> = frames.iter().map(|frame| frame.0).collect();
        let memory = numbers
            .iter()
            .flat_map(|number| {
                let bytes = self.frame(*number);
                let words = bytes.chunks_exact(8);
                words
                    .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
                    .collect::<Vec<_>>()
            })
            .collect();
        Ok(Mapping {
            frames: self.frames.clone(),
            numbers,
            memory,
        })
    }

    fn pin_l4(&self, dom: DomId, table: Mfn) -> Result<()> {
        self.with("MMUEXT_PIN_L4_TABLE", dom, |d| d.pinned = Some(table.0))
    }

    fn hypercall_init(&self, dom: DomId, page: Mfn) -> Result<()> {
        self.with("XEN_DOMCTL_hypercall_init", dom, |d| {
            d.hypercall_page = Some(page.0)
        })
    }

    fn set_tsc_mode(&self, dom: DomId, _: u32) -> Result<()> {
        self.with("XEN_DOMCTL_settscinfo", dom, |_| ())
    }

    fn set_default_cpu_policy(&self, dom: DomId) -> Result<()> {
        self.with("XEN_DOMCTL_set_cpu_policy", dom, |_| ())
    }

    fn start_vcpu(&self, dom: DomId, _: VcpuId, start: &VcpuStart) -> Result<()> {
        self.with("XEN_DOMCTL_setvcpucontext", dom, |d| d.start = Some(*start))
    }

    fn alloc_unbound(&self, dom: DomId, _: DomId) -> Result<Port> {
        self.with("EVTCHNOP_alloc_unbound", dom, |d| {
            d.ports += 1;
            Port(d.ports)
        })
    }

    fn seed_grants(&self, dom: DomId, grants: &[(GrantRef, DomId, Mfn)]) -> Result<()> {
        self.with("seed the grant table", dom, |d| d.grants = grants.to_vec())
    }
}

/// Four CPUs on two nodes, in a pool of two and one of two, and a pool of none under RTDS.
impl Placement for FakeXen {
    fn vcpu_info(&self, dom: DomId, _: VcpuId) -> Result<Option<VcpuInfo>> {
        self.with("XEN_DOMCTL_getvcpuinfo", dom, |_| None)
    }

    fn affinity(&self, dom: DomId, vcpu: VcpuId) -> Result<Affinity> {
        self.with("XEN_DOMCTL_getvcpuaffinity", dom, |domain| {
            let (hard, soft) = domain.affinity.get(&vcpu.0).cloned().unwrap_or_default();
            Affinity {
                hard: hard.unwrap_or(CpuMap::first(4)),
                soft: soft.unwrap_or(CpuMap::first(4)),
            }
        })
    }

    fn set_affinity(
        &self,
        dom: DomId,
        vcpu: VcpuId,
        hard: Option<&CpuMap>,
        soft: Option<&CpuMap>,
        _: bool,
    ) -> Result<()> {
        self.with("XEN_DOMCTL_setvcpuaffinity", dom, |domain| {
            let value = (hard.cloned(), soft.cloned());
            domain.affinity.insert(vcpu.0, value);
        })
    }

    fn share(&self, dom: DomId, scheduler: Scheduler) -> Result<Share> {
        let first = match scheduler {
            Scheduler::Rtds => Share::Timed(Timed {
                period_us: 10_000,
                budget_us: 4_000,
                extra_time: true,
            }),
            _ => Share::Weighted {
                weight: 256,
                cap: 0,
            },
        };
        self.with("XEN_DOMCTL_scheduler_op", dom, |domain| {
            domain.share.unwrap_or(first)
        })
    }

    fn set_share(&self, dom: DomId, _: Scheduler, share: Share) -> Result<()> {
        self.with("XEN_DOMCTL_scheduler_op", dom, |domain| {
            domain.share = Some(share);
        })
    }

    fn pools(&self) -> Result<Vec<CpuPool>> {
        let pool = |id: u32, scheduler| CpuPool {
            id,
            scheduler,
            domains: 0,
            cpus: [2 * id, 2 * id + 1].into_iter().collect(),
        };
        Ok(vec![
            pool(0, Scheduler::Credit2),
            pool(1, Scheduler::Credit),
            CpuPool {
                cpus: CpuMap::new(),
                ..pool(2, Scheduler::Rtds)
            },
        ])
    }

    fn move_to_pool(&self, dom: DomId, pool: u32) -> Result<()> {
        self.with("XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN", dom, |d| d.pool = pool)
    }

    fn set_memory_map(&self, dom: DomId, kib: u64) -> Result<()> {
        self.with("XENMEM_set_memory_map", dom, |d| d.map_kib = Some(kib))
    }

    fn set_time_offset(&self, dom: DomId, _: i64) -> Result<()> {
        self.with("XEN_DOMCTL_settimeoffset", dom, |_| ())
    }

    fn set_uuid(&self, dom: DomId, uuid: &[u8; 16]) -> Result<()> {
        self.with("XEN_DOMCTL_setdomainhandle", dom, |d| d.uuid = *uuid)
    }

    fn topology(&self) -> Result<Vec<Option<CpuPlace>>> {
        let place = |cpu| {
            Some(CpuPlace {
                core: cpu,
                socket: 0,
                node: cpu / 2,
            })
        };
        Ok((0..4).map(place).collect())
    }
}
