//! Fills an empty domain: memory, kernel, ramdisk, page tables, start_info, first vCPU.

use pv_layout::{BootPlan, LayoutError, Region, START_INFO_SIZE, StartInfo};
use xen_hal::{DomainControl, Placement, VcpuStart};
use xen_ring::{SharedMemory, SharedMemoryExt};
use xen_sys::types::PAGE_SIZE;
use xen_sys::{DomId, GrantRef, Mfn, Pfn, Plain, Port, VcpuId};

use crate::error::{Error, Kind, Result};
use crate::prepare::Prepared;
use crate::{placement, times};

/// 2 MiB: the largest extents that are tried.
const SUPERPAGE_ORDER: u32 = 9;
/// What libxl adds to the memory limit, for what the domain itself does not count.
pub(crate) const MEMORY_SLACK_KIB: u64 = 1024;
/// The grants that every PV guest starts with (libxl, `GNTTAB_RESERVED_*`).
const CONSOLE_GRANT: GrantRef = GrantRef(0);
const STORE_GRANT: GrantRef = GrantRef(1);
/// vCPUs whose info is in the shared info page (`XEN_LEGACY_MAX_VCPUS`, arch-x86/xen.h).
const LEGACY_VCPUS: usize = 32;
/// `struct vcpu_info`: 64 bytes, evtchn_upcall_mask @1.
const VCPU_INFO_SIZE: usize = 64;

/// What the rest of the toolstack must know of a filled domain.
#[derive(Debug)]
pub struct Built {
    /// The domain.
    pub dom: DomId,
    /// The store's ring and port.
    pub store: (Mfn, Port),
    /// The console's ring and port.
    pub console: (Mfn, Port),
    /// The page of start_info.
    pub start_info: Mfn,
}

/// Fills the paused, empty domain `dom`, so that unpausing starts the guest.
///
/// # Errors
/// The hypercall that failed; the domain is then to be destroyed.
pub fn build<C: Placement>(control: &C, dom: DomId, guest: &Prepared) -> Result<Built> {
    let (config, plan) = (&guest.config, &guest.plan);
    let object = format!("{} (domain {dom})", config.name);
    let failed = |step: &'static str| Error::hal(step, &object);

    control
        .set_max_vcpus(dom, config.max_vcpus)
        .map_err(failed("set the number of vCPUs of"))?;
    placement::apply(control, dom, config)?;
    control
        .set_max_mem(dom, config.memory_kib + MEMORY_SLACK_KIB)
        .map_err(failed("limit the memory of"))?;
    control
        .set_address_size(dom, 64)
        .map_err(failed("make a 64-bit guest of"))?;
    let store_port = control
        .alloc_unbound(dom, DomId::DOM0)
        .map_err(failed("make the store's event channel of"))?;
    let console_port = control
        .alloc_unbound(dom, DomId::DOM0)
        .map_err(failed("make the console's event channel of"))?;

    times::mark("domain calls");
    let p2m = populate(control, dom, guest)?;
    let frame = |pfn: Pfn| p2m[pfn.0 as usize];
    times::mark("populate");
    let shared_info = control
        .info(dom)
        .map_err(failed("ask Xen about"))?
        .ok_or_else(|| Error::new("ask Xen about", &object, "it has gone"))?
        .shared_info_frame;
    let info = StartInfo {
        nr_pages: plan.pages,
        shared_info,
        store: frame(plan.store),
        store_port,
        console: frame(plan.console),
        console_port,
        pt_base: plan.vaddr(plan.tables.first),
        nr_pt_frames: plan.tables.pages,
        mfn_list: plan.p2m.vaddr,
        p2m: (plan.p2m.list.first.0, plan.p2m.frames),
        initrd: plan.initrd_for_guest(),
        initrd_unmapped: plan.initrd.is_some_and(|initrd| initrd.unmapped),
        cmdline: &config.cmdline,
    };
    let layout = |error: LayoutError| Error::new("lay out", &object, error);
    let info = info.encode().map_err(layout)?;

    let window = Window::map(control, dom, &p2m, regions(plan), &[shared_info])
        .map_err(failed("map the memory of"))?;
    times::mark("map");
    write_contents(&window, guest, &p2m, &info)?;
    write_tables(&window, guest, &p2m)?;
    times::mark("write");
    // Xen refuses page tables that anybody could still write to, and so it does the guest's own: its first
    // act is to make descriptor tables and page tables of pages of its kernel.
    drop(window);
    times::mark("unmap");

    if let Some(page) = guest.kernel.image().hypercall_page {
        control
            .hypercall_init(dom, frame(page))
            .map_err(failed("fill the hypercall page of"))?;
    }
    control
        .pin_l4(dom, frame(plan.tables.first))
        .map_err(failed("pin the page tables of"))?;
    times::mark("pin");
    control
        .seed_grants(
            dom,
            &[
                (CONSOLE_GRANT, DomId::DOM0, frame(plan.console)),
                (STORE_GRANT, DomId::DOM0, frame(plan.store)),
            ],
        )
        .map_err(failed("grant the console and store rings of"))?;
    let start = VcpuStart {
        rip: plan.entry,
        rsp: plan.stack_top(),
        rsi: plan.vaddr(plan.start_info),
        l4: frame(plan.tables.first),
    };
    control
        .start_vcpu(dom, VcpuId(0), &start)
        .map_err(failed("set the first vCPU of"))?;
    Ok(Built {
        dom,
        store: (frame(plan.store), store_port),
        console: (frame(plan.console), console_port),
        start_info: frame(plan.start_info),
    })
}

/// Gives the domain its memory: claimed first, so that it does not fail half way.
fn populate<C: DomainControl>(control: &C, dom: DomId, guest: &Prepared) -> Result<Vec<Mfn>> {
    let pages = guest.plan.pages;
    let object = format!(
        "{} ({} MiB for domain {dom})",
        guest.config.name,
        pages.div_ceil(256)
    );
    let failed = |step: &'static str| Error::hal(step, &object);
    control.claim_pages(dom, pages).map_err(|error| {
        let error = failed("claim the memory of")(error);
        match control.host() {
            Ok(host) if error.kind == Kind::NoMemory => error.hint(format!(
                "Xen has {} MiB left: give the guest less, or dom0",
                host.free_pages.saturating_sub(host.outstanding_pages) / 256
            )),
            _ => error,
        }
    })?;
    let populated = control
        .populate(dom, Pfn(0), pages, SUPERPAGE_ORDER)
        .map_err(failed("allocate the memory of"));
    control
        .claim_pages(dom, 0)
        .map_err(failed("end the claim of"))?;
    let p2m = populated?;
    if p2m.len() as u64 != pages {
        let cause = format!("Xen gave {} pages of {pages}", p2m.len());
        return Err(Error::new("allocate the memory of", object, cause));
    }
    Ok(p2m)
}

/// What is written of a guest's memory.
fn regions(plan: &BootPlan) -> Vec<Region> {
    let one = |first| Region { first, pages: 1 };
    let mut regions = vec![
        plan.kernel,
        plan.p2m.list,
        one(plan.start_info),
        one(plan.store),
        one(plan.console),
    ];
    regions.extend(plan.initrd.map(|initrd| initrd.region));
    let tables = plan.mappings.iter().flat_map(|mapping| &mapping.runs);
    regions.extend(tables.map(|run| Region {
        first: run.first,
        pages: run.count,
    }));
    regions
}

/// Everything but page tables; the shared info page is behind the regions.
fn write_contents<M: SharedMemory>(
    window: &Window<M>,
    guest: &Prepared,
    p2m: &[Mfn],
    info: &[u8; START_INFO_SIZE],
) -> Result<()> {
    let (plan, memory) = (&guest.plan, &window.memory);
    let kernel = window.at(plan.kernel.first);
    for segment in &guest.kernel.image().segments {
        let at = kernel + (segment.at - plan.kernel.first.0 * PAGE_SIZE as u64) as usize;
        let len = guest.kernel.put(segment, memory, at)?;
        memory.zero_bytes(at + len, segment.mem_size as usize - len);
    }
    if let (Some(ramdisk), Some(place)) = (&guest.ramdisk, plan.initrd) {
        let start = window.at(place.region.first);
        ramdisk.put(memory, start)?;
        let rest = place.region.pages as usize * PAGE_SIZE - place.len as usize;
        memory.zero_bytes(start + place.len as usize, rest);
    }
    memory.write_bytes(window.at(plan.p2m.list.first), Mfn::all_as_bytes(p2m));
    for page in [plan.start_info, plan.store, plan.console] {
        memory.zero_bytes(window.at(page), PAGE_SIZE);
    }
    memory.write_bytes(window.at(plan.start_info), info);

    let shared_info = window.behind();
    memory.zero_bytes(shared_info, PAGE_SIZE);
    for vcpu in 0..LEGACY_VCPUS {
        // Events are masked until the guest says otherwise.
        let mask = shared_info + vcpu * VCPU_INFO_SIZE + 1;
        memory.write_bytes(mask, &[1]);
    }
    Ok(())
}

fn write_tables<M: SharedMemory>(window: &Window<M>, guest: &Prepared, p2m: &[Mfn]) -> Result<()> {
    let tables = guest
        .plan
        .page_tables(p2m)
        .map_err(|e| Error::new("lay out", &guest.config.name, e))?;
    for (frame, entries) in tables.frames.iter().zip(tables.entries.chunks_exact(512)) {
        let at = window.at(*frame);
        window.memory.write_bytes(at, u64::all_as_bytes(entries));
    }
    Ok(())
}

/// Parts of the guest's memory, mapped one after another.
struct Window<M> {
    memory: M,
    places: Vec<(Region, usize)>,
}

impl<M: SharedMemory> Window<M> {
    /// Maps regions, and behind them frames that have no place in the guest's own memory.
    fn map<C: DomainControl<Mapping = M>>(
        control: &C,
        dom: DomId,
        p2m: &[Mfn],
        regions: Vec<Region>,
        behind: &[Mfn],
    ) -> xen_hal::Result<Self> {
        let mut frames = Vec::new();
        let mut places = Vec::new();
        for region in regions {
            places.push((region, frames.len() * PAGE_SIZE));
            let first = region.first.0 as usize;
            frames.extend_from_slice(&p2m[first..first + region.pages as usize]);
        }
        frames.extend_from_slice(behind);
        let memory = control.map_frames(dom, &frames)?;
        Ok(Window { memory, places })
    }

    /// Where a page is in the mapping.
    fn at(&self, pfn: Pfn) -> usize {
        self.places
            .iter()
            .find(|(region, _)| (region.first.0..region.first.0 + region.pages).contains(&pfn.0))
            .map(|(region, at)| at + (pfn.0 - region.first.0) as usize * PAGE_SIZE)
            .expect("only planned pages are written, and all of them are mapped")
    }

    /// Where the frames behind the regions are.
    fn behind(&self) -> usize {
        let last = self.places.last();
        last.map_or(0, |(region, at)| at + region.pages as usize * PAGE_SIZE)
    }
}
