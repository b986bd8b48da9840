//! Decides where everything lies in a guest that is about to start. The order is libxc's: kernel,
//! initrd, p2m list, start_info, store page, console page, page tables, boot stack, padding.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use xen_sys::{Mfn, Pfn};

use crate::LayoutError;
use crate::image::{PvImage, is_canonical};
use crate::tables::{self, Mapping, PageTables};

const PAGE: u64 = 4096;
/// Mapped and unused behind the boot stack: the guest may take its first pages from there (xen.h).
const PADDING_PAGES: u64 = 512 * 1024 / PAGE;
/// The first mapping ends at a multiple of this (xen.h).
const MAPPING_ALIGN: u64 = 4 << 20;
/// Most pages a guest may have here: 1 TiB.
const MAX_PAGES: u64 = 1 << 28;
/// What Xen keeps for itself on x86_64 (arch-x86/xen-x86_64.h, HYPERVISOR_VIRT_START and _END).
const XEN_AREA: Range<u64> = 0xffff_8000_0000_0000..0xffff_8800_0000_0000;

/// Where everything lies. Page numbers count from the guest's pfn 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootPlan {
    /// Pages of the guest.
    pub pages: u64,
    /// Where pfn 0 is mapped.
    pub virt_base: u64,
    /// Where vCPU 0 starts.
    pub entry: u64,
    /// The kernel.
    pub kernel: Region,
    /// The initrd, if there is one.
    pub initrd: Option<Initrd>,
    /// The p2m list: 8 bytes a page.
    pub p2m: P2mPlace,
    /// start_info.
    pub start_info: Pfn,
    /// The store's ring.
    pub store: Pfn,
    /// The console's ring.
    pub console: Pfn,
    /// The page tables of the first mapping, the top one first.
    pub tables: Region,
    /// The boot stack, one page.
    pub stack: Pfn,
    /// Pages of the first mapping.
    pub mapped_pages: u64,
    /// All mappings: from pfn 0, and the p2m list if it lies elsewhere.
    pub mappings: Vec<Mapping>,
}

/// Some pages in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The first.
    pub first: Pfn,
    /// How many.
    pub pages: u64,
}

/// Where the initrd lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initrd {
    /// Its pages.
    pub region: Region,
    /// Its length in bytes.
    pub len: u64,
    /// Whether it is left out of the first mapping.
    pub unmapped: bool,
}

/// Where the p2m list lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct P2mPlace {
    /// The list's pages, without the tables that map it.
    pub list: Region,
    /// Pages of the list and of the tables that map it, as start_info says.
    pub frames: u64,
    /// Its virtual address.
    pub vaddr: u64,
}

impl BootPlan {
    /// Lays out `image` with an initrd of so many bytes in a guest of so many pages.
    ///
    /// # Errors
    /// [`LayoutError::TooLittleMemory`], saying how much it takes; [`LayoutError::TooMuchMemory`];
    /// [`LayoutError::BadNote`] for an address that collides with something.
    pub fn new(
        image: &PvImage,
        initrd_len: Option<u64>,
        pages: u64,
    ) -> Result<BootPlan, LayoutError> {
        if pages > MAX_PAGES {
            return Err(LayoutError::TooMuchMemory { pages });
        }
        let mut next = 0;
        let kernel = Region {
            first: Pfn(image.start / PAGE),
            pages: image.end.div_ceil(PAGE) - image.start / PAGE,
        };
        next += kernel.first.0 + kernel.pages;
        let mapped_initrd = initrd_len.filter(|_| !image.initrd_unmapped);
        let mut initrd = mapped_initrd.map(|len| take_initrd(&mut next, len, false));
        let list_pages = (pages * 8).div_ceil(PAGE).max(1);
        let mapped_p2m = image
            .init_p2m
            .is_none()
            .then(|| take(&mut next, list_pages));
        let start_info = take(&mut next, 1).first;
        let store = take(&mut next, 1).first;
        let console = take(&mut next, 1).first;

        let (tables, mapping) = first_mapping(image.virt_base, next, pages)?;
        next += tables.pages;
        let stack = take(&mut next, 1).first;
        next = mapping.pages;
        let mapped_pages = mapping.pages;
        let mut mappings = Vec::from([mapping]);

        if let Some(len) = initrd_len.filter(|_| image.initrd_unmapped) {
            initrd = Some(take_initrd(&mut next, len, true));
        }
        let p2m = match (mapped_p2m, image.init_p2m) {
            (Some(list), _) => P2mPlace {
                list,
                frames: list.pages,
                vaddr: image.virt_base + list.first.0 * PAGE,
            },
            (None, at) => far_p2m(&mut mappings, &mut next, at.unwrap_or(0), list_pages)?,
        };
        if next > pages {
            return Err(LayoutError::TooLittleMemory {
                needed_pages: next,
                pages,
            });
        }
        Ok(BootPlan {
            pages,
            virt_base: image.virt_base,
            entry: image.entry,
            kernel,
            initrd,
            p2m,
            start_info,
            store,
            console,
            tables,
            stack,
            mapped_pages,
            mappings,
        })
    }

    /// The virtual address of a page of the first mapping.
    pub fn vaddr(&self, pfn: Pfn) -> u64 {
        self.virt_base.wrapping_add(pfn.0 * PAGE)
    }

    /// What rsp is at the start: the end of the boot stack.
    pub fn stack_top(&self) -> u64 {
        self.vaddr(self.stack).wrapping_add(PAGE)
    }

    /// The page tables' content; `p2m` holds the machine frame of every page of the guest.
    ///
    /// # Errors
    /// [`LayoutError::WrongFrameCount`] if `p2m` has another length.
    pub fn page_tables(&self, p2m: &[Mfn]) -> Result<PageTables, LayoutError> {
        if p2m.len() as u64 != self.pages {
            return Err(LayoutError::WrongFrameCount {
                given: p2m.len(),
                expected: self.pages,
            });
        }
        tables::build(&self.mappings, p2m)
    }

    /// What start_info says of the initrd: address or pfn, and length.
    pub fn initrd_for_guest(&self) -> Option<(u64, u64)> {
        self.initrd.map(|initrd| {
            let first = initrd.region.first;
            let start = if initrd.unmapped {
                first.0
            } else {
                self.vaddr(first)
            };
            (start, initrd.len)
        })
    }

    /// The smallest number of pages with which this plan could be made.
    pub fn needed_pages(&self) -> u64 {
        let mut end = self.mapped_pages;
        if let Some(initrd) = self.initrd.filter(|initrd| initrd.unmapped) {
            end = end.max(initrd.region.first.0 + initrd.region.pages);
        }
        end.max(self.p2m.list.first.0 + self.p2m.frames)
    }
}

fn take(next: &mut u64, pages: u64) -> Region {
    let first = Pfn(*next);
    *next += pages;
    Region { first, pages }
}

fn take_initrd(next: &mut u64, len: u64, unmapped: bool) -> Initrd {
    Initrd {
        region: take(next, len.div_ceil(PAGE)),
        len,
        unmapped,
    }
}

/// The first mapping and its tables, which lie within it: grown until both fit.
fn first_mapping(
    virt_base: u64,
    before: u64,
    pages: u64,
) -> Result<(Region, Mapping), LayoutError> {
    let too_far = LayoutError::BadNote {
        note: "VIRT_BASE",
        value: virt_base,
        why: "the guest's first mapping would run into Xen or over the last address",
    };
    let mut tables = 0;
    loop {
        let end = before + tables + 1 + PADDING_PAGES;
        if end > MAX_PAGES {
            return Err(LayoutError::TooLittleMemory {
                needed_pages: end,
                pages,
            });
        }
        let last = virt_base
            .checked_add(end * PAGE - 1)
            .map(|address| address | (MAPPING_ALIGN - 1))
            .ok_or(too_far.clone())?;
        if !is_free(virt_base, last) {
            return Err(too_far);
        }
        let mapped = (last - virt_base) / PAGE + 1;
        let runs = tables::runs(&[], virt_base, mapped, before);
        let count = tables::count(&runs);
        if count <= tables {
            let region = Region {
                first: Pfn(before),
                pages: count,
            };
            let mapping = Mapping {
                vaddr: virt_base,
                pages: mapped,
                first: Pfn(0),
                runs,
            };
            return Ok((region, mapping));
        }
        tables = count;
    }
}

/// A p2m list mapped where the guest asked for it, its tables behind it.
fn far_p2m(
    mappings: &mut Vec<Mapping>,
    next: &mut u64,
    vaddr: u64,
    list_pages: u64,
) -> Result<P2mPlace, LayoutError> {
    let end = vaddr.saturating_add(list_pages * PAGE);
    if end > mappings[0].vaddr || !is_free(vaddr, end - 1) {
        return Err(LayoutError::BadNote {
            note: "INIT_P2M",
            value: vaddr,
            why: "the list would run into the kernel's mapping or into Xen",
        });
    }
    let list = take(next, list_pages);
    let runs = tables::runs(mappings, vaddr, list_pages, *next);
    let tables = take(next, tables::count(&runs));
    mappings.push(Mapping {
        vaddr,
        pages: list_pages,
        first: list.first,
        runs,
    });
    Ok(P2mPlace {
        list,
        frames: list.pages + tables.pages,
        vaddr,
    })
}

/// Whether a guest may map `first..=last`: canonical, on one side of the hole, none of it Xen's.
fn is_free(first: u64, last: u64) -> bool {
    is_canonical(first)
        && is_canonical(last)
        && first >> 47 == last >> 47
        && (last < XEN_AREA.start || first >= XEN_AREA.end)
}

impl fmt::Display for BootPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |f: &mut fmt::Formatter<'_>, name: &str, region: Region, vaddr: Option<u64>| {
            let (first, last) = (region.first.0, region.first.0 + region.pages.max(1) - 1);
            write!(f, "  {name:<12} pfn {first:#8x}..={last:#8x}")?;
            match vaddr {
                Some(address) => writeln!(f, "  at {address:#018x}"),
                None => writeln!(f, "  not mapped"),
            }
        };
        let one = |first| Region { first, pages: 1 };
        row(
            f,
            "kernel",
            self.kernel,
            Some(self.vaddr(self.kernel.first)),
        )?;
        if let Some(initrd) = self.initrd {
            let first = initrd.region.first;
            let at = (!initrd.unmapped).then(|| self.vaddr(first));
            row(f, "initrd", initrd.region, at)?;
        }
        row(f, "p2m list", self.p2m.list, Some(self.p2m.vaddr))?;
        for (name, pfn) in [
            ("start_info", self.start_info),
            ("store", self.store),
            ("console", self.console),
        ] {
            row(f, name, one(pfn), Some(self.vaddr(pfn)))?;
        }
        row(
            f,
            "page tables",
            self.tables,
            Some(self.vaddr(self.tables.first)),
        )?;
        row(
            f,
            "boot stack",
            one(self.stack),
            Some(self.vaddr(self.stack)),
        )?;
        writeln!(
            f,
            "  mapped       {} pages at {:#018x} of {} in all, entry {:#018x}",
            self.mapped_pages, self.virt_base, self.pages, self.entry
        )
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
