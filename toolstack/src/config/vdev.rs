//! Names of virtual disks (`xvda`, `hdc2`, `d0p1`, plain numbers) and the numbers that stand for them in
//! the store (docs/man/xen-vbd-interface.7).

use std::fmt;

/// Why a name is none of a virtual disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VdevError;

impl fmt::Display for VdevError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not the name of a virtual disk")
    }
}

impl std::error::Error for VdevError {}

/// The number of a virtual disk: `xvd` below disk 16 and partition 16 is `202<<8|disk<<4|part`, above it
/// `1<<28|disk<<8|part`; `hd` is `3|22<<8|…<<6|part`, `sd` is `8<<8|disk<<4|part`.
///
/// # Errors
/// [`VdevError`] for everything else.
pub fn vdev_number(name: &str) -> Result<u32, VdevError> {
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        let number = super::lex::number(name).ok_or(VdevError)?;
        return u32::try_from(number).map_err(|_| VdevError);
    }
    if let Some(rest) = name.strip_prefix('d')
        && rest.starts_with(|c: char| c.is_ascii_digit())
    {
        let (disk, part) = rest.split_once('p').ok_or(VdevError)?;
        return xvd(digits(disk)?, digits(part)?);
    }
    let (kind, rest) = ["xvd", "hd", "sd"]
        .iter()
        .find_map(|kind| name.strip_prefix(kind).map(|rest| (*kind, rest)))
        .ok_or(VdevError)?;
    let letters = rest.bytes().take_while(u8::is_ascii_lowercase).count();
    let (letters, part) = rest.split_at(letters);
    let disk = disk_letters(letters)?;
    let part = match part {
        "" => 0,
        "0" => return Err(VdevError),
        _ => digits(part)?,
    };
    match kind {
        "xvd" => xvd(disk, part),
        "hd" if disk < 4 && part < 64 => {
            let major = if disk < 2 { 3 } else { 22 };
            Ok(major << 8 | (disk & 1) << 6 | part)
        }
        "sd" if disk < 16 && part < 16 => Ok(8 << 8 | disk << 4 | part),
        _ => Err(VdevError),
    }
}

fn xvd(disk: u32, part: u32) -> Result<u32, VdevError> {
    if disk < 16 && part < 16 {
        Ok(202 << 8 | disk << 4 | part)
    } else if disk < 1 << 20 && part < 256 {
        Ok(1 << 28 | disk << 8 | part)
    } else {
        Err(VdevError)
    }
}

/// a is 0, z is 25, aa is 26.
fn disk_letters(letters: &str) -> Result<u32, VdevError> {
    if letters.is_empty() || letters.len() > 5 {
        return Err(VdevError);
    }
    let number = letters
        .bytes()
        .fold(0, |sum, letter| sum * 26 + u32::from(letter - b'a') + 1);
    Ok(number - 1)
}

/// Decimal digits, at most 7 of them, without a leading zero.
fn digits(text: &str) -> Result<u32, VdevError> {
    let plain = !text.is_empty() && text.len() <= 7 && text.bytes().all(|b| b.is_ascii_digit());
    if !plain || (text.len() > 1 && text.starts_with('0')) {
        return Err(VdevError);
    }
    text.parse().map_err(|_| VdevError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_numbers() {
        for (name, number) in [
            ("xvda", Some(51712)),
            ("xvda1", Some(51713)),
            ("xvdb", Some(51728)),
            ("xvdp15", Some(202 << 8 | 15 << 4 | 15)),
            ("xvdq", Some(1 << 28 | 16 << 8)),
            ("xvda16", Some(1 << 28 | 16)),
            ("xvdaa", Some(1 << 28 | 26 << 8)),
            ("hda", Some(768)),
            ("hdd3", Some(22 << 8 | 64 | 3)),
            ("hde", None),
            ("sda1", Some(2049)),
            ("sdq", None),
            ("d0p1", Some(51713)),
            ("d16p0", Some(1 << 28 | 16 << 8)),
            ("d16", None),
            ("xvda0", None),
            ("51712", Some(51712)),
            ("0xca00", Some(51712)),
            ("xvd", None),
            ("xvdA", None),
            ("xvda01", None),
            ("nvme0", None),
            ("", None),
        ] {
            assert_eq!(vdev_number(name).ok(), number, "{name}");
        }
    }
}
