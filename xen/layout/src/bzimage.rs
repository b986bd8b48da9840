//! Recognises what a kernel file is: ELF, a Linux bzImage (setup header and compressed payload,
//! Documentation/arch/x86/boot.rst), or a compressed ELF file.

use crate::LayoutError;
use crate::bytes::{slice, u16_at, u32_at};

/// How a payload is compressed, told by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// `1f 8b`
    Gzip,
    /// `BZh`
    Bzip2,
    /// `5d 00 00`, the old LZMA container
    Lzma,
    /// `fd 37 7a 58 5a 00`
    Xz,
    /// `89 4c 5a 4f`
    Lzo,
    /// `02 21 4c 18`, the legacy frame
    Lz4,
    /// `28 b5 2f fd`
    Zstd,
}

impl Compression {
    /// The compression whose magic number `bytes` begin with.
    pub fn detect(bytes: &[u8]) -> Option<Compression> {
        const MAGIC: [(&[u8], Compression); 7] = [
            (&[0x1f, 0x8b], Compression::Gzip),
            (b"BZh", Compression::Bzip2),
            (&[0x5d, 0, 0], Compression::Lzma),
            (&[0xfd, 0x37, 0x7a, 0x58, 0x5a, 0], Compression::Xz),
            (&[0x89, 0x4c, 0x5a, 0x4f], Compression::Lzo),
            (&[0x02, 0x21, 0x4c, 0x18], Compression::Lz4),
            (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
        ];
        MAGIC
            .iter()
            .find(|(magic, _)| bytes.starts_with(magic))
            .map(|&(_, kind)| kind)
    }

    /// The usual name.
    pub const fn name(self) -> &'static str {
        match self {
            Compression::Gzip => "gzip",
            Compression::Bzip2 => "bzip2",
            Compression::Lzma => "lzma",
            Compression::Xz => "xz",
            Compression::Lzo => "lzo",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        }
    }
}

/// What a kernel file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container<'a> {
    /// The ELF file itself.
    Elf(&'a [u8]),
    /// A compressed ELF file.
    Compressed {
        /// How.
        compression: Compression,
        /// The compressed bytes.
        payload: &'a [u8],
        /// The unpacked size that a bzImage notes behind its payload, a hint only.
        unpacked_len: Option<u32>,
    },
}

/// Says what a kernel file holds.
///
/// # Errors
/// [`LayoutError::NotAKernel`], [`LayoutError::BadBzImage`].
pub fn identify(file: &[u8]) -> Result<Container<'_>, LayoutError> {
    if file.starts_with(b"\x7fELF") {
        return Ok(Container::Elf(file));
    }
    if slice(file, 0x202, 4) == Some(b"HdrS") {
        return bzimage(file);
    }
    let compression = Compression::detect(file).ok_or(LayoutError::NotAKernel)?;
    Ok(Container::Compressed {
        compression,
        payload: file,
        unpacked_len: None,
    })
}

fn bzimage(file: &[u8]) -> Result<Container<'_>, LayoutError> {
    const TRUNCATED: LayoutError = LayoutError::BadBzImage("the file ends within its setup header");
    let version = u16_at(file, 0x206).ok_or(TRUNCATED)?;
    if version < 0x208 {
        return Err(LayoutError::BadBzImage(
            "its boot protocol is older than 2.08 and names no payload",
        ));
    }
    // 0 stands for 4 (boot.rst, setup_sects).
    let sectors = match file.get(0x1f1).copied().ok_or(TRUNCATED)? {
        0 => 4,
        n => u64::from(n),
    };
    let offset = u64::from(u32_at(file, 0x248).ok_or(TRUNCATED)?);
    let length = u64::from(u32_at(file, 0x24c).ok_or(TRUNCATED)?);
    let payload = slice(file, (sectors + 1) * 512 + offset, length)
        .ok_or(LayoutError::BadBzImage("its payload lies outside the file"))?;
    if payload.starts_with(b"\x7fELF") {
        return Ok(Container::Elf(payload));
    }
    let compression = Compression::detect(payload).ok_or(LayoutError::BadBzImage(
        "its payload is compressed in an unknown way",
    ))?;
    // Linux's build appends the unpacked size as a u32; gzip's own trailer ends with it too.
    let (payload, unpacked_len) = match (compression, payload.split_last_chunk::<4>()) {
        (Compression::Gzip, Some((_, size))) => (payload, Some(u32::from_le_bytes(*size))),
        (_, Some((packed, size))) => (packed, Some(u32::from_le_bytes(*size))),
        (_, None) => (payload, None),
    };
    Ok(Container::Compressed {
        compression,
        payload,
        unpacked_len,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::bzimage as make;
    use alloc::vec;

    #[test]
    fn files_are_recognised() {
        let elf = b"\x7fELF rest";
        assert_eq!(identify(elf), Ok(Container::Elf(elf)));
        assert_eq!(identify(b"hello"), Err(LayoutError::NotAKernel));
        assert_eq!(identify(b""), Err(LayoutError::NotAKernel));
        let image = make(b"\x28\xb5\x2f\xfdDATA\x00\x00\x10\x00");
        assert_eq!(
            identify(&image),
            Ok(Container::Compressed {
                compression: Compression::Zstd,
                payload: b"\x28\xb5\x2f\xfdDATA",
                unpacked_len: Some(0x10_0000),
            })
        );
        let image = make(b"\x7fELFinside");
        assert_eq!(identify(&image), Ok(Container::Elf(b"\x7fELFinside")));
    }

    #[test]
    fn broken_headers_are_errors() {
        let mut image = make(b"\x1f\x8bDATA");
        image.truncate(0x240);
        assert!(matches!(identify(&image), Err(LayoutError::BadBzImage(_))));
        let mut image = make(b"\x1f\x8bDATA");
        image[0x24c..0x250].fill(0xff);
        assert!(matches!(identify(&image), Err(LayoutError::BadBzImage(_))));
        let mut image = make(b"\x1f\x8bDATA");
        image[0x206] = 0;
        assert!(matches!(identify(&image), Err(LayoutError::BadBzImage(_))));
        let image = make(b"unknown");
        assert!(matches!(identify(&image), Err(LayoutError::BadBzImage(_))));
        let mut tiny = vec![0u8; 0x206];
        tiny[0x202..].copy_from_slice(b"HdrS");
        assert!(matches!(identify(&tiny), Err(LayoutError::BadBzImage(_))));
    }
}
