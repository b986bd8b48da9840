//! Time: the system clock that Xen shares (nanoseconds since the host booted) and the wall clock.

use core::arch::x86_64::{_mm_lfence, _rdtsc};

use xen_hal::Clock;

use crate::shared_info;

/// The guest's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct PvClock;

impl PvClock {
    /// Nanoseconds since 1970, as the host sees it.
    pub fn wall_ns(&self) -> u64 {
        let (seconds, nanoseconds) = shared_info::wall_clock();
        seconds
            .wrapping_mul(1_000_000_000)
            .wrapping_add(nanoseconds.into())
            .wrapping_add(self.now_ns())
    }
}

impl Clock for PvClock {
    fn now_ns(&self) -> u64 {
        let time = shared_info::time();
        // SAFETY: the fence keeps rdtsc after the loads above; both exist on every x86-64.
        let tsc = unsafe {
            _mm_lfence();
            _rdtsc()
        };
        let delta = tsc.wrapping_sub(time.tsc_timestamp);
        // A TSC read just before the stamp was taken on another CPU is no time travel of centuries.
        let delta = if delta as i64 <= 0 { 0 } else { delta };
        let shifted = match time.tsc_shift {
            shift @ 0.. => u128::from(delta) << shift.min(63),
            shift => u128::from(delta) >> shift.unsigned_abs().min(63),
        };
        let scaled = (shifted.wrapping_mul(time.tsc_to_system_mul.into())) >> 32;
        time.system_time.wrapping_add(scaled as u64)
    }
}
