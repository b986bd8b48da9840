//! Turns an ELF file and its notes into a checked PV kernel: what to load where, and what it asks for.

use alloc::format;
use alloc::vec::Vec;
use core::ops::Range;

use xen_sys::Pfn;
use xen_sys::types::PAGE_SIZE;

use crate::bytes::Source;
use crate::elf::Elf;
use crate::notes::XenNotes;
use crate::{LayoutError, MAX_IMAGE_BYTES};

/// A kernel that can be started as a 64-bit PV guest.
#[derive(Clone, Debug)]
pub struct PvImage {
    /// What to load; everything else of `start..end` is zero.
    pub segments: Vec<LoadSegment>,
    /// Where pfn 0 is mapped.
    pub virt_base: u64,
    /// First byte of the kernel, counted from pfn 0.
    pub start: u64,
    /// Behind its last byte, counted from pfn 0.
    pub end: u64,
    /// Where vCPU 0 starts, guest virtual.
    pub entry: u64,
    /// The page for hypercall stubs, if it wants one.
    pub hypercall_page: Option<Pfn>,
    /// Where it wants the p2m list mapped, if not with everything else.
    pub init_p2m: Option<u64>,
    /// The initrd is told by its pfn and needs no mapping.
    pub initrd_unmapped: bool,
    /// The notes as they stand in the file.
    pub notes: XenNotes,
}

/// A piece of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadSegment {
    /// Where it goes, counted in bytes from pfn 0.
    pub at: u64,
    /// Where its bytes are in the unpacked kernel; zeros follow up to `mem_size`.
    pub file: Range<u64>,
    /// Its size in memory.
    pub mem_size: u64,
}

impl PvImage {
    /// Reads what there is to know of an unpacked kernel.
    ///
    /// # Errors
    /// What [`Elf::parse`] says, [`LayoutError::NotPv`] for a kernel that is none for PV, and
    /// [`LayoutError::BadNote`] for wishes that contradict the image.
    pub fn parse<S: Source + ?Sized>(file: &S) -> Result<PvImage, LayoutError> {
        let elf = Elf::parse(file)?;
        let notes = XenNotes::collect(&elf, file);
        check_pv(&notes)?;

        let virt_base = notes.virt_base.unwrap_or(0);
        if !virt_base.is_multiple_of(PAGE_SIZE as u64) || !is_canonical(virt_base) {
            return Err(LayoutError::BadNote {
                note: "VIRT_BASE",
                value: virt_base,
                why: "not the address of a page",
            });
        }
        let segments = place(&elf, notes.paddr_offset.unwrap_or(0))?;
        let start = segments.iter().map(|s| s.at).min().unwrap_or(0);
        let end = segments
            .iter()
            .map(|s| s.at + s.mem_size)
            .max()
            .unwrap_or(0);
        if end > MAX_IMAGE_BYTES || virt_base.checked_add(end).is_none() {
            return Err(LayoutError::BadElf("it takes up too much memory"));
        }
        // Segments that overlap would be written again and again.
        let sizes = segments.iter().map(|s| s.mem_size);
        if sizes.fold(0, u64::saturating_add) > MAX_IMAGE_BYTES {
            return Err(LayoutError::BadElf("its segments overlap too much"));
        }
        let entry = notes.entry.unwrap_or(elf.entry);
        if !(virt_base + start..virt_base + end).contains(&entry) {
            return Err(LayoutError::BadNote {
                note: "ENTRY",
                value: entry,
                why: "outside the image",
            });
        }
        Ok(PvImage {
            segments,
            virt_base,
            start,
            end,
            entry,
            hypercall_page: hypercall_page(&notes, virt_base, end)?,
            // As libelf does: a place that is none below VIRT_BASE is no wish.
            init_p2m: notes
                .init_p2m
                .filter(|&at| at < virt_base && at.is_multiple_of(PAGE_SIZE as u64)),
            initrd_unmapped: notes.mod_start_pfn,
            notes,
        })
    }
}

/// Whether bits 63 to 47 are all equal.
pub(crate) fn is_canonical(address: u64) -> bool {
    let top = address >> 47;
    top == 0 || top == 0x1_ffff
}

fn check_pv(notes: &XenNotes) -> Result<(), LayoutError> {
    if notes.count == 0 {
        return Err(LayoutError::NotPv(
            "it has no ELF notes of Xen (a Linux kernel needs CONFIG_XEN_PV)".into(),
        ));
    }
    match notes.xen_version.as_deref() {
        Some("xen-3.0") => {}
        Some(other) => {
            return Err(LayoutError::NotPv(format!(
                "its interface is {other:?}, not \"xen-3.0\""
            )));
        }
        None if notes.phys32_entry.is_some() => {
            return Err(LayoutError::NotPv("it is one for PVH only".into()));
        }
        None => {
            return Err(LayoutError::NotPv(
                "its ELF notes name no XEN_VERSION".into(),
            ));
        }
    }
    if notes.entry.is_none() && notes.virt_base.is_none() {
        return Err(LayoutError::NotPv(
            "its ELF notes name neither ENTRY nor VIRT_BASE: it is one for PVH only".into(),
        ));
    }
    if let Some(loader) = notes.loader.as_deref()
        && loader != "generic"
    {
        return Err(LayoutError::NotPv(format!(
            "its LOADER is {loader:?}, not \"generic\""
        )));
    }
    if notes.requires("auto_translated_physmap") {
        return Err(LayoutError::NotPv(
            "it requires auto_translated_physmap, which no PV guest has".into(),
        ));
    }
    Ok(())
}

fn place(elf: &Elf<'_>, paddr_offset: u64) -> Result<Vec<LoadSegment>, LayoutError> {
    if elf.segments.is_empty() {
        return Err(LayoutError::BadElf("it has no loadable segment"));
    }
    elf.segments
        .iter()
        .map(|segment| {
            let at = segment
                .paddr
                .checked_sub(paddr_offset)
                .ok_or(LayoutError::BadNote {
                    note: "PADDR_OFFSET",
                    value: paddr_offset,
                    why: "above a segment's physical address",
                })?;
            Ok(LoadSegment {
                at,
                file: segment.file.clone(),
                mem_size: segment.mem_size,
            })
        })
        .collect()
}

fn hypercall_page(notes: &XenNotes, virt_base: u64, end: u64) -> Result<Option<Pfn>, LayoutError> {
    let Some(address) = notes.hypercall_page else {
        return Ok(None);
    };
    match address.checked_sub(virt_base) {
        Some(at) if at.is_multiple_of(PAGE_SIZE as u64) && at < end => {
            Ok(Some(Pfn(at / PAGE_SIZE as u64)))
        }
        _ => Err(LayoutError::BadNote {
            note: "HYPERCALL_PAGE",
            value: address,
            why: "no page of the image",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ElfBuilder, TestSegment, VIRT_BASE, note};
    use alloc::string::ToString;
    use alloc::vec;

    #[test]
    fn a_linux_like_kernel_is_read() {
        let mut builder = ElfBuilder::pv_kernel(b"code", 0x5000)
            .with_note(2, VIRT_BASE + 0x10_1000)
            .with_note(15, 0x80_0000_0000)
            .with_note(16, 1);
        builder
            .segments
            .push(TestSegment::load(0, 0x10_5000, b"percpu", 0x1234));
        let file = builder.build();
        let image = PvImage::parse(&file[..]).unwrap();
        assert_eq!((image.start, image.end), (0x10_0000, 0x10_6234));
        assert_eq!(image.entry, VIRT_BASE + 0x10_0000);
        assert_eq!(image.hypercall_page, Some(Pfn(0x101)));
        assert_eq!(image.init_p2m, Some(0x80_0000_0000));
        assert!(image.initrd_unmapped);
        assert_eq!(image.segments[1].at, 0x10_5000);
    }

    #[test]
    fn the_same_memory_is_not_filled_over_and_over() {
        let mut builder = ElfBuilder::pv_kernel(b"code", 0x5000);
        for _ in 0..3 {
            let large = TestSegment::load(0, 0x10_0000, b"", 200 << 20);
            builder.segments.push(large);
        }
        let error = PvImage::parse(&builder.build()[..])
            .unwrap_err()
            .to_string();
        assert!(error.contains("overlap"), "{error}");
    }

    #[test]
    fn physical_addresses_may_be_virtual_ones() {
        // As a plain linker script leaves them: p_paddr = p_vaddr, PADDR_OFFSET = VIRT_BASE.
        let base = 0x10_0000u64;
        let file = ElfBuilder {
            entry: base + 0x1000,
            segments: vec![TestSegment::load(
                base + 0x1000,
                base + 0x1000,
                b"x",
                0x1000,
            )],
            notes: vec![
                note(b"Xen\0", 5, b"xen-3.0\0"),
                note(b"Xen\0", 3, &base.to_le_bytes()),
                note(b"Xen\0", 4, &base.to_le_bytes()),
            ],
        }
        .build();
        let image = PvImage::parse(&file[..]).unwrap();
        assert_eq!((image.start, image.end), (0x1000, 0x2000));
        assert_eq!(image.entry, base + 0x1000);
    }

    #[test]
    fn other_kernels_are_refused_by_name() {
        let refused = |notes: Vec<Vec<u8>>, part: &str| {
            let mut builder = ElfBuilder::pv_kernel(b"code", 0x1000);
            builder.notes = notes;
            let error = PvImage::parse(&builder.build()[..])
                .unwrap_err()
                .to_string();
            assert!(error.contains(part), "{error}");
        };
        let version = || note(b"Xen\0", 5, b"xen-3.0\0");
        let base = || note(b"Xen\0", 3, &VIRT_BASE.to_le_bytes());
        refused(vec![], "no ELF notes of Xen");
        refused(vec![note(b"Xen\0", 18, &[0; 4])], "PVH only");
        refused(vec![version(), note(b"Xen\0", 18, &[0; 4])], "PVH only");
        refused(vec![base()], "XEN_VERSION");
        refused(vec![base(), note(b"Xen\0", 5, b"xen-9\0")], "xen-9");
        refused(
            vec![version(), base(), note(b"Xen\0", 8, b"other\0")],
            "LOADER",
        );
        refused(
            vec![
                version(),
                base(),
                note(b"Xen\0", 10, b"!auto_translated_physmap"),
            ],
            "auto_translated_physmap",
        );
        refused(
            vec![version(), base(), note(b"Xen\0", 1, &7u64.to_le_bytes())],
            "ENTRY",
        );
        refused(
            vec![
                version(),
                base(),
                note(b"Xen\0", 2, &VIRT_BASE.to_le_bytes()[..]),
            ]
            .into_iter()
            .chain([note(b"Xen\0", 2, &(VIRT_BASE + 5).to_le_bytes())])
            .collect(),
            "HYPERCALL_PAGE",
        );
        refused(
            vec![version(), note(b"Xen\0", 3, &(VIRT_BASE + 1).to_le_bytes())],
            "VIRT_BASE",
        );
        refused(
            vec![
                version(),
                base(),
                note(b"Xen\0", 4, &u64::MAX.to_le_bytes()),
            ],
            "PADDR_OFFSET",
        );
    }
}
