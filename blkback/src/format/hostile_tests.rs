//! Images with wrong bytes in them: an error or some bytes, but no panic, no endless loop and no memory
//! without bound. Runs in a process of its own, whose memory is limited.

use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::qemu_img::{Folder, Random};
use super::vhd::testing;
use super::{Format, Policy, open};
use crate::disk::Disk;
use crate::storage::Storage;

const SIZE: u64 = 4 << 20;
/// Address space that the process may use, in KiB: far more than [`super::MAX_TABLES`], with code and stacks.
const MEMORY_KIB: u64 = 400 << 10;

fn rounds() -> u64 {
    match std::env::var("XLRS_FORMAT_OPS") {
        Ok(count) => (count.parse::<u64>().expect("XLRS_FORMAT_OPS is a number") / 10).max(150),
        Err(_) => 150,
    }
}

/// Panics of this process. Those of the library are turned into errors; our parsers must have none.
static PANICS: AtomicU32 = AtomicU32::new(0);

/// What an attacker would write into a field.
fn mutate(image: &mut [u8], random: &mut Random) {
    // Tables and headers are at the beginning and, of some formats, at the end.
    let len = image.len() as u64;
    for _ in 0..1 + random.below(4) {
        let at = match random.below(8) {
            0..3 => random.below(len.min(112)),
            3..5 => random.below(len.min(2048)),
            5 => len - 1 - random.below(len.min(1536)),
            6 => random.below(len.min(1 << 18)) / 512 * 512 + random.below(64),
            _ => random.below(len),
        } as usize;
        let value = match random.below(7) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << random.below(64),
            3 => (1 << random.below(64)) - 1,
            4 => random.below(len) / 512,
            5 => random.below(len) / 4096 * 4096,
            _ => random.below(u64::MAX),
        };
        let width = [1, 4, 8][random.below(3) as usize].min(image.len() - at);
        let bytes = value.to_be_bytes();
        let bytes = if random.below(2) == 0 {
            value.to_le_bytes()
        } else {
            bytes
        };
        let bytes = if random.below(2) == 0 {
            &bytes[..width]
        } else {
            &bytes[8 - width..]
        };
        image[at..at + width].copy_from_slice(bytes);
    }
    if random.below(3) > 0 && image[..8] == *b"conectix" {
        // With right checksums, for what is behind them.
        testing::seal(&mut image[..512], 64);
        testing::seal(&mut image[512..1536], 36);
        let end = image.len() - 512;
        testing::seal(&mut image[end..], 64);
    }
}

/// Opens a mutated image and uses it; true if it could be opened.
fn attack(folder: &Folder, format: Format, image: &[u8], random: &mut Random) -> bool {
    let path = folder.file("mutant");
    std::fs::write(&path, image).unwrap();
    let read_only = format == Format::Vmdk || random.below(3) == 0;
    let Ok(storage) = open(
        &Disk::plain(path.clone(), format, read_only),
        &Policy::default(),
    ) else {
        return false;
    };
    let sectors = storage.sectors_512();
    let mut data = vec![0; 64 << 10];
    for _ in 0..12 {
        let offset = random.below(sectors.min(SIZE / 512)) * 512;
        let offset = if random.below(8) == 0 {
            random.below(sectors) * 512
        } else {
            offset
        };
        let len = data.len().min((sectors * 512 - offset) as usize);
        let _ = match random.below(6) {
            0 => storage.write(offset, &data[..len]),
            1 => storage.discard(offset, len as u64),
            2 => storage.flush(),
            _ => storage.read(offset, &mut data[..len]),
        };
    }
    true
}

fn open_whole(path: &Path, format: Format, policy: &Policy) -> io::Result<Arc<dyn Storage>> {
    open(&Disk::plain(path.into(), format, false), policy)
}

fn attack_all(folder: &Folder, format: Format, image: &[u8], what: &str) {
    let mut random = Random(image.len() as u64 ^ 0x51);
    let (mut opened, mut slowest) = (0, Duration::ZERO);
    for _ in 0..rounds() {
        let mut mutant = image.to_vec();
        mutate(&mut mutant, &mut random);
        let (before, begun) = (PANICS.load(Ordering::Relaxed), Instant::now());
        opened += u32::from(attack(folder, format, &mutant, &mut random));
        slowest = slowest.max(begun.elapsed());
        let panics = PANICS.load(Ordering::Relaxed) - before;
        if panics > 0 {
            let _ = std::fs::write(std::env::temp_dir().join(format!("mutant-{what}")), &mutant);
            assert_eq!(
                format,
                Format::Qcow2,
                "a panic in our own code: see mutant-{what}"
            );
        }
    }
    println!(
        "{what}: {} mutants, {opened} opened, slowest {slowest:?}",
        rounds()
    );
    assert!(
        opened > 0 && u64::from(opened) < rounds(),
        "{what}: mutations matter, but not all"
    );
    assert!(slowest < Duration::from_secs(20), "{what}: {slowest:?}");
}

/// Runs the body of a test in a process with little memory: the test's own, started again.
fn in_little_memory(name: &str, body: fn()) {
    const HERE: &str = "XLRS_LITTLE_MEMORY";
    if std::env::var_os(HERE).is_some() {
        return body();
    }
    let me = std::env::current_exe().unwrap();
    let script = format!(
        "ulimit -S -v {MEMORY_KIB}; {HERE}=1 exec {} --exact format::hostile_tests::{name} --nocapture --test-threads 1",
        me.display()
    );
    let out = Command::new("sh").args(["-c", &script]).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    print!("{text}");
    assert!(out.status.success(), "{}\n{text}", out.status);
    assert!(text.contains("1 passed"), "it ran: {text}");
}

fn count_panics() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        match info.location() {
            Some(at) if at.file().contains("imago") => println!("library: {info}"),
            _ => default(info),
        }
    }));
}

fn attack_vhds() {
    count_panics();
    let folder = Folder::new();
    let path = folder.file("disk");
    std::fs::write(&path, testing::dynamic(SIZE, 65536)).unwrap();
    let disk = open_whole(&path, Format::Vhd, &Policy::default()).unwrap();
    for at in [0, 3 << 16, 1 << 20, SIZE - 4096] {
        disk.write(at, &[0x33; 4096]).unwrap();
    }
    drop(disk);
    attack_all(&folder, Format::Vhd, &std::fs::read(&path).unwrap(), "vhd");
    let fixed = [
        vec![1; 1 << 16],
        testing::footer(1 << 16, 2, u64::MAX).to_vec(),
    ]
    .concat();
    attack_all(&folder, Format::Vhd, &fixed, "vhd-fixed");
}

#[test]
fn mutated_vhds() {
    in_little_memory("mutated_vhds", attack_vhds);
}

fn attack_images_of_qemu() {
    count_panics();
    let folder = Folder::new();
    let mut random = Random(7);
    let mut content = vec![0; SIZE as usize];
    for at in [0usize, 1 << 20, 3 << 20] {
        random.fill(&mut content[at..at + (200 << 10)]);
    }
    std::fs::write(folder.file("raw"), content).unwrap();
    for (format, what, options) in [
        (Format::Qcow2, "qcow2", "-O qcow2"),
        (Format::Qcow2, "qcow2-4k", "-O qcow2 -o cluster_size=4k"),
        (Format::Qcow2, "qcow2-v2", "-O qcow2 -o compat=0.10"),
        (Format::Qcow2, "qcow2-compressed", "-c -O qcow2"),
        (Format::Vmdk, "vmdk", "-O vmdk"),
        (
            Format::Vmdk,
            "vmdk-stream",
            "-O vmdk -o subformat=streamOptimized",
        ),
        (Format::Vhd, "vpc", "-O vpc"),
    ] {
        folder
            .qemu_img(&format!("convert -q -f raw raw {options} image"))
            .unwrap();
        let mut image = Vec::new();
        let mut file = std::fs::File::open(folder.file("image")).unwrap();
        file.read_to_end(&mut image).unwrap();
        attack_all(&folder, format, &image, what);
    }
}

#[test]
#[cfg_attr(not(qemu_img), ignore = "needs qemu-img: apt install qemu-utils")]
fn mutated_images_of_qemu() {
    in_little_memory("mutated_images_of_qemu", attack_images_of_qemu);
}

/// Tables that would take all memory, in headers that are right otherwise.
#[test]
#[cfg_attr(not(qemu_img), ignore = "needs qemu-img: apt install qemu-utils")]
fn tables_without_bound_are_refused() {
    let folder = Folder::new();
    folder
        .qemu_img("create -q -f qcow2 -o cluster_size=64k disk 1M")
        .unwrap();
    let path = folder.file("disk");
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(1 << 40).unwrap();
    for (at, value, words) in [
        (36, 4u32 << 20, "take"),
        (56, 1 << 10, "take"),
        (56, u32::MAX, "not inside"),
    ] {
        let old = {
            let mut b = [0; 4];
            std::fs::File::open(&path)
                .unwrap()
                .read_exact_at(&mut b, at)
                .unwrap();
            b
        };
        file.write_all_at(&value.to_be_bytes(), at).unwrap();
        let error = open_whole(&path, Format::Qcow2, &Policy::default())
            .err()
            .unwrap();
        assert!(error.to_string().contains(words), "{at}: {error}");
        file.write_all_at(&old, at).unwrap();
    }
    assert!(open_whole(&path, Format::Qcow2, &Policy::default()).is_ok());
}
