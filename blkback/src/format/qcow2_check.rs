//! Checks a qcow2 image before it is written: what its tables use is in the file, is used once, and is
//! counted. The library takes that for granted: with a cluster that has no refcount it recurses without end,
//! and a table that is also data would let the guest write tables.
//!
//! One pass over the tables. Clusters that are counted and not used are no fault: a kill leaves such.

use std::fs::File;
use std::io;

use super::qcow2_header::Header;
use super::{bad, length, read_at, u64_be, unsupported};

/// Clusters of a file, at most: each takes two bytes while the image is checked.
const MAX_CLUSTERS: u64 = 32 << 20;
/// A cluster that belongs to one table or one part of the disk; less is a number of compressed clusters.
const OWNED: u16 = u16::MAX;
/// The bits of a table's entry that are an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;

/// Checks the image in `file`.
pub fn check(file: &File, header: &Header) -> io::Result<()> {
    let clusters = length(file)?.div_ceil(header.cluster);
    if clusters > MAX_CLUSTERS {
        return Err(unsupported(format!(
            "its file has {clusters} clusters, and {MAX_CLUSTERS} can be written at most; use larger ones"
        )));
    }
    let mut check = Check {
        file,
        header,
        uses: vec![0; clusters as usize],
    };
    check.own(0, header.cluster, "header")?;
    let (l1, refcounts) = (header.l1, header.refcounts);
    check.own(l1.0, l1.1, "L1 table")?;
    check.own(refcounts.0, refcounts.1, "refcount table")?;
    let blocks = check.table(refcounts, "refcount block")?;
    let tables = check.table(l1, "L2 table")?;
    for &table in tables.iter().filter(|&&table| table != 0) {
        check.l2(table)?;
    }
    check.refcounts(&blocks)
}

struct Check<'a> {
    file: &'a File,
    header: &'a Header,
    /// By cluster: what it is used for.
    uses: Vec<u16>,
}

impl Check<'_> {
    /// Notes that a range of clusters has one owner.
    fn own(&mut self, offset: u64, bytes: u64, what: &str) -> io::Result<()> {
        let cluster = self.header.cluster;
        if !offset.is_multiple_of(cluster) {
            return Err(bad(format!("a {what} is at {offset:#x}, inside a cluster")));
        }
        let first = offset / cluster;
        for number in first..first + bytes.div_ceil(cluster) {
            match self.uses.get_mut(number as usize) {
                Some(uses @ 0) => *uses = OWNED,
                Some(_) => return Err(bad(format!("a {what} at {offset:#x} is used twice"))),
                None => return Err(bad(format!("a {what} at {offset:#x} is not in the file"))),
            }
        }
        Ok(())
    }

    /// The offsets in a table of tables, each of a cluster.
    fn table(&mut self, (offset, bytes): (u64, u64), what: &str) -> io::Result<Vec<u64>> {
        let table = read_at(self.file, offset, bytes as usize, "a table")?;
        let mut out = Vec::with_capacity(table.len() / 8);
        for entry in table.as_chunks::<8>().0 {
            let offset = u64::from_be_bytes(*entry) & OFFSET;
            if offset != 0 {
                self.own(offset, self.header.cluster, what)?;
            }
            out.push(offset);
        }
        Ok(out)
    }

    fn l2(&mut self, table: u64) -> io::Result<()> {
        let cluster = self.header.cluster;
        let bytes = read_at(self.file, table, cluster as usize, "an L2 table")?;
        let bits = cluster.trailing_zeros();
        for at in (0..bytes.len()).step_by(8) {
            let entry = u64_be(&bytes, at);
            if entry & COMPRESSED != 0 {
                // The offset is shorter with larger clusters: the number of sectors is above it.
                let width = 62 - (bits - 8);
                let offset = entry & ((1 << width) - 1);
                let sectors = (entry & (COMPRESSED - 1)) >> width;
                let end = (offset & !511) + (sectors + 1) * 512;
                self.share(offset / cluster, (end - 1) / cluster)?;
            } else if entry & OFFSET != 0 && self.header.data_file.is_none() {
                self.own(entry & OFFSET, cluster, "data cluster")?;
            }
        }
        Ok(())
    }

    /// Notes that compressed data is in these clusters.
    fn share(&mut self, first: u64, last: u64) -> io::Result<()> {
        for number in first..=last {
            match self.uses.get_mut(number as usize) {
                Some(uses) if *uses < OWNED - 1 => *uses += 1,
                Some(_) => {
                    return Err(bad(
                        "compressed data is in a cluster that is used otherwise",
                    ));
                }
                None => return Err(bad("compressed data is not in the file")),
            }
        }
        Ok(())
    }

    /// Compares what is used with what is counted.
    fn refcounts(&self, blocks: &[u64]) -> io::Result<()> {
        let width = 1usize << self.header.refcount_order;
        let of_block = self.header.cluster as usize * 8 / width;
        for (number, uses) in self.uses.chunks(of_block).enumerate() {
            if uses.iter().all(|&uses| uses == 0) {
                continue;
            }
            let block = match blocks.get(number) {
                Some(&offset) if offset != 0 => offset,
                _ => {
                    return Err(bad(
                        "it uses clusters that have no refcounts: qemu-img check",
                    ));
                }
            };
            let block = read_at(
                self.file,
                block,
                self.header.cluster as usize,
                "a refcount block",
            )?;
            for (i, &uses) in uses.iter().enumerate() {
                let needed = match uses {
                    OWNED => 1,
                    count => count.into(),
                };
                if refcount(&block, i, width) < needed {
                    let cluster = number * of_block + i;
                    return Err(bad(format!(
                        "its cluster {cluster} is used and not counted: qemu-img check -r all"
                    )));
                }
            }
        }
        Ok(())
    }
}

/// The refcount at a place in a block; those of less than a byte begin at the lowest bit.
fn refcount(block: &[u8], index: usize, width: usize) -> u64 {
    match width {
        1 | 2 | 4 => {
            let bit = index * width;
            u64::from(block[bit / 8] >> (bit % 8)) & ((1 << width) - 1)
        }
        _ => {
            let bytes = &block[index * width / 8..][..width / 8];
            bytes
                .iter()
                .fold(0, |value, &byte| value << 8 | u64::from(byte))
        }
    }
}
