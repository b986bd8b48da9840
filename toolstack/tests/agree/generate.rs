//! Makes texts that are nearly right, from a seed.

use xen_fake::Schedule;

/// A source of texts.
pub struct Maker {
    rng: Schedule,
    /// What it began with.
    pub seed: u64,
}

/// Characters that mistakes are made with.
const NOISE: &[&str] = &[
    "a", "b", "Z", "0", "1", "9", "x", "=", "+", "[", "]", ",", ";", "'", "\"", "\\", "#", " ",
    "\t", "\n", "-", "$", "_", ".", ":", "/", "@", "^", "!", "é",
];

impl Maker {
    /// A maker for one kind of text; `AGREE_SEED` sets the seed.
    pub fn new(kind: u64) -> Maker {
        let seed: u64 = match std::env::var("AGREE_SEED") {
            Ok(text) => text.parse().expect("AGREE_SEED is a number"),
            Err(_) => 1,
        };
        Maker {
            rng: Schedule::new(seed.wrapping_mul(1000).wrapping_add(kind)),
            seed,
        }
    }

    /// How many cases there are of what is `usual`.
    pub fn count(usual: usize) -> usize {
        match std::env::var("AGREE_COUNT") {
            Ok(text) => usual * text.parse::<usize>().expect("AGREE_COUNT is a number"),
            Err(_) => usual,
        }
    }

    /// A number below `below`.
    pub fn below(&mut self, below: usize) -> usize {
        self.rng.pick(below)
    }

    /// True so many times out of a hundred.
    pub fn percent(&mut self, percent: usize) -> bool {
        self.rng.chance(percent, 100)
    }

    /// One of them.
    pub fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.rng.pick(of.len())]
    }

    /// Some of them in a row.
    pub fn some(&mut self, of: &[&str], most: usize) -> String {
        (0..self.below(most + 1)).map(|_| self.one(of)).collect()
    }

    /// A number as text, small ones more often.
    pub fn number(&mut self) -> String {
        let most = [4, 20, 300, 70_000][self.below(4)];
        self.below(most).to_string()
    }

    /// The text with a mistake or two, now and then.
    pub fn spoil(&mut self, text: String, percent: usize) -> String {
        let mut chars: Vec<char> = text.chars().collect();
        while self.percent(percent) {
            let at = self.below(chars.len() + 1);
            let noise: Vec<char> = self.one(NOISE).chars().collect();
            match self.below(3) {
                0 if at < chars.len() => drop(chars.remove(at)),
                1 if at < chars.len() => chars[at] = noise[0],
                _ => chars.insert(at, noise[0]),
            }
        }
        chars.into_iter().collect()
    }
}
