//! Whether to look again and again for what is about to come, instead of sleeping: it saves the time of waking up,
//! which is more than a short request takes.

use std::time::Duration;

/// How long to look at most.
pub const MOST: Duration = Duration::from_micros(50);

/// What a success earns, and a failure costs: looking goes on if most of it finds something.
const EARNED: i32 = 1;
const COST: i32 = 4;
/// Most that is kept for bad times.
const SAVINGS: i32 = 32;
/// So many times of not looking after it was of no use: the peer may need the very processor.
const REST: i32 = 256;

/// How well it has gone so far.
#[derive(Debug)]
pub struct Spin {
    savings: i32,
    rest: i32,
}

impl Default for Spin {
    fn default() -> Self {
        Spin {
            savings: SAVINGS,
            rest: 0,
        }
    }
}

impl Spin {
    /// Whether it is worth a try now.
    pub fn may_begin(&mut self) -> bool {
        self.rest -= i32::from(self.rest > 0);
        self.rest == 0
    }

    /// Takes note of whether something has come.
    pub fn ended(&mut self, found: bool) {
        if found {
            self.savings = (self.savings + EARNED).min(SAVINGS);
        } else {
            self.savings -= COST;
        }
        if self.savings < 0 {
            (self.savings, self.rest) = (0, REST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often it looks in 1000 times, of which every `nth` finds something.
    fn looks(nth: usize) -> usize {
        let mut spin = Spin::default();
        let mut count = 0;
        for _ in 0..1000 {
            if spin.may_begin() {
                count += 1;
                spin.ended(count % nth == 0);
            }
        }
        count
    }

    #[test]
    fn what_is_of_no_use_is_seldom_done() {
        assert_eq!(looks(1), 1000);
        assert!(looks(1000) < 20, "{}", looks(1000));
        assert!(looks(3) < 100, "{}", looks(3));
    }
}
