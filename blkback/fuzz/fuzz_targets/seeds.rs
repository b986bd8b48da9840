//! Small images that are right, of each format and kind: what a fuzzer begins with. Made here, byte by byte, and each
//! must open.

use blkback::Format;
use miniz_oxide::deflate::{compress_to_vec, compress_to_vec_zlib};

/// Data that compresses.
const DATA: [u8; 4096] = [0x5a; 4096];

/// Bytes under construction.
struct Image(Vec<u8>);

impl Image {
    fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Image {
        let end = (at + bytes.len()).next_multiple_of(512);
        if self.0.len() < end {
            self.0.resize(end, 0);
        }
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }
    fn be32(&mut self, at: usize, value: u32) -> &mut Image {
        self.put(at, &value.to_be_bytes())
    }
    fn be64(&mut self, at: usize, value: u64) -> &mut Image {
        self.put(at, &value.to_be_bytes())
    }
    fn le32(&mut self, at: usize, value: u32) -> &mut Image {
        self.put(at, &value.to_le_bytes())
    }
    fn le64(&mut self, at: usize, value: u64) -> &mut Image {
        self.put(at, &value.to_le_bytes())
    }
    /// The sum of VHD: all bytes but its own.
    fn seal(&mut self, part: std::ops::Range<usize>, at: usize) -> &mut Image {
        self.be32(part.start + at, 0);
        let sum = self.0[part.clone()].iter().map(|&byte| u32::from(byte));
        let sum = !sum.sum::<u32>();
        self.be32(part.start + at, sum)
    }
}

/// All of a format, each with what it is.
pub fn all(format: Format) -> Vec<(&'static str, Vec<u8>)> {
    match format {
        Format::Raw => Vec::new(),
        Format::Qcow2 => vec![
            ("v3", qcow2(3, |_| ())),
            ("v2", qcow2(2, |_| ())),
            ("zeros", qcow2(3, |image| drop(image.be64(2056, 1)))),
            ("compressed", qcow2(3, compressed)),
            ("backing", qcow2(3, backing)),
        ],
        Format::Vhd => vec![("fixed", vhd_fixed()), ("dynamic", vhd_dynamic())],
        Format::Vmdk => vec![
            ("sparse", vmdk(3, &DATA[..512])),
            ("compressed", vmdk(3 | 3 << 16, &vmdk_grain())),
            (
                "flat",
                DESCRIPTOR.replace("KIND", "FLAT \"zeros\" 0").into(),
            ),
            ("zero", DESCRIPTOR.replace("KIND", "ZERO").into()),
        ],
    }
}

/// 64 KiB in clusters of 512 bytes: header, refcount table, refcount block, L1, L2, data.
fn qcow2(version: u32, more: fn(&mut Image)) -> Vec<u8> {
    const COPIED: u64 = 1 << 63;
    let mut image = Image(Vec::new());
    image.put(0, b"QFI\xfb").be32(4, version).be32(20, 9);
    image.be64(24, 64 << 10).be32(36, 2).be64(40, 3 * 512);
    image.be64(48, 512).be32(56, 1);
    if version == 3 {
        image.be32(96, 4).be32(100, 104);
    }
    image.be64(512, 2 * 512);
    for cluster in 0..7 {
        image.put(2 * 512 + 2 * cluster, &[0, 1]);
    }
    image.be64(3 * 512, COPIED | (4 * 512));
    image.be64(4 * 512, COPIED | (5 * 512));
    image.put(5 * 512, &DATA[..1024]);
    more(&mut image);
    image.0
}

/// The second cluster is compressed, in the last one.
fn compressed(image: &mut Image) {
    image.be64(4 * 512 + 8, 1 << 62 | 6 * 512);
    image.put(6 * 512, &compress_to_vec(&DATA[..512], 6));
}

fn backing(image: &mut Image) {
    image.be64(8, 128).be32(16, 6).put(128, b"/zeros");
    // Its format, without which it is not opened.
    image.be32(104, 0xe279_2aca).be32(108, 3).put(112, b"raw");
}

fn footer(image: &mut Image, at: usize, size: u64, kind: u32, header: u64) {
    image.put(at, b"conectix").be32(at + 8, 2);
    image.be32(at + 12, 0x0001_0000).be64(at + 16, header);
    image.be64(at + 40, size).be64(at + 48, size);
    image.be32(at + 60, kind).put(at + 511, &[0]);
    image.seal(at..at + 512, 64);
}

fn vhd_fixed() -> Vec<u8> {
    let mut image = Image(DATA.to_vec());
    footer(&mut image, 4096, 4096, 2, u64::MAX);
    image.0
}

/// Two blocks of 4 KiB, of which one has a place.
fn vhd_dynamic() -> Vec<u8> {
    let mut image = Image(Vec::new());
    footer(&mut image, 0, 8192, 3, 512);
    image.put(512, b"cxsparse").be64(520, u64::MAX);
    image.be64(512 + 16, 1536).be32(512 + 24, 0x0001_0000);
    image.be32(512 + 28, 2).be32(512 + 32, 4096);
    image.put(1535, &[0]).seal(512..1536, 36);
    image.put(1536, &[0xff; 512]).be32(1536, 4);
    image.put(2048, &[0xff; 512]).put(2560, &DATA);
    footer(&mut image, 2560 + 4096, 8192, 3, 512);
    image.0
}

const DESCRIPTOR: &str = "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
    createType=\"monolithicFlat\"\nRW 8 KIND\n";

/// Eight grains of a sector, one of which has a place: header, descriptor, directory, table, grain.
fn vmdk(flags: u32, grain: &[u8]) -> Vec<u8> {
    let text = DESCRIPTOR.replace("KIND", "SPARSE \"image\"");
    let mut image = Image(Vec::new());
    image.put(0, b"KDMV").le32(4, 1).le32(8, flags);
    image.le64(12, 8).le64(20, 1).le64(28, 1).le64(36, 1);
    image.le32(44, 8).le64(56, 2).le64(64, 5);
    image
        .put(73, b"\n \r\n")
        .put(77, &[u8::from(flags >> 16 != 0), 0]);
    image.put(512, text.as_bytes());
    image.le32(2 * 512, 3).le32(3 * 512, 4);
    image.put(4 * 512, grain);
    image.0
}

/// A compressed grain behind its header: which sector it is, and its bytes.
fn vmdk_grain() -> Vec<u8> {
    let bytes = compress_to_vec_zlib(&DATA[..512], 6);
    let len = (bytes.len() as u32).to_le_bytes();
    [&[0; 8], len.as_slice(), &bytes].concat()
}
