//! Test data for disks that anybody can compute again, from a seed and a sector's number.

use xen_sys::io::blkif::SECTOR_SIZE;

/// The content of a sector (SplitMix64 started from seed and number).
pub fn sector(seed: u64, number: u64) -> [u8; SECTOR_SIZE] {
    let mut bytes = [0; SECTOR_SIZE];
    let start = seed ^ number.wrapping_mul(0xd134_2543_de82_ef95);
    for (at, word) in bytes.chunks_mut(8).enumerate() {
        let mut z = start.wrapping_add((at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    bytes
}

/// Fills `to`, whole sectors, with the content of the sectors from `first` on.
pub fn fill(seed: u64, first: u64, to: &mut [u8]) {
    for (number, piece) in (first..).zip(to.chunks_mut(SECTOR_SIZE)) {
        piece.copy_from_slice(&sector(seed, number)[..piece.len()]);
    }
}

/// Whether `data`, whole sectors, is the content of the sectors from `first` on.
pub fn matches(seed: u64, first: u64, data: &[u8]) -> bool {
    (first..)
        .zip(data.chunks(SECTOR_SIZE))
        .all(|(number, piece)| piece == &sector(seed, number)[..piece.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_the_same_alone_or_within_the_whole() {
        // splitmix64 seeded with 7.
        assert_eq!(
            sector(7, 0)[..8],
            7_191_089_600_892_374_487u64.to_le_bytes()
        );
        let mut whole = [0; 4096];
        fill(7, 40, &mut whole);
        assert_eq!(whole[1024..1536], sector(7, 42));
        assert!(matches(7, 41, &whole[512..]));
        assert!(!matches(7, 40, &whole[512..]) && !matches(8, 41, &whole[512..]));
        whole[600] ^= 1;
        assert!(!matches(7, 41, &whole[512..]));
    }
}
