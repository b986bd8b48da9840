//! sched.h: yielding, waiting, shutting down.

use crate::types::DomId;
use crate::{abi_consts, abi_structs};

abi_consts! {
    table CONSTANTS;
    SCHEDOP_YIELD: u32 = 0, "SCHEDOP_yield";
    /// Waits for an event; unmasks upcalls while it does.
    SCHEDOP_BLOCK: u32 = 1, "SCHEDOP_block";
    SCHEDOP_SHUTDOWN: u32 = 2, "SCHEDOP_shutdown";
    /// Waits for one of a list of ports, upcalls staying masked.
    SCHEDOP_POLL: u32 = 3, "SCHEDOP_poll";
    SCHEDOP_REMOTE_SHUTDOWN: u32 = 4, "SCHEDOP_remote_shutdown";
    SCHEDOP_SHUTDOWN_CODE: u32 = 5, "SCHEDOP_shutdown_code";
    SCHEDOP_WATCHDOG: u32 = 6, "SCHEDOP_watchdog";
    SHUTDOWN_POWEROFF: u32 = 0, "SHUTDOWN_poweroff";
    SHUTDOWN_REBOOT: u32 = 1, "SHUTDOWN_reboot";
    SHUTDOWN_SUSPEND: u32 = 2, "SHUTDOWN_suspend";
    SHUTDOWN_CRASH: u32 = 3, "SHUTDOWN_crash";
    SHUTDOWN_WATCHDOG: u32 = 4, "SHUTDOWN_watchdog";
    SHUTDOWN_SOFT_RESET: u32 = 5, "SHUTDOWN_soft_reset";
}

abi_structs! {
    table LAYOUTS;

    /// Argument of [`SCHEDOP_SHUTDOWN`].
    Shutdown = "struct sched_shutdown", 4 {
        /// `SHUTDOWN_*`.
        reason @ 0: u32 = "reason",
    }

    /// Argument of [`SCHEDOP_POLL`].
    Poll = "struct sched_poll", 24 {
        /// Address of an array of ports; Xen takes at most 128.
        ports @ 0: u64 = "ports",
        /// Its length.
        nr_ports @ 8: u32 = "nr_ports",
        pad0 @ 12: u32,
        /// Absolute system time in nanoseconds; 0 = none.
        timeout @ 16: u64 = "timeout",
    }

    /// Argument of [`SCHEDOP_REMOTE_SHUTDOWN`].
    RemoteShutdown = "struct sched_remote_shutdown", 8 {
        /// Whom.
        domain_id @ 0: DomId = "domain_id",
        pad0 @ 2: u16,
        /// `SHUTDOWN_*`.
        reason @ 4: u32 = "reason",
    }
}
