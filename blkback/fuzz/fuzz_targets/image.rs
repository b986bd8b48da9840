//! An image of any bytes: it opens or does not, and then every call returns.

#[path = "seeds.rs"]
mod seeds;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blkback::{Disk, Format, OtherFiles, Storage, open_given};
use rustix::fs::{MemfdFlags, memfd_create};

/// Other files that an image names: always one of zeros.
struct Zeros;

impl OtherFiles for Zeros {
    fn open(&self, _: &Path, _: &str, _: &str, _: bool) -> io::Result<(File, PathBuf)> {
        let file = in_memory(&[0; 4096])?;
        Ok((file, "/zeros".into()))
    }
}

fn in_memory(bytes: &[u8]) -> io::Result<File> {
    let mut file: File = memfd_create("image", MemfdFlags::CLOEXEC)?.into();
    file.write_all(bytes)?;
    Ok(file)
}

/// Writes some inputs into the folder that `FUZZ_SEEDS` names, if it does.
pub fn write_seeds(format: Format) {
    let Some(folder) = std::env::var_os("FUZZ_SEEDS") else {
        return;
    };
    for (name, image) in seeds::all(format) {
        // Formats that are only read are opened so.
        let writable = format != Format::Vmdk;
        for read_only in [true].into_iter().chain(writable.then_some(false)) {
            let read =
                open(format, read_only, &image).and_then(|storage| storage.read(0, &mut [0; 1024]));
            if let Err(error) = read {
                panic!("the seed {name} is no image: {error}");
            }
            let input = [&[u8::from(read_only)], image.as_slice()].concat();
            let file = format!("seed-{name}-{read_only}");
            let path = Path::new(&folder).join(file);
            std::fs::write(path, input).expect("the folder can be written");
        }
    }
}

fn open(format: Format, read_only: bool, image: &[u8]) -> io::Result<Arc<dyn Storage>> {
    let disk = Disk::plain("/image".into(), format, read_only);
    open_given(&disk, in_memory(image)?, false, &Zeros)
}

/// The first byte says how it is opened, the rest is the image.
pub fn try_image(format: Format, data: &[u8]) {
    let Some((&how, image)) = data.split_first() else {
        return;
    };
    let read_only = how & 1 == 1;
    let Ok(storage) = open(format, read_only, image) else {
        return;
    };
    let size = storage.sectors_512() * 512;
    assert!(size > 0, "a disk has a sector");
    let mut bytes = [0; 8192];
    for part in 0..4u64 {
        let len = (bytes.len() as u64).min(size) as usize;
        let at = (size / 4 * part) / 512 * 512;
        let at = at.min(size - len as u64);
        let read = storage.read(at, &mut bytes[..len]);
        if !read_only {
            let pattern = [0x5a ^ part as u8; 8192];
            if storage.write(at, &pattern[..len]).is_ok() && read.is_ok() {
                let again = storage.read(at, &mut bytes[..len]);
                assert!(again.is_err() || bytes[..len] == pattern[..len]);
            }
            let _ = storage.discard(at, len as u64);
        }
    }
    let _ = storage.flush();
}
