//! Random operations on images of every format beside a model in memory, then qemu-img's opinion of the
//! image. `XLRS_FORMAT_OPS` says how many operations an image gets:
//! `XLRS_FORMAT_OPS=100000 cargo test --release -p blkback --lib model_tests`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::qemu_img::{Folder, Random, opened};
use super::vhd::testing;
use super::{Format, Policy};
use crate::disk::Disk;
use crate::storage::Storage;

const SECTOR: u64 = 512;
/// Not a multiple of any cluster or block.
const SIZE: u64 = (9 << 20) + 5 * SECTOR;

fn operations() -> u64 {
    match std::env::var("XLRS_FORMAT_OPS") {
        Ok(count) => count.parse().expect("XLRS_FORMAT_OPS is a number"),
        Err(_) => 600,
    }
}

/// A range of sectors: mostly short, sometimes up to a request's greatest length.
fn range(random: &mut Random, size: u64) -> (u64, usize) {
    let most = [8, 8, 32, 128, 2048][random.below(5) as usize];
    let sectors = size / SECTOR;
    let at = random.below(sectors);
    let count = (1 + random.below(most)).min(sectors - at);
    (at * SECTOR, (count * SECTOR) as usize)
}

/// One operation. A failure says which seed and operation it was.
fn step(storage: &dyn Storage, model: &mut [u8], random: &mut Random, what: &str) {
    let (offset, len) = range(random, model.len() as u64);
    let place = &mut model[offset as usize..offset as usize + len];
    let mut data = vec![0xa5; len];
    match random.below(20) {
        0..8 => {
            random.fill(&mut data);
            storage
                .write(offset, &data)
                .unwrap_or_else(|e| panic!("{what}: write: {e}"));
            place.copy_from_slice(&data);
        }
        8..10 => {
            storage
                .discard(offset, len as u64)
                .unwrap_or_else(|e| panic!("{what}: discard: {e}"));
            // What is read from now on is the old bytes or zeros, and stays what it is.
            storage.read(offset, &mut data).unwrap();
            for (byte, old) in data.iter().zip(place.iter()) {
                assert!(
                    *byte == 0 || byte == old,
                    "{what}: discard at {offset}+{len}"
                );
            }
            place.copy_from_slice(&data);
        }
        10 => storage
            .flush()
            .unwrap_or_else(|e| panic!("{what}: flush: {e}")),
        _ => {
            storage
                .read(offset, &mut data)
                .unwrap_or_else(|e| panic!("{what}: read: {e}"));
            assert!(
                data == place,
                "{what}: what is read at {offset}+{len} differs"
            );
        }
    }
}

/// Works on an image, opening it again now and then, at times without having closed it, as if the daemon had
/// been killed.
fn exercise(path: &Path, format: Format, policy: &Policy, model: &mut [u8]) {
    let seed = 0x9e37_79b9_7f4a_7c15 ^ model.len() as u64;
    let mut random = Random(seed);
    let open =
        || opened(path, format, policy).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut storage = open();
    assert_eq!(
        storage.sectors_512() * SECTOR,
        model.len() as u64,
        "{}",
        path.display()
    );
    for number in 0..operations() {
        let what = format!("{} operation {number}", path.display());
        step(&*storage, model, &mut random, &what);
        if random.below(700) == 0 {
            if random.below(2) == 0 {
                std::mem::forget(storage);
            } else {
                drop(storage);
            }
            storage = open();
        }
    }
}

/// Compares an image with the model, by our own eyes.
fn compare(storage: &dyn Storage, model: &[u8], what: &str) {
    for (number, expected) in model.chunks(1 << 20).enumerate() {
        let mut found = vec![0; expected.len()];
        storage
            .read((number as u64) << 20, &mut found)
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(found == expected, "{what}: MiB {number} differs");
    }
}

/// Compares an image with the model, by those of qemu-img.
fn judge(folder: &Folder, name: &str, qemu_format: &str, model: &[u8]) {
    std::fs::write(folder.file("model"), model).unwrap();
    if qemu_format == "qcow2" {
        let said = folder.qemu_img(&format!("check -f qcow2 {name}")).unwrap();
        assert!(said.contains("No errors were found"), "{said}");
    }
    folder
        .qemu_img(&format!("compare -f {qemu_format} -F raw {name} model"))
        .unwrap();
}

/// Bytes with some order in them, and holes.
fn content(folder: &Folder, name: &str, size: u64) -> Vec<u8> {
    let mut random = Random(size);
    let mut model = vec![0; size as usize];
    for part in model.chunks_mut(40 << 10) {
        if random.below(3) > 0 {
            let word = random.below(1 << 40).to_le_bytes();
            part.iter_mut()
                .zip(word.iter().cycle())
                .for_each(|(byte, w)| *byte = *w);
        }
    }
    std::fs::write(folder.file(name), &model).unwrap();
    model
}

#[test]
#[cfg_attr(not(qemu_img), ignore = "needs qemu-img: apt install qemu-utils")]
fn qcow2_of_every_kind() {
    for options in [
        "cluster_size=4k",
        "cluster_size=64k",
        "cluster_size=2M",
        "cluster_size=512",
        "compat=0.10",
        "lazy_refcounts=on",
        "refcount_bits=1",
        "refcount_bits=64,cluster_size=4k",
        "preallocation=metadata",
    ] {
        let folder = Folder::new();
        folder
            .qemu_img(&format!("create -q -f qcow2 -o {options} disk {SIZE}"))
            .unwrap();
        let mut model = vec![0; SIZE as usize];
        exercise(
            &folder.file("disk"),
            Format::Qcow2,
            &Policy::default(),
            &mut model,
        );
        judge(&folder, "disk", "qcow2", &model);
    }
}

#[test]
#[cfg_attr(not(qemu_img), ignore = "needs qemu-img: apt install qemu-utils")]
fn qcow2_compressed() {
    for cluster in ["4k", "64k", "2M"] {
        let folder = Folder::new();
        let mut model = content(&folder, "raw", SIZE);
        let args = format!("convert -q -c -O qcow2 -o cluster_size={cluster} -f raw raw disk");
        folder.qemu_img(&args).unwrap();
        exercise(
            &folder.file("disk"),
            Format::Qcow2,
            &Policy::default(),
            &mut model,
        );
        judge(&folder, "disk", "qcow2", &model);
    }
}

#[test]
#[cfg_attr(not(qemu_img), ignore = "needs qemu-img: apt install qemu-utils")]
fn qcow2_with_backing_files() {
    for (format, cluster, base) in [
        ("raw", "64k", SIZE),
        ("qcow2", "4k", SIZE),
        ("raw", "64k", SIZE / 2 / SECTOR * SECTOR),
    ] {
        let folder = Folder::new();
        let mut model = content(&folder, "raw", base);
        model.resize(SIZE as usize, 0);
        folder
            .qemu_img("convert -q -c -O qcow2 -f raw raw qcow2")
            .unwrap();
        let before = std::fs::read(folder.file(format)).unwrap();
        let args = format!("-F {format} -b {format} -o cluster_size={cluster} disk {SIZE}");
        folder
            .qemu_img(&format!("create -q -f qcow2 {args}"))
            .unwrap();
        let path = folder.file("disk");
        let refused = opened(&path, Format::Qcow2, &Policy::default())
            .err()
            .unwrap();
        assert_eq!(
            refused.kind(),
            std::io::ErrorKind::PermissionDenied,
            "{refused}"
        );
        exercise(&path, Format::Qcow2, &folder.policy(), &mut model);
        judge(&folder, "disk", "qcow2", &model);
        assert!(
            std::fs::read(folder.file(format)).unwrap() == before,
            "the backing file is as it was"
        );
    }
}

#[test]
#[cfg_attr(not(qemu_img), ignore = "needs qemu-img: apt install qemu-utils")]
fn qcow2_with_a_snapshot_in_it() {
    let folder = Folder::new();
    let mut model = content(&folder, "raw", SIZE);
    let before = model.clone();
    folder
        .qemu_img("convert -q -O qcow2 -f raw raw disk")
        .unwrap();
    folder.qemu_img("snapshot -c old disk").unwrap();
    exercise(
        &folder.file("disk"),
        Format::Qcow2,
        &Policy::default(),
        &mut model,
    );
    judge(&folder, "disk", "qcow2", &model);
    folder.qemu_img("snapshot -a old disk").unwrap();
    judge(&folder, "disk", "qcow2", &before);
}

/// Overlays as snapshots make them, one on another: what is behind stays as it is, and qemu-img finds no fault.
#[test]
#[cfg_attr(not(qemu_img), ignore = "needs qemu-img: apt install qemu-utils")]
fn overlays_of_our_own() {
    let folder = Folder::new();
    let policy = folder.policy();
    let mut model = content(&folder, "first", SIZE);
    let mut below = ("first", "raw");
    for name in ["second", "third"] {
        let behind = folder.file(below.0);
        let overlay = xen_backend::overlay::Overlay {
            backing: behind.to_str().unwrap(),
            format: below.1,
            sectors_512: SIZE / SECTOR,
        };
        overlay.create(&folder.file(name), 0o600).unwrap();
        judge(&folder, name, "qcow2", &model);
        let before = std::fs::read(&behind).unwrap();
        exercise(&folder.file(name), Format::Qcow2, &policy, &mut model);
        judge(&folder, name, "qcow2", &model);
        assert!(std::fs::read(&behind).unwrap() == before, "{}", below.0);
        below = (name, "qcow2");
    }
}

#[test]
#[cfg_attr(not(qemu_img), ignore = "needs qemu-img: apt install qemu-utils")]
fn qcow2_that_is_refused() {
    let folder = Folder::new();
    let create = |args: &str| {
        folder
            .qemu_img(&format!("create -q -f qcow2 {args}"))
            .unwrap()
    };
    create("plain 1M");
    create("-o extended_l2=on subclusters 1M");
    create("-o data_file=data external 1M");
    create("-F raw -b /etc/passwd -u escape 1M");
    create("-F qcow2 -b other-end -u loop 1M");
    create("-F qcow2 -b loop -u other-end 1M");
    create("-F vmdk -b plain -u other 1M");
    // As QEMU marks them; making one takes it long on a busy machine, or fails.
    for (name, at, mark) in [
        ("dirty", 72, &[0, 0, 0, 0, 0, 0, 0, 1][..]),
        ("locked", 32, &[0, 0, 0, 2]),
    ] {
        std::fs::copy(folder.file("plain"), folder.file(name)).unwrap();
        let file = File::options().write(true).open(folder.file(name)).unwrap();
        file.write_all_at(mark, at).unwrap();
    }
    let policy = folder.policy();
    for (name, policy, words) in [
        ("subclusters", &policy, "extended L2"),
        ("external", &Policy::default(), "no folder is allowed"),
        ("locked", &policy, "encrypted"),
        ("escape", &policy, "no folder that is allowed"),
        ("loop", &policy, "lead back to themselves"),
        ("other", &policy, "vmdk"),
        ("dirty", &policy, "not closed cleanly"),
        ("plain", &policy, ""),
        ("external", &policy, ""),
    ] {
        match opened(&folder.file(name), Format::Qcow2, policy) {
            Ok(_) => assert_eq!(words, "", "{name} is to be refused"),
            Err(error) => assert!(
                !words.is_empty() && error.to_string().contains(words),
                "{name}: {error}"
            ),
        }
    }
}

#[test]
#[cfg_attr(not(qemu_img), ignore = "needs qemu-img: apt install qemu-utils")]
fn qcow2_with_its_data_elsewhere() {
    let folder = Folder::new();
    folder
        .qemu_img(&format!("create -q -f qcow2 -o data_file=data disk {SIZE}"))
        .unwrap();
    let mut model = vec![0; SIZE as usize];
    exercise(
        &folder.file("disk"),
        Format::Qcow2,
        &folder.policy(),
        &mut model,
    );
    judge(&folder, "disk", "qcow2", &model);
}

/// Four threads, each with its part of the disk; the parts share clusters' tables.
#[test]
#[cfg_attr(not(qemu_img), ignore = "needs qemu-img: apt install qemu-utils")]
fn many_threads_on_one_image() {
    const PART: usize = (SIZE / SECTOR / 4 * SECTOR) as usize;
    for (format, qemu, create) in [
        (
            Format::Qcow2,
            "qcow2",
            "create -q -f qcow2 -o cluster_size=4k",
        ),
        (Format::Qcow2, "qcow2", "create -q -f qcow2"),
        (Format::Vhd, "vpc", "create -q -f vpc -o force_size=on"),
    ] {
        let folder = Folder::new();
        let size = 4 * PART;
        folder.qemu_img(&format!("{create} disk {size}")).unwrap();
        let storage = opened(&folder.file("disk"), format, &Policy::default()).unwrap();
        let mut model = vec![0; size];
        std::thread::scope(|scope| {
            for (number, part) in model.chunks_mut(PART).enumerate() {
                let storage = Part(storage.clone(), (number * PART) as u64);
                scope.spawn(move || {
                    let mut random = Random(number as u64 + 1);
                    for count in 0..operations() {
                        let what = format!("{qemu} thread {number} operation {count}");
                        step(&storage, part, &mut random, &what);
                    }
                });
            }
        });
        compare(&*storage, &model, qemu);
        drop(storage);
        judge(&folder, "disk", qemu, &model);
    }
}

/// A part of a disk, as a disk.
struct Part(Arc<dyn Storage>, u64);

impl Storage for Part {
    fn sectors_512(&self) -> u64 {
        self.0.sectors_512()
    }
    fn can_discard(&self) -> bool {
        self.0.can_discard()
    }
    fn read(&self, offset: u64, to: &mut [u8]) -> std::io::Result<()> {
        self.0.read(self.1 + offset, to)
    }
    fn write(&self, offset: u64, from: &[u8]) -> std::io::Result<()> {
        self.0.write(self.1 + offset, from)
    }
    fn flush(&self) -> std::io::Result<()> {
        self.0.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.0.discard(self.1 + offset, len)
    }
    fn identity(&self) -> Option<crate::storage::Identity> {
        self.0.identity()
    }
}

#[test]
#[cfg_attr(not(qemu_img), ignore = "needs qemu-img: apt install qemu-utils")]
fn vhd_and_raw_of_qemu() {
    for (format, qemu, options) in [
        (Format::Vhd, "vpc", "-o subformat=dynamic,force_size=on"),
        (Format::Vhd, "vpc", "-o subformat=fixed,force_size=on"),
        (Format::Raw, "raw", ""),
    ] {
        let folder = Folder::new();
        folder
            .qemu_img(&format!("create -q -f {qemu} {options} disk {SIZE}"))
            .unwrap();
        let mut model = vec![0; SIZE as usize];
        exercise(&folder.file("disk"), format, &Policy::default(), &mut model);
        judge(&folder, "disk", qemu, &model);
    }
}

/// Blocks of other lengths than those of QEMU.
#[test]
fn vhd_of_our_own() {
    for block in [4096, 65536, 512 << 10, 2 << 20] {
        let folder = Folder::new();
        let path = folder.file("disk");
        std::fs::write(&path, testing::dynamic(SIZE, block)).unwrap();
        let mut model = vec![0; SIZE as usize];
        exercise(&path, Format::Vhd, &Policy::default(), &mut model);
        compare(
            &*opened(&path, Format::Vhd, &Policy::default()).unwrap(),
            &model,
            "our own",
        );
    }
}

/// A block of which only some sectors have data: others read as zeros, whatever stands there.
#[test]
fn vhd_with_holes_in_a_block() {
    let folder = Folder::new();
    let path = folder.file("disk");
    std::fs::write(&path, testing::dynamic(1 << 20, 65536)).unwrap();
    let open = || opened(&path, Format::Vhd, &Policy::default()).unwrap();
    open().write(65536, &[7; 65536]).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let mut entry = [0; 4];
    file.read_exact_at(&mut entry, 1536 + 4).unwrap();
    let bitmap = u64::from(u32::from_be_bytes(entry)) * SECTOR;
    // Of sectors 0 to 7, the second and the last.
    file.write_all_at(&[0b0100_0001], bitmap).unwrap();
    let mut model = vec![0; 1 << 20];
    model[65536..2 * 65536].fill(7);
    model[65536..65536 + 512].fill(0);
    model[65536 + 1024..65536 + 7 * 512].fill(0);
    compare(&*open(), &model, "before");
    open().write(65536 + 1024, &[9; 512]).unwrap();
    model[65536 + 1024..65536 + 1536].fill(9);
    compare(&*open(), &model, "after");
}

/// The daemon is killed between the steps of making a block, or the file system is full.
#[test]
fn vhd_that_was_cut_off() {
    let folder = Folder::new();
    let path = folder.file("disk");
    let mut image = testing::dynamic(1 << 20, 65536);
    image.truncate(image.len() - 512);
    std::fs::write(&path, &image).unwrap();
    let storage = opened(&path, Format::Vhd, &Policy::default()).unwrap();
    let mut model = vec![0; 1 << 20];
    compare(&*storage, &model, "without a footer");
    storage.write(4096, &[1; 4096]).unwrap();
    model[4096..8192].fill(1);
    drop(storage);
    compare(
        &*opened(&path, Format::Vhd, &Policy::default()).unwrap(),
        &model,
        "with a footer again",
    );
}

#[test]
#[cfg_attr(not(qemu_img), ignore = "needs qemu-img: apt install qemu-utils")]
fn vmdk_is_read() {
    for subformat in [
        "monolithicSparse",
        "streamOptimized",
        "monolithicFlat",
        "twoGbMaxExtentFlat",
    ] {
        let folder = Folder::new();
        let model = content(&folder, "raw", SIZE);
        folder
            .qemu_img(&format!(
                "convert -q -f raw -O vmdk -o subformat={subformat} raw disk.vmdk"
            ))
            .unwrap();
        let path = folder.file("disk.vmdk");
        let outside = opened(&path, Format::Vmdk, &Policy::default());
        assert_eq!(outside.is_ok(), !subformat.ends_with("Flat"), "{subformat}");
        let storage = opened(&path, Format::Vmdk, &folder.policy()).unwrap();
        assert_eq!(storage.sectors_512() * SECTOR, SIZE, "{subformat}");
        compare(&*storage, &model, subformat);
        let mut random = Random(3);
        for _ in 0..operations() {
            let (offset, len) = range(&mut random, SIZE);
            let mut data = vec![0; len];
            storage.read(offset, &mut data).unwrap();
            assert!(
                data == model[offset as usize..offset as usize + len],
                "{subformat}"
            );
        }
        assert!(storage.write(0, &[0; 512]).is_err());
        let to_write = super::open(
            &Disk::plain(path.clone(), Format::Vmdk, false),
            &folder.policy(),
        );
        assert!(to_write.is_err(), "{subformat} for writing");
    }
}
