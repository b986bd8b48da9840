//! VHD images, fixed and dynamic (Microsoft's "Virtual Hard Disk Image Format Specification", 2006).
//!
//! A fixed image is the disk's bytes and a footer of 512 bytes. A dynamic one has a copy of the footer in
//! front, a header, a table of where each block is, and blocks, each after a bitmap of its sectors. All
//! numbers are big-endian.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::fdatasync;

use crate::storage::{Cache, Identity, Storage, open_image};

const SECTOR: u64 = 512;
const FOOTER: usize = 512;
const HEADER: usize = 1024;
const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
/// In the table: the block does not exist.
const ABSENT: u32 = u32::MAX;
/// Most blocks: the largest disk of the format, 2040 GiB, in blocks of 512 KiB.
const MAX_BLOCKS: u32 = 4 << 20;
/// Sizes of blocks that are understood.
const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 4096..=64 << 20;

/// See the module.
#[derive(Debug)]
pub struct Vhd {
    file: File,
    size: u64,
    writable: bool,
    identity: Identity,
    dynamic: Option<Dynamic>,
}

#[derive(Debug)]
struct Dynamic {
    table_offset: u64,
    block_size: u64,
    /// Bytes of the bitmap in front of each block.
    bitmap: u64,
    footer: [u8; FOOTER],
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Where each block is, in sectors.
    table: Vec<u32>,
    /// Where the footer is, and the next block will be.
    end: u64,
}

fn bad(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("VHD: {why}"))
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + N]
        .iter()
        .fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// The sum that footer and header carry: the complement of all bytes but the sum's own.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let others = bytes[..at].iter().chain(&bytes[at + 4..]);
    !others.fold(0u32, |sum, &byte| sum.wrapping_add(byte.into()))
}

fn checked(bytes: &[u8], cookie: &[u8; 8], at: usize, what: &str) -> io::Result<()> {
    if bytes[..8] != cookie[..] {
        return Err(bad(format!("there is no {what}")));
    }
    if number::<4>(bytes, at) != checksum(bytes, at).into() {
        return Err(bad(format!("the sum of the {what} is wrong")));
    }
    Ok(())
}

impl Vhd {
    /// Opens an image.
    pub fn open(path: &Path, read_only: bool) -> io::Result<Vhd> {
        let (file, _) = open_image(path, read_only, Cache::Page)?;
        let meta = file.metadata()?;
        let length = meta.len();
        let at = length
            .checked_sub(FOOTER as u64)
            .ok_or_else(|| bad("the file is too short"))?;
        let mut footer = [0; FOOTER];
        file.read_exact_at(&mut footer, at)?;
        checked(&footer, b"conectix", 64, "footer")?;
        let size = disk_size(&footer);
        if size < SECTOR || !size.is_multiple_of(SECTOR) {
            return Err(bad(format!("the disk has {size} bytes")));
        }
        let dynamic = match number::<4>(&footer, 60) as u32 {
            FIXED if size > at => return Err(bad("the disk is longer than the file")),
            FIXED => None,
            DYNAMIC => Some(Dynamic::read(&file, footer, size, at)?),
            other => return Err(bad(format!("type {other}, neither fixed nor dynamic"))),
        };
        Ok(Vhd {
            file,
            size,
            writable: !read_only,
            identity: Identity::File(meta.dev(), meta.ino()),
            dynamic,
        })
    }

    /// Walks through a range, block by block: `work` gets the block, where in it to begin, and which bytes
    /// of the whole it is about.
    fn each(
        &self,
        dynamic: &Dynamic,
        offset: u64,
        len: usize,
        mut work: impl FnMut(usize, u64, std::ops::Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let inside = at % dynamic.block_size;
            let here = (dynamic.block_size - inside).min((len - done) as u64) as usize;
            work(
                (at / dynamic.block_size) as usize,
                inside,
                done..done + here,
            )?;
            done += here;
        }
        Ok(())
    }
}

/// What the footer says of the disk's size. Programs that write the size they mean name themselves; for the
/// others the geometry is what counts, as for QEMU.
fn disk_size(footer: &[u8]) -> u64 {
    let size = number::<8>(footer, 48);
    let by_geometry = matches!(&footer[28..32], b"vpc " | b"qemu");
    let (cylinders, heads, sectors) = (
        number::<2>(footer, 56),
        number::<1>(footer, 58),
        number::<1>(footer, 59),
    );
    // The largest geometry stands for whatever is larger.
    if by_geometry && cylinders * heads * sectors < 65535 * 16 * 255 {
        return cylinders * heads * sectors * SECTOR;
    }
    size
}

impl Dynamic {
    fn read(file: &File, footer: [u8; FOOTER], size: u64, end: u64) -> io::Result<Dynamic> {
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, number::<8>(&footer, 16))
            .map_err(|_| bad("there is no header where the footer says"))?;
        checked(&header, b"cxsparse", 36, "header")?;
        let table_offset = number::<8>(&header, 16);
        let count = number::<4>(&header, 28) as u32;
        let block_size = number::<4>(&header, 32) as u32;
        if !block_size.is_power_of_two() || !BLOCK_SIZES.contains(&block_size) {
            return Err(bad(format!("blocks of {block_size} bytes")));
        }
        let needed = size.div_ceil(block_size.into());
        if count > MAX_BLOCKS || u64::from(count) < needed {
            return Err(bad(format!(
                "a table of {count} blocks, {needed} are needed"
            )));
        }
        let mut bytes = vec![0; needed as usize * 4];
        file.read_exact_at(&mut bytes, table_offset)
            .map_err(|_| bad("the table is not in the file"))?;
        let block_size = u64::from(block_size);
        Ok(Dynamic {
            table_offset,
            block_size,
            bitmap: (block_size / SECTOR / 8).next_multiple_of(SECTOR),
            footer,
            state: Mutex::new(State {
                table: bytes.chunks(4).map(|b| number::<4>(b, 0) as u32).collect(),
                end,
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a block's bitmap is, if it exists; the table may name places outside the file.
    fn place(&self, state: &State, block: usize) -> io::Result<Option<u64>> {
        let entry = *state
            .table
            .get(block)
            .ok_or_else(|| bad(format!("no block {block}")))?;
        if entry == ABSENT {
            return Ok(None);
        }
        let place = u64::from(entry) * SECTOR;
        match place + self.bitmap + self.block_size <= state.end {
            true => Ok(Some(place)),
            false => Err(bad(format!("block {block} is not in the file"))),
        }
    }

    /// Makes a block of zeros at the end. What is written last is the table: until then the block is lost
    /// space at worst.
    fn add(&self, file: &File, state: &mut State, block: usize) -> io::Result<u64> {
        let place = state.end.next_multiple_of(SECTOR);
        let entry = u32::try_from(place / SECTOR).map_err(|_| bad("the file is full"))?;
        let end = place + self.bitmap + self.block_size;
        // The old footer lies where the bitmap comes; the rest of the block is new and reads as zeros.
        file.write_all_at(&self.footer, end)?;
        file.write_all_at(&vec![0xff; self.bitmap as usize], place)?;
        let table_at = self.table_offset + 4 * block as u64;
        file.write_all_at(&entry.to_be_bytes(), table_at)?;
        state.table[block] = entry;
        state.end = end;
        Ok(place)
    }

    /// Reads part of a block: sectors that its bitmap does not have are zeros.
    fn read_block(&self, file: &File, place: u64, inside: u64, to: &mut [u8]) -> io::Result<()> {
        let mut bitmap = vec![0; self.bitmap as usize];
        file.read_exact_at(&mut bitmap, place)?;
        file.read_exact_at(to, place + self.bitmap + inside)?;
        let first = inside / SECTOR;
        for (sector, data) in (first..).zip(to.chunks_mut(SECTOR as usize)) {
            if bitmap[(sector / 8) as usize] & (0x80 >> (sector % 8)) == 0 {
                data.fill(0);
            }
        }
        Ok(())
    }

    /// Notes that sectors of a block hold data, which was written before.
    fn mark(&self, file: &File, place: u64, inside: u64, len: usize) -> io::Result<()> {
        let first = inside / SECTOR;
        let last = first + (len as u64).div_ceil(SECTOR);
        let (from, to) = (first / 8, last.div_ceil(8));
        let mut bits = vec![0; (to - from) as usize];
        file.read_exact_at(&mut bits, place + from)?;
        let before = bits.clone();
        for sector in first..last {
            bits[(sector / 8 - from) as usize] |= 0x80 >> (sector % 8);
        }
        if bits != before {
            file.write_all_at(&bits, place + from)?;
        }
        Ok(())
    }
}

impl Storage for Vhd {
    fn sectors_512(&self) -> u64 {
        self.size / SECTOR
    }

    fn can_discard(&self) -> bool {
        self.writable
    }

    fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let Some(dynamic) = &self.dynamic else {
            return self.file.read_exact_at(to, offset);
        };
        let len = to.len();
        self.each(dynamic, offset, len, |block, inside, range| {
            let to = &mut to[range];
            let state = dynamic.state();
            match dynamic.place(&state, block)? {
                Some(place) => dynamic.read_block(&self.file, place, inside, to),
                None => {
                    to.fill(0);
                    Ok(())
                }
            }
        })
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        let Some(dynamic) = &self.dynamic else {
            return self.file.write_all_at(from, offset);
        };
        self.each(dynamic, offset, from.len(), |block, inside, range| {
            let from = &from[range];
            let mut state = dynamic.state();
            let place = match dynamic.place(&state, block)? {
                Some(place) => place,
                None => dynamic.add(&self.file, &mut state, block)?,
            };
            self.file
                .write_all_at(from, place + dynamic.bitmap + inside)?;
            dynamic.mark(&self.file, place, inside, from.len())
        })
    }

    fn flush(&self) -> io::Result<()> {
        Ok(fdatasync(&self.file)?)
    }

    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        // A hint. The format cannot give a block back without leaving a hole that nobody finds.
        Ok(())
    }

    fn identity(&self) -> Option<Identity> {
        Some(self.identity)
    }
}
