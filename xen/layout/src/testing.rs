//! Makes ELF files and bzImages for tests.

use alloc::vec;
use alloc::vec::Vec;

/// An ELF file to be.
pub struct ElfBuilder {
    pub entry: u64,
    pub segments: Vec<TestSegment>,
    pub notes: Vec<Vec<u8>>,
}

/// A loadable segment to be.
pub struct TestSegment {
    pub vaddr: u64,
    pub paddr: u64,
    pub data: Vec<u8>,
    pub mem_size: u64,
}

impl TestSegment {
    pub fn load(vaddr: u64, paddr: u64, data: &[u8], mem_size: u64) -> TestSegment {
        TestSegment {
            vaddr,
            paddr,
            data: data.to_vec(),
            mem_size,
        }
    }
}

/// One note's bytes.
pub fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend((name.len() as u32).to_le_bytes());
    out.extend((desc.len() as u32).to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend(name);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(desc);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

pub const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;

impl ElfBuilder {
    /// A PV kernel like Linux: loaded at 1 MiB above VIRT_BASE.
    pub fn pv_kernel(code: &[u8], mem_size: u64) -> ElfBuilder {
        let start = 0x10_0000;
        ElfBuilder {
            entry: VIRT_BASE + start,
            segments: vec![TestSegment::load(VIRT_BASE + start, start, code, mem_size)],
            notes: vec![
                note(b"Xen\0", 5, b"xen-3.0\0"),
                note(b"Xen\0", 6, b"test\0"),
                note(b"Xen\0", 8, b"generic\0"),
                note(b"Xen\0", 3, &VIRT_BASE.to_le_bytes()),
                note(b"Xen\0", 4, &0u64.to_le_bytes()),
                note(b"Xen\0", 1, &(VIRT_BASE + start).to_le_bytes()),
            ],
        }
    }

    pub fn with_note(mut self, kind: u32, value: u64) -> ElfBuilder {
        self.notes.push(note(b"Xen\0", kind, &value.to_le_bytes()));
        self
    }

    pub fn build(&self) -> Vec<u8> {
        let notes = self.notes.concat();
        let count = self.segments.len() + usize::from(!notes.is_empty());
        let mut file = vec![0u8; 64 + 56 * count];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        file[16..18].copy_from_slice(&2u16.to_le_bytes());
        file[18..20].copy_from_slice(&62u16.to_le_bytes());
        file[24..32].copy_from_slice(&self.entry.to_le_bytes());
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[54..56].copy_from_slice(&56u16.to_le_bytes());
        file[56..58].copy_from_slice(&(count as u16).to_le_bytes());
        for (index, segment) in self.segments.iter().enumerate() {
            let offset = file.len() as u64;
            file.extend(&segment.data);
            let words = [
                offset,
                segment.vaddr,
                segment.paddr,
                segment.data.len() as u64,
                segment.mem_size,
                4096,
            ];
            Self::header(&mut file, index, 1, &words);
        }
        if !notes.is_empty() {
            let offset = file.len() as u64;
            let len = notes.len() as u64;
            file.extend(notes);
            let index = self.segments.len();
            Self::header(&mut file, index, 4, &[offset, 0, 0, len, len, 4]);
        }
        file
    }

    fn header(file: &mut [u8], index: usize, kind: u32, words: &[u64; 6]) {
        let header = &mut file[64 + 56 * index..][..56];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[4..8].copy_from_slice(&7u32.to_le_bytes());
        for (slot, word) in header[8..].chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
    }
}

/// A bzImage with this payload.
pub fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0u8; 512 * 3 + 16];
    file[0x1f1] = 2;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    file[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    file.extend(payload);
    file
}
