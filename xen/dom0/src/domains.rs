//! Domain control by hypercall.

use xen_hal::{
    CreateDomain, DomainControl, DomainInfo, HostInfo, Result, ShutdownReason, VcpuStart,
};
use xen_sys::arch_x86::{
    CpuidLeaf, FLAT_RING3_CS64, FLAT_RING3_DS64, FLAT_RING3_SS64, MsrEntry, VGCF_IN_KERNEL,
    VGCF_ONLINE, VcpuGuestContext,
};
use xen_sys::domctl::{
    self, AddressSize, CpuPolicy, HypercallInit, MaxMem, MaxVcpus, Payload, TscInfo, VcpuContext,
};
use xen_sys::event_channel::{
    AllocUnbound, EVTCHNOP_ALLOC_UNBOUND, EVTCHNOP_STATUS, EVTCHNSTAT_INTERDOMAIN, Status,
};
use xen_sys::memory::{MemoryReservation, XENMEM_CLAIM_PAGES, XENMEM_POPULATE_PHYSMAP};
use xen_sys::sched::{RemoteShutdown, SCHEDOP_REMOTE_SHUTDOWN};
use xen_sys::sysctl::{self, GetDomainInfoList};
use xen_sys::xen::{MMUEXT_PIN_L4_TABLE, MmuExtOp, hypercall};
use xen_sys::{DomId, Errno, GrantRef, Mfn, PAGE_SIZE, Pfn, Plain, Port, VcpuId};

use crate::hypervisor::{Hypervisor, failed};
use crate::mapping::ForeignMapping;

/// Domains listed per hypercall, if there are more than a page holds.
const LIST_BATCH: usize = 256;
/// Extents populated per hypercall.
const POPULATE_BATCH: u64 = 32 * 1024;
/// Interrupts enabled, in rflags.
const RFLAGS_IF: u64 = 1 << 9;
/// `ERESTART` of Linux and Xen: a long operation wants to be called again.
const ERESTART: Errno = Errno(85);

impl DomainControl for Hypervisor {
    type Mapping = ForeignMapping;

    fn host(&self) -> Result<HostInfo> {
        self.host_info()
    }

    fn console_log(&self, max_bytes: usize, clear: bool) -> Result<Vec<u8>> {
        self.read_console(max_bytes, clear)
    }

    #[doc(alias = "XEN_DOMCTL_createdomain")]
    fn create(&self, wanted: Option<DomId>, spec: &CreateDomain) -> Result<DomId> {
        const OP: &str = "XEN_DOMCTL_createdomain";
        // 0 or a reserved number lets Xen choose; asking for 0 by name is a mistake.
        let dom = match wanted {
            Some(dom) if dom == DomId::DOM0 || !dom.is_ordinary() => {
                return Err(failed(OP, dom, Errno::EINVAL));
            }
            Some(dom) => dom,
            None => DomId::INVALID,
        };
        let payload = self.release().create_payload(spec);
        Ok(self
            .domctl_raw(OP, domctl::CREATEDOMAIN, dom, payload)?
            .domain)
    }

    #[doc(alias = "XEN_DOMCTL_destroydomain")]
    fn destroy(&self, dom: DomId) -> Result<()> {
        const OP: &str = "XEN_DOMCTL_destroydomain";
        loop {
            match self.domctl_raw(OP, domctl::DESTROYDOMAIN, dom, Payload::ZERO) {
                Err(xen_hal::Error::Hypercall { errno, .. })
                    if errno == Errno::EAGAIN || errno == ERESTART => {}
                other => return other.map(drop),
            }
        }
    }

    fn pause(&self, dom: DomId) -> Result<()> {
        self.plain_domctl("XEN_DOMCTL_pausedomain", domctl::PAUSEDOMAIN, dom)
    }

    fn unpause(&self, dom: DomId) -> Result<()> {
        self.plain_domctl("XEN_DOMCTL_unpausedomain", domctl::UNPAUSEDOMAIN, dom)
    }

    fn remote_shutdown(&self, dom: DomId, reason: ShutdownReason) -> Result<()> {
        let argument = RemoteShutdown {
            domain_id: dom,
            reason: reason.code().into(),
            ..Plain::ZERO
        };
        self.simple_call(
            "SCHEDOP_remote_shutdown",
            hypercall::SCHED_OP,
            SCHEDOP_REMOTE_SHUTDOWN,
            dom,
            &argument,
        )
        .map(drop)
    }

    #[doc(alias = "XEN_DOMCTL_getdomaininfo")]
    fn info(&self, dom: DomId) -> Result<Option<DomainInfo>> {
        const OP: &str = "XEN_DOMCTL_getdomaininfo";
        match self.domctl(OP, domctl::GETDOMAININFO, dom, &0u8) {
            Ok(payload) => Ok(self.release().domain_info_of(dom, &payload)),
            Err(xen_hal::Error::Hypercall {
                errno: Errno::ESRCH,
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn list(&self) -> Result<Vec<DomainInfo>> {
        self.list_from(DomId::DOM0)
    }

    #[doc(alias = "XEN_SYSCTL_getdomaininfolist")]
    fn list_from(&self, mut first: DomId) -> Result<Vec<DomainInfo>> {
        const OP: &str = "XEN_SYSCTL_getdomaininfolist";
        let size = self.release().info_size();
        let mut list: Vec<DomainInfo> = Vec::new();
        // In most cases there is little to tell, and a page is at hand.
        let mut batch = PAGE_SIZE / size;
        loop {
            let buffer = self.buffer(batch * size)?;
            let argument = GetDomainInfoList {
                first_domain: first,
                max_domains: batch as u32,
                buffer: buffer.address(0),
                ..Plain::ZERO
            };
            let answer: GetDomainInfoList =
                self.sysctl(OP, sysctl::GETDOMAININFOLIST, &argument)?.get();
            let count = (answer.num_domains as usize).min(batch);
            let entries = buffer.bytes()[..count * size].chunks_exact(size);
            list.extend(entries.filter_map(|entry| self.release().domain_info(entry)));
            match list.last() {
                Some(last) if count == batch => first = DomId(last.dom.0 + 1),
                _ => return Ok(list),
            }
            batch = LIST_BATCH;
        }
    }

    fn set_max_vcpus(&self, dom: DomId, count: u32) -> Result<()> {
        let argument = MaxVcpus { max: count };
        self.domctl("XEN_DOMCTL_max_vcpus", domctl::MAX_VCPUS, dom, &argument)
            .map(drop)
    }

    fn set_max_mem(&self, dom: DomId, kib: u64) -> Result<()> {
        let argument = MaxMem { max_memkb: kib };
        self.domctl("XEN_DOMCTL_max_mem", domctl::MAX_MEM, dom, &argument)
            .map(drop)
    }

    fn set_address_size(&self, dom: DomId, bits: u32) -> Result<()> {
        const OP: &str = "XEN_DOMCTL_set_address_size";
        let argument = AddressSize { size: bits };
        self.domctl(OP, domctl::SET_ADDRESS_SIZE, dom, &argument)
            .map(drop)
    }

    fn claim_pages(&self, dom: DomId, pages: u64) -> Result<()> {
        let argument = MemoryReservation {
            nr_extents: pages,
            domid: dom,
            ..Plain::ZERO
        };
        self.simple_call(
            "XENMEM_claim_pages",
            hypercall::MEMORY_OP,
            XENMEM_CLAIM_PAGES,
            dom,
            &argument,
        )
        .map(drop)
    }

    fn populate(&self, dom: DomId, first: Pfn, count: u64, order: u32) -> Result<Vec<Mfn>> {
        let capacity = usize::try_from(count)
            .map_err(|_| failed("XENMEM_populate_physmap", dom, Errno::E2BIG))?;
        let mut frames = Vec::new();
        frames
            .try_reserve_exact(capacity)
            .map_err(|_| failed("XENMEM_populate_physmap", dom, Errno::ENOMEM))?;
        // Large extents while they are to be had, then single frames.
        for order in if order > 0 { vec![order, 0] } else { vec![0] } {
            loop {
                let done = frames.len() as u64;
                let extents = ((count - done) >> order).min(POPULATE_BATCH);
                if extents == 0 {
                    break;
                }
                let got =
                    self.populate_extents(dom, Pfn(first.0 + done), extents, order, &mut frames)?;
                if got < extents && order == 0 {
                    return Err(failed("XENMEM_populate_physmap", dom, Errno::ENOMEM));
                }
                if got < extents {
                    break;
                }
            }
        }
        Ok(frames)
    }

    fn map_frames(&self, dom: DomId, frames: &[Mfn]) -> Result<ForeignMapping> {
        self.map_foreign(dom, frames)
    }

    #[doc(alias = "MMUEXT_PIN_L4_TABLE")]
    fn pin_l4(&self, dom: DomId, table: Mfn) -> Result<()> {
        let mut buffer = self.buffer(size_of::<MmuExtOp>())?;
        buffer.put(0, &MmuExtOp::on_frame(MMUEXT_PIN_L4_TABLE, table));
        let args = [buffer.address(0), 1, 0, dom.0.into(), 0];
        self.call(hypercall::MMUEXT_OP, args, &mut buffer)
            .map(drop)
            .map_err(|errno| failed("MMUEXT_PIN_L4_TABLE", dom, errno))
    }

    fn hypercall_init(&self, dom: DomId, page: Mfn) -> Result<()> {
        const OP: &str = "XEN_DOMCTL_hypercall_init";
        let argument = HypercallInit { gmfn: page.0 };
        self.domctl(OP, domctl::HYPERCALL_INIT, dom, &argument)
            .map(drop)
    }

    fn set_tsc_mode(&self, dom: DomId, mode: u32) -> Result<()> {
        let argument = TscInfo {
            tsc_mode: mode,
            ..Plain::ZERO
        };
        self.domctl("XEN_DOMCTL_settscinfo", domctl::SETTSCINFO, dom, &argument)
            .map(drop)
    }

    fn set_default_cpu_policy(&self, dom: DomId) -> Result<()> {
        const GET: &str = "XEN_SYSCTL_get_cpu_policy";
        let sizes = sysctl::CpuPolicy {
            index: sysctl::CPU_POLICY_PV_DEFAULT,
            ..Plain::ZERO
        };
        let sizes: sysctl::CpuPolicy = self.sysctl(GET, sysctl::GET_CPU_POLICY, &sizes)?.get();
        let leaves = self.buffer(sizes.nr_leaves as usize * size_of::<CpuidLeaf>())?;
        let msrs = self.buffer(sizes.nr_msrs as usize * size_of::<MsrEntry>())?;
        let wanted = sysctl::CpuPolicy {
            leaves: leaves.address(0),
            msrs: msrs.address(0),
            ..sizes
        };
        let got: sysctl::CpuPolicy = self.sysctl(GET, sysctl::GET_CPU_POLICY, &wanted)?.get();
        let policy = CpuPolicy {
            nr_leaves: got.nr_leaves,
            nr_msrs: got.nr_msrs,
            leaves: leaves.address(0),
            msrs: msrs.address(0),
            err_leaf: !0,
            err_subleaf: !0,
            err_msr: !0,
            pad0: 0,
        };
        const SET: &str = "XEN_DOMCTL_set_cpu_policy";
        self.domctl(SET, domctl::SET_CPU_POLICY, dom, &policy)
            .map(drop)
    }

    #[doc(alias = "XEN_DOMCTL_setvcpucontext")]
    fn start_vcpu(&self, dom: DomId, vcpu: VcpuId, start: &VcpuStart) -> Result<()> {
        let mut context = self.buffer(size_of::<VcpuGuestContext>())?;
        context.put(0, &first_context(start));
        let argument = VcpuContext {
            vcpu,
            ctxt: context.address(0),
            ..Plain::ZERO
        };
        const OP: &str = "XEN_DOMCTL_setvcpucontext";
        self.domctl(OP, domctl::SETVCPUCONTEXT, dom, &argument)
            .map(drop)
    }

    fn alloc_unbound(&self, dom: DomId, remote: DomId) -> Result<Port> {
        let argument = AllocUnbound {
            dom,
            remote_dom: remote,
            port: Port(0),
        };
        let answer = self.simple_call(
            "EVTCHNOP_alloc_unbound",
            hypercall::EVENT_CHANNEL_OP,
            EVTCHNOP_ALLOC_UNBOUND,
            dom,
            &argument,
        )?;
        Ok(answer.port)
    }

    fn seed_grants(&self, dom: DomId, grants: &[(GrantRef, DomId, Mfn)]) -> Result<()> {
        self.write_grants(dom, grants)
    }
}

impl Hypervisor {
    /// What one of our own ports is bound to: a domain and its port, if it is bound to any.
    #[doc(alias = "EVTCHNOP_status")]
    pub fn peer_of(&self, port: Port) -> Result<Option<(DomId, Port)>> {
        let argument = Status {
            dom: DomId::SELF,
            port,
            ..Status::ZERO
        };
        let answer = self.simple_call(
            "EVTCHNOP_status",
            hypercall::EVENT_CHANNEL_OP,
            EVTCHNOP_STATUS,
            DomId::SELF,
            &argument,
        )?;
        let is_bound = answer.status == EVTCHNSTAT_INTERDOMAIN;
        Ok(is_bound.then_some((answer.peer_dom, answer.peer_port)))
    }

    fn plain_domctl(&self, op: &'static str, cmd: u32, dom: DomId) -> Result<()> {
        self.domctl_raw(op, cmd, dom, Payload::ZERO).map(drop)
    }

    /// A hypercall of the form (command, address of one structure); returns the structure.
    fn simple_call<T: Plain>(
        &self,
        op: &'static str,
        number: u64,
        cmd: u32,
        dom: DomId,
        argument: &T,
    ) -> Result<T> {
        let mut buffer = self.buffer(size_of::<T>())?;
        buffer.put(0, argument);
        let args = [cmd.into(), buffer.address(0), 0, 0, 0];
        self.call(number, args, &mut buffer)
            .map_err(|errno| failed(op, dom, errno))?;
        Ok(buffer.get(0))
    }

    /// Populates `extents` extents from `first` on, appends their frames, returns how many there were.
    fn populate_extents(
        &self,
        dom: DomId,
        first: Pfn,
        extents: u64,
        order: u32,
        frames: &mut Vec<Mfn>,
    ) -> Result<u64> {
        const LIST: usize = size_of::<MemoryReservation>();
        let mut buffer = self.buffer(LIST + 8 * extents as usize)?;
        for index in 0..extents {
            let pfn = first.0 + (index << order);
            buffer.put(LIST + 8 * index as usize, &pfn);
        }
        let argument = MemoryReservation {
            extent_start: buffer.address(LIST),
            nr_extents: extents,
            extent_order: order,
            domid: dom,
            ..Plain::ZERO
        };
        buffer.put(0, &argument);
        let args = [XENMEM_POPULATE_PHYSMAP.into(), buffer.address(0), 0, 0, 0];
        let got = self
            .call(hypercall::MEMORY_OP, args, &mut buffer)
            .map_err(|errno| failed("XENMEM_populate_physmap", dom, errno))?;
        let got = u64::from(got).min(extents);
        for index in 0..got {
            let mfn: u64 = buffer.get(LIST + 8 * index as usize);
            frames.extend((mfn..mfn + (1 << order)).map(Mfn));
        }
        Ok(got)
    }
}

/// A 64-bit PV vCPU's first context: flat segments, kernel mode, interrupts on.
fn first_context(start: &VcpuStart) -> VcpuGuestContext {
    let mut context = VcpuGuestContext {
        flags: VGCF_IN_KERNEL | VGCF_ONLINE,
        kernel_ss: FLAT_RING3_SS64.into(),
        kernel_sp: start.rsp,
        ..Plain::ZERO
    };
    context.ctrlreg[3] = start.l4.0 << xen_sys::PAGE_SHIFT;
    let registers = &mut context.user_regs;
    registers.rip = start.rip;
    registers.rsp = start.rsp;
    registers.rsi = start.rsi;
    registers.rflags = RFLAGS_IF;
    registers.cs = FLAT_RING3_CS64;
    registers.ss = FLAT_RING3_SS64;
    for selector in [
        &mut registers.ds,
        &mut registers.es,
        &mut registers.fs,
        &mut registers.gs,
    ] {
        *selector = FLAT_RING3_DS64;
    }
    context
}
