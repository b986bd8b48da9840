//! Where a disk's bytes are: the trait, and files and block devices.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate, fdatasync};

use crate::request::SECTOR;

/// A disk's content. Offsets and lengths are in bytes and were checked against the size.
pub trait Storage: Send + Sync {
    /// Size in sectors of 512 bytes; what is left over at the end is not part of the disk.
    fn sectors_512(&self) -> u64;
    /// Whether [`discard`](Self::discard) works.
    fn can_discard(&self) -> bool;
    /// Fills `to`.
    fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()>;
    /// Writes all of `from`.
    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()>;
    /// Makes everything written last.
    fn flush(&self) -> io::Result<()>;
    /// Gives the space of these bytes back, if the storage can; what they read as from then on is undefined.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;
    /// What tells this disk from others, if anything does: device and inode, or the block device's number.
    fn identity(&self) -> Option<Identity>;
}

/// What makes two paths the same disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A file: device and inode.
    File(u64, u64),
    /// A block device: major and minor.
    Block(u32, u32),
}

/// A raw image in a file or on a block device, through the page cache.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    sectors_512: u64,
    identity: Identity,
    can_discard: bool,
}

impl FileStorage {
    /// Opens a file or block device.
    pub fn open(path: &Path, read_only: bool) -> io::Result<FileStorage> {
        let unsuitable = || {
            let why = "it is neither a file nor a block device";
            io::Error::new(io::ErrorKind::InvalidInput, why)
        };
        // Looked at before it is opened: opening a pipe would wait for its writer, and all devices with us.
        let kind = std::fs::metadata(path)?.file_type();
        if !kind.is_block_device() && !kind.is_file() {
            return Err(unsuitable());
        }
        let mut file = OpenOptions::new().read(true).write(!read_only).open(path)?;
        let meta = file.metadata()?;
        let kind = meta.file_type();
        let identity = if kind.is_block_device() {
            let number = meta.rdev();
            Identity::Block(rustix::fs::major(number), rustix::fs::minor(number))
        } else if kind.is_file() {
            Identity::File(meta.dev(), meta.ino())
        } else {
            return Err(unsuitable());
        };
        // A block device's metadata has no length, but its end can be sought.
        let len = file.seek(SeekFrom::End(0))?;
        if len < SECTOR {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("it has {len} bytes, less than one sector of 512"),
            ));
        }
        Ok(FileStorage {
            file,
            sectors_512: len / SECTOR,
            identity,
            can_discard: !read_only,
        })
    }
}

impl Storage for FileStorage {
    fn sectors_512(&self) -> u64 {
        self.sectors_512
    }

    fn can_discard(&self) -> bool {
        self.can_discard
    }

    fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(to, offset)
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.file.write_all_at(from, offset)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(fdatasync(&self.file)?)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, flags, offset, len) {
            // A discard is a hint: a file system that cannot free the space has still done no wrong.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NODEV) => Ok(()),
            other => Ok(other?),
        }
    }

    fn identity(&self) -> Option<Identity> {
        Some(self.identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_is_refused_without_waiting_for_its_writer() {
        let path = std::env::temp_dir().join(format!("blkback-pipe-{}", std::process::id()));
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let pipe = path.clone();
        std::thread::spawn(move || tell.send(FileStorage::open(&pipe, true).map(drop)));
        let outcome = told.recv_timeout(std::time::Duration::from_secs(10));
        std::fs::remove_file(&path).unwrap();
        let error = outcome.expect("it does not wait").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
