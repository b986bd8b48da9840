//! Reads little-endian numbers out of untrusted bytes, and what such bytes come from.

use alloc::borrow::Cow;

/// Where an image's bytes come from: of a file only what is looked at need be read.
pub trait Source {
    /// How many bytes there are.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `len` bytes at `at`, if they are there.
    fn part(&self, at: u64, len: u64) -> Option<Cow<'_, [u8]>>;
}

impl Source for [u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn part(&self, at: u64, len: u64) -> Option<Cow<'_, [u8]>> {
        slice(self, at, len).map(Cow::Borrowed)
    }
}

/// The `len` bytes at `at`, if they are there.
pub(crate) fn slice(bytes: &[u8], at: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(at).ok()?;
    let end = usize::try_from(at.checked_add(len)?).ok()?;
    bytes.get(start..end)
}

/// The u16 at `at`.
pub(crate) fn u16_at(bytes: &[u8], at: u64) -> Option<u16> {
    slice(bytes, at, 2).map(|b| u16::from_le_bytes([b[0], b[1]]))
}

/// The u32 at `at`.
pub(crate) fn u32_at(bytes: &[u8], at: u64) -> Option<u32> {
    slice(bytes, at, 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// The u64 at `at`.
pub(crate) fn u64_at(bytes: &[u8], at: u64) -> Option<u64> {
    slice(bytes, at, 8)
        .and_then(|b| b.try_into().ok())
        .map(u64::from_le_bytes)
}
