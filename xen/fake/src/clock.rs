//! Time that passes only when told to, or a little with every look at it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use xen_hal::Clock;

/// The world's clock. Every clone is the same clock.
#[derive(Clone, Default)]
pub struct FakeClock(Arc<Times>);

#[derive(Default)]
struct Times {
    now_ns: AtomicU64,
    tick_ns: AtomicU64,
}

impl FakeClock {
    /// Lets time pass.
    pub fn advance_ns(&self, ns: u64) {
        self.0.now_ns.fetch_add(ns, Ordering::SeqCst);
    }

    /// Lets this much time pass whenever the clock is read, so that code which waits for a deadline in a
    /// loop comes to its end. 0, as at first, for none.
    pub fn set_tick_ns(&self, ns: u64) {
        self.0.tick_ns.store(ns, Ordering::SeqCst);
    }
}

impl Clock for FakeClock {
    fn now_ns(&self) -> u64 {
        let tick = self.0.tick_ns.load(Ordering::SeqCst);
        self.0.now_ns.fetch_add(tick, Ordering::SeqCst)
    }
}
