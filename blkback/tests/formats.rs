//! Images in each format, against a model: 100 000 operations at random places, then `qemu-img`. Where
//! the machine has none (and `QEMU_IMG` names none), the tests that need it are ignored.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use blkback::{Allowance, Cache, Disk, Format, Storage, open_any};
use xen_fake::Schedule;

const SIZE: usize = 24 << 20;
const OPERATIONS: usize = 100_000;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("blkback-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn disk(path: &Path, format: Format, read_only: bool) -> Disk {
    Disk {
        path: path.to_path_buf(),
        format,
        read_only,
        shared: false,
        cdrom: false,
        removable: false,
        discard: true,
        cache: Cache::Page,
        allowance: Allowance::default(),
    }
}

fn open(path: &Path, format: Format, backing: &[PathBuf]) -> std::io::Result<Arc<dyn Storage>> {
    open_any(backing.to_vec())(&disk(path, format, false))
}

/// What qemu-img says, which must succeed.
fn qemu_img(arguments: &[&str]) -> String {
    // The tests that get here are ignored where the build has found none.
    let program = option_env!("QEMU_IMG").unwrap_or("qemu-img");
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "qemu-img {arguments:?}: {text}");
    text
}

/// Writes, reads and discards at random; `model` is what must be there.
fn churn(storage: &dyn Storage, model: &mut [u8], seed: u64, discards: bool) {
    assert_eq!(storage.sectors_512() as usize * 512, model.len());
    let sectors = model.len() / 512;
    let mut dice = Schedule::new(seed);
    let mut buffer = vec![0; 64 * 512];
    for n in 0..OPERATIONS {
        let first = dice.pick(sectors);
        let longest = if dice.chance(1, 8) { 64 } else { 8 };
        let count = (1 + dice.pick(longest)).min(sectors - first);
        let range = first * 512..(first + count) * 512;
        let (at, data) = (range.start as u64, &mut buffer[..count * 512]);
        match dice.pick(10) {
            0..5 => {
                data.fill(n as u8);
                data[..8].copy_from_slice(&(n as u64).to_le_bytes());
                storage.write(at, data).unwrap();
                model[range].copy_from_slice(data);
            }
            5 if discards => {
                storage.discard(at, (count * 512) as u64).unwrap();
                model[range].fill(0);
            }
            6 if dice.chance(1, 100) => storage.flush().unwrap(),
            _ => {
                storage.read(at, data).unwrap();
                assert!(*data == model[range], "operation {n} reads wrong bytes");
            }
        }
    }
    storage.flush().unwrap();
}

fn same(storage: &dyn Storage, model: &[u8]) {
    let mut data = vec![0; 1 << 20];
    for (n, expected) in model.chunks(1 << 20).enumerate() {
        let data = &mut data[..expected.len()];
        storage.read((n << 20) as u64, data).unwrap();
        assert!(data == expected, "MiB {n} is wrong");
    }
}

fn compare(folder: &Folder, image: &Path, format: &str, model: &[u8]) {
    let raw = folder.file("model.raw");
    std::fs::write(&raw, model).unwrap();
    let [image, raw] = [image, &raw].map(|path| path.display().to_string());
    qemu_img(&["compare", "-f", format, "-F", "raw", &image, &raw]);
}

#[test]
fn raw_images() {
    let folder = Folder::new("raw");
    let image = folder.file("a.raw");
    std::fs::write(&image, vec![0; SIZE]).unwrap();
    let mut model = vec![0; SIZE];
    churn(
        &*open(&image, Format::Raw, &[]).unwrap(),
        &mut model,
        1,
        true,
    );
    assert!(std::fs::read(&image).unwrap() == model);
}

#[test]
fn qcow2_images() {
    churned_qcow2(&Folder::new("qcow2"));
}

#[test]
#[cfg_attr(not(qemu_img), ignore = "needs qemu-img: apt install qemu-utils")]
fn qcow2_images_by_qemu_img() {
    let folder = Folder::new("qcow2-checked");
    let (image, model) = churned_qcow2(&folder);
    let text = image.display().to_string();
    let found = qemu_img(&["check", "-f", "qcow2", &text]);
    assert!(found.contains("No errors"), "{found}");
    compare(&folder, &image, "qcow2", &model);
}

/// An image after random work, which reads as its model does.
fn churned_qcow2(folder: &Folder) -> (PathBuf, Vec<u8>) {
    let image = folder.file("a.qcow2");
    create_qcow2(&image);
    let mut model = vec![0; SIZE];
    churn(
        &*open(&image, Format::Qcow2, &[]).unwrap(),
        &mut model,
        2,
        true,
    );
    same(&*open(&image, Format::Qcow2, &[]).unwrap(), &model);
    (image, model)
}

fn create_qcow2(path: &Path) {
    use imago::file::File;
    use imago::qcow2::Qcow2;
    use imago::{
        DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder, Storage as _,
        StorageCreateOptions,
    };
    let options = StorageCreateOptions::new().filename(path).size(0);
    let file = File::create_open(options).unwrap();
    let builder = Qcow2::<File>::create_builder(file).size(SIZE as u64);
    let image = builder
        .create_open(DenyImplicitOpenGate::default(), |image| {
            Ok(Qcow2::<File>::builder(image).write(true))
        })
        .unwrap();
    FormatAccess::new(image).flush().unwrap();
}

#[test]
fn what_is_written_to_qcow2_is_there_when_the_process_is_killed() {
    let folder = Folder::new("qcow2-killed");
    let image = folder.file("a.qcow2");
    create_qcow2(&image);
    let mut model = vec![0; SIZE];
    let mut dice = Schedule::new(7);
    for round in 0..20u8 {
        let storage = open(&image, Format::Qcow2, &[]).unwrap();
        for _ in 0..20 {
            let at = dice.pick(SIZE / 4096) * 4096;
            storage.write(at as u64, &[round; 4096]).unwrap();
            model[at..at + 4096].fill(round);
        }
        // Nothing is closed down in order.
        std::mem::forget(storage);
    }
    same(&*open(&image, Format::Qcow2, &[]).unwrap(), &model);
}

#[test]
#[cfg_attr(not(qemu_img), ignore = "needs qemu-img: apt install qemu-utils")]
fn qcow2_with_a_backing_file_and_compressed_clusters() {
    let folder = Folder::new("backing");
    let names = ["base.raw", "base.qcow2", "top.qcow2"].map(|name| folder.file(name));
    let [raw, base, top] = names.each_ref().map(|path| path.display().to_string());
    let mut model = vec![0; SIZE];
    for (n, sector) in model.chunks_mut(512).enumerate() {
        sector.fill((n / 7) as u8);
    }
    std::fs::write(&names[0], &model).unwrap();
    let convert = ["convert", "-c", "-f", "raw", "-O", "qcow2", &raw, &base];
    qemu_img(&convert);
    let create = ["create", "-f", "qcow2", "-b", &base, "-F", "qcow2", &top];
    qemu_img(&create);
    // Only where the host's configuration allows it.
    for elsewhere in [vec![], vec![PathBuf::from("/usr")]] {
        let error = open(&names[2], Format::Qcow2, &elsewhere).err().unwrap();
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::PermissionDenied,
            "{error}"
        );
    }
    let allowed = [folder.0.clone()];
    let storage = open(&names[2], Format::Qcow2, &allowed).unwrap();
    same(&*storage, &model);
    churn(&*storage, &mut model, 3, true);
    drop(storage);
    let found = qemu_img(&["check", "-f", "qcow2", &top]);
    assert!(found.contains("No errors"), "{found}");
    compare(&folder, &names[2], "qcow2", &model);
}

#[test]
#[cfg_attr(not(qemu_img), ignore = "needs qemu-img: apt install qemu-utils")]
fn vhd_images() {
    for dynamic in [false, true] {
        let folder = Folder::new(if dynamic { "vhd-dynamic" } else { "vhd-fixed" });
        let image = folder.file("a.vhd");
        let text = image.display().to_string();
        let kind = format!(
            "subformat={},force_size=on",
            if dynamic { "dynamic" } else { "fixed" }
        );
        let create = ["create", "-f", "vpc", "-o", &kind, &text, "24M"];
        qemu_img(&create);
        let mut model = vec![0; SIZE];
        churn(
            &*open(&image, Format::Vhd, &[]).unwrap(),
            &mut model,
            4,
            false,
        );
        same(&*open(&image, Format::Vhd, &[]).unwrap(), &model);
        compare(&folder, &image, "vpc", &model);
    }
}

#[test]
#[cfg_attr(not(qemu_img), ignore = "needs qemu-img: apt install qemu-utils")]
fn vmdk_images_are_read() {
    let folder = Folder::new("vmdk");
    let [raw, image] = ["a.raw", "a.vmdk"].map(|name| folder.file(name));
    let mut model = vec![0; SIZE];
    for (n, sector) in model.chunks_mut(512).enumerate().skip(5000) {
        sector.fill(n as u8);
    }
    std::fs::write(&raw, &model).unwrap();
    let [from, to] = [&raw, &image].map(|path| path.display().to_string());
    let convert = [
        "convert",
        "-f",
        "raw",
        "-O",
        "vmdk",
        "-o",
        "subformat=monolithicFlat",
        &from,
        &to,
    ];
    qemu_img(&convert);
    let disk = disk(&image, Format::Vmdk, true);
    // The image names the file that holds the data.
    assert!(open_any(Vec::new())(&disk).is_err(), "without permission");
    let allowed = vec![folder.0.clone()];
    same(&*open_any(allowed.clone())(&disk).unwrap(), &model);
    assert!(open(&image, Format::Vmdk, &allowed).is_err(), "for writing");
}

#[test]
fn broken_qcow2_images() {
    let folder = Folder::new("broken-qcow2");
    let sound = folder.file("sound");
    create_qcow2(&sound);
    let storage = open(&sound, Format::Qcow2, &[]).unwrap();
    for at in (0..SIZE).step_by(1 << 20) {
        storage.write(at as u64, &[1; 4096]).unwrap();
    }
    drop(storage);
    break_often(&folder, Format::Qcow2, &std::fs::read(&sound).unwrap());
}

#[test]
#[cfg_attr(not(qemu_img), ignore = "needs qemu-img: apt install qemu-utils")]
fn broken_vhd_images() {
    let folder = Folder::new("broken-vhd");
    let sound = folder.file("sound");
    let text = sound.display().to_string();
    qemu_img(&["create", "-f", "vpc", "-o", "force_size=on", &text, "24M"]);
    let storage = open(&sound, Format::Vhd, &[]).unwrap();
    storage.write(3 << 20, &[1; 4096]).unwrap();
    drop(storage);
    break_often(&folder, Format::Vhd, &std::fs::read(&sound).unwrap());
}

/// Images whose tables lead nowhere: an error, or bytes, but no panic and no read outside the file.
fn break_often(folder: &Folder, format: Format, bytes: &[u8]) {
    let broken = folder.file("broken");
    let mut dice = Schedule::new(11);
    for _ in 0..300 {
        let mut bytes = bytes.to_vec();
        for _ in 0..1 + dice.pick(8) {
            // Mostly in the head and the tables.
            let span = if dice.chance(1, 2) { 2048 } else { bytes.len() };
            let at = dice.pick(span);
            bytes[at] = dice.pick(256) as u8;
        }
        if dice.chance(1, 8) {
            bytes.truncate(dice.pick(bytes.len()));
        }
        std::fs::write(&broken, &bytes).unwrap();
        let Ok(storage) = open(&broken, format, &[]) else {
            continue;
        };
        let sectors = storage.sectors_512().min(1 << 20);
        for _ in 0..8 {
            let at = dice.pick(sectors as usize - 1) as u64 * 512;
            let _ = storage.read(at, &mut [0; 512]);
            // Writing to a damaged qcow2 image is not tried: imago 0.2.6 may recurse without end when it
            // looks for a free cluster in broken reference counts.
            if format != Format::Qcow2 {
                let _ = storage.write(at, &[2; 512]);
            }
        }
    }
}
