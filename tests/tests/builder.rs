//! The toolstack's builder on the fake: what it builds is looked at as the guest would, and Xen's rules for
//! page tables hold; whichever call fails, nothing is left.

use std::path::PathBuf;

use xen_fake::{Call, Control, World};
use xen_hal::{AccessMode, CreateDomain, DomainControl, ForeignGrants};
use xen_ring::SharedMemoryExt;
use xen_sys::{DomId, GrantRef, Mfn, Pfn};
use xlrs::build::{Built, build};
use xlrs::config::{Source, load};
use xlrs::prepare::Prepared;

const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;
const LOAD: u64 = 0x10_0000;
const CODE: &[u8] = b"not run, but looked at";

/// Files of one test; they go with it.
struct Files(PathBuf);

impl Files {
    fn new(name: &str) -> Files {
        let path = std::env::temp_dir().join(format!("xlrs-builder-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("kernel"), kernel()).unwrap();
        std::fs::write(path.join("ramdisk"), vec![0x77; 300_000]).unwrap();
        Files(path)
    }

    fn prepare(&self, memory_mib: u64, more: &str) -> Prepared {
        let kernel = self.0.join("kernel");
        let text = format!(
            "name = \"built\"\nkernel = \"{}\"\nmemory = {memory_mib}\ncmdline = \"a b=c\"\n{more}\n",
            kernel.display()
        );
        let source = Source {
            name: "test".into(),
            text,
        };
        let (config, _) = load(&[source]).unwrap();
        Prepared::new(config).unwrap()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A PV kernel of one segment with the notes it needs.
fn kernel() -> Vec<u8> {
    let mut notes = Vec::new();
    let words = |value: u64| value.to_le_bytes().to_vec();
    for (kind, value) in [
        (5u32, b"xen-3.0\0".to_vec()),
        (6, b"test\0".to_vec()),
        (8, b"generic\0".to_vec()),
        (9, b"yes\0".to_vec()),
        (3, words(VIRT_BASE)),
        (4, words(0)),
        (1, words(VIRT_BASE + LOAD)),
    ] {
        for word in [4, value.len() as u32, kind] {
            notes.extend(word.to_le_bytes());
        }
        notes.extend(b"Xen\0");
        notes.extend(&value);
        notes.resize(notes.len().next_multiple_of(4), 0);
    }
    let mut file = vec![0; 64 + 2 * 56];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    file[16] = 2; // ET_EXEC
    file[18] = 62; // EM_X86_64
    file[24..32].copy_from_slice(&(VIRT_BASE + LOAD).to_le_bytes());
    file[32] = 64; // program headers
    file[54] = 56;
    file[56] = 2;
    // PT_LOAD with 8 KiB of zeroes behind the code, PT_NOTE.
    for (index, (kind, place, data, more)) in [
        (1u8, VIRT_BASE + LOAD, CODE, 8192),
        (4, 0, notes.as_slice(), 0),
    ]
    .into_iter()
    .enumerate()
    {
        let (offset, len) = (file.len() as u64, data.len() as u64);
        let physical = if kind == 1 { LOAD } else { 0 };
        let fields = [offset, place, physical, len, len + more, 4096];
        let header = &mut file[64 + 56 * index..][..56];
        header[0] = kind;
        header[4] = 7;
        for (to, value) in header[8..].chunks_mut(8).zip(fields) {
            to.copy_from_slice(&value.to_le_bytes());
        }
        file.extend(data);
    }
    file
}

fn create(control: &Control) -> DomId {
    let spec = CreateDomain {
        uuid: [1; 16],
        max_vcpus: 1,
        max_event_channels: -1,
        max_grant_frames: -1,
        max_maptrack_frames: -1,
        max_grant_version: 1,
        cpupool: 0,
    };
    control.create(None, &spec).unwrap()
}

/// What the guest reads at an address, which lies within one page.
fn read<const N: usize>(control: &Control, dom: DomId, address: u64) -> [u8; N] {
    let (frame, _) = control.translate(dom, address).expect("a mapped address");
    let page = control
        .map_frames(dom, &[frame])
        .expect("a frame of the guest's");
    page.read((address % 4096) as usize)
}

fn word(control: &Control, dom: DomId, address: u64) -> u64 {
    u64::from_le_bytes(read(control, dom, address))
}

/// Looks at everything a guest finds when it starts.
fn inspect(world: &World, dom: DomId, guest: &Prepared, built: Built) {
    let control = world.control();
    let pages = guest.config.memory_kib / 4;
    let start = control.start(dom).expect("a first vCPU");
    assert_eq!(start.rip, VIRT_BASE + LOAD);
    assert_eq!(&read::<22>(&control, dom, start.rip), CODE);
    // The rest of the segment is zero and writable, and so is the stack.
    assert_eq!(word(&control, dom, start.rip + 4096), 0);
    for address in [start.rip + 4096, start.rsp - 8] {
        let (_, writable) = control.translate(dom, address).expect("mapped");
        assert!(writable, "{address:#x}");
    }

    let at = |offset| word(&control, dom, start.rsi + offset);
    assert_eq!(&read::<14>(&control, dom, start.rsi), b"xen-3.0-x86_64");
    assert_eq!(at(32), pages);
    assert_eq!(
        at(40),
        control.info(dom).unwrap().unwrap().shared_info_frame.0 << 12
    );
    assert_eq!(at(48), 0, "flags of an ordinary guest");
    assert_eq!((at(56), at(64) as u32), (built.store.0.0, built.store.1.0));
    assert_eq!(
        (at(72), at(80) as u32),
        (built.console.0.0, built.console.1.0)
    );
    assert_eq!(&read::<6>(&control, dom, start.rsi + 128), b"a b=c\0");

    // Page tables: where it is told, as many as it is told, all read-only.
    let (pt_base, tables) = (at(88), at(96));
    assert_eq!(control.translate(dom, pt_base), Some((start.l4, false)));
    for table in 0..tables {
        let (_, writable) = control
            .translate(dom, pt_base + table * 4096)
            .expect("mapped");
        assert!(!writable, "table {table}");
    }
    // The p2m list names the frame of each page.
    let list = at(104);
    for pfn in [0, 1, pages / 2, pages - 1] {
        let frame = control.frame(dom, Pfn(pfn)).expect("a page of the guest's");
        assert_eq!(word(&control, dom, list + pfn * 8), frame.0, "pfn {pfn}");
    }
    if guest.ramdisk.is_some() {
        let (place, len) = (at(112), at(120));
        assert_eq!(len, 300_000);
        for address in [place, place + len - 1] {
            assert_eq!(read::<1>(&control, dom, address), [0x77]);
        }
    }
    // The daemons reach their rings by the reserved grants.
    let foreign = world.dom0().foreign();
    for (gref, frame) in [(0, built.console.0), (1, built.store.0)] {
        let ring = foreign
            .map(dom, &[GrantRef(gref)], AccessMode::ReadWrite)
            .unwrap();
        ring.write::<u32>(2048, 0xfeed + gref);
        let own = control.map_frames(dom, &[Mfn(frame.0)]).unwrap();
        assert_eq!(own.read::<u32>(2048), 0xfeed + gref);
    }
}

#[test]
fn a_guest_finds_everything() {
    let files = Files::new("finds");
    let ramdisk = format!("ramdisk = \"{}\"", files.0.join("ramdisk").display());
    for (memory_mib, more) in [
        (4, ""),
        (16, ""),
        (17, &ramdisk),
        (64, ""),
        (100, ramdisk.as_str()),
    ] {
        let world = World::new();
        let control = world.control();
        let guest = files.prepare(memory_mib, more);
        let dom = create(&control);
        let built = build(&control, dom, &guest);
        let built = built
            .unwrap_or_else(|error| panic!("{memory_mib} MiB: {error}; {:?}", world.refusals()));
        assert_eq!(world.refusals(), [""; 0]);
        inspect(&world, dom, &guest, built);
        control.destroy(dom).unwrap();
        world.assert_nothing_left();
    }
}

#[test]
fn a_guest_starts_when_nobody_else_can_write_to_it() {
    let files = Files::new("starts");
    let guest = files.prepare(4, "");
    let world = World::new();
    let control = world.control();
    let dom = create(&control);
    let built = build(&control, dom, &guest).unwrap();
    let page = control.map_frames(dom, &[built.start_info]).unwrap();
    control.unpause(dom).expect_err("a page is still mapped");
    drop(page);
    control.unpause(dom).unwrap();
}

#[test]
fn any_call_may_fail() {
    let files = Files::new("fails");
    let guest = files.prepare(8, "");
    let mut failures = 0;
    for nth in 1.. {
        assert!(nth < 500, "the calls do not end");
        let world = World::new();
        let control = world.control();
        let dom = create(&control);
        world.faults().fail_nth(Call::AnyControl, nth);
        let result = build(&control, dom, &guest);
        if world.faults().clear() {
            result.expect("no call failed");
            break;
        }
        // Which call failed is in the message.
        let error = result.map(|_| ()).expect_err("a call failed").to_string();
        assert!(
            error.contains("ENOMEM") && error.contains("domain"),
            "call {nth}: {error}"
        );
        failures += 1;
        control.destroy(dom).unwrap();
        world.assert_nothing_left();
    }
    assert!(failures > 10, "only {failures} calls are made");
}

#[test]
fn too_little_memory_is_told_before_anything_is_taken() {
    let files = Files::new("little");
    let world = World::new();
    world.set_memory_pages(1000);
    let control = world.control();
    let guest = files.prepare(8, "");
    let dom = create(&control);
    let error = build(&control, dom, &guest)
        .map(|_| ())
        .expect_err("8 MiB of 4");
    assert!(error.to_string().contains("XENMEM_claim_pages"), "{error}");
    assert_eq!(control.info(dom).unwrap().unwrap().total_pages, 0);
    control.destroy(dom).unwrap();
    world.assert_nothing_left();
}
