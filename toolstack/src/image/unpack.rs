//! Unpacks compressed kernels, whatever their size claims.

use std::fmt;
use std::io::{self, Read};

use super::lzo;
use pv_layout::{Compression, MAX_IMAGE_BYTES};

/// Most memory a decompressor may take for its window.
const MAX_WINDOW: u64 = 256 << 20;

/// Why a kernel could not be unpacked.
#[derive(Debug)]
pub struct UnpackError {
    compression: Compression,
    why: String,
}

impl fmt::Display for UnpackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its {} data: {}", self.compression.name(), self.why)
    }
}

impl std::error::Error for UnpackError {}

/// Unpacks `payload`. `expected_len` is a hint, not believed beyond the first allocation.
///
/// # Errors
/// Broken data, more than [`MAX_IMAGE_BYTES`] of it, or a compression without a decompressor here.
pub fn unpack(
    compression: Compression,
    payload: &[u8],
    expected_len: Option<u32>,
) -> Result<Vec<u8>, UnpackError> {
    let failed = |why: &dyn fmt::Display| UnpackError {
        compression,
        why: why.to_string(),
    };
    let capacity = u64::from(expected_len.unwrap_or(0)).min(MAX_IMAGE_BYTES);
    let mut out = Vec::with_capacity(capacity as usize);
    let result = match compression {
        Compression::Gzip => drain(flate2::read::GzDecoder::new(payload), &mut out),
        Compression::Bzip2 => drain(bzip2_rs::DecoderReader::new(payload), &mut out),
        Compression::Xz => {
            let limit_kib = (MAX_WINDOW >> 10) as u32;
            drain(
                lzma_rust2::XzReader::new_mem_limit(payload, false, limit_kib),
                &mut out,
            )
        }
        Compression::Lzma => {
            let limit_kib = (MAX_WINDOW >> 10) as u32;
            lzma_rust2::LzmaReader::new_mem_limit(payload, limit_kib, None)
                .and_then(|reader| drain(reader, &mut out))
        }
        Compression::Zstd => {
            ruzstd::decoding::StreamingDecoder::new_with_max_window_size(payload, MAX_WINDOW)
                .map_err(io::Error::other)
                .and_then(|reader| drain(reader, &mut out))
        }
        Compression::Lz4 => lz4_legacy(payload, &mut out),
        Compression::Lzo => lzo::unpack(payload, &mut out, MAX_IMAGE_BYTES as usize),
    };
    result.map_err(|error| failed(&error))?;
    Ok(out)
}

fn drain(reader: impl Read, out: &mut Vec<u8>) -> io::Result<()> {
    reader.take(MAX_IMAGE_BYTES + 1).read_to_end(out)?;
    if out.len() as u64 > MAX_IMAGE_BYTES {
        return Err(io::Error::other("it unpacks to more than 512 MiB"));
    }
    Ok(())
}

/// LZ4's legacy frame: a magic number, then blocks of at most 8 MiB unpacked, each with its packed
/// length in front (lz4_Frame_format.md).
fn lz4_legacy(payload: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    const MAGIC: u32 = 0x184c_2102;
    const BLOCK: usize = 8 << 20;
    let mut rest = payload;
    while let Some((word, tail)) = rest.split_first_chunk::<4>() {
        let len = u32::from_le_bytes(*word);
        rest = tail;
        if len == MAGIC {
            continue;
        }
        let Some((block, tail)) = rest.split_at_checked(len as usize) else {
            return Err(io::Error::other("a block ends behind the data"));
        };
        rest = tail;
        let start = out.len();
        if (start + BLOCK) as u64 > MAX_IMAGE_BYTES {
            return Err(io::Error::other("it unpacks to more than 512 MiB"));
        }
        out.resize(start + BLOCK, 0);
        let len =
            lz4_flex::block::decompress_into(block, &mut out[start..]).map_err(io::Error::other)?;
        if len == 0 {
            // A file could hold millions of them.
            return Err(io::Error::other("a block holds nothing"));
        }
        out.truncate(start + len);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `hello hello hello hello\n` in each format, made with the usual tools.
    const TEXT: &[u8] = b"hello hello hello hello\n";

    #[test]
    fn each_format_is_unpacked() {
        for (compression, packed) in [
            (
                Compression::Gzip,
                include_bytes!("testdata/hello.gz").as_slice(),
            ),
            (Compression::Bzip2, include_bytes!("testdata/hello.bz2")),
            (Compression::Xz, include_bytes!("testdata/hello.xz")),
            (Compression::Lzma, include_bytes!("testdata/hello.lzma")),
            (Compression::Zstd, include_bytes!("testdata/hello.zst")),
            (Compression::Lz4, include_bytes!("testdata/hello.lz4")),
            (Compression::Lzo, include_bytes!("testdata/hello.lzo")),
        ] {
            assert_eq!(Compression::detect(packed), Some(compression));
            let out = unpack(compression, packed, Some(u32::MAX)).unwrap();
            assert_eq!(out, TEXT, "{}", compression.name());
            for len in 0..packed.len() - 1 {
                let _ = unpack(compression, &packed[..len], None);
            }
        }
        assert!(unpack(Compression::Lzo, b"", None).is_err());
        // `seq 1 3000`, packed in the quickest and in the closest way.
        let numbers: String = (1..=3000).map(|n| format!("{n}\n")).collect();
        for packed in [
            include_bytes!("testdata/numbers-1.lzo").as_slice(),
            include_bytes!("testdata/numbers-9.lzo"),
        ] {
            let out = unpack(Compression::Lzo, packed, None).unwrap();
            assert!(out == numbers.as_bytes());
        }
    }

    #[test]
    fn blocks_of_nothing_are_refused() {
        // A block of one token: no literal, no match.
        let packed = [0x02, 0x21, 0x4c, 0x18, 1, 0, 0, 0, 0];
        let error = unpack(Compression::Lz4, &packed, None).unwrap_err();
        assert!(error.to_string().contains("holds nothing"), "{error}");
    }

    proptest! {
        #[test]
        fn damaged_data_never_panics(at in 0usize..64, byte in any::<u8>()) {
            for (compression, packed) in [
                (Compression::Gzip, include_bytes!("testdata/hello.gz").as_slice()),
                (Compression::Bzip2, include_bytes!("testdata/hello.bz2")),
                (Compression::Xz, include_bytes!("testdata/hello.xz")),
                (Compression::Lzma, include_bytes!("testdata/hello.lzma")),
                (Compression::Zstd, include_bytes!("testdata/hello.zst")),
                (Compression::Lz4, include_bytes!("testdata/hello.lz4")),
                (Compression::Lzo, include_bytes!("testdata/hello.lzo")),
            ] {
                let mut packed = packed.to_vec();
                let len = packed.len();
                packed[at % len] = byte;
                let _ = unpack(compression, &packed, None);
            }
        }
    }
}
