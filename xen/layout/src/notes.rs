//! Xen's ELF notes (elfnote.h): how a kernel says what it wants of the builder.

use alloc::string::String;

use crate::bytes::{Source, slice, u32_at};
use crate::elf::Elf;

/// Most notes that are looked at.
const MAX_NOTES: usize = 512;
/// Longest string note that is kept.
const MAX_STRING: usize = 1024;

/// The notes of owner `"Xen"`. Addresses are guest virtual.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct XenNotes {
    /// How many notes of Xen's there are, known or not.
    pub count: usize,
    /// `ENTRY`: where the PV guest starts.
    pub entry: Option<u64>,
    /// `HYPERCALL_PAGE`: the page Xen fills with hypercall stubs. Not every kernel has one.
    pub hypercall_page: Option<u64>,
    /// `VIRT_BASE`: where pfn 0 is mapped.
    pub virt_base: Option<u64>,
    /// `PADDR_OFFSET`: what the segments' physical addresses count from.
    pub paddr_offset: Option<u64>,
    /// `XEN_VERSION`: the interface, `"xen-3.0"`.
    pub xen_version: Option<String>,
    /// `GUEST_OS`
    pub guest_os: Option<String>,
    /// `GUEST_VERSION`
    pub guest_version: Option<String>,
    /// `LOADER`: `"generic"`.
    pub loader: Option<String>,
    /// `PAE_MODE`, of meaning to 32-bit guests only.
    pub pae_mode: Option<String>,
    /// `FEATURES`: names separated by `|`, required ones with a `!`.
    pub features: Option<String>,
    /// `SUPPORTED_FEATURES`: the same as bits.
    pub supported_features: Option<u64>,
    /// `INIT_P2M`: where the guest wants the list of its machine frames.
    pub init_p2m: Option<u64>,
    /// `MOD_START_PFN`: the initrd need not be mapped.
    pub mod_start_pfn: bool,
    /// `PHYS32_ENTRY`: the entry of a PVH guest.
    pub phys32_entry: Option<u64>,
}

impl XenNotes {
    /// Collects the notes, from the segments or, if these hold none of Xen's, from the sections.
    pub fn collect<S: Source + ?Sized>(elf: &Elf<'_>, file: &S) -> XenNotes {
        let mut notes = XenNotes::default();
        for area in &elf.note_segments {
            notes.read_area(area);
        }
        if notes.count == 0 {
            for area in elf.note_sections(file) {
                notes.read_area(&area);
            }
        }
        notes
    }

    /// Whether `name` is among the required features.
    pub fn requires(&self, name: &str) -> bool {
        self.features.as_deref().is_some_and(|list| {
            list.split('|')
                .any(|item| item.strip_prefix('!') == Some(name))
        })
    }

    fn read_area(&mut self, area: &[u8]) {
        let mut at = 0u64;
        for _ in 0..MAX_NOTES {
            let (Some(name_len), Some(desc_len), Some(kind)) =
                (u32_at(area, at), u32_at(area, at + 4), u32_at(area, at + 8))
            else {
                return;
            };
            let name_at = at + 12;
            let desc_at = name_at + u64::from(name_len).next_multiple_of(4);
            let (Some(name), Some(desc)) = (
                slice(area, name_at, name_len.into()),
                slice(area, desc_at, desc_len.into()),
            ) else {
                return;
            };
            if name == b"Xen\0" {
                self.count += 1;
                self.take(kind, desc);
            }
            at = desc_at + u64::from(desc_len).next_multiple_of(4);
        }
    }

    fn take(&mut self, kind: u32, desc: &[u8]) {
        match kind {
            1 => self.entry = number(desc),
            2 => self.hypercall_page = number(desc),
            3 => self.virt_base = number(desc),
            4 => self.paddr_offset = number(desc),
            5 => self.xen_version = string(desc),
            6 => self.guest_os = string(desc),
            7 => self.guest_version = string(desc),
            8 => self.loader = string(desc),
            9 => self.pae_mode = string(desc),
            10 => self.features = string(desc),
            15 => self.init_p2m = number(desc),
            16 => self.mod_start_pfn = number(desc).is_some_and(|value| value != 0),
            17 => self.supported_features = number(desc),
            18 => self.phys32_entry = number(desc),
            _ => {}
        }
    }
}

fn number(desc: &[u8]) -> Option<u64> {
    match *desc {
        [a] => Some(a.into()),
        [a, b] => Some(u16::from_le_bytes([a, b]).into()),
        [a, b, c, d] => Some(u32::from_le_bytes([a, b, c, d]).into()),
        [a, b, c, d, e, f, g, h] => Some(u64::from_le_bytes([a, b, c, d, e, f, g, h])),
        _ => None,
    }
}

fn string(desc: &[u8]) -> Option<String> {
    let text = desc.split(|&b| b == 0).next()?;
    let text = &text[..text.len().min(MAX_STRING)];
    core::str::from_utf8(text).ok().map(String::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ElfBuilder, note};
    use alloc::vec;
    use alloc::vec::Vec;

    fn collect(notes: Vec<Vec<u8>>) -> XenNotes {
        let file = ElfBuilder {
            entry: 0,
            segments: vec![],
            notes,
        }
        .build();
        XenNotes::collect(&Elf::parse(&file[..]).unwrap(), &file[..])
    }

    #[test]
    fn known_notes_are_read() {
        let notes = collect(vec![
            note(b"GNU\0", 3, b"build-id"),
            note(b"Xen\0", 5, b"xen-3.0\0"),
            note(b"Xen\0", 3, &0xffff_ffff_8000_0000u64.to_le_bytes()),
            note(b"Xen\0", 10, b"!writable_page_tables|pae_pgdir_above_4gb"),
            note(b"Xen\0", 17, &0x801u32.to_le_bytes()),
            note(b"Xen\0", 16, &1u64.to_le_bytes()),
            note(b"Xen\0", 99, b"unknown"),
        ]);
        assert_eq!(notes.count, 6);
        assert_eq!(notes.xen_version.as_deref(), Some("xen-3.0"));
        assert_eq!(notes.virt_base, Some(0xffff_ffff_8000_0000));
        assert_eq!(notes.supported_features, Some(0x801));
        assert!(notes.mod_start_pfn);
        assert!(notes.requires("writable_page_tables"));
        assert!(!notes.requires("pae_pgdir_above_4gb"));
        assert_eq!(notes.entry, None);
    }

    #[test]
    fn lying_lengths_end_the_reading() {
        let mut bad = note(b"Xen\0", 5, b"xen-3.0\0");
        bad[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let notes = collect(vec![note(b"Xen\0", 6, b"me\0"), bad]);
        assert_eq!(notes.guest_os.as_deref(), Some("me"));
        assert_eq!(notes.xen_version, None);
        // Odd sizes are no numbers.
        assert_eq!(collect(vec![note(b"Xen\0", 3, b"abc")]).virt_base, None);
    }
}
