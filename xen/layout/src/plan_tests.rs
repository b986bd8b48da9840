//! Tests of plan.rs and tables.rs: what a guest finds at its addresses is what the plan says.

use super::*;
use crate::StartInfo;
use crate::testing::{ElfBuilder, VIRT_BASE};
use alloc::string::ToString;
use alloc::vec::Vec;
use proptest::prelude::*;
use xen_sys::Port;

/// Machine frames that are not the guest's numbers.
fn p2m(pages: u64) -> Vec<Mfn> {
    (0..pages).map(|pfn| Mfn(0x10_0000 + pfn * 3)).collect()
}

/// Walks the tables as the CPU does: the pfn and the entry's flags.
fn walk(plan: &BootPlan, tables: &PageTables, p2m: &[Mfn], vaddr: u64) -> Option<(u64, u64)> {
    let to_pfn = |entry: u64| {
        let mfn = (entry >> 12) & ((1 << 40) - 1);
        p2m.iter().position(|m| m.0 == mfn).unwrap() as u64
    };
    let mut table = plan.tables.first.0;
    for level in (1..=4).rev() {
        let slot = tables.frames.iter().position(|f| f.0 == table).unwrap();
        let index = (vaddr >> (3 + 9 * level)) & 511;
        let entry = tables.entries[slot * 512 + index as usize];
        if entry & 1 == 0 {
            return None;
        }
        table = to_pfn(entry);
        if level == 1 {
            return Some((table, entry & 0xfff));
        }
    }
    None
}

fn check_plan(file: &[u8], initrd: Option<u64>, pages: u64) -> BootPlan {
    let image = PvImage::parse(file).unwrap();
    let plan = BootPlan::new(&image, initrd, pages).unwrap();
    let p2m = p2m(pages);
    let tables = plan.page_tables(&p2m).unwrap();
    assert_eq!(tables.frames[0], plan.tables.first, "the top comes first");
    for pfn in 0..plan.mapped_pages {
        let (found, flags) = walk(&plan, &tables, &p2m, plan.vaddr(Pfn(pfn))).unwrap();
        assert_eq!(found, pfn);
        let is_table = tables.frames.contains(&Pfn(pfn));
        assert_eq!(flags & 2 == 0, is_table, "pfn {pfn}: tables are read-only");
    }
    assert_eq!(
        walk(&plan, &tables, &p2m, plan.vaddr(Pfn(plan.mapped_pages))),
        None
    );
    for i in 0..plan.p2m.list.pages {
        let (found, _) = walk(&plan, &tables, &p2m, plan.p2m.vaddr + i * PAGE).unwrap();
        assert_eq!(found, plan.p2m.list.first.0 + i);
    }
    assert_eq!(
        (plan.virt_base + plan.mapped_pages * PAGE) % MAPPING_ALIGN,
        0
    );
    assert!(plan.stack.0 + 1 + PADDING_PAGES <= plan.mapped_pages);
    assert_eq!(plan.stack.0, plan.tables.first.0 + plan.tables.pages);
    assert!(plan.needed_pages() <= pages);
    plan
}

#[test]
fn a_small_guest() {
    let file = ElfBuilder::pv_kernel(b"code", 0x5000).build();
    let plan = check_plan(&file, None, 4096);
    assert_eq!(
        plan.kernel,
        Region {
            first: Pfn(0x100),
            pages: 5
        }
    );
    assert_eq!(
        plan.p2m.list,
        Region {
            first: Pfn(0x105),
            pages: 8
        }
    );
    assert_eq!(plan.start_info, Pfn(0x10d));
    assert_eq!((plan.store, plan.console), (Pfn(0x10e), Pfn(0x10f)));
    // One table each of levels 4, 3, 2 and two of level 1 for 4 MiB.
    assert_eq!(
        plan.tables,
        Region {
            first: Pfn(0x110),
            pages: 5
        }
    );
    assert_eq!(plan.stack, Pfn(0x115));
    assert_eq!(plan.mapped_pages, 1024);
    assert_eq!(plan.stack_top(), VIRT_BASE + 0x11_6000);
    assert_eq!(plan.initrd_for_guest(), None);
    assert!(plan.to_string().contains("boot stack"));
}

#[test]
fn an_initrd_is_mapped_unless_told_by_pfn() {
    let file = ElfBuilder::pv_kernel(b"code", 0x5000).build();
    let plan = check_plan(&file, Some(5 << 20), 8192);
    assert_eq!(
        plan.initrd_for_guest(),
        Some((VIRT_BASE + 0x10_5000, 5 << 20))
    );
    assert_eq!(plan.mapped_pages, 2048);

    let file = ElfBuilder::pv_kernel(b"code", 0x5000)
        .with_note(16, 1)
        .build();
    let plan = check_plan(&file, Some(5 << 20), 8192);
    assert_eq!(plan.mapped_pages, 1024);
    assert_eq!(plan.initrd_for_guest(), Some((1024, 5 << 20)));
}

#[test]
fn the_p2m_list_goes_where_the_guest_wants_it() {
    let at = 0x80_0000_0000u64;
    let file = ElfBuilder::pv_kernel(b"code", 0x5000)
        .with_note(15, at)
        .with_note(16, 1)
        .build();
    let plan = check_plan(&file, Some(1 << 20), 65536);
    assert_eq!(plan.p2m.vaddr, at);
    assert_eq!(
        plan.p2m.list,
        Region {
            first: Pfn(1024 + 256),
            pages: 128
        }
    );
    assert_eq!(
        plan.p2m.frames,
        128 + 3,
        "levels 3, 2 and 1; the top is shared"
    );
}

#[test]
fn a_list_in_the_kernels_own_top_entry_shares_tables() {
    // 1 GiB below the kernel: same level 4 and 3 entry space, other level 2.
    let file = ElfBuilder::pv_kernel(b"code", 0x5000)
        .with_note(15, VIRT_BASE - (2 << 20))
        .build();
    let plan = check_plan(&file, None, 65536);
    assert_eq!(plan.p2m.frames, 128 + 2);
}

#[test]
fn wishes_that_cannot_be_are_refused() {
    let refused = |builder: ElfBuilder, pages: u64, part: &str| {
        let file = builder.build();
        let image = PvImage::parse(&file[..]).unwrap();
        let error = BootPlan::new(&image, Some(1 << 20), pages).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    };
    let kernel = || ElfBuilder::pv_kernel(b"code", 0x5000);
    refused(kernel(), 1023, "at least 4 MiB");
    refused(kernel(), 0, "at least 4 MiB");
    refused(kernel(), u64::MAX, "cannot be laid out");
    refused(kernel().with_note(15, VIRT_BASE - 4096), 65536, "INIT_P2M");
    refused(kernel().with_note(15, 0x8000_0000_0000), 65536, "INIT_P2M");
    refused(
        kernel().with_note(15, 0xffff_8000_0000_0000),
        65536,
        "INIT_P2M",
    );
    let mut builder = kernel();
    let base = 0xffff_8000_0000_0000u64;
    builder.notes.truncate(3);
    builder = builder.with_note(3, base).with_note(1, base + 0x10_0000);
    refused(builder, 65536, "VIRT_BASE");
}

#[test]
fn start_info_is_laid_out_as_xen_h_says() {
    let info = StartInfo {
        nr_pages: 4096,
        shared_info: Mfn(0x123),
        store: Mfn(0x456),
        store_port: Port(1),
        console: Mfn(0x789),
        console_port: Port(2),
        pt_base: 0x1000,
        nr_pt_frames: 5,
        mfn_list: 0x2000,
        p2m: (7, 8),
        initrd: Some((9, 10)),
        initrd_unmapped: true,
        cmdline: "root=/dev/xvda",
    };
    let bytes = info.encode().unwrap();
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let rows = [
        (32, 4096),
        (40, 0x12_3000),
        (48, 8),
        (56, 0x456),
        (64, 1),
        (72, 0x789),
        (80, 2),
        (88, 0x1000),
        (96, 5),
        (104, 0x2000),
        (112, 9),
        (120, 10),
        (1152, 7),
        (1160, 8),
    ];
    for (at, value) in rows {
        assert_eq!(word(at), value, "offset {at}");
    }
    assert!(bytes.starts_with(b"xen-3.0-x86_64\0"));
    assert!(bytes[128..].starts_with(b"root=/dev/xvda\0"));
    let long = "x".repeat(1024);
    assert!(
        StartInfo {
            cmdline: &long,
            ..info
        }
        .encode()
        .is_err()
    );
}

/// Gives the guest what the refusal asks for until there is a plan. More than once, because a bigger guest has a longer
/// p2m list, which may push the first mapping over its next multiple of 4 MiB; and each time by more than before.
fn grow_until_planned(image: &PvImage, initrd: Option<u64>, mut pages: u64) -> (BootPlan, u64) {
    for _ in 0..4 {
        match BootPlan::new(image, initrd, pages) {
            Ok(plan) => return (plan, pages),
            Err(LayoutError::TooLittleMemory { needed_pages, .. }) => {
                assert!(needed_pages > pages, "{needed_pages} of {pages}");
                pages = needed_pages;
            }
            Err(other) => panic!("{other}"),
        }
    }
    panic!("still refused with {pages} pages");
}

proptest! {
    #[test]
    fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let _ = crate::identify(&bytes);
        let _ = PvImage::parse(&bytes[..]);
    }

    #[test]
    fn a_damaged_kernel_never_panics(
        damage in proptest::collection::vec((0usize..600, any::<u8>()), 1..8),
        words in proptest::collection::vec((0usize..70, any::<u64>()), 0..3),
        initrd in proptest::option::of(0u64..(1 << 30)),
        pages in 0u64..20_000,
    ) {
        let mut file = ElfBuilder::pv_kernel(b"code", 0x5000)
            .with_note(2, VIRT_BASE + 0x10_1000)
            .with_note(15, 0x80_0000_0000)
            .build();
        for (at, byte) in damage {
            let len = file.len();
            file[at % len] = byte;
        }
        for (at, word) in words {
            if let Some(slot) = file.get_mut(at * 8..at * 8 + 8) {
                slot.copy_from_slice(&word.to_le_bytes());
            }
        }
        if let Ok(image) = PvImage::parse(&file[..])
            && let Ok(plan) = BootPlan::new(&image, initrd, pages)
        {
            prop_assert!(plan.needed_pages() <= pages);
            prop_assert!(plan.page_tables(&p2m(pages)).is_ok());
        }
    }

    #[test]
    fn any_sizes_are_laid_out_soundly(
        size in 1u64..(6 << 20),
        initrd in proptest::option::of(0u64..(6 << 20)),
        unmapped in any::<bool>(),
        far in any::<bool>(),
        extra in 0u64..4096,
    ) {
        let mut builder = ElfBuilder::pv_kernel(b"c", size);
        if unmapped {
            builder = builder.with_note(16, 1);
        }
        if far {
            builder = builder.with_note(15, 0x80_0000_0000);
        }
        let file = builder.build();
        let image = PvImage::parse(&file[..]).unwrap();
        let (plan, pages) = grow_until_planned(&image, initrd, 1 + extra);
        let p2m = p2m(pages);
        let tables = plan.page_tables(&p2m).unwrap();
        for pfn in [0, plan.kernel.first.0, plan.stack.0, plan.mapped_pages - 1] {
            prop_assert_eq!(walk(&plan, &tables, &p2m, plan.vaddr(Pfn(pfn))).unwrap().0, pfn);
        }
    }
}
