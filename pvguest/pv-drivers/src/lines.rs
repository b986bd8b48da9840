//! Cuts a stream of bytes into lines of bounded length.

use alloc::string::String;
use alloc::vec::Vec;

/// Most bytes of a line; what is longer is cut.
pub const MAX_LINE: usize = 1024;

/// Collects one line at a time.
#[derive(Debug, Default)]
pub struct Lines {
    line: Vec<u8>,
}

impl Lines {
    /// Takes bytes from the front of `input` until a line is complete (ended by CR or LF; empty lines are
    /// passed over) or `input` is empty. Bytes that are no text become U+FFFD.
    pub fn feed(&mut self, input: &mut &[u8]) -> Option<String> {
        while let Some((&byte, rest)) = input.split_first() {
            *input = rest;
            match byte {
                b'\r' | b'\n' if self.line.is_empty() => {}
                b'\r' | b'\n' => {
                    let line = String::from_utf8_lossy(&self.line).into_owned();
                    self.line.clear();
                    return Some(line);
                }
                _ if self.line.len() < MAX_LINE => self.line.push(byte),
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_gives_the_same_lines() {
        let text = b"one\r\n\n two \nthr\xffee\rrest";
        for cut in 1..text.len() {
            let (mut lines, mut got) = (Lines::default(), Vec::new());
            for mut piece in text.chunks(cut) {
                while let Some(line) = lines.feed(&mut piece) {
                    got.push(line);
                }
            }
            assert_eq!(got, ["one", " two ", "thr\u{fffd}ee"]);
        }
    }

    #[test]
    fn long_lines_are_cut() {
        let mut lines = Lines::default();
        for _ in 0..10 {
            assert_eq!(lines.feed(&mut &[b'x'; 1000][..]), None);
        }
        assert_eq!(lines.feed(&mut &b"\n"[..]).unwrap().len(), MAX_LINE);
    }
}
