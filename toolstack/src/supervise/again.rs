//! When a guest that has ended is created again: at once, or later and later if it ends soon after each start.
//!
//! Invariant: asks no clock; who calls tells the time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A guest that ends sooner than this after it was created has lived for a short time only.
pub const SHORT_LIFE: Duration = Duration::from_secs(10);
/// The pause before a guest is created again that has lived for a short time twice in a row.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How a guest has fared; kept in its marks, so that the next supervisor goes on with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fate {
    /// How often in a row one like it has lived for a short time only.
    pub short_lives: u32,
    /// It has ended, and one like it is created at this time: milliseconds since 1970.
    pub again_ms: Option<u64>,
}

impl Fate {
    /// The guest has ended now, after such a life.
    pub fn ended(self, lived: Option<Duration>, now: SystemTime) -> Fate {
        let short = lived.is_some_and(|lived| lived < SHORT_LIFE);
        let short_lives = match short {
            true => self.short_lives.saturating_add(1),
            false => 0,
        };
        Fate {
            short_lives,
            again_ms: Some(ms(now + pause(short_lives))),
        }
    }

    /// One like it could not be created now.
    pub fn failed(self, now: SystemTime) -> Fate {
        let short_lives = self.short_lives.saturating_add(1).max(2);
        Fate {
            short_lives,
            again_ms: Some(ms(now + pause(short_lives))),
        }
    }

    /// How long until one like it is created; a clock that was set back makes that no longer than it ever is.
    pub fn left(self, now: SystemTime) -> Duration {
        let due = Duration::from_millis(self.again_ms.unwrap_or(0));
        let left = due.saturating_sub(Duration::from_millis(ms(now)));
        left.min(LONGEST_PAUSE)
    }

    /// That of the next guest of this kind.
    pub fn next(self) -> Fate {
        Fate {
            again_ms: None,
            ..self
        }
    }
}

/// The first time nobody has to wait: a guest may well be told to reboot as soon as it is up.
fn pause(short_lives: u32) -> Duration {
    let Some(doublings) = short_lives.checked_sub(2) else {
        return Duration::ZERO;
    };
    let factor = 1u32.checked_shl(doublings).unwrap_or(u32::MAX);
    FIRST_PAUSE.saturating_mul(factor).min(LONGEST_PAUSE)
}

fn ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Option<Duration> = Some(Duration::from_millis(300));
    const LONG: Option<Duration> = Some(Duration::from_secs(11));

    #[test]
    fn pauses_grow_to_a_bound_and_a_long_life_ends_them() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let mut fate = Fate::default();
        let mut check = |lived, pause_s| {
            fate = fate.ended(lived, now);
            assert_eq!(fate.left(now), Duration::from_secs(pause_s), "{fate:?}");
            fate = fate.next();
        };
        for pause_s in [0, 1, 2, 4, 8, 16, 32, 60, 60] {
            check(SHORT, pause_s);
        }
        check(LONG, 0);
        check(SHORT, 0);
        check(SHORT, 1);
        // Nobody knows how long it has lived.
        check(None, 0);
        let endless = Fate {
            short_lives: u32::MAX,
            again_ms: None,
        };
        assert_eq!(endless.ended(SHORT, now).left(now), LONGEST_PAUSE);
    }

    #[test]
    fn what_fails_is_tried_again_later_and_later() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let mut fate = Fate::default().ended(LONG, now);
        for pause_s in [1, 2, 4] {
            fate = fate.failed(now);
            assert_eq!(fate.left(now), Duration::from_secs(pause_s));
        }
    }

    #[test]
    fn the_time_that_is_left_is_bounded_whatever_the_clock_says() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let fate = Fate {
            short_lives: 3,
            again_ms: Some(ms(now) + 2000),
        };
        for (at, left_ms) in [
            (now, 2000),
            (now + Duration::from_millis(1999), 1),
            (now + Duration::from_secs(2), 0),
            (now + Duration::from_secs(86_400), 0),
            (now - Duration::from_secs(86_400), 60_000),
            (UNIX_EPOCH, 60_000),
        ] {
            assert_eq!(fate.left(at), Duration::from_millis(left_ms));
        }
        assert_eq!(Fate::default().left(now), Duration::ZERO);
    }
}
