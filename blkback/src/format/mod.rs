//! Image formats: which there are, and opening an image in the one that it is said to have.
//!
//! Invariant: a format is what the toolstack wrote, never what the content looks like: a guest writes that.
//! Invariant: no file but the image itself is opened unless [`Policy`] allows its folder.
//! Invariant: every offset, size and count of an image is checked before it is used, and tables that are
//! held in memory are bounded by [`MAX_TABLES`].

mod policy;
mod qcow2;
mod qcow2_check;
mod qcow2_header;
mod vhd;
mod vhd_disk;
mod vmdk;
mod vmdk_disk;

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod qemu_img;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;

pub use policy::{OtherFiles, Policy};

use crate::disk::{Disk, Format};
use crate::driver::OpenImage;
use crate::storage::{Cache, FileStorage, Identity, Storage, open_image};

/// Bytes of an image's tables that are held in memory, at most.
const MAX_TABLES: u64 = 48 << 20;

/// An [`OpenImage`] for images of every format, that may refer to other files in these folders and below
/// them.
pub fn open_any(folders: Vec<PathBuf>) -> OpenImage {
    Arc::new(move |disk| open(disk, &Policy::new(&folders)?))
}

fn open(disk: &Disk, others: &dyn OtherFiles) -> io::Result<Arc<dyn Storage>> {
    let (file, direct) = open_disk(disk)?;
    open_given(disk, file, direct, others)
}

/// Opens the file of a disk; tells whether it is open for direct access. Formats go through the page cache:
/// their tables are not aligned to anything.
///
/// # Errors
/// The system's.
pub fn open_disk(disk: &Disk) -> io::Result<(File, bool)> {
    let cache = match disk.format {
        Format::Raw => disk.cache,
        _ => Cache::Page,
    };
    open_image(&disk.path, disk.read_only, cache)
}

/// Makes a disk of its open file. What other files it names, `others` opens.
///
/// # Errors
/// The system's; `InvalidData` for what is wrong with the image, `Unsupported` for what it has and we do
/// not, `PermissionDenied` for other files that it names.
pub fn open_given(
    disk: &Disk,
    file: File,
    direct: bool,
    others: &dyn OtherFiles,
) -> io::Result<Arc<dyn Storage>> {
    let (path, read_only) = (&disk.path, disk.read_only);
    Ok(match disk.format {
        Format::Raw => Arc::new(FileStorage::new(file, read_only, direct)?),
        Format::Qcow2 => Arc::new(qcow2::Qcow2Disk::open(file, path, read_only, others)?),
        Format::Vhd => Arc::new(vhd_disk::VhdDisk::open(file, read_only)?),
        Format::Vmdk if !read_only => {
            return Err(unsupported("vmdk images can only be read: use access r"));
        }
        Format::Vmdk => Arc::new(vmdk_disk::VmdkDisk::open(file, path, others)?),
    })
}

/// What is wrong with an image.
fn bad(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// What an image has and we do not.
fn unsupported(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, what.into())
}

/// What tells an image's file from others. Two names of a disk are told apart by the file they lead to.
pub fn identity(file: &File) -> io::Result<Identity> {
    use std::os::unix::fs::FileTypeExt;
    let meta = file.metadata()?;
    Ok(if meta.file_type().is_block_device() {
        let number = meta.rdev();
        Identity::Block(rustix::fs::major(number), rustix::fs::minor(number))
    } else {
        Identity::File(meta.dev(), meta.ino())
    })
}

/// The length of a file or block device.
fn length(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// `len` bytes at an offset that an image names; what lies outside the file is an error.
fn read_at(file: &File, offset: u64, len: usize, what: &str) -> io::Result<Vec<u8>> {
    let end = offset.checked_add(len as u64);
    let size = length(file)?;
    if end.is_none_or(|end| end > size) {
        return Err(bad(format!(
            "{what} of {len} bytes at {offset} is not inside the file of {size} bytes"
        )));
    }
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// A whole file that should be short.
fn read_text(mut file: &File, most: u64, what: &str) -> io::Result<String> {
    let size = length(file)?;
    if size > most {
        return Err(bad(format!("{what} of {size} bytes is too long")));
    }
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    String::from_utf8(bytes).map_err(|_| bad(format!("{what} is not text")))
}

fn u16_le(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_le(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_le(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u32_be(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_be(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(std::array::from_fn(|i| bytes[at + i]))
}
