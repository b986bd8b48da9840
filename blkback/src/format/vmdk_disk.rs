//! VMDK images as disks, for reading: sparse, stream-optimized, and flat with extents in files of their own.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use miniz_oxide::inflate::decompress_to_vec_zlib_with_limit as inflate;

use super::vmdk::{self, AT_END, Content, HEADER, MAX_DESCRIPTOR, Sparse};
use super::{OtherFiles, bad, identity, length, read_at, read_text, u32_le, u64_le, unsupported};
use crate::request::SECTOR;
use crate::storage::{Identity, Storage};

/// An open image.
pub struct VmdkDisk {
    sectors_512: u64,
    identity: Identity,
    extents: Vec<Extent>,
}

/// Part of the disk.
struct Extent {
    /// Where it begins and ends on the disk, in bytes.
    range: std::ops::Range<u64>,
    data: Data,
}

enum Data {
    Zero,
    Flat(File, u64),
    Sparse(Grains),
}

/// A sparse extent.
struct Grains {
    file: File,
    sparse: Sparse,
    directory: Vec<u32>,
    /// The compressed grain that was read last, by its number.
    last: Mutex<Option<(u64, Vec<u8>)>>,
}

impl VmdkDisk {
    /// Opens the image in `file`, whose name is `path`.
    pub fn open(file: File, path: &Path, others: &dyn OtherFiles) -> io::Result<VmdkDisk> {
        let identity = identity(&file)?;
        let len = length(&file)?;
        let head = read_at(&file, 0, len.min(HEADER as u64) as usize, "the header")?;
        let extents = match head.starts_with(b"KDMV") {
            true => {
                let grains = Grains::open(file, len)?;
                vec![(grains.sparse.capacity, Data::Sparse(grains))]
            }
            false => flat(&file, path, others)?,
        };
        let mut disk = VmdkDisk {
            sectors_512: 0,
            identity,
            extents: Vec::new(),
        };
        for (sectors, data) in extents {
            let start = disk.sectors_512 * SECTOR;
            disk.sectors_512 += sectors;
            let range = start..disk.sectors_512 * SECTOR;
            disk.extents.push(Extent { range, data });
        }
        Ok(disk)
    }
}

/// The extents that a descriptor names.
fn flat(file: &File, path: &Path, others: &dyn OtherFiles) -> io::Result<Vec<(u64, Data)>> {
    let text = read_text(file, MAX_DESCRIPTOR, "the descriptor")?;
    let mut out = Vec::new();
    for extent in vmdk::descriptor(&text)? {
        let data = match extent.content {
            Content::Zero => Data::Zero,
            Content::Sparse(name) => {
                return Err(unsupported(format!(
                    "its extent {name:?} is sparse, in a file of its own"
                )));
            }
            Content::Flat(name, sector) => {
                let (file, _) = others.open(path, &name, "extent", true)?;
                let start = sector.checked_mul(SECTOR);
                let end = start.and_then(|s| s.checked_add(extent.sectors.checked_mul(SECTOR)?));
                let len = length(&file)?;
                match (start, end) {
                    (Some(start), Some(end)) if end <= len => Data::Flat(file, start),
                    _ => return Err(bad(format!("its extent {name:?} has only {len} bytes"))),
                }
            }
        };
        out.push((extent.sectors, data));
    }
    Ok(out)
}

impl Grains {
    fn open(file: File, len: u64) -> io::Result<Grains> {
        let mut sparse = Sparse::parse(&read_at(&file, 0, HEADER, "the header")?)?;
        let (at, sectors) = sparse.descriptor;
        if sectors == 0 {
            return Err(unsupported("it is an extent of another VMDK"));
        }
        let bytes = sectors.checked_mul(SECTOR).filter(|&b| b <= MAX_DESCRIPTOR);
        let (Some(at), Some(bytes)) = (at.checked_mul(SECTOR), bytes) else {
            return Err(bad("its descriptor is too long or too far away"));
        };
        let text = read_at(&file, at, bytes as usize, "the descriptor")?;
        let text = String::from_utf8_lossy(&text);
        // Zeros fill it up.
        let text = text.split('\0').next().unwrap_or("");
        match vmdk::descriptor(text)?.as_slice() {
            [one] if matches!(one.content, Content::Sparse(_)) => {}
            _ => return Err(unsupported("it has other extents than the one in its file")),
        }
        if sparse.directory == AT_END {
            // A stream: marker and footer, and the marker of the end, are its last sectors.
            let at = len
                .checked_sub(2 * SECTOR)
                .ok_or_else(|| bad("it has no footer"))?;
            let footer = Sparse::parse(&read_at(&file, at, HEADER, "the footer")?)?;
            if footer.directory == AT_END || footer.tables() != sparse.tables() {
                return Err(bad("its footer says something else than its header"));
            }
            sparse.directory = footer.directory;
        }
        let at = sparse.directory.checked_mul(SECTOR);
        let at = at.ok_or_else(|| bad("its directory is too far away"))?;
        let bytes = read_at(
            &file,
            at,
            sparse.tables() as usize * 4,
            "the grain directory",
        )?;
        let directory = bytes
            .as_chunks()
            .0
            .iter()
            .map(|&e| u32::from_le_bytes(e))
            .collect();
        Ok(Grains {
            file,
            sparse,
            directory,
            last: Mutex::new(None),
        })
    }

    /// Where a grain is, in bytes; nowhere if it is zero.
    fn place(&self, grain: u64) -> io::Result<Option<u64>> {
        let table = self.directory[(grain / self.sparse.entries) as usize];
        if table == 0 {
            return Ok(None);
        }
        let at = u64::from(table) * SECTOR + grain % self.sparse.entries * 4;
        let entry = u32_le(&read_at(&self.file, at, 4, "a grain table's entry")?, 0);
        Ok(match entry {
            0 => None,
            1 if self.sparse.zero_grains => None,
            sector => Some(u64::from(sector) * SECTOR),
        })
    }

    fn read(&self, offset: u64, mut to: &mut [u8]) -> io::Result<()> {
        let size = self.sparse.grain_bytes() as u64;
        let mut at = offset;
        while !to.is_empty() {
            let (grain, within) = (at / size, at % size);
            let here = to.len().min((size - within) as usize);
            let (part, rest) = std::mem::take(&mut to).split_at_mut(here);
            match self.place(grain)? {
                None => part.fill(0),
                Some(place) if self.sparse.compressed => {
                    self.read_compressed(grain, place, within as usize, part)?;
                }
                Some(place) => self.file.read_exact_at(part, place + within)?,
            }
            at += here as u64;
            to = rest;
        }
        Ok(())
    }

    fn read_compressed(&self, grain: u64, at: u64, within: usize, to: &mut [u8]) -> io::Result<()> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_none_or(|(number, _)| *number != grain) {
            let size = self.sparse.grain_bytes();
            let marker = read_at(&self.file, at, 12, "a grain's marker")?;
            let packed = u32_le(&marker, 8) as usize;
            if u64_le(&marker, 0) != grain * self.sparse.grain || packed > 2 * size + 512 {
                return Err(bad(format!(
                    "the grain at {at} is not the one that is looked for"
                )));
            }
            let packed = read_at(&self.file, at + 12, packed, "a grain")?;
            let mut bytes = inflate(&packed, size)
                .map_err(|_| bad(format!("the grain at {at} cannot be decompressed")))?;
            // The last of a disk may be shorter.
            bytes.resize(size, 0);
            *last = Some((grain, bytes));
        }
        let bytes = last.as_ref().map_or(&[][..], |(_, bytes)| bytes);
        to.copy_from_slice(&bytes[within..within + to.len()]);
        Ok(())
    }
}

impl Storage for VmdkDisk {
    fn sectors_512(&self) -> u64 {
        self.sectors_512
    }

    fn can_discard(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, mut to: &mut [u8]) -> io::Result<()> {
        let mut at = offset;
        while !to.is_empty() {
            let i = self
                .extents
                .partition_point(|extent| extent.range.end <= at);
            let extent = self.extents.get(i).ok_or(io::ErrorKind::UnexpectedEof)?;
            let within = at - extent.range.start;
            let here = to.len().min((extent.range.end - at) as usize);
            let (part, rest) = std::mem::take(&mut to).split_at_mut(here);
            match &extent.data {
                Data::Zero => part.fill(0),
                Data::Flat(file, start) => file.read_exact_at(part, start + within)?,
                Data::Sparse(grains) => grains.read(within, part)?,
            }
            at += here as u64;
            to = rest;
        }
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn identity(&self) -> Option<Identity> {
        Some(self.identity)
    }
}
