//! The guest's command line: words, and `key=value` words. Parsed once, at boot.

use core::str::FromStr;

/// A command line. Words are separated by white space; a value may be quoted: `key="two words"`.
#[derive(Clone, Copy, Debug)]
pub struct CommandLine<'a>(&'a str);

impl<'a> CommandLine<'a> {
    /// Wraps a line.
    pub const fn new(line: &'a str) -> Self {
        CommandLine(line)
    }

    /// The line as it is.
    pub const fn as_str(&self) -> &'a str {
        self.0
    }

    /// The words; quotes are kept.
    pub fn words(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        Words(self.0)
    }

    /// Whether the word stands in the line.
    pub fn has(&self, word: &str) -> bool {
        self.words().any(|candidate| candidate == word)
    }

    /// The value of the last `key=value`, without its quotes.
    pub fn value(&self, key: &str) -> Option<&'a str> {
        self.words()
            .filter_map(|word| word.split_once('='))
            .filter(|(name, _)| *name == key)
            .map(|(_, value)| unquote(value))
            .last()
    }

    /// The value of a key, parsed; none if it is absent or does not parse.
    pub fn parsed<T: FromStr>(&self, key: &str) -> Option<T> {
        self.value(key)?.parse().ok()
    }
}

fn unquote(value: &str) -> &str {
    value
        .strip_prefix('"')
        .map_or(value, |rest| rest.strip_suffix('"').unwrap_or(rest))
}

struct Words<'a>(&'a str);

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let line = self.0.trim_ascii_start();
        if line.is_empty() {
            return None;
        }
        let mut quoted = false;
        let end = line
            .find(|c: char| {
                quoted ^= c == '"';
                c.is_ascii_whitespace() && !quoted
            })
            .unwrap_or(line.len());
        let (word, rest) = line.split_at(end);
        self.0 = rest;
        Some(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn words_and_values() {
        let line = CommandLine::new(
            "  exit ip=10.0.0.2/24\tgw=\"10.0.0.1\" motd=\"two words\" ip=1 n=0x ",
        );
        assert_eq!(line.words().count(), 6);
        assert!(line.has("exit") && !line.has("exi") && !line.has("ip"));
        for (key, value) in [
            ("ip", Some("1")),
            ("gw", Some("10.0.0.1")),
            ("motd", Some("two words")),
            ("n", Some("0x")),
            ("exit", None),
            ("", None),
        ] {
            assert_eq!(line.value(key), value, "{key}");
        }
        assert_eq!(line.parsed("ip"), Some(1u32));
        assert_eq!(line.parsed::<u32>("n"), None);
    }

    #[test]
    fn odd_lines() {
        for (line, words) in [
            ("", &[][..]),
            (" \n", &[]),
            ("a=\"b", &["a=\"b"]),
            ("\"", &["\""]),
            ("é ü=ß", &["é", "ü=ß"]),
        ] {
            let got: Vec<_> = CommandLine::new(line).words().collect();
            assert_eq!(got, words, "{line:?}");
        }
        assert_eq!(CommandLine::new("a=\"b c").value("a"), Some("b c"));
    }
}
