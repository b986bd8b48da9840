//! Reads the parts of an ELF64 file that a PV builder needs: loadable segments and notes.

use alloc::borrow::Cow;
use alloc::format;
use alloc::vec::Vec;
use core::ops::Range;

use crate::LayoutError;
use crate::bytes::{Source, u16_at, u32_at, u64_at};

/// Most program or section headers that are looked at; a Linux kernel has 5 and 40.
const MAX_HEADERS: u16 = 1024;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const SHT_NOTE: u32 = 7;
const EM_X86_64: u16 = 62;
/// Most bytes of notes that are looked at, all together; a Linux kernel has some 500.
const MAX_NOTE_BYTES: u64 = 1 << 20;
/// `Elf64_Ehdr`
const HEADER: u64 = 64;

/// An x86_64 ELF program, its structure checked.
#[derive(Clone, Debug)]
pub struct Elf<'a> {
    /// The header's entry point, a virtual address.
    pub entry: u64,
    /// The loadable segments that take up memory, in file order.
    pub segments: Vec<Segment>,
    /// The content of each PT_NOTE segment.
    pub note_segments: Vec<Cow<'a, [u8]>>,
    /// The table of sections: where it begins, the size of a header, their number.
    sections: (u64, u64, u16),
    /// The size of all note segments.
    note_bytes: u64,
}

/// One loadable segment: what the file holds of it, then zeros up to `mem_size`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Virtual address (`p_vaddr`).
    pub vaddr: u64,
    /// "Physical" address (`p_paddr`), which is the one that counts when loading.
    pub paddr: u64,
    /// Where the file holds its bytes: within the file.
    pub file: Range<u64>,
    /// Its size in memory, at least as many bytes as the file holds, not 0.
    pub mem_size: u64,
}

impl<'a> Elf<'a> {
    /// Reads the headers of an ELF file.
    ///
    /// # Errors
    /// [`LayoutError::WrongElf`] for another machine or kind of file, [`LayoutError::BadElf`] for headers
    /// or contents outside the file.
    pub fn parse<S: Source + ?Sized>(file: &'a S) -> Result<Elf<'a>, LayoutError> {
        const TRUNCATED: LayoutError = LayoutError::BadElf("the file ends within its header");
        if file.part(0, 4).as_deref() != Some(b"\x7fELF") {
            return Err(LayoutError::NotAKernel);
        }
        let header = file.part(0, HEADER).ok_or(TRUNCATED)?;
        if header[4] != 2 || header[5] != 1 {
            return Err(LayoutError::WrongElf(
                "it is 32-bit or big-endian; only 64-bit PV guests are supported".into(),
            ));
        }
        let half = |at| u16_at(&header, at).ok_or(TRUNCATED);
        let word = |at| u64_at(&header, at).ok_or(TRUNCATED);
        let (kind, machine) = (half(16)?, half(18)?);
        if machine != EM_X86_64 {
            return Err(LayoutError::WrongElf(format!("its machine is {machine}")));
        }
        // ET_EXEC, or ET_DYN as relocatable kernels are.
        if kind != 2 && kind != 3 {
            return Err(LayoutError::WrongElf(format!(
                "its type is {kind}, not an executable's"
            )));
        }
        let mut elf = Elf {
            entry: word(24)?,
            segments: Vec::new(),
            note_segments: Vec::new(),
            sections: (word(40)?, half(58)?.into(), half(60)?.min(MAX_HEADERS)),
            note_bytes: 0,
        };
        elf.read_segments(file, word(32)?, half(54)?.into(), half(56)?)?;
        Ok(elf)
    }

    fn read_segments<S: Source + ?Sized>(
        &mut self,
        file: &'a S,
        table: u64,
        size: u64,
        count: u16,
    ) -> Result<(), LayoutError> {
        const OUTSIDE: LayoutError = LayoutError::BadElf("a program header lies outside the file");
        if count > 0 && size < 56 {
            return Err(LayoutError::BadElf("its program headers are too small"));
        }
        if count > MAX_HEADERS {
            return Err(LayoutError::BadElf("it has too many program headers"));
        }
        for index in 0..u64::from(count) {
            let at = table.checked_add(index * size).ok_or(OUTSIDE)?;
            let header = file.part(at, 56).ok_or(OUTSIDE)?;
            self.read_segment(file, &header)?;
        }
        Ok(())
    }

    fn read_segment<S: Source + ?Sized>(
        &mut self,
        file: &'a S,
        header: &[u8],
    ) -> Result<(), LayoutError> {
        let word = |at| u64_at(header, at).unwrap_or(0);
        let kind = u32_at(header, 0).unwrap_or(0);
        let flags = u32_at(header, 4).unwrap_or(0);
        let (offset, vaddr, paddr) = (word(8), word(16), word(24));
        let (file_size, mem_size) = (word(32), word(40));
        if kind == PT_NOTE {
            self.note_bytes = self.note_bytes.saturating_add(file_size);
            if self.note_bytes > MAX_NOTE_BYTES {
                return Err(LayoutError::BadElf("its notes are too long"));
            }
            let data = file
                .part(offset, file_size)
                .ok_or(LayoutError::BadElf("a note segment lies outside the file"))?;
            self.note_segments.push(data);
        }
        // A segment nobody may touch, or of no size, takes up no memory.
        if kind != PT_LOAD || flags & 7 == 0 || mem_size == 0 {
            return Ok(());
        }
        let end = offset
            .checked_add(file_size)
            .filter(|&end| end <= file.len())
            .ok_or(LayoutError::BadElf("a segment lies outside the file"))?;
        if file_size > mem_size {
            return Err(LayoutError::BadElf(
                "a segment is larger in the file than in memory",
            ));
        }
        if paddr.checked_add(mem_size).is_none() {
            return Err(LayoutError::BadElf(
                "a segment ends behind the last address",
            ));
        }
        self.segments.push(Segment {
            vaddr,
            paddr,
            file: offset..end,
            mem_size,
        });
        Ok(())
    }

    /// The content of each SHT_NOTE section of the file that this was read from. Sections are a second source of notes
    /// only: what is broken about them is left out.
    pub fn note_sections<'f, S: Source + ?Sized>(&self, file: &'f S) -> Vec<Cow<'f, [u8]>> {
        let (table, size, count) = self.sections;
        let mut out = Vec::new();
        let mut bytes = 0u64;
        if size < 64 || table == 0 {
            return out;
        }
        for index in 0..u64::from(count) {
            let at = table.checked_add(index * size);
            let Some(header) = at.and_then(|at| file.part(at, 64)) else {
                return out;
            };
            if u32_at(&header, 4) == Some(SHT_NOTE)
                && let (Some(offset), Some(size)) = (u64_at(&header, 24), u64_at(&header, 32))
                && size <= MAX_NOTE_BYTES - bytes
                && let Some(data) = file.part(offset, size)
            {
                bytes += size;
                out.push(data);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ElfBuilder, TestSegment};
    use alloc::vec;

    #[test]
    fn segments_are_read() {
        let file = ElfBuilder {
            entry: 0x1000,
            segments: vec![
                TestSegment::load(0xffff_ffff_8000_1000, 0x1000, b"code", 0x2000),
                TestSegment::load(0, 0x3000, b"percpu", 0x1000),
                TestSegment::load(0x9000, 0x9000, b"", 0),
            ],
            notes: vec![],
        }
        .build();
        let elf = Elf::parse(&file[..]).unwrap();
        assert_eq!(elf.entry, 0x1000);
        assert_eq!(elf.segments.len(), 2, "the empty one takes no memory");
        let code = &elf.segments[0].file;
        assert_eq!(&file[code.start as usize..code.end as usize], b"code");
        assert_eq!(elf.segments[0].mem_size, 0x2000);
        assert_eq!(
            elf.segments[1].paddr, 0x3000,
            "vaddr 0, loaded where paddr says"
        );
    }

    #[test]
    fn every_truncation_is_an_error_or_shorter() {
        let file = ElfBuilder::pv_kernel(b"code", 0x1000).build();
        for len in 0..file.len() {
            let _ = Elf::parse(&file[..len]);
        }
        assert!(Elf::parse(&file[..63]).is_err());
    }

    #[test]
    fn lies_are_errors() {
        let good = ElfBuilder::pv_kernel(b"code", 0x1000).build();
        let check = |at: usize, bytes: &[u8], what: &str| {
            let mut file = good.clone();
            file[at..at + bytes.len()].copy_from_slice(bytes);
            assert!(Elf::parse(&file[..]).is_err(), "{what}");
        };
        check(4, &[1], "32-bit");
        check(5, &[2], "big-endian");
        check(16, &[1], "relocatable object");
        check(18, &[3], "i386");
        check(32, &[0xff; 8], "program headers at the end of the world");
        check(54, &[1, 0], "tiny program headers");
        check(56, &[0xff, 0xff], "65535 program headers");
        let header = 64;
        check(header + 8, &[0xff; 8], "segment outside the file");
        check(header + 32, &[0xff; 8], "segment of 2^64 bytes");
        check(
            header + 40,
            &[1, 0, 0, 0, 0, 0, 0, 0],
            "file size over memory size",
        );
        check(header + 24, &[0xff; 8], "segment wraps");
    }
}
