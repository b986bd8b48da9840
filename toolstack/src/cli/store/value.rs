//! Values as text and back, the way the stock xenstore-* tools write them.

/// Text for a value: printable ASCII as it is, the rest as `\t`, `\n`, `\r`, `\\`, `\001` up to 7, and
/// `\x08` from there.
pub fn escaped(value: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(value.len());
    for &byte in value {
        // Writing to memory cannot fail.
        let _ = match byte {
            b'\\' => write!(text, "\\\\"),
            b' '..=b'~' => write!(text, "{}", byte as char),
            b'\t' => write!(text, "\\t"),
            b'\n' => write!(text, "\\n"),
            b'\r' => write!(text, "\\r"),
            0..=7 => write!(text, "\\{byte:03o}"),
            _ => write!(text, "\\x{byte:02x}"),
        };
    }
    text
}

/// The value that a text stands for: also up to three octal digits, up to two hexadecimal ones, and any
/// other character behind a backslash for itself. A backslash at the end stays.
pub fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte != b'\\' {
            value.push(byte);
            continue;
        }
        let Some((&escape, behind)) = rest.split_first() else {
            value.push(b'\\');
            break;
        };
        let (meant, taken) = match escape {
            b't' => (b'\t', 1),
            b'n' => (b'\n', 1),
            b'r' => (b'\r', 1),
            b'0'..=b'7' => number(rest, 8, 3),
            b'x' => match number(behind, 16, 2) {
                (_, 0) => (b'x', 1),
                (meant, digits) => (meant, 1 + digits),
            },
            other => (other, 1),
        };
        value.push(meant);
        rest = &rest[taken..];
    }
    value
}

/// The number at the beginning, of at most so many digits, and how many it has.
fn number(text: &[u8], radix: u32, most: usize) -> (u8, usize) {
    let digits = text.iter().take(most);
    let digits = digits.map_while(|byte| (*byte as char).to_digit(radix));
    let (number, count) = digits.fold((0, 0), |(number, count), digit| {
        (number * radix + digit, count + 1)
    });
    (number as u8, count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn as_the_stock_tools_do() {
        for (value, text) in [
            (&b"plain \"q\" ~"[..], "plain \"q\" ~"),
            (b"\0\x07\x08\x1f\x7f\xff", r"\000\007\x08\x1f\x7f\xff"),
            (b"\t\n\r\\", r"\t\n\r\\"),
        ] {
            assert_eq!(escaped(value), text);
            assert_eq!(unescaped(text.as_bytes()), value);
        }
        for (text, value) in [
            (r"a\qb", &b"aqb"[..]),
            (r"\x41\x4", b"A\x04"),
            (r"\101\18\400", b"A\x018\0"),
            (r#"\"q"#, b"\"q"),
            (r"\0", b"\0"),
            (r"\xg", b"xg"),
            (r"\x414", b"A4"),
            (r"\1012", b"A2"),
            (r"\7z", b"\x07z"),
            (r"end\", b"end\\"),
        ] {
            assert_eq!(unescaped(text.as_bytes()), value, "{text}");
        }
    }

    proptest! {
        #[test]
        fn there_and_back(value in proptest::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(unescaped(escaped(&value).as_bytes()), value);
        }
    }
}
