//! Tests of the guest kernel on bare Xen: booted as dom0 with no Linux, it prints a line per test and
//! `selftest: N passed, N failed`, then reboots. Runs as a domU, too.
#![no_std]
#![no_main]

extern crate alloc;

mod events;
mod grants;
mod memory;
mod time;
mod traps;

use alloc::string::String;

use pvguest::{Exit, Guest, println};

pvguest::main!(main);

/// One test: what it is called, and why it failed.
type Test = (&'static str, fn(&Guest) -> Result<(), String>);

const SUITES: [&[Test]; 5] = [
    memory::TESTS,
    traps::TESTS,
    time::TESTS,
    grants::TESTS,
    events::TESTS,
];

fn main(guest: Guest) -> Exit {
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in SUITES.into_iter().flatten() {
        match test(&guest) {
            Ok(()) => {
                passed += 1;
                println!("ok {} - {name}", passed + failed);
            }
            Err(why) => {
                failed += 1;
                println!("not ok {} - {name}: {why}", passed + failed);
            }
        }
    }
    println!("selftest: {passed} passed, {failed} failed");
    // As dom0 a reboot makes QEMU end (-no-reboot); as a domU it would run again and again.
    match guest.is_dom0() {
        true => Exit::Reboot,
        false => Exit::Poweroff,
    }
}

/// Fails the test unless the condition holds.
#[macro_export]
macro_rules! demand {
    ($condition:expr, $($why:tt)+) => {
        if !$condition {
            return Err(::alloc::format!($($why)+));
        }
    };
}
