//! Kernel and ramdisk files: found, read, unpacked, checked, before Xen is touched.

mod lzo;
mod unpack;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use pv_layout::{Container, MAX_IMAGE_BYTES, PvImage, identify};

use crate::error::{Error, Result};

pub use unpack::unpack;

/// Largest ramdisk: 4 GiB.
const MAX_RAMDISK: u64 = 4 << 30;

/// A kernel, unpacked and known to be one for PV guests.
#[derive(Debug)]
pub struct Kernel {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Kernel {
    /// Reads, unpacks and checks a kernel file.
    ///
    /// # Errors
    /// Names the file, and what about it is wrong.
    pub fn load(path: &Path) -> Result<Kernel> {
        let file = open(path, "read the kernel", "kernel=")?;
        let mut bytes = read_all(path, file)?;
        let invalid = |error: &dyn std::fmt::Display| {
            Error::new("use the kernel", path.display(), error)
                .hint("the file may be cut off or damaged: compare it with its package's")
        };
        if let Container::Compressed {
            compression,
            payload,
            unpacked_len,
        } = identify(&bytes).map_err(|e| {
            invalid(&e).hint("name a PV kernel: an ELF file, or a Linux kernel (vmlinuz) built with CONFIG_XEN_PV")
        })? {
            bytes = unpack(compression, payload, unpacked_len).map_err(|e| invalid(&e))?;
        } else if let Ok(Container::Elf(inner)) = identify(&bytes)
            && inner.len() != bytes.len()
        {
            bytes = inner.to_vec();
        }
        let kernel = Kernel {
            path: path.to_owned(),
            bytes,
        };
        PvImage::parse(&kernel.bytes).map_err(|e| {
            invalid(&e).hint(
                "PV guests need a kernel with Xen's PV entry; Debian's linux-image-amd64 has it",
            )
        })?;
        Ok(kernel)
    }

    /// The checked image in it.
    ///
    /// # Errors
    /// None in practice: loading has checked it.
    pub fn image(&self) -> Result<PvImage<'_>> {
        PvImage::parse(&self.bytes)
            .map_err(|e| Error::new("use the kernel", self.path.display(), e))
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size, unpacked.
    pub fn unpacked_len(&self) -> usize {
        self.bytes.len()
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

    /// Gives its content to `take` in pieces, with the offset of each.
    ///
    /// # Errors
    /// It cannot be read, or has shrunk meanwhile.
    pub fn read_pieces(&self, mut take: impl FnMut(u64, &[u8])) -> Result<()> {
        use std::os::unix::fs::FileExt;
        let mut piece = vec![0; self.len.min(1 << 20) as usize];
        let mut at = 0;
        while at < self.len {
            let wanted = (self.len - at).min(piece.len() as u64) as usize;
            self.file
                .read_exact_at(&mut piece[..wanted], at)
                .map_err(|e| Error::system("read the ramdisk", self.path.display(), &e))?;
            take(at, &piece[..wanted]);
            at += wanted as u64;
        }
        Ok(())
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

fn read_all(path: &Path, file: File) -> Result<Vec<u8>> {
    let failed = |e: &std::io::Error| Error::system("read the kernel", path.display(), e);
    let len = file.metadata().map_err(|e| failed(&e))?.len();
    let mut bytes = Vec::with_capacity(len.min(MAX_IMAGE_BYTES) as usize + 1);
    file.take(MAX_IMAGE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| failed(&e))?;
    if bytes.len() as u64 > MAX_IMAGE_BYTES {
        let cause = "it is larger than 512 MiB";
        return Err(Error::new("use the kernel", path.display(), cause)
            .hint("a kernel is some 10 MiB; kernel= may name a disk by mistake"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

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
    fn ramdisks_are_read_in_pieces() {
        let content: Vec<u8> = (0..(2u32 << 20) + 5).map(|i| (i % 251) as u8).collect();
        let path = temp("ramdisk", &content);
        let ramdisk = Ramdisk::open(&path).unwrap();
        let mut seen: Vec<u8> = Vec::new();
        ramdisk
            .read_pieces(|at, piece| {
                assert_eq!(at as usize, seen.len());
                seen.extend(piece);
            })
            .unwrap();
        assert!(seen == content);
        std::fs::write(&path, b"short").unwrap();
        assert!(ramdisk.read_pieces(|_, _| {}).is_err());
        std::fs::write(&path, b"").unwrap();
        assert!(Ramdisk::open(&path).is_err());
        std::fs::remove_file(path).unwrap();
    }
}
