//! Where a disk's bytes are: the trait, and files and block devices.

use std::any::Any;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, fallocate, fdatasync};

use crate::memory::{Buffer, Piece, gather, scatter, total};
use crate::request::SECTOR;

/// A disk's content. Offsets and lengths are in bytes and were checked against the size.
pub trait Storage: Send + Sync {
    /// Size in sectors of 512 bytes; what is left over at the end is not part of the disk. Changes with
    /// [`refresh`](Self::refresh) only.
    fn sectors_512(&self) -> u64;
    /// The unit in which it is read and written, in bytes: a power of two from 512 to 4096.
    fn sector_size(&self) -> u32 {
        SECTOR as u32
    }
    /// Whether [`discard`](Self::discard) works.
    fn can_discard(&self) -> bool;
    /// In which unit it gives space back, in bytes: ranges that have none of it whole are discarded in vain.
    fn discard_unit(&self) -> u32 {
        self.sector_size().max(4096)
    }
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
    /// The files that it rests on.
    fn behind(&self) -> Vec<Identity> {
        Vec::new()
    }
    /// Looks at the size again.
    fn refresh(&self) -> io::Result<()> {
        Ok(())
    }
    /// Fills all pieces, one after another.
    fn read_pieces(&self, offset: u64, pieces: &[Piece]) -> io::Result<()> {
        let mut data = vec![0; total(pieces)];
        self.read(offset, &mut data)?;
        scatter(&data, pieces);
        Ok(())
    }
    /// Writes all pieces, one after another.
    fn write_pieces(&self, offset: u64, pieces: &[Piece]) -> io::Result<()> {
        let mut data = vec![0; total(pieces)];
        gather(pieces, &mut data);
        self.write(offset, &data)
    }
    /// The file, if the disk is just that: byte for byte from its beginning.
    fn file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// Itself, for whoever made it and knows what it is.
    fn as_any(&self) -> Option<&dyn Any> {
        None
    }
}

/// What makes two paths the same disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A file: device and inode.
    File(u64, u64),
    /// A block device: major and minor.
    Block(u32, u32),
}

/// A raw image in a file or on a block device.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    sectors_512: AtomicU64,
    sector_size: u32,
    identity: Identity,
    can_discard: bool,
}

/// Whether data goes through the host's page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// It does.
    Page,
    /// It does not, if the file system can do without (`O_DIRECT`).
    Direct,
}

impl FileStorage {
    /// Opens a file or block device.
    pub fn open(path: &Path, read_only: bool, cache: Cache) -> io::Result<FileStorage> {
        let (file, direct) = open_image(path, read_only, cache)?;
        FileStorage::new(file, read_only, direct)
    }

    /// The image in an open file; `direct` says that it is open for direct access.
    pub fn new(file: File, read_only: bool, direct: bool) -> io::Result<FileStorage> {
        let meta = file.metadata()?;
        let kind = meta.file_type();
        let block = kind.is_block_device();
        let identity = if block {
            let number = meta.rdev();
            Identity::Block(rustix::fs::major(number), rustix::fs::minor(number))
        } else if kind.is_file() {
            Identity::File(meta.dev(), meta.ino())
        } else {
            return Err(unsuitable());
        };
        let sector_size = match (block, direct) {
            (true, _) => rustix::fs::ioctl_blksszget(&file)?,
            (false, true) => direct_unit(&file),
            (false, false) => SECTOR as u32,
        };
        if !sector_size.is_power_of_two() || !(512..=4096).contains(&sector_size) {
            let why = format!("its sectors are of {sector_size} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let storage = FileStorage {
            file,
            sectors_512: AtomicU64::new(0),
            sector_size,
            identity,
            can_discard: !read_only,
        };
        storage.refresh()?;
        Ok(storage)
    }
}

/// Opens what can be an image, without waiting for anybody; tells whether it is open for direct access.
pub fn open_image(path: &Path, read_only: bool, cache: Cache) -> io::Result<(File, bool)> {
    // Looked at before it is opened: opening a pipe would wait for its writer, and all devices with us.
    let kind = std::fs::metadata(path)?.file_type();
    if !kind.is_block_device() && !kind.is_file() {
        return Err(unsuitable());
    }
    let mut options = OpenOptions::new();
    options.read(true).write(!read_only);
    // A guest's reads are no reason to look at, and write, the time of the last one.
    let mut open = |flags: i32| match options.custom_flags(flags | libc::O_NOATIME).open(path) {
        // Only the file's owner, and root, may have it so.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            options.custom_flags(flags).open(path)
        }
        other => other,
    };
    if cache == Cache::Direct {
        match open(libc::O_DIRECT) {
            // A file system that has no direct access, such as tmpfs.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            other => return Ok((other?, true)),
        }
    }
    Ok((open(0)?, false))
}

fn unsuitable() -> io::Error {
    let why = "it is neither a file nor a block device";
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// The unit of direct access to a file, found by trying.
fn direct_unit(file: &File) -> u32 {
    let mut buffer = Buffer::new(4096);
    match file.read_at(&mut buffer.bytes_mut()[..512], 512) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => 4096,
        _ => 512,
    }
}

/// Moves the rest of a transfer until nothing is left. `call` moves some of it and says how much.
fn all(
    mut offset: u64,
    pieces: &[Piece],
    mut call: impl FnMut(&[libc::iovec], i64) -> isize,
) -> io::Result<()> {
    let mut left = pieces.to_vec();
    while !left.is_empty() {
        let iovecs: Vec<libc::iovec> = left.iter().map(Piece::iovec).collect();
        match call(&iovecs, offset as i64) {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            moved if moved < 0 => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
            moved => {
                offset += moved as u64;
                let mut skip = moved as usize;
                left.retain_mut(|piece| {
                    let here = skip.min(piece.len());
                    skip -= here;
                    match piece.after(here) {
                        Some(rest) => *piece = rest,
                        None => return false,
                    }
                    true
                });
            }
        }
    }
    Ok(())
}

#[allow(unsafe_code)]
impl Storage for FileStorage {
    fn sectors_512(&self) -> u64 {
        self.sectors_512.load(Ordering::Relaxed)
    }

    fn sector_size(&self) -> u32 {
        self.sector_size
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

    fn refresh(&self) -> io::Result<()> {
        // A block device's metadata has no length, but its end can be sought.
        let len = (&self.file).seek(SeekFrom::End(0))?;
        if len < self.sector_size.into() {
            let unit = self.sector_size;
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("it has {len} bytes, less than one sector of {unit}"),
            ));
        }
        let whole = len / u64::from(self.sector_size) * u64::from(self.sector_size);
        self.sectors_512.store(whole / SECTOR, Ordering::Relaxed);
        Ok(())
    }

    fn read_pieces(&self, offset: u64, pieces: &[Piece]) -> io::Result<()> {
        let fd = self.file.as_raw_fd();
        all(offset, pieces, |iovecs, offset| {
            // SAFETY: each vector names a part of a piece's memory, which the pieces keep; it is shared
            // memory, of which nobody has a reference.
            unsafe { libc::preadv(fd, iovecs.as_ptr(), iovecs.len() as i32, offset) }
        })
    }

    fn write_pieces(&self, offset: u64, pieces: &[Piece]) -> io::Result<()> {
        let fd = self.file.as_raw_fd();
        all(offset, pieces, |iovecs, offset| {
            // SAFETY: as above.
            unsafe { libc::pwritev(fd, iovecs.as_ptr(), iovecs.len() as i32, offset) }
        })
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

/// Storages for the tests of other modules.
#[cfg(test)]
pub mod testing {
    use super::*;

    /// Its flush takes a while.
    #[derive(Default)]
    pub struct Slow {
        begun: AtomicU64,
        ended: AtomicU64,
    }

    impl Slow {
        /// How many flushes have begun.
        pub fn begun(&self) -> u64 {
            self.begun.load(Ordering::SeqCst)
        }

        /// How many have ended.
        pub fn ended(&self) -> u64 {
            self.ended.load(Ordering::SeqCst)
        }
    }

    impl Storage for Slow {
        fn sectors_512(&self) -> u64 {
            8
        }
        fn can_discard(&self) -> bool {
            false
        }
        fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Ok(())
        }
        fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            self.begun.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_millis(5));
            self.ended.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
        fn discard(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn identity(&self) -> Option<Identity> {
            None
        }
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
        std::thread::spawn(move || {
            tell.send(FileStorage::open(&pipe, true, Cache::Page).map(drop))
        });
        let outcome = told.recv_timeout(std::time::Duration::from_secs(10));
        std::fs::remove_file(&path).unwrap();
        let error = outcome.expect("it does not wait").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
