//! The header of a qcow2 image, checked before anything else looks at the file: what it refers to, and how
//! much memory its tables can take.
//!
//! Layout: docs/interop/qcow2.txt in QEMU's source.

use std::fs::File;
use std::io;

use super::{MAX_TABLES, bad, length, read_at, u32_be, u64_be, unsupported};

/// Tables that the library holds of each kind, at most.
const CACHED_L2: u64 = 128;
const CACHED_REFCOUNT: u64 = 32;

/// What matters of a header.
#[derive(Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Bytes of a cluster.
    pub cluster: u64,
    /// Bytes of the disk.
    pub size: u64,
    /// The backing file's name and format.
    pub backing: Option<(String, Option<String>)>,
    /// The name of the file that has the data, if that is not this one.
    pub data_file: Option<String>,
    /// Where the L1 table is, and its bytes.
    pub l1: (u64, u64),
    /// Where the refcount table is, and its bytes.
    pub refcounts: (u64, u64),
    /// A refcount has 2 to this power bits.
    pub refcount_order: u32,
    /// Most bytes of its tables that are in memory at a time.
    pub memory: u64,
}

impl Header {
    /// Reads and checks the header of a file.
    pub fn read(file: &File) -> io::Result<Header> {
        let len = length(file)?;
        let fixed = read_at(file, 0, len.min(104) as usize, "the header")?;
        if fixed.len() < 72 || fixed[..4] != *b"QFI\xfb" {
            return Err(bad("it is not a qcow2 image"));
        }
        let version = u32_be(&fixed, 4);
        if !(2..=3).contains(&version) || (version == 3 && fixed.len() < 104) {
            return Err(unsupported(format!("qcow2 version {version}")));
        }
        let bits = u32_be(&fixed, 20);
        if !(9..=21).contains(&bits) {
            return Err(bad(format!("its clusters are of 2^{bits} bytes")));
        }
        let cluster = 1u64 << bits;
        if u32_be(&fixed, 32) != 0 {
            return Err(unsupported("it is encrypted"));
        }
        let features = if version == 3 { u64_be(&fixed, 72) } else { 0 };
        let refcount_order = if version == 3 { u32_be(&fixed, 96) } else { 4 };
        if refcount_order > 6 {
            return Err(bad(format!("its refcounts have 2^{refcount_order} bits")));
        }
        let external = features & FEATURE_DATA_FILE != 0;
        check_features(features)?;
        let size = u64_be(&fixed, 24);
        let memory = check_tables(&fixed, cluster, size, refcount_order, len)?;
        let head = read_at(file, 0, cluster.min(len) as usize, "the first cluster")?;
        let header_length = if version == 3 {
            u32_be(&fixed, 100)
        } else {
            72
        };
        if header_length % 8 != 0 || (version == 3 && header_length < 104) {
            return Err(bad(format!("its header has {header_length} bytes")));
        }
        let extensions = Extensions::read(&head, header_length as usize)?;
        let backing = match u64_be(&fixed, 8) {
            0 => None,
            offset => {
                let len = u32_be(&fixed, 16) as usize;
                let name = usize::try_from(offset)
                    .ok()
                    .and_then(|at| head.get(at..)?.get(..len))
                    .filter(|name| name.len() <= 1023)
                    .ok_or_else(|| bad("its backing file's name is not in the first cluster"))?;
                Some((
                    text(name, "backing file's name")?,
                    extensions.backing_format,
                ))
            }
        };
        let data_file = match (external, extensions.data_file) {
            (false, _) => None,
            (true, Some(name)) => Some(name),
            (true, None) => return Err(bad("it does not name the file that has its data")),
        };
        Ok(Header {
            version,
            cluster,
            size,
            backing,
            data_file,
            l1: (u64_be(&fixed, 40), u64::from(u32_be(&fixed, 36)) * 8),
            refcounts: (u64_be(&fixed, 48), u64::from(u32_be(&fixed, 56)) * cluster),
            refcount_order,
            memory,
        })
    }
}

const FEATURE_DATA_FILE: u64 = 1 << 2;

/// Incompatible features: an image that has one that we do not know must not be opened.
fn check_features(features: u64) -> io::Result<()> {
    let refusals: [(u64, &str); 5] = [
        (
            1 << 0,
            "it was not closed cleanly: run qemu-img check -r all",
        ),
        (1 << 1, "it is marked as corrupt: run qemu-img check -r all"),
        (1 << 3, "its compression is not zlib"),
        (1 << 4, "it has extended L2 entries"),
        (!0x1f, "it has features that are not known"),
    ];
    let refusal = refusals.iter().find(|(bits, _)| features & bits != 0);
    refusal.map_or(Ok(()), |(_, what)| Err(unsupported(*what)))
}

/// Checks that the tables are in the file and what they say is plausible; says how much memory they take.
fn check_tables(
    fixed: &[u8],
    cluster: u64,
    size: u64,
    refcount_order: u32,
    len: u64,
) -> io::Result<u64> {
    let (l1_entries, l1_offset) = (u64::from(u32_be(fixed, 36)), u64_be(fixed, 40));
    let (refcount_offset, refcount_clusters) = (u64_be(fixed, 48), u64::from(u32_be(fixed, 56)));
    let refcount_bytes = refcount_clusters * cluster;
    for (what, offset, bytes) in [
        ("L1 table", l1_offset, l1_entries * 8),
        ("refcount table", refcount_offset, refcount_bytes),
    ] {
        if !offset.is_multiple_of(cluster) || offset == 0 && bytes > 0 {
            return Err(bad(format!("its {what} is at {offset}")));
        }
        // A file ends where its last cluster's last table entry does.
        let needed = offset.checked_add(bytes);
        if needed.is_none_or(|end| end > len.next_multiple_of(cluster)) {
            return Err(bad(format!(
                "its {what} of {bytes} bytes at {offset} is not inside the file of {len} bytes"
            )));
        }
    }
    let of_l2 = cluster / 8 * cluster;
    let needed = size.div_ceil(of_l2);
    if needed > l1_entries {
        return Err(bad(format!(
            "its L1 table has {l1_entries} entries, and {size} bytes need {needed}"
        )));
    }
    // What a block of refcounts covers: its entries times the cluster.
    let of_block = ((cluster * 8) >> refcount_order) * cluster;
    let blocks = len.div_ceil(of_block).min(CACHED_REFCOUNT);
    // While a table is read, it is there twice.
    let memory =
        16 * l1_entries + 2 * refcount_bytes + needed.min(CACHED_L2) * cluster + blocks * cluster;
    if memory > MAX_TABLES {
        return Err(unsupported(format!(
            "its tables take {memory} bytes of memory, more than {MAX_TABLES}; larger clusters need less"
        )));
    }
    Ok(memory)
}

#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    data_file: Option<String>,
}

impl Extensions {
    /// Reads those that follow the header, in the first cluster.
    fn read(head: &[u8], header_length: usize) -> io::Result<Extensions> {
        let outside = || bad("its header's extensions do not end in the first cluster");
        let mut found = Extensions::default();
        let mut rest = head.get(header_length..).ok_or_else(outside)?;
        loop {
            if rest.len() < 8 {
                // A file that ends here has an end of zeros.
                return match rest.iter().all(|&byte| byte == 0) {
                    true => Ok(found),
                    false => Err(outside()),
                };
            }
            let (kind, len) = (u32_be(rest, 0), u32_be(rest, 4) as usize);
            if kind == 0 {
                return Ok(found);
            }
            let data = rest[8..].get(..len).ok_or_else(outside)?;
            match kind {
                0xe279_2aca => found.backing_format = Some(text(data, "backing file's format")?),
                0x4441_5441 => found.data_file = Some(text(data, "data file's name")?),
                0x0537_be77 => return Err(unsupported("it is encrypted")),
                _ => {}
            }
            rest = rest[8..]
                .get(len.next_multiple_of(8)..)
                .ok_or_else(outside)?;
        }
    }
}

fn text(bytes: &[u8], what: &str) -> io::Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| bad(format!("its {what} is not text")))
}
