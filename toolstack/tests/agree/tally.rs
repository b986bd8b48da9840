//! Counts what agrees, and holds what does not against the table of known differences.

use std::fmt::Debug;

/// A known difference: its name, the reason, and whether a case is one of it.
pub struct Difference<T> {
    /// A short name.
    pub name: &'static str,
    /// Why ours does otherwise.
    pub why: &'static str,
    /// Of the text, ours and theirs.
    pub is: fn(&str, &Outcome<T>, &Outcome<T>) -> bool,
}

/// What a text means, or that it is refused.
pub type Outcome<T> = Result<T, String>;

/// The count of one kind of text.
pub struct Tally<'a, T> {
    kind: &'static str,
    seed: u64,
    known: &'a [Difference<T>],
    counts: Vec<usize>,
    agreed: usize,
    refused: usize,
    unknown: Vec<String>,
}

/// Most differences that are shown.
const SHOWN: usize = 12;

impl<'a, T: PartialEq + Debug> Tally<'a, T> {
    /// Nothing counted yet.
    pub fn new(kind: &'static str, seed: u64, known: &'a [Difference<T>]) -> Self {
        Tally {
            kind,
            seed,
            known,
            counts: vec![0; known.len()],
            agreed: 0,
            refused: 0,
            unknown: Vec::new(),
        }
    }

    /// Counts one text.
    pub fn compare(&mut self, text: &str, ours: &Outcome<T>, theirs: &Outcome<T>) {
        match (ours, theirs) {
            (Ok(a), Ok(b)) if a == b => self.agreed += 1,
            (Err(_), Err(_)) => self.refused += 1,
            _ => match self.known.iter().position(|d| (d.is)(text, ours, theirs)) {
                Some(index) => self.counts[index] += 1,
                None => self
                    .unknown
                    .push(format!("{text:?}\n  ours   {ours:?}\n  theirs {theirs:?}")),
            },
        }
    }

    /// Fails if something differed that is not in the table, if a row of it never occurred, or if too few texts
    /// meant something.
    pub fn finish(self, least: usize) {
        let total: usize = self.agreed + self.refused + self.counts.iter().sum::<usize>();
        println!(
            "{}: {total} texts with seed {}: {} mean the same, {} are refused by both",
            self.kind, self.seed, self.agreed, self.refused
        );
        for (difference, count) in self.known.iter().zip(&self.counts) {
            println!(
                "    {count} differ: {}: {}",
                difference.name, difference.why
            );
        }
        let shown: Vec<_> = self
            .unknown
            .iter()
            .take(SHOWN)
            .map(String::as_str)
            .collect();
        assert!(
            self.unknown.is_empty(),
            "{}, AGREE_SEED={}: {} of {total} differ without a reason:\n{}",
            self.kind,
            self.seed,
            self.unknown.len(),
            shown.join("\n")
        );
        // Rare ones need not occur from every seed.
        for (difference, count) in self.known.iter().zip(&self.counts) {
            assert!(
                *count > 0 || self.seed != 1,
                "{}: {} never occurred",
                self.kind,
                difference.name
            );
        }
        assert!(
            self.agreed >= least,
            "{}: only {} mean the same",
            self.kind,
            self.agreed
        );
    }
}
