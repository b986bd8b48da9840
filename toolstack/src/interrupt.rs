//! Ctrl-C while a guest is created: noticed between steps, so that nothing is left half made.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};
use crate::os::HeldSignals;

/// Longest wait without a look at the signals.
const STEP: Duration = Duration::from_millis(100);

static ARMED: AtomicBool = AtomicBool::new(false);

/// Signals that would end this process wait. Dropped without [`release`](Self::release) they go on
/// waiting, so that an error can still be told.
#[derive(Debug)]
pub struct Held(HeldSignals);

impl Held {
    /// Lets SIGINT, SIGTERM and SIGHUP wait from now on; to be called before any thread is started.
    ///
    /// # Errors
    /// The kernel's.
    pub fn begin() -> Result<Held> {
        let signals = HeldSignals::hold().map_err(|e| Error::system("hold", "the signals", &e))?;
        ARMED.store(true, Ordering::Relaxed);
        Ok(Held(signals))
    }

    /// They take effect again, those that have waited first.
    pub fn release(self) {
        ARMED.store(false, Ordering::Relaxed);
        self.0.release();
    }
}

/// From now on nothing is interrupted: there is something to clean up.
pub fn ignore() {
    ARMED.store(false, Ordering::Relaxed);
}

/// Whether there is a signal that asks for an end.
fn asked() -> bool {
    ARMED.load(Ordering::Relaxed) && HeldSignals::pending()
}

/// Whether to go on.
///
/// # Errors
/// One of the signals is waiting.
pub fn check() -> Result<()> {
    if asked() {
        return Err(Error::new("create the guest", "", "it was interrupted").kind(Kind::Aborted));
    }
    Ok(())
}

/// Waits in pieces by `wait`, which is given the length of each: until it has something, or the time has
/// passed, or a signal asks for an end.
pub fn wait<T, E>(
    timeout: Duration,
    mut wait: impl FnMut(Duration) -> Result<Option<T>, E>,
) -> Result<Option<T>, E> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let found = wait(left.min(STEP))?;
        if found.is_some() || left.is_zero() || asked() {
            return Ok(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_in_time_or_with_what_was_found() {
        let begun = Instant::now();
        let nothing = |time| -> Result<Option<()>> {
            std::thread::sleep(time);
            Ok(None)
        };
        assert_eq!(wait(STEP * 2, nothing), Ok(None));
        assert!(begun.elapsed() >= STEP * 2);
        let mut turns = 0;
        let third = |_| -> Result<_> {
            turns += 1;
            Ok((turns == 3).then_some(turns))
        };
        assert_eq!(wait(STEP * 1000, third), Ok(Some(3)));
    }
}
