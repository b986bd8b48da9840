//! The clock: it goes forward, at the right speed, and waiting ends when it should.

use alloc::string::String;

use pvguest::Guest;
use pvguest::xen_hal::Clock;

use crate::{Test, demand};

pub(crate) const TESTS: &[Test] = &[
    ("the clock never goes back", monotonic),
    ("waiting lasts as long as it should", waits),
    ("the wall clock is plausible", wall),
];

const MS: u64 = 1_000_000;

fn monotonic(guest: &Guest) -> Result<(), String> {
    let clock = guest.clock();
    let first = clock.now_ns();
    let mut before = first;
    for _ in 0..20_000 {
        let now = clock.now_ns();
        demand!(now >= before, "from {before} back to {now}");
        before = now;
    }
    demand!(before > first, "it stands still at {first}");
    Ok(())
}

fn waits(guest: &Guest) -> Result<(), String> {
    for ms in [1, 5, 20] {
        let start = guest.clock().now_ns();
        let deadline = start + ms * MS;
        while guest.clock().now_ns() < deadline {
            guest.wait(Some(deadline));
        }
        let waited = guest.clock().now_ns() - start;
        // QEMU on a busy host is late, but never by seconds.
        demand!(
            (ms * MS..ms * MS + 2000 * MS).contains(&waited),
            "{ms} ms took {waited} ns"
        );
    }
    let now = guest.clock().now_ns();
    guest.wait(Some(now.saturating_sub(MS)));
    Ok(())
}

fn wall(guest: &Guest) -> Result<(), String> {
    let seconds = guest.clock().wall_ns() / 1_000_000_000;
    // 2024 to 2100.
    demand!(
        (1_704_067_200..4_102_444_800).contains(&seconds),
        "{seconds} s since 1970"
    );
    Ok(())
}
