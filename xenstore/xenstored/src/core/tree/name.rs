//! Names of nodes as they are looked for: cut out of a path eight bytes at a time, with their beginnings as numbers.

/// A name to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name<'a> {
    /// The first [`KEY_LEN`](Self::KEY_LEN) bytes, as a number that is ordered as they are; shorter names are filled up with
    /// zeros, which no name has.
    pub key: u64,
    /// All of it.
    pub bytes: &'a [u8],
}

impl<'a> Name<'a> {
    /// Bytes in a key.
    pub const KEY_LEN: usize = size_of::<u64>();

    /// A name by itself.
    pub fn new(bytes: &'a [u8]) -> Name<'a> {
        let key = head(first_word(bytes, 0), bytes.len());
        Name { key, bytes }
    }

    /// Whether the key says all, so that equal keys mean equal names.
    pub fn is_short(&self) -> bool {
        self.bytes.len() < Self::KEY_LEN
    }
}

/// The names in an absolute path, from the root down; none for `/`.
#[inline]
pub fn names(path: &str) -> Names<'_> {
    let path = path.as_bytes();
    Names { path, at: 1 }
}

/// The names that are left of a path.
#[derive(Clone, Debug)]
pub struct Names<'a> {
    path: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Names<'a> {
    type Item = Name<'a>;

    #[inline]
    fn next(&mut self) -> Option<Name<'a>> {
        let rest = self.path.get(self.at..).filter(|rest| !rest.is_empty())?;
        let word = first_word(self.path, self.at);
        let len = match first_slash(word) {
            Some(len) => len,
            None if rest.len() <= Name::KEY_LEN => rest.len(),
            None => {
                let more = &rest[Name::KEY_LEN..];
                let end = more.iter().position(|byte| *byte == b'/');
                Name::KEY_LEN + end.unwrap_or(more.len())
            }
        };
        self.at += len + 1;
        Some(Name {
            key: head(word, len),
            bytes: rest.get(..len)?,
        })
    }
}

/// The bytes from `at` on as a number whose upper ones are the first, filled up with zeros.
#[inline]
fn first_word(bytes: &[u8], at: usize) -> u64 {
    let rest = bytes.get(at..).unwrap_or_default();
    if let Some(first) = rest.first_chunk() {
        return u64::from_be_bytes(*first);
    }
    if let Some(last) = bytes.last_chunk() {
        let word = u64::from_be_bytes(*last);
        return word.checked_shl(64 - 8 * rest.len() as u32).unwrap_or(0);
    }
    let mut word = [0; Name::KEY_LEN];
    for (to, byte) in word.iter_mut().zip(rest) {
        *to = *byte;
    }
    u64::from_be_bytes(word)
}

/// The first `len` bytes of a word, with zeros for the others.
#[inline]
fn head(word: u64, len: usize) -> u64 {
    match len {
        0 => 0,
        1..Name::KEY_LEN => word & u64::MAX << (64 - 8 * len),
        _ => word,
    }
}

/// Which byte of a word is its first slash.
#[inline]
fn first_slash(word: u64) -> Option<usize> {
    const LOW: u64 = u64::from_be_bytes([0x7f; 8]);
    let zero_where_slash = word ^ u64::from_be_bytes([b'/'; 8]);
    // The upper bit of each byte is set where that is 0.
    let found = !(((zero_where_slash & LOW) + LOW) | zero_where_slash | LOW);
    (found != 0).then(|| found.leading_zeros() as usize / 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_ordered_as_names() {
        let names = [
            "", "-", "0", "00", "1", "a", "a0", "aaaaaaa", "aaaaaaaa", "aaaaaaab", "b",
        ];
        for pair in names.windows(2) {
            let [low, high] = [pair[0], pair[1]].map(|name| Name::new(name.as_bytes()).key);
            assert!(low < high, "{pair:?}");
        }
        let long = ["aaaaaaaa", "aaaaaaaab"].map(|name| Name::new(name.as_bytes()));
        assert_eq!(long[0].key, long[1].key);
        assert!(!long[0].is_short());
    }

    proptest! {
        #[test]
        fn names_are_what_is_between_slashes(path in "(/[-a-z0-9_@.0]{1,19}){0,6}") {
            let found: Vec<_> = names(&path).collect();
            let expected = path.split('/').skip(1);
            let expected: Vec<_> = expected.map(|name| Name::new(name.as_bytes())).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn any_text_is_cut_without_fault(path in ".{0,24}") {
            let len: usize = names(&path).map(|name| name.bytes.len() + 1).sum();
            prop_assert!(len <= path.len() + 1);
        }

        #[test]
        fn the_first_slash(bytes in proptest::array::uniform8(prop_oneof![Just(b'/'), Just(b'/' + 1), Just(b'/' | 0x80), any::<u8>()])) {
            let expected = bytes.iter().position(|byte| *byte == b'/');
            prop_assert_eq!(first_slash(u64::from_be_bytes(bytes)), expected);
        }
    }
}
