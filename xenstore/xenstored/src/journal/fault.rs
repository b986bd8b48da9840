//! Lets a daemon that was built for tests kill itself at its n-th step, so that tests can try every one.

/// A step, between which the daemon may be killed with different outcomes.
#[inline(always)]
pub fn point() {
    #[cfg(debug_assertions)]
    armed::step();
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// `N` kills at the N-th step, `A-B` at one between the two that the clock chooses.
    const VARIABLE: &str = "XENSTORED_KILL_AT";

    pub fn step() {
        static AT: OnceLock<u64> = OnceLock::new();
        static STEPS: AtomicU64 = AtomicU64::new(0);
        let at = *AT.get_or_init(|| std::env::var(VARIABLE).map_or(0, |text| choose(&text)));
        if at != 0 && STEPS.fetch_add(1, Ordering::Relaxed) + 1 == at {
            // Nothing of ours runs any more after this.
            let _ = rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            );
            loop {
                std::thread::park();
            }
        }
    }

    fn choose(text: &str) -> u64 {
        let number = |text: &str| text.parse::<u64>().unwrap_or(0);
        match text.split_once('-') {
            None => number(text),
            Some((from, to)) => {
                let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
                let (from, to) = (number(from), number(to));
                from + now.tv_nsec as u64 / 7 % (to.saturating_sub(from) + 1)
            }
        }
    }
}
