//! The ways in which a guest ends.

use xen_sys::sched::{SHUTDOWN_CRASH, SHUTDOWN_POWEROFF, SHUTDOWN_REBOOT};

use crate::{console, hypercall};

/// How an appliance wants to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// `SHUTDOWN_poweroff`
    Poweroff,
    /// `SHUTDOWN_reboot`
    Reboot,
    /// `SHUTDOWN_crash`: something went wrong and was said on the console.
    Crash,
}

impl Exit {
    /// The reason's number (sched.h).
    pub const fn reason(self) -> u32 {
        match self {
            Exit::Poweroff => SHUTDOWN_POWEROFF,
            Exit::Reboot => SHUTDOWN_REBOOT,
            Exit::Crash => SHUTDOWN_CRASH,
        }
    }
}

/// Ends the guest in order.
pub(crate) fn leave(exit: Exit) -> ! {
    end(exit.reason())
}

/// Ends the guest, once the console daemon has taken the last words (or does not seem to want them).
pub(crate) fn end(reason: u32) -> ! {
    console::drain();
    loop {
        // Xen stops the vCPU in this call; should it refuse, there is nothing left but to ask again.
        let _ = hypercall::shutdown(reason);
    }
}
