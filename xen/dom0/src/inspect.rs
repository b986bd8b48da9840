//! Looks into a guest: its frames by the machine's own table, their content, its registers.

use xen_hal::{Inspect, Result};
use xen_ring::SharedMemoryExt;
use xen_sys::arch_x86::VcpuGuestContext;
use xen_sys::domctl::{self, GetPageFrameInfo3, VcpuContext};
use xen_sys::memory::{MachphysMfnList, XENMEM_MACHPHYS_MFN_LIST, XENMEM_MAXIMUM_RAM_PAGE};
use xen_sys::xen::hypercall;
use xen_sys::{DomId, Mfn, PAGE_SIZE, Pfn, Plain, VcpuId};

use crate::hypervisor::{Hypervisor, failed};
use crate::mapping::ForeignMapping;

/// Frames that Xen tells about at a time.
const INFO_BATCH: usize = 1024;
/// Pages in each piece of the machine's table.
const EXTENT_PAGES: u64 = 512;
/// Entries in each piece of the machine's table.
const EXTENT_ENTRIES: u64 = EXTENT_PAGES * (PAGE_SIZE as u64) / 8;
/// Most memory of a machine that is believed, in frames: 64 TiB.
const MAX_FRAMES: u64 = 1 << 34;

impl Inspect for Hypervisor {
    fn guest_frames(&self, dom: DomId) -> Result<Vec<(Pfn, Mfn)>> {
        let end = self.ram_end()?.min(MAX_FRAMES);
        let info = xen_hal::DomainControl::info(self, dom)?;
        let expected = info.map_or(0, |info| info.total_pages);
        let extents = self.machine_table(end)?;
        let mut out = Vec::new();
        for (extent, start) in (0u64..).zip(extents) {
            let first = extent * EXTENT_ENTRIES;
            // A gap has neither memory nor table. What all has been found for is done.
            if start.0 == 0 || out.len() as u64 >= expected {
                continue;
            }
            let mut table: Option<ForeignMapping> = None;
            let last = (first + EXTENT_ENTRIES).min(end);
            for at in (first..last).step_by(INFO_BATCH) {
                let count = (last - at).min(INFO_BATCH as u64);
                for mfn in self.owned(dom, at, count)? {
                    let table = match &table {
                        Some(table) => table,
                        None => {
                            let pages: Vec<_> =
                                (0..EXTENT_PAGES).map(|page| Mfn(start.0 + page)).collect();
                            let (mapping, errors) = self.map_batch(DomId::XEN, &pages, false)?;
                            if let Some(&error) = errors.iter().find(|&&error| error != 0) {
                                let errno = xen_sys::Errno(-error);
                                return Err(failed("map the machine's table", dom, errno));
                            }
                            table.insert(mapping)
                        }
                    };
                    let mut entry = [0; 8];
                    table.read_bytes(((mfn - first) * 8) as usize, &mut entry);
                    out.push((Pfn(u64::from_le_bytes(entry)), Mfn(mfn)));
                }
            }
        }
        Ok(out)
    }

    fn copy_frames(&self, dom: DomId, frames: &[Mfn], out: &mut Vec<u8>) -> Result<()> {
        if frames.is_empty() {
            return Ok(());
        }
        let (mapping, errors) = self.map_batch(dom, frames, false)?;
        for (index, error) in errors.iter().enumerate() {
            let at = out.len();
            out.resize(at + PAGE_SIZE, 0);
            if *error == 0 {
                mapping.read_bytes(index * PAGE_SIZE, &mut out[at..]);
            }
        }
        Ok(())
    }

    #[doc(alias = "XEN_DOMCTL_getvcpucontext")]
    fn vcpu_context(&self, dom: DomId, vcpu: VcpuId) -> Result<Vec<u8>> {
        let buffer = self.buffer(size_of::<VcpuGuestContext>())?;
        let argument = VcpuContext {
            vcpu,
            ctxt: buffer.address(0),
            ..Plain::ZERO
        };
        let op = "XEN_DOMCTL_getvcpucontext";
        self.domctl(op, domctl::GETVCPUCONTEXT, dom, &argument)?;
        Ok(buffer.bytes()[..size_of::<VcpuGuestContext>()].to_vec())
    }
}

impl Hypervisor {
    /// The number behind the machine's last frame.
    fn ram_end(&self) -> Result<u64> {
        let mut buffer = self.buffer(8)?;
        let args = [XENMEM_MAXIMUM_RAM_PAGE.into(), 0, 0, 0, 0];
        let last = self.call(hypercall::MEMORY_OP, args, &mut buffer);
        let last = last.map_err(|errno| failed("XENMEM_maximum_ram_page", DomId::SELF, errno))?;
        Ok(u64::from(last) + 1)
    }

    /// The first frame of each piece of the machine's table.
    fn machine_table(&self, frames: u64) -> Result<Vec<Mfn>> {
        const OP: &str = "XENMEM_machphys_mfn_list";
        const LIST: usize = size_of::<MachphysMfnList>();
        let wanted = frames.div_ceil(EXTENT_ENTRIES) as usize;
        let mut buffer = self.buffer(LIST + 8 * wanted)?;
        let argument = MachphysMfnList {
            max_extents: wanted as u32,
            extent_start: buffer.address(LIST),
            ..Plain::ZERO
        };
        buffer.put(0, &argument);
        let args = [XENMEM_MACHPHYS_MFN_LIST.into(), buffer.address(0), 0, 0, 0];
        self.call(hypercall::MEMORY_OP, args, &mut buffer)
            .map_err(|errno| failed(OP, DomId::SELF, errno))?;
        let answer: MachphysMfnList = buffer.get(0);
        let count = (answer.nr_extents as usize).min(wanted);
        Ok((0..count)
            .map(|index| Mfn(buffer.get(LIST + 8 * index)))
            .collect())
    }

    /// Which of these frames the domain has.
    fn owned(&self, dom: DomId, first: u64, count: u64) -> Result<Vec<u64>> {
        let mut buffer = self.buffer(8 * INFO_BATCH)?;
        for index in 0..count {
            buffer.put(8 * index as usize, &(first + index));
        }
        let argument = GetPageFrameInfo3 {
            num: count,
            array: buffer.address(0),
        };
        let op = "XEN_DOMCTL_getpageframeinfo3";
        self.domctl(op, domctl::GETPAGEFRAMEINFO3, dom, &argument)?;
        let known = |index: &u64| {
            let kind = buffer.get::<u64>(8 * *index as usize) as u32;
            kind & domctl::PFINFO_XTAB != domctl::PFINFO_XTAB
        };
        Ok((0..count)
            .filter(known)
            .map(|index| first + index)
            .collect())
    }
}
