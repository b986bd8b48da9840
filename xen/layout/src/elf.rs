//! Reads the parts of an ELF64 file that a PV builder needs: loadable segments and notes.

use alloc::format;
use alloc::vec::Vec;

use crate::LayoutError;
use crate::bytes::{slice, u16_at, u32_at, u64_at};

/// Most program or section headers that are looked at; a Linux kernel has 5 and 40.
const MAX_HEADERS: u16 = 1024;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const SHT_NOTE: u32 = 7;
const EM_X86_64: u16 = 62;

/// An x86_64 ELF program, its structure checked.
#[derive(Clone, Debug)]
pub struct Elf<'a> {
    /// The header's entry point, a virtual address.
    pub entry: u64,
    /// The loadable segments that take up memory, in file order.
    pub segments: Vec<Segment<'a>>,
    /// The content of each PT_NOTE segment.
    pub note_segments: Vec<&'a [u8]>,
    /// The content of each SHT_NOTE section, for files without PT_NOTE.
    pub note_sections: Vec<&'a [u8]>,
}

/// One loadable segment: `data`, then zeros up to `mem_size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Virtual address (`p_vaddr`).
    pub vaddr: u64,
    /// "Physical" address (`p_paddr`), which is the one that counts when loading.
    pub paddr: u64,
    /// What the file holds of it.
    pub data: &'a [u8],
    /// Its size in memory, at least `data.len()`, not 0.
    pub mem_size: u64,
}

impl<'a> Elf<'a> {
    /// Reads the headers of an ELF file.
    ///
    /// # Errors
    /// [`LayoutError::WrongElf`] for another machine or kind of file, [`LayoutError::BadElf`] for headers
    /// or contents outside the file.
    pub fn parse(file: &'a [u8]) -> Result<Elf<'a>, LayoutError> {
        const TRUNCATED: LayoutError = LayoutError::BadElf("the file ends within its header");
        if !file.starts_with(b"\x7fELF") {
            return Err(LayoutError::NotAKernel);
        }
        let ident = slice(file, 0, 16).ok_or(TRUNCATED)?;
        if ident[4] != 2 || ident[5] != 1 {
            return Err(LayoutError::WrongElf(
                "it is 32-bit or big-endian; only 64-bit PV guests are supported".into(),
            ));
        }
        let kind = u16_at(file, 16).ok_or(TRUNCATED)?;
        let machine = u16_at(file, 18).ok_or(TRUNCATED)?;
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
            entry: u64_at(file, 24).ok_or(TRUNCATED)?,
            segments: Vec::new(),
            note_segments: Vec::new(),
            note_sections: Vec::new(),
        };
        elf.read_segments(file, u64_at(file, 32).ok_or(TRUNCATED)?)?;
        elf.read_sections(file, u64_at(file, 40).ok_or(TRUNCATED)?);
        Ok(elf)
    }

    fn read_segments(&mut self, file: &'a [u8], table: u64) -> Result<(), LayoutError> {
        const OUTSIDE: LayoutError = LayoutError::BadElf("a program header lies outside the file");
        let size = u64::from(u16_at(file, 54).ok_or(OUTSIDE)?);
        let count = u16_at(file, 56).ok_or(OUTSIDE)?;
        if count > 0 && size < 56 {
            return Err(LayoutError::BadElf("its program headers are too small"));
        }
        if count > MAX_HEADERS {
            return Err(LayoutError::BadElf("it has too many program headers"));
        }
        for index in 0..u64::from(count) {
            let at = table.checked_add(index * size).ok_or(OUTSIDE)?;
            let header = slice(file, at, 56).ok_or(OUTSIDE)?;
            self.read_segment(file, header)?;
        }
        Ok(())
    }

    fn read_segment(&mut self, file: &'a [u8], header: &[u8]) -> Result<(), LayoutError> {
        let word = |at| u64_at(header, at).unwrap_or(0);
        let kind = u32_at(header, 0).unwrap_or(0);
        let flags = u32_at(header, 4).unwrap_or(0);
        let (offset, vaddr, paddr) = (word(8), word(16), word(24));
        let (file_size, mem_size) = (word(32), word(40));
        if kind == PT_NOTE {
            let data = slice(file, offset, file_size)
                .ok_or(LayoutError::BadElf("a note segment lies outside the file"))?;
            self.note_segments.push(data);
        }
        // A segment nobody may touch, or of no size, takes up no memory.
        if kind != PT_LOAD || flags & 7 == 0 || mem_size == 0 {
            return Ok(());
        }
        let data = slice(file, offset, file_size)
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
            data,
            mem_size,
        });
        Ok(())
    }

    /// Sections are a second source of notes only: what is broken about them is left out.
    fn read_sections(&mut self, file: &'a [u8], table: u64) {
        let size = u64::from(u16_at(file, 58).unwrap_or(0));
        let count = u16_at(file, 60).unwrap_or(0).min(MAX_HEADERS);
        if size < 64 || table == 0 {
            return;
        }
        for index in 0..u64::from(count) {
            let Some(at) = table.checked_add(index * size) else {
                return;
            };
            let Some(header) = slice(file, at, 64) else {
                return;
            };
            if u32_at(header, 4) == Some(SHT_NOTE)
                && let (Some(offset), Some(size)) = (u64_at(header, 24), u64_at(header, 32))
                && let Some(data) = slice(file, offset, size)
            {
                self.note_sections.push(data);
            }
        }
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
        let elf = Elf::parse(&file).unwrap();
        assert_eq!(elf.entry, 0x1000);
        assert_eq!(elf.segments.len(), 2, "the empty one takes no memory");
        assert_eq!(elf.segments[0].data, b"code");
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
            assert!(Elf::parse(&file).is_err(), "{what}");
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
