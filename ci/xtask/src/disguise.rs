//! A Xen that calls itself a release that nobody knows: a copy of a real one with another number in it. What its
//! calls look like stays as it is, so that a program which asks for the version first can be told from one that tries.

use std::path::Path;

use crate::error::{Result, fail};
use crate::image::Image;
use crate::paths;

/// What it calls itself is 4.`MINOR`.
pub const MINOR: u8 = 99;

/// `mov $number, %eax`
const MOV_EAX: u8 = 0xb8;
/// Functions begin at such places.
const ALIGNMENT: usize = 16;

/// The image with such a Xen, which is put into `dir`.
pub fn disguised(image: &Image, dir: &Path) -> Result<Image> {
    let xen = dir.join("xen-unknown");
    let Some(bytes) = renumber(&paths::read(&image.xen)?) else {
        return fail(format!(
            "{}: where its version stands is not to be found",
            image.xen.display()
        ));
    };
    paths::write_atomically(&xen, &bytes)?;
    Ok(Image {
        vmlinuz: image.vmlinuz.clone(),
        xen,
        initrd: image.initrd.clone(),
        guest_initrd: image.guest_initrd.clone(),
        key: format!("{}-unknown", image.key),
    })
}

/// Another minor number, if it stands in one place only: in `xen_minor_version`, which does nothing but return it,
/// right behind `xen_major_version`, which returns 4.
fn renumber(xen: &[u8]) -> Option<Vec<u8>> {
    let returns = |at: usize, number: Option<u8>| {
        let code = xen.get(at..at + 6)?;
        let constant = code[0] == MOV_EAX && code[2..5] == [0; 3];
        // A return, or a jump to one.
        (constant && matches!(code[5], 0xc3 | 0xe9) && number.is_none_or(|n| n == code[1]))
            .then_some(code[1])
    };
    let mut places = (0..xen.len()).step_by(ALIGNMENT).filter(|&at| {
        let minor = returns(at + ALIGNMENT, None);
        returns(at, Some(4)).is_some() && minor.is_some_and(|minor| (14..MINOR).contains(&minor))
    });
    let (place, None) = (places.next()?, places.next()) else {
        return None;
    };
    let mut out = xen.to_vec();
    out[place + ALIGNMENT + 1] = MINOR;
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two functions as a compiler makes them.
    const PAIR: [u8; 32] = *b"\xb8\x04\0\0\0\xe9\x16\xe6\xfc\xff\x90\x90\x90\x90\x90\x90\
                              \xb8\x11\0\0\0\xe9\x06\xe6\xfc\xff\x90\x90\x90\x90\x90\x90";

    #[test]
    fn one_number_is_changed_or_nothing() {
        let code = |parts: &[&[u8]]| parts.concat();
        let other = [0x90; 32];
        let found = renumber(&code(&[&other, &PAIR, &other])).unwrap();
        assert_eq!(found[49], MINOR);
        let same = found.iter().zip(code(&[&other, &PAIR, &other]));
        assert_eq!(same.filter(|(new, old)| *new != old).count(), 1);
        // Not there, there twice, cut short, a number that is no release.
        assert_eq!(renumber(&other), None);
        assert_eq!(renumber(&code(&[&PAIR, &PAIR])), None);
        assert_eq!(renumber(&PAIR[..20]), None);
        let mut three = PAIR;
        three[17] = 3;
        assert_eq!(renumber(&three), None);
    }
}
