//! The structures of VHD images, big-endian and with checksums, checked against the file they are in.
//!
//! Layout: Microsoft, "Virtual Hard Disk Image Format Specification".

use std::io;

use super::{MAX_TABLES, bad, u32_be, u64_be, unsupported};
use crate::request::SECTOR;

/// Bytes of a footer.
pub const FOOTER: usize = 512;
/// Bytes of a dynamic disk's header.
pub const HEADER: usize = 1024;
/// A block that has no place in the file.
pub const UNALLOCATED: u32 = u32::MAX;

const VERSION: u32 = 0x0001_0000;
/// The footer's fields: version, size, kind and checksum.
const FOOTER_SUM: usize = 64;
const HEADER_SUM: usize = 36;

/// How an image keeps its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All of it, from the file's beginning.
    Fixed,
    /// In blocks that a table places.
    Dynamic {
        /// Where the header is.
        header: u64,
    },
}

/// The footer: what the disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// As it is in the file.
    pub bytes: [u8; FOOTER],
    /// How its data is kept.
    pub kind: Kind,
    /// Bytes of the disk.
    pub size: u64,
}

impl Footer {
    /// Checks a footer. Where the file ends is not looked at.
    pub fn parse(bytes: &[u8]) -> io::Result<Footer> {
        let bytes: [u8; FOOTER] = bytes
            .try_into()
            .map_err(|_| bad("a VHD footer is 512 bytes"))?;
        if bytes[..8] != *b"conectix" {
            return Err(bad("it has no VHD footer"));
        }
        if u32_be(&bytes, FOOTER_SUM) != checksum(&bytes, FOOTER_SUM) {
            return Err(bad("its VHD footer has a wrong checksum"));
        }
        if u32_be(&bytes, 12) != VERSION {
            return Err(unsupported(format!(
                "VHD version {:#x}",
                u32_be(&bytes, 12)
            )));
        }
        let size = u64_be(&bytes, 48);
        let kind = match u32_be(&bytes, 60) {
            2 => Kind::Fixed,
            3 => Kind::Dynamic {
                header: u64_be(&bytes, 16),
            },
            4 => return Err(unsupported("it is a differencing VHD")),
            other => return Err(unsupported(format!("VHD type {other}"))),
        };
        if size < SECTOR || size > i64::MAX as u64 {
            return Err(bad(format!("its size is {size} bytes")));
        }
        Ok(Footer { bytes, kind, size })
    }
}

/// Where a dynamic disk's blocks are, without the table itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Where the header is.
    pub header: u64,
    /// Where the table is.
    pub table: u64,
    /// Entries of the table that the disk needs.
    pub entries: u32,
    /// Bytes of a block's data.
    pub block: u64,
    /// Bytes of the bitmap in front of a block's data.
    pub bitmap: u64,
}

impl Layout {
    /// Checks a dynamic disk's header: the disk is of `size` bytes, the file of `len`.
    pub fn parse(bytes: &[u8], header: u64, size: u64, len: u64) -> io::Result<Layout> {
        if bytes.len() != HEADER || bytes[..8] != *b"cxsparse" {
            return Err(bad("it has no header of a dynamic VHD"));
        }
        if u32_be(bytes, HEADER_SUM) != checksum(bytes, HEADER_SUM) {
            return Err(bad("its dynamic header has a wrong checksum"));
        }
        if u32_be(bytes, 24) != VERSION {
            return Err(unsupported(format!(
                "dynamic header {:#x}",
                u32_be(bytes, 24)
            )));
        }
        let (table, most) = (u64_be(bytes, 16), u32_be(bytes, 28));
        let block = u64::from(u32_be(bytes, 32));
        if !block.is_power_of_two() || !(4096..=64 << 20).contains(&block) {
            return Err(bad(format!("its blocks are of {block} bytes")));
        }
        let needed = size.div_ceil(block);
        if needed > most.into() {
            return Err(bad(format!(
                "its table has {most} entries, and {size} bytes need {needed}"
            )));
        }
        // Each takes four bytes, as much while they are checked, and one for what is known of its bitmap.
        if needed * 9 > MAX_TABLES {
            return Err(unsupported(format!("its table has {needed} entries")));
        }
        let ranges = [
            (0, FOOTER as u64),
            (header, HEADER as u64),
            (table, needed * 4),
        ];
        let layout = Layout {
            header,
            table,
            entries: needed as u32,
            block,
            bitmap: (block / SECTOR / 8).next_multiple_of(SECTOR),
        };
        for (i, &(from, bytes)) in ranges.iter().enumerate() {
            let end = from.checked_add(bytes).filter(|&end| end <= len);
            let Some(end) = end else {
                return Err(bad(format!(
                    "a table of {bytes} bytes at {from} is not inside the file of {len} bytes"
                )));
            };
            if ranges[..i]
                .iter()
                .any(|&(other, len)| from < other + len && other < end)
            {
                return Err(bad("its tables overlap"));
            }
        }
        Ok(layout)
    }

    /// Bytes of a block with its bitmap.
    pub fn stride(&self) -> u64 {
        self.bitmap + self.block
    }

    /// Where a block's data begins.
    pub fn data(&self, entry: u32) -> u64 {
        u64::from(entry) * SECTOR + self.bitmap
    }

    /// Checks the table: blocks are inside the file of `len` bytes and share nothing with each other or with
    /// the tables. Says where the last of all that ends.
    pub fn check(&self, table: &[u32], len: u64) -> io::Result<u64> {
        let mut starts: Vec<u32> = table
            .iter()
            .copied()
            .filter(|&e| e != UNALLOCATED)
            .collect();
        starts.sort_unstable();
        let tables = [
            (0, FOOTER as u64),
            (self.header, HEADER as u64),
            (self.table, u64::from(self.entries) * 4),
        ];
        let mut end = tables
            .iter()
            .map(|(from, len)| from + len)
            .max()
            .unwrap_or(0);
        let mut before = 0;
        for start in starts {
            let from = u64::from(start) * SECTOR;
            let to = from + self.stride();
            if to > len {
                return Err(bad(format!(
                    "a block at {from} is not inside the file of {len} bytes"
                )));
            }
            let clash = tables
                .iter()
                .any(|&(other, len)| from < other + len && other < to);
            if from < before || clash {
                return Err(bad(format!(
                    "the block at {from} overlaps with what is before it"
                )));
            }
            before = to;
            end = end.max(to);
        }
        Ok(end)
    }
}

/// The ones' complement of the sum of all bytes but the checksum's own.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let sum = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0u32, |sum, &byte| sum.wrapping_add(byte.into()))
    };
    !sum(&bytes[..at]).wrapping_add(sum(&bytes[at + 4..]))
}

/// Images for tests.
#[cfg(test)]
pub mod testing {
    use super::*;

    /// A footer with a right checksum.
    pub fn footer(size: u64, kind: u32, header: u64) -> [u8; FOOTER] {
        let mut bytes = [0; FOOTER];
        bytes[..8].copy_from_slice(b"conectix");
        bytes[8..12].copy_from_slice(&2u32.to_be_bytes());
        bytes[12..16].copy_from_slice(&VERSION.to_be_bytes());
        bytes[16..24].copy_from_slice(&header.to_be_bytes());
        bytes[28..32].copy_from_slice(b"tap\0");
        bytes[40..48].copy_from_slice(&size.to_be_bytes());
        bytes[48..56].copy_from_slice(&size.to_be_bytes());
        bytes[60..64].copy_from_slice(&kind.to_be_bytes());
        seal(&mut bytes, FOOTER_SUM);
        bytes
    }

    /// A dynamic image without any block.
    pub fn dynamic(size: u64, block: u32) -> Vec<u8> {
        let footer = footer(size, 3, 512);
        let entries = size.div_ceil(block.into()) as u32;
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(b"cxsparse");
        header[8..16].fill(0xff);
        header[16..24].copy_from_slice(&1536u64.to_be_bytes());
        header[24..28].copy_from_slice(&VERSION.to_be_bytes());
        header[28..32].copy_from_slice(&entries.to_be_bytes());
        header[32..36].copy_from_slice(&block.to_be_bytes());
        seal(&mut header, HEADER_SUM);
        let mut image = [footer.as_slice(), &header].concat();
        image.resize((1536 + entries as usize * 4).next_multiple_of(512), 0xff);
        image.extend(footer);
        image
    }

    /// Makes a footer's (`at` 64) or header's (36) checksum right.
    pub fn seal(bytes: &mut [u8], at: usize) {
        let sum = checksum(bytes, at);
        bytes[at..at + 4].copy_from_slice(&sum.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_parses_is_inside_the_file(
            mut bytes in prop::collection::vec(any::<u8>(), HEADER),
            header in any::<u64>(),
            size in any::<u64>(),
            len in any::<u64>(),
            block in 0u32..32,
            table in 0u64..1 << 40,
            seal in any::<bool>(),
        ) {
            if seal {
                bytes[..8].copy_from_slice(b"cxsparse");
                bytes[16..24].copy_from_slice(&table.to_be_bytes());
                bytes[24..28].copy_from_slice(&VERSION.to_be_bytes());
                bytes[32..36].copy_from_slice(&(1u32 << block).to_be_bytes());
                testing::seal(&mut bytes, HEADER_SUM);
            }
            let (size, len, header) = (size >> 24, len >> 16, header >> 40);
            if let Ok(layout) = Layout::parse(&bytes, header, size, len) {
                prop_assert!(layout.table + u64::from(layout.entries) * 4 <= len);
                prop_assert!(u64::from(layout.entries) * layout.block >= size);
                prop_assert!(u64::from(layout.entries) * 9 <= MAX_TABLES);
            }
        }

        #[test]
        fn blocks_that_pass_share_nothing(
            table in prop::collection::vec(prop_oneof![Just(UNALLOCATED), 0u32..200], 1..12),
            len in 0u64..200_000,
        ) {
            let image = testing::dynamic(table.len() as u64 * 4096, 4096);
            let layout = Layout::parse(&image[512..1536], 512, table.len() as u64 * 4096, 1 << 20).unwrap();
            if let Ok(end) = layout.check(&table, len) {
                let mut used = vec![false; 400];
                used[..4].fill(true);
                for &entry in table.iter().filter(|&&entry| entry != UNALLOCATED) {
                    for sector in 0..layout.stride() / SECTOR {
                        let sector = u64::from(entry) + sector;
                        prop_assert!(sector * SECTOR < len && (sector + 1) * SECTOR <= end);
                        prop_assert!(!std::mem::replace(&mut used[sector as usize], true));
                    }
                }
            }
        }

        #[test]
        fn a_footer_is_taken_back(size in 512u64..1 << 50, dynamic in any::<bool>(), at in 0usize..512, bit in 0u8..8) {
            let mut bytes = testing::footer(size, if dynamic { 3 } else { 2 }, 512);
            let footer = Footer::parse(&bytes).unwrap();
            prop_assert_eq!(footer.size, size);
            prop_assert_eq!(footer.kind == Kind::Fixed, !dynamic);
            bytes[at] ^= 1 << bit;
            prop_assert!(Footer::parse(&bytes).is_err(), "any single bit matters");
        }
    }
}
