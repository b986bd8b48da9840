//! The files: an index of the archive, made once, and their contents, read when asked for.

use alloc::vec::Vec;

use pvguest::Disk;
use pvguest::pv_drivers::blk::BlkError;
use pvguest::pv_drivers::tar::{self, BLOCK, File};

use crate::Failure;

/// What is served.
pub(crate) struct Files {
    disk: Disk,
    files: Vec<File>,
    /// The first sector behind the archive.
    end: u64,
    /// Requests answered.
    pub(crate) served: u64,
}

impl Files {
    /// Reads the headers of the archive at the beginning of the disk.
    pub(crate) fn open(mut disk: Disk) -> Result<Files, Failure> {
        let sectors = disk.info().sectors_512;
        let unit = u64::from(disk.info().sector_size).max(BLOCK as u64) / BLOCK as u64;
        let index = tar::index(sectors, |block, to| {
            // The disk may only be readable in larger pieces than the archive's blocks.
            let mut piece = [0; 4096];
            let piece = &mut piece[..unit as usize * BLOCK];
            disk.read(block - block % unit, piece)?;
            let at = (block % unit) as usize * BLOCK;
            to.copy_from_slice(&piece[at..at + BLOCK]);
            Ok(())
        });
        let (files, end) =
            index.map_err(|error: BlkError| Failure::Disk("reading the archive", error))?;
        Ok(Files {
            disk,
            files,
            end: end + 2,
            served: 0,
        })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.files.len()
    }

    /// The file of a path; a directory's is its `index.html`.
    pub(crate) fn find(&self, path: &str) -> Option<File> {
        let is = |name: &str| self.files.iter().rev().find(|file| file.name == name);
        let file = match path {
            "" => is("index.html"),
            path if path.ends_with('/') => is(&alloc::format!("{path}index.html")),
            path => is(path),
        };
        file.cloned()
    }

    /// Reads a piece of a file; `to` is a whole number of 4 KiB pieces, `offset` too.
    pub(crate) fn read(&mut self, file: &File, offset: u64, to: &mut [u8]) -> Result<(), BlkError> {
        let sectors = self.disk.info().sectors_512;
        let first = file.first_block + offset / BLOCK as u64;
        let unit = u64::from(self.disk.info().sector_size).max(BLOCK as u64) / BLOCK as u64;
        if unit == 1 {
            let len = to
                .len()
                .min((sectors.saturating_sub(first) as usize) * BLOCK);
            return self.disk.read(first, &mut to[..len]);
        }
        // Larger sectors: read around what is wanted.
        let start = first - first % unit;
        let skip = (first - start) as usize * BLOCK;
        let mut around = alloc::vec![0; (skip + to.len()).next_multiple_of(unit as usize * BLOCK)];
        let len = around.len().min((sectors - start) as usize * BLOCK);
        self.disk.read(start, &mut around[..len])?;
        to.copy_from_slice(&around[skip..skip + to.len()]);
        Ok(())
    }

    /// The disk, the first sector that is free on it (on a 4 KiB boundary), and how many there are in all.
    pub(crate) fn free_part(&mut self) -> (&mut Disk, u64, u64) {
        let sectors = self.disk.info().sectors_512;
        let first = self.end.next_multiple_of(8);
        (&mut self.disk, first, sectors)
    }
}
