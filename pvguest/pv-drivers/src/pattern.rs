//! Test data that anybody can compute again: word N of a stream is a mix of the seed and N.

/// Fills `to` with the stream's bytes from `offset` on. Offset and length are multiples of 8.
pub fn fill(seed: u64, offset: u64, to: &mut [u8]) {
    for (index, word) in to.chunks_mut(8).enumerate() {
        let bytes = word_at(seed, offset / 8 + index as u64).to_le_bytes();
        word.copy_from_slice(&bytes[..word.len()]);
    }
}

/// The offset in `data` of the first byte that is not the stream's, whose part from `offset` on `data` should be.
pub fn first_difference(seed: u64, offset: u64, data: &[u8]) -> Option<usize> {
    data.chunks(8).enumerate().find_map(|(index, word)| {
        let bytes = word_at(seed, offset / 8 + index as u64).to_le_bytes();
        let differs = word.iter().zip(bytes).position(|(got, want)| *got != want)?;
        Some(index * 8 + differs)
    })
}

/// splitmix64's output function.
fn word_at(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// A checksum that both sides of a test can afford: FNV-1a, 64 bits.
pub fn fnv1a(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_the_same_alone_or_within_the_whole() {
        let mut whole = [0; 256];
        fill(7, 0, &mut whole);
        // The first word of splitmix64 seeded with 7.
        assert_eq!(whole[..8], 7_191_089_600_892_374_487u64.to_le_bytes());
        let mut piece = [0; 64];
        fill(7, 128, &mut piece);
        assert_eq!(piece, whole[128..192]);
        assert_eq!(first_difference(7, 128, &piece), None);
        piece[13] ^= 1;
        assert_eq!(first_difference(7, 128, &piece), Some(13));
        assert_eq!(first_difference(8, 128, &piece), Some(0));
    }

    #[test]
    fn fnv_of_known_texts() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
