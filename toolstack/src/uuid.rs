//! UUIDs: text, random ones.

use std::io::Read;

use crate::os;

/// Reads a UUID: 32 hexadecimal digits with any number of dashes between pairs.
pub fn parse(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.bytes().filter(|&b| b != b'-').collect();
    if digits.len() != 32 || text.len() > 64 {
        return None;
    }
    let mut uuid = [0; 16];
    for (byte, pair) in uuid.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |d: u8| (d as char).to_digit(16);
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Some(uuid)
}

/// The usual text of a UUID.
pub fn format(uuid: &[u8; 16]) -> String {
    let mut out = String::with_capacity(36);
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            out.push('-');
        }
        for digit in [byte >> 4, byte & 15] {
            out.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
        }
    }
    out
}

/// Random bytes that do not wait for the kernel's pool to fill: names need to differ, not to be secret.
///
/// # Errors
/// /dev/urandom cannot be read.
pub fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    if os::random(&mut bytes).is_ok() {
        return Ok(bytes);
    }
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A random UUID (RFC 9562, version 4).
///
/// # Errors
/// As [`random`].
pub fn make() -> std::io::Result<[u8; 16]> {
    let mut uuid: [u8; 16] = random()?;
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Ok(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_bytes() {
        let text = "0a1b2c3d-1111-2222-3333-444455556666";
        assert_eq!(format(&parse(text).unwrap()), text);
        assert_eq!(parse(&text.replace('-', "")), parse(text));
        for bad in [
            "",
            "0a1b",
            &text[1..],
            "zz1b2c3d-1111-2222-3333-444455556666",
            "é",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_ne!(make().unwrap(), make().unwrap());
    }
}
