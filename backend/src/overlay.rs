//! An empty qcow2 image that rests on another, made from nothing: what a guest writes after a snapshot goes there.
//!
//! Layout: docs/interop/qcow2.txt in QEMU's source. It has version 3, clusters of 64 KiB and refcounts of 16 bits,
//! as qemu-img makes them: header, refcount table, one refcount block, L1 table, and nothing else.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const CLUSTER: u64 = 64 << 10;
const HEADER: u32 = 104;
/// The extension that names the backing file's format.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Longest name of a backing file.
pub const MAX_NAME: usize = 1023;

/// What an overlay rests on, and how large it is.
#[derive(Clone, Copy, Debug)]
pub struct Overlay<'a> {
    /// The file behind it, as it is to be named: an absolute path.
    pub backing: &'a str,
    /// `raw` or `qcow2`.
    pub format: &'a str,
    /// The disk's length.
    pub sectors_512: u64,
}

impl Overlay<'_> {
    /// Makes the file, which must not exist, and has it last.
    ///
    /// # Errors
    /// The file system's; nothing is left then.
    pub fn create(&self, path: &Path, mode: u32) -> io::Result<()> {
        let bytes = self.bytes()?;
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(mode);
        let mut file = options.open(path)?;
        let written = file
            .write_all(&bytes)
            .and_then(|()| file.sync_all())
            .and_then(|()| match path.parent() {
                Some(folder) if folder.as_os_str().is_empty() => File::open(".")?.sync_all(),
                Some(folder) => File::open(folder)?.sync_all(),
                None => Ok(()),
            });
        written.inspect_err(|_| {
            let _ = std::fs::remove_file(path);
        })
    }

    fn bytes(&self) -> io::Result<Vec<u8>> {
        if self.backing.len() > MAX_NAME || self.sectors_512 == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let size = self.sectors_512.checked_mul(512);
        let size = size.ok_or(io::ErrorKind::InvalidInput)?;
        // An entry of the L1 table stands for a cluster of entries, each of which stands for a cluster.
        let l1_entries = size.div_ceil(CLUSTER / 8 * CLUSTER);
        let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER);
        let clusters = 3 + l1_clusters;
        if clusters > CLUSTER / 2 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut extension = Vec::new();
        let format = self.format.as_bytes();
        extension.extend(BACKING_FORMAT.to_be_bytes());
        extension.extend((format.len() as u32).to_be_bytes());
        extension.extend(format);
        extension.resize(extension.len().next_multiple_of(8), 0);
        // The end of the extensions.
        extension.extend([0; 8]);
        let name_at = u64::from(HEADER) + extension.len() as u64;

        let mut out = Vec::with_capacity((clusters * CLUSTER) as usize);
        out.extend(b"QFI\xfb");
        out.extend(3u32.to_be_bytes());
        out.extend(name_at.to_be_bytes());
        out.extend((self.backing.len() as u32).to_be_bytes());
        out.extend(CLUSTER.ilog2().to_be_bytes());
        out.extend(size.to_be_bytes());
        // No encryption.
        out.extend(0u32.to_be_bytes());
        out.extend((l1_entries as u32).to_be_bytes());
        out.extend((3 * CLUSTER).to_be_bytes());
        out.extend(CLUSTER.to_be_bytes());
        out.extend(1u32.to_be_bytes());
        // No internal snapshots, and no features.
        out.extend([0; 4 + 8 + 3 * 8]);
        // Refcounts of 2^4 bits.
        out.extend(4u32.to_be_bytes());
        out.extend(HEADER.to_be_bytes());
        out.extend(&extension);
        out.extend(self.backing.as_bytes());
        out.resize(CLUSTER as usize, 0);
        out.extend((2 * CLUSTER).to_be_bytes());
        out.resize(2 * CLUSTER as usize, 0);
        for _ in 0..clusters {
            out.extend(1u16.to_be_bytes());
        }
        out.resize((clusters * CLUSTER) as usize, 0);
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_is_made_once_and_whole() {
        let path = std::env::temp_dir().join(format!("xen-backend-overlay-{}", std::process::id()));
        let overlay = Overlay {
            backing: "/srv/base.img",
            format: "raw",
            sectors_512: 1 << 40,
        };
        overlay.create(&path, 0o600).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        // 512 TiB: 2^20 entries, 128 clusters.
        assert_eq!(bytes.len() as u64, 131 * CLUSTER);
        assert_eq!(&bytes[..8], b"QFI\xfb\0\0\0\x03");
        let at = u64::from_be_bytes(bytes[8..16].try_into().unwrap()) as usize;
        assert_eq!(&bytes[at..at + 13], b"/srv/base.img");
        let again = overlay.create(&path, 0o600).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "it is as it was");
        std::fs::remove_file(&path).unwrap();
        let long = "x".repeat(MAX_NAME + 1);
        for (backing, sectors_512) in [(long.as_str(), 8), ("/a", 0), ("/a", u64::MAX)] {
            let bad = Overlay {
                backing,
                sectors_512,
                ..overlay
            };
            assert!(bad.create(&path, 0o600).is_err());
            assert!(!path.exists());
        }
    }
}
