//! The kernel of a Rust guest: it boots on Xen as a 64-bit PV domain with one vCPU and gives an
//! appliance its world: memory, clock, console, store, grants, events, devices.
//!
//! An appliance is a crate with
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//! use pvguest::{Exit, Guest, println};
//!
//! pvguest::main!(main);
//!
//! fn main(guest: Guest) -> Exit {
//!     println!("hello from domain {}", guest.domid());
//!     guest.wait_for_shutdown()
//! }
//! ```
//!
//! Invariant: event upcalls stay masked from the first instruction to the last; waiting is SCHEDOP_poll.
//! Code may therefore use a red zone, and nothing runs concurrently: one vCPU, no interrupt.
//! Invariant: an exception is the end of the guest (registers on the console, SHUTDOWN_crash), except
//! where [`traps`] was told to expect it.
//! Invariant: a panic never hangs: console, then SHUTDOWN_crash.
//! Invariant: pages granted to a peer hold nothing but what is meant for it.
#![no_std]

extern crate alloc;

mod boot;
mod clock;
mod console;
mod disk;
mod events;
mod exit;
mod grants;
mod guest;
mod heap;
pub mod hypercall;
mod libc;
mod logging;
pub mod memory;
#[cfg(feature = "net")]
pub mod net;
mod paging;
mod panic;
mod shared_info;
mod single;
mod start_info;
mod store;
pub mod traps;

pub use clock::PvClock;
pub use console::Console;
pub use disk::Disk;
pub use events::{Events, wait};
pub use exit::Exit;
pub use grants::{GrantPage, Grants};
pub use guest::{Guest, MemoryInfo, ShutdownRequest};
pub use log;
pub use store::GuestStore;

pub use pv_drivers;
pub use xen_hal;
pub use xen_sys;

/// Names the appliance's `fn(Guest) -> Exit`.
#[macro_export]
macro_rules! main {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "Rust" fn pvguest_appliance_main(guest: $crate::Guest) -> $crate::Exit {
            let main: fn($crate::Guest) -> $crate::Exit = $main;
            main(guest)
        }
    };
}

/// Prints to the console.
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => { $crate::Console::print(::core::format_args!($($arg)*)) };
}

/// Prints a line to the console.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($arg:tt)*) => { $crate::Console::print(::core::format_args!("{}\n", ::core::format_args!($($arg)*))) };
}
