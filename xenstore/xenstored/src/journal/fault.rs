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

    /// `N` kills at the N-th step.
    pub const VARIABLE: &str = "XENSTORED_KILL_AT";

    pub fn step() {
        static AT: OnceLock<u64> = OnceLock::new();
        static STEPS: AtomicU64 = AtomicU64::new(0);
        let at = *AT.get_or_init(|| {
            let text = std::env::var(VARIABLE).unwrap_or_default();
            text.parse().unwrap_or(0)
        });
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
}

/// Of a list of steps for daemons that are started one after the other, gives the next one its own.
pub fn arm(command: &mut std::process::Command, life: usize) {
    #[cfg(debug_assertions)]
    {
        let all = std::env::var(armed::VARIABLE).unwrap_or_default();
        let step = all.split(',').nth(life).unwrap_or_default();
        command.env(armed::VARIABLE, step);
    }
    #[cfg(not(debug_assertions))]
    let _ = (command, life);
}
