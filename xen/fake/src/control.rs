//! Domain control: what a toolstack asks of the hypervisor, with memory that is counted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use xen_hal::{
    CreateDomain, DomainControl, DomainFlags, DomainInfo, Error, HostInfo, Result, ShutdownReason,
    VcpuStart, XenVersion,
};
use xen_ring::SharedMemory;
use xen_sys::{DomId, Errno, GrantRef, Mfn, Pfn, Port, VcpuId};

use crate::events::{Channel, ChannelState};
use crate::memory::{Slot, View};
use crate::placement::{CPUS, Places};
use crate::tables::{self, Frames};
use crate::world::{DomainState, Shared, State};
use crate::{Call, World};

/// Frame numbers start here, so that one is never taken for a guest's own.
pub(crate) const FIRST_FRAME: u64 = 0x10_0000;
/// Memory of the host in pages, unless the test says otherwise: 128 MiB.
pub(crate) const DEFAULT_MEMORY_PAGES: u64 = 32_768;
const KIB_PER_PAGE: u64 = 4;

/// The hypervisor as domain 0's toolstack sees it. Every clone is the same.
#[derive(Clone)]
pub struct Control {
    pub(crate) world: Arc<Shared>,
}

/// Frames of a domain, mapped by domain 0; dropping it unmaps them.
pub struct FrameMapping {
    pub(crate) view: View,
    world: Arc<Shared>,
    id: u64,
}

/// What the toolstack has made of a domain.
pub(crate) struct Build {
    spec: CreateDomain,
    paused: u32,
    vcpus: u32,
    max_pages: u64,
    claimed: u64,
    frames: Frames,
    physmap: BTreeMap<u64, Mfn>,
    pinned: BTreeSet<u64>,
    shared_info: Arc<Slot>,
    start: Option<VcpuStart>,
    pub(crate) places: Places,
}

impl Build {
    fn pages(&self) -> u64 {
        self.frames.len() as u64
    }

    pub(crate) fn set_uuid(&mut self, uuid: [u8; 16]) {
        self.spec.uuid = uuid;
    }

    fn info(&self, dom: DomId, shutdown: Option<ShutdownReason>) -> DomainInfo {
        DomainInfo {
            dom,
            flags: DomainFlags {
                shutdown: shutdown.is_some(),
                paused: self.paused > 0,
                blocked: self.paused == 0,
                ..DomainFlags::default()
            },
            shutdown_reason: shutdown,
            total_pages: self.pages(),
            outstanding_pages: self.claimed,
            max_pages: self.max_pages,
            shared_info_frame: frame_of(&self.shared_info),
            cpu_time_ns: 0,
            online_vcpus: u32::from(self.start.is_some()),
            max_vcpu_id: self.vcpus.saturating_sub(1),
            uuid: self.spec.uuid,
            ssidref: 0,
            cpupool: self.spec.cpupool,
        }
    }
}

/// `None` for domains that no toolstack has built.
fn info(dom: DomId, domain: &DomainState) -> Option<DomainInfo> {
    let build = domain.build.as_ref()?;
    Some(build.info(dom, domain.shutdown))
}

fn frame_of(slot: &Slot) -> Mfn {
    Mfn(FIRST_FRAME + slot.index() as u64)
}

fn failed<T>(op: &'static str, dom: DomId, errno: Errno) -> Result<T> {
    Err(Error::Hypercall { op, dom, errno })
}

impl State {
    fn frames_mapped(&self, dom: DomId) -> BTreeSet<u64> {
        let mappings = self.frame_mappings.values();
        let of_dom = mappings.filter(|(owner, _)| *owner == dom);
        of_dom.flat_map(|(_, frames)| frames).copied().collect()
    }

    fn free_pages(&self) -> u64 {
        let builds = self
            .domains
            .values()
            .filter_map(|domain| domain.build.as_ref());
        let used: u64 = builds.map(|build| build.pages() + build.claimed).sum();
        self.memory_pages.saturating_sub(used)
    }
}

impl Control {
    /// Counts a call, fails it if it is to fail, and gives the domain's state.
    pub(crate) fn with<T>(
        &self,
        op: &'static str,
        dom: DomId,
        body: impl FnOnce(&mut Build, u64) -> Result<T, Errno>,
    ) -> Result<T> {
        self.hit(op, dom)?;
        let mut state = self.world.lock();
        let free = state.free_pages();
        let build = state
            .domains
            .get_mut(&dom.0)
            .and_then(|domain| domain.build.as_mut());
        let Some(build) = build else {
            return failed(op, dom, Errno::ESRCH);
        };
        body(build, free).or_else(|errno| failed(op, dom, errno))
    }

    fn hit(&self, op: &'static str, dom: DomId) -> Result<()> {
        let faults = &self.world.faults;
        // Both are counted, whichever fails.
        let fails = [Call::AnyControl, Call::Control(op)].map(|call| faults.hit(call));
        if fails.contains(&true) {
            return failed(op, dom, Errno::ENOMEM);
        }
        Ok(())
    }

    /// The machine frame behind one of the guest's own frame numbers.
    pub fn frame(&self, dom: DomId, pfn: Pfn) -> Option<Mfn> {
        let state = self.world.lock();
        state
            .domains
            .get(&dom.0)?
            .build
            .as_ref()?
            .physmap
            .get(&pfn.0)
            .copied()
    }

    /// How the first vCPU starts, once that was set.
    pub fn start(&self, dom: DomId) -> Option<VcpuStart> {
        let state = self.world.lock();
        state.domains.get(&dom.0)?.build.as_ref()?.start
    }

    /// The frame that an address of the guest's first vCPU leads to, and whether it may write there.
    pub fn translate(&self, dom: DomId, address: u64) -> Option<(Mfn, bool)> {
        let state = self.world.lock();
        let build = state.domains.get(&dom.0)?.build.as_ref()?;
        tables::translate(&build.frames, build.start?.l4, address)
    }
}

impl DomainControl for Control {
    type Mapping = FrameMapping;

    fn host(&self) -> Result<HostInfo> {
        let state = self.world.lock();
        Ok(HostInfo {
            version: XenVersion {
                major: 4,
                minor: 17,
            },
            extra_version: ".0-fake".into(),
            capabilities: "xen-3.0-x86_64".into(),
            changeset: String::new(),
            command_line: String::new(),
            compiled: Default::default(),
            build_id: String::new(),
            scheduler: "credit2".into(),
            platform_parameters: "virt_start=0xffff800000000000".into(),
            cpus: CPUS,
            max_cpu_id: CPUS - 1,
            nodes: 2,
            cores_per_socket: 2,
            threads_per_core: 1,
            cpu_khz: 1_000_000,
            hw_cap: [0; 8],
            physcap: 0,
            total_pages: state.memory_pages,
            free_pages: state.free_pages() + outstanding(&state),
            scrub_pages: 0,
            outstanding_pages: outstanding(&state),
        })
    }

    fn console_log(&self, _max_bytes: usize, _clear: bool) -> Result<Vec<u8>> {
        Ok(b"(XEN) fake\n".to_vec())
    }

    fn create(&self, wanted: Option<DomId>, spec: &CreateDomain) -> Result<DomId> {
        const OP: &str = "XEN_DOMCTL_createdomain";
        self.hit(OP, wanted.unwrap_or(DomId(0x7ff4)))?;
        let shared_info = self.world.arena.alloc();
        let mut state = self.world.lock();
        let dom = match wanted {
            Some(dom) if dom == DomId::DOM0 || !dom.is_ordinary() => {
                return failed(OP, dom, Errno::EINVAL);
            }
            Some(dom) if state.domains.contains_key(&dom.0) => {
                return failed(OP, dom, Errno::EEXIST);
            }
            Some(dom) => dom,
            None => state.new_dom(),
        };
        let Some(shared_info) = shared_info else {
            return failed(OP, dom, Errno::ENOMEM);
        };
        let build = Build {
            spec: spec.clone(),
            paused: 1,
            vcpus: 0,
            max_pages: 0,
            claimed: 0,
            frames: Frames::new(),
            physmap: BTreeMap::new(),
            pinned: BTreeSet::new(),
            shared_info,
            start: None,
            places: Places::new(),
        };
        let domain = DomainState {
            build: Some(build),
            ..DomainState::new()
        };
        state.domains.insert(dom.0, domain);
        Ok(dom)
    }

    fn destroy(&self, dom: DomId) -> Result<()> {
        const OP: &str = "XEN_DOMCTL_destroydomain";
        self.hit(OP, dom)?;
        let world = World(self.world.clone());
        if dom == DomId::DOM0 || !world.is_alive(dom) {
            return failed(OP, dom, Errno::ESRCH);
        }
        world.destroy_domain(dom);
        Ok(())
    }

    fn pause(&self, dom: DomId) -> Result<()> {
        self.with("XEN_DOMCTL_pausedomain", dom, |build, _| {
            build.paused += 1;
            Ok(())
        })
    }

    /// Xen itself would let a guest start whose memory domain 0 can still write to. That guest is then refused
    /// its own descriptor and page tables, if it is fast enough.
    fn unpause(&self, dom: DomId) -> Result<()> {
        if !self.world.lock().frames_mapped(dom).is_empty() {
            let said = format!("domain {dom}: starts while domain 0 still has its memory mapped");
            self.world.lock().refusals.push(said);
            return failed("XEN_DOMCTL_unpausedomain", dom, Errno::EINVAL);
        }
        self.with("XEN_DOMCTL_unpausedomain", dom, |build, _| {
            build.paused = build.paused.checked_sub(1).ok_or(Errno::EINVAL)?;
            Ok(())
        })
    }

    fn remote_shutdown(&self, dom: DomId, reason: ShutdownReason) -> Result<()> {
        self.with("SCHEDOP_remote_shutdown", dom, |_, _| Ok(()))?;
        World(self.world.clone()).shut_down(dom, reason);
        Ok(())
    }

    fn info(&self, dom: DomId) -> Result<Option<DomainInfo>> {
        self.hit("XEN_DOMCTL_getdomaininfo", dom)?;
        let state = self.world.lock();
        Ok(state
            .domains
            .get(&dom.0)
            .and_then(|domain| info(dom, domain)))
    }

    fn list(&self) -> Result<Vec<DomainInfo>> {
        self.hit("XEN_SYSCTL_getdomaininfolist", DomId::DOM0)?;
        let state = self.world.lock();
        let all = state.domains.iter();
        Ok(all
            .filter_map(|(&dom, domain)| info(DomId(dom), domain))
            .collect())
    }

    fn set_max_vcpus(&self, dom: DomId, count: u32) -> Result<()> {
        self.with("XEN_DOMCTL_max_vcpus", dom, |build, _| {
            if count == 0 || count > build.spec.max_vcpus {
                return Err(Errno::EINVAL);
            }
            build.vcpus = count;
            Ok(())
        })
    }

    fn set_max_mem(&self, dom: DomId, kib: u64) -> Result<()> {
        self.with("XEN_DOMCTL_max_mem", dom, |build, _| {
            build.max_pages = kib / KIB_PER_PAGE;
            Ok(())
        })
    }

    fn set_address_size(&self, dom: DomId, bits: u32) -> Result<()> {
        self.with("XEN_DOMCTL_set_address_size", dom, |build, _| {
            // As Xen: only while the domain has no memory.
            match (bits, build.pages()) {
                (64, 0) => Ok(()),
                (64, _) => Err(Errno::EACCES),
                _ => Err(Errno::EINVAL),
            }
        })
    }

    fn claim_pages(&self, dom: DomId, pages: u64) -> Result<()> {
        self.with("XENMEM_claim_pages", dom, |build, free| {
            if pages == 0 {
                build.claimed = 0;
                return Ok(());
            }
            let more = pages.checked_sub(build.pages()).ok_or(Errno::EINVAL)?;
            if build.claimed > 0 || pages > build.max_pages {
                return Err(Errno::EINVAL);
            }
            if more > free {
                return Err(Errno::ENOMEM);
            }
            build.claimed = more;
            Ok(())
        })
    }

    fn populate(&self, dom: DomId, first: Pfn, count: u64, _order: u32) -> Result<Vec<Mfn>> {
        let arena = self.world.arena.clone();
        self.with("XENMEM_populate_physmap", dom, |build, free| {
            if build.pages() + count > build.max_pages || count > free + build.claimed {
                return Err(Errno::ENOMEM);
            }
            let mut frames = Vec::new();
            for pfn in first.0..first.0 + count {
                let slot = arena.alloc().ok_or(Errno::ENOMEM)?;
                let frame = frame_of(&slot);
                build.claimed = build.claimed.saturating_sub(1);
                build.frames.insert(frame.0, slot);
                build.physmap.insert(pfn, frame);
                frames.push(frame);
            }
            Ok(frames)
        })
    }

    fn map_frames(&self, dom: DomId, frames: &[Mfn]) -> Result<FrameMapping> {
        let view = self.with("IOCTL_PRIVCMD_MMAPBATCH_V2", dom, |build, _| {
            let own = frame_of(&build.shared_info);
            let slot = |frame: &Mfn| match build.frames.get(&frame.0) {
                None if *frame == own => Ok(build.shared_info.clone()),
                None => Err(Errno::EINVAL),
                // A pinned table is written by nobody but Xen.
                Some(_) if build.pinned.contains(&frame.0) => Err(Errno::EINVAL),
                Some(slot) => Ok(slot.clone()),
            };
            let slots = frames.iter().map(slot).collect::<Result<Vec<_>, _>>()?;
            View::new(slots, true).map_err(|_| Errno::ENOMEM)
        })?;
        let mut state = self.world.lock();
        let id = state.new_id();
        let numbers = frames.iter().map(|frame| frame.0).collect();
        state.frame_mappings.insert(id, (dom, numbers));
        drop(state);
        Ok(FrameMapping {
            view,
            world: self.world.clone(),
            id,
        })
    }

    fn pin_l4(&self, dom: DomId, table: Mfn) -> Result<()> {
        let mapped = self.world.lock().frames_mapped(dom);
        let mut refusal = None;
        let result = self.with("MMUEXT_PIN_L4_TABLE", dom, |build, _| {
            let checked = tables::check(&build.frames, table).and_then(|tables| {
                // A frame is a table or writable, never both.
                match tables.iter().find(|frame| mapped.contains(frame)) {
                    Some(frame) => Err(format!("domain 0 still has table {frame:#x} mapped")),
                    None => Ok(tables),
                }
            });
            match checked {
                Ok(tables) => build.pinned.extend(tables),
                Err(why) => {
                    refusal = Some(why);
                    return Err(Errno::EINVAL);
                }
            }
            Ok(())
        });
        let said = refusal.map(|why| format!("domain {dom}: pin {:#x}: {why}", table.0));
        self.world.lock().refusals.extend(said);
        result
    }

    fn hypercall_init(&self, dom: DomId, page: Mfn) -> Result<()> {
        self.with("XEN_DOMCTL_hypercall_init", dom, |build, _| {
            build.frames.get(&page.0).map(|_| ()).ok_or(Errno::EACCES)
        })
    }

    fn set_tsc_mode(&self, dom: DomId, mode: u32) -> Result<()> {
        self.with("XEN_DOMCTL_settscinfo", dom, |_, _| {
            if mode > 2 { Err(Errno::EINVAL) } else { Ok(()) }
        })
    }

    fn set_default_cpu_policy(&self, dom: DomId) -> Result<()> {
        self.with("XEN_DOMCTL_set_cpu_policy", dom, |_, _| Ok(()))
    }

    fn start_vcpu(&self, dom: DomId, vcpu: VcpuId, start: &VcpuStart) -> Result<()> {
        self.with("XEN_DOMCTL_setvcpucontext", dom, |build, _| {
            if vcpu.0 >= build.vcpus || !build.pinned.contains(&start.l4.0) {
                return Err(Errno::EINVAL);
            }
            build.start = Some(*start);
            Ok(())
        })
    }

    fn alloc_unbound(&self, dom: DomId, remote: DomId) -> Result<Port> {
        const OP: &str = "EVTCHNOP_alloc_unbound";
        self.with(OP, dom, |_, _| Ok(()))?;
        let channel = Channel::new(ChannelState::Unbound { remote }, None);
        let port = self.world.lock().new_port(dom, channel);
        port.or_else(|errno| failed(OP, dom, errno))
    }

    fn seed_grants(&self, dom: DomId, grants: &[(GrantRef, DomId, Mfn)]) -> Result<()> {
        const OP: &str = "seed the grant table";
        self.hit(OP, dom)?;
        let mut state = self.world.lock();
        let Some(domain) = state.domains.get_mut(&dom.0) else {
            return failed(OP, dom, Errno::ESRCH);
        };
        for &(gref, peer, frame) in grants {
            let frames = domain.build.as_ref().map(|build| &build.frames);
            let slot = frames.and_then(|frames| frames.get(&frame.0)).cloned();
            match slot {
                Some(slot) if domain.table.is_reserved(gref) => domain.table.seed(gref, peer, slot),
                _ => return failed(OP, dom, Errno::EINVAL),
            }
        }
        Ok(())
    }
}

fn outstanding(state: &State) -> u64 {
    let builds = state
        .domains
        .values()
        .filter_map(|domain| domain.build.as_ref());
    builds.map(|build| build.claimed).sum()
}

impl Drop for FrameMapping {
    fn drop(&mut self) {
        self.world.lock().frame_mappings.remove(&self.id);
    }
}

impl std::fmt::Debug for FrameMapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FrameMapping({} bytes)", self.view.len())
    }
}
