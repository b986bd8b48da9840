//! A hash for the maps of the core, which are asked many times for each request: some multiplications.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Makes hashers that begin with a number nobody outside knows, so that no client can choose what collides.
#[derive(Clone, Debug)]
pub struct Seeded(u64);

impl Default for Seeded {
    fn default() -> Self {
        Seeded(RandomState::new().hash_one(0))
    }
}

impl BuildHasher for Seeded {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        Folded(self.0)
    }
}

/// Multiplies what it is given with what it has and folds the upper half of the product onto the lower.
#[derive(Clone, Debug, Default)]
pub struct Folded(u64);

/// 2^64 divided by the golden ratio, and further digits of pi: odd numbers without a pattern.
const MIX: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0x2437_54a3_2439_f31d];

impl Folded {
    fn mix(&mut self, low: u64, high: u64) {
        let product = u128::from(low ^ self.0) * u128::from(high ^ MIX[1] ^ self.0.rotate_left(32));
        self.0 = product as u64 ^ (product >> 64) as u64 ^ self.0.wrapping_mul(MIX[0]);
    }
}

impl Hasher for Folded {
    fn finish(&self) -> u64 {
        let product = u128::from(self.0) * u128::from(MIX[0]);
        product as u64 ^ (product >> 64) as u64
    }

    fn write(&mut self, bytes: &[u8]) {
        let (blocks, rest) = bytes.as_chunks::<16>();
        for block in blocks {
            let number = u128::from_le_bytes(*block);
            self.mix(number as u64, (number >> 64) as u64);
        }
        let mut last = [0; 16];
        last[..rest.len()].copy_from_slice(rest);
        let number = u128::from_le_bytes(last);
        // The length tells apart what only differs in zeros at its end.
        self.mix(
            number as u64,
            (number >> 64) as u64 ^ (bytes.len() as u64).rotate_right(8),
        );
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(number.into());
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.mix(number, MIX[1]);
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn like_paths_spread() {
        let seed = Seeded(12345);
        let paths: Vec<String> = (0..20_000)
            .map(|n| format!("/local/domain/{}/device/vif/{}/state", n % 200, n / 200))
            .chain((0..300).map(|n| "x".repeat(n)))
            .chain((1..20).map(|n| "\0".repeat(n)))
            .collect();
        let hashes: HashSet<u64> = paths.iter().map(|path| seed.hash_one(path)).collect();
        assert_eq!(hashes.len(), paths.len());
        // As full as a map is at most, the lower bits and the upper ones put about the same into each place.
        for shift in [0, 57] {
            let mut places = [0u32; 128];
            for hash in &hashes {
                places[(hash >> shift) as usize % 128] += 1;
            }
            let mean = hashes.len() as u32 / 128;
            assert!(places.iter().all(|n| (mean / 2..mean * 2).contains(n)));
        }
        assert_ne!(
            Seeded::default().hash_one("a"),
            Seeded::default().hash_one("a")
        );
    }
}
