//! The structures of VMDK images: the header of a sparse extent, and the descriptor.
//!
//! Layout: VMware, "Virtual Disk Format 5.0".

use std::io;

use super::{MAX_TABLES, bad, u16_le, u32_le, u64_le, unsupported};
use crate::request::SECTOR;

/// Bytes of a sparse extent's header.
pub const HEADER: usize = 512;
/// Where the directory is if that is told by the footer.
pub const AT_END: u64 = u64::MAX;
/// Bytes of a descriptor, at most.
pub const MAX_DESCRIPTOR: u64 = 64 << 10;
/// Extents of a disk, at most: each is an open file.
pub const MAX_EXTENTS: usize = 64;

/// A sparse extent's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sparse {
    /// Sectors of the disk.
    pub capacity: u64,
    /// Sectors of a grain.
    pub grain: u64,
    /// Entries of a grain table.
    pub entries: u64,
    /// The sector where the directory is, or [`AT_END`].
    pub directory: u64,
    /// Where the descriptor is, sectors and their number.
    pub descriptor: (u64, u64),
    /// Grains are compressed, each behind its own header.
    pub compressed: bool,
    /// An entry of 1 says that a grain is zero.
    pub zero_grains: bool,
}

impl Sparse {
    /// Checks a header; whether what it names is in the file is not looked at.
    pub fn parse(bytes: &[u8]) -> io::Result<Sparse> {
        if bytes.len() < HEADER || bytes[..4] != *b"KDMV" {
            return Err(bad("it has no VMDK header"));
        }
        let (version, flags) = (u32_le(bytes, 4), u32_le(bytes, 8));
        if !(1..=3).contains(&version) {
            return Err(unsupported(format!("VMDK version {version}")));
        }
        // Files that were sent as text have these four changed.
        if flags & 1 != 0 && bytes[73..77] != *b"\n \r\n" {
            return Err(bad("its line ends were converted on its way"));
        }
        let compressed = flags & 1 << 16 != 0;
        if compressed && (u16_le(bytes, 77) != 1 || flags & 1 << 17 == 0) {
            return Err(unsupported(
                "its grains are compressed in another way than deflate",
            ));
        }
        let sparse = Sparse {
            capacity: u64_le(bytes, 12),
            grain: u64_le(bytes, 20),
            entries: u32_le(bytes, 44).into(),
            directory: u64_le(bytes, 56),
            descriptor: (u64_le(bytes, 28), u64_le(bytes, 36)),
            compressed,
            zero_grains: flags & 1 << 2 != 0,
        };
        if sparse.capacity == 0 || sparse.capacity > 1 << 44 {
            return Err(bad(format!("its size is {} sectors", sparse.capacity)));
        }
        if !sparse.grain.is_power_of_two() || !(1..=2048).contains(&sparse.grain) {
            return Err(bad(format!("its grains are of {} sectors", sparse.grain)));
        }
        if !(1..=65536).contains(&sparse.entries) {
            return Err(bad(format!("its tables have {} entries", sparse.entries)));
        }
        if sparse.tables() * 8 > MAX_TABLES {
            return Err(unsupported(format!(
                "its directory has {} entries",
                sparse.tables()
            )));
        }
        Ok(sparse)
    }

    /// Entries of the directory, one for each grain table.
    pub fn tables(&self) -> u64 {
        self.capacity.div_ceil(self.grain * self.entries)
    }

    /// Bytes of a grain.
    pub fn grain_bytes(&self) -> usize {
        (self.grain * SECTOR) as usize
    }
}

/// An extent as the descriptor has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its length in sectors.
    pub sectors: u64,
    /// Its data.
    pub content: Content,
}

/// What an extent's data is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Zeros.
    Zero,
    /// Bytes of a file, from a sector on.
    Flat(String, u64),
    /// A sparse extent in a file.
    Sparse(String),
}

/// Reads a descriptor: the disk's extents, one after another.
pub fn descriptor(text: &str) -> io::Result<Vec<Extent>> {
    let mut extents = Vec::new();
    let text = text.trim_end_matches('\0');
    if !text.trim_start().starts_with("# Disk DescriptorFile") {
        return Err(bad("it has no VMDK descriptor"));
    }
    for line in text.lines().map(str::trim) {
        let first = line.split_ascii_whitespace().next().unwrap_or("");
        if ["RW", "RDONLY", "NOACCESS"].contains(&first) {
            if extents.len() == MAX_EXTENTS {
                return Err(unsupported(format!(
                    "it has more than {MAX_EXTENTS} extents"
                )));
            }
            extents.push(extent(line)?);
        } else if let Some((key, value)) = line.split_once('=') {
            let value = value.trim().trim_matches('"');
            match key.trim() {
                "parentCID" if !value.eq_ignore_ascii_case("ffffffff") => {
                    return Err(unsupported("it is a snapshot of another VMDK"));
                }
                "encryption.keySafe" => return Err(unsupported("it is encrypted")),
                _ => {}
            }
        }
    }
    let sectors = extents
        .iter()
        .try_fold(0u64, |sum, e| sum.checked_add(e.sectors));
    match sectors {
        Some(1..=0x1000_0000_0000) => Ok(extents),
        _ => Err(bad("its extents have no sensible size")),
    }
}

fn extent(line: &str) -> io::Result<Extent> {
    let wrong = || bad(format!("its extent {line:?} is not one"));
    let (head, rest) = line.split_once('"').unwrap_or((line, ""));
    let mut words = head.split_ascii_whitespace();
    let access = words.next().ok_or_else(wrong)?;
    let sectors = words
        .next()
        .and_then(|n| n.parse().ok())
        .ok_or_else(wrong)?;
    let kind = words.next().ok_or_else(wrong)?;
    if access == "NOACCESS" {
        return Err(unsupported("it has an extent that must not be read"));
    }
    let file = || {
        let (name, after) = rest.split_once('"').ok_or_else(wrong)?;
        let offset = match after.split_ascii_whitespace().next() {
            None => 0,
            Some(word) => word.parse().map_err(|_| wrong())?,
        };
        Ok::<_, io::Error>((name.to_string(), offset))
    };
    let content = match kind {
        "ZERO" => Content::Zero,
        "FLAT" | "VMFS" => {
            let (name, offset) = file()?;
            Content::Flat(name, offset)
        }
        "SPARSE" => Content::Sparse(file()?.0),
        other => return Err(unsupported(format!("it has an extent of the kind {other}"))),
    };
    Ok(Extent { sectors, content })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEAD: &str = "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nparentCID=ffffffff\n";

    #[test]
    fn descriptors() {
        let flat = |name: &str, offset| Content::Flat(name.into(), offset);
        for (lines, expected) in [
            (
                "RW 8 FLAT \"a b.vmdk\" 3",
                Some(vec![(8, flat("a b.vmdk", 3))]),
            ),
            (
                "RDONLY 8 VMFS \"a\"\nRW 2 ZERO",
                Some(vec![(8, flat("a", 0)), (2, Content::Zero)]),
            ),
            (
                "RW 8 SPARSE \"a\"",
                Some(vec![(8, Content::Sparse("a".into()))]),
            ),
            ("RW 8 FLAT a", None),
            ("RW x FLAT \"a\" 0", None),
            ("RW 8 FLAT \"a\" x", None),
            ("RW 8 FLAT \"a", None),
            ("NOACCESS 8 ZERO", None),
            ("RW 8 VMFSSPARSE \"a\"", None),
            ("RW 18446744073709551615 ZERO\nRW 1 ZERO", None),
            ("parentCID=12345678\nRW 8 ZERO", None),
            ("", None),
        ] {
            let found = descriptor(&format!("{HEAD}{lines}\nddb.adapterType = \"ide\"\n"));
            let found = found.map(|all| all.into_iter().map(|e| (e.sectors, e.content)).collect());
            assert_eq!(found.ok(), expected, "{lines}");
        }
        assert!(descriptor(&format!("{HEAD}{}", "RW 1 ZERO\n".repeat(MAX_EXTENTS + 1))).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,80}", line in "(RW|RDONLY) [0-9]{0,22} (FLAT|ZERO|SPARSE) .{0,20}") {
            let _ = descriptor(&text);
            let _ = descriptor(&format!("{HEAD}{line}"));
        }

        #[test]
        fn a_header_that_passes_is_bounded(mut bytes in prop::collection::vec(any::<u8>(), HEADER), shift in 0u32..64, grain in 0u32..13) {
            bytes[..8].copy_from_slice(b"KDMV\x01\0\0\0");
            bytes[8..12].fill(0);
            let capacity = u64_le(&bytes, 12) >> shift;
            bytes[12..20].copy_from_slice(&capacity.to_le_bytes());
            bytes[20..28].copy_from_slice(&(1u64 << grain).to_le_bytes());
            bytes[46..48].fill(0);
            if let Ok(sparse) = Sparse::parse(&bytes) {
                prop_assert!(sparse.tables() * 8 <= MAX_TABLES);
                prop_assert!(sparse.tables() * sparse.entries * sparse.grain >= sparse.capacity);
            }
        }
    }
}
