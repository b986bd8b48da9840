//! A bound on what is logged about each device: what a guest brings about must not fill the host's disk.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Lines about one device in one [`WINDOW`].
const MAX_LINES: u32 = 200;
/// How long lines count.
const WINDOW: Duration = Duration::from_secs(600);

/// How much has been said of whom. Holds those only of whom something was said within the last window.
pub(crate) struct Quota(BTreeMap<String, Said>);

struct Said {
    since: Instant,
    lines: u32,
}

/// What to do with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is logged; so many before it were not.
    Log { missed: u32 },
    /// It is logged, as the last one for this window.
    Last,
    /// It is counted only.
    Drop,
}

impl Quota {
    pub(crate) const fn new() -> Self {
        Quota(BTreeMap::new())
    }

    /// Counts a line about `name`.
    pub(crate) fn admit(&mut self, name: &str, now: Instant) -> Verdict {
        let is_over = |said: &Said| now.saturating_duration_since(said.since) >= WINDOW;
        if let Some(said) = self.0.get_mut(name).filter(|said| !is_over(said)) {
            said.lines = said.lines.saturating_add(1);
            return match said.lines {
                ..MAX_LINES => Verdict::Log { missed: 0 },
                MAX_LINES => Verdict::Last,
                _ => Verdict::Drop,
            };
        }
        let before = self.0.get(name).map_or(0, |said| said.lines);
        // A new window for one: the moment to forget all whose windows have ended.
        self.0.retain(|_, said| !is_over(said));
        let said = Said {
            since: now,
            lines: 1,
        };
        self.0.insert(name.to_string(), said);
        Verdict::Log {
            missed: before.saturating_sub(MAX_LINES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_says_too_much_is_silenced_for_a_while() {
        let (mut quota, start) = (Quota::new(), Instant::now());
        let mut logged = 0;
        for n in 0..10_000 {
            let now = start + Duration::from_millis(n);
            logged += u32::from(quota.admit("vbd/1/7", now) != Verdict::Drop);
        }
        assert_eq!(logged, MAX_LINES);
        // Others are heard, and later this one is again.
        assert_eq!(quota.admit("vbd/2/7", start), Verdict::Log { missed: 0 });
        let missed = 10_000 - MAX_LINES;
        let later = start + WINDOW;
        assert_eq!(quota.admit("vbd/1/7", later), Verdict::Log { missed });
        assert_eq!(quota.admit("vbd/1/7", later), Verdict::Log { missed: 0 });
    }

    #[test]
    fn names_are_forgotten() {
        let (mut quota, start) = (Quota::new(), Instant::now());
        for n in 0..100 {
            quota.admit(&format!("vif/{n}/0"), start + n * WINDOW);
            assert_eq!(quota.0.len(), 1);
        }
    }
}
