//! lzop files with LZO1X data: the formats of Linux's Documentation/staging/lzo.rst and lib/decompress_unlzo.c's
//! input, as far as kernels are packed with them. Input is hostile: every length and distance is checked.

use std::io;

/// The file's first bytes.
const MAGIC: &[u8] = &[0x89, b'L', b'Z', b'O', 0, 0x0d, 0x0a, 0x1a, 0x0a];
/// From this version of lzop on, the header has more fields.
const NEWER: u16 = 0x0940;
/// Which sums follow a block's lengths: of what it unpacks to, of what is packed.
const ADLER_UNPACKED: u32 = 1 << 0;
const ADLER_PACKED: u32 = 1 << 1;
const CRC_UNPACKED: u32 = 1 << 8;
const CRC_PACKED: u32 = 1 << 9;
/// The header names a filter.
const FILTER: u32 = 1 << 11;
/// LZO1X-1, LZO1X-1(15), LZO1X-999; all are unpacked in the same way.
const METHODS: std::ops::RangeInclusive<u8> = 1..=3;
/// Longest block that is believed.
const MAX_BLOCK: usize = 64 << 20;

fn invalid(why: &'static str) -> io::Error {
    io::Error::other(why)
}

/// What has not been read yet.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> io::Result<&'a [u8]> {
        let (head, rest) = self
            .0
            .split_at_checked(len)
            .ok_or_else(|| invalid("it ends too early"))?;
        self.0 = rest;
        Ok(head)
    }

    fn byte(&mut self) -> io::Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn u16_be(&mut self) -> io::Result<u16> {
        Ok(u16::from_be_bytes(
            self.take(2)?.try_into().unwrap_or_default(),
        ))
    }

    fn u16_le(&mut self) -> io::Result<usize> {
        Ok(u16::from_le_bytes(self.take(2)?.try_into().unwrap_or_default()).into())
    }

    fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_be_bytes(
            self.take(4)?.try_into().unwrap_or_default(),
        ))
    }
}

/// Unpacks a whole file; `out` grows to at most `limit` bytes.
///
/// # Errors
/// The file is no such file, or broken, or unpacks to more.
pub fn unpack(file: &[u8], out: &mut Vec<u8>, limit: usize) -> io::Result<()> {
    let mut input = Input(file);
    let flags = header(&mut input)?;
    loop {
        let unpacked = input.u32()? as usize;
        if unpacked == 0 {
            return Ok(());
        }
        let packed = input.u32()? as usize;
        if unpacked > MAX_BLOCK || packed > unpacked {
            return Err(invalid("a block has impossible lengths"));
        }
        if out.len() + unpacked > limit {
            return Err(invalid("it unpacks to more than 512 MiB"));
        }
        for sum in [ADLER_UNPACKED, CRC_UNPACKED] {
            if flags & sum != 0 {
                input.u32()?;
            }
        }
        for sum in [ADLER_PACKED, CRC_PACKED] {
            if flags & sum != 0 && packed < unpacked {
                input.u32()?;
            }
        }
        let data = input.take(packed)?;
        if packed == unpacked {
            out.extend_from_slice(data);
        } else {
            block(data, out, unpacked)?;
        }
    }
}

/// Reads the header; returns its flags.
fn header(input: &mut Input<'_>) -> io::Result<u32> {
    if input.take(MAGIC.len())? != MAGIC {
        return Err(invalid("it is no lzop file"));
    }
    let version = input.u16_be()?;
    input.u16_be()?;
    if version >= NEWER {
        input.u16_be()?;
    }
    if !METHODS.contains(&input.byte()?) {
        return Err(invalid("it uses another method than LZO1X"));
    }
    if version >= NEWER {
        input.byte()?;
    }
    let flags = input.u32()?;
    if flags & FILTER != 0 {
        return Err(invalid("it uses a filter"));
    }
    // Mode and time of the file that was packed.
    input.take(if version >= NEWER { 12 } else { 8 })?;
    let name = input.byte()?;
    input.take(name.into())?;
    // The header's own sum.
    input.u32()?;
    Ok(flags)
}

/// Unpacks one block to exactly `len` bytes behind what is in `out`.
fn block(data: &[u8], out: &mut Vec<u8>, len: usize) -> io::Result<()> {
    let mut input = Input(data);
    let start = out.len();
    let end = start + len;
    let literals = |input: &mut Input<'_>, out: &mut Vec<u8>, count: usize| {
        if out.len() + count > end {
            return Err(invalid("a block is longer than it says"));
        }
        out.extend_from_slice(input.take(count)?);
        Ok(())
    };
    // How many literals the last instruction has copied: 0 to 3, or 4 for a long run.
    let mut state = 0;
    if let Some(&first) = data.first()
        && first > 17
    {
        input.byte()?;
        let count = usize::from(first) - 17;
        literals(&mut input, out, count)?;
        state = count.min(4);
    }
    loop {
        let code = usize::from(input.byte()?);
        let (length, distance, after) = match code {
            0..16 if state == 0 => {
                let count = 3 + run(&mut input, code, 15)?;
                literals(&mut input, out, count)?;
                state = 4;
                continue;
            }
            0..16 => {
                let far = (usize::from(input.byte()?) << 2) + (code >> 2);
                match state {
                    4 => (3, far + 2049, code & 3),
                    _ => (2, far + 1, code & 3),
                }
            }
            16..32 => {
                let length = 2 + run(&mut input, code & 7, 7)?;
                let word = input.u16_le()?;
                let distance = 16384 + ((code & 8) << 11) + (word >> 2);
                if distance == 16384 {
                    return match out.len() == end && input.0.is_empty() {
                        true => Ok(()),
                        false => Err(invalid("a block ends before its end")),
                    };
                }
                (length, distance, word & 3)
            }
            32..64 => {
                let length = 2 + run(&mut input, code & 31, 31)?;
                let word = input.u16_le()?;
                (length, (word >> 2) + 1, word & 3)
            }
            64..128 => {
                let far = usize::from(input.byte()?) << 3;
                (3 + (code >> 5 & 1), far + (code >> 2 & 7) + 1, code & 3)
            }
            _ => {
                let far = usize::from(input.byte()?) << 3;
                (5 + (code >> 5 & 3), far + (code >> 2 & 7) + 1, code & 3)
            }
        };
        if distance > out.len() - start {
            return Err(invalid("a block refers to what is before it"));
        }
        if out.len() + length > end {
            return Err(invalid("a block is longer than it says"));
        }
        // What is copied may overlap what it makes.
        for _ in 0..length {
            out.push(out[out.len() - distance]);
        }
        literals(&mut input, out, after)?;
        state = after;
    }
}

/// A length: as it stands, or if that is 0, `full` and 255 for each zero byte that follows and the first other.
fn run(input: &mut Input<'_>, code: usize, full: usize) -> io::Result<usize> {
    if code > 0 {
        return Ok(code);
    }
    let mut length = full;
    loop {
        match input.byte()? {
            0 => length += 255,
            last => return Ok(length + usize::from(last)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_instruction_does_its_own() {
        let check = |packed: &[u8], len: usize, text: &[u8]| {
            let mut out = b"before".to_vec();
            block(packed, &mut out, len).unwrap();
            assert_eq!(&out[6..], text);
        };
        let end = [0x11, 0, 0];
        // Four literals at the start, then a match of 4 from 4 back by 01LDDDSS with one literal.
        let packed = [
            &[21][..],
            b"abcd",
            &[0x40 | 0x20 | 3 << 2 | 1, 0],
            b"!",
            &end,
        ]
        .concat();
        check(&packed, 9, b"abcdabcd!");
        // A run of 18 + 2 literals, then 2 from 1 back after a long run is 3 from 2049: not here; 001LLLLL instead.
        let packed = [
            &[0, 2][..],
            b"abcdefghijklmnopqrst",
            &[0x20 | 5, 19 << 2, 0],
            &end,
        ]
        .concat();
        check(&packed, 27, b"abcdefghijklmnopqrstabcdefg");
        // Overlap: one byte, forty times.
        let packed = [&[18][..], b"x", &[0x20, 6, 0, 0], &end].concat();
        check(&packed, 40, &[b'x'; 40]);
        // Two back after a single literal: 0000DDSS in state 1.
        let packed = [&[20][..], b"abc", &[2 << 2, 0], &end].concat();
        check(&packed, 5, b"abcab");
        // 1LLDDDSS: 8 from 8 back.
        let packed = [&[25][..], b"12345678", &[0x80 | 3 << 5 | 7 << 2, 0], &end].concat();
        check(&packed, 16, b"1234567812345678");
    }

    #[test]
    fn far_matches_reach_far() {
        let mut text: Vec<u8> = (0..20_000u32).map(|i| (i * 7 % 251) as u8).collect();
        let first = &text[..];
        let mut run = vec![0];
        let (zeros, rest) = (
            (first.len() - 18 - 1) / 255,
            (first.len() - 18 - 1) % 255 + 1,
        );
        run.extend(vec![0; zeros]);
        run.push(rest as u8);
        // 0001HLLL: 6 from 16384 + 1000 back; then 3 from 2049 + 5 would need a run before it.
        let packed = [
            &run,
            first,
            &[
                0x10 | 4,
                (1000 << 2 & 0xff) as u8,
                (1000 << 2 >> 8) as u8,
                0x11,
                0,
                0,
            ],
        ]
        .concat();
        let from = text.len() - 17_384;
        text.extend_from_within(from..from + 6);
        let mut out = Vec::new();
        block(&packed, &mut out, text.len()).unwrap();
        assert!(out == text);
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), len in 0usize..5000) {
            let mut out = Vec::new();
            let _ = block(&bytes, &mut out, len);
            prop_assert!(out.len() <= len);
            let file = [MAGIC, &bytes].concat();
            let _ = unpack(&file, &mut Vec::new(), 1 << 20);
        }
    }
}
