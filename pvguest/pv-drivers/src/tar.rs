//! Reads the headers of a tar archive (POSIX ustar, as `tar cf` writes it): where which file lies.

use alloc::string::String;
use alloc::vec::Vec;

/// Headers and contents are in units of this many bytes.
pub const BLOCK: usize = 512;
/// Files in an index at most; more are left out.
pub const MAX_FILES: usize = 4096;

/// A file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its path, without `./` or `/` before it.
    pub name: String,
    /// The first block of its content.
    pub first_block: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// What a header block is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Header {
    /// The end of the archive, or nothing that is an archive.
    End,
    /// A file, or something else that is passed over; and its length in bytes.
    Entry(Option<String>, u64),
}

/// The files of the archive that begins at block 0 and has at most `blocks` blocks, and the first block
/// after it. `read` gets one block. A file that would reach beyond the end is left out, and what follows it.
pub fn index<E>(
    blocks: u64,
    mut read: impl FnMut(u64, &mut [u8; BLOCK]) -> Result<(), E>,
) -> Result<(Vec<File>, u64), E> {
    let (mut files, mut at) = (Vec::new(), 0);
    while at < blocks && files.len() < MAX_FILES {
        let mut block = [0; BLOCK];
        read(at, &mut block)?;
        let Header::Entry(name, len) = parse(&block) else {
            break;
        };
        let first_block = at + 1;
        match first_block.checked_add(len.div_ceil(BLOCK as u64)) {
            Some(next) if next <= blocks => at = next,
            _ => break,
        }
        if let Some(name) = name {
            files.push(File {
                name,
                first_block,
                len,
            });
        }
    }
    Ok((files, at))
}

fn parse(block: &[u8; BLOCK]) -> Header {
    // The checksum is taken with its own field as spaces.
    let sum: u64 = block
        .iter()
        .enumerate()
        .map(|(at, &byte)| match at {
            148..156 => u64::from(b' '),
            _ => u64::from(byte),
        })
        .sum();
    let (Some(stated), Some(len)) = (octal(&block[148..156]), octal(&block[124..136])) else {
        return Header::End;
    };
    if stated != sum {
        return Header::End;
    }
    let regular = matches!(block[156], b'0' | 0);
    let mut name = String::new();
    if &block[257..262] == b"ustar" && block[345] != 0 {
        name.push_str(&text(&block[345..500]));
        name.push('/');
    }
    name.push_str(&text(&block[..100]));
    let name = name.trim_start_matches("./").trim_start_matches('/');
    Header::Entry(regular.then(|| String::from(name)), len)
}

/// The bytes up to the first NUL.
fn text(field: &[u8]) -> String {
    let len = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..len]).into_owned()
}

/// An octal number among spaces and NULs; none if there is no digit, or something else.
fn octal(field: &[u8]) -> Option<u64> {
    let digits = field.trim_ascii_start();
    let len = digits
        .iter()
        .position(|b| matches!(b, 0 | b' '))
        .unwrap_or(digits.len());
    if len == 0 {
        return None;
    }
    digits[..len].iter().try_fold(0u64, |value, &digit| {
        if !(b'0'..=b'7').contains(&digit) {
            return None;
        }
        value.checked_mul(8)?.checked_add(u64::from(digit - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::vec;
    use proptest::prelude::*;

    fn header(name: &str, kind: u8, size: &str) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        for (at, text) in [(0, name), (124, size), (257, "ustar\x0000")] {
            block[at..at + text.len()].copy_from_slice(text.as_bytes());
        }
        block[156] = kind;
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|&b| u64::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    fn files(disk: &[[u8; BLOCK]]) -> (Vec<(String, u64, u64)>, u64) {
        let (files, end) = index(disk.len() as u64, |at, to| {
            *to = disk[at as usize];
            Ok::<(), ()>(())
        })
        .unwrap();
        let files = files
            .into_iter()
            .map(|file| (file.name, file.first_block, file.len))
            .collect();
        (files, end)
    }

    #[test]
    fn archives() {
        let content = [b'x'; BLOCK];
        let end = [0; BLOCK];
        let disk = [
            header("./a", b'0', "00000001000"),
            content,
            header("dir/", b'5', "00000000000"),
            header("dir/b", 0, "00000000001 "),
            content,
            header("empty", b'0', "0"),
            end,
            end,
        ];
        let all = vec![
            ("a".into(), 1, 512),
            ("dir/b".into(), 4, 1),
            ("empty".into(), 6, 0),
        ];
        assert_eq!(files(&disk), (all.clone(), 6));
        // Cut off: only what is there whole.
        assert_eq!(files(&disk[..4]), (all[..1].to_vec(), 3));
        assert_eq!(files(&disk[..1]), (vec![], 0));
        assert_eq!(files(&[end]), (vec![], 0));
        assert_eq!(files(&[]), (vec![], 0));
        // Lengths that reach beyond the end, or beyond all numbers.
        for size in ["77777777777", "7777777777777"[..12].into(), "00000002001"] {
            assert_eq!(files(&[header("a", b'0', size), content, end]), (vec![], 0));
        }
        // A wrong checksum.
        let mut wrong = header("a", b'0', "00000000001");
        wrong[0] = b'b';
        assert_eq!(files(&[wrong, content]), (vec![], 0));
    }

    #[test]
    fn long_names_have_a_prefix() {
        let mut block = header("name", b'0', "0");
        block[345..348].copy_from_slice(b"pre");
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|&b| u64::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        assert_eq!(files(&[block]).0[0].0, "pre/name");
    }

    proptest! {
        #[test]
        fn any_disk_gives_files_within_it(
            bytes in proptest::collection::vec(any::<u8>(), 4 * BLOCK),
            size in "[0-7 \0]{12}",
        ) {
            let mut disk: Vec<[u8; BLOCK]> = bytes.chunks_exact(BLOCK).map(|b| b.try_into().unwrap()).collect();
            disk[0] = header("x", b'0', &size);
            let (files, end) = files(&disk);
            prop_assert!(end <= 4);
            for (_, first, len) in files {
                prop_assert!(first + len.div_ceil(512) <= 4);
            }
        }
    }
}
