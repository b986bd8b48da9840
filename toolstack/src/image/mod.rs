//! Kernel and ramdisk files: found, read, unpacked, checked, before Xen is touched.

mod lzo;
mod unpack;

mod source;

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use pv_layout::{Container, LoadSegment, MAX_IMAGE_BYTES, PvImage, Source, identify};
use xen_ring::{SharedMemory, SharedMemoryExt};

use crate::error::{Error, Result};
use crate::os;

pub use unpack::unpack;

use source::KernelFile;

/// Largest ramdisk: 4 GiB.
const MAX_RAMDISK: u64 = 4 << 30;

/// A kernel, known to be one for PV guests.
#[derive(Debug)]
pub struct Kernel {
    path: PathBuf,
    image: PvImage,
    content: Content,
}

/// Where the bytes of a kernel are.
#[derive(Debug)]
enum Content {
    /// Unpacked, or taken out of another file.
    Memory(Vec<u8>),
    /// As they shall be: they are read when the guest has room for them.
    File(KernelFile),
}

impl Kernel {
    /// Reads, unpacks and checks a kernel file; of one that needs no unpacking only what is to be checked is read.
    ///
    /// # Errors
    /// Names the file, and what about it is wrong.
    pub fn load(path: &Path) -> Result<Kernel> {
        let file = open(path, "read the kernel", "kernel=")?;
        let failed = |e: &std::io::Error| Error::system("read the kernel", path.display(), e);
        let file = KernelFile::new(file).map_err(|e| failed(&e))?;
        let invalid = |error: &dyn std::fmt::Display| {
            Error::new("use the kernel", path.display(), error)
                .hint("the file may be cut off or damaged: compare it with its package's")
        };
        if file.len() > MAX_IMAGE_BYTES {
            let cause = "it is larger than 512 MiB";
            return Err(Error::new("use the kernel", path.display(), cause)
                .hint("a kernel is some 10 MiB; kernel= may name a disk by mistake"));
        }
        let content = if file.is_elf() {
            Content::File(file)
        } else {
            let bytes = file.read_all().map_err(|e| failed(&e))?;
            Content::Memory(match identify(&bytes).map_err(|e| {
                invalid(&e).hint("name a PV kernel: an ELF file, or a Linux kernel (vmlinuz) built with CONFIG_XEN_PV")
            })? {
                Container::Compressed {
                    compression,
                    payload,
                    unpacked_len,
                } => unpack(compression, payload, unpacked_len).map_err(|e| invalid(&e))?,
                Container::Elf(inner) => inner.to_vec(),
            })
        };
        let image = match &content {
            Content::Memory(bytes) => PvImage::parse(&bytes[..]),
            Content::File(file) => {
                let image = PvImage::parse(file);
                if let Some(error) = file.error() {
                    return Err(failed(error));
                }
                image
            }
        };
        let image = image.map_err(|e| {
            invalid(&e).hint(
                "PV guests need a kernel with Xen's PV entry; Debian's linux-image-amd64 has it",
            )
        })?;
        Ok(Kernel {
            path: path.to_owned(),
            image,
            content,
        })
    }

    /// What it is and wants.
    pub fn image(&self) -> &PvImage {
        &self.image
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size, unpacked.
    pub fn unpacked_len(&self) -> u64 {
        match &self.content {
            Content::Memory(bytes) => bytes.len() as u64,
            Content::File(file) => file.len(),
        }
    }

    /// Puts the bytes of one of its segments into a guest's memory; how many these are.
    ///
    /// # Errors
    /// The file cannot be read, or has shrunk meanwhile.
    pub fn put(
        &self,
        segment: &LoadSegment,
        memory: &impl SharedMemory,
        at: usize,
    ) -> Result<usize> {
        let (start, end) = (segment.file.start as usize, segment.file.end as usize);
        match &self.content {
            Content::Memory(bytes) => memory.write_bytes(at, &bytes[start..end]),
            Content::File(file) => file
                .put(segment.file.start, memory, at, end - start)
                .map_err(|e| Error::system("read the kernel", self.path.display(), &e))?,
        }
        Ok(end - start)
    }
}

/// A ramdisk: an open file whose size is known.
#[derive(Debug)]
pub struct Ramdisk {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Ramdisk {
    /// Opens a ramdisk file.
    ///
    /// # Errors
    /// Names the file, and what about it is wrong.
    pub fn open(path: &Path) -> Result<Ramdisk> {
        let file = open(path, "read the ramdisk", "ramdisk=")?;
        let len = file
            .metadata()
            .map_err(|e| Error::system("read the ramdisk", path.display(), &e))?
            .len();
        if len == 0 || len > MAX_RAMDISK {
            return Err(Error::new(
                "use the ramdisk",
                path.display(),
                format!("it has {len} bytes"),
            )
            .hint("ramdisk= must name a file of 1 byte to 4 GiB"));
        }
        Ok(Ramdisk {
            path: path.to_owned(),
            file,
            len,
        })
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: an empty file is refused.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts its content into a guest's memory.
    ///
    /// # Errors
    /// It cannot be read, or has shrunk meanwhile.
    pub fn put(&self, memory: &impl SharedMemory, at: usize) -> Result<()> {
        os::read_to_guest(&self.file, 0, memory, at, self.len as usize)
            .map_err(|e| Error::system("read the ramdisk", self.path.display(), &e))
    }
}

fn open(path: &Path, step: &str, key: &str) -> Result<File> {
    let failed = |error: &std::io::Error| {
        let error = Error::system(step, path.display(), error);
        match error.hint.as_deref() {
            Some("check the path") => error.hint(format!("{key} must name an existing file")),
            _ => error,
        }
    };
    // A pipe nobody writes to must not hold us up.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|e| failed(&e))?;
    let is_file = file.metadata().map_err(|e| failed(&e))?.is_file();
    if !is_file {
        return Err(Error::new(step, path.display(), "it is no regular file")
            .hint(format!("{key} must name a file")));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use xen_hal::GrantTable;

    fn temp(name: &str, bytes: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("xlrs-image-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn wrong_kernels_are_refused_by_name() {
        let check = |path: &Path, part: &str| {
            let error = Kernel::load(path).unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains(part) && text.contains(&path.display().to_string()),
                "{text}"
            );
            // As libxl, which fails to build such a guest.
            assert_eq!(error.kind, Kind::Failed);
            assert!(error.hint.is_some(), "{error}");
        };
        check(Path::new("/no/such/kernel"), "ENOENT");
        check(Path::new("/"), "no regular file");
        let pipe = std::env::temp_dir().join(format!("xlrs-image-{}-pipe", std::process::id()));
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        check(&pipe, "no regular file");
        std::fs::remove_file(pipe).unwrap();
        let path = temp("text", b"#!/bin/sh\n");
        check(&path, "neither an ELF file nor a bzImage");
        std::fs::remove_file(path).unwrap();
        let path = temp("gzip", b"\x1f\x8bnot really gzip");
        check(&path, "gzip");
        std::fs::remove_file(path).unwrap();
        // This test's own program is ELF, but no kernel.
        check(
            &std::env::current_exe().unwrap(),
            "no kernel for a Xen PV guest",
        );
    }

    #[test]
    fn ramdisks_are_put_where_they_belong() {
        let content: Vec<u8> = (0..4000u32).map(|i| (i % 251) as u8).collect();
        let path = temp("ramdisk", &content);
        let ramdisk = Ramdisk::open(&path).unwrap();
        let world = xen_fake::World::new();
        let memory = world.create_domain().grants().alloc_page().unwrap();
        ramdisk.put(&memory, 8).unwrap();
        let mut seen = vec![0; 4096];
        memory.read_bytes(0, &mut seen);
        assert!(seen[..8] == [0; 8] && seen[8..4008] == content && seen[4008..] == [0; 88]);
        std::fs::write(&path, b"short").unwrap();
        assert!(ramdisk.put(&memory, 8).is_err());
        std::fs::write(&path, b"").unwrap();
        assert!(Ramdisk::open(&path).is_err());
        std::fs::remove_file(path).unwrap();
    }
}
