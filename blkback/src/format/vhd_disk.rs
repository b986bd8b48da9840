//! VHD images as disks: fixed ones, and dynamic ones whose blocks are made when they are first written.
//!
//! A new block is made in an order in which the file is whole at every moment: the footer moves behind it,
//! its bitmap and zeros are made to last, and only then the table names it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

use rustix::fs::{FallocateFlags, fallocate, fdatasync};

use super::vhd::{FOOTER, Footer, HEADER, Kind, Layout, UNALLOCATED};
use super::{bad, identity, length, read_at};
use crate::request::SECTOR;
use crate::storage::{Identity, Storage};

/// An open image.
pub struct VhdDisk {
    file: File,
    size: u64,
    read_only: bool,
    identity: Identity,
    blocks: Option<Blocks>,
}

/// A dynamic disk's blocks.
struct Blocks {
    layout: Layout,
    footer: Footer,
    table: RwLock<Vec<u32>>,
    /// Where the next block goes; held while one is made.
    next: Mutex<u64>,
    /// By block: its bitmap says that every sector has data.
    full: Vec<AtomicBool>,
}

impl VhdDisk {
    /// Opens an image.
    pub fn open(file: File, read_only: bool) -> io::Result<VhdDisk> {
        let len = length(&file)?;
        let Some(last) = len.checked_sub(FOOTER as u64) else {
            return Err(bad("it is too short for a VHD image"));
        };
        if last % SECTOR != 0 {
            return Err(bad(format!(
                "its {len} bytes are no whole number of sectors"
            )));
        }
        let at = |offset| Footer::parse(&read_at(&file, offset, FOOTER, "the footer")?);
        // Dynamic disks have a copy at the beginning, for one that was cut off.
        let (footer, whole) = match (at(last), at(0)) {
            (Ok(footer), _) => (footer, true),
            (Err(_), Ok(copy)) if copy.kind != Kind::Fixed => (copy, false),
            (Err(error), _) => return Err(error),
        };
        let blocks = match footer.kind {
            Kind::Fixed if footer.size > last => {
                let size = footer.size;
                return Err(bad(format!("it is to have {size} bytes and has {last}")));
            }
            Kind::Fixed => None,
            Kind::Dynamic { header } => {
                let bytes = read_at(&file, header, HEADER, "the dynamic header")?;
                let layout = Layout::parse(&bytes, header, footer.size, len)?;
                let table = read_at(
                    &file,
                    layout.table,
                    layout.entries as usize * 4,
                    "the table",
                )?;
                let table: Vec<u32> = table
                    .as_chunks()
                    .0
                    .iter()
                    .map(|&entry| u32::from_be_bytes(entry))
                    .collect();
                let end = layout.check(&table, len)?;
                let behind = if whole { last } else { len };
                Some(Blocks {
                    layout,
                    footer: footer.clone(),
                    full: table.iter().map(|_| AtomicBool::new(false)).collect(),
                    table: RwLock::new(table),
                    next: Mutex::new(end.max(behind).next_multiple_of(SECTOR)),
                })
            }
        };
        Ok(VhdDisk {
            identity: identity(&file)?,
            file,
            size: footer.size / SECTOR * SECTOR,
            read_only,
            blocks,
        })
    }
}

impl Blocks {
    fn table(&self) -> RwLockReadGuard<'_, Vec<u32>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pieces of a range by block: number, offset in it, and which bytes of the range.
    fn pieces(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Iterator<Item = (usize, u64, std::ops::Range<usize>)> + use<> {
        let (block, mut done) = (self.layout.block, 0);
        std::iter::from_fn(move || {
            let at = offset + done;
            let within = at % block;
            let here = (block - within).min(len - done);
            let range = done as usize..(done + here) as usize;
            done += here;
            (here > 0).then_some(((at / block) as usize, within, range))
        })
    }

    /// A block's bitmap, or `None` if every sector has data.
    fn holes(&self, file: &File, block: usize, entry: u32) -> io::Result<Option<Vec<u8>>> {
        if self.full[block].load(Ordering::Acquire) {
            return Ok(None);
        }
        let mut bitmap = vec![0; (self.layout.block / SECTOR / 8) as usize];
        file.read_exact_at(&mut bitmap, u64::from(entry) * SECTOR)?;
        if bitmap.iter().all(|&byte| byte == 0xff) {
            self.full[block].store(true, Ordering::Release);
            return Ok(None);
        }
        Ok(Some(bitmap))
    }

    fn read(&self, file: &File, offset: u64, to: &mut [u8]) -> io::Result<()> {
        for (block, within, range) in self.pieces(offset, to.len() as u64) {
            let to = &mut to[range];
            let table = self.table();
            let entry = table[block];
            if entry == UNALLOCATED {
                to.fill(0);
                continue;
            }
            let holes = self.holes(file, block, entry)?;
            file.read_exact_at(to, self.layout.data(entry) + within)?;
            drop(table);
            let Some(bitmap) = holes else { continue };
            for (i, byte) in to.iter_mut().enumerate() {
                if is_hole(&bitmap, (within + i as u64) / SECTOR) {
                    *byte = 0;
                }
            }
        }
        Ok(())
    }

    fn write(&self, file: &File, offset: u64, from: &[u8]) -> io::Result<()> {
        for (block, within, range) in self.pieces(offset, from.len() as u64) {
            let entry = self.table()[block];
            let entry = match entry {
                UNALLOCATED => self.allocate(file, block)?,
                entry => entry,
            };
            if !self.full[block].load(Ordering::Acquire) {
                self.fill(file, block, entry)?;
            }
            file.write_all_at(&from[range], self.layout.data(entry) + within)?;
        }
        Ok(())
    }

    /// Makes a block, and says where.
    fn allocate(&self, file: &File, block: usize) -> io::Result<u32> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = self.table()[block];
        if entry != UNALLOCATED {
            return Ok(entry);
        }
        let start = *next;
        let end = start + self.layout.stride();
        let entry = u32::try_from(start / SECTOR)
            .ok()
            .filter(|&entry| entry != UNALLOCATED)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EFBIG))?;
        let len = length(file)?;
        let made = || -> io::Result<()> {
            file.write_all_at(&self.footer.bytes, end)?;
            // It is where the footer was; behind that, the file had ended.
            file.write_all_at(&vec![0xff; self.layout.bitmap as usize], start)?;
            // A table that lasts must not name what does not.
            fdatasync(file)?;
            let at = self.layout.table + block as u64 * 4;
            file.write_all_at(&entry.to_be_bytes(), at)
        };
        if let Err(error) = made() {
            // As before, if that is possible; the copy of the footer stands in if not.
            let _ = file.write_all_at(&self.footer.bytes, start);
            let _ = file.set_len(len);
            return Err(error);
        }
        *next = end;
        self.full[block].store(true, Ordering::Release);
        self.table.write().unwrap_or_else(PoisonError::into_inner)[block] = entry;
        Ok(entry)
    }

    /// Gives every sector of a block data, zeros to those that had none.
    fn fill(&self, file: &File, block: usize, entry: u32) -> io::Result<()> {
        // Readers look at bitmap and data one after the other; none may be between the two.
        let _table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let Some(bitmap) = self.holes(file, block, entry)? else {
            return Ok(());
        };
        for sector in 0..self.layout.block / SECTOR {
            if is_hole(&bitmap, sector) {
                let zeros = [0; SECTOR as usize];
                file.write_all_at(&zeros, self.layout.data(entry) + sector * SECTOR)?;
            }
        }
        let ones = vec![0xff; bitmap.len()];
        file.write_all_at(&ones, u64::from(entry) * SECTOR)?;
        self.full[block].store(true, Ordering::Release);
        Ok(())
    }
}

/// Whether a sector of a block has no data: its bit is clear, the first is the highest of the first byte.
fn is_hole(bitmap: &[u8], sector: u64) -> bool {
    bitmap[(sector / 8) as usize] & (0x80 >> (sector % 8)) == 0
}

impl Storage for VhdDisk {
    fn sectors_512(&self) -> u64 {
        self.size / SECTOR
    }

    fn can_discard(&self) -> bool {
        !self.read_only
    }

    fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        match &self.blocks {
            None => self.file.read_exact_at(to, offset),
            Some(blocks) => blocks.read(&self.file, offset, to),
        }
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        match &self.blocks {
            None => self.file.write_all_at(from, offset),
            Some(blocks) => blocks.write(&self.file, offset, from),
        }
    }

    fn flush(&self) -> io::Result<()> {
        Ok(fdatasync(&self.file)?)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let punch = |offset, len| {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fallocate(&self.file, flags, offset, len) {
                // A hint: a file system that cannot free the space has still done no wrong.
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NODEV) => Ok(()),
                other => Ok(other?),
            }
        };
        match &self.blocks {
            None if len == 0 => Ok(()),
            None => punch(offset, len),
            Some(blocks) => {
                // The range may be the whole disk: piece by piece, and nothing is held for it.
                for (block, within, range) in blocks.pieces(offset, len) {
                    let entry = blocks.table()[block];
                    if entry != UNALLOCATED {
                        punch(blocks.layout.data(entry) + within, range.len() as u64)?;
                    }
                }
                Ok(())
            }
        }
    }

    fn identity(&self) -> Option<Identity> {
        Some(self.identity)
    }
}
